"""What was chosen of a study, and what that gives up: the record that a bundle keeps, and its words."""

from collections.abc import Sequence

from harness.core.configs import FrozenConfig
from harness.core.records import METRIC_DIRECTIONS
from harness.core.units import format_count

# How an amount of a metric is written, without and with its name after it; counts are written by `format_count`.
_DIGITS = {"psnr_db": 3, "ssim": 4, "latency_ms": 2, "latency_ratio": 3, "attention_share": 2}
_UNIT = {"psnr_db": " dB", "latency_ms": " ms", "peak_memory_bytes": "B"}


class MetricChange(FrozenConfig):
    """One metric (`label`: its name without unit) from one point to another.

    `percent` is 100·(after/before − 1), of PSNR that of the squared error that it stands for,
    100·(10^((before − after)/10) − 1); None where `before` is 0.
    """

    metric: str
    label: str
    before: float
    after: float
    percent: float | None

    @property
    def is_gain(self) -> bool:
        """Whether the other point is better in it."""
        return (self.after > self.before) == (METRIC_DIRECTIONS[self.metric.partition("/")[0]] == "maximize")

    @property
    def words(self) -> str:
        """The amount, absolute and relative: '5.02 ms latency (58.2 %)'."""
        amount = f"{format_amount(self.metric, abs(self.after - self.before))} {self.label}"
        if self.percent is None:
            return amount
        share = f"{_write(abs(self.percent), 1)} %"
        if self.metric == "psnr_db":
            share += f" {'less' if self.percent <= 0 else 'more'} squared error"
        return f"{amount} ({share})"


class TradeOff(FrozenConfig):
    """What a step between two points gains and gives up; `title` says which step, `label` names the other point.

    The step is from the chosen point to a neighbour on the front, or from a reference to the chosen point. `note` says
    what stands between it and a plain reading.
    """

    title: str
    label: str
    record_id: str
    point_id: str
    changes: tuple[MetricChange, ...]
    note: str | None = None

    @property
    def sentence(self) -> str:
        """The step in words."""
        gained = [change.words for change in self.changes if change.after != change.before and change.is_gain]
        given_up = [change.words for change in self.changes if change.after != change.before and not change.is_gain]
        note = f" [{self.note}]" if self.note else ""
        gains, losses = (", ".join(words) or "nothing" for words in (gained, given_up))
        return f"{self.title}{self.label}: gains {gains}; gives up {losses}{note}"


class ChoiceRecord(FrozenConfig):
    """What was chosen by `pick`, a text as it was typed, under which `rule`, and what that gives up.

    `cheaper` is the step to the front's best point among those of less `cost`, `better` that to the cheapest among
    those of higher quality: in two objectives the neighbours on the front. `reference` is the step from the study's
    SwinIR-light, measured under the same protocol on the same images. `notes` say why one of them is absent, and what
    else stands between the choice and a plain reading. `values` are the chosen point's, by metric.
    """

    pick: str
    rule: str
    label: str
    record_id: str
    point_id: str
    on_front: bool
    cost: str
    values: dict[str, float]
    cheaper: TradeOff | None
    better: TradeOff | None
    reference: TradeOff | None
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """The rule, each step, and the notes, one sentence each."""
        steps: Sequence[TradeOff | None] = (self.cheaper, self.better, self.reference)
        return (f"chosen: {self.rule}", *(step.sentence for step in steps if step is not None), *self.notes)


def format_amount(metric: str, value: float) -> str:
    """Write a metric's value with its unit: '28.889 dB', '3.60 ms', '718.29 M', '0.023'; never 0 for what is more."""
    name = metric.partition("/")[0]
    number = _write(value, _DIGITS[name]) if name in _DIGITS else format_count(value)
    if name == "peak_memory_bytes" and not number[-1].isalpha():
        return f"{number} B"
    return f"{number}{_UNIT.get(name, '')}"


def _write(value: float, digits: int) -> str:
    """Write a number with so many decimals, or its first digit where these would all be 0."""
    rounded = f"{value:.{digits}f}"
    return f"{value:.1g}" if value and not float(rounded) else rounded

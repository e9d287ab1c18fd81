"""Constraints on points, written as `macs <= 30e9` or `psnr_db >= 28`."""

import re
from dataclasses import dataclass

from harness.core.errors import UserError, unknown_name
from harness.core.records import METRIC_DIRECTIONS

# Known before training, because they depend on the architecture and the routing alone.
KNOWN_BEFORE_TRAINING = frozenset({"macs", "params", "latency_ms", "latency_ratio", "peak_memory_bytes"})
_DEVICE_METRICS = frozenset({"latency_ms", "latency_ratio"})
_FORM = re.compile(r"^\s*([a-z_]+(?:/\S+)?)\s*(<=|>=)\s*([-+0-9.eE]+)\s*$")


@dataclass(frozen=True)
class Constraint:
    """An upper (`<=`) or lower (`>=`) bound on a metric, in the metric's unit."""

    metric: str
    operator: str
    bound: float

    @property
    def name(self) -> str:
        """The canonical text, which records and samplers know the constraint by."""
        short = f"{self.bound:g}"
        return f"{self.metric} {self.operator} {short if float(short) == self.bound else repr(self.bound)}"

    @property
    def is_known_before_training(self) -> bool:
        """Whether a proposal can be rejected by it before it is trained."""
        return self.metric.partition("/")[0] in KNOWN_BEFORE_TRAINING

    def violation(self, value: float | None) -> float:
        """Return by how much `value` violates the bound: > 0 violates, ≤ 0 holds; a value not measured violates."""
        if value is None:
            return float("inf")
        return value - self.bound if self.operator == "<=" else self.bound - value


def parse_metric(text: str) -> str:
    """Check the name of a metric, with its device and conditions if it has them; `UserError` lists the known names."""
    name, slash, device = text.partition("/")
    if name not in METRIC_DIRECTIONS:
        raise unknown_name("metric", text, METRIC_DIRECTIONS)
    if slash and not device:
        raise UserError(f"metric {text!r} ends in '/'; expected a device after it, or no '/'")
    if device and name not in _DEVICE_METRICS:
        raise UserError(f"metric {text!r} names a device, but only {', '.join(sorted(_DEVICE_METRICS))} have one")
    return text


def parse_constraint(text: str) -> Constraint:
    """Parse `metric <= number` or `metric >= number`; `UserError` shows the form that was expected."""
    found = _FORM.match(text)
    try:
        if found is None:
            raise ValueError
        return Constraint(parse_metric(found[1]), found[2], float(found[3]))
    except UserError:
        raise
    except ValueError:
        raise UserError(f"constraint {text!r}: expected `metric <= number` or `metric >= number`") from None

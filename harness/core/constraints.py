"""Bounds on metrics, as a space and a choice write them: `macs <= 30G`, `latency_ms/cpu:2 <= 20ms and psnr_db >= 30`.

bounds   = bound, { "and", bound }
bound    = metric, ( "<=" | "<" | ">=" | ">" ), number, [ unit ]
weights  = "weights", ":", metric, "=", number, { ",", metric, "=", number }

A metric is one of `METRIC_DIRECTIONS`, latencies with their conditions if they have some; units are those of `UNITS`.
Nothing is evaluated: whatever does not follow the grammar is refused with the character at which it ceases to.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from harness.core.errors import UserError, unknown_name
from harness.core.records import METRIC_DIRECTIONS
from harness.core.units import UNITS

# Known before training, because they depend on the architecture and the routing alone.
KNOWN_BEFORE_TRAINING = frozenset({"macs", "params", "latency_ms", "latency_ratio", "peak_memory_bytes"})
_DEVICE_METRICS = frozenset({"latency_ms", "latency_ratio"})
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
      | (?P<name>[^\W\d]\w*(?:/[\w:./]*)?)
      | (?P<sign><=|>=|==|!=|[<>]|[^\s\w])
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Constraint:
    """An upper (`<=`, `<`) or lower (`>=`, `>`) bound on a metric, in the metric's unit."""

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

    @property
    def is_upper(self) -> bool:
        """Whether values have to stay below the bound."""
        return self.operator in ("<=", "<")

    def violation(self, value: float | None) -> float:
        """Return by how much `value` violates the bound: > 0 violates, ≤ 0 holds; a value not measured violates.

        At a bound that is not to be reached it is the least number above 0.
        """
        if value is None or math.isnan(value):
            return math.inf
        beyond = value - self.bound if self.is_upper else self.bound - value
        return math.ulp(0.0) if beyond == 0 and self.operator in ("<", ">") else beyond


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
    """Parse the bound of a space, `<=` or `>=`; `UserError` names the character at which it is none, and an example."""
    reader = _Reader(text, "constraint", "macs <= 30G", {})
    found = reader.read_bound(("<=", ">="))
    reader.expect_end("the end")
    return found


def parse_bounds(
    text: str, *, what: str = "constraint", aliases: Mapping[str, str] | None = None
) -> tuple[Constraint, ...]:
    """Parse one bound or several, joined by `and`; `UserError` as of `parse_constraint`.

    `what` is what the text is called in messages, `aliases` maps further names to metrics.
    """
    reader = _Reader(text, what, "latency_ms <= 20 and psnr_db >= 30", aliases or {})
    found = [reader.read_bound(("<=", "<", ">=", ">"))]
    while reader.skip("and"):
        found.append(reader.read_bound(("<=", "<", ">=", ">")))
    reader.expect_end("`and` or the end")
    return tuple(found)


def parse_weights(text: str, *, what: str = "weights", aliases: Mapping[str, str] | None = None) -> dict[str, float]:
    """Parse `weights: metric=number, …` into the weights by metric, all above 0; `UserError` as of `parse_bounds`."""
    reader = _Reader(text, what, "weights: psnr_db=2, latency_ms=1", aliases or {})
    found: dict[str, float] = {}
    reader.expect("weights")
    reader.expect(":")
    while True:
        place = reader.token
        metric = reader.read_metric()
        if metric in found:
            reader.fail(f"each metric once, not {metric} again", place)
        reader.expect("=")
        place = reader.token
        found[metric] = reader.read_number()
        if not found[metric] > 0:
            reader.fail("a weight above 0 (leave out what has none)", place)
        if not reader.skip(","):
            break
    reader.expect_end("`,` or the end")
    return found


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class _Reader:
    """Reads a text token by token, and says where it is not as expected."""

    def __init__(self, text: str, what: str, example: str, aliases: Mapping[str, str]):
        self.text, self.what, self.example, self.aliases = text, what, example, aliases
        found = (_Token(match.lastgroup or "", match[0].lstrip(), match.end()) for match in _TOKEN.finditer(text))
        self.tokens = [token._replace(start=token.start - len(token.text)) for token in found]
        self.tokens.append(_Token("end", "", len(text.rstrip())))
        self.place = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.place]

    def fail(self, expected: str, token: _Token | None = None, because: str | None = None) -> NoReturn:
        token = token or self.token
        got = f"got {token.text!r}" if token.kind != "end" else "but it ends"
        names = ", ".join(sorted({*METRIC_DIRECTIONS, *self.aliases}))
        raise UserError(
            f"{self.what} {self.text!r}, character {token.start + 1}: {because or f'expected {expected}, {got}'}; "
            f"metrics are {names}; for example: {self.example}"
        )

    def skip(self, text: str) -> bool:
        """Pass over a token if it is next."""
        is_next = self.token.text == text
        self.place += is_next
        return is_next

    def expect(self, text: str) -> None:
        if not self.skip(text):
            self.fail(f"`{text}`")

    def expect_end(self, expected: str) -> None:
        if self.token.kind != "end":
            self.fail(expected)

    def read_bound(self, operators: tuple[str, ...]) -> Constraint:
        metric = self.read_metric()
        operator = self.token.text
        if operator not in operators:
            self.fail(" or ".join(operators) if len(operators) < 3 else f"one of {' '.join(operators)}")
        self.place += 1
        bound = self.read_number()
        return Constraint(metric, operator, bound * self._read_unit(metric))

    def read_metric(self) -> str:
        token = self.token
        if token.kind != "name":
            self.fail("a metric")
        name, slash, device = token.text.partition("/")
        try:
            metric = parse_metric(f"{self.aliases.get(name, name)}{slash}{device}")
        except UserError as error:
            if self.aliases.get(name, name) not in METRIC_DIRECTIONS:
                self.fail("", because=f"unknown metric {name!r}")
            self.fail("", because=str(error))
        self.place += 1
        return metric

    def read_number(self) -> float:
        if self.token.kind != "number":
            self.fail("a number")
        value = float(self.token.text)
        if math.isinf(value):
            self.fail("a finite number")
        self.place += 1
        return value

    def _read_unit(self, metric: str) -> float:
        """Read the unit after a number, if there is one, and return what it multiplies the number by."""
        token = self.token
        if token.text == "and" or not (token.kind == "name" or token.text in ("%", "µ")):
            return 1.0
        units = UNITS[metric.partition("/")[0]]
        if token.text not in units:
            self.fail(f"no unit or {' '.join(units)}" if units else f"no unit, {metric} has none")
        self.place += 1
        return units[token.text]

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.constraints import Constraint, parse_bounds, parse_constraint, parse_metric, parse_weights
from harness.core.errors import UserError
from harness.core.records import METRIC_DIRECTIONS
from harness.core.units import UNITS

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
METRICS = st.sampled_from([*METRIC_DIRECTIONS, "latency_ms/cpu:2", "latency_ratio/cpu:1/bf16/64x64"])
CONSTRAINTS = st.builds(Constraint, METRICS, st.sampled_from(["<=", ">="]), NUMBERS)
BOUNDS = st.builds(Constraint, METRICS, st.sampled_from(["<=", ">=", "<", ">"]), NUMBERS)
ALIASES = {"psnr_y_db": "psnr_db"}


@given(CONSTRAINTS)
def test_a_constraints_name_says_it_all(constraint: Constraint) -> None:
    assert parse_constraint(constraint.name) == constraint


@given(BOUNDS, NUMBERS)
def test_violation_is_positive_exactly_beyond_the_bound(constraint: Constraint, value: float) -> None:
    holds = {
        "<=": value <= constraint.bound,
        "<": value < constraint.bound,
        ">=": value >= constraint.bound,
        ">": value > constraint.bound,
    }[constraint.operator]
    assert (constraint.violation(value) <= 0) == holds
    assert (constraint.violation(constraint.bound) <= 0) == (constraint.operator in ("<=", ">="))


def test_violation_is_the_distance_in_the_metrics_unit() -> None:
    assert parse_constraint("latency_ms <= 40").violation(42.5) == 2.5
    assert parse_constraint("psnr_db >= 28").violation(30) == -2
    assert parse_constraint("psnr_db >= 28").violation(None) == math.inf  # what was not measured does not hold
    assert parse_constraint("latency_ms <= 40").violation(None) == math.inf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs <= 30e9", ("macs", "<=", 30e9)),
        ("macs<=30E9", ("macs", "<=", 30e9)),
        ("  psnr_db >= 28.5 ", ("psnr_db", ">=", 28.5)),
        ("latency_ms/cpu:2 <= 40", ("latency_ms/cpu:2", "<=", 40)),
        ("latency_ms/cpu:2<=40", ("latency_ms/cpu:2", "<=", 40)),
        ("attention_share >= -.5", ("attention_share", ">=", -0.5)),
        ("macs <= 30G", ("macs", "<=", 30e9)),
        ("latency_ms <= .02 s", ("latency_ms", "<=", 20)),
    ],
)
def test_constraints_are_read(text: str, expected: tuple[str, str, float]) -> None:
    constraint = parse_constraint(text)
    assert (constraint.metric, constraint.operator, constraint.bound) == expected


@pytest.mark.parametrize(
    ("text", "place", "finding"),
    [
        ("", 1, "expected a metric, but it ends"),
        ("macs", 5, "expected <= or >=, but it ends"),
        ("macs < 3", 6, "expected <= or >=, got '<'"),
        ("macs == 3", 6, "expected <= or >=, got '=='"),
        ("macs <= ", 8, "expected a number, but it ends"),
        ("macs <= many", 9, "expected a number, got 'many'"),
        ("macs <= inf", 9, "expected a number, got 'inf'"),
        ("macs <= 1e400", 9, "expected a finite number, got '1e400'"),
        ("macs <= 3 4", 11, "expected the end, got '4'"),
        ("macs <= 1e", 10, "expected no unit or k M G T, got 'e'"),
        ("ssim >= 1dB", 10, "expected no unit, ssim has none, got 'dB'"),
        ("3 >= macs", 1, "expected a metric, got '3'"),
        ("flops <= 3", 1, "unknown metric 'flops'"),
        ("psnr_y_db >= 30", 1, "unknown metric 'psnr_y_db'"),
        ("psnr_db/cpu:1 >= 3", 1, "metric 'psnr_db/cpu:1' names a device, but only latency_ms, latency_ratio have one"),
        ("macs <= 3 and params <= 2", 11, "expected the end, got 'and'"),
    ],
)
def test_other_forms_are_refused_where_they_cease_to_be_one(text: str, place: int, finding: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_constraint(text)
    names = "attention_share, latency_ms, latency_ratio, macs, params, peak_memory_bytes, psnr_db, ssim"
    assert str(caught.value) == (
        f"constraint {text!r}, character {place}: {finding}; metrics are {names}; for example: macs <= 30G"
    )


@given(st.lists(BOUNDS, min_size=1, max_size=4), st.sampled_from([" and ", "  and\t"]))
def test_several_bounds_are_read(bounds: list[Constraint], joint: str) -> None:
    assert parse_bounds(joint.join(bound.name for bound in bounds)) == tuple(bounds)


@given(METRICS, st.sampled_from(["<=", ">"]), st.floats(0.001, 1000), st.booleans(), st.data())
def test_units_multiply(metric: str, operator: str, number: float, apart: bool, data: st.DataObject) -> None:
    units = UNITS[metric.partition("/")[0]]
    unit = data.draw(st.sampled_from(sorted(units) or [""]))
    (found,) = parse_bounds(f"{metric}{operator}{number!r}{' ' * apart}{unit}")
    assert found == Constraint(metric, operator, number * units.get(unit, 1.0))


def test_every_metric_says_which_units_it_has() -> None:
    assert set(UNITS) == set(METRIC_DIRECTIONS)


@given(st.text(max_size=40))
def test_whatever_is_typed_is_read_or_refused_in_one_line(text: str) -> None:
    for parse in (parse_bounds, parse_weights):
        message = ", character "
        try:
            parse(text)
        except UserError as error:
            message = str(error)
        assert "\n" not in message
        assert ", character " in message


@pytest.mark.parametrize(
    ("text", "place", "finding"),
    [
        ("macs <= 3 or params <= 2", 11, "expected no unit or k M G T, got 'or'"),
        ("macs <= 3, params <= 2", 10, "expected `and` or the end, got ','"),
        ("macs <= 3 and", 14, "expected a metric, but it ends"),
        ("__import__('os')", 1, "unknown metric '__import__'"),
        ("macs <= 3*10", 10, "expected `and` or the end, got '*'"),
    ],
)
def test_nothing_is_evaluated(text: str, place: int, finding: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_bounds(text, what="--pick", aliases=ALIASES)
    assert str(caught.value).startswith(f"--pick {text!r}, character {place}: {finding}; metrics are attention_share, ")
    assert str(caught.value).endswith("psnr_y_db, ssim; for example: latency_ms <= 20 and psnr_db >= 30")


def test_weights_are_read() -> None:
    assert parse_weights("weights: psnr_y_db=2, latency_ms/cpu:2=.5", aliases=ALIASES) == {
        "psnr_db": 2.0,
        "latency_ms/cpu:2": 0.5,
    }


@pytest.mark.parametrize(
    ("text", "place", "finding"),
    [
        ("psnr_db=1", 1, "expected `weights`, got 'psnr_db'"),
        ("weights psnr_db=1", 9, "expected `:`, got 'psnr_db'"),
        ("weights:", 9, "expected a metric, but it ends"),
        ("weights: psnr_db", 17, "expected `=`, but it ends"),
        ("weights: psnr_db=0", 18, "expected a weight above 0 (leave out what has none), got '0'"),
        ("weights: psnr_db=-1", 18, "expected a weight above 0 (leave out what has none), got '-1'"),
        ("weights: psnr_db=1, psnr_y_db=2", 21, "expected each metric once, not psnr_db again, got 'psnr_y_db'"),
        ("weights: psnr_db=1 macs=2", 20, "expected `,` or the end, got 'macs'"),
    ],
)
def test_other_weights_are_refused(text: str, place: int, finding: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_weights(text, aliases=ALIASES)
    assert str(caught.value).startswith(f"weights {text!r}, character {place}: {finding}; ")


@pytest.mark.parametrize("text", ["psnr_db/cpu:1", "macs/cuda:0"])
def test_only_latencies_have_a_device(text: str) -> None:
    with pytest.raises(UserError, match="names a device, but only latency_ms, latency_ratio have one"):
        parse_metric(text)


@pytest.mark.parametrize("text", ["latency_ms/", "psnr_db/"])
def test_a_slash_without_a_device_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="ends in '/'"):
        parse_metric(text)


def test_cost_is_known_before_training_and_quality_is_not() -> None:
    known = {metric for metric in METRIC_DIRECTIONS if Constraint(metric, "<=", 1).is_known_before_training}
    assert known == {"macs", "params", "latency_ms", "latency_ratio", "peak_memory_bytes"}
    assert Constraint("latency_ms/cuda:0", "<=", 1).is_known_before_training


def test_bounds_that_differ_have_different_names() -> None:
    names = {parse_constraint(f"macs <= {bound}").name for bound in ("62712345678", "62712345679", "6.27123e10")}
    assert len(names) == 3

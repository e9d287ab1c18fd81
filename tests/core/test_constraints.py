import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.constraints import Constraint, parse_constraint, parse_metric
from harness.core.errors import UserError
from harness.core.records import METRIC_DIRECTIONS

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
CONSTRAINTS = st.builds(
    Constraint, st.sampled_from([*METRIC_DIRECTIONS, "latency_ms/cpu:2"]), st.sampled_from(["<=", ">="]), NUMBERS
)


@given(CONSTRAINTS)
def test_a_constraints_name_says_it_all(constraint: Constraint) -> None:
    assert parse_constraint(constraint.name) == constraint


@given(CONSTRAINTS, NUMBERS)
def test_violation_is_positive_exactly_beyond_the_bound(constraint: Constraint, value: float) -> None:
    holds = value <= constraint.bound if constraint.operator == "<=" else value >= constraint.bound
    assert (constraint.violation(value) <= 0) == holds
    assert constraint.violation(constraint.bound) == 0


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
    ],
)
def test_constraints_are_read(text: str, expected: tuple[str, str, float]) -> None:
    constraint = parse_constraint(text)
    assert (constraint.metric, constraint.operator, constraint.bound) == expected


@pytest.mark.parametrize(
    "text", ["", "macs", "macs < 3", "macs == 3", "macs <= ", "macs <= many", "macs <= 3 4", "macs <= 1e", "3 >= macs"]
)
def test_other_forms_are_refused_with_the_form_expected(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_constraint(text)
    assert str(caught.value) == f"constraint {text!r}: expected `metric <= number` or `metric >= number`"


def test_unknown_metrics_list_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"unknown metric 'flops'; expected one of: attention_share, latency_ms, .*ssim$"
    ):
        parse_constraint("flops <= 3")


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

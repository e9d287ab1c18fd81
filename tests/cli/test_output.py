"""How rows of reports are put into words."""

from harness.cli.output import describe_effort, describe_record, describe_routing
from tests.records import gains, point, trial


def test_routing_is_named_with_its_gamma_where_it_has_one() -> None:
    assert describe_routing({"routing": "fixed", "gamma": 0.25}) == "fixed γ=0.25"
    assert describe_routing({"routing": "threshold", "gamma": None}) == "threshold"
    assert describe_routing({"routing": None, "gamma": None}) == ""


def test_effort_is_steps_and_time() -> None:
    assert describe_effort({"steps": 100, "training_seconds": 128.0}) == " (100 steps, 2 min 8 s)"
    assert describe_effort({"steps": None, "training_seconds": None}) == ""


def test_a_network_without_calibrated_points_says_so() -> None:
    note = "attention helps no block of C28 on demo"
    line = describe_record(trial(3, [point(27.0, 10)], calibration=gains(note)))
    assert line.endswith(f"; no calibrated points: {note}")
    assert "calibrated" not in describe_record(trial(3, [point(27.0, 10)], calibration=gains(None)))

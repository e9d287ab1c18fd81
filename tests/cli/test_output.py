"""How rows of reports are put into words."""

from harness.cli.output import describe_effort, describe_routing


def test_routing_is_named_with_its_gamma_where_it_has_one() -> None:
    assert describe_routing({"routing": "fixed", "gamma": 0.25}) == "fixed γ=0.25"
    assert describe_routing({"routing": "threshold", "gamma": None}) == "threshold"
    assert describe_routing({"routing": None, "gamma": None}) == ""


def test_effort_is_steps_and_time() -> None:
    assert describe_effort({"steps": 100, "training_seconds": 128.0}) == " (100 steps, 2 min 8 s)"
    assert describe_effort({"steps": None, "training_seconds": None}) == ""

"""How rows of reports are put into words."""

import io

import pytest
from rich.console import Console

from harness.cli import output
from harness.cli.output import counting, describe_effort, describe_record, describe_routing
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


def test_a_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, where alone there is one: names of files may hold what formats and markup are made of."""
    shown = io.StringIO()
    monkeypatch.setattr(output, "messages", Console(file=shown, force_terminal=True, width=120))
    with counting("a{b}[c].png") as progress:
        progress(1, 2)
    assert "a{b}[c].png" in shown.getvalue()

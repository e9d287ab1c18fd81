"""Trials that ended at a rung, or were calibrated, run again."""

from pathlib import Path

import torch

from harness.core.configs import CalibrationConfig, RoutingConfig, Rung, StoppingConfig
from harness.core.records import PointRecord
from harness.trial import Verdict, replay, run_trial
from tests.trial.studies import ROUTINGS, propose, setup_study

ROUTES = ROUTINGS[:3]


def test_a_stopped_trial_stops_again_at_its_rung(tmp_path: Path) -> None:
    setup = setup_study(tmp_path, stopping=StoppingConfig(grace_steps=1, factor=2))

    def judge(rung: Rung, _points: tuple[PointRecord, ...]) -> Verdict:
        return Verdict(promoted=rung.step < 2, place=3, networks=5)

    record = run_trial(setup, propose(routings=ROUTES), judge=judge)
    assert record.state == "stopped"
    assert [rung.step for rung in record.rungs] == [1, 2]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    elsewhere = setup_study(tmp_path)  # the study is run on without stopping
    found = replay(elsewhere, record, ROUTES[1:], ROUTES[0])
    assert found.is_identical, found.differences
    assert found.again.reason == record.reason
    assert "2 rungs" in found.compared
    assert len(found.latencies) == len(ROUTES)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_calibrated_trial_is_calibrated_again(tmp_path: Path) -> None:
    setup = setup_study(tmp_path, calibration=CalibrationConfig(shares=(0.25,), images=1, crop=16))
    record = run_trial(setup, propose(routings=ROUTES, suggested=ROUTES[0]))
    assert record.state == "complete", record.reason
    assert record.calibration is not None
    found = replay(setup, record, (RoutingConfig(gamma=0.125),), ROUTES[0])
    assert found.is_identical, found.differences
    assert [point.routing for point in found.again.points] == [point.routing for point in record.points]


def test_a_curve_says_where_it_differs_first(tmp_path: Path) -> None:
    setup = setup_study(tmp_path)
    record = run_trial(setup, propose(routings=ROUTES))
    torch.manual_seed(1)  # training has generators of its own
    assert replay(setup, record, ROUTES, ROUTES[0]).is_identical
    result = record.training_result
    assert result is not None
    other = tuple(value + 1e-12 for value in result.curves["loss"])
    tampered = result.model_copy(update={"curves": {**result.curves, "loss": other}})
    found = replay(setup, record.model_copy(update={"training_result": tampered}), ROUTES, ROUTES[0])
    (difference,) = found.differences
    assert difference.what == f"curve loss, value 1 and {len(other) - 1} more"
    assert difference.then == repr(other[0])

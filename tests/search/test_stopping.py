"""Studies that stop networks early: what is judged, told and kept, and how they go on after a kill."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file

from harness.core.configs import Rung, StoppingConfig
from harness.core.records import TrialRecord
from harness.search.halving import judge
from tests.search.conftest import KillAtStep, Killed, MakeStudy, Study

TRAINING = {"steps": 9, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 2}
DIMENSIONS = {
    "model.channels": {"low": 4, "high": 32, "step": 2},
    "model.groups": {"choices": [[1], [2]]},
    "routing.gamma": {"choices": [0.0, 0.5, 1.0]},
}
STOPPING = {"stopping": {"factor": 2, "grace_steps": 2}, "training": TRAINING, "dimensions": DIMENSIONS}


@pytest.mark.parametrize(
    ("settings", "rungs"),
    [
        ({}, [(30, 12)]),
        ({"factor": 2, "grace_steps": 20}, [(20, 12), (40, 12), (80, 12)]),
        ({"fidelity": "both"}, [(30, 4)]),
        ({"fidelity": "images"}, [(90, 2), (90, 4)]),
        ({"grace_steps": 90}, []),
    ],
)
def test_rungs_of_ninety_steps_and_twelve_images(settings: dict[str, object], rungs: list[tuple[int, int]]) -> None:
    found = StoppingConfig.model_validate(settings).rungs(90, 12)
    assert found == tuple(Rung(*rung) for rung in rungs)


@pytest.mark.parametrize("steps", [1, 2, 100, 10_000, 20_000])
def test_by_default_there_is_one_rung(steps: int) -> None:
    rungs = StoppingConfig().rungs(steps, 12)
    assert [rung.step for rung in rungs] == ([-(-steps // 3)] if steps > 1 else [])


def objectives(record: TrialRecord, index: int) -> list[list[float]]:
    """What a network is judged by at a rung, to be minimised."""
    return [[-point.psnr_db, point.macs] for point in record.rungs[index].points]


@pytest.mark.slow
def test_the_best_half_goes_on_at_each_rung(make_study: MakeStudy) -> None:
    study = make_study(**STOPPING, budget={"networks": 3})
    outcome = study.run()
    assert outcome.ending == "finished"
    stopped = [record for record in study.records if record.state == "stopped"]
    assert stopped
    assert len(study.trained) == 3
    come: dict[int, dict[str, list[list[float]]]] = {2: {}, 4: {}, 8: {}}
    for record in sorted(study.records, key=lambda one: one.number or 0):
        for index, rung in enumerate(record.rungs):
            seen = {name: np.array(points) for name, points in come[rung.step].items()}
            verdict = judge(np.array(objectives(record, index)), seen, 2)
            assert (rung.promoted, rung.place, rung.networks) == verdict
            come[rung.step][record.network_id] = objectives(record, index)
        if record.state == "stopped":
            assert [rung.promoted for rung in record.rungs] == [True] * (len(record.rungs) - 1) + [False]
            assert record.points == ()
            assert record.training_result is None
            assert f"after {record.rungs[-1].step} steps" in (record.reason or "")
            assert not study.folder.checkpoint_file(record.network_id).exists()
        else:
            assert [rung.step for rung in record.rungs] == [2, 4, 8]


def test_the_study_is_told_of_stopped_networks_and_trains_none_again(make_study: MakeStudy) -> None:
    study = make_study(**STOPPING, budget={"networks": 2})
    study.run()
    pruned = {trial.user_attrs["record_id"]: trial for trial in study.trials("PRUNED")}
    for record in study.records:
        if record.state != "stopped":
            continue
        trial = pruned[record.record_id]
        assert trial.user_attrs["reason"] == record.reason
        for index, rung in enumerate(record.rungs):
            told = json.loads(trial.user_attrs[f"rung {rung.step}/{rung.images}"])
            assert told == objectives(record, index)
    stopped = next(record for record in study.records if record.state == "stopped")
    again = {"enqueue": [{**stopped.suggestion}], "budget.networks": 3, "sampler": {"name": "random"}}
    study.run(again)
    answered = [record for record in study.records if record.answered_by == stopped.record_id]
    assert answered
    assert all(record.suggestion["model.channels"] == stopped.suggestion["model.channels"] for record in answered)


def test_scoring_at_rungs_changes_no_training(make_study: MakeStudy) -> None:
    one = make_study("one", training=TRAINING, dimensions=DIMENSIONS, budget={"networks": 1})
    one.run()
    other = make_study("other", **STOPPING, budget={"networks": 1})
    other.run()
    (record,), (same,) = one.trained, other.trained
    assert record.network_id == same.network_id
    weights, others = (load_file(study.folder.weights_file(record.network_id)) for study in (one, other))
    assert all((weights[name] == others[name]).all() for name in weights)
    assert [point.evaluation.psnr_db for point in record.points] == [point.evaluation.psnr_db for point in same.points]


def ends(study: Study) -> list[tuple[object, ...]]:
    """How each network ended, without what time says."""
    return sorted(
        (
            json.dumps(record.suggestion, sort_keys=True),
            record.state,
            str([(rung.step, rung.place, rung.networks, rung.promoted, rung.points) for rung in record.rungs]),
            str([point.evaluation.psnr_db for point in record.points]),
        )
        for record in study.records
        if record.state in ("complete", "stopped")
    )


@pytest.mark.parametrize(
    ("training", "step"),
    [(1, 4), *(pytest.param(*where, marks=pytest.mark.slow) for where in [(1, 3), (1, 5), (1, 8), (2, 1), (2, 2)])],
)
def test_killed_between_rungs_a_study_ends_as_if_nothing_had_happened(
    make_study: MakeStudy, training: int, step: int
) -> None:
    settings = {**STOPPING, "sampler": {"name": "tpe", "startup_networks": 1}, "budget": {"networks": 2}}
    whole = make_study("whole", **settings)
    whole.run()
    killed = make_study("killed", **settings)
    with pytest.raises(Killed):
        killed.run(progress=KillAtStep(training, step))
    killed.run()
    assert ends(killed) == ends(whole)


@pytest.mark.slow
def test_a_budget_of_steps_counts_those_of_stopped_networks(make_study: MakeStudy) -> None:
    study = make_study(**STOPPING, budget={"networks": 100, "steps": 30})
    outcome = study.run()
    assert outcome.reason == "the budget of 30 training steps is spent"
    steps = [9 if record.state == "complete" else record.rungs[-1].step for record in study.records if record.rungs]
    assert 30 <= sum(steps) < 30 + 9


@pytest.mark.parametrize("fidelity", ["images", pytest.param("both", marks=pytest.mark.slow)])
def test_rungs_of_few_images(make_study: MakeStudy, fidelity: str) -> None:
    stopping = {"factor": 2, "fidelity": fidelity}
    study = make_study(**{**STOPPING, "stopping": stopping}, budget={"networks": 2})
    study = replace(study, validation=study.train)  # more images than one
    study.run()
    images = len(study.validation)
    rungs = [rung for record in study.records for rung in record.rungs]
    assert rungs
    assert all(rung.images < images for rung in rungs if rung.step < 8 or fidelity == "images")
    assert {rung.step == 9 for rung in rungs} == {fidelity == "images"}

"""Searches over tiny real networks: what is trained, what the sampler is told, and how a killed search goes on."""

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from harness.cli.output import describe_record
from harness.core.configs import CAMixerSRConfig
from harness.core.errors import UserError
from harness.core.records import TrialRecord
from harness.search import worker
from harness.search.storage import Storage
from harness.training import TrainingProgress
from harness.trial import Silent
from harness.trial.calibration import routing_by
from tests.search.conftest import KillAtStep, Killed, MakeStudy, Study

GAMMAS = (0.0, 0.5, 1.0)


def mtimes(study: Study) -> dict[str, int]:
    """When each record and each network's weights were written."""
    files = [*study.folder.path.glob("trials/*.json"), *study.folder.path.glob("networks/*/weights.safetensors")]
    return {str(file): file.stat().st_mtime_ns for file in files}


def assert_each_point_told_once(study: Study) -> None:
    expected = {(record.network_id, gamma, None): 1 for record in study.trained for gamma in GAMMAS}
    assert dict(study.told_points()) == expected


class TestRun:
    def test_trains_each_network_once_and_tells_every_point(self, make_study: MakeStudy) -> None:
        study = make_study()
        outcome = study.run()
        assert (outcome.ending, outcome.networks) == ("finished", 2)
        assert len({record.network_id for record in study.trained}) == 2
        assert_each_point_told_once(study)
        for record in study.trained:
            assert [point.routing.gamma for point in record.points if point.routing] == list(GAMMAS)
            assert study.folder.weights_file(record.network_id).is_file()
            assert not study.folder.checkpoint_file(record.network_id).exists()
            assert isinstance(record.model, CAMixerSRConfig)
            assert record.model.routing.gamma == record.suggestion["routing.gamma"]  # which `trial:N` picks

    def test_values_told_are_those_of_the_record(self, make_study: MakeStudy) -> None:
        study = make_study(objectives=["psnr_db", "macs", {"metric": "params", "direction": "maximize"}])
        study.run()
        assert [direction.name for direction in study.database().directions] == ["MAXIMIZE", "MINIMIZE", "MAXIMIZE"]
        by_network = {record.network_id: record for record in study.trained}
        trials = study.trials("COMPLETE")
        assert len(trials) == 6
        for trial in trials:
            record = by_network[trial.user_attrs["network"]]
            point = next(
                point
                for point in record.points
                if point.routing and point.routing.gamma == trial.params["routing.gamma"]
            )
            assert trial.values == [point.evaluation.psnr_db, point.macs, point.params]
            assert trial.params["model.channels"] == record.suggestion["model.channels"]
            assert trial.user_attrs["record_id"] == record.record_id
        siblings = [trial for trial in trials if "worker" not in trial.user_attrs]
        assert Counter(trial.user_attrs["record_id"] for trial in siblings) == {
            record.record_id: len(record.points) - 1 for record in study.trained
        }

    @pytest.mark.slow
    def test_is_reproducible(self, make_study: MakeStudy) -> None:
        suggestions: list[object] = []
        for name in ("one", "two"):
            study = make_study(name, sampler={"name": "tpe", "startup_networks": 1}, budget={"networks": 3})
            study.run()
            suggestions.append([(record.suggestion, record.points[0].evaluation.psnr_db) for record in study.records])
        assert suggestions[0] == suggestions[1]

    def test_single_objective(self, make_study: MakeStudy) -> None:
        study = make_study(objectives=["psnr_db"], sampler={"name": "tpe", "startup_networks": 1})
        study.run()
        best = max(point.evaluation.psnr_db for record in study.trained for point in record.points)
        assert study.database().best_value == best

    def test_bicubic_baseline_is_measured_once(self, make_study: MakeStudy) -> None:
        study = make_study(baselines=["bicubic"], budget={"networks": 1})
        study.run()
        study.run({"budget.networks": 2})
        assert study.seen.count("baseline-bicubic") == 1
        (baseline,) = [record for record in study.folder.read_trials() if record.kind == "baseline"]
        assert baseline.training_result is None
        assert baseline.points[0].evaluation.psnr_db > 15
        assert "baseline-bicubic" not in [trial.user_attrs.get("record_id") for trial in study.trials()]

    def test_policies_are_points_and_threshold_has_one(self, make_study: MakeStudy) -> None:
        study = make_study(
            dimensions={
                "model.channels": {"choices": [8, 12]},
                "routing.gamma": {"choices": [0.25, 0.75]},
                "routing.policy": {"choices": ["fixed", "probability", "threshold"]},
            },
            budget={"networks": 2},
        )
        study.run()
        for record in study.trained:
            labels = [point.routing.label() for point in record.points if point.routing]
            assert labels == ["fixed γ=0.25", "fixed γ=0.75", "probability γ=0.25", "probability γ=0.75", "threshold"]
            told = [point for point in study.told_points().elements() if point[0] == record.network_id]
            assert sorted(point[2] for point in told) == ["fixed"] * 2 + ["probability"] * 2 + ["threshold"]

    def test_swinir_spaces_have_one_point_a_network(self, make_study: MakeStudy) -> None:
        study = make_study(
            model={"family": "swinir", "num_heads": 2, "window": 4, "image_residual": True},
            dimensions={"model.embed_dim": {"choices": [8, 12]}, "model.depths": {"choices": [[1], [2]]}},
        )
        outcome = study.run()
        assert outcome.networks == 2
        assert [len(record.points) for record in study.trained] == [1, 1]
        assert all(record.points[0].routing is None for record in study.trained)
        assert len(study.trials("COMPLETE")) == 2


class TestRepeats:
    def test_a_repeat_is_answered_from_the_record(self, make_study: MakeStudy) -> None:
        study = make_study(
            enqueue=[
                {"model.channels": 8, "routing.gamma": 0.5},
                {"model.channels": 8, "routing.gamma": 1.0},
                {"model.channels": 12, "routing.gamma": 0.5},
            ]
        )
        study.run()
        first, repeat, second = study.records
        assert (first.state, repeat.state, second.state) == ("complete", "answered", "complete")
        assert repeat.answered_by == first.record_id
        assert repeat.points == ()
        assert repeat.params == first.params
        trial = study.trials()[-1 - len(GAMMAS)]
        assert trial.user_attrs["record_id"] == repeat.record_id
        at_one = next(point for point in first.points if point.routing and point.routing.gamma == 1.0)
        assert trial.values == [at_one.evaluation.psnr_db, at_one.macs]
        assert_each_point_told_once(study)

    def test_a_space_with_fewer_networks_than_the_budget_ends(self, make_study: MakeStudy) -> None:
        study = make_study(
            dimensions={"model.channels": {"choices": [8, 12]}, "routing.gamma": {"choices": [0.0, 1.0]}},
            budget={"networks": 5},
        )
        outcome = study.run()
        assert (outcome.ending, outcome.networks) == ("exhausted", 2)
        assert "all 2 networks" in outcome.reason
        before = len(study.records)
        assert study.run().ending == "exhausted"
        assert len(study.records) == before

    def test_repeats_do_not_go_on_for_ever(self, make_study: MakeStudy) -> None:
        """A learning rate that is endless on paper, but of which a float holds one value."""
        study = make_study(
            dimensions={"training.learning_rate": {"low": 1e-3, "high": 1e-3}},
            objectives=["psnr_db"],
            budget={"networks": 2},
        )
        outcome = study.run()
        assert (outcome.ending, outcome.networks) == ("exhausted", 1)
        assert "20 proposals in a row" in outcome.reason
        assert study.states() == {"complete": 1, "answered": 20}


CALIBRATED: dict[str, Any] = {
    "model": {"groups": [1, 1], "window": 4},
    "calibrate": {"shares": [0.25, 0.5], "images": 2, "crop": 16},
}


class TestCalibration:
    """A further point for each share, which is part of the record, but no value of the space's dimensions."""

    def test_every_network_gets_points_that_the_sampler_is_not_told(self, make_study: MakeStudy) -> None:
        study = make_study(
            **CALIBRATED,
            constraints=["attention_share <= 0.3"],
            enqueue=[
                {"model.channels": 8, "routing.gamma": 0.5},
                {"model.channels": 8, "routing.gamma": 1.0},
                {"model.channels": 16, "routing.gamma": 0.5},
            ],
        )
        study.run()
        assert study.states() == {"complete": 2, "answered": 1}
        for record in study.trained:
            gains = record.calibration
            assert gains is not None
            assert gains.note is None
            assert (gains.dataset_hash, gains.images) == (study.train.content_hash, ("chelsea", "coffee"))
            assert gains.evaluations == 2 * 2 + 4  # two blocks; the same for any number of shares
            assert record.seconds["calibration"] > 0
            plain, calibrated = record.points[:3], record.points[3:]
            assert [point.routing.gamma for point in plain if point.routing] == list(GAMMAS)
            for share, point in zip((0.25, 0.5), calibrated, strict=True):
                assert point.routing == routing_by(gains, "detail", share)
                assert point.evaluation.attention_share == pytest.approx(share)
                assert plain[0].macs < point.macs < plain[2].macs
                assert len(point.latency) == 1
                assert point.constraints["attention_share <= 0.3"] == pytest.approx(share - 0.3)
        assert_each_point_told_once(study)
        before = mtimes(study)
        for file in study.folder.path.glob("study.db*"):
            file.unlink()
        study.run()  # a new database is told no more of the records than the old one
        assert mtimes(study) == before
        assert_each_point_told_once(study)

    def test_killed_while_calibrating_it_comes_to_the_same(self, make_study: MakeStudy) -> None:
        results = []
        for name, deaths in (("whole", 0), ("killed", 1)):
            study = make_study(name, **CALIBRATED, budget={"networks": 1})
            for _ in range(deaths):
                with pytest.raises(Killed):
                    study.run(progress=_KillInPhase("calibrating"))
                assert study.records == []
            study.run()
            (record,) = study.records
            assert record.training_result is not None
            assert record.training_result.resumed_from == ((2,) if deaths else ())  # of two steps: trained once
            assert record.calibration is not None
            found = record.calibration.model_dump(exclude={"seconds"})
            results.append((found, [(point.routing, point.evaluation.psnr_db) for point in record.points]))
        assert len(results[0][1]) == 5
        assert results[0] == results[1]

    def test_a_network_that_attention_does_not_help_has_no_such_point(self, make_study: MakeStudy) -> None:
        """At this rate the last layer stays at zero, and the network shows nothing but the bicubic image."""
        study = make_study(
            calibrate=CALIBRATED["calibrate"],
            training={"steps": 1, "batch_size": 1, "hr_patch_size": 32, "learning_rate": 1e-30},
            budget={"networks": 1},
        )
        assert study.run().ending == "finished"
        (record,) = study.records
        assert record.state == "complete"
        assert [point.routing.gamma for point in record.points if point.routing] == list(GAMMAS)
        assert record.calibration is not None
        assert record.calibration.gains_db == (0.0,)
        assert record.calibration.note == f"attention helps no block of {record.label} on train"
        assert record.calibration.note in describe_record(record)


class TestConstraints:
    @pytest.mark.parametrize(
        ("constraint", "metric"),
        [("params <= 10", "params"), pytest.param("macs <= 10", "macs", marks=pytest.mark.slow)],
    )
    def test_too_large_is_rejected_before_training(
        self, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, constraint: str, metric: str
    ) -> None:
        monkeypatch.setattr(worker, "_MAX_REJECTIONS", 30)
        study = make_study(constraints=[constraint, "psnr_db >= 1"], sampler={"name": "tpe", "startup_networks": 2})
        outcome = study.run()
        assert (outcome.ending, outcome.networks) == ("exhausted", 0)
        assert study.states() == {"rejected": 30}
        for record in study.records:
            assert record.reason is not None
            assert record.reason.startswith(f"{metric} is ")
            assert record.reason.endswith(f"the space demands {constraint}")
            assert record.training_result is None
            assert record.points == ()
            (violation,) = record.violations.values()
            assert violation + 10 == pytest.approx(
                float(record.reason.split()[2].rstrip(",")), rel=1e-5
            )  # "… is 1234, but"
        assert not (study.folder.path / "networks").exists()
        for trial in study.trials():
            assert trial.state == TrialState.PRUNED
            violation = next(r for r in study.records if r.number == trial.number).violations[constraint]
            assert trial.constraints == {constraint: violation / 10, "psnr_db >= 1": 0.0}  # as a share of the bound
            assert constraint in trial.user_attrs["reason"]

    def test_too_slow_is_rejected_before_training(self, make_study: MakeStudy) -> None:
        study = make_study(
            constraints=["latency_ms <= 1e-6"],
            objectives=["psnr_db", "latency_ms"],
            dimensions={"model.channels": {"choices": [8, 12]}},
            sampler={"name": "grid"},
        )
        assert study.run().networks == 0
        assert study.states() == {"rejected": 2}
        assert study.records[0].reason is not None
        assert study.records[0].reason.startswith("latency_ms is ")
        assert "untrained" in study.records[0].reason

    def test_some_networks_fit(self, make_study: MakeStudy) -> None:
        limit = 7000  # between the parameters of 8 and of 24 channels
        study = make_study(
            constraints=[f"params <= {limit}"],
            enqueue=[{"model.channels": 24, "routing.gamma": 0.0}, {"model.channels": 8, "routing.gamma": 0.0}],
            budget={"networks": 1},
        )
        study.run()
        large, small = study.records
        assert large.state == "rejected"
        assert large.params is not None
        assert large.params > limit
        assert small.state == "complete"
        assert small.params is not None
        assert small.params <= limit

    def test_points_that_violate_are_told_as_infeasible(self, make_study: MakeStudy) -> None:
        study = make_study(
            constraints=["psnr_db >= 60", "attention_share <= 0.6"],
            budget={"networks": 1},
            enqueue=[{"model.channels": 8, "routing.gamma": 0.5}],
        )
        study.run()
        (record,) = study.trained
        assert not any(point.feasible for point in record.points)
        for trial in study.trials("COMPLETE"):
            assert trial.constraints["psnr_db >= 60"] == pytest.approx((60 - trial.values[0]) / 60)
            share = trial.params["routing.gamma"]  # 256 windows: γ is met exactly
            assert trial.constraints["attention_share <= 0.6"] == pytest.approx((share - 0.6) / 0.6)


class TestFailures:
    def test_a_failed_trial_is_not_a_bad_number(self, make_study: MakeStudy) -> None:
        study = make_study(
            training={"steps": 2, "batch_size": 1, "hr_patch_size": 32, "learning_rate": 1e30, "weight_decay": 0}
        )
        outcome = study.run()
        assert (outcome.ending, outcome.networks) == ("failing", 0)
        assert study.states() == {"failed": 5}
        for record in study.records:
            assert record.reason is not None
            assert "step 2" in record.reason
            assert record.points == ()
            assert (study.folder.network_dir(record.network_id) / "traceback.txt").is_file()
        for trial in study.trials():
            assert trial.state == TrialState.FAIL
            assert trial.values is None
            assert trial.user_attrs["reason"]

    def test_an_objective_that_was_not_measured_fails_the_trial(self, make_study: MakeStudy) -> None:
        study = make_study(objectives=["psnr_db", "peak_memory_bytes"], budget={"networks": 1})
        assert study.run().networks == 1
        (trial,) = study.trials()
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs["reason"] == "an objective was not measured"


class TestResumption:
    def test_a_larger_budget_goes_on(self, make_study: MakeStudy) -> None:
        study = make_study()
        study.run()
        before = mtimes(study)
        outcome = study.run({"budget.networks": 4})
        assert (outcome.ending, outcome.networks) == ("finished", 4)
        assert {path: time for path, time in mtimes(study).items() if path in before} == before
        assert_each_point_told_once(study)

    def test_a_spent_budget_does_nothing(self, make_study: MakeStudy) -> None:
        study = make_study()
        study.run()
        before, trials = mtimes(study), len(study.trials())
        assert study.run().networks == 2
        assert (mtimes(study), len(study.trials())) == (before, trials)

    def test_goes_on_alike(self, make_study: MakeStudy) -> None:
        """In two runs the same is proposed as in one."""
        suggestions = []
        for name, budgets in (("whole", (4,)), ("parts", (1, 2, 4))):
            study = make_study(name, sampler={"name": "tpe", "startup_networks": 1})
            for budget in budgets:
                study.run({"budget.networks": budget})
            suggestions.append([record.suggestion for record in study.records])
        assert suggestions[0] == suggestions[1]

    def test_killed_in_training(self, make_study: MakeStudy) -> None:
        study = make_study(training={"steps": 4, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 2})
        with pytest.raises(Killed):
            study.run(progress=KillAtStep(training=2, step=3))
        assert len(study.trained) == 1
        before = mtimes(study)
        (running,) = study.trials("RUNNING")
        study.run()
        assert {path: time for path, time in mtimes(study).items() if path in before} == before
        first, second = study.trained
        assert second.training_result is not None
        assert second.training_result.resumed_from == (2,)
        assert first.training_result is not None
        assert first.training_result.resumed_from == ()
        assert {**second.suggestion} == running.params
        assert study.trials("RUNNING") == []
        assert_each_point_told_once(study)

    def test_killed_again_and_again_but_getting_on(self, make_study: MakeStudy) -> None:
        study = make_study(
            training={"steps": 6, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 1},
            budget={"networks": 1},
        )
        for step in (2, 3, 4, 5):
            with pytest.raises(Killed):
                study.run(progress=_KillAfter(step))
        study.run()
        (record,) = study.records
        assert record.training_result is not None
        assert record.training_result.resumed_from == (1, 2, 3, 4)

    def test_a_proposal_that_kills_the_process_is_given_up(self, make_study: MakeStudy) -> None:
        study = make_study(
            enqueue=[{"model.channels": 24, "routing.gamma": 0.5}, {"model.channels": 8, "routing.gamma": 0.5}],
            budget={"networks": 1},
        )
        for _ in range(4):
            with pytest.raises(Killed):
                study.run(progress=_KillAfter(1))
        study.run()
        given_up, trained = study.records
        assert given_up.state == "failed"
        assert given_up.reason == "the process died 4 times in this trial without getting on"
        assert given_up.suggestion["model.channels"] == 24
        assert trained.state == "complete"
        assert trained.suggestion["model.channels"] == 8
        assert given_up.record_id in study.seen

    def test_stopped_cleanly(self, make_study: MakeStudy) -> None:
        study = make_study(
            training={"steps": 4, "batch_size": 1, "hr_patch_size": 32},
            enqueue=[{"model.channels": channels, "routing.gamma": 0.5} for channels in (8, 12, 16)],
        )
        progress = _Count()
        outcome = study.run(progress=progress, should_stop=lambda: progress.steps >= 6)
        assert outcome.ending == "interrupted"
        assert [record.suggestion["model.channels"] for record in study.records] == [8]
        assert study.trials("RUNNING") == []
        outcome = study.run()
        assert (outcome.ending, outcome.networks) == ("finished", 2)
        _, second = study.records
        assert second.suggestion["model.channels"] == 12  # taken up first, before what is still queued
        assert second.training_result is not None
        assert second.training_result.resumed_from == (2,)

    def test_stopped_before_the_first_trial(self, make_study: MakeStudy) -> None:
        study = make_study()
        assert study.run(should_stop=lambda: True).ending == "interrupted"
        assert study.trials() == []

    def test_seconds_are_a_budget_of_one_run(self, make_study: MakeStudy) -> None:
        study = make_study(budget={"networks": 2, "seconds": 1e-9})
        assert study.run().ending == "out of time"
        assert study.run({"budget.seconds": 1e9}).ending == "finished"


class _KillAfter(Silent):
    def __init__(self, step: int):
        self.step = step

    def training(self, progress: TrainingProgress) -> None:
        if progress.step == self.step:
            raise Killed


class _KillInPhase(Silent):
    def __init__(self, phase: str):
        self.fatal = phase

    def phase(self, record_id: str, label: str, phase: str) -> None:
        if phase == self.fatal:
            raise Killed


class _Count(Silent):
    steps = 0

    def training(self, progress: TrainingProgress) -> None:
        self.steps += 1


class TestKilledBetweenAnyTwoSteps:
    @pytest.mark.parametrize("moment", ["before", pytest.param("after", marks=pytest.mark.slow)])
    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (optuna.Study, "enqueue_trial"),
            (optuna.Study, "ask"),
            (optuna.Study, "tell"),
            (Storage, "add_finished"),
            (Storage, "write"),
            (optuna.Trial, "suggest_int"),
            (optuna.Trial, "suggest_categorical"),
            (optuna.Trial, "set_user_attr"),
            (optuna.Trial, "set_constraint"),
        ],
        ids=lambda value: value if isinstance(value, str) else value.__name__,
    )
    def test_nothing_is_lost(
        self, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, moment: str
    ) -> None:
        """The process dies at the first, second, … call until a run gets through; what comes out is the same."""
        study = make_study(
            constraints=["psnr_db >= 1"],
            enqueue=[{"model.channels": 8, "routing.gamma": 0.5}, {"model.channels": 12, "routing.gamma": 0.0}],
            budget={"networks": 2},
            training={"steps": 1, "batch_size": 1, "hr_patch_size": 32},
        )
        original = getattr(owner, name)
        deaths = 0
        for patience in range(1, 20):
            calls = 0

            def dying(*arguments: Any, __patience: int = patience, **keywords: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == __patience and moment == "before":
                    raise Killed
                result = original(*arguments, **keywords)
                if calls == __patience:
                    raise Killed
                return result

            with monkeypatch.context() as patched:
                patched.setattr(owner, name, dying)
                try:
                    outcome = study.run()
                    break
                except Killed:
                    deaths += 1
        assert deaths > 0
        assert outcome.ending == "finished"
        assert [record.suggestion["model.channels"] for record in study.trained] == [8, 12]
        assert study.states() == {"complete": 2}
        assert study.trials("RUNNING") == []
        assert_each_point_told_once(study)
        weights = {path: time for path, time in mtimes(study).items() if path.endswith(".safetensors")}
        assert len(weights) == 2

    def test_the_database_is_lost(self, make_study: MakeStudy) -> None:
        """Records are the source of truth: a new database learns them, and no record is overwritten."""
        study = make_study(constraints=["psnr_db >= 1"])
        study.run()
        before = mtimes(study)
        told = study.told_points()
        for file in study.folder.path.glob("study.db*"):
            file.unlink()
        study.run({"budget.networks": 3})
        assert {path: time for path, time in mtimes(study).items() if path in before} == before
        assert len(study.trained) == 3
        assert told <= study.told_points()
        assert_each_point_told_once(study)

    def test_a_new_database_overwrites_no_rejected_trial(self, make_study: MakeStudy) -> None:
        """It holds fewer trials than there are records, so that its numbers begin again among theirs."""
        study = make_study(
            dimensions={"model.channels": {"low": 8, "high": 24, "step": 4}},
            constraints=["params <= 12000"],
            enqueue=[{"model.channels": channels} for channels in (24, 20, 16, 8)],
            budget={"networks": 1},
        )
        study.run()
        assert study.states() == {"rejected": 3, "complete": 1}
        before = mtimes(study)
        for file in study.folder.path.glob("study.db*"):
            file.unlink()
        study.run({"budget.networks": 2, "enqueue": [{"model.channels": 12}]})
        assert {path: time for path, time in mtimes(study).items() if path in before} == before
        assert study.states() == {"rejected": 3, "complete": 2}

    def test_rejected_and_failed_trials_are_not_run_again(
        self, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed after the record was written and before the sampler was told."""
        study = make_study(
            constraints=["params <= 7000"],
            enqueue=[{"model.channels": 24, "routing.gamma": 0.0}, {"model.channels": 8, "routing.gamma": 0.0}],
            budget={"networks": 1},
        )
        with monkeypatch.context() as patched:

            def die(*_arguments: Any, **_keywords: Any) -> None:
                raise Killed

            patched.setattr(optuna.Study, "tell", die)
            with pytest.raises(Killed):
                study.run()
        assert study.states() == {"rejected": 1}
        study.run()
        assert study.states() == {"rejected": 1, "complete": 1}
        assert study.trials()[0].state.name == "PRUNED"


class TestQueue:
    def test_is_taken_first_and_in_order(self, make_study: MakeStudy) -> None:
        study = make_study(
            enqueue=[{"model.channels": 16, "routing.gamma": 1.0}, {"model.channels": 8}], budget={"networks": 3}
        )
        study.run()
        assert study.records[0].suggestion == {"model.channels": 16, "routing.gamma": 1.0}
        assert study.records[1].suggestion["model.channels"] == 8

    def test_additions_are_taken_up_by_a_later_run(self, make_study: MakeStudy) -> None:
        study = make_study(enqueue=[{"model.channels": 8, "routing.gamma": 0.5}], budget={"networks": 1})
        study.run()
        study.run(
            {
                "budget.networks": 2,
                "enqueue": [
                    {"model.channels": 8, "routing.gamma": 0.5},
                    {"model.channels": 20, "routing.gamma": 0.5},
                ],
            }
        )
        assert [record.suggestion["model.channels"] for record in study.records] == [8, 20]


class TestRefusals:
    def test_another_space(self, make_study: MakeStudy) -> None:
        study = make_study(budget={"networks": 1})
        study.run()
        before = mtimes(study)
        with pytest.raises(UserError, match="another search space, other images or another teacher"):
            study.run({"training.steps": 3})
        assert mtimes(study) == before
        study.run({"description": "in other words", "sampler.name": "tpe", "budget.networks": 2})
        assert study.folder.read_study().created_at

    def test_another_space_in_the_same_storage(self, make_study: MakeStudy, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'shared.db'}"
        make_study(budget={"networks": 1}).run(storage=url)
        other = make_study(budget={"networks": 1}, objectives=["psnr_db"])
        for file in (other.folder.path / "study.json", *other.folder.path.glob("trials/*")):
            file.unlink()
        with pytest.raises(UserError, match="was made with another search space"):
            other.run(storage=url)

    def test_somebody_elses_study(self, make_study: MakeStudy, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'shared.db'}"
        optuna.create_study(storage=url, study_name="tiny", directions=["minimize"])
        study = make_study()
        with pytest.raises(UserError, match="was made with another search space"):
            study.run(storage=url)
        assert not study.folder.study_file.exists()

    def test_a_second_search_in_the_same_folder(self, make_study: MakeStudy) -> None:
        study = make_study(budget={"networks": 1})

        def again(_record: TrialRecord) -> None:
            with pytest.raises(UserError, match="another search is running"):
                study.run()

        assert study.run(on_record=again).networks == 1

    def test_started_only_when_nothing_speaks_against_it(self, make_study: MakeStudy) -> None:
        study = make_study(budget={"networks": 1})
        started: list[str] = []
        study.run(on_start=lambda: started.append("first"))
        with pytest.raises(UserError):
            study.run({"training.steps": 3}, on_start=lambda: started.append("second"))
        assert started == ["first"]


class TestStorage:
    def test_sqlite_elsewhere(self, make_study: MakeStudy, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'other.db'}"
        study = make_study()
        study.run(storage=url)
        assert not study.folder.database.exists()
        assert len(study.trials("COMPLETE", url)) >= 6
        study.run({"budget.networks": 3}, storage=url)
        assert len(study.trained) == 3

    @pytest.mark.slow
    def test_moving_to_another_storage_keeps_every_record(self, make_study: MakeStudy, tmp_path: Path) -> None:
        study = make_study(budget={"networks": 2})
        study.run()
        before = mtimes(study)
        study.run({"budget.networks": 3}, storage=f"sqlite:///{tmp_path / 'other.db'}")
        assert {path: time for path, time in mtimes(study).items() if path in before} == before
        assert len(study.trained) == 3

    def test_embedded_database_is_in_wal_mode(self, make_study: MakeStudy) -> None:
        study = make_study(budget={"networks": 1})
        study.run()
        header = study.folder.database.read_bytes()[18:20]  # SQLite's file format: 2 2 is WAL
        assert header == b"\x02\x02"

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("nonsense", "Could not parse"),
            ("sqlite:////no/such/folder/study.db", "unable to open database file"),
            ("oracle+nonsense://host/db", "oracle"),
            ("postgresql://user:secret@127.0.0.1:1/db", "127.0.0.1"),
            ("mysql://user:secret@127.0.0.1:notaport/db", "storage mysql"),
        ],
    )
    def test_one_that_cannot_be_used(self, make_study: MakeStudy, url: str, words: str) -> None:
        study = make_study()
        with pytest.raises(UserError, match=r"^storage .* cannot be used: ") as found:
            study.run(storage=url)
        assert words in str(found.value)
        assert "\n" not in str(found.value)
        assert "secret" not in str(found.value)
        assert not study.folder.path.exists()

    def test_a_damaged_database(self, make_study: MakeStudy) -> None:
        study = make_study()
        study.folder.path.mkdir(parents=True)
        study.folder.database.write_text("this is no database " * 100, encoding="utf-8")
        with pytest.raises(UserError, match=r"storage .*study\.db cannot be used: .*not a database"):
            study.run()


_DIMENSIONS: dict[str, Any] = {
    "model.groups": {"choices": [[1], [1, 1]]},
    "model.channels": {"low": 8, "high": 16, "step": 4},
    "model.offsets": {"choices": [True, False]},
    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.spatial_attention": {"choices": [True, False], "when": {"model.groups": [[1, 1]]}},
    "routing.gamma": {"low": 0.0, "high": 1.0, "step": 0.5},
    "routing.policy": {"choices": ["fixed", "probability"]},
}


class TestSamplers:
    @pytest.mark.parametrize(
        "name",
        [
            "ehvi",
            "gp",
            "qmc",
            *(pytest.param(name, marks=pytest.mark.slow) for name in ("tpe", "nsga2", "nsga3", "random")),
        ],
    )
    def test_every_sampler_searches_every_kind_of_dimension(
        self, make_study: MakeStudy, name: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        study = make_study(
            dimensions=_DIMENSIONS,
            constraints=["params <= 1e6", "attention_share <= 0.9"],
            sampler={"name": name, "startup_networks": 1, "population_size": 2},
            budget={"networks": 3},
            training={"steps": 1, "batch_size": 1, "hr_patch_size": 32},
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = study.run()
            study.run({"budget.networks": 4})
        assert outcome.networks == 3
        assert len(study.trained) == 4
        assert all(len(record.points) == 6 for record in study.trained)
        assert set(study.told_points().values()) == {1}
        assert len(study.told_points()) == 24
        for record in study.trained:
            two_groups = record.suggestion["model.groups"] == [1, 1]
            assert ("model.spatial_attention" in record.suggestion) == two_groups
            assert 1e-4 <= record.suggestion["training.learning_rate"] <= 1e-2
        ours = [
            str(warning.message) for warning in caught if "optuna" in warning.filename or "harness" in warning.filename
        ]
        assert ours == []
        assert capfd.readouterr().err == ""

    @pytest.mark.slow
    def test_qmc_varies_categories_from_the_start(self, make_study: MakeStudy) -> None:
        """Dimensions that the sequence leaves aside are not drawn with the same seed every time."""
        study = make_study(
            dimensions={
                "model.channels": {"choices": [8, 12, 16, 20]},
                "model.offsets": {"choices": [True, False], "when": {"model.channels": [8, 12, 16, 20]}},
                "training.seed": {"low": 0, "high": 1000},
            },
            sampler={"name": "qmc"},
            budget={"networks": 6},
            training={"steps": 1, "batch_size": 1, "hr_patch_size": 32},
        )
        study.run()
        assert len({record.suggestion["model.channels"] for record in study.trained}) > 1

    def test_grid_trains_every_network_once(self, make_study: MakeStudy) -> None:
        study = make_study(
            dimensions={
                "model.groups": {"choices": [[1], [1, 1]]},
                "model.offsets": {"choices": [True, False], "when": {"model.groups": [[1, 1]]}},
                "training.batch_size": {"low": 1, "high": 2},
                "routing.gamma": {"choices": [0.0, 1.0]},
            },
            sampler={"name": "grid"},
            budget={"networks": 100},
            training={"steps": 1, "hr_patch_size": 32},
        )
        study.run({"budget.networks": 2})
        outcome = study.run()
        assert (outcome.ending, outcome.networks) == ("exhausted", 6)
        networks = {json.dumps(record.suggestion | {"routing.gamma": None}, sort_keys=True) for record in study.trained}
        assert len(networks) == 6
        assert study.states() == {"complete": 6}
        assert set(study.told_points().values()) == {1}
        assert len(study.told_points()) == 12
        assert study.run().ending == "exhausted"
        assert study.states() == {"complete": 6}

    def test_grid_tries_a_rejected_network_at_its_other_points(self, make_study: MakeStudy) -> None:
        study = make_study(
            dimensions={"model.channels": {"choices": [8, 12]}, "routing.gamma": {"choices": [0.0, 1.0]}},
            constraints=["macs <= 1.35e6"],
            sampler={"name": "grid"},
            budget={"networks": 2},
        )
        outcome = study.run()
        assert outcome.ending == "exhausted"
        macs = {
            record.suggestion["model.channels"]: [point.macs for point in record.points] for record in study.trained
        }
        assert list(macs) == [8]
        assert macs[8][0] <= 1.35e6 < macs[8][1]
        assert len(study.records) <= 4


def test_searches_do_not_touch_global_state(make_study: MakeStudy) -> None:
    import random

    import numpy as np
    import torch

    before = (
        random.getstate(),
        repr(np.random.get_state()),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
    )
    make_study(budget={"networks": 1}, sampler={"name": "tpe"}).run()
    after = (
        random.getstate(),
        repr(np.random.get_state()),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
    )
    assert before == after

"""Teachers of trials: known by what is in them, and missed where they are gone."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.core.configs import DistillationConfig, RoutingConfig, TrainingConfig
from harness.core.errors import OutageError, UserError
from harness.core.records import TrainingRecord, TrialRecord
from harness.export import bundle_identity
from harness.training import TrainingInterruptedError
from harness.trial import find_teachers, load_teacher, replay, run_trial, with_teacher
from tests.export.test_bundle import MODELS, SMALL, write
from tests.training.runs import stop_after
from tests.trial.studies import SHORT, propose, setup_study


def taught(place: Path, **changes: Any) -> TrainingConfig:
    """A training that says which teacher it means."""
    config = SHORT.model_copy(update={"distillation": DistillationConfig(teacher=str(place), **changes)})
    return with_teacher(config, find_teachers([str(place)], 2))


def test_a_teacher_is_known_by_its_config_and_weights_alone(tmp_path: Path) -> None:
    write(tmp_path / "one")
    known = bundle_identity(tmp_path / "one")
    write(tmp_path / "again", overwrite=True)  # exported at another time
    assert bundle_identity(tmp_path / "again") == known
    write(tmp_path / "other", seed=1)
    write(tmp_path / "routed", SMALL.with_routing(RoutingConfig(gamma=0.25)))
    assert len({known, bundle_identity(tmp_path / "other"), bundle_identity(tmp_path / "routed")}) == 3


def test_networks_of_another_teacher_are_others_wherever_it_lies(tmp_path: Path) -> None:
    setup = setup_study(tmp_path / "study")

    def identity(training: TrainingConfig) -> str:
        return propose(training=training).network_id(setup.data)

    write(tmp_path / "teacher")
    first = taught(tmp_path / "teacher")
    shutil.copytree(tmp_path / "teacher", tmp_path / "moved")
    assert identity(taught(tmp_path / "moved")) == identity(first) != identity(SHORT)
    assert identity(taught(tmp_path / "teacher", weight=0.25)) != identity(first)
    write(tmp_path / "teacher", seed=1, overwrite=True)
    assert identity(taught(tmp_path / "teacher")) != identity(first)
    with pytest.raises(UserError, match=r"teacher .*teacher is \w{12} by its config and weights, expected \w{12}"):
        with_teacher(first, find_teachers([str(tmp_path / "teacher")], 2))


def test_a_trial_goes_on_with_its_own_teacher_alone(tmp_path: Path) -> None:
    """Stopped in the middle; the bundle is replaced, then put back."""
    place = tmp_path / "teacher"
    write(place)
    proposal = propose(training=taught(place, features="attention"))
    with pytest.raises(TrainingInterruptedError):
        run_trial(setup_study(tmp_path / "study"), proposal, should_stop=stop_after(3))
    shutil.move(place, tmp_path / "kept")
    with pytest.raises(OutageError, match=r"the teacher cannot be loaded: .*teacher is no bundle") as caught:
        run_trial(setup_study(tmp_path / "study"), proposal)
    assert "\n" not in str(caught.value)
    write(place, seed=1)
    with pytest.raises(OutageError, match="by its config and weights, expected"):
        run_trial(setup_study(tmp_path / "study"), proposal)
    anew = run_trial(setup_study(tmp_path / "study"), propose(training=taught(place, features="attention")))
    assert anew.training_result is not None
    assert anew.training_result.resumed_from == ()
    shutil.rmtree(place)
    shutil.move(tmp_path / "kept", place)
    record = run_trial(setup_study(tmp_path / "study"), proposal)
    whole = run_trial(setup_study(tmp_path / "whole"), proposal)
    assert record.state == "complete", record.reason
    assert record.training_result is not None
    assert whole.training_result is not None
    assert record.training_result.resumed_from == (3,)
    assert record.training_result.curves == whole.training_result.curves
    assert record.training_result.teacher == bundle_identity(place)
    assert record.points[0].evaluation.psnr_db == whole.points[0].evaluation.psnr_db


def test_a_record_says_what_was_learnt_from_and_is_run_again_to_the_bit(tmp_path: Path) -> None:
    write(tmp_path / "teacher")
    setup = setup_study(tmp_path / "study")
    record = run_trial(setup, propose(training=taught(tmp_path / "teacher", features="affinity")))
    again = TrialRecord.model_validate_json(record.model_dump_json())
    assert again == record
    assert again.training is not None
    assert again.training.distillation is not None
    assert again.training.distillation.teacher_id == bundle_identity(tmp_path / "teacher")
    assert {"l1_loss", "distillation_loss", "feature_loss"} < again.training_result.curves.keys()  # type: ignore[union-attr]
    found = replay(setup, again, (RoutingConfig(gamma=0.5),), RoutingConfig(gamma=0.5))
    assert found.is_identical, found.differences


def test_records_without_a_teacher_are_as_they_were(tmp_path: Path) -> None:
    record = run_trial(setup_study(tmp_path), propose())
    assert record.training is not None
    assert "distillation" not in record.training.model_dump()
    assert isinstance(record.training_result, TrainingRecord)
    assert "teacher" not in record.training_result.model_dump()


def test_what_is_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"teacher {place} is no bundle: .*`harness export` makes one"):
            find_teachers([str(place)], 2)
    write(tmp_path / "teacher")
    with pytest.raises(
        UserError, match=r"teacher .* is of scale 2, but the networks that learn from it are of scale 4"
    ):
        find_teachers([str(tmp_path / "teacher")], 4)
    write(tmp_path / "bicubic", MODELS["bicubic"])
    with pytest.raises(UserError, match="is bicubic, which has learnt nothing"):
        find_teachers([str(tmp_path / "bicubic")], 4)
    assert load_teacher(SHORT) is load_teacher(None) is None

"""Progress of a study: its history, its budget, and the time that is left."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from harness.core.given import read_given, write_given
from harness.core.records import TrialRecord
from harness.core.study_folder import KnownTrials
from harness.reporting import study_front
from harness.reporting.front import hypervolume_history
from harness.reporting.page_data import describe_page
from harness.reporting.progress import describe_progress, observe_progress, read_budget, sparkline
from harness.reporting.study import Study
from tests.records import bicubic_baseline, search_trials, study_record, swinir_baseline, write_study

BASELINES = (swinir_baseline(), bicubic_baseline())


def at(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds")


def finished_in_another_order(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    seconds = list(range(0, 10 * len(trials), 10))
    random.Random(3).shuffle(seconds)
    return [
        trial.model_copy(update={"started_at": at(second), "finished_at": at(second + 10)})
        for trial, second in zip(trials, seconds, strict=True)
    ]


def test_the_history_is_that_of_the_fronts_of_what_was_finished() -> None:
    trials = finished_in_another_order(search_trials(12))
    study = Study(study_record(), tuple(trials), BASELINES)
    history = hypervolume_history(study)
    order = sorted(study.networks, key=lambda trial: trial.finished_at)
    assert [moment.record_id for moment in history] == [trial.record_id for trial in order]
    for moment in history:
        done = tuple(trial for trial in trials if trial in order[: moment.networks])
        expected = study_front(Study(study_record(), done, BASELINES)).hypervolume
        assert moment.hypervolume == pytest.approx(expected, rel=1e-12)
    assert 0 < history[0].hypervolume < history[-1].hypervolume
    few = hypervolume_history(study, most=4)
    assert set(few) < set(history)
    assert (len(few), few[0], few[-1]) == (4, history[0], history[-1])
    drawn = describe_page(study)["hypervolume"]
    assert [place[:2] for place in drawn] == [
        [moment.networks, pytest.approx(moment.hypervolume, rel=1e-5)] for moment in history
    ]


def test_a_history_without_baselines_is_measured_from_one_reference() -> None:
    study = Study(study_record(), tuple(finished_in_another_order(search_trials(6))), ())
    volumes = [moment.hypervolume for moment in hypervolume_history(study)]
    assert volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(study_front(study).hypervolume)
    assert hypervolume_history(Study(study_record(), (), ())) == ()
    assert describe_page(Study(study_record(), (), ()))["hypervolume"] == []


@pytest.mark.parametrize("side_by_side", [1, 3])
def test_the_time_left_is_at_the_pace_of_all_who_train(side_by_side: int, tmp_path: Path) -> None:
    """Nine networks of 10 s each, one or three at a time, with a night between two of them."""
    starts = [10 * (index // side_by_side) + (100_000 if index > 5 else 0) for index in range(9)]
    trials = [
        trial.model_copy(update={"started_at": at(start), "finished_at": at(start + 10), "seconds": {"training": 10.0}})
        for trial, start in zip(search_trials(9), starts, strict=True)
    ]
    trained = len({trial.network_id for trial in trials})
    folder = write_study(tmp_path, study_record(space="budget: {networks: 24}\n"), trials)
    progress = observe_progress(folder.path)
    assert progress.seconds_per_network == 10
    assert progress.seconds_left == pytest.approx((24 - trained) * 10 / side_by_side)
    assert progress.processes in ((), None)
    line = describe_progress(progress.study, progress.budget)
    assert line.startswith(f"{trained} of 24 networks trained; front of {len(progress.front.points)}, hypervolume ")
    assert "\n" not in line


def test_only_new_records_are_read_again(tmp_path: Path) -> None:
    trials = search_trials(3)
    folder = write_study(tmp_path, study_record(), trials)
    known: KnownTrials = {}
    first = observe_progress(folder.path, known)
    folder.write_trial(trials[1].model_copy(update={"label": "another"}))
    again = observe_progress(folder.path, known)
    assert [one is other for one, other in zip(first.study.trials, again.study.trials, strict=True)] == [
        True,
        False,
        True,
    ]
    assert again.study.trials[1].label == "another"
    (folder.path / "trials" / f"{trials[2].record_id}.json").unlink()
    assert len(observe_progress(folder.path, known).study.trials) == 2


@pytest.mark.parametrize(
    ("space", "networks"),
    [
        ("scale: 4\n", 50),
        ("budget: {networks: 7}\n", 7),
        ("budget: {networks: 7}\n# on the command line: budget.networks: 9\n", 9),
        ("budget: {networks: 7}\n# on the command line: budget: {'networks': 3, 'seconds': None}\n", 3),
        ("budget:\n", 50),
        ("budget: {networks: many}\n", None),
        ("budget: [1]\n", None),
        ("just text", None),
        ("a: [", None),
    ],
)
def test_the_budget_is_read_from_the_text_of_the_space(space: str, networks: int | None) -> None:
    budget = read_budget(space)
    assert (None if budget is None else budget.networks) == networks


def test_what_was_given_is_read_as_it_was_written() -> None:
    overrides = {
        "data.train": "2024",
        "data.data_dir": None,
        "model.groups": [2, 2],
        "model.image_residual": True,
        "training.learning_rate": 1e-4,
        "training.recipe": "paper",
        "budget": {"networks": 3, "seconds": None},
        "constraints": ["macs <= 30e9"],
    }
    text = "scale: 4\n" + write_given(overrides)
    assert read_given(text) == overrides
    assert yaml.safe_load(text) == {"scale": 4}


def test_a_sparkline_rises_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([]) == ""

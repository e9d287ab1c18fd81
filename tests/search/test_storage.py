"""Siblings that are added at once: the same trials as Optuna's own way gives, once, whoever adds them."""

import threading
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial

from harness.search.storage import ONCE, add_finished, connect, set_attributes


def siblings(count: int = 4) -> list[FrozenTrial]:
    distributions = {
        "groups": CategoricalDistribution(("[1]", "[2, 1]")),
        "channels": IntDistribution(8, 32, step=6),
        "rate": FloatDistribution(1e-4, 1e-2, log=True),
        "gamma": FloatDistribution(0, 1, step=0.25),
    }
    return [
        create_trial(
            params={"groups": "[2, 1]", "channels": 14, "rate": 3e-4, "gamma": index / 4},
            distributions=dict(distributions),
            values=[30.0 + index, float("inf") if index == 2 else 1e9 / 3],
            constraints={"params <= 10": -0.5, "macs <= 1": 0.25} if index % 2 else None,
            user_attrs={"record_id": "trial-00000", ONCE: f"trial-00000 {index}"},
        )
        for index in range(count)
    ]


def study_in(file: Path) -> optuna.Study:
    storage = connect(f"sqlite:///{file}")
    return optuna.create_study(
        storage=storage, study_name="s", directions=["maximize", "minimize"], load_if_exists=True
    )


def newest(study: optuna.Study) -> int:
    return max((trial._trial_id for trial in study.get_trials(deepcopy=False)), default=-1)


def content(study: optuna.Study) -> list[tuple[object, ...]]:
    return [
        (one.number, one.state, one.params, one.distributions, one.values, one.user_attrs, one.system_attrs)
        for one in study.get_trials()
    ]


def test_added_at_once_they_are_as_optuna_adds_them(tmp_path: Path) -> None:
    ours, theirs = study_in(tmp_path / "ours.db"), study_in(tmp_path / "theirs.db")
    for study in (ours, theirs):
        study.tell(study.ask(), [1.0, 2.0])
    trials = siblings()
    add_finished(ours, trials, newest(ours))
    theirs.add_trials(trials)
    assert content(ours) == content(theirs)
    assert content(study_in(tmp_path / "ours.db")) == content(ours)
    for one, other in zip(ours.get_trials(), theirs.get_trials(), strict=True):
        assert one.constraints == other.constraints
        if one.number:
            assert (one.datetime_start, one.datetime_complete) == (other.datetime_start, other.datetime_complete)
    assert ours.ask().number == 1 + len(trials)


def test_what_others_have_added_meanwhile_is_left_out(tmp_path: Path) -> None:
    first, second = study_in(tmp_path / "s.db"), study_in(tmp_path / "s.db")
    seen = newest(second)
    add_finished(first, siblings(3), newest(first))
    add_finished(second, siblings(4), seen)
    assert [trial.user_attrs[ONCE][-1] for trial in first.get_trials()] == ["0", "1", "2", "3"]
    assert [trial.number for trial in first.get_trials()] == [0, 1, 2, 3]


def test_two_that_add_at_the_same_time_add_once(tmp_path: Path) -> None:
    studies = [study_in(tmp_path / "s.db") for _ in range(2)]
    together, failures = threading.Barrier(2), []

    def add(study: optuna.Study) -> None:
        seen = newest(study)
        together.wait()
        try:
            add_finished(study, siblings(), seen)
            together.wait()
            study.enqueue_trial({"gamma": 0.5}, user_attrs={ONCE: "again 0"})
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=add, args=(study,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(trial.number for trial in studies[0].get_trials()) == [0, 1, 2, 3, 4]


def test_attributes_are_set_at_once_on_a_trial_that_runs(tmp_path: Path) -> None:
    study = study_in(tmp_path / "s.db")
    trial = study.ask()
    set_attributes(study, trial._trial_id, {"worker": {"pid": 7}, "record_id": "trial-00000"})
    assert study.get_trials()[0].user_attrs == {"worker": {"pid": 7}, "record_id": "trial-00000"}
    study.tell(trial, [1.0, 2.0])
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        set_attributes(study, trial._trial_id, {"worker": {"pid": 8}})

"""What is written at once and read by rows: the same trials as Optuna's own way gives, once, whoever adds them."""

import contextlib
import threading
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, create_trial

from harness.core.errors import UserError
from harness.search.storage import ONCE, add_finished, at_once, connect, explain


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


def test_what_is_said_of_a_trial_at_once_is_as_one_by_one(tmp_path: Path) -> None:
    studies = {name: study_in(tmp_path / f"{name}.db") for name in ("together", "one by one")}
    for name, study in studies.items():
        study.sampler = optuna.samplers.RandomSampler(seed=7)
        storage = study._storage
        assert isinstance(storage, BaseHeartbeat)
        for number in range(2):  # the first makes the study's distributions known
            trial = study.ask()
            with at_once(study, trial._trial_id) if name == "together" else contextlib.nullcontext():
                storage.record_heartbeat(trial._trial_id)
                trial.suggest_categorical("groups", ("[1]", "[2, 1]"))
                trial.suggest_float("rate", 1e-4, 1e-2, log=True)
                trial.set_user_attr("worker", {"pid": number})
                others = study_in(tmp_path / f"{name}.db").get_trials()[-1]
                assert bool(others.params) == (name != "together")
            study.tell(trial, [1.0, 2.0])
    assert content(studies["together"]) == content(studies["one by one"])
    assert content(study_in(tmp_path / "together.db")) == content(studies["together"])


def test_a_heartbeat_is_written_with_what_is_said_at_once(tmp_path: Path) -> None:
    study = study_in(tmp_path / "s.db")
    storage = study._storage
    assert isinstance(storage, BaseHeartbeat)
    trial = study.ask()
    for _ in range(2):
        with at_once(study, trial._trial_id):
            storage.record_heartbeat(trial._trial_id)
    with connect(f"sqlite:///{tmp_path / 's.db'}").engine.connect() as connection:
        beats = connection.execute(sqlalchemy.text("SELECT trial_id FROM trial_heartbeats")).all()
    assert [tuple(row) for row in beats] == [(trial._trial_id,)]


def test_an_error_keeps_what_was_said_before_it(tmp_path: Path) -> None:
    study = study_in(tmp_path / "s.db")
    trial = study.ask()

    def propose() -> None:
        with at_once(study, trial._trial_id):
            trial.suggest_float("rate", 1e-4, 1e-2)
            raise UserError("settings that do not go together")

    with pytest.raises(UserError):
        propose()
    assert study.get_trials()[0].params == trial.params != {}


def test_nothing_is_said_of_a_trial_that_was_told(tmp_path: Path) -> None:
    study = study_in(tmp_path / "s.db")
    trial = study.ask()
    with at_once(study, trial._trial_id):
        trial.set_user_attr("worker", {"pid": 7})
    study.tell(trial, [1.0, 2.0])
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError), at_once(study, trial._trial_id):
        trial.set_user_attr("worker", {"pid": 8})
    assert study.get_trials()[0].user_attrs == {"worker": {"pid": 7}}


def test_trials_are_read_as_optuna_reads_them(tmp_path: Path) -> None:
    """By rows, in parts that every database takes, whatever state they are in; dates and all."""
    study = study_in(tmp_path / "s.db")
    study.enqueue_trial({"gamma": 0.5}, user_attrs={ONCE: "again 0"})
    add_finished(study, siblings(), newest(study))
    running, pruned = study.ask(), study.ask()
    running.suggest_float("rate", 1e-4, 1e-2, log=True)
    pruned.set_constraint("params <= 10", 2.0)
    study._storage.set_trial_intermediate_value(pruned._trial_id, 3, 1.5)
    study.tell(pruned, state=optuna.trial.TrialState.PRUNED)
    study.enqueue_trial({"gamma": 0.25})
    url = f"sqlite:///{tmp_path / 's.db'}"
    ours, theirs = connect(url), RDBStorage(url)
    expected = theirs.get_all_trials(study._study_id)
    assert ours.get_all_trials(study._study_id) == expected
    waiting = (optuna.trial.TrialState.WAITING,)
    assert ours.get_all_trials(study._study_id, states=waiting) == expected[-1:]
    assert [ours.get_trial(trial._trial_id) for trial in expected] == expected
    ids = {trial._trial_id for trial in expected}
    for greater_than in (-1, 2, max(ids)):
        arguments = (study._study_id, None, ids, greater_than)
        assert ours._get_trials(*arguments) == theirs._get_trials(*arguments)
    with pytest.raises(KeyError):
        ours.get_all_trials(study._study_id + 1)


@pytest.mark.parametrize(
    ("login", "shown"),
    [
        ("nas:54/secret", "…@"),
        ("nas:54 3/my secret", "…@"),
        ("nas:my%20secret", "…@"),
        ("nas:secret://x", "…@"),
    ],
)
def test_a_password_is_not_told_of_a_storage(login: str, shown: str) -> None:
    with pytest.raises(UserError, match=f"storage nosuch://{shown}host/studies") as caught:
        connect(f"nosuch://{login}@host/studies")
    assert "secret" not in str(caught.value)
    said = explain(RuntimeError(f"no host {login} for 'my secret'"), f"nosuch://{login}@host/studies?pass=secret")
    assert login.partition(":")[2] not in said


def test_names_stay_that_are_the_password_too() -> None:
    said = explain(RuntimeError('database "postgres" does not exist'), "postgresql://postgres:postgres@host/postgres")
    assert said == 'database "postgres" does not exist'

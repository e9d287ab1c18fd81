"""A worker on another host that has vanished: its trial is there, and its heart is silent."""

import threading
from contextlib import ExitStack
from typing import Any

import optuna
import pytest
import sqlalchemy

from harness.search import read_space, worker
from harness.search.mark import Mark
from harness.search.storage import GRACE_SECONDS, connect
from harness.search.worker import Worker
from tests.search.conftest import Study

LISTEN_S = 2.0


def begin_elsewhere(study: Study, url: str) -> optuna.trial.Trial:
    """Take a trial as a worker on another host would, whose last heartbeat was long ago."""
    space = read_space(study.space_file)
    database = study.database(url)
    mark = Mark()
    view = Worker(space, study.setup(space), database, mark)
    trial = view.dialogue.ask()
    trial.set_user_attr("worker", {**mark.values, "host": "elsewhere"})
    trial.set_user_attr("record_id", f"trial-{trial.number:05d}")
    view.dialogue.suggest(trial)
    trial.set_user_attr("network", "0" * 12)
    silence(url, trial._trial_id)
    return trial


def silence(url: str, trial_id: int) -> None:
    """Let the last heartbeat of a trial be of long ago."""
    connection = connect(url)
    connection.record_heartbeat(trial_id)
    with connection.engine.begin() as changes:
        beats = sqlalchemy.table("trial_heartbeats", sqlalchemy.column("trial_id"), sqlalchemy.column("heartbeat"))
        old = sqlalchemy.func.now() - sqlalchemy.text(f"INTERVAL '{GRACE_SECONDS + 60} seconds'")
        if url.startswith("sqlite"):
            old = sqlalchemy.func.datetime("now", f"-{GRACE_SECONDS + 60} seconds")
        changes.execute(beats.update().where(beats.c.trial_id == trial_id).values(heartbeat=old))


def take_over(study: Study, url: str, trial: optuna.trial.Trial) -> None:
    """Let another worker miss the worker of a trial, as one on another host that was suspended, and close the trial."""
    database = study.database(url)
    mark = database.get_trials()[trial.number].user_attrs["worker"]
    database._storage.set_trial_user_attr(trial._trial_id, "worker", {**mark, "host": "elsewhere"})
    silence(url, trial._trial_id)
    look_at_the_same_time(study, url, workers=1)
    assert study.database(url).get_trials()[trial.number].state.name == "FAIL"


def look_at_the_same_time(study: Study, url: str, workers: int = 2) -> None:
    """Let workers look for trials that were left, each with a connection of its own."""
    space = read_space(study.space_file)
    together = threading.Barrier(workers)
    failures: list[BaseException] = []

    def look(mark: Mark) -> None:
        try:
            database = optuna.load_study(study_name=study.folder.path.name, storage=connect(url))
            view = Worker(space, study.setup(space), database, mark)
            together.wait()
            view.close_left()
        except BaseException as failure:
            failures.append(failure)

    with ExitStack() as marks:
        threads = [threading.Thread(target=look, args=(marks.enter_context(Mark()),)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def assert_a_silent_trial_is_taken_over_once(study: Study, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers look at it at the same time; it is proposed again once, and trained."""
    monkeypatch.setattr(worker, "_LISTEN_SECONDS", LISTEN_S)
    arguments: dict[str, Any] = {} if url.startswith("sqlite") else {"storage": url}
    study.run({"budget.networks": 1}, **arguments)
    left = begin_elsewhere(study, url)
    look_at_the_same_time(study, url)
    closed = study.database(url).get_trials()[left.number]
    assert closed.state.name == "FAIL"
    assert closed.user_attrs["again"]
    (waiting,) = study.trials("WAITING", url)
    assert waiting.user_attrs["proposal"] == left.params
    look_at_the_same_time(study, url)
    assert len(study.trials("WAITING", url)) == 1
    outcome = study.run({"budget.networks": 2}, **arguments)
    assert outcome.ending == "finished"
    assert not study.trials("RUNNING", url)
    taken = study.database(url).get_trials()[waiting.number]
    assert taken.params == left.params

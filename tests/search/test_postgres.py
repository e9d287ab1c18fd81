"""A study in PostgreSQL: a real server, killed in the middle of it, and acknowledgements that are lost."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import FrozenTrial

from harness.core.errors import UserError
from harness.data import PairedDataset
from harness.search import storage
from harness.search.storage import StorageLostError, connect, join
from tests.photographs import Photographs
from tests.search.conftest import MakeStudy, Study, wait_for
from tests.search.heartbeats import assert_a_silent_trial_is_taken_over_once
from tests.search.postgres import STRANGER, Server, Unacknowledged, free_port, make_server
from tests.search.test_workers import LONG, Command

PATIENCE_S = 300


@pytest.fixture(scope="module")
def installed() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    server = make_server()
    yield server
    server.kill()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def server(installed: Server) -> Server:
    """A running server without studies."""
    import psycopg

    if not installed.is_running:
        installed.start()
    with psycopg.connect(installed.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return installed


def assert_is_whole(study: Study, networks: int, url: str) -> None:
    """As of SQLite, and a trial that was closed for good was either told, or proposed again once."""
    assert len(study.trained) == len({record.network_id for record in study.trained}) == networks
    told = told_points(study, url)
    assert set(told.values()) == {1}
    assert len(told) == 3 * networks
    trials = study.trials(url=url)
    assert not [trial for trial in trials if trial.state.name == "RUNNING"]
    once = Counter(trial.user_attrs["once"] for trial in trials if "once" in trial.user_attrs)
    assert set(once.values()) <= {1}
    assert not list(study.folder.path.glob("networks/*/checkpoint.pt"))


def told_points(study: Study, url: str) -> Counter[tuple[Any, ...]]:
    answered = {record.record_id for record in study.records if record.state == "answered"}
    return Counter(
        (trial.user_attrs["network"], trial.params["routing.gamma"])
        for trial in study.trials("COMPLETE", url)
        if trial.user_attrs["record_id"] not in answered
    )


def marked(study: Study, url: str) -> list[FrozenTrial]:
    """Return the trials that somebody has taken and trains."""
    return [trial for trial in study.trials("RUNNING", url) if "network" in trial.user_attrs]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 8))
def test_commits_that_are_not_acknowledged(
    make_study: MakeStudy, server: Server, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """What was committed and not said to be is not done twice, and what was not is done."""
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 30.0)
    way = Unacknowledged(server.port, first)
    try:
        study = make_study(budget={"networks": 3}, sampler={"name": "tpe", "startup_networks": 1})
        outcome = study.run(storage=way.url)
    finally:
        way.close()
    assert way.lost >= 2
    assert (outcome.ending, outcome.networks) == ("finished", 3)
    assert study.states() - Counter(answered=99) == {"complete": 3}
    assert_is_whole(study, 3, server.url)


@pytest.mark.slow
def test_the_server_is_killed_in_the_middle(
    tmp_path: Path, photographs: Photographs, datasets: tuple[PairedDataset, PairedDataset], server: Server
) -> None:
    """Three workers train, one of them joined; the server is gone for seconds, twice; nobody notices."""
    command = Command(tmp_path, photographs, networks=8, steps=300)
    leader = command.start(*command.search, "--workers", "2", "--storage", server.url)
    wait_for(lambda: command.study.study_file.is_file() and command.is_training())
    joined = command.start("worker", str(command.study.path), "--threads", "1", "--storage", server.url)
    study = Study(command.study, command.space, *datasets)
    wait_for(lambda: joined.pid in {trial.user_attrs["worker"]["pid"] for trial in marked(study, server.url)})
    for _ in range(2):
        wait_for(command.is_training)
        before = len(study.trained)  # not after the outage, in which all that train may end
        server.kill()
        time.sleep(6)
        server.start()
        wait_for(partial(command.seen, before + 1), patience_s=PATIENCE_S)
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in (leader, joined)]
    assert (leader.returncode, joined.returncode) == (0, 0), outputs
    assert not any("Traceback" in output for output in outputs)
    assert_is_whole(study, 8, server.url)
    assert not [record for record in study.records if record.state == "failed"]


@pytest.mark.slow
def test_a_worker_dies_while_the_server_is_away(make_study: MakeStudy, server: Server) -> None:
    """The one that takes its place waits for the server, too, and goes on from the checkpoint."""
    study = make_study(training=LONG, budget={"networks": 3})
    away_since: list[float] = []
    killed: list[int] = []

    def kill_both_once() -> bool:
        if not killed and list(study.folder.path.glob("networks/*/checkpoint.pt")) and study.records:
            running = marked(study, server.url)
            if running:
                server.kill()
                killed.append(running[0].user_attrs["worker"]["pid"])
                psutil.Process(killed[0]).kill()
                away_since.append(time.monotonic())
        if away_since and time.monotonic() - away_since[0] > 8:
            server.start()
            away_since.clear()
        return False

    outcome = study.run(storage=server.url, workers=2, on_record=lambda record: None, should_stop=kill_both_once)
    assert killed
    assert (outcome.ending, outcome.networks) == ("finished", 3)
    assert_is_whole(study, 3, server.url)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_does_not_come_back(
    make_study: MakeStudy, server: Server, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 5.0)
    study = make_study(training=LONG, budget={"networks": 50})

    def kill() -> bool:
        if server.is_running and list(study.folder.path.glob("networks/*/checkpoint.pt")) and study.records:
            server.kill()
        return False

    with pytest.raises(UserError, match=r"storage postgresql\+psycopg://.* failed: .*every finished trial is on disk"):
        study.run(storage=server.url, workers=workers, should_stop=kill)
    known = len(study.trained)
    server.start()
    study.run({"budget.networks": known + 1}, storage=server.url, workers=workers)
    assert_is_whole(study, known + 1, server.url)


@pytest.mark.slow
def test_who_vanishes_on_another_host_is_missed(
    make_study: MakeStudy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_a_silent_trial_is_taken_over_once(make_study(), server.url, monkeypatch)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("nas@", f"{STRANGER}:secret@", "password authentication failed"),
        ("nas@", "nobody@", 'role "nobody" does not exist'),
        ("/postgres", "/nothere", 'database "nothere" does not exist'),
        ("+psycopg:", "+nosuch:", "cannot be used"),
        ("", "", "holds no study 'tiny'"),
    ],
)
def test_what_cannot_pass_is_not_waited_for(server: Server, old: str, new: str, says: str) -> None:
    url = server.url.replace(old, new)

    def is_waiting() -> bool:
        pytest.fail("it is waited for")

    with pytest.raises(UserError, match=says) as caught:
        join(url, "tiny", 60.0, should_stop=is_waiting)
    assert "secret" not in str(caught.value)
    with pytest.raises(StorageLostError, match="refused"):
        join(server.url.replace(str(server.port), str(free_port())), "tiny", 60.0, should_stop=lambda: True)


def test_a_server_that_is_not_there(make_study: MakeStudy) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    study = make_study()
    with pytest.raises(UserError, match=r"storage postgresql://…@127\.0\.0\.1:\d+/nas cannot be used: .*refused"):
        study.run(storage=f"postgresql://me:secret@127.0.0.1:{free_port()}/nas")
    assert not study.folder.path.exists()


def test_a_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install 'harness\[postgres\]'"):
        connect("postgresql+psycopg://me@127.0.0.1/nas")
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(UserError, match=r"cannot be used: Failed to import"):
        connect("mysql+pymysql://me@127.0.0.1/nas")

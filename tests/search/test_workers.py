"""Several workers of one study: what each of them may rely on, and what happens when one, or all, are killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import Trial

from harness.core.errors import UserError
from harness.core.records import StudyRecord
from harness.core.study_folder import StudyFolder
from harness.search import join_search, read_space, read_study_space, worker
from harness.search.ledger import Ledger
from harness.search.mark import Mark
from harness.search.storage import Storage, connect
from tests.photographs import Photographs
from tests.search.conftest import MakeStudy, Study, wait_for
from tests.search.heartbeats import (
    LISTEN_S,
    assert_a_silent_trial_is_taken_over_once,
    begin_elsewhere,
    look_at_the_same_time,
    silence,
    take_over,
)
from tests.spaces import tiny_space, write_space

PATIENCE_S = 120
LONG = {"steps": 40, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 1}


def assert_is_whole(study: Study, networks: int) -> None:
    """Every network was trained once and every point of it told once; nothing is left open."""
    assert len(study.trained) == networks
    assert len({record.network_id for record in study.trained}) == networks
    assert set(study.told_points().values()) == {1}
    assert len(study.told_points()) == 3 * networks
    assert not study.trials("RUNNING")
    assert not list(study.folder.path.glob("networks/*/checkpoint.pt"))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ehvi", pytest.param("random", marks=pytest.mark.slow)])
def test_workers_share_a_budget(make_study: MakeStudy, sampler: str) -> None:
    """By `ehvi` no two propose the same network: whoever proposes knows what others are at."""
    study = make_study(budget={"networks": 4}, sampler={"name": sampler, "startup_networks": 2})
    outcome = study.run(workers=2)
    if sampler == "ehvi":
        assert not study.trials("PRUNED")
    assert (outcome.ending, outcome.networks) == ("finished", 4)
    assert_is_whole(study, 4)
    assert sorted(set(study.seen)) == sorted(study.seen) == sorted(record.record_id for record in study.records)
    tokens = {trial.user_attrs["worker"]["token"] for trial in study.trials() if "worker" in trial.user_attrs}
    assert len(tokens) == 2


@pytest.mark.slow
def test_a_grid_is_gone_through_once(make_study: MakeStudy) -> None:
    dimensions = {"model.channels": {"choices": [8, 12, 16]}, "routing.gamma": {"choices": [0.0, 0.5, 1.0]}}
    study = make_study(dimensions=dimensions, sampler={"name": "grid"}, budget={"networks": 9})
    outcome = study.run(workers=3)
    assert outcome.ending == "exhausted"
    assert_is_whole(study, 3)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_goes_on(make_study: MakeStudy) -> None:
    """The leader runs in this process; a worker is killed in the middle of a training, twice."""
    study = make_study(training=LONG, budget={"networks": 3})
    killed: list[int] = []

    def kill_once_in_a_while() -> bool:
        checkpoints = list(study.folder.path.glob("networks/*/checkpoint.pt"))
        running = [
            trial.user_attrs["worker"]["pid"] for trial in study.trials("RUNNING") if "network" in trial.user_attrs
        ]
        if checkpoints and running and len(killed) < 2 and running[0] not in killed:
            os.kill(running[0], signal.SIGKILL)
            killed.append(running[0])
        return False

    outcome = study.run(workers=2, should_stop=kill_once_in_a_while)
    assert len(killed) == 2
    assert (outcome.ending, outcome.networks) == ("finished", 3)
    assert_is_whole(study, 3)
    resumed = [record.training_result.resumed_from for record in study.trained if record.training_result]
    assert any(resumed)


class Command:
    """`harness search` with two workers, and `harness worker`, in processes of their own."""

    def __init__(self, folder: Path, photographs: Photographs, networks: int, **training: int):
        training = {**LONG, **training}
        dimensions = {
            "model.channels": {"low": 4, "high": 32, "step": 2},
            "routing.gamma": {"choices": [0.0, 0.5, 1.0]},
        }
        budget = {"networks": networks}
        space = tiny_space(photographs, training=training, dimensions=dimensions, budget=budget, baselines=[])
        self.space = write_space(folder / "tiny.yaml", space)
        self.results = folder / "results"
        self.study = StudyFolder(self.results / "tiny")
        self.search = ["search", str(self.space), "--results", str(self.results), "--threads", "2", "--no-tracking"]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "harness", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def seen(self, networks: int) -> bool:
        return sum(record.state == "complete" for record in self.study.read_trials()) >= networks

    def is_training(self) -> bool:
        return bool(list(self.study.path.glob("networks/*/checkpoint.pt")))


@pytest.mark.slow
def test_workers_end_with_their_leader(tmp_path: Path, photographs: Photographs) -> None:
    """Killed at once, the leader leaves no worker behind, and the same command finishes the study."""
    command = Command(tmp_path, photographs, networks=4)
    leader = command.start(*command.search, "--workers", "2")
    wait_for(lambda: command.is_training() and command.seen(1))
    workers = psutil.Process(leader.pid).children(recursive=True)
    assert len(workers) >= 2
    leader.kill()
    leader.wait()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert not alive
    before = {record.record_id: record for record in command.study.read_trials()}
    second = command.start(*command.search, "--workers", "2")
    output, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, output
    after = {record.record_id: record for record in command.study.read_trials()}
    assert all(after[name] == record for name, record in before.items())
    trained = [record.network_id for record in after.values() if record.state == "complete"]
    assert len(trained) == len(set(trained)) == 4


@pytest.mark.slow
def test_a_worker_joins_from_elsewhere(tmp_path: Path, photographs: Photographs) -> None:
    command = Command(tmp_path, photographs, networks=5)
    leader = command.start(*command.search)
    wait_for(lambda: command.study.study_file.is_file() and command.is_training())
    worker = command.start("worker", str(command.study.path), "--threads", "1")
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in (leader, worker)]
    assert (leader.returncode, worker.returncode) == (0, 0), outputs
    assert "trial-" in outputs[1]
    trained = [record.network_id for record in command.study.read_trials() if record.state == "complete"]
    assert len(trained) == len(set(trained)) == 5


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_cleanly(tmp_path: Path, photographs: Photographs) -> None:
    command = Command(tmp_path, photographs, networks=50)
    leader = command.start(*command.search, "--workers", "2")
    wait_for(lambda: command.is_training() and command.seen(1))
    workers = psutil.Process(leader.pid).children(recursive=True)
    leader.send_signal(signal.SIGINT)
    output, _ = leader.communicate(timeout=PATIENCE_S)
    assert leader.returncode == 130, output
    assert "goes on from here" in output
    assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1]


def joined(study: Study, folder: StudyFolder | None = None, **changes: Any) -> None:
    """Join a study as it is described by its record, or by changes of that."""
    record: StudyRecord = study.folder.read_study()
    space = read_study_space(record)
    setup = replace(study.setup(space), folder=folder or study.folder)
    database = f"sqlite:///{study.folder.database}"
    join_search(space, setup, record.model_copy(update=changes), storage=database)


def test_who_sees_another_folder_is_refused(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(budget={"networks": 1})
    study.run()
    joined(study)
    with pytest.raises(UserError, match=r"is not the folder that study 'tiny' .* is kept in"):
        joined(study, folder=StudyFolder(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="holds no study 'other'"):
        joined(study, name="other")
    with pytest.raises(UserError, match="images here are not those"):
        joined(study, space_hash="0" * 12)


@pytest.mark.slow
def test_more_workers_than_threads_are_refused(tmp_path: Path, photographs: Photographs) -> None:
    command = Command(tmp_path, photographs, networks=1)
    process = command.start(*command.search, "--workers", "3")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "--workers 3 on 2 threads" in output
    assert not command.study.path.exists()


def test_marks_tell_who_is_gone() -> None:
    with Mark() as mark:
        assert not Mark.is_gone(mark.values)
        assert Mark.is_gone({**mark.values, "since": mark.values["since"] - 100, "pid": os.getppid()})
        assert not Mark.is_gone({**mark.values, "host": "elsewhere", "pid": 0})
    assert Mark.is_gone(mark.values)
    assert Mark.is_gone(None)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert Mark.is_gone({**mark.values, "pid": process.pid})


@pytest.mark.slow
def test_who_vanishes_on_another_host_is_missed(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    assert_a_silent_trial_is_taken_over_once(study, f"sqlite:///{study.folder.database.resolve()}", monkeypatch)


def test_a_heart_that_beats_again_is_left_alone(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the storage was away: nobody could be heard then."""
    monkeypatch.setattr(worker, "_LISTEN_SECONDS", LISTEN_S)
    study = make_study(budget={"networks": 1})
    study.run()
    url = f"sqlite:///{study.folder.database.resolve()}"
    living = begin_elsewhere(study, url)
    timer = threading.Timer(LISTEN_S / 2, connect(url).record_heartbeat, (living._trial_id,))
    timer.start()
    look_at_the_same_time(study, url)
    timer.join()
    assert study.database(url).get_trials()[living.number].state.name == "RUNNING"
    assert not study.trials("WAITING")


@pytest.mark.parametrize("moment", ["rung", "an interruption"])
def test_a_worker_whose_trial_is_taken_over_goes_on_with_the_next(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It was suspended, and missed, at a rung, or before it was stopped."""
    monkeypatch.setattr(worker, "_LISTEN_SECONDS", LISTEN_S)
    training = {"steps": 4, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 1}
    study = make_study(budget={"networks": 2}, training=training, stopping={"grace_steps": 2, "factor": 2})
    url = f"sqlite:///{study.folder.database.resolve()}"
    suggest, set_user_attr = Trial._suggest, Trial.set_user_attr
    missed: list[Trial] = []

    def miss(trial: Trial) -> None:
        if not missed:
            missed.append(trial)
            take_over(study, url, trial)

    def suggest_and_be_missed(trial: Trial, *arguments: Any) -> Any:
        found = suggest(trial, *arguments)
        current.append(trial)
        return found

    def be_missed_and_set(trial: Trial, key: str, value: Any) -> None:
        if key.startswith(moment):
            miss(trial)
        set_user_attr(trial, key, value)

    def stop() -> bool:
        is_training = bool(list(study.folder.path.glob("networks/*/checkpoint.pt")))
        if moment == "an interruption" and is_training and not missed:
            miss(current[-1])
            return True
        return False

    current: list[Trial] = []
    monkeypatch.setattr(Trial, "_suggest", suggest_and_be_missed)
    monkeypatch.setattr(Trial, "set_user_attr", be_missed_and_set)
    outcome = study.run(should_stop=stop)
    if moment == "an interruption":
        assert outcome.ending == "interrupted"
        outcome = study.run()
    assert missed
    assert (outcome.ending, outcome.networks) == ("finished", 2)
    trials = study.trials()
    assert trials[missed[0].number].state.name == "FAIL"
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    again = [trial for trial in trials if trial.user_attrs.get("once") == f"again {missed[0].number}"]
    assert len(again) == 1
    assert len({record.network_id for record in study.trained}) == len(study.trained) == 2
    assert set(study.told_points().values()) == {1}
    assert len(study.told_points()) == 6
    assert not any(record.state == "failed" for record in study.records)


@pytest.mark.slow
def test_a_training_ends_whose_trial_is_taken_over(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker was suspended while it trained: it leaves the checkpoint alone, and queues and records nothing."""
    monkeypatch.setattr(worker, "_LISTEN_SECONDS", LISTEN_S)
    monkeypatch.setattr(worker, "BEAT_SECONDS", 0.1)
    study = make_study(budget={"networks": 2}, training={**LONG, "checkpoint_interval": 10})
    url = f"sqlite:///{study.folder.database.resolve()}"
    suggest, record_heartbeat = Trial._suggest, Storage.record_heartbeat
    is_awake = threading.Event()
    is_awake.set()
    current: list[Trial] = []
    missed: list[Trial] = []

    def suggest_and_name(trial: Trial, *arguments: Any) -> Any:
        current.append(trial)
        return suggest(trial, *arguments)

    def beat_when_awake(storage: Storage, trial_id: int) -> None:
        if threading.current_thread().name == "heartbeat":
            is_awake.wait()
        record_heartbeat(storage, trial_id)

    def suspend_once() -> bool:
        if missed:
            time.sleep(0.1 * (current[-1].number == missed[0].number))  # some beats before its end
        elif list(study.folder.path.glob("networks/*/checkpoint.pt")):
            missed.append(current[-1])
            is_awake.clear()
            take_over(study, url, current[-1])
            is_awake.set()
        return False

    monkeypatch.setattr(Trial, "_suggest", suggest_and_name)
    monkeypatch.setattr(Storage, "record_heartbeat", beat_when_awake)
    outcome = study.run(should_stop=suspend_once)
    assert (outcome.ending, outcome.networks) == ("finished", 2)
    trials = study.trials()
    assert trials[missed[0].number].state.name == "FAIL"
    (again,) = [trial for trial in trials if trial.user_attrs.get("once") == f"again {missed[0].number}"]
    assert again.state.name == "COMPLETE"
    (record,) = [one for one in study.records if one.network_id == again.user_attrs["network"]]
    assert record.record_id == again.user_attrs["record_id"]
    assert record.training_result is not None
    assert record.training_result.resumed_from[0] % 10 == 0
    assert_is_whole(study, 2)


def test_steps_of_a_network_that_two_have_trained_count_once(make_study: MakeStudy) -> None:
    study = make_study(budget={"networks": 1})
    study.run()
    space = read_space(study.space_file)
    (record,) = study.trained
    study.folder.write_trial(record.model_copy(update={"record_id": "trial-00009", "number": 9}))
    view = Ledger(study.folder, on_record=lambda record: None)
    view.read()
    assert len(view.records) == len(study.records) == 2 + len(space.baselines)
    assert record.training is not None
    assert view.steps == record.training.steps


def test_a_heart_beats_while_its_trial_is_suggested(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler may take longer than a heart may be silent."""
    monkeypatch.setattr(worker, "BEAT_SECONDS", 0.1)
    study = make_study(budget={"networks": 1})
    url = f"sqlite:///{study.folder.database.resolve()}"
    suggest = Trial._suggest

    def suggest_slowly(trial: Trial, *arguments: Any) -> Any:
        silence(url, trial._trial_id)
        storage, of_study = connect(url), study.database(url)._study_id
        wait_for(lambda: trial._trial_id not in storage._get_stale_trial_ids(of_study), patience_s=20)
        return suggest(trial, *arguments)

    monkeypatch.setattr(Trial, "_suggest", suggest_slowly)
    assert study.run().ending == "finished"

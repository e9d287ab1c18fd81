"""Real searches in processes of their own, ended by real signals, and the same command again."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from harness.core.records import TrialRecord
from harness.core.study_folder import StudyFolder
from tests.photographs import Photographs
from tests.search.conftest import wait_for
from tests.spaces import tiny_space, write_space

STEPS = 60
PATIENCE_S = 120


class Search:
    """The command `harness search` on one study."""

    def __init__(self, folder: Path, photographs: Photographs, networks: int):
        space = tiny_space(
            photographs,
            training={"steps": STEPS, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 1},
            budget={"networks": networks},
            sampler={"name": "ehvi", "startup_networks": 1},
        )
        self.command = [sys.executable, "-m", "harness", "search", str(write_space(folder / "tiny.yaml", space))]
        self.command += ["--results", str(folder / "results"), "--threads", "1", "--no-tracking"]
        self.study = StudyFolder(folder / "results" / "tiny")

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self) -> str:
        done = subprocess.run(self.command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def records(self) -> list[TrialRecord]:
        return list(self.study.read_trials()) if self.study.study_file.is_file() else []

    def trained(self) -> list[TrialRecord]:
        return [record for record in self.records if record.kind == "trial" and record.state == "complete"]

    def is_training(self, finished: int) -> bool:
        """Whether so many networks are trained and another is in the middle."""
        trained = {record.network_id for record in self.trained()}
        checkpoints = {path.parent.name for path in self.study.path.glob("networks/*/checkpoint.pt")}
        return len(trained) == finished and bool(checkpoints - trained)

    def written(self) -> dict[Path, tuple[int, bytes]]:
        """What finished trials have left: when it was written, and what is in it."""
        files = [path for path in self.study.path.glob("trials/*.json") if not path.name.startswith(".")]
        files += [self.study.weights_file(record.network_id) for record in self.trained()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def assert_is_whole(search: Search, networks: int) -> None:
    """Every record and every trial is there once, nothing is left open."""
    trained = search.trained()
    assert len(trained) == networks
    assert len({record.network_id for record in trained}) == networks
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{search.study.database}")
    trials = study.get_trials()
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}
    answered = {record.record_id for record in search.records if record.state == "answered"}
    told = [
        (trial.user_attrs["network"], trial.params["routing.gamma"])
        for trial in trials
        if trial.state.name == "COMPLETE" and trial.user_attrs["record_id"] not in answered
    ]
    assert sorted(told) == sorted((record.network_id, gamma) for record in trained for gamma in (0.0, 0.5, 1.0))
    for record in trained:
        assert search.study.weights_file(record.network_id).is_file()
        assert not search.study.checkpoint_file(record.network_id).exists()


@pytest.mark.slow
def test_stopped_and_killed_in_the_middle_of_training(tmp_path: Path, photographs: Photographs) -> None:
    search = Search(tmp_path, photographs, networks=2)

    process = search.start()
    wait_for(lambda: search.is_training(finished=1), process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "stopped after step" in output
    assert "the same command again goes on from here" in output
    assert "Traceback" not in errors
    after_stop = search.written()
    (checkpoint,) = search.study.path.glob("networks/*/checkpoint.pt")
    stopped_at = checkpoint.stat().st_mtime_ns

    process = search.start()
    wait_for(lambda: checkpoint.is_file() and checkpoint.stat().st_mtime_ns > stopped_at, process)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL
    assert search.written() == after_stop

    assert "2 networks trained" in search.finish()
    assert search.written().items() >= after_stop.items()
    assert_is_whole(search, networks=2)
    first, second = (record.training_result for record in search.trained())
    assert first is not None
    assert first.resumed_from == ()
    assert second is not None
    stop, kill = second.resumed_from
    assert 0 < stop < kill < STEPS


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path, photographs: Photographs) -> None:
    """Ten kills after random delays, in imports, set-up, baselines, training, measuring or writing."""
    search = Search(tmp_path, photographs, networks=4)
    moments = random.Random(0)
    seen: dict[Path, tuple[int, bytes]] = {}
    for _ in range(10):
        process = search.start()
        time.sleep(moments.uniform(1.0, 7.0))
        process.kill()
        process.communicate(timeout=PATIENCE_S)
        assert search.written().items() >= seen.items()
        seen = search.written()
    search.finish()
    assert search.written().items() >= seen.items()
    assert_is_whole(search, networks=4)


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(tmp_path: Path, photographs: Photographs) -> None:
    search = Search(tmp_path, photographs, networks=2)
    process = search.start()
    wait_for(lambda: search.is_training(finished=1), process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in errors
    search.finish()
    assert_is_whole(search, networks=2)

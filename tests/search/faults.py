"""Faults that are injected for real: kills at a call of the operating system, limits of files and memory, a small disk.

Python announces every file that it opens, renames or removes, and every command to a server of FTP, to audit hooks,
before it does so. `INJECTION` runs the command line with such a hook, which at the n-th announcement that fits kills
the process, or limits what it may write.
"""

import hashlib
import io
import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, Self

import optuna
import pytest
import torch

from harness.core.records import TrialRecord
from harness.core.study_folder import StudyFolder
from tests.photographs import Photographs
from tests.spaces import tiny_space, write_space

PATIENCE_S = 300

INJECTION = """
import os, re, resource, signal, sys

action, event, pattern, number = sys.argv[1:5]
left = int(number)


def inject(name, arguments):
    global left
    if name != event or not re.search(pattern, str(arguments[name in ("os.rename", "ftplib.sendcmd")])):
        return
    left -= 1
    if left == 0 and action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if left == 0 and action == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # Python ignores SIGXFSZ
    if left == 0 and action == "memory":
        taken = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
        resource.setrlimit(resource.RLIMIT_AS, (taken + (512 << 20), resource.RLIM_INFINITY))


sys.addaudithook(inject)
sys.argv[1:] = sys.argv[5:]
from harness.cli import main

main()
"""


class Fault(NamedTuple):
    """What is done at the n-th event of a file whose path fits a pattern."""

    action: str
    event: str
    pattern: str
    number: int = 1


class Command:
    """`harness search` on a study, in a process of its own."""

    def __init__(self, folder: Path, photographs: Photographs, *arguments: str, **changes: Any):
        folder.mkdir(exist_ok=True)
        self.space = write_space(folder / "tiny.yaml", tiny_space(photographs, **changes))
        self.results = folder / "results"
        self.arguments = arguments
        self.study = StudyFolder(self.results / "tiny")
        self.prefix: list[str] = []

    def start(self, fault: Fault | None = None) -> "subprocess.Popen[str]":
        """Start the command."""
        python = ["-m", "harness"] if fault is None else ["-c", INJECTION, *map(str, fault)]
        command = [*self.prefix, sys.executable, *python, "search", str(self.space), "--results", str(self.results)]
        command += ["--threads", "1", "--no-tracking", *self.arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, fault: Fault | None = None) -> "subprocess.CompletedProcess[str]":
        """Run the command to its end."""
        process = self.start(fault)
        output, errors = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def finish(self) -> str:
        """Run the command, which must end well."""
        done = self.run()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def records(self) -> list[TrialRecord]:
        """All trials' records, without baselines."""
        return [record for record in self.study.read_trials() if record.kind == "trial"]

    def written(self) -> dict[Path, bytes]:
        """The records that there are."""
        return {
            path: path.read_bytes() for path in self.study.path.glob("trials/*.json") if not path.name.startswith(".")
        }

    def checkpoints(self) -> dict[Path, int]:
        """When each checkpoint was written."""
        found = {}
        for path in self.study.path.glob("networks/*/checkpoint.pt"):
            try:
                found[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
        return found


def assert_one_line(done: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    """The command ended with one line of error that says what, and what to do."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("harness: error: ")
    for part in parts:
        assert part in line


def ends(folder: StudyFolder) -> list[tuple[Any, ...]]:
    """How each network ended: rungs, scores, loss curves and weights, without what clocks and interruptions say."""
    found = []
    for record in folder.read_trials():
        if record.kind != "trial" or record.state not in ("complete", "stopped"):
            continue
        rungs = [(rung.step, rung.place, rung.networks, rung.promoted, rung.points) for rung in record.rungs]
        scores = [(str(point.routing), point.evaluation.psnr_db, point.macs) for point in record.points]
        trained = record.training_result
        curves = (trained.curve_steps, trained.curves) if trained is not None else ()
        file = folder.weights_file(record.network_id)
        weights = hashlib.sha256(file.read_bytes()).hexdigest() if record.state == "complete" else ""
        network = json.dumps(record.suggestion, sort_keys=True)
        found.append((network, record.state, str(rungs), str(scores), str(curves), weights))
    return sorted(found)


def assert_is_whole(folder: StudyFolder, routings: int = 3) -> None:
    """Every network ended once, every point of it was told once, and nothing is left open or lying about."""
    records = [record for record in folder.read_trials() if record.kind == "trial"]
    ended = [record for record in records if record.state in ("complete", "stopped")]
    assert len({record.network_id for record in ended}) == len(ended)
    for record in ended:
        if record.state == "complete":
            assert record.training is not None
            assert record.training_result is not None
            assert record.training_result.curve_steps == tuple(range(1, record.training.steps + 1))
    study = optuna.load_study(study_name=folder.path.name, storage=f"sqlite:///{folder.database}")
    trials = study.get_trials()
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    answered = {record.record_id for record in records if record.state == "answered"}
    told = Counter(
        (trial.user_attrs["network"], trial.params.get("routing.gamma"))
        for trial in trials
        if trial.state.name == "COMPLETE" and trial.user_attrs["record_id"] not in answered
    )
    assert set(told.values()) <= {1}
    assert Counter(network for network, _ in told) == {
        record.network_id: routings for record in ended if record.state == "complete"
    }
    failed = {record.network_id for record in records if record.state == "failed"}
    left = [path for path in folder.path.glob("networks/*/*") if path.name != "weights.safetensors"]
    assert [path for path in left if path.parent.name not in failed] == []


class Locked:
    """A lock under which nobody else writes to an SQLite database: to those who would, it is away."""

    def __init__(self, database: Path):
        self.database = database
        self._holder: sqlite3.Connection | None = None

    def hold(self) -> None:
        """Take the lock."""
        self._holder = sqlite3.connect(self.database, isolation_level=None, check_same_thread=False)
        self._holder.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        """Let others write again."""
        if self._holder is not None:
            self._holder.close()
        self._holder = None


class SmallDisk:
    """A disk of a few megabytes in memory, mounted where only this test's processes see it."""

    def __init__(self, mount: Path, megabytes: int):
        mount.mkdir(parents=True)
        script = f"mount -t tmpfs -o size={megabytes}m tmpfs {mount} && echo mounted && exec sleep 3600"
        try:
            self._keeper = subprocess.Popen(
                ["unshare", "-rm", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except FileNotFoundError:
            pytest.skip("there is no unshare here")
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != "mounted\n":
            self._keeper.wait()
            pytest.skip("no disk can be mounted here without being root")
        self.prefix = ["nsenter", "-t", str(self._keeper.pid), "-U", "-m", "--preserve-credentials"]
        self.path = Path(f"/proc/{self._keeper.pid}/root{mount}")  # as those outside see it
        self._filler = self.path / "filler"

    def copy(self, folder: StudyFolder, place: Path) -> StudyFolder:
        """Copy a study out of it: SQLite does not find its way to where only others see it."""
        shutil.copytree(folder.path, place / folder.path.name)
        return StudyFolder(place / folder.path.name)

    def fill(self) -> None:
        """Take all the room that is left."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.kill()
        self._keeper.wait()
        assert self._keeper.stdout is not None
        self._keeper.stdout.close()


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written after."""
    return int(torch.load(io.BytesIO(checkpoint.read_bytes()), weights_only=True)["step"])

"""Full disks, damaged files and images, diverging losses and too little memory: no trial is lost or counted twice."""

import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from harness.core.errors import OutageError, UserError
from harness.core.study_folder import StudyFolder
from harness.data import PairedDataset, open_dataset
from harness.search import storage
from harness.search.ledger import MAX_RETRIES
from harness.training import TrainingProgress
from harness.trial import Silent
from tests.photographs import Photographs, cut_photographs
from tests.search.conftest import KillAtStep, Killed, MakeStudy, Study, wait_for
from tests.search.faults import (
    PATIENCE_S,
    Command,
    Fault,
    Locked,
    SmallDisk,
    assert_is_whole,
    assert_one_line,
    ends,
    step_of,
)
from tests.spaces import tiny_space, write_space

TRAINING = {"steps": 9, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 2}
DIMENSIONS = {
    "model.channels": {"low": 4, "high": 32, "step": 2},
    "routing.gamma": {"choices": [0.0, 0.5, 1.0]},
}
RUNGS = {
    "training": TRAINING,
    "dimensions": DIMENSIONS,
    "stopping": {"factor": 2, "grace_steps": 2},
    "budget": {"networks": 2},
    "baselines": [],
}
MEMORY_WORDS = ("allocate", "MemoryError", "memory", "bad_alloc")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photographs: Photographs) -> Command:
    """The study as it ends where nothing goes wrong."""
    command = Command(tmp_path_factory.mktemp("whole"), photographs, **RUNGS)
    command.finish()
    assert_is_whole(command.study)
    return command


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, photographs: Photographs, datasets: tuple[PairedDataset, PairedDataset]
) -> StudyFolder:
    """The same in this process."""
    place = tmp_path_factory.mktemp("undisturbed")
    space = write_space(place / "tiny.yaml", tiny_space(photographs, **RUNGS))
    study = Study(StudyFolder(place / "results" / "tiny"), space, *datasets)
    study.run()
    return study.folder


# ---- a full disk ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "pattern", "number"),
    [
        ("open", r"-hr\.npy\.", 1),
        ("open", r"\.study\.json\.", 1),
        ("open", r"/\.checkpoint\.pt\.", 4),
        ("open", r"/\.rungs\.json\.", 1),
        ("open", r"/\.weights\.safetensors\.", 1),
        ("open", r"/\.trial-00000\.json\.", 1),
        ("os.remove", r"/traceback\.txt", 1),  # the record is written: SQLite writes next
    ],
)
def test_a_file_that_cannot_grow_ends_the_search_in_one_line(
    tmp_path: Path, photographs: Photographs, whole: Command, event: str, pattern: str, number: int
) -> None:
    """A limit of the size of files, from some moment on, and the same command without it."""
    command = Command(tmp_path, photographs, **RUNGS)
    done = command.run(Fault("full", event, pattern, number))
    assert_one_line(done, "the same command goes on")
    before = command.written()
    assert len(before) == (event == "os.remove")
    command.finish()
    assert command.written().items() >= before.items()
    assert all(record.state in ("complete", "stopped", "answered") for record in command.records)
    assert_is_whole(command.study)
    assert ends(command.study) == ends(whole.study)


@pytest.mark.slow
def test_a_full_disk_again_and_again(tmp_path: Path, photographs: Photographs) -> None:
    """A disk of its own is full in the middle of training, and stays so for a while; it is no death of any trial."""
    long = {"steps": 60, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 1}
    settings = {"training": long, "baselines": [], "budget": {"networks": 2}}
    undisturbed = Command(tmp_path / "undisturbed", photographs, **settings)
    undisturbed.finish()
    with SmallDisk(tmp_path / "disk", megabytes=24) as disk:
        command = Command(tmp_path, photographs, **settings)
        command.results = tmp_path / "disk" / "results"
        command.prefix = disk.prefix
        command.study = type(command.study)(disk.path / "results" / "tiny")
        process = command.start()
        wait_for(command.checkpoints, process, patience_s=PATIENCE_S)
        disk.fill()
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2, errors
        assert "make room there, and the same command goes on" in errors or "the same command goes on from" in errors
        (checkpoint,) = command.checkpoints()
        reached = step_of(checkpoint)
        for _ in range(3):
            assert command.run().returncode == 2
            assert command.written() == {}
        disk.free()
        command.finish()
        study = disk.copy(command.study, tmp_path / "copy")
        assert_is_whole(study)
        assert ends(study) == ends(undisturbed.study)
        first = command.records[0].training_result
        assert first is not None
        assert first.resumed_from[0] == reached


@pytest.mark.slow
def test_two_workers_on_a_full_disk(tmp_path: Path, photographs: Photographs) -> None:
    long = {"steps": 60, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 1}
    with SmallDisk(tmp_path / "disk", megabytes=24) as disk:
        command = Command(
            tmp_path, photographs, "--workers", "2", "--threads", "2", training=long, budget={"networks": 4}
        )
        command.results = tmp_path / "disk" / "results"
        command.prefix = disk.prefix
        command.study = type(command.study)(disk.path / "results" / "tiny")
        process = command.start()
        wait_for(lambda: len(command.checkpoints()) == 2, process, patience_s=PATIENCE_S)
        disk.fill()
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2, errors
        assert "Traceback" not in errors
        before = command.written()
        disk.free()
        command.finish()
        assert command.written().items() >= before.items()
        assert {record.state for record in command.records} <= {"complete", "answered"}
        assert sum(record.state == "complete" for record in command.records) == 4
        assert_is_whole(disk.copy(command.study, tmp_path / "copy"))


# ---- images ----


@pytest.mark.slow
def test_a_corrupt_image_is_named_in_one_line(tmp_path: Path) -> None:
    photographs = cut_photographs(tmp_path / "images")
    file = sorted(photographs.train.glob("*.png"))[1]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    command = Command(tmp_path, photographs)
    assert_one_line(command.run(), str(file), "replace or remove it")
    file.write_bytes(content)
    command.finish()
    assert_is_whole(command.study)


def test_an_image_cut_short_while_others_are_read(tmp_path: Path) -> None:
    photographs = cut_photographs(tmp_path / "images")
    files = sorted(photographs.train.glob("*.png"))

    def cut(_what: str, done: int, _total: int) -> None:
        if done == 1:
            os.truncate(files[-1], files[-1].stat().st_size // 2)

    def read() -> None:
        cache = tmp_path / "cache"
        open_dataset(str(photographs.train), scale=4, split="train", data_dir=None, cache_dir=cache, progress=cut)

    with pytest.raises(UserError, match=rf"{files[-1].name}: cannot be read as .*replace or remove it"):
        read()


class CutImage(Silent):
    """Cuts the cached images short after a step of training."""

    def __init__(self, study: Study, step: int):
        self.files = [entry.hr.path for entry in study.train.pairs._entries]  # type: ignore[attr-defined]
        self.step = step

    def training(self, progress: TrainingProgress) -> None:
        if progress.step == self.step:
            for file in self.files:
                os.truncate(file, 100)


def test_images_cut_short_in_training_are_no_fault_of_the_trial(
    make_study: MakeStudy, photographs: Photographs, tmp_path: Path, undisturbed: StudyFolder
) -> None:
    def opened(study: Study) -> Study:
        train = open_dataset(
            str(photographs.train), scale=4, split="train", data_dir=None, cache_dir=tmp_path / "cache"
        )
        return replace(study, train=train)

    study = opened(make_study(**RUNGS))
    with pytest.raises(UserError, match=r"-hr\.npy: the cached image cannot be read any more: .*goes on"):
        study.run(progress=CutImage(study, step=5))
    assert study.records == []
    opened(study).run()
    assert_is_whole(study.folder)
    assert ends(study.folder) == ends(undisturbed)
    assert study.records[0].training_result is not None
    assert study.records[0].training_result.resumed_from == (4,)


# ---- a loss that diverges ----


def test_a_diverging_network_fails_for_good_and_others_go_on(make_study: MakeStudy) -> None:
    rates = {"training.learning_rate": {"choices": [1e-3, 1e20]}, **DIMENSIONS}
    queue = [
        {"model.channels": 8, "training.learning_rate": 1e20, "routing.gamma": 0.5},
        {"model.channels": 8, "training.learning_rate": 1e20, "routing.gamma": 1.0},
        {"model.channels": 8, "training.learning_rate": 1e-3, "routing.gamma": 0.5},
        {"model.channels": 12, "training.learning_rate": 1e-3, "routing.gamma": 0.5},
    ]
    study = make_study(training=TRAINING, dimensions=rates, enqueue=queue, budget={"networks": 2})
    assert study.run().ending == "finished"
    first, second, *others = study.records
    assert (first.state, first.error_type) == ("failed", "TrialFailedError")
    assert "at step" in (first.reason or "")
    assert second.reason == f"given up (tries: 1): {first.reason}"
    assert "training" not in second.seconds
    assert [record.state for record in others] == ["complete", "complete"]
    assert_is_whole(study.folder)
    assert study.run().ending == "finished"
    assert len(study.records) == 4


def test_where_every_network_diverges_the_study_ends_with_the_reason(make_study: MakeStudy) -> None:
    study = make_study(training={**TRAINING, "learning_rate": 1e20}, dimensions=DIMENSIONS)
    outcome = study.run()
    assert (outcome.ending, outcome.networks) == ("failing", 0)
    assert study.states() == {"failed": 5}
    assert all("at step" in (record.reason or "") for record in study.records)
    assert {trial.state.name for trial in study.trials()} == {"FAIL"}


# ---- files damaged by a crash of the machine ----


@pytest.mark.parametrize("damaged", ["checkpoint.pt", pytest.param("rungs.json", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rest", [pytest.param(0, marks=pytest.mark.slow), 60])
def test_damaged_checkpoints_and_rungs_are_thrown_away(
    make_study: MakeStudy, undisturbed: StudyFolder, damaged: str, rest: int
) -> None:
    study = make_study(**RUNGS)
    with pytest.raises(Killed):
        study.run(progress=KillAtStep(training=1, step=7))
    (file,) = study.folder.path.glob(f"networks/*/{damaged}")
    os.truncate(file, rest)
    assert study.run().ending == "finished"
    (note,) = study.records[0].notes
    assert str(file) in note
    assert note.endswith("cannot be read: training began again") or "training began again" in note
    assert study.records[0].training_result is not None
    assert study.records[0].training_result.resumed_from == ()
    assert not any(record.notes for record in study.records[1:])
    assert_is_whole(study.folder)
    assert ends(study.folder) == ends(undisturbed)


@pytest.mark.parametrize("rest", [500, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("damaged", ["trials/trial-00000.json", "study.json"])
def test_a_damaged_record_is_named_and_may_be_deleted(make_study: MakeStudy, damaged: str, rest: int) -> None:
    study = make_study(budget={"networks": 2})
    study.run()
    file = study.folder.path / damaged
    os.truncate(file, rest)
    with pytest.raises(UserError, match=rf"{file}: not a .*delete it where it is damaged") as caught:
        study.run()
    assert "\n" not in str(caught.value)
    file.unlink()
    assert study.run().ending == "finished"
    assert len(study.trained) == 2


@pytest.mark.parametrize("rest", [50, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_damaged_database_is_made_again_of_the_records(make_study: MakeStudy, rest: int) -> None:
    study = make_study(budget={"networks": 2})
    study.run()
    os.truncate(study.folder.database, rest)
    with pytest.raises(UserError, match="delete the file, and `harness search` makes it again"):
        study.run()
    study.folder.database.unlink()
    assert study.run({"budget.networks": 3}).ending == "finished"
    assert_is_whole(study.folder)
    assert len(study.trained) == 3


# ---- a storage that is away ----


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let SQLite be waited for as a server is, for so many seconds."""

    def wait(seconds: float) -> None:
        monkeypatch.setattr(storage, "_BUSY_SECONDS", 0.1)
        monkeypatch.setattr(storage.Storage, "patience_s", seconds)

    return wait


class AwayAtRung(Silent):
    """Takes the storage away where the first network comes to a rung."""

    def __init__(self, study: Study):
        self.lock = Locked(study.folder.database)
        self.since: float | None = None

    def phase(self, record_id: str, label: str, phase: str) -> None:
        if phase == "scoring at a rung" and self.since is None:
            self.lock.hold()
            self.since = time.monotonic()

    def should_stop(self) -> bool:
        """Whether it has been waited for."""
        return self.since is not None and time.monotonic() - self.since > 3


@pytest.mark.slow
@pytest.mark.parametrize("is_stopped", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_storage_that_is_away_at_a_rung_is_no_fault_of_the_network(
    make_study: MakeStudy, patient: Callable[[float], None], undisturbed: StudyFolder, is_stopped: bool
) -> None:
    """Whoever stops the search meanwhile does not wait; else it ends where the storage does not come back."""
    study = make_study(**RUNGS)
    away = AwayAtRung(study)
    patient(30 if is_stopped else 2)
    if is_stopped:
        assert study.run(progress=away, should_stop=away.should_stop).ending == "interrupted"
    else:
        with pytest.raises(OutageError, match="every finished trial is on disk, and the same command goes on"):
            study.run(progress=away)
    assert study.records == []
    (checkpoint,) = study.folder.path.glob("networks/*/checkpoint.pt")
    assert step_of(checkpoint) == 2
    away.lock.release()
    assert study.run().ending == "finished"
    assert_is_whole(study.folder)
    assert ends(study.folder) == ends(undisturbed)
    assert study.records[0].training_result is not None
    assert study.records[0].training_result.resumed_from == (2,)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_points_that_a_lost_storage_was_not_told_are_made_good_in_the_same_run(
    make_study: MakeStudy, patient: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It is away before or after the suggested point is told, for longer than the telling is repeated."""
    study = make_study(training=TRAINING, dimensions=DIMENSIONS, budget={"networks": 2})
    lock = Locked(study.folder.database)
    back = threading.Timer(2.5, lock.release)
    tell = optuna.Study.tell

    def tell_and_lose(study: optuna.Study, trial: Any, values: Any = None, **arguments: Any) -> Any:
        is_first = values is not None and back.ident is None
        if is_first and moment == "before":
            lock.hold()
            back.start()
        told = tell(study, trial, values, **arguments)
        if is_first and moment == "after":
            lock.hold()
            back.start()
        return told

    monkeypatch.setattr(optuna.Study, "tell", tell_and_lose)
    patient(1.5)
    assert study.run().ending == "finished"
    back.join()
    assert_is_whole(study.folder)
    assert study.states() == {"complete": 2}


# ---- too little memory ----

BATCHES = {"training.batch_size": {"choices": [1, 8192]}, **DIMENSIONS}
HEAVY = [{"model.channels": 16, "training.batch_size": 8192, "routing.gamma": 0.5}]
LIGHT = [{"model.channels": channels, "training.batch_size": 1, "routing.gamma": 0.5} for channels in (8, 12)]
LEAN = {"training": {**TRAINING, "steps": 2}, "dimensions": BATCHES, "baselines": []}


@pytest.mark.slow
def test_a_network_that_needs_too_much_memory_is_given_up_and_others_go_on(
    tmp_path: Path, photographs: Photographs
) -> None:
    command = Command(tmp_path, photographs, **LEAN, enqueue=[*HEAVY, *LIGHT], budget={"networks": 2})
    done = command.run(Fault("memory", "open", r"/\.study\.json\."))
    assert "finished: the budget of 2 networks is spent" in done.stdout, done.stdout + done.stderr
    failed = [record for record in command.records if record.state == "failed"]
    assert len(failed) == 1 + MAX_RETRIES
    for record in failed:
        assert any(word in (record.reason or "") for word in MEMORY_WORDS), record.reason
        assert record.training is not None
        assert record.training.batch_size == 8192
    assert sum(record.state == "complete" for record in command.records) == 2
    assert_is_whole(command.study)
    before = command.written()
    command.finish()  # with the memory that the report needs
    assert command.written() == before


@pytest.mark.slow
def test_one_of_two_workers_has_too_little_memory(tmp_path: Path, photographs: Photographs) -> None:
    """The limit is set from outside once that worker trains, so that everything is loaded."""
    first = [{**LIGHT[0], "model.channels": channels} for channels in (20, 24)]
    heavy = [{**HEAVY[0], "model.channels": channels} for channels in (16, 18, 20, 22)]
    training = {**TRAINING, "steps": 20, "checkpoint_interval": 1}
    command = Command(
        tmp_path,
        photographs,
        *("--workers", "2", "--threads", "2"),
        **{**LEAN, "training": training},
        enqueue=[*first, *heavy, *LIGHT],
        budget={"networks": 5},
    )
    process = command.start()
    wait_for(command.checkpoints, process, patience_s=PATIENCE_S)
    workers = [
        one for one in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in str(one.cmdline())
    ]
    limited = workers[0].pid
    limit = workers[0].memory_info().vms + (512 << 20)
    resource.prlimit(limited, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output + errors
    failed = Counter(record.network_id for record in command.records if record.state == "failed")
    assert failed
    assert max(failed.values()) <= 1 + MAX_RETRIES
    for record in command.records:
        if record.state == "failed":
            assert (record.error_type, record.training and record.training.batch_size) == ("MemoryError", 8192)
    assert sum(record.state == "complete" for record in command.records) >= 5
    assert_is_whole(command.study)


# ---- too little memory for what reads a study ----


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the size of a process is read from /proc")
def test_too_little_memory_for_pytorch_is_one_line() -> None:
    """The loader does not say that it was memory, so neither do we; other limits meet other failures."""
    said = []
    for limit_mib in range(150, 450, 100):
        done = subprocess.run(
            [sys.executable, "-m", "harness", "evaluate", "bicubic", "--data", "demo"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (limit_mib << 20, limit_mib << 20)),
        )
        assert_one_line(done, "memory")
        said.append(done.stderr)
    assert any("cannot be loaded: there is too little memory, or it lies on a file" in text for text in said)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the size of a process is read from /proc")
@pytest.mark.parametrize(("command", "fits"), [("report", False), ("status", True), ("compare", True)])
def test_commands_that_have_too_little_memory_say_so(whole: Command, command: str, fits: bool) -> None:
    """Whatever the limit, a command does its work or refuses with one line; a report does not fit into the lowest."""
    codes = []
    for limit_mib in range(300, 2700, 300):
        done = subprocess.run(
            [sys.executable, "-m", "harness", command, str(whole.study.path)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (limit_mib << 20, limit_mib << 20)),
        )
        codes.append(done.returncode)
        if done.returncode:
            assert_one_line(done, "memory")  # or that a library cannot be loaded for want of it
    assert (set(codes) == {0}) is fits
    assert codes[-1] == 0

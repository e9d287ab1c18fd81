"""Searches whose checkpoints are kept elsewhere: at a server of S3, one of FTP, or a folder that all workers reach."""

import io
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.core import checkpoints
from harness.core.checkpoints import MARK, Listed, Place, parse_place
from harness.core.errors import OutageError, UserError
from harness.core.study_folder import StudyFolder
from harness.data import PairedDataset
from harness.reporting.progress import observe_progress
from harness.search import join_search, read_study_space
from harness.training import TrainingProgress
from harness.trial import Silent
from tests.cli.conftest import run_harness
from tests.photographs import Photographs
from tests.places import FtpServer, s3_server
from tests.search.conftest import KillAtStep, Killed, MakeStudy, Study, wait_for
from tests.search.faults import (
    PATIENCE_S,
    Command,
    Fault,
    SmallDisk,
    assert_is_whole,
    assert_one_line,
    ends,
)
from tests.spaces import tiny_space, write_space

TRAINING = {"steps": 60, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 5}
SETTINGS = {"training": TRAINING, "baselines": [], "budget": {"networks": 2}}
BRIEF = {**SETTINGS, "training": {**TRAINING, "steps": 30}}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket at a server of S3."""
    with s3_server():
        yield "s3://bucket"


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, photographs: Photographs, datasets: tuple[PairedDataset, PairedDataset]
) -> Study:
    """A brief study as it ends where nothing goes wrong, its checkpoints in its folder."""
    place = tmp_path_factory.mktemp("plain")
    space = write_space(place / "tiny.yaml", tiny_space(photographs, **BRIEF))
    study = Study(StudyFolder(place / "results" / "tiny"), space, *datasets)
    study.run()
    return study


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[FtpServer]:
    with FtpServer(tmp_path / "ftp") as server:
        yield server


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of each kind."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    if request.param == "ftp":
        server: FtpServer = request.getfixturevalue("ftp")
        return server.url
    return {"file": f"file://{tmp_path}/kept", "memory": f"memory://{uuid.uuid4().hex}"}[request.param]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photographs: Photographs) -> Command:
    """The study as it ends with checkpoints in its folder, where nothing goes wrong."""
    command = Command(tmp_path_factory.mktemp("undisturbed"), photographs, **SETTINGS)
    command.finish()
    return command


def place_of(folder: StudyFolder, url: str) -> Place:
    """Where a study keeps its checkpoints."""
    return folder.keep_checkpoints(parse_place(url), folder.path.name).checkpoints


def in_training(folder: StudyFolder, url: str) -> list[Listed]:
    """The checkpoints that are there."""
    return place_of(folder, url).find() if folder.token_file.is_file() else []


def files_of(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


# ---- kills ----


@pytest.mark.slow
@pytest.mark.parametrize(
    "url", ["s3", *(pytest.param(url, marks=pytest.mark.slow) for url in ("file", "memory", "ftp"))], indirect=True
)
def test_who_goes_on_repeats_one_interval_at_most(make_study: MakeStudy, plain: Study, url: str) -> None:
    """Killed after step 23 of 30, with a checkpoint every 5 steps; all is as it is with checkpoints in the folder."""
    study = make_study(**BRIEF)
    with pytest.raises(Killed):
        study.run(checkpoints=url, progress=KillAtStep(training=1, step=23))
    (left,) = in_training(study.folder, url)
    assert left.size_bytes > 1000
    seen = observe_progress(study.folder.path)
    if "secret" in url:
        assert "cannot be kept: 530" in (seen.checkpoints_unseen or "")
    else:
        assert [(one.network_id, one.size_bytes) for one in seen.checkpoints] == [(left.network_id, left.size_bytes)]
    assert not list(study.folder.path.glob("networks/*/checkpoint.pt"))
    if "secret" in url:
        with pytest.raises(UserError, match="those in a URL are not kept with the study"):
            study.run()
    assert study.run(checkpoints=url if "secret" in url else None).ending == "finished"  # else the study says where
    resumed = [record.training_result.resumed_from for record in study.trained if record.training_result]
    assert resumed == [(20,), ()]
    assert in_training(study.folder, url) == []
    assert_is_whole(study.folder)
    assert ends(study.folder) == ends(plain.folder)
    assert "checkpoints" not in plain.folder.study_file.read_text()
    assert not any(b"secret" in path.read_bytes() for path in files_of(study.folder.path))


@pytest.mark.slow
@pytest.mark.parametrize("url", ["ftp", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_deaths_that_get_on_are_not_counted_and_others_are(make_study: MakeStudy, url: str) -> None:
    """As told by the marks of checkpoints: five deaths, each further on, and three more after the last one."""

    def die() -> None:
        raise Killed

    study = make_study(**{**BRIEF, "budget": {"networks": 1}})
    for step in (7, 12, 17, 22, 27):
        with pytest.raises(Killed):
            study.run(checkpoints=url, progress=AtStep(step, die))
    for _ in range(3):
        with pytest.raises(Killed):
            study.run(checkpoints=url, progress=AtStep(28, die))
    assert study.records == []
    study.run(checkpoints=url)
    first, second = study.records
    assert first.reason == "the process died 4 times in this trial without getting on"
    assert second.training_result is not None
    assert second.training_result.resumed_from == ()


@pytest.mark.slow
@pytest.mark.parametrize("url", ["file", "s3", "ftp"], indirect=True)
def test_a_search_that_is_killed_goes_on_with_the_same_weights(
    tmp_path: Path, photographs: Photographs, undisturbed: Command, url: str
) -> None:
    """SIGKILL in the middle of training, three times."""
    command = Command(tmp_path, photographs, "--checkpoints", url, **SETTINGS)
    marks: list[object] = []
    for _ in range(3):
        process = command.start()

        def has_got_on() -> bool:
            found = in_training(command.study, url)
            if found and found[0].network_id:
                mark = place_of(command.study, url).checkpoint(found[0].network_id).mark()
                if mark not in (0, *marks):
                    marks.append(mark)
                    return True
            return False

        wait_for(has_got_on, process, patience_s=PATIENCE_S)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    command.finish()
    assert in_training(command.study, url) == []
    assert_is_whole(command.study)
    assert ends(command.study) == ends(undisturbed.study)
    resumed = [record.training_result.resumed_from for record in command.records if record.training_result]
    assert all(step % 5 == 0 for steps in resumed for step in steps)
    assert any(resumed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "event", "pattern"),
    [
        ("file", "os.rename", r"/[0-9a-f]{12}\.pt$"),  # a checkpoint is written, but not in place
        ("ftp", "ftplib.sendcmd", r"STOR .*\.pt"),  # a part of it is written
        ("ftp", "ftplib.sendcmd", r"RNTO .*\.pt"),  # it is written, but not in place
        ("ftp", "ftplib.sendcmd", r"DELE .*\.pt"),  # between the record and clearing up
    ],
    indirect=["url"],
)
def test_killed_while_a_checkpoint_is_written_the_one_before_stands(
    tmp_path: Path, photographs: Photographs, undisturbed: Command, url: str, event: str, pattern: str
) -> None:
    command = Command(tmp_path, photographs, "--checkpoints", url, **SETTINGS)
    number = 1 if "DELE" in pattern else 4
    assert command.run(Fault("kill", event, pattern, number)).returncode == -signal.SIGKILL
    (left,) = in_training(command.study, url)
    content = place_of(command.study, url).checkpoint(left.network_id).read()
    assert content is not None
    step = int(torch.load(io.BytesIO(content), weights_only=True)["step"])
    assert step == {"STOR": 5, "RNTO": 15, "DELE": 60}.get(pattern[:4], 15)
    command.finish()
    first = command.records[0].training_result
    assert first is not None
    assert first.resumed_from == (() if "DELE" in pattern else (step,))
    assert in_training(command.study, url) == []
    assert_is_whole(command.study)
    assert ends(command.study) == ends(undisturbed.study)
    assert [path.name for path in files_of(tmp_path) if ".pt" in path.name] == []


@pytest.mark.slow
@pytest.mark.parametrize("url", ["s3", "ftp"], indirect=True)
def test_a_killed_worker_is_replaced_and_its_trial_goes_on(make_study: MakeStudy, url: str) -> None:
    study = make_study(**{**SETTINGS, "budget": {"networks": 3}})
    killed: list[int] = []

    def kill_once_in_a_while() -> bool:
        running = [
            trial.user_attrs["worker"]["pid"] for trial in study.trials("RUNNING") if "network" in trial.user_attrs
        ]
        if running and len(killed) < 2 and running[0] not in killed and in_training(study.folder, url):
            os.kill(running[0], signal.SIGKILL)
            killed.append(running[0])
        return False

    outcome = study.run(checkpoints=url, workers=2, should_stop=kill_once_in_a_while)
    assert len(killed) == 2
    assert (outcome.ending, outcome.networks) == ("finished", 3)
    assert any(record.training_result.resumed_from for record in study.trained if record.training_result)
    assert in_training(study.folder, url) == []
    assert_is_whole(study.folder)


# ---- other workers ----


@pytest.mark.slow
def test_a_worker_finds_the_place_by_itself(
    tmp_path: Path, photographs: Photographs, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3}/{uuid.uuid4().hex}"
    command = Command(tmp_path, photographs, "--checkpoints", url, **{**SETTINGS, "budget": {"networks": 6}})
    leader = command.start()
    wait_for(lambda: in_training(command.study, url), leader, patience_s=PATIENCE_S)
    words = [sys.executable, "-m", "harness", "worker", str(command.study.path), "--threads", "1"]
    worker = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in (leader, worker)]
    assert (leader.returncode, worker.returncode) == (0, 0), outputs
    assert "trial-" in outputs[1]
    assert not list(command.study.path.glob("networks/*/checkpoint.pt"))
    assert in_training(command.study, url) == []
    assert_is_whole(command.study)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # a machine that does not reach it
    lost = run_harness("worker", command.study.path, "--threads", "1")
    assert lost.code == 2
    (line,) = lost.err.splitlines()
    assert line.startswith(f"harness: error: checkpoints at '{url}/tiny-")
    assert "cannot be kept: Could not connect to the endpoint URL" in line
    told = run_harness("status", command.study.path)
    assert told.code == 0
    assert f"in training  not known: checkpoints at '{url}/tiny-" in told.out


@pytest.mark.slow
def test_a_machine_that_sees_another_place_under_the_same_path_is_refused(
    tmp_path: Path, photographs: Photographs
) -> None:
    """The other machine is a namespace in which another disk is mounted there."""
    kept = tmp_path / "kept"
    command = Command(tmp_path, photographs, "--checkpoints", f"file://{kept}", **SETTINGS)
    command.finish()
    moved = tmp_path / "moved"
    shutil.move(kept, moved)
    with SmallDisk(kept, megabytes=8) as disk:
        words = [sys.executable, "-m", "harness", "worker", str(command.study.path), "--threads", "1"]
        done = subprocess.run([*disk.prefix, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert_one_line(done, f"checkpoints at '{kept}/tiny-", "is not the place that the study keeps", "is missing")
        again = command.start  # the search itself, from there
        command.prefix = disk.prefix
        process = again()
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2
        assert "is not the place that the study keeps" in errors


def joined(study: Study, url: str | None = None) -> None:
    record = study.folder.read_study()
    space = read_study_space(record)
    database = f"sqlite:///{study.folder.database}"
    join_search(space, study.setup(space), record, storage=database, checkpoints=url)


def test_who_joins_may_come_to_the_place_by_another_path(make_study: MakeStudy, plain: Study, tmp_path: Path) -> None:
    study = make_study(**{**BRIEF, "budget": {"networks": 1}})
    study.run(checkpoints=str(tmp_path / "kept"))
    joined(study)
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    joined(study, str(tmp_path / "link"))
    with pytest.raises(UserError, match=f"is not the place .*{MARK} is missing"):
        joined(study, str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="keeps its checkpoints in its folder; leave --checkpoints"):
        joined(plain, str(tmp_path / "kept"))


def test_studies_of_the_same_name_share_a_place(make_study: MakeStudy, tmp_path: Path) -> None:
    """Each has a folder of its own there, so that neither goes on from a checkpoint of the other."""
    url = str(tmp_path / "kept")
    study = make_study(**BRIEF)
    other = replace(study, folder=StudyFolder(tmp_path / "others" / "tiny"))
    for one in (study, other):
        with pytest.raises(Killed):
            one.run(checkpoints=url, progress=KillAtStep(training=1, step=23))
    assert len(in_training(study.folder, url)) == len(in_training(other.folder, url)) == 1
    assert study.run().ending == "finished"
    assert (in_training(study.folder, url), len(in_training(other.folder, url))) == ([], 1)


def test_a_place_may_be_changed(make_study: MakeStudy, tmp_path: Path) -> None:
    """What is in training begins again; what is trained stays."""
    study = make_study(**BRIEF)
    with pytest.raises(Killed):
        study.run(checkpoints=str(tmp_path / "first"), progress=KillAtStep(training=2, step=23))
    assert study.run(checkpoints=str(tmp_path / "second")).ending == "finished"
    assert study.folder.read_study().checkpoints == str(tmp_path / "second")
    resumed = [record.training_result.resumed_from for record in study.trained if record.training_result]
    assert resumed == [(), ()]
    assert_is_whole(study.folder)


# ---- places that are lost ----


class AtStep(Silent):
    """Calls something after a step of the first training."""

    def __init__(self, step: int, call: "object"):
        self.step = step
        self.call = call

    def training(self, progress: TrainingProgress) -> None:
        if progress.step == self.step and self.call is not None:
            call, self.call = self.call, None
            assert callable(call)
            call()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_place_that_is_lost_ends_the_search_and_loses_nothing(
    make_study: MakeStudy, plain: Study, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    study = make_study(**BRIEF)
    monkeypatch.setattr(checkpoints, "PATIENCE_SECONDS", 1.0)
    with pytest.raises(OutageError, match=r"cannot be written: .*once the place is back, the same command goes on"):
        study.run(checkpoints=ftp.url, progress=AtStep(23, ftp.kill))
    assert study.records == []
    with pytest.raises(UserError, match="cannot be kept"):
        study.run(checkpoints=ftp.url)
    ftp.start()
    assert study.run(checkpoints=ftp.url, workers=workers).ending == "finished"
    assert_is_whole(study.folder)
    first = next(record.training_result for record in study.records if record.training_result)
    assert first is not None
    if workers == 1:
        assert first.resumed_from == (20,)
        assert ends(study.folder) == ends(plain.folder)


def test_a_place_that_comes_back_is_not_noticed(make_study: MakeStudy, plain: Study, ftp: FtpServer) -> None:
    study = make_study(**BRIEF)

    def lose_for_a_while() -> None:
        ftp.kill()
        subprocess.Popen(["sleep", "1"]).wait()
        ftp.start()

    assert study.run(checkpoints=ftp.url, progress=AtStep(23, lose_for_a_while)).ending == "finished"
    assert not any(record.notes for record in study.records)
    assert_is_whole(study.folder)
    assert ends(study.folder) == ends(plain.folder)


def test_a_checkpoint_that_could_not_be_removed_is_removed_later(
    make_study: MakeStudy, ftp: FtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is lost once the last checkpoint of the last network is written; its record is made all the same."""
    monkeypatch.setattr(checkpoints, "PATIENCE_SECONDS", 1.0)
    study = make_study(**{**BRIEF, "budget": {"networks": 1}})

    class AtTheEnd(Silent):
        def phase(self, record_id: str, label: str, phase: str) -> None:
            if phase == "evaluating":
                ftp.kill()

    assert study.run(checkpoints=ftp.url, progress=AtTheEnd()).ending == "finished"
    ftp.start()
    assert len(in_training(study.folder, ftp.url)) == 1
    assert study.run(checkpoints=ftp.url).ending == "finished"
    assert in_training(study.folder, ftp.url) == []


def test_a_damaged_checkpoint_is_thrown_away(make_study: MakeStudy, plain: Study, tmp_path: Path) -> None:
    study = make_study(**BRIEF)
    with pytest.raises(Killed):
        study.run(checkpoints=str(tmp_path / "kept"), progress=KillAtStep(training=1, step=23))
    (file,) = (tmp_path / "kept").glob("tiny-*/*.pt")
    os.truncate(file, 60)
    assert study.run().ending == "finished"
    (note,) = study.records[0].notes
    assert note.startswith(f"checkpoint {file} cannot be read")
    assert ends(study.folder) == ends(plain.folder)

"""`harness status`: while real searches run, and after them, without a trace."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from harness.core.files import shared_lock
from harness.core.study_folder import StudyFolder
from tests.cli.conftest import Call, FinishedStudy, written
from tests.photographs import Photographs
from tests.search.conftest import wait_for
from tests.search.test_kill import PATIENCE_S, Search


def test_a_finished_study_is_told_and_left_alone(call: Call, study: FinishedStudy) -> None:
    before = written(study.folder)
    document = call("status", "tiny", "--results", study.results, "--json").document
    report = call("report", study.folder, "--json").document
    assert document["searching"] is False
    assert document["budget"] == {"networks": 2, "seconds": None}
    assert (document["networks"], document["seconds_left"]) == (2, 0)
    assert document["trials"] == {**report["trials"], "running": 0}
    assert document["trials"]["rejected"] == 1
    assert document["front_size"] == len(report["front"])
    assert document["hypervolume"] == report["hypervolume"] == document["history"][-1]["hypervolume"]
    assert [moment["record_id"] for moment in document["history"]] == ["trial-00001", "trial-00004"]
    assert document["baselines"] == {"bicubic": "complete", "swinir-light": "complete"}
    assert document["last_record"]["record_id"] == "trial-00004"
    told = call("status", study.folder).out
    for words in ("no search is running here", "2 of 2 trained; ", "2 complete, 1 rejected, 0 running", "last  "):
        assert words in told
    assert " left" not in told
    assert written(study.folder) == before


def test_a_search_says_after_each_record_how_far_it_is(study: FinishedStudy) -> None:
    assert "  0 of 2 networks trained; 1 rejected\n" in study.output
    assert "  1 of 2 networks trained; 1 rejected; front of " in study.output
    assert "  2 of 2 networks trained; 1 rejected; front of " in study.output
    assert ", hypervolume " in study.output


def test_who_is_at_work_is_told(call: Call, study: FinishedStudy, tmp_path: Path) -> None:
    """A worker whose leader is gone; and a search that is at its second baseline."""
    folder = StudyFolder(tmp_path / "results" / "tiny")
    folder.write_study(StudyFolder(study.folder).read_study())
    with shared_lock(folder.worker_lock):
        told, document = call("status", "tiny").out, call("status", "tiny", "--json").document
    if document["processes"] is None:
        pytest.skip("this system does not tell who holds a lock")
    assert f"no search leads here, a worker trains alone (process {os.getpid()})" in told
    assert (document["searching"], document["processes"], document["workers"]) == (True, [], [os.getpid()])
    folder.write_trial(StudyFolder(study.folder).read_trial("baseline-bicubic"))
    with FileLock(folder.search_lock):
        told, document = call("status", "tiny").out, call("status", "tiny", "--json").document
    assert f"a search is running (process {os.getpid()})\n" in told
    assert "bicubic complete, swinir-light running\n" in told
    assert document["baselines"] == {"bicubic": "complete", "swinir-light": "running"}
    assert "running" not in call("status", "tiny", "--json").document["baselines"].values()


def test_no_study_is_one_line(call: Call) -> None:
    assert "no study in results/nothing" in call("status", "nothing").mistake


@pytest.mark.slow
def test_while_a_search_runs_is_stopped_and_goes_on(call: Call, photographs: Photographs, tmp_path: Path) -> None:
    search = Search(tmp_path, photographs, networks=2)
    process = search.start()
    wait_for(lambda: search.is_training(finished=1), process)
    document = call("status", "tiny", "--json").document
    assert process.poll() is None
    assert (document["searching"], document["processes"]) == (True, [process.pid])
    assert document["networks"] == 1
    if document["checkpoints"]:  # its training may have ended just now
        (checkpoint,) = document["checkpoints"]
        assert document["trials"]["running"] == 1
        assert checkpoint["size_bytes"] > 1000
        assert checkpoint["seconds_old"] < PATIENCE_S
    assert document["seconds_left"] == pytest.approx(document["seconds_per_network"])
    told = call("status", "tiny").out
    assert f"a search is running (process {process.pid})" in told or process.poll() is not None

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    document = call("status", "tiny", "--json").document
    assert document["searching"] is False
    assert document["trials"]["running"] == 0
    (checkpoint,) = document["checkpoints"]
    assert "interrupted  network " + checkpoint["network_id"] in call("status", "tiny").out

    search.command += ["--networks", "3"]
    assert "3 networks trained" in search.finish()
    document = call("status", "tiny", "--json").document
    assert document["budget"]["networks"] == document["networks"] == 3
    assert document["checkpoints"] == []
    volumes = [moment["hypervolume"] for moment in document["history"]]
    assert volumes == sorted(volumes)

    (resumed,) = (one for one in search.trained() if one.training_result and one.training_result.resumed_from)
    again = call("replay", "tiny", "--trial", str(resumed.number), "--no-latency")
    assert (again.code, "identical to the bit" in again.out) == (0, True)


def test_the_last_failure_is_told(call: Call, study: FinishedStudy, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "results" / "tiny")
    folder.write_study(StudyFolder(study.folder).read_study())
    records = list(StudyFolder(study.folder).read_trials())
    for record in records:
        folder.write_trial(record)
    failed = records[-1].model_copy(update={"record_id": "trial-00009", "number": 9, "state": "failed"})
    folder.write_trial(failed.model_copy(update={"reason": "loss is nan at step [1]", "points": ()}))
    assert "last failure trial-00009: loss is nan at step [1]" in call("status", "tiny").out
    (folder.path / "trials" / "trial-00010.json").write_text("{}", encoding="utf-8")
    assert "trial-00010.json: not a TrialRecord of this version" in call("status", "tiny").mistake


def test_watching_sees_new_records_and_ends_at_once(study: FinishedStudy, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "tiny")
    folder.write_study(StudyFolder(study.folder).read_study())
    command = [sys.executable, "-m", "harness", "status", str(folder.path), "--watch", "0.1", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert (first["networks"], first["hypervolume"], first["seconds_left"]) == (0, 0, None)
    records = {record.record_id: record for record in StudyFolder(study.folder).read_trials()}
    folder.write_trial(records["trial-00001"])
    while json.loads(process.stdout.readline())["networks"] == 0:
        pass
    folder.write_trial(records["trial-00001"].model_copy(update={"state": "failed", "reason": "edited", "points": ()}))
    while json.loads(process.stdout.readline())["last_failure"] is None:
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (0, 130)
    assert "Traceback" not in errors

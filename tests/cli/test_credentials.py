"""A study of images behind a password: it is found again by all commands, and the password nowhere."""

import sqlite3
from pathlib import Path

import pytest

from harness.core.study_folder import StudyFolder
from tests.cli.conftest import Call, Outcome
from tests.guarded import PASSWORD, guarded
from tests.photographs import Photographs
from tests.spaces import tiny_space, write_space


def assert_is_nowhere(folder: Path, *outcomes: Outcome) -> None:
    """The password is in no file, no name of a file, no database and no output."""
    for outcome in outcomes:
        assert PASSWORD not in outcome.out + outcome.err
    for path in folder.rglob("*"):
        assert PASSWORD not in str(path)
        if path.suffix == ".db":
            with sqlite3.connect(path) as database:
                assert PASSWORD not in "\n".join(database.iterdump())
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_study_of_images_behind_a_password(call: Call, tmp_path: Path, photographs: Photographs) -> None:
    with guarded(photographs.train.parent) as (plain, url):
        data = {"train": f"{url}/train", "validation": str(photographs.validation)}
        space = write_space(tmp_path / "tiny.yaml", tiny_space(photographs, data=data, budget={"networks": 1}))
        results = tmp_path / "results"
        search = ["search", space, "--results", results, "--threads", "1"]
        first = call(*search, "--report", "--export", "knee")
        assert first.code == 0, first.err
        more = call(*search, "--networks", "2", "--train", f"{url}/train")
        assert "finished: the budget of 2 networks is spent" in more.out, more
        study = results / "tiny"
        record = StudyFolder(study).read_study()
        assert record.data.train == f"{plain}/train"
        again = call("replay", study, "--trial", "0", "--no-latency", "--train", f"{url}/train")
        assert "identical to the bit" in again.out, again
        refused = call("replay", study, "--trial", "0", "--no-latency")
        assert "give --train and --validation again" in refused.mistake
        worker = call("worker", study, "--threads", "1", "--train", f"{url}/train")
        assert "finished: the budget of 2 networks is spent" in worker.out, worker
        moved = call("worker", study, "--threads", "1", "--train", photographs.train)
        assert "finished: the budget of 2 networks is spent" in moved.out, moved
        run = call("train", "camixersr-s", "--set", "steps=1", "--set", "batch_size=1", "--set", "hr_patch_size=64",
                   "--train", f"{url}/train", "--validation", photographs.validation, "--out", tmp_path / "run",
                   "--results", results, "--threads", "1")  # fmt: skip
        assert run.code == 0, run.err
        card = next(study.rglob("README.md"), None) or next((tmp_path / "run").rglob("README.md"))
        assert f"{plain}/train" in card.read_text(encoding="utf-8")
    assert_is_nowhere(results, first, more, again, refused, worker, moved, run)
    assert_is_nowhere(tmp_path / "run")


def test_passwords_of_stores_are_not_told(call: Call, tmp_path: Path, photographs: Photographs) -> None:
    space = write_space(tmp_path / "tiny.yaml", tiny_space(photographs, budget={"networks": 1}))
    search = ["search", space, "--results", tmp_path / "results", "--threads", "1"]
    database = f"127.0.0.1:1/db?password={PASSWORD}"
    done = [
        call(*search, "--storage", f"postgresql://me:{PASSWORD}@{database}"),
        call(*search, "--tracking-uri", f"nosuch://me:{PASSWORD}@{database}"),
        call(*search, "--tracking-uri", f"http://me:{PASSWORD}@127.0.0.1:1"),
    ]
    assert [one.code for one in done] == [2, 2, 0]
    assert "MLflow   http://…@127.0.0.1:1" in done[2].out
    assert "MLflow tracking to http://…@127.0.0.1:1 failed" in done[2].err
    assert_is_nowhere(tmp_path / "results", *done)

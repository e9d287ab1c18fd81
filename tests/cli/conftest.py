"""The command line, run as a user runs it, and a finished study to look at."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.photographs import Photographs
from tests.spaces import tiny_space, write_space


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def mistake(self) -> str:
        """The one line that a user's mistake is answered with."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.count("\n") == 1
        assert self.err.startswith("harness: error: ")
        return self.err.removeprefix("harness: error: ").strip()


def run_harness(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Outcome:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def written(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Everything in a folder: when it was written, and what is in it."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


Call = Callable[..., Outcome]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run the command in this process, in an empty folder: quick, because everything is imported once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which records tell, as `run_harness` does

    def run(*arguments: str | Path) -> Outcome:
        from harness.cli import main

        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        else:
            code = 0
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@dataclass(frozen=True)
class FinishedStudy:
    """A study of a tiny space, run once by `harness search` with MLflow on."""

    results: Path
    space: Path
    output: str

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.results / "tiny"

    @property
    def store(self) -> str:
        """The MLflow store's URI."""
        return f"sqlite:///{self.results / 'mlflow.db'}"


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, photographs: Photographs) -> FinishedStudy:
    """Read-only: tests that write take `--out` elsewhere."""
    folder = tmp_path_factory.mktemp("finished")
    space = tiny_space(
        photographs,
        constraints=["params <= 20000"],
        objectives=["psnr_db", "latency_ms", "macs"],
        baselines=["bicubic", "swinir-light"],
        enqueue=[
            {"model.channels": 24, "routing.gamma": 0.5},
            {"model.channels": 8, "routing.gamma": 0.5},
            {"model.channels": 12, "routing.gamma": 1.0},
        ],
    )
    file = write_space(folder / "tiny.yaml", space)
    results = folder / "results"
    outcome = run_harness("search", file, "--results", results, "--threads", "1", "--report", "--export", "knee")
    assert outcome.code == 0, outcome.err
    return FinishedStudy(results, file, outcome.out)

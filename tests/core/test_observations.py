"""Seeds, units and the environment."""

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core import environment
from harness.core.environment import EnvironmentRecord, now, observe_environment
from harness.core.seeding import derive_seed
from harness.core.units import format_count, format_seconds


def test_derived_seeds_are_pinned() -> None:
    """Stored studies are trained again from these."""
    assert derive_seed(0, "weights") == 133441691874178746
    assert derive_seed(0, "crops") == 5222058816661072055
    assert derive_seed(7, "trial", 3) == 3086765575756848093


@given(st.integers(0, 2**63), st.text(max_size=20))
def test_derived_seeds_fit_every_generator(seed: int, name: str) -> None:
    assert 0 <= derive_seed(seed, name) < 2**63


def test_each_use_and_each_seed_has_a_stream_of_its_own() -> None:
    uses = [(seed, name) for seed in range(50) for name in ("weights", "crops", "routing noise", "1", 1.5)]
    assert len({derive_seed(seed, str(name)) for seed, name in uses}) == len(uses)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (62_710_000_000, "62.71 G"),
        (929_628, "929.63 k"),
        (1_000, "1.00 k"),
        (999, "999"),
        (0, "0"),
        (0.5, "0.50"),
        (1e6, "1.00 M"),
        (2.5e12, "2.50 T"),
        (-1_500, "-1.50 k"),
    ],
)
def test_counts_have_si_prefixes(count: float, expected: str) -> None:
    assert format_count(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (60, "1 min 0 s"),
        (75, "1 min 15 s"),
        (119.6, "2 min 0 s"),
        (3600, "1 h 0 min"),
        (3599.9, "1 h 0 min"),
        (90_061, "25 h 1 min"),
    ],
)
def test_durations_are_for_people(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


def test_the_environment_names_versions_and_the_machine() -> None:
    observed = observe_environment()
    assert observed.python_version == platform.python_version()
    assert observed.cpu_count == os.cpu_count()
    assert observed.cpu_model
    for name in ("torch", "numpy", "optuna", "mlflow", "fvcore", "ptflops"):
        assert observed.packages[name] == metadata.version(name)
    assert EnvironmentRecord.model_validate_json(observed.model_dump_json()) == observed
    assert observe_environment() is observed


def test_times_are_utc_with_seconds() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    found = datetime.fromisoformat(now())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", now())
    assert before <= found <= datetime.now(UTC)


def test_the_git_revision_is_that_of_the_checkout_and_says_when_files_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert environment._git_revision(tmp_path) is None
    git("init", "-q")
    assert environment._git_revision(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    revision = git("rev-parse", "HEAD")
    assert environment._git_revision(tmp_path) == revision
    (tmp_path / "untracked").write_text("1")
    assert environment._git_revision(tmp_path) == revision
    (tmp_path / "file").write_text("2")
    assert environment._git_revision(tmp_path) == f"{revision}+dirty"
    (tmp_path / "installed").mkdir()
    assert environment._git_revision(tmp_path / "installed") is None  # a wheel inside somebody else's repository


def test_core_needs_no_torch() -> None:
    script = "import sys, harness, harness.core.records, harness.core.study_folder; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"

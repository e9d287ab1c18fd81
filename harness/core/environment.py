"""Where a number was made: versions, processor, git revision."""

import functools
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from harness.core.configs import FrozenConfig

_PACKAGES = ("torch", "numpy", "pillow", "fvcore", "ptflops", "optuna", "mlflow")


class EnvironmentRecord(FrozenConfig):
    """The machine and the versions behind a record; `kernels`: those of our own that a CPU runs inference by."""

    harness_version: str
    git_revision: str | None
    python_version: str
    platform: str
    cpu_model: str
    cpu_count: int
    packages: dict[str, str]
    kernels: str | None = None


def now() -> str:
    """Return the time as ISO 8601 in UTC with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@functools.cache
def observe_environment(kernels: str | None = None) -> EnvironmentRecord:
    """Record versions, processor, `kernels` and (in a git checkout) the revision, '+dirty' when files have changed."""
    return EnvironmentRecord(
        harness_version=_version("harness") or "unknown",
        git_revision=_git_revision(Path(__file__).resolve().parents[2]),
        python_version=platform.python_version(),
        platform=platform.platform(),
        cpu_model=_cpu_model(),
        cpu_count=os.cpu_count() or 1,
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        kernels=kernels,
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision(folder: Path) -> str | None:
    if not (folder / ".git").exists():  # an installed wheel, perhaps inside somebody else's repository
        return None
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + ("+dirty" if changes.stdout.strip() else "")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

"""Where a number was made: versions, processor, git revision."""

import functools
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from harness.core.configs import FrozenConfig

_PACKAGES = ("torch", "numpy", "pillow", "fvcore", "ptflops", "optuna", "mlflow", "onnx", "onnxruntime", "openvino")


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


class DeviceFingerprint(FrozenConfig):
    """What decides how fast a device runs a network; measurements of equal `digest` ran under equal conditions.

    `usable_cores` is how many the process may run on. `instruction_set` is what torch's operators use of the CPU's,
    `kernels` what ours do. `governor` is that of the first CPU, where the system says. `gpu`, `driver`: None on a CPU.
    `runtime_version`: of onnxruntime or openvino. Thread settings are those inside the measured process.
    """

    device: str
    cpu_model: str
    cpu_count: int
    usable_cores: int
    instruction_set: str
    kernels: str | None
    governor: str | None
    gpu: str | None
    driver: str | None
    platform: str
    torch_version: str
    runtime_version: str | None
    threads: int
    interop_threads: int
    omp_num_threads: str | None

    @property
    def digest(self) -> str:
        """12 hex digits over all of it."""
        return self.config_hash()


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


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def cpu_governor() -> str | None:
    """Return the frequency governor of the first CPU where Linux tells, such as 'performance'."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip() or None
    except OSError:
        return None


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

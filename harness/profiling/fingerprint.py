"""What a measurement says of its device: the fingerprint that does not change, and sensors before and after."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from harness.core.environment import DeviceFingerprint, cpu_governor, observe_environment, usable_cores
from harness.models import describe_kernels
from harness.profiling.device import Device, describe_device

_QUERIES = {"clock_mhz": "clocks.sm", "temperature_c": "temperature.gpu"}
_TIMEOUT_S = 10.0


def observe_device(device: Device, runtime_version: str | None = None) -> DeviceFingerprint:
    """Describe the device and this process's thread settings."""
    is_cuda = device.kind == "cuda"
    return DeviceFingerprint(
        device=device.text,
        cpu_model=observe_environment().cpu_model,
        cpu_count=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        kernels=describe_kernels() if device.kind == "cpu" else None,
        governor=cpu_governor(),
        gpu=describe_device(device.text)[0] if is_cuda else "Apple GPU (MPS)" if device.kind == "mps" else None,
        driver=_ask_gpu(device, "driver_version") if is_cuda else None,
        platform=platform.platform(),
        torch_version=torch.__version__,
        runtime_version=runtime_version,
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
    )


def read_sensors(device: Device) -> dict[str, float]:
    """Return what the device tells of its clock (MHz) and temperature (°C) now; what it does not tell is left out."""
    if device.kind == "cuda":
        found = {name: _ask_gpu(device, query) for name, query in _QUERIES.items()}
        return {name: float(value) for name, value in found.items() if value and _is_number(value)}
    return _cpu_sensors() if device.kind == "cpu" else {}


def _ask_gpu(device: Device, query: str) -> str | None:
    """Ask the driver's own tool; None where it is not there or does not say."""
    uuid = torch.cuda.get_device_properties(device.torch_device).uuid
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu_sensors() -> dict[str, float]:
    """Return the mean clock of the cores, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return {"clock_mhz": sum(clocks) / len(clocks)} if clocks else {}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""Peak memory of one forward pass, measured in a process of its own.

On the CPU: how far the resident memory rises above what the process held with the network built, the input made and one
tiny image restored (so that libraries are loaded). Linux tells the peak since a reset; elsewhere it is the peak of the
process's life, which is the same as soon as the pass needs more than importing and building did.
On CUDA: `torch.cuda.max_memory_allocated` above what was allocated before the pass.
The weights' values do not matter; the input is random, so with routing by content the share is that of random weights.
"""

import ctypes
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from harness.core.configs import MODEL_CONFIG, AnyModelConfig
from harness.core.device_lock import computing
from harness.core.errors import UserError
from harness.models import build_model
from harness.profiling.device import Device, chosen_threads, parse_device

_TINY = 16  # pixels a side


def measure_peak_memory(
    config: AnyModelConfig,
    input_size: tuple[int, int],
    device: str = "cpu:1",
    *,
    batch_size: int = 1,
    timeout_seconds: float = 600.0,
) -> int:
    """Return the bytes that one forward pass needs beyond network and input, in float32 and inference mode.

    `input_size` is the low-resolution (height, width) in pixels. Raises `UserError` for a size or a device that cannot
    be, `RuntimeError` with the last line of what the measuring process said when it fails or takes too long.
    """
    if min(*input_size, batch_size) < 1:
        raise UserError(f"input size and batch must be at least 1: got {input_size}, batch {batch_size}")
    place = parse_device(device)
    request = {
        "config": config.model_dump(mode="json"),
        "shape": [batch_size, 3, *input_size],
        "device": place.text,
    }
    command = [sys.executable, "-c", "from harness.profiling.memory import answer_request; answer_request()"]
    try:
        with computing(place.lock):
            process = subprocess.run(
                command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout_seconds
            )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"measuring memory took longer than {timeout_seconds:g} s") from None
    if process.returncode != 0:
        last = process.stderr.strip().splitlines()[-1:] or ["killed, perhaps for want of memory"]
        raise RuntimeError(f"measuring memory failed (exit code {process.returncode}): {last[0]}")
    return int(process.stdout)


def answer_request() -> None:
    """Read one request of `measure_peak_memory` from standard input, measure in this process, write the bytes."""
    request = json.load(sys.stdin)
    config = MODEL_CONFIG.validate_python(request["config"])
    sys.stdout.write(str(_measure_here(config, request["shape"], request["device"])))


def _measure_here(config: AnyModelConfig, shape: list[int], device: str) -> int:
    """Measure in this process, which should be fresh."""
    place = parse_device(device)
    network = build_model(config).eval().to(place.torch_device)
    with chosen_threads(place.threads), torch.inference_mode():
        network(torch.rand(1, 3, _TINY, _TINY, device=place.torch_device))
        input_BCHW = torch.rand(shape, device=place.torch_device)
        peak = measure_pass_memory(lambda: network(input_BCHW), place)
    if peak is None:
        raise UserError(f"peak memory is not known on {place.text!r}; expected cpu:THREADS or cuda:INDEX")
    return peak


def measure_pass_memory(run: Callable[[], object], device: Device) -> int | None:
    """Run a pass in this process, which should be fresh; return the bytes that it needs above what is held before.

    None where the device does not tell (MPS).

    Resolution on Linux: what is held when the peak is read, such as the output of the pass, is counted to a page or two
    (half-used pages of the heap do not show as growth). A peak from before that lacks up to some hundred KiB, 264 on
    two CPUs, because resident pages are counted in batches: "the value may not be very precise" (proc.rst of Linux's
    documentation; proc_pid_status(5) says so of VmRSS and VmHWM). What /proc/self/smaps_rollup says is exact, but it
    knows no peak, and what is held before was the same by both, but for a page or two that reading it takes.
    """
    gc.collect()
    if device.kind == "mps":
        run()
        return None
    if device.kind == "cuda":
        torch.cuda.synchronize(device.torch_device)
        torch.cuda.reset_peak_memory_stats(device.torch_device)
        held = torch.cuda.memory_allocated(device.torch_device)
        run()
        torch.cuda.synchronize(device.torch_device)
        return int(torch.cuda.max_memory_allocated(device.torch_device)) - held
    _return_free_memory()
    _reset_peak_resident()
    held = psutil.Process().memory_info().rss
    output = run()
    peak = _peak_resident_bytes()
    del output  # only now: what is there while the peak is read is counted to the page
    return max(0, peak - held)


def _return_free_memory() -> None:
    """Give the heap's free pages back where the C library can: what a pass takes of them would not show as growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_peak_resident() -> None:
    """Make Linux forget the highest resident memory so far; other systems cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_resident_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere

"""Devices to measure on, named in text: `cpu:THREADS` and `cuda:INDEX`."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from harness.core.environment import observe_environment
from harness.core.errors import UserError


@dataclass(frozen=True)
class Device:
    """A device to measure on: `cpu:2` (threads) or `cuda:0` (index). `threads` is None on CUDA."""

    text: str
    torch_device: torch.device
    threads: int | None


def parse_device(text: str) -> Device:
    """Read `cpu` (one thread), `cpu:THREADS`, `cuda` (the first) or `cuda:INDEX`.

    Raises `UserError` for anything else, for more threads than the machine has cores, and for a GPU that is not there.
    """
    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (":" in text and not (number.isascii() and number.isdigit())):
        raise UserError(f"unknown device {text!r}; expected cpu:THREADS or cuda:INDEX, for example cpu:1")
    cores = os.cpu_count() or 1
    if kind == "cpu":
        threads = int(number or 1)
        if not 1 <= threads <= cores:
            raise UserError(f"device {text!r} asks for {threads} threads; this machine has cpu:1 to cpu:{cores}")
        return Device(f"cpu:{threads}", torch.device("cpu"), threads)
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        available = ", ".join([f"cuda:{i}" for i in range(count)] + [f"cpu:1 to cpu:{cores}"])
        raise UserError(f"no such CUDA device here: got {text!r}, available: {available}")
    return Device(f"cuda:{index}", torch.device("cuda", index), None)


def describe_device(device: str) -> tuple[str, int | None]:
    """Return the model of the processor or GPU, and the number of threads (None on CUDA)."""
    parsed = parse_device(device)
    if parsed.torch_device.type == "cuda":
        return torch.cuda.get_device_name(parsed.torch_device), None
    return observe_environment().cpu_model, parsed.threads


@contextlib.contextmanager
def chosen_threads(threads: int | None) -> Iterator[None]:
    """Run the block with this many threads inside operators; None leaves them."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)

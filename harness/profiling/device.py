"""Devices to measure on, named in text: `cpu:THREADS`, `cuda:INDEX` and `mps`."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from harness.core.device_lock import lock_name
from harness.core.environment import observe_environment
from harness.core.errors import UserError


@dataclass(frozen=True)
class Device:
    """A device to measure on: `cpu:2` (threads), `cuda:0` (index) or `mps`. `threads` is None but on the CPU."""

    text: str
    torch_device: torch.device
    threads: int | None

    @property
    def kind(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return self.torch_device.type

    @property
    def lock(self) -> str:
        """The name that all processes of this machine lock the device by, whichever GPUs each of them sees."""
        if self.kind == "cuda":
            return lock_name("cuda", str(torch.cuda.get_device_properties(self.torch_device).uuid))
        return lock_name(self.kind)


def parse_device(text: str) -> Device:
    """Read `cpu` (one thread), `cpu:THREADS`, `cuda` (the first), `cuda:INDEX` or `mps`.

    Raises `UserError` for anything else, for more threads than the machine has cores, and for a GPU that is not there.
    """
    kind, _, number = text.partition(":")
    if text != "mps" and (kind not in ("cpu", "cuda") or (":" in text and not (number.isascii() and number.isdigit()))):
        raise UserError(f"unknown device {text!r}; expected cpu:THREADS, cuda:INDEX or mps, for example cpu:1")
    cores = os.cpu_count() or 1
    if kind == "cpu":
        threads = int(number or 1)
        if not 1 <= threads <= cores:
            raise UserError(f"device {text!r} asks for {threads} threads; this machine has cpu:1 to cpu:{cores}")
        return Device(f"cpu:{threads}", torch.device("cpu"), threads)
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(f"no such device here: got 'mps', available: {_available()}")
        return Device("mps", torch.device("mps"), None)
    index = int(number or 0)
    if index >= torch.cuda.device_count():
        raise UserError(f"no such CUDA device here: got {text!r}, available: {_available()}")
    return Device(f"cuda:{index}", torch.device("cuda", index), None)


def _available() -> str:
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return ", ".join([*names, f"cpu:1 to cpu:{os.cpu_count() or 1}"])


def describe_device(device: str) -> tuple[str, int | None]:
    """Return the model of the processor or GPU, and the number of threads (None but on the CPU)."""
    parsed = parse_device(device)
    if parsed.kind == "cuda":
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

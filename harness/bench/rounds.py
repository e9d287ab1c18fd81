"""Rounds A B C … in one process, so that a ratio of medians survives a machine that is not quiet.

Protocol `rounds-1`. Every contestant runs once or twice to warm up. Then rounds, in each of which the contestants take
a turn in an order drawn anew (seed 0): one untimed run, because the turn before left other data in the caches, and as
many timed ones as fit into `turn_seconds`, one at the least and ten at the most. One that takes longer than a turn
needs no untimed run, for its own data have long been read when most of it begins. Slow contestants sit rounds out, not
all of them the same ones. No round begins after `max_seconds`, but everyone has a turn.

On one CPU thread the time is the processor's, which on a quiet machine is the clock's, and which stands still while
others are served; on more threads it is the clock's, on CUDA that of events on the device.
"""

import hashlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from harness.core.configs import FrozenConfig
from harness.core.device_lock import measuring
from harness.core.environment import observe_environment
from harness.models import describe_kernels
from harness.profiling import Device, describe_device

PROTOCOL = "rounds-1"
_MOST_PER_TURN = 10


class Effort(FrozenConfig):
    """How long to measure: rounds, the seconds after which none begins, and the seconds of a turn."""

    rounds: int
    max_seconds: float
    turn_seconds: float = 0.2

    def describe(self) -> str:
        """Return the protocol with its limits, for records."""
        return f"{PROTOCOL}: ≤{self.rounds} rounds, ≤{self.max_seconds:g} s, turns of {self.turn_seconds:g} s"


class Contestant(NamedTuple):
    """What is timed, under a name that is a record's key.

    It takes a turn in every so many rounds, from round `first` < `every` on (they count from 0).
    `like`: one before it that runs the same code on as many pixels; where that is slow, it has warmed up for both.
    """

    name: str
    run: Callable[[], object]
    every: int = 1
    first: int = 0
    like: str | None = None


class Times(FrozenConfig):
    """Milliseconds of one contestant."""

    median_ms: float
    iqr_ms: float
    best_ms: float
    samples_ms: tuple[float, ...]


class Rounds(NamedTuple):
    """The times of all contestants, and the share of one core that the process had meanwhile.

    Well below 1, others were at work: caches were shared, and the clock ran ahead of the times. None with more than one
    thread and on CUDA, where a process that waits is no sign of that.
    """

    times: dict[str, Times]
    core_share: float | None


class Machine(FrozenConfig):
    """Where it was measured; benches of equal `fingerprint` ran on like machines with like software and threads.

    `kernels`: those of our own that inference runs on this CPU, None where it runs torch's operators alone.
    """

    device: str
    device_name: str
    threads: int | None
    cpu_capability: str
    kernels: str | None
    fingerprint: str


def describe_machine(device: Device) -> Machine:
    """Describe the device and what on it decides about speed."""
    device_name, threads = describe_device(device.text)
    seen = observe_environment()
    capability: str = torch.backends.cpu.get_cpu_capability()
    kernels = describe_kernels() if device.torch_device.type == "cpu" else None
    traits = [device.text, device_name, threads, capability, kernels, seen.cpu_model, seen.cpu_count, seen.platform]
    traits += [seen.harness_version, seen.git_revision, seen.python_version, torch.__version__]
    fingerprint = hashlib.sha256(repr(traits).encode()).hexdigest()[:12]
    return Machine(
        device=device.text,
        device_name=device_name,
        threads=threads,
        cpu_capability=capability,
        kernels=kernels,
        fingerprint=fingerprint,
    )


def measure_rounds(
    contestants: Sequence[Contestant],
    device: Device,
    effort: Effort,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rounds:
    """Measure all contestants; `progress(done, total)` is told of every round, the warm-up being the first.

    Meanwhile nobody else of this package measures or trains on the device.
    """
    with measuring(device.lock):
        return _measure_rounds(contestants, device, effort, progress)


def _measure_rounds(
    contestants: Sequence[Contestant], device: Device, effort: Effort, progress: Callable[[int, int], None]
) -> Rounds:
    assert all(contestant.first < min(contestant.every, effort.rounds) for contestant in contestants)
    time_once = _time_on_cuda if device.torch_device.type == "cuda" else _time_on_cpu
    start, start_cpu = time.perf_counter(), time.process_time()
    turn_ms = effort.turn_seconds * 1e3
    expected_ms: dict[str, float] = {}
    for contestant in contestants:
        known = expected_ms.get(contestant.like or "", 0.0)
        first = known if known > 3 * turn_ms else time_once(contestant.run, device)
        expected_ms[contestant.name] = min(first, time_once(contestant.run, device)) if first < turn_ms else first
    progress(1, effort.rounds + 1)
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    order = random.Random(0)
    for number in range(effort.rounds):
        if all(samples.values()) and time.perf_counter() - start >= effort.max_seconds:
            break
        present = [contestant for contestant in contestants if number % contestant.every == contestant.first]
        for contestant in order.sample(present, len(present)):
            times = int(turn_ms / max(expected_ms[contestant.name], 1e-3))
            if times:
                contestant.run()
            taken = [time_once(contestant.run, device) for _ in range(min(max(times, 1), _MOST_PER_TURN))]
            samples[contestant.name] += taken
            expected_ms[contestant.name] = min(
                expected_ms[contestant.name], *taken
            )  # the first may have been disturbed
        progress(number + 2, effort.rounds + 1)
    core_share = None
    if device.threads == 1:
        core_share = (time.process_time() - start_cpu) / (time.perf_counter() - start)
    return Rounds({name: _summarise(values) for name, values in samples.items()}, core_share)


def part_of(progress: Callable[[int, int], None], index: int, count: int) -> Callable[[int, int], None]:
    """Return what tells `progress` of run `index` of `count` runs of as many rounds each."""
    return lambda done, total: progress(index * total + done, count * total)


def _summarise(values: list[float]) -> Times:
    quartiles = torch.quantile(torch.tensor(values, dtype=torch.float64), torch.tensor([0.25, 0.75]).double()).tolist()
    return Times(
        median_ms=statistics.median(values),
        iqr_ms=quartiles[1] - quartiles[0],
        best_ms=min(values),
        samples_ms=tuple(values),
    )


def _time_on_cpu(run: Callable[[], object], device: Device) -> float:
    read = time.process_time if device.threads == 1 else time.perf_counter
    start = read()
    run()
    return (read() - start) * 1e3


def _time_on_cuda(run: Callable[[], object], device: Device) -> float:
    with torch.cuda.device(device.torch_device):
        start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

"""Latency: networks take turns on one device, so that a ratio of their medians survives a machine that is not quiet.

Protocol `interleaved-3`.

Processes: each network runs in a fresh process of its own and the reference in another (`measure_in_processes`); the
one that does not run waits for its turn and computes nothing. `measure_latencies` does the same to callables of this
process, and its records say so (`process: shared`).

Lock: from the first run to the last the device is locked against every other process of this package on the machine
(`core/device_lock.py`); training elsewhere pauses, other measurements wait.

Warm-up, one network after the other and for each shape anew: at least 3 runs, until the two latest are within 10 % of
the fastest so far; at most 20.

Rounds: in each of them every network is timed once, in an order drawn anew (seed 0). Where a run takes less than 0.2 s,
an untimed one goes before it, because the one before was another's and left its own data in the caches. At least
`min_repeats` rounds, and `min_seconds` of measuring for each network on average. Real images take turns, too: all
networks restore the same one in a round.

Cap: `max_seconds` for each network with its share of the reference, warm-up and repetitions included, ends it before
that, after one round at the least; the record says so.

Noise: a run in which the reference's median of the second half of its samples is more than 5 % away from that of the
first half is noisy, and repeated, up to 3 runs in all as far as the cap has room for another that long. Of the
runs that were not cut short the one of least drift is kept; where that is noisy, too, the record is marked. So is one
whose processes, on one thread, had less than 90 % of their core: then others were served in between.

Numbers: CUDA runs are timed by events on the device, synchronised before and after, others by the monotonic clock (on
MPS synchronised). Quartiles and p90 are linearly interpolated, the intervals are those of `bootstrap.py`.
"""

import contextlib
import copy
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.core.configs import Precision
from harness.core.device_lock import measuring
from harness.core.environment import now, observe_environment
from harness.core.errors import UserError
from harness.core.records import MIN_CORE_SHARE, LatencyRecord
from harness.models import describe_kernels
from harness.profiling.bootstrap import median_interval, ratio_interval
from harness.profiling.device import Device, chosen_threads, describe_device, parse_device
from harness.profiling.fingerprint import observe_device, read_sensors
from harness.profiling.network_state import preserved_training_state

PROTOCOL = "interleaved-3"
MAX_DRIFT = 0.05
_MIN_WARMUP, _MAX_WARMUP, _STABLE = 3, 20, 1.10
_MAX_ATTEMPTS = 3
_TELLING_SAMPLES = 4  # of which halves can be compared
_LONG_MS = 200.0  # in a run that long, what was left in the caches by others is read anew once, and does not count
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Target = Callable[[Tensor], object]
Timer = Callable[[int, bool], float]  # (round, whether an untimed run goes before) → milliseconds


class Effort(NamedTuple):
    """How long to measure: the least rounds, the least and the most seconds for each network."""

    min_repeats: int = 15
    min_seconds: float = 10.0
    max_seconds: float = 120.0

    def check(self) -> None:
        """Raise `UserError` for limits that make no sense."""
        if self.min_repeats < 1 or self.min_seconds < 0 or self.max_seconds <= 0:
            raise UserError(
                "latency needs min_repeats ≥ 1, min_seconds ≥ 0 and max_seconds > 0: "
                f"got {self.min_repeats}, {self.min_seconds:g}, {self.max_seconds:g}"
            )


QUICK = Effort(min_repeats=10, min_seconds=3.0)
DEFAULT = Effort()


class Warmup(NamedTuple):
    """The runs of one network's warm-up, and whether they were stable at the end."""

    runs: int
    is_stable: bool
    fastest_ms: float


class Attempt(NamedTuple):
    """One run of rounds: milliseconds of each network in each round, and whether the cap ended it."""

    samples: tuple[tuple[float, ...], ...]
    is_capped: bool
    seconds: float

    def drift(self, has_reference: bool) -> float:
        """Return how far the reference (without one: whichever network moved most) drifted, as a fraction.

        0 where samples are too few to tell.
        """
        judged = self.samples[-1:] if has_reference else self.samples
        return max(find_drift(values) for values in judged)


class Measured(NamedTuple):
    """What was measured of several networks, the reference being the last."""

    warmups: tuple[Warmup, ...]
    kept: Attempt
    drift: float
    attempts: int
    lock_wait_seconds: float
    sensors: dict[str, tuple[float, float]]


def measure_latency(
    network: Target,
    input_BCHW: Tensor,
    *,
    device: str = "cpu:1",
    reference: Target | None = None,
    reference_name: str | None = None,
    precision: Precision = "fp32",
    min_repeats: int = 10,
    min_seconds: float = 1.0,
    max_seconds: float = 120.0,
) -> LatencyRecord:
    """Measure one network, interleaved with `reference` where one is given; see `measure_latencies`."""
    return measure_latencies(
        {"network": network},
        input_BCHW,
        device=device,
        reference=reference,
        reference_name=reference_name,
        precision=precision,
        min_repeats=min_repeats,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
    )["network"]


def measure_latencies(
    targets: Mapping[str, Target],
    input_BCHW: Tensor,
    *,
    device: str = "cpu:1",
    reference: Target | None = None,
    reference_name: str | None = None,
    precision: Precision = "fp32",
    min_repeats: int = 10,
    min_seconds: float = 1.0,
    max_seconds: float = 120.0,
) -> dict[str, LatencyRecord]:
    """Measure several networks (or other callables) on one input in this process, interleaved with `reference`.

    Each target takes `input_BCHW` as its only argument. A network runs in eval mode and inference mode on `device`; one
    whose weights are elsewhere is copied there, and all are left as they were, as are the thread count, the grad mode
    and, in `bf16` and `fp16`, the dtypes (autocast). `fp32` runs in the input's dtype, under torch's settings as found.
    A network under several routings is several targets, which may share their weights.
    `ratio` is median / median of the reference in the same run; the reference has no record of its own.
    Raises `UserError` for a device that is not there and for limits that make no sense.
    """
    effort = Effort(min_repeats, min_seconds, max_seconds)
    effort.check()
    place = parse_device(device)
    everything = [*targets.values(), *([] if reference is None else [reference])]
    networks = [target for target in everything if isinstance(target, nn.Module)]
    with preserved_training_state(*networks), chosen_threads(place.threads), inference(place, precision):
        for network in networks:
            network.eval()
        placed = [_place(target, place.torch_device) for target in everything]
        input_there_BCHW = input_BCHW.to(place.torch_device)
        timers = [local_timer(target, (input_there_BCHW,), place) for target in placed]
        measured = measure(timers, place, effort, has_reference=reference is not None)
        fingerprint = observe_device(place)
    facts: dict[str, Any] = {
        "precision": precision,
        "input_size": (input_BCHW.shape[-2], input_BCHW.shape[-1]),
        "batch_size": input_BCHW.shape[0],
        "process": "shared",
        "fingerprint": fingerprint,
    }
    name = None if reference is None else reference_name or "reference"
    return {
        target: make_record(measured, index, place, effort, reference=name, facts=facts)
        for index, target in enumerate(targets)
    }


@contextlib.contextmanager
def inference(device: Device, precision: Precision) -> Iterator[None]:
    """Run the block in inference mode, under autocast where the precision asks for it."""
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        if precision != "fp32":
            stack.enter_context(torch.autocast(device.kind, dtype=_AUTOCAST[precision]))
        yield


def local_timer(target: Target, inputs: Sequence[Tensor], device: Device) -> Timer:
    """Return what times the target in this process; round i restores input i, from the first again after the last."""
    time_once = {"cuda": _time_on_cuda, "mps": _time_on_mps}.get(device.kind, _time_on_cpu)

    def time_turn(round_number: int, untimed_first: bool) -> float:
        input_BCHW = inputs[round_number % len(inputs)]
        if untimed_first:
            target(input_BCHW)
        return time_once(target, input_BCHW)

    return time_turn


def measure(timers: Sequence[Timer], device: Device, effort: Effort, *, has_reference: bool) -> Measured:
    """Carry out the protocol on networks of which each is one timer, the reference's being the last."""
    with measuring(device.lock) as waited:
        before = read_sensors(device)
        start = time.perf_counter()
        cap = effort.max_seconds * max(1, len(timers) - has_reference)
        warmups = tuple(_warm_up(timer, start + cap / 2) for timer in timers)
        needs_untimed = [len(timers) > 1 and warmup.fastest_ms < _LONG_MS for warmup in warmups]
        attempts: list[Attempt] = []
        while not attempts or (
            len(attempts) < _MAX_ATTEMPTS
            and attempts[-1].drift(has_reference) > MAX_DRIFT
            and time.perf_counter() + attempts[-1].seconds < start + cap
        ):
            attempts.append(_take_rounds(timers, needs_untimed, effort, start + cap))
        after = read_sensors(device)
    kept = min(attempts, key=lambda attempt: (attempt.is_capped, attempt.drift(has_reference)))
    return Measured(
        warmups=warmups,
        kept=kept,
        drift=kept.drift(has_reference),
        attempts=len(attempts),
        lock_wait_seconds=waited,
        sensors={name: (value, after[name]) for name, value in before.items() if name in after},
    )


def find_drift(values: Sequence[float]) -> float:
    """Return |median of the second half / median of the first − 1|; 0 for fewer than 4 samples, which tell nothing."""
    if len(values) < _TELLING_SAMPLES:
        return 0.0
    half = len(values) // 2
    first = statistics.median(values[:half])
    return abs(statistics.median(values[-half:]) / first - 1) if first > 0 else 0.0


def make_record(
    measured: Measured, index: int, device: Device, effort: Effort, *, reference: str | None, facts: Mapping[str, Any]
) -> LatencyRecord:
    """Make the record of network `index`; `facts` are fields that do not come of the samples, and win over defaults."""
    samples = measured.kept.samples[index]
    reference_samples = () if reference is None else measured.kept.samples[-1]
    median = statistics.median(samples)
    reference_median = statistics.median(reference_samples) if reference_samples else None
    lower, upper, p90 = _quantiles(samples)
    device_name, threads = describe_device(device.text)
    limits = f"≥{effort.min_repeats} runs, ≥{effort.min_seconds:g} s, ≤{effort.max_seconds:g} s each"
    return LatencyRecord(
        protocol=f"{PROTOCOL}: {limits}",
        device=device.text,
        device_name=device_name,
        threads=threads,
        warmup_runs=measured.warmups[index].runs,
        is_warm=measured.warmups[index].is_stable,
        median=median,
        iqr=upper - lower,
        p90=p90,
        interval=median_interval(samples),
        samples=samples,
        reference=reference,
        reference_median=reference_median,
        reference_samples=reference_samples,
        ratio=None if reference_median is None else median / reference_median,
        ratio_interval=ratio_interval(samples, reference_samples) if reference_samples else None,
        reference_drift=measured.drift if len(samples) >= _TELLING_SAMPLES else None,
        is_noisy=measured.drift > MAX_DRIFT or (facts.get("core_share") or 1.0) < MIN_CORE_SHARE,
        attempts=measured.attempts,
        max_seconds=effort.max_seconds,
        is_capped=measured.kept.is_capped,
        lock_wait_seconds=measured.lock_wait_seconds,
        sensors=measured.sensors,
        torch_version=torch.__version__,
        git_revision=observe_environment(describe_kernels()).git_revision,
        measured_at=now(),
        **facts,
    )


def _warm_up(timer: Timer, deadline: float) -> Warmup:
    runs: list[float] = []
    while not runs or (not _is_warm(runs) and len(runs) < _MAX_WARMUP and time.perf_counter() < deadline):
        runs.append(timer(len(runs), False))
    return Warmup(len(runs), _is_warm(runs), min(runs))


def _is_warm(runs_ms: list[float]) -> bool:
    return len(runs_ms) >= _MIN_WARMUP and max(runs_ms[-2:]) <= _STABLE * min(runs_ms)


def _take_rounds(timers: Sequence[Timer], needs_untimed: Sequence[bool], effort: Effort, deadline: float) -> Attempt:
    samples: list[list[float]] = [[] for _ in timers]
    start = time.perf_counter()
    order = random.Random(0)
    while True:
        rounds, elapsed = len(samples[0]), time.perf_counter() - start
        is_enough = rounds >= effort.min_repeats and elapsed >= effort.min_seconds * len(timers)
        is_late = rounds > 0 and time.perf_counter() >= deadline
        if is_enough or is_late:
            return Attempt(tuple(map(tuple, samples)), is_late and not is_enough, elapsed)
        for index in order.sample(range(len(timers)), len(timers)):
            samples[index].append(timers[index](rounds, needs_untimed[index]))


def _time_on_cpu(target: Target, input_BCHW: Tensor) -> float:
    start = time.perf_counter()
    target(input_BCHW)
    return (time.perf_counter() - start) * 1e3


def _time_on_cuda(target: Target, input_BCHW: Tensor) -> float:
    with torch.cuda.device(input_BCHW.device):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        target(input_BCHW)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))


def _time_on_mps(target: Target, input_BCHW: Tensor) -> float:
    torch.mps.synchronize()
    start = time.perf_counter()
    target(input_BCHW)
    torch.mps.synchronize()
    return (time.perf_counter() - start) * 1e3


def _place(target: Target, device: torch.device) -> Target:
    """Return the target on the device: itself where its weights are there, else a copy."""
    if not isinstance(target, nn.Module):
        return target
    tensors = [*target.parameters(), *target.buffers()]
    return target if all(tensor.device == device for tensor in tensors) else copy.deepcopy(target).to(device)


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower and the upper quartile and the 90th percentile."""
    points = torch.tensor([0.25, 0.75, 0.9], dtype=torch.float64)
    lower, upper, p90 = torch.quantile(torch.tensor(values, dtype=torch.float64), points).tolist()
    return lower, upper, p90

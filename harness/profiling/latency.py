"""Latency: targets take turns on one device, so that a ratio of their medians survives a machine that is not quiet.

Protocol `interleaved-2`. Warm-up, one target after the other: at least 3 runs, until the two latest are within 10 % of
that target's fastest so far; at most 10. Then rounds in which every target is timed once, in an order drawn anew for
each round (seed 0), each after one untimed run of its own, because the one before it left other data in the caches:
at least `min_repeats` rounds and `min_seconds` of measuring for each target on average; `max_seconds` in all,
warm-up included, ends it before that, after one run of each at the least. CUDA runs are timed by events on the device,
CPU runs by the monotonic clock. Quartiles and p90 are linearly interpolated.
"""

import contextlib
import copy
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from harness.core.configs import Precision
from harness.core.environment import now
from harness.core.errors import UserError
from harness.core.records import LatencyRecord
from harness.profiling.device import Device, chosen_threads, describe_device, parse_device
from harness.profiling.network_state import preserved_training_state

PROTOCOL = "interleaved-2"
_MIN_WARMUP, _MAX_WARMUP, _STABLE = 3, 10, 1.10
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Target = Callable[[Tensor], Tensor]


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
    """Measure several networks (or other callables) on one input, interleaved with each other and with `reference`.

    Each target takes `input_BCHW` as its only argument. A network runs in eval mode and inference mode on `device`; one
    whose weights are elsewhere is copied there, and all are left as they were, as are the thread count, the grad mode
    and, in `bf16` and `fp16`, the dtypes (autocast). `fp32` runs in the input's dtype, under torch's settings as found.
    A network under several routings is several targets, which may share their weights.
    `ratio` is median / median of the reference in the same run; the reference has no record of its own.
    Raises `UserError` for a device that is not there and for limits that make no sense.
    """
    if min_repeats < 1 or min_seconds < 0 or max_seconds <= 0:
        raise UserError(
            "latency needs min_repeats ≥ 1, min_seconds ≥ 0 and max_seconds > 0: "
            f"got {min_repeats}, {min_seconds:g}, {max_seconds:g}"
        )
    place = parse_device(device)
    device_name, threads = describe_device(device)
    everything = [*targets.values(), *([] if reference is None else [reference])]
    networks = [target for target in everything if isinstance(target, nn.Module)]
    with preserved_training_state(*networks), chosen_threads(threads), torch.inference_mode(), _cast(place, precision):
        for network in networks:
            network.eval()
        placed = [_place(target, place.torch_device) for target in everything]
        warmups, samples = _run(
            placed, input_BCHW.to(place.torch_device), place, min_repeats, min_seconds * len(placed), max_seconds
        )

    reference_samples = () if reference is None else tuple(samples[-1])
    reference_median = statistics.median(reference_samples) if reference_samples else None
    batch_size, height, width = input_BCHW.shape[0], input_BCHW.shape[-2], input_BCHW.shape[-1]
    records = {}
    for name, warmup_runs, values in zip(targets, warmups, samples, strict=False):  # the reference comes last
        median = statistics.median(values)
        lower, upper, p90 = _quantiles(values)
        records[name] = LatencyRecord(
            protocol=f"{PROTOCOL}: ≥{min_repeats} runs, ≥{min_seconds:g} s, ≤{max_seconds:g} s for all {len(placed)}",
            device=place.text,
            device_name=device_name,
            threads=threads,
            precision=precision,
            input_size=(height, width),
            batch_size=batch_size,
            warmup_runs=warmup_runs,
            median=median,
            iqr=upper - lower,
            p90=p90,
            samples=tuple(values),
            reference=None if reference is None else reference_name or "reference",
            reference_median=reference_median,
            reference_samples=reference_samples,
            ratio=None if reference_median is None else median / reference_median,
            torch_version=torch.__version__,
            measured_at=now(),
        )
    return records


def _run(
    targets: Sequence[Target],
    input_BCHW: Tensor,
    device: Device,
    min_repeats: int,
    min_seconds: float,
    max_seconds: float,
) -> tuple[list[int], list[list[float]]]:
    """Warm up and measure; return for each target the number of warm-up runs and the milliseconds of each run."""
    time_once = _time_on_cuda if device.torch_device.type == "cuda" else _time_on_cpu
    start = time.perf_counter()
    warmups = []
    for target in targets:
        runs: list[float] = []
        while not _is_warm(runs) and (not runs or time.perf_counter() - start < max_seconds / 2):
            runs.append(time_once(target, input_BCHW))
        warmups.append(len(runs))

    samples: list[list[float]] = [[] for _ in targets]
    measuring = time.perf_counter()
    rounds = 0
    order = random.Random(0)
    while rounds < min_repeats or time.perf_counter() - measuring < min_seconds:
        for index in order.sample(range(len(targets)), len(targets)):
            if len(targets) > 1:
                targets[index](input_BCHW)  # the run before was another target's, and left its own data in the caches
            samples[index].append(time_once(targets[index], input_BCHW))
        rounds += 1
        if time.perf_counter() - start >= max_seconds:
            break
    return warmups, samples


def _is_warm(runs_ms: list[float]) -> bool:
    if len(runs_ms) < _MIN_WARMUP:
        return False
    return len(runs_ms) >= _MAX_WARMUP or max(runs_ms[-2:]) <= _STABLE * min(runs_ms)


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


def _place(target: Target, device: torch.device) -> Target:
    """Return the target on the device: itself where its weights are there, else a copy."""
    if not isinstance(target, nn.Module):
        return target
    tensors = [*target.parameters(), *target.buffers()]
    return target if all(tensor.device == device for tensor in tensors) else copy.deepcopy(target).to(device)


def _cast(device: Device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.torch_device.type, dtype=_AUTOCAST[precision])


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower and the upper quartile and the 90th percentile."""
    points = torch.tensor([0.25, 0.75, 0.9], dtype=torch.float64)
    lower, upper, p90 = torch.quantile(torch.tensor(values, dtype=torch.float64), points).tolist()
    return lower, upper, p90

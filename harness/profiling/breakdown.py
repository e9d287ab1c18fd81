"""How the time of one forward pass divides among the components of a network (figure 6 of the paper's supplementary).

Protocol `breakdown-1`. After two passes to warm up, passes with and without clocks take turns: at least 5 of each, and
`min_seconds` in all. Networks say which component is at work (models/components.py), the CPU kernels by ticks of the
processor, CUDA by events on the device. The time of a component is its median over the passes with clocks; shares are
those of the sum. `coverage` is that sum over the median without clocks: what the clocks cost, and whether anything is
missing or counted twice, so that it should be within 3 % of 1. `break_down_in_process` measures in a fresh process
while the device is locked.
"""

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.core.configs import Precision
from harness.core.records import BreakdownRecord
from harness.models import SRNetwork
from harness.models.components import COMPONENTS, listening
from harness.profiling.device import Device, chosen_threads, parse_device
from harness.profiling.latency import inference
from harness.profiling.network_state import preserved_training_state

PROTOCOL = "breakdown-1"
_MIN_PASSES = 5


class _Nesting:
    """What both stopwatches do with nested components (a `Listener`): what is inside of another is not of that one."""

    def __init__(self) -> None:
        self._stack = ["rest"]

    def enter(self, component: str) -> None:
        """A component begins, inside of the present one."""
        self._mark(self._stack[-1])
        self._stack.append(component)

    def leave(self) -> None:
        """The present component ends."""
        self._mark(self._stack.pop())

    def _mark(self, component: str) -> None:
        """Note that the time since the last mark was a component's."""
        raise NotImplementedError


class Stopwatch(_Nesting):
    """Divides the time of the clock among components."""

    def __init__(self) -> None:
        super().__init__()
        self.milliseconds: defaultdict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def divide(self, ticks: Sequence[int]) -> None:
        """The time since the last call belongs to all components, in these proportions."""
        elapsed, total = self._elapsed(), sum(ticks)
        for component, part in zip(COMPONENTS, ticks, strict=True):
            self.milliseconds[component] += elapsed * part / total

    def stop(self) -> dict[str, float]:
        """Return the milliseconds of each component until now."""
        self._mark(self._stack[-1])
        return {component: self.milliseconds[component] for component in COMPONENTS}

    def _mark(self, component: str) -> None:
        self.milliseconds[component] += self._elapsed()

    def _elapsed(self) -> float:
        now = time.perf_counter()
        elapsed, self._since = (now - self._since) * 1e3, now
        return elapsed


class CudaStopwatch(_Nesting):
    """Divides a CUDA device's time: an event at each change of components. Nothing waits before `stop`."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._mark("rest")

    def divide(self, ticks: Sequence[int]) -> None:
        """Kernels of the CPU alone know ticks."""
        raise AssertionError("a pass on CUDA by kernels of the CPU")

    def stop(self) -> dict[str, float]:
        """Return the milliseconds of each component until now."""
        self._mark(self._stack[-1])
        torch.cuda.synchronize()
        milliseconds = dict.fromkeys(COMPONENTS, 0.0)
        for (_, start), (component, end) in itertools.pairwise(self._events):
            milliseconds[component] += float(start.elapsed_time(end))
        return milliseconds

    def _mark(self, component: str) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append((component, event))


def measure_breakdown(
    network: SRNetwork,
    input_BCHW: Tensor,
    *,
    device: str = "cpu:1",
    precision: Precision = "fp32",
    min_seconds: float = 3.0,
) -> BreakdownRecord:
    """Divide the time of one forward pass of `network` in eval mode, which must be on `device`, among its components.

    On CUDA all passes launch every operator: graphs (models/graphs.py), which cannot be looked into, are not replayed.
    Raises `UserError` for a device that is not there.
    """
    place = parse_device(device)
    input_BCHW = input_BCHW.to(place.torch_device)
    with preserved_training_state(network), chosen_threads(place.threads), inference(place, precision):
        network.eval()
        divided: list[dict[str, float]] = []
        whole: list[float] = []
        for _ in range(2):
            network.restore(input_BCHW)
        started = time.perf_counter()
        while len(whole) < _MIN_PASSES or time.perf_counter() - started < min_seconds:
            whole.append(sum(_clocked(network, input_BCHW, place, is_divided=False).values()))
            divided.append(_clocked(network, input_BCHW, place, is_divided=True))
    component_ms = {name: statistics.median(one[name] for one in divided) for name in COMPONENTS}
    total_ms = statistics.median(whole)
    return BreakdownRecord(
        protocol=f"{PROTOCOL}: ≥{_MIN_PASSES} passes, ≥{min_seconds:g} s",
        label=network.config.label(),
        device=place.text,
        precision=precision,
        input_size=(input_BCHW.shape[-2], input_BCHW.shape[-1]),
        batch_size=len(input_BCHW),
        component_ms=component_ms,
        total_ms=total_ms,
        coverage=sum(component_ms.values()) / total_ms,
        passes=len(whole),
        component_samples_ms={name: tuple(one[name] for one in divided) for name in COMPONENTS},
        total_samples_ms=tuple(whole),
    )


class _Deaf:
    """A listener that does nothing, so that CUDA passes without clocks launch operators like those with clocks."""

    def enter(self, component: str) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""

    def divide(self, ticks: Sequence[int]) -> None:
        """Do nothing."""


def _clocked(network: SRNetwork, input_BCHW: Tensor, place: Device, *, is_divided: bool) -> dict[str, float]:
    """Return the milliseconds of each component of a pass, all of them under `rest` where it is not divided."""
    is_cuda = place.torch_device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
    watch = CudaStopwatch() if is_cuda else Stopwatch()
    if is_divided or is_cuda:
        with listening(watch if is_divided else _Deaf()):
            network.restore(input_BCHW)
    else:
        network.restore(input_BCHW)
    return watch.stop()

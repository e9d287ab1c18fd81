"""Whether latencies repeat: the same networks measured several times over, on a machine that may be busy.

In each session every network is measured by the protocol of `profiling/latency.py`, in a fresh process beside a fresh
reference, in an order drawn anew (seed 0). The spread of a network is the interquartile range of its ratio to the
reference over the sessions' median; networks are ranked by ratio in each session.
"""

import contextlib
import itertools
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from harness.core.conditions import Conditions
from harness.core.configs import CAMixerSRConfig, FrozenConfig, SwinIRConfig
from harness.core.environment import EnvironmentRecord, now, observe_environment
from harness.core.records import LatencyRecord
from harness.models import build_seeded, describe_kernels
from harness.profiling import Effort, measure_in_processes

PROTOCOL = "repeatability-1"
MAX_SPREAD = 0.05
# What `busy` runs beside: products as large as the caches, one thread, until its parent ends.
_BUSY = """
import os, torch
torch.set_num_threads(1)
parent, factor = os.getppid(), torch.rand(1024, 1024)
while os.getppid() == parent:
    factor @ factor
"""


def default_networks() -> dict[str, CAMixerSRConfig]:
    """Return four networks of the size that searches try; C32 and C34 are within 10 % of each other."""
    return {f"C{channels} 2-2": CAMixerSRConfig(channels=channels, groups=(2, 2)) for channels in (24, 32, 34, 48)}


class RepeatabilityBench(FrozenConfig):
    """What `harness bench repeatability` found, by network; `records` of each are those of the sessions, in order.

    `spread` is IQR / median of the ratio over sessions, `latency_spread` that of the latency itself. `ranks_agree`:
    whether all sessions ranked the networks alike. `closest`: the least ratio of two networks' median latencies, above
    1.
    """

    protocol: str
    environment: EnvironmentRecord
    input_size: tuple[int, int]
    reference: str
    is_busy: bool
    records: dict[str, tuple[LatencyRecord, ...]]
    spread: dict[str, float]
    latency_spread: dict[str, float]
    ranks_agree: bool
    closest: float
    seconds: float
    measured_at: str

    @property
    def repeats(self) -> bool:
        """Whether the spread is at most 5 % everywhere, and all sessions rank alike."""
        return self.ranks_agree and max(self.spread.values()) <= MAX_SPREAD


def measure_repeatability(
    networks: Mapping[str, CAMixerSRConfig],
    effort: Effort,
    *,
    sessions: int = 5,
    input_size: tuple[int, int] = (64, 64),
    device: str = "cpu:1",
    is_busy: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RepeatabilityBench:
    """Measure `networks` (untrained, all of one scale) in so many sessions against SwinIR-light.

    With `is_busy` another process computes on one thread all the while, outside of any lock. Raises `UserError` for a
    device that is not there.
    """
    started = time.perf_counter()
    input_BCHW = torch.rand(1, 3, *input_size, generator=torch.Generator().manual_seed(0))
    scale = next(iter(networks.values())).scale
    reference = build_seeded(SwinIRConfig(scale=scale), seed=0).eval()
    records: dict[str, list[LatencyRecord]] = {name: [] for name in networks}
    order, done = random.Random(0), 0
    with busy_process() if is_busy else contextlib.nullcontext():
        for _ in range(sessions):
            for name in order.sample(list(networks), len(networks)):
                network = build_seeded(networks[name], seed=0).eval()
                measured = measure_in_processes(
                    {name: network},
                    input_BCHW[None],
                    Conditions(device, "eager", "fp32"),
                    effort,
                    reference=reference,
                    reference_name="swinir-light",
                )
                records[name].append(measured[name])
                done += 1
                progress(done, sessions * len(networks))
    ratios = {name: [record.ratio or 0.0 for record in each] for name, each in records.items()}
    latencies = {name: [record.median for record in each] for name, each in records.items()}
    medians = sorted(statistics.median(each) for each in ratios.values())
    return RepeatabilityBench(
        protocol=f"{PROTOCOL}, {records[name][0].protocol}",
        environment=observe_environment(describe_kernels()),
        input_size=input_size,
        reference="swinir-light",
        is_busy=is_busy,
        records={name: tuple(each) for name, each in records.items()},
        spread={name: relative_iqr(each) for name, each in ratios.items()},
        latency_spread={name: relative_iqr(each) for name, each in latencies.items()},
        ranks_agree=ranks_agree(ratios),
        closest=min(larger / smaller for smaller, larger in itertools.pairwise(medians)),
        seconds=time.perf_counter() - started,
        measured_at=now(),
    )


def relative_iqr(values: Sequence[float]) -> float:
    """Return the interquartile range (linearly interpolated) over the median."""
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return (upper - lower) / middle


def ranks_agree(ratios: Mapping[str, Sequence[float]]) -> bool:
    """Whether the networks come in the same order in every session (`ratios`: of each session, by network)."""
    sessions = zip(*ratios.values(), strict=True)
    return len({tuple(sorted(range(len(session)), key=session.__getitem__)) for session in sessions}) == 1


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Have another process compute on one thread while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()

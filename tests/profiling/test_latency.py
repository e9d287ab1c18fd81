"""The protocol, told by ratios and by what targets see; never by absolute times."""

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness.core import device_lock
from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.errors import UserError
from harness.core.records import LatencyRecord
from harness.models import build_model
from harness.profiling.latency import find_drift, measure_latencies, measure_latency

INPUT = torch.zeros(1, 3, 5, 7)


def sleep(seconds: float) -> Callable[[Tensor], Tensor]:
    def target(input_BCHW: Tensor) -> Tensor:
        time.sleep(seconds)
        return input_BCHW

    return target


def recording(name: str, calls: list[str]) -> Callable[[Tensor], Tensor]:
    def target(input_BCHW: Tensor) -> Tensor:
        calls.append(name)
        time.sleep(0.003)
        return input_BCHW

    return target


def test_ratio_and_statistics_of_known_targets() -> None:
    targets = {"slow": sleep(0.02), "slower": sleep(0.03)}
    records = measure_latencies(
        targets, INPUT, reference=sleep(0.01), reference_name="fast", min_repeats=10, min_seconds=0.1
    )
    assert list(records) == ["slow", "slower"]
    slow, slower = records["slow"], records["slower"]
    assert slow.ratio == pytest.approx(2.0, rel=0.2)
    assert slower.ratio == pytest.approx(3.0, rel=0.2)
    assert slow.reference_median is not None
    assert slow.ratio == slow.median / slow.reference_median
    assert slow.reference == "fast"
    assert slow.reference_samples == slower.reference_samples
    assert len(slow.samples) == len(slow.reference_samples) >= 10
    values = torch.tensor(slow.samples, dtype=torch.float64)
    assert slow.median == pytest.approx(float(values.quantile(0.5)))
    assert slow.iqr == pytest.approx(float(values.quantile(0.75) - values.quantile(0.25)))
    assert slow.p90 == pytest.approx(float(values.quantile(0.9)))
    assert min(slow.samples) >= 20.0  # milliseconds
    assert (slow.device, slow.threads, slow.precision, slow.input_size) == ("cpu:1", 1, "fp32", (5, 7))
    assert slow.protocol == "interleaved-3: ≥10 runs, ≥0.1 s, ≤120 s each"


def test_every_timed_run_follows_one_of_its_own_in_an_order_that_changes() -> None:
    """Neither the first place nor a large neighbour costs a target anything."""
    calls: list[str] = []
    targets = {name: recording(name, calls) for name in "abc"}
    reference = targets.pop("c")
    records = measure_latencies(targets, INPUT, reference=reference, min_repeats=40, min_seconds=0)
    assert [len(record.samples) for record in records.values()] == [40, 40]
    measured = calls[-2 * 3 * 40 :]
    warmups = "".join(calls[: -2 * 3 * 40])
    counts = [warmups.count(name) for name in "abc"]
    assert warmups == "".join(name * runs for name, runs in zip("abc", counts, strict=True))
    assert counts[:2] == [records["a"].warmup_runs, records["b"].warmup_runs]
    assert all(3 <= runs <= 20 for runs in counts)
    untimed, timed = measured[::2], measured[1::2]
    assert untimed == timed
    rounds = [tuple(timed[start : start + 3]) for start in range(0, len(timed), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert {order[0] for order in rounds} == {"a", "b", "c"}


def test_warm_up_goes_on_until_runs_are_alike() -> None:
    delays = iter([0.08, 0.04, 0.02] + [0.01] * 100)
    record = measure_latency(lambda x: sleep(next(delays))(x), INPUT, min_repeats=2, min_seconds=0)
    assert record.warmup_runs >= 5
    assert max(record.samples) < 40


def test_the_cap_ends_it_after_one_run_at_the_least() -> None:
    record = measure_latency(sleep(0.02), INPUT, min_repeats=1000, max_seconds=0.01)
    assert (record.warmup_runs, len(record.samples)) == (1, 1)
    assert (record.is_capped, record.is_warm, record.max_seconds) == (True, False, 0.01)
    assert (record.reference, record.reference_median, record.ratio) == (None, None, None)


class Probe(nn.Module):
    """Notes what the world looks like from inside a measured run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 7)
        self.dropout = nn.Dropout()
        self.seen: list[tuple[bool, bool, int, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.linear(x))
        self.seen.append((self.dropout.training, torch.is_inference_mode_enabled(), torch.get_num_threads(), y.dtype))
        return y


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_runs_see_the_asked_for_state_and_leave_none(precision: str, dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    asked = os.cpu_count() or 1
    network = Probe().train()
    network.linear.eval()
    record = measure_latency(
        network,
        INPUT,
        device=f"cpu:{asked}",
        precision=precision,  # type: ignore[arg-type]
        min_repeats=2,
        min_seconds=0,
    )
    assert set(network.seen) == {(False, True, asked, dtype)}
    assert (record.threads, record.precision) == (asked, precision)
    assert [module.training for module in network.modules()] == [True, False, True]
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert network.linear.weight.dtype == torch.float32
    assert not network.linear.weight.is_inference()


def test_state_is_restored_when_a_target_fails() -> None:
    network = nn.Sequential(nn.Linear(3, 3)).train()  # does not fit an input of width 7
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure_latency(network, INPUT)
    assert network.training
    assert (torch.get_num_threads(), torch.is_inference_mode_enabled()) == (threads, False)


def test_one_network_under_several_routings_shares_its_weights() -> None:
    network = build_model(CAMixerSRConfig(channels=8, groups=(1,), window=4))
    targets: dict[str, nn.Module] = {}
    for gamma in (0.0, 1.0):
        point = copy.copy(network)
        point.routing = RoutingConfig(gamma=gamma)  # type: ignore[assignment]
        targets[f"γ={gamma:g}"] = point
    input_BCHW = torch.rand(1, 3, 16, 16)
    records = measure_latencies(targets, input_BCHW, reference=network, min_repeats=3, min_seconds=0)
    assert set(records) == {"γ=0", "γ=1"}
    assert all(len(record.samples) == 3 for record in records.values())


def test_a_network_trains_after_it_was_measured() -> None:
    network = build_model(CAMixerSRConfig(channels=8, groups=(1,), window=4))
    measure_latency(network, torch.rand(1, 3, 8, 8), min_repeats=1, min_seconds=0)
    network.train()
    network(torch.rand(1, 3, 8, 8)).sum().backward()
    assert any(parameter.grad is not None for parameter in network.parameters())


def test_mistakes_are_refused() -> None:
    with pytest.raises(UserError, match="min_repeats"):
        measure_latency(sleep(0), INPUT, min_repeats=0)
    with pytest.raises(UserError, match="expected cpu:THREADS"):
        measure_latency(sleep(0), INPUT, device="tpu")


def test_long_runs_need_no_untimed_one() -> None:
    calls: list[str] = []

    def slow(input_BCHW: Tensor) -> Tensor:
        calls.append("slow")
        time.sleep(0.25)
        return input_BCHW

    record = measure_latency(slow, INPUT, reference=recording("fast", calls), min_repeats=2, min_seconds=0)
    assert calls.count("slow") == record.warmup_runs + 2
    assert not record.is_capped


def test_a_reference_that_drifts_is_measured_again_and_then_marked() -> None:
    """A reference that gets slower from run to run is noisy in each of three runs; the last drifts least."""
    durations = (0.002 + 0.0005 * index for index in range(1000))
    record = measure_latency(
        sleep(0.002), INPUT, reference=lambda x: sleep(next(durations))(x), min_repeats=10, min_seconds=0
    )
    assert (record.is_noisy, record.attempts) == (True, 3)
    assert record.reference_drift is not None
    assert record.reference_drift > 0.05
    assert record.reference_samples[0] > 20  # of the last run: the first began at 2 ms


def test_a_disturbance_that_passes_is_measured_again() -> None:
    """Slow for the second half of the first run only: the second run is kept, and is not noisy."""
    calls = iter(range(1000))

    def reference(input_BCHW: Tensor) -> Tensor:
        time.sleep(0.12 if 15 <= next(calls) < 23 else 0.04)  # so long that a busy machine adds little to it
        return input_BCHW

    record = measure_latency(sleep(0.04), INPUT, reference=reference, min_repeats=10, min_seconds=0)
    assert (record.is_noisy, record.attempts) == (False, 2)
    assert max(record.reference_samples) < 120


def test_the_cap_leaves_a_noisy_run_unrepeated() -> None:
    durations = (0.005 * index for index in range(1, 1000))
    record = measure_latency(
        sleep(0.001),
        INPUT,
        reference=lambda x: sleep(next(durations))(x),
        min_repeats=8,
        min_seconds=0,
        max_seconds=1.5,
    )
    assert (record.is_noisy, record.attempts) == (True, 1)


def test_drift_compares_the_halves() -> None:
    assert find_drift([1, 1, 1, 2, 2, 2]) == 1.0
    assert find_drift([2, 2, 9, 1, 1]) == pytest.approx(0.5)  # the sample in the middle belongs to neither
    assert find_drift([1, 2, 1]) == 0.0


def test_a_measurement_waits_for_a_training_step() -> None:
    """Another process computes: the record says that it was waited for."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom harness.core.device_lock import computing\n"
        "with computing(folder=Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(0.5)\n"
    )
    command = [sys.executable, "-c", script, str(device_lock.lock_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        record = measure_latency(sleep(0.001), INPUT, min_repeats=2, min_seconds=0)
    assert record.lock_wait_seconds is not None
    assert record.lock_wait_seconds > 0.1


def test_records_say_where_they_were_made() -> None:
    record = measure_latency(sleep(0.001), INPUT, reference=sleep(0.001), min_repeats=10, min_seconds=0)
    fingerprint = record.fingerprint
    assert fingerprint is not None
    assert (fingerprint.device, fingerprint.threads) == ("cpu:1", 1)
    assert fingerprint.usable_cores <= fingerprint.cpu_count
    assert fingerprint.digest == fingerprint.config_hash()
    assert (record.process, record.runtime, record.protocol_name) == ("shared", "eager", "interleaved-3")
    assert record.conditions == "cpu:1/eager/fp32/5x7"
    assert record.interval is not None
    assert record.ratio_interval is not None
    assert record.ratio is not None
    assert record.interval[0] <= record.median <= record.interval[1]
    assert record.ratio_interval[0] <= record.ratio <= record.ratio_interval[1]
    assert LatencyRecord.model_validate_json(record.model_dump_json()) == record

"""How the time of a pass divides among components."""

import time

import pytest
import torch

from harness.core.configs import CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.models import SRNetwork
from harness.models.components import COMPONENTS, component, is_listening, listening, part_of
from harness.profiling import chosen_threads, measure_breakdown
from harness.profiling.breakdown import Stopwatch
from harness.trial import build_seeded, routed

INPUT = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def camixersr(gamma: float) -> SRNetwork:
    network = build_seeded(CAMixerSRConfig(channels=24, groups=(1, 1)), seed=0).eval()
    return routed(network, RoutingConfig(gamma=gamma))


def test_nested_components_have_their_own_time_and_none_is_lost() -> None:
    @part_of("ffn")
    def work() -> None:
        time.sleep(0.02)

    watch, started = Stopwatch(), time.perf_counter()
    with listening(watch):
        with component("attention"):
            time.sleep(0.01)
            work()
            with pytest.raises(KeyError), component("norms"):
                raise KeyError  # an error leaves its component
        work()
    milliseconds = watch.stop()
    elapsed = (time.perf_counter() - started) * 1e3
    assert sum(milliseconds.values()) == pytest.approx(elapsed, rel=0.01)
    assert milliseconds["ffn"] >= 40
    assert 10 <= milliseconds["attention"] < milliseconds["ffn"]
    assert milliseconds["predictor"] == milliseconds["convolution"] == 0
    assert not is_listening()


def test_time_is_divided_in_proportion_to_ticks() -> None:
    watch = Stopwatch()
    time.sleep(0.01)
    watch.divide([3, 1, 0, 0, 0, 0])
    milliseconds = watch.stop()
    assert milliseconds["predictor"] == pytest.approx(3 * milliseconds["attention"])
    assert milliseconds["ffn"] == 0


@pytest.mark.parametrize("is_literal", [False, True])
def test_every_component_of_camixersr_takes_time(is_literal: bool) -> None:
    """By the kernels and operator by operator; γ = 0 leaves attention less to do."""
    attention = []
    for gamma in (1.0, 0.0):
        network = camixersr(gamma)
        network.is_literal = is_literal
        record = measure_breakdown(network, INPUT, min_seconds=0.2)
        assert tuple(record.component_ms) == COMPONENTS
        assert min(record.component_ms.values()) > 0
        assert sum(record.shares.values()) == pytest.approx(1)
        attention.append(record.component_ms["attention"])
    assert attention[1] < attention[0]


def test_ticks_of_all_threads_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.models.fused.maps._LEAST_VALUES", 1)  # small maps are worth two threads then
    watch, network = Stopwatch(), camixersr(0.5)
    with chosen_threads(2), torch.inference_mode(), listening(watch):
        network.restore(INPUT)
    assert min(watch.stop().values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("is_literal", [False, True])
@pytest.mark.parametrize("config", [CAMixerSRConfig(channels=36), SwinIRConfig()], ids=["CAMixerSR", "SwinIR-light"])
def test_components_add_up_to_the_pass_without_clocks(config: CAMixerSRConfig | SwinIRConfig, is_literal: bool) -> None:
    """Within 3 %: the best of three attempts, for the machine may be busy."""
    network = build_seeded(config, seed=0).eval()
    network.is_literal = is_literal
    coverages = []
    for _ in range(3):
        coverages.append(measure_breakdown(network, torch.rand(1, 3, 96, 96), min_seconds=5).coverage)
        if abs(coverages[-1] - 1) <= 0.03:
            return
    pytest.fail(f"components are {coverages} of the pass")


def test_swinir_has_no_predictor() -> None:
    network = build_seeded(SwinIRConfig(embed_dim=12, depths=(2,), num_heads=2), seed=0).eval()
    record = measure_breakdown(network, INPUT, min_seconds=0.2)
    assert record.component_ms["predictor"] == 0
    assert min(record.component_ms[name] for name in COMPONENTS if name != "predictor") > 0


def test_who_listens_changes_nothing() -> None:
    network = camixersr(0.5)
    with torch.inference_mode():
        expected = network.restore(INPUT).image_BCHW
        with listening(Stopwatch()):
            observed = network.restore(INPUT).image_BCHW
    assert torch.equal(observed, expected)

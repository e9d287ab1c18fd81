"""`harness bench` on tiny networks: what it says of the machine fits together, and a broken path stops it."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.bench import (
    BrokenPathError,
    Effort,
    InferenceCase,
    TrainingCase,
    check_inference,
    check_training,
    default_cases,
    measure_inference,
    measure_training,
)
from harness.cli.bench import print_inference, print_training
from harness.core.configs import CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.models import CAMixerSR, Restoration, SRNetwork
from harness.models.fused import camixersr as fused_camixersr
from harness.models.fused import swinir as fused_swinir
from harness.models.swinir import SwinIR
from harness.profiling import canonical_macs, parse_device
from tests.cli.conftest import Call
from tests.photographs import Photographs
from tests.search.test_simulation import SETTINGS, rows, written
from tests.spaces import tiny_space, write_space
from tests.tiny_pairs import TRAIN, tiny_pairs

TINY = CAMixerSRConfig(channels=8, window=4, groups=(1, 1))
TINY_SWINIR = SwinIRConfig(depths=(2,), embed_dim=12, num_heads=3)
CASES = (
    InferenceCase(name="tiny", model=TINY, input_size=(12, 16), bf16_gammas=(0.5,)),
    InferenceCase(name="swin", model=TINY_SWINIR, input_size=(12, 16), bf16_gammas=(None,)),
)
EFFORT = Effort(rounds=5, max_seconds=60, turn_seconds=0.002)


def test_inference_is_measured_on_every_path(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    threads = torch.get_num_threads()
    (bench,) = measure_inference(CASES, EFFORT, sides=(32, 64), progress=lambda *done: told.append(done))
    assert torch.get_num_threads() == threads
    assert told[-1] == (6, 6)
    assert set(bench.peaks) == {"fp32", "bf16"}
    for dtype, peak in bench.peaks.items():
        assert set(peak.best_by_side) == {32, 64}
        assert peak.gflops_per_s == max(peak.best_by_side.values())
        fastest = min(bench.product_times[f"mm {dtype} {peak.side}"].samples_ms)
        assert peak.gflops_per_s == pytest.approx(2 * peak.side**3 / fastest / 1e6)
    *rows, swin = bench.networks
    assert [row.gamma for row in rows] == [1, 0.5, 0.25, 0]
    full = rows[0]
    for row in rows:
        assert row.gamma is not None
        assert row.macs == canonical_macs(TINY.with_routing(RoutingConfig(gamma=row.gamma)), (12, 16))
        assert row.peak_share == pytest.approx(
            2 * row.macs / 1e6 / row.times.median_ms / bench.peaks["fp32"].gflops_per_s
        )
        assert row.time_over_full == pytest.approx(row.times.median_ms / full.times.median_ms)
        assert row.macs_over_full == pytest.approx(row.macs / full.macs)
        assert (row.bf16_ratio is not None) == (row.bf16_peak_share is not None) == (row.gamma == 0.5)
    for row in bench.networks:
        ratios = {"operators": row.operators_ratio, "literal": row.literal_ratio, "bf16": row.bf16_ratio}
        for way, times in row.other_times.items():
            assert ratios[way] == pytest.approx(times.median_ms / row.times.median_ms)
            assert way == "bf16" or len(times.samples_ms) < len(row.times.samples_ms)
    assert (swin.gamma, swin.time_over_full, swin.macs_over_full) == (None, None, None)
    assert set(swin.other_times) == {"operators", "literal", "bf16"}
    assert swin.peak_share > 0
    assert bench.largest_difference <= 1e-4
    assert 0 < bench.largest_bf16_error < 0.02
    assert bench.machine.threads == 1
    assert bench.core_share is not None
    assert 0 < bench.core_share < 1.1
    assert "≤5 rounds" in bench.protocol
    assert bench.environment.packages["torch"]
    json.dumps(bench.model_dump(mode="json"), allow_nan=False)
    print_inference(bench)
    printed = capfd.readouterr().out
    assert printed.index("GFLOP/s") < printed.index("γ=1")  # the peak comes first
    for text in (bench.machine.fingerprint, "tiny, 12×16", "swin, 12×16", "word for word", "1 thread:"):
        assert text in printed
    # One table: the peak's two rows, four γ, one row of what does not route.
    assert sum(line.startswith("│") for line in printed.splitlines()) == 2 + 4 + 1


def test_training_is_measured_on_every_path(capfd: pytest.CaptureFixture[str]) -> None:
    case = TrainingCase(name="tiny", model=TINY, batch_size=2, patch_size=8)
    (bench,) = measure_training(case, tiny_pairs(TRAIN, 4), EFFORT, sides=(32,))
    assert set(bench.times) == set(bench.images_per_second) == {"literal", "dense", "default"}
    assert bench.ratio["literal"] == 1
    for name, rate in bench.images_per_second.items():
        assert rate == pytest.approx(2e3 / bench.times[name].median_ms)
        assert bench.ratio[name] == pytest.approx(rate / bench.images_per_second["literal"])
        assert bench.dense_ratio[name] == pytest.approx(rate / bench.images_per_second["dense"])
        assert bench.peak_share[name] > 0
    assert 0 <= bench.attention_share <= 1
    assert bench.loader_share == pytest.approx(bench.loader.median_ms / bench.times["default"].median_ms)
    json.dumps(bench.model_dump(mode="json"), allow_nan=False)
    print_training(bench)
    printed = capfd.readouterr().out
    for text in (
        "images/s",
        "× word for word",
        "× dense",
        "dense, optimised",
        "default",
        "loader (tiny)",
        bench.machine.fingerprint,
    ):
        assert text in printed


def test_json_is_one_document(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    case = InferenceCase(name="tiny", model=TINY, input_size=(8, 8), gammas=(1.0,))
    monkeypatch.setattr("harness.bench.default_cases", lambda: (case,))
    monkeypatch.setattr("harness.bench.peak.PEAK_SIDES", (64,))
    outcome = call("bench", "inference", "--quick", "--threads", "1", "--json")
    assert outcome.err == "" or outcome.err.startswith("note: this process had ")
    common = {
        "protocol",
        "machine",
        "environment",
        "peaks",
        "largest_difference",
        "core_share",
        "seconds",
        "measured_at",
    }
    assert set(outcome.document) == common | {"networks", "product_times", "largest_bf16_error"}
    machine = outcome.document["machine"]
    assert (machine["device"], machine["threads"], len(machine["fingerprint"])) == ("cpu:1", 1, 12)
    assert outcome.document["environment"]["packages"]["torch"] == torch.__version__
    small = TrainingCase(name="tiny", model=TINY, batch_size=2, patch_size=8)
    monkeypatch.setattr("harness.bench.default_training_case", lambda: small)
    outcome = call("bench", "training", "--quick", "--json")
    assert outcome.err == "" or outcome.err.startswith("note: this process had ")
    assert common <= set(outcome.document)
    assert outcome.document["dataset"] == "demo"
    assert outcome.document["loader_share"] > 0


def test_equal_machines_have_equal_fingerprints_and_threads_matter() -> None:
    from harness.bench.rounds import describe_machine

    one = describe_machine(parse_device("cpu:1"))
    assert one == describe_machine(parse_device("cpu"))
    if (os.cpu_count() or 1) > 1:
        assert one.fingerprint != describe_machine(parse_device("cpu:2")).fingerprint


def test_kernels_are_named_and_tell_machines_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.bench.rounds import describe_machine

    machines = []
    for kernels in (None, "avx2"):
        monkeypatch.setattr("harness.bench.rounds.describe_kernels", lambda kernels=kernels: kernels)
        machines.append(describe_machine(parse_device("cpu")))
    assert [machine.kernels for machine in machines] == [None, "avx2"]
    assert machines[0].fingerprint != machines[1].fingerprint


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the machine has one core")
def test_each_count_of_threads_is_a_bench_with_its_own_peak(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    case = InferenceCase(name="tiny", model=TINY, input_size=(8, 8), gammas=(1.0,))
    monkeypatch.setattr("harness.bench.default_cases", lambda: (case,))
    monkeypatch.setattr("harness.bench.peak.PEAK_SIDES", (64,))
    threads = torch.get_num_threads()
    benches = call("bench", "inference", "--quick", "--threads", "2,1", "--json").document
    assert torch.get_num_threads() == threads
    assert [bench["machine"]["threads"] for bench in benches] == [2, 1]
    assert len({bench["machine"]["fingerprint"] for bench in benches}) == 2
    assert all(bench["peaks"]["fp32"]["gflops_per_s"] > 0 and bench["networks"] for bench in benches)


Corrupt = Callable[[type[SRNetwork], Callable[[Any], None]], None]


@pytest.fixture
def corrupt(monkeypatch: pytest.MonkeyPatch) -> Corrupt:
    """Let a family's default path run on changed weights, whichever way it is computed; the oracle keeps its own."""

    def corrupt_family(family: type[SRNetwork], change: Callable[[Any], None]) -> None:
        restore = family.restore

        def restore_wrong(self: SRNetwork, *arguments: Any, **settings: Any) -> Restoration:
            if self.is_literal:
                return restore(self, *arguments, **settings)
            changed = copy.deepcopy(self)
            with torch.inference_mode(mode=torch.is_inference_mode_enabled()), torch.no_grad():
                change(changed)
                return restore(changed, *arguments, **settings)

        monkeypatch.setattr(family, "restore", restore_wrong)

    return corrupt_family


def change_a_weight(network: Any) -> None:
    """Change one weight of many: of the query's projection."""
    block = network.groups[0].blocks[0]
    weight = block.mixer.query.weight if isinstance(network, CAMixerSR) else block.attention.qkv.weight
    weight[0, 0] += 0.5


def exchange_hard_and_simple(network: Any) -> None:
    for group in network.groups:
        for block in group.blocks:
            out = block.mixer.predictor.routing_out
            out.weight.copy_(out.weight.flip(0))
            out.bias.copy_(out.bias.flip(0))


@pytest.mark.parametrize(
    ("family", "config", "name", "tiny"),
    [
        (CAMixerSR, CAMixerSRConfig, "C60 groups 4-4-6-6 M16, fixed γ=1", "C8 groups 1-1 M4, fixed γ=1"),
        (SwinIR, SwinIRConfig, "SwinIR-light", "SwinIR C12 depths 2"),
    ],
    ids=["CAMixerSR", "SwinIR"],
)
def test_a_wrong_weight_is_noticed_before_anything_is_timed(
    call: Call,
    corrupt: Corrupt,
    monkeypatch: pytest.MonkeyPatch,
    family: type[SRNetwork],
    config: type,
    name: str,
    tiny: str,
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("something was timed")

    monkeypatch.setattr("harness.bench.rounds._time_on_cpu", fail)
    cases = [case for case in default_cases() if isinstance(case.model, config)]
    monkeypatch.setattr("harness.bench.default_cases", lambda: cases)
    corrupt(family, change_a_weight)
    with pytest.raises(BrokenPathError, match=rf"^{tiny}, default inference: off by .* of full scale"):
        measure_inference(CASES, EFFORT, sides=(32,))
    outcome = call("bench", "inference", "--quick")
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"harness: error: {name}, default inference: off by ")
    assert "nothing was timed" in outcome.err


@pytest.mark.parametrize(
    ("reader", "weight", "config"),
    [(fused_camixersr, "query_weight", TINY), (fused_swinir, "qkv_weight", TINY_SWINIR)],
    ids=["CAMixerSR", "SwinIR"],
)
def test_a_weight_that_the_kernels_alone_read_wrong_is_noticed(
    monkeypatch: pytest.MonkeyPatch, reader: ModuleType, weight: str, config: CAMixerSRConfig | SwinIRConfig
) -> None:
    read = reader._parameters

    def misread(block: Any) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in read(block):
            if name == weight:
                parameter = parameter.clone()
                parameter[0, 0] += 0.5
            yield name, parameter

    monkeypatch.setattr(reader, "_parameters", misread)
    with pytest.raises(BrokenPathError, match="default inference: off by"):
        check_inference(config, parse_device("cpu"))


@pytest.mark.parametrize("config", [TINY, TINY_SWINIR], ids=["CAMixerSR", "SwinIR"])
def test_what_goes_wrong_in_bfloat16_alone_is_noticed(corrupt: Corrupt, config: CAMixerSRConfig | SwinIRConfig) -> None:
    """Such as a bias that is left out; one weight of many drowns in the rounding."""

    def forget_a_bias(network: Any) -> None:
        if torch.is_autocast_enabled("cpu"):
            network.groups[0].blocks[0].norm1.bias.zero_()

    corrupt(CAMixerSR if isinstance(config, CAMixerSRConfig) else SwinIR, forget_a_bias)
    with pytest.raises(BrokenPathError, match=r"default inference in bfloat16: off by .* times the .* word for word"):
        check_inference(config, parse_device("cpu"))


@pytest.mark.parametrize("config", [TINY, TINY_SWINIR], ids=["CAMixerSR", "SwinIR"])
def test_what_goes_wrong_in_large_images_alone_is_noticed(
    corrupt: Corrupt, config: CAMixerSRConfig | SwinIRConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = CAMixerSR if isinstance(config, CAMixerSRConfig) else SwinIR
    restore = family.restore

    def lose_a_row(self: Any, input_BCHW: torch.Tensor, **settings: Any) -> Restoration:
        restored = restore(self, input_BCHW, **settings)
        if input_BCHW.shape[-2] > 100:
            restored.image_BCHW[:, :, 400] = 0
        return restored

    monkeypatch.setattr(family, "restore", lose_a_row)
    with pytest.raises(BrokenPathError, match=r"default inference of a tall image: off by"):
        check_inference(config, parse_device("cpu"))


def test_other_windows_are_noticed(corrupt: Corrupt) -> None:
    corrupt(CAMixerSR, exchange_hard_and_simple)
    with pytest.raises(BrokenPathError, match="default inference: off by"):
        check_inference(TINY, parse_device("cpu"), [RoutingConfig(gamma=0.25)])
    with pytest.raises(BrokenPathError, match="attends to other windows"):
        check_inference(TINY, parse_device("cpu"), [RoutingConfig(policy="threshold")])


def test_wrong_gradients_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_training(TINY, parse_device("cpu")) <= 1e-4
    restore = CAMixerSR.restore

    def forget_the_masks_gradient(self: CAMixerSR, *arguments: Any, **settings: Any) -> Restoration:
        image_BCHW, share_SB = restore(self, *arguments, **settings)
        return Restoration(image_BCHW, share_SB.detach())

    monkeypatch.setattr(CAMixerSR, "restore", forget_the_masks_gradient)
    with pytest.raises(BrokenPathError, match=r"default training: the gradient of .* is off by"):
        check_training(TINY, parse_device("cpu"))


def test_mistakes_take_one_line(call: Call) -> None:
    assert "no such CUDA device" in call("bench", "inference", "--device", "cuda:99").mistake
    assert (
        "--threads 2 goes with --device cpu" in call("bench", "training", "--threads", "2", "--device", "cuda").mistake
    )
    for threads in ("1,x", "1,1", "", "2,"):
        assert "such as 1,2" in call("bench", "inference", "--threads", threads).mistake
    assert "asks for 0 threads" in call("bench", "inference", "--threads", "0").mistake
    assert "--threads 1,2 goes with" in call("bench", "inference", "--threads", "1,2", "--device", "cpu:1").mistake
    case = TrainingCase(name="tiny", model=TINY, batch_size=2, patch_size=64)
    with pytest.raises(UserError, match="no image of tiny"):
        measure_training(case, tiny_pairs(TRAIN, 4), EFFORT)


def test_samplers_are_replayed_on_a_table(call: Call, tmp_path: Path) -> None:
    """What is asked for, and no more; how far it is on stderr; and nothing is cut off where no terminal is."""
    table = written(tmp_path / "table.csv", rows(0.0))
    space = write_space(tmp_path / "space.yaml", {**SETTINGS, "stopping": {"grace_steps": 10, "factor": 3}})
    command = ("bench", "search", table, "--space", space, "--seeds", "2", "--samplers", "random")
    plain = call(*command, "--networks", "3", "--stopping", "none")
    assert plain.code == 0
    assert "early stopping: none\n" in plain.err
    assert plain.err.splitlines()[-1] == "4 of 4 studies replayed"
    assert "from 10" not in plain.out
    stopping = call(*command, "--networks", "3")
    assert f"early stopping: from 10, best 1/3 (that of the space {space})\n" in stopping.err
    assert stopping.err.splitlines()[-1] == "6 of 6 studies replayed"
    assert "from 10, best 1/3" in stopping.out
    assert "…" not in stopping.out
    assert "--networks 37: " in (refused := call(*command, "--networks", "37").mistake)
    assert "is of 36 networks" in refused
    assert "none would be stopped" in call(*command, "--networks", "3", "--stopping", "90:3").mistake


@pytest.mark.slow
def test_a_table_that_was_cut_off_is_completed(call: Call, tmp_path: Path, photographs: Photographs) -> None:
    dimensions = {"model.channels": {"choices": [8, 12]}, "routing.gamma": {"choices": [0.0, 1.0]}}
    space = write_space(tmp_path / "tiny.yaml", tiny_space(photographs, dimensions=dimensions))
    results = ["--results", tmp_path / "results", "--workers", "1"]
    first = call("bench", "table", space, *results)
    assert "6 trainings of 2 steps" in first.out, first
    whole = tmp_path / "results" / "bench-search" / "table.csv"
    lines = whole.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 6 * 2
    cut = tmp_path / "cut.csv"
    cut.write_text("\n".join(lines[:-1]), encoding="utf-8")
    out = tmp_path / "completed.csv"
    completed = call("bench", "table", space, *results, "--study", "again", "--known", cut, "--out", out)
    assert "1 trainings of 2 steps" in completed.out, completed
    assert len(out.read_text(encoding="utf-8").splitlines()) == len(lines)
    assert call("bench", "search", out, "--space", space, "--seeds", "2", "--networks", "2").code == 0
    cut.write_text(lines[0] + "\n" + lines[1].replace(",0,", ",zero,", 1), encoding="utf-8")
    for refused in (
        call("bench", "table", space, *results, "--known", cut),
        call("bench", "search", cut, "--space", space),
    ):
        assert refused.code == 2
        assert "cut.csv, line 2: seed is 'zero'; expected a whole number" in refused.mistake

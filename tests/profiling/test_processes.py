"""Networks measured in processes of their own: what they are told, what they see, how they end."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from torch import Tensor, nn

from harness.bench.repeatability import busy_process
from harness.core.conditions import Conditions, Runtime
from harness.core.configs import BicubicConfig, CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.models import SRNetwork, build_model
from harness.profiling import Effort, load_target, measure_in_processes, parse_device, parse_target
from harness.profiling.processes import NetworkProcess

SMALL = CAMixerSRConfig(channels=8, groups=(1, 1), window=4, scale=2)
TINY_SWINIR = SwinIRConfig(embed_dim=12, depths=(2,), num_heads=2, window=4, scale=2)
EFFORT = Effort(min_repeats=4, min_seconds=0.0)


def network(config: CAMixerSRConfig | SwinIRConfig | BicubicConfig) -> SRNetwork:
    return build_model(config).eval()


@pytest.mark.slow
def test_routings_of_a_network_beside_a_reference() -> None:
    routings = {f"γ={gamma:g}": RoutingConfig(policy="probability", gamma=gamma) for gamma in (0.0, 1.0)}
    torch.manual_seed(0)
    state = network(SMALL).state_dict()
    networks = {}
    for name, routing in routings.items():
        networks[name] = network(SMALL.with_routing(routing))
        networks[name].load_state_dict(state)
    inputs_NBCHW = torch.rand(3, 2, 3, 32, 48)
    records = measure_in_processes(
        networks,
        inputs_NBCHW,
        Conditions("cpu:1"),
        EFFORT,
        reference=network(TINY_SWINIR),
        images=("a", "b"),
        with_memory=True,
    )
    assert list(records) == list(routings)
    plain, attended = records.values()
    assert [record.attention_share for record in records.values()] == [0.0, 1.0]
    assert plain.reference_samples == attended.reference_samples
    assert len(plain.samples) == 4
    assert (plain.process, plain.images, plain.batch_size, plain.input_size) == ("fresh", ("a", "b"), 2, (32, 48))
    assert plain.reference == TINY_SWINIR.label()
    assert plain.model_hash == networks["γ=0"].config.config_hash()
    assert plain.fingerprint is not None
    assert (plain.fingerprint.threads, plain.fingerprint.omp_num_threads) == (1, "1")
    assert plain.peak_memory_bytes is not None
    assert attended.peak_memory_bytes is None
    assert plain.peak_memory_bytes >= 2 * 3 * 64 * 96 * 4  # the images that come out


def test_the_process_runs_the_very_weights() -> None:
    """The share of attention under `probability` depends on the weights and the image: it is that of this process."""
    torch.manual_seed(3)
    ours = network(SMALL.with_routing(RoutingConfig(policy="threshold")))
    inputs_NBCHW = torch.rand(1, 1, 3, 16, 16)
    with torch.inference_mode():
        expected = ours.restore(inputs_NBCHW[0]).hard_share_SB.mean().item()
    record = measure_in_processes({"ours": ours}, inputs_NBCHW, Conditions("cpu:1"), Effort(1, 0.0))["ours"]
    assert record.attention_share == pytest.approx(expected)
    assert (record.reference, record.ratio, record.ratio_interval) == (None, None, None)


def test_mistakes_inside_are_the_users_and_deaths_are_told() -> None:
    with NetworkProcess(parse_device("cpu:1")) as process:
        with pytest.raises(UserError, match="unknown runtime 'fast'"):
            process.ask(
                do="load", device="cpu:1", runtime="fast", precision="fp32", networks=[], inputs="nowhere.safetensors"
            )
        with pytest.raises(RuntimeError, match=r"nowhere\.safetensors"):
            process.ask(
                do="load", device="cpu:1", runtime="eager", precision="fp32", networks=[], inputs="nowhere.safetensors"
            )
        process._process.kill()
        with pytest.raises(RuntimeError, match=r"exit code -9.*killed, perhaps for want of memory"):
            process.ask(do="run", network=0, round=0, untimed=False)


def test_it_ends_with_the_process_that_asked() -> None:
    """Killed without a chance to clean up, the parent leaves nobody behind."""
    script = (
        "import time\nfrom harness.profiling import parse_device\n"
        "from harness.profiling.processes import NetworkProcess\n"
        "process = NetworkProcess(parse_device('cpu:1'))\nprint(process._process.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["compile", "onnxruntime", "openvino"])
@pytest.mark.parametrize("config", [SMALL, TINY_SWINIR], ids=["camixersr", "swinir"])
def test_runtimes_restore_the_same_images(runtime: Runtime, config: CAMixerSRConfig | SwinIRConfig) -> None:
    if runtime in ("onnxruntime", "openvino") and importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    record = measure_in_processes(
        {"ours": network(config)}, torch.rand(1, 1, 3, 16, 16), Conditions("cpu:1", runtime), EFFORT
    )["ours"]
    assert record.runtime == runtime
    assert record.output_error is not None
    assert record.output_error < 1e-4
    assert record.fingerprint is not None
    assert (record.fingerprint.runtime_version is None) == (runtime == "compile")


def test_cores_are_those_of_the_affinity() -> None:
    record = measure_in_processes(
        {"bicubic": network(BicubicConfig())}, torch.rand(1, 1, 3, 8, 8), Conditions("cpu:1"), Effort(1, 0.0)
    )["bicubic"]
    assert record.fingerprint is not None
    assert record.fingerprint.usable_cores == len(os.sched_getaffinity(0))
    assert record.attention_share is None


class OnlyHere(nn.Conv2d):
    """A network that runs in this process and in no other."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if os.getpid() != int(os.environ["HARNESS_TEST_PID"]):
            if os.environ["HARNESS_TEST_DIES"]:
                os._exit(3)
            raise ValueError("not in\nthis process")
        return super().forward(x_BCHW)


@pytest.mark.parametrize(("dies", "reason"), [("", "ValueError: not in"), ("yes", "exit code 3")])
def test_a_network_of_anybodys_that_fails_in_its_process_is_the_users_to_mend(
    dies: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_TEST_PID", str(os.getpid()))
    monkeypatch.setenv("HARNESS_TEST_DIES", dies)
    spec = parse_target(f"{__name__}:OnlyHere")
    assert spec is not None
    target = load_target(spec)
    with pytest.raises(UserError, match=reason) as caught:
        measure_in_processes({"it": target}, torch.rand(1, 1, 3, 8, 8), Conditions("cpu:1"), EFFORT)
    assert "OnlyHere" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "memory" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to a core")
def test_a_shared_core_is_noticed() -> None:
    """Another process on the only core: the record says so, though no half of the samples differs from the other."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        with busy_process():
            time.sleep(2)  # it is importing torch, and takes its share of the core by that too
            measured = measure_in_processes(
                {"it": network(CAMixerSRConfig(channels=36, groups=(2, 2)))},
                torch.rand(1, 1, 3, 96, 96),
                Conditions("cpu:1"),
                Effort(min_repeats=6, min_seconds=0.5),
            )
    finally:
        os.sched_setaffinity(0, usable)
    record = measured["it"]
    assert record.core_share is not None
    assert record.core_share < 0.9
    assert record.is_noisy

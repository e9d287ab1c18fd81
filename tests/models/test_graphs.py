"""Recorded passes: which are the same, when they are recorded, forgotten and void; and on CUDA what they give.

Where no CUDA device is needed the recording is one that computes the pass again in the same place for its input.
"""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.core.configs import AnyModelConfig, CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.models import CAMixerSR, Restoration, SRNetwork, build_model, graphs, restore_tiled
from harness.models.graphs import PassKey, Recordings, key_of, suits
from tests.models.test_literal import build, images

CONFIG = CAMixerSRConfig(scale=2, groups=(1, 1), channels=8, window=4)


class Recomputed:
    """A recording without CUDA: one place for the input, as in a graph, and the pass computed again from there."""

    def __init__(self, run: graphs.Pass, input_BCHW: Tensor):
        self.run, self.input_BCHW = run, input_BCHW.clone()
        self.replays = 0

    def replay(self, input_BCHW: Tensor) -> Restoration:
        self.replays += 1
        self.input_BCHW.copy_(input_BCHW)
        return self.run(self.input_BCHW)


class Bench:
    """A network, its recordings, and how often a pass ran as it is, was recorded and was replayed."""

    def __init__(self, network: SRNetwork | None = None):
        self.network = build(**CONFIG.model_dump()) if network is None else network
        self.made: list[Recomputed] = []
        self.recordings = Recordings(self.network, self.record)
        self.runs = 0

    def record(self, run: graphs.Pass, input_BCHW: Tensor) -> Recomputed:
        self.made.append(Recomputed(run, input_BCHW))
        return self.made[-1]

    @torch.inference_mode()
    def restore(self, input_BCHW: Tensor) -> Tensor:
        def run(input_BCHW: Tensor) -> Restoration:
            self.runs += 1
            return self.network.restore(input_BCHW)

        return self.recordings.restore(key_of(self.network, input_BCHW), run, input_BCHW).image_BCHW

    @property
    def replays(self) -> int:
        return sum(recording.replays for recording in self.made)


@torch.inference_mode()
def expected(network: SRNetwork, input_BCHW: Tensor) -> Tensor:
    return network.restore(input_BCHW).image_BCHW


def test_a_pass_runs_then_is_recorded_then_replayed() -> None:
    bench = Bench()
    for turn in range(5):
        input_BCHW = images(1, 9, 13, seed=turn)
        assert torch.equal(bench.restore(input_BCHW), expected(bench.network, input_BCHW))
        assert (len(bench.made), bench.replays) == ((0, 0) if turn == 0 else (1, turn))
    assert [key.shape for key in bench.recordings.recorded()] == [(1, 3, 9, 13)]
    assert bench.runs == 1 + bench.replays


def test_shapes_that_never_come_again_are_not_recorded() -> None:
    bench = Bench()
    for width in range(5, 40):
        bench.restore(images(1, 6, width))
    assert not bench.made
    assert not bench.recordings.recorded()


def test_keys_are_equal_where_the_pass_is_the_same() -> None:
    network, input_BCHW = build(**CONFIG.model_dump()), images(2, 9, 13)
    key = key_of(network, input_BCHW)
    assert key == key_of(network, images(2, 9, 13, seed=7))
    assert key.pixels == 2 * 9 * 13
    twin = copy.copy(network)
    twin.routing = RoutingConfig.model_validate(network.routing.model_dump())
    assert hash(key_of(twin, input_BCHW)) == hash(key)
    assert key_of(twin, input_BCHW) == key


def keys_that_differ() -> dict[str, Callable[[CAMixerSR, Tensor], PassKey]]:
    def of_routing(network: CAMixerSR, input_BCHW: Tensor, **routing: Any) -> PassKey:
        network.routing = RoutingConfig(**routing)
        return key_of(network, input_BCHW)

    def of_autocast(network: CAMixerSR, input_BCHW: Tensor, dtype: torch.dtype) -> PassKey:
        with torch.autocast("cpu", dtype):
            return key_of(network, input_BCHW)

    def of_tf32(network: CAMixerSR, input_BCHW: Tensor) -> PassKey:
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "ieee" if before == "tf32" else "tf32"
        try:
            return key_of(network, input_BCHW)
        finally:
            torch.backends.cuda.matmul.fp32_precision = before

    def of_cudnn_tf32(network: CAMixerSR, input_BCHW: Tensor) -> PassKey:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=not torch.backends.cudnn.allow_tf32):
            return key_of(network, input_BCHW)

    return {
        "batch": lambda network, x: key_of(network, torch.cat((x, x))),
        "height": lambda network, x: key_of(network, x[:, :, 1:]),
        "dtype": lambda network, x: key_of(network, x.double()),
        "gamma": lambda network, x: of_routing(network, x, gamma=0.25),
        "policy": lambda network, x: of_routing(network, x, policy="schedule", schedule=(0.5, 0.5)),
        "autocast": lambda network, x: of_autocast(network, x, torch.bfloat16),
        "TF32 of products": of_tf32,
        "TF32 of convolutions": of_cudnn_tf32,
    }


@pytest.mark.parametrize("name", keys_that_differ())
def test_keys_differ_where_the_pass_does(name: str) -> None:
    network, input_BCHW = build(**CONFIG.model_dump()), images(2, 9, 13)
    key = key_of(network, input_BCHW)
    assert keys_that_differ()[name](network, input_BCHW) != key
    with torch.autocast("cpu", torch.bfloat16):
        half = key_of(network, input_BCHW)
    with torch.autocast("cpu", torch.float16):
        assert key_of(network, input_BCHW) != half


def test_routings_have_recordings_of_their_own() -> None:
    bench, input_BCHW = Bench(), images(1, 16, 16)
    assert isinstance(bench.network, CAMixerSR)
    outputs = []
    for gamma in (1.0, 0.5, 1.0, 0.5, 1.0, 0.5):
        bench.network.routing = RoutingConfig(gamma=gamma)
        outputs.append(bench.restore(input_BCHW))
        assert torch.equal(outputs[-1], expected(bench.network, input_BCHW))
    assert (len(bench.made), bench.replays) == (2, 4)
    assert not torch.equal(outputs[0], outputs[1])


def test_the_least_recently_used_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_PASSES", 3)
    bench = Bench()
    a, b, c, d = (images(1, 6, width) for width in (5, 6, 7, 8))
    for input_BCHW in (a, a, b, b, c, c, a, d, d):
        bench.restore(input_BCHW)
    assert [key.shape[-1] for key in bench.recordings.recorded()] == [7, 5, 8]
    bench.restore(b)  # seen for the first time again
    assert len(bench.made) == 4
    assert [key.shape[-1] for key in bench.recordings.recorded()] == [5, 8]


def test_what_is_recorded_is_bounded_in_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_PIXELS", 100)
    bench = Bench()
    for width in (5, 6, 5, 6, 4, 4):  # 30, 36 and 24 pixels
        bench.restore(images(1, 6, width))
    assert [key.pixels for key in bench.recordings.recorded()] == [30, 36, 24]
    for _ in range(2):
        bench.restore(images(1, 10, 6))
    assert [key.pixels for key in bench.recordings.recorded()] == [24, 60]


def recorded_bench() -> tuple[Bench, Tensor]:
    bench, input_BCHW = Bench(), images(1, 9, 13)
    for _ in range(3):
        bench.restore(input_BCHW)
    assert bench.recordings.recorded()
    return bench, input_BCHW


def load_in_place(network: nn.Module) -> None:
    network.load_state_dict({name: 0.9 * value for name, value in network.state_dict().items()})


def step(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(network.parameters(), lr=1e-2).step()


@pytest.mark.parametrize("change", [load_in_place, step])
def test_weights_changed_in_place_are_those_of_the_next_pass(change: Callable[[nn.Module], None]) -> None:
    bench, input_BCHW = recorded_bench()
    before = bench.restore(input_BCHW)
    change(bench.network)
    replays = bench.replays
    after = bench.restore(input_BCHW)
    assert bench.replays == replays + 1
    assert len(bench.made) == 1
    assert torch.equal(after, expected(bench.network, input_BCHW))
    assert not torch.equal(after, before)


def assign(network: Any) -> None:
    network.load_state_dict({name: 0.9 * value for name, value in network.state_dict().items()}, assign=True)


def there_and_back(network: Any) -> None:
    network.double().float()


def other_module(network: Any) -> None:
    network.head = nn.Conv2d(3, 8, 3, padding=1)


def inner_module(network: Any) -> None:
    network.groups[0].blocks[0].mixer.value = nn.Linear(8, 8)


def other_parameter(network: Any) -> None:
    network.tail.bias = nn.Parameter(torch.ones_like(network.tail.bias))


def other_data(network: Any) -> None:
    network.groups[1].blocks[0].norm2.weight.data = torch.full((8,), 0.5)


def without_bias(network: Any) -> None:
    network.tail.bias = None


def other_root_module(network: Any) -> None:
    network.groups = nn.ModuleList(copy.deepcopy(list(network.groups))[::-1])


@pytest.mark.parametrize(
    "change",
    [assign, there_and_back, other_module, inner_module, other_parameter, other_data, without_bias, other_root_module],
)
def test_weights_put_elsewhere_make_recordings_void(change: Callable[[Any], None]) -> None:
    bench, input_BCHW = recorded_bench()
    bench.restore(images(1, 5, 5))
    change(bench.network)
    assert torch.equal(bench.restore(input_BCHW), expected(bench.network, input_BCHW))
    assert not bench.recordings.recorded()
    for _ in range(3):  # and they are made again
        assert torch.equal(bench.restore(input_BCHW), expected(bench.network, input_BCHW))
    assert len(bench.recordings.recorded()) == 1
    assert len(bench.made) == 2


def test_addresses_are_not_given_to_other_weights() -> None:
    """What was recorded stays where it is until its loss is noticed, however often weights come and go meanwhile."""
    bench, input_BCHW = recorded_bench()
    parameters = list(bench.network.parameters())
    recorded = {parameter.data_ptr() for parameter in parameters}
    for _ in range(20):
        for parameter in parameters:
            parameter.data = parameter.data.clone()
            assert parameter.data_ptr() not in recorded
    bench.restore(input_BCHW)
    assert not bench.recordings.recorded()


def test_recordings_that_fail_are_reported_once_and_no_longer_made() -> None:
    network, input_BCHW = build(**CONFIG.model_dump()), images(1, 9, 13)
    tries = []

    def fail(run: graphs.Pass, input_BCHW: Tensor) -> Recomputed:
        tries.append(run)
        raise torch.OutOfMemoryError("out of memory\nand more")

    bench = Bench(network)
    bench.recordings = Recordings(network, fail)
    bench.restore(input_BCHW)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs: out of memory$"):
        assert torch.equal(bench.restore(input_BCHW), expected(network, input_BCHW))
    for _ in range(3):
        assert torch.equal(bench.restore(input_BCHW), expected(network, input_BCHW))
    assert len(tries) == 1


def test_mistakes_in_a_pass_are_not_hidden() -> None:
    bench, input_BCHW = Bench(), images(1, 9, 13)[:, :2]
    for _ in range(3):
        with pytest.raises(RuntimeError, match="channels"):
            bench.restore(input_BCHW)


def test_recordings_do_not_keep_a_network() -> None:
    network = build(**CONFIG.model_dump())
    recordings, reference = Recordings(network), weakref.ref(network)
    del network
    gc.collect()
    assert reference() is None
    assert not recordings.recorded()


@torch.inference_mode()
def test_a_cpu_records_nothing() -> None:
    network, input_BCHW = build(**CONFIG.model_dump()), images(1, 9, 13)
    assert not suits(network, input_BCHW)
    for _ in range(3):
        network(input_BCHW)
    assert network not in graphs._RECORDINGS


def test_restore_keeps_its_signature() -> None:
    for network in (CAMixerSR(CONFIG), build_model(SwinIRConfig(depths=(1,), embed_dim=6, num_heads=2))):
        assert type(network).restore.__doc__
        assert type(network).restore.__name__ == "restore"
        network.eval().restore(input_BCHW=images(1, 5, 5), generator=None)


# On CUDA.


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device("cuda", 0)


STATIC: dict[str, AnyModelConfig] = {
    "fixed": CAMixerSRConfig(groups=(1, 2), channels=20, window=8),
    "all": CAMixerSRConfig(groups=(1, 2), channels=60, window=16, routing=RoutingConfig(gamma=1)),
    "none": CAMixerSRConfig(groups=(1, 2), channels=20, window=8, routing=RoutingConfig(gamma=0)),
    "schedule": CAMixerSRConfig(
        groups=(1, 1), channels=20, window=8, routing=RoutingConfig(policy="schedule", schedule=(0.0, 0.6))
    ),
    "swinir": SwinIRConfig(depths=(2, 2)),
}


@pytest.mark.parametrize("grad_mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", STATIC)
def test_replays_are_the_pass(name: str, precision: torch.dtype | None, grad_mode: Any, cuda: torch.device) -> None:
    torch.manual_seed(0)
    network = build_model(STATIC[name]).eval().to(cuda)
    eager = copy.deepcopy(network)
    kept = []
    with torch.autocast("cuda", dtype=precision or torch.bfloat16, enabled=precision is not None):
        for turn in range(5):
            input_BCHW = images(2, 40, 52, seed=turn).to(cuda)
            with grad_mode():
                found = network.restore(input_BCHW)
            wanted = eager.restore(input_BCHW)  # gradients are asked for: not recorded
            torch.testing.assert_close(found.image_BCHW, wanted.image_BCHW.detach(), rtol=1e-4, atol=1e-4)
            assert torch.equal(found.hard_share_SB, wanted.hard_share_SB)
            kept.append((found.image_BCHW, found.image_BCHW.clone()))
    assert len(graphs._RECORDINGS[network].recorded()) == 1
    assert eager not in graphs._RECORDINGS
    for image_BCHW, as_it_was in kept:  # later passes do not write over what earlier ones gave
        assert torch.equal(image_BCHW, as_it_was)


@torch.inference_mode()
def test_replays_follow_weights_streams_and_tiles(cuda: torch.device) -> None:
    network = build(channels=20, window=8, groups=(1, 1)).to(cuda)
    input_BCHW = images(1, 40, 52).to(cuda)
    network.is_literal = True
    literal = network.restore(input_BCHW).image_BCHW
    network.is_literal = False
    first = [network(input_BCHW) for _ in range(4)][-1]
    torch.testing.assert_close(first, literal, rtol=1e-3, atol=1e-3)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        other = network(images(1, 40, 52, seed=1).to(cuda))
    again = network(input_BCHW)
    torch.cuda.synchronize()
    assert torch.equal(again, first)
    assert not torch.equal(other, first)
    for parameter in network.parameters():
        parameter.mul_(0.9)
    changed = network(input_BCHW)
    assert not torch.equal(changed, first)
    with torch.inference_mode(False):
        network.to("cpu").to(cuda)
    torch.testing.assert_close(network(input_BCHW), changed, rtol=1e-4, atol=1e-4)
    assert not graphs._RECORDINGS[network].recorded()
    tiled = restore_tiled(network, input_BCHW, tile=16, overlap=4).image_BCHW
    assert any(key.shape[-2:] == (16, 16) for key in graphs._RECORDINGS[network].recorded())
    network.is_literal = True
    wanted = restore_tiled(network, input_BCHW, tile=16, overlap=4).image_BCHW
    torch.testing.assert_close(tiled, wanted, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_passes_that_depend_on_the_image_are_not_recorded(cuda: torch.device) -> None:
    network = build(channels=20, window=8, groups=(1, 1)).to(cuda)
    network.routing = RoutingConfig(policy="probability", gamma=0.5)
    input_BCHW = images(1, 40, 52).to(cuda)
    for _ in range(3):
        network(input_BCHW)
    assert network not in graphs._RECORDINGS
    network.routing = RoutingConfig()
    for _ in range(3):
        network.restore(input_BCHW, importance_BHW=torch.ones(1, 40, 52, device=cuda))
    assert network not in graphs._RECORDINGS

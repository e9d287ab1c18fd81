"""The CPU kernels: every variant that this processor runs, any number of threads, maps that passes share."""

import copy
import ctypes
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.core.configs import BlockWidths, LayerWidths, RoutingConfig, SwinIRConfig
from harness.core.errors import TrialFailedError
from harness.models import CAMixerSR, SRNetwork, fused, kernels
from harness.models.fused import camixersr, maps, swinir, training
from harness.models.literal import word_for_word
from tests.models.test_literal import TOLERANCE, build, images
from tests.models.test_swinir import build_both

# Images × height × width by window: more columns than a tile, more rows than a band, windows that fill no vector.
SIZES = {3: (1, 50, 40), 5: (2, 21, 203), 8: (1, 150, 30), 16: (1, 40, 230), 20: (1, 70, 45)}
WINDOWS = [pytest.param(side, marks=pytest.mark.slow) if side in (5, 16) else side for side in SIZES]
# Inside blocks, whose features are 20 to 24: more and fewer, odd and even, one; values and keys made before attention
# and after it; what a block leaves in the maps is more and less than the next one's.
BLOCKS = (
    BlockWidths(mixer=13, query=22, predictor=1, offsets=1, ffn=31),
    BlockWidths(mixer=31, query=7, predictor=27, offsets=5, ffn=1),
    BlockWidths(mixer=1, query=40, predictor=6, offsets=2, ffn=12),
)
LAYERS = (
    LayerWidths(query=1, value=7, mlp=5),
    LayerWidths(query=6, value=10, mlp=1),
    LayerWidths(query=3, value=1, mlp=43),
)
ROUTINGS = (RoutingConfig(gamma=1), RoutingConfig(policy="probability", gamma=0.4), RoutingConfig(gamma=0))


@pytest.fixture(params=["v2", "v3", "v4", "v4bf16", "neon"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels of one set of instructions."""
    loaded = kernels.load()
    if loaded is None:
        pytest.skip("no kernels for this platform")  # test_kernels_build.py says where there must be some
    if request.param not in loaded.variants:
        pytest.skip(f"this processor does not run {request.param}")
    chosen = loaded.of(request.param)
    monkeypatch.setattr(kernels, "load", lambda: chosen)
    return chosen.variant


@pytest.fixture
def threads() -> Iterator[None]:
    """Give torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def networks(window: int) -> list[SRNetwork]:
    """A CAMixerSR, of an odd number of channels in windows of 3, 5 and 16, a SwinIR of odd widths, and pruned ones."""
    channels = 23 if window == 16 else 20 + window % 7
    swinir = {"embed_dim": 15, "num_heads": 5, "window": min(window, 8), "scale": 3}
    return [
        *(
            build(channels=channels, window=window, groups=(1, 2), scale=2 + window % 3, widths=of)
            for of in (None, BLOCKS)
        ),
        *(
            build_both(SwinIRConfig.model_validate({**swinir, **more}))[0].eval()
            for more in ({"depths": (2,)}, {"depths": (2, 1), "num_heads": 4, "widths": LAYERS})
        ),
    ]


def outputs(network: SRNetwork, input_BCHW: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What a network and its oracle restore, under each routing."""
    for routing in routings(network):
        yield restored(network, routing, input_BCHW), word_for_word(network)(input_BCHW)


def routings(network: SRNetwork) -> Sequence[RoutingConfig | None]:
    """Every routing of a CAMixerSR."""
    return ROUTINGS if isinstance(network, CAMixerSR) else (None,)


def restored(network: SRNetwork, routing: RoutingConfig | None, input_BCHW: Tensor) -> Tensor:
    """What a network restores, which keeps the routing."""
    if isinstance(network, CAMixerSR) and routing is not None:
        network.routing = routing
    output: Tensor = network(input_BCHW)
    return output


@pytest.mark.parametrize("window", SIZES)
@torch.inference_mode()
def test_every_variant_is_the_network(variant: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def count(name: str) -> None:
        restore = getattr(fused, name)

        def restore_and_tell(*arguments: Any) -> Any:
            runs.append(name)
            return restore(*arguments)

        monkeypatch.setattr(fused, name, restore_and_tell)

    count("restore_camixersr")
    count("restore_swinir")
    wanted = 0
    for network in networks(window):
        for found, expected in outputs(network, images(*SIZES[window])):
            assert (found - expected).abs().max() <= TOLERANCE, variant
            wanted += 1
    assert len(runs) == wanted  # it was the kernels


@torch.inference_mode()
def test_who_wants_to_see_operators_sees_them() -> None:
    """Hooks, counters and other dispatch modes: the plain path serves them."""
    for network in networks(8):
        input_BCHW = images(1, 16, 16)
        expected = network(input_BCHW)
        with FlopCounterMode(display=False) as counter:
            network(input_BCHW)
        assert counter.get_total_flops() > 1e6
        seen: list[nn.Module] = []
        block: nn.Module = network.groups[0].blocks[0]  # type: ignore[union-attr, index]
        block.register_forward_hook(lambda module, *_, told=seen: told.append(module))
        assert (network(input_BCHW) - expected).abs().max() <= TOLERANCE
        assert seen == [block]


@pytest.mark.parametrize("window", WINDOWS)
@torch.inference_mode()
def test_every_variant_stays_close_in_bfloat16(variant: str, window: int) -> None:
    """At γ = 1 and 0, where rounding cannot make windows change places."""
    for network in networks(window):
        expected = [expected for _, expected in outputs(network, images(*SIZES[window]))][::2]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pairs = list(outputs(network, images(*SIZES[window])))[::2]
        for (found, inherent), exact in zip(pairs, expected, strict=True):
            error, own = ((one.float() - exact).square().mean().sqrt() for one in (found, inherent))
            assert error <= 2 * own, (variant, float(error), float(own))


@pytest.mark.parametrize("is_half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("window", WINDOWS)
@torch.inference_mode()
def test_threads_change_nothing(window: int, is_half: bool, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once in several times: rows and windows that two threads write would be a matter of luck."""
    monkeypatch.setattr(maps, "_LEAST_VALUES", 1)  # small maps are one thread's otherwise
    for network in networks(window):
        input_BCHW = images(*SIZES[window])

        def restore(count: int, network: SRNetwork = network, input_BCHW: Tensor = input_BCHW) -> list[Tensor]:
            torch.set_num_threads(count)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
                return [restored(network, routing, input_BCHW) for routing in routings(network)]

        alone = restore(1)
        for count in (2, 3, 2, 3):
            for found, expected in zip(restore(count), alone, strict=True):
                assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("widths", [None, BLOCKS[:2]], ids=["whole", "pruned"])
@torch.inference_mode()
def test_passes_leave_nothing_behind_for_the_next(widths: tuple[BlockWidths, ...] | None) -> None:
    """Sizes, networks and precisions in turn, and a pass that breaks off, on maps that are kept from pass to pass."""
    network = build(channels=24, window=8, groups=(1, 1), widths=widths)
    network.routing = RoutingConfig(policy="probability", gamma=0.5)
    broken = build(seed=1, channels=24, window=8, groups=(1, 1), widths=widths and widths[::-1])
    weight: Tensor = broken.groups[1].blocks[0].mixer.predictor.offsets_out.weight  # type: ignore[union-attr, index]
    weight.fill_(torch.nan)
    other = build_both(SwinIRConfig(depths=(2,), embed_dim=12, num_heads=3))[0].eval()
    small, large = images(1, 24, 30), images(1, 61, 50)

    def rounded(input_BCHW: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output: Tensor = network(input_BCHW)
        return output

    first, first_rounded = [network(small), network(large), other(small)], rounded(small)
    for _ in range(2):
        with pytest.raises(TrialFailedError):
            broken(small)
        assert torch.equal(network(small), first[0])
        assert torch.equal(rounded(small), first_rounded)
        spoil_kept_maps()
        assert torch.equal(rounded(small), first_rounded)
        assert torch.equal(network(small), first[0])
        spoil_kept_maps()
        assert torch.equal(network(small), first[0])
        assert torch.equal(network(large), first[1])
        assert torch.equal(other(small), first[2])
    with torch.inference_mode(False), torch.no_grad():
        assert torch.equal(network(large.clone()), first[1])
    for parameter in network.parameters():
        parameter.mul_(1.1)
    changed = network(large)
    assert not torch.equal(changed, first[1])
    assert (changed - word_for_word(network)(large)).abs().max() <= TOLERANCE


def spoil_kept_maps() -> None:
    """Put NaN into all that the last pass left behind, but for the margins of its maps, which stay zeros."""
    kept = maps.Maps._kept[0]
    spoilt = 0
    for name, value in vars(kept).items():
        if isinstance(value, maps.Map):
            columns = value.shape[3]
            value.data[: -maps._SLACK].view(-1, value.pitch)[:, maps._MARGIN : maps._MARGIN + columns] = torch.nan
            spoilt += 1
        elif isinstance(value, Tensor):
            value.view(torch.uint8).fill_(255)
            spoilt += 1
        else:
            assert name == "key"
    assert spoilt > 5


@pytest.mark.parametrize("is_half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 3])
@torch.inference_mode()
def test_memory_that_is_asked_for_suffices(
    variant: str, count: int, is_half: bool, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written behind it, and nothing read: it ends in NaN, and workspaces begin as NaN."""
    ends: list[Tensor] = []

    def take(count: int, start: int) -> Tensor:
        memory = torch.full((count + 1024,), 255, dtype=torch.uint8)
        ends.append(memory[start:])
        return memory

    def allocate(count: int) -> Tensor:
        memory = take(4 * count, 4 * count).view(torch.float32)[:count]
        return memory.zero_()

    def reserve(own: maps.Maps, num_bytes: int) -> int:
        own.workspace = take(num_bytes + 64, 0)
        address = -(-own.workspace.data_ptr() // 64) * 64
        ends[-1] = own.workspace[address - own.workspace.data_ptr() + num_bytes :]
        return address

    monkeypatch.setattr(maps.Maps, "_kept", [])
    monkeypatch.setattr(maps.Maps, "reserve", reserve)
    monkeypatch.setattr(maps, "allocate", allocate)
    monkeypatch.setattr(camixersr, "allocate", allocate)
    monkeypatch.setattr(maps, "_LEAST_VALUES", 1)
    torch.set_num_threads(count)
    for window, size in ((5, (2, 11, 33)), (8, (1, 16, 40)), (16, (1, 20, 100))):
        for network in networks(window):
            for routing in routings(network):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
                    assert restored(network, routing, images(*size)).isfinite().all()
    assert len(ends) > 100
    assert all((end == 255).all() for end in ends)


def test_threads_of_python_may_restore_at_once() -> None:
    network = build(channels=24, window=8, groups=(1, 1))
    inputs = [images(1, 40 + index % 2, 40, seed=index) for index in range(8)]

    @torch.inference_mode()
    def restore(input_BCHW: Tensor) -> Tensor:
        return network.restore(input_BCHW).image_BCHW

    expected = [restore(input_BCHW) for input_BCHW in inputs]
    with ThreadPoolExecutor(3) as pool:
        for found, wanted in zip(pool.map(restore, inputs * 3), expected * 3, strict=True):
            assert torch.allclose(found, wanted, atol=1e-5)


def test_structures_are_as_long_here_as_there() -> None:
    loaded = kernels.load()
    assert loaded is not None
    sizes = (ctypes.c_int64 * 8)()
    loaded.function("measure_structures", (ctypes.c_void_p,))(sizes)
    ours = [camixersr._Pass, camixersr._Block, maps._Convolution, swinir._Layer, swinir._Normalisation]
    ours += [training._MixerConvolutions, training._GatedConvolution, training._Projection]
    assert list(sizes) == [ctypes.sizeof(structure) for structure in ours]


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000], ids=hex)
@torch.inference_mode()
def test_every_nan_is_one_in_bfloat16(variant: str, bits: int) -> None:
    """Of whatever payload, where rounding could carry it into infinity or zero."""
    network = build(channels=23, window=8, groups=(1,), routing=RoutingConfig(gamma=0))
    expand: Tensor = network.groups[0].blocks[0].ffn.expand.weight  # type: ignore[union-attr, index]
    expand.view(torch.int32)[0] = bits if bits < 2**31 else bits - 2**32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(images(1, 16, 16)).isnan().all(), variant


@pytest.mark.parametrize("is_half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("channels", "window"), [(4, 2), (7, 8), (61, 3), (200, 4), (400, 2)])
@torch.inference_mode()
def test_channels_may_be_many_more_or_fewer_than_tokens(channels: int, window: int, is_half: bool) -> None:
    """Seven channels without conditions leave no hidden offsets: the bias alone moves the keys."""
    conditions = channels != 7
    network = build(
        channels=channels,
        window=window,
        groups=(1,),
        global_condition=conditions,
        window_condition=conditions,
        routing=RoutingConfig(gamma=1),
    )
    for name, parameter in network.named_parameters():
        if "offsets_out.bias" in name:
            parameter.fill_(0.3)
    input_BCHW = images(1, 3 * window, 3 * window)
    oracle = word_for_word(network) if conditions else copy.copy(network)
    oracle.is_literal = True
    exact = oracle(input_BCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
        error, own = ((one(input_BCHW) - exact).float() for one in (network, oracle))
    if is_half:
        assert error.square().mean() <= 4 * own.square().mean()
    else:
        assert error.abs().max() <= TOLERANCE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_maps_of_its_own() -> None:
    """Of a size that is laid on huge pages."""
    network = build(channels=48, window=8, groups=(1,))
    mine, theirs = images(1, 200, 200), images(1, 200, 200, seed=1)
    with torch.inference_mode():
        expected, wanted = network(mine), network(theirs)
        child = os.fork()
        if child == 0:
            same = all(torch.equal(network(theirs), wanted) for _ in range(8))
            os._exit(0 if same else 1)
        for _ in range(8):
            assert torch.equal(network(mine), expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@torch.inference_mode()
def test_parameters_elsewhere_are_refused() -> None:
    network = build(channels=8, window=4).to("meta")
    with pytest.raises(RuntimeError, match="parameters are on meta"):
        network(images(1, 8, 8))


def test_gradients_take_the_plain_path_and_agree() -> None:
    network = build(channels=24, window=8, groups=(1,))
    input_BCHW = images(1, 30, 30).requires_grad_()
    plain = network(input_BCHW)
    assert plain.requires_grad
    with torch.no_grad():
        assert (network(input_BCHW) - plain).abs().max() <= TOLERANCE

"""What hides from counters: operators of others, detours around the trace; and the tree, activations and shares."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import flop_counter

from harness.core.configs import CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.core.records import OperationsRecord
from harness.models import build_seeded
from harness.models.literal import word_for_word
from harness.profiling import canonical_activations, count_operations
from tests.profiling.networks import Pyramid, ResidualNetwork

SIDE = 16
INPUT = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
HEAD = 3 * 8 * 9 * SIDE**2  # MACs of the three convolutions of `Detour`
BODY = 8 * 8 * 9 * SIDE**2
TAIL = 8 * 3 * 9 * SIDE**2


@torch.library.custom_op("harness_tests::convolve", mutates_args=())
def convolve(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


@torch.library.custom_op("harness_tests::quantise", mutates_args=())
def quantise(x: Tensor) -> Tensor:
    return torch.from_numpy(np.round(x.numpy() * 255) / 255)


@torch.library.custom_op("harness_tests::read_at", mutates_args=())
def read_at(address: int, channels: int, side: int) -> Tensor:
    """Read a tensor by its address, as kernels do that are bound by ctypes."""
    values = (ctypes.c_float * (channels * side**2)).from_address(address)
    return torch.from_numpy(np.array(values, dtype=np.float32).reshape(1, channels, side, side))


class Detour(nn.Module):
    """Two convolutions, something between, and one convolution more."""

    def __init__(self, between: Callable[[Tensor], Tensor]):
        super().__init__()
        self.between = between
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        restored: Tensor = self.tail(self.between(self.body(input_BCHW)))
        return restored


def by_address(x: Tensor) -> Tensor:
    restored: Tensor = read_at(x.data_ptr(), 8, SIDE)
    return restored


@pytest.mark.parametrize(
    "detour",
    [lambda x: x.data * 2, lambda x: torch.from_numpy(x.numpy() * 2), lambda x: torch.tensor(x.tolist()), by_address],
    ids=["data", "numpy", "tolist", "custom operator by address"],
)
def test_convolutions_that_hide_from_the_trace_are_named(detour: Callable[[Tensor], Tensor]) -> None:
    record = count_operations(Detour(detour), INPUT)
    assert record.by_counter == {"fvcore": TAIL, "ptflops": HEAD + BODY + TAIL, "torch": HEAD + BODY + TAIL}
    assert record.macs == HEAD + BODY + TAIL
    assert [(gap.path, gap.type, gap.explained_by) for gap in record.unexplained] == [
        ("body.2", "Conv2d", ()),
        ("body.0", "Conv2d", ()),
    ]
    assert record.unexplained[0].macs_by_counter == {"fvcore": 0, "ptflops": BODY, "torch": BODY}
    assert record.unexplained_share == pytest.approx((HEAD + BODY) / (HEAD + BODY + TAIL))


def test_a_custom_operator_is_looked_into() -> None:
    weight = torch.rand(8, 8, 3, 3)
    record = count_operations(Detour(lambda x: convolve(x, weight)), INPUT)
    whole = HEAD + 2 * BODY + TAIL
    assert record.by_counter == {"fvcore": whole - BODY, "ptflops": whole, "torch": whole}
    assert record.activations == (8 + 8 + 8 + 3) * SIDE**2
    (gap,) = record.gaps
    assert (gap.path, gap.explained_by) == ("", ("harness_tests::convolve",))
    assert record.unexplained == ()
    assert not record.is_lower_bound
    listed = record.operators[0]
    assert (listed.operator, listed.share, listed.hidden_from) == ("harness_tests::convolve", None, ("fvcore",))


def test_a_custom_operator_that_leaves_pytorch_makes_the_count_a_lower_bound() -> None:
    record = count_operations(Detour(quantise), INPUT)
    assert record.agree
    assert record.is_lower_bound
    listed = record.operators[0]
    assert (listed.operator, listed.times, listed.share) == ("harness_tests::quantise", 1, None)
    assert (listed.hidden_from, listed.modules) == (("fvcore", "ptflops", "torch"), ("",))


@torch.library.custom_op("harness_tests::sharpen", mutates_args=())
def sharpen(x: Tensor) -> Tensor:
    return 2 * x - x.mean()


def test_a_custom_operator_of_operators_that_are_listed_hides_nothing() -> None:
    record = count_operations(Detour(sharpen), INPUT)
    assert not record.is_lower_bound
    assert {"aten::mul", "aten::mean", "aten::sub"} <= {operator.operator for operator in record.operators}


def test_a_quantised_convolution_makes_the_count_a_lower_bound() -> None:
    quantised = torch.ao.nn.quantized.Conv2d(3, 8, 3, padding=1)  # type: ignore[no-untyped-call]

    class Quantised(nn.Module):
        def forward(self, input_BCHW: Tensor) -> Tensor:
            restored: Tensor = quantised(torch.quantize_per_tensor(input_BCHW, 0.01, 0, torch.quint8)).dequantize()
            return restored

    record = count_operations(Quantised(), INPUT)
    assert record.is_lower_bound
    assert record.operators[0].operator == "quantized::conv2d"


@contextlib.contextmanager
def flop_formula(operator: Any, formula: Callable[..., int]) -> Iterator[None]:
    flop_counter.register_flop_formula(operator)(formula)
    try:
        yield
    finally:
        del flop_counter.flop_registry[operator]


def test_a_formula_that_the_operator_came_with_is_taken() -> None:
    operator = torch.ops.harness_tests.quantise
    with flop_formula(operator, lambda shape, *_, **__: 2 * 7 * int(np.prod(shape))):
        record = count_operations(Detour(quantise), INPUT)
    assert record.by_counter["torch"] - record.by_counter["ptflops"] == 7 * 8 * SIDE**2
    assert record.macs == record.by_counter["torch"]
    assert record.unexplained == ()
    assert not record.is_lower_bound


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ x.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError


def test_a_python_function_explains_the_gap_in_its_module() -> None:
    hide: Callable[[Tensor], Tensor] = Function.apply
    record = count_operations(Detour(hide), INPUT)
    (gap,) = record.gaps
    assert (gap.path, gap.explained_by) == ("", ("prim::PythonOp.Function",))
    assert gap.macs_by_counter == {"fvcore": 0, "ptflops": 8 * SIDE**3, "torch": 8 * SIDE**3}


class Sequence(nn.Module):
    """Attention and a recurrent layer over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
        self.recurrent = nn.LSTM(12, 5, batch_first=True)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        tokens = input_BCHW.repeat(1, 4, 1, 1).flatten(2).mT
        states: Tensor = self.recurrent(self.encoder(tokens))[0]
        return states


def test_fused_and_recurrent_layers() -> None:
    record = count_operations(Sequence(), INPUT[..., :6, :6])
    encoder = 36 * (4 * 12**2 + 2 * 12 * 24) + 2 * 36**2 * 12
    recurrent = 36 * 4 * 5 * (12 + 5)
    assert record.by_counter["ptflops"] == record.by_counter["torch"] == encoder + recurrent
    assert record.unexplained == ()
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_operator_that_costs_more_than_its_elements_has_no_share() -> None:
    class Spectrum(nn.Module):
        def forward(self, input_BCHW: Tensor) -> Tensor:
            spectrum: Tensor = torch.fft.rfft2(input_BCHW)
            return spectrum.abs()

    record = count_operations(Spectrum(), INPUT)
    assert [(operator.operator, operator.share) for operator in record.operators] == [
        ("aten::_fft_r2c", None),
        ("aten::abs", 1.0),
    ]
    assert record.is_lower_bound


def test_the_tree_holds_what_each_module_costs() -> None:
    network = Pyramid(factor=4)
    record = count_operations(network, INPUT)
    by_path = {module.path: module for module in record.modules}
    pixels = SIDE**2
    assert {path: module.macs for path, module in by_path.items()} == {
        "": record.macs,
        "head": 3 * 8 * 9 * pixels,
        "down": 8 * 8 * 16 * pixels // 16,
        "up": 8 * 8 * pixels,
        "tail": 8 * 12 * 9 * pixels,
        "tail.0": 8 * 12 * 9 * pixels,
        "tail.1": 0,
    }
    assert {path: module.activations for path, module in by_path.items() if "." not in path} == {
        "": (8 + 8 / 16 + 8 + 12) * pixels,
        "head": 8 * pixels,
        "down": 8 * pixels // 16,
        "up": 8 * pixels,
        "tail": 12 * pixels,
    }
    assert by_path["tail"].type == "Sequential"
    assert by_path[""].params == record.params == sum(p.numel() for p in network.parameters())
    assert all(set(module.macs_by_counter.values()) == {module.macs} for module in record.modules)


class Functional(Pyramid):
    """The same convolutions, called without their modules."""

    def forward(self, input_BCHW: Tensor) -> Tensor:
        features = F.conv2d(input_BCHW, self.head.weight, self.head.bias, padding=1)
        down = F.conv2d(features, self.down.weight, self.down.bias, stride=self.down.stride)
        up = F.conv_transpose2d(down, self.up.weight, self.up.bias, stride=self.up.stride)
        tail = self.tail[0]
        return F.pixel_shuffle(F.conv2d(features + up, tail.weight, tail.bias, padding=1), 2)  # type: ignore[arg-type]


def test_functional_convolutions_have_activations_too() -> None:
    through_modules, functional = (count_operations(kind(4), INPUT) for kind in (Pyramid, Functional))
    assert functional.activations == through_modules.activations
    assert functional.by_counter == through_modules.by_counter
    assert {module.path: module.macs for module in functional.modules if module.macs} == {"": functional.macs}


def test_the_published_costs_of_msrresnet() -> None:
    """As the challenges print them for 256×256: 1.517 M parameters, 292.55 M activations, 166.36 G FLOPs.

    Their FLOPs are MACs of convolutions, and one more for each element of a bias or a ReLU.
    """
    record = count_operations(ResidualNetwork(), torch.rand(1, 3, 32, 32))
    in_256x256 = (256 // 32) ** 2
    assert record.params == 1_517_571
    assert round(record.activations * in_256x256 / 1e6, 2) == 292.55
    assert record.macs * in_256x256 / 1e9 == pytest.approx(166.36, rel=0.003)


def test_a_module_that_is_called_twice_counts_twice() -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    record = count_operations(nn.Sequential(layer, nn.Sequential(layer)), INPUT)
    once = 9 * 9 * SIDE**2
    assert set(record.by_counter.values()) == {2 * once}
    assert record.modules[1].macs == 2 * once
    assert record.params == 84


def test_shares_are_of_all_arithmetic() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), nn.GELU(), nn.MaxPool2d(2), nn.Softmax(1))
    record = count_operations(network, INPUT)
    pixels = SIDE**2
    whole = 24 * pixels + (16 + 8 + 2) * pixels
    assert [(operator.operator, operator.times) for operator in record.operators] == [
        ("aten::gelu", 2),
        ("aten::max_pool2d_with_indices", 1),
        ("aten::_softmax", 1),
    ]
    shares = [operator.share for operator in record.operators]
    assert shares == pytest.approx([16 * pixels / whole, 8 * pixels / whole, 2 * pixels / whole])
    assert [operator.modules for operator in record.operators] == [("1", "2"), ("3",), ("4",)]


def test_torchscript_is_counted_by_the_dispatching_counters() -> None:
    network = Pyramid(factor=4).eval()
    expected = count_operations(network, INPUT)
    for written in (torch.jit.trace(network, INPUT), torch.jit.script(network)):  # type: ignore[no-untyped-call]
        record = count_operations(written, INPUT)
        assert record.by_counter == {"ptflops": expected.macs, "torch": expected.macs}
        assert "TorchScript" in record.missing["fvcore"]
        assert (record.activations, record.params) == (expected.activations, expected.params)
        assert [(module.path, module.type) for module in record.modules] == [("", "Pyramid")]


def test_frozen_and_optimised_torchscript() -> None:
    frozen = torch.jit.freeze(torch.jit.script(Pyramid(factor=4).eval()))
    record = count_operations(frozen, INPUT)
    assert set(record.by_counter.values()) == {count_operations(Pyramid(factor=4), INPUT).macs}
    with pytest.raises(UserError, match=r"no counter sees what torch\.jit\.optimize_for_inference"):
        count_operations(torch.jit.optimize_for_inference(frozen), INPUT)


def test_a_network_that_cannot_be_traced_is_counted_by_the_others() -> None:
    def depends_on_values(x: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError("not while tracing")
        return x

    network = Detour(depends_on_values)
    record = count_operations(network, INPUT)
    assert record.by_counter == {"ptflops": HEAD + BODY + TAIL, "torch": HEAD + BODY + TAIL}
    assert "not while tracing" in record.missing["fvcore"]
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())


def test_a_network_that_does_not_run_is_a_mistake() -> None:
    with pytest.raises(UserError, match="cannot run under a counter: RuntimeError: "):
        count_operations(nn.Conv2d(4, 4, 3), INPUT)


def test_the_network_is_left_as_it_was() -> None:
    network = Detour(quantise)
    count_operations(network, INPUT)
    assert network.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())


def written_out_activations(config: CAMixerSRConfig | SwinIRConfig) -> OperationsRecord:
    """Count the convolutions of the network word for word, where pointwise layers run as the convolutions they are."""
    return count_operations(word_for_word(build_seeded(config, seed=0)), torch.rand(2, 3, 20, 25))


@pytest.mark.parametrize(
    "config",
    [
        SwinIRConfig(embed_dim=12, depths=(1, 2), num_heads=2, scale=3),
        CAMixerSRConfig(channels=12, groups=(1, 2), window=8),
        CAMixerSRConfig(channels=12, groups=(2,), window=8, offsets=False, spatial_attention=False, scale=2),
        CAMixerSRConfig(channels=12, groups=(2,), window=8, global_condition=False, channel_attention=False),
        CAMixerSRConfig(channels=12, groups=(2,), window=8, routing=RoutingConfig(gamma=1.0)),
    ],
)
def test_activations_of_our_networks_are_those_of_the_paper(config: CAMixerSRConfig | SwinIRConfig) -> None:
    expected = written_out_activations(config).activations
    assert canonical_activations(config, (20, 25), batch_size=2) == expected
    record = count_operations(build_seeded(config, seed=0), torch.rand(2, 3, 20, 25), config=config)
    assert record.activations == expected

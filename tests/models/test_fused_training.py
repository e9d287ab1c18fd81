"""The CPU kernels of training: values and gradients of every variant, and who is not served by them."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from harness.models import CAMixerSR, fused
from harness.models.fused import training
from harness.models.literal import LiteralCAMixerSR
from tests.models.test_fused import threads, variant
from tests.models.test_literal import assert_same, assert_same_gradients, build, images, step

__all__ = ["threads", "variant"]  # fixtures

TOLERANCE = 5e-6  # of a tensor's norm: float32 against float64
SIZES = [(0, 4, 4, 6), (1, 1, 1, 5), (2, 3, 2, 16), (3, 8, 24, 13), (2, 16, 9, 60), (1, 40, 37, 24), (2, 33, 64, 33)]
LAYERS = [(0, 6, 5), (1, 1, 1), (5, 7, 3), (100, 60, 60), (2049, 64, 16), (4100, 24, 48), (97, 130, 200), (13, 33, 90)]


def drawn(*shape: int) -> Tensor:
    """Normal numbers that gradients are wanted of, in memory that is NaN beside them."""
    count = torch.Size(shape).numel()
    memory = torch.full((count + 32,), torch.nan)
    memory[16 : 16 + count] = torch.randn(count)
    return memory[16 : 16 + count].view(shape).requires_grad_()


def assert_equal(found: Callable[..., Tensor], wanted: Callable[..., Tensor], inputs: list[Tensor | None]) -> None:
    """Compare values and all gradients with those of float64."""
    doubles = [None if one is None else one.detach().double().requires_grad_() for one in inputs]
    output, expected = found(*inputs), wanted(*doubles)
    grad = torch.randn(output.shape)
    given = [one for one in inputs if one is not None]
    gradients = torch.autograd.grad(output, given, grad)
    others = torch.autograd.grad(expected, [one for one in doubles if one is not None], grad.double())
    for index, (one, other) in enumerate(zip((output, *gradients), (expected, *others), strict=True)):
        assert one.shape == other.shape, index
        difference = float((one.detach() - other.detach()).norm())
        assert difference <= TOLERANCE * float(other.detach().norm()), (index, difference)


def depthwise(x_BHWC: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1) -> Tensor:
    """The convolution of each channel by itself."""
    y_BCHW = F.conv2d(x_BHWC.permute(0, 3, 1, 2), weight, bias, padding=dilation, dilation=dilation, groups=len(weight))
    return y_BCHW.permute(0, 2, 3, 1)


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The kernel, of a layer's parameters."""
    projected: Tensor = training._Project.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return projected


def mix(x: Tensor, attention: Tensor | None, *parameters: Tensor) -> Tensor:
    """The kernel, of the parameters of both convolutions."""
    mixed: Tensor = training._ConvolveMixed.apply(x, attention, *parameters)  # type: ignore[no-untyped-call]
    return mixed


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("pixels", "inputs", "outputs"), LAYERS)
def test_linear_layers(variant: str, pixels: int, inputs: int, outputs: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    bias = drawn(outputs) if has_bias else None
    assert_equal(project, F.linear, [drawn(pixels, inputs), drawn(outputs, inputs), bias])


@pytest.mark.parametrize("attends", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_convolutions_of_the_mixer(variant: str, size: tuple[int, int, int, int], attends: bool) -> None:
    def expected(x: Tensor, attention: Tensor | None, *parameters: Tensor) -> Tensor:
        weight, bias, dilated_weight, dilated_bias = parameters
        local = F.gelu(depthwise(depthwise(x, weight, bias), dilated_weight, dilated_bias, dilation=2))
        return (local if attention is None else local * attention) + x

    torch.manual_seed(0)
    B, _, _, C = size
    attention = drawn(B, 1, 1, C) if attends else None
    parameters = [drawn(C, 1, 3, 3), drawn(C), drawn(C, 1, 3, 3), drawn(C)]
    assert_equal(mix, expected, [drawn(*size), attention, *parameters])


@pytest.mark.parametrize("size", SIZES)
def test_gated_convolutions(variant: str, size: tuple[int, int, int, int]) -> None:
    def expected(x: Tensor, weight: Tensor) -> Tensor:
        first, second = depthwise(x, weight).chunk(2, dim=-1)
        return F.gelu(first) * second

    torch.manual_seed(0)
    *sides, C = size
    assert_equal(fused.convolve_gated, expected, [drawn(*sides, 2 * C), drawn(2 * C, 1, 3, 3)])


def test_gradients_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    """To the bit, so that studies of different workers can be compared."""

    def gradients(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        torch.manual_seed(0)
        C, size = 24, (3, 80, 70, 24)
        x, expanded = drawn(*size), drawn(*size[:3], 2 * C)
        weights = [drawn(C, 1, 3, 3), drawn(C), drawn(C, 1, 3, 3), drawn(C)]
        gate, layer = drawn(2 * C, 1, 3, 3), [drawn(2 * C, C), drawn(2 * C)]
        output = (
            mix(x, drawn(3, 1, 1, C), *weights).square().sum()
            + fused.convolve_gated(expanded, gate).square().sum()
            + project(x, *layer).square().sum()
        )
        return list(torch.autograd.grad(output, [x, expanded, *weights, gate, *layer]))

    for one, other in zip(gradients(1), gradients(3), strict=True):
        assert torch.equal(one, other)


def test_what_is_not_finite_stays_so(variant: str) -> None:
    for bad in (torch.nan, torch.inf):
        x, weight = torch.randn(2, 8, 8, 20), torch.randn(20, 1, 3, 3)
        x[1, 4, 4, 3] = bad
        ones = torch.ones(20)
        found = {
            "linear": project(x, torch.ones(20, 20), ones)[1, 4, 4],
            "mixer": mix(x, None, weight, ones, weight, ones)[1, 4, 4, 3],
            "gated": fused.convolve_gated(x, weight)[1, 4, 4, 3],
        }
        assert not any(bool(torch.isfinite(values).any()) for values in found.values()), found


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that ran."""
    names: list[str] = []
    run = training._run

    def run_and_tell(name: str, call: Any) -> None:
        names.append(name)
        run(name, call)

    monkeypatch.setattr(training, "_run", run_and_tell)
    return names


@pytest.mark.parametrize("settings", [{"channels": 23, "window": 5}, {"channels": 24, "window": 8, "offsets": False}])
def test_every_variant_trains_as_the_paper(variant: str, settings: dict[str, Any], runs: list[str]) -> None:
    network = build(groups=(2, 1), **settings).train()
    for size in [(2, 17, 30), (1, 5, 3)]:
        input_BCHW = images(*size)
        expected, wanted = step(LiteralCAMixerSR(network), input_BCHW, 1)
        assert not runs
        found, got = step(network, input_BCHW, 1)
        assert_same(found, expected, variant)
        assert_same_gradients(got, wanted, variant)
        assert {name: runs.count(name) for name in set(runs)} == {
            "mixer_convolutions": 2 * 3,
            "gated_convolution": 2 * 3,
            "projection": 2 * (3 * 7 + 2),
        }
        runs.clear()


def test_frozen_parameters_get_no_gradient() -> None:
    network = build(channels=24, window=8).train()
    frozen = {"groups.0.blocks.0.mixer.out.weight", "groups.0.blocks.0.ffn.depthwise.weight"}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
        parameter.grad = None
    restored = network.restore(images(2, 16, 16), generator=torch.Generator().manual_seed(0))
    (restored.image_BCHW.sum() + restored.hard_share_SB.square().sum()).backward()  # type: ignore[no-untyped-call]
    assert {name for name, parameter in network.named_parameters() if parameter.grad is None} == frozen


class _Doubled(nn.Linear):
    """A layer in another's place, such as those of quantisation-aware training."""

    def forward(self, x: Tensor) -> Tensor:
        """Give twice the result."""
        return 2 * super().forward(x)


class _Halved(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """Halve."""
        return weight / 2


def _replace_layer(network: CAMixerSR) -> None:
    ffn: Any = network.groups[0].blocks[0].ffn  # type: ignore[union-attr, index]
    ffn.expand = _Doubled(24, 48, bias=False)


def _parametrize_layer(network: CAMixerSR) -> None:
    ffn: Any = network.groups[0].blocks[0].ffn  # type: ignore[union-attr, index]
    parametrize.register_parametrization(ffn.expand, "weight", _Halved())


def _hook_forward(network: CAMixerSR) -> None:
    network.groups[0].blocks[0].ffn.expand.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, index]


def _hook_backward(network: CAMixerSR) -> None:
    ffn: Any = network.groups[0].blocks[0].ffn  # type: ignore[union-attr, index]
    ffn.expand.register_full_backward_hook(lambda *_: None)


def _forward_otherwise(network: CAMixerSR) -> None:
    ffn: Any = network.groups[0].blocks[0].ffn  # type: ignore[union-attr, index]
    before = ffn.expand.forward
    ffn.expand.forward = lambda x: 2 * before(x)


def _go_operator_by_operator(network: CAMixerSR) -> None:
    network.is_literal = True


def _go_double(network: CAMixerSR) -> None:
    network.double()


@pytest.mark.parametrize(
    "change",
    [
        *(_replace_layer, _parametrize_layer, _hook_forward, _hook_backward, _forward_otherwise),
        *(_go_operator_by_operator, _go_double),
    ],
    ids=lambda change: change.__name__.strip("_"),
)
@pytest.mark.parametrize("is_training", [True, False])
def test_who_has_to_call_layers_does(change: Callable[[CAMixerSR], None], is_training: bool, runs: list[str]) -> None:
    """In training and, where modules are not torch's own, at inference."""
    network = build(channels=24, window=8).train(is_training)
    change(network)
    input_BCHW = images(1, 16, 16).to(next(network.parameters()).dtype)
    with torch.set_grad_enabled(is_training):
        found = network.restore(input_BCHW, generator=torch.Generator().manual_seed(0)).image_BCHW
        assert not runs
        if not is_training:
            assert not fused.suits(network, input_BCHW)
        expected = LiteralCAMixerSR(network).restore(input_BCHW, generator=torch.Generator().manual_seed(0)).image_BCHW
    assert (found - expected).abs().max() <= 1e-4


def test_hooks_of_all_modules_are_called(runs: list[str]) -> None:
    network = build(channels=24, window=8).train()
    called: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        network.restore(images(1, 16, 16))
    finally:
        handle.remove()
    ffn: Any = network.groups[0].blocks[0].ffn  # type: ignore[union-attr, index]
    assert ffn.project in called
    assert not runs


@pytest.mark.parametrize("change", [lambda ffn: ffn.double(), lambda ffn: ffn.to("meta")])
def test_parameters_of_other_kinds_are_left_to_torch(change: Callable[[Any], None], runs: list[str]) -> None:
    network = build(channels=24, window=8).train()
    change(network.groups[0].blocks[0].ffn)  # type: ignore[union-attr, index]
    with contextlib.suppress(RuntimeError):  # what is on `meta` goes through
        network.restore(images(1, 16, 16))
    assert not runs


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError, match="5 features got 7"):
        fused.project(nn.Linear(5, 3), torch.randn(20, 7))
    with pytest.raises(RuntimeError, match="6 channels got"):
        fused.convolve_gated(torch.randn(1, 4, 4, 6), torch.randn(8, 1, 3, 3))


def test_mixed_precision_trains_by_operators(runs: list[str]) -> None:
    network = build(channels=24, window=8).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network.restore(images(1, 16, 16)).image_BCHW.sum().backward()  # type: ignore[no-untyped-call]
    assert not runs

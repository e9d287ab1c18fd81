"""The fast SwinIR against the literal one: outputs and gradients at many sizes, batches, windows, heads and threads."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from harness.core.configs import LayerWidths, SwinIRConfig
from harness.models.literal import LiteralSwinIR
from harness.models.swinir import SwinIR, WindowAttention

CONFIGS = {
    "light": SwinIRConfig(depths=(2, 3)),
    "one head, window of 4": SwinIRConfig(scale=3, depths=(1, 4), embed_dim=7, num_heads=1, window=4, mlp_ratio=1.7),
    "odd window": SwinIRConfig(scale=2, depths=(2,), embed_dim=12, num_heads=3, window=5, image_residual=True),
    "pruned": SwinIRConfig(
        depths=(2, 2),
        embed_dim=22,
        num_heads=4,
        widths=tuple(
            LayerWidths(query=query, value=value, mlp=mlp)
            for query, value, mlp in ((3, 5, 9), (2, 1, 40), (10, 10, 7), (6, 4, 33))
        ),
    ),
    "window of 16": SwinIRConfig(scale=2, depths=(2, 1), embed_dim=16, num_heads=2, window=16),
}
SIZES = [(1, 1), (8, 23), (40, 61), *(pytest.param(size, marks=pytest.mark.slow) for size in [(5, 8), (17, 8)])]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def build_both(config: SwinIRConfig) -> tuple[SwinIR, LiteralSwinIR]:
    """Weights large enough that attention is far from uniform and every part shows in the output."""
    fast = SwinIR(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in fast.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            scale = 1.0 if "position_bias" in name else fan_in**-0.5
            parameter.copy_(drawn * scale + ("norm" in name and name.endswith("weight")))
    return fast, LiteralSwinIR(fast)


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_outputs_equal_the_literal_network(config: SwinIRConfig, size: tuple[int, int]) -> None:
    assert_outputs_are_equal(config, size)


@pytest.mark.parametrize(
    "name", ["odd window", *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name != "odd window")]
)
@torch.inference_mode()
def test_outputs_equal_the_literal_network_by_two_threads(name: str, two_threads: None) -> None:
    """More windows than threads, and not as many in each."""
    assert_outputs_are_equal(CONFIGS[name], (8, 43))


def assert_outputs_are_equal(config: SwinIRConfig, size: tuple[int, int]) -> None:
    fast, literal = build_both(config)
    for batch in (1, 3):
        input_BCHW = noise(batch, 3, *size)
        expected = literal(input_BCHW)
        for fast.is_literal in (False, True):
            torch.testing.assert_close(fast.eval()(input_BCHW), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradients_equal_the_literal_network(config: SwinIRConfig, size: tuple[int, int]) -> None:
    """In double precision, with respect to the input and to every parameter."""
    fast, literal = build_both(config)
    fast.double().train()
    input_BCHW = noise(2, 3, *size).double().requires_grad_()
    gradients = []
    for network in (fast, literal):
        output_BCHW = network(input_BCHW)
        weights = torch.linspace(-1, 1, output_BCHW.numel(), dtype=torch.float64).view_as(output_BCHW).cos()
        named = dict(fast.named_parameters())
        found = torch.autograd.grad((output_BCHW * weights).sum(), [input_BCHW, *named.values()])
        gradients.append(dict(zip(["input", *named], found, strict=True)))
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_heads_at_once_are_heads_one_by_one(config: SwinIRConfig) -> None:
    """What accelerators run, on a CPU: outputs and gradients, with one bias for all windows and one for each."""
    fast = build_both(config)[0].double()
    attention = next(module for module in fast.modules() if isinstance(module, WindowAttention))
    C, L = config.embed_dim, config.window**2
    x_XLC = noise(5, L, C).double().requires_grad_()
    apart_KLL = torch.zeros(3, L, L, dtype=torch.float64)
    apart_KLL[1, : L // 2, L // 2 :] = apart_KLL[1, L // 2 :, : L // 2] = -torch.inf
    for kinds in ([2], [0, 1, 2, 1, 0]):
        bias_AXLL = attention.bias(apart_KLL[None])[:, kinds]
        one_by_one = attention._attend(x_XLC.reshape(-1, C).t(), bias_AXLL).view(5, L, -1)
        at_once = attention.attend_at_once(x_XLC, bias_AXLL.mT.contiguous())
        torch.testing.assert_close(at_once, one_by_one, rtol=1e-9, atol=1e-9)
        leaves = [x_XLC, attention.position_bias, *attention.qkv.parameters()]
        weights = torch.linspace(-1, 1, at_once.numel(), dtype=torch.float64).view_as(at_once)
        found, wanted = (
            torch.autograd.grad((out * weights).sum(), leaves, retain_graph=True) for out in (at_once, one_by_one)
        )
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_cuda_gives_what_the_cpu_gives(config: SwinIRConfig, size: tuple[int, int]) -> None:
    """In double precision; outputs with and without gradients, and those."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    here = build_both(config)[0].double()
    there = copy.deepcopy(here).cuda()
    input_BCHW = noise(2, 3, *size).double()
    outputs = [here(input_BCHW), there(input_BCHW.cuda())]
    torch.testing.assert_close(outputs[1].cpu(), outputs[0], rtol=1e-9, atol=1e-9)
    gradients = [
        torch.autograd.grad(output.square().sum(), list(network.parameters()))
        for output, network in zip(outputs, (here, there), strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-7, atol=1e-7)
    with torch.inference_mode():
        torch.testing.assert_close(there.eval()(input_BCHW.cuda()).cpu(), outputs[0].detach(), rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_a_crowd_of_windows_is_restored_in_parts() -> None:
    """More windows under every mask than are transformed at a time."""
    fast, literal = build_both(SwinIRConfig(scale=2, depths=(2,), embed_dim=6, num_heads=2))
    input_BCHW = noise(2, 3, 8 * 36, 8 * 37)
    torch.testing.assert_close(fast.eval()(input_BCHW), literal(input_BCHW), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("how", ["weights", "autocast"])
@torch.inference_mode()
def test_bfloat16_is_close(how: str) -> None:
    fast, literal = build_both(SwinIRConfig(scale=2, depths=(2,), embed_dim=12, num_heads=3, window=4))
    input_BCHW = noise(2, 3, 13, 22)
    expected = literal(input_BCHW)
    fast.eval()
    if how == "weights":
        output = fast.to(torch.bfloat16)(input_BCHW.to(torch.bfloat16))
        assert output.dtype == torch.bfloat16
    else:
        with torch.autocast("cpu", torch.bfloat16):
            output = fast(input_BCHW)
    error = (output.float() - expected).pow(2).mean().sqrt() / expected.std()
    assert error < 0.03


def test_gradients_flow_after_inference_on_the_same_size() -> None:
    """Nothing made under inference mode may be kept and saved for a backward pass."""
    fast, _ = build_both(SwinIRConfig(scale=2, depths=(2,), embed_dim=12, num_heads=3))
    with torch.inference_mode():
        fast.eval()(noise(1, 3, 16, 16))
    fast.train()(noise(1, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in fast.parameters())

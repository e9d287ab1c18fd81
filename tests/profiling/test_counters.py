"""All counters against multiply-adds counted by hand, and against the closed form on the real networks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.configs import BicubicConfig, BlockWidths, CAMixerSRConfig, LayerWidths, RoutingConfig, SwinIRConfig
from harness.models import build_model
from harness.profiling.counters import count_macs


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module):
        super().__init__()
        self.function = function
        self.inner = nn.ModuleList(modules)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        return self.function(input_BCHW, *self.inner)


B, C, H, W = 2, 4, 12, 20
INPUT = torch.rand(B, C, H, W, generator=torch.Generator().manual_seed(0))

BY_HAND = {
    "convolution with bias": (nn.Conv2d(4, 8, 3, padding=1), B * 8 * H * W * 4 * 9),
    "convolution in groups": (nn.Conv2d(4, 8, 3, padding=1, groups=2), B * 8 * H * W * 2 * 9),
    "depthwise, dilated": (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), B * 4 * H * W * 9),
    "strided": (nn.Conv2d(4, 8, 3, stride=2, padding=1), B * 8 * 6 * 10 * 4 * 9),
    "padding by name": (nn.Conv2d(4, 8, 3, padding="same"), B * 8 * H * W * 4 * 9),
    "transposed": (nn.ConvTranspose2d(4, 8, 2, stride=2), B * H * W * 4 * 8 * 4),
    "linear": (nn.Linear(W, 7), B * C * H * W * 7),
    "linear without bias": (nn.Linear(W, 7, bias=False), B * C * H * W * 7),
    "linear, not contiguous": (Apply(lambda x, m: m(x.mT), nn.Linear(H, 7)), B * C * H * W * 7),
    "matmul": (Apply(lambda x: x @ x.mT), B * C * H * H * W),
    "matmul, broadcast": (Apply(lambda x: x[0, 0].mT @ x), B * C * W * H * W),
    "matrix and vector": (Apply(lambda x: x @ x[0, 0, 0]), B * C * H * W),
    "bmm": (Apply(lambda x: torch.bmm(x[0], x[0].mT)), C * H * H * W),
    "baddbmm": (Apply(lambda x: torch.baddbmm(x[0, :, :, :1], x[0], x[0].mT)), C * H * H * W),
    "einsum": (Apply(lambda x: torch.einsum("bchw, bcvw -> bchv", x, x)), B * C * H * H * W),
    "attention of several heads": (Apply(lambda x: F.scaled_dot_product_attention(x, x, x)), B * C * 2 * H * H * W),
    "attention with a mask": (
        Apply(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(H, H))),
        B * C * 2 * H * H * W,
    ),
    "attention of unequal widths": (
        Apply(lambda x: F.scaled_dot_product_attention(x, x[:, :, :5], x[:, :, :5, :3])),
        B * C * H * 5 * (W + 3),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_all_counters_count_multiply_adds(name: str) -> None:
    network, macs = BY_HAND[name]
    record = count_macs(network, INPUT)
    assert record.by_counter == {"fvcore": macs, "ptflops": macs, "torch": macs}
    assert (record.macs, record.agree, record.max_disagreement) == (macs, True, 0.0)
    assert (record.input_size, record.batch_size) == ((H, W), B)


def test_what_is_not_counted_is_listed() -> None:
    network = nn.Sequential(nn.ReLU(), nn.LayerNorm(W), nn.GELU(), nn.GELU(), nn.Softmax(-1), nn.AdaptiveAvgPool2d(1))
    record = count_macs(network, INPUT)
    assert record.macs == 0
    assert record.uncounted == {
        "aten::adaptive_avg_pool2d": 1,
        "aten::gelu": 2,
        "aten::layer_norm": 1,
        "aten::relu": 1,
        "aten::softmax": 1,
    }


def test_moving_data_and_reckoning_sizes_are_not_arithmetic() -> None:
    network = Apply(lambda x: F.pad(x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1] // 2), (0, 1)).flip(0))
    assert count_macs(network, INPUT).uncounted == {}


class HiddenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ x.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError


def test_an_operator_that_hides_from_the_trace_shows() -> None:
    hide: Callable[[Tensor], Tensor] = HiddenProduct.apply
    record = count_macs(Apply(lambda x, m: m(hide(x)), nn.Linear(H, 3)), INPUT)
    assert record.by_counter == {
        "fvcore": B * C * H * H * 3,
        "ptflops": B * C * H * H * (3 + W),
        "torch": B * C * H * H * (3 + W),
    }
    assert record.uncounted == {"prim::PythonOp.HiddenProduct": 1}
    assert not record.agree
    assert record.max_disagreement == pytest.approx(W / (3 + W))


def test_an_operator_that_hides_a_convolution_before_it_shows() -> None:
    """A detour through numpy cuts the trace: the convolution before it looks dead to a tracing counter."""
    record = count_macs(Apply(lambda x, m: torch.from_numpy(m(x).numpy()) + 1, nn.Conv2d(4, 8, 3)), INPUT)
    assert record.by_counter["fvcore"] == 0
    assert record.by_counter["ptflops"] == B * 8 * 10 * 18 * 4 * 9
    assert not record.agree


def test_the_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sequential(nn.Dropout(), nn.Linear(18, 5)))
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_macs(network, INPUT)
    assert [module.training for module in network.modules()] == [True, True, False, False, False]
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.is_grad_enabled()


def test_nothing_is_printed_or_logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    count_macs(Apply(lambda x, m: x.softmax(-1), nn.Linear(1, 1)), INPUT)
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


def count_all(config: CAMixerSRConfig | SwinIRConfig, size: tuple[int, int], **share: Any) -> dict[str, int]:
    torch.manual_seed(0)
    record = count_macs(build_model(config), torch.rand(2, 3, *size), config=config, **share)
    assert record.agree
    return record.by_counter


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
switches = st.fixed_dictionaries(
    {
        name: st.booleans()
        for name in (
            "image_residual",
            "spatial_attention",
            "channel_attention",
            "offsets",
            "global_condition",
            "window_condition",
            "scaled_attention",
        )
    }
)


BLOCK_WIDTHS = st.builds(
    BlockWidths, **{name: st.integers(1, 20) for name in ("mixer", "query", "predictor", "offsets", "ffn")}
)
LAYER_WIDTHS = st.builds(LayerWidths, query=st.integers(1, 7), value=st.integers(1, 7), mlp=st.integers(1, 20))


@st.composite
def camixersr_configs(draw: st.DrawFn) -> CAMixerSRConfig:
    groups = tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=2)))
    gammas = st.sampled_from((0.0, 0.2, 0.5, 0.9, 1.0))
    chosen = draw(switches)
    policy = draw(st.sampled_from(("fixed", "schedule", "detail")))
    if policy == "fixed":
        routing = RoutingConfig(gamma=draw(gammas))
    else:
        values = tuple(draw(gammas) for _ in range(sum(groups)))
        routing = (
            RoutingConfig(policy="schedule", schedule=values)
            if policy == "schedule"
            else RoutingConfig(policy="detail", gamma=draw(gammas), block_weights=values)
        )
    return CAMixerSRConfig.model_validate(
        {
            "scale": draw(st.sampled_from((2, 3, 4))),
            "groups": groups,
            "channels": draw(st.integers(8, 24)),
            "window": draw(st.sampled_from((4, 8))),
            "routing": routing,
            "widths": draw(st.none() | st.tuples(*[BLOCK_WIDTHS] * sum(groups))),
            **chosen,
        }
    )


# Nothing reads the predictor here, nor the global condition: a trace drops both.
BARE = {"groups": (2,), "channels": 12, "window": 8, "spatial_attention": False, "channel_attention": False}


@settings(max_examples=10, deadline=None)
@given(config=camixersr_configs(), size=sizes)
@example(
    config=CAMixerSRConfig.model_validate({**BARE, "routing": {"policy": "schedule", "schedule": (0, 0)}}),
    size=(32, 32),
)
@example(
    config=CAMixerSRConfig.model_validate(
        {**BARE, "offsets": False, "routing": {"policy": "detail", "gamma": 0.5, "block_weights": (1, 0.5)}}
    ),
    size=(32, 32),
)
def test_camixersr_closed_form_and_counters_are_equal(config: CAMixerSRConfig, size: tuple[int, int]) -> None:
    if config.routing.policy == "detail" and config.widths is not None:  # which blocks attend shows on the image alone
        config = config.with_routing(RoutingConfig(policy="fixed", gamma=config.routing.gamma))
    assert len(set(count_all(config, size).values())) == 1


@settings(max_examples=6, deadline=None)
@given(
    heads=st.integers(1, 3),
    width=st.integers(2, 6),
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=2),
    window=st.sampled_from((4, 8)),
    mlp_ratio=st.sampled_from((1.0, 1.7, 2.0)),
    scale=st.sampled_from((2, 3, 4)),
    size=sizes,
    widths=st.none() | st.tuples(*[LAYER_WIDTHS] * 4),
)
def test_swinir_closed_form_and_counters_are_equal(
    size: tuple[int, int],
    heads: int,
    width: int,
    depths: list[int],
    widths: tuple[LayerWidths, ...] | None,
    **rest: Any,
) -> None:
    if widths is not None:
        rest["widths"] = widths[: sum(depths)]
    config = SwinIRConfig.model_validate({"embed_dim": heads * width, "num_heads": heads, "depths": depths, **rest})
    assert len(set(count_all(config, size).values())) == 1


@pytest.mark.parametrize("policy", ["probability", "threshold"])
def test_routing_that_depends_on_the_image_equals_its_realised_share(policy: str) -> None:
    config = CAMixerSRConfig.model_validate(
        {"channels": 12, "groups": (2, 1), "window": 4, "routing": {"policy": policy}}
    )
    torch.manual_seed(3)
    network = build_model(config).eval()
    input_BCHW = torch.rand(2, 3, 24, 24)
    with torch.no_grad():
        share = network.restore(input_BCHW).hard_share_SB.mean(dim=1)
    record = count_macs(network, input_BCHW, config=config, attention_share=share.tolist())
    assert len(set(record.by_counter.values())) == 1


def test_bicubic_has_no_macs() -> None:
    record = count_macs(build_model(BicubicConfig()), torch.rand(1, 3, 8, 8), config=BicubicConfig())
    assert (record.macs, record.agree) == (0, True)
    assert record.uncounted["aten::_upsample_bicubic2d_aa"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("config", [CAMixerSRConfig(), SwinIRConfig()], ids=["camixersr-b", "swinir-light"])
def test_the_paper_size_is_counted_alike(config: CAMixerSRConfig | SwinIRConfig) -> None:
    record = count_macs(build_model(config), torch.rand(1, 3, 180, 320), config=config)
    assert len(set(record.by_counter.values())) == 1

"""The path of devices without one of their own: hard windows gathered, nothing waited for where K is known.

It runs on a CPU too, where gradients are asked for in eval mode. In double precision, so that one window taken for
another, or one term left out, cannot pass for rounding.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.core.configs import AnyModelConfig, CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.models import CAMixerSR, build_model, camixersr
from harness.models.camixersr import CAMixer, MixerMode, head_width
from harness.models.network import Restoration
from tests.models.test_literal import ABLATIONS, NETWORKS, SIZES, build, images, routings


def mixer(network: CAMixerSR, block: int = 0) -> CAMixer:
    mixers = [module for module in network.modules() if isinstance(module, CAMixer)]
    return mixers[block]


def assert_gathered_is_literal(network: CAMixerSR, input_BCHW: Tensor, what: object, **options: Any) -> Restoration:
    network.is_literal = True
    expected = network.restore(input_BCHW, **options)
    network.is_literal = False
    found = network.restore(input_BCHW, **options)
    assert torch.equal(found.hard_share_SB, expected.hard_share_SB), what
    torch.testing.assert_close(found.image_BCHW, expected.image_BCHW, rtol=1e-9, atol=1e-9, msg=str(what))
    return found


# Double precision is dear: long images, and many at once, by the networks that tell most; by all of them in slow tests.
CASES = [
    pytest.param(
        settings,
        size,
        id=f"{name}-{'×'.join(map(str, size))}",
        marks=()
        if name == "C24 M8" or size in SIZES[:2] or (size == SIZES[4] and name == "C60 M16")
        else pytest.mark.slow,
    )
    for name, settings in NETWORKS.items()
    for size in SIZES
]


@pytest.mark.parametrize(("settings", "size"), CASES)
def test_gathering_changes_nothing(settings: dict[str, Any], size: tuple[int, int, int], device: torch.device) -> None:
    """Each network and size under two of the policies; all pairs of policy and size, and of policy and network."""
    network = build(**settings).double().to(device)
    choices = routings(network.config.num_blocks)
    turn = list(NETWORKS.values()).index(settings) + 2 * SIZES.index(size)
    input_BCHW = images(*size).double().to(device)
    for step in (0, 5):
        network.routing = choices[(turn + step) % len(choices)]
        assert_gathered_is_literal(network, input_BCHW, network.routing.label())


@pytest.mark.slow
def test_maps_of_importance_are_followed(device: torch.device) -> None:
    network = build(channels=24, window=8, groups=(1, 2)).double().to(device)
    input_BCHW = images(2, 60, 75).double().to(device)
    importance_BHW = 3 * torch.rand(2, 60, 75, generator=torch.Generator().manual_seed(5)).double().to(device) ** 8
    plain = {}
    for routing in (*routings(3)[1::2], RoutingConfig(policy="threshold")):
        network.routing = routing
        plain[routing.label()] = network.restore(input_BCHW).image_BCHW
        guided = assert_gathered_is_literal(network, input_BCHW, routing.label(), importance_BHW=importance_BHW)
        if 0 < guided.hard_share_SB.mean() < 1 and routing.policy != "threshold":
            assert not torch.equal(guided.image_BCHW, plain[routing.label()])


@pytest.mark.parametrize("gamma", [0.5, *(pytest.param(gamma, marks=pytest.mark.slow) for gamma in (0.1, 0.9))])
def test_ties_are_broken_in_window_order(gamma: float, device: torch.device) -> None:
    """All windows tie where the logits read nothing; some do where these are rounded."""
    network = build(channels=24, window=8).double().to(device)
    input_BCHW = images(2, 60, 75).double().to(device)
    out = mixer(network).predictor.routing_out
    for policy in ("fixed", "probability"):
        network.routing = RoutingConfig.model_validate({"policy": policy, "gamma": gamma})
        handle = out.register_forward_hook(lambda _module, _inputs, logits: (2 * logits).round() / 2)
        some = assert_gathered_is_literal(network, input_BCHW, "some tie")
        handle.remove()
        assert 0 < some.hard_share_SB[0].mean() < 1
    with torch.no_grad():
        out.weight.zero_()
    for policy in ("fixed", "probability"):
        network.routing = RoutingConfig.model_validate({"policy": policy, "gamma": gamma})
        assert_gathered_is_literal(network, input_BCHW, "all tie")


@pytest.mark.parametrize("push", [40.0, -40.0])
def test_blocks_may_want_all_windows_or_none(push: float, device: torch.device) -> None:
    network = build(channels=24, window=8).double().to(device)
    with torch.no_grad():
        mixer(network).predictor.routing_out.bias.copy_(torch.tensor([push, -push]))
    input_BCHW = images(2, 60, 75).double().to(device)
    for routing in (RoutingConfig(policy="threshold"), RoutingConfig(policy="probability", gamma=0.5)):
        network.routing = routing
        shares_SB = assert_gathered_is_literal(network, input_BCHW, routing.label()).hard_share_SB
        assert torch.allclose(shares_SB[0], torch.full_like(shares_SB[0], float(push > 0)))


def test_training_is_as_dense_in_double_precision(device: torch.device) -> None:
    network = build(channels=36, window=8, groups=(1, 2)).double().to(device).train()
    input_BCHW = images(2, 40, 52).double().to(device)
    outputs, gradients = [], []
    for network.is_literal in (True, False):
        restored = network.restore(input_BCHW, generator=torch.Generator().manual_seed(3))
        loss = restored.image_BCHW.square().mean() + restored.hard_share_SB.square().mean()
        outputs.append(restored.image_BCHW)
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    for (name, _), one, other in zip(network.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10, msg=name)


def test_offsets_that_are_not_finite_come_out_as_such(device: torch.device) -> None:
    network = build(channels=8, window=4).to(device)
    for value in (float("nan"), float("inf")):
        input_BCHW = images(1, 16, 16).to(device)
        input_BCHW[0, 0, 3, 3] = value
        assert network.restore(input_BCHW).image_BCHW.isnan().any()
    out = mixer(network).predictor.offsets_out
    assert out is not None
    with torch.no_grad():
        out.weight.fill_(torch.nan)
    for gamma in (1, 0.5):
        network.routing = RoutingConfig(gamma=gamma)
        assert network.restore(images(1, 16, 16).to(device)).image_BCHW.isnan().any()


# What a head of attention is continued by.


@pytest.mark.parametrize("channels", [4, 10, 36, 60])
@pytest.mark.parametrize("windows", [0, 1, 7])
def test_zeros_behind_the_channels_change_nothing(
    channels: int, windows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients, at the width that accelerators get, and in calls of at most three windows."""
    torch.manual_seed(1)
    module = CAMixer(CAMixerSRConfig(channels=channels, window=4), 0).double().to(device)
    x, keyed, value = (torch.rand(windows, 16, channels).double().to(device).requires_grad_() for _ in range(3))
    mode, results = MixerMode(is_literal=False, is_dense=False, runs_kernels=False, gumbel_SBN2=None), []
    for width, most in ((channels, 65535), (-(-channels // 8) * 8, 65535), (channels + 8, 3)):
        monkeypatch.setattr(camixersr, "MOST_ATTENDED", most)
        attended = module.attend(x, keyed, value, width, mode)
        assert attended.shape == (windows, 16, channels)
        leaves = [x, keyed, value, *module.query.parameters(), *module.key.parameters()]
        weights = torch.linspace(-1, 1, attended.numel()).to(attended).view_as(attended)
        results.append([attended, *torch.autograd.grad((attended * weights).sum(), leaves)])
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-12)


def test_accelerators_get_multiples_of_eight() -> None:
    for kind in ("cuda", "meta"):
        assert [head_width(channels, torch.device(kind)) for channels in (1, 8, 10, 60)] == [8, 8, 16, 64]
    assert head_width(60, torch.device("cpu")) == 60


# What waits for the device, and what reaches for the host's memory.


class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that wait for a device or have shapes that depend on it, and those that go between devices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: Counter[str] = Counter()
        self.transfers: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        indices = tree_leaves(args[1]) if name in ("index", "index_put", "index_put_") else []
        by_mask = any(index.dtype == torch.bool for index in indices if isinstance(index, Tensor))
        by_counts = name == "repeat_interleave" and any(isinstance(value, Tensor) for value in args[1:])
        if by_mask or by_counts or name in ("nonzero", "_local_scalar_dense", "item", "masked_select", "unique"):
            self.waits[name] += 1
        if len({value.device.type for value in (*given, *made)}) > 1 or name in ("lift_fresh", "lift_fresh_copy"):
            self.transfers.append(name)
        return result


STATIC: dict[str, dict[str, Any]] = {
    **{f"fixed {gamma}": {"gamma": gamma} for gamma in (0, 0.3, 1)},
    "schedule": {"policy": "schedule", "schedule": (0.7, 0.0, 1.0)},
    "probability 0": {"policy": "probability", "gamma": 0},
    "probability 1": {"policy": "probability", "gamma": 1},
}
SMALL: dict[str, Any] = {"groups": (1, 2), "channels": 20, "window": 8}
ABLATED = dict.fromkeys(ABLATIONS, False)
STATIC_CONFIGS: dict[str, AnyModelConfig] = {
    **{name: CAMixerSRConfig.model_validate({**SMALL, "routing": routing}) for name, routing in STATIC.items()},
    "image residual": CAMixerSRConfig.model_validate({**SMALL, "image_residual": True}),
    "without any": CAMixerSRConfig.model_validate({**SMALL, **ABLATED}),
    "swinir": SwinIRConfig(depths=(2, 3)),
    "swinir with image residual": SwinIRConfig(depths=(2,), window=5, image_residual=True),
}


@pytest.mark.parametrize("name", STATIC_CONFIGS)
def test_static_passes_neither_wait_nor_read_the_host(name: str) -> None:
    """On tensors without values: whatever needs one, or a shape that depends on one, raises."""
    network = build_model(STATIC_CONFIGS[name]).eval().to("meta")
    assert network.is_static
    for size in ((1, 3, 33, 50), (2, 3, 5, 3)):
        with torch.no_grad(), Seen() as seen:
            restored = network.restore(torch.rand(size, device="meta"))
        assert restored.image_BCHW.shape == (size[0], 3, size[2] * network.scale, size[3] * network.scale)
        assert not seen.waits
        assert not seen.transfers


def test_what_waits_is_seen() -> None:
    """What the test above rests on."""
    with Seen() as seen:
        x = torch.arange(4.0)
        _ = x[x > 1], x[torch.tensor([0, 1])], x.to("meta"), float(x.sum()), x.nonzero()
    assert seen.waits == {"index": 1, "_local_scalar_dense": 1, "nonzero": 1}
    assert "lift_fresh" in seen.transfers
    assert "_to_copy" in seen.transfers
    with pytest.raises(NotImplementedError):
        torch.rand(4, device="meta").nonzero()


@pytest.mark.parametrize(
    ("routing", "waits"),
    [
        (RoutingConfig(policy="probability", gamma=0.5), 3),
        (RoutingConfig(policy="threshold"), 3),
        (RoutingConfig(policy="detail", gamma=0.5, block_weights=(1.0, 0.5, 0.2)), 1),
    ],
    ids=["probability", "threshold", "detail"],
)
def test_others_wait_once_in_each_block_or_once_in_all(routing: RoutingConfig, waits: int) -> None:
    """How many windows a block attends to must be known to go on; `detail` asks once for all blocks."""
    network = build(channels=24, window=8, groups=(1, 2))
    network.routing = routing
    assert not network.is_static
    with Seen() as seen:
        network.restore(images(2, 60, 75))
    assert seen.waits == {"nonzero": waits}


def test_training_waits_once_in_each_block() -> None:
    network = build(channels=24, window=8, groups=(1, 2)).train()
    with Seen() as seen:
        restored = network.restore(images(2, 60, 75), generator=torch.Generator().manual_seed(0))
        (restored.image_BCHW.mean() + restored.hard_share_SB.mean()).backward()  # type: ignore[no-untyped-call]
    assert seen.waits == {"nonzero": 3}

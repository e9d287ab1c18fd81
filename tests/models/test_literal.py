"""The network against algorithm 1 word for word: same windows chosen, same output, same gradients, on every path."""

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.errors import TrialFailedError
from harness.models import CAMixerSR
from harness.models.literal import LiteralCAMixerSR
from harness.models.network import Restoration

TOLERANCE = 1e-4  # of outputs, in full scale
ABLATIONS = (
    "spatial_attention",
    "channel_attention",
    "offsets",
    "global_condition",
    "window_condition",
)
# Odd and even, more and fewer than one another, of the features' 20 or 34 channels and of a vector's.
WIDTHS = (
    {"mixer": 13, "query": 9, "predictor": 4, "offsets": 2, "ffn": 17},
    {"mixer": 20, "query": 3, "predictor": 7, "offsets": 1, "ffn": 8},
    {"mixer": 6, "query": 20, "predictor": 3, "offsets": 3, "ffn": 33},
)
NETWORKS: dict[str, dict[str, Any]] = {
    "C24 M8": {"channels": 24, "window": 8, "groups": (1, 2)},
    "C36 M16": {"channels": 36, "window": 16, "groups": (2,), "scale": 3},
    "C60 M32": {"channels": 60, "window": 32, "groups": (1,), "scale": 2},
    "C60 M16": {"channels": 60, "window": 16, "groups": (1,), "image_residual": True},
    "scaled": {"channels": 36, "window": 8, "groups": (1, 1), "scaled_attention": True},
    **{f"without {name}": {"channels": 24, "window": 8, "groups": (1, 1), name: False} for name in ABLATIONS},
    "pruned": {"channels": 20, "window": 8, "groups": (1, 2), "widths": WIDTHS},
    "pruned, M16": {"channels": 34, "window": 16, "groups": (1, 1), "widths": WIDTHS[1:], "scaled_attention": True},
    "without any": {"channels": 36, "window": 8, "groups": (2,), **dict.fromkeys(ABLATIONS, False)},
}
SIZES = [(1, 1, 1), (2, 60, 75), (1, 131, 64), (1, 400, 40), (9, 20, 31)]  # images, height, width


def build(seed: int = 0, **settings: Any) -> CAMixerSR:
    """Weights that leave nothing idle: norms that scale and shift, long offsets, logits that tell windows apart."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = CAMixerSR(CAMixerSRConfig.model_validate({"groups": (1, 1), **settings})).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or name.startswith("tail"):  # the tail of a residual network starts at zero
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            if "offsets_out.weight" in name or "routing_out.weight" in name:
                parameter.mul_(10)
    return network


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Noise whose strength differs from place to place and from image to image."""
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    strength = torch.linspace(0.1, 1, width) * torch.linspace(1, 0.3, height)[:, None]
    return noise * strength * torch.linspace(1, 0.4, count)[:, None, None, None]


def routings(blocks: int) -> list[RoutingConfig]:
    schedule = ([0.7, 0.0, 0.4] * blocks)[:blocks]
    settings: list[dict[str, Any]] = [
        *({"policy": "fixed", "gamma": gamma} for gamma in (1, 0.5, 0.25, 0)),
        *({"policy": "probability", "gamma": gamma} for gamma in (0.3, 0.8)),
        {"policy": "threshold"},
        {"policy": "schedule", "schedule": schedule},
        {"policy": "detail", "gamma": 0.3, "block_weights": ([1.0, 0.0, 0.2] * blocks)[:blocks]},
        {"policy": "detail", "gamma": 0.5, "block_weights": ([0.3, 1.0] * blocks)[:blocks]},
    ]
    return [RoutingConfig.model_validate(values) for values in settings]


def assert_same(found: Restoration, expected: Restoration, what: object) -> None:
    assert torch.equal(found.hard_share_SB, expected.hard_share_SB), what
    difference = (found.image_BCHW - expected.image_BCHW).abs().max().item()
    assert difference <= TOLERANCE, (what, difference)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "×".join(map(str, size)))
@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS.keys())
@torch.inference_mode()
def test_inference_is_the_papers(settings: dict[str, Any], size: tuple[int, int, int]) -> None:
    """Each network and size under two of the policies; all pairs of policy and size, and of policy and network."""
    network = build(**settings)
    choices = routings(network.config.num_blocks)
    turn = list(NETWORKS.values()).index(settings) + 2 * SIZES.index(size)
    input_BCHW = images(*size)
    for routing in (choices[turn % len(choices)], choices[(turn + 5) % len(choices)]):
        network.routing = routing
        expected = LiteralCAMixerSR(network).restore(input_BCHW)
        for is_literal in (False, True):
            network.is_literal = is_literal
            assert_same(network.restore(input_BCHW), expected, (routing.label(), is_literal))


@torch.inference_mode()
def test_maps_of_importance_guide_all_paths_alike() -> None:
    network = build(channels=24, window=8, groups=(1, 2))
    input_BCHW = images(2, 60, 75)
    importance_BHW = 3 * torch.rand(2, 60, 75, generator=torch.Generator().manual_seed(5)) ** 8
    importance_BHW[:, :20] += 2
    for routing in routings(3)[1::2]:
        network.routing = routing
        expected = LiteralCAMixerSR(network).restore(input_BCHW, importance_BHW=importance_BHW)
        for is_literal in (False, True):
            network.is_literal = is_literal
            found = network.restore(input_BCHW, importance_BHW=importance_BHW)
            assert_same(found, expected, (routing.label(), is_literal))


@torch.inference_mode()
def test_the_oracle_tells_one_window_from_another() -> None:
    """What the comparison rests on: attention in other windows, or in none, is far outside the tolerance."""
    network = build(channels=24, window=8)
    oracle, input_BCHW = LiteralCAMixerSR(network), images(1, 60, 75)
    outputs = []
    for gamma in (1, 0.5, 0):
        network.routing = RoutingConfig(gamma=gamma)
        outputs.append(oracle.restore(input_BCHW).image_BCHW)
    moved_BHW = torch.zeros(1, 60, 75)
    moved_BHW[:, 8:16] = 1000
    network.routing = RoutingConfig(gamma=0.5)
    outputs.append(oracle.restore(input_BCHW, importance_BHW=moved_BHW).image_BCHW)
    for index, one in enumerate(outputs):
        assert all((one - other).abs().max() > 100 * TOLERANCE for other in outputs[index + 1 :])


Gradients = dict[str, Tensor]


def step(restorer: CAMixerSR | LiteralCAMixerSR, input_BCHW: Tensor, seed: int) -> tuple[Restoration, Gradients]:
    """Outputs, and the gradient of every parameter and of the input under a loss that reads image and shares."""
    restorer.zero_grad()
    input_BCHW = input_BCHW.clone().requires_grad_()
    restored = restorer.restore(input_BCHW, generator=torch.Generator().manual_seed(seed))
    weights = torch.rand(restored.image_BCHW.shape, generator=torch.Generator().manual_seed(9)).to(input_BCHW) - 0.5
    weights_SB = torch.linspace(-1, 2, restored.hard_share_SB.numel()).view_as(restored.hard_share_SB)
    loss = (restored.image_BCHW * weights).mean() + (restored.hard_share_SB * weights_SB).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert input_BCHW.grad is not None
    gradients = {"input": input_BCHW.grad.clone()}
    for name, parameter in restorer.named_parameters():
        assert parameter.grad is not None, name
        gradients[name.removeprefix("network.")] = parameter.grad.clone()
    return Restoration(*(part.detach() for part in restored)), gradients


def assert_same_gradients(found: Gradients, expected: Gradients, what: object) -> None:
    """Relative to each gradient, above a floor of rounding errors: that of the key's bias is zero by construction."""
    assert found.keys() == expected.keys()
    floor = 1e-7 * max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        difference, size = float((found[name] - gradient).norm()), float(gradient.norm())
        assert difference <= 2e-4 * size + floor, (what, name, difference, size)


TRAINED = [
    *("C24 M8", "C36 M16", "C60 M32", "scaled", "pruned"),
    *("without spatial_attention", "without offsets", "without any"),
]


PATHS = {"default": (False, False), "dense": (False, True), "operator by operator": (True, True)}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", TRAINED)
def test_training_is_the_papers(name: str, path: str) -> None:
    network = build(**NETWORKS[name]).train()
    network.is_literal, network.is_dense = PATHS[path]
    oracle = LiteralCAMixerSR(network)
    drawn = set()
    for seed, size in enumerate([(1, 33, 40), (2, 5, 3), (1, 7, 64)]):  # few windows are often all alike
        input_BCHW = images(*size)
        for network.routing_noise in (True, False):
            expected, wanted = step(oracle, input_BCHW, seed)
            found, got = step(network, input_BCHW, seed)
            assert_same(found, expected, (size, network.routing_noise))
            assert_same_gradients(got, wanted, (size, network.routing_noise))
            drawn |= set(expected.hard_share_SB.flatten().tolist())
    assert len(drawn) > 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("forced", ["hard", "simple", "mixed", "hard in one block"])
def test_training_is_the_papers_whatever_the_mask(forced: str, path: str) -> None:
    network = build(channels=24, window=8).train()
    network.is_literal, network.is_dense = PATHS[path]
    network.routing_noise = False
    with torch.no_grad():
        for index, group in enumerate(network.groups):
            out: Any = group.blocks[0].mixer.predictor.routing_out  # type: ignore[union-attr, index]
            push = {"hard": 1.0, "simple": -1.0, "mixed": 0.0, "hard in one block": 1.0 - 2 * index}[forced]
            out.bias.copy_(torch.tensor([3.0 * push, -3.0 * push]))
            if forced == "mixed":  # centred, so that the windows fall on both sides
                hidden: list[Tensor] = []
                handle = out.register_forward_hook(lambda _m, _i, logits, found=hidden: found.append(logits))
                network.restore(images(2, 40, 40))
                handle.remove()
                difference = hidden[0][..., 0] - hidden[0][..., 1]
                out.bias[0] -= difference.median() + 1e-3
    input_BCHW = images(2, 40, 40)
    expected, wanted = step(LiteralCAMixerSR(network), input_BCHW, 0)
    shares = expected.hard_share_SB.mean(dim=1)
    fits = {
        "hard": bool((shares == 1).all()),
        "simple": bool((shares == 0).all()),
        "mixed": bool(((shares > 0.2) & (shares < 0.8)).all()),
        "hard in one block": shares.tolist() == [1, 0],
    }
    assert fits[forced], shares
    found, got = step(network, input_BCHW, 0)
    assert_same(found, expected, forced)
    assert_same_gradients(got, wanted, forced)


def test_the_oracle_shares_parameters_and_leaves_random_numbers_alone() -> None:
    network = build(channels=8, window=4).train()
    oracle = LiteralCAMixerSR(network)
    assert {id(parameter) for parameter in oracle.parameters()} == {id(parameter) for parameter in network.parameters()}
    before = torch.random.get_rng_state()
    oracle.restore(images(1, 8, 8), generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    network.routing = RoutingConfig(gamma=0.25)
    assert oracle.config.routing.gamma == 0.25
    assert oracle.scale == network.scale


@torch.inference_mode()
def test_offsets_that_are_not_finite_end_in_an_error_and_not_in_foreign_memory() -> None:
    network = build(channels=8, window=4)
    for value in (float("nan"), float("inf")):
        input_BCHW = images(1, 16, 16)
        input_BCHW[0, 0, 3, 3] = value
        with pytest.raises(TrialFailedError, match=r"block 0 .* not finite"):
            network.restore(input_BCHW)
    broken: Any = network.groups[1].blocks[0].mixer.predictor.offsets_out  # type: ignore[union-attr, index]
    broken.weight.fill_(torch.nan)
    with pytest.raises(TrialFailedError, match=r"block 1 .* not finite"):
        network.restore(images(1, 16, 16))


@pytest.mark.parametrize("is_literal", [False, True])
@torch.inference_mode()
def test_bf16_stays_close(is_literal: bool) -> None:
    """Windows may change places, so γ = 1 and 0 are compared; what lies between must be finite."""
    network = build(channels=24, window=8)
    network.is_literal = is_literal
    oracle, input_BCHW = LiteralCAMixerSR(network), images(2, 40, 40)
    for gamma in (1, 0.5, 0):
        network.routing = RoutingConfig(gamma=gamma)
        expected = oracle.restore(input_BCHW).image_BCHW
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network.restore(input_BCHW).image_BCHW.float()
            also = oracle.restore(input_BCHW).image_BCHW.float()
        assert found.isfinite().all()
        assert also.isfinite().all()
        if gamma != 0.5:
            assert (found - expected).abs().mean() < 0.05 * expected.std()
            assert (also - expected).abs().mean() < 0.05 * expected.std()

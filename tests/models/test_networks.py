"""Properties of the networks: sizes, parameter counts, ablations, batches, borders."""

import pytest
import torch
from torch import Tensor

from harness.core.configs import AnyModelConfig, BicubicConfig, CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.models import CAMixerSR, SRNetwork, build_model, preset_config, restore_tiled, restore_whole
from harness.models.bicubic import upscale_bicubic
from harness.models.padding import pad_symmetric, pad_to_multiple
from harness.models.tiling import tile_starts

SMALL: list[AnyModelConfig] = [
    CAMixerSRConfig(scale=2, groups=(1, 1), channels=8, window=4),
    CAMixerSRConfig(scale=3, groups=(2,), channels=10, window=8, image_residual=True),
    SwinIRConfig(scale=2, depths=(2,), embed_dim=12, num_heads=3),
    BicubicConfig(scale=4),
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def build(config: AnyModelConfig, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    network = build_model(config)
    for parameter in network.parameters():  # zero-initialised layers would hide what the others do
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize(
    ("preset", "counts"),
    [
        ("camixersr-s", (339_538, 344_413, 351_238)),
        ("camixersr-m", (518_970, 525_465, 534_558)),
        ("camixersr-b", (745_846, 753_961, 765_322)),
        ("swinir-light", (910_152, 918_267, 929_628)),
        ("bicubic", (0, 0, 0)),
    ],
)
def test_parameter_counts_are_the_published_ones(preset: str, counts: tuple[int, int, int]) -> None:
    for scale, expected in zip((2, 3, 4), counts, strict=True):
        network = build_model(preset_config(preset, scale))
        assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.label())
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 1), (7, 8), (8, 8), (9, 17), (16, 23)])
@torch.inference_mode()
def test_any_size_is_restored(config: AnyModelConfig, size: tuple[int, int]) -> None:
    output = build(config)(noise(2, 3, *size))
    assert output.shape == (2, 3, size[0] * config.scale, size[1] * config.scale)
    assert output.isfinite().all()


@pytest.mark.parametrize("policy", ["fixed", "probability", "threshold", "schedule", "detail"])
@torch.inference_mode()
def test_image_of_a_batch_equals_that_image_alone(policy: str) -> None:
    """Images of very different content, so that their K differ where the policy lets them."""
    schedule = (0.3, 0.0, 0.8) if policy == "schedule" else None
    weights = (0.3, 0.0, 0.8) if policy == "detail" else None
    routing = RoutingConfig.model_validate(
        {"policy": policy, "gamma": 0.4, "schedule": schedule, "block_weights": weights}
    )
    network = build(CAMixerSRConfig(scale=2, groups=(2, 1), channels=8, window=4, routing=routing), seed=3)
    batch = torch.cat([noise(1, 3, 13, 22), torch.full((1, 3, 13, 22), 0.5), noise(1, 3, 13, 22, seed=1) ** 8])
    together = network(batch)
    assert torch.equal(together, network(batch))
    for index in range(3):
        alone = network(batch[index : index + 1])[0]
        assert (together[index] - alone).abs().max() < 1e-5


@torch.inference_mode()
def test_schedule_of_zeros_equals_gamma_zero_and_of_ones_gamma_one() -> None:
    network = build(CAMixerSRConfig(scale=2, groups=(2,), channels=8, window=4))
    assert isinstance(network, CAMixerSR)
    image = noise(1, 3, 12, 12)
    outputs = []
    for gamma in (0.0, 1.0):
        network.routing = RoutingConfig(gamma=gamma)
        fixed = network(image)
        network.routing = RoutingConfig(policy="schedule", schedule=(gamma, gamma))
        assert torch.equal(network(image), fixed)
        network.routing = RoutingConfig(policy="probability", gamma=gamma)
        assert torch.equal(network(image), fixed)
        outputs.append(fixed)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_hard_share_is_k_over_n() -> None:
    network = build(CAMixerSRConfig(scale=2, groups=(1, 1), channels=8, window=4, routing=RoutingConfig(gamma=0.4)))
    assert isinstance(network, CAMixerSR)
    share = network.restore(noise(2, 3, 10, 14)).hard_share_SB  # 3 × 4 windows, K = floor(4.8)
    assert share.shape == (2, 2)
    assert torch.allclose(share, torch.tensor(4 / 12))


@pytest.mark.parametrize("policy", ["fixed", "detail"])
@torch.inference_mode()
def test_a_map_of_importance_moves_attention_and_costs_nothing(policy: str) -> None:
    weights = (1.0, 0.5) if policy == "detail" else None
    routing = RoutingConfig.model_validate({"policy": policy, "gamma": 0.25, "block_weights": weights})
    network = build(CAMixerSRConfig(scale=2, groups=(1, 1), channels=8, window=4, routing=routing), seed=3)
    assert isinstance(network, CAMixerSR)
    images = noise(2, 3, 13, 18)
    plain = network.restore(images)
    nothing = network.restore(images, importance_BHW=torch.zeros(1, 13, 18))
    assert torch.equal(nothing.image_BCHW, plain.image_BCHW)
    importance = torch.zeros(2, 13, 18)
    importance[0, :4, :4] = importance[1, 8:, 8:] = 1000.0
    guided = network.restore(images, importance_BHW=importance)
    assert torch.equal(guided.hard_share_SB.mean(0), plain.hard_share_SB.mean(0))
    assert (guided.image_BCHW - plain.image_BCHW).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    alone = network.restore(images[1:], importance_BHW=importance[1:]).image_BCHW
    assert (guided.image_BCHW[1] - alone[0]).abs().max() < 1e-5
    tiled = restore_tiled(network, images, tile=18, overlap=0, importance_BHW=importance)
    assert torch.equal(tiled.image_BCHW, guided.image_BCHW)
    halves = restore_tiled(network, images, tile=16, overlap=14, importance_BHW=importance)  # 2 tiles of 13×16
    apart = network.restore(images[..., 2:], importance_BHW=importance[..., 2:]).image_BCHW
    assert torch.equal(halves.image_BCHW[..., 32:], apart[..., 28:])


def test_maps_of_importance_that_cannot_be_are_named() -> None:
    network = build(SMALL[0])
    assert isinstance(network, CAMixerSR)
    for importance in (torch.zeros(3, 8, 8), torch.zeros(1, 8, 7), torch.zeros(8, 8)):
        with pytest.raises(UserError, match=r"expected \(2 or 1, 8, 8\)"):
            network.restore(noise(2, 3, 8, 8), importance_BHW=importance)
    with pytest.raises(UserError, match="not finite"):
        network.restore(noise(2, 3, 8, 8), importance_BHW=torch.full((1, 8, 8), torch.nan))
    with pytest.raises(UserError, match="does not route"):
        restore_whole(build_model(BicubicConfig()), noise(1, 3, 8, 8), torch.zeros(1, 8, 8))


@pytest.mark.parametrize(
    "switch", ["spatial_attention", "channel_attention", "offsets", "global_condition", "window_condition"]
)
def test_every_ablation_changes_output_and_trains(switch: str) -> None:
    full = CAMixerSRConfig(scale=2, groups=(1, 1), channels=12, window=4)
    ablated = CAMixerSRConfig.model_validate({**full.model_dump(), switch: False})
    network = build(ablated)
    image = noise(1, 3, 8, 8)
    with torch.inference_mode():
        assert not torch.equal(network(image), build(full)(image))
    if switch != "window_condition":  # it is an input without weights of its own outside the trunk
        assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in build(full).parameters())
    network.train()(image).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_scaled_attention_is_another_network() -> None:
    image = noise(1, 3, 8, 8)
    routing = RoutingConfig(gamma=1.0)
    plain = build(CAMixerSRConfig(scale=2, groups=(1,), channels=16, window=4, routing=routing))
    scaled = build(CAMixerSRConfig(scale=2, groups=(1,), channels=16, window=4, routing=routing, scaled_attention=True))
    with torch.inference_mode():
        assert not torch.equal(plain(image), scaled(image))


def test_training_mask_depends_on_the_generator_alone() -> None:
    network = build(CAMixerSRConfig(scale=2, groups=(1,), channels=8, window=4)).train()
    assert isinstance(network, CAMixerSR)
    image = noise(1, 3, 16, 16)

    def draw(seed: int) -> Tensor:
        return network.restore(image, generator=torch.Generator().manual_seed(seed)).image_BCHW

    before = torch.random.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gumbel_mask_follows_the_softmaxed_probability() -> None:
    """Logits of the draw are p themselves, so P(hard) = softmax(p)[0], also where p saturates."""
    from harness.models.camixersr import draw_gumbel, draw_mask

    logits = torch.tensor([50.0, -50.0]).expand(1, 40_000, 2)
    noise_SBN2 = draw_gumbel((1, 1, 40_000, 2), torch.Generator().manual_seed(0), torch.device("cpu"))
    mask = draw_mask(logits, noise_SBN2[0])
    assert ((mask == 0) | (mask == 1)).all()
    expected = torch.softmax(torch.tensor([1.0, 0.0]), dim=0)[0].item()
    assert mask.mean().item() == pytest.approx(expected, abs=0.01)


@torch.inference_mode()
def test_image_residual_adds_the_bicubic_image() -> None:
    image = noise(1, 3, 9, 11)
    for config in (
        CAMixerSRConfig(scale=2, groups=(1,), channels=8, window=4, image_residual=True),
        SwinIRConfig(scale=2, depths=(1,), embed_dim=12, num_heads=3, image_residual=True),
    ):
        fresh = build_model(config).eval()  # the tail starts at zero
        assert torch.allclose(fresh(image), upscale_bicubic(image, 2), atol=1e-6)


def test_padding_reflects_in_steps() -> None:
    line = torch.arange(3.0).view(1, 1, 1, 3)
    assert pad_to_multiple(line, 8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert pad_to_multiple(torch.ones(1, 1, 1, 1), 4).shape == (1, 1, 4, 4)
    assert pad_symmetric(line, 4)[0, 0, 4].tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]


def test_tiles_cover_every_pixel() -> None:
    for side in range(1, 40):
        for tile, overlap in ((8, 0), (8, 3), (16, 4), (5, 4)):
            covered = {pixel for start in tile_starts(side, tile, overlap) for pixel in range(start, start + tile)}
            assert covered >= set(range(side))
            assert max(tile_starts(side, tile, overlap)) + min(tile, side) == side


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.label())
@torch.inference_mode()
def test_one_tile_that_covers_the_image_changes_nothing(config: AnyModelConfig) -> None:
    network = build(config)
    assert isinstance(network, SRNetwork)
    image = noise(1, 3, 10, 7)
    assert torch.equal(restore_tiled(network, image, tile=10, overlap=2).image_BCHW, network(image))


@torch.inference_mode()
def test_tiles_are_averaged_where_they_overlap() -> None:
    network = build_model(BicubicConfig(scale=2))
    image = noise(1, 3, 6, 10)
    calls: list[tuple[int, int]] = []
    tiled = restore_tiled(network, image, tile=6, overlap=2, progress=lambda *call: calls.append(call))
    left, right = network(image[..., :6]), network(image[..., 4:])
    assert torch.equal(tiled.image_BCHW[..., :8], left[..., :8])
    assert torch.equal(tiled.image_BCHW[..., 12:], right[..., 4:])
    assert torch.allclose(tiled.image_BCHW[..., 8:12], (left[..., 8:] + right[..., :4]) / 2)
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (8, 8), (8, -1)])
def test_nonsense_tiles_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(UserError, match="overlap"):
        restore_tiled(build_model(BicubicConfig(scale=2)), noise(1, 3, 8, 8), tile=tile, overlap=overlap)


def test_unknown_presets_and_scales_are_refused() -> None:
    with pytest.raises(UserError, match=r"camixersr-x.*camixersr-b.*swinir-light"):
        preset_config("camixersr-x", 4)
    with pytest.raises(UserError, match="scale is 5, expected 2, 3 or 4"):
        preset_config("bicubic", 5)

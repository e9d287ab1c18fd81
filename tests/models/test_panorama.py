"""Panoramas have no seam: turned by whole windows, or by half of their width, they are restored turned alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from harness.core.configs import AnyModelConfig, BicubicConfig, CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.data import to_tensor
from harness.data.images import read_rgb
from harness.models import (
    CAMixerSR,
    PanoramaNetwork,
    SRNetwork,
    build_model,
    load_weights,
    preset_config,
    restore_panorama,
    restore_tiled,
)
from harness.models.panorama import continue_around, wrap_width
from tests.models.test_networks import noise

# Networks that look no further than 16 columns. Channel attention and ranks look at the whole image, with the columns
# that continue it: without the first, and at γ = 1, nothing else depends on them.
LOCAL: list[AnyModelConfig] = [
    CAMixerSRConfig(
        scale=2, groups=(1,), channels=8, window=4, channel_attention=False, routing=RoutingConfig(gamma=1.0)
    ),
    SwinIRConfig(scale=2, depths=(2,), embed_dim=12, num_heads=3, window=4),
    BicubicConfig(scale=2),
]
CONTEXT = 32


def build(config: AnyModelConfig) -> SRNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(config).eval()


def difference_when_turned(network: SRNetwork, image_BCHW: Tensor, columns: int, context: int) -> float:
    """The largest difference between restoring a turned panorama and turning a restored one."""
    turned = restore_panorama(network, image_BCHW.roll(columns, -1), context=context).image_BCHW
    restored = restore_panorama(network, image_BCHW, context=context).image_BCHW
    return (turned - restored.roll(columns * network.scale, -1)).abs().max().item()


@pytest.mark.parametrize("config", LOCAL, ids=lambda config: config.family)
@torch.inference_mode()
def test_turned_panoramas_are_restored_turned(config: AnyModelConfig) -> None:
    network, image = build(config), noise(1, 3, 12, 48)
    for columns in (4, 8, 20, 24, 44):  # windows of 4; half the width is 24
        assert difference_when_turned(network, image, columns, CONTEXT) < 1e-5
        assert difference_when_turned(network, image, columns, 0) > 1e-3  # without the context there is a seam


@torch.inference_mode()
def test_what_looks_at_the_whole_image_leaves_little_at_the_seam() -> None:
    """Channel attention averages over the continued image; what remains of the seam is a fraction of it."""
    network, image = build(CAMixerSRConfig(scale=2, groups=(2, 1), channels=8, window=4)), noise(1, 3, 16, 64)
    for gamma in (0.0, 1.0):
        network.config = network.config.with_routing(RoutingConfig(gamma=gamma))  # type: ignore[union-attr]
        assert difference_when_turned(network, image, 32, CONTEXT) < 0.1 * difference_when_turned(network, image, 32, 0)


@pytest.fixture(scope="module")
def released(reference: Path) -> CAMixerSR:
    """The released Small ×4, which looks at whole images and ranks their windows."""
    network = build_model(preset_config("camixersr-s", 4)).eval()
    load_weights(network, reference / "weights" / "CAMixerSR_S.pth")
    assert isinstance(network, CAMixerSR)
    return network


def columns_when_turned(network: SRNetwork, image_BCHW: Tensor, context: int) -> tuple[float, float, float]:
    """Turn by half the width and back: mean difference in grey levels at both seams, away from them, and the largest.

    A seam is the 64 high-resolution columns around either end of the image, turned or not.
    """
    half = image_BCHW.shape[-1] // 2
    restored = restore_panorama(network, image_BCHW, context=context).image_BCHW
    turned = restore_panorama(network, image_BCHW.roll(half, -1), context=context).image_BCHW
    difference_BCHW = 255 * (turned.roll(half * network.scale, -1) - restored).abs()
    # Both seams come to lie around the middle columns: the one as it is, the other one once turned by half.
    in_place_W = difference_BCHW.mean(dim=(0, 1, 2))
    folded = in_place_W.view(2, -1).mean(dim=0).roll(32)
    return folded[:64].mean().item(), folded[64:].mean().item(), difference_BCHW.max().item()


@pytest.mark.parametrize("photograph", ["cabin", pytest.param("tunnel", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_real_panoramas_turned_by_half_are_restored_turned(
    released: CAMixerSR, reference: Path, photograph: str
) -> None:
    """Half of 128 columns is 4 windows of 16: the grid stays. Half of 120 is not: what is left is the grid's alone."""
    panorama = Image.fromarray(read_rgb(reference / "images" / "panorama" / f"{photograph}.jpg"))
    whole, shifted = (
        to_tensor(np.asarray(panorama.resize(size, Image.Resampling.BICUBIC))) for size in ((128, 64), (120, 60))
    )
    for routing in (RoutingConfig(gamma=1.0), RoutingConfig(policy="probability")):
        released.routing = routing
        seam, elsewhere, largest = columns_when_turned(released, whole, CONTEXT)
        assert seam < 0.15  # found: 0.05 to 0.08 grey levels, as elsewhere
        assert elsewhere < 0.15
        assert largest < 8  # found: 2.1 to 4.3
    seam_without, _, largest_without = columns_when_turned(released, whole, 0)
    assert seam_without > 3 * seam  # found: 0.31 and 0.66
    assert largest_without > 25  # found: 32 and 46
    seam, elsewhere, _ = columns_when_turned(released, shifted, CONTEXT)
    assert seam < 1.2 * elsewhere  # found: 0.93 and 1.05 times
    seam, elsewhere, _ = columns_when_turned(released, shifted, 0)
    assert seam > 1.5 * elsewhere  # found: 1.9 and 2.1 times


@torch.inference_mode()
def test_a_network_for_panoramas_is_its_network_without_a_seam() -> None:
    network, image = build(LOCAL[0]), noise(1, 3, 24, 48)
    importance = noise(1, 1, 24, 48)[:, 0]
    network.config = network.config.with_routing(RoutingConfig(gamma=0.5))  # type: ignore[union-attr]
    panoramic = PanoramaNetwork(network, CONTEXT)
    assert (panoramic.config, panoramic.scale) == (network.config, 2)
    assert torch.equal(panoramic(image), restore_panorama(network, image, context=CONTEXT).image_BCHW)
    guided = restore_panorama(network, image, context=CONTEXT, importance_BHW=10 * importance).image_BCHW
    assert torch.equal(panoramic.restore(image, importance_BHW=10 * importance).image_BCHW, guided)
    assert not torch.equal(guided, panoramic(image))
    with pytest.raises(UserError, match="input: 48×48 pixels are no whole panorama"):
        panoramic(noise(1, 3, 48, 48))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1), (7, 50), (16, 32)])
@pytest.mark.parametrize("config", LOCAL, ids=lambda config: config.family)
@torch.inference_mode()
def test_panoramas_of_any_size(config: AnyModelConfig, size: tuple[int, int]) -> None:
    """Narrower than the context, and never a multiple of the window: the window grid stays where it was."""
    network, image = build(config), noise(2, 3, *size)
    output = restore_panorama(network, image, context=CONTEXT).image_BCHW
    assert output.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert output.isfinite().all()
    if size[1] >= 50:  # far from the seam nothing changes, so the grid was not shifted
        plain = network(image)
        assert torch.allclose(output[..., 44:56], plain[..., 44:56], atol=1e-5)


def test_a_panorama_goes_on_with_its_other_end() -> None:
    line = torch.arange(3.0).view(1, 1, 1, 3)
    assert continue_around(line, 4)[0, 0, 0].tolist() == [2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(continue_around(line, 0), line)
    assert [wrap_width(build(config), 30) for config in LOCAL] == [32, 32, 30]


@torch.inference_mode()
def test_tiles_of_a_panorama() -> None:
    network, image = build(LOCAL[0]), noise(1, 3, 12, 48)
    whole = restore_panorama(network, image, context=8)
    covered = restore_panorama(network, image, context=8, tile=64, overlap=4)
    assert torch.equal(covered.image_BCHW, whole.image_BCHW)
    told: list[tuple[int, int]] = []
    tiled = restore_panorama(
        network, image, context=8, tile=32, overlap=4, progress=lambda *state: told.append(state)
    ).image_BCHW
    by_hand = restore_tiled(network, continue_around(image, 8), tile=32, overlap=4).image_BCHW[..., 16:-16]
    assert torch.equal(tiled, by_hand)
    assert told == [(1, 3), (2, 3), (3, 3)]

"""Panoramas: equirectangular images of the whole sphere, whose left and right ends meet at a seam."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.core.configs import AnyModelConfig
from harness.core.panorama import require_panorama
from harness.models.network import Restoration, SRNetwork
from harness.models.tiling import restore_tiled, restore_whole


def wrap_width(network: SRNetwork, context: int) -> int:
    """Return the columns to continue a panorama by: `context`, rounded up to the network's windows."""
    window: int = getattr(network.config, "window", 1)
    return -(-context // window) * window


def continue_around(input_BCHW: Tensor, columns: int) -> Tensor:
    """Continue a panorama of any width by so many columns beyond its left and right end: those of the other end."""
    width = input_BCHW.shape[-1]
    positions = torch.arange(-columns, width + columns, device=input_BCHW.device) % width
    return input_BCHW.index_select(-1, positions)


def restore_image(
    network: SRNetwork,
    input_BCHW: Tensor,
    *,
    tile: int | None = None,
    overlap: int = 0,
    wrap: int = 0,
    importance_BHW: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Restoration:
    """Restore at once, in tiles of `tile` where it is given, and without a seam where `wrap` columns are given.

    See `restore_whole`, `restore_tiled` and `restore_panorama`, whose arguments these are; at once, `progress` is not
    called.
    """
    if wrap:
        return restore_panorama(
            network,
            input_BCHW,
            context=wrap,
            tile=tile,
            overlap=overlap,
            importance_BHW=importance_BHW,
            progress=progress,
        )
    if tile is None:
        return restore_whole(network, input_BCHW, importance_BHW)
    return restore_tiled(
        network, input_BCHW, tile=tile, overlap=overlap, importance_BHW=importance_BHW, progress=progress
    )


def restore_panorama(
    network: SRNetwork,
    input_BCHW: Tensor,
    *,
    context: int,
    tile: int | None = None,
    overlap: int = 0,
    importance_BHW: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Restoration:
    """Restore a panorama (B×3×h×w, any size) without a seam: continued around, restored, and cut to its own columns.

    `context` low-resolution columns, rounded up to whole windows so that the window grid stays where it is, are
    restored twice on either side: the cost is 1 + 2·context/w times that of the plain image. The hard share is that of
    the continued image. `tile`, `overlap`, `importance_BHW` and `progress` are those of `restore_tiled`.
    """
    columns = wrap_width(network, context)
    continued_BCHW = continue_around(input_BCHW, columns)
    importance = None if importance_BHW is None else continue_around(importance_BHW, columns)
    restored = restore_image(
        network, continued_BCHW, tile=tile, overlap=overlap, importance_BHW=importance, progress=progress
    )
    left, width = columns * network.scale, input_BCHW.shape[-1] * network.scale
    return Restoration(restored.image_BCHW[..., left : left + width], restored.hard_share_SB)


class PanoramaNetwork(nn.Module):
    """A network for whole panoramas: called, it restores them without a seam, as `restore_panorama` does.

    `network` is the plain one, for anything else. `UserError` where an input is not twice as wide as high.
    """

    def __init__(self, network: SRNetwork, context: int):
        super().__init__()
        self.network = network
        self.context = context

    @property
    def config(self) -> AnyModelConfig:
        """The plain network's config."""
        return self.network.config

    @property
    def scale(self) -> int:
        """The upscaling factor."""
        return self.network.scale

    def restore(self, input_BCHW: Tensor, *, importance_BHW: Tensor | None = None) -> Restoration:
        """Restore a batch of panoramas; `importance_BHW` is that of `CAMixerSR.restore`."""
        height, width = input_BCHW.shape[-2:]
        require_panorama("input", (height, width), remedy="call `.network` to restore it as a plain image")
        return restore_panorama(self.network, input_BCHW, context=self.context, importance_BHW=importance_BHW)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        """Return the restored panoramas alone."""
        return self.restore(input_BCHW).image_BCHW

"""Large images tile by tile."""

from collections.abc import Callable

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.camixersr import CAMixerSR
from harness.models.network import Restoration, SRNetwork


def tile_starts(side: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along an axis: every tile − overlap pixels, the last one flush with the end.

    Raises `UserError` unless 0 ≤ overlap < tile.
    """
    if tile < 1 or not 0 <= overlap < tile:
        raise UserError(f"tile {tile} with overlap {overlap}: expected 0 ≤ overlap < tile")
    if side <= tile:
        return [0]
    return [*range(0, side - tile, tile - overlap), side - tile]


def restore_whole(network: SRNetwork, input_BCHW: Tensor, importance_BHW: Tensor | None = None) -> Restoration:
    """Restore a batch at once, guided by a map of importance where there is one (see `CAMixerSR.restore`).

    `UserError` for a map where the network does not route.
    """
    if importance_BHW is None:
        return network.restore(input_BCHW)
    if not isinstance(network, CAMixerSR):
        raise UserError(f"{network.config.label()} does not route, so a map of importance has nothing to guide")
    return network.restore(input_BCHW, importance_BHW=importance_BHW)


def restore_tiled(
    network: SRNetwork,
    input_BCHW: Tensor,
    *,
    tile: int,
    overlap: int,
    importance_BHW: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Restoration:
    """Restore tile by tile (`tile` × `tile` low-resolution pixels) and average where tiles overlap.

    Memory is that of one tile beside the input, one output and a map of its size. The hard share is the mean over
    tiles. A tile that covers the image gives the untiled result. `importance_BHW` guides each tile by itself;
    `progress(done, total)` is called after every tile.
    """
    B, _, h, w = input_BCHW.shape
    scale = network.scale
    rows, columns = tile_starts(h, tile, overlap), tile_starts(w, tile, overlap)
    total_BCHW = input_BCHW.new_zeros(B, 3, h * scale, w * scale)
    weight_HW = input_BCHW.new_zeros(h * scale, w * scale)
    shares = []
    for done, (top, left) in enumerate(((top, left) for top in rows for left in columns), start=1):
        inside = (..., slice(top, top + tile), slice(left, left + tile))
        importance = None if importance_BHW is None else importance_BHW[inside]
        part = restore_whole(network, input_BCHW[inside], importance)
        size_h, size_w = part.image_BCHW.shape[-2:]
        area = (slice(top * scale, top * scale + size_h), slice(left * scale, left * scale + size_w))
        total_BCHW[:, :, area[0], area[1]] += part.image_BCHW
        weight_HW[area] += 1
        shares.append(part.hard_share_SB)
        if progress is not None:
            progress(done, len(rows) * len(columns))
    return Restoration(total_BCHW.div_(weight_HW), torch.stack(shares).mean(dim=0))

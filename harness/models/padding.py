"""Borders: padding to a multiple, and MATLAB's mirrored border."""

import torch
from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(x_BCHW: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom by reflection to multiples of `multiple`; see `pad_to_size`."""
    height, width = (-(-side // multiple) * multiple for side in x_BCHW.shape[-2:])
    return pad_to_size(x_BCHW, (height, width))


def pad_to_size(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad right and bottom by reflection to a (height, width) that is no smaller.

    Reflection needs a pad smaller than the side; a smaller image is reflected in steps, and a side of 1 is repeated.
    """
    for axis, target in zip((-2, -1), size, strict=True):
        while x_BCHW.shape[axis] < target:
            side = x_BCHW.shape[axis]
            pad = min(target - side, max(side - 1, 1))
            amounts = (0, pad, 0, 0) if axis == -1 else (0, 0, 0, pad)
            x_BCHW = F.pad(x_BCHW, amounts, mode="reflect" if side > 1 else "replicate")
    return x_BCHW


def pad_symmetric(x_BCHW: Tensor, pad: int) -> Tensor:
    """Pad all four sides by mirroring with the edge repeated (… 1 0 | 0 1 2 …), for any side ≥ 1."""
    for axis in (-2, -1):
        side = x_BCHW.shape[axis]
        positions = torch.arange(-pad, side + pad, device=x_BCHW.device) % (2 * side)
        x_BCHW = x_BCHW.index_select(axis, torch.where(positions < side, positions, 2 * side - 1 - positions))
    return x_BCHW

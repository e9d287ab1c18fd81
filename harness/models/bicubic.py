"""Bicubic upscaling: the floor of every comparison, and the optional image residual of the networks."""

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.configs import BicubicConfig
from harness.models.network import AnyGenerator, Restoration, SRNetwork
from harness.models.padding import pad_symmetric

_BORDER = 3  # low-resolution pixels; the kernel reaches two beyond an output's centre


def upscale_bicubic(x_BCHW: Tensor, scale: int) -> Tensor:
    """Upscale by the cubic kernel a = −0.5 with mirrored borders (MATLAB's `imresize`, without its rounding)."""
    padded = pad_symmetric(x_BCHW, _BORDER)
    upscaled = F.interpolate(padded, scale_factor=float(scale), mode="bicubic", antialias=True)
    crop = _BORDER * scale
    return upscaled[..., crop:-crop, crop:-crop]


class Bicubic(SRNetwork):
    """Bicubic interpolation as a network without weights."""

    def __init__(self, config: BicubicConfig):
        super().__init__()
        self.config = config

    def restore(self, input_BCHW: Tensor, *, generator: AnyGenerator | None = None) -> Restoration:
        """Upscale; nothing is routed."""
        image = upscale_bicubic(input_BCHW, self.scale)
        return Restoration(image, torch.zeros(0, input_BCHW.shape[0], device=input_BCHW.device))

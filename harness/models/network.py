"""The contract that every super-resolution network here keeps."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Generator, Tensor, nn

from harness.core.configs import BicubicConfig, CAMixerSRConfig, SwinIRConfig


class Restoration(NamedTuple):
    """What a network gives in every mode.

    `image_BCHW`: 3 channels, `scale` times the input's size, nominally in [0, 1] and not clipped.
    `hard_share_SB`: the share of windows that got attention, per block and image, in [0, 1]; in training mode it
    carries the gradient of the straight-through mask. S = 0 for networks that do not route.
    """

    image_BCHW: Tensor
    hard_share_SB: Tensor


class SRNetwork(nn.Module, ABC):
    """A super-resolution network: B×3×h×w in [0, 1], any h, w ≥ 1, becomes B×3×(scale·h)×(scale·w).

    `is_literal`: inference runs every operator as the paper writes it, for counters and exports; otherwise whichever
    way is fastest on the device, with the same result.
    """

    config: CAMixerSRConfig | SwinIRConfig | BicubicConfig
    is_literal: bool = False

    @property
    def scale(self) -> int:
        """The upscaling factor."""
        return self.config.scale

    @property
    def is_static(self) -> bool:
        """Whether inference does the same work whatever is in the image, and never waits for the device."""
        return False

    @abstractmethod
    def restore(self, input_BCHW: Tensor, *, generator: Generator | None = None) -> Restoration:
        """Restore a batch; `generator` (on the CPU) draws whatever is random, which only training mode is."""

    def forward(self, input_BCHW: Tensor) -> Tensor:
        """Return the restored images alone."""
        return self.restore(input_BCHW).image_BCHW

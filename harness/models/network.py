"""The contract that every super-resolution network here keeps."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from harness.core.configs import AnyModelConfig


class Restoration(NamedTuple):
    """What a network gives in every mode.

    `image_BCHW`: 3 channels, `scale` times the input's size, nominally in [0, 1] and not clipped.
    `hard_share_SB`: the share of windows that got attention, per block and image, in [0, 1]; in training mode it
    carries the gradient of the straight-through mask. S = 0 for networks that do not route.
    """

    image_BCHW: Tensor
    hard_share_SB: Tensor


class PartGenerator(NamedTuple):
    """Draws for a whole batch, of which a network restores one of `parts` equal parts: number `part`, from 0."""

    generator: Generator
    part: int
    parts: int


AnyGenerator = Generator | PartGenerator


def draw_exponential(shape_B: Sequence[int], generator: AnyGenerator | None) -> Tensor:
    """Draw standard exponential numbers on the CPU, a row for each image; of a part, its rows of the whole batch's."""
    if not isinstance(generator, PartGenerator):
        return torch.empty(shape_B).exponential_(generator=generator)
    rows, *of_row = shape_B
    whole = torch.empty(rows * generator.parts, *of_row).exponential_(generator=generator.generator)
    return whole[rows * generator.part : rows * (generator.part + 1)]


class SRNetwork(nn.Module, ABC):
    """A super-resolution network: B×3×h×w in [0, 1], any h, w ≥ 1, becomes B×3×(scale·h)×(scale·w).

    `is_literal`: inference runs every operator as the paper writes it, for counters and exports; otherwise whichever
    way is fastest on the device, with the same result. `features`: where it is a list, each pass adds the features at
    the end of each of its groups (B×H×W×C, the input's size padded at right and bottom); see `keep_features`.
    """

    config: AnyModelConfig
    is_literal: bool = False
    features: list[Tensor] | None = None

    @property
    def scale(self) -> int:
        """The upscaling factor."""
        return self.config.scale

    @property
    def is_static(self) -> bool:
        """Whether inference does the same work whatever is in the image, and never waits for the device."""
        return False

    @abstractmethod
    def restore(self, input_BCHW: Tensor, *, generator: AnyGenerator | None = None) -> Restoration:
        """Restore a batch; `generator` (on the CPU) draws whatever is random, which only training mode is."""

    def forward(self, input_BCHW: Tensor) -> Tensor:
        """Return the restored images alone."""
        return self.restore(input_BCHW).image_BCHW


@contextlib.contextmanager
def keep_features(network: SRNetwork, *, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Yield a list to which each pass of a network inside the block adds its features, one map for each group.

    Inference in bfloat16 on a CPU and on CUDA then runs operator by operator. A network without groups adds nothing;
    unless `wanted`, nothing happens.
    """
    kept: list[Tensor] = []
    network.features = kept if wanted else None
    try:
        yield kept
    finally:
        network.features = None

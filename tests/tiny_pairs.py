"""Tiny data sets cut from the photographs in the scikit-image wheel."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from skimage import data

from harness.data import ImagePair, PairedDataset
from harness.data.imresize import ImageArray, downscale

TRAIN = (("astronaut", 96, 96), ("chelsea", 80, 112))
VALIDATION = (("coffee", 48, 64), ("rocket", 40, 40))


@cache
def cut(name: str, height: int, width: int) -> ImageArray:
    """The centre of a photograph."""
    image_HWC: Any = getattr(data, name)()
    top, left = (image_HWC.shape[0] - height) // 2, (image_HWC.shape[1] - width) // 2
    return np.ascontiguousarray(image_HWC[top : top + height, left : left + width])


def tiny_pairs(cuts: Sequence[tuple[str, int, int]], scale: int, name: str = "tiny") -> PairedDataset:
    """Pairs of (photograph, height, width), each side a multiple of the scale."""
    pairs = []
    for photograph, height, width in cuts:
        hr_HWC = cut(photograph, height, width)
        pairs.append(ImagePair(name=photograph, hr_HWC=hr_HWC, lr_HWC=downscale(hr_HWC, scale)))
    return PairedDataset(name, scale, pairs)

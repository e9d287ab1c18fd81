"""Colour as the super-resolution tables measure it."""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def luma_bt601(image_HWC: npt.NDArray[Any]) -> FloatArray:
    """Return the BT.601 studio-range luma Y (H, W) of an RGB image (H, W, 3) in 0..255: float64 in 16..235, unrounded.

    Y = 16 + (65.481·R + 128.553·G + 24.966·B) / 255, as in MATLAB's `rgb2ycbcr` before its rounding.
    """
    assert image_HWC.shape[2:] == (3,), f"expected (H, W, 3), got {image_HWC.shape}"
    luma_HW: FloatArray = np.multiply(image_HWC[..., 0], 65.481, dtype=np.float64)
    luma_HW += np.multiply(image_HWC[..., 1], 128.553, dtype=np.float64)
    luma_HW += np.multiply(image_HWC[..., 2], 24.966, dtype=np.float64)
    luma_HW /= 255
    luma_HW += 16
    return luma_HW

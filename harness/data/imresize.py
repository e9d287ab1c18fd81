"""MATLAB's bicubic `imresize` on uint8 images, bit for bit: how the field makes its low-resolution images.

Shape suffixes: H rows, W columns, C channels; N entries along the axis being resized, M entries along it
afterwards, T taps of the kernel, L lines along that axis.
"""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy import sparse  # type: ignore[import-untyped]

from harness.core.errors import UserError

ImageArray = npt.NDArray[np.uint8]

# Part of the key of every cached low-resolution image: count it up when a pixel of the result can change.
RESIZE_VERSION = 1

_KERNEL_WIDTH = 4.0
_CHUNK_LINES = 2048  # pixels are float64 only so many lines at a time: little memory, and faster


def imresize(
    image_HWC: ImageArray, *, scale: Fraction | float | None = None, size: tuple[int, int] | None = None
) -> ImageArray:
    """Resize a uint8 image (H, W, C) or (H, W) as MATLAB's `imresize(image, scale)` or `imresize(image, size)` does.

    Cubic convolution kernel with a = −0.5 (Keys 1981), stretched by 1/scale when shrinking (antialiasing), mirrored
    borders, sums in float64. Each axis is rounded half away from zero to uint8 before the next is begun; the axis that
    shrinks most comes first, rows before columns where both shrink alike. With `scale`, the result has
    (ceil(scale·H), ceil(scale·W)) pixels; a `Fraction` avoids the rounding of that product. With `size` = (rows,
    columns), each axis has its own scale. Exactly one of the two is given.

    Raises `UserError` for another dtype or rank, an empty image, both or neither of `scale` and `size`, or a
    `scale` or `size` that is not positive.
    """
    if image_HWC.dtype != np.uint8 or image_HWC.ndim not in (2, 3) or 0 in image_HWC.shape:
        raise UserError(
            f"imresize: got {image_HWC.dtype} {image_HWC.shape}, expected a uint8 image (H, W) or (H, W, C)"
        )
    if (scale is None) == (size is None):
        raise UserError("imresize: give exactly one of `scale` and `size`")
    height, width = image_HWC.shape[:2]
    if scale is not None:
        if not scale > 0 or not math.isfinite(scale):
            raise UserError(f"imresize: scale {scale} is not a positive number")
        size = (math.ceil(scale * height), math.ceil(scale * width))
        scales = (float(scale), float(scale))
    else:
        assert size is not None
        if min(size) < 1:
            raise UserError(f"imresize: size {size} is not positive")
        scales = (size[0] / height, size[1] / width)
    resized = image_HWC
    for axis in sorted((0, 1), key=lambda axis: scales[axis]):
        resized = _resize_axis(resized, axis, size[axis], scales[axis])
    return np.array(resized, order="C", copy=resized is image_HWC or None)


def downscale(image_HWC: ImageArray, scale: int) -> ImageArray:
    """Make the low-resolution image (H//scale, W//scale): crop to a multiple of `scale` (top-left), then `imresize`.

    Raises `UserError` when the image has fewer than `scale` rows or columns.
    """
    if min(image_HWC.shape[:2]) < scale:
        height, width = image_HWC.shape[:2]
        raise UserError(f"downscale: {width}×{height} pixels are too few for ×{scale}; needs {scale}×{scale} or more")
    return imresize(crop_to_multiple(image_HWC, scale), scale=Fraction(1, scale))


def upscale_bicubic(image_HWC: ImageArray, scale: int) -> ImageArray:
    """Upscale (H, W) to (scale·H, scale·W) with `imresize`: the bicubic baseline of super-resolution tables."""
    return imresize(image_HWC, scale=Fraction(scale))


def crop_to_multiple(image_HWC: ImageArray, scale: int) -> ImageArray:
    """Return the top-left view whose height and width are the greatest multiples of `scale`."""
    height, width = image_HWC.shape[:2]
    return image_HWC[: height - height % scale, : width - width % scale]


def _resize_axis(image_HWC: ImageArray, axis: int, length: int, scale: float) -> ImageArray:
    """Resize one axis and round to uint8."""
    if length == image_HWC.shape[axis] and scale == 1.0:
        return image_HWC
    moved = np.moveaxis(image_HWC, axis, 0)
    weights_MN = _contributions(moved.shape[0], length, scale)
    lines_NL = np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
    resized_ML = np.empty((length, lines_NL.shape[1]), np.uint8)
    for start in range(0, lines_NL.shape[1], _CHUNK_LINES):
        chunk = slice(start, start + _CHUNK_LINES)
        # A sparse product adds the taps of a pixel in their order, one after the other.
        values = np.asarray(weights_MN @ lines_NL[:, chunk].astype(np.float64))
        values += 0.5
        np.floor(values, out=values)
        resized_ML[:, chunk] = np.clip(values, 0, 255, out=values)
    return np.moveaxis(resized_ML.reshape(length, *moved.shape[1:]), 0, axis)


def _contributions(in_length: int, out_length: int, scale: float) -> sparse.csr_array:
    """Return the (M, N) weights of one axis; mirrored entries stay separate terms of their sum."""
    stretch = min(scale, 1.0)
    kernel_width = _KERNEL_WIDTH / stretch
    num_taps = math.ceil(kernel_width) + 2
    centre_M = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)  # positions count from 1
    left_M = np.floor(centre_M - kernel_width / 2)
    position_MT = left_M[:, None] + np.arange(num_taps)
    weight_MT = _cubic(stretch * (centre_M[:, None] - position_MT))
    weight_MT /= weight_MT.sum(axis=1, keepdims=True)
    index_MT = np.mod(position_MT.astype(np.int64) - 1, 2 * in_length)
    index_MT = np.where(index_MT < in_length, index_MT, 2 * in_length - 1 - index_MT)
    used = weight_MT != 0
    starts = np.concatenate(([0], np.cumsum(used.sum(axis=1))))
    return sparse.csr_array((weight_MT[used], index_MT[used], starts), shape=(out_length, in_length))


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cubic convolution kernel with a = −0.5 (Keys 1981)."""
    x = np.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))

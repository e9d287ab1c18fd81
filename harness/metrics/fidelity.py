"""PSNR and SSIM of numpy arrays in float64, optionally with a weight for each row (WS-PSNR, WS-SSIM).

Shape suffixes: H rows, W columns, C channels. Images are (H, W) or (H, W, C); channels count alike.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.core.errors import UserError
from harness.metrics.colour import FloatArray

SSIM_RADIUS = 5
SSIM_SIGMA = 1.5
SSIM_K1 = 0.01
SSIM_K2 = 0.03

_STRIP_ROWS = 256  # images are gone through in strips, so that those of 8k need little memory


def latitude_weights(height: int) -> FloatArray:
    """Return the row weights (H,) of an equirectangular image: cos((i + 0.5 − H/2)·π/H).

    Source: WS-PSNR (Sun et al., 2017): the area on the sphere of a pixel in row i.
    """
    weights_H: FloatArray = np.cos((np.arange(height) + 0.5 - height / 2) * math.pi / height)
    return weights_H


def psnr_db(
    a: npt.NDArray[Any], b: npt.NDArray[Any], *, data_range: float = 255.0, weights_H: FloatArray | None = None
) -> float:
    """Return the peak signal-to-noise ratio 10·log10(data_range² / MSE) in dB; `inf` for identical images.

    `weights_H` weighs the squared errors of each row (WS-PSNR with `latitude_weights`); only their ratios matter.
    Raises `UserError` when the shapes differ.
    """
    _check_shapes(a, b, weights_H)
    errors_H: list[FloatArray] = []
    for start in range(0, len(a), _STRIP_ROWS):
        strip = slice(start, start + _STRIP_ROWS)
        difference = np.subtract(a[strip], b[strip], dtype=np.float64)
        errors_H.append(np.square(difference, out=difference).mean(axis=tuple(range(1, a.ndim))))
    mse = float(np.average(np.concatenate(errors_H), weights=weights_H))
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def ssim(
    a: npt.NDArray[Any], b: npt.NDArray[Any], *, data_range: float = 255.0, weights_H: FloatArray | None = None
) -> float:
    """Return the mean structural similarity (Wang et al., 2004): at most 1, and 1 for identical images.

    11×11 Gaussian window with σ = 1.5, population statistics, K1 = 0.01, K2 = 0.03; only windows that lie wholly inside
    the image count, and the mean over channels is taken. `weights_H` (one for each row of the image) weighs each window
    by the row of its centre (WS-SSIM). Raises `UserError` when the shapes differ or a side is shorter than 11 pixels:
    such an image has no window, and any number given for it would be invented.
    """
    _check_shapes(a, b, weights_H)
    side = 2 * SSIM_RADIUS + 1
    if min(a.shape[:2]) < side:
        raise UserError(
            f"SSIM needs at least {side}×{side} pixels, got {a.shape[1]}×{a.shape[0]}; use a larger image or PSNR alone"
        )
    height = a.shape[0]
    rows_ssim: list[FloatArray] = []
    for start in range(0, height - 2 * SSIM_RADIUS, _STRIP_ROWS):
        strip = slice(start, min(start + _STRIP_ROWS + 2 * SSIM_RADIUS, height))
        rows_ssim.append(_ssim_of_rows(a[strip].astype(np.float64), b[strip].astype(np.float64), data_range))
    row_weights = None if weights_H is None else weights_H[SSIM_RADIUS : height - SSIM_RADIUS]
    return float(np.average(np.concatenate(rows_ssim), weights=row_weights))


def _ssim_of_rows(a: FloatArray, b: FloatArray, data_range: float) -> FloatArray:
    """Return the SSIM of each row of the valid region, averaged over columns and channels."""
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    mean_a, mean_b = _gaussian_mean(a), _gaussian_mean(b)
    mean_aa, mean_bb, mean_ab = mean_a * mean_a, mean_b * mean_b, mean_a * mean_b
    variances = _gaussian_mean(a * a + b * b) - mean_aa - mean_bb
    covariance = _gaussian_mean(a * b) - mean_ab
    similarity = (2 * mean_ab + c1) * (2 * covariance + c2) / ((mean_aa + mean_bb + c1) * (variances + c2))
    rows: FloatArray = similarity.mean(axis=tuple(range(1, similarity.ndim)))
    return rows


def _gaussian_mean(x: FloatArray) -> FloatArray:
    """Return the Gaussian-weighted mean around each pixel of the valid region."""
    from scipy.ndimage import correlate1d  # type: ignore[import-untyped]  # late: reports score nothing

    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    kernel = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    kernel /= kernel.sum()
    inside = slice(SSIM_RADIUS, -SSIM_RADIUS)
    rows: FloatArray = correlate1d(x, kernel, axis=0)[inside]
    mean: FloatArray = correlate1d(rows, kernel, axis=1)[:, inside]
    return mean


def _check_shapes(a: npt.NDArray[Any], b: npt.NDArray[Any], weights_H: FloatArray | None) -> None:
    if a.shape != b.shape:
        raise UserError(f"cannot compare images of different shapes: {a.shape} and {b.shape}")
    assert a.ndim in (2, 3), f"expected (H, W) or (H, W, C), got {a.shape}"
    assert weights_H is None or weights_H.shape == a.shape[:1], "one weight for each row"

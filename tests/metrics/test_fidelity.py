import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import metrics as skimage_metrics

from harness.core.errors import UserError
from harness.metrics.colour import luma_bt601
from harness.metrics.fidelity import latitude_weights, psnr_db, ssim

Array = npt.NDArray[np.uint8]
peak_signal_noise_ratio: Any = skimage_metrics.peak_signal_noise_ratio
structural_similarity: Any = skimage_metrics.structural_similarity


def noisy_pair(seed: int, height: int, width: int, channels: int | None) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    shape = (height, width) if channels is None else (height, width, channels)
    a = generator.integers(0, 256, shape)
    b = np.clip(a + generator.integers(-30, 31, shape), 0, 255)
    return a.astype(np.uint8), b.astype(np.uint8)


sizes = st.integers(11, 60)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), sizes, sizes, st.sampled_from([None, 1, 3]))
def test_psnr_and_ssim_equal_scikit_image(seed: int, height: int, width: int, channels: int | None) -> None:
    a, b = noisy_pair(seed, height, width, channels)
    assert psnr_db(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)
    _, full = structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=None if channels is None else 2,
        full=True,
    )
    assert ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)


def test_ssim_in_strips_equals_ssim_at_once() -> None:
    a, b = noisy_pair(1, 700, 12, None)
    _, full = structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)


@pytest.mark.parametrize("error", [1, 7, 100])
def test_constant_error_has_the_closed_form_with_and_without_weights(error: int) -> None:
    a = np.random.default_rng(0).integers(0, 155, (20, 40, 3)).astype(np.uint8)
    b = (a + error).astype(np.uint8)
    assert psnr_db(a, b) == pytest.approx(20 * math.log10(255 / error), abs=1e-12)
    assert psnr_db(a, b, weights_H=latitude_weights(20)) == pytest.approx(psnr_db(a, b), abs=1e-12)


def test_identical_images_are_perfect() -> None:
    a, _ = noisy_pair(0, 30, 30, 3)
    assert psnr_db(a, a) == math.inf
    assert ssim(a, a) == 1.0
    assert ssim(a, a, weights_H=latitude_weights(30)) == pytest.approx(1.0, abs=1e-12)


def test_psnr_of_a_difference_is_symmetric_and_not_wrapped_by_uint8() -> None:
    black, white = np.zeros((12, 12), np.uint8), np.full((12, 12), 255, np.uint8)
    assert psnr_db(black, white) == psnr_db(white, black) == pytest.approx(0.0)


def test_weighted_psnr_and_ssim_equal_a_written_out_reference() -> None:
    a, b = noisy_pair(3, 24, 48, 3)
    height, width, channels = a.shape
    weights = [math.cos((row + 0.5 - height / 2) * math.pi / height) for row in range(height)]
    assert latitude_weights(height) == pytest.approx(weights, abs=1e-15)

    squared = total = 0.0
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                squared += weights[row] * (float(a[row, column, channel]) - float(b[row, column, channel])) ** 2
                total += weights[row]
    assert psnr_db(a, b, weights_H=latitude_weights(height)) == pytest.approx(
        10 * math.log10(255**2 / (squared / total)), abs=1e-9
    )

    kernel = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = total = 0.0
    for row in range(height - 10):
        for column in range(width - 10):
            for channel in range(channels):
                x = a[row : row + 11, column : column + 11, channel].astype(float)
                y = b[row : row + 11, column : column + 11, channel].astype(float)
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                vxy = (window * (x - mx) * (y - my)).sum()
                value = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
                similarity += weights[row + 5] * value
                total += weights[row + 5]
    assert ssim(a, b, weights_H=latitude_weights(height)) == pytest.approx(similarity / total, abs=1e-9)


def test_errors_at_the_poles_count_less() -> None:
    a = np.full((32, 64), 100, np.uint8)
    at_pole, at_equator = a.copy(), a.copy()
    at_pole[0] += 20
    at_equator[16] += 20
    weights = latitude_weights(32)
    assert psnr_db(a, at_pole, weights_H=weights) > psnr_db(a, at_pole)
    assert psnr_db(a, at_equator, weights_H=weights) < psnr_db(a, at_equator)


def test_mistakes_are_named() -> None:
    a = np.zeros((20, 20), np.uint8)
    with pytest.raises(UserError, match=r"\(20, 20\) and \(20, 19\)"):
        psnr_db(a, a[:, :19])
    with pytest.raises(UserError, match=r"\(20, 20\) and \(20, 19\)"):
        ssim(a, a[:, :19])
    with pytest.raises(UserError, match="11×11 pixels, got 20×10"):
        ssim(a[:10], a[:10])


def test_luma_is_the_studio_range() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma_bt601(colours)[0] == pytest.approx([16, 235, 81.481, 144.553, 40.966])
    assert luma_bt601(colours.astype(np.float64)).dtype == np.float64

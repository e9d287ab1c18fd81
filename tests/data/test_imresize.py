import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import UserError
from harness.data.images import read_rgb
from harness.data.imresize import crop_to_multiple, downscale, imresize, upscale_bicubic

Array = npt.NDArray[np.uint8]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_set5_file_is_reproduced_bit_for_bit(reference: Path, scale: int) -> None:
    folder = reference / "images" / "Set5"
    paths = sorted((folder / "HR").iterdir())
    assert len(paths) == 5
    for path in paths:
        expected = read_rgb(folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")
        assert np.array_equal(downscale(read_rgb(path), scale), expected), path.name


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resize_row(row: list[int], length: int, scale: float) -> list[float]:
    """One row by the definition: kernel stretched when shrinking, mirrored borders, weights of sum 1."""
    stretch, count, result = min(scale, 1.0), len(row), []
    for out in range(1, length + 1):
        centre = out / scale + 0.5 * (1 - 1 / scale)
        reach = 2 / stretch
        taps = range(math.floor(centre - reach) - 1, math.ceil(centre + reach) + 2)
        weights = [cubic((centre - tap) * stretch) for tap in taps]
        values = []
        for tap in taps:
            index = (tap - 1) % (2 * count)
            values.append(row[index if index < count else 2 * count - 1 - index])
        result.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return result


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=24),
    st.sampled_from([Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2), Fraction(3), Fraction(4), 0.7, 1.3]),
)
def test_rows_and_columns_follow_the_definition(row: list[int], scale: Fraction | float) -> None:
    image = np.array([row], np.uint8)
    expected = resize_row(row, math.ceil(scale * len(row)), float(scale))
    resized = imresize(np.repeat(image, 12, axis=0), scale=scale)
    assert resized.shape == (math.ceil(scale * 12), len(expected))
    for value, wanted in zip(resized[0].tolist(), expected, strict=True):
        assert abs(value - min(max(wanted, 0), 255)) <= 0.5 + 1e-6
    assert np.array_equal(imresize(np.repeat(image.T, 12, axis=1), scale=scale)[:, 0], resized[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([2, 3, 4]), st.integers(0, 255))
def test_flat_images_stay_flat_at_any_size(height: int, width: int, scale: int, level: int) -> None:
    image = np.full((height, width, 3), level, np.uint8)
    assert np.array_equal(upscale_bicubic(image, scale), np.full((height * scale, width * scale, 3), level))
    if min(height, width) >= scale:
        assert np.array_equal(downscale(image, scale), np.full((height // scale, width // scale, 3), level))


def test_rows_are_rounded_before_columns(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (24, 24)).astype(np.uint8)
    rows_first = imresize(imresize(image, size=(12, 24)), size=(12, 12))
    columns_first = imresize(imresize(image, size=(24, 12)), size=(12, 12))
    assert np.array_equal(imresize(image, scale=Fraction(1, 2)), rows_first)
    assert not np.array_equal(rows_first, columns_first)
    # With two scales, the axis that shrinks most comes first, as in MATLAB.
    assert np.array_equal(imresize(image, size=(12, 8)), imresize(imresize(image, size=(24, 8)), size=(12, 8)))


def test_channels_are_independent_and_flips_commute(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (24, 36, 3)).astype(np.uint8)
    for scale in (2, 3, 4):
        small = downscale(image, scale)
        for channel in range(3):
            assert np.array_equal(downscale(image[..., channel], scale), small[..., channel])
        assert np.array_equal(downscale(image[:, ::-1], scale)[:, ::-1], small)


def test_result_never_shares_memory_and_the_input_is_left_alone(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image.flags.writeable = False
    same = imresize(image, scale=1.0)
    assert np.array_equal(same, image)
    assert not np.shares_memory(same, image)
    assert same.flags.writeable
    assert imresize(image, scale=Fraction(1, 2)).flags.c_contiguous


def test_downscale_crops_top_left(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (11, 14, 3)).astype(np.uint8)
    assert crop_to_multiple(image, 4).shape == (8, 12, 3)
    assert np.array_equal(downscale(image, 4), downscale(image[:8, :12], 4))


def test_mistakes_are_named() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="expected a uint8 image"):
        imresize(image.astype(np.float64), scale=2)
    with pytest.raises(UserError, match="expected a uint8 image"):
        imresize(image[:0], scale=2)
    with pytest.raises(UserError, match="exactly one"):
        imresize(image)
    with pytest.raises(UserError, match="exactly one"):
        imresize(image, scale=2, size=(4, 4))
    for scale in (0, -1, math.nan, math.inf):
        with pytest.raises(UserError, match="not a positive number"):
            imresize(image, scale=scale)
    with pytest.raises(UserError, match="not positive"):
        imresize(image, size=(0, 4))
    with pytest.raises(UserError, match="8×3 pixels are too few for ×4"):
        downscale(image[:3], 4)

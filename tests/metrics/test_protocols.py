import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.core.errors import UserError
from harness.data.imresize import crop_to_multiple, upscale_bicubic
from harness.metrics import PROTOCOLS, get_protocol, score, to_uint8

# Bicubic on Set5 from its published LR files, as every table of the field has it (MATLAB): PSNR-Y in dB, SSIM.
SET5_BICUBIC = {2: (33.640, 0.9292), 3: (30.385, 0.8678), 4: (28.416, 0.8101)}


def open_rgb(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_on_set5_has_the_published_scores(reference: Path, scale: int) -> None:
    folder = reference / "images" / "Set5"
    rounded, unrounded = [], []
    for path in sorted((folder / "HR").iterdir()):
        target = crop_to_multiple(open_rgb(path), scale)
        lr = open_rgb(folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")
        output = upscale_bicubic(lr, scale)
        rounded.append(score(output, target, get_protocol("light-rounded"), scale))
        unrounded.append(score(output, target, get_protocol("light"), scale))
    psnr, ssim = SET5_BICUBIC[scale]
    assert np.mean([image.psnr_db for image in rounded]) == pytest.approx(psnr, abs=0.0006)
    assert np.mean([image.ssim for image in rounded]) == pytest.approx(ssim, abs=0.00006)
    # Rounding the luma adds noise to both sides: the unrounded score is a little higher, never lower.
    gain = np.mean([image.psnr_db for image in unrounded]) - np.mean([image.psnr_db for image in rounded])
    assert 0.01 < gain < 0.04


def test_borders_of_each_protocol_are_outside_the_score() -> None:
    target = np.full((40, 40, 3), 100, np.uint8)
    for name, border in (("light", 3), ("light-rounded", 3), ("ntire", 4), ("large", 0), ("odi", 0)):
        protocol = get_protocol(name)
        for depth in range(6):
            output = target.copy()
            output[depth, 20] = output[20, -1 - depth] = 200
            assert (score(output, target, protocol, 3).psnr_db == math.inf) == (depth < border), (name, depth)


def test_luma_protocol_ignores_what_luma_does_not_see_and_rgb_protocols_do_not() -> None:
    target = np.full((40, 40, 3), 100, np.uint8)
    output = target.copy()
    output[..., 2] += 10  # blue: 24.966/255 of a level each
    assert score(output, target, get_protocol("light"), 2).psnr_db == pytest.approx(
        20 * math.log10(255 / (24.966 * 10 / 255))
    )
    assert score(output, target, get_protocol("ntire"), 2).psnr_db == pytest.approx(10 * math.log10(255**2 * 3 / 100))


def test_spherical_protocol_weighs_rows() -> None:
    target = np.full((40, 80, 3), 100, np.uint8)
    pole, equator = target.copy(), target.copy()
    pole[0] += 30
    equator[20] += 30
    odi, large = get_protocol("odi"), get_protocol("large")
    assert score(pole, target, odi, 4).psnr_db > score(pole, target, large, 4).psnr_db
    assert score(equator, target, odi, 4).psnr_db < score(equator, target, large, 4).psnr_db
    assert score(equator, target, odi, 4).ssim < score(pole, target, odi, 4).ssim


def test_large_protocol_names_its_tiles() -> None:
    assert (PROTOCOLS["large"].tile, PROTOCOLS["large"].overlap) == (64, 4)
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {name: name for name in PROTOCOLS}


def test_mistakes_are_named() -> None:
    image = np.zeros((18, 40, 3), np.uint8)
    with pytest.raises(
        UserError, match=r"unknown protocol 'lite'; expected one of: large, light, light-rounded, ntire"
    ):
        get_protocol("lite")
    with pytest.raises(UserError, match="output has shape"):
        score(image, image[:, 1:], get_protocol("light"), 2)
    with pytest.raises(UserError, match=r"40×18 pixels is too small for protocol 'light'.*border of 4"):
        score(image, image, get_protocol("light"), 4)
    with pytest.raises(UserError, match="uint8"):
        score(image.astype(np.float64), image.astype(np.float64), get_protocol("light"), 2)
    assert score(image, image, get_protocol("light"), 3).ssim == 1.0  # 12 rows are left: enough


def test_output_becomes_uint8_by_rounding_and_clipping() -> None:
    levels = np.arange(256)
    for dtype in (np.float32, np.float64):
        assert np.array_equal(to_uint8((levels / 255).astype(dtype)), levels)
    values = np.array([-1.0, -1e-9, 0.5 / 255, 1.49 / 255, 1.5 / 255, 254.6 / 255, 1.0, 1.7, np.inf])
    assert to_uint8(values).tolist() == [0, 0, 1, 1, 2, 255, 255, 255, 255]
    with pytest.raises(UserError, match="NaN"):
        to_uint8(np.array([0.1, np.nan]))

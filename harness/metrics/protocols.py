"""Named ways of measuring PSNR and SSIM: a score means something only beside its protocol's name."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.core.configs import Task
from harness.core.errors import UserError, unknown_name
from harness.core.records import METRIC_LABELS
from harness.metrics.colour import luma_bt601
from harness.metrics.fidelity import latitude_weights, psnr_db, ssim


@dataclass(frozen=True)
class Protocol:
    """How outputs are made and compared.

    `colour`: 'y' the BT.601 luma, 'y-rounded' the same in whole numbers, 'rgb' the three channels alike.
    `border`: pixels shaved off each side, 'scale' for as many as the scale. `spherical`: rows weighted by latitude.
    `tile`, `overlap`: the low-resolution tiles that the network is to be run on, None for the whole image at once.
    `wrap`: the low-resolution columns by which the network is to see a panorama continued around its seam. Scoring
    itself needs none of these three.
    """

    name: str
    colour: Literal["y", "y-rounded", "rgb"]
    border: int | Literal["scale"]
    spherical: bool
    tile: int | None
    overlap: int
    description: str
    wrap: int = 0

    def border_pixels(self, scale: int) -> int:
        """Return how many high-resolution pixels are shaved off each side."""
        return scale if self.border == "scale" else self.border


@dataclass(frozen=True)
class Score:
    """The two numbers of one image: `psnr_db` in dB (inf for identical images), `ssim` up to 1."""

    psnr_db: float
    ssim: float


_LIGHT = Protocol(
    name="light",
    colour="y",
    border="scale",
    spherical=False,
    tile=None,
    overlap=0,
    description="lightweight networks: BT.601 luma, border of the scale",
)
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _LIGHT,
        # Bicubic on Set5 ×2/×3/×4: 33.640/30.385/28.416 dB here, 33.673/30.403/28.429 dB under `light`.
        replace(
            _LIGHT,
            name="light-rounded",
            colour="y-rounded",
            description="as light, the luma rounded as by MATLAB's rgb2ycbcr: the bicubic rows of many tables",
        ),
        Protocol(
            name="large",
            colour="rgb",
            border=0,
            spherical=False,
            tile=64,
            overlap=4,
            description="CAMixerSR on large images: RGB, no border, tiles of 64 overlapping by 4",
        ),
        Protocol(
            name="ntire",
            colour="rgb",
            border=4,
            spherical=False,
            tile=None,
            overlap=0,
            description="NTIRE challenges: RGB, border 4",
        ),
        Protocol(
            name="odi",
            colour="rgb",
            border=0,
            spherical=True,
            tile=None,
            overlap=0,
            description="omnidirectional images: WS-PSNR and WS-SSIM, RGB, no border, continued around the seam",
            wrap=32,
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """Return the protocol called `name`; `UserError` lists the known ones."""
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def protocol_for(task: Task) -> str:
    """Return the name of the protocol that networks trained for a task are scored by unless told otherwise."""
    return "odi" if task == "odi" else "light"


def metric_label(metric: str, protocol: str, *, unit: bool = True) -> str:
    """Return what readers call a metric (of `METRIC_LABELS`, optionally with `/device`) under a protocol.

    PSNR and SSIM of rows weighted by latitude are WS-PSNR and WS-SSIM; `psnr_db` and `ssim` stay their keys.
    Records may name protocols that this version does not have.
    """
    name, _, device = metric.partition("/")
    label = METRIC_LABELS[name] if unit else METRIC_LABELS[name].partition(" (")[0]
    is_spherical = protocol in PROTOCOLS and PROTOCOLS[protocol].spherical
    if is_spherical and name in ("psnr_db", "ssim"):
        label = f"WS-{label}"
    return f"{label} on {device}" if device else label


def score(
    output_HWC: npt.NDArray[np.uint8], target_HWC: npt.NDArray[np.uint8], protocol: Protocol, scale: int
) -> Score:
    """Score one uint8 RGB image (H, W, 3) against its target of the same shape under `protocol`.

    The target is the high-resolution image cropped to a multiple of `scale`. Latitude weights are those of the whole
    image's rows. Raises `UserError` when the shapes differ, or when fewer than 11×11 pixels, SSIM's window, are left
    inside the border: a tiny image has no score under any protocol.
    """
    if output_HWC.shape != target_HWC.shape:
        raise UserError(
            f"output has shape {output_HWC.shape}, but its target {target_HWC.shape}; is the scale {scale}?"
        )
    if output_HWC.dtype != np.uint8 or target_HWC.dtype != np.uint8:
        raise UserError(f"protocols compare uint8 images, got {output_HWC.dtype} and {target_HWC.dtype}; use to_uint8")
    border = protocol.border_pixels(scale)
    height, width = output_HWC.shape[:2]
    if min(height, width) < 2 * border + 11:
        raise UserError(
            f"image of {width}×{height} pixels is too small for protocol '{protocol.name}': "
            f"a border of {border} must leave 11×11 pixels for SSIM; leave the image out"
        )
    inside = slice(border, -border or None)
    weights_H = latitude_weights(height)[inside] if protocol.spherical else None
    output, target = _planes(output_HWC, protocol)[inside, inside], _planes(target_HWC, protocol)[inside, inside]
    return Score(psnr_db=psnr_db(output, target, weights_H=weights_H), ssim=ssim(output, target, weights_H=weights_H))


def to_uint8(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Turn values in [0, 1] (an array of one axis or more) into uint8: times 255, clipped to 0..255, halves rounded up.

    Raises `UserError` for NaN.
    """
    levels = np.empty(image.shape, np.uint8)
    for row, values in enumerate(image):  # one by one: a large image as float64 would need 8 times its memory
        if np.isnan(values).any():
            raise UserError("the output holds NaN: it is no image")
        levels[row] = np.floor(np.clip(values.astype(np.float64) * 255, 0, 255) + 0.5)
    return levels


def _planes(image_HWC: npt.NDArray[np.uint8], protocol: Protocol) -> npt.NDArray[Any]:
    if protocol.colour == "rgb":
        return image_HWC
    luma_HW = luma_bt601(image_HWC)
    return luma_HW if protocol.colour == "y" else np.floor(luma_HW + 0.5)

"""Image files to uint8 RGB arrays and back; whatever cannot be read faithfully is refused by name."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from harness.core.errors import UserError
from harness.core.files import atomic_path
from harness.data.imresize import ImageArray

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")

# Part of the key of every cached image: count it up when a pixel of the result can change.
DECODER_VERSION = 1

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
GREY_16_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339


def list_images(folder: Path) -> list[Path]:
    """Return the image files (by `IMAGE_SUFFIXES`, any case) directly in `folder`, sorted, without hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def read_rgb(path: Path) -> ImageArray:
    """Read a PNG, JPEG, WebP, TIFF or BMP file as a uint8 array (H, W, 3).

    Grey and palette images become RGB; 16-bit grey is rounded (value / 257); EXIF rotation is applied; alpha that is
    opaque everywhere is dropped; of a JPEG that carries further pictures (MPO) the first is read. Colour profiles are
    not applied. Raises `UserError` naming the file for: a missing, truncated or corrupt file, another format, partly
    transparent images, 16-bit colour (Pillow would cut it to 8 bits), CMYK and other colour spaces, 32-bit and
    floating-point samples, animations and several pages.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            refusal = reason_to_refuse(path, image)
            if refusal is None:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file
        raise UserError(f"{path}: cannot be read as {', '.join(FORMATS)}: {error}; replace or remove it") from error
    raise UserError(f"{path}: {refusal}")


def write_png(path: Path, image_HWC: ImageArray) -> None:
    """Write a uint8 image (H, W, 3) or (H, W) as PNG in one step, creating the folder."""
    if image_HWC.dtype != np.uint8 or not (image_HWC.ndim == 2 or (image_HWC.ndim == 3 and image_HWC.shape[2] == 3)):
        raise UserError(f"{path}: expected a uint8 image (H, W, 3) or (H, W), got {image_HWC.dtype} {image_HWC.shape}")
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image_HWC)).save(temporary, format="PNG")


def reason_to_refuse(path: Path, image: Image.Image) -> str | None:
    """Say, from the header alone, why an image would not be read faithfully; None when it would."""
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        return f"holds {getattr(image, 'n_frames', 1)} frames or pages, expected one image; save them one by one"
    bits = _bits_per_sample(path, image)
    if bits == 16 and image.mode in (*GREY_16_MODES, "I"):
        return "has a transparent grey level, expected an opaque image" if "transparency" in image.info else None
    if bits > 8:
        return f"has {bits} bits per channel (mode {image.mode}), expected 8, or 16 in grey; convert it to 8 bits first"
    if image.mode not in ("1", "L", "P", "RGB", "LA", "PA", "La", "RGBA", "RGBa", "RGBX"):
        return f"has colour mode {image.mode}, expected grey, palette or RGB; convert it to RGB first"
    return None


def _bits_per_sample(path: Path, image: Image.Image) -> int:
    """Return the bits of one channel's sample as the file stores them; 32 for signed or floating-point samples."""
    if image.format == "PNG" and image.mode not in ("1", "L", "P"):
        with path.open("rb") as file:
            return file.read(25)[24]  # the ninth byte of IHDR, which is always the first chunk
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        bits = max(tags.get(_TIFF_BITS_PER_SAMPLE, (1,)))
        plain = tags.get(_TIFF_SAMPLE_FORMAT, (1,))[0] == 1 and (bits <= 8 or tags.get(_TIFF_PHOTOMETRIC) != 0)
        return int(bits) if plain else 32
    return 16 if image.mode in GREY_16_MODES else 32 if image.mode in ("I", "F") else 8


def _to_rgb(image: Image.Image) -> ImageArray:
    if image.mode in (*GREY_16_MODES, "I"):
        grey_HW = np.asarray(image).astype(np.uint32)
        return _grey_to_rgb(((grey_HW + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        rgba_HWC = np.asarray(image.convert("RGBA"))
        if rgba_HWC[..., 3].min() < 255:
            raise UserError("is partly transparent, expected an opaque image; flatten it onto a background first")
        return np.ascontiguousarray(rgba_HWC[..., :3])
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey_HW: npt.NDArray[np.uint8]) -> ImageArray:
    return np.repeat(grey_HW[..., None], 3, axis=2)

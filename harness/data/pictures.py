"""Image files as pictures: pixels with all that a restored file is to keep of them.

What training and scoring refuse, transparency above all, belongs to a picture. Grey stays grey, 16-bit grey stays so
where the format has it, colour profile and EXIF go along.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from harness.core.errors import UserError
from harness.core.files import atomic_path
from harness.data.images import FORMATS, GREY_16_MODES, reason_to_refuse

# What a picture is written as, by the end of its name.
OUTPUT_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_EXIF_HEADER = b"Exif\x00\x00"
_ORIENTATION = 0x0112
_SHORT = 3
# Of a TIFF file EXIF is what its own tags say beside how its pixels are stored.
_DESCRIPTIVE_TAGS = (269, 270, 271, 272, 305, 306, 315, 316, 33432, *range(40091, 40096))
_SUBFOLDERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)

Levels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class Picture(NamedTuple):
    """A picture: `colour_HWC` in RGB (of a grey one three times the same), `alpha_HW` where it has transparency.

    Both are uint8; of a grey picture of 16 bits the colours are uint16. `icc` and `exif` are bytes as JPEG files hold
    them; the pixels stand upright, and so EXIF says.
    """

    colour_HWC: Levels
    alpha_HW: npt.NDArray[np.uint8] | None = None
    is_grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None


def read_picture(path: Path) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF or BMP file.

    Palettes become RGB, EXIF rotation is applied, and EXIF then says that it is upright. Raises `UserError` naming the
    file as `read_rgb` does, for all but transparency: 16-bit colour, CMYK, animations and several pages among it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            refusal = reason_to_refuse(path, image)
            if refusal is None:
                image.load()
                return _to_picture(image)
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file
        raise UserError(f"{path}: cannot be read as {', '.join(FORMATS)}: {error}; replace or remove it") from error
    raise UserError(f"{path}: {refusal}")


def read_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) of an upright image, from its header where that tells; None where that cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.format == "TIFF":
                image.load()  # which turns it, and by versions of Pillow opening has done so already
            width, height = image.size
            is_turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # as above; reading the whole of it will say why
        return None
    return (width, height) if is_turned else (height, width)


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture in one step, in the format that the name's end says, creating the folder.

    JPEG at quality 95 without subsampling, WebP without loss, TIFF uncompressed. 16 bits become 8 in JPEG and WebP, and
    grey becomes RGB in WebP, which have no room for them. `UserError` for another end, transparency in JPEG, and what a
    format cannot hold.
    """
    format_name = OUTPUT_FORMATS.get(path.suffix.lower())
    if format_name is None:
        raise UserError(f"{path}: expected a name ending in {', '.join(OUTPUT_FORMATS)}")
    if format_name == "JPEG" and picture.alpha_HW is not None:
        raise UserError(f"{path}: JPEG has no room for transparency; expected a .png, .webp or .tif")
    options: dict[str, Any] = {}
    if format_name == "JPEG":
        options = {"quality": 95, "subsampling": 0}
    elif format_name == "WEBP":
        options = {"lossless": True, "exact": True}
    if picture.icc is not None:
        options["icc_profile"] = picture.icc
    if picture.exif is not None:
        options["exif"] = picture.exif
    image = _to_image(picture, has_16_bits=format_name in ("PNG", "TIFF"))
    with atomic_path(path) as temporary:
        try:
            image.save(temporary, format=format_name, **options)
        except OSError as error:
            if error.errno is not None:  # of the file system; what a format cannot hold has no number
                raise
            raise UserError(f"{path}: {format_name} cannot hold it: {error}; expected another format") from None
        except (ValueError, RuntimeError, struct.error) as error:
            raise UserError(f"{path}: {format_name} cannot hold it: {error}; expected another format") from None


def fill_hidden(picture: Picture) -> Levels:
    """Return the colours, those of fully transparent pixels replaced by the nearest that can be seen.

    What nobody sees, often black, would bleed into the edges of what is seen.
    """
    if picture.alpha_HW is None or picture.alpha_HW.all() or not picture.alpha_HW.any():
        return picture.colour_HWC
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    rows_HW, columns_HW = distance_transform_edt(picture.alpha_HW == 0, return_distances=False, return_indices=True)
    filled_HWC: Levels = picture.colour_HWC[rows_HW, columns_HW]
    return filled_HWC


def _to_picture(image: Image.Image) -> Picture:
    exif = _read_exif(image)
    upright = ImageOps.exif_transpose(image)
    icc = image.info.get("icc_profile") or None
    if upright.mode in (*GREY_16_MODES, "I"):
        colour_HWC: Levels = np.repeat(np.asarray(upright)[..., None], 3, axis=2).astype(np.uint16)
        return Picture(colour_HWC, is_grey=True, icc=icc, exif=exif)
    is_grey = upright.mode in ("1", "L", "LA", "La")
    if upright.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in upright.info:
        rgba_HWC = np.array(upright.convert("LA" if upright.mode == "La" else upright.mode).convert("RGBA"))
        return Picture(np.ascontiguousarray(rgba_HWC[..., :3]), rgba_HWC[..., 3].copy(), is_grey, icc, exif)
    return Picture(np.array(upright.convert("RGB")), None, is_grey, icc, exif)


def _to_image(picture: Picture, *, has_16_bits: bool) -> Image.Image:
    colour_HWC: Levels = picture.colour_HWC
    if colour_HWC.dtype == np.uint16 and not has_16_bits:
        colour_HWC = ((colour_HWC.astype(np.uint32) + 128) // 257).astype(np.uint8)
    channels = [colour_HWC[..., :1] if picture.is_grey else colour_HWC]
    if picture.alpha_HW is not None:
        channels.append(picture.alpha_HW[..., None])
    pixels_HWC = np.concatenate(channels, axis=2)
    return Image.fromarray(np.ascontiguousarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC))


def _read_exif(image: Image.Image) -> bytes | None:
    """Return the image's EXIF as it is stored, but for the orientation, which is upright then; None without any."""
    if image.format == "TIFF":
        return _gather_exif(image.getexif())
    stored = image.info.get("exif")
    if not isinstance(stored, bytes) or not stored:
        return None
    made = _stand_upright(stored if stored.startswith(_EXIF_HEADER) else _EXIF_HEADER + stored)
    known = Image.Exif()
    known.load(made)
    if known.get(_ORIENTATION, 1) == 1:
        return made
    del known[_ORIENTATION]  # stored in an uncommon way: write all of it anew
    return known.tobytes()


def _gather_exif(tags: Image.Exif) -> bytes | None:
    kept = Image.Exif()
    for tag in _DESCRIPTIVE_TAGS:
        if tag in tags:
            kept[tag] = tags[tag]
    for folder in _SUBFOLDERS:
        if entries := tags.get_ifd(folder):
            kept.get_ifd(folder).update(entries)
            kept[folder] = entries
    return kept.tobytes() if len(kept) else None


def _stand_upright(exif: bytes) -> bytes:
    """Set the orientation in the first folder of tags to 1, where it is stored there as a short number."""
    content, start = bytearray(exif), len(_EXIF_HEADER)
    order = ">" if exif[start : start + 2] == b"MM" else "<"
    try:
        (folder,) = struct.unpack_from(f"{order}I", content, start + 4)
        (count,) = struct.unpack_from(f"{order}H", content, start + folder)
        for entry in range(start + folder + 2, start + folder + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", content, entry)
            if (tag, kind) == (_ORIENTATION, _SHORT):
                struct.pack_into(f"{order}H", content, entry + 8, 1)
    except struct.error:
        return exif
    return bytes(content)

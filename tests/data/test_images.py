import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from harness.core.errors import UserError
from harness.data.images import IMAGE_SUFFIXES, list_images, read_rgb, write_png

Array = npt.NDArray[np.uint8]
ORIENTATION_TAG = 274


@pytest.fixture
def rgb(rng: np.random.Generator) -> Array:
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
    return np.asarray(coarse.resize((30, 20), Image.Resampling.BICUBIC))


def write_raw_png(path: Path, samples: npt.NDArray[Any], bit_depth: int, colour_type: int) -> None:
    """Write a PNG of any depth and colour type; `samples` are the rows as they stand in the file."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in samples)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".bmp", {}),
        (".webp", {"lossless": True}),
        (".tif", {}),
        (".tiff", {"compression": "tiff_lzw"}),
        (".tif", {"compression": "tiff_deflate"}),
    ],
)
def test_lossless_formats_round_trip(tmp_path: Path, rgb: Array, suffix: str, options: dict[str, Any]) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(rgb).save(path, **options)
    read = read_rgb(path)
    assert read.dtype == np.uint8
    assert np.array_equal(read, rgb)
    assert read.flags.writeable


@pytest.mark.parametrize(("suffix", "options"), [(".jpg", {"quality": 95}), (".webp", {"quality": 95})])
def test_lossy_formats_come_close(tmp_path: Path, rgb: Array, suffix: str, options: dict[str, Any]) -> None:
    path = tmp_path / f"IMAGE{suffix.upper()}"
    Image.fromarray(rgb).save(path, **options)
    assert np.abs(read_rgb(path).astype(int) - rgb).mean() < 8
    assert list_images(tmp_path) == [path]


def test_grey_bilevel_and_palette_become_rgb(tmp_path: Path, rgb: Array) -> None:
    grey = Image.fromarray(rgb).convert("L")
    for mode, image in (("L", grey), ("1", grey.convert("1")), ("P", Image.fromarray(rgb).quantize(16))):
        path = tmp_path / f"{mode}.png"
        image.save(path)
        assert np.array_equal(read_rgb(path), np.asarray(image.convert("RGB"))), mode


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_fills_the_range(tmp_path: Path, bits: int) -> None:
    levels = 2**bits
    packed = np.array([[sum((level % levels) << (8 - bits * (level + 1)) for level in range(8 // bits))]], np.uint8)
    header_width = 8 // bits
    path = tmp_path / "grey.png"
    write_raw_png(path, packed, bits, 0)
    content = bytearray(path.read_bytes())
    content[16:20] = struct.pack(">I", header_width)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(bytes(content))
    expected = [255 * (level % levels) // (levels - 1) for level in range(header_width)]
    assert read_rgb(path)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".webp", {"lossless": True}),
        (".tif", {}),
        (".tif", {"compression": "tiff_lzw"}),
        (".jpg", {"quality": 100, "subsampling": 0}),
    ],
)
def test_exif_rotation_is_applied_once(
    tmp_path: Path, rgb: Array, suffix: str, options: dict[str, Any], orientation: int
) -> None:
    upright = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.swapaxes(0, 1),
        6: np.rot90(rgb, -1),
        7: rgb[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(rgb, 1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    path = tmp_path / f"image{suffix}"
    Image.fromarray(rgb).save(path, exif=exif, **options)
    read = read_rgb(path)
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).max() <= (8 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path, rgb: Array, suffix: str) -> None:
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    opaque, transparent = tmp_path / f"opaque{suffix}", tmp_path / f"transparent{suffix}"
    Image.fromarray(np.concatenate([rgb, alpha], axis=2)).save(opaque, **options)
    assert np.array_equal(read_rgb(opaque), rgb)
    alpha[3, 4] = 254
    Image.fromarray(np.concatenate([rgb, alpha], axis=2)).save(transparent, **options)
    with pytest.raises(UserError, match=f"transparent{suffix}: is partly transparent"):
        read_rgb(transparent)


def test_transparency_of_grey_palette_and_colour_key(tmp_path: Path, rgb: Array) -> None:
    grey = Image.fromarray(rgb).convert("L")
    grey_alpha = tmp_path / "la.png"
    Image.merge("LA", (grey, Image.new("L", grey.size, 255))).save(grey_alpha)
    assert np.array_equal(read_rgb(grey_alpha)[..., 0], np.asarray(grey))

    palette = tmp_path / "palette.png"
    quantized = Image.fromarray(rgb).quantize(16)
    quantized.save(palette, transparency=int(np.asarray(quantized)[0, 0]))
    with pytest.raises(UserError, match=r"palette\.png: is partly transparent"):
        read_rgb(palette)

    used, unused = tmp_path / "used.png", tmp_path / "unused.png"
    Image.fromarray(rgb).save(used, transparency=tuple(int(value) for value in rgb[0, 0]))
    with pytest.raises(UserError, match=r"used\.png: is partly transparent"):
        read_rgb(used)
    missing_colour = next(c for c in ((1, 2, 3), (250, 1, 9)) if not (rgb == c).all(axis=2).any())
    Image.fromarray(rgb).save(unused, transparency=missing_colour)
    assert np.array_equal(read_rgb(unused), rgb)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_rounded(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 385, 386, 32768, 65406, 65407, 65535]], np.uint16)
    path = tmp_path / f"grey{suffix}"
    if suffix == ".png":
        write_raw_png(path, values, 16, 0)
    else:
        Image.fromarray(values).save(path)
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    assert np.array_equal(read_rgb(path), np.repeat(expected[..., None], 3, axis=2))


def test_16_bit_grey_with_a_transparent_level_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    write_raw_png(path, np.array([[0, 128, 129]], np.uint16), 16, 0)
    content = path.read_bytes()
    key = b"tRNS" + struct.pack(">H", 128)
    chunk = struct.pack(">I", 2) + key + struct.pack(">I", zlib.crc32(key))
    path.write_bytes(content[:33] + chunk + content[33:])  # after IHDR
    with pytest.raises(UserError, match=r"grey\.png: has a transparent grey level"):
        read_rgb(path)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_png_is_refused_not_cut(
    tmp_path: Path, rng: np.random.Generator, colour_type: int, channels: int
) -> None:
    path = tmp_path / "deep.png"
    write_raw_png(path, rng.integers(0, 65536, (4, 5, channels)).astype(np.uint16), 16, colour_type)
    with pytest.raises(UserError, match=r"deep\.png: has 16 bits per channel.*convert it to 8 bits"):
        read_rgb(path)


def write_tiff(path: Path, samples: npt.NDArray[Any], photometric: int, sample_format: int) -> None:
    """Write an uncompressed little-endian TIFF of one strip."""
    height, width, channels = samples.shape
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    bits = samples.dtype.itemsize * 8
    after = 8 + 2 + 11 * 12 + 4
    lists = struct.pack(f"<{channels}H", *[bits] * channels) + struct.pack(f"<{channels}H", *[sample_format] * channels)
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, bits if channels == 1 else after),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, after + len(lists)),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
        (339, 3, channels, sample_format if channels == 1 else after + 2 * channels),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0\0\0\0"
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + lists + data)


def test_tiffs_that_would_be_misread_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "image.tif"
    deep = rng.integers(0, 32768, (4, 5, 3)).astype(np.uint16)
    write_tiff(path, (deep >> 8).astype(np.uint8), 2, 1)
    assert np.array_equal(read_rgb(path), deep >> 8)  # the writer is right where the reader can be checked
    for samples, photometric, sample_format in (
        (deep, 2, 1),
        (deep[..., :1], 0, 1),  # white is zero
        (deep[..., :1].astype(np.int16), 1, 2),
        (deep[..., :1].astype(np.int32), 1, 2),
        (deep[..., :1].astype(np.uint32), 1, 1),
        (deep[..., :1].astype(np.float32), 1, 3),
    ):
        write_tiff(path, samples, photometric, sample_format)
        with pytest.raises(UserError, match=r"image\.tif: "):
            read_rgb(path)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_refused(tmp_path: Path, rgb: Array, suffix: str) -> None:
    path = tmp_path / f"print{suffix}"
    Image.fromarray(rgb).convert("CMYK").save(path)
    with pytest.raises(UserError, match=f"print{suffix}: has colour mode CMYK.*convert it to RGB"):
        read_rgb(path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_animations_and_pages_are_refused(tmp_path: Path, rgb: Array, suffix: str) -> None:
    path = tmp_path / f"many{suffix}"
    frames = [Image.fromarray(np.roll(rgb, shift, axis=0)) for shift in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=f"many{suffix}: holds 3 frames or pages"):
        read_rgb(path)


def test_first_picture_of_a_multi_picture_jpeg_is_read(tmp_path: Path, rgb: Array) -> None:
    path, single = tmp_path / "phone.jpg", tmp_path / "single.jpg"
    image = Image.fromarray(rgb)
    image.save(path, format="MPO", save_all=True, append_images=[image.resize((8, 8))])
    image.save(single)
    assert np.array_equal(read_rgb(path), read_rgb(single))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, rng: np.random.Generator, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=f"cut{suffix}: cannot be read"):
        read_rgb(path)


def test_damaged_png_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "damaged.png"
    Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"damaged\.png: cannot be read"):
        read_rgb(path)


def test_other_files_are_refused_by_name(tmp_path: Path, rgb: Array) -> None:
    text, gif = tmp_path / "text.png", tmp_path / "gif.png"
    text.write_text("no image")
    Image.fromarray(rgb).save(gif, format="GIF")
    for path in (text, gif):
        with pytest.raises(UserError, match=f"{path.name}: cannot be read as PNG, JPEG, WEBP, TIFF, BMP"):
            read_rgb(path)
    with pytest.raises(UserError, match=r"none\.png: no such image file"):
        read_rgb(tmp_path / "none.png")
    with pytest.raises(UserError, match="no such image file"):
        read_rgb(tmp_path)


def test_listing_is_sorted_and_takes_images_only(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "c.Tiff"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png", "c.Tiff"]
    assert all(suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)


def test_png_is_written_whole_or_not_at_all(tmp_path: Path, rgb: Array) -> None:
    path = tmp_path / "new" / "image.png"
    write_png(path, rgb)
    assert np.array_equal(read_rgb(path), rgb)
    write_png(path, rgb[::2, ::2])  # not contiguous
    assert np.array_equal(read_rgb(path), rgb[::2, ::2])
    with pytest.raises(UserError, match=r"image\.png: expected a uint8 image"):
        write_png(path, rgb.astype(np.float32))
    assert np.array_equal(read_rgb(path), rgb[::2, ::2])
    assert list(path.parent.iterdir()) == [path]

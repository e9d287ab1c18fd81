"""Decoded images on disk, made once and memory-mapped ever after.

An entry is one `.npy` file of a uint8 image (H, W, 3), followed by 32 bytes: the SHA-256 of its shape and pixels
(`hash_pixels`). Entries are written in one step, so several processes may fill and read a cache at the same time and
a crash leaves no half entry. Readers check form and length, not every pixel: an entry cut short or overwritten is made
again, one with flipped bits is not noticed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from harness.core.errors import OutageError
from harness.core.files import atomic_path
from harness.data.imresize import ImageArray
from harness.data.pairs import hash_pixels

_HASH_BYTES = 32


@dataclass(frozen=True)
class CachedImage:
    """Where a cached image lies. It holds no open file: a dataset of thousands of images needs no thousands of them."""

    path: Path
    offset: int
    shape: tuple[int, int, int]
    pixel_hash: bytes

    def open(self) -> ImageArray:
        """Map the image (H, W, 3) read-only into memory; pixels are read from disk when they are looked at.

        `OutageError` where the entry is gone, or was cut short, since it was found.
        """
        try:
            return np.asarray(np.memmap(self.path, np.uint8, mode="r", offset=self.offset, shape=self.shape))
        except (OSError, ValueError) as error:
            raise OutageError(
                f"{self.path}: the cached image cannot be read any more: {error}; the same command makes it again and "
                "goes on"
            ) from error


def load_or_make(path: Path, make: Callable[[], ImageArray]) -> CachedImage:
    """Return the entry at `path`; where there is none, or a damaged one, write what `make` returns."""
    entry = _find_entry(path)
    if entry is None:
        image_HWC = make()
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(np.ascontiguousarray(image_HWC)))
            file.write(np.ascontiguousarray(image_HWC).data)  # NumPy's own writing does not say why it cannot
            file.write(hash_pixels(image_HWC))
        entry = _find_entry(path)
        assert entry is not None, f"{path} was just written"
    return entry


def _find_entry(path: Path) -> CachedImage | None:
    try:
        with path.open("rb") as file:
            if npy.read_magic(file) != (1, 0):
                return None
            shape, fortran_order, dtype = npy.read_array_header_1_0(file)
            offset = file.tell()
            end = offset + int(np.prod(shape))
            file.seek(end)
            pixel_hash = file.read(_HASH_BYTES + 1)
    except (OSError, ValueError):
        return None
    if len(shape) != 3 or shape[2] != 3 or fortran_order or dtype != np.uint8 or len(pixel_hash) != _HASH_BYTES:
        return None
    return CachedImage(path, offset, shape, pixel_hash)

"""Pairs of a high-resolution image and its low-resolution version, and ordered sets of them.

Shape suffixes: H rows, W columns, C = 3 channels (RGB).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.core.errors import UserError
from harness.data.imresize import ImageArray


@dataclass(frozen=True)
class ImagePair:
    """One image: `hr_HWC` (scale·h, scale·w, 3) and `lr_HWC` (h, w, 3), both uint8; `path` is its file."""

    name: str
    hr_HWC: ImageArray
    lr_HWC: ImageArray
    path: Path | None = None

    def describe(self) -> str:
        """Return the file where there is one, else the name: what an error message calls this image."""
        return str(self.path or self.name)


class PairedDataset(Sequence[ImagePair]):
    """An ordered set of image pairs at one scale; pairs may be opened lazily by the sequence that holds them.

    `content_hash` is 16 hex digits of the SHA-256 over the pixels and sizes of every HR and LR image, in order; names
    do not enter. It is computed from `pairs` unless given. Raises `UserError` when there are no pairs, or when an HR
    image is not `scale` times as large as its LR image.
    """

    def __init__(self, name: str, scale: int, pairs: Sequence[ImagePair], content_hash: str | None = None):
        if not len(pairs):
            raise UserError(f"dataset {name!r} has no images")
        if content_hash is None:
            for pair in pairs:
                check_sizes(pair.describe(), pair.hr_HWC.shape, pair.lr_HWC.shape, scale)
            content_hash = hash_content((hash_pixels(pair.hr_HWC), hash_pixels(pair.lr_HWC)) for pair in pairs)
        self.name = name
        self.scale = scale
        self.pairs = pairs
        self.content_hash = content_hash

    def names_smaller_than(self, hr_side: int) -> tuple[str, ...]:
        """Return the names of the images that a crop of `hr_side`² high-resolution pixels does not fit into."""
        return tuple(pair.name for pair in self if min(pair.hr_HWC.shape[:2]) < hr_side)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> ImagePair:  # type: ignore[override]  # slices are not offered
        return self.pairs[index]

    def __iter__(self) -> Iterator[ImagePair]:
        return iter(self.pairs)


def check_sizes(what: str, hr_shape: tuple[int, ...], lr_shape: tuple[int, ...], scale: int) -> None:
    """Raise `UserError` naming `what` unless an HR image of `hr_shape` is `scale` times its LR image of `lr_shape`."""
    expected = (hr_shape[0] // scale, hr_shape[1] // scale)
    if lr_shape[:2] != expected:
        raise UserError(
            f"{what}: the low-resolution image has {lr_shape[1]}×{lr_shape[0]} pixels, "
            f"expected {expected[1]}×{expected[0]} for ×{scale} of {hr_shape[1]}×{hr_shape[0]}"
        )


def hash_pixels(image_HWC: ImageArray) -> bytes:
    """Return the SHA-256 of an image's shape and pixels."""
    digest = hashlib.sha256(repr(image_HWC.shape).encode())
    digest.update(np.ascontiguousarray(image_HWC).data)
    return digest.digest()


def hash_content(pixel_hashes: Iterator[tuple[bytes, bytes]]) -> str:
    """Return a dataset's `content_hash` from the pixel hashes (HR, LR) of its pairs."""
    return hashlib.sha256(b"".join(hr + lr for hr, lr in pixel_hashes)).hexdigest()[:16]

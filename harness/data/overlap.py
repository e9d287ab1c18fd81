"""Keeping training and validation apart: no validation image may be a training image, or nearly one."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from harness.core.errors import UserError
from harness.data.imresize import ImageArray
from harness.data.pairs import ImagePair, PairedDataset

FloatArray = npt.NDArray[np.float64]

# Two images are nearly identical when, in one of the 8 flips and rotations, their 8×8 thumbnails correlate by more than
# LAYOUT_THRESHOLD and the 16×16 blocks of their 64×64 thumbnails, each at its best shift of up to 4, by more than
# BLOCK_THRESHOLD in the median. `refuse_overlap` says how the thresholds were measured.
LAYOUT_SIDE = 8
LAYOUT_THRESHOLD = 0.85
THUMBNAIL_SIDE = 64
BLOCK_SIDE = 16
BLOCK_SHIFT = 4
BLOCK_THRESHOLD = 0.89
_MIN_CONTRAST = 4.0  # grey levels of standard deviation; flatter blocks say nothing
_MIN_BLOCKS = 4


def refuse_overlap(
    train: PairedDataset, validation: PairedDataset, *, uses: tuple[str, str] = ("training", "validation")
) -> None:
    """Raise `UserError` naming both files when a validation image is a training image too, or nearly one.

    `uses` is what the message calls the images of the two sets.

    Equal pixels are found whatever the file's name and format; near-identity, as described at the thresholds above,
    also finds resaved, resized, mirrored and turned copies and other views of the same scene. The check reads the LR
    images and a part of each HR image. An image without contrast is compared for equal pixels only.

    Measured at ×2 and ×4: the stereo pair motorcycle_left/right of scikit-image has layout correlation 0.93 and block
    similarity 0.919 to 0.931; no pair of T91×Set5, BSDS80×Set5 or demo×demo (stereo pair aside) reaches a layout
    correlation of 0.85. Over all 113,050 pairs of those sets and 285 others, most of them landscapes with much the same
    horizon, in all 8 orientations, the greatest block similarity of two different photographs is 0.853.
    """
    seen: dict[tuple[Any, ...], list[ImagePair]] = {}
    for pair in train:
        seen.setdefault(_fingerprint(pair), []).append(pair)
    for pair in validation:
        for other in seen.get(_fingerprint(pair), []):
            if np.array_equal(other.hr_HWC, pair.hr_HWC):
                raise _overlap(other, pair, "has the same pixels as", uses)

    train_thumbnails = np.stack([_thumbnail(pair.lr_HWC) for pair in train])
    train_layouts = _normalise(_shrink(train_thumbnails))
    for pair in validation:
        for thumbnail in _orientations(_thumbnail(pair.lr_HWC)):
            alike = train_layouts @ _normalise(_shrink(thumbnail[None]))[0]
            for index in np.flatnonzero(alike > LAYOUT_THRESHOLD):
                if block_similarity(train_thumbnails[index], thumbnail) > BLOCK_THRESHOLD:
                    raise _overlap(train[int(index)], pair, "is nearly identical to", uses)


def drop_repeated(pairs: Iterable[ImagePair]) -> tuple[list[ImagePair], list[ImagePair]]:
    """Return the pairs without those whose HR image came before, pixel for pixel, and those that are left out."""
    kept: list[ImagePair] = []
    dropped: list[ImagePair] = []
    seen: dict[tuple[Any, ...], list[ImagePair]] = {}
    for pair in pairs:
        alike = seen.setdefault(_fingerprint(pair), [])
        if any(np.array_equal(other.hr_HWC, pair.hr_HWC) for other in alike):
            dropped.append(pair)
        else:
            alike.append(pair)
            kept.append(pair)
    return kept, dropped


def block_similarity(a: FloatArray, b: FloatArray) -> float:
    """Return how alike two thumbnails (64, 64) are when each block may move by itself: in −1..1; −1 for flat images.

    It is the median, over the blocks of `a` that have contrast, of the greatest correlation with `b` at any shift. Each
    block moves alone because near and far things move differently between two views of a scene.
    """
    blocks = _blocks(a)
    contrasting = blocks.std(axis=1) > _MIN_CONTRAST
    if contrasting.sum() < _MIN_BLOCKS:
        return -1.0
    blocks = _normalise(blocks[contrasting])
    padded = np.pad(b, BLOCK_SHIFT, mode="reflect")
    best = np.full(len(blocks), -1.0)
    for row in range(2 * BLOCK_SHIFT + 1):
        for column in range(2 * BLOCK_SHIFT + 1):
            shifted = padded[row : row + THUMBNAIL_SIDE, column : column + THUMBNAIL_SIDE]
            best = np.maximum(best, (blocks * _normalise(_blocks(shifted)[contrasting])).sum(axis=1))
    return float(np.median(best))


def _overlap(train_pair: ImagePair, validation_pair: ImagePair, how: str, uses: tuple[str, str]) -> UserError:
    return UserError(
        f"{uses[1]} image {validation_pair.describe()} {how} {uses[0]} image {train_pair.describe()}; "
        "remove it from one of the two sets"
    )


def _fingerprint(pair: ImagePair) -> tuple[Any, ...]:
    """Return something equal for equal HR images and cheap to read: their shape and a sixteenth of the rows."""
    return pair.hr_HWC.shape, hash(pair.hr_HWC[::16].tobytes())


def _thumbnail(image_HWC: ImageArray) -> FloatArray:
    grey = Image.fromarray(np.ascontiguousarray(image_HWC)).convert("L")
    return np.asarray(grey.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX), dtype=np.float64)


def _shrink(thumbnails: FloatArray) -> FloatArray:
    """Average thumbnails (n, 64, 64) to layouts (n, 64): the means of 8×8 areas."""
    area = THUMBNAIL_SIDE // LAYOUT_SIDE
    means = np.asarray(thumbnails.reshape(-1, LAYOUT_SIDE, area, LAYOUT_SIDE, area).mean(axis=(2, 4)))
    return means.reshape(len(means), -1)


def _blocks(thumbnail: FloatArray) -> FloatArray:
    """Cut a thumbnail (64, 64) into its blocks (16, 256)."""
    count = THUMBNAIL_SIDE // BLOCK_SIDE
    return thumbnail.reshape(count, BLOCK_SIDE, count, BLOCK_SIDE).swapaxes(1, 2).reshape(count * count, -1)


def _normalise(rows: FloatArray) -> FloatArray:
    """Give each row mean 0 and length 1, so that a dot product is a correlation; a flat row becomes 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6))


def _orientations(thumbnail: FloatArray) -> Iterator[FloatArray]:
    """Yield the 8 flips and rotations."""
    for turned in (thumbnail, thumbnail.T):
        yield from (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1])

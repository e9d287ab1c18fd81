"""Random training crops: the same stream of batches for the same seed, and for a run resumed.

Shape suffixes: B batch, C = 3 channels (RGB), H rows, W columns.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.core.configs import Task
from harness.core.errors import UserError
from harness.data.imresize import ImageArray
from harness.data.pairs import PairedDataset
from harness.data.tensors import to_tensor

_FLIP_COLUMNS = 4


class CropBatch(NamedTuple):
    """Aligned crops, float32 in [0, 1], and where each lies: its first HR row and its whole image's HR rows (int64)."""

    low_BCHW: Tensor
    high_BCHW: Tensor
    first_row_B: Tensor
    image_rows_B: Tensor


class CropSampler:
    """Draws batches of aligned crops: a random image, a random LR-aligned place, optionally flips and a quarter turn.

    Under the task `odi` images are whole panoramas: crops may lie across the seam where their right and left ends
    meet (as if the panorama were turned at random), and are flipped left and right at most, because a row's latitude is
    to stay its own.

    `hr_patch_size` is the side of the HR crop in pixels, a multiple of the scale. All randomness comes from one numpy
    generator seeded by `seed`; `state_dict` holds it, so that a resumed run draws the very batches that an
    uninterrupted one would have. Not safe for use by several threads.

    Images smaller than a patch are left out (`PairedDataset.names_smaller_than` names them). Raises `UserError` for a
    patch size that is not a multiple of the scale, and where no image is large enough.
    """

    def __init__(
        self,
        dataset: PairedDataset,
        *,
        batch_size: int,
        hr_patch_size: int,
        augment: bool,
        seed: int,
        task: Task = "classic",
    ):
        scale = dataset.scale
        if batch_size < 1 or hr_patch_size < 1:
            raise UserError(f"batch_size {batch_size} and hr_patch_size {hr_patch_size} must be at least 1")
        if hr_patch_size % scale:
            below = hr_patch_size - hr_patch_size % scale
            raise UserError(
                f"hr_patch_size {hr_patch_size} is not a multiple of the scale {scale}; "
                f"use {below or scale} or {below + scale}"
            )
        self._usable = [index for index, pair in enumerate(dataset) if min(pair.hr_HWC.shape[:2]) >= hr_patch_size]
        if not self._usable:
            raise UserError(
                f"no image of {dataset.name} has {hr_patch_size}×{hr_patch_size} pixels, the size of a patch; "
                "use a smaller hr_patch_size"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.hr_patch_size = hr_patch_size
        self.augment = augment
        self.task = task
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def next_batch(self) -> CropBatch:
        """Return the next crops: HR of side `hr_patch_size`, LR of that over the scale."""
        scale, hr_side = self.dataset.scale, self.hr_patch_size
        lr_side = hr_side // scale
        lr_BHWC = np.empty((self.batch_size, lr_side, lr_side, 3), np.uint8)
        hr_BHWC = np.empty((self.batch_size, hr_side, hr_side, 3), np.uint8)
        first_rows, image_rows = [], []
        for index in range(self.batch_size):
            pair = self.dataset[self._usable[int(self._generator.integers(len(self._usable)))]]
            height, width = pair.lr_HWC.shape[:2]
            row = int(self._generator.integers(height - lr_side + 1))
            column = int(self._generator.integers(width if self.task == "odi" else width - lr_side + 1))
            variant = self._draw_variant()
            lr_BHWC[index] = _orient(_cut(pair.lr_HWC, row, column, lr_side), variant)
            hr_BHWC[index] = _orient(_cut(pair.hr_HWC, row * scale, column * scale, hr_side), variant)
            first_rows.append(row * scale)
            image_rows.append(pair.hr_HWC.shape[0])
        return CropBatch(to_tensor(lr_BHWC), to_tensor(hr_BHWC), torch.tensor(first_rows), torch.tensor(image_rows))

    def _draw_variant(self) -> int:
        """Draw one of the orientations of `_orient` that the task allows."""
        if not self.augment:
            return 0
        if self.task == "odi":
            return _FLIP_COLUMNS * int(self._generator.integers(2))
        return int(self._generator.integers(8))

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs, in plain Python values that JSON and `torch.save` can hold."""
        return {**self._identity(), "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; `UserError` when it was made with other data, sizes or augmentation."""
        for key, value in self._identity().items():
            found = state.get(key, "classic" if key == "task" else None)  # which states of old do not name
            if found != value:
                raise UserError(
                    f"cannot resume: the checkpoint's {key} is {found!r}, but this run's is {value!r}; "
                    "start a new run or restore the settings"
                )
        self._generator.bit_generator.state = state["generator"]

    def _identity(self) -> dict[str, Any]:
        return {
            "dataset_hash": self.dataset.content_hash,
            "scale": self.dataset.scale,
            "batch_size": self.batch_size,
            "hr_patch_size": self.hr_patch_size,
            "augment": self.augment,
            "task": self.task,
        }


def _cut(image_HWC: ImageArray, row: int, column: int, side: int) -> ImageArray:
    """Return a square patch; one that reaches beyond the right end goes on at the left one."""
    rows_HWC = image_HWC[row : row + side]
    if column + side <= image_HWC.shape[1]:
        return rows_HWC[:, column : column + side]
    return rows_HWC.take(range(column, column + side), axis=1, mode="wrap")


def _orient(patch_HWC: ImageArray, variant: int) -> ImageArray:
    """Return one of the 8 flips and rotations of a square patch: bit 0 turns it, bit 1 and 2 flip rows and columns."""
    if variant & 1:
        patch_HWC = patch_HWC.swapaxes(0, 1)
    if variant & 2:
        patch_HWC = patch_HWC[::-1]
    if variant & _FLIP_COLUMNS:
        patch_HWC = patch_HWC[:, ::-1]
    return patch_HWC

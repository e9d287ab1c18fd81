"""Random training crops: the same stream of batches for the same seed, and for a run resumed.

Shape suffixes: B batch, C = 3 channels (RGB), H rows, W columns.
"""

from typing import Any

import numpy as np
from torch import Tensor

from harness.core.errors import UserError
from harness.data.imresize import ImageArray
from harness.data.pairs import PairedDataset
from harness.data.tensors import to_tensor


class CropSampler:
    """Draws batches of aligned crops: a random image, a random LR-aligned place, optionally flips and a quarter turn.

    `hr_patch_size` is the side of the HR crop in pixels, a multiple of the scale. All randomness comes from one numpy
    generator seeded by `seed`; `state_dict` holds it, so that a resumed run draws the very batches that an
    uninterrupted one would have. Not safe for use by several threads.

    Images smaller than a patch are left out (`PairedDataset.names_smaller_than` names them). Raises `UserError` for a
    patch size that is not a multiple of the scale, and where no image is large enough.
    """

    def __init__(self, dataset: PairedDataset, *, batch_size: int, hr_patch_size: int, augment: bool, seed: int):
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
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return (lr_BCHW, hr_BCHW), float32 in [0, 1]: HR of side `hr_patch_size`, LR of that over the scale."""
        scale, hr_side = self.dataset.scale, self.hr_patch_size
        lr_side = hr_side // scale
        lr_BHWC = np.empty((self.batch_size, lr_side, lr_side, 3), np.uint8)
        hr_BHWC = np.empty((self.batch_size, hr_side, hr_side, 3), np.uint8)
        for index in range(self.batch_size):
            pair = self.dataset[self._usable[int(self._generator.integers(len(self._usable)))]]
            height, width = pair.lr_HWC.shape[:2]
            row = int(self._generator.integers(height - lr_side + 1))
            column = int(self._generator.integers(width - lr_side + 1))
            variant = int(self._generator.integers(8)) if self.augment else 0
            lr_BHWC[index] = _orient(pair.lr_HWC[row : row + lr_side, column : column + lr_side], variant)
            row, column = row * scale, column * scale
            hr_BHWC[index] = _orient(pair.hr_HWC[row : row + hr_side, column : column + hr_side], variant)
        return to_tensor(lr_BHWC), to_tensor(hr_BHWC)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs, in plain Python values that JSON and `torch.save` can hold."""
        return {**self._identity(), "generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; `UserError` when it was made with other data, sizes or augmentation."""
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise UserError(
                    f"cannot resume: the checkpoint's {key} is {state.get(key)!r}, but this run's is {value!r}; "
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
        }


def _orient(patch_HWC: ImageArray, variant: int) -> ImageArray:
    """Return one of the 8 flips and rotations of a square patch: bit 0 turns it, bit 1 and 2 flip rows and columns."""
    if variant & 1:
        patch_HWC = patch_HWC.swapaxes(0, 1)
    if variant & 2:
        patch_HWC = patch_HWC[::-1]
    if variant & 4:
        patch_HWC = patch_HWC[:, ::-1]
    return patch_HWC

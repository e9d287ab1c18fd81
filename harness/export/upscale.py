"""A network on image files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from harness.core.errors import TrialFailedError, UserError
from harness.data import to_tensor
from harness.data.images import IMAGE_SUFFIXES, list_images, read_rgb
from harness.metrics import to_uint8
from harness.metrics.colour import luma_bt601
from harness.models import SRNetwork, restore_image

_MOST_IMPORTANCE = 1e30  # sums over windows stay finite in float32


def upscale_image(
    network: SRNetwork,
    image_HWC: npt.NDArray[np.uint8],
    *,
    tile: int | None = None,
    overlap: int = 0,
    wrap: int = 0,
    importance_HW: npt.NDArray[np.float32] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Upscale a uint8 RGB image H×W×3; `tile` (low-resolution pixels a side) bounds the memory on large ones.

    `wrap` is for panoramas: they are continued around their seam by so many columns (see `restore_panorama`).
    `importance_HW` (finite, the image's size) is added to what windows are ranked by for attention: see
    `CAMixerSR.restore` and `read_importance`. `UserError` where the output holds NaN.
    """
    input_BCHW = to_tensor(image_HWC)
    guide = None if importance_HW is None else torch.from_numpy(importance_HW)[None]
    with torch.inference_mode():
        if tile is not None and max(input_BCHW.shape[-2:]) <= tile:
            tile = None
        try:
            restored = restore_image(
                network,
                input_BCHW,
                tile=tile,
                overlap=overlap,
                wrap=wrap,
                importance_BHW=guide,
                progress=progress,
            )
        except TrialFailedError as error:
            raise UserError(f"the output would hold NaN: {error}") from None
    return to_uint8(restored.image_BCHW[0].permute(1, 2, 0).numpy())


def read_importance(path: Path, size: tuple[int, int], weight: float) -> npt.NDArray[np.float32]:
    """Read a map of importance and resize it to `size` = (height, width) pixels.

    An image: black as 0, white as `weight`. An array (`.npy`, two dimensions): its values, none below 0, times
    `weight`. `UserError` where it cannot be read, its sides are in another proportion (by more than a pixel of the
    image), or `weight`, or a value times it, is not in 0..1e30: what is ranked by must stay finite.
    """
    if not 0 <= weight <= _MOST_IMPORTANCE:
        raise UserError(f"the weight of importance is {weight:g}, expected a number in 0..{_MOST_IMPORTANCE:g}")
    if path.suffix.lower() == ".npy":
        map_HW = _read_array(path)
    else:
        map_HW = ((luma_bt601(read_rgb(path)) - 16) / 219).clip(0, 1)
    (height, width), (map_height, map_width) = size, map_HW.shape
    if min(abs(width * map_height / map_width - height), abs(height * map_width / map_height - width)) > 1:
        raise UserError(
            f"{path} is {map_width}×{map_height}, but the image {width}×{height}: expected the same proportions"
        )
    highest = float(map_HW.max())
    if highest * weight > _MOST_IMPORTANCE:
        raise UserError(
            f"{path} holds {highest:g}, which times the weight {weight:g} is more than {_MOST_IMPORTANCE:g}; expected "
            "values of at most 1, or a smaller weight"
        )
    resized = Image.fromarray(map_HW.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32) * np.float32(weight)


def _read_array(path: Path) -> npt.NDArray[np.float32]:
    """Read a map of importance from NumPy's format; nothing is unpickled."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a damaged header cannot ask for memory
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a NumPy array: {' '.join(str(error).split())}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive of arrays"
        raise UserError(f"{path}: expected an array of real numbers with two dimensions, height × width, got {got}")
    with np.errstate(over="ignore"):
        map_HW = array.astype(np.float32)
    if not (np.isfinite(map_HW) & (map_HW >= 0)).all():
        raise UserError(f"{path} holds values below 0 or not finite; expected 0 where nothing matters, 1 as white")
    return map_HW


def list_jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Pair every input file with its output file: one file, or every image of a folder.

    `UserError` where there is nothing to do, where the target cannot be, and where two inputs would become one output.
    """
    if source.is_dir():
        if target.is_file():
            raise UserError(f"{target} is a file; expected a folder, because {source} is one")
        jobs: dict[Path, Path] = {}  # from output to input
        for path in list_images(source):
            output = target / f"{path.stem}.png"
            if output in jobs:
                raise UserError(f"{jobs[output]} and {path} would both become {output}; rename one of them")
            jobs[output] = path
        if not jobs:
            raise UserError(f"{source} has no images ({', '.join(IMAGE_SUFFIXES)})")
        return [(path, output) for output, path in jobs.items()]
    if not source.is_file():
        raise UserError(f"{source} not found; expected an image file or a folder of images")
    if target.suffix.lower() == ".png":
        return [(source, target)]
    if target.is_dir() or not target.suffix:
        return [(source, target / f"{source.stem}.png")]
    raise UserError(f"{target}: outputs are PNG; expected a name ending in .png, or a folder")

"""A network on image files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from harness.core.errors import TrialFailedError, UserError
from harness.data import to_tensor
from harness.data.images import IMAGE_SUFFIXES, read_rgb
from harness.data.pictures import OUTPUT_FORMATS, Levels, Picture, fill_hidden
from harness.metrics import to_uint8
from harness.metrics.colour import luma_bt601
from harness.models import SRNetwork, restore_image
from harness.models.bicubic import upscale_bicubic
from harness.models.panorama import continue_around

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # BT.601, full range
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
    restored_HWC = _restore(network, to_tensor(image_HWC), tile, overlap, wrap, importance_HW, progress)
    return to_uint8(restored_HWC)


def upscale_picture(
    network: SRNetwork,
    picture: Picture,
    *,
    tile: int | None = None,
    overlap: int = 0,
    wrap: int = 0,
    importance_HW: npt.NDArray[np.float32] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Picture:
    """Upscale a picture with all that goes along with it; otherwise as `upscale_image`.

    A grey one is restored as RGB and becomes the luma (BT.601) of that, in 16 bits where it had them. Transparency is
    upscaled bicubically: it is no photograph, and a network may ring or invent detail at its edges, where bicubic keeps
    what is all opaque or all transparent exactly so. Colours of fully transparent pixels are those of the nearest
    visible one, so nothing hidden bleeds into edges.
    """
    colour_HWC, most = fill_hidden(picture), np.iinfo(picture.colour_HWC.dtype).max
    input_BCHW = torch.from_numpy(colour_HWC.astype(np.float32)).div_(float(most)).permute(2, 0, 1)[None].contiguous()
    restored_HWC = _restore(network, input_BCHW, tile, overlap, wrap, importance_HW, progress)
    if picture.is_grey:
        restored_HWC = np.repeat((restored_HWC.clip(0, 1) @ _LUMA)[..., None], 3, axis=2)
    made_HWC: Levels = to_uint8(restored_HWC) if most == 255 else _to_uint16(restored_HWC)
    alpha_HW = None
    if picture.alpha_HW is not None:
        alpha_BCHW = continue_around(torch.from_numpy(picture.alpha_HW.astype(np.float32) / 255)[None, None], wrap)
        upscaled_HW = upscale_bicubic(alpha_BCHW, network.scale)[0, 0].numpy()
        alpha_HW = to_uint8(upscaled_HW[:, wrap * network.scale : upscaled_HW.shape[1] - wrap * network.scale])
    return picture._replace(colour_HWC=made_HWC, alpha_HW=alpha_HW)


def _restore(
    network: SRNetwork,
    input_BCHW: torch.Tensor,
    tile: int | None,
    overlap: int,
    wrap: int,
    importance_HW: npt.NDArray[np.float32] | None,
    progress: Callable[[int, int], None] | None,
) -> npt.NDArray[np.float32]:
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
    image_HWC: npt.NDArray[np.float32] = restored.image_BCHW[0].permute(1, 2, 0).numpy()
    return image_HWC


def _to_uint16(image_HWC: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Turn values in [0, 1] into 16 bits, as `to_uint8` does into 8."""
    if np.isnan(image_HWC).any():
        raise UserError("the output holds NaN: it is no image")
    return np.floor(np.clip(image_HWC.astype(np.float64) * 65535, 0, 65535) + 0.5).astype(np.uint16)


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


def list_jobs(source: Path, target: Path, suffix: str = ".png") -> list[tuple[Path, Path]]:
    """Pair every input file with its output file: one file, or every image of a folder and of the folders in it.

    Outputs in a folder end in `suffix`, and lie there as the inputs do in theirs. Hidden files and folders are left
    out, and so is the target where it lies in the source. `UserError` where there is nothing to do, where the target
    cannot be, where two inputs would become one output, and where an output would replace an input.
    """
    if source.is_dir():
        if target.is_file():
            raise UserError(f"{target} is a file; expected a folder, because {source} is one")
        jobs: dict[Path, Path] = {}  # from output to input
        for path in _find_images(source, but=target):
            output = (target / path.relative_to(source)).with_suffix(suffix)
            if output in jobs:
                raise UserError(f"{jobs[output]} and {path} would both become {output}; rename one of them")
            jobs[output] = path
        if not jobs:
            raise UserError(f"{source} has no images ({', '.join(IMAGE_SUFFIXES)})")
    elif not source.is_file():
        raise UserError(f"{source} not found; expected an image file or a folder of images")
    elif target.suffix.lower() in OUTPUT_FORMATS and not target.is_dir():
        jobs = {target: source}
    elif target.is_dir() or not target.suffix:
        jobs = {target / f"{source.stem}{suffix}": source}
    else:
        raise UserError(
            f"{target}: outputs are PNG, JPEG, WebP or TIFF; expected a name ending in {', '.join(OUTPUT_FORMATS)}, "
            "or a folder"
        )
    inputs = {path.resolve() for path in jobs.values()}
    for output in jobs:
        if output.resolve() in inputs:
            raise UserError(f"{output} is an input, and would be replaced by what is made of it; give another OUT")
    return [(path, output) for output, path in jobs.items()]


def _find_images(folder: Path, but: Path) -> list[Path]:
    """Return the image files in a folder and in those below it, sorted, without hidden ones and those in `but`."""
    left_out = but.resolve() if but.resolve() != folder.resolve() else None
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        if left_out is None or not path.resolve().is_relative_to(left_out):
            found.append(path)
    return found

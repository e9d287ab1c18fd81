"""A network on image files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from harness.core.errors import UserError
from harness.data import to_tensor
from harness.data.images import IMAGE_SUFFIXES, list_images
from harness.metrics import to_uint8
from harness.models import SRNetwork, restore_panorama, restore_tiled


def upscale_image(
    network: SRNetwork,
    image_HWC: npt.NDArray[np.uint8],
    *,
    tile: int | None = None,
    overlap: int = 0,
    wrap: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Upscale a uint8 RGB image H×W×3; `tile` (low-resolution pixels a side) bounds the memory on large ones.

    `wrap` is for panoramas: they are continued around their seam by so many columns (see `restore_panorama`).
    """
    input_BCHW = to_tensor(image_HWC)
    with torch.inference_mode():
        if tile is not None and max(input_BCHW.shape[-2:]) <= tile:
            tile = None
        if wrap:
            restored = restore_panorama(
                network, input_BCHW, context=wrap, tile=tile, overlap=overlap, progress=progress
            )
        elif tile is None:
            restored = network.restore(input_BCHW)
        else:
            restored = restore_tiled(network, input_BCHW, tile=tile, overlap=overlap, progress=progress)
    return to_uint8(restored.image_BCHW[0].permute(1, 2, 0).numpy())


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

"""A network on image files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from harness.core.errors import UserError
from harness.data.images import list_images
from harness.models import SRNetwork, restore_tiled


def upscale_image(
    network: SRNetwork,
    image_HWC: npt.NDArray[np.uint8],
    *,
    tile: int | None = None,
    overlap: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Upscale a uint8 RGB image H×W×3; `tile` (low-resolution pixels a side) bounds the memory on large ones."""
    input_BCHW = torch.from_numpy(np.array(image_HWC).transpose(2, 0, 1)[None]).float() / 255
    with torch.inference_mode():
        if tile is None or max(input_BCHW.shape[-2:]) <= tile:
            restored = network.restore(input_BCHW)
        else:
            restored = restore_tiled(network, input_BCHW, tile=tile, overlap=overlap, progress=progress)
    scaled_HWC = (restored.image_BCHW[0].permute(1, 2, 0).clamp(0, 1) * 255).round()
    return scaled_HWC.to(torch.uint8).numpy()


def list_jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Pair every input file with its output file: one file, or every image of a folder."""
    if source.is_dir():
        return [(path, target / f"{path.stem}.png") for path in list_images(source)]
    if not source.is_file():
        raise UserError(f"{source} not found; expected an image file or a folder of images")
    if target.suffix.lower() == ".png":
        return [(source, target)]
    if target.is_dir() or not target.suffix:
        return [(source, target / f"{source.stem}.png")]
    raise UserError(f"{target}: outputs are PNG; expected a name ending in .png, or a folder")

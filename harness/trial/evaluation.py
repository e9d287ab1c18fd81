"""PSNR and SSIM of a network on a dataset under a named protocol, with the attention that it really spent."""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.device_lock import computing
from harness.core.errors import TrialFailedError, UserError
from harness.core.records import EvaluationRecord, ImageScore
from harness.data import PairedDataset, to_tensor
from harness.metrics import Protocol, score, to_uint8
from harness.models import CAMixerSR, SRNetwork, restore_image
from harness.models.panorama import wrap_width
from harness.models.tiling import tile_starts
from harness.profiling import parse_device


def to_image(image_BCHW: Tensor) -> npt.NDArray[np.uint8]:
    """Return the first image of a batch as uint8 H×W×3: clipped to [0, 1] and rounded."""
    return to_uint8(image_BCHW[0].permute(1, 2, 0).float().cpu().numpy())


def routed(network: SRNetwork, routing: RoutingConfig | None) -> SRNetwork:
    """Return `network` under `routing`, sharing the weights; itself where it does not route."""
    if routing is None or not isinstance(network, CAMixerSR):
        return network
    variant = copy.copy(network)
    variant.routing = routing
    return variant


def evaluate(
    network: SRNetwork,
    dataset: PairedDataset,
    protocol: Protocol,
    *,
    device: str = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    wrap: int | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationRecord:
    """Restore every image of `dataset`, or the first `limit`, and score it; means over images, all sides in float32.

    `tile` (low-resolution pixels) and `wrap` (see `restore_panorama`) default to the protocol's own. `progress(done,
    total)` counts the tiles of all images; an untiled image is one. The network's routing is the one it has now; its
    mode and device are restored. `UserError` where the dataset's scale is another; `TrialFailedError` where an output
    is not finite.
    """
    if dataset.scale != network.scale:
        raise UserError(f"{dataset.name} is of scale ×{dataset.scale}, the network of ×{network.scale}")
    if tile is None:
        tile, overlap = protocol.tile, protocol.overlap
    wrap = wrap_width(network, protocol.wrap if wrap is None else wrap)
    pairs = range(len(dataset))[:limit]
    own_sizes = [dataset[index].lr_HWC.shape[:2] for index in pairs]
    sizes = [(height, width + 2 * wrap) for height, width in own_sizes]
    tiles = [_count_tiles(size, tile, overlap) for size in sizes]
    started = time.perf_counter()
    was_training = network.training
    lock = parse_device(device).lock
    home = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    network.eval().to(device)
    scores: list[ImageScore] = []
    shares_SI: list[Tensor] = []
    windows: list[float] = []

    def tell(done: int, _of_image: int) -> None:
        if progress is not None:
            progress(sum(tiles[: len(scores)]) + done, sum(tiles))

    try:
        for index in pairs:
            pair = dataset[index]
            input_BCHW = to_tensor(pair.lr_HWC).to(device)
            with computing(lock), torch.inference_mode():
                try:
                    restored = restore_image(network, input_BCHW, tile=tile, overlap=overlap, wrap=wrap, progress=tell)
                except TrialFailedError as error:  # found on the way
                    raise TrialFailedError(f"the output for {pair.name} is not finite: {error}") from None
            if tile is None:
                tell(1, 1)
            if not torch.isfinite(restored.image_BCHW).all():
                raise TrialFailedError(f"the output for {pair.name} is not finite")
            result = score(to_image(restored.image_BCHW), pair.hr_HWC, protocol, dataset.scale)
            share_S = restored.hard_share_SB.double().mean(dim=1).cpu()
            routes = len(share_S) > 0
            scores.append(
                ImageScore(
                    name=pair.name,
                    psnr_db=result.psnr_db,
                    ssim=result.ssim,
                    attention_share=share_S.mean().item() if routes else None,
                )
            )
            if routes:
                shares_SI.append(share_S)
                windows.append(_count_windows(network.config, sizes[index], tile, overlap))
    finally:
        network.train(was_training).to(home)
    share, share_per_block = _mean_share(shares_SI, windows)
    return EvaluationRecord(
        protocol=protocol.name,
        scale=dataset.scale,
        dataset=dataset.name,
        dataset_hash=dataset.content_hash,
        psnr_db=float(np.mean([entry.psnr_db for entry in scores])),
        ssim=float(np.mean([entry.ssim for entry in scores])),
        attention_share=share,
        attention_share_per_block=share_per_block,
        images=tuple(scores),
        seconds=time.perf_counter() - started,
        tile=tile,
        overlap=overlap if tile is not None else 0,
        wrap=wrap,
        seam_factor=sum(map(math.prod, sizes)) / sum(map(math.prod, own_sizes)),
    )


def _count_tiles(size: tuple[int, int], tile: int | None, overlap: int) -> int:
    return 1 if tile is None else math.prod(len(tile_starts(side, tile, overlap)) for side in size)


def _count_windows(config: Any, size: tuple[int, int], tile: int | None, overlap: int) -> float:
    """Return N of an image, over all of its tiles; it weighs the image's share in ΣK/ΣN."""
    assert isinstance(config, CAMixerSRConfig)
    sides = size if tile is None else tuple(min(side, tile) for side in size)
    windows_of_tile = math.prod(-(-side // config.window) for side in sides)
    return float(_count_tiles(size, tile, overlap) * windows_of_tile)


def _mean_share(shares_SI: list[Tensor], windows: list[float]) -> tuple[float | None, tuple[float, ...] | None]:
    """Return ΣK/ΣN over blocks and images, and the same for each block."""
    if not shares_SI:
        return None, None
    weights_I = torch.tensor(windows, dtype=torch.float64)
    per_block_S = (torch.stack(shares_SI, dim=1) @ weights_I) / weights_I.sum()
    return per_block_S.mean().item(), tuple(per_block_S.tolist())

"""Finding a better routing for a trained CAMixerSR by evaluating it on a few images: no training, no gradients.

Blocks differ far more than windows in what attention gains them, and a trained network's own routing logits say little
about it. So each block's gain is measured at two ends: with attention in this block alone, over none at all, and
beside the attention that the network itself asks for (`threshold`). Blocks share their gains, so that the first end
alone rates too high what others do as well, and the second misses what all do together. From the mean of both come the
static policy `schedule` (attention in the best blocks) and the policy `detail` (the gains are the blocks' weights). The
images must be kept apart from those that the result is evaluated on.

Shape suffixes: B crops, C = 3 channels, H W sides in pixels, S blocks.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from harness.core.configs import CalibratedPolicy, CalibrationConfig, RoutingConfig
from harness.core.device_lock import computing
from harness.core.errors import TrialFailedError, UserError
from harness.core.records import CalibrationRecord, GainsRecord
from harness.data import PairedDataset, to_tensor
from harness.metrics.colour import FloatArray, luma_bt601
from harness.metrics.fidelity import psnr_db
from harness.models import CAMixerSR, SRNetwork
from harness.profiling import parse_device
from harness.trial.evaluation import routed

DEFAULT_IMAGES: int = CalibrationConfig().images
DEFAULT_CROP: int = CalibrationConfig().crop

_BATCH = 8  # crops that are restored at once


def choose_images(
    dataset: PairedDataset, count: int, crop: int, *, remedy: str = "ask for fewer images or a smaller crop"
) -> list[int]:
    """Return the indices of `count` images, spread evenly over those that a crop of `crop`² LR pixels fits into.

    `UserError`, which ends with the `remedy`, where there are fewer.
    """
    large = [index for index, pair in enumerate(dataset) if min(pair.lr_HWC.shape[:2]) >= crop]
    if len(large) < count:
        raise UserError(
            f"{dataset.name} has {len(large)} images of at least {crop}×{crop} low-resolution pixels, but {count} are "
            f"to be calibrated on; {remedy}"
        )
    return [large[position * len(large) // count] for position in range(count)]


def check_calibration(config: CalibrationConfig, train: PairedDataset) -> None:
    """Raise `UserError` unless there are enough training images to calibrate on."""
    try:
        choose_images(train, config.images, config.crop)
    except UserError as error:
        raise UserError(f"calibrate: {error}") from None


class TuningCrops:
    """The centres of a few images, and the mean PSNR of a network, in eval mode, on them under any routing."""

    def __init__(
        self,
        network: CAMixerSR,
        dataset: PairedDataset,
        indices: Sequence[int],
        crop: int,
        progress: Callable[[int], None] | None = None,
    ):
        scale = dataset.scale
        self.network = network
        self.dataset = dataset
        self.crop = crop
        self.images = tuple(dataset[index].name for index in indices)
        self.evaluations = 0
        self._progress = progress
        self._border = scale
        self._inputs: list[torch.Tensor] = []
        self._targets_HW: list[FloatArray] = []
        for index in indices:
            pair = dataset[index]
            top, left = ((side - crop) // 2 for side in pair.lr_HWC.shape[:2])
            self._inputs.append(to_tensor(pair.lr_HWC[top : top + crop, left : left + crop]))
            target_HWC = pair.hr_HWC[scale * top : scale * (top + crop), scale * left : scale * (left + crop)]
            self._targets_HW.append(self._shave(luma_bt601(target_HWC)))

    def score(self, routing: RoutingConfig) -> float:
        """Return the mean PSNR (dB, luma) of the crops under `routing`; `TrialFailedError` where it is not finite."""
        network = routed(self.network, routing)
        device = next(network.parameters()).device
        values: list[float] = []
        with computing(parse_device(str(device)).lock), torch.inference_mode():
            for start in range(0, len(self._inputs), _BATCH):
                input_BCHW = torch.cat(self._inputs[start : start + _BATCH]).to(device)
                output_BHWC = network(input_BCHW).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
                targets = self._targets_HW[start : start + _BATCH]
                values += [
                    psnr_db(self._shave(luma_bt601(output_HWC * np.float32(255))), target_HW)
                    for output_HWC, target_HW in zip(output_BHWC, targets, strict=True)
                ]
        self.evaluations += 1
        if self._progress is not None:
            self._progress(self.evaluations)
        mean = float(np.mean(values))
        if not math.isfinite(mean):
            raise TrialFailedError(f"the output under routing {routing.label()} is not finite")
        return mean

    def shares(self, routing: RoutingConfig) -> list[float]:
        """Return each block's mean share of attention on the crops."""
        network = routed(self.network, routing)
        device = next(network.parameters()).device
        with computing(parse_device(str(device)).lock), torch.inference_mode():
            shares_SB = torch.cat(
                [network.restore(input_BCHW.to(device)).hard_share_SB for input_BCHW in self._inputs], 1
            )
        return [float(share) for share in shares_SB.double().mean(dim=1)]

    def _shave(self, luma_HW: FloatArray) -> FloatArray:
        return luma_HW[self._border : -self._border, self._border : -self._border]


def whole_blocks(blocks: Sequence[int], num_blocks: int, share: float) -> RoutingConfig:
    """Return the schedule with attention in the first of `blocks`, up to a `share` of all blocks.

    The block at which the share is used up gets the rest of it as its γ_b.
    """
    left = share * num_blocks
    gammas = [0.0] * num_blocks
    for block in blocks:
        gammas[block] = round(min(max(left, 0.0), 1.0), 9)
        left -= 1
    return RoutingConfig(policy="schedule", schedule=tuple(gammas))


def all_of(blocks: Collection[int], num_blocks: int) -> RoutingConfig:
    """Return the schedule with attention in exactly these blocks."""
    return RoutingConfig(policy="schedule", schedule=tuple(float(block in blocks) for block in range(num_blocks)))


def measure_gains(crops: TuningCrops, num_blocks: int, wanted: Collection[int]) -> list[float]:
    """Return what attention in each block gains (dB) beside attention in the other blocks of `wanted`."""
    with_wanted_db = crops.score(all_of(wanted, num_blocks))
    gains_db = []
    for block in range(num_blocks):
        toggled_db = crops.score(all_of({*wanted} ^ {block}, num_blocks))
        gains_db.append(with_wanted_db - toggled_db if block in wanted else toggled_db - with_wanted_db)
    return gains_db


def mean_gains(alone_db: Sequence[float], beside_db: Sequence[float]) -> list[float]:
    """Return each block's mean gain over both ends; where attention harms, its gain there is 0."""
    return [(max(alone, 0.0) + max(beside, 0.0)) / 2 for alone, beside in zip(alone_db, beside_db, strict=True)]


def schedule_by(gains_db: Sequence[float], share: float) -> RoutingConfig:
    """Return the schedule with attention in the blocks of the highest gains, the first of equals first."""
    return whole_blocks(sorted(range(len(gains_db)), key=lambda block: -gains_db[block]), len(gains_db), share)


def weights_by(gains_db: Sequence[float], share: float) -> RoutingConfig:
    """Return the policy `detail` with the gains as weights, the highest of them 1; at least one must be above 0."""
    highest = max(gains_db)
    assert highest > 0
    weights = tuple(round(max(gain, 0.0) / highest, 6) for gain in gains_db)
    return RoutingConfig(policy="detail", gamma=share, block_weights=weights)


def find_gains(crops: TuningCrops) -> GainsRecord:
    """Measure what attention gains in each block, in 2S + 4 evaluations: what every calibrated routing is made of."""
    started = time.perf_counter()
    config = crops.network.config
    full_db = crops.score(RoutingConfig(gamma=1.0))
    wanted = find_wanted(crops)
    alone_db = measure_gains(crops, config.num_blocks, ())
    beside_db = measure_gains(crops, config.num_blocks, wanted)
    gains_db = mean_gains(alone_db, beside_db)
    note = None if max(gains_db) > 0 else f"attention helps no block of {config.label()} on {crops.dataset.name}"
    return GainsRecord(
        dataset=crops.dataset.name,
        dataset_hash=crops.dataset.content_hash,
        images=crops.images,
        crop=crops.crop,
        wanted=wanted,
        gains_alone_db=tuple(alone_db),
        gains_beside_db=tuple(beside_db),
        gains_db=tuple(gains_db),
        psnr_db_without=crops.score(RoutingConfig(gamma=0.0)),
        psnr_db_full=full_db,
        evaluations=crops.evaluations,
        seconds=time.perf_counter() - started,
        note=note,
    )


def routing_by(gains: GainsRecord, policy: CalibratedPolicy, share: float) -> RoutingConfig:
    """Return the routing of `policy` that spends a `share` of attention by these gains; one must be above 0."""
    return schedule_by(gains.gains_db, share) if policy == "schedule" else weights_by(gains.gains_db, share)


def calibrate(
    network: SRNetwork,
    dataset: PairedDataset,
    share: float,
    *,
    policy: CalibratedPolicy = "detail",
    images: int = DEFAULT_IMAGES,
    crop: int = DEFAULT_CROP,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationRecord:
    """Find the routing of `policy` that spends a `share` of attention well, on crops of a few images of `dataset`.

    It takes 2S + 5 evaluations. The network must be trained, is left as it was and runs where it is. `progress(done,
    total)` counts evaluations. The images must not be those that the result is evaluated on: see
    `harness.data.refuse_overlap`.

    Raises `UserError` for a network that does not route, another scale, a share outside ]0, 1], too few images, or a
    network that no block's attention helps; `TrialFailedError` for outputs that are not finite.
    """
    if not isinstance(network, CAMixerSR):
        raise UserError(f"{network.config.label()} does not route, so there is nothing to calibrate")
    if dataset.scale != network.scale:
        raise UserError(f"{dataset.name} is of scale ×{dataset.scale}, the network of ×{network.scale}")
    if not 0 < share <= 1:
        raise UserError(f"share is {share:g}, expected more than 0 and at most 1")
    if images < 1 or crop < 16:
        raise UserError(f"images {images}, crop {crop}: expected at least 1 and 16")
    started = time.perf_counter()
    chosen = choose_images(dataset, images, crop)
    total = 2 * network.config.num_blocks + 5
    crops = TuningCrops(
        network, dataset, chosen, crop, None if progress is None else lambda done: progress(done, total)
    )
    was_training = network.training
    network.eval()
    try:
        gains = find_gains(crops)
        if gains.note is not None:
            raise UserError(f"{gains.note}, so there is nothing to choose; train the network first, or run it at γ = 0")
        routing = routing_by(gains, policy, share)
        psnr_db = crops.score(routing)
    finally:
        network.train(was_training)
    found = gains.model_dump() | {"evaluations": crops.evaluations, "seconds": time.perf_counter() - started}
    return CalibrationRecord(**found, routing=routing, share=share, psnr_db=psnr_db)


def calibrate_schedule(
    network: SRNetwork,
    dataset: PairedDataset,
    share: float,
    *,
    images: int = DEFAULT_IMAGES,
    crop: int = DEFAULT_CROP,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationRecord:
    """Find a static schedule: `calibrate` with policy `schedule`, which says what it takes and raises."""
    return calibrate(network, dataset, share, policy="schedule", images=images, crop=crop, progress=progress)


def find_wanted(crops: TuningCrops) -> tuple[int, ...]:
    """Return the blocks in which the network itself sends at least half of the windows to attention (`threshold`)."""
    shares_S = crops.shares(RoutingConfig(policy="threshold"))
    return tuple(block for block, share in enumerate(shares_S) if share >= 0.5)

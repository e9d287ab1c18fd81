"""Calibration finds the blocks that deserve attention, by evaluations alone, and leaves the network as it was."""

import copy

import pytest
import torch

from harness.core.configs import BicubicConfig, CAMixerSRConfig, RoutingConfig
from harness.core.errors import UserError
from harness.core.records import CalibrationRecord
from harness.data import PairedDataset, to_tensor
from harness.models import CAMixerSR, build_model
from harness.trial import build_seeded, routed
from harness.trial.calibration import (
    TuningCrops,
    calibrate,
    calibrate_schedule,
    choose_images,
    mean_gains,
    schedule_by,
    weights_by,
    whole_blocks,
)
from tests.tiny_pairs import tiny_pairs

CONFIG = CAMixerSRConfig(scale=2, groups=(1, 2), channels=8, window=4, image_residual=True)
CUTS = (("coffee", 48, 64), ("rocket", 40, 40), ("chelsea", 64, 48), ("astronaut", 24, 24))


def make_network() -> CAMixerSR:
    """A network whose last layer is not zero, so that every block shows in the image."""
    network = build_seeded(CONFIG, seed=3).eval()
    assert isinstance(network, CAMixerSR)
    torch.nn.init.normal_(network.tail.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return network


def targets_of(network: CAMixerSR, *blocks: int) -> PairedDataset:
    """The images that the network makes with attention in these blocks: where these attend, it errs least."""
    pairs = []
    made = routed(network, whole_blocks(blocks, 3, len(blocks) / 3))
    for pair in tiny_pairs(CUTS, 2):
        with torch.inference_mode():
            image_HWC = made(to_tensor(pair.lr_HWC))[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        pairs.append(type(pair)(name=pair.name, hr_HWC=image_HWC, lr_HWC=pair.lr_HWC))
    return PairedDataset("made", 2, pairs)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_the_block_that_is_needed_is_found(block: int) -> None:
    network = make_network()
    dataset = targets_of(network, block)
    before = copy.deepcopy(network.state_dict())
    found = calibrate_schedule(network, dataset, 1 / 3, images=3, crop=16)
    assert found.routing.schedule == tuple(float(index == block) for index in range(3))
    detail = calibrate(network, dataset, 1 / 3, images=3, crop=16)
    assert detail.routing.block_weights is not None
    assert max(range(3), key=detail.routing.block_weights.__getitem__) == block
    assert max(found.gains_alone_db) == found.gains_alone_db[block] > 0
    assert found.psnr_db > found.psnr_db_without
    assert network.config == CONFIG
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_records_round_trip_and_repeat_exactly() -> None:
    network = make_network()
    dataset = targets_of(network, 1)
    seen: list[tuple[int, int]] = []
    network.train()
    first = calibrate(network, dataset, 0.5, images=2, crop=16, progress=lambda done, total: seen.append((done, total)))
    assert network.training
    again = calibrate(network, dataset, 0.5, images=2, crop=16)
    assert first.model_copy(update={"seconds": again.seconds}) == again
    assert CalibrationRecord.model_validate_json(first.model_dump_json()) == first
    assert seen == [(done, 2 * 3 + 5) for done in range(1, 2 * 3 + 5 + 1)]
    assert first.evaluations == 2 * 3 + 5
    assert first.images == ("coffee", "rocket")


def test_crops_are_scored_as_whole_images_are() -> None:
    """PSNR-Y by hand, without rounding to uint8."""
    network = make_network()
    dataset = tiny_pairs((("coffee", 48, 48),), 2)
    routing = RoutingConfig(gamma=0.5)
    with torch.inference_mode():
        output = routed(network, routing)(to_tensor(dataset[0].lr_HWC))[0].clamp(0, 1).double()
    target = to_tensor(dataset[0].hr_HWC)[0].double()
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)[:, None, None]
    error = ((output - target) * weights).sum(0)[2:-2, 2:-2].square().mean()
    expected = 10 * torch.log10(255**2 / error)
    assert TuningCrops(network, dataset, [0], 24).score(routing) == pytest.approx(expected.item(), abs=1e-5)


def test_images_are_spread_evenly_over_those_that_are_large_enough() -> None:
    assert choose_images(tiny_pairs(CUTS, 2), 2, 16) == [0, 1]
    assert choose_images(tiny_pairs(CUTS, 2), 4, 12) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="tiny has 3 images of at least 16×16 low-resolution pixels, but 4"):
        choose_images(tiny_pairs(CUTS, 2), 4, 16)


def test_a_share_is_spent_on_the_first_blocks_and_the_rest_on_the_next() -> None:
    assert whole_blocks([2, 0, 1], 3, 0.5).schedule == (0.5, 0.0, 1.0)
    assert schedule_by([0.1, 0.3, 0.3, -1.0], 0.5).schedule == (0.0, 1.0, 1.0, 0.0)
    assert schedule_by([0.1, 0.3, 0.2, -1.0], 1.0).schedule == (1.0, 1.0, 1.0, 1.0)


def test_weights_are_gains_and_harm_counts_as_none() -> None:
    gains = mean_gains([0.2, -0.4, 0.1], [0.4, 0.2, -0.1])
    assert gains == pytest.approx([0.3, 0.1, 0.05])
    routing = weights_by([0.4, 0.1, -0.2], 0.25)
    assert (routing.gamma, routing.block_weights) == (0.25, (1.0, 0.25, 0.0))


def test_users_mistakes_are_named() -> None:
    dataset = tiny_pairs(CUTS, 2)
    network = make_network()
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="expected more than 0 and at most 1"):
            calibrate(network, dataset, share, images=2, crop=16)
    with pytest.raises(UserError, match="does not route"):
        calibrate(build_model(BicubicConfig(scale=2)), dataset, 0.5, images=2, crop=16)
    with pytest.raises(UserError, match="of scale ×2, the network of ×4"):
        calibrate(build_model(CAMixerSRConfig(channels=8, groups=(1,))), dataset, 0.5, images=2, crop=16)
    indifferent = build_seeded(CONFIG, seed=3)  # the last layer of a fresh residual network is zero
    with pytest.raises(UserError, match="attention helps no block"):
        calibrate(indifferent, dataset, 0.5, images=2, crop=16)

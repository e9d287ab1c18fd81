import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.core.configs import Task
from harness.core.errors import UserError
from harness.data.crops import CropSampler
from harness.data.datasets import ImagePair, PairedDataset, open_dataset


@pytest.fixture
def dataset(photographs: Path, tmp_path: Path) -> PairedDataset:
    return open_dataset(str(photographs), scale=2, split="train", data_dir=None, cache_dir=tmp_path / "cache")


def sampler(dataset: PairedDataset, seed: int = 0, *, augment: bool = True, side: int = 32) -> CropSampler:
    return CropSampler(dataset, batch_size=4, hr_patch_size=side, augment=augment, seed=seed)


def test_batches_have_the_promised_form(dataset: PairedDataset) -> None:
    lr, hr, first_rows, image_rows = sampler(dataset).next_batch()
    assert first_rows.dtype == image_rows.dtype == torch.int64
    assert lr.shape == (4, 3, 16, 16)
    assert hr.shape == (4, 3, 32, 32)
    for batch in (lr, hr):
        assert batch.dtype == torch.float32
        assert batch.is_contiguous()
        assert batch.min() >= 0
        assert batch.max() <= 1


def coordinates(scale: int, height: int, width: int) -> PairedDataset:
    """One image whose every LR pixel, and the HR pixels over it, hold the pixel's own row and column."""
    rows, columns = np.mgrid[:height, :width]
    lr = np.stack([rows, columns, rows * 0], axis=2).astype(np.uint8)
    return PairedDataset("coordinates", scale, [ImagePair("image", lr.repeat(scale, 0).repeat(scale, 1), lr)])


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("augment", [False, True])
def test_crops_are_aligned_and_reach_every_place_and_orientation(scale: int, augment: bool) -> None:
    dataset = coordinates(scale, 8, 9)
    crops = CropSampler(dataset, batch_size=16, hr_patch_size=6 * scale, augment=augment, seed=1)
    places, orientations = set(), set()
    for _ in range(40):
        lr, hr, _, _ = crops.next_batch()
        assert torch.equal(hr, lr.repeat_interleave(scale, 2).repeat_interleave(scale, 3))
        for patch in (lr * 255).round().int():
            places.add((int(patch[0].min()), int(patch[1].min())))
            step_right, step_down = patch[:2, 0, 1] - patch[:2, 0, 0], patch[:2, 1, 0] - patch[:2, 0, 0]
            orientations.add((*step_right.tolist(), *step_down.tolist()))
    assert places == {(row, column) for row in range(3) for column in range(4)}
    assert len(orientations) == (8 if augment else 1)


def test_patch_as_large_as_the_image_is_the_image() -> None:
    dataset = coordinates(2, 8, 8)
    lr, hr, _, _ = CropSampler(dataset, batch_size=1, hr_patch_size=16, augment=False, seed=0).next_batch()
    assert torch.equal((lr * 255).round()[0, 0].byte(), torch.from_numpy(np.array(dataset[0].lr_HWC[..., 0])))
    assert hr.shape == (1, 3, 16, 16)


def test_every_image_is_drawn(dataset: PairedDataset) -> None:
    solid = [
        ImagePair(str(level), np.full((8, 8, 3), level, np.uint8), np.full((4, 4, 3), level, np.uint8))
        for level in range(5)
    ]
    crops = CropSampler(PairedDataset("solid", 2, solid), batch_size=64, hr_patch_size=4, augment=True, seed=0)
    assert set((crops.next_batch()[0][:, 0, 0, 0] * 255).round().int().tolist()) == set(range(5))


def test_the_seed_decides(dataset: PairedDataset) -> None:
    np.random.seed(1)  # global seeds have no part in it
    torch.manual_seed(1)
    first = [sampler(dataset, 5).next_batch()[1]]
    np.random.seed(2)
    torch.manual_seed(2)
    global_state = torch.random.get_rng_state()
    again, other = sampler(dataset, 5), sampler(dataset, 6)
    assert torch.equal(again.next_batch()[1], first[0])
    assert not torch.equal(other.next_batch()[1], first[0])
    assert torch.equal(torch.random.get_rng_state(), global_state)


@pytest.mark.parametrize("through", ["json", "torch"])
def test_a_resumed_run_draws_the_very_batches(dataset: PairedDataset, through: str) -> None:
    straight = sampler(dataset, 3)
    for _ in range(5):
        straight.next_batch()
    state = straight.state_dict()
    expected = [straight.next_batch() for _ in range(5)]
    if through == "json":
        state = json.loads(json.dumps(state))
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    resumed = sampler(dataset, 99)
    resumed.load_state_dict(state)
    for batch in expected:
        assert all(torch.equal(again, drawn) for again, drawn in zip(resumed.next_batch(), batch, strict=True))


def test_images_smaller_than_the_patch_are_left_out_one_by_one() -> None:
    # Two images share a name, as they may in a union of datasets; only the small one goes.
    levels = {10: 8, 20: 16, 30: 16}
    pairs = [
        ImagePair("same", np.full((2 * side, 2 * side, 3), level, np.uint8), np.full((side, side, 3), level, np.uint8))
        for level, side in levels.items()
    ]
    crops = CropSampler(PairedDataset("mixed", 2, pairs), batch_size=64, hr_patch_size=32, augment=True, seed=0)
    assert set((crops.next_batch()[1][:, 0, 0, 0] * 255).round().int().tolist()) == {20, 30}


def test_resuming_with_other_data_or_settings_is_refused(dataset: PairedDataset) -> None:
    state = sampler(dataset).state_dict()
    fewer = PairedDataset("fewer", 2, [dataset[0], dataset[1]])
    with pytest.raises(UserError, match="cannot resume: the checkpoint's dataset_hash"):
        sampler(fewer).load_state_dict(state)
    with pytest.raises(UserError, match="hr_patch_size is 32, but this run's is 16"):
        sampler(dataset, side=16).load_state_dict(state)
    with pytest.raises(UserError, match="augment is True, but this run's is False"):
        sampler(dataset, augment=False).load_state_dict(state)


def test_mistakes_are_named(dataset: PairedDataset) -> None:
    with pytest.raises(UserError, match="33 is not a multiple of the scale 2; use 32 or 34"):
        sampler(dataset, side=33)
    with pytest.raises(UserError, match="no image of photographs has 66×66 pixels"):
        sampler(dataset, side=66)
    with pytest.raises(UserError, match="at least 1"):
        CropSampler(dataset, batch_size=0, hr_patch_size=32, augment=True, seed=0)


# Panoramas -----------------------------------------------------------------------------------------------------------


def test_crops_say_which_rows_of_their_image_they_are() -> None:
    dataset = coordinates(3, 8, 9)
    tasks: list[Task] = ["classic", "odi"]
    for task in tasks:
        crops = CropSampler(dataset, batch_size=16, hr_patch_size=18, augment=task == "odi", seed=1, task=task)
        lr, _, first_rows, image_rows = crops.next_batch()
        assert first_rows.tolist() == [3 * row for row in (lr[:, 0, 0, 0] * 255).round().int().tolist()]
        assert set(first_rows.tolist()) == {0, 3, 6}
        assert image_rows.tolist() == [24] * 16


def test_crops_of_panoramas_reach_every_column_across_the_seam_and_are_never_turned_over() -> None:
    dataset = coordinates(2, 8, 9)
    crops = CropSampler(dataset, batch_size=16, hr_patch_size=12, augment=True, seed=1, task="odi")
    starts, flips = set(), set()
    for _ in range(40):
        lr, hr, _, _ = crops.next_batch()
        assert torch.equal(hr, lr.repeat_interleave(2, 2).repeat_interleave(2, 3))
        for patch in (lr * 255).round().int():
            assert torch.equal(patch[0], (patch[0, 0, 0] + torch.arange(6))[:, None].expand(6, 6))  # rows downwards
            columns = patch[1, 0].tolist()
            step = (columns[1] - columns[0]) % 9
            assert columns == [(columns[0] + step * index) % 9 for index in range(6)]
            flips.add(step)
            starts.add(columns[0] if step == 1 else columns[-1])
    assert starts == set(range(9))
    assert flips == {1, 8}  # to the right, and flipped: −1 modulo 9


def test_the_classic_stream_knows_no_task(dataset: PairedDataset) -> None:
    """States written before there were tasks are classic ones."""
    state = sampler(dataset).state_dict()
    assert state.pop("task") == "classic"
    sampler(dataset).load_state_dict(state)
    panoramas = CropSampler(dataset, batch_size=4, hr_patch_size=32, augment=True, seed=0, task="odi")
    with pytest.raises(UserError, match="task is 'classic', but this run's is 'odi'"):
        panoramas.load_state_dict(state)
    with pytest.raises(UserError, match="task is 'odi', but this run's is 'classic'"):
        sampler(dataset).load_state_dict(panoramas.state_dict())

"""Short training runs that the tests of this room share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.checkpoints import Checkpoint, Folder
from harness.core.configs import CAMixerSRConfig, SwinIRConfig, TrainingConfig
from harness.core.records import TrainingRecord
from harness.data import CropBatch, CropSampler, PairedDataset
from harness.models import SRNetwork, build_model
from harness.training import ALONE, Group, TrainingProgress, train
from tests.tiny_pairs import TRAIN, tiny_pairs

SMALL = CAMixerSRConfig(channels=8, groups=(1,), window=4, scale=2)
SMALL_SWINIR = SwinIRConfig(embed_dim=12, depths=(2,), num_heads=2, window=4, scale=2)
SHORT = TrainingConfig(steps=9, batch_size=2, hr_patch_size=24, checkpoint_interval=4, learning_rate=2e-3)


def checkpoint_at(path: Path) -> Checkpoint:
    return Checkpoint(Folder(path.parent), path.name)


def build(config: CAMixerSRConfig | SwinIRConfig = SMALL, seed: int = 0) -> SRNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config)


def sampler(config: TrainingConfig = SHORT, dataset: PairedDataset | None = None) -> CropSampler:
    return CropSampler(
        dataset or tiny_pairs(TRAIN, 2),
        batch_size=config.batch_size,
        hr_patch_size=config.hr_patch_size,
        augment=config.augment,
        seed=config.seed,
        task=config.task,
    )


def run(
    config: TrainingConfig = SHORT,
    *,
    model: CAMixerSRConfig | SwinIRConfig = SMALL,
    teacher: SRNetwork | None = None,
    group: Group = ALONE,
    checkpoint: Path | None = None,
    identity: str = "run",
    progress: Callable[[TrainingProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[SRNetwork, TrainingRecord, CropSampler]:
    """Train a fresh network; return it with the record and the sampler as they are at the end."""
    network, batches = build(model), sampler(config)
    record = train(
        network,
        batches,
        config,
        threads=1,
        teacher=teacher,
        group=group,
        checkpoint=None if checkpoint is None else checkpoint_at(checkpoint),
        identity=identity,
        progress=progress,
        should_stop=should_stop,
    )
    return network, record, batches


def stop_after(steps: int) -> Callable[[], bool]:
    """Ask to stop after this many steps of this part of the run."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked >= steps

    return should_stop


def same_weights(a: SRNetwork, b: SRNetwork) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Batches:
    """The same batch again and again."""

    def __init__(self, low_BCHW: Tensor, high_BCHW: Tensor):
        count, _, rows, _ = high_BCHW.shape
        self.batch = CropBatch(low_BCHW, high_BCHW, torch.zeros(count).long(), torch.full((count,), rows))

    def next_batch(self) -> CropBatch:
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

"""Training: L1 + ratio loss, AdamW, EMA, schedules, exact resumption. Takes a network and plain arguments."""

from harness.training.checkpoint import DamagedCheckpointError
from harness.training.losses import ratio_loss
from harness.training.schedule import learning_rate_at
from harness.training.trainer import BatchSource, TrainingInterruptedError, TrainingProgress, train

__all__ = [
    "BatchSource",
    "DamagedCheckpointError",
    "TrainingInterruptedError",
    "TrainingProgress",
    "learning_rate_at",
    "ratio_loss",
    "train",
]

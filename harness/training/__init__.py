"""Training: L1 + ratio loss, AdamW, EMA, schedules, exact resumption. Takes a network and plain arguments."""

from harness.training.checkpoint import DamagedCheckpointError
from harness.training.losses import ratio_loss
from harness.training.parallel import ALONE, Group
from harness.training.schedule import learning_rate_at
from harness.training.trainer import BatchSource, TrainingInterruptedError, TrainingProgress, Turn, train

__all__ = [
    "ALONE",
    "BatchSource",
    "DamagedCheckpointError",
    "Group",
    "TrainingInterruptedError",
    "TrainingProgress",
    "Turn",
    "learning_rate_at",
    "ratio_loss",
    "train",
]

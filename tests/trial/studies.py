"""A tiny study on real photographs that the tests of this room share."""

from pathlib import Path
from typing import Any

from harness.core.configs import BicubicConfig, CAMixerSRConfig, DataConfig, RoutingConfig, SwinIRConfig, TrainingConfig
from harness.core.constraints import parse_constraint
from harness.core.study_folder import StudyFolder
from harness.metrics import get_protocol
from harness.trial import Proposal, TrialSetup, build_seeded
from tests.tiny_pairs import TRAIN, VALIDATION, tiny_pairs

SMALL = CAMixerSRConfig(channels=8, groups=(1, 1), window=4, scale=2)
SHORT = TrainingConfig(steps=6, batch_size=2, hr_patch_size=24, learning_rate=2e-3, checkpoint_interval=2)
ROUTINGS = (
    RoutingConfig(gamma=0.0),
    RoutingConfig(gamma=0.5),
    RoutingConfig(gamma=1.0),
    RoutingConfig(policy="probability", gamma=0.5),
    RoutingConfig(policy="threshold"),
    RoutingConfig(policy="schedule", schedule=(1.0, 0.25)),
)


def setup_study(folder: Path, *constraints: str, **changes: Any) -> TrialSetup:
    values: dict[str, Any] = {
        "study": "tiny",
        "folder": StudyFolder(folder),
        "data": DataConfig(train="tiny", validation="tiny"),
        "train": tiny_pairs(TRAIN, 2),
        "validation": tiny_pairs(VALIDATION, 2),
        "protocol": get_protocol("light"),
        "constraints": tuple(parse_constraint(text) for text in constraints),
        "devices": ("cpu:1",),
        "latency_input_size": (16, 24),
        "macs_input_size": (30, 50),
        "reference": build_seeded(SwinIRConfig(embed_dim=12, depths=(1,), num_heads=2, window=4, scale=2), 0).eval(),
        "reference_name": "swinir-tiny",
        "latency_repeats": 1,
        "latency_seconds": 0.0,
        "latency_process": "shared",
    }
    return TrialSetup(**{**values, **changes})


def propose(
    model: CAMixerSRConfig | SwinIRConfig | BicubicConfig = SMALL,
    *,
    training: TrainingConfig | None = SHORT,
    routings: tuple[RoutingConfig | None, ...] = (RoutingConfig(gamma=0.5),),
    **changes: Any,
) -> Proposal:
    values: dict[str, Any] = {
        "record_id": "trial-00003",
        "kind": "trial",
        "number": 3,
        "model": model,
        "training": training,
        "routings": routings,
        "suggested": routings[0],
        "suggestion": {"channels": 8},
    }
    return Proposal(**{**values, **changes})

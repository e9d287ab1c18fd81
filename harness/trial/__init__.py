"""One trial from proposal to record, and evaluation."""

from harness.models import build_seeded
from harness.trial.evaluation import evaluate, routed, to_image
from harness.trial.run import (
    Proposal,
    Silent,
    TrialProgress,
    TrialSetup,
    abandon,
    answer_from,
    load_trained,
    representative_input,
    run_trial,
)

__all__ = [
    "Proposal",
    "Silent",
    "TrialProgress",
    "TrialSetup",
    "abandon",
    "answer_from",
    "build_seeded",
    "evaluate",
    "load_trained",
    "representative_input",
    "routed",
    "run_trial",
    "to_image",
]

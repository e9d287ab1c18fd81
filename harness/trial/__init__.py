"""One trial from proposal to record, and evaluation."""

from harness.models import build_seeded
from harness.trial.evaluation import evaluate, routed, to_image
from harness.trial.replay import Replay, refuse_replay, replay
from harness.trial.run import (
    Judge,
    Proposal,
    Silent,
    TrialProgress,
    TrialSetup,
    Verdict,
    abandon,
    answer_from,
    assist_training,
    clear_up,
    crop_centre,
    load_trained,
    representative_input,
    run_trial,
)
from harness.trial.teacher import find_teachers, load_teacher, with_teacher

__all__ = [
    "Judge",
    "Proposal",
    "Replay",
    "Silent",
    "TrialProgress",
    "TrialSetup",
    "Verdict",
    "abandon",
    "answer_from",
    "assist_training",
    "build_seeded",
    "clear_up",
    "crop_centre",
    "evaluate",
    "find_teachers",
    "load_teacher",
    "load_trained",
    "refuse_replay",
    "replay",
    "representative_input",
    "routed",
    "run_trial",
    "to_image",
    "with_teacher",
]

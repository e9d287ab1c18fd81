"""One trial from proposal to record, and evaluation."""

from harness.models import build_seeded
from harness.trial.compression import least_cost
from harness.trial.evaluation import evaluate, routed, to_image
from harness.trial.replay import Replay, refuse_replay, replay
from harness.trial.run import (
    Judge,
    Parent,
    Proposal,
    Silent,
    TrialProgress,
    TrialSetup,
    Verdict,
    abandon,
    answer_from,
    assist_training,
    choose_best,
    clear_up,
    crop_centre,
    load_trained,
    measure_whole,
    representative_input,
    run_trial,
)
from harness.trial.teacher import find_teachers, load_teacher, with_teacher

__all__ = [
    "Judge",
    "Parent",
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
    "choose_best",
    "clear_up",
    "crop_centre",
    "evaluate",
    "find_teachers",
    "least_cost",
    "load_teacher",
    "load_trained",
    "measure_whole",
    "refuse_replay",
    "replay",
    "representative_input",
    "routed",
    "run_trial",
    "to_image",
    "with_teacher",
]

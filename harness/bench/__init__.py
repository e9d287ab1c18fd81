"""What this machine gives: shares of its peak, and every path of the network beside the one written word for word."""

from harness.bench.equality import BrokenPathError, check_inference, check_training
from harness.bench.inference import (
    InferenceBench,
    InferenceCase,
    NetworkTimes,
    default_cases,
    measure_inference,
)
from harness.bench.repeatability import RepeatabilityBench, default_networks, measure_repeatability
from harness.bench.rounds import Effort
from harness.bench.training import TrainingBench, TrainingCase, default_training_case, measure_training

__all__ = [
    "BrokenPathError",
    "Effort",
    "InferenceBench",
    "InferenceCase",
    "NetworkTimes",
    "RepeatabilityBench",
    "TrainingBench",
    "TrainingCase",
    "check_inference",
    "check_training",
    "default_cases",
    "default_networks",
    "default_training_case",
    "measure_inference",
    "measure_repeatability",
    "measure_training",
]

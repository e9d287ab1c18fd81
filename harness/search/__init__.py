"""Optuna: search spaces, samplers, the study and its resumption."""

from harness.search.space import SearchSpace, find_space, preset_names, read_space, read_study_space
from harness.search.study import SearchOutcome, baseline_config, run_search, study_identity, study_record

__all__ = [
    "SearchOutcome",
    "SearchSpace",
    "baseline_config",
    "find_space",
    "preset_names",
    "read_space",
    "read_study_space",
    "run_search",
    "study_identity",
    "study_record",
]

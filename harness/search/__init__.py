"""Optuna: search spaces, samplers, the study and its resumption."""

from harness.search.space import SearchSpace, find_space, preset_names, read_space, read_study_space
from harness.search.study import baseline_config, join_search, run_search, study_identity, study_record
from harness.search.worker import SearchOutcome

__all__ = [
    "SearchOutcome",
    "SearchSpace",
    "baseline_config",
    "find_space",
    "join_search",
    "preset_names",
    "read_space",
    "read_study_space",
    "run_search",
    "study_identity",
    "study_record",
]

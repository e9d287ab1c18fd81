"""Optuna: search spaces, samplers, the study and its resumption."""

from harness.search.ray_cluster import RayCluster, check_ray
from harness.search.space import SearchSpace, find_space, preset_names, read_space, read_study_space
from harness.search.study import baseline_config, join_search, run_search, study_identity, study_record
from harness.search.worker import SearchOutcome

__all__ = [
    "RayCluster",
    "SearchOutcome",
    "SearchSpace",
    "baseline_config",
    "check_ray",
    "find_space",
    "join_search",
    "preset_names",
    "read_space",
    "read_study_space",
    "run_search",
    "study_identity",
    "study_record",
]

"""Optuna: search spaces, samplers, the study and its resumption."""

import importlib
from typing import TYPE_CHECKING, Any

from harness.search.importance import explain_objectives
from harness.search.space import SearchSpace, find_space, preset_names, read_space, read_study_space

if TYPE_CHECKING:
    from harness.search.ray_cluster import RayCluster, check_ray
    from harness.search.reach import refuse_failing, refuse_unreachable
    from harness.search.study import baseline_config, join_search, run_search, study_identity, study_record
    from harness.search.worker import SearchOutcome

__all__ = [
    "RayCluster",
    "SearchOutcome",
    "SearchSpace",
    "baseline_config",
    "check_ray",
    "explain_objectives",
    "find_space",
    "join_search",
    "preset_names",
    "read_space",
    "read_study_space",
    "refuse_failing",
    "refuse_unreachable",
    "run_search",
    "study_identity",
    "study_record",
]


_HOMES = {
    "RayCluster": "ray_cluster",
    "SearchOutcome": "worker",
    "baseline_config": "study",
    "check_ray": "ray_cluster",
    "join_search": "study",
    "refuse_failing": "reach",
    "refuse_unreachable": "reach",
    "run_search": "study",
    "study_identity": "study",
    "study_record": "study",
}


def __getattr__(name: str) -> Any:  # reports do without torch: it comes with what trains
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

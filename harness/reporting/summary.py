"""A study in one JSON document: what `harness report --json` prints."""

from collections.abc import Sequence
from typing import Any, get_args

from harness.core.importance import Importance
from harness.core.records import TrialState
from harness.reporting.front import study_front
from harness.reporting.study import BASELINE_IDS, Point, Study, without_collection
from harness.reporting.table import POINT_FIELDS, point_row


@without_collection()
def summarise(study: Study, importance: Sequence[Importance] = ()) -> dict[str, Any]:
    """Return the study as a dict that is valid JSON: no NaN, null where something was not measured.

    `front` holds the non-dominated feasible points only; `knee` is one of them or null; `hypervolume` is unitless and
    `hypervolume_reference` says what it is measured from; a baseline that did not complete is null. `importance` is
    what each objective hangs on, as it was given.
    """
    front = study_front(study)
    states = [trial.state for trial in study.trials]
    return {
        "study": study.record.name,
        "scale": study.record.scale,
        "num_architectures": study.num_architectures,
        "num_points": len(study.points),
        "trials": {state: states.count(state) for state in get_args(TrialState)},
        "objectives": [objective.model_dump() for objective in study.record.objectives],
        "converged": study.converged,
        "note": study.convergence_note,
        "seam_note": study.seam_note,
        "protocol": study.record.protocol,
        "front": [_fields(study, point) for point in front.points],
        "knee": _fields(study, front.knee) if front.knee else None,
        "hypervolume": front.hypervolume,
        "hypervolume_reference": front.hypervolume_reference,
        "importance": [one.model_dump() for one in importance],
        "baselines": {name: _baseline(study, study.baseline(name)) for name in BASELINE_IDS},
    }


def _fields(study: Study, point: Point, *more: str) -> dict[str, Any]:
    row = point_row(study, point)
    return {name: row[name] for name in (*POINT_FIELDS, *more)}


def _baseline(study: Study, point: Point | None) -> dict[str, Any] | None:
    return _fields(study, point, "steps", "training_seconds") if point else None

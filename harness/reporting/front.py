"""Pareto fronts: which points are not dominated, the knee, the hypervolume.

The first three functions know nothing of studies: an array of one row per point and one column per objective.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.core.records import Direction
from harness.core.units import format_count
from harness.metrics import metric_label
from harness.reporting.study import Point, Study

Values = npt.NDArray[np.float64]

# Qualities are measured from a reference in their own unit; everything else is a cost, measured as a multiple of one.
_QUALITIES = ("psnr_db", "ssim")


def non_dominated(values: npt.ArrayLike, directions: Sequence[Direction]) -> npt.NDArray[np.bool_]:
    """Tell for each row whether no other row is at least as good everywhere and better somewhere.

    Equal rows do not dominate each other. `values` is (points, objectives) and finite; `ValueError` otherwise.
    """
    points = _minimised(values, directions)
    if not len(points):
        return np.zeros(0, dtype=bool)
    import moocore

    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=bool)


def knee_index(values: npt.ArrayLike, directions: Sequence[Direction]) -> int:
    """Return the row of a front that lies furthest on the good side of the plane through its extremes.

    Objectives are scaled to the front's own range, 0 the best value and 1 the worst; the plane is Σf = 1, in two
    objectives the line through both extreme points (Das, "On characterizing the knee of the Pareto curve", 1999;
    Branke et al., "Finding knees in multi-objective optimization", 2004). The distance to it is (1 − Σf)/√m, so the
    knee has the smallest Σf. An objective that is equal everywhere has no say; ties go to the first row. With one
    objective it is the best row. `ValueError` for an empty front.
    """
    points = _minimised(values, directions)
    if not len(points):
        raise ValueError("an empty front has no knee")
    best, worst = points.min(axis=0), points.max(axis=0)
    span = np.where(worst > best, worst - best, 1.0)
    total = ((points - best) / span).sum(axis=1)
    return int(np.flatnonzero(total <= total.min() + 1e-12)[0])


def hypervolume(values: npt.ArrayLike, reference: npt.ArrayLike, directions: Sequence[Direction]) -> float:
    """Return the volume that the rows dominate, up to `reference` (Zitzler and Thiele 1998; computed by moocore).

    Rows that are not better than the reference in every objective add nothing; no rows give 0.
    """
    points = _minimised(values, directions)
    limit = _minimised(np.asarray(reference, dtype=np.float64)[np.newaxis, :], directions)[0]
    inside = points[(points < limit).all(axis=1)] if len(points) else points
    if not len(inside):
        return 0.0
    import moocore

    return float(moocore.hypervolume(inside, ref=limit))


def _minimised(values: npt.ArrayLike, directions: Sequence[Direction]) -> Values:
    points = np.asarray(values, dtype=np.float64)
    if points.size == 0:
        return points.reshape(0, len(directions))
    if points.ndim != 2 or points.shape[1] != len(directions):
        raise ValueError(f"values have shape {points.shape}, but there are {len(directions)} objectives")
    if not np.isfinite(points).all():
        raise ValueError("values hold NaN or infinity; leave such points out")
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    return np.ascontiguousarray(points * signs)


@dataclass(frozen=True)
class Front:
    """The non-dominated feasible points of a study's trials, from the best to the worst in the first objective.

    `hypervolume_reference` says in words what the hypervolume is measured from.
    """

    points: tuple[Point, ...]
    knee: Point | None
    hypervolume: float
    hypervolume_reference: str

    @cached_property
    def _places(self) -> frozenset[tuple[str, str]]:
        return frozenset((point.record.record_id, point.point_id) for point in self.points)

    def holds(self, point: Point) -> bool:
        """Whether a point is on the front."""
        return (point.record.record_id, point.point_id) in self._places


def study_front(study: Study) -> Front:
    """Find the front, its knee and its hypervolume over the study's objectives.

    Points that violate a constraint, or lack a value for an objective, are left out. The hypervolume is unitless:
    qualities count as the difference from bicubic's value, costs as a multiple of SwinIR-light's, so it is comparable
    over the whole study. Where a baseline has no value, the worst value of the feasible points stands in for it.
    """
    if "front" not in study.found:
        study.found["front"] = _find_front(study)
    front: Front = study.found["front"]
    return front


def _find_front(study: Study) -> Front:
    candidates, values = _candidates(study)
    directions = _directions(study)
    chosen = [point for point, kept in zip(candidates, non_dominated(values, directions), strict=True) if kept]
    sign = -1.0 if directions[0] == "maximize" else 1.0
    chosen.sort(key=lambda point: [sign * value for value in _objectives(study, point) or ()])
    volume, words = 0.0, "no feasible point yet"
    if chosen:
        scale = _find_scale(study, values)
        volume, words = hypervolume(scale.apply(values), scale.reference, directions), scale.words
    knee = None
    if chosen:
        knee = chosen[knee_index([_objectives(study, point) or () for point in chosen], directions)]
    return Front(tuple(chosen), knee, volume, words)


class Moment(NamedTuple):
    """What a study had come to when a network was trained: so many networks, and the hypervolume of their points."""

    record_id: str
    finished_at: str
    networks: int
    hypervolume: float


def hypervolume_history(study: Study, most: int = 200) -> tuple[Moment, ...]:
    """Return the hypervolume after each network, in the order in which they were finished.

    All are measured from the reference of the study as it is now, so they are comparable and the last one is that of
    `study_front`. Of more than `most` networks, so many evenly spaced ones are told, the last among them.
    """
    candidates, values = _candidates(study)
    rows: dict[str, list[int]] = {}
    for row, point in enumerate(candidates):
        rows.setdefault(point.record.record_id, []).append(row)
    directions = _directions(study)
    scale = _find_scale(study, values) if len(values) else None
    finished = sorted(study.networks, key=lambda trial: (trial.finished_at, trial.record_id))
    told = set(np.linspace(len(finished), 1, min(most, len(finished))).round().astype(int).tolist())
    front = np.empty((0, len(directions)))
    moments = []
    for count, trial in enumerate(finished, start=1):
        if scale is not None and trial.record_id in rows:
            front = np.concatenate([front, scale.apply(values[rows[trial.record_id]])])
        if count in told:
            front = front[non_dominated(front, directions)]
            volume = 0.0 if scale is None else hypervolume(front, scale.reference, directions)
            moments.append(Moment(trial.record_id, trial.finished_at, count, volume))
    return tuple(moments)


def joint_hypervolumes(studies: Sequence[Study]) -> tuple[tuple[float, ...], str]:
    """Return each study's hypervolume, all from the same reference, that of the first one's baselines; and its words.

    The studies have the same objectives, and their values compare. Where the first has no baseline to measure from, the
    worst feasible point of them all stands in for it. A study without a feasible point has 0.
    """
    values = [_candidates(study)[1] for study in studies]
    found = [rows for rows in values if len(rows)]
    if not found:
        return tuple(0.0 for _ in studies), "no feasible point yet"
    first, directions = studies[0], _directions(studies[0])
    scale = _find_scale(first, np.concatenate(found))
    volumes = [hypervolume(scale.apply(rows), scale.reference, directions) if len(rows) else 0.0 for rows in values]
    return tuple(volumes), scale.words


def cost_curve(points: Iterable[Point], metric: str) -> tuple[Point, ...]:
    """Return the feasible ones of points that no other beats in both PSNR and a cost, by rising cost.

    Left out are points without the cost, or whose cost is 0. The first of equal points stands for them.
    """
    rows = []
    for point in points:
        cost, quality = point.measured.value(metric), point.measured.evaluation.psnr_db
        if point.measured.feasible and cost is not None and 0 < cost < math.inf and math.isfinite(quality):
            rows.append((cost, -quality, point))
    curve: list[Point] = []
    best = math.inf
    for _, lost, point in sorted(rows, key=lambda row: row[:2]):
        if lost < best:
            curve.append(point)
            best = lost
    return tuple(curve)


def _candidates(study: Study) -> tuple[list[Point], Values]:
    """Return the points that may be on the front, feasible and with a value for every objective, and these values."""
    if "candidates" not in study.found:
        found = [
            (point, values)
            for point in study.points
            if point.measured.feasible and (values := _objectives(study, point)) is not None
        ]
        rows = np.array([values for _, values in found], dtype=np.float64)
        study.found["candidates"] = [point for point, _ in found], rows
    candidates: tuple[list[Point], Values] = study.found["candidates"]
    return candidates


def _directions(study: Study) -> list[Direction]:
    return [objective.direction for objective in study.record.objectives]


def _objectives(study: Study, point: Point) -> tuple[float, ...] | None:
    """Return the point's objective values, or None when one is missing or not finite."""
    values = [point.measured.value(objective.metric) for objective in study.record.objectives]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return tuple(float(value) for value in values if value is not None)


@dataclass(frozen=True)
class _Scale:
    """How objectives become unitless: qualities less bicubic's value, costs as multiples of SwinIR-light's."""

    origin: Values
    unit: Values
    reference: Values
    words: str

    def apply(self, values: Values) -> Values:
        """Scale rows of objective values."""
        scaled: Values = (values - self.origin) / self.unit
        return scaled


def _find_scale(study: Study, values: Values) -> _Scale:
    """Find the scale of a study whose feasible points have these objective values; there is at least one."""
    origins, units, reference, words = [], [], [], []
    for column, objective in enumerate(study.record.objectives):
        name = objective.metric.partition("/")[0]
        quality = name in _QUALITIES
        owner = study.baseline("bicubic" if quality else "swinir-light")
        base = owner.measured.value(objective.metric) if owner else None
        if name == "latency_ratio":
            base = 1.0  # by definition: it is already a multiple of SwinIR-light's latency
        if name == "attention_share":
            base = 1.0  # attention everywhere
        source = "bicubic's" if quality else "SwinIR-light's"
        if base is None or not math.isfinite(base) or (not quality and base <= 0):
            worst = values[:, column].min() if objective.direction == "maximize" else values[:, column].max()
            base, source = float(worst), "the worst feasible point's"
        label = metric_label(objective.metric, study.record.protocol)
        unit = base if base > 0 and not quality else 1.0
        origins.append(base if quality else 0.0)
        units.append(unit)
        reference.append(0.0 if quality else base / unit)
        if quality:
            words.append(f"{label}: above {source} {base:.4f}")
        else:
            words.append(
                f"{label}: as a share of {source} {format_count(base)}".rstrip() if base > 0 else f"{label}: from 0"
            )
    return _Scale(np.array(origins), np.array(units), np.array(reference), "; ".join(words))

"""Choosing one point of a study: by name, by bounds on metrics, or by the weights of a compromise.

`knee`, `best-psnr`, `fastest` and `smallest` are of the front; `trial:N` is the point under the routing that trial N
suggested, `point:ID` any point, such as a calibrated one, by its `point_id`.

Bounds (`latency_ms <= 20 and psnr_db >= 30`; the grammar is that of `core/constraints.py`) choose among all feasible
points that meet them: the highest PSNR where a cost is bounded from above, otherwise the lowest latency (MACs where
none was measured).

Weights (`weights: psnr_db=2, latency_ms=1`) choose, of the feasible points that no other beats in these metrics, the
one of the least augmented weighted Chebyshev distance to the ideal point, maxᵢ wᵢfᵢ + ρ Σᵢ wᵢfᵢ with ρ = 0.05 (Steuer
and Choo, "An interactive weighted Tchebycheff procedure for multiple objective programming", 1983; ρ as in Knowles,
"ParEGO", 2006). fᵢ is 0 at the best and 1 at the worst value among these points, and the weights are divided by their
sum. Unlike the least weighted sum it may be any point of a front, and unlike the least maximum alone it is never
dominated.

Of points that are equal by the rule, that which is better in the objectives, in their order, is chosen.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.core.choice import ChoiceRecord, format_amount
from harness.core.constraints import Constraint, parse_bounds, parse_weights
from harness.core.errors import UserError
from harness.core.records import METRIC_DIRECTIONS, Direction, TrialRecord, find_latency
from harness.metrics import PROTOCOLS, metric_label
from harness.reporting.front import non_dominated, study_front
from harness.reporting.study import Point, Study, latency_settings
from harness.reporting.tradeoffs import explain, name_point, same_setting

PICKS = ("knee", "best-psnr", "fastest", "smallest", "trial:N", "point:ID")
EXAMPLES = ("latency_ms <= 20 and psnr_db >= 30", "weights: psnr_db=2, latency_ms=1")
AUGMENTATION = 0.05  # ρ
_MOST_LISTED = 100  # trials in a message


@dataclass(frozen=True)
class Pick:
    """A way of choosing, read: `bounds` or `weights`, or neither where the text is a name of `PICKS`."""

    text: str
    bounds: tuple[Constraint, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it names."""
        return tuple(dict.fromkeys([*(bound.metric for bound in self.bounds), *self.weights]))


def parse_pick(text: str, protocol: str) -> Pick:
    """Read a way of choosing in a study that is scored under `protocol`; `UserError` for what is none.

    Metrics may also be called by their columns in front.csv (`latency_ms_median`), and PSNR `psnr_y_db` where it is
    that of luma.
    """
    aliases = {"latency_ms_median": "latency_ms"}
    if protocol in PROTOCOLS and PROTOCOLS[protocol].colour != "rgb":
        aliases["psnr_y_db"] = "psnr_db"
    elif "psnr_y_db" in text:
        raise UserError(f"--pick {text!r}: PSNR is scored under protocol {protocol}, not on luma; say psnr_db")
    if text.lstrip().startswith("weights"):
        return Pick(text, weights=parse_weights(text, what="--pick", aliases=aliases))
    if text in PICKS or text.startswith(("trial:", "point:")):
        return Pick(text)
    if any(sign in text for sign in "<>=") or text.partition("/")[0] in {*METRIC_DIRECTIONS, *aliases}:
        return Pick(text, bounds=parse_bounds(text, what="--pick", aliases=aliases))
    forms = ", ".join([*PICKS, *(f'"{example}"' for example in EXAMPLES)])
    raise UserError(f"unknown pick {text!r}; expected one of: {forms}")


def pick(study: Study, how: str) -> Point:
    """Return one point, chosen as the module says; `UserError` as of `choose`."""
    return choose(study, how)[0]


def choose(study: Study, how: str) -> tuple[Point, ChoiceRecord]:
    """Choose one point, and say what that gives up.

    `UserError` for an unknown way, an empty front, a trial that has no point, an unknown point, bounds that no point
    meets (it names the nearest), metrics that were not measured, and latencies that do not compare.
    """
    parsed = parse_pick(how, study.record.protocol)
    point, rule = _choose(study, parsed)
    return point, explain(study, point, pick=how, rule=rule, named=parsed.metrics)


def _choose(study: Study, parsed: Pick) -> tuple[Point, str]:
    how = parsed.text
    if how.startswith("trial:"):
        return _pick_trial(study, how.removeprefix("trial:")), "the trial that was named"
    if how.startswith("point:"):
        return _pick_point(study, how.removeprefix("point:")), "the point that was named"
    front = study_front(study)
    if front.knee is None:
        raise UserError(
            f"study {study.record.name!r} has no feasible point on its front yet; run `harness search` to its end, "
            "or relax its constraints"
        )
    if parsed.bounds:
        return _pick_within(study, parsed)
    if parsed.weights:
        return _pick_compromise(study, parsed)
    if how == "best-psnr":
        best = max(front.points, key=lambda point: point.measured.evaluation.psnr_db)
        return best, f"the highest PSNR of the front's {len(front.points)} points"
    if how == "fastest":
        timed = [point for point in front.points if point.latency() is not None]
        if not timed:
            raise UserError(f"study {study.record.name!r} measured no latency; expected another pick than 'fastest'")
        _refuse_mixed(timed, ["latency_ms"])
        fastest = min(timed, key=lambda point: (_value(point, "latency_ms"), -point.measured.evaluation.psnr_db))
        return fastest, f"the lowest latency of the front's {len(front.points)} points"
    if how == "smallest":
        smallest = min(
            front.points,
            key=lambda point: (point.measured.params, point.measured.macs, -point.measured.evaluation.psnr_db),
        )
        return smallest, f"the fewest parameters of the front's {len(front.points)} points"
    metrics = [objective.metric for objective in study.record.objectives]
    are_mixed = _are_mixed(front.points, metrics)
    note = "; latencies of several settings are mixed in it, so look twice" if are_mixed else ""
    return front.knee, f"the knee of the front, furthest from the plane through its extremes{note}"


def _pick_within(study: Study, parsed: Pick) -> tuple[Point, str]:
    """Choose among the feasible points that meet all bounds; `UserError` names the nearest where none does."""
    measured = _measured(study, parsed)
    _refuse_mixed(measured, parsed.metrics)
    meeting = [
        point
        for point in measured
        if all(bound.violation(point.measured.value(bound.metric)) <= 0 for bound in parsed.bounds)
    ]
    if not meeting:
        raise UserError(f"nothing meets {parsed.text!r}: {_describe_nearest(study, measured, parsed.bounds)}")
    is_cost_bounded = any(
        bound.is_upper and METRIC_DIRECTIONS[bound.metric.partition("/")[0]] == "minimize" for bound in parsed.bounds
    )
    first = "psnr_db"
    if not is_cost_bounded:
        timed = [point for point in meeting if _value(point, "latency_ms") is not None]
        first = "latency_ms" if len(timed) == len(meeting) else "macs"
        _refuse_mixed(meeting, [first])
    chosen = _best(study, meeting, [_signed(point, first) for point in meeting])
    label = metric_label(first, study.record.protocol, unit=False)
    ending = f"the {'highest' if first == 'psnr_db' else 'lowest'} {label}"
    return chosen, f"{ending} of the {len(meeting):,} of {len(measured):,} feasible points that meet {parsed.text}"


def _pick_compromise(study: Study, parsed: Pick) -> tuple[Point, str]:
    """Choose the least augmented Chebyshev distance to the ideal point of the weighted metrics."""
    measured = _measured(study, parsed)
    _refuse_mixed(measured, parsed.metrics)
    metrics = list(parsed.weights)
    directions: list[Direction] = ["minimize"] * len(metrics)
    values = np.array([[_signed(point, metric) for metric in metrics] for point in measured])
    kept = non_dominated(values, directions)
    front = [point for point, keep in zip(measured, kept, strict=True) if keep]
    distances = chebyshev_distances(values[kept], list(parsed.weights.values()))
    labels = ", ".join(metric_label(metric, study.record.protocol, unit=False) for metric in metrics)
    rule = (
        f"the least weighted distance to the best values (augmented Chebyshev, ρ = {AUGMENTATION}) of the {len(front)} "
        f"points that no other beats in {labels}, by {parsed.text}"
    )
    return _best(study, front, distances), rule


def chebyshev_distances(values: np.typing.ArrayLike, weights: Sequence[float]) -> list[float]:
    """Return the augmented weighted Chebyshev distance of each row of minimised objectives to the ideal point.

    `values` is (points, objectives); each column is scaled to its own range, 0 the best, and the weights, all above 0,
    are divided by their sum. A column that is equal everywhere has no say.
    """
    points = np.asarray(values, dtype=np.float64)
    best, worst = points.min(axis=0), points.max(axis=0)
    scaled = (points - best) / np.where(worst > best, worst - best, 1.0)
    weighted = scaled * (np.asarray(weights) / sum(weights))
    distances: list[float] = (weighted.max(axis=1) + AUGMENTATION * weighted.sum(axis=1)).tolist()
    return distances


def _best(study: Study, points: Sequence[Point], keys: Sequence[float]) -> Point:
    """Return the point of the least key, of equal ones the better in the objectives, in their order."""

    def rank(place: int) -> tuple[float, ...]:
        point = points[place]
        signs = [-1.0 if objective.direction == "maximize" else 1.0 for objective in study.record.objectives]
        values = [point.measured.value(objective.metric) for objective in study.record.objectives]
        ordered = [math.inf if value is None else sign * value for sign, value in zip(signs, values, strict=True)]
        return (keys[place], *ordered)

    return points[min(range(len(points)), key=rank)]


def _measured(study: Study, parsed: Pick) -> list[Point]:
    """Return the feasible points with PSNR and every metric that is named, all finite; `UserError` if there is none."""
    feasible = [point for point in study.points if point.measured.feasible]
    for metric in parsed.metrics:
        if all(_value(point, metric) is None for point in feasible):
            known = [name for name in METRIC_DIRECTIONS if any(_value(point, name) is not None for point in feasible)]
            devices = ", ".join(study.record.devices) or "no device"
            raise UserError(
                f"--pick {parsed.text!r}: no feasible point of study {study.record.name!r} has {metric}; they have "
                f"{', '.join(known)} (latencies on {devices})"
            )
    wanted = ("psnr_db", *parsed.metrics)
    found = [point for point in feasible if all(_value(point, metric) is not None for metric in wanted)]
    if not found:
        raise UserError(
            f"--pick {parsed.text!r}: no feasible point of study {study.record.name!r} has all of {', '.join(wanted)}"
        )
    return found


def _describe_nearest(study: Study, points: Sequence[Point], bounds: Sequence[Constraint]) -> str:
    """Name the point whose greatest violation is least, relative to the range that the points have in that metric."""

    def violations(point: Point) -> list[float]:
        return [max(0.0, bound.violation(point.measured.value(bound.metric))) for bound in bounds]

    spans = []
    for bound in bounds:
        values = [float(point.measured.value(bound.metric) or 0.0) for point in points]
        spans.append((max(values) - min(values)) or abs(bound.bound) or 1.0)
    nearest = min(points, key=lambda point: max(v / s for v, s in zip(violations(point), spans, strict=True)))
    told = []
    for bound, violation in zip(bounds, violations(nearest), strict=True):
        value = nearest.measured.value(bound.metric)
        assert value is not None
        if violation > 0:
            by = format_amount(bound.metric, abs(value - bound.bound))
            gap = "the bound itself" if value == bound.bound else f"{by} too {'much' if bound.is_upper else 'little'}"
            label = metric_label(bound.metric, study.record.protocol, unit=False)
            told.append(f"{label} {format_amount(bound.metric, value)} ({gap})")
    return f"nearest is {name_point(nearest)} at {' and '.join(told)}"


def _are_mixed(points: Sequence[Point], metrics: Iterable[str]) -> bool:
    """Whether points' values of one of the metrics, a latency, were measured under several settings."""
    return any(not same_setting(points[0], point, metric) for metric in metrics for point in points[1:])


def _refuse_mixed(points: Sequence[Point], metrics: Iterable[str]) -> None:
    """Raise `UserError` where a latency that decides was measured under several settings."""
    for metric in metrics:
        if metric.startswith("latency"):
            conditions = metric.partition("/")[2]
            found = (find_latency(point.measured.latency, conditions) for point in points)
            latency_settings(
                [one for one in found if one is not None], remedy="choose by another metric, trial:N or point:ID"
            )


def _value(point: Point, metric: str) -> float | None:
    value = point.measured.value(metric)
    return None if value is None or not math.isfinite(value) else float(value)


def _signed(point: Point, metric: str) -> float:
    """Return a value so that less is better."""
    value = _value(point, metric)
    assert value is not None
    return -value if METRIC_DIRECTIONS[metric.partition("/")[0]] == "maximize" else value


def _pick_point(study: Study, identity: str) -> Point:
    found = {point.point_id: point for point in study.all_points}
    if identity not in found:
        same = [known for known in found if known.partition("/")[0] == identity.partition("/")[0]]
        listed = f"its network has {', '.join(same)}" if same else "the column point_id of front.csv names points"
        raise UserError(f"no point {identity!r} in study {study.record.name!r}; {listed}")
    return found[identity]


def _pick_trial(study: Study, text: str) -> Point:
    numbers = {trial.number: trial for trial in study.trials if trial.number is not None}
    trial = numbers.get(int(text)) if text.isdecimal() else None
    if trial is None:
        listed = _trials_with_points(study)
        raise UserError(f"no trial {text!r} in study {study.record.name!r}; trials with points: {listed}")
    found = _trial_point(study, trial)
    if found is None:
        why = f": {trial.reason}" if trial.reason else ""
        listed = _trials_with_points(study)
        raise UserError(f"trial {text} has no point (it was {trial.state}{why}); trials with points: {listed}")
    return found


def _trials_with_points(study: Study) -> str:
    records = {point.record.record_id for point in study.all_points}
    networks = {point.record.network_id for point in study.all_points}
    possible = [
        f"trial:{trial.number}"
        for trial in sorted(study.trials, key=lambda trial: trial.number or 0)
        if trial.number is not None
        and ((trial.answered_by or trial.record_id) in records or _is_answered(trial, networks))
    ]
    more = f" and {len(possible) - _MOST_LISTED:,} more" if len(possible) > _MOST_LISTED else ""
    return ", ".join(possible[:_MOST_LISTED]) + more or "none yet"


def _is_answered(trial: TrialRecord, networks: set[str]) -> bool:
    return trial.state == "answered" and trial.network_id in networks


def _trial_point(study: Study, trial: TrialRecord) -> Point | None:
    """Return the trial's point under the routing that it suggested, else the best of its network's."""
    holder = trial.record_id if trial.answered_by is None else trial.answered_by
    points = [point for point in study.all_points if point.record.record_id == holder]
    if not points and trial.state == "answered":
        points = [point for point in study.all_points if point.record.network_id == trial.network_id]
    points = [point for point in points if point.measured.quantised is not None] or points
    if not points:
        return None
    suggested = getattr(trial.model, "routing", None)
    same = [point for point in points if point.measured.routing == suggested]
    return same[0] if same else max(points, key=lambda point: point.measured.evaluation.psnr_db)

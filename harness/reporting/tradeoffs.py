"""What a chosen point gives up: against its neighbours on the front, and against SwinIR-light."""

import math
from collections.abc import Iterable, Sequence

from harness.core.choice import ChoiceRecord, MetricChange, TradeOff
from harness.core.records import find_latency
from harness.metrics import metric_label
from harness.reporting.front import study_front
from harness.reporting.published import load_published
from harness.reporting.study import Point, Study, not_converged

_LATENCIES = ("latency_ms", "latency_ratio")


def explain(study: Study, point: Point, *, pick: str, rule: str, named: Iterable[str] = ()) -> ChoiceRecord:
    """Say what a point that was chosen by `rule` gives up, in PSNR, costs, the objectives and the metrics `named`.

    Latencies of other settings (machine, protocol, versions) are not compared: neighbours are looked for among points
    of the chosen one's setting, and the notes say what was left out.
    """
    cost = _cost_metric(study, point)
    objectives = [objective.metric for objective in study.record.objectives]
    metrics = tuple(dict.fromkeys(["psnr_db", cost, "macs", "params", *objectives, *named]))
    front = study_front(study)
    alike = [other for other in front.points if same_setting(point, other, cost)]
    notes = []
    if len(alike) < len(front.points):
        notes.append(
            f"{len(front.points) - len(alike)} points of the front were timed under another setting (machine, protocol "
            "or versions) and are not compared"
        )
    label = metric_label(cost, study.record.protocol, unit=False)
    cheaper, better = find_neighbours(alike, point, cost)
    steps = []
    for found, title, none in (
        (cheaper, "next faster" if cost.startswith("latency") else f"next with less {label}", f"less {label}"),
        (better, "next better", "a higher PSNR"),
    ):
        steps.append(_step(study, point, found, metrics, f"{title}, ") if found else None)
        if found is None:
            notes.append(f"no point of the front has {none}")
    reference, missing = _against_swinir(study, point, metrics)
    notes += [missing] if missing else []
    notes += _standing(study, point)
    if reference is None and study.convergence_note:
        notes.append(study.convergence_note)
    return ChoiceRecord(
        pick=pick,
        rule=rule,
        label=name_point(point),
        record_id=point.record.record_id,
        point_id=point.point_id,
        on_front=front.holds(point),
        cost=cost,
        values=_values(point, metrics),
        cheaper=steps[0],
        better=steps[1],
        reference=reference,
        notes=tuple(notes),
    )


def find_neighbours(points: Sequence[Point], point: Point, cost: str) -> tuple[Point | None, Point | None]:
    """Return the best of the points that cost less than `point`, and the cheapest of those of a higher PSNR.

    On a front of PSNR and that cost they are the two beside it. Ties go to the better in the other of the two.
    """

    def place(one: Point) -> tuple[float, float]:
        value = one.measured.value(cost)
        return (math.inf if value is None else value), one.measured.evaluation.psnr_db

    own_cost, own_quality = place(point)
    cheaper = [one for one in points if place(one)[0] < own_cost]
    better = [one for one in points if place(one)[1] > own_quality and place(one)[0] < math.inf]
    return (
        max(cheaper, key=lambda one: (place(one)[1], -place(one)[0]), default=None),
        min(better, key=lambda one: (place(one)[0], -place(one)[1]), default=None),
    )


def same_setting(one: Point, other: Point, metric: str) -> bool:
    """Whether two points' values of a metric compare: of a latency, whether both were measured under one setting."""
    name, _, conditions = metric.partition("/")
    if name not in _LATENCIES:
        return True
    found = [find_latency(point.measured.latency, conditions) for point in (one, other)]
    return None in found or len({latency.setting for latency in found if latency is not None}) == 1


def name_point(point: Point) -> str:
    """Name a point so that it is found again: 'C24 groups 1-1 M16, fixed γ=0.5 (trial 3)'."""
    number = point.record.number
    return point.label if number is None else f"{point.label} (trial {number})"


def _cost_metric(study: Study, point: Point) -> str:
    """Return the cost that neighbours are told apart by: the first latency among objectives, else any, else a count."""
    costs = [one.metric for one in study.record.objectives if one.direction == "minimize"]
    wanted = [*(metric for metric in costs if metric.partition("/")[0] in _LATENCIES), "latency_ms", *costs, "macs"]
    return next(metric for metric in wanted if metric in _values(point, [metric]))


def _values(point: Point, metrics: Iterable[str]) -> dict[str, float]:
    found = ((metric, point.measured.value(metric)) for metric in metrics)
    return {metric: float(value) for metric, value in found if value is not None and math.isfinite(value)}


def _step(study: Study, before: Point, after: Point, metrics: Iterable[str], title: str) -> TradeOff:
    """Return the step from the chosen point to another."""
    compared = [metric for metric in metrics if same_setting(before, after, metric)]
    return TradeOff(
        title=title,
        label=name_point(after),
        record_id=after.record.record_id,
        point_id=after.point_id,
        changes=_changes(study, _values(before, compared), _values(after, compared)),
        note=_doubt_latency(before, after, compared),
    )


def _doubt_latency(before: Point, after: Point, metrics: Iterable[str]) -> str | None:
    """Say where milliseconds and ratios to SwinIR-light, each of its own run, rank two points differently."""
    for metric in metrics:
        if metric.partition("/")[0] != "latency_ms":
            continue
        ratio = metric.replace("latency_ms", "latency_ratio")
        known = [_values(point, [metric, ratio]) for point in (before, after)]
        if any(len(found) < 2 for found in known):
            continue
        times, ratios = ([found[name] for found in known] for name in (metric, ratio))
        if (times[1] - times[0]) * (ratios[1] - ratios[0]) < 0:
            return (
                f"latency in doubt: relative to SwinIR-light of the same run it goes from {ratios[0]:.3f} to "
                f"{ratios[1]:.3f}, the other way"
            )
    return None


def _changes(study: Study, before: dict[str, float], after: dict[str, float]) -> tuple[MetricChange, ...]:
    return tuple(
        MetricChange(
            metric=metric,
            label=metric_label(metric, study.record.protocol, unit=False),
            before=value,
            after=after[metric],
            percent=_percent(metric, value, after[metric]),
        )
        for metric, value in before.items()
        if metric in after
    )


def _percent(metric: str, before: float, after: float) -> float | None:
    if metric == "psnr_db":
        return 100 * (10 ** ((before - after) / 10) - 1)
    return 100 * (after / before - 1) if before else None


def _against_swinir(study: Study, point: Point, metrics: Sequence[str]) -> tuple[TradeOff | None, str | None]:
    """Return the step from the study's SwinIR-light to the point, or why there is none.

    Its latency is that of the same run, interleaved with the point's, where there is one.
    """
    reference = study.baseline("swinir-light")
    if reference is None:
        return None, _describe_published(study)
    known = _values(reference, [metric for metric in metrics if same_setting(point, reference, metric)])
    for metric in metrics:
        name, _, conditions = metric.partition("/")
        timed = find_latency(point.measured.latency, conditions)
        if name in _LATENCIES and timed is not None and (timed.reference or "").lower() == "swinir-light":
            beside = timed.reference_median if name == "latency_ms" else 1.0
            known |= {} if beside is None else {metric: beside}
    recipes = [record.training for record in (point.record, reference.record) if record.training]
    short = [recipe for recipe in recipes if not recipe.is_full_recipe]
    ordered = {metric: known[metric] for metric in metrics if metric in known}
    step = TradeOff(
        title="against ",
        label=reference.label,
        record_id=reference.record.record_id,
        point_id=reference.point_id,
        changes=_changes(study, ordered, _values(point, metrics)),
        note=not_converged(short) if short else None,
    )
    return step, None


def _describe_published(study: Study) -> str:
    """Say that SwinIR-light was not trained here, what was published of it, and what that is worth."""
    opening = "no SwinIR-light was trained in this study, so nothing is said against it"
    images = study.record.data.validation
    rows = load_published(study.record.scale) if study.record.task == "classic" else []
    found = [row for row in rows if row["label"] == "SwinIR-light" and row["dataset"] == images.lower()]
    if not found:
        return f"{opening}; published figures of it are of other images than {images}"
    worth = "comparable only as far as training and protocol are alike"
    if not study.converged:
        worth = "not comparable with networks that are not fully trained"
    return f"{opening}; published for it on {images}: PSNR {found[0]['psnr_db']:.2f} dB, {worth}"


def _standing(study: Study, point: Point) -> list[str]:
    """Say why a point is not on the front, where it is not."""
    notes = []
    violated = [text for text, value in point.measured.constraints.items() if value > 0]
    if violated:
        notes.append(f"it violates {' and '.join(violated)}, which the study demands")
    elif not study_front(study).holds(point):
        beaten = _find_dominator(study, point)
        by = f": {name_point(beaten)} is nowhere worse in the objectives" if beaten else ""
        notes.append(f"it is not on the front{by}")
    return notes


def _find_dominator(study: Study, point: Point) -> Point | None:
    objectives = study.record.objectives
    for other in study_front(study).points:
        pairs = [(other.measured.value(one.metric), point.measured.value(one.metric), one) for one in objectives]
        if all(
            theirs is not None and own is not None and (theirs >= own if one.direction == "maximize" else theirs <= own)
            for theirs, own, one in pairs
        ):
            return other
    return None

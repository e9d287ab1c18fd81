"""The front against SwinIR-light: x % fewer MACs, y times faster, z dB; in numbers and in words."""

from typing import Any

from harness.core.records import find_latency
from harness.metrics import metric_label
from harness.reporting.averages import against_curve
from harness.reporting.front import Front, study_front
from harness.reporting.published import load_published
from harness.reporting.study import BASELINE_IDS, Point, Study, latency_settings, not_converged, without_collection
from harness.reporting.table import POINT_FIELDS, point_row

_SHOWN = (*POINT_FIELDS, "dataset", "steps", "training_seconds")


@without_collection()
def compare(study: Study, published: bool = False, *, mix: bool = False) -> dict[str, Any]:
    """Return the front, the baselines and, if asked, the published tables as rows of one JSON-able table.

    `rows` have `role` (`front`, `baseline`, `published`), the point's fields, and against SwinIR-light:
    `macs_saving_percent` (positive: fewer), `times_faster` (above 1: faster; from latencies measured side by side where
    there are any), `psnr_difference_db`, and the `sentence` that says them. `psnr_above_bicubic_db` is against bicubic.
    Differences are null without that baseline. `source` and `trained_on` say where a row comes from; published rows
    are of the study's scale and, where the tables have it, of its validation set. `headline` answers the question.
    `latency_settings` says what the latencies were measured under; unless `mix`, `UserError` where they are several.
    `bjontegaard` holds the averages of the front against that of SwinIR-light, where it has points for a front, and
    otherwise says why there are none.
    """
    front = study_front(study)
    baselines = [found for name in BASELINE_IDS if (found := study.baseline(name)) is not None]
    latencies = [point.latency() for point in (*front.points, *baselines)]
    settings = latency_settings([found for found in latencies if found is not None], mix=mix)
    rows = [_row(study, point, "front", front) for point in front.points]
    for name in BASELINE_IDS:
        baseline = study.baseline(name)
        if baseline is not None:
            rows.append(_row(study, baseline, "baseline", front))
    if published:
        rows += _published_rows(study)
    return {
        "study": study.record.name,
        "headline": headline(study, front),
        "converged": study.converged,
        "note": study.convergence_note,
        "seam_note": study.seam_note,
        "protocol": study.record.protocol,
        "latency_settings": settings,
        "bjontegaard": against_curve(study, "swinir-light"),
        "rows": rows,
    }


def headline(study: Study, front: Front | None = None) -> str:
    """Answer in a sentence: the fastest network of the front that is at least as good as SwinIR-light, or the closest.

    Without a SwinIR-light baseline the knee is named; without a front the sentence says so.
    """
    front = front or study_front(study)
    if front.knee is None:
        if study.points:
            return "No network is on the front: every point violates a constraint or lacks the value of an objective."
        return "No network is on the front yet: no trial has finished."
    reference = study.baseline("swinir-light")
    if reference is None:
        knee = front.knee
        psnr = f"{knee.measured.evaluation.psnr_db:.2f} dB"
        return f"The knee of the front is {knee.label} at {psnr}; no {describe_missing(study)}."
    goal = reference.measured.evaluation.psnr_db
    winners = [point for point in front.points if point.measured.evaluation.psnr_db >= goal]
    if winners:
        chosen = min(winners, key=lambda point: (_speed_cost(point), point.measured.macs))
        timed = chosen.latency() is not None
        opening = f"{'Fastest' if timed else 'Smallest'} network that is at least as good as SwinIR-light"
    else:
        chosen = max(front.points, key=lambda point: point.measured.evaluation.psnr_db)
        quality = metric_label("psnr_db", study.record.protocol, unit=False)
        opening = f"No network of the front reaches SwinIR-light's {quality}; the closest"
    return f"{opening}: {chosen.label}: {against(chosen, reference)['sentence']}."


def describe_missing(study: Study) -> str:
    """Say, after 'no', that SwinIR-light was not trained; and that latencies are ratios to it nevertheless."""
    latencies = (latency for point in study.points for latency in point.measured.latency)
    has_ratios = any(latency.ratio is not None and latency.reference == "swinir-light" for latency in latencies)
    beside = " (ratios of latencies are to an untrained one)" if has_ratios else ""
    return f"SwinIR-light baseline was trained in this study{beside}"


def against(point: Point, reference: Point) -> dict[str, Any]:
    """Compare two points; the words 'not converged' stand beside dB unless both had a full recipe."""
    measured, other = point.measured, reference.measured
    saving = 100 * (1 - measured.macs / other.macs) if other.macs else None
    faster = _times_faster(point, reference)
    difference = measured.evaluation.psnr_db - other.evaluation.psnr_db
    recipes = [record.training for record in (point.record, reference.record) if record.training]
    short = [recipe for recipe in recipes if not recipe.is_full_recipe]
    note = not_converged(short) if short else None
    parts = []
    if saving is not None:
        parts.append(f"{abs(saving):.1f} % {'fewer' if saving >= 0 else 'more'} MACs")
    if faster is not None:
        parts.append(f"{faster:.2f} times faster" if faster >= 1 else f"{1 / faster:.2f} times slower")
    parts.append(format_difference(difference) + (f" ({note})" if note else ""))
    return {
        "macs_saving_percent": saving,
        "times_faster": faster,
        "psnr_difference_db": difference,
        "note": note,
        "sentence": ", ".join(parts),
    }


def format_difference(difference_db: float) -> str:
    """Write a difference in dB with its sign: −0.25 dB, +0.04 dB, 0.00 dB."""
    rounded = round(difference_db, 2)
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded):.2f} dB"


def _times_faster(point: Point, reference: Point) -> float | None:
    """Return reference latency / latency; runs side by side first, since a noisy machine slows both."""
    latency = point.latency()
    if latency is None or latency.median <= 0:
        return None
    if latency.ratio and (latency.reference or "").lower() == reference.record.label.lower():
        return 1 / latency.ratio
    other = find_latency(reference.measured.latency, latency.conditions)
    return other.median / latency.median if other else None


def _speed_cost(point: Point) -> float:
    latency = point.latency()
    return latency.median if latency else float("inf")


def _row(study: Study, point: Point, role: str, front: Front) -> dict[str, Any]:
    row = point_row(study, point, front)
    reference, floor = study.baseline("swinir-light"), study.baseline("bicubic")
    itself = reference is not None and reference.record.record_id == point.record.record_id
    found = against(point, reference) if reference is not None and not itself else {}
    above = point.measured.evaluation.psnr_db - floor.measured.evaluation.psnr_db if floor else None
    trained = point.record.training
    return {
        "role": role,
        **{name: row[name] for name in _SHOWN},
        "knee": row["knee"],
        **{name: found.get(name) for name in ("macs_saving_percent", "times_faster", "psnr_difference_db")},
        "note": found.get("note") or (not_converged([trained]) if trained and not trained.is_full_recipe else None),
        "sentence": found.get("sentence"),
        "psnr_above_bicubic_db": above,
        "source": "this study",
        "trained_on": f"{point.record.data.train}, {trained.steps:,} steps" if trained else "not trained",
    }


def _published_rows(study: Study) -> list[dict[str, Any]]:
    found = load_published(study.record.scale)
    wanted = study.record.data.validation.lower()
    same = [row for row in found if row["dataset"] == wanted]
    empty = dict.fromkeys(_SHOWN) | dict.fromkeys(
        ("macs_saving_percent", "times_faster", "psnr_difference_db", "note", "sentence", "psnr_above_bicubic_db")
    )
    return [{"role": "published", **empty, "protocol": "light", "knee": False, **row} for row in same or found]

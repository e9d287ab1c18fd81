"""The fronts of two studies against each other: average dB at equal cost, average cost at equal dB, hypervolume."""

from collections.abc import Iterable
from typing import Any

from harness.core.errors import UserError
from harness.metrics import INTERPOLATIONS, Average, Interpolation, bd_cost, bd_psnr, metric_label
from harness.reporting.front import cost_curve, joint_hypervolumes
from harness.reporting.study import BaselineName, Point, Study, without_collection

LITTLE_OVERLAP = 0.25  # of what two curves span together: an average over less says little of the curves


@without_collection()
def compare_fronts(anchor: Study, test: Study, *, interpolation: str = "pchip", mix: bool = False) -> dict[str, Any]:
    """Say how much better and cheaper the front of `test` is than that of `anchor`, as one JSON-able table.

    `rows`, one for each cost (latencies under each condition that both were measured under, MACs, parameters), hold
    what `bd_row` says. `hypervolumes` are both from `hypervolume_reference`; null where objectives differ. `notes`
    are what stands between the two studies and a plain reading, and what is left out: latencies of several settings
    unless told to `mix` them, MACs of other sizes. Raises `UserError` for scores that do not compare (other validation
    images, protocol or scale), and for an interpolation that is none.
    """
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"unknown interpolation {interpolation!r}; expected one of: {', '.join(INTERPOLATIONS)}")
    _refuse_other_scores(anchor, test)
    notes: list[str] = []
    latencies, settings = _shared_latencies(anchor, test, notes, mix=mix)
    costs = [*latencies, "macs", "params"]
    sizes = (anchor.record.macs_input_size, test.record.macs_input_size)
    if sizes[0] != sizes[1]:
        costs.remove("macs")
        notes.append("no MACs: they were counted for inputs of {}×{} and {}×{}".format(*sizes[0], *sizes[1]))
    rows = [
        bd_row(cost, anchor.points, test.points, protocol=anchor.record.protocol, by=interpolation) for cost in costs
    ]
    volumes, words = _hypervolumes(anchor, test, notes, mix=mix)
    notes += _differences(anchor, test)
    return {
        "anchor": anchor.record.name,
        "test": test.record.name,
        "protocol": anchor.record.protocol,
        "interpolation": interpolation,
        "rows": rows,
        "hypervolumes": volumes,
        "hypervolume_reference": words,
        "latency_settings": settings,
        "notes": notes,
    }


def against_curve(study: Study, name: BaselineName) -> dict[str, Any]:
    """Return the averages of a study's front against the front of a baseline's points, or the `reason` for none."""
    owner = study.baseline(name)
    points = [Point(owner.record, measured) for measured in owner.record.points] if owner else []
    if owner is None:
        return {"rows": [], "reason": f"no {name} baseline was trained in this study"}
    if len(points) < 2:
        reason = f"{owner.record.label} is one point, and an average takes a curve of two at least"
        return {"rows": [], "reason": reason}
    costs = ("latency_ms", "macs", "params")
    rows = [bd_row(cost, points, study.points, protocol=study.record.protocol) for cost in costs]
    return {"rows": rows, "reason": None}


def bd_row(
    metric: str, anchor: Iterable[Point], test: Iterable[Point], *, protocol: str, by: str = "pchip"
) -> dict[str, Any]:
    """Return Bjøntegaard's averages of the fronts of two sets of points in PSNR and a cost, with their ranges.

    `bd_psnr_db` is the average of test − anchor at equal cost, within `cost_overlap`; `bd_cost_percent` that of
    test / anchor − 1 at equal PSNR, in percent, within `psnr_overlap_db`. The shares are those of the ranges in what
    both curves span together (logarithmic for costs). `bd_psnr_reason`, `bd_cost_reason`: why there is none.
    """
    assert by in INTERPOLATIONS
    interpolation: Interpolation = by
    first, second = (
        [(float(point.measured.value(metric) or 0), point.measured.evaluation.psnr_db) for point in points]
        for points in (cost_curve(anchor, metric), cost_curve(test, metric))
    )
    gained, spent = bd_psnr(first, second, interpolation), bd_cost(first, second, interpolation)
    return {
        "cost": metric,
        "label": metric_label(metric, protocol),
        "quality": metric_label("psnr_db", protocol, unit=False),
        "points": [len(first), len(second)],
        "bd_psnr_db": gained.value,
        "cost_overlap": _listed(gained),
        "cost_overlap_share": gained.share,
        "bd_psnr_reason": gained.reason,
        "bd_cost_percent": None if spent.value is None else 100 * spent.value,
        "psnr_overlap_db": _listed(spent),
        "psnr_overlap_share": spent.share,
        "bd_cost_reason": spent.reason,
    }


def bd_sentence(row: dict[str, Any], test: str, anchor: str) -> str | None:
    """Say a row of `bd_row` in words, with how much of the fronts it is of; None where it holds no average."""
    parts = []
    name = row["label"].partition(" (")[0]
    for value, share, words in (
        (row["bd_psnr_db"], row["cost_overlap_share"], "{:.3f} dB {better} at equal " + name),
        (row["bd_cost_percent"], row["psnr_overlap_share"], name + " {:.1f} % {higher} at equal " + row["quality"]),
    ):
        if value is None:
            continue
        signs = {"better": "better" if value >= 0 else "worse", "higher": "higher" if value >= 0 else "lower"}
        little = ", too little to judge by" if share < LITTLE_OVERLAP else ""
        parts.append(f"{words.format(abs(value), **signs)} (over {100 * share:.0f} % of their range{little})")
    return f"{test} against {anchor}, on average: {'; '.join(parts)}" if parts else None


def _listed(found: Average) -> list[float] | None:
    return None if found.overlap is None else list(found.overlap)


def _shared_latencies(anchor: Study, test: Study, notes: list[str], *, mix: bool) -> tuple[list[str], list[str]]:
    """Return the latencies that compare, as metrics, and their settings; the notes say what does not."""
    costs: list[str] = []
    settings: dict[str, None] = {}
    shared = [device for device in anchor.record.devices if device in test.record.devices]
    for device in shared:
        points = [point for study in (anchor, test) for point in study.points if point.measured.feasible]
        timed = [found for point in points if (found := point.latency(device)) is not None]
        here = dict.fromkeys(found.setting for found in timed)
        if len(here) > 1 and not mix:
            notes.append(f"no latencies on {device}: {'; '.join(here)} do not compare; measure alike, or give --mix")
            continue
        settings |= here
        is_first = device == anchor.record.devices[0] == test.record.devices[0]
        costs.append("latency_ms" if is_first else f"latency_ms/{device}")
        if timed and all(found.ratio is not None for found in timed):
            costs.append(costs[-1].replace("latency_ms", "latency_ratio"))
    if not shared:
        both = " and ".join(", ".join(study.record.devices) or "no device" for study in (anchor, test))
        notes.append(f"no latencies: they were measured on {both}")
    return costs, list(settings)


def _refuse_other_scores(anchor: Study, test: Study) -> None:
    """Raise `UserError` where PSNR of the two studies is not the same measure of the same images."""
    for what, values in (
        ("scales", (f"×{anchor.record.scale}", f"×{test.record.scale}")),
        ("protocols", (anchor.record.protocol, test.record.protocol)),
        ("validation images", (_scored_on(anchor), _scored_on(test))),
    ):
        if values[0] != values[1] and None not in values:
            raise UserError(
                f"{anchor.record.name} and {test.record.name} were scored under other {what}, {values[0]} and "
                f"{values[1]}: their PSNR does not compare; search both with the same"
            )


def _scored_on(study: Study) -> str | None:
    """Return which images a study was scored on: the name and content of the set; None without a point."""
    for point in study.points:
        return f"{point.measured.evaluation.dataset} ({point.measured.evaluation.dataset_hash})"
    return None


def _hypervolumes(anchor: Study, test: Study, notes: list[str], *, mix: bool) -> tuple[list[float] | None, str | None]:
    if anchor.record.objectives != test.record.objectives:
        named = [", ".join(one.metric for one in study.record.objectives) for study in (anchor, test)]
        notes.append(f"no hypervolume: objectives are {named[0]} in one and {named[1]} in the other")
        return None, None
    timed = [
        found
        for objective in anchor.record.objectives
        if objective.metric.startswith("latency")
        for study in (anchor, test)
        for point in study.points
        if (found := point.latency(objective.metric.partition("/")[2])) is not None
    ]
    settings = {latency.setting for latency in timed}
    if len(settings) > 1 and not mix:
        notes.append(f"no hypervolume: latencies were measured under different settings: {'; '.join(sorted(settings))}")
        return None, None
    volumes, words = joint_hypervolumes((anchor, test))
    return list(volumes), words


def _differences(anchor: Study, test: Study) -> list[str]:
    """Say how the networks of the two were trained otherwise, and what is not converged."""
    notes = []
    recipes = [study.record.training.model_dump(exclude={"seed"}) for study in (anchor, test)]
    if recipes[0] != recipes[1]:
        steps = [f"{study.record.training.steps:,}" for study in (anchor, test)]
        other = f" ({steps[0]} and {steps[1]} steps)" if steps[0] != steps[1] else ""
        notes.append(f"networks were trained otherwise{other}: what differs are not architectures alone")
    if anchor.record.data.train != test.record.data.train:
        notes.append(f"trained on other images: {anchor.record.data.train} and {test.record.data.train}")
    for study in (anchor, test):
        notes += [f"{study.record.name}: {study.convergence_note}"] if study.convergence_note else []
        notes += [f"{study.record.name}: {study.seam_note}"] if study.seam_note else []
    return notes

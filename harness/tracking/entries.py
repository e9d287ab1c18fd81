"""What a record becomes in MLflow: tags, parameters and metrics, as plain dicts and lists within MLflow's limits.

Names may hold letters, digits and `_ - . : / space` only; other characters become `_`.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from harness.core.configs import RoutingConfig
from harness.core.records import (
    LatencyRecord,
    PointRecord,
    ProfileRecord,
    QuantisedFile,
    StageRecord,
    StudyRecord,
    TrialRecord,
    TrialState,
)
from harness.metrics import metric_label

LONGEST_PARAMETER = 6000
LONGEST_TAG = 5000
LONGEST_NAME = 250
MOST_CURVE_POINTS = 50  # of each curve: they are most of what a record costs a store; its artifact has all of them

# How a run ended, in MLflow's words. A rejected or stopped trial was ended on purpose, a failed one was not.
RUN_STATUS: dict[TrialState, str] = {
    "complete": "FINISHED",
    "answered": "FINISHED",
    "rejected": "KILLED",
    "stopped": "KILLED",
    "failed": "FAILED",
}


class MetricEntry(NamedTuple):
    """One value of a metric."""

    name: str
    value: float
    step: int


def record_name(record: TrialRecord) -> str:
    """Return the run's name, such as 'trial 3: C24 groups 1-1 M16'."""
    return record.label if record.number is None else f"trial {record.number}: {record.label}"


def record_tags(record: TrialRecord) -> dict[str, str]:
    """Return the tags of a record's run: identity, kind, state, reason, revision."""
    tags = {
        "harness.record_id": record.record_id,
        "harness.kind": record.kind,
        "harness.state": record.state,
        "harness.reason": record.reason,
        "harness.number": None if record.number is None else str(record.number),
        "harness.label": record.label,
        "harness.network_id": record.network_id,
        "harness.answered_by": record.answered_by,
        "mlflow.source.git.commit": (record.environment.git_revision or "").removesuffix("+dirty") or None,
    }
    return {name: value[:LONGEST_TAG] for name, value in tags.items() if value}


def study_tags(study: StudyRecord) -> dict[str, str]:
    """Return the tags that tell a study's parent run from those of others of the same name."""
    return {
        "harness.kind": "study",
        "harness.study": study.name[:LONGEST_TAG],
        "harness.study_created_at": study.created_at,
    }


def study_note(study: StudyRecord) -> str:
    """Return the description of a study's parent run: what the scores are, whose metrics have the same keys always."""
    psnr, ssim = (metric_label(name, study.protocol) for name in ("psnr_db", "ssim"))
    return f"psnr_db is {psnr}, ssim is {ssim}: protocol {study.protocol}, ×{study.scale}"


def record_params(record: TrialRecord) -> dict[str, str]:
    """Return the settings of network, training, data and suggestion, flattened: `model.routing.gamma` and so on."""
    return _flatten(
        {
            "model": record.model.model_dump(mode="json"),
            "training": record.training.model_dump(mode="json") if record.training else {},
            "data": record.data.model_dump(mode="json"),
            "suggestion": record.suggestion,
            **({"compression": record.compression.config.model_dump(mode="json")} if record.compression else {}),
        }
    )


def stage_metrics(stage: StageRecord) -> list[MetricEntry]:
    """Return what was measured of a network after one stage of its compression."""
    values: list[tuple[str, float | None]] = [
        (name, getattr(stage, name))
        for name in ("psnr_db", "ssim", "crops_psnr_db", "macs", "params", "cost", "target", "estimate", "seconds")
    ]
    values += [(f"width/{kind}", count) for kind, count in stage.widths.items()]
    for latency in stage.latency:
        values += [(f"{name}/{latency.short_conditions}", value) for name, value in _latency_values(latency)]
    return [MetricEntry(_clean(name), float(value), 0) for name, value in values if value is not None]


def study_params(study: StudyRecord) -> dict[str, str]:
    """Return what a study was run with, without the text of its space, which is an artifact."""
    return _flatten(study.model_dump(mode="json", exclude={"space", "schema_version"}))


def record_metrics(record: TrialRecord) -> list[MetricEntry]:
    """Return every measured value: curves with their steps, each point under its routing, counts and times.

    Of a curve there are at most `MOST_CURVE_POINTS`, evenly spread, its first and last among them. Scores at rungs,
    named like those of points (`rung/psnr_db`), stand at the rung's step, or at its images where it is scoring that
    grows.

    A point's metrics are named like `psnr_db/fixed/gamma_0.50` and `latency_ms/cpu:1/fixed/gamma_0.50`, for a schedule
    with the mean of its γ_b, `psnr_db/schedule/share_0.25`, so that networks can be laid side by side; those of a
    quantised file like `psnr_db/fixed/gamma_0.50/minmax-onnxruntime`. The point that the trial suggested (of its file,
    where it is quantised), and a baseline's only point, have the plain names too (`psnr_db`, `latency_ms/cpu:1`), so
    that runs can be laid side by side. Latencies are named by the study's conditions, which those of a file are
    compared under. Values that are not finite are left out; the record artifact has them.
    """
    values: list[tuple[str, float | None, int]] = []
    if record.training_result:
        result = record.training_result
        for curve, points in result.curves.items():
            pairs = list(zip(result.curve_steps, points, strict=False))
            values += [(f"training/{curve}", value, step) for step, value in _thinned(pairs)]
        for name in ("steps", "seconds", "images_per_second", "loader_images_per_second"):
            values.append((f"training/{name}", getattr(result, name), 0))
    if record.untrained:
        values += [("untrained/psnr_db", record.untrained.psnr_db, 0), ("untrained/ssim", record.untrained.ssim, 0)]
    if record.macs_check:
        values += [(f"macs_by_counter/{name}", count, 0) for name, count in record.macs_check.by_counter.items()]
        values.append(("macs_max_disagreement", record.macs_check.max_disagreement, 0))
        values.append(("macs", record.macs_check.macs, 0))
    values.append(("params", record.params, 0))
    values += [(f"seconds/{phase}", seconds, 0) for phase, seconds in record.seconds.items()]
    suggested = getattr(record.model, "routing", None)
    for rung in record.rungs:
        at = record.rung_place(rung)
        values.append(("rung/place", rung.place, at))
        for scored in rung.points:
            for ending in _endings(scored.routing, suggested):
                values += [(f"rung/psnr_db{ending}", scored.psnr_db, at), (f"rung/ssim{ending}", scored.ssim, at)]
    for point in record.points:
        is_told = point in record.produced
        for ending in _endings(point.routing, suggested, point.quantised, is_told=is_told):
            values += [(f"{name}{ending}", value, 0) for name, value in _point_values(point)]
    # The last value of a name and step counts: a point's own MACs after those of the check before training.
    latest = {(_clean(name), step): float(value) for name, value, step in values if value is not None}
    return [MetricEntry(name, value, step) for (name, step), value in latest.items() if math.isfinite(value)]


def profile_params(record: ProfileRecord) -> dict[str, str]:
    """Return a profile's network, weights, protocol and device, flattened."""
    first = record.rows[0]
    return _flatten(
        {
            "target": record.target,
            "weights": record.weights,
            "model": record.model,
            "protocol": first.protocol,
            "reference": first.reference,
            "device": first.fingerprint.model_dump(mode="json") if first.fingerprint else {"device": first.device},
        }
    )


def profile_metrics(record: ProfileRecord) -> list[MetricEntry]:
    """Return a profile's counts, and what was measured under each row's conditions: `latency_ms/cpu:1/eager/…`."""
    values: list[tuple[str, float | None]] = [
        (name, getattr(record, name)) for name in ("params", "macs", "activations", "ntire_2024_score")
    ]
    for row in record.rows:
        values += [(f"{name}/{row.conditions}", value) for name, value in _latency_values(row)]
        values.append((f"peak_memory_bytes/{row.conditions}", row.peak_memory_bytes))
    return [MetricEntry(_clean(name), float(value), 0) for name, value in values if value is not None]


def milliseconds(time: str) -> int:
    """Return an ISO 8601 time as milliseconds since 1970."""
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def _thinned(pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    finite = [pair for pair in pairs if math.isfinite(pair[1])]
    if len(finite) <= MOST_CURVE_POINTS:
        return finite
    last = len(finite) - 1
    return [finite[round(last * index / (MOST_CURVE_POINTS - 1))] for index in range(MOST_CURVE_POINTS)]


def _endings(
    routing: RoutingConfig | None,
    suggested: RoutingConfig | None,
    quantised: QuantisedFile | None = None,
    *,
    is_told: bool = True,
) -> list[str]:
    """Return what the names of a point's values end in: routing and file; nothing for the one that was suggested."""
    parts = [_routing_name(routing)] if routing else []
    parts += [f"{quantised.method}-{quantised.runtime}"] if quantised else [] if is_told or routing else ["float"]
    return [*([f"/{'/'.join(parts)}"] if parts else []), *([""] if routing == suggested and is_told else [])]


def _point_values(point: PointRecord) -> Iterator[tuple[str, float | None]]:
    evaluation = point.evaluation
    yield "psnr_db", evaluation.psnr_db
    yield "ssim", evaluation.ssim
    yield "attention_share", evaluation.attention_share
    yield "evaluation_seconds", evaluation.seconds
    yield "macs", point.macs
    yield "params", point.params
    yield "peak_memory_bytes", point.peak_memory_bytes
    yield "feasible", float(point.feasible)
    if point.quantised is not None:
        yield "file_bytes", point.quantised.file_bytes
        yield "float_file_psnr_db", point.quantised.float_psnr_db
        yield "float_file_latency_ratio", point.quantised.float_ratio
    named: set[str] = set()
    for latency in point.latency:
        whole = latency.stands_for
        short = whole._replace(input_size=None).text
        conditions = short if short not in named else whole.text
        named.add(conditions)
        for name, value in _latency_values(latency):
            yield f"{name}/{conditions}", value
    for text, violation in point.constraints.items():
        yield f"violation/{text}", violation


def _latency_values(latency: LatencyRecord) -> Iterator[tuple[str, float | None]]:
    yield "latency_ms", latency.median
    yield "latency_iqr_ms", latency.iqr
    yield "latency_p90_ms", latency.p90
    yield "latency_ratio", latency.ratio
    yield "latency_reference_ms", latency.reference_median


def _routing_name(routing: RoutingConfig) -> str:
    if routing.policy == "threshold":
        return "threshold"
    if routing.schedule is not None:
        return f"{routing.policy}/share_{_short(round(sum(routing.schedule) / len(routing.schedule), 9))}"
    return f"{routing.policy}/gamma_{_short(routing.gamma)}"


def _short(value: float) -> str:
    return f"{value:.2f}" if float(f"{value:.2f}") == value else repr(value)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat[_clean(f"{prefix}{name}")] = text[:LONGEST_PARAMETER]
    return flat


def _clean(name: str) -> str:
    """Make a name that MLflow takes: its characters, no empty or dotted path parts, not too long."""
    parts = [part for part in re.sub(r"[^\w\-. :/]", "_", name).split("/") if part.strip(". ")]
    return "/".join(parts)[:LONGEST_NAME] or "_"

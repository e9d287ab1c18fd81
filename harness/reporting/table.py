"""The table of all points: one row each, every measured value in a column with its unit in the name."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.files import atomic_path
from harness.reporting.front import Front, study_front
from harness.reporting.study import Point, Study

if TYPE_CHECKING:
    import pandas as pd

# What every report shows of a point, of the row that `point_row` makes.
POINT_FIELDS = (
    "config_id",
    "trial",
    "label",
    "gamma",
    "routing",
    "attention_share",
    "psnr_db",
    "ssim",
    "macs",
    "params",
    "quantised",
    "latency_ms_median",
    "latency_ratio",
    "protocol",
    "seam_factor",
)


def point_row(study: Study, point: Point, front: Front | None = None) -> dict[str, Any]:
    """Return one point as a flat row; None where something was not measured. Times in ms, bytes, seconds, dB.

    `macs` and latencies are of plain images; a panorama costs `seam_factor` times as much, for what continues it.
    `quantised` says what the point's file stores and what runs it (None: it is the network in float), `file_bytes` its
    size. `latency_*` columns are the study's first device; further devices follow as `latency_ms_median/<device>` etc.
    `steps` and `training_seconds` are 0 for what is not trained. With `front`, `on_front` and `knee` are filled.
    """
    record, measured = point.record, point.measured
    routing, evaluation, result = measured.routing, measured.evaluation, record.training_result
    on_front = front is not None and front.holds(point)
    row: dict[str, Any] = {
        "record_id": record.record_id,
        "trial": record.number,
        "kind": record.kind,
        "label": record.label,
        "config_id": record.network_id,
        "point_id": point.point_id,
        "gamma": None if routing is None or routing.policy in ("threshold", "schedule") else routing.gamma,
        "routing": routing.policy if routing else None,
        "attention_share": evaluation.attention_share,
        "protocol": evaluation.protocol,
        "dataset": evaluation.dataset,
        "psnr_db": evaluation.psnr_db,
        "ssim": evaluation.ssim,
        "macs": measured.macs,
        "params": measured.params,
        "seam_factor": evaluation.seam_factor,
        "quantised": None if measured.quantised is None else measured.quantised.label,
        "file_bytes": None if measured.quantised is None else measured.quantised.file_bytes,
    }
    for index, device in enumerate(study.record.devices or ("",)):
        latency = point.latency(device or None)
        suffix = "" if index == 0 else f"/{device}"
        row[f"latency_ms_median{suffix}"] = latency.median if latency else None
        row[f"latency_ms_iqr{suffix}"] = latency.iqr if latency else None
        row[f"latency_ratio{suffix}"] = latency.ratio if latency else None
    trained = record.training is not None
    row |= {
        "peak_memory_bytes": measured.peak_memory_bytes,
        "feasible": measured.feasible,
        "violated": "; ".join(text for text, value in measured.constraints.items() if value > 0) or None,
        "on_front": on_front,
        "knee": front is not None and front.knee is not None and (front.knee is point or front.knee == point),
        "steps": record.training.steps if record.training else 0,
        "training_seconds": result.seconds if result else (None if trained else 0.0),
        "converged": record.training.is_full_recipe if record.training else None,
    }
    return {name: _finite(value) for name, value in row.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def points_table(study: Study, front: Front | None = None) -> "pd.DataFrame":
    """Return one row per distinct point of the trials, then one per baseline; columns as `point_row` names them."""
    front = front or study_front(study)
    baselines = [Point(record, record.points[0]) for record in study.baselines if record.points]
    return _table(study, [*study.points, *baselines], front)


def front_table(study: Study, front: Front | None = None) -> "pd.DataFrame":
    """Return the rows of the front only, best in the first objective first."""
    front = front or study_front(study)
    return _table(study, front.points, front)


def write_csv(table: "pd.DataFrame", path: Path) -> None:
    """Write a table as CSV (UTF-8) in one step; what was not measured is an empty cell."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def _table(study: Study, points: Iterable[Point], front: Front) -> "pd.DataFrame":
    rows = [point_row(study, point, front) for point in points]
    import pandas as pd

    table = pd.DataFrame(rows, columns=None if rows else _columns(study), dtype=object)
    whole = [name for name in ("trial", "macs", "params", "file_bytes", "peak_memory_bytes", "steps") if name in table]
    return table.infer_objects().astype(dict.fromkeys(whole, "Int64"))


def _columns(study: Study) -> list[str]:
    further = [f"/{device}" for device in study.record.devices[1:]]
    names = ["record_id", "trial", "kind", "label", "config_id", "point_id", "gamma", "routing", "attention_share"]
    names += ["protocol", "dataset", "psnr_db", "ssim", "macs", "params", "seam_factor"]
    names += ["quantised", "file_bytes"]
    for suffix in ("", *further):
        names += [f"latency_ms_median{suffix}", f"latency_ms_iqr{suffix}", f"latency_ratio{suffix}"]
    return [
        *names,
        "peak_memory_bytes",
        "feasible",
        "violated",
        "on_front",
        "knee",
        "steps",
        "training_seconds",
        "converged",
    ]

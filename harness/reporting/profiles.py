"""The records that `harness profile` leaves in a folder, one file each, as rows of one table."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.core.conditions import parse_conditions
from harness.core.errors import UserError, describe_validation_error
from harness.core.records import LatencyRecord, ProfileRecord, find_latency
from harness.reporting.study import latency_settings


def load_profiles(folder: Path) -> list[ProfileRecord]:
    """Read all records of a folder, oldest first; `UserError` where there are none, or a file is no such record."""
    paths = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"no profiles in {folder}; run `harness profile` first, or name their place with --results")
    return [_read(path) for path in paths]


def compare_profiles(
    profiles: Iterable[ProfileRecord], *, conditions: str | None = None, mix: bool = False
) -> dict[str, Any]:
    """Return every latency of the records as a row of one JSON-able table.

    `conditions`, such as `cpu:1/fp32/64x64`: those rows alone, of batch 1 and inference unless they say `batch4` or
    `training`. Raises `UserError` where none is left, and, unless told to `mix`, where their protocols, devices or
    conditions differ.
    """
    meets = _filter(conditions) if conditions is not None else lambda latency: True
    found = [(profile, latency) for profile in profiles for latency in profile.rows if meets(latency)]
    if not found:
        raise UserError(f"no profile was measured under {conditions!r}; `harness compare --profiles --mix` shows all")
    settings = latency_settings([latency for _, latency in found], mix=mix)
    return {"latency_settings": settings, "rows": [_row(profile, latency) for profile, latency in found]}


def _filter(conditions: str) -> Callable[[LatencyRecord], bool]:
    """Read conditions, with a batch and a mode where they have them; `UserError` for what is none."""
    parts = conditions.split("/")
    batches = [part for part in parts if re.fullmatch(r"batch[1-9]\d*", part)]
    modes = [part for part in parts if part in ("training", "inference")]
    wanted = parse_conditions("/".join(part for part in parts if part not in (*batches, *modes))).text
    batch = int(batches[0].removeprefix("batch")) if batches else 1
    mode = modes[0] if modes else "inference"

    def meets(latency: LatencyRecord) -> bool:
        return (latency.batch_size, latency.mode) == (batch, mode) and find_latency([latency], wanted) is not None

    return meets


def _row(profile: ProfileRecord, latency: LatencyRecord) -> dict[str, Any]:
    return {
        "label": profile.label,
        "target": profile.target,
        "weights": profile.weights,
        "routing": (profile.model or {}).get("routing"),
        "params": profile.params,
        "conditions": latency.conditions,
        "setting": latency.setting,
        "latency_ms_median": latency.median,
        "latency_ms_interval": latency.interval,
        "latency_ratio": latency.ratio,
        "latency_ratio_interval": latency.ratio_interval,
        "reference": latency.reference,
        "peak_memory_bytes": latency.peak_memory_bytes,
        "attention_share": latency.attention_share,
        "is_noisy": latency.is_noisy,
        "measured_at": latency.measured_at,
    }


def _read(path: Path) -> ProfileRecord:
    try:
        return ProfileRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        found = describe_validation_error(error)
        raise UserError(f"{path}: not a ProfileRecord of this version: {found}") from None

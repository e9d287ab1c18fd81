"""How far a run of one network has come: of `harness train` or `harness compress`, in a folder of its own."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from harness.core.checkpoints import Listed
from harness.core.records import StageRecord, TrialRecord
from harness.core.study_folder import StudyFolder

_STAGES = TypeAdapter(tuple[StageRecord, ...])
_BUNDLE, _PLAN = "bundle", "plan.json"


@dataclass(frozen=True)
class Run:
    """What a run has left: its record, where it is over, the stages of a compression, and checkpoints.

    `bundle` is where its bundle lies, None before it is there; `observed_at` when all of this was read.
    """

    name: str
    kind: Literal["train", "compress"]
    record: TrialRecord | None
    stages: tuple[StageRecord, ...]
    checkpoints: tuple[Listed, ...]
    bundle: Path | None
    observed_at: datetime

    @property
    def state(self) -> str:
        """How it ended, `unfinished` before it has."""
        return "unfinished" if self.record is None else self.record.state

    def seconds_since(self, moment: float) -> float:
        """Return how long ago a moment (seconds since 1970) was when the run was read."""
        return max(0.0, self.observed_at.timestamp() - moment)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run rather than of a study."""
    source = StudyFolder(folder)
    if source.study_file.exists() or source.database.exists():
        return False
    left = [folder / _PLAN, *folder.glob("trials/*.json"), *folder.glob("networks/*/*")]
    return any(path.is_file() for path in left)


def observe_run(folder: Path) -> Run:
    """Read how far a run has come; nothing is written. `UserError` where its record is none of this version."""
    source = StudyFolder(folder)
    record = next(source.read_trials(), None)
    if record is not None and record.compression is not None:
        stages = record.compression.stages
    else:
        files = sorted(folder.glob("networks/*/compression.safetensors"), key=lambda file: file.stat().st_mtime)
        stages = _read_stages(files[-1]) if files else ()
    is_compression = (folder / _PLAN).exists() or bool(stages)
    bundle = folder / _BUNDLE
    return Run(
        name=folder.resolve().name,
        kind="compress" if is_compression else "train",
        record=record,
        stages=stages,
        checkpoints=tuple(sorted(source.checkpoints.find(), key=lambda entry: -(entry.changed or 0.0))),
        bundle=bundle if (bundle / "config.json").is_file() else None,
        observed_at=datetime.now(UTC),
    )


def _read_stages(file: Path) -> tuple[StageRecord, ...]:
    """Return the stages that a compression has come to, from the head of its last one's file; none if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as kept:
            return _STAGES.validate_json(kept.metadata()["stages"])
    except (OSError, SafetensorError, KeyError, TypeError, ValidationError):
        return ()


def run_document(run: Run) -> dict[str, Any]:
    """Return a run as a dict that is valid JSON."""
    record = run.record
    return {
        "run": run.name,
        "kind": run.kind,
        "state": run.state,
        "reason": None if record is None else record.reason,
        "label": None if record is None else record.label,
        "finished_at": None if record is None else record.finished_at,
        "stages": [json.loads(stage.model_dump_json(exclude={"latency"})) for stage in run.stages],
        "checkpoints": [
            {
                "network_id": entry.network_id,
                "size_bytes": entry.size_bytes,
                "seconds_old": None if entry.changed is None else run.seconds_since(entry.changed),
            }
            for entry in run.checkpoints
        ],
        "bundle": None if run.bundle is None else str(run.bundle),
        "observed_at": run.observed_at.isoformat(timespec="seconds"),
    }

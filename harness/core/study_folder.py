"""The folder that a study leaves: `results/<study>/`.

study.json              the StudyRecord
study.db                the Optuna database (embedded default)
folder.token            a number that storage and folder share, so that workers elsewhere know the folder
trials/<record_id>.json one TrialRecord each, written in one step when the trial ends
networks/<network_id>/  weights.safetensors; checkpoint.pt (unless checkpoints are kept elsewhere) and rungs.json
                        while it trains; training.json and training.lock of one that others are made of,
                        compression.safetensors while it is compressed; quantised/ of one that is quantised,
                        quantised-ROUTING/ under its further routings
report/                 front.csv, front.png, report.html
bundles/                exported networks

Records are the source of truth: every table, plot and tracking run can be made again from them.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from harness.core.checkpoints import Checkpoint, Folder, GivenPlace, Place
from harness.core.configs import FrozenConfig
from harness.core.errors import UserError, describe_validation_error
from harness.core.files import write_text
from harness.core.records import PointRecord, StudyRecord, TrialRecord

RecordT = TypeVar("RecordT", bound=FrozenConfig)
KnownTrials = dict[Path, tuple[int, TrialRecord]]  # by file: when it was changed, and what is in it


class StudyFolder:
    """Paths, reading and writing of one study's folder. Several processes may read while one writes.

    `place` is where its checkpoints are kept, where that is elsewhere.
    """

    def __init__(self, path: Path, place: GivenPlace | None = None):
        self.path = path
        self.place = place

    @property
    def study_file(self) -> Path:
        """The StudyRecord's file."""
        return self.path / "study.json"

    @property
    def database(self) -> Path:
        """The embedded Optuna database."""
        return self.path / "study.db"

    @property
    def token_file(self) -> Path:
        """What the study's storage knows this folder by."""
        return self.path / "folder.token"

    @property
    def search_lock(self) -> Path:
        """The file that a search holds the lock of while it runs."""
        return self.path / "search.lock"

    @property
    def worker_lock(self) -> Path:
        """The file that workers of no search here (`harness worker`) share the lock of while they work."""
        return self.path / "worker.lock"

    @property
    def report_dir(self) -> Path:
        """Where reports are written."""
        return self.path / "report"

    @property
    def bundles_dir(self) -> Path:
        """Where bundles are exported to."""
        return self.path / "bundles"

    def network_dir(self, network_id: str) -> Path:
        """Return the folder of one trained network."""
        return self.path / "networks" / network_id

    def weights_file(self, network_id: str) -> Path:
        """Return the file of a trained network's (EMA) weights."""
        return self.network_dir(network_id) / "weights.safetensors"

    def training_file(self, network_id: str) -> Path:
        """Return the file of how a network was trained, of one that others are made of."""
        return self.network_dir(network_id) / "training.json"

    def training_lock(self, network_id: str) -> Path:
        """Return the file that a worker holds the lock of while it trains a network that others may wait for."""
        return self.network_dir(network_id) / "training.lock"

    def stage_file(self, network_id: str) -> Path:
        """Return the file of the last stage of a network's compression."""
        return self.network_dir(network_id) / "compression.safetensors"

    def quantised_file(self, record: TrialRecord, point: PointRecord | None = None) -> Path | None:
        """Return the ONNX file of a quantised point, or of a record's first; None where it is not quantised.

        Its QuantisationRecord lies beside it, as quantisation.json.
        """
        files = [one.quantised.file for one in ([point] if point else record.points) if one.quantised is not None]
        if not files and point is None and record.compression is not None:  # of an earlier version
            files = [stage.file for stage in record.compression.stages if stage.file is not None]
        return self.network_dir(record.network_id) / files[0] if files else None

    @property
    def checkpoints(self) -> Place:
        """Where checkpoints are kept."""
        return self.place or Folder(self.path / "networks", "/checkpoint.pt")

    def checkpoint(self, network_id: str) -> Checkpoint:
        """Return what a network's training goes on from."""
        return self.checkpoints.checkpoint(network_id)

    def keep_checkpoints(self, place: GivenPlace, study: str) -> "StudyFolder":
        """Return the same folder, its checkpoints in a folder of this study's own at a place that several may share."""
        token = self.token_file.read_text(encoding="utf-8")
        return StudyFolder(self.path, place.below(f"{study}-{token[:8]}"))

    def checkpoint_file(self, network_id: str) -> Path:
        """Return the file of a network's checkpoint, where it is kept here."""
        return self.network_dir(network_id) / "checkpoint.pt"

    def rungs_file(self, network_id: str) -> Path:
        """Return the file of the rungs that a network has come to."""
        return self.network_dir(network_id) / "rungs.json"

    def traceback_file(self, network_id: str) -> Path:
        """Return the file that says where a failed trial failed."""
        return self.network_dir(network_id) / "traceback.txt"

    def write_study(self, record: StudyRecord) -> None:
        """Write the study's record in one step."""
        write_text(self.study_file, record.model_dump_json(indent=1))

    def read_study(self) -> StudyRecord:
        """Read the study's record; `UserError` where there is none or it cannot be read."""
        if not self.study_file.is_file():
            raise UserError(
                f"no study in {self.path}: {self.study_file.name} not found; run `harness search` first, or give its "
                f"folder's path, or --results (or HARNESS_RESULTS): {self.path.parent.resolve()} was looked in"
            )
        return _read(StudyRecord, self.study_file)

    def write_trial(self, record: TrialRecord) -> None:
        """Write one trial's record in one step."""
        write_text(self._trial_file(record.record_id), record.model_dump_json(indent=1))

    def read_trial(self, record_id: str) -> TrialRecord:
        """Read one trial's record; `UserError` where the file is none of this version."""
        return _read(TrialRecord, self._trial_file(record_id))

    def read_trials(self, known: KnownTrials | None = None, *, but: Collection[str] = ()) -> Iterator[TrialRecord]:
        """Read all trial records, in the order of their ids, but those whose ids are in `but`.

        `known` is kept by who reads again and again: what was read before, so that only new files are read.
        """
        known = {} if known is None else known
        for name in sorted(self._new_files(but)):
            path = self.path / "trials" / name
            changed = path.stat().st_mtime_ns
            if path not in known or known[path][0] != changed:
                known[path] = (changed, _read(TrialRecord, path))
            yield known[path][1]

    def _new_files(self, but: Collection[str]) -> list[str]:
        """Return the names of trial records: as plain text, because a search looks for new ones again and again."""
        try:
            with os.scandir(self.path / "trials") as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return []
        return [name for name in names if name[-5:] == ".json" and name[0] != "." and name[:-5] not in but]

    def _trial_file(self, record_id: str) -> Path:
        return self.path / "trials" / f"{record_id}.json"


def _read(record_type: type[RecordT], path: Path) -> RecordT:
    try:
        return record_type.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path}: not a {record_type.__name__} of this version: {describe_validation_error(error)}; "
            "delete it where it is damaged, and a search goes on without it"
        ) from None

"""Records to MLflow: one experiment per study, a parent run, a child run per record.

Tracking never fails a trial: an error is retried a few times and warned about once, and whatever is missing is logged
by a later `sync` from the study's folder, which stays the source of truth.

Thread- and crash-safety: a fresh database store must be initialised once, in the parent process, before others use it
(`initialise_store`). A tracker belongs to one process. Runs carry the record's id as a tag, and a second tag once they
are whole, so logging twice adds nothing and a run that was half logged before a crash is completed. Values are logged
with the record's own time, so that completing a run repeats no value.

A record costs a few calls: its run with all tags, its files, its end, and one batch for its parameters, values and the
tag that says that it is whole (a store writes the tags of a batch last). While a database is written to, nothing is
measured on this machine, because the writing takes a core.
"""

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.device_lock import computing
from harness.core.records import ProfileRecord, StudyRecord, TrialRecord
from harness.core.study_folder import StudyFolder
from harness.tracking.entries import (
    RUN_STATUS,
    MetricEntry,
    milliseconds,
    profile_metrics,
    profile_params,
    record_metrics,
    record_name,
    record_params,
    record_tags,
    stage_metrics,
    study_note,
    study_params,
    study_tags,
)
from harness.tracking.store import (
    Attempts,
    Warn,
    connect,
    find_experiment,
    find_or_create_run,
    is_database,
    probe,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_GOES_ON = (
    "the study goes on without it, its records are complete in its folder, and what is missing is logged when the "
    "store is back"
)
PROFILES = "profiles"  # the experiment of `harness profile`
_ENTRIES_PER_BATCH = 1000  # metrics, parameters and tags together
_PARAMS_PER_BATCH = 100
_RUNS_PER_PAGE = 200  # a second's work of a database


def initialise_store(tracking_uri: str, warn: Warn) -> bool:
    """Create the tables of a fresh database store; call it once, in the parent process, before any worker starts.

    Returns whether the store answers; if not, it has been warned about. `UserError` for a kind of store that MLflow
    does not have, or that it no longer writes to (plain folders).
    """
    attempts = Attempts(tracking_uri, warn, _GOES_ON)
    return attempts.make(lambda: connect(tracking_uri).search_experiments(max_results=1))


class MlflowTracker:
    """Logs the records of one study; no method raises because of the store.

    `artifact_root` is the folder for artifacts of a database store; None leaves the place to the server. `warn` gets
    one line when tracking fails for the first time. `UserError` for an address that cannot be a store.
    """

    def __init__(self, tracking_uri: str, study: StudyRecord, *, artifact_root: Path | None, warn: Warn):
        self._uri = tracking_uri
        self._study = study
        self._artifact_root = artifact_root
        self._attempts = Attempts(tracking_uri, warn, _GOES_ON)
        self._opened: tuple[MlflowClient, str, str] | None = None  # client, experiment id, parent run id
        self._is_new = False  # whether the store knew nothing of the study: then no run of a record need be looked for
        self._begun: set[str] = set()  # records that this tracker may have made a run for
        self._whole: set[str] = set()  # records that the store is known to have whole

    def start(self) -> bool:
        """Create the experiment and the parent run, or find them, and mark the study as running."""
        return self._attempts.make(self._start)

    def log_record(self, record: TrialRecord) -> bool:
        """Log one record as a child run; False when the store failed, so that a later `sync` has to do it."""
        is_logged = self._attempts.make(lambda: self._log_record(record))
        (self._whole.add if is_logged else self._whole.discard)(record.record_id)
        return is_logged

    def log_front(
        self,
        front_csv: Path,
        front_png: Path,
        report_html: Path,
        table: Sequence[Mapping[str, Any]],
        metrics: Mapping[str, float],
    ) -> bool:
        """Put the front on the parent run: the three files, `table` as MLflow's table front.json, and `metrics`."""
        files = (front_csv, front_png, report_html)
        return self._attempts.make(lambda: self._log_front(files, table, metrics))

    def sync(self, study_folder: StudyFolder) -> int:
        """Log every record of the folder that the store does not have whole; return how many are still missing.

        What this tracker logged, or found whole in an earlier `sync`, is not looked at again.
        """
        records = study_folder.read_trials(but=self._whole)
        first = next(records, None)
        if first is None:
            return 0
        whole: dict[str, str] = {}
        if not self._attempts.make(lambda: whole.update(self._whole_records())):
            return 1 + sum(1 for _ in records)
        missing = 0
        for record in itertools.chain((first,), records):
            if whole.get(record.record_id) == record.config_hash():
                self._whole.add(record.record_id)
            else:
                missing += not self.log_record(record)
        return missing

    def finish(self, *, interrupted: bool = False) -> bool:
        """Mark the parent run as finished, or as killed when the search was interrupted."""
        return self._attempts.make(lambda: self._finish("KILLED" if interrupted else "FINISHED"))

    def _start(self) -> None:
        client, _, parent = self._open()
        client.update_run(parent, status="RUNNING")

    def _finish(self, status: str) -> None:
        client, _, parent = self._open()
        client.set_terminated(parent, status=status)

    def _open(self) -> "tuple[MlflowClient, str, str]":
        if self._opened is not None:
            if self._attempts.failing:
                probe(self._uri)
            return self._opened
        client = connect(self._uri)
        experiment = find_experiment(client, self._study.name, self._artifact_root)
        created = milliseconds(self._study.created_at)
        parent = find_or_create_run(client, experiment, study_tags(self._study), self._study.name, created)
        run_id = str(parent.info.run_id)
        self._is_new = "harness.complete" not in parent.data.tags
        if self._is_new:
            _log_batches(client, run_id, (), created, study_params(self._study))
            client.log_text(run_id, self._study.model_dump_json(indent=1), "study.json")
            client.log_text(run_id, self._study.space, "space.yaml")
            client.set_tag(run_id, "mlflow.note.content", study_note(self._study))
            client.set_tag(run_id, "harness.complete", self._study.config_hash())
        self._opened = client, experiment, run_id
        return self._opened

    def _log_record(self, record: TrialRecord) -> None:
        client, experiment, parent = self._open()
        with self._writing():
            identity = {"mlflow.parentRunId": parent, "harness.record_id": record.record_id}
            content, name, started = record.config_hash(), record_name(record), milliseconds(record.started_at)
            tags = {"harness.content": content, **record_tags(record)}
            is_new = self._is_new and record.record_id not in self._begun
            self._begun.add(record.record_id)
            run = find_or_create_run(client, experiment, identity, name, started, tags, is_new=is_new)
            if run.data.tags.get("harness.complete") == content:
                return
            if run.data.tags.get("harness.content", content) != content:  # another record: its parameters would clash
                client.delete_run(run.info.run_id)
                run = find_or_create_run(client, experiment, identity, name, started, tags)
            run_id, finished = str(run.info.run_id), milliseconds(record.finished_at)
            config = record.model_dump(mode="json", include={"model", "training", "data"})
            files = {
                "record.json": record.model_dump_json(indent=1),
                "config.json": json.dumps(config, indent=1, ensure_ascii=False),
            }
            _log_texts(client, run_id, files)
            client.set_terminated(run_id, status=RUN_STATUS[record.state], end_time=finished)
            known = run.data.tags  # a new run has them all
            whole = {name: value for name, value in tags.items() if known.get(name) != value}
            whole["harness.complete"] = content
            for stage in () if record.compression is None else record.compression.stages:
                named = {"mlflow.parentRunId": run_id, "harness.stage": stage.name}
                child = find_or_create_run(client, experiment, named, f"{name} {stage.name}", started, {})
                _log_batches(client, str(child.info.run_id), stage_metrics(stage), finished)
                client.set_terminated(child.info.run_id, status="FINISHED", end_time=finished)
            _log_batches(client, run_id, record_metrics(record), finished, record_params(record), whole)

    def _writing(self) -> contextlib.AbstractContextManager[object]:
        """Let no measurement begin while a database is at work; a server does its work elsewhere."""
        return computing(announced=False) if is_database(self._uri) else contextlib.nullcontext()

    def _log_front(
        self, files: Iterable[Path], table: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]
    ) -> None:
        client, _, parent = self._open()
        for file in files:
            client.log_artifact(parent, str(file))
        # Not `log_table`: it appends to an artifact that is there already, so a second report would double the front.
        names = list(table[0]) if table else []
        content = {"columns": names, "data": [[row[name] for name in names] for row in table]}
        client.log_text(parent, json.dumps(content, ensure_ascii=False, allow_nan=False), "front.json")
        client.set_tag(parent, "mlflow.loggedArtifacts", json.dumps([{"path": "front.json", "type": "table"}]))
        values = {"front_size": float(len(table)), **metrics}
        entries = [MetricEntry(name, value, 0) for name, value in values.items()]
        _log_batches(client, parent, entries, round(time.time() * 1000))

    def _whole_records(self) -> dict[str, str]:
        """Return the content hash of every record that the store has whole, by record id."""
        client, experiment, parent = self._open()
        condition = f"tags.`mlflow.parentRunId` = '{parent}'"
        found: dict[str, str] = {}
        token: str | None = None
        while True:
            with self._writing():
                page = client.search_runs([experiment], condition, max_results=_RUNS_PER_PAGE, page_token=token)
            for run in page:
                tags = run.data.tags
                if "harness.record_id" in tags and "harness.complete" in tags:
                    found[tags["harness.record_id"]] = tags["harness.complete"]
            token = page.token
            if not token:
                return found


def log_profile(record: ProfileRecord, tracking_uri: str, *, artifact_root: Path | None, warn: Warn) -> bool:
    """Log a profile as a run of the experiment `profiles`; False, after one warning, where the store fails.

    `artifact_root` is the folder for artifacts of a database store; None leaves the place to the server. `UserError`
    for an address that cannot be a store.
    """

    def log() -> None:
        client = connect(tracking_uri)
        experiment = find_experiment(client, PROFILES, artifact_root)
        measured = milliseconds(record.measured_at)
        content = record.config_hash()
        run = find_or_create_run(client, experiment, {"harness.content": content}, record.label, measured)
        run_id = str(run.info.run_id)
        _log_batches(client, run_id, profile_metrics(record), measured, profile_params(record))
        client.log_text(run_id, record.model_dump_json(indent=1), "record.json")
        client.set_terminated(run_id, status="FINISHED", end_time=measured)

    return Attempts(tracking_uri, warn, "its record is complete in its folder").make(log)


def _log_texts(client: "MlflowClient", run_id: str, files: Mapping[str, str]) -> None:
    """Put small files on a run, by one call."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        client.log_artifacts(run_id, folder)


def _log_batches(
    client: "MlflowClient",
    run_id: str,
    values: Iterable[MetricEntry],
    timestamp_ms: int,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log all of it by as few calls as a store takes; the tags come last of all."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(name, value, timestamp_ms, step) for name, value, step in values]
    entries = [Param(name, value) for name, value in (params or {}).items()]
    room = _ENTRIES_PER_BATCH - len(tags or {})
    while True:
        now_params, entries = entries[:_PARAMS_PER_BATCH], entries[_PARAMS_PER_BATCH:]
        taken = room - len(now_params)
        now_metrics, metrics = metrics[:taken], metrics[taken:]
        is_last = not entries and not metrics
        last = [RunTag(name, value) for name, value in (tags or {}).items()] if is_last else []
        client.log_batch(run_id, metrics=now_metrics, params=now_params, tags=last)
        if is_last:
            return

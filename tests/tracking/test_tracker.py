"""Against real MLflow stores: SQLite read back through the MLflow API, and real servers that come and go."""

import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from harness.core.configs import RoutingConfig
from harness.core.errors import UserError
from harness.core.records import StudyRecord, TrialRecord
from harness.tracking import MlflowTracker, entries, initialise_store
from harness.tracking import store as store_module
from tests.records import (
    bicubic_baseline,
    one_of_each_state,
    point,
    rung,
    search_trials,
    study_record,
    swinir_baseline,
    trial,
    with_rungs,
    write_study,
)


class Store:
    """A SQLite store in a folder, its warnings, and what MLflow's own API reads from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.warnings: list[str] = []

    def tracker(self, study: StudyRecord | None = None) -> MlflowTracker:
        return MlflowTracker(
            self.uri, study or study_record(), artifact_root=self.folder / "artifacts", warn=self.warnings.append
        )

    def runs(self, name: str = "quickstart") -> list[Run]:
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(name)
        return [] if experiment is None else list(client.search_runs([experiment.experiment_id], max_results=1000))

    def parent(self) -> Run:
        (found,) = (run for run in self.runs() if "mlflow.parentRunId" not in run.data.tags)
        return found

    def child(self, record_id: str) -> Run:
        (found,) = (run for run in self.runs() if run.data.tags.get("harness.record_id") == record_id)
        return found

    def artifact(self, run: Run, path: str) -> str:
        return Path(MlflowClient(self.uri).download_artifacts(run.info.run_id, path)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised, empty store; making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("fresh")
    assert initialise_store(f"sqlite:///{folder / 'mlflow.db'}", pytest.fail)
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, fresh_database: Path) -> Store:
    (tmp_path / "mlflow.db").write_bytes(fresh_database.read_bytes())
    return Store(tmp_path)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0, 0.0))


def test_every_state_of_trial_becomes_a_child_run(store: Store) -> None:
    tracker = store.tracker()
    assert tracker.start()
    assert store.parent().info.status == "RUNNING"
    for record in [*one_of_each_state(), swinir_baseline(), bicubic_baseline()]:
        assert tracker.log_record(record)
    assert tracker.finish()
    runs = store.runs()
    parent = store.parent()
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"] == "psnr_db is PSNR (dB), ssim is SSIM: protocol light, ×4"
    assert len(runs) == 8
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} == {None, parent.info.run_id}
    statuses = {run.data.tags.get("harness.state"): run.info.status for run in runs if run is not parent}
    assert statuses == {
        None: "FINISHED",
        "complete": "FINISHED",
        "answered": "FINISHED",
        "rejected": "KILLED",
        "stopped": "KILLED",
        "failed": "FAILED",
    }
    rejected = store.child("trial-00001")
    assert rejected.data.tags["harness.reason"].startswith("macs 41.2 G violates macs <= 30e9")
    assert store.child("baseline-swinir-light").data.tags["harness.kind"] == "baseline"
    assert store.child("baseline-swinir-light").data.params["training.steps"] == "100"
    assert store.warnings == []


def test_values_curves_parameters_and_artifacts_read_back(store: Store) -> None:
    record = search_trials(1, devices=("cpu:1", "cuda:0"))[0]
    assert store.tracker().log_record(record)
    run = store.child(record.record_id)
    metrics = run.data.metrics
    for measured in record.points:
        assert measured.routing is not None
        ending = f"fixed/gamma_{measured.routing.gamma:.2f}"
        assert metrics[f"psnr_db/{ending}"] == measured.evaluation.psnr_db
        assert metrics[f"ssim/{ending}"] == measured.evaluation.ssim
        assert metrics[f"macs/{ending}"] == measured.macs
        assert metrics[f"params/{ending}"] == measured.params
        assert metrics[f"peak_memory_bytes/{ending}"] == measured.peak_memory_bytes
        assert metrics[f"attention_share/{ending}"] == measured.evaluation.attention_share
        for latency in measured.latency:
            assert metrics[f"latency_ms/{latency.device}/{ending}"] == latency.median
            assert metrics[f"latency_iqr_ms/{latency.device}/{ending}"] == latency.iqr
            assert metrics[f"latency_p90_ms/{latency.device}/{ending}"] == latency.p90
            assert metrics[f"latency_ratio/{latency.device}/{ending}"] == latency.ratio
    suggested = next(found for found in record.points if found.routing == record.model.routing)  # type: ignore[union-attr]
    assert metrics["psnr_db"] == suggested.evaluation.psnr_db
    assert metrics["macs"] == suggested.macs
    assert record.training_result is not None
    history = MlflowClient(store.uri).get_metric_history(run.info.run_id, "training/loss")
    assert [(entry.step, entry.value) for entry in sorted(history, key=lambda entry: entry.step)] == list(
        zip(record.training_result.curve_steps, record.training_result.curves["loss"], strict=True)
    )
    assert run.data.params["model.channels"] == str(record.model.channels)  # type: ignore[union-attr]
    assert run.data.params["training.schedule.name"] == "cosine"
    assert json.loads(run.data.params["suggestion.groups"]) == list(record.model.groups)  # type: ignore[union-attr]
    assert TrialRecord.model_validate_json(store.artifact(run, "record.json")) == record
    assert json.loads(store.artifact(run, "config.json"))["model"]["family"] == "camixersr"
    parent = store.parent()
    assert StudyRecord.model_validate_json(store.artifact(parent, "study.json")) == study_record()
    assert parent.data.params["protocol"] == "light"


def test_names_that_mlflow_refuses_and_values_that_are_too_long_are_logged(store: Store) -> None:
    routing = RoutingConfig(policy="schedule", schedule=(0.5, 0.0))
    record = trial(
        3,
        [point(27.0, 5, routing=routing, constraints={"psnr_db@set5[y] >= 30 //../x": 1.0}, devices=("cpu@2[0]",))],
        suggestion={"odd@[name]": "x" * 20_000, "empty": "", "none": None},
        state="complete",
    ).model_copy(update={"reason": "r" * 20_000})
    assert store.tracker().log_record(record), store.warnings
    run = store.child(record.record_id)
    assert len(run.data.params["suggestion.odd__name_"]) == 6000
    assert any(name.startswith("violation/psnr_db_set5_y_") for name in run.data.metrics)
    assert "psnr_db/schedule/share_0.25" in run.data.metrics
    assert len(run.data.tags["harness.reason"]) == 5000


def test_long_curves_are_thinned_and_many_points_are_logged_in_batches(store: Store) -> None:
    record = search_trials(1, [index / 100 for index in range(101)])[0]
    assert len(entries.record_metrics(record)) > 1000  # more than a store takes at once
    assert record.training_result is not None
    steps = tuple(range(2500))
    result = record.training_result.model_copy(
        update={"curve_steps": steps, "curves": {"loss": tuple(float("nan") if s == 7 else 1.0 for s in steps)}}
    )
    assert store.tracker().log_record(record.model_copy(update={"training_result": result})), store.warnings
    run = store.child(record.record_id)
    history = MlflowClient(store.uri).get_metric_history(run.info.run_id, "training/loss")
    logged = sorted(entry.step for entry in history)
    assert len(logged) == entries.MOST_CURVE_POINTS
    assert (logged[0], logged[-1]) == (0, 2499)
    assert max(later - earlier for earlier, later in itertools.pairwise(logged)) <= 52
    assert sum(name.startswith("psnr_db/fixed/gamma_") for name in run.data.metrics) == 101


def test_scores_at_rungs_stand_at_their_steps(store: Store) -> None:
    record = with_rungs(stopped=True)
    assert store.tracker().log_record(record), store.warnings
    run = store.child(record.record_id)
    assert run.info.status == "KILLED"
    suggested = record.model.routing.gamma  # type: ignore[union-attr]
    client = MlflowClient(store.uri)
    for name, expected in (
        ("rung/psnr_db/fixed/gamma_0.00", [(11, 25.0), (33, 25.9)]),
        ("rung/psnr_db/fixed/gamma_0.50", [(11, 25.2), (33, 25.8)]),
        ("rung/place", [(11, 1), (33, 3)]),
    ):
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((entry.step, entry.value) for entry in history) == expected
    assert ("rung/psnr_db" in run.data.metrics) == (suggested in (0.0, 0.5))


def test_rungs_of_more_and_more_images_stand_at_their_images() -> None:
    at_the_end = tuple(rung(100, (value,), images=images) for images, value in ((1, 26.0), (2, 26.5)))
    record = search_trials(1)[0].model_copy(update={"rungs": at_the_end})
    found = [entry for entry in entries.record_metrics(record) if entry.name == "rung/psnr_db/fixed/gamma_0.00"]
    assert [(entry.step, entry.value) for entry in found] == [(1, 26.0), (2, 26.5)]


def test_logging_twice_makes_no_second_run_and_repeats_no_value(store: Store) -> None:
    record = search_trials(1)[0]
    assert store.tracker().log_record(record)
    before = store.child(record.record_id)
    assert store.tracker().log_record(record)  # another tracker, as after a restart
    assert len(store.runs()) == 2
    after = store.child(record.record_id)
    assert after.info.run_id == before.info.run_id
    assert after.data.metrics == before.data.metrics


@pytest.mark.parametrize("cut", ["log_batch", "log_artifacts", "set_terminated"])
def test_a_run_that_was_cut_off_is_completed(
    store: Store, monkeypatch: pytest.MonkeyPatch, no_waiting: None, cut: str
) -> None:
    record = search_trials(1)[0]
    tracker = store.tracker()
    assert tracker.start()
    with monkeypatch.context() as patched:
        real = getattr(MlflowClient, cut)

        def fail_on_children(client: MlflowClient, run_id: str, *arguments: Any, **options: Any) -> Any:
            if run_id != store.parent().info.run_id:
                raise ConnectionError("the process was killed here")
            return real(client, run_id, *arguments, **options)

        patched.setattr(MlflowClient, cut, fail_on_children)
        assert not tracker.log_record(record)
    assert "harness.complete" not in store.child(record.record_id).data.tags
    folder = write_study(store.folder / "study", study_record(), [record])
    assert store.tracker().sync(folder) == 0
    run = store.child(record.record_id)
    assert run.data.tags["harness.complete"] == record.config_hash()
    assert run.info.status == "FINISHED"
    history = MlflowClient(store.uri).get_metric_history(run.info.run_id, "training/loss")
    assert record.training_result is not None
    assert len(history) == len(record.training_result.curve_steps)
    assert json.loads(store.artifact(run, "record.json"))["record_id"] == record.record_id


def test_a_record_that_was_made_again_replaces_its_run(store: Store) -> None:
    record = swinir_baseline(27.0)
    assert store.tracker().log_record(record)
    again = swinir_baseline(27.5, training=study_record().training.model_copy(update={"steps": 200}))
    folder = write_study(store.folder / "study", study_record(), [again])
    assert store.tracker().sync(folder) == 0
    run = store.child("baseline-swinir-light")
    assert run.data.metrics["psnr_db"] == 27.5
    assert run.data.params["training.steps"] == "200"


def test_sync_logs_exactly_what_is_missing(store: Store) -> None:
    records = [*search_trials(4), swinir_baseline()]
    folder = write_study(store.folder / "study", study_record(), records)
    tracker = store.tracker()
    assert tracker.log_record(records[2])
    assert tracker.sync(folder) == 0
    assert {run.data.tags.get("harness.record_id") for run in store.runs()} == {None, *(r.record_id for r in records)}
    assert len(store.runs()) == 6
    assert tracker.sync(folder) == 0
    assert len(store.runs()) == 6


def test_two_studies_of_one_name_do_not_answer_for_each_other(store: Store) -> None:
    record = search_trials(1)[0]
    assert store.tracker().log_record(record)
    other = study_record(created_at="2027-01-01T00:00:00+00:00")
    assert store.tracker(other).log_record(record)
    assert sum(run.data.tags.get("harness.record_id") == record.record_id for run in store.runs()) == 2


def test_a_deleted_experiment_is_restored(store: Store) -> None:
    records = search_trials(2)
    assert store.tracker().log_record(records[0])
    client = MlflowClient(store.uri)
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    assert store.tracker().log_record(records[1]), store.warnings
    assert "harness.complete" in store.child(records[1].record_id).data.tags


def test_the_front_is_on_the_parent_as_table_files_and_metrics(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in ("front.csv", "front.png", "report.html")]
    for file in files:
        file.write_text(file.name)
    tracker = store.tracker()
    rows = [{"label": "C24", "psnr_db": 27.0, "gamma": None}, {"label": "C16", "psnr_db": 26.5, "gamma": 0.5}]
    assert tracker.log_front(files[0], files[1], files[2], rows[:1], {"hypervolume": 0.25})
    assert tracker.log_front(files[0], files[1], files[2], rows, {"hypervolume": 0.5})  # a second report replaces it
    parent = store.parent()
    assert parent.data.metrics["hypervolume"] == 0.5
    assert parent.data.metrics["front_size"] == 2
    for file in files:
        assert store.artifact(parent, file.name) == file.name
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)  # `load_table` looks for runs there, not in its client's store
    client = MlflowClient(store.uri)
    table = client.load_table(parent.info.experiment_id, "front.json", run_ids=[parent.info.run_id])
    assert list(table["label"]) == ["C24", "C16"]
    assert list(table["psnr_db"]) == [27.0, 26.5]
    assert tracker.log_front(files[0], files[1], files[2], [], {"hypervolume": 0.0})


def test_a_dead_port_costs_one_warning_and_little_time(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    warnings: list[str] = []
    uri = f"http://name:secret@127.0.0.1:{port}"
    records = search_trials(4)
    started = time.monotonic()
    assert not initialise_store(uri, lambda line: None)
    tracker = MlflowTracker(uri, study_record(), artifact_root=None, warn=warnings.append)
    assert not tracker.start()
    assert [tracker.log_record(record) for record in records] == [False] * 4
    assert tracker.sync(write_study(tmp_path / "study", study_record(), records)) == 4
    assert not tracker.finish()
    assert time.monotonic() - started < 15
    (warning,) = warnings
    assert str(port) in warning
    assert "secret" not in warning
    assert "\n" not in warning


def test_a_corrupted_store_is_warned_about_once(tmp_path: Path, no_waiting: None) -> None:
    store = Store(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, and it is longer than a header of one" * 100)
    assert not initialise_store(store.uri, store.warnings.append)
    tracker = store.tracker()
    started = time.monotonic()
    assert not tracker.start()
    assert not tracker.log_record(search_trials(1)[0])
    assert time.monotonic() - started < 5
    assert len(store.warnings) == 2  # one of each call with its own `warn`
    assert all("not a database" in warning for warning in store.warnings)


@pytest.mark.slow
def test_a_locked_store_fails_the_record_and_the_next_one_is_logged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", ())  # SQLite itself waits for 5 s
    records = search_trials(2)
    tracker = store.tracker()
    assert tracker.start()
    lock = sqlite3.connect(store.folder / "mlflow.db", isolation_level=None)
    lock.execute("PRAGMA locking_mode = EXCLUSIVE")
    lock.execute("BEGIN EXCLUSIVE")
    try:
        assert not tracker.log_record(records[0])
    finally:
        lock.close()
    assert len(store.warnings) == 1
    assert tracker.log_record(records[1])
    assert tracker.sync(write_study(store.folder / "study", study_record(), records)) == 0
    assert len(store.runs()) == 3


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "/tmp/mlruns", "ftp://example.org", ""])
def test_an_address_that_is_no_store_is_the_users_mistake(uri: str) -> None:
    with pytest.raises(UserError, match="expected one that starts with"):
        MlflowTracker(uri, study_record(), artifact_root=None, warn=pytest.fail)
    with pytest.raises(UserError, match="for example sqlite"):
        initialise_store(uri, pytest.fail)


class Server:
    """A real `mlflow server` on the loopback interface that can be killed and started again on the same store."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env={**os.environ})
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail(f"mlflow server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, fresh_database: Path) -> Iterator[Server]:
    (tmp_path / "mlflow.db").write_bytes(fresh_database.read_bytes())
    found = Server(tmp_path)
    found.start()
    yield found
    found.kill()


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_is_made_whole_later(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records = [*search_trials(4), swinir_baseline()]
    folder = write_study(tmp_path / "study", study_record(), records)
    warnings: list[str] = []
    assert initialise_store(server.uri, warnings.append)
    tracker = MlflowTracker(server.uri, study_record(), artifact_root=None, warn=warnings.append)
    assert tracker.start()
    assert tracker.log_record(records[0])
    server.kill()
    started = time.monotonic()
    assert not tracker.log_record(records[1])
    assert not tracker.log_record(records[2])
    assert time.monotonic() - started < 20
    assert len(warnings) == 1
    server.start()
    assert tracker.log_record(records[3])
    assert tracker.sync(folder) == 0
    assert tracker.finish()
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    whole = {run.data.tags.get("harness.record_id") for run in runs if "harness.complete" in run.data.tags}
    assert whole == {None, *(record.record_id for record in records)}
    assert len(runs) == len(records) + 1
    run = next(run for run in runs if run.data.tags.get("harness.record_id") == records[1].record_id)
    path = client.download_artifacts(run.info.run_id, "record.json", str(tmp_path))
    assert TrialRecord.model_validate_json(Path(path).read_text()) == records[1]
    assert len(warnings) == 1
    assert capfd.readouterr().out == ""

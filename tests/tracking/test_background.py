"""The thread that writes to MLflow: real stores, in order, never in the way, and whole again after a kill."""

import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from harness.core.records import TrialRecord
from harness.tracking import BackgroundTracker
from harness.tracking import store as store_module
from tests.records import search_trials, study_record, swinir_baseline, write_study
from tests.tracking.test_tracker import Store, fresh_database, store

__all__ = ["fresh_database", "store"]  # fixtures

# Logs records without end, and says when the store has the first of them whole.
ENDLESS = """
import sys, time
from pathlib import Path
from harness.tracking import BackgroundTracker, MlflowTracker
from tests.records import search_trials, study_record
tracker = BackgroundTracker(MlflowTracker(sys.argv[1], study_record(), artifact_root=Path(sys.argv[2]), warn=print))
tracker.start()
for record in search_trials(12):
    tracker.log_record(record)
while "trial-00000" not in tracker._tracker._whole:
    time.sleep(0.01)
print("one is whole", flush=True)
time.sleep(600)
"""


def whole(store: Store) -> list[str]:
    """The ids of the records that the store has whole, in the order in which they were logged."""
    runs = [run for run in store.runs() if "harness.record_id" in run.data.tags]
    runs.sort(key=lambda run: int(run.data.tags["harness.logged_at"]))
    return [run.data.tags["harness.record_id"] for run in runs if "harness.complete" in run.data.tags]


def test_records_are_logged_in_order_by_one_thread_and_finish_waits_for_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    for name in ("create_run", "search_runs", "log_batch", "update_run", "set_terminated"):
        real = getattr(MlflowClient, name)

        def noted(client: MlflowClient, *arguments: Any, real: Any = real, **options: Any) -> Any:
            threads.add(threading.current_thread().name)
            return real(client, *arguments, **options)

        monkeypatch.setattr(MlflowClient, name, noted)
    records = [swinir_baseline(), *search_trials(6)]
    with BackgroundTracker(store.tracker()) as tracker:
        tracker.start()
        assert all(tracker.log_record(record) for record in records)
        assert tracker.finish()
    assert len(threads) == 1
    assert threading.current_thread().name not in threads
    assert whole(store) == [record.record_id for record in records]
    assert store.parent().info.status == "FINISHED"
    assert store.warnings == []


def test_a_store_that_is_locked_holds_nobody_up(store: Store) -> None:
    records = search_trials(3)
    with BackgroundTracker(store.tracker()) as tracker:
        tracker.start()
        lock = sqlite3.connect(store.folder / "mlflow.db", isolation_level=None)
        lock.execute("PRAGMA busy_timeout = 60000")
        lock.execute("BEGIN EXCLUSIVE")
        try:
            assert all(tracker.log_record(record) for record in records)  # nobody can write now
        finally:
            lock.close()
        assert tracker.finish()
    assert len(whole(store)) == 3


def test_what_finds_no_room_is_logged_by_a_sync(store: Store) -> None:
    records = search_trials(3)
    folder = write_study(store.folder / "study", study_record(), records)
    with BackgroundTracker(store.tracker(), most_waiting=0) as tracker:
        tracker.start()
        assert not any(tracker.log_record(record) for record in records)
        tracker.sync(folder)
        assert tracker.finish()
    assert whole(store) == [record.record_id for record in records]


def test_a_store_that_fails_is_warned_about_once_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0, 0.0))
    store = Store(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, and it is longer than a header of one" * 100)
    records = search_trials(3)
    with BackgroundTracker(store.tracker()) as tracker:
        tracker.start()
        for record in records:
            tracker.log_record(record)
        tracker.sync(write_study(tmp_path / "study", study_record(), records))
        assert not tracker.finish()
    (warning,) = store.warnings
    assert "not a database" in warning


def test_an_interruption_leaves_the_rest_to_the_next_run(store: Store) -> None:
    records = search_trials(8)
    folder = write_study(store.folder / "study", study_record(), records)

    def interrupt() -> None:
        with BackgroundTracker(store.tracker()) as tracker:
            tracker.start()
            for record in records:
                tracker.log_record(record)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert not any(thread.name.startswith("harness-tracking") for thread in threading.enumerate())
    assert len(whole(store)) < 8
    assert_made_whole(store, folder, records)


def test_a_kill_in_the_middle_is_made_good_by_the_next_sync(store: Store) -> None:
    records = search_trials(12)
    folder = write_study(store.folder / "study", study_record(), records)
    command = [sys.executable, "-c", ENDLESS, store.uri, str(store.folder / "artifacts")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "one is whole\n"
        process.send_signal(signal.SIGKILL)
    assert_made_whole(store, folder, records)


def assert_made_whole(store: Store, folder: Any, records: list[TrialRecord]) -> None:
    with BackgroundTracker(store.tracker()) as tracker:
        tracker.start()
        tracker.sync(folder)
        assert tracker.finish()
    assert sorted(whole(store)) == sorted(record.record_id for record in records)
    assert len(store.runs()) == len(records) + 1
    for record in records:
        assert store.child(record.record_id).data.metrics["psnr_db"] > 0
        assert record.training_result is not None
        history = MlflowClient(store.uri).get_metric_history(store.child(record.record_id).info.run_id, "training/loss")
        assert len(history) == len(record.training_result.curve_steps)

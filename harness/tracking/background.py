"""Tracking that nobody waits for: one thread writes, in the order of the calls, whatever a search has to say.

The study's folder stays the source of truth. A record for which there is no room, or that is still waiting when the
process ends, is logged by a later `sync`. The store is used by the one thread alone.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.core.records import TrialRecord
from harness.core.study_folder import StudyFolder
from harness.tracking.tracker import MlflowTracker

MOST_WAITING = 64  # records; those of a search whose trials are faster than the store wait for a `sync`


class BackgroundTracker:
    """An `MlflowTracker` behind a thread: `start`, `sync` and `log_record` return at once, the others wait.

    `finish` ends the thread. A context that is left by an exception, Ctrl-C above all, ends it too, with what it is
    doing at the moment: what still waits is left to a later `sync`.
    """

    def __init__(self, tracker: MlflowTracker, *, most_waiting: int = MOST_WAITING):
        self._tracker = tracker
        self._room = threading.Semaphore(most_waiting)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="harness-tracking")
        self._sync: Future[int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()

    def start(self) -> None:
        """Create the experiment and the parent run, or find them, and mark the study as running."""
        self._thread.submit(self._tracker.start)

    def log_record(self, record: TrialRecord) -> bool:
        """Have a record logged; False where too many wait already, so that a later `sync` has to do it."""
        if not self._room.acquire(blocking=False):
            return False
        self._thread.submit(self._log_record, record)
        return True

    def sync(self, study_folder: StudyFolder) -> None:
        """Have every record of the folder logged that the store does not have whole."""
        self._sync = self._thread.submit(self._tracker.sync, study_folder)

    def log_front(
        self,
        front_csv: Path,
        front_png: Path,
        report_html: Path,
        table: Sequence[Mapping[str, Any]],
        metrics: Mapping[str, float],
    ) -> bool:
        """Put the front on the parent run once all that waits is logged, see `MlflowTracker.log_front`."""
        return self._wait(lambda: self._tracker.log_front(front_csv, front_png, report_html, table, metrics))

    def finish(self, *, interrupted: bool = False) -> bool:
        """Mark the parent run as finished, or as killed, once all that waits is logged, and end the thread.

        Raises `UserError` where the last `sync` found a file that is no record.
        """
        is_marked = self._wait(lambda: self._tracker.finish(interrupted=interrupted))
        self._thread.shutdown()
        if self._sync is not None:
            self._sync.result()
        return is_marked

    def _log_record(self, record: TrialRecord) -> None:
        self._room.release()
        self._tracker.log_record(record)

    def _wait(self, call: Callable[[], bool]) -> bool:
        try:
            return self._thread.submit(call).result()
        except BaseException:  # Ctrl-C while waiting
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

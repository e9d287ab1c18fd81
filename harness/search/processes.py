"""Workers in processes of one machine: started, watched, and started again where they are gone."""

import multiprocessing
import multiprocessing.queues
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from harness.core import device_lock
from harness.search.space import SearchSpace
from harness.search.storage import LOST_ERRORS, StorageLostError, first_line, join, patience_of, patiently
from harness.search.worker import Ending, Mark, SearchOutcome, Worker
from harness.trial import TrialSetup

_POLL_SECONDS = 0.3
MAX_DEATHS_WITHOUT_RECORD = 4  # of one worker, before the search is given up
_RANK: tuple[Ending, ...] = ("finished", "interrupted", "out of time", "exhausted", "failing")


@dataclass
class _Started:
    """A worker's process, and how it ended; `deaths` since a record was last written."""

    process: SpawnProcess
    outcomes: "multiprocessing.queues.Queue[SearchOutcome | StorageLostError | str]"
    outcome: SearchOutcome | None = None
    deaths: int = 0


def lead(leader: Worker, storage: str, workers: int) -> SearchOutcome:
    """Let so many processes work for a study, until all are done; report the records that they write.

    A process that ends without an outcome (killed, out of memory) is replaced, and what it was at is proposed again.
    Ctrl-C, or an end of the leader, ends them after the step that they are at.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()

    def start(deaths: int = 0) -> _Started:
        outcomes = context.Queue()
        name, patience_s = leader.study.study_name, patience_of(leader.study)
        locks = device_lock.lock_dir
        arguments = (leader.space, leader.setup, name, storage, patience_s, locks, stop, outcomes, os.getpid())
        process = context.Process(target=_work, args=arguments, name="harness-worker")
        process.start()
        return _Started(process, outcomes, deaths=deaths)

    started = [start() for _ in range(workers)]
    try:
        while True:
            if leader.should_stop():
                stop.set()
            before = len(leader.records)
            leader.read_records(tell=True)
            has_got_on = len(leader.records) > before
            for index, one in enumerate(started):
                if has_got_on:
                    one.deaths = 0
                if one.outcome is None and not one.outcomes.empty():
                    told = one.outcomes.get()
                    if isinstance(told, StorageLostError):
                        raise told
                    one.outcome = SearchOutcome("failing", told, 0) if isinstance(told, str) else told
                if one.outcome is None and not one.process.is_alive() and one.outcomes.empty():
                    patiently(leader.study, leader.close_left, leader.should_stop)
                    if one.deaths + 1 >= MAX_DEATHS_WITHOUT_RECORD:
                        reason = f"a worker died {one.deaths + 1} times in a row (exit code {one.process.exitcode})"
                        one.outcome = SearchOutcome("failing", reason, 0)
                        stop.set()
                    elif stop.is_set():
                        one.outcome = SearchOutcome("interrupted", "stopped on request", 0)
                    else:
                        started[index] = start(one.deaths + 1)
            if all(one.outcome is not None and not one.process.is_alive() for one in started):
                break
            time.sleep(_POLL_SECONDS)
    finally:
        stop.set()
        for one in started:
            one.process.join()
    leader.read_records(tell=True)
    patiently(leader.study, leader.close_left, leader.should_stop)
    return conclude(leader, [one.outcome for one in started if one.outcome is not None])


def conclude(leader: Worker, outcomes: list[SearchOutcome]) -> SearchOutcome:
    """Return how a search ended from how its workers did."""
    failed = [outcome for outcome in outcomes if outcome.ending == "failing"]
    chosen = min(failed or outcomes, key=lambda outcome: _RANK.index(outcome.ending))
    return SearchOutcome(chosen.ending, chosen.reason, len(leader.trained))


def _work(
    space: SearchSpace,
    setup: TrialSetup,
    name: str,
    storage: str,
    patience_s: float,
    locks: Path,
    stop: Event,
    outcomes: "multiprocessing.queues.Queue[SearchOutcome | StorageLostError | str]",
    parent: int,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader is told, and tells
    device_lock.lock_dir = locks

    def should_stop() -> bool:
        return stop.is_set() or os.getppid() != parent

    try:
        study = join(storage, name, patience_s, should_stop)
        with Mark() as mark:
            outcomes.put(Worker(space, setup, study, mark, should_stop=should_stop).run())
    except LOST_ERRORS as error:
        outcomes.put(StorageLostError(first_line(error)))
    except OSError as error:
        outcomes.put(f"{error.strerror or error}: {error.filename or setup.folder.path}")

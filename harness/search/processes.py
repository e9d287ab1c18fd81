"""Workers in processes of one machine: started, watched, and started again where they are gone."""

import multiprocessing
import multiprocessing.queues
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from harness.core import device_lock
from harness.core.errors import UserError
from harness.search.space import SearchSpace
from harness.search.storage import LOST_ERRORS, StorageLostError, explain, join, patience_of, patiently
from harness.search.worker import Ending, Mark, SearchOutcome, Worker
from harness.trial import TrialSetup

_POLL_SECONDS = 0.3
MAX_DEATHS_WITHOUT_RECORD = 4  # of one worker, before the search is given up
Ended = SearchOutcome | StorageLostError | UserError  # what a worker's process says before it ends

_RANK: tuple[Ending, ...] = ("finished", "interrupted", "out of time", "exhausted", "failing")


@dataclass
class _Started:
    """A worker's process, and how it ended; `deaths` since a record was last written."""

    process: SpawnProcess
    outcomes: "multiprocessing.queues.Queue[Ended]"
    outcome: SearchOutcome | None = None
    deaths: int = 0


def lead(leader: Worker, storage: str, workers: int) -> SearchOutcome:
    """Let so many processes work for a study, until all are done; report the records that they write.

    A process that ends without an outcome (killed, out of memory) is replaced, and what it was at is proposed again.
    Ctrl-C, or an end of the leader, ends them after the step that they are at; so does an error of the user's that one
    of them meets, such as a full disk, which is raised once all have ended.
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
    met: Exception | None = None
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
                    if isinstance(told, Exception):
                        met = met or told
                        stop.set()
                        told = SearchOutcome("failing", str(told), 0)
                    one.outcome = told
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
    if met is not None:
        raise met
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
    outcomes: "multiprocessing.queues.Queue[Ended]",
    parent: int,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader is told, and tells

    def should_stop() -> bool:
        return stop.is_set() or os.getppid() != parent

    outcomes.put(work(space, setup, name, storage, patience_s, locks, should_stop))


def work(
    space: SearchSpace,
    setup: TrialSetup,
    name: str,
    storage: str,
    patience_s: float,
    locks: Path,
    should_stop: Callable[[], bool],
) -> Ended:
    """Work for a study in a process of its own until its budget is spent; return how that ended, or what it met."""
    device_lock.lock_dir = locks
    try:
        study = join(storage, name, patience_s, should_stop)
        with Mark() as mark:
            return Worker(space, setup, study, mark, should_stop=should_stop).run()
    except UserError as error:
        return error
    except LOST_ERRORS as error:
        return StorageLostError(explain(error))
    except OSError as error:
        return UserError(f"{error.filename or setup.folder.path}: {error.strerror or error}")

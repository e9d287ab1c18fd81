"""Workers in processes of their own: started, watched, and started again where they are gone."""

import multiprocessing
import multiprocessing.queues
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TypeVar

from harness.core import device_lock
from harness.core.errors import UserError
from harness.search.checkpoints import check_place
from harness.search.mark import Mark
from harness.search.space import SearchSpace
from harness.search.storage import LOST_ERRORS, StorageLostError, explain, join, patience_of, patiently
from harness.search.worker import Ending, SearchOutcome, Worker
from harness.trial import TrialSetup

_POLL_SECONDS = 0.3
_MAX_DEATHS_WITHOUT_RECORD = 4  # of one worker, before the search is given up
_RANK: tuple[Ending, ...] = ("finished", "interrupted", "out of time", "exhausted", "failing")

Ended = SearchOutcome | StorageLostError | UserError  # what a worker's process says before it ends


@dataclass(frozen=True)
class Errand:
    """What workers in processes of their own are sent for."""

    space: SearchSpace
    setup: TrialSetup
    study: str
    storage: str
    patience_s: float
    locks: Path

    @classmethod
    def of(cls, leader: Worker, setup: TrialSetup, storage: str) -> "Errand":
        """Return what workers for the leader's study are sent for."""
        name, patience_s = leader.study.study_name, patience_of(leader.study)
        return cls(leader.space, setup, name, storage, patience_s, device_lock.lock_dir)

    def run(self, should_stop: Callable[[], bool]) -> Ended:
        """Work until the study's budget is spent; return how that ended, or what it met."""
        device_lock.lock_dir = self.locks
        try:
            study = join(self.storage, self.study, self.patience_s, should_stop)
            check_place(self.setup.folder, study)
            with Mark() as mark:
                return Worker(self.space, self.setup, study, mark, should_stop=should_stop).run()
        except UserError as error:
            return error
        except LOST_ERRORS as error:
            return StorageLostError(explain(error))
        except OSError as error:
            return UserError(f"{error.filename or self.setup.folder.path}: {error.strerror or error}")


@dataclass(frozen=True)
class Lost:
    """How a worker's process was lost that said nothing."""

    how: str


class Post(ABC):
    """Where a worker works; `deaths` of workers there since a record was last written."""

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths
        self.outcome: SearchOutcome | None = None

    def is_manned(self) -> bool:
        """Whether the worker has its place; it may have to wait for room."""
        return True

    @abstractmethod
    def look(self) -> Ended | Lost | None:
        """Return what has become of the worker, None while it works."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the worker to stop after the step that it is at; one that waits for its place goes at once."""


PostT = TypeVar("PostT", bound=Post)


def watch(
    leader: Worker, workers: int, man: Callable[[int], PostT], end: Callable[[list[PostT]], None]
) -> SearchOutcome:
    """Let so many workers work until all have ended, and watch over them; report the records that they write.

    `man` starts one, of as many deaths so far; `end` sees to it that all are gone, however this ends. A worker that is
    lost is replaced, and what it was at is proposed again. All are asked to stop where the leader is, where a worker is
    given up, and where one meets an error of the user's, such as a full disk, which is raised once all have ended.
    """
    posts: list[PostT] = []
    met: StorageLostError | UserError | None = None
    is_stopping = False
    try:
        while len(posts) < workers:
            posts.append(man(0))
        while any(post.outcome is None for post in posts):
            is_stopping = is_stopping or leader.should_stop()
            before = len(leader.ledger.records)
            leader.ledger.read(tell=True)
            if len(leader.ledger.records) > before:
                for post in posts:
                    post.deaths = 0
            for index, post in enumerate(posts):
                if post.outcome is not None:
                    continue
                found = post.look()
                if found is None:
                    others = [other.outcome for other in posts if other.outcome is not None]
                    if others and not post.is_manned():  # it waits for room, and there is nothing left to do
                        post.stop()
                        post.outcome = others[0]
                    elif is_stopping:
                        post.stop()
                elif isinstance(found, SearchOutcome):
                    post.outcome = found
                elif isinstance(found, Lost):
                    patiently(leader.study, leader.close_left, leader.should_stop)
                    if post.deaths + 1 >= _MAX_DEATHS_WITHOUT_RECORD:
                        reason = f"a worker died {post.deaths + 1} times in a row ({found.how})"
                        post.outcome = SearchOutcome("failing", reason, 0)
                    elif is_stopping:
                        post.outcome = _stopped()
                    else:
                        posts[index] = man(post.deaths + 1)
                else:
                    met = met or found
                    post.outcome = SearchOutcome("failing", str(found), 0)
                is_stopping = is_stopping or (post.outcome is not None and post.outcome.ending == "failing")
            time.sleep(_POLL_SECONDS)
    finally:
        end(posts)
    if met is not None:
        raise met
    leader.ledger.read(tell=True)
    patiently(leader.study, leader.close_left, leader.should_stop)
    outcomes = [post.outcome for post in posts if post.outcome is not None]
    failed = [outcome for outcome in outcomes if outcome.ending == "failing"]
    chosen = min(failed or outcomes, key=lambda outcome: _RANK.index(outcome.ending))
    return SearchOutcome(chosen.ending, chosen.reason, len(leader.ledger.trained))


def _stopped() -> SearchOutcome:
    return SearchOutcome("interrupted", "stopped on request", 0)


class _Process(Post):
    """A process of this machine; one event stops all."""

    def __init__(self, errand: Errand, stop: Event, deaths: int) -> None:
        super().__init__(deaths)
        context = multiprocessing.get_context("spawn")
        self._stop = stop
        self._ended: multiprocessing.queues.Queue[Ended] = context.Queue()
        arguments = (errand, stop, self._ended, os.getpid())
        self._process = context.Process(target=_work, args=arguments, name="harness-worker")
        self._process.start()

    def look(self) -> Ended | Lost | None:
        is_alive = self._process.is_alive()  # asked first: whatever it has to say, it says before it ends
        if not self._ended.empty():
            return self._ended.get()
        return None if is_alive else Lost(f"exit code {self._process.exitcode}")

    def stop(self) -> None:
        self._stop.set()

    def join(self) -> None:
        """Wait for the end of the process."""
        self._process.join()


def lead(leader: Worker, storage: str, workers: int) -> SearchOutcome:
    """Let so many processes of this machine work for a study, until all are done.

    Ctrl-C, or an end of the leader, ends them after the step that they are at.
    """
    errand = Errand.of(leader, leader.setup, storage)
    stop = multiprocessing.get_context("spawn").Event()

    def end(processes: list[_Process]) -> None:
        stop.set()
        for process in processes:
            process.join()

    return watch(leader, workers, lambda deaths: _Process(errand, stop, deaths), end)


def _work(errand: Errand, stop: Event, ended: "multiprocessing.queues.Queue[Ended]", parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader is told, and tells
    ended.put(errand.run(lambda: stop.is_set() or os.getppid() != parent))

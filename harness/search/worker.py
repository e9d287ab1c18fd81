"""A worker: ask, train, tell, until the study's budget is spent; as many as one likes, on any machines.

Workers know of each other by what stands in the study's storage and folder. The records in the folder are the source
of truth and are written before the sampler is told. A trial that runs carries the mark of its worker; one whose worker
is gone, because its process ended or its heartbeat stopped, is closed by whoever sees it and, where it has no record,
proposed again, to be trained on from its checkpoint.
"""

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, Trial, TrialState

from harness.core.configs import CAMixerSRConfig, RoutingConfig, Rung
from harness.core.errors import OutageError, UserError
from harness.core.records import PointRecord, TrialRecord
from harness.search.dialogue import Dialogue, Point, key, relative_violation
from harness.search.ledger import Ledger
from harness.search.mark import Mark
from harness.search.proposals import Params, count_networks, decode_params, encode_values, grid, with_routing
from harness.search.space import SearchSpace, Values
from harness.search.storage import BEAT_SECONDS, LOST_ERRORS, is_running, lost, patience_of, patiently
from harness.training import TrainingInterruptedError
from harness.trial import (
    Proposal,
    TrialProgress,
    TrialSetup,
    Verdict,
    abandon,
    answer_from,
    clear_up,
    run_trial,
    with_teacher,
)

_MAX_DEATHS = 3  # of processes in one proposal, with no checkpoint written in between
_MAX_FAILURES_IN_A_ROW = 5
_MAX_REPEATS = 20  # proposals in a row that are answered before the space counts as exhausted
_MAX_REJECTIONS = 200  # the same of rejected ones, which cost next to nothing
_POLL_SECONDS = 0.5
_GIVEN_UP = "given up"
_RETRY_SECONDS = 1.0  # of a heartbeat that was not heard
_LISTEN_SECONDS = 2 * BEAT_SECONDS  # for a heart that seems to have stopped

Ending = Literal["finished", "interrupted", "out of time", "exhausted", "failing"]
RunTrial = Callable[..., TrialRecord]


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended, and why in a sentence."""

    ending: Ending
    reason: str
    networks: int


class _TakenOverError(TrainingInterruptedError):
    """The trial was taken over while it trained: its worker had been missed."""


class Worker:
    """One worker's view of a study."""

    def __init__(
        self,
        space: SearchSpace,
        setup: TrialSetup,
        study: optuna.Study,
        mark: Mark,
        *,
        on_record: Callable[[TrialRecord], None] = lambda record: None,
        progress: TrialProgress | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        run: RunTrial | None = None,
    ):
        self.space = space
        self.setup = setup
        self.study = study
        self.mark = mark
        self.dialogue = Dialogue(space, study)
        self.progress = progress
        self.should_stop = should_stop
        self.run_trial: RunTrial = run or run_trial
        self.started = time.monotonic()
        self.routings = space.routings()
        self.num_networks = count_networks(space)
        self.ledger = Ledger(setup.folder, on_record)
        self._is_taken_over = threading.Event()  # the trial that is run
        self.plan = self._plan()
        self.ledger.read()

    # ---- what others have left ----

    def close_left(self, *, own: bool = False) -> None:
        """Close trials whose workers are gone, and propose them again where no record of them was written.

        With `own` those of this worker too, which runs none now: the storage was lost before they were told.
        """
        running = self._running()
        if not running:
            return
        silent = self._listen() if any(not self._is_mine(trial) for trial in running) else set()

        def left(running: list[FrozenTrial]) -> list[FrozenTrial]:
            still = silent & self._silent() if silent else silent
            return [
                trial
                for trial in running
                if (own if self._is_mine(trial) else self._is_gone(trial) or trial._trial_id in still)
            ]

        if left(running):
            with self._deciding():
                for trial in left(self._running()):
                    self.close(trial)

    def _listen(self) -> set[int]:
        """Return the trials whose hearts have stopped, which is how a worker on another host is missed.

        They are listened to for a while: where the storage itself was away, all of them have been silent.
        """
        silent = self._silent()
        deadline = time.monotonic() + _LISTEN_SECONDS
        while silent and time.monotonic() < deadline and not self.should_stop():
            time.sleep(_POLL_SECONDS)
            silent &= self._silent()
        return silent if time.monotonic() >= deadline else set()

    def _silent(self) -> set[int]:
        storage = self.study._storage
        if not isinstance(storage, BaseHeartbeat):
            return set()
        return set(storage._get_stale_trial_ids(self.study._study_id))

    def close(self, left: FrozenTrial) -> None:
        """Close a trial that its worker has left open."""
        self.reopen(left)
        written = self.ledger.records.get(str(left.user_attrs.get("record_id")))
        if written is not None and written.state in ("complete", "stopped"):
            clear_up(self.setup.folder, written.network_id)
        is_pruned = written is not None and written.state in ("rejected", "stopped")
        with contextlib.suppress(ValueError, UpdateFinishedTrialError):  # its worker was still there, and has told it
            if written is None or written.state == "complete":
                self.dialogue.set_aside(left)
            self.study.tell(left.number, state=TrialState.PRUNED if is_pruned else TrialState.FAIL)

    def reopen(self, left: FrozenTrial) -> None:
        """Propose again what a worker has left without a record; add the points that it had no time to tell."""
        self.ledger.read()
        written = self.ledger.records.get(str(left.user_attrs.get("record_id")))
        if written is None:
            self._propose_again(left)
        elif written.state == "complete":
            self.add_points(written)
        elif self.ledger.may_pass(written):
            self._retry(left, _params(left), written)

    def _retry(self, trial: Trial | FrozenTrial, params: Params, failed: TrialRecord) -> None:
        """Queue a proposal again whose network failed."""
        self.dialogue.queue(params, once=_again(trial), retry=self.ledger.failures[failed.network_id])

    def _propose_again(self, left: FrozenTrial) -> None:
        """Queue a proposal again, until processes have died too often in it without getting on."""
        params = _params(left)
        if not params or self.dialogue.was_queued(_again(left)):
            return  # nothing was proposed yet, or it was queued again before the process died once more
        network = left.user_attrs.get("network")
        mark = self.setup.folder.checkpoint(network).mark() if network is not None else 0
        is_stuck = mark == left.user_attrs.get("checkpoint", 0)
        has_died = "worker" in left.user_attrs and not self._is_mine(left)  # else the storage was lost, and nobody died
        deaths = int(left.user_attrs.get("deaths", 0)) * is_stuck + has_died
        if deaths <= _MAX_DEATHS:
            self.dialogue.queue(params, once=_again(left), deaths=deaths, checkpoint=mark)
            return
        reason = f"the process died {deaths} times in this trial without getting on"
        record_id = str(left.user_attrs["record_id"])
        proposal = self._proposal(record_id, int(record_id.partition("-")[2]), decode_params(self.space, params))
        self.ledger.finish(abandon(self.setup, proposal, reason))

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _running_elsewhere(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        return [trial for trial in trials if trial.state == TrialState.RUNNING and not self._is_mine(trial)]

    @staticmethod
    def _is_gone(trial: FrozenTrial) -> bool:
        return Mark.is_gone(trial.user_attrs.get("worker"))

    def _is_mine(self, trial: FrozenTrial) -> bool:
        return (trial.user_attrs.get("worker") or {}).get("token") == self.mark.token

    # ---- the loop ----

    def run(self) -> SearchOutcome:
        """Run trials until the budget is spent."""
        try:
            return self._run()
        except TrainingInterruptedError as interruption:
            return self._outcome("interrupted", f"training was {interruption}")

    def _run(self) -> SearchOutcome:
        failures = repeats = rejections = 0
        lost_at: float | None = None
        while True:
            try:
                state = self._turn(failures, repeats, rejections)
                lost_at = None
            except LOST_ERRORS:  # a server may come back, and what was not told is made good then
                lost_at = lost_at or time.monotonic()
                if self.should_stop() or time.monotonic() - lost_at >= patience_of(self.study):
                    raise
                time.sleep(1)
                continue
            except (
                UpdateFinishedTrialError,
                _TakenOverError,
            ):  # its heart was not heard by whoever took the trial over
                continue
            if isinstance(state, SearchOutcome):
                return state
            if state == "waiting":
                time.sleep(_POLL_SECONDS)
                continue
            failures = 0 if state == "complete" else failures + (state == "failed")
            if state in ("answered", "rejected") and self.space.sampler.name != "grid":
                repeats, rejections = repeats + (state == "answered"), rejections + (state == "rejected")
            else:
                repeats = rejections = 0

    def _turn(self, failures: int, repeats: int, rejections: int) -> str | SearchOutcome:
        """Run one trial; return how it ended, `waiting` where others may still do it, or how the search ended."""
        budget = self.space.budget
        self.ledger.read()
        self.close_left(own=True)
        if len(self.ledger.trained) >= budget.networks:
            return self._outcome("finished", f"the budget of {budget.networks} networks is spent")
        if budget.steps is not None and self.ledger.steps >= budget.steps:
            return self._outcome("finished", f"the budget of {budget.steps} training steps is spent")
        if self.should_stop():
            return self._outcome("interrupted", "stopped on request")
        if budget.seconds is not None and time.monotonic() - self.started > budget.seconds:
            return self._outcome("out of time", f"the budget of {budget.seconds:g} s is spent")
        if failures >= _MAX_FAILURES_IN_A_ROW:
            return self._outcome("failing", f"{failures} trials in a row failed; see their reasons in the report")
        known = len(self.ledger.trained.keys() | self.ledger.stopped.keys())
        if self.num_networks is not None and known >= self.num_networks:
            parts = len(self.ledger.stopped.keys() - self.ledger.trained.keys())
            stopped = f", {parts} of them in part" if parts else ""
            return self._outcome("exhausted", f"all {self.num_networks} networks of the space are trained{stopped}")
        if repeats >= _MAX_REPEATS or rejections >= _MAX_REJECTIONS:
            return self._outcome("exhausted", self._describe_idling(repeats, rejections))
        with self._deciding():
            seen = self.dialogue.read()
            others = self._running_elsewhere(seen.rest)
            self.ledger.read()  # after counting: what ends between is counted twice, and not left out
            if len(others) >= budget.networks - len(self.ledger.trained):
                return "waiting"  # what others train may still be stopped, or fail
            # At most one proposal waits at any time, so that an interrupted one is the first of the next run.
            if not any(trial.state == TrialState.WAITING for trial in seen.rest):
                if self._queue_next():
                    seen = self.dialogue.read()
                elif self.space.sampler.name == "grid":
                    return "waiting" if others else self._outcome("exhausted", "every point of the grid was proposed")
            trial = self.dialogue.ask(seen)
            number = trial.number
            while (record_id := f"trial-{number:05d}") in self.ledger.records or seen.has(record_id):
                number += 1  # a new database knows nothing of older records
            with self._beating(trial):
                proposal = self._begin(trial, record_id, number)
        if proposal is None:
            return "rejected"
        with self._beating(trial):
            return self._run_one(trial, proposal, may_be_known=bool(others))

    def _begin(self, trial: Trial, record_id: str, number: int) -> Proposal | None:
        """Mark a trial and suggest for it, so that whoever proposes next knows of it; None where it is rejected."""
        try:
            with self.dialogue.at_once(trial):
                self._beat(trial)  # with the mark: whoever never beat would never be missed
                trial.set_user_attr("worker", self.mark.values)
                trial.set_user_attr("record_id", record_id)
                proposal = self._proposal(record_id, number, self.dialogue.suggest(trial))
                trial.set_user_attr("network", proposal.network_id(self.setup.data))
        except UserError as error:  # settings that do not go together, each of them fine alone
            self.dialogue.tell_unfinished(trial, TrialState.PRUNED, str(error))
            return None
        return proposal

    def _deciding(self) -> FileLock:
        """Return the lock under which workers ask and close: a trial has a mark, and counts, before others look."""
        return FileLock(self.setup.folder.path / "closing.lock")

    def _describe_idling(self, repeats: int, rejections: int) -> str:
        known = "" if self.num_networks is None else f" of the space's {self.num_networks}"
        idle, trained = repeats + rejections, len(self.ledger.trained)
        return f"{idle} proposals in a row were repeats or rejected; {trained}{known} networks are trained"

    def _outcome(self, ending: Ending, reason: str) -> SearchOutcome:
        return SearchOutcome(ending, reason, len(self.ledger.trained))

    def _plan(self) -> Iterator[Params]:
        """Yield what is to be proposed before the sampler is asked: the space's queue, then the points of a grid."""
        yield from (encode_values(entry) for entry in self.space.enqueue)
        if self.space.sampler.name != "grid":
            return
        for params in grid(self.space):
            try:
                proposal = self._proposal("", 0, decode_params(self.space, params))
            except UserError:
                continue  # settings that do not go together
            network = proposal.network_id(self.setup.data)
            if not self.ledger.is_known(network):
                yield params

    def _queue_next(self) -> bool:
        """Queue the next planned proposal; return whether there was one."""
        queued: set[str] | None = None
        for params in self.plan:
            try:
                queued = self.dialogue.queued() if queued is None else queued
                if key(params) not in queued:
                    self.dialogue.queue(params, once=f"plan {key(params)}")
                    return True
            except LOST_ERRORS:  # it is planned still
                self.plan = itertools.chain([params], self.plan)
                raise
        return False

    def _run_one(self, trial: Trial, proposal: Proposal, *, may_be_known: bool) -> str:
        """See a trial through; return the state that it ended in.

        `may_be_known`: whether others may be training its network.
        """
        network = proposal.network_id(self.setup.data)
        self.ledger.read()
        for other in self._running_elsewhere(self._running()) if may_be_known else ():
            is_known = other.user_attrs.get("record_id") in self.ledger.records  # and is being told
            if other.user_attrs.get("network") == network and other.number < trial.number and not is_known:
                reason = f"the network is being trained by {other.user_attrs.get('record_id')}"
                self.dialogue.tell_unfinished(trial, TrialState.PRUNED, reason)
                return "answered"
        record, tell = self._see_through(trial, proposal)
        self.ledger.finish(record)
        patiently(self.study, tell, self.should_stop)
        return "retried" if self.ledger.may_pass(record) else record.state

    def _see_through(self, trial: Trial, proposal: Proposal) -> tuple[TrialRecord, Callable[[], None]]:
        """Answer a proposal from a record, or run it; return the record, and what tells the study of it."""
        network = proposal.network_id(self.setup.data)
        trained, stopped = self.ledger.trained.get(network), self.ledger.stopped.get(network)
        if trained is not None:
            return answer_from(self.setup, proposal, trained), lambda: self._tell_point(trial, proposal, trained)
        if stopped is not None and self.setup.stopping is not None:
            answer = answer_from(self.setup, proposal, stopped)
            return answer, lambda: self.dialogue.tell_unfinished(trial, TrialState.PRUNED, answer.reason or "")
        if self.ledger.is_given_up(network):
            reasons = [one.reason or "" for one in self.ledger.records.values() if one.network_id == network]
            reasons = [one for one in reasons if not one.startswith(_GIVEN_UP)]
            given_up = abandon(self.setup, proposal, f"{_GIVEN_UP} (tries: {len(reasons)}): {reasons[-1]}")
            return given_up, lambda: self._tell_unmeasured(trial, given_up)

        def judge(rung: Rung, points: Sequence[PointRecord]) -> Verdict:
            assert self.setup.stopping is not None
            values = [self._objective_values(point) for point in points]
            measured = [one for one in values if one is not None]
            factor = self.setup.stopping.factor
            try:
                return patiently(
                    self.study,
                    lambda: self.dialogue.judge(trial, network, rung, measured, factor),
                    self.should_stop,
                )
            except LOST_ERRORS as error:  # no fault of the network's, which goes on from here
                if self.should_stop():
                    raise TrainingInterruptedError(f"stopped at the rung of step {rung.step}") from error
                raise lost(self.study._storage, error) from error

        def should_stop() -> bool:
            if (
                self._is_taken_over.is_set()
            ):  # raised, and not returned, so that nothing is saved over what the other has
                raise _TakenOverError("its trial was taken over")
            return self.should_stop()

        try:
            record = self.run_trial(
                self.setup,
                proposal,
                judge=None if self.setup.stopping is None else judge,
                progress=self.progress,
                should_stop=should_stop,
            )
        except _TakenOverError:  # whoever took it over has proposed it again
            raise
        except (TrainingInterruptedError, OutageError):  # the next run takes this proposal up first
            try:
                self.dialogue.queue({**trial.params}, once=_again(trial))
                self.dialogue.set_aside(trial)
                self.dialogue.tell_unfinished(trial, TrialState.FAIL, "interrupted; proposed again")
            except LOST_ERRORS:
                with contextlib.suppress(OSError, OutageError):  # it needs no room, and says that this is no death
                    self.setup.folder.checkpoint(network).touch()
            raise

        def tell() -> None:
            if record.state == "complete":  # itself last: whoever closes a trial that still runs makes good its points
                self.add_points(record, but=proposal)
                self._tell_point(trial, proposal, record)
                self.add_points(record)  # its own, where it was closed before
                return
            if self.ledger.may_pass(record):
                self._retry(trial, {**trial.params}, record)
            self._tell_unmeasured(trial, record)

        return record, tell

    @contextlib.contextmanager
    def _beating(self, trial: Trial) -> Iterator[None]:
        """Let a trial's heart beat in the storage while the block runs, where it can; see whether it is taken over."""
        self._is_taken_over.clear()
        done = threading.Event()

        def beat() -> None:
            pause: float = BEAT_SECONDS
            while not done.wait(pause):
                pause = BEAT_SECONDS
                try:
                    self._beat(trial)
                    if not is_running(self.study, trial._trial_id):
                        self._is_taken_over.set()
                except LOST_ERRORS:  # a storage that is away may come back
                    pause = _RETRY_SECONDS

        heart = threading.Thread(target=beat, daemon=True, name="heartbeat")
        heart.start()
        try:
            yield
        finally:
            done.set()
            heart.join()

    def _beat(self, trial: Trial) -> None:
        storage = self.study._storage
        if isinstance(storage, BaseHeartbeat):
            storage.record_heartbeat(trial._trial_id)

    def _proposal(self, record_id: str, number: int, values: Values) -> Proposal:
        model = self.space.model_config_for(values)
        suggested = self._routing(values)
        if suggested is not None and isinstance(model, CAMixerSRConfig):
            model = model.with_routing(suggested)  # by which records tell the suggested point from its siblings
        return Proposal(
            record_id=record_id,
            kind="trial",
            number=number,
            model=model,
            training=with_teacher(self.space.training_config(values), self.setup.teachers),
            routings=(None,) if suggested is None else self.routings,
            suggested=suggested,
            suggestion=values,
            compression=self.space.compression_config(values),
        )

    def _routing(self, values: Values) -> RoutingConfig | None:
        return self.space.routing_config(values) if self.space.routes else None

    def _tell_point(self, trial: Trial, proposal: Proposal, record: TrialRecord) -> None:
        """Tell the values of the suggested point of a trained network: of its file, where it is quantised."""
        point = next(point for point in record.produced if point.routing == proposal.suggested)
        values = self._objective_values(point)
        if values is None:
            self.dialogue.tell_unfinished(trial, TrialState.FAIL, "an objective was not measured")
            return
        self.dialogue.tell_point(trial, values, self._relative_violations(point))

    def add_points(self, record: TrialRecord, *, but: Proposal | None = None) -> None:
        """Add each point of a trained network that its trial has not told, as a finished sibling of it, once.

        `but`: without the point that this suggested, which its trial is about to tell.
        Calibrated routings are no values of the space's dimensions: their points stand in the record alone. So do
        those of a network before its quantisation, which its dimensions lead beyond.
        """
        points = []
        for point in record.produced:
            values = self._objective_values(point)
            if values is None or (point.routing is not None and point.routing not in self.routings):
                continue
            if but is not None and point.routing == but.suggested:
                continue
            suggestion = record.suggestion
            if point.routing is not None:
                suggestion = with_routing(self.space, suggestion, point.routing)
            points.append(Point(suggestion, values, self._relative_violations(point)))
        self.dialogue.add_points(record.record_id, record.network_id, points)

    def _objective_values(self, point: PointRecord) -> list[float] | None:
        values = [point.value(objective.metric) for objective in self.space.objectives]
        measured = [float(value) for value in values if value is not None and math.isfinite(value)]
        return measured if len(measured) == len(values) else None

    def _relative_violations(self, point: PointRecord) -> dict[str, float]:
        return {
            constraint.name: relative_violation(point.constraints[constraint.name], constraint.bound)
            for constraint in self.space.parsed_constraints()
        }

    def _tell_unmeasured(self, trial: Trial, record: TrialRecord) -> None:
        violations: dict[str, float] = {}
        if record.state == "rejected":  # the sampler learns that this region is infeasible
            for constraint in self.space.parsed_constraints():
                violation = record.violations.get(constraint.name, 0.0)
                violations[constraint.name] = relative_violation(violation, constraint.bound)
        state = TrialState.PRUNED if record.state in ("rejected", "stopped") else TrialState.FAIL
        self.dialogue.tell_unfinished(trial, state, record.reason or "", violations)


def _again(trial: Trial | FrozenTrial) -> str:
    """Return what is once the case: that a trial's proposal is queued again, by whoever sees that it must be."""
    return f"again {trial.number}"


def _params(left: FrozenTrial) -> Params:
    """Return what a trial that was left open proposed: what was queued, and what a sampler had suggested."""
    return {**left.user_attrs.get("proposal", {}), **left.params}

"""The search: ask, train, tell; killed at any moment it goes on where it was.

The records in the study's folder are the source of truth and are written before the sampler is told. A run begins by
bringing the database up to them: points of trained networks that it does not hold are added, and a trial that a killed
process left running is closed and, where it has no record, proposed again, to be trained on from its checkpoint. One
process at a time searches in a folder; two folders must not share a study of the same name in one storage.
"""

import contextlib
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from harness.core.configs import BicubicConfig, CAMixerSRConfig, RoutingConfig, SwinIRConfig, TrainingConfig
from harness.core.environment import now
from harness.core.errors import UserError
from harness.core.records import PointRecord, StudyRecord, TrialRecord
from harness.core.study_folder import StudyFolder
from harness.models import preset_config
from harness.search.proposals import (
    Params,
    count_networks,
    decode_params,
    distribution,
    encode_values,
    grid,
    suggest,
)
from harness.search.samplers import make_sampler
from harness.search.space import SearchSpace, Values
from harness.training import TrainingInterruptedError
from harness.trial import Proposal, TrialProgress, TrialSetup, abandon, answer_from, run_trial

_MAX_DEATHS = 3  # of the process in one proposal, with no checkpoint written in between
_MAX_FAILURES_IN_A_ROW = 5
_MAX_IDLE_PROPOSALS = 20  # repeats and rejections in a row before the space counts as exhausted
_STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError, ValueError)


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended: `finished`, `interrupted`, `out of time`, `exhausted` or `failing`, and why in a sentence."""

    ending: str
    reason: str
    networks: int


def study_record(name: str, space: SearchSpace, space_text: str, setup: TrialSetup) -> StudyRecord:
    """Describe a study for those who read its folder."""
    return StudyRecord(
        name=name,
        scale=space.scale,
        task=space.task,
        protocol=space.data.protocol,
        objectives=space.objectives,
        constraints=space.constraints,
        data=space.data_config,
        training=space.training_config(),
        latency_input_size=setup.latency_input_size,
        macs_input_size=setup.macs_input_size,
        devices=setup.devices,
        validation_images=tuple(setup.validation[index].name for index in range(len(setup.validation))),
        space=space_text,
        space_hash=study_identity(space, setup),
        created_at=now(),
    )


def run_search(
    space: SearchSpace,
    setup: TrialSetup,
    record: StudyRecord,
    *,
    storage: str | None = None,
    on_start: Callable[[], None] = lambda: None,
    on_record: Callable[[TrialRecord], None] = lambda record: None,
    progress: TrialProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SearchOutcome:
    """Run a study until its budget is spent, from the start or from where it was left.

    `storage` is any Optuna RDB URL; by default an SQLite database in the study's folder. `on_start` is called when the
    study is open and nothing speaks against it; `on_record` gets every record that this run makes, after it is on disk.
    A second search in the same folder is refused. Raises `UserError` where the folder or the storage holds another
    space's study, and where the storage cannot be reached.
    """
    folder = setup.folder
    connection = _connect(storage) if storage is not None else None  # before anything is written
    folder.path.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder):
        if folder.study_file.is_file():
            known = folder.read_study()
            _refuse_other_space(known, record)
            record = record.model_copy(update={"created_at": known.created_at})
        connection = connection or _connect(f"sqlite:///{folder.database.resolve()}")
        study = _open_study(space, record, connection)
        folder.write_study(record)
        on_start()
        try:
            return _Search(space, setup, study, on_record, progress, should_stop).run()
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise UserError(
                f"storage {_describe(connection)} failed: {_first_line(error)}; every finished trial is on disk, and "
                "the same command goes on from there"
            ) from error


def baseline_config(space: SearchSpace, name: str) -> CAMixerSRConfig | SwinIRConfig | BicubicConfig:
    """Return the config of a baseline; a network gets the image residual that the searched networks get."""
    model = preset_config(name, space.scale)
    if isinstance(model, SwinIRConfig):
        return model.model_copy(update={"image_residual": bool(space.model.get("image_residual", False))})
    return model


class _Search:
    """One run of a study."""

    def __init__(
        self,
        space: SearchSpace,
        setup: TrialSetup,
        study: optuna.Study,
        on_record: Callable[[TrialRecord], None],
        progress: TrialProgress | None,
        should_stop: Callable[[], bool],
    ):
        self.space = space
        self.setup = setup
        self.study = study
        self.on_record = on_record
        self.progress = progress
        self.should_stop = should_stop
        self.started = time.monotonic()
        self.routings = space.routings()
        self.num_networks = count_networks(space)
        self.records: dict[str, TrialRecord] = {}
        self.trained: dict[str, TrialRecord] = {}
        for record in setup.folder.read_trials():
            self._remember(record)
        self.told: defaultdict[str, set[RoutingConfig | None]] = defaultdict(set)  # what the study knows, by network
        self.queued: set[str] = set()
        for trial in study.get_trials(deepcopy=False):
            if trial.state == TrialState.COMPLETE and "network" in trial.user_attrs:
                self.told[trial.user_attrs["network"]].add(self._routing(decode_params(space, trial.params)))
            if "proposal" in trial.user_attrs:
                self.queued.add(_key(trial.user_attrs["proposal"]))
        self.plan = self._plan()

    def run(self) -> SearchOutcome:
        """Baselines first, then trials."""
        try:
            for name in self.space.baselines:
                if self.should_stop():
                    return self._outcome("interrupted", "stopped on request")
                self._run_baseline(name)
            self._close_interrupted()
            for record in self.trained.values():
                self._add_points(record)
            return self._run_trials()
        except TrainingInterruptedError as interruption:
            return self._outcome("interrupted", f"training was {interruption}")

    def _run_trials(self) -> SearchOutcome:
        budget = self.space.budget
        failures = 0
        idle = 0
        while len(self.trained) < budget.networks:
            if self.should_stop():
                return self._outcome("interrupted", "stopped on request")
            if budget.seconds is not None and time.monotonic() - self.started > budget.seconds:
                return self._outcome("out of time", f"the budget of {budget.seconds:g} s is spent")
            if failures >= _MAX_FAILURES_IN_A_ROW:
                return self._outcome("failing", f"{failures} trials in a row failed; see their reasons in the report")
            if self.num_networks is not None and len(self.trained) >= self.num_networks:
                return self._outcome("exhausted", f"all {self.num_networks} networks of the space are trained")
            if idle >= _MAX_IDLE_PROPOSALS:
                return self._outcome("exhausted", self._describe_idling(idle))
            if not self._queue_next() and self.space.sampler.name == "grid":
                return self._outcome("exhausted", "every point of the grid was proposed")
            state = self._run_one()
            failures = 0 if state == "complete" else failures + (state == "failed")
            idle = idle + 1 if state in ("answered", "rejected") and self.space.sampler.name != "grid" else 0
        return self._outcome("finished", f"the budget of {budget.networks} networks is spent")

    def _describe_idling(self, idle: int) -> str:
        known = "" if self.num_networks is None else f" of the space's {self.num_networks}"
        return f"{idle} proposals in a row were repeats or rejected; {len(self.trained)}{known} networks are trained"

    def _outcome(self, ending: str, reason: str) -> SearchOutcome:
        return SearchOutcome(ending, reason, len(self.trained))

    def _remember(self, record: TrialRecord) -> None:
        self.records[record.record_id] = record
        if record.kind == "trial" and record.state == "complete":
            self.trained[record.network_id] = record

    def _finish(self, record: TrialRecord) -> None:
        self._remember(record)
        self.on_record(record)

    def _run_baseline(self, name: str) -> None:
        record_id = f"baseline-{name}"
        if record_id in self.records and self.records[record_id].state == "complete":
            return
        model = baseline_config(self.space, name)
        training: TrainingConfig | None = None if name == "bicubic" else self.space.baseline_training_config()
        proposal = Proposal(record_id, "baseline", None, model, training, (None,), None)
        record = run_trial(self.setup, proposal, progress=self.progress, should_stop=self.should_stop)
        self._finish(record)
        if record.state != "complete":
            raise UserError(f"baseline {name} failed: {record.reason}")

    def _close_interrupted(self) -> None:
        """Close what a killed run left open, and propose it again where no record of it was written."""
        for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            written = self.records.get(str(left.user_attrs.get("record_id")))
            if written is None:
                self._propose_again(left)
            is_pruned = written is not None and written.state in ("rejected", "stopped")
            self.study.tell(left.number, state=TrialState.PRUNED if is_pruned else TrialState.FAIL)

    def _propose_again(self, left: FrozenTrial) -> None:
        """Queue a proposal again, until the process has died too often in it without getting on."""
        params: Params = {**left.user_attrs.get("proposal", {}), **left.params}
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not params or any(_key(trial.user_attrs.get("proposal", {})) == _key(params) for trial in waiting):
            return  # nothing was proposed yet, or it was queued again before the process died once more
        network = left.user_attrs.get("network")
        checkpoint = self.setup.folder.checkpoint_file(network) if network is not None else None
        mark = checkpoint.stat().st_mtime_ns if checkpoint is not None and checkpoint.is_file() else 0
        is_stuck = mark == left.user_attrs.get("checkpoint", 0)
        deaths = int(left.user_attrs.get("deaths", 0)) + 1 if is_stuck else 1
        if deaths <= _MAX_DEATHS:
            self._queue(params, deaths=deaths, checkpoint=mark)
            return
        reason = f"the process died {deaths} times in this trial without getting on"
        record_id = str(left.user_attrs["record_id"])
        proposal = self._proposal(record_id, int(record_id.partition("-")[2]), decode_params(self.space, params))
        self._finish(abandon(self.setup, proposal, reason))

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
            if proposal.network_id(self.setup.data) not in self.trained:
                yield params

    def _queue_next(self) -> bool:
        """Queue the next planned proposal, unless one is waiting; return whether one is waiting now.

        At most one waits at any time, so that an interrupted proposal is the first of the next run.
        """
        if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return True
        for params in self.plan:
            if _key(params) not in self.queued:
                self._queue(params)
                return True
        return False

    def _queue(self, params: Params, **marks: int) -> None:
        self.queued.add(_key(params))
        self.study.enqueue_trial(params, user_attrs={"proposal": params, **marks})

    def _run_one(self) -> str:
        """Ask for one proposal and see it through; return the state that it ended in."""
        self.study.sampler = make_sampler(self.space, len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask()
        number = trial.number
        while f"trial-{number:05d}" in self.records:  # a new database knows nothing of older records
            number += 1
        record_id = f"trial-{number:05d}"
        trial.set_user_attr("record_id", record_id)
        try:
            proposal = self._proposal(record_id, number, suggest(trial, self.space))
        except UserError as error:  # settings that do not go together, each of them fine alone
            self._tell_unfinished(trial, TrialState.PRUNED, str(error))
            return "rejected"
        network = proposal.network_id(self.setup.data)
        trial.set_user_attr("network", network)
        known = self.trained.get(network)
        if known is not None:
            record = answer_from(self.setup, proposal, known)
            self._tell_point(trial, proposal, known)
        else:
            try:
                record = run_trial(self.setup, proposal, progress=self.progress, should_stop=self.should_stop)
            except TrainingInterruptedError:  # asked to stop: the next run takes this proposal up first
                self._queue({**trial.params})
                self._tell_unfinished(trial, TrialState.FAIL, "interrupted; proposed again")
                raise
            if record.state == "complete":
                self._tell_point(trial, proposal, record)
                self._add_points(record)
            else:
                self._tell_unmeasured(trial, record)
        self._finish(record)
        return record.state

    def _proposal(self, record_id: str, number: int, values: Values) -> Proposal:
        model = self.space.model_config_for(values)
        suggested = self._routing(values)
        return Proposal(
            record_id=record_id,
            kind="trial",
            number=number,
            model=model,
            training=self.space.training_config(values),
            routings=(None,) if suggested is None else self.routings,
            suggested=suggested,
            suggestion=values,
        )

    def _routing(self, values: Values) -> RoutingConfig | None:
        return self.space.routing_config(values) if self.space.routes else None

    def _tell_point(self, trial: Trial, proposal: Proposal, record: TrialRecord) -> None:
        """Tell the values of the suggested point of a trained network."""
        point = next(point for point in record.points if point.routing == proposal.suggested)
        values = self._objective_values(point)
        if values is None:
            self._tell_unfinished(trial, TrialState.FAIL, "an objective was not measured")
            return
        for name, violation in self._relative_violations(point).items():
            trial.set_constraint(name, violation)
        self.study.tell(trial, values)
        self.told[record.network_id].add(point.routing)

    def _add_points(self, record: TrialRecord) -> None:
        """Add each point of a trained network that the study does not know, as a finished sibling of its trial.

        Calibrated routings are no values of the space's dimensions: their points stand in the record alone.
        """
        for point in record.points:
            values = self._objective_values(point)
            if values is None or point.routing in self.told[record.network_id]:
                continue
            if point.routing is not None and point.routing not in self.routings:
                continue
            suggestion = dict(record.suggestion)
            if point.routing is not None:
                chosen: Values = {"routing.gamma": point.routing.gamma, "routing.policy": point.routing.policy}
                if point.routing.policy == "threshold":  # γ is ignored, but it must be one of the space's
                    del chosen["routing.gamma"]
                suggestion |= {name: value for name, value in chosen.items() if name in self.space.dimensions}
            self.study.add_trial(
                create_trial(
                    params=encode_values(suggestion),
                    distributions={name: distribution(self.space.dimensions[name]) for name in suggestion},
                    values=values,
                    constraints=self._relative_violations(point) or None,
                    user_attrs={"parent": record.number, "record_id": record.record_id, "network": record.network_id},
                )
            )
            self.told[record.network_id].add(point.routing)

    def _objective_values(self, point: PointRecord) -> list[float] | None:
        values = [point.value(objective.metric) for objective in self.space.objectives]
        measured = [float(value) for value in values if value is not None and math.isfinite(value)]
        return measured if len(measured) == len(values) else None

    def _relative_violations(self, point: PointRecord) -> dict[str, float]:
        """Return violations as fractions of their bounds, because samplers add them up; 1 for what was not measured."""
        return {
            constraint.name: _relative(point.constraints[constraint.name], constraint.bound)
            for constraint in self.space.parsed_constraints()
        }

    def _tell_unmeasured(self, trial: Trial, record: TrialRecord) -> None:
        if record.state == "rejected":  # the sampler learns that this region is infeasible
            for constraint in self.space.parsed_constraints():
                violation = record.violations.get(constraint.name, 0.0)
                trial.set_constraint(constraint.name, _relative(violation, constraint.bound))
        state = TrialState.PRUNED if record.state in ("rejected", "stopped") else TrialState.FAIL
        self._tell_unfinished(trial, state, record.reason or "")

    def _tell_unfinished(self, trial: Trial, state: TrialState, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=state)


def _key(params: Params) -> str:
    return json.dumps(params, sort_keys=True)


def _relative(violation: float, bound: float) -> float:
    return violation / (abs(bound) or 1.0) if math.isfinite(violation) else 1.0


@contextlib.contextmanager
def _exclusive(folder: StudyFolder) -> Iterator[None]:
    lock = FileLock(folder.search_lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another search is running in {folder.path}; wait for it, or take another --study") from None
    try:
        yield
    finally:
        lock.release()


def _connect(url: str) -> RDBStorage:
    """Open a storage; an SQLite file is put into WAL mode, in which readers do not wait for the writer."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are about its own means, not about the study
    try:
        storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        if storage.engine.dialect.name == "sqlite":
            with storage.engine.connect() as connection:
                connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))
    except _STORAGE_ERRORS as error:
        raise UserError(f"storage {_without_password(url)} cannot be used: {_first_line(error)}") from None
    return storage


def _open_study(space: SearchSpace, record: StudyRecord, storage: RDBStorage) -> optuna.Study:
    """Open or create the Optuna study, and refuse one of another space."""
    directions = [objective.direction for objective in space.objectives]
    try:
        study = optuna.create_study(storage=storage, study_name=record.name, directions=directions, load_if_exists=True)
        known = study.user_attrs.get("space_hash")
        is_ours = known == record.space_hash
        if known is None and not study.get_trials(deepcopy=False):  # new, or killed just here
            is_ours = [direction.name.lower() for direction in study.directions] == directions
            if is_ours:
                study.set_user_attr("space_hash", record.space_hash)
    except _STORAGE_ERRORS as error:
        raise UserError(f"storage {_describe(storage)} cannot be used: {_first_line(error)}") from None
    if not is_ours:
        raise UserError(
            f"study {record.name!r} in {_describe(storage)} was made with another search space or other images; "
            "give this one another name with --study"
        )
    return study


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _describe(storage: RDBStorage) -> str:
    return storage.engine.url.render_as_string(hide_password=True)


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else url


def _refuse_other_space(known: StudyRecord, record: StudyRecord) -> None:
    if known.space_hash != record.space_hash:
        raise UserError(
            f"study {record.name!r} was made with another search space or other images (only budget, sampler, "
            "stopping, queue and description may change); give this one another name with --study"
        )


def study_identity(space: SearchSpace, setup: TrialSetup) -> str:
    """Hash the space and the images: results of different ones must not be mixed."""
    content = "/".join((space.identity(), setup.train.content_hash, setup.validation.content_hash))
    return hashlib.sha256(content.encode()).hexdigest()[:12]

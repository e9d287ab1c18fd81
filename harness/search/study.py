"""The search: ask, train, tell; killed at any moment it goes on where it was.

The records in the study's folder are the source of truth and are written before the sampler is told. What a killed
process leaves in the database is a trial still marked running; the next run re-queues its proposal, which is answered
from its record where one was written, and trained on from its checkpoint where not.
"""

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from harness.core.configs import SwinIRConfig, TrainingConfig
from harness.core.environment import now
from harness.core.errors import UserError
from harness.core.records import PointRecord, StudyRecord, TrialRecord
from harness.core.study_folder import StudyFolder
from harness.models import preset_config
from harness.search.samplers import make_sampler
from harness.search.space import ROUTING_DIMENSIONS, Dimension, SearchSpace, Values, encode
from harness.training import TrainingInterruptedError
from harness.trial import Proposal, TrialProgress, TrialSetup, answer_from, run_trial

_MAX_RETRIES = 3
_MAX_FAILURES_IN_A_ROW = 5
_PROPOSALS_PER_NETWORK = 20  # repeats and rejections before the space counts as exhausted


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
        task="classic",
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
        space_hash=_identity(space, setup),
        created_at=now(),
    )


def run_search(
    space: SearchSpace,
    setup: TrialSetup,
    record: StudyRecord,
    *,
    storage: str | None = None,
    on_record: Callable[[TrialRecord], None] = lambda record: None,
    progress: TrialProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> SearchOutcome:
    """Run a study until its budget is spent, from the start or from where it was left.

    `storage` is any Optuna RDB URL; by default an SQLite database (WAL) in the study's folder. `on_record` gets every
    record that this run makes, after it is on disk. One search at a time runs in a folder: a second is refused.
    Raises `UserError` where the folder or storage holds another space's study, or the storage cannot be reached.
    """
    folder = setup.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder):
        if folder.study_file.is_file():
            _refuse_other_space(folder.read_study(), record)
        else:
            folder.write_study(record)
        study = _open_study(space, record, storage or _embedded_storage(folder))
        return _Search(space, setup, study, on_record, progress, should_stop).run()


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
        self.trained: dict[str, TrialRecord] = {}
        self.baselines: set[str] = set()
        for record in setup.folder.read_trials():
            self._remember(record)

    def run(self) -> SearchOutcome:
        """Baselines first, then trials."""
        try:
            for name in self.space.baselines:
                if self.should_stop():
                    return self._outcome("interrupted", "stopped on request")
                self._run_baseline(name)
            self._requeue_interrupted()
            self._enqueue_presets()
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
            if idle >= _PROPOSALS_PER_NETWORK:
                return self._outcome("exhausted", f"{idle} proposals in a row were repeats or rejected")
            state = self._run_one()
            failures = failures + 1 if state == "failed" else 0
            idle = idle + 1 if state in ("answered", "rejected") else 0
        return self._outcome("finished", f"the budget of {budget.networks} networks is spent")

    def _outcome(self, ending: str, reason: str) -> SearchOutcome:
        return SearchOutcome(ending, reason, len(self.trained))

    def _remember(self, record: TrialRecord) -> None:
        if record.kind == "baseline" and record.state == "complete":
            self.baselines.add(record.record_id)
        elif record.state == "complete":
            self.trained[record.network_id] = record

    def _finish(self, record: TrialRecord) -> None:
        self._remember(record)
        self.on_record(record)

    def _run_baseline(self, name: str) -> None:
        record_id = f"baseline-{name}"
        if record_id in self.baselines:
            return
        model = preset_config(name, self.space.scale)
        if isinstance(model, SwinIRConfig):  # the baseline gets the residual that the networks get
            residual = bool(self.space.model.get("image_residual", False))
            model = model.model_copy(update={"image_residual": residual})
        training: TrainingConfig | None = None if name == "bicubic" else self.space.training_config()
        proposal = Proposal(record_id, "baseline", None, model, training, (None,), None)
        record = run_trial(self.setup, proposal, progress=self.progress, should_stop=self.should_stop)
        self._finish(record)
        if record.state != "complete":
            raise UserError(f"baseline {name} failed: {record.reason}")

    def _requeue_interrupted(self) -> None:
        """Close what a killed run left open and queue its proposal again, a bounded number of times."""
        for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            retries = int(left.user_attrs.get("retries", 0)) + 1
            if retries <= _MAX_RETRIES and left.params:
                self.study.enqueue_trial(left.params, user_attrs={"retries": retries})
            self.study.tell(left.number, state=TrialState.FAIL)

    def _enqueue_presets(self) -> None:
        if self.study.get_trials(deepcopy=False):
            return
        for entry in self.space.enqueue:
            self.study.enqueue_trial({name: encode(value) for name, value in entry.items()})

    def _run_one(self) -> str:
        """Ask for one proposal and see it through; return the state that it ended in."""
        self.study.sampler = make_sampler(self.space, len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask()
        values = suggest(trial, self.space)
        record_id = f"trial-{trial.number:05d}"
        try:
            proposal = Proposal(
                record_id=record_id,
                kind="trial",
                number=trial.number,
                model=self.space.model_config_for(values),
                training=self.space.training_config(values),
                routings=self.routings if self._routes(values) else (None,),
                suggested=self.space.routing_config(values) if self._routes(values) else None,
                suggestion=values,
            )
        except UserError as error:  # settings that do not go together, each of them fine alone
            self._tell_unfinished(trial, TrialState.FAIL, str(error))
            return "failed"
        known = self.trained.get(proposal.network_id(self.setup.data))
        if known is not None:
            record = answer_from(self.setup, proposal, known)
            self._tell_points(trial, proposal, known)
        else:
            try:
                record = run_trial(self.setup, proposal, progress=self.progress, should_stop=self.should_stop)
            except TrainingInterruptedError:  # asked to stop: the next run takes this proposal up first
                self.study.enqueue_trial(trial.params, user_attrs={"retries": trial.user_attrs.get("retries", 0)})
                self._tell_unfinished(trial, TrialState.FAIL, "interrupted; proposed again")
                raise
            if record.state == "complete":
                self._tell_points(trial, proposal, record)
            else:
                self._tell_rejection(trial, record)
        self._finish(record)
        return record.state

    def _routes(self, values: Values) -> bool:
        return self.space.model_config_for(values).family == "camixersr"

    def _tell_points(self, trial: Trial, proposal: Proposal, record: TrialRecord) -> None:
        """Tell the suggested point's values, and add the network's other points as finished sibling trials."""
        trial.set_user_attr("record_id", record.record_id)
        suggested = next(point for point in record.points if point.routing == proposal.suggested)
        for name, violation in suggested.constraints.items():
            trial.set_constraint(name, violation)
        values = self._objective_values(suggested)
        if values is None:
            self._tell_unfinished(trial, TrialState.FAIL, "an objective was not measured")
        else:
            self.study.tell(trial, values)
        self._add_siblings(trial, record)

    def _add_siblings(self, trial: Trial, record: TrialRecord) -> None:
        """Add each of the network's points that the study does not hold yet, tagged with the trial that trained it."""
        names: list[str] = [name for name in ROUTING_DIMENSIONS if name in self.space.dimensions]
        if not names or self.space.sampler.name == "grid":  # a grid proposes every point itself, and counts trials
            return
        held = {
            _sibling_key(known.params, names)
            for known in self.study.get_trials(deepcopy=False)
            if known.user_attrs.get("record_id") == record.record_id
        }
        distributions = trial.distributions
        for point in record.points:
            assert point.routing is not None
            chosen: Values = {"routing.gamma": point.routing.gamma, "routing.policy": point.routing.policy}
            params = {**trial.params, **{name: encode(chosen[name]) for name in names}}
            if point.routing.policy == "threshold" and "routing.gamma" in names:
                params["routing.gamma"] = trial.params["routing.gamma"]  # ignored, but it must be one of the space's
            values = self._objective_values(point)
            if values is None or _sibling_key(params, names) in held:
                continue
            self.study.add_trial(
                create_trial(
                    params=params,
                    distributions=distributions,
                    values=values,
                    constraints=point.constraints or None,
                    user_attrs={"parent": record.number, "record_id": record.record_id},
                )
            )

    def _objective_values(self, point: PointRecord) -> list[float] | None:
        values = [point.value(objective.metric) for objective in self.space.objectives]
        return (
            None if any(value is None for value in values) else [float(value) for value in values if value is not None]
        )

    def _tell_rejection(self, trial: Trial, record: TrialRecord) -> None:
        trial.set_user_attr("record_id", record.record_id)
        if record.state == "rejected":  # the sampler learns that this region is infeasible
            for constraint in self.space.parsed_constraints():
                violated = record.reason is not None and record.reason.endswith(constraint.name)
                trial.set_constraint(constraint.name, 1.0 if violated else 0.0)
        state = TrialState.PRUNED if record.state in ("rejected", "stopped") else TrialState.FAIL
        self._tell_unfinished(trial, state, record.reason or "")

    def _tell_unfinished(self, trial: Trial, state: TrialState, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=state)


def _sibling_key(params: Values, names: list[str]) -> tuple[Any, ...]:
    return tuple(params[name] for name in names)


def suggest(trial: Trial, space: SearchSpace) -> Values:
    """Ask the trial for every dimension whose condition holds; return decoded values by dimension name."""
    values: Values = {}
    for name, dimension in space.dimensions.items():
        if all(_holds(values, other, allowed) for other, allowed in dimension.when.items()):
            values[name] = _suggest_value(trial, name, dimension)
    return values


def _suggest_value(trial: Trial, name: str, dimension: Dimension) -> Any:
    if dimension.choices is not None:
        by_code = {encode(choice): choice for choice in dimension.choices}
        return by_code[trial.suggest_categorical(name, list(by_code))]
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.is_integer:
        low, high, step = int(dimension.low), int(dimension.high), int(dimension.step or 1)
        return trial.suggest_int(name, low, high, step=step, log=dimension.log)
    return encode(trial.suggest_float(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log))


def _holds(values: Values, name: str, allowed: tuple[Any, ...]) -> bool:
    return name in values and encode(values[name]) in {encode(value) for value in allowed}


@contextlib.contextmanager
def _exclusive(folder: StudyFolder) -> Iterator[None]:
    lock = FileLock(folder.path / "search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another search is running in {folder.path}; wait for it, or take another --study") from None
    try:
        yield
    finally:
        lock.release()


def _embedded_storage(folder: StudyFolder) -> str:
    """Return the URL of the study's SQLite database, in WAL mode (a property of the file, set once)."""
    connection = sqlite3.connect(folder.database)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.DatabaseError as error:
        raise UserError(f"{folder.database} is no study database: {error}; move it away to start again") from None
    finally:
        connection.close()
    return f"sqlite:///{folder.database.resolve()}"


def _open_study(space: SearchSpace, record: StudyRecord, url: str) -> optuna.Study:
    """Open or create the Optuna study, and refuse one of another space."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True}),
            study_name=record.name,
            directions=[objective.direction for objective in space.objectives],
            load_if_exists=True,
        )
        known = study.user_attrs.get("space_hash")
        if known is None:
            study.set_user_attr("space_hash", record.space_hash)
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(f"storage {_without_password(url)} cannot be used: {str(error).splitlines()[0]}") from None
    if known not in (None, record.space_hash):
        raise UserError(
            f"study {record.name!r} in {_without_password(url)} was made with another search space; "
            "give this one another name with --study"
        )
    return study


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else url


def _refuse_other_space(known: StudyRecord, record: StudyRecord) -> None:
    if known.space_hash != record.space_hash:
        raise UserError(
            f"study {record.name!r} was made with another search space or other images (only budget, sampler, queue "
            "and description may change); give this one another name with --study"
        )


def _identity(space: SearchSpace, setup: TrialSetup) -> str:
    """Hash the space and the images: results of different ones must not be mixed."""
    content = "/".join((space.identity(), setup.train.content_hash, setup.validation.content_hash))
    return hashlib.sha256(content.encode()).hexdigest()[:12]

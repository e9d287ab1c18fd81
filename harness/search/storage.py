"""Where a study is stored: any RDB that Optuna knows, an SQLite file in the study's folder by default.

Safe for many processes on one machine (SQLite in WAL mode) and for many machines (PostgreSQL, MySQL). Trials that run
have a heartbeat, so that a worker that is gone is missed wherever it ran.
"""

import contextlib
import importlib.util
import json
import re
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar, cast

import optuna
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as SQLAlchemyTimeoutError

from harness.core.errors import OutageError, UserError
from harness.core.records import StudyRecord
from harness.core.urls import SHOWN, without_credentials, without_secrets
from harness.search.space import SearchSpace


class StorageLostError(Exception):
    """A storage that there was has been away for longer than it is waited for."""


STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError, ValueError)
LOST_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError, StorageLostError)  # of a storage that there was
BEAT_SECONDS, GRACE_SECONDS = 15, 90
PATIENCE_SECONDS = 300.0  # how long a server that is away is waited for
ONCE = "once"  # attribute of a trial that is added once, however often and by whomever it is added
_REFUSALS = re.compile(
    "does not exist|authentication failed|no password supplied|pg_hba|permission denied|access denied|unknown database",
    re.IGNORECASE,
)  # of servers that are there, which say so at the connection, without a code
_LOGIN = re.compile(r"(?<=://)[^:/]*:[^@]*@")  # as SQLAlchemy reads it
_IDS_PER_QUERY = 500
_BUSY_SECONDS = 60  # how long SQLite waits for another writer
_POSTGRES_DRIVERS = ("psycopg", "psycopg2")
_POSTGRES_OPTIONS = {  # a server that is gone without a word is missed within a minute, not within hours
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 50_000,
}

ResultT = TypeVar("ResultT")


@dataclass
class Held:
    """What is to be written for a trial at once; parameters with the distributions that the study knows them by."""

    params: list[tuple[str, float, BaseDistribution, BaseDistribution | None]] = field(default_factory=list)
    attributes: dict[str, object] = field(default_factory=dict)
    has_beaten: bool = False
    thread: int = field(default_factory=threading.get_ident)


class Storage(RDBStorage):
    """Optuna's, in which a trial that is marked `ONCE` is added once; `patience_s` a server that is away is waited for.

    Optuna adds a trial again when the connection is lost, though the first attempt may have been committed. It takes a
    transaction for each parameter, attribute and heartbeat, which are written `at_once` here, and reads whatever
    belongs to a trial as objects, which takes several times as long as rows do.
    """

    patience_s: float = 0.0

    def __init__(self, *arguments: Any, **keywords: Any):
        self._held: dict[int, Held] = {}
        super().__init__(*arguments, **keywords)

    @contextlib.contextmanager
    def at_once(self, trial_id: int) -> Iterator[None]:
        """Write a trial's parameters, user attributes and heartbeats by one transaction when the block ends.

        What came before an error is written too; until then nobody can read any of it.
        """
        self._held[trial_id] = Held()
        try:
            yield
        except Exception:
            self.write(trial_id, self._held.pop(trial_id))
            raise
        else:
            self.write(trial_id, self._held.pop(trial_id))
        finally:
            self._held.pop(trial_id, None)

    def write(self, trial_id: int, held: Held) -> None:
        """Write all that was held of a trial."""
        with _create_scoped_session(self.scoped_session, True) as session:
            if held.has_beaten:
                beat = models.TrialHeartbeatModel.where_trial_id(trial_id, session)
                if beat is None:
                    session.add(models.TrialHeartbeatModel(trial_id=trial_id))
                else:
                    beat.heartbeat = session.execute(sqlalchemy.func.now()).scalar()
            if held.attributes or held.params:
                trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
                self.check_trial_is_updatable(trial_id, trial.state)
            _put(session, models.TrialUserAttributeModel, trial_id, "key", _attribute_rows(held.attributes))
            known = []
            for name, internal, distribution, of_study in held.params:
                if of_study is None:  # the study may know the parameter by another process's trials
                    self._set_trial_param_without_commit(session, trial_id, name, internal, distribution)
                else:
                    known.append(_param_row(name, internal, distribution))
            _put(session, models.TrialParamModel, trial_id, "param_name", known)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state and values of an open trial; False where another process sets its values meanwhile."""
        if values is None or not state.is_finished():
            return super().set_trial_state_values(trial_id, state, values)
        try:
            self._finish(trial_id, state, values)
        except IntegrityError:
            return False
        return True

    def _finish(self, trial_id: int, state: TrialState, values: Sequence[float]) -> None:
        with _create_scoped_session(self.scoped_session) as session:
            _put(session, models.TrialValueModel, trial_id, "objective", _value_rows(values))  # SQLite lets one write
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            self.check_trial_is_updatable(trial_id, trial.state)
            trial.state = state
            trial.datetime_complete = datetime.now()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial, later where it is to be written `at_once`."""
        if trial_id in self._held:
            self._held[trial_id].attributes[key] = value
        else:
            super().set_trial_user_attr(trial_id, key, value)

    def record_heartbeat(self, trial_id: int) -> None:
        """Say that a trial runs, later where it is to be written `at_once`; another thread's heart beats meanwhile."""
        held = self._held.get(trial_id)
        if held is not None and held.thread == threading.get_ident():
            held.has_beaten = True
        else:
            super().record_heartbeat(trial_id)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        if trial_id not in self._held:
            super()._set_trial_param(trial_id, param_name, param_value_internal, distribution, previous_distribution)
            return
        if previous_distribution is not None:
            check_distribution_compatibility(previous_distribution, distribution)
        held = param_name, param_value_internal, distribution, previous_distribution
        self._held[trial_id].params.append(held)

    def is_running(self, trial_id: int) -> bool:
        """Whether a trial runs, by one query."""
        with _create_scoped_session(self.scoped_session) as session:
            state = session.query(models.TrialModel.state).filter(models.TrialModel.trial_id == trial_id).scalar()
            return bool(state == TrialState.RUNNING)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read a trial."""
        with _create_scoped_session(self.scoped_session) as session:
            return self._freeze(session, [models.TrialModel.find_or_raise_by_id(trial_id, session)])[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read the trials of some ids, and all with greater ids than one, in the order of their ids."""
        trial = models.TrialModel
        older = sorted(one for one in included_trial_ids if one <= trial_id_greater_than)
        with _create_scoped_session(self.scoped_session) as session:
            of_study = session.query(trial).filter(trial.study_id == study_id)
            found = [
                one
                for ids in _parts(older)
                for one in of_study.filter(trial.trial_id.in_(ids)).order_by(trial.trial_id).all()
            ]
            found += of_study.filter(trial.trial_id > trial_id_greater_than).order_by(trial.trial_id).all()
            if not found:
                models.StudyModel.find_or_raise_by_id(study_id, session)
            return self._freeze(session, [one for one in found if states is None or one.state in states])

    @staticmethod
    def _freeze(session: Any, found: Sequence[Any]) -> list[FrozenTrial]:
        """Return what the rows of trials and all that belongs to them say."""
        if not found:
            return []
        ids = [one.trial_id for one in found]

        def details(model: Any, *names: str) -> defaultdict[int, list[Any]]:
            columns = model.__table__.columns
            wanted = [columns["trial_id"], *(columns[name] for name in names)]
            order = next(iter(model.__table__.primary_key))
            rows = defaultdict(list)
            for part in _parts(ids):
                asked = sqlalchemy.select(*wanted).where(columns["trial_id"].in_(part)).order_by(order)
                for trial_id, *row in session.execute(asked):
                    rows[trial_id].append(row)
            return rows

        params = details(models.TrialParamModel, "param_name", "param_value", "distribution_json")
        values = details(models.TrialValueModel, "objective", "value", "value_type")
        user = details(models.TrialUserAttributeModel, "key", "value_json")
        system = details(models.TrialSystemAttributeModel, "key", "value_json")
        steps = details(models.TrialIntermediateValueModel, "step", "intermediate_value", "intermediate_value_type")
        value_of = models.TrialValueModel.stored_repr_to_value
        step_value_of = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
        return [
            FrozenTrial(
                number=one.number,
                state=one.state,
                value=None,
                values=[value_of(value, kind) for _, value, kind in sorted(values[one.trial_id])] or None,
                datetime_start=one.datetime_start,
                datetime_complete=one.datetime_complete,
                params={
                    name: _distribution(text).to_external_repr(value) for name, value, text in params[one.trial_id]
                },
                distributions={name: _distribution(text) for name, _, text in params[one.trial_id]},
                user_attrs={key: json.loads(text) for key, text in user[one.trial_id]},
                system_attrs={key: json.loads(text) for key, text in system[one.trial_id]},
                intermediate_values={step: step_value_of(value, kind) for step, value, kind in steps[one.trial_id]},
                trial_id=one.trial_id,
            )
            for one in found
        ]

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Any
    ) -> models.TrialModel:
        once = None if template_trial is None else template_trial.user_attrs.get(ONCE)
        if once is not None:
            self._hold(study_id, session)
            mark = models.TrialUserAttributeModel.value_json
            added = self._marked(models.TrialModel, study_id, session).filter(mark == json.dumps(once)).first()
            if added is not None:
                return cast(models.TrialModel, added)
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    def _hold(self, study_id: int, session: Any) -> None:
        """Let nobody else add trials to a study until the session ends."""
        study = models.StudyModel
        study.find_or_raise_by_id(study_id, session, for_update=True)
        if self.engine.dialect.name == "sqlite":  # it locks nothing before something is written
            session.execute(
                sqlalchemy.update(study).where(study.study_id == study_id).values(study_name=study.study_name)
            )

    @staticmethod
    def _marked(found: Any, study_id: int, session: Any) -> Any:
        """Return the query that finds something of all trials of a study that are marked `ONCE`."""
        trial, attribute = models.TrialModel, models.TrialUserAttributeModel
        return (
            session.query(found)
            .filter(attribute.trial_id == trial.trial_id)
            .filter(trial.study_id == study_id)
            .filter(attribute.key == ONCE)
        )

    def add_finished(self, study_id: int, trials: Sequence[FrozenTrial], newer_than: int) -> None:
        """Add finished trials in one transaction, but for those that stand among the trials `newer_than` an id.

        Optuna's own way takes a transaction for each and a query for each of its parameters and attributes.
        """
        with _create_scoped_session(self.scoped_session) as session:
            self._hold(study_id, session)
            marks = self._marked(models.TrialUserAttributeModel.value_json, study_id, session)
            known = {json.loads(mark) for (mark,) in marks.filter(models.TrialModel.trial_id > newer_than)}
            missing = [trial for trial in trials if trial.user_attrs[ONCE] not in known]
            if not missing:
                return
            rows = [
                models.TrialModel(
                    study_id=study_id,
                    number=None,
                    state=trial.state,
                    datetime_start=trial.datetime_start,
                    datetime_complete=trial.datetime_complete,
                )
                for trial in missing
            ]
            session.add_all(rows)
            session.flush()
            rows.sort(key=lambda row: row.trial_id)
            first = rows[0].count_past_trials(session)
            details: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
            for number, (row, trial) in enumerate(zip(rows, missing, strict=True), first):
                row.number = number
                for model, values in _details(trial):
                    details[model].append({"trial_id": row.trial_id, **values})
            for model, stored in details.items():
                session.execute(sqlalchemy.insert(model), stored)


def _details(trial: FrozenTrial) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the rows of the values, parameters and attributes of a trial."""
    for row in _value_rows(trial.values):
        yield models.TrialValueModel, row
    for name, choice in trial.params.items():
        distribution = trial.distributions[name]
        yield models.TrialParamModel, _param_row(name, distribution.to_internal_repr(choice), distribution)
    for row in _attribute_rows(trial.user_attrs):
        yield models.TrialUserAttributeModel, row
    for row in _attribute_rows(trial.system_attrs):
        yield models.TrialSystemAttributeModel, row


def _value_rows(values: Sequence[float]) -> list[dict[str, Any]]:
    stored = [models.TrialValueModel.value_to_stored_repr(value) for value in values]
    return [
        {"objective": objective, "value": value, "value_type": kind} for objective, (value, kind) in enumerate(stored)
    ]


def _attribute_rows(attributes: Mapping[str, object]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def _param_row(name: str, internal: float, distribution: BaseDistribution) -> dict[str, Any]:
    return {"param_name": name, "param_value": internal, "distribution_json": distribution_to_json(distribution)}


def _put(session: Any, model: Any, trial_id: int, key: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of a trial, in the place of those with the same key."""
    if not rows:
        return
    table = model.__table__
    same = table.columns["trial_id"] == trial_id, table.columns[key].in_([row[key] for row in rows])
    # Looked for first: MySQL locks the gap where a row is deleted that is not there, and others' trials with it.
    if session.execute(sqlalchemy.select(table.columns[key]).where(*same)).first() is not None:
        session.execute(sqlalchemy.delete(table).where(*same))
    session.execute(sqlalchemy.insert(table), [{"trial_id": trial_id, **row} for row in rows])


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    """Return a distribution, the same one for all trials that say it in the same words; nobody changes any."""
    return json_to_distribution(text)


def _parts(ids: Collection[int]) -> Iterator[Sequence[int]]:
    """Yield ids in as large parts as every database takes in one query."""
    listed = list(ids)
    for start in range(0, len(listed), _IDS_PER_QUERY):
        yield listed[start : start + _IDS_PER_QUERY]


def _backend(study: optuna.Study) -> Storage | None:
    """Return what is ours behind a study; None where it is kept in memory alone."""
    backend = getattr(study._storage, "_backend", None)
    return backend if isinstance(backend, Storage) else None


def add_finished(study: optuna.Study, trials: Sequence[FrozenTrial], newer_than: int) -> None:
    """Add finished trials that are marked `ONCE`, but for those that others have added after the trial `newer_than`."""
    backend = _backend(study)
    if backend is not None:
        backend.add_finished(study._study_id, trials, newer_than)
    else:
        study.add_trials(trials)


def is_running(study: optuna.Study, trial_id: int) -> bool:
    """Whether a trial of ours runs still; in a storage without heartbeats nobody takes it over."""
    backend = _backend(study)
    return backend is None or backend.is_running(trial_id)


def at_once(study: optuna.Study, trial_id: int) -> contextlib.AbstractContextManager[None]:
    """Write what is suggested and said of a trial in the block by one transaction, where the storage has any."""
    backend = _backend(study)
    return contextlib.nullcontext() if backend is None else backend.at_once(trial_id)


def connect(url: str, patience_s: float | None = None) -> Storage:
    """Open a storage; an SQLite file is put into WAL mode, in which readers do not wait for the writer.

    `patience_s` is for how long a server that is away will be waited for later; it must be there now. `OutageError`
    where it is not; another `UserError` where it is of no use to wait for it.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are about its own means, not about the study
    options: dict[str, object] = {"pool_pre_ping": True}
    shown = _shown(url)
    try:
        place = sqlalchemy.make_url(url)
        if place.drivername in ("postgres", "postgresql"):
            known = [driver for driver in _POSTGRES_DRIVERS if importlib.util.find_spec(driver) is not None]
            place = place.set(drivername=f"postgresql+{(known or _POSTGRES_DRIVERS)[0]}")
        if place.get_backend_name() == "sqlite":
            options["connect_args"] = {"timeout": _BUSY_SECONDS}
        elif place.get_backend_name() == "postgresql" and place.get_driver_name() in _POSTGRES_DRIVERS:
            options["connect_args"] = {**_POSTGRES_OPTIONS, **place.query}
        with warnings.catch_warnings():  # that heartbeats are an experiment of Optuna's is no news for who searches
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = Storage(
                place.render_as_string(hide_password=False),
                engine_kwargs=options,
                heartbeat_interval=BEAT_SECONDS,
                grace_period=GRACE_SECONDS,
            )
        if storage.engine.dialect.name == "sqlite":
            with storage.engine.connect() as connection:
                connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))
            sqlalchemy.event.listen(storage.engine, "connect", _sync_rarely)
            storage.engine.dispose()  # the connections of before
        else:
            storage.patience_s = PATIENCE_SECONDS if patience_s is None else patience_s
    except ImportError as error:
        if place.get_backend_name() != "postgresql":
            raise UserError(f"storage {shown} cannot be used: {explain(error, url)}") from None
        raise UserError(
            f"storage {shown} needs a driver that is not installed; `pip install 'harness[postgres]'` "
            "installs that of postgresql+psycopg://"
        ) from None
    except STORAGE_ERRORS as error:
        raise _cannot_be_used(url, error) from None
    return storage


def _cannot_be_used(url: str, error: BaseException) -> UserError:
    """Return what to raise where a storage cannot be used: `OutageError` where it may be later."""
    kind = OutageError if _is_away(error) else UserError
    return kind(f"storage {_shown(url)} cannot be used: {explain(error, url)}")


def _is_away(error: BaseException) -> bool:
    """Whether an error says that there is no connection, which there may be later, and not that one is refused."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    is_connection = isinstance(error, SQLAlchemyTimeoutError | InterfaceError | OperationalError)
    return is_connection and not _REFUSALS.search(explain(error))


def load_study(storage: RDBStorage, name: str) -> optuna.Study:
    """Return a study that others have begun; `UserError` where there is none, `OutageError` where nobody answers."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        raise UserError(
            f"storage {describe(storage)} holds no study {name!r}; begin it with `harness search --storage`"
        ) from None
    except LOST_ERRORS as error:
        raise _cannot_be_used(_url(storage), error) from None


def _sync_rarely(connection: Any, _: object) -> None:
    """Let a transaction not wait for the disk: a power failure may take the last ones back, and no process's end does.

    What they said stands in the study's records, which do wait.
    """
    connection.execute("PRAGMA synchronous=NORMAL")


def join(url: str, name: str, patience_s: float, should_stop: Callable[[], bool] = lambda: False) -> optuna.Study:
    """Open a study that others have begun, in a storage that may be away just now; whatever else is wrong is raised."""
    started = time.monotonic()
    while True:
        try:
            return load_study(connect(url, patience_s), name)
        except OutageError as error:
            if should_stop() or time.monotonic() - started >= patience_s:
                raise StorageLostError(explain(error)) from None
            time.sleep(1)


def open_study(space: SearchSpace, record: StudyRecord, storage: RDBStorage) -> optuna.Study:
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
    except STORAGE_ERRORS as error:
        raise UserError(f"storage {describe(storage)} cannot be used: {explain(error, _url(storage))}") from None
    if not is_ours:
        raise UserError(
            f"study {record.name!r} in {describe(storage)} was made with another search space or other images; "
            "give this one another name with --study"
        )
    return study


def patience_of(study: optuna.Study) -> float:
    """Return for how many seconds a storage that is lost is waited for: a server may come back, a file does not."""
    backend = _backend(study)
    return 0.0 if backend is None else backend.patience_s


def patiently(
    study: optuna.Study, call: Callable[[], ResultT], should_stop: Callable[[], bool] = lambda: False
) -> ResultT:
    """Return what a call gives, made again while the storage is lost; it must be one that may be made twice.

    Where the search is to stop, a storage that is lost is not waited for.
    """
    started = time.monotonic()
    while True:
        try:
            return call()
        except LOST_ERRORS:
            if should_stop() or time.monotonic() - started >= patience_of(study):
                raise
            time.sleep(1)


def explain(error: BaseException, url: str = "") -> str:
    """Return the first line of an error's message, or of the database's where Optuna has only general advice.

    The password of a storage's URL is left out. Says what to do about an SQLite file that is damaged.
    """
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if "malformed" in text or "not a database" in text:
        text += "; delete the file, and `harness search` makes it again from the study's records"
    return without_credentials(without_secrets(text, _password(url)), SHOWN)


def lost(storage: BaseStorage, error: BaseException) -> OutageError:
    """Return what to raise where a storage is lost in the middle of a search."""
    backend: RDBStorage = vars(storage).get("_backend", storage)  # what Optuna puts before an RDB for its cache
    return OutageError(
        f"storage {describe(backend)} failed: {explain(error, _url(backend))}; every finished trial is on disk, and "
        "the same command goes on from there once the storage is back"
    )


def describe(storage: RDBStorage) -> str:
    """Return a storage's URL without its password."""
    return _shown(_url(storage))


def _url(storage: RDBStorage) -> str:
    return storage.engine.url.render_as_string(hide_password=False)


def _shown(url: str) -> str:
    """Return a storage's URL without its password."""
    return without_credentials(_LOGIN.sub(SHOWN, url), SHOWN)


def _password(url: str) -> str:
    """Return the password of a storage's URL, but for one that is a name in it as well: `postgres:postgres@host`."""
    try:
        place = sqlalchemy.make_url(url)
    except (SQLAlchemyError, ValueError):
        return ""
    names = (place.username, place.host, place.database)
    return "" if place.password in names else str(place.password or "")

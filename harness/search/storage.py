"""Where a study is stored: any RDB that Optuna knows, an SQLite file in the study's folder by default.

Safe for many processes on one machine (SQLite in WAL mode) and for many machines (PostgreSQL, MySQL). Trials that run
have a heartbeat, so that a worker that is gone is missed wherever it ran.
"""

import importlib.util
import json
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as SQLAlchemyTimeoutError

from harness.core.errors import OutageError, UserError
from harness.core.records import StudyRecord
from harness.core.urls import SHOWN, without_credentials
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


class Storage(RDBStorage):
    """Optuna's, in which a trial that is marked `ONCE` is added once; `patience_s` a server that is away is waited for.

    Optuna adds a trial again when the connection is lost, though the first attempt may have been committed.
    """

    patience_s: float = 0.0

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

    def set_attributes(self, trial_id: int, attributes: Mapping[str, object]) -> None:
        """Set user attributes of a trial in one transaction."""
        with _create_scoped_session(self.scoped_session, True) as session:
            for key, value in attributes.items():
                self._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, key, value)

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
    for objective, told in enumerate(trial.values):
        value, kind = models.TrialValueModel.value_to_stored_repr(told)
        yield models.TrialValueModel, {"objective": objective, "value": value, "value_type": kind}
    for name, choice in trial.params.items():
        distribution = trial.distributions[name]
        stored = {
            "param_name": name,
            "param_value": distribution.to_internal_repr(choice),
            "distribution_json": distribution_to_json(distribution),
        }
        yield models.TrialParamModel, stored
    for key, mark in trial.user_attrs.items():
        yield models.TrialUserAttributeModel, {"key": key, "value_json": json.dumps(mark)}
    for key, mark in trial.system_attrs.items():
        yield models.TrialSystemAttributeModel, {"key": key, "value_json": json.dumps(mark)}


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


def set_attributes(study: optuna.Study, trial_id: int, attributes: Mapping[str, object]) -> None:
    """Set attributes of a trial that runs, in one transaction where the study's storage has any."""
    backend = _backend(study)
    if backend is not None:
        backend.set_attributes(trial_id, attributes)
    else:
        for key, value in attributes.items():
            study._storage.set_trial_user_attr(trial_id, key, value)


def connect(url: str, patience_s: float | None = None) -> Storage:
    """Open a storage; an SQLite file is put into WAL mode, in which readers do not wait for the writer.

    `patience_s` is for how long a server that is away will be waited for later; it must be there now. `OutageError`
    where it is not; another `UserError` where it is of no use to wait for it.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are about its own means, not about the study
    options: dict[str, object] = {"pool_pre_ping": True}
    shown = without_credentials(url, SHOWN)
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
        else:
            storage.patience_s = PATIENCE_SECONDS if patience_s is None else patience_s
    except ImportError as error:
        if place.get_backend_name() != "postgresql":
            raise UserError(f"storage {shown} cannot be used: {explain(error)}") from None
        raise UserError(
            f"storage {shown} needs a driver that is not installed; `pip install 'harness[postgres]'` "
            "installs that of postgresql+psycopg://"
        ) from None
    except STORAGE_ERRORS as error:
        raise _cannot_be_used(shown, error) from None
    return storage


def _cannot_be_used(where: str, error: BaseException) -> UserError:
    """Return what to raise where a storage cannot be used: `OutageError` where it may be later."""
    kind = OutageError if _is_away(error) else UserError
    return kind(f"storage {where} cannot be used: {explain(error)}")


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
        raise _cannot_be_used(describe(storage), error) from None


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
        raise UserError(f"storage {describe(storage)} cannot be used: {explain(error)}") from None
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


def explain(error: BaseException) -> str:
    """Return the first line of an error's message, or of the database's where Optuna has only general advice.

    Says what to do about an SQLite file that is damaged.
    """
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if "malformed" in text or "not a database" in text:
        text += "; delete the file, and `harness search` makes it again from the study's records"
    return without_credentials(text, SHOWN)


def lost(storage: BaseStorage, error: BaseException) -> OutageError:
    """Return what to raise where a storage is lost in the middle of a search."""
    backend: RDBStorage = vars(storage).get("_backend", storage)  # what Optuna puts before an RDB for its cache
    return OutageError(
        f"storage {describe(backend)} failed: {explain(error)}; every finished trial is on disk, and the same "
        "command goes on from there once the storage is back"
    )


def describe(storage: RDBStorage) -> str:
    """Return a storage's URL without its password."""
    return without_credentials(storage.engine.url.render_as_string(hide_password=False), SHOWN)

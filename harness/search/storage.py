"""Where a study is stored: any RDB that Optuna knows, an SQLite file in the study's folder by default.

Safe for many processes on one machine (SQLite in WAL mode) and for many machines (PostgreSQL, MySQL). Trials that run
have a heartbeat, so that a worker that is gone is missed wherever it ran.
"""

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from harness.core.errors import UserError
from harness.core.records import StudyRecord
from harness.search.space import SearchSpace

STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError, ValueError)
LOST_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)  # of a storage that there was
BEAT_SECONDS, GRACE_SECONDS = 15, 90
_BUSY_SECONDS = 60  # how long SQLite waits for another writer
_PATIENCE_SECONDS = 300.0

ResultT = TypeVar("ResultT")

OnStale = Callable[[optuna.Study, FrozenTrial], None]


def connect(url: str, on_stale: OnStale | None = None) -> RDBStorage:
    """Open a storage; an SQLite file is put into WAL mode, in which readers do not wait for the writer.

    `on_stale` is called, by `optuna.storages.fail_stale_trials`, with each trial whose heartbeat has stopped.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are about its own means, not about the study
    options: dict[str, object] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": _BUSY_SECONDS}
    try:
        with warnings.catch_warnings():  # that heartbeats are an experiment of Optuna's is no news for who searches
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = RDBStorage(
                url,
                engine_kwargs=options,
                heartbeat_interval=BEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=on_stale,
            )
        if storage.engine.dialect.name == "sqlite":
            with storage.engine.connect() as connection:
                connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))
    except STORAGE_ERRORS as error:
        raise UserError(f"storage {_without_password(url)} cannot be used: {_explain(error)}") from None
    return storage


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
        raise UserError(f"storage {describe(storage)} cannot be used: {_explain(error)}") from None
    if not is_ours:
        raise UserError(
            f"study {record.name!r} in {describe(storage)} was made with another search space or other images; "
            "give this one another name with --study"
        )
    return study


def patience_of(study: optuna.Study) -> float:
    """Return for how many seconds a storage that is lost is waited for: a server may come back, a file does not."""
    storage = study._storage
    engine = getattr(storage, "engine", None) or getattr(getattr(storage, "_backend", None), "engine", None)
    return 0.0 if engine is None or engine.dialect.name == "sqlite" else _PATIENCE_SECONDS


def patiently(study: optuna.Study, call: Callable[[], ResultT]) -> ResultT:
    """Return what a call gives, made again while the storage is lost; it must be one that may be made twice."""
    started = time.monotonic()
    while True:
        try:
            return call()
        except LOST_ERRORS:
            if time.monotonic() - started >= patience_of(study):
                raise
            time.sleep(1)


def _explain(error: BaseException) -> str:
    """Return the first line of an error's message, and what to do about an SQLite file that is damaged."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if "malformed" in text or "not a database" in text:
        text += "; delete the file, and `harness search` makes it again from the study's records"
    return text


def lost(storage: RDBStorage, error: BaseException) -> UserError:
    """Return what to raise where a storage is lost in the middle of a search."""
    return UserError(
        f"storage {describe(storage)} failed: {_explain(error)}; every finished trial is on disk, and the same "
        "command goes on from there once the storage is back"
    )


def describe(storage: RDBStorage) -> str:
    """Return a storage's URL without its password."""
    return storage.engine.url.render_as_string(hide_password=True)


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else url

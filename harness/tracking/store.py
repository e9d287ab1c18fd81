"""MLflow stores: finding out whether an address is one, connecting, and calls that may fail.

A store that is away costs a few tries while it works and one each while it does not; MLflow's own waiting would hold up
a search for minutes.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import UserError
from harness.core.urls import SHOWN, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Warn = Callable[[str], None]

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https", "databricks")
RETRY_DELAYS_S = (0.5, 2.0)
# MLflow's client has no arguments for these. Its defaults (7 retries of 120 s) would hold up a search for minutes when
# a server is away; retrying is done here. What the user has set wins. The last three keep stdout and the network quiet.
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Attempts:
    """Makes calls to a store: a few tries each while it works, one each while it fails, and one warning in all."""

    def __init__(self, tracking_uri: str, warn: Warn, consequence: str):
        check_address(tracking_uri)
        self._uri = tracking_uri
        self._warn = warn
        self._consequence = consequence
        self.failing = False  # whether the last call failed
        self._warned = False

    def make(self, call: Callable[[], object]) -> bool:
        """Return whether the call succeeded in the end."""
        for delay in (None,) if self.failing else (*RETRY_DELAYS_S, None):
            try:
                call()
            except Exception as error:  # whatever a store, a driver or a server raises: the trial goes on
                reason = f"{type(error).__name__}: {error}"
            else:
                self.failing = False
                return True
            if delay is not None:
                time.sleep(delay)
        self.failing = True
        if not self._warned:
            self._warned = True
            where, why = (without_credentials(one, SHOWN) for one in (self._uri, " ".join(reason.split())))
            self._warn(f"MLflow tracking to {where} failed ({why[:300]}); {self._consequence}")
        return False


def find_experiment(client: "MlflowClient", name: str, artifact_root: Path | None) -> str:
    """Return the id of the experiment of a name, made or restored; `artifact_root`: the folder of a new one's files."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if artifact_root is not None:
            artifact_root.mkdir(parents=True, exist_ok=True)
            location = artifact_root.absolute().as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process was first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def check_address(tracking_uri: str) -> None:
    """Raise `UserError` for an address that is of no kind of store that MLflow has and writes to."""
    scheme, separator, _ = tracking_uri.partition(":")
    if not separator or scheme.partition("+")[0] not in (*_DATABASES, *_SERVERS):
        known = ", ".join(f"{scheme}:" for scheme in (*_DATABASES, *_SERVERS))
        shown = without_credentials(tracking_uri, SHOWN)
        raise UserError(
            f"tracking address {shown!r} is no MLflow store; expected one that starts with one of {known}, "
            "for example sqlite:///results/mlflow.db or http://127.0.0.1:5000"
        )


def is_database(tracking_uri: str) -> bool:
    """Whether a store is a database that this process writes to itself, rather than a server."""
    return tracking_uri.partition(":")[0].partition("+")[0] in _DATABASES


def probe(tracking_uri: str) -> None:
    """Raise at once where a database cannot be read; MLflow's own first connection would try for 100 s."""
    if not is_database(tracking_uri):
        return
    import sqlalchemy

    url = sqlalchemy.make_url(tracking_uri)
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(url)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def connect(tracking_uri: str) -> "MlflowClient":
    """Return a client of a store; raises whatever a database that cannot be read does."""
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    probe(tracking_uri)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it logs tracebacks of errors that are handled here
    return MlflowClient(tracking_uri, registry_uri=tracking_uri)


def find_or_create_run(
    client: "MlflowClient",
    experiment: str,
    identity: Mapping[str, str],
    name: str,
    start_ms: int,
    further_tags: Mapping[str, str] | None = None,
    *,
    is_new: bool = False,
) -> "Run":
    """Return the one run that carries the tags of `identity`; `is_new` says that there is none yet, most likely.

    Where two processes create it at once, both keep the same one.
    """
    condition = " and ".join(f"tags.`{tag}` = {quote(value)}" for tag, value in identity.items())

    def search() -> "list[Run]":
        runs = client.search_runs([experiment], condition)
        return sorted(runs, key=lambda run: (run.data.tags.get("harness.logged_at", ""), run.info.run_id))

    if not is_new and (found := search()):
        return found[0]
    tags = {**(further_tags or {}), **identity, "harness.logged_at": str(time.time_ns())}
    created = client.create_run(experiment, start_time=start_ms, tags=tags, run_name=name)
    found = search()
    if found and found[0].info.run_id != created.info.run_id:
        client.delete_run(created.info.run_id)
        return found[0]
    return created


def quote(value: str) -> str:
    """Return a value as conditions of a search spell it."""
    return f'"{value}"' if "'" in value else f"'{value}'"

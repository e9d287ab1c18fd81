"""Workers on the machines of a Ray cluster: placed by what they need, watched, and placed again where they are lost.

Ray places and watches; what workers know of each other stands in the study's storage and folder, as everywhere. Only
this module imports Ray, and only when it is used.
"""

import contextlib
import logging
import os
import platform
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from harness.core.errors import UserError
from harness.core.study_folder import StudyFolder
from harness.search.processes import Ended, Errand, Lost, Post, watch
from harness.search.storage import explain
from harness.search.worker import SearchOutcome, Worker
from harness.trial import TrialSetup

_KNOCK_SECONDS = 10.0
_STOP_SECONDS = 60.0  # for a worker to end by itself, before it is killed
_NOISE = {  # what Ray reads where it starts; it says nothing about a study
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


@dataclass(frozen=True)
class RayCluster:
    """A cluster to work on: by its address, or (None) one on this machine, for the time of the search."""

    address: str | None = None
    warn: Callable[[str], None] = lambda text: None


def check_ray() -> None:
    """Refuse a search on Ray where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UserError("--executor ray: Ray is not installed; `pip install 'harness[ray]'` installs it") from None


class _Place:
    """What runs on a node: a worker, and whatever asks it to stop meanwhile."""

    def __init__(self, paths: list[str]) -> None:
        sys.path.extend(path for path in paths if path not in sys.path)
        self._stop = threading.Event()

    def begin(self) -> str:
        """Say that the worker has its place, and where."""
        return platform.node()

    def stop(self) -> None:
        """Ask the worker to stop after the step that it is at."""
        self._stop.set()

    def run(self, errand: Errand) -> Ended:
        """Work until the study's budget is spent."""
        return errand.run(self._stop.is_set)


class _Actor(Post):
    """A worker on the cluster."""

    def __init__(self, place: Any, errand: Any, deaths: int) -> None:
        super().__init__(deaths)
        self._actor = place.remote(list(sys.path))
        self.begun = self._actor.begin.remote()
        self.ended = self._actor.run.remote(errand)

    def is_manned(self) -> bool:
        return _is_done(self.begun)

    def look(self) -> Ended | Lost | None:
        import ray

        if not _is_done(self.ended):
            return None
        try:
            ended: Ended = ray.get(self.ended)
        except ray.exceptions.RayTaskError:  # of ours: it would come again wherever the worker is placed
            raise
        except ray.exceptions.RayError as error:
            return Lost(explain(error))
        return ended

    def stop(self) -> None:
        import ray

        if not self.is_manned():  # nobody is there to be asked
            self.kill()
            return
        with contextlib.suppress(ray.exceptions.RayError):
            self._actor.stop.remote()

    def kill(self) -> None:
        """End the worker at once, or its waiting for a place."""
        import ray

        ray.kill(self._actor)


def _is_done(reference: Any) -> bool:
    import ray

    return bool(ray.wait([reference], timeout=0)[0])


def lead_on_ray(leader: Worker, storage: str, workers: int, cluster: RayCluster) -> SearchOutcome:
    """Let so many workers work for a study on a Ray cluster, until all are done; report the records that they write.

    A worker that is lost, with its node or alone, is placed again as soon as there is room, and what it was at is
    proposed again. Ctrl-C ends all after the step that they are at. Ray is shut down where it was started here.
    """
    check_ray()
    setup = _setup_elsewhere(leader.setup)
    with _connected(cluster, workers, setup):
        _check_nodes(cluster, storage, workers, setup)
        return _lead(leader, setup, storage, workers)


def _lead(leader: Worker, setup: TrialSetup, storage: str, workers: int) -> SearchOutcome:
    import ray

    needs: dict[str, Any] = {"num_cpus": setup.threads, "num_gpus": int(setup.train_device != "cpu")}
    place: Any = ray.remote(_Place)
    place = place.options(**needs, max_restarts=0, max_concurrency=2, scheduling_strategy="SPREAD")
    errand = ray.put(Errand.of(leader, setup, storage))
    return watch(leader, workers, lambda deaths: _Actor(place, errand, deaths), _end)


def _end(actors: list[_Actor]) -> None:
    """Let workers that still run stop after their step, and kill those that do not."""
    import ray

    running = [actor for actor in actors if actor.outcome is None]
    for actor in running:
        actor.stop()
    results = [actor.ended for actor in running if actor.is_manned()]
    if results:
        ray.wait(results, num_returns=len(results), timeout=_STOP_SECONDS)
    for actor in actors:
        actor.kill()


def _setup_elsewhere(setup: TrialSetup) -> TrialSetup:
    """Return the setup as other processes and machines read it: whole paths, and the one GPU that each is given."""
    device = setup.train_device if setup.train_device == "cpu" else "cuda:0"
    return replace(setup, folder=StudyFolder(setup.folder.path.resolve(), setup.folder.place), train_device=device)


@contextlib.contextmanager
def _connected(cluster: RayCluster, workers: int, setup: TrialSetup) -> Iterator[None]:
    """Connect to the cluster, or start one here; leave Ray, signals and loggers as they were."""
    import ray

    if ray.is_initialized():  # whoever did that shuts it down
        yield
        return
    for variable, value in _NOISE.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        options = {"address": "local", "num_cpus": workers * setup.threads, "include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _knock(cluster.address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, namespace="harness")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--ray-address {cluster.address or 'local'}: Ray cannot be reached ({explain(error)}); expected the "
            "HOST:PORT that `ray start --head` prints"
        ) from None
    try:
        if threading.current_thread() is threading.main_thread():  # Ray's own would end this process without a word
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise `OSError` where nobody listens: Ray itself ends the process after a while, rather than to say so."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdecimal():  # else a name that Ray knows, such as `auto`
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


def _check_nodes(cluster: RayCluster, storage: str, workers: int, setup: TrialSetup) -> None:
    """Refuse workers that no node has room for; say so where nodes cannot reach the storage."""
    import ray

    list_nodes: Any = ray.nodes
    nodes = [node for node in list_nodes() if node["Alive"]]
    is_gpu = setup.train_device != "cpu"

    def holds(node: dict[str, Any]) -> bool:
        has = node["Resources"]
        return bool(has.get("CPU", 0) >= setup.threads and has.get("GPU", 0) >= int(is_gpu))

    if not any(holds(node) for node in nodes):
        needed = f"{setup.threads} CPUs" + (" and a GPU" if is_gpu else "")
        raise UserError(
            f"--executor ray: a worker needs {needed}, and no node of the cluster has them; give fewer --threads"
        )
    hosts = {node["NodeManagerHostname"] for node in nodes} - {platform.node()}
    if hosts and storage.startswith("sqlite"):
        cluster.warn(
            f"the study is in SQLite, which hosts must not share: workers on {', '.join(sorted(hosts))} need "
            "--storage postgresql+psycopg://… and a results folder that all hosts reach"
        )

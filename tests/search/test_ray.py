"""A study on a real Ray cluster of two nodes, one of which is killed in the middle of training."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.core.errors import UserError
from harness.search import RayCluster, check_ray
from tests.photographs import Photographs
from tests.search.conftest import MakeStudy, Study, wait_for
from tests.search.postgres import free_port
from tests.search.test_workers import LONG, PATIENCE_S, Command, assert_is_whole

LONGER = {**LONG, "steps": 150}


class Nodes:
    """A head without processors, and nodes with one each, in processes of their own on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def kill_the_one_of(self, worker: int) -> None:
        """Kill the node that a worker's process runs on, with SIGKILL."""
        raylet = psutil.Process(worker).ppid()
        (node,) = [node for node in self.nodes if node.all_processes["raylet"][0].process.pid == raylet]
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Nodes()
    yield made
    made.cluster.shutdown()


def being_trained(study: Study) -> dict[str, int]:
    """Return the networks that have a checkpoint now, and whose process trains each."""
    marked = [trial for trial in study.trials("RUNNING") if "worker" in trial.user_attrs]
    running = {trial.user_attrs.get("network"): trial.user_attrs["worker"]["pid"] for trial in marked}
    checkpoints = [path.parent.name for path in study.folder.path.glob("networks/*/checkpoint.pt")]
    return {network: running[network] for network in checkpoints if network in running}


@pytest.mark.slow
@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_node_is_killed(make_study: MakeStudy, nodes: Nodes, is_replaced: bool) -> None:
    """Its trial goes on from the checkpoint, on a node that takes its place or on the one that is left."""
    study = make_study(training=LONGER, budget={"networks": 4})
    killed: list[str] = []

    def kill_once() -> bool:
        trained = being_trained(study) if not killed and study.folder.database.is_file() else {}
        if len(set(trained.values())) == 2:  # both nodes are at work
            network, process = next(iter(trained.items()))
            nodes.kill_the_one_of(process)
            killed.append(network)
            if is_replaced:
                nodes.add()
        return False

    outcome = study.run(workers=2, cluster=RayCluster(nodes.address), should_stop=kill_once)
    assert killed
    assert (outcome.ending, outcome.networks) == ("finished", 4)
    assert_is_whole(study, 4)
    (record,) = [record for record in study.trained if record.network_id == killed[0]]
    assert record.training_result is not None
    assert record.training_result.resumed_from
    assert sorted(study.seen) == sorted(record.record_id for record in study.records)


@pytest.mark.slow
def test_what_no_node_has_room_for_is_refused(make_study: MakeStudy, nodes: Nodes) -> None:
    from dataclasses import replace

    from harness.search import read_space, run_search, study_record

    study = make_study()
    space = read_space(study.space_file)
    setup = replace(study.setup(space), threads=2)
    record = study_record("tiny", space, "", setup)
    with pytest.raises(UserError, match="a worker needs 2 CPUs, and no node of the cluster has them"):
        run_search(space, setup, record, cluster=RayCluster(nodes.address))


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(tmp_path: Path, photographs: Photographs) -> None:
    """Ray is started for the search and leaves no process behind; Ctrl-C reaches all processes of the terminal."""
    pytest.importorskip("ray", reason="ray is not installed")
    command = Command(tmp_path, photographs, networks=3, steps=150)
    arguments = [sys.executable, "-m", "harness", *command.search, "--workers", "2", "--executor", "ray"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    output = tmp_path / "output.txt"
    with output.open("wb") as log:
        leader = subprocess.Popen(
            arguments, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    wait_for(command.is_training)
    everything = psutil.Process(leader.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in everything)
    os.killpg(leader.pid, signal.SIGINT)
    leader.wait(PATIENCE_S)
    said = output.read_text(encoding="utf-8")
    assert leader.returncode == 130, said
    assert "goes on from here" in said
    assert "Traceback" not in said
    assert not psutil.wait_procs(everything, timeout=PATIENCE_S)[1]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    trained = [record for record in command.study.read_trials() if record.state == "complete"]
    assert len(trained) == len({record.network_id for record in trained}) == 3
    assert any(record.training_result and record.training_result.resumed_from for record in trained)


def test_a_cluster_that_is_not_there(make_study: MakeStudy) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(UserError, match=r"--ray-address 127\.0\.0\.1:\d+: Ray cannot be reached"):
        make_study().run(workers=2, cluster=RayCluster(f"127.0.0.1:{free_port()}"))


def test_ray_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'harness\[ray\]'"):
        check_ray()

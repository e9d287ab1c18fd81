"""Processes killed at exact places and at random ones, with networks stopped early: the study ends as if not."""

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.photographs import Photographs
from tests.search.conftest import wait_for
from tests.search.faults import PATIENCE_S, Command, Fault, assert_is_whole, ends, step_of
from tests.search.test_faults import DIMENSIONS, RUNGS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photographs: Photographs) -> Command:
    """The study as it ends where nothing is killed."""
    command = Command(tmp_path_factory.mktemp("whole"), photographs, **RUNGS)
    command.finish()
    return command


@pytest.mark.parametrize(
    ("event", "pattern", "number"),
    [
        ("os.rename", r"/checkpoint\.pt$", 2),  # a checkpoint is written, but not in place
        ("open", r"/networks/[0-9a-f]+$", 1),  # between the checkpoint of a rung and the rung
        ("os.rename", r"/rungs\.json$", 1),  # between the verdict that others are told and its file
        ("os.rename", r"/trial-00000\.json$", 1),  # between the weights and the record
        ("os.remove", r"/checkpoint\.pt$", 1),  # between the record and telling, before and after clearing up
        ("os.remove", r"/traceback\.txt$", 1),
    ],
)
def test_killed_at_an_exact_place(
    tmp_path: Path, photographs: Photographs, whole: Command, event: str, pattern: str, number: int
) -> None:
    command = Command(tmp_path, photographs, **RUNGS)
    assert command.run(Fault("kill", event, pattern, number)).returncode == -signal.SIGKILL
    before = command.written()
    steps = [step_of(path) for path in command.checkpoints()]
    command.finish()
    assert command.written().items() >= before.items()
    assert_is_whole(command.study)
    assert ends(command.study) == ends(whole.study)
    first = command.records[0]
    if first.training_result is not None and not before:
        assert list(first.training_result.resumed_from) == steps


def test_killed_at_random_moments_with_rungs(tmp_path: Path, photographs: Photographs, whole: Command) -> None:
    command = Command(tmp_path, photographs, **RUNGS)
    moments = random.Random(0)
    for _ in range(6):
        before = command.written()
        seen = (len(before), command.checkpoints())

        def has_got_on(seen: tuple[int, dict[Path, int]] = seen) -> bool:
            return (len(command.written()), command.checkpoints()) != seen

        process = command.start()
        try:
            wait_for(has_got_on, process, patience_s=PATIENCE_S)
        except AssertionError:
            break  # it ended first: there is nothing left to kill
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.communicate()
        assert command.written().items() >= before.items()
    command.finish()
    assert_is_whole(command.study)
    assert ends(command.study) == ends(whole.study)


def test_workers_and_leader_killed_at_random_with_rungs(tmp_path: Path, photographs: Photographs) -> None:
    """With several workers verdicts depend on who comes first; nothing is lost, told twice or left open."""
    long = {"steps": 40, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 2}
    stopping = {"factor": 2, "grace_steps": 10}
    command = Command(
        tmp_path,
        photographs,
        *("--workers", "2", "--threads", "2"),
        training=long,
        dimensions={
            **DIMENSIONS,
            "model.channels": {"low": 4, "high": 64, "step": 2},
            "model.groups": {"choices": [[1], [2]]},
        },
        stopping=stopping,
        budget={"networks": 3},
        baselines=[],
    )
    moments = random.Random(1)
    for is_leader in (False, True):
        seen = command.written()
        process = command.start()
        wait_for(command.checkpoints, process, patience_s=PATIENCE_S)
        time.sleep(moments.uniform(0, 1))
        workers = [
            one for one in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in str(one.cmdline())
        ]
        if is_leader:
            process.kill()
            process.communicate()
            assert not psutil.wait_procs(workers, timeout=120)[1]
        else:
            os.kill(moments.choice(workers).pid, signal.SIGKILL)
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, output + errors
            assert_is_whole(command.study)
            command.space.write_text(command.space.read_text().replace("networks: 3", "networks: 5"))
        assert command.written().items() >= seen.items()
    command.finish()
    assert_is_whole(command.study)
    assert sum(record.state == "complete" for record in command.records) == 5

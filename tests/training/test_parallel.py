"""Training in several processes against training in one: real processes, which find each other by gloo."""

import contextlib
import dataclasses
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from harness.cli.train import _find_group
from harness.core.configs import CAMixerSRConfig, DistillationConfig, SwinIRConfig, TrainingConfig
from harness.core.device_lock import measuring
from harness.core.errors import OutageError, TrialFailedError, UserError
from harness.core.records import TrainingRecord
from harness.core.study_folder import StudyFolder
from harness.data import CropBatch
from harness.models import PartGenerator
from harness.models.camixersr import draw_gumbel
from harness.training import ALONE, DamagedCheckpointError, Group, TrainingInterruptedError, TrainingProgress, train
from tests.photographs import Photographs
from tests.search.postgres import free_port
from tests.training.runs import SHORT, SMALL, SMALL_SWINIR, Batches, build, run, same_weights, stop_after

TEACHER = SMALL.model_copy(update={"channels": 12, "groups": (1, 1)})
CONFIG = SHORT.model_copy(update={"batch_size": 4, "ratio_gamma": 1.0})
TAUGHT = CONFIG.model_copy(update={"distillation": DistillationConfig(teacher="teacher", features="attention")})
Weights = dict[str, Tensor]
Scenario = Callable[[Group, Path], Any]


# What each of the processes does, by name; it returns what torch.save can hold ---------------------------------------


def trained(
    group: Group, model: CAMixerSRConfig | SwinIRConfig = SMALL, config: TrainingConfig = CONFIG
) -> tuple[Weights, str]:
    teacher = build(TEACHER, seed=5) if config.distillation else None
    network, record, _ = run(config, model=model, teacher=teacher, group=group)
    return network.state_dict(), record.model_dump_json()


def train_as_one(group: Group, folder: Path) -> tuple[Weights, str]:
    return trained(group)


def train_with_a_teacher(group: Group, folder: Path) -> tuple[Weights, str]:
    return trained(group, config=TAUGHT)


def train_from_weights_of_its_own(group: Group, folder: Path) -> Weights:
    network = build(seed=group.rank)
    low, high, *_ = batch_of(4)
    train(network, Batches(low, high), CONFIG, threads=1, group=group)
    return network.state_dict()


def stop_where_the_second_is_asked_to(group: Group, folder: Path) -> str:
    def should_stop() -> bool:
        return group.rank == 1 and stop()

    stop = stop_after(3)
    try:
        run(CONFIG, group=group, checkpoint=folder / f"of-{group.rank}.pt", should_stop=should_stop)
    except TrainingInterruptedError as interruption:
        return str(interruption)
    return "ran on"


def go_on_from_the_leaders_checkpoint(group: Group, folder: Path) -> tuple[Weights, str]:
    with contextlib.suppress(TrainingInterruptedError):
        run(CONFIG, group=group, checkpoint=folder / "split.pt", should_stop=stop_after(5))
    file = folder / ("split.pt" if group.leads else "none.pt")
    network, record, _ = run(CONFIG, group=group, checkpoint=file)
    return network.state_dict(), record.model_dump_json()


def meet_a_damaged_checkpoint(group: Group, folder: Path) -> str:
    file = folder / "damaged.pt"
    if group.leads:
        file.write_bytes(b"hello")
    try:
        run(CONFIG, group=group, checkpoint=file)
    except DamagedCheckpointError as error:
        return str(error)
    return "read it"


def meet_a_value_that_is_not_finite(group: Group, folder: Path) -> tuple[str, bool]:
    network, before = build(), build()
    low, high, *_ = batch_of(4)
    high[3, 2, 1, 0] = math.nan  # in the second process's part
    try:
        train(network, Batches(low, high), CONFIG, threads=1, group=group)
    except TrialFailedError as error:
        return str(error), same_weights(network, before)
    return "went on", False


def average_gradients(group: Group, folder: Path) -> list[Tensor | None]:
    """One parameter that both use, one that the second process uses, one that nobody does."""
    parameters = [nn.Parameter(torch.ones(2, 3)) for _ in range(3)]
    parameters[0].grad = torch.full((2, 3), float(group.rank + 1))
    if group.rank == 1:
        parameters[1].grad = torch.full((2, 3), 8.0)
    group.average_gradients(parameters)
    return [parameter.grad for parameter in parameters]


def lose_the_second(group: Group, folder: Path) -> str:
    def die(progress: TrainingProgress) -> None:
        if progress.step == 3 and group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        run(CONFIG, group=group, progress=die)
    except OutageError as error:
        return str(error)
    return "ran on"


TOGETHER: tuple[Scenario, ...] = (
    train_as_one,
    train_with_a_teacher,
    train_from_weights_of_its_own,
    stop_where_the_second_is_asked_to,
    go_on_from_the_leaders_checkpoint,
    meet_a_damaged_checkpoint,
    meet_a_value_that_is_not_finite,
    average_gradients,
    lose_the_second,  # nothing comes after it
)
OTHERS: dict[str, tuple[CAMixerSRConfig | SwinIRConfig, dict[str, object]]] = {
    "swinir": (SMALL_SWINIR, {}),
    "odi": (SMALL, {"task": "odi", "grad_clip_norm": None}),
    "deep": (SMALL.model_copy(update={"groups": (2, 2), "channels": 16}), {"steps": 20}),
}


def train_others(group: Group, folder: Path) -> dict[str, tuple[Weights, str]]:
    return {name: trained(group, model, CONFIG.model_copy(update=changes)) for name, (model, changes) in OTHERS.items()}


def train_in_bf16(group: Group, folder: Path) -> tuple[Weights, str]:
    return trained(group, config=CONFIG.model_copy(update={"precision": "bf16"}))


def work(rank: int, size: int, port: int, folder: Path, scenarios: tuple[Scenario, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    group = Group(rank, size, rank, size)
    group.join("cpu")
    for scenario in scenarios:
        torch.save(scenario(group, folder), folder / f"{scenario.__name__}-{rank}.result")


def in_processes(size: int, folder: Path, *scenarios: Scenario) -> None:
    context = torch.multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=work, args=(rank, size, port, folder, scenarios)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have found in all scenarios."""
    folder = tmp_path_factory.mktemp("together")
    in_processes(2, folder, *TOGETHER)
    return folder


def result(folder: Path, scenario: Scenario, rank: int) -> Any:
    return torch.load(folder / f"{scenario.__name__}-{rank}.result", weights_only=True)


def batch_of(size: int) -> CropBatch:
    generator = torch.Generator().manual_seed(7)
    low, high = torch.rand(size, 3, 12, 12, generator=generator), torch.rand(size, 3, 24, 24, generator=generator)
    return CropBatch(low, high, torch.zeros(size).long(), torch.full((size,), 24))


def assert_same_bits(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_is_that_of_one_process(
    found: tuple[Weights, str], whole: tuple[Weights, str], processes: int, relative: float = 1e-5
) -> None:
    record, expected = (TrainingRecord.model_validate_json(text) for _, text in (found, whole))
    assert (record.processes, expected.processes) == (processes, 1)
    assert record.curves.keys() == expected.curves.keys()
    for name, curve in expected.curves.items():
        assert record.curves[name] == pytest.approx(curve, rel=relative), name
    assert_close(found[0], whole[0], relative)


def assert_close(found: Weights, expected: Weights, relative: float) -> None:
    """Compare weights but for biases of keys, which softmax takes no notice of: rounding alone moves them."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith(("key.bias", "qkv.bias")):
            assert torch.allclose(found[name], value, rtol=relative, atol=relative * float(value.abs().max())), name


# ---------------------------------------------------------------------------------------------------------------------


def test_two_processes_train_the_network_of_one(results: Path) -> None:
    """Batches, Gumbel noise, both losses, clipping, AdamW and averages: all that a routed network is trained by."""
    first, second = (result(results, train_as_one, rank) for rank in (0, 1))
    assert_same_bits(first[0], second[0])
    network, record, _ = run(CONFIG)
    assert_is_that_of_one_process(first, (network.state_dict(), record.model_dump_json()), 2)
    assert len(set(record.curves["attention_share"])) > 3  # there is a decision to get wrong
    assert TrainingRecord.model_validate_json(second[1]).curves == TrainingRecord.model_validate_json(first[1]).curves


def test_two_processes_learn_from_a_teacher_as_one_does(results: Path) -> None:
    first, second = (result(results, train_with_a_teacher, rank) for rank in (0, 1))
    assert_same_bits(first[0], second[0])
    assert_is_that_of_one_process(first, trained(ALONE, config=TAUGHT), 2)


def test_the_first_processs_weights_are_those_of_all(results: Path) -> None:
    first, second = (result(results, train_from_weights_of_its_own, rank) for rank in (0, 1))
    assert_same_bits(first, second)
    assert not torch.equal(first["tail.weight"], build(seed=1).state_dict()["tail.weight"])


def test_all_stop_at_the_step_where_one_is_asked_to_and_the_first_alone_saves(results: Path) -> None:
    for rank in (0, 1):
        assert result(results, stop_where_the_second_is_asked_to, rank) == "stopped after step 3 of 9"
    assert (results / "of-0.pt").exists()
    assert not (results / "of-1.pt").exists()
    network, record, _ = run(CONFIG, checkpoint=results / "of-0.pt")  # one process goes on from where two were
    whole, expected, _ = run(CONFIG)
    assert record.resumed_from == (3,)
    assert record.curves["loss"] == pytest.approx(expected.curves["loss"], rel=1e-5)
    assert_close(network.state_dict(), whole.state_dict(), 1e-5)


def test_all_go_on_from_the_first_processs_checkpoint_with_the_same_bits(results: Path) -> None:
    first, second = (result(results, go_on_from_the_leaders_checkpoint, rank) for rank in (0, 1))
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[0], result(results, train_as_one, 0)[0])
    record = TrainingRecord.model_validate_json(first[1])
    assert record.resumed_from == (5,)
    assert record.curves == TrainingRecord.model_validate_json(result(results, train_as_one, 0)[1]).curves


def test_what_is_wrong_with_the_checkpoint_is_told_to_all(results: Path) -> None:
    first, second = (result(results, meet_a_damaged_checkpoint, rank) for rank in (0, 1))
    assert "damaged.pt cannot be read" in first
    assert second == first


def test_a_value_of_one_process_that_is_not_finite_ends_all(results: Path) -> None:
    for rank in (0, 1):
        message, untouched = result(results, meet_a_value_that_is_not_finite, rank)
        assert message == "loss is nan at step 1 (learning rate 0.002)"
        assert untouched


def test_a_parameter_that_no_process_has_a_gradient_of_is_left_without(results: Path) -> None:
    for rank in (0, 1):
        both, one, none = result(results, average_gradients, rank)
        assert torch.equal(both, torch.full((2, 3), 1.5))
        assert torch.equal(one, torch.full((2, 3), 4.0))
        assert none is None


def test_a_process_that_is_gone_is_one_clear_error(results: Path) -> None:
    message = result(results, lose_the_second, 0)
    assert message.startswith("another process of this training is gone (")
    assert message.endswith("start all of them again: training goes on from its last checkpoint")
    assert "\n" not in message


def test_a_part_draws_the_noise_of_its_rows() -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    whole_SBN2 = draw_gumbel((3, 6, 10, 2), generator(), torch.device("cpu"))
    sources = [PartGenerator(generator(), part, 3) for part in range(3)]
    parts = [draw_gumbel((3, 2, 10, 2), source, torch.device("cpu")) for source in sources]
    assert torch.equal(torch.cat(parts, dim=1), whole_SBN2)
    assert len({tuple(source.generator.get_state().tolist()) for source in sources}) == 1


def test_a_batch_without_equal_parts_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"batch_size 9 cannot be divided among 4 processes; expected a multiple of 4; set 8 or 12, or start",
    ):
        run(CONFIG.model_copy(update={"batch_size": 9}), group=Group(1, 4))
    with pytest.raises(UserError, match="set 4, or start"):
        Group(0, 4).check_batch_size(3)


def test_a_group_without_a_place_to_meet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"process 0 of 2 finds no others \(ValueError: .*MASTER_ADDR.*by one torchrun"):
        Group(0, 2).join("cpu")


def test_records_of_before_are_of_one_process() -> None:
    _, record, _ = run(SHORT.model_copy(update={"steps": 1}))
    old = record.model_dump(exclude={"processes"})
    assert TrainingRecord.model_validate(old) == record


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_other_trainings_are_those_of_one_process(tmp_path: Path, size: int) -> None:
    in_processes(size, tmp_path, train_others, train_in_bf16)
    first, *rest = (result(tmp_path, train_others, rank) for rank in range(size))
    for name, (model, changes) in OTHERS.items():
        for other in rest:
            assert_same_bits(first[name][0], other[name][0])
        network, record, _ = run(CONFIG.model_copy(update=changes), model=model)
        assert_is_that_of_one_process(first[name], (network.state_dict(), record.model_dump_json()), size, 1e-4)

    in_bf16 = [result(tmp_path, train_in_bf16, rank) for rank in range(size)]
    for weights, _ in in_bf16:
        assert_same_bits(weights, in_bf16[0][0])
    _, record, _ = run(CONFIG.model_copy(update={"precision": "bf16"}))  # gradients of parts are rounded to 8 bits each
    losses = TrainingRecord.model_validate_json(in_bf16[0][1]).curves["loss"]
    assert losses == pytest.approx(record.curves["loss"], rel=2e-2)


# torchrun ------------------------------------------------------------------------------------------------------------


def train_command(folder: Path, photographs: Photographs, *settings: str, out: str) -> list[str]:
    """Return `harness train` of a tiny network, as arguments of Python."""
    (folder / "model.yaml").write_text("{family: camixersr, groups: [1], channels: 8, window: 4, scale: 2}")
    command = ["-m", "harness", "train", "model.yaml", "--out", out, "--threads", "1"]
    command += ["--train", str(photographs.train), "--validation", str(photographs.validation)]
    for setting in ("batch_size=2", "hr_patch_size=32", "checkpoint_interval=10", *settings):
        command += ["--set", setting]
    return command


@contextlib.contextmanager
def torchrun(folder: Path, photographs: Photographs, *settings: str, out: str) -> Iterator["subprocess.Popen[str]"]:
    """Start `harness train` twice, as torchrun does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, *train_command(folder, photographs, *settings, out=out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe) as process:
        yield process


def wait_for_checkpoint(folder: Path, after: int = 0) -> int:
    """Wait for a checkpoint that is newer; return when it was written, in ns."""
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(StopIteration, FileNotFoundError):
            written = next(folder.glob("networks/*/checkpoint.pt")).stat().st_mtime_ns
            if written > after:
                return written
        assert time.monotonic() < deadline
        time.sleep(0.02)


def process_of_rank(launcher: "subprocess.Popen[str]", rank: int) -> psutil.Process:
    children = psutil.Process(launcher.pid).children()
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def seconds_computed(launcher: "subprocess.Popen[str]") -> float:
    return sum(process_of_rank(launcher, rank).cpu_times().user for rank in (0, 1))


def training_of(folder: Path) -> TrainingRecord:
    (record,) = StudyFolder(folder).read_trials()
    assert record.training_result is not None
    return record.training_result


@pytest.mark.slow
def test_the_same_command_goes_on_after_processes_were_killed(tmp_path: Path, photographs: Photographs) -> None:
    """The second process is killed, and when the training goes on, the first."""
    with torchrun(tmp_path, photographs, "steps=60", out="whole") as whole:
        out, err = whole.communicate()
    assert whole.returncode == 0, err
    assert out.count("trial-00000") == 1  # the first alone prints
    checkpoint = 0
    for killed in (1, 0):
        with torchrun(tmp_path, photographs, "steps=60", out="run") as process:
            checkpoint = wait_for_checkpoint(tmp_path / "run", after=checkpoint)
            process_of_rank(process, killed).send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == 1
        assert not list((tmp_path / "run").glob("trials/*.json"))
    for words in ("", "was trained before with these settings"):
        with torchrun(tmp_path, photographs, "steps=60", out="run") as process:
            _, err = process.communicate()
        assert process.returncode == 0, err
        assert words in err
    record, expected = training_of(tmp_path / "run"), training_of(tmp_path / "whole")
    assert record.processes == 2
    assert len(record.resumed_from) == 2
    assert record.curves == expected.curves
    weights = [next((tmp_path / name).glob("networks/*/*.safetensors")).read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_measurements_get_in_and_ctrl_c_stops_all_processes(tmp_path: Path, photographs: Photographs) -> None:
    with torchrun(tmp_path, photographs, "steps=100000", "checkpoint_interval=1", out="run") as process:
        written = wait_for_checkpoint(tmp_path / "run")
        for _ in range(10):
            with measuring():
                before = seconds_computed(process)
                time.sleep(0.2)
                assert seconds_computed(process) - before < 0.1
            written = wait_for_checkpoint(tmp_path / "run", after=written)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert out.count("the same command again goes on from here") == 1, err
    assert err.count("stopping after this step and saving") == 1
    assert "harness: error" not in err


@pytest.mark.slow
def test_a_mistake_is_told_once(tmp_path: Path, photographs: Photographs) -> None:
    with torchrun(tmp_path, photographs, "steps=2", "batch_size=3", out="run") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("harness: error: training.batch_size 3 cannot be divided among 2 processes") == 1
    assert not (tmp_path / "run").exists()


# other launchers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "group"),
    [
        ({}, (0, 1, 0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4, 1, 2)),
        (
            {
                "RANK": "5",
                "WORLD_SIZE": "7",
                "SLURM_PROCID": "5",
                "SLURM_STEP_NUM_TASKS": "7",
                "SLURM_LOCALID": "1",
                "SLURM_NODEID": "2",
                "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
            },
            (5, 7, 1, 2),
        ),
        (
            {
                "RANK": "3",
                "WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            (3, 4, 1, 2),
        ),
    ],
)
def test_launchers_tell_which_process_this_is(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], group: tuple[int, ...]
) -> None:
    """What they set is from their documentation: Slurm's srun, Open MPI's mpirun."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert dataclasses.astuple(_find_group()) == group


@pytest.mark.slow
def test_other_launchers_start_one_training(tmp_path: Path, photographs: Photographs) -> None:
    """Two processes with the variables that Open MPI's mpirun sets; RANK and its like are from a script around it."""
    command = train_command(tmp_path, photographs, "steps=2", out="run")
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        said = {"RANK": rank, "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        said |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        environment = {**os.environ, **common, **said}
        processes.append(
            subprocess.Popen(
                [sys.executable, *command],
                cwd=tmp_path,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert [out.count("trial-00000") for out, _ in told] == [1, 0]
    (record,) = StudyFolder(tmp_path / "run").read_trials()
    assert record.training_result is not None
    assert record.training_result.processes == 2

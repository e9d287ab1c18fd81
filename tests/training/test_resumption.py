import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.configs import CAMixerSRConfig, SwinIRConfig, TrainingConfig
from harness.core.errors import UserError
from harness.training import TrainingInterruptedError, train
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from tests.tiny_pairs import VALIDATION, tiny_pairs
from tests.training.runs import (
    SHORT,
    SMALL,
    SMALL_SWINIR,
    build,
    checkpoint_at,
    run,
    same_weights,
    sampler,
    stop_after,
)


def assert_goes_on_as_if_never_interrupted(
    config: TrainingConfig, model: CAMixerSRConfig | SwinIRConfig, checkpoint: Path, parts: list[int]
) -> None:
    whole, whole_record, whole_batches = run(config, model=model)
    done: list[int] = []
    for part in parts:
        with pytest.raises(TrainingInterruptedError, match=f"after step {sum(done) + part} of {config.steps}"):
            run(config, model=model, checkpoint=checkpoint, should_stop=stop_after(part))
        done.append(part)
    resumed, record, batches = run(config, model=model, checkpoint=checkpoint)
    assert same_weights(whole, resumed)
    assert record.curves == whole_record.curves
    assert record.curve_steps == whole_record.curve_steps
    assert record.resumed_from == tuple(sum(done[: index + 1]) for index in range(len(done)))
    following = zip(whole_batches.next_batch(), batches.next_batch(), strict=True)
    assert all(torch.equal(expected, got) for expected, got in following)


@pytest.mark.parametrize("parts", [[1], [4], [8], [3, 1], [1, 1, 1, 1, 1, 1, 1, 1]], ids=str)
def test_a_run_stopped_anywhere_and_resumed_gives_the_same_bits(tmp_path: Path, parts: list[int]) -> None:
    """Before, at and after a scheduled checkpoint (every 4 of 9 steps), before the last step, and at every step."""
    assert_goes_on_as_if_never_interrupted(SHORT, SMALL, tmp_path / "checkpoint.pt", parts)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (SMALL, {"precision": "bf16"}),
        (SMALL_SWINIR, {}),
        (SMALL, {"grad_clip_norm": None, "augment": False}),
        (SMALL, {"task": "odi"}),
    ],
    ids=["bf16", "swinir", "unclipped", "odi"],
)
def test_other_runs_resume_with_the_same_bits(
    tmp_path: Path, model: CAMixerSRConfig | SwinIRConfig, changes: dict[str, object]
) -> None:
    assert_goes_on_as_if_never_interrupted(
        SHORT.model_copy(update=changes), model, tmp_path / "checkpoint.pt", parts=[5]
    )


@pytest.mark.slow
def test_curves_whose_stretch_is_cut_by_the_interruption_are_the_same(tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"steps": 201, "batch_size": 1, "hr_patch_size": 8, "checkpoint_interval": 500})
    assert_goes_on_as_if_never_interrupted(config, SMALL, tmp_path / "checkpoint.pt", parts=[101])  # stretches of 2


def test_how_often_a_checkpoint_is_written_changes_nothing(tmp_path: Path) -> None:
    often, _, _ = run(SHORT.model_copy(update={"checkpoint_interval": 1}), checkpoint=tmp_path / "often.pt")
    assert same_weights(often, run()[0])


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    first, record, _ = run(checkpoint=checkpoint)
    told: list[object] = []
    again, second, _ = run(checkpoint=checkpoint, progress=told.append)
    assert same_weights(first, again)
    assert told == []
    assert (second.curves, second.seconds, second.resumed_from) == (record.curves, record.seconds, (9,))


def test_a_run_killed_between_checkpoints_repeats_from_the_last_one(tmp_path: Path) -> None:
    """SIGKILL arrives after step 7 of 9, the last checkpoint is of step 4."""
    checkpoint = tmp_path / "checkpoint.pt"
    script = f"""
        import os, signal, torch
        from pathlib import Path
        from tests.training.runs import run

        torch.set_num_threads(1)
        run(
            checkpoint=Path({str(checkpoint)!r}),
            progress=lambda state: os.kill(os.getpid(), signal.SIGKILL) if state.step == 7 else None,
        )
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL
    state = load_checkpoint(checkpoint_at(checkpoint), "run")
    assert state is not None
    assert state["step"] == 4
    whole, whole_record, _ = run()
    steps: list[int] = []
    resumed, record, _ = run(checkpoint=checkpoint, progress=lambda state: steps.append(state.step))
    assert steps == [5, 6, 7, 8, 9]
    assert same_weights(whole, resumed)
    assert record.curves == whole_record.curves
    assert record.resumed_from == (4,)


def test_stopping_without_a_checkpoint_stops_all_the_same() -> None:
    with pytest.raises(TrainingInterruptedError, match="stopped after step 2 of 9"):
        run(should_stop=stop_after(2))


# What stands in the way of resuming ----------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingInterruptedError):
        run(checkpoint=checkpoint, should_stop=stop_after(2))
    return checkpoint


def unsealed(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, without looking at its digest."""
    state: dict[str, Any] = torch.load(io.BytesIO(checkpoint.read_bytes()[:-32]), weights_only=True)
    return state


def test_a_checkpoint_of_another_run_is_refused(stopped: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.pt is of run 'run' .*expected 'other'.*delete it") as caught:
        run(checkpoint=stopped, identity="other")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_version_is_refused(stopped: Path) -> None:
    state = unsealed(stopped)
    save_checkpoint(checkpoint_at(stopped), "run", {**state, "version": 99})
    with pytest.raises(UserError, match=r"\(version 99\), expected 'run' \(version 2\); delete it to start again"):
        run(checkpoint=stopped)


def test_a_checkpoint_of_before_digests_goes_on(stopped: Path) -> None:
    state = unsealed(stopped)
    torch.save({**state, "version": 1}, stopped)
    _, record, _ = run(checkpoint=stopped)
    assert record.resumed_from == (2,)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.999])
def test_a_bit_that_flipped_is_noticed(stopped: Path, place: float) -> None:
    content = bytearray(stopped.read_bytes())
    content[int(place * len(content))] ^= 4
    stopped.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint .*checkpoint\.pt cannot be read .*delete it to start again"):
        run(checkpoint=stopped)


class _Touch:
    """Creates a file when it is unpickled, as an attacker's checkpoint could run anything."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "tensor", "pickle"])
def test_a_damaged_checkpoint_is_one_clear_error_and_runs_nothing(stopped: Path, tmp_path: Path, damage: str) -> None:
    content = stopped.read_bytes()
    trap = tmp_path / "trap"
    if damage == "tensor":
        torch.save(torch.zeros(3), stopped)
    elif damage == "pickle":
        torch.save({"version": 1, "identity": "run", "step": _Touch(trap)}, stopped)
    else:
        stopped.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(UserError, match=r"checkpoint .*checkpoint\.pt cannot be read .*delete it to start") as caught:
        run(checkpoint=stopped)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_the_trap_of_the_test_above_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Touch(tmp_path / "trap")))
    assert (tmp_path / "trap").exists()


def test_a_checkpoint_of_other_data_is_refused(stopped: Path) -> None:
    with pytest.raises(UserError, match="cannot resume: the checkpoint's dataset_hash"):
        train(
            build(),
            sampler(dataset=tiny_pairs(VALIDATION, 2)),
            SHORT,
            checkpoint=checkpoint_at(stopped),
            identity="run",
        )


def test_a_failing_save_leaves_the_old_checkpoint(stopped: Path) -> None:
    before = stopped.read_bytes()
    weight: Tensor = torch.zeros(3)

    def cannot_be_saved() -> None:
        raise AssertionError("never called")

    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(checkpoint_at(stopped), "run", {"weight": weight, "local": cannot_be_saved})
    assert stopped.read_bytes() == before
    assert [path.name for path in stopped.parent.iterdir()] == ["checkpoint.pt"]


def test_no_checkpoint_is_no_state(tmp_path: Path) -> None:
    assert load_checkpoint(checkpoint_at(tmp_path / "none.pt"), "run") is None

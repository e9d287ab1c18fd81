import contextlib
import math
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.core.configs import RoutingConfig, ScheduleConfig, TrainingConfig
from harness.core.device_lock import computing
from harness.core.errors import TrialFailedError, UserError
from harness.core.seeding import derive_seed
from harness.data import CropBatch
from harness.training import TrainingProgress, learning_rate_at, ratio_loss, train
from tests.training.runs import SHORT, SMALL, SMALL_SWINIR, Batches, build, run, same_weights, sampler


def weights_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("model", [SMALL, SMALL_SWINIR], ids=["camixersr", "swinir"])
def test_training_lowers_the_loss_and_records_what_it_did(model: object) -> None:
    config = SHORT.model_copy(update={"steps": 40})
    network, record, _ = run(config, model=model)  # type: ignore[arg-type]
    curve = record.curves["loss"]
    assert sum(curve[-8:]) < 0.8 * sum(curve[:8])
    assert record.curve_steps == tuple(range(1, 41))
    assert record.curves["learning_rate"] == tuple(learning_rate_at(config, step) for step in range(40))
    assert (record.steps, record.device, record.threads, record.resumed_from) == (40, "cpu", 1, ())
    assert record.images_per_second == pytest.approx(40 * 2 / record.seconds)
    assert record.loader_images_per_second > record.images_per_second > 0  # the loader is a part of every step
    assert not network.training
    routes = model is SMALL
    assert ("ratio_loss" in record.curves, "attention_share" in record.curves) == (routes, routes)
    if not routes:
        assert record.curves["l1_loss"] == record.curves["loss"]


def test_steps_are_l1_and_ratio_loss_by_adamw_and_the_average() -> None:
    """Two steps written out again with torch's own parts."""
    changes = {"steps": 2, "grad_clip_norm": None, "ratio_gamma": 0.7, "betas": (0.5, 0.7), "weight_decay": 0.1}
    config = SHORT.model_copy(update={**changes, "schedule": ScheduleConfig(name="constant")})
    trained, record, _ = run(config)
    network, batches = build().train(), sampler(config)
    average = weights_of(network)
    generator = torch.Generator().manual_seed(derive_seed(0, "routing noise"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.5, 0.7), weight_decay=0.1)
    for step, decay in enumerate((1 / 10, 2 / 11)):
        low, high, _, _ = batches.next_batch()
        restored = network.restore(low, generator=generator)
        loss = (restored.image_BCHW - high).abs().mean() + 2 * 0.7 * (restored.hard_share_SB.mean() - 0.5) ** 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average = {name: decay * average[name] + (1 - decay) * value for name, value in weights_of(network).items()}
        assert record.curves["loss"][step] == pytest.approx(loss.item(), rel=1e-6)
        assert record.curves["attention_share"][step] == pytest.approx(restored.hard_share_SB.mean().item())
    for name, value in trained.state_dict().items():
        assert torch.allclose(value, average[name], atol=1e-6), name


def test_panoramas_are_trained_by_the_loss_that_their_rows_weigh() -> None:
    """The first step's loss, written out: crops lie at their own latitudes."""
    config = SHORT.model_copy(update={"steps": 1, "task": "odi", "ratio_gamma": 0.0})
    _, record, _ = run(config, model=SMALL_SWINIR)
    network, batches = build(SMALL_SWINIR).train(), sampler(config)
    low, high, first_rows, image_rows = batches.next_batch()
    errors_BH = (network(low) - high).abs().mean(dim=(1, 3))
    expected = np.mean(
        [
            errors_BH[index, row].item() * math.cos((first + row + 0.5 - rows / 2) * math.pi / rows)
            for index, (first, rows) in enumerate(zip(first_rows.tolist(), image_rows.tolist(), strict=True))
            for row in range(24)
        ]
    )
    assert record.curves["ws_l1_loss"] == record.curves["loss"]
    assert record.curves["loss"][0] == pytest.approx(expected, rel=1e-5)
    assert "l1_loss" not in record.curves


class SlowBatches(Batches):
    """Takes a hundredth of a second for a batch, at the least."""

    def next_batch(self) -> CropBatch:
        time.sleep(0.01)
        return super().next_batch()


def test_the_loaders_own_rate_is_recorded() -> None:
    record = train(build(), SlowBatches(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)), SHORT)
    assert record.images_per_second < record.loader_images_per_second <= 2 / 0.01


def test_gradient_norm_is_clipped() -> None:
    """AdamW hides the gradients' length, unless they are as short as its ε = 1e-8: then steps become shorter."""
    tight = SHORT.model_copy(update={"grad_clip_norm": 1e-8})
    free = SHORT.model_copy(update={"grad_clip_norm": None})
    start = weights_of(build())

    def moved(config: TrainingConfig) -> float:
        network = run(config.model_copy(update={"weight_decay": 0.0}))[0]
        return math.fsum((value - start[name]).abs().sum().item() for name, value in network.state_dict().items())

    assert moved(tight) < 0.5 * moved(free)


def test_curves_of_long_runs_are_means_over_equal_stretches_that_end_with_the_run() -> None:
    network = build()
    config = SHORT.model_copy(update={"steps": 201, "batch_size": 1, "hr_patch_size": 8})
    losses: list[float] = []
    low, high = torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 8, 8), 0.5)
    record = train(network, Batches(low, high), config, threads=1, progress=lambda state: losses.append(state.loss))
    assert record.curve_steps == (*range(2, 201, 2), 201)
    expected = [sum(losses[index : index + 2]) / len(losses[index : index + 2]) for index in range(0, 201, 2)]
    assert record.curves["loss"] == pytest.approx(expected)
    assert {len(values) for values in record.curves.values()} == {len(record.curve_steps)}


def test_progress_is_told_after_every_step() -> None:
    told: list[TrainingProgress] = []
    _, record, _ = run(progress=told.append)
    assert [state.step for state in told] == list(range(1, 10))
    assert {state.steps for state in told} == {9}
    assert tuple(state.loss for state in told) == record.curves["loss"]
    assert told[-1].seconds_left == 0
    assert told[-1].images_per_second == pytest.approx(record.images_per_second)
    for state in told:
        assert state.seconds_left == pytest.approx((9 - state.step) * 2 / state.images_per_second)


def test_same_seed_gives_the_same_bits_and_another_seed_other_weights() -> None:
    first, first_record, _ = run()
    second, second_record, _ = run()
    assert same_weights(first, second)
    assert first_record.curves == second_record.curves
    other, _, _ = run(SHORT.model_copy(update={"seed": 1}))
    assert not same_weights(first, other)


def test_global_generators_threads_and_grad_mode_are_left_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    before = torch.get_num_threads()
    network = build()
    seen: list[int] = []
    brief = SHORT.model_copy(update={"steps": 2})
    train(network, sampler(), brief, threads=before + 1, progress=lambda state: seen.append(torch.get_num_threads()))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))
    assert torch.is_grad_enabled()


def test_threads_come_back_after_a_failure_too() -> None:
    before = torch.get_num_threads()
    network = build()
    nan = torch.full((1, 3, 8, 8), math.nan)
    with pytest.raises(TrialFailedError):
        train(network, Batches(nan, torch.zeros(1, 3, 16, 16)), SHORT, threads=before + 1)
    assert torch.get_num_threads() == before
    assert not network.training


def test_bf16_learns_and_keeps_float32_weights() -> None:
    network, record, _ = run(SHORT.model_copy(update={"precision": "bf16", "steps": 30}))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    curve = record.curves["loss"]
    assert sum(curve[-6:]) < 0.9 * sum(curve[:6])
    assert not same_weights(network, run(SHORT.model_copy(update={"steps": 30}))[0])


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"fp16 on a CPU.*expected fp32 or bf16"):
        run(SHORT.model_copy(update={"precision": "fp16"}))


def test_ratio_loss_pulls_the_attention_share_towards_one_half() -> None:
    network = build()
    predictor = next(module for module in network.modules() if type(module).__name__ == "Predictor")
    with torch.no_grad():
        predictor.routing_out.bias.copy_(torch.tensor([0.5, -0.5]))  # type: ignore[union-attr, operator]
    network.routing_noise = False  # type: ignore[assignment]
    low, high, _, _ = sampler(SHORT.model_copy(update={"batch_size": 4})).next_batch()
    start = network.train().restore(low).hard_share_SB
    assert ratio_loss(start, 1.0).item() == 0.5  # every window is hard
    config = SHORT.model_copy(
        update={"steps": 60, "learning_rate": 0.05, "ratio_gamma": 1.0, "schedule": ScheduleConfig(name="constant")}
    )
    record = train(network, Batches(low, high), config, threads=1)
    assert record.curves["ratio_loss"][0] == 0.5
    assert min(record.curves["ratio_loss"]) < 0.5


# A loss or gradient that is not finite -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["input", "target"])
def test_an_image_with_nan_ends_the_trial_before_the_weights_are_touched(place: str) -> None:
    network = build()
    before = weights_of(network)
    low, high = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    (low if place == "input" else high)[1, 2, 3, 4] = math.nan
    with pytest.raises(TrialFailedError, match=r"loss is nan at step 1 \(learning rate 0.002\)"):
        train(network, Batches(low, high), SHORT)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_gradient_that_is_not_finite_ends_the_trial_before_the_weights_are_touched() -> None:
    """The loss is finite, and a gradient overflows on its way back."""
    network = build()
    before = weights_of(network)
    for parameter in network.parameters():
        parameter.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    low, high, _, _ = sampler().next_batch()
    for clip in (None, 1.0):
        with pytest.raises(TrialFailedError, match=r"gradient norm is (nan|inf) at step 1"):
            train(network, Batches(low, high), SHORT.model_copy(update={"grad_clip_norm": clip}))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def in_a_process(script: str) -> str:
    """Run a script in a process of its own, which a crash in native code would end; return what it printed."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def test_no_learning_rate_and_no_broken_weight_crashes_the_process() -> None:
    """On a CPU the gradient of grid_sample ends the process where its grid is NaN, even with a finite loss."""
    printed = in_a_process(
        """
        import math, torch
        from harness.core.configs import ScheduleConfig
        from harness.core.errors import TrialFailedError
        from harness.training import train
        from tests.training.runs import SHORT, SMALL, build, sampler

        torch.set_num_threads(1)
        constant = SHORT.model_copy(update={"schedule": ScheduleConfig(name="constant"), "grad_clip_norm": None})
        for rate in (1e4, 1e12, 1e18, 1e30):
            try:
                train(build(), sampler(), constant.model_copy(update={"learning_rate": rate}))
            except TrialFailedError as error:
                print(error)
        for broken in (math.nan, math.inf):
            network = build(SMALL.model_copy(update={"channels": 16}))
            predictor = next(module for module in network.modules() if type(module).__name__ == "Predictor")
            with torch.no_grad():  # NaN; or inf − inf, which is NaN
                predictor.offsets_hidden.bias.fill_(9)  # both features are positive
                predictor.offsets_out.weight.fill_(broken)
                predictor.offsets_out.weight[:, 1] = -broken
            try:
                train(network, sampler(), SHORT)
            except TrialFailedError as error:
                print(error)
        print("alive")
        """
    )
    lines = printed.splitlines()
    assert lines[-1] == "alive"
    assert len(lines) == 7
    assert [line.partition(" at step ")[0] for line in lines[4:6]] == ["loss is nan", "loss is nan"]
    for line in lines[:4]:
        assert line.startswith(("loss is", "gradient norm is"))


def test_routing_of_the_config_does_not_enter_training() -> None:
    free, _, _ = run()
    other = SMALL.with_routing(RoutingConfig(policy="threshold", gamma=0.1))
    assert same_weights(free, run(model=other)[0])


MEASUREMENT = """
import sys, time
from pathlib import Path
from harness.core.device_lock import measuring
with measuring(folder=Path(sys.argv[1])):
    print("measuring", flush=True)
    time.sleep(0.5)
"""


def test_training_pauses_while_another_process_measures(tmp_path: Path) -> None:
    """A measurement begins between two steps: the next step waits for its end, at no cost to time or weights."""
    folder = tmp_path / "locks"
    config = SHORT.model_copy(update={"steps": 6})
    waits: list[float] = []

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        with computing(folder=folder) as waited:
            waits.append(waited)
            yield

    def measure_after_the_third(progress: TrainingProgress) -> None:
        if progress.step == 3:
            command = [sys.executable, "-c", MEASUREMENT, str(folder)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert process.stdout is not None
            assert process.stdout.readline() == "measuring\n"

    network = build()
    with contextlib.ExitStack() as stack:
        started = time.perf_counter()
        record = train(network, sampler(config), config, progress=measure_after_the_third, turn=turn)
        elapsed = time.perf_counter() - started
    assert waits[3] > 0.25
    assert max(waits[:3] + waits[4:]) < waits[3]
    assert record.seconds <= elapsed - sum(waits)
    undisturbed, _, _ = run(config)
    assert same_weights(network, undisturbed)

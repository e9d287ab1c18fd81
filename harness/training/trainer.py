"""One training run, which can be killed at any moment and goes on from its last checkpoint with the same numbers."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.core.checkpoints import Checkpoint
from harness.core.configs import TrainingConfig
from harness.core.errors import TrialFailedError, UserError
from harness.core.records import TrainingRecord
from harness.core.seeding import derive_seed
from harness.data import CropBatch
from harness.models.network import SRNetwork
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.distillation import Teacher, keep_own
from harness.training.ema import MovingAverage
from harness.training.losses import crop_weights, l1_loss, ratio_loss, weighted_l1_loss
from harness.training.parallel import ALONE, Group
from harness.training.schedule import learning_rate_at

_CURVE_POINTS = 200
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


Turn = Callable[[], contextlib.AbstractContextManager[object]]


class BatchSource(Protocol):
    """Where batches come from: an endless, resumable stream."""

    def next_batch(self) -> CropBatch:
        """Return low- and high-resolution patches, float32 in [0, 1], and the rows that they lie at."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream as plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


class TrainingProgress(NamedTuple):
    """What a progress bar shows after a step."""

    step: int
    steps: int
    loss: float
    images_per_second: float
    seconds_left: float


class TrainingInterruptedError(Exception):
    """Training was asked to stop; the checkpoint holds everything to go on from."""


@dataclass
class _Clock:
    """Seconds of whole steps and of the loader alone, over all parts of an interrupted run."""

    steps: float = 0.0
    loader: float = 0.0


def train(
    network: SRNetwork,
    batches: BatchSource,
    config: TrainingConfig,
    *,
    device: str = "cpu",
    threads: int | None = None,
    teacher: SRNetwork | None = None,
    group: Group = ALONE,
    checkpoint: Checkpoint | None = None,
    identity: str = "",
    progress: Callable[[TrainingProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    turn: Turn = contextlib.nullcontext,
    rungs: Collection[int] = (),
    at_rung: Callable[[int, Mapping[str, Tensor]], None] = lambda step, weights: None,
) -> TrainingRecord:
    """Train `network` in place; at the end it holds the averaged weights, is in eval mode and back on the CPU.

    With a `checkpoint` the run is saved every `config.checkpoint_interval` steps and at the end, and goes on from
    a checkpoint of the same `identity`: the weights are those of a run never interrupted (bit-identical on a CPU with
    the same number of threads). `threads` holds for this run only. `should_stop` is asked after every step: on True
    the run is saved and `TrainingInterruptedError` raised. Each step is taken inside a `turn()`, which may wait before
    it begins; that time is none of training's. A loss or gradient norm that is not finite raises `TrialFailedError`
    before it can reach the weights.

    After each step in `rungs` but the last of all, the run is saved and `at_rung` called with the step and the averaged
    weights, which it must not change; what it raises ends the run. A run that goes on from a checkpoint of such a step
    calls it again, having been killed in it or after it.

    `teacher` is what `config.distillation` learns from, and given where that is. It is put into eval mode, takes no
    gradients and is asked inside each step; `identity` has to tell one teacher from another. `UserError` where it is of
    another scale.

    Of a `group` every process that has joined it calls this with the same network, stream of batches and config, on a
    device of its own, and takes its part of each batch: `UserError` where that does not come out even. The leader's
    initial weights and checkpoint are those of all, and another number of processes may go on from a checkpoint.
    A step is taken inside the turns of all processes; all stop at the step where one of them is asked to.
    `OutageError` where another process is gone.
    """
    previous_threads = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        run = _Run(network, batches, config, torch.device(device), teacher, group, checkpoint, identity)
        return run.finish(progress, should_stop, turn, rungs, at_rung)
    finally:
        network.eval()
        network.to("cpu")
        if teacher is not None:
            teacher.to("cpu")
        torch.set_num_threads(previous_threads)


class _Run:
    """The state of one run between steps."""

    def __init__(
        self,
        network: SRNetwork,
        batches: BatchSource,
        config: TrainingConfig,
        device: torch.device,
        teacher: SRNetwork | None,
        group: Group,
        checkpoint: Checkpoint | None,
        identity: str,
    ):
        assert (teacher is None) == (config.distillation is None), "a teacher goes with `distillation`"
        if device.type == "cpu" and config.precision == "fp16":
            raise UserError("training.precision is fp16 on a CPU, which has no fast fp16; expected fp32 or bf16")
        group.check_batch_size(config.batch_size)
        self.teacher: Teacher | None = None
        if teacher is not None and config.distillation is not None:
            self.teacher = Teacher(teacher, config.distillation, network, device)
        self.network = network.to(device).train()
        self.batches = batches
        self.config = config
        self.device = device
        self.group = group
        self.checkpoint = checkpoint
        self.identity = identity
        self.parameters = list(network.parameters())
        group.copy(network.state_dict().values())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True if device.type == "cuda" else None,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.average = MovingAverage(network, config.ema_decay)
        self.generator = torch.Generator().manual_seed(derive_seed(config.seed, "routing noise"))
        self.step = 0
        self.clock = _Clock()
        self.curve_steps: list[int] = []
        self.curves: dict[str, list[float]] = {}
        self.window: dict[str, list[float]] = {}
        self.resumed_from: list[int] = []
        self._resume()

    def finish(
        self,
        progress: Callable[[TrainingProgress], None] | None,
        should_stop: Callable[[], bool],
        turn: Turn,
        rungs: Collection[int],
        at_rung: Callable[[int, Mapping[str, Tensor]], None],
    ) -> TrainingRecord:
        """Run all steps that are left."""
        steps = self.config.steps
        while self.step < steps:
            if self.step in rungs and self.step > 0:
                at_rung(self.step, self.average.weights)
            with turn():
                self.group.wait()
                started = time.perf_counter()
                loss = self._advance()
                self.clock.steps += time.perf_counter() - started
                self.group.wait()
            self.step += 1
            if progress is not None:
                rate = self.step / self.clock.steps
                images = rate * self.config.batch_size
                progress(TrainingProgress(self.step, steps, loss, images, (steps - self.step) / rate))
            if self.step % self.config.checkpoint_interval == 0 or self.step == steps or self.step in rungs:
                self._save(should_stop)
            if self.step < steps and self.group.any(should_stop()):
                self._save(should_stop)
                raise TrainingInterruptedError(f"stopped after step {self.step} of {steps}")
        self.network.load_state_dict(self.average.weights)
        images = steps * self.config.batch_size
        return TrainingRecord(
            steps=steps,
            seconds=self.clock.steps,
            images_per_second=images / self.clock.steps,
            loader_images_per_second=images / max(self.clock.loader, 1e-9),
            device=str(self.device),
            threads=torch.get_num_threads(),
            processes=self.group.size,
            curve_steps=tuple(self.curve_steps),
            curves={name: tuple(values) for name, values in self.curves.items()},
            resumed_from=tuple(self.resumed_from),
            teacher=None if self.config.distillation is None else self.config.distillation.teacher_id,
        )

    def _advance(self) -> float:
        """Take one step and return its loss."""
        config = self.config
        rate = learning_rate_at(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        started = time.perf_counter()
        batch = self.group.own_part(self.batches.next_batch())
        self.clock.loader += time.perf_counter() - started
        low_BCHW, high_BCHW = batch.low_BCHW.to(self.device), batch.high_BCHW.to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        dtype = _DTYPES.get(config.precision)
        distance, pixel_loss_name = self._distance(batch)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            lesson = None if self.teacher is None else self.teacher.teach(low_BCHW)
            with keep_own(self.network, config.distillation) as features:
                restored = self.network.restore(low_BCHW, generator=self.group.own_noise(self.generator))
        loss = pixel_loss = self.group.mean(distance(restored.image_BCHW, high_BCHW))
        observed = {"learning_rate": rate}
        if lesson is not None and lesson.image_BCHW is not None:
            taught_loss = self.group.mean(distance(restored.image_BCHW, lesson.image_BCHW))
            weight = lesson.config.weight
            loss = (1 - weight) * pixel_loss + weight * taught_loss
            observed["distillation_loss"] = taught_loss.item()
        if lesson is not None and lesson.features:
            feature_loss = self.group.mean(lesson.compare(features))
            loss = loss + lesson.config.feature_weight * feature_loss
            observed["feature_loss"] = feature_loss.item()
        if len(restored.hard_share_SB):
            hard_share_SB = self.group.mean(restored.hard_share_SB.float())
            share_loss = ratio_loss(hard_share_SB, config.ratio_gamma)
            loss = loss + share_loss
            observed["ratio_loss"] = share_loss.item()
            observed["attention_share"] = hard_share_SB.detach().mean().item()
        observed[pixel_loss_name] = pixel_loss.item()
        observed["loss"] = loss.item()
        if not math.isfinite(observed["loss"]):
            raise TrialFailedError(f"loss is {observed['loss']} at step {self.step + 1} (learning rate {rate:.2g})")
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.group.average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.grad_clip_norm or math.inf).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():  # the scaler skips such a step by itself
            raise TrialFailedError(f"gradient norm is {norm} at step {self.step + 1} (learning rate {rate:.2g})")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.network, self.step)
        self._observe(observed)
        return observed["loss"]

    def _distance(self, batch: CropBatch) -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
        """Return the L1 of the task between outputs and targets of a batch, and its name."""
        if self.config.task == "classic":
            return l1_loss, "l1_loss"
        weights_BH = crop_weights(batch.first_row_B, batch.image_rows_B, batch.high_BCHW.shape[-2]).to(self.device)
        return functools.partial(weighted_l1_loss, weights_BH=weights_BH), "ws_l1_loss"

    def _observe(self, observed: dict[str, float]) -> None:
        """Add to the curves: means over equal stretches, at most `_CURVE_POINTS` of them."""
        for name, value in observed.items():
            self.window.setdefault(name, []).append(value)
        stretch = -(-self.config.steps // _CURVE_POINTS)
        if (self.step + 1) % stretch == 0 or self.step + 1 == self.config.steps:
            self.curve_steps.append(self.step + 1)
            for name, values in self.window.items():
                self.curves.setdefault(name, []).append(sum(values) / len(values))
            self.window = {}

    def _save(self, should_stop: Callable[[], bool]) -> None:
        if self.checkpoint is None or not self.group.leads:
            return
        save_checkpoint(
            self.checkpoint,
            self.identity,
            {
                "step": self.step,
                "network": self.network.state_dict(),
                "average": self.average.weights,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "generator": self.generator.get_state(),
                "batches": json.dumps(self.batches.state_dict()),
                "seconds": [self.clock.steps, self.clock.loader],
                "curves": [self.curve_steps, self.curves, self.window],
                "resumed_from": self.resumed_from,
            },
            should_stop,
        )

    def _load(self) -> dict[str, Any] | None:
        return load_checkpoint(self.checkpoint, self.identity) if self.checkpoint is not None else None

    def _resume(self) -> None:
        state = self.group.tell(self._load)
        if state is None:
            return
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"])
        self.batches.load_state_dict(json.loads(state["batches"]))
        self.clock = _Clock(*state["seconds"])
        self.curve_steps, self.curves, self.window = state["curves"]
        self.resumed_from = [*state["resumed_from"], self.step]

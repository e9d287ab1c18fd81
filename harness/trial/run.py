"""One trial is one straight line.

count MACs and parameters → hard constraints (reject before training) → latency, where a constraint asks for it or where
networks are stopped early → score untrained → train, compared with others at rungs → compress and quantise, where
asked for → calibrate, where asked for → evaluate and measure at every routing, quantised files too → TrialRecord.

Whatever computes lets measurements of other processes go before it: between the steps of training, the images of an
evaluation and the scores of a calibration.
"""

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from harness.core.conditions import Conditions, parse_conditions
from harness.core.configs import (
    AnyModelConfig,
    CalibrationConfig,
    CAMixerSRConfig,
    CompressionConfig,
    DataConfig,
    DistillationConfig,
    QuantisationConfig,
    RoutingConfig,
    Rung,
    StoppingConfig,
    TrainingConfig,
)
from harness.core.constraints import Constraint
from harness.core.device_lock import computing, waited_seconds
from harness.core.environment import now, observe_environment
from harness.core.errors import OutageError, TrialFailedError, UserError, is_out_of_memory
from harness.core.files import NO_ROOM, atomic_path, exclusive_lock, no_room, write_text
from harness.core.quantisation import QuantisationRecord
from harness.core.records import (
    WAITING,
    CompressionRecord,
    EvaluationRecord,
    GainsRecord,
    LatencyRecord,
    MacsRecord,
    PointRecord,
    RoutedLatency,
    RungPoint,
    RungRecord,
    TrainingRecord,
    TrialRecord,
    TrialState,
    latency_value,
    network_id,
    point_id,
)
from harness.core.seeding import derive_seed
from harness.core.study_folder import StudyFolder
from harness.data import CropSampler, PairedDataset, to_tensor
from harness.metrics import Protocol as ScoreProtocol
from harness.models import CAMixerSR, SRNetwork, build_model, build_seeded, describe_kernels, load_weights
from harness.profiling import (
    Effort,
    canonical_macs,
    chosen_threads,
    count_macs,
    count_params,
    measure_in_processes,
    measure_latencies,
    measure_peak_memory,
    parse_device,
)
from harness.training import (
    ALONE,
    DamagedCheckpointError,
    Group,
    TrainingInterruptedError,
    TrainingProgress,
    Turn,
    train,
)
from harness.trial.calibration import TuningCrops, choose_images, find_gains, routing_by
from harness.trial.compression import Workshop, compare_plans, compress, quantise_stage
from harness.trial.evaluation import evaluate, routed
from harness.trial.quantisation import (
    NETWORK_FILE,
    describe_file,
    measure_files,
    measure_memory,
    quantise,
    read_quantised,
    write_quantised,
)
from harness.trial.teacher import load_teacher

QUANTISED = "quantised"  # the folder, beside a network's weights, of its quantised file under the first routing
_RUNGS = TypeAdapter(tuple[RungRecord, ...])


class Verdict(NamedTuple):
    """What is said of a network at a rung: whether it goes on, and its place, from 1, of all that have come to it."""

    promoted: bool
    place: int
    networks: int


# Who compares a network with others at a rung, by its points: evaluated on the rung's images, with the latencies of the
# untrained network.
Judge = Callable[[Rung, tuple[PointRecord, ...]], Verdict]


class _StoppedEarlyError(Exception):
    """A network is not among the best at a rung."""


class TrialProgress(Protocol):
    """What a trial tells whoever shows progress."""

    def phase(self, record_id: str, label: str, phase: str) -> None:
        """A trial enters a phase, named for people."""

    def training(self, progress: TrainingProgress) -> None:
        """A training step is done."""


class Silent:
    """Progress that nobody watches."""

    def phase(self, record_id: str, label: str, phase: str) -> None:
        """Say nothing."""

    def training(self, progress: TrainingProgress) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a study share.

    `devices` are the conditions that latency is measured under (`cpu:1`, `cuda:0/fp16`), interleaved with `reference`:
    in `fresh` processes, or in this one (`shared`, eager alone). `latency_input_size` (for conditions that name none)
    and `macs_input_size` are low-resolution (height, width). `train_device` and `threads` serve training and
    evaluation.
    `calibration`: the routing of each trained network is calibrated on images of `train`, for points beside those that
    are proposed. `stopping`: trials are stopped early, by a `Judge`. `teachers`: the identities of the bundles that
    networks learn from, by where they lie (`find_teachers`). `shares_training`: several trials may be of the same
    trained network, which one of them trains for all.
    """

    study: str
    folder: StudyFolder
    data: DataConfig
    train: PairedDataset
    validation: PairedDataset
    protocol: ScoreProtocol
    constraints: tuple[Constraint, ...]
    devices: tuple[str, ...]
    latency_input_size: tuple[int, int]
    macs_input_size: tuple[int, int]
    reference: SRNetwork | None
    reference_name: str | None
    train_device: str = "cpu"
    threads: int = 1
    latency_repeats: int = 10
    latency_seconds: float = 1.0
    latency_process: Literal["fresh", "shared"] = "fresh"
    measure_memory: bool = False
    measure_latency: bool = True
    calibration: CalibrationConfig | None = None
    stopping: StoppingConfig | None = None
    teachers: Mapping[str, str] = field(default_factory=dict)
    shares_training: bool = False

    def rungs(self, training: TrainingConfig) -> tuple[Rung, ...]:
        """Return the rungs of a training, the earliest first."""
        return () if self.stopping is None else self.stopping.rungs(training.steps, len(self.validation))


class Parent(NamedTuple):
    """A network that was trained elsewhere: its identity, and the file of its weights."""

    network_id: str
    weights: Path


@dataclass(frozen=True)
class Proposal:
    """What one trial is to do. `routings` are all that the trained network is evaluated at; `suggested` is one of them.

    Networks that do not route have the single routing None. `compression`: what is done to the trained network, all of
    whose points are then those of what comes out: of one that is quantised, in float and of a file for each routing.
    `parent`: the network is trained already, and `training` is how.
    """

    record_id: str
    kind: Literal["trial", "baseline"]
    number: int | None
    model: AnyModelConfig
    training: TrainingConfig | None
    routings: tuple[RoutingConfig | None, ...]
    suggested: RoutingConfig | None
    suggestion: dict[str, Any] = field(default_factory=dict)
    compression: CompressionConfig | None = None
    parent: Parent | None = None

    def network_id(self, data: DataConfig) -> str:
        """Return the identity of the network that this proposal ends with."""
        parent = None if self.parent is None else self.parent.network_id
        return network_id(self.model, self.training, data, self.compression, parent)

    def trained_id(self, data: DataConfig) -> str:
        """Return the identity of the network before its compression."""
        return network_id(self.model, self.training, data) if self.parent is None else self.parent.network_id


@dataclass
class _Observed:
    """What has been found so far; a record is made of it at any end."""

    started_at: str
    seconds: dict[str, float] = field(default_factory=dict)
    params: int | None = None
    macs_check: MacsRecord | None = None
    untrained: EvaluationRecord | None = None
    training_result: TrainingRecord | None = None
    calibration: GainsRecord | None = None
    compression: CompressionRecord | None = None
    model: AnyModelConfig | None = None  # where it is not the proposal's
    error_type: str | None = None
    rungs: tuple[RungRecord, ...] = ()
    early_latency: tuple[RoutedLatency, ...] = ()
    notes: tuple[str, ...] = ()
    points: tuple[PointRecord, ...] = ()
    violations: dict[str, float] = field(default_factory=dict)
    _inside: float = 0.0  # seconds of the blocks inside the present one

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's duration to `seconds[phase]`, but for blocks inside of it, which are phases of their own.

        So is the time that is waited for other processes.
        """
        started, before, self._inside = time.perf_counter(), self._inside, 0.0
        waited, known = waited_seconds(), self.seconds.get(WAITING, 0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            waited = waited_seconds() - waited - (self.seconds.get(WAITING, 0.0) - known)  # blocks inside have told
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent - waited - self._inside
            if waited > 0:
                self.seconds[WAITING] = self.seconds.get(WAITING, 0.0) + waited
            self._inside = before + spent


def representative_input(dataset: PairedDataset, size: tuple[int, int]) -> Tensor:
    """Return the centre of the dataset's first low-resolution image as 1×3×h×w in [0, 1], mirrored where it is smaller.

    Routing depends on content, so latencies are measured on a photograph.
    """
    return to_tensor(crop_centre(np.asarray(dataset[0].lr_HWC), size))


def crop_centre(image_HWC: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the centre of an image as h×w×3, mirrored where it is smaller."""
    for axis, side in enumerate(size):
        missing = max(side - image_HWC.shape[axis], 0)
        pads = [(0, 0), (0, 0), (0, 0)]
        pads[axis] = (missing // 2, missing - missing // 2)
        image_HWC = np.pad(image_HWC, pads, mode="symmetric")
        start = (image_HWC.shape[axis] - side) // 2
        image_HWC = image_HWC.take(range(start, start + side), axis=axis)
    return image_HWC


def run_trial(
    setup: TrialSetup,
    proposal: Proposal,
    *,
    judge: Judge | None = None,
    progress: TrialProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    group: Group = ALONE,
) -> TrialRecord:
    """Run one trial and return its record, which is on disk before this returns.

    With a `judge` it comes to the rungs of `setup.stopping`; where the judge does not promote it, its state is
    `stopped`. A rung that an earlier process saw to the end is not judged again. The leader of a `group` runs the
    trial; the others take part in its training (`assist_training`), after which it leaves them.

    Whatever goes wrong inside ends as a record of state `failed` with its reason (and the traceback beside the
    network); only `TrainingInterruptedError` (asked to stop), `OutageError` (a full disk, images or a teacher that are
    gone) and what is no `Exception` get out, and then the next run of the same proposal goes on from the checkpoint.
    Where checkpoint or rungs are damaged they are thrown away, which the record notes, and training begins again.
    """
    progress = progress or Silent()
    observed = _Observed(started_at=now())
    identity = proposal.network_id(setup.data)
    state: TrialState = "complete"
    reason = None
    try:
        with chosen_threads(setup.threads):
            reason = _find_rejection(setup, proposal, observed, progress)
            if reason is not None:
                state = "rejected"
            else:
                _train_and_measure(setup, proposal, observed, judge, progress, should_stop, group)
    except (TrainingInterruptedError, OutageError):
        raise
    except _StoppedEarlyError as stop:
        state, reason = "stopped", str(stop)
    except Exception as error:  # a crash is a state of its own, never a bad number
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise OutageError(no_room(setup.folder.path, error)) from error
        state = "failed"
        observed.error_type = "MemoryError" if is_out_of_memory(error) else type(error).__name__
        reason = f"{error}" if isinstance(error, TrialFailedError) else f"{type(error).__name__}: {error}"
        write_text(setup.folder.traceback_file(identity), traceback.format_exc())
    record = make_record(setup, proposal, observed, state, reason)
    setup.folder.write_trial(record)
    if state in ("complete", "stopped"):  # a failure may be mended, and then training goes on from where it was
        clear_up(setup.folder, identity)
    return record


def clear_up(folder: StudyFolder, network: str) -> None:
    """Remove what the training of a network leaves behind that is over, killed in the middle of writing or not.

    A checkpoint at a place that is away is left there; nobody goes on from it.
    """
    if folder.place is not None:
        with contextlib.suppress(OutageError):
            folder.checkpoint(network).remove()
    for file in (
        folder.checkpoint_file(network),
        folder.rungs_file(network),
        folder.stage_file(network),
        folder.traceback_file(network),
    ):
        file.unlink(missing_ok=True)
        for temporary in file.parent.glob(f".{file.name}.*"):
            temporary.unlink(missing_ok=True)


def answer_from(setup: TrialSetup, proposal: Proposal, trained: TrialRecord) -> TrialRecord:
    """Return (and write) the record of a proposal whose network was trained before."""
    reason = f"the network was trained by {trained.record_id}"
    record = make_record(setup, proposal, _Observed(started_at=now()), "answered", reason)
    record = record.model_copy(update={"answered_by": trained.record_id, "params": trained.params})
    setup.folder.write_trial(record)
    return record


def abandon(setup: TrialSetup, proposal: Proposal, reason: str) -> TrialRecord:
    """Return (and write) the record of a proposal that is given up, with its reason."""
    record = make_record(setup, proposal, _Observed(started_at=now()), "failed", reason)
    setup.folder.write_trial(record)
    return record


def make_record(
    setup: TrialSetup, proposal: Proposal, observed: _Observed, state: TrialState, reason: str | None
) -> TrialRecord:
    """Put what was observed into a record."""
    model = observed.model or proposal.model
    return TrialRecord(
        study=setup.study,
        record_id=proposal.record_id,
        kind=proposal.kind,
        number=proposal.number,
        state=state,
        reason=reason,
        label=model.label(),
        network_id=proposal.network_id(setup.data),
        model=model,
        training=proposal.training,
        data=setup.data,
        suggestion=proposal.suggestion,
        params=observed.params,
        macs_check=observed.macs_check,
        training_result=observed.training_result,
        untrained=observed.untrained,
        calibration=observed.calibration,
        plan=proposal.compression,
        compression=observed.compression,
        error_type=observed.error_type,
        rungs=observed.rungs,
        early_latency=() if observed.points else observed.early_latency,
        notes=observed.notes,
        points=observed.points,
        violations=observed.violations,
        seconds=observed.seconds,
        environment=observe_environment(describe_kernels()),
        started_at=observed.started_at,
        finished_at=now(),
    )


def _find_rejection(setup: TrialSetup, proposal: Proposal, observed: _Observed, progress: TrialProgress) -> str | None:
    """Check the hard constraints that need no training, cheapest first; return why the proposal is rejected."""
    observed.params = count_params(proposal.model)
    model = _with_routing(proposal.model, proposal.suggested)
    values: dict[str, float | None] = {"params": observed.params}
    if proposal.suggested is None or proposal.suggested.policy != "threshold":  # its share is known after training
        values["macs"] = canonical_macs(model, setup.macs_input_size)
    early = [constraint for constraint in setup.constraints if constraint.is_known_before_training]
    if proposal.kind == "baseline":  # a baseline is to be compared with, whatever it costs
        return None
    if proposal.compression is not None:  # what is left of the network is known when it has been pruned
        return None
    for constraint in early:
        if constraint.metric in values and constraint.violation(values[constraint.metric]) > 0:
            observed.violations[constraint.name] = constraint.violation(values[constraint.metric])
            return f"{constraint.metric} is {values[constraint.metric]:g}, but the space demands {constraint.name}"
    memory_device = parse_conditions(setup.devices[0]).device
    costly = [constraint for constraint in early if constraint.metric not in ("params", "macs")]
    if not costly:
        return None
    progress.phase(proposal.record_id, proposal.model.label(), "measuring the untrained network")
    network = build_seeded(proposal.model, proposal.training.seed if proposal.training else 0)
    latency: tuple[LatencyRecord, ...] = ()
    memory = None
    if any(constraint.metric.startswith("latency") for constraint in costly):
        with observed.timed("latency"):
            latency = _measure(setup, {"suggested": routed(network, proposal.suggested)})["suggested"]
    if any(constraint.metric == "peak_memory_bytes" for constraint in costly):
        with observed.timed("memory"):
            memory = measure_peak_memory(model, setup.latency_input_size, memory_device)
    for constraint in costly:
        is_memory = constraint.metric == "peak_memory_bytes"
        value = memory if is_memory else latency_value(latency, constraint.metric)
        if value is not None and constraint.violation(value) > 0:
            observed.violations[constraint.name] = constraint.violation(value)
            return f"{constraint.metric} is {value:.4g} untrained, but the space demands {constraint.name}"
    return None


def _train_and_measure(
    setup: TrialSetup,
    proposal: Proposal,
    observed: _Observed,
    judge: Judge | None,
    progress: TrialProgress,
    should_stop: Callable[[], bool],
    group: Group,
) -> None:
    """Take the rest of the line; what is found goes into `observed` as it is found."""

    def tell(phase: str) -> None:
        progress.phase(proposal.record_id, proposal.model.label(), phase)

    model = _with_routing(proposal.model, proposal.suggested)
    training = proposal.training
    network = build_seeded(model, training.seed if training else 0)
    assert observed.params == sum(parameter.numel() for parameter in network.parameters())
    teacher = load_teacher(training) if proposal.parent is None else None
    identity = proposal.network_id(setup.data)
    sample_BCHW = representative_input(setup.validation, setup.latency_input_size)

    tell("counting operations")
    with observed.timed("counting"):
        observed.macs_check = _check_macs(network, sample_BCHW)

    rungs = () if judge is None or training is None else setup.rungs(training)
    if rungs:
        tell("measuring the untrained network")
        with observed.timed("latency"):
            untrained = _vary(network, proposal.routings)
            measured = _measure(setup, untrained)
            observed.early_latency = tuple(
                RoutedLatency(routing=routing, latency=measured[name])
                for name, routing in zip(untrained, proposal.routings, strict=True)
            )

    with _training_alone(setup, proposal, observed, tell, should_stop):
        _train(setup, proposal, observed, network, rungs, judge, teacher, progress, tell, should_stop, group)
    if proposal.compression is not None:
        assert training is not None
        whole = routed(network.eval(), proposal.routings[0])  # not the one that happened to be proposed first
        with observed.timed("compression"):
            network, observed.compression = _compress(setup, proposal, whole, training, tell, progress, should_stop)
        observed.model = _with_routing(network.config, getattr(proposal.model, "routing", None))
        observed.params = sum(parameter.numel() for parameter in network.parameters())
        observed.macs_check = _check_macs(network, sample_BCHW)
        _write_weights(setup.folder.weights_file(identity), network)

    network.eval()
    made: list[tuple[str, QuantisationRecord]] = []
    if proposal.compression is not None and proposal.compression.quantise is not None:
        assert observed.compression is not None
        with observed.timed("quantisation"):
            made = _quantise(setup, proposal, network, proposal.compression.quantise, tell, should_stop)
        stages = observed.compression.stages
        stage = quantise_stage(stages, made[0][1], made[0][0])
        observed.compression = observed.compression.model_copy(update={"stages": (*stages, stage)})
    routings = proposal.routings
    if setup.calibration is not None and isinstance(network, CAMixerSR):
        tell("calibrating")
        with observed.timed("calibration"):
            observed.calibration = _find_gains(setup, network, setup.calibration)
        if observed.calibration.note is None:
            policy, shares = setup.calibration.policy, setup.calibration.shares
            routings += tuple(routing_by(observed.calibration, policy, share) for share in shares)

    tell("evaluating")
    variants = _vary(network, routings)
    with observed.timed("evaluation"):
        evaluations = {
            name: evaluate(variant, setup.validation, setup.protocol, device=setup.train_device)
            for name, variant in variants.items()
        }
    early = {entry.routing: entry.latency for entry in observed.early_latency if observed.compression is None}
    latencies = {
        name: early[routing]
        for (name, variant), routing in zip(variants.items(), routings, strict=True)
        if routing in early and variant.is_static
    }
    if len(latencies) < len(variants):
        tell("measuring latency")
        with observed.timed("latency"):
            latencies |= _measure(setup, {name: one for name, one in variants.items() if name not in latencies})
    memory_device = parse_conditions(setup.devices[0]).device
    with observed.timed("memory"):
        memory = {
            name: measure_peak_memory(variant.config, setup.latency_input_size, memory_device)
            for name, variant in variants.items()
            if setup.measure_memory
        }
    assert observed.params is not None
    points = [
        PointRecord(
            routing=routing,
            evaluation=evaluations[name],
            macs=_point_macs(variant.config, setup.macs_input_size, evaluations[name]),
            params=observed.params,
            latency=latencies[name],
            peak_memory_bytes=memory.get(name),
        )
        for (name, variant), routing in zip(variants.items(), routings, strict=True)
    ]
    if made:
        tell("measuring quantised files")
        with observed.timed("latency"):
            points += _quantised_points(setup, points, made, setup.folder.network_dir(identity), network.scale)
    observed.points = tuple(
        point.model_copy(
            update={
                "constraints": {
                    constraint.name: constraint.violation(point.value(constraint.metric))
                    for constraint in setup.constraints
                }
            }
        )
        for point in points
    )


def _train(
    setup: TrialSetup,
    proposal: Proposal,
    observed: _Observed,
    network: SRNetwork,
    rungs: Sequence[Rung],
    judge: Judge | None,
    teacher: SRNetwork | None,
    progress: TrialProgress,
    tell: Callable[[str], None],
    should_stop: Callable[[], bool],
    group: Group,
) -> None:
    """Train a network in place, or read the weights of one that was trained before."""
    training, identity, trained = proposal.training, proposal.network_id(setup.data), proposal.trained_id(setup.data)
    is_shared = proposal.compression is not None or setup.folder.training_file(trained).is_file()
    if is_shared and (known := _read_trained(setup, proposal, network)) is not None:
        observed.training_result = known.result
        observed.notes += known.notes
        group.leave()
    elif training is not None:
        tell("scoring untrained")
        with observed.timed("untrained evaluation"):
            observed.untrained = evaluate(network, setup.validation, setup.protocol, device=setup.train_device)

        def climb(step: int, weights: Mapping[str, Tensor]) -> None:
            for rung in rungs:
                if rung.step == step and judge is not None:
                    tell("scoring at a rung")
                    with observed.timed("rungs"):
                        _visit_rung(setup, proposal, rung, weights, observed, judge)
                    tell("training")

        def run() -> TrainingRecord:
            return train(
                network,
                _draw_crops(setup.train, training),
                training,
                device=setup.train_device,
                threads=setup.threads,
                teacher=teacher,
                group=group,
                checkpoint=setup.folder.checkpoint(identity),
                identity=identity,
                progress=progress.training,
                should_stop=should_stop,
                turn=_turn(setup.train_device, group),
                rungs={rung.step for rung in rungs},
                at_rung=climb,
            )

        _read_rungs(setup, identity, observed)
        tell("training")
        with observed.timed("training"):
            try:
                observed.training_result = run()
            except DamagedCheckpointError as error:  # a crash of the machine may leave one; the network is untouched
                setup.folder.checkpoint(identity).remove()
                observed.notes += (f"{str(error).partition(';')[0]}: training began again",)
                observed.training_result = run()
        group.leave()
        climb(training.steps, network.state_dict())  # rungs of images alone
        _write_weights(setup.folder.weights_file(trained), network)
        if proposal.compression is not None or setup.shares_training:
            write_text(setup.folder.training_file(trained), observed.training_result.model_dump_json())


@contextmanager
def _training_alone(
    setup: TrialSetup,
    proposal: Proposal,
    observed: _Observed,
    tell: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> Iterator[None]:
    """Let nobody else train the same network for another of its compressions meanwhile; they wait for its weights.

    Whoever dies lets go of it, and the next one trains.
    """
    if not setup.shares_training or proposal.training is None or proposal.parent is not None:
        yield
        return
    trained, since = proposal.trained_id(setup.data), 0.0

    def wait() -> None:
        nonlocal since
        if should_stop():
            raise TrainingInterruptedError("stopped while it waited for another worker, which trains the same network")
        if not since:
            tell(f"waiting for another worker, which trains network {trained}")
            since = time.perf_counter()

    with exclusive_lock(setup.folder.training_lock(trained), while_waiting=wait):
        if since:
            observed.seconds[WAITING] = observed.seconds.get(WAITING, 0.0) + time.perf_counter() - since
        yield


class _Trained(NamedTuple):
    result: TrainingRecord | None
    notes: tuple[str, ...]


def _read_trained(setup: TrialSetup, proposal: Proposal, network: SRNetwork) -> _Trained | None:
    """Load weights that were trained before: a parent's, or those of a trial with the same training; None without any.

    Where the latter cannot be read, the network is trained again.
    """
    if proposal.parent is not None:
        load_weights(network, proposal.parent.weights)
        return _Trained(None, ())
    trained = proposal.trained_id(setup.data)
    weights, result = setup.folder.weights_file(trained), setup.folder.training_file(trained)
    if not weights.is_file():
        return None
    try:
        if result.is_file():
            record = TrainingRecord.model_validate_json(result.read_bytes())
        else:  # of a trial that was not compressed
            others = (one for one in setup.folder.read_trials() if one.network_id == trained)
            record = next(one.training_result for one in others if one.training_result is not None)
        network.load_state_dict(load_file(weights))
    except (OSError, ValidationError, SafetensorError, RuntimeError, StopIteration):
        return None
    return _Trained(record, (f"trained before, as network {trained}",))


def _write_weights(file: Path, network: SRNetwork) -> None:
    with atomic_path(file) as temporary:
        temporary.write_bytes(save(network.state_dict()))  # its own writing of files does not say why it cannot


def _compress(
    setup: TrialSetup,
    proposal: Proposal,
    network: SRNetwork,
    training: TrainingConfig,
    tell: Callable[[str], None],
    progress: TrialProgress,
    should_stop: Callable[[], bool],
) -> tuple[SRNetwork, CompressionRecord]:
    """Compress a trained network; at the first routing, its stages are scored and measured as points are."""
    plan, whole, trained = proposal.compression, network, proposal.trained_id(setup.data)
    assert plan is not None
    identity = proposal.network_id(setup.data)
    checkpoint = setup.folder.checkpoint(identity)  # of training before, of tuning from now on

    def tune(network: SRNetwork, config: TrainingConfig, name: str) -> TrainingRecord:
        tuned = f"{identity}-{name}"
        config = config.model_copy(update={"seed": derive_seed(config.seed, name) % 2**31})
        teacher: SRNetwork | None = whole
        if plan.distil:
            taught = DistillationConfig(teacher="the network before", teacher_id=trained)
            config = config.model_copy(update={"distillation": taught})
        else:
            teacher = load_teacher(config)

        def run() -> TrainingRecord:
            return train(
                network,
                _draw_crops(setup.train, config),
                config,
                device=setup.train_device,
                threads=setup.threads,
                teacher=teacher,
                checkpoint=checkpoint,
                identity=tuned,
                progress=progress.training,
                should_stop=should_stop,
                turn=_turn(setup.train_device, ALONE),
            )

        try:
            return run()
        except DamagedCheckpointError:  # the network is untouched
            checkpoint.remove()
            return run()

    network, record = compress(
        network,
        plan,
        _open_workshop(setup, training),
        parent=trained,
        tune=tune,
        forget=checkpoint.remove,
        file=setup.folder.stage_file(identity),
        tell=tell,
    )
    return network, record


def _quantise(
    setup: TrialSetup,
    proposal: Proposal,
    network: SRNetwork,
    config: QuantisationConfig,
    tell: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> list[tuple[str, QuantisationRecord]]:
    """Quantise a network under each routing of the proposal, a file each; return files, in its folder, and records.

    What a run that was stopped or killed has finished of it is kept.
    """
    identity = proposal.network_id(setup.data)
    folder = setup.folder.network_dir(identity)
    place = parse_conditions(setup.devices[0]).device
    place = place if place.startswith("cpu") else "cpu:1"
    found = []
    for index, routing in enumerate(proposal.routings):
        ending = point_id("", routing).replace("/", "-") if index else ""
        routed_network = routed(network, routing)
        label = "" if routing is None or len(proposal.routings) == 1 else f", {routing.label()}"
        made = _read_quantised(setup, folder / f"{QUANTISED}{ending}", routed_network, config, place, identity)
        if made is None:
            if should_stop():
                raise TrainingInterruptedError(f"stopped at quantisation {index + 1} of {len(proposal.routings)}")
            tell(f"quantising{label}")
            made = write_quantised(
                folder / f"{QUANTISED}{ending}",
                functools.partial(
                    quantise,
                    routed_network,
                    setup.train,
                    config,
                    weights=str(setup.folder.weights_file(identity)),
                    evaluation=setup.validation,
                    protocol=setup.protocol,
                    device=place,
                    effort=_effort(setup) if setup.measure_latency else None,
                ),
                overwrite=True,
            )
        found.append((f"{QUANTISED}{ending}/{NETWORK_FILE}", made))
    return found


def _read_quantised(
    setup: TrialSetup, folder: Path, network: SRNetwork, config: QuantisationConfig, device: str, identity: str
) -> QuantisationRecord | None:
    """Return what an earlier process of this very trial has made; None where it is to be made (again).

    The stage that it was made of is still there; once a trial is over nothing of it is taken.
    """
    known = read_quantised(folder) if setup.folder.stage_file(identity).is_file() else None
    if known is None or known.after is None or (known.config, known.model) != (config, network.config):
        return None
    same = (known.after.protocol, known.after.dataset_hash) == (setup.protocol.name, setup.validation.content_hash)
    measured = None if known.latency is None else known.latency.device
    return known if same and measured == (parse_device(device).text if setup.measure_latency else None) else None


def _quantised_points(
    setup: TrialSetup,
    points: Sequence[PointRecord],
    made: Sequence[tuple[str, QuantisationRecord]],
    folder: Path,
    scale: int,
) -> list[PointRecord]:
    """Return the points of quantised files, measured in their runtime beside the study's reference.

    `points` are those of the same network in float, in the same order. Of conditions that are no CPU's there is no
    latency: the files run on CPUs.
    """
    files = {str(index): folder / file for index, (file, _) in enumerate(made)}
    config = made[0][1].config
    under = [one for one in map(parse_conditions, setup.devices) if one.device.startswith("cpu")]
    inputs = [representative_input(setup.validation, one.input_size or setup.latency_input_size) for one in under]
    measured = [
        measure_files(
            files,
            input_BCHW,
            config,
            one,
            _effort(setup),
            scale=scale,
            reference=setup.reference,
            reference_name=setup.reference_name,
            images=(setup.validation[0].name,),
            in_process=setup.latency_process == "shared",
        )
        for one, input_BCHW in zip(under, inputs, strict=True)
        if setup.measure_latency
    ]
    memory = {}
    if setup.measure_memory and under:
        memory_input_BCHW = representative_input(setup.validation, setup.latency_input_size)
        memory = {
            name: measure_memory(file, memory_input_BCHW, config, under[0].device, scale)
            for name, file in files.items()
        }
    found = []
    for index, (file, record) in enumerate(made):
        name, of_float = str(index), points[index]
        assert record.after is not None
        shares = {key: getattr(of_float.evaluation, key) for key in ("attention_share", "attention_share_per_block")}
        found.append(
            PointRecord(
                routing=of_float.routing,
                evaluation=record.after.model_copy(update=shares),
                macs=of_float.macs,
                params=of_float.params,
                latency=tuple(records[name] for records in measured),
                peak_memory_bytes=memory.get(name),
                quantised=describe_file(record, file),
            )
        )
    return found


def _effort(setup: TrialSetup) -> Effort:
    return Effort(setup.latency_repeats, setup.latency_seconds)


def _open_workshop(setup: TrialSetup, training: TrainingConfig) -> Workshop:
    def measure(variants: Mapping[str, SRNetwork]) -> dict[str, LatencyRecord]:
        return _measure_under(setup, dict(variants), parse_conditions(setup.devices[0]))

    return Workshop(
        training=training,
        images=setup.train,
        macs_input_size=setup.macs_input_size,
        score=lambda one: evaluate(one, setup.validation, setup.protocol, device=setup.train_device),
        measure=measure if setup.measure_latency else None,
        device=setup.train_device,
    )


def measure_whole(network: SRNetwork, setup: TrialSetup) -> float:
    """Return the latency (ms, median) of a network under the first conditions of `setup`."""
    return _measure_under(setup, {"whole": network}, parse_conditions(setup.devices[0]))["whole"].median


def choose_best(
    network: SRNetwork, plans: Sequence[CompressionConfig], training: TrainingConfig, setup: TrialSetup
) -> tuple[CompressionConfig, list[float]]:
    """Return the plan whose first round of pruning leaves the best network, and what each comes to (dB on crops).

    None of them is tuned: training images alone are looked at.
    """
    with chosen_threads(setup.threads):
        return compare_plans(network, plans, _open_workshop(setup, training))


def assist_training(
    images: PairedDataset,
    proposal: Proposal,
    group: Group,
    *,
    device: str = "cpu",
    threads: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Take part in the training of a trial that the leader of `group` runs, on the same images.

    Raises what the leader's training ends with.
    """
    training = proposal.training
    assert training is not None
    teacher = load_teacher(training)

    def run() -> None:
        train(
            build_seeded(proposal.model, training.seed),
            _draw_crops(images, training),
            training,
            device=device,
            threads=threads,
            teacher=teacher,
            group=group,
            should_stop=should_stop,
            turn=_turn(device, group),
        )

    try:
        run()
    except DamagedCheckpointError:  # which the leader throws away, and begins again
        run()


def _draw_crops(images: PairedDataset, training: TrainingConfig) -> CropSampler:
    return CropSampler(
        images,
        batch_size=training.batch_size,
        hr_patch_size=training.hr_patch_size,
        augment=training.augment,
        seed=derive_seed(training.seed, "crops"),
        task=training.task,
    )


def _turn(device: str, group: Group) -> Turn:
    """Return what a step of training waits for: that nobody measures where it computes.

    The first process of a machine waits for all that are there. If each did for itself, one could be inside, waiting
    for another one's part of the step, while that waits for a measurement which waits for the first to come out.
    """
    if group.local_rank > 0:
        return contextlib.nullcontext
    several = device.startswith("cuda") and group.local_size > 1
    devices = [f"cuda:{index}" for index in range(group.local_size)] if several else [device]
    return functools.partial(computing, *(parse_device(each).lock for each in devices))


def _read_rungs(setup: TrialSetup, identity: str, observed: _Observed) -> None:
    """Take note of the rungs that a network has come to before, those too that its checkpoint lies behind.

    Where they cannot be read, it is not known how it was judged: it is trained, and judged, from the beginning.
    """
    file = setup.folder.rungs_file(identity)
    try:
        if file.is_file():
            observed.rungs = _RUNGS.validate_json(file.read_bytes())
    except ValidationError:
        setup.folder.checkpoint(identity).remove()
        file.unlink()
        observed.notes += (f"rungs {file} cannot be read: training began again",)


def _vary(network: SRNetwork, routings: tuple[RoutingConfig | None, ...]) -> dict[str, SRNetwork]:
    """Return the network under each routing, by name."""
    return {str(index): routed(network, routing) for index, routing in enumerate(routings)}


def _visit_rung(
    setup: TrialSetup,
    proposal: Proposal,
    rung: Rung,
    weights: Mapping[str, Tensor],
    observed: _Observed,
    judge: Judge,
) -> None:
    """Score a network at a rung and have it compared with others; raise `_StoppedEarlyError` where it falls behind."""
    file = setup.folder.rungs_file(proposal.network_id(setup.data))
    known = next((seen for seen in observed.rungs if (seen.step, seen.images) == rung), None)
    if known is None:
        started = time.perf_counter()
        network = build_model(proposal.model)
        network.load_state_dict(dict(weights))
        latencies = {entry.routing: entry.latency for entry in observed.early_latency}
        assert observed.params is not None
        points = []
        for routing in proposal.routings:
            variant = routed(network, routing)
            evaluation = evaluate(
                variant, setup.validation, setup.protocol, device=setup.train_device, limit=rung.images
            )
            macs = _point_macs(variant.config, setup.macs_input_size, evaluation)
            points.append(
                PointRecord(
                    routing=routing,
                    evaluation=evaluation,
                    macs=macs,
                    params=observed.params,
                    latency=latencies[routing],
                )
            )
        verdict = judge(rung, tuple(points))
        known = RungRecord(
            step=rung.step,
            images=rung.images,
            points=tuple(
                RungPoint(
                    routing=point.routing,
                    psnr_db=point.evaluation.psnr_db,
                    ssim=point.evaluation.ssim,
                    attention_share=point.evaluation.attention_share,
                    macs=point.macs,
                )
                for point in points
            ),
            place=verdict.place,
            networks=verdict.networks,
            promoted=verdict.promoted,
            seconds=time.perf_counter() - started,
        )
        observed.rungs += (known,)
        write_text(file, _RUNGS.dump_json(observed.rungs).decode())
    if not known.promoted:
        raise _StoppedEarlyError(
            f"place {known.place} of {known.networks} networks after {known.step} steps, on {known.images} images"
        )


def load_trained(folder: StudyFolder, record: TrialRecord, routing: RoutingConfig | None) -> SRNetwork:
    """Rebuild a record's network with its trained weights, in eval mode, under `routing`.

    `UserError` where the study's folder has no such weights, or they cannot be read.
    """
    network = build_model(_with_routing(record.model, routing))
    if record.training is not None:
        path = folder.weights_file(record.network_id)
        try:
            network.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"the weights of {record.record_id} cannot be read from {path}: {' '.join(str(error).split())}"
            ) from None
    return network.eval()


def _with_routing(model: AnyModelConfig, routing: RoutingConfig | None) -> AnyModelConfig:
    if routing is None or not isinstance(model, CAMixerSRConfig):
        return model
    return model.with_routing(routing)


def _find_gains(setup: TrialSetup, network: CAMixerSR, config: CalibrationConfig) -> GainsRecord:
    """Measure what attention gains in each block, on training images alone: validation images are evaluated on."""
    indices = choose_images(setup.train, config.images, config.crop)
    network.to(setup.train_device)
    try:
        return find_gains(TuningCrops(network, setup.train, indices, config.crop))
    finally:
        network.to("cpu")


def _check_macs(network: SRNetwork, input_BCHW: Tensor) -> MacsRecord:
    """Count one forward pass with every counter, beside the closed form at the share that this pass realises."""
    network.eval()
    with computing(), torch.inference_mode():
        share_S = network.restore(input_BCHW).hard_share_SB.mean(dim=1)
    share = share_S.tolist() if len(share_S) else None
    with computing():
        return count_macs(network, input_BCHW, config=network.config, attention_share=share)


def _measure(setup: TrialSetup, variants: dict[str, SRNetwork]) -> dict[str, tuple[LatencyRecord, ...]]:
    """Measure all variants of a network under all conditions, interleaved with the reference."""
    devices = setup.devices if setup.measure_latency else ()
    measured = [_measure_under(setup, variants, parse_conditions(text)) for text in devices]
    return {name: tuple(records[name] for records in measured) for name in variants}


def _measure_under(
    setup: TrialSetup, variants: dict[str, SRNetwork], conditions: Conditions
) -> dict[str, LatencyRecord]:
    input_BCHW = representative_input(setup.validation, conditions.input_size or setup.latency_input_size)
    if setup.latency_process == "shared" and conditions.runtime == "eager":
        return measure_latencies(
            variants,
            input_BCHW,
            device=conditions.device,
            precision=conditions.precision,
            reference=setup.reference,
            reference_name=setup.reference_name,
            min_repeats=setup.latency_repeats,
            min_seconds=setup.latency_seconds,
        )
    return measure_in_processes(
        variants,
        input_BCHW[None],
        conditions,
        _effort(setup),
        reference=setup.reference,
        reference_name=setup.reference_name,
        images=(setup.validation[0].name,),
    )


def _point_macs(model: AnyModelConfig, size: tuple[int, int], evaluation: EvaluationRecord) -> int:
    """Return canonical MACs: of the static K where the policy has one, else at the share realised on the dataset."""
    depends_on_content = isinstance(model, CAMixerSRConfig) and model.routing.policy in ("probability", "threshold")
    return canonical_macs(
        model, size, attention_share=evaluation.attention_share_per_block if depends_on_content else None
    )

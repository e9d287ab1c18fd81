"""Records of everything observed; objectives, constraints, fronts and tables are projections of them.

A *network* is an architecture trained once; a *point* is (trained network, γ, policy). A trial that trained a network
holds all of its points. Identities: `network_id` hashes model (without routing), training and data; `point_id` adds the
routing.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, field_validator, model_serializer

from harness.core.conditions import Conditions, parse_conditions
from harness.core.configs import (
    INT8,
    AnyModelConfig,
    CompressionConfig,
    DataConfig,
    FrozenConfig,
    ModelConfig,
    Precision,
    QuantisationMethod,
    QuantisationRuntime,
    RoutingConfig,
    Task,
    TrainingConfig,
)
from harness.core.environment import DeviceFingerprint, EnvironmentRecord
from harness.core.errors import UserError
from harness.core.urls import without_credentials

Direction = Literal["minimize", "maximize"]
TrialState = Literal["complete", "rejected", "stopped", "failed", "answered"]
WAITING = "waiting"  # among the seconds of a trial: for measurements of others, and for others to let it measure

# Every metric that an objective or a constraint may name, with the direction that is better.
# `latency_ms` and `latency_ratio` may carry conditions of the space: `latency_ms/cpu:2`, `latency_ms/cpu:1/bf16/64x64`;
# alone they mean the first ones.
METRIC_DIRECTIONS: dict[str, Direction] = {
    "psnr_db": "maximize",
    "ssim": "maximize",
    "latency_ms": "minimize",
    "latency_ratio": "minimize",
    "macs": "minimize",
    "params": "minimize",
    "peak_memory_bytes": "minimize",
    "attention_share": "minimize",
}
METRIC_LABELS: dict[str, str] = {
    "psnr_db": "PSNR (dB)",
    "ssim": "SSIM",
    "latency_ms": "latency (ms)",
    "latency_ratio": "latency / SwinIR-light",
    "macs": "MACs",
    "params": "parameters",
    "peak_memory_bytes": "peak memory (bytes)",
    "attention_share": "attention share",
}


class ImageScore(FrozenConfig):
    """The scores of one image; `attention_share` is ΣK/ΣN over the blocks, None for networks that do not route."""

    name: str
    psnr_db: float
    ssim: float
    attention_share: float | None = None


class EvaluationRecord(FrozenConfig):
    """Mean scores over a dataset under a named protocol, and those of each image.

    `tile` and `overlap` are the low-resolution tiles that images were restored in (None: whole), `wrap` the columns by
    which panoramas were continued beyond each end of their seam. `seam_factor` is what that costs: low-resolution
    pixels of the continued images over those of the images, 1 without wrap (None in records that do not say).
    """

    protocol: str
    scale: int
    dataset: str
    dataset_hash: str
    psnr_db: float
    ssim: float
    attention_share: float | None
    attention_share_per_block: tuple[float, ...] | None
    images: tuple[ImageScore, ...]
    seconds: float
    tile: int | None = None
    overlap: int = 0
    wrap: int = 0
    seam_factor: float | None = None

    @property
    def seam_note(self) -> str | None:
        """What MACs and latencies leave out where images were continued around their seam; None where none was."""
        if not self.wrap:
            return None
        here = "" if self.seam_factor is None else f", ×{self.seam_factor:.3f} on {self.dataset}"
        return (
            f"images are continued by {self.wrap} columns at each side of the seam; MACs and latencies are without: "
            f"×(w+{2 * self.wrap})/w for w low-resolution columns{here}"
        )


class MacsRecord(FrozenConfig):
    """Multiply-accumulates (one fused multiply-add is one) of one forward pass.

    `macs` is the canonical count: convolutions, linear maps, matrix products and attention of the network as written,
    on the padded input; the highest where counters differ, because what one of them misses is nothing that another
    invents. `by_counter` holds what each counter found; `agree` says whether they are within 1 %.
    `uncounted` maps operators of the trace that have no count to how often they ran.
    """

    macs: int
    by_counter: dict[str, int]
    agree: bool
    max_disagreement: float
    uncounted: dict[str, int]
    input_size: tuple[int, int]
    batch_size: int = 1


class UncountedOperator(FrozenConfig):
    """An operator that adds nothing to the MACs, how often it ran, and in which modules.

    `share` is what it would add if each element of its largest tensor, read or written, cost one operation: those
    elements over MACs plus the elements of all uncounted operators. None: what it computes is unknown, because the
    counters named in `hidden_from` (all of them, or those that read a trace) cannot look into it.
    """

    operator: str
    times: int
    share: float | None
    hidden_from: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


class ModuleRecord(FrozenConfig):
    """One module (by its path, '' the network) with the modules inside it: MACs, parameters, activations."""

    path: str
    type: str
    macs: int
    macs_by_counter: dict[str, int]
    params: int
    activations: int


class CounterGap(FrozenConfig):
    """A module in which counters differ, without the modules inside it, and the operators that explain it, if any."""

    path: str
    type: str
    macs_by_counter: dict[str, int]
    explained_by: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The highest count minus the lowest."""
        return max(self.macs_by_counter.values()) - min(self.macs_by_counter.values())


class OperationsRecord(MacsRecord):
    """The operations of one forward pass in full: `MacsRecord` with the tree of modules and all that was not counted.

    `activations`: output elements of all two-dimensional convolutions, transposed ones too, as the NTIRE challenges on
    efficient super-resolution count them. `gaps` are the modules in which counters differ, largest first.
    `missing` maps a counter that could not run to why. `is_lower_bound`: an operator that no counter can look into ran.
    """

    params: int
    activations: int
    modules: tuple[ModuleRecord, ...]
    operators: tuple[UncountedOperator, ...]
    gaps: tuple[CounterGap, ...] = ()
    missing: dict[str, str] = {}

    @property
    def is_lower_bound(self) -> bool:
        """Whether MACs may be hidden from every counter."""
        return any(entry.share is None and set(entry.hidden_from) >= set(self.counters) for entry in self.operators)

    @property
    def counters(self) -> tuple[str, ...]:
        """The counters that ran; the closed form is none."""
        return tuple(name for name in self.by_counter if name != "closed_form")

    @property
    def unexplained(self) -> tuple[CounterGap, ...]:
        """The gaps that no listed operator explains."""
        return tuple(gap for gap in self.gaps if not gap.explained_by)

    @property
    def unexplained_share(self) -> float:
        """The MACs of the unexplained gaps over the highest count."""
        return sum(gap.size for gap in self.unexplained) / max(1, *self.by_counter.values())


# With less of the processor others took turns on it: long passes are stretched, short ones slip between.
MIN_CORE_SHARE = 0.9


class LatencyRecord(FrozenConfig):
    """Latency of one network on one device, interleaved with a reference in the same run. Times in milliseconds.

    `protocol` is its name and version, a colon, and the limits that held. `ratio` is median / reference median of the
    same run. `interval` and `ratio_interval` are 95 % bootstrap intervals; the latter resamples rounds.
    `reference_drift` is how far the reference's median moved from the first half of its samples to the second, as a
    fraction (without a reference: the network's own); beyond 5 % the run `is_noisy` and is repeated: `attempts` counts
    the runs, of which this is the quietest. `is_capped`: the cap of `max_seconds` ended it before the least repeats or
    seconds were reached; `is_warm`: its warm-up was stable before it had to end.

    `process`: `fresh`, of its own, or `shared` with others. `images` are the names of what was restored, none for
    random input; `attention_share` is the share realised on it. `peak_memory_bytes`: of one pass, above what the
    process held before. `output_error`: largest difference to the eager float32 network under other runtimes.
    `lock_wait_seconds` is how long it waited for others to stop computing on the device, `sensors` what clock and
    temperature were before and after, `model_hash` the hash of the network's config. `mode` `training`: the forward
    pass of training, without gradients. `core_share`: of one thread, the share of the processor that passes had, the
    reference's where that had less; below `MIN_CORE_SHARE` the run `is_noisy`. `compared_under`: the conditions,
    such as 'cpu:1', under which the reference ran, and with whose latencies this one compares, where they are not its
    own: a quantised file runs in its own runtime beside networks that run eagerly. What older protocols did not say is
    None, or the default.
    """

    protocol: str
    device: str
    device_name: str
    threads: int | None
    precision: str
    input_size: tuple[int, int]
    batch_size: int
    warmup_runs: int
    median: float
    iqr: float
    p90: float
    samples: tuple[float, ...]
    reference: str | None = None
    reference_median: float | None = None
    reference_samples: tuple[float, ...] = ()
    ratio: float | None = None
    torch_version: str
    measured_at: str
    runtime: str = "eager"
    interval: tuple[float, float] | None = None
    ratio_interval: tuple[float, float] | None = None
    reference_drift: float | None = None
    is_noisy: bool = False
    attempts: int = 1
    max_seconds: float | None = None
    is_capped: bool = False
    is_warm: bool | None = None
    process: Literal["fresh", "shared"] | None = None
    images: tuple[str, ...] = ()
    attention_share: float | None = None
    peak_memory_bytes: int | None = None
    output_error: float | None = None
    lock_wait_seconds: float | None = None
    fingerprint: DeviceFingerprint | None = None
    sensors: dict[str, tuple[float, float]] = {}
    git_revision: str | None = None
    model_hash: str | None = None
    mode: Literal["inference", "training"] = "inference"
    core_share: float | None = None
    compared_under: str | None = None

    @model_serializer(mode="wrap")
    def _leave_out_what_older_protocols_did_not_say(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write later fields only where they say something, so that older records keep their hash."""
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        later = list(fields)[list(fields).index("runtime") :]
        return {
            name: value
            for name, value in values.items()
            if name not in later or getattr(self, name) != fields[name].default
        }

    @property
    def protocol_name(self) -> str:
        """The protocol's name and version, without the limits that held."""
        return self.protocol.partition(":")[0]

    @property
    def setting(self) -> str:
        """All that two latencies must share to stand in one column.

        Protocol, process, device with its instruction set, conditions, versions, kernels, reference, mode and images.
        Of one that is `compared_under` other conditions these stand in place of its own, for they are its reference's;
        its `runtime_note` says what it ran in.
        """
        found, under = self.fingerprint, self.stands_for
        process = f" in {self.process} processes" if self.process else ""
        parts = [f"{self.protocol_name}{process}", self.device_name]
        parts += [_describe_conditions(under, self.batch_size), f"torch {self.torch_version}"]
        if found is not None:
            of_own = found.runtime_version and self.compared_under is None
            parts += [f"{self.runtime} {found.runtime_version}"] if of_own else []
            parts += [found.instruction_set] if found.instruction_set else []
            parts += [f"kernels {found.kernels}"] if found.kernels and under.runtime == "eager" else []
        parts += [f"against {self.reference}"] if self.reference else []
        parts += [] if self.mode == "inference" else [f"{self.mode} mode"]
        parts += [f"{len(self.images)} images"] if self.images else []
        return ", ".join(parts)

    @property
    def short_conditions(self) -> str:
        """The device, and runtime and precision where they are not the default ones, such as 'cpu:1/bf16'."""
        runtime = [] if self.runtime == "eager" else [self.runtime]
        precision = [] if self.precision == "fp32" else [self.precision]
        return "/".join([self.device, *runtime, *precision])

    @property
    def conditions(self) -> str:
        """Where and how it ran, such as 'cpu:1/eager/fp32/64x64', with the batch where it is not 1."""
        return _describe_conditions(self._own_conditions, self.batch_size)

    @property
    def _own_conditions(self) -> Conditions:
        return Conditions(self.device, self.runtime, self.precision, self.input_size)  # type: ignore[arg-type]

    @property
    def stands_for(self) -> Conditions:
        """The conditions of a study that this is the latency under: its own, or those that it is compared under."""
        if self.compared_under is None:
            return self._own_conditions
        return parse_conditions(self.compared_under)._replace(input_size=self.input_size)

    @property
    def runtime_note(self) -> str | None:
        """What it ran in, such as 'onnxruntime 1.23.0, fp32', where it is compared under other conditions."""
        if self.compared_under is None:
            return None
        version = "" if self.fingerprint is None else f" {self.fingerprint.runtime_version or ''}".rstrip()
        return f"{self.runtime}{version}, {self.precision}"


def _describe_conditions(conditions: Conditions, batch_size: int) -> str:
    height, width = conditions.input_size or (0, 0)
    batch = "" if batch_size == 1 else f"/batch {batch_size}"
    return f"{conditions.device}/{conditions.runtime}/{conditions.precision}/{height}x{width}{batch}"


class BreakdownRecord(FrozenConfig):
    """How the time of a forward pass divides: median milliseconds of each component of models/components.py.

    `label` is the network's; `total_ms`: the median pass without clocks; `coverage`: the sum of the components over it;
    `component_samples_ms` and `total_samples_ms`: every pass with and without clocks.
    """

    protocol: str
    label: str
    device: str
    precision: str
    input_size: tuple[int, int]
    batch_size: int
    component_ms: dict[str, float]
    total_ms: float
    coverage: float
    passes: int
    component_samples_ms: dict[str, tuple[float, ...]]
    total_samples_ms: tuple[float, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Each component's share of the sum, in [0, 1]."""
        total = sum(self.component_ms.values())
        return {name: value / total for name, value in self.component_ms.items()}

    @property
    def adds_up(self) -> bool:
        """Whether the components sum to the pass without clocks, within 3 %."""
        return abs(self.coverage - 1) <= 0.03


class ProfileRecord(FrozenConfig):
    """One run of `harness profile`: a network's counts, and its latencies, one for each size and batch.

    `target` is what the user called it, `model` its config (None where it is no network of this project). `macs`
    (canonical; None where they cannot be counted) and `activations` are those of the first row's size, one image,
    `ntire_2024_score` that of the first row against its reference, `breakdown` of the first row, where asked for.
    """

    schema_version: Literal[1] = 1
    target: str
    label: str
    model: dict[str, Any] | None
    weights: str
    params: int | None
    macs: int | None
    activations: int | None = None
    ntire_2024_score: float | None = None
    breakdown: BreakdownRecord | None = None
    rows: tuple[LatencyRecord, ...]
    environment: EnvironmentRecord
    measured_at: str


class TrainingRecord(FrozenConfig):
    """What training did: steps, time, rates and the curves.

    `curves` maps `loss`, `l1_loss` (`ws_l1_loss` where it is weighted by latitude), `ratio_loss`, `attention_share` and
    `learning_rate` to values at `curve_steps`; with a teacher also `distillation_loss` and `feature_loss`, what is
    followed of it before any weight. `teacher` is the identity of its config and weights.
    `loader_images_per_second` is the loader alone, to be read beside `images_per_second` of whole steps.
    `resumed_from` is the step of the checkpoint that the run went on from. `processes` shared each batch, each with so
    many `threads`; `device` is the first one's.
    """

    steps: int
    seconds: float
    images_per_second: float
    loader_images_per_second: float
    device: str
    threads: int
    processes: int = 1
    curve_steps: tuple[int, ...]
    curves: dict[str, tuple[float, ...]]
    resumed_from: tuple[int, ...] = ()
    teacher: str | None = None

    @model_serializer(mode="wrap")
    def _leave_out_an_absent_teacher(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write `teacher` only where there was one: other records keep their hashes."""
        values: dict[str, Any] = handler(self)
        if self.teacher is None:
            values.pop("teacher", None)
        return values


def find_latency(records: Sequence[LatencyRecord], conditions: str | None) -> LatencyRecord | None:
    """Return the first record that stands for `conditions` (None or '': any), see `parse_conditions`.

    None where none does, also for conditions that are not known here.
    """
    if not conditions:
        return records[0] if records else None
    try:
        wanted = parse_conditions(conditions)
    except UserError:
        return None
    return next(
        (
            record
            for record in records
            if record.stands_for[:3] == wanted[:3] and wanted.input_size in (None, record.input_size)
        ),
        None,
    )


def latency_value(records: Sequence[LatencyRecord], metric: str) -> float | None:
    """Return `latency_ms` or `latency_ratio` under the conditions that the metric names after `/`, else the first."""
    name, _, conditions = metric.partition("/")
    found = find_latency(records, conditions)
    if found is None:
        return None
    return found.median if name == "latency_ms" else found.ratio


class QuantisedFile(FrozenConfig):
    """The ONNX file that a point is of, in the network's folder, and what quantisation alone changes in its runtime.

    `precision` is what the runtime computes in what the file leaves in float; it takes images of `tile`² low-resolution
    pixels. `layers` are quantised, `kept` in float for their cost. The float file runs in the same runtime:
    `float_psnr_db` is its PSNR on the same images, `float_ratio` the quantised file's latency over its own, measured
    side by side (None: not measured), `float_bytes` its size.
    """

    method: QuantisationMethod
    runtime: QuantisationRuntime
    precision: Precision
    tile: int
    file: str
    sha256: str
    layers: int
    kept: int
    file_bytes: int
    float_bytes: int
    float_psnr_db: float
    float_ratio: float | None = None

    @property
    def label(self) -> str:
        """What it is called, such as 'int8 minmax in onnxruntime', 'fp16 in openvino'."""
        return f"{'int8 ' if self.method in INT8 else ''}{self.method} in {self.runtime}"


class PointRecord(FrozenConfig):
    """One point: a trained network under one routing, with everything that was measured of it.

    `constraints` maps each constraint's text to its violation: > 0 violates, ≤ 0 holds. A point that is `quantised` is
    that of a file: scores, latency and memory are those of the file in its runtime, MACs, parameters and shares of
    attention those of the same network in float.
    """

    routing: RoutingConfig | None
    evaluation: EvaluationRecord
    macs: int
    params: int
    latency: tuple[LatencyRecord, ...] = ()
    peak_memory_bytes: int | None = None
    constraints: dict[str, float] = {}
    quantised: QuantisedFile | None = None

    @model_serializer(mode="wrap")
    def _leave_out_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.quantised is None:
            values.pop("quantised", None)
        return values

    @property
    def feasible(self) -> bool:
        """Whether every constraint holds."""
        return all(value <= 0 for value in self.constraints.values())

    def value(self, metric: str) -> float | None:
        """Return a metric of `METRIC_DIRECTIONS` (latencies: optionally with `/device`); None if not measured."""
        name = metric.partition("/")[0]
        if name in ("latency_ms", "latency_ratio"):
            return latency_value(self.latency, metric)
        if name in ("psnr_db", "ssim", "attention_share"):
            value: float | None = getattr(self.evaluation, name)
            return value
        count: int | None = getattr(self, name)
        return count


class RungPoint(FrozenConfig):
    """What a network scored under one routing at a rung; `macs` as in `PointRecord`."""

    routing: RoutingConfig | None
    psnr_db: float
    ssim: float
    attention_share: float | None
    macs: int


class RungRecord(FrozenConfig):
    """A network in the middle of its training, compared with those that had come as far.

    After `step` steps it was scored on `images` validation images, by its averaged weights. It was `place`, from 1,
    among `networks`, and `promoted` or stopped; `seconds` is what scoring took.
    """

    step: int
    images: int
    points: tuple[RungPoint, ...]
    place: int
    networks: int
    promoted: bool
    seconds: float

    @property
    def best(self) -> RungPoint:
        """The point of the highest PSNR."""
        return max(self.points, key=lambda point: point.psnr_db)


class RoutedLatency(FrozenConfig):
    """Latencies of an untrained network under a routing whose work does not depend on weights."""

    routing: RoutingConfig | None
    latency: tuple[LatencyRecord, ...]


class GainsRecord(FrozenConfig):
    """What attention gains in each block of a trained network, and how that was found.

    `gains_alone_db`, `gains_beside_db`: attention in each block alone over none, and beside `wanted`, the blocks in
    which the network sends most windows to attention. `gains_db` is their mean, harm counting as 0. The PSNR (luma,
    border of the scale, not rounded to uint8) are means over the crops, without attention and with all of it. `note`
    says where attention helps no block, so that no routing can be made of the gains.
    """

    dataset: str
    dataset_hash: str
    images: tuple[str, ...]
    crop: int
    wanted: tuple[int, ...]
    gains_alone_db: tuple[float, ...]
    gains_beside_db: tuple[float, ...]
    gains_db: tuple[float, ...]
    psnr_db_without: float
    psnr_db_full: float
    evaluations: int
    seconds: float
    note: str | None = None


class CalibrationRecord(GainsRecord):
    """A calibrated routing with the gains that it was made of.

    `share`: the attention asked for, ΣK/ΣN over blocks. `psnr_db`: of `routing` on the crops.
    """

    routing: RoutingConfig
    share: float
    psnr_db: float


StageKind = Literal["train", "prune", "tune", "quantise"]


class StageRecord(FrozenConfig):
    """What a network was after one stage of its compression, measured as points are, at the first routing.

    `round` counts from 1 (0: as it was trained). `widths` are the channels that are left, by kind, summed over blocks;
    `crops_psnr_db` is over training crops (RGB), `psnr_db` over the validation images. `cost` is in the unit that the
    compression goes by, with `target` what it was to be, and `estimate` what was expected where it is measured. `tune`
    changes no latency, and has none. Of a stage `quantise` scores and latency are those of the `file` (in the network's
    folder, with a record beside it) in the runtime that is to run it; its latency's reference is the same network in
    float there. The points of quantised files stand with the others of the trial, beside the study's reference.
    """

    kind: StageKind
    round: int
    params: int
    macs: int
    widths: dict[str, int]
    psnr_db: float
    ssim: float
    crops_psnr_db: float | None = None
    latency: tuple[LatencyRecord, ...] = ()
    file: str | None = None
    cost: float | None = None
    target: float | None = None
    estimate: float | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """What a stage is called: `train`, `prune 1`."""
        return f"{self.kind} {self.round}" if self.round else self.kind

    @property
    def latency_ratio(self) -> float | None:
        """Latency over that of the study's reference; None where it was not measured beside it."""
        return self.latency[0].ratio if self.latency and self.kind != "quantise" else None


class CompressionRecord(FrozenConfig):
    """The chain from a trained network to a smaller one. `model` is the config before it, `parent` the network's
    identity; `tuning` are the records of training between and after pruning.
    """

    config: CompressionConfig
    model: ModelConfig
    parent: str
    stages: tuple[StageRecord, ...]
    tuning: tuple[TrainingRecord, ...] = ()


class TrialRecord(FrozenConfig):
    """One trial, or one baseline, from suggestion to points; written once, as JSON, when it ends.

    States: `complete`; `rejected` before training by a hard constraint; `stopped` early; `failed` (crash, non-finite
    loss, …); `answered` from the record of a network that was trained before (`answered_by`). All but `complete` carry
    a `reason`. `violations` maps the constraint that rejected a trial to by how much it was violated. `calibration`
    holds the gains that the calibrated routings among the points were made of, in studies that calibrate. `rungs` are
    those that the network came to, in studies that stop early, `early_latency` what they were compared by; of a network
    that was trained to the end it stands with its points. `error_type` names the exception that a trial failed of.
    `notes` say what was made good on the way, such as a damaged checkpoint. `seconds` are those of each phase; what was
    waited for other processes in any of them is a phase of its own. Of a network that is to be compressed after its
    training, `plan` says how; `compression` is the chain then, and all else (`model`, points) that of its end.
    """

    schema_version: Literal[1] = 1
    study: str
    record_id: str
    kind: Literal["trial", "baseline"]
    number: int | None
    state: TrialState
    reason: str | None = None
    label: str
    network_id: str
    model: ModelConfig
    training: TrainingConfig | None
    data: DataConfig
    suggestion: dict[str, Any] = {}
    answered_by: str | None = None
    params: int | None = None
    macs_check: MacsRecord | None = None
    training_result: TrainingRecord | None = None
    untrained: EvaluationRecord | None = None
    calibration: GainsRecord | None = None
    plan: CompressionConfig | None = None
    compression: CompressionRecord | None = None
    error_type: str | None = None
    rungs: tuple[RungRecord, ...] = ()
    early_latency: tuple[RoutedLatency, ...] = ()
    notes: tuple[str, ...] = ()
    points: tuple[PointRecord, ...] = ()
    violations: dict[str, float] = {}
    seconds: dict[str, float] = {}
    environment: EnvironmentRecord
    started_at: str
    finished_at: str

    @model_serializer(mode="wrap")
    def _leave_out_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write what not every trial has only where it is there: other records keep their hashes."""
        values: dict[str, Any] = handler(self)
        for name in ("calibration", "plan", "compression", "error_type", "rungs", "early_latency", "notes"):
            if not getattr(self, name):
                values.pop(name, None)
        return values

    @property
    def produced(self) -> tuple[PointRecord, ...]:
        """The points of what the trial ends with: of a quantised network those of its files, else all of them.

        One for each routing, and what a sampler is told. Records of earlier versions have no points of files.
        """
        return tuple(point for point in self.points if point.quantised is not None) or self.points

    def rung_place(self, rung: RungRecord) -> int:
        """Return where on the way a rung stands: its step, or its images where all training comes before scoring."""
        return rung.images if self.training is not None and rung.step == self.training.steps else rung.step


class ObjectiveConfig(FrozenConfig):
    """One objective: a metric of `METRIC_DIRECTIONS`, optionally with a device, and its direction."""

    metric: str
    direction: Direction


class StudyRecord(FrozenConfig):
    """What a reader of a study's folder needs to know of it; `space` is its text as it was run, without
    credentials.

    `checkpoints` is the path or URL, without credentials, that they are kept at where that is not the study's folder.
    """

    schema_version: Literal[1] = 1
    name: str
    scale: int
    task: Task
    protocol: str
    objectives: tuple[ObjectiveConfig, ...]
    constraints: tuple[str, ...]
    data: DataConfig
    training: TrainingConfig
    latency_input_size: tuple[int, int]
    macs_input_size: tuple[int, int]
    devices: tuple[str, ...]
    validation_images: tuple[str, ...]
    space: str
    space_hash: str
    created_at: str
    checkpoints: str | None = None

    @model_serializer(mode="wrap")
    def _leave_out_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.checkpoints is None:
            del values["checkpoints"]
        return values

    @field_validator("space")
    @classmethod
    def _leave_out_credentials(cls, space: str) -> str:
        return without_credentials(space)


def network_id(
    model: AnyModelConfig,
    training: TrainingConfig | None,
    data: DataConfig,
    compression: CompressionConfig | None = None,
    parent: str | None = None,
) -> str:
    """Return the identity of a trained network: 12 hex digits over model (without routing), training and data.

    Of one that is compressed, `model` is that before, and `compression` belongs to it too; `parent` is the identity of
    the network where it was not trained here.
    """
    content: dict[str, object] = {
        "model": model.model_dump(mode="json", exclude={"routing"}),
        "training": training.identity_values() if training else None,
        "data": data.model_dump(mode="json"),
    }
    if compression is not None:
        content["compression"] = compression.model_dump(mode="json")
    if parent is not None:
        content["parent"] = parent
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def point_id(network: str, routing: RoutingConfig | None, quantised: QuantisedFile | None = None) -> str:
    """Return the identity of a point: the network's, its routing's, and that of the file that runs it, if any."""
    if quantised is not None:
        return f"{point_id(network, routing)}/{quantised.method}-{quantised.runtime}"
    if routing is None:
        return network
    if routing.per_block is not None:
        return f"{network}/{routing.policy}-{routing.config_hash()[:6]}"
    return (
        f"{network}/{routing.policy}"
        if routing.policy == "threshold"
        else f"{network}/{routing.policy}-{routing.gamma:g}"
    )

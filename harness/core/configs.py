"""Frozen configs: what a network is, how it routes, how it is trained and on what. One definition each.

Every config round-trips through JSON, refuses unknown keys and has a canonical hash as its identity.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from harness.core.errors import UserError, describe_validation_error
from harness.core.urls import without_credentials

Scale = Literal[2, 3, 4]
Policy = Literal["fixed", "probability", "threshold", "schedule", "detail"]
Precision = Literal["fp32", "bf16", "fp16"]
Task = Literal["classic", "odi"]
Importance = Literal["magnitude", "group-norm", "taylor", "random"]
Features = Literal["none", "attention", "affinity"]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]  # AdamW divides by 1 − β^step


class FrozenConfig(BaseModel):
    """Base of all configs and records: immutable, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def canonical_json(self) -> str:
        """Return the JSON text with sorted keys and no spaces; equal configs give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def config_hash(self) -> str:
        """Return the first 12 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:12]


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Leave a field that is None out of the JSON, so that configs without it keep the hash of before it existed."""
    if values.get(name) is None:
        values.pop(name, None)
    return values


class RoutingConfig(FrozenConfig):
    """Which windows get attention; a setting of a trained network, changed without retraining.

    With N windows, ranked by the routing logit difference "hard minus simple", and p the probability of "hard":
    `fixed`: K = floor(γN + 1e-9) windows in every block.
    `probability`: K = floor(Σw + 0.5), w = 2γ·p for γ ≤ .5 and p + (2γ−1)(1−p) above.
    `threshold`: the windows with p > 0.5, γ ignored.
    `schedule`: K = floor(γ_b·N + 1e-9) with one γ_b for each block.
    `detail`: with S blocks, the floor(γSN + 1e-9) pairs of block and window with the highest w_b·e_n get attention,
    w_b the block's weight of `block_weights` and e_n the detail of the window in the input image (`measure_detail`);
    blocks of weight 0 get none. The logits play no part. `harness calibrate` finds the weights.
    """

    policy: Policy = "fixed"
    gamma: UnitInterval = 0.5
    schedule: tuple[UnitInterval, ...] | None = None
    block_weights: tuple[Weight, ...] | None = None

    @model_validator(mode="after")
    def _schedule_goes_with_its_policy(self) -> Self:
        if (self.policy == "schedule") != (self.schedule is not None):
            raise ValueError("`schedule` (a γ for each block) goes with policy 'schedule', and only with it")
        if (self.policy == "detail") != (self.block_weights is not None):
            raise ValueError("`block_weights` (one for each block) goes with policy 'detail', and only with it")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_absent_weights(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write `block_weights` only where there are any, so that every other routing keeps its hash."""
        values: dict[str, Any] = handler(self)
        if self.block_weights is None:
            values.pop("block_weights", None)
        return values

    @property
    def per_block(self) -> tuple[float, ...] | None:
        """The γ_b of a schedule or the weights of `detail`, one for each block; None for the other policies."""
        return self.schedule if self.schedule is not None else self.block_weights

    def never_attends(self, block: int) -> bool:
        """Whether a block gets no attention whatever the image; its offsets, q and k are then dead."""
        return self.per_block is not None and self.per_block[block] == 0

    def label(self) -> str:
        """Return a short name such as 'fixed γ=0.5' or 'threshold'."""
        return self.policy if self.policy in ("threshold", "schedule") else f"{self.policy} γ={self.gamma:g}"


class BlockWidths(FrozenConfig):
    """The channels inside one block of a CAMixerSR, where pruning has left fewer than the paper's.

    `mixer`: values, both depthwise convolutions and what is projected out. `query`: queries and keys. `predictor`: its
    features. `offsets`: what offsets are made from. `ffn`: each of the two halves of the FFN's expansion.
    """

    mixer: Annotated[int, Field(ge=1)]
    query: Annotated[int, Field(ge=1)]
    predictor: Annotated[int, Field(ge=1)]
    offsets: Annotated[int, Field(ge=0)]
    ffn: Annotated[int, Field(ge=1)]


class LayerWidths(FrozenConfig):
    """The channels inside one layer of a SwinIR, where pruning has left fewer than the paper's.

    `query`: queries and keys of each head; `value`: values of each head; `mlp`: the MLP's hidden features.
    """

    query: Annotated[int, Field(ge=1)]
    value: Annotated[int, Field(ge=1)]
    mlp: Annotated[int, Field(ge=1)]


class CAMixerSRConfig(FrozenConfig):
    """CAMixerSR (CVPR 2024): `groups` blocks per group, `channels` features, `window` pixels a side, `scale` times.

    The defaults are the released Base network. `scaled_attention` divides the scores by √channels as algorithm 1 of the
    supplementary writes and the released network does not. `image_residual` adds the bicubic upscaled input to the
    output (off in the paper). The five last switches are the paper's ablations. `widths`, one for each block, say what
    pruning has left inside the blocks; `channels` are those of the features that run through all of them.
    """

    family: Literal["camixersr"] = "camixersr"
    scale: Scale = 4
    groups: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (4, 4, 6, 6)
    channels: Annotated[int, Field(ge=4, le=1024)] = 60
    window: Annotated[int, Field(ge=2, le=128)] = 16
    scaled_attention: bool = False
    image_residual: bool = False
    spatial_attention: bool = True
    channel_attention: bool = True
    offsets: bool = True
    global_condition: bool = True
    window_condition: bool = True
    widths: tuple[BlockWidths, ...] | None = None
    routing: RoutingConfig = RoutingConfig()

    @model_validator(mode="after")
    def _schedule_fits_blocks(self) -> Self:
        per_block = self.routing.per_block
        if per_block is not None and len(per_block) != self.num_blocks:
            name = "schedule" if self.routing.schedule is not None else "block_weights"
            raise ValueError(
                f"routing.{name} has {len(per_block)} values, but groups {self.groups} have {self.num_blocks} blocks"
            )
        return self

    @model_validator(mode="after")
    def _widths_fit_blocks(self) -> Self:
        if self.widths is not None and len(self.widths) != self.num_blocks:
            raise ValueError(
                f"widths has {len(self.widths)} values, but groups {self.groups} have {self.num_blocks} blocks"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_absent_widths(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), "widths")

    @property
    def num_blocks(self) -> int:
        """The number of blocks in all groups."""
        return sum(self.groups)

    @property
    def condition_channels(self) -> int:
        """The channels of the global and the window condition, which a predictor sees beside the values."""
        return 2 * self.global_condition + 2 * self.window_condition

    def block_widths(self, block: int) -> BlockWidths:
        """Return the channels inside a block: the paper's where nothing is pruned."""
        if self.widths is not None:
            return self.widths[block]
        channels, seen = self.channels, self.channels + self.condition_channels
        return BlockWidths(mixer=channels, query=channels, predictor=seen // 4, offsets=seen // 8, ffn=channels)

    def reads_predictor(self, block: int) -> bool:
        """Whether anything at inference depends on the predictor of a block; if not, it is dead."""
        if self.spatial_attention or self.channel_attention:
            return True
        return not self.routing.never_attends(block) and (self.offsets or self.routing.policy != "detail")

    def with_routing(self, routing: RoutingConfig) -> "CAMixerSRConfig":
        """Return the same network under another routing, validated."""
        return CAMixerSRConfig.model_validate({**self.model_dump(), "routing": routing.model_dump()})

    def label(self) -> str:
        """Return a short name such as 'C24 groups 1-1 M16'."""
        pruned = " pruned" if self.widths else ""
        return f"C{self.channels} groups {'-'.join(map(str, self.groups))} M{self.window}{pruned}"


class SwinIRConfig(FrozenConfig):
    """SwinIR with the pixel-shuffle-direct upsampler; the defaults are SwinIR-light.

    `widths`, one for each layer, say what pruning has left inside the layers; `mlp_ratio` then says nothing.
    """

    family: Literal["swinir"] = "swinir"
    scale: Scale = 4
    embed_dim: Annotated[int, Field(ge=1, le=1024)] = 60
    depths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (6, 6, 6, 6)
    num_heads: Annotated[int, Field(ge=1)] = 6
    window: Annotated[int, Field(ge=2, le=64)] = 8
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0
    image_residual: bool = False
    widths: tuple[LayerWidths, ...] | None = None

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> Self:
        if self.widths is None and self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        return self

    @model_validator(mode="after")
    def _widths_fit_layers(self) -> Self:
        if self.widths is not None and len(self.widths) != sum(self.depths):
            raise ValueError(
                f"widths has {len(self.widths)} values, but depths {self.depths} have {sum(self.depths)} layers"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_absent_widths(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), "widths")

    def layer_widths(self, layer: int) -> LayerWidths:
        """Return the channels inside a layer, counted from 0 over the whole network."""
        if self.widths is not None:
            return self.widths[layer]
        of_head = self.embed_dim // self.num_heads
        return LayerWidths(query=of_head, value=of_head, mlp=int(self.embed_dim * self.mlp_ratio))

    def label(self) -> str:
        """Return a short name."""
        default = SwinIRConfig(scale=self.scale, image_residual=self.image_residual)
        if self == default:
            return "SwinIR-light"
        pruned = " pruned" if self.widths else ""
        return f"SwinIR C{self.embed_dim} depths {'-'.join(map(str, self.depths))}{pruned}"


class BicubicConfig(FrozenConfig):
    """Bicubic interpolation (a = −0.5): the floor of every comparison. It has no weights."""

    family: Literal["bicubic"] = "bicubic"
    scale: Scale = 4

    def label(self) -> str:
        """Return a short name."""
        return "bicubic"


class CustomConfig(FrozenConfig):
    """A network of one's own: the `nn.Module` that a function returns, B×3×h×w in [0, 1] to scale times that.

    `factory`: `MODULE:FUNCTION` or `FILE.py:FUNCTION`, found from the working directory; it is called with `settings`
    as keyword arguments, and with `scale` where it has such a parameter. `multiple_of`: what height and width must be
    multiples of. `image_residual` adds the bicubic upscaled input to what it returns. `code` is the hash of the file
    that the function stands in, found when a search or a training begins: where it changes, it is another network.
    """

    family: Literal["custom"] = "custom"
    scale: Scale = 4
    factory: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_][\w.]*$")]
    settings: dict[str, bool | int | float | str | list[int]] = {}
    multiple_of: Annotated[int, Field(ge=1, le=512)] = 1
    image_residual: bool = False
    code: str | None = None

    @model_serializer(mode="wrap")
    def _leave_out_unknown_code(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), "code")

    def __hash__(self) -> int:
        return hash(self.canonical_json())

    def label(self) -> str:
        """Return a short name such as 'make_net channels=32'."""
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        return " ".join([self.factory.rpartition(":")[2], *settings])


AnyModelConfig = CAMixerSRConfig | SwinIRConfig | BicubicConfig | CustomConfig
ModelConfig = Annotated[AnyModelConfig, Field(discriminator="family")]
MODEL_CONFIG: TypeAdapter[AnyModelConfig] = TypeAdapter(ModelConfig)


class ScheduleConfig(FrozenConfig):
    """The learning-rate schedule.

    `multistep`: multiplied by `factor` at each milestone (a fraction of all steps). `cosine`: half a cosine to
    `final_fraction` of the peak. `constant`: neither. `warmup_steps` of linear warm-up come first in every case.
    """

    name: Literal["constant", "multistep", "cosine"] = "cosine"
    milestones: tuple[UnitInterval, ...] = (0.5, 0.8, 0.9, 0.95)
    factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    final_fraction: UnitInterval = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class DistillationConfig(FrozenConfig):
    """How a network learns from a trained one, its teacher, beside the images.

    The L1 to the image counts 1 − `weight`, the L1 to what the teacher makes of the same input `weight`. `features`:
    what else of the teacher is followed, at the ends of its groups, `feature_weight` times (see
    `training/distillation.py`): `attention`, where its features have energy, or `affinity`, which places look alike to
    it. The defaults are what `results/benchmarks/distillation.md` speaks for. `teacher` is the folder of a bundle,
    `teacher_id` the identity of its config and weights, which is found when the teacher is read; where it is given, no
    other teacher will do.
    """

    teacher: Annotated[str, Field(min_length=1)]
    teacher_id: str | None = None
    weight: UnitInterval = 0.5
    features: Features = "attention"
    feature_weight: Weight = 0.02

    @field_validator("teacher")
    @classmethod
    def _leave_out_credentials(cls, teacher: str) -> str:
        return without_credentials(teacher)

    @model_serializer(mode="wrap")
    def _leave_out_an_unknown_identity(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the teacher's identity only where it is known."""
        values: dict[str, Any] = handler(self)
        if self.teacher_id is None:
            values.pop("teacher_id", None)
        return values

    def label(self) -> str:
        """Return in short what is followed of the teacher, such as 'output 0.5, attention 0.02'."""
        features = f", {self.features} {self.feature_weight:g}" if self.follows_features else ""
        return f"output {self.weight:g}{features}"

    @property
    def follows_output(self) -> bool:
        """Whether what the teacher makes of images counts."""
        return self.weight > 0

    @property
    def follows_features(self) -> bool:
        """Whether the teacher's features count."""
        return self.features != "none" and self.feature_weight > 0


class TrainingConfig(FrozenConfig):
    """How a network is trained: L1 + ratio loss, AdamW, EMA; `distillation`: it learns from a teacher, too.

    `hr_patch_size` is the side of the high-resolution crop in pixels. `ratio_gamma` is γ in the paper's ratio loss
    2γ·(mean mask − 0.5)². `ema_decay` is reached after a warm-up min(decay, (1 + step)/(10 + step)), so that short runs
    are not averaged with their start. `recipe('paper')` gives the released set-up.

    `task`: `classic`, or `odi` for omnidirectional images: whole equirectangular panoramas, whose L1 is weighted by the
    latitude of each row and whose crops may lie across the seam; `augment` then flips left and right alone.
    """

    steps: Annotated[int, Field(ge=1)] = 10_000
    batch_size: Annotated[int, Field(ge=1)] = 16
    hr_patch_size: Annotated[int, Field(ge=8)] = 192
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    schedule: ScheduleConfig = ScheduleConfig()
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    grad_clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Precision = "fp32"
    ratio_gamma: UnitInterval = 0.5
    augment: bool = True
    checkpoint_interval: Annotated[int, Field(ge=1)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    task: Task = "classic"
    distillation: DistillationConfig | None = None

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_asked_for(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write `task` only where it is not `classic`, and a teacher only where there is one: identities are kept."""
        values: dict[str, Any] = handler(self)
        if self.task == "classic":
            values.pop("task", None)
        if self.distillation is None:
            values.pop("distillation", None)
        return values

    def identity_values(self) -> dict[str, Any]:
        """Return what makes two trainings the same: neither how often they are saved nor where the teacher lies."""
        values = self.model_dump(mode="json", exclude={"checkpoint_interval"})
        if self.distillation is not None and self.distillation.teacher_id is not None:
            del values["distillation"]["teacher"]
        return values

    @property
    def hr_pixels(self) -> int:
        """High-resolution training pixels seen in all: steps × batch × patch area."""
        return self.steps * self.batch_size * self.hr_patch_size**2

    @property
    def is_full_recipe(self) -> bool:
        """Whether at least as many training pixels are seen as in the released set-up; else 'not converged'."""
        return self.hr_pixels >= PAPER_RECIPE.hr_pixels


# The released set-up of CAMixerSR: 256×256 HR patches, batch 64, AdamW 5e-4, 500k iterations, the rate halved at
# 250k/400k/450k/475k.
PAPER_RECIPE = TrainingConfig(
    steps=500_000,
    batch_size=64,
    hr_patch_size=256,
    learning_rate=5e-4,
    weight_decay=1e-4,
    betas=(0.9, 0.99),
    schedule=ScheduleConfig(name="multistep", milestones=(0.5, 0.8, 0.9, 0.95), factor=0.5),
    ema_decay=0.999,
    grad_clip_norm=None,
    checkpoint_interval=5000,
)


class DataConfig(FrozenConfig):
    """What is trained and validated on: a folder, its URL without credentials, or a dataset's name (`demo`, …)."""

    train: str = "demo"
    validation: str = "demo"
    data_dir: str | None = None

    @field_validator("train", "validation")
    @classmethod
    def _leave_out_credentials(cls, source: str) -> str:
        return without_credentials(source)


CalibratedPolicy = Literal["detail", "schedule"]


class CalibrationConfig(FrozenConfig):
    """How a search calibrates the routing of each network that it has trained: one more point for each of `shares`.

    `shares` are shares of attention, ΣK/ΣN over blocks. `images` training images are tuned on, the centre `crop`² of
    each in low-resolution pixels.
    """

    policy: CalibratedPolicy = "detail"
    shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.25,)
    images: Annotated[int, Field(ge=1)] = 24
    crop: Annotated[int, Field(ge=16)] = 32  # small, so that small images serve too

    @field_validator("shares")
    @classmethod
    def _are_distinct(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(shares)) != len(shares):
            raise ValueError("the same share stands twice")
        return shares


QuantisationMethod = Literal["minmax", "percentile", "entropy", "dynamic", "fp16", "bf16"]
QuantisationRuntime = Literal["onnxruntime", "openvino"]
METHODS: tuple[QuantisationMethod, ...] = get_args(QuantisationMethod)
STATIC: tuple[QuantisationMethod, ...] = ("minmax", "percentile", "entropy")
INT8: tuple[QuantisationMethod, ...] = (*STATIC, "dynamic")


class QuantisationConfig(FrozenConfig):
    """How a network is quantised, and how its loss is judged.

    `method`: `minmax`, `percentile` and `entropy` store weights (per output channel, symmetric) and activations (per
    tensor, uint8) as 8-bit integers, and say how the activations' ranges are taken from `images` calibration images;
    `percentile` leaves out the share of values beyond it. `dynamic` finds the ranges anew in each pass. `fp16` stores
    16-bit floats; `bf16` leaves the file as it is and has OpenVINO compute in bfloat16.

    The file takes images of `tile`² low-resolution pixels. Layers stay in float until the mean PSNR of `held_out`
    images falls by no more than `max_drop_db`; None: by whatever it is. Only the methods of `INT8` choose layers.
    """

    method: QuantisationMethod = "minmax"
    runtime: QuantisationRuntime = "onnxruntime"
    tile: Annotated[int, Field(ge=8)] = 64
    images: Annotated[int, Field(ge=1)] = 16
    held_out: Annotated[int, Field(ge=1)] = 8
    max_drop_db: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.1
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.999

    @model_validator(mode="after")
    def _bfloat16_is_openvinos(self) -> Self:
        if self.method == "bf16" and self.runtime != "openvino":
            raise ValueError(f"method bf16 is computed by runtime openvino alone: got {self.runtime}")
        return self

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """What the runtime is to be told to compute in what the file leaves in float."""
        return "bf16" if self.method == "bf16" else "fp32"


# Channels that may be removed, by family; `features` run through the whole network, all others through a block or layer
KINDS: dict[str, tuple[str, ...]] = {
    "camixersr": ("features", "mixer", "query", "predictor", "offsets", "ffn"),
    "swinir": ("features", "query", "value", "mlp"),
}


class CompressionConfig(FrozenConfig):
    """How a trained network loses channels, is trained on, and is quantised.

    `left` of its `cost` stay: canonical MACs, parameters, or the latency measured on the first of a study's conditions;
    1 leaves the network as it is. `importance` says which units of a channel group go, and `scope` how many of each
    group: `global` those of least importance for what they save, wherever they are, `uniform` the same share
    everywhere, `measured` where a dB lost, as measured on crops, saves most. `kinds` are the channels that may go (all
    that the network has; see `harness.compression.KINDS`), widths become multiples of `round_to`. Pruning takes
    `rounds` steps of equal ratio, each followed by `tune_steps` of training in all of them together / `rounds`, at
    `tune_rate` times the training's learning rate; with `distil` the network learns from what it was before all of it,
    too (`DistillationConfig`'s defaults). `crops` batches of training crops are what importance and dB are measured on.
    `quantise`: what comes out is quantised at last, into a file of its own beside the weights.
    """

    left: Annotated[float, Field(gt=0, le=1)] = 1.0
    cost: Literal["macs", "params", "latency"] = "macs"
    importance: Importance = "taylor"
    scope: Literal["global", "uniform", "measured"] = "global"
    kinds: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    round_to: Annotated[int, Field(ge=1)] = 1
    rounds: Annotated[int, Field(ge=1)] = 1
    tune_steps: Annotated[int, Field(ge=0)] = 1000
    tune_rate: Annotated[float, Field(gt=0)] = 0.5
    distil: bool = False
    crops: Annotated[int, Field(ge=1)] = 8
    quantise: QuantisationConfig | None = None

    @model_serializer(mode="wrap")
    def _leave_out_absent_quantisation(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), "quantise")

    @property
    def changes_nothing(self) -> bool:
        """Whether the network is left as it is."""
        return self.left == 1 and self.quantise is None


class BudgetConfig(FrozenConfig):
    """When a search stops: after so many networks trained to the end, or so many training steps of all networks
    together, or when so many seconds of this run are over.
    """

    networks: Annotated[int, Field(ge=1)] = 50
    steps: Annotated[int, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None

    @model_serializer(mode="wrap")
    def _leave_out_absent_steps(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write `steps` only where they stand: identities are kept."""
        values: dict[str, Any] = handler(self)
        if self.steps is None:
            values.pop("steps", None)
        return values


class Rung(NamedTuple):
    """Where a network is compared with others: after `step` steps of training, on `images` validation images."""

    step: int
    images: int


class StoppingConfig(FrozenConfig):
    """How networks that fall behind are stopped early.

    A rung is a share of the whole effort, and each of them `factor` times the one before. The effort is that of
    training (`steps`), of scoring a network when it is trained (`images`: validation images), or both together. At a
    rung the best 1/`factor` of the networks that have come to it go on. `grace_steps`: the first rung (with `images`
    alone, none); by default the effort over `factor`, so that there is one rung, where it says most of the end.
    """

    fidelity: Literal["steps", "images", "both"] = "steps"
    grace_steps: Annotated[int, Field(ge=1)] | None = None
    factor: Annotated[int, Field(ge=2)] = 3

    def rungs(self, steps: int, images: int) -> tuple[Rung, ...]:
        """Return the rungs of a training of so many steps that is scored on so many images, the earliest first."""
        if self.fidelity == "images":
            counts = sorted({-(-images // self.factor**power) for power in (1, 2)} - {images})
            return tuple(Rung(steps, count) for count in counts)
        step = self.grace_steps or -(-steps // self.factor)  # rounded up: the next one is no rung short of the end
        found = []
        while step < steps:
            share = images if self.fidelity == "steps" else -(-images * step // steps)
            found.append(Rung(step, share))
            step *= self.factor
        return tuple(found)


def nest(settings: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Put settings over others; a dotted name (`distillation.weight`) is a setting of a section."""
    values = dict(base or {})
    for name, value in settings.items():
        section, dot, rest = name.partition(".")
        inner = values.get(section)
        values[section] = nest({rest: value}, inner if isinstance(inner, Mapping) else None) if dot else value
    return values


def look_up(settings: Any, name: str) -> Any:
    """Return a setting by its dotted name; None where the section that it is of does not stand."""
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse_config(config_type: type[ConfigT], values: Any, source: str) -> ConfigT:
    """Validate `values` as `config_type`; a finding becomes one `UserError` line that names `source`."""
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {describe_validation_error(error)}") from None


def parse_model_config(values: Any, source: str) -> AnyModelConfig:
    """Validate `values` as the config of one of the known model families (key `family`)."""
    try:
        return MODEL_CONFIG.validate_python(values)
    except ValidationError as error:
        raise UserError(f"{source}: {describe_validation_error(error)}") from None

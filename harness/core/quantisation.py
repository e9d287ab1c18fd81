"""Quantisation for export runtimes: what is asked for, and the record of what was done and measured."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from harness.core.configs import FrozenConfig, ModelConfig
from harness.core.environment import EnvironmentRecord
from harness.core.records import EvaluationRecord, LatencyRecord

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


class SensitivityRecord(FrozenConfig):
    """What quantising some layers, and no others, costs: `drop_db` of the mean PSNR of the held-out images."""

    name: str
    layers: tuple[str, ...]
    drop_db: float


class ChoiceRecord(FrozenConfig):
    """Which layers of a graph are quantised, and by which measurements that was decided.

    `quantised` and `kept` are names of layers (convolutions and matrix products with constant weights); `kept` stay in
    float because they cost too much PSNR, `routing` because nothing but decisions depends on them. `psnr_db_float` and
    `psnr_db` are those of the held-out images before and after, None where nothing was to be chosen. `sensitivities`
    are in the order that they were measured in, `evaluations` the graphs that were run. `is_met`: the drop is within
    the bound.
    """

    quantised: tuple[str, ...]
    kept: tuple[str, ...]
    routing: tuple[str, ...]
    psnr_db_float: float
    psnr_db: float
    sensitivities: tuple[SensitivityRecord, ...] = ()
    evaluations: int
    is_met: bool

    @property
    def drop_db(self) -> float:
        """By how much the mean PSNR of the held-out images fell."""
        return self.psnr_db_float - self.psnr_db


class QuantisationRecord(FrozenConfig):
    """A quantised network: what was done, on which images, and what it came to in the runtime that is to run it.

    `calibration_images` and `held_out_images` are names of images of `calibration_dataset`, no image in both.
    `before` and `after` score the float file and the quantised one on the images of the evaluation, tile by tile in the
    runtime, None where there are none. `latency` is that of the quantised file, interleaved with the float one in the
    same runtime: its `ratio` is quantised / float. Sizes are those of the files in bytes; `sha256` is the quantised
    one's.
    """

    schema_version: Literal[1] = 1
    config: QuantisationConfig
    label: str
    model: ModelConfig
    weights: str
    choice: ChoiceRecord
    calibration_dataset: str
    calibration_hash: str
    calibration_images: tuple[str, ...]
    held_out_images: tuple[str, ...]
    before: EvaluationRecord | None = None
    after: EvaluationRecord | None = None
    latency: LatencyRecord | None = None
    file_bytes: int
    float_file_bytes: int
    sha256: str
    seconds: float
    environment: EnvironmentRecord
    made_at: str

    @property
    def drop_db(self) -> float | None:
        """By how much the mean PSNR of the evaluation fell; None where nothing was evaluated."""
        return None if self.before is None or self.after is None else self.before.psnr_db - self.after.psnr_db

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not reached, a sentence each."""
        found = []
        choice, method, bound = self.choice, self.config.method, self.config.max_drop_db
        if method in INT8 and not choice.quantised:
            found.append("no layer could be quantised: the file is in float")
        if not choice.is_met:
            why = f"; {method} has no layers to choose" if method not in INT8 else ""
            found.append(f"on the images held out PSNR falls by {choice.drop_db:.3f} dB, wanted at most {bound:g}{why}")
        if bound is not None and self.before is not None and (self.drop_db or 0.0) > bound:
            found.append(
                f"on {self.before.dataset} PSNR falls by {self.drop_db:.3f} dB, wanted at most {bound:g}; layers are "
                "chosen by other images: ask for less by --max-drop"
            )
        if self.latency is not None and (self.latency.ratio or 0.0) > 1:
            found.append(
                f"slower than the float file in {self.config.runtime}: {self.latency.ratio:.2f} of its latency"
            )
        return tuple(found)

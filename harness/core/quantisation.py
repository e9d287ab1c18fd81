"""Quantisation for export runtimes: the record of what was done and measured (`QuantisationConfig`: what was asked)."""

from typing import Literal

from harness.core.configs import INT8, FrozenConfig, ModelConfig, QuantisationConfig
from harness.core.environment import EnvironmentRecord
from harness.core.records import EvaluationRecord, LatencyRecord


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

"""What a bundle's config.json and metrics.json hold."""

from typing import Literal

from harness.core.configs import DataConfig, FrozenConfig, ModelConfig, Task, TrainingConfig
from harness.core.environment import EnvironmentRecord
from harness.core.records import (
    CalibrationRecord,
    CompressionRecord,
    EvaluationRecord,
    GainsRecord,
    PointRecord,
    TrainingRecord,
)

IMPORTED = "imported"


class BundleConfig(FrozenConfig):
    """What config.json holds: the network with its routing, and where it came from.

    `task` is what it was trained for: `odi` networks are for whole panoramas. What is picked as `imported` is of no
    study: `study` is then the file of its weights, and `record_id` the entry of it. `licence` is that of the weights,
    an SPDX expression or `unstated`; None in bundles that are older than manifests.
    """

    format_version: Literal[1] = 1
    model: ModelConfig
    task: Task = "classic"
    study: str
    record_id: str
    network_id: str
    picked_as: str
    exported_at: str
    environment: EnvironmentRecord
    licence: str | None = None


class BundleCalibration(FrozenConfig):
    """How the routing was calibrated after the network was picked, and what is known of it.

    `evaluation` is that of the calibrated routing, on images that were not tuned on; `point_before` was measured under
    the routing that the network was picked with, and says nothing of this one. None where nothing was.
    """

    record: CalibrationRecord
    evaluation: EvaluationRecord | None
    point_before: PointRecord | None


class BundleMetrics(FrozenConfig):
    """What metrics.json holds: what was measured of the network under its routing, and beside what.

    `point` is None where the routing was calibrated since; `calibration` then says more. Of weights that were trained
    elsewhere there is neither, and no `data`. `compression`: the chain that has made the network out of a larger one,
    whose training `training` and `training_result` are. `gains`: what a routing was made of that the search itself has
    calibrated.
    """

    point: PointRecord | None
    training: TrainingConfig | None
    training_result: TrainingRecord | None
    converged: bool
    data: DataConfig | None
    measured_in: EnvironmentRecord
    baselines: dict[str, PointRecord]
    compression: CompressionRecord | None = None
    calibration: BundleCalibration | None = None
    gains: GainsRecord | None = None

"""What a bundle's config.json and metrics.json hold."""

from typing import Literal

from harness.core.choice import ChoiceRecord
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
    elsewhere there is neither, and no `data`. `quantised` is what was measured of quantised.onnx, the same network and
    routing, in its runtime, where there is such a file. `compression`: the chain that has made the network out of a
    larger one, whose training `training` and `training_result` are. `choice`: how it was chosen of its study, and what
    that gives up; older bundles, and networks that were chosen from nothing, have none. `gains`: what a routing was
    made of that the search itself has calibrated.
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
    choice: ChoiceRecord | None = None
    quantised: PointRecord | None = None
    gains: GainsRecord | None = None


class ImageParity(FrozenConfig):
    """How far an exported file is from its network on images of one size, `batch` of them at once.

    `max_abs`: the greatest difference of a value, for images in [0, 1]. `psnr_db` of the network and of the file
    against what the images were made of: RGB, clipped, not rounded.
    """

    name: str
    batch: int
    size: tuple[int, int]
    max_abs: float
    psnr_db: float
    psnr_db_exported: float

    @property
    def psnr_db_difference(self) -> float:
        """The file's PSNR minus the network's; 0 where both are infinite."""
        return 0.0 if self.psnr_db == self.psnr_db_exported else self.psnr_db_exported - self.psnr_db


class ParityRecord(FrozenConfig):
    """What a file that was exported was found to be, in what ran it: within the bounds on every image.

    `sha256`: of the file. `opset` and `nodes`: of ONNX files. `size` = (height, width) and `batch`: the only ones that
    the file takes, None where they are free.
    """

    format_version: Literal[1] = 1
    kind: Literal["onnx", "openvino", "pt2"]
    runtime: str
    runtime_version: str
    provider: str
    torch_version: str
    harness_version: str
    sha256: str
    opset: int | None
    nodes: int | None
    size: tuple[int, int] | None
    batch: int | None
    max_abs_bound: float
    psnr_db_bound: float
    images: tuple[ImageParity, ...]

    @property
    def max_abs(self) -> float:
        """The greatest difference on any image."""
        return max(image.max_abs for image in self.images)

    @property
    def psnr_db_difference(self) -> float:
        """The greatest difference of PSNR on any image, without its sign."""
        return max(abs(image.psnr_db_difference) for image in self.images)

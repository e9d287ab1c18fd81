"""A deployable folder: config.json, model.safetensors, metrics.json and README.md (the model card)."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from harness.core.configs import FrozenConfig, ModelConfig, Task
from harness.core.environment import EnvironmentRecord, now, observe_environment
from harness.core.errors import UserError, describe_validation_error
from harness.core.records import PointRecord, TrialRecord
from harness.export.card import write_card
from harness.metrics import get_protocol
from harness.models import PanoramaNetwork, SRNetwork, build_model

_CONFIG, _WEIGHTS, _METRICS, _CARD = "config.json", "model.safetensors", "metrics.json", "README.md"


class BundleConfig(FrozenConfig):
    """What config.json holds: the network with the routing that it was picked with, and where it came from.

    `task` is what it was trained for: `odi` networks are for whole panoramas.
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


def write_bundle(
    path: Path,
    network: SRNetwork,
    record: TrialRecord,
    point: PointRecord,
    *,
    picked_as: str,
    baselines: dict[str, PointRecord],
    overwrite: bool = False,
) -> Path:
    """Write a bundle folder in one step and return its path.

    `network` carries the trained weights and the routing of `point`, which is one of `record`'s; `baselines` are
    measured in the same study and stand in the model card. `UserError` where `path` exists and is not to be replaced,
    or is no bundle. Whatever goes wrong, the old bundle stays.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; give --overwrite to replace it, or another --out")
    if path.exists() and not is_bundle(path):
        raise UserError(f"{path} is no bundle, so it is not replaced; give another --out")
    assert getattr(network.config, "routing", None) == point.routing, "a bundle's metrics are those of its routing"
    config = BundleConfig(
        model=network.config,
        task=record.training.task if record.training else "classic",
        study=record.study,
        record_id=record.record_id,
        network_id=record.network_id,
        picked_as=picked_as,
        exported_at=now(),
        environment=observe_environment(),
    )
    metrics: dict[str, Any] = {
        "point": point.model_dump(mode="json"),
        "training": record.training.model_dump(mode="json") if record.training else None,
        "training_result": record.training_result.model_dump(mode="json") if record.training_result else None,
        "converged": record.training is not None and record.training.is_full_recipe,
        "data": record.data.model_dump(mode="json"),
        "measured_in": record.environment.model_dump(mode="json"),
        "baselines": {name: baseline.model_dump(mode="json") for name, baseline in baselines.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary, retired = workplace / "new", workplace / "old"
    try:
        temporary.mkdir()
        (temporary / _CONFIG).write_text(config.model_dump_json(indent=1), encoding="utf-8")
        (temporary / _WEIGHTS).write_bytes(save(network.state_dict()))
        (temporary / _METRICS).write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        (temporary / _CARD).write_text(write_card(record, point, picked_as, baselines), encoding="utf-8")
        if path.exists():
            path.rename(retired)
        temporary.rename(path)
    except BaseException:
        if retired.exists() and not path.exists():
            retired.rename(path)
        shutil.rmtree(workplace, ignore_errors=True)
        raise
    shutil.rmtree(workplace)
    return path


def is_bundle(path: Path) -> bool:
    """Whether a folder looks like a bundle."""
    return (path / _CONFIG).is_file() and (path / _WEIGHTS).is_file()


def read_bundle_config(path: Path) -> BundleConfig:
    """Read a bundle's config; `UserError` where there is none, or it is of another version."""
    file = path / _CONFIG
    if not file.is_file():
        raise UserError(f"{path} is no bundle: {_CONFIG} not found; `harness export` makes one")
    try:
        return BundleConfig.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file}: {describe_validation_error(error)}") from None


def load_bundle(path: str | Path) -> SRNetwork | PanoramaNetwork:
    """Rebuild a bundle's network bit-exactly, in eval mode, on the CPU, with the routing that it was picked with.

    `network(x_BCHW)` takes B×3×h×w in [0, 1] of any size and gives scale times that, as `harness upscale` does: of a
    bundle trained for panoramas it takes whole ones, h×2h, and restores them without a seam; the plain network is then
    its `.network`. `UserError` for a folder that is no bundle, or whose weights do not fit its config.
    """
    path = Path(path)
    network = load_network(path)
    if read_bundle_config(path).task == "odi":
        return PanoramaNetwork(network, get_protocol("odi").wrap).eval()
    return network


def load_network(path: Path) -> SRNetwork:
    """Rebuild a bundle's plain network, whatever it was trained for; otherwise as `load_bundle`."""
    network = build_model(read_bundle_config(path).model)
    try:
        network.load_state_dict(load_file(path / _WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path / _WEIGHTS} does not fit {_CONFIG}: {' '.join(str(error).split())}") from None
    return network.eval()

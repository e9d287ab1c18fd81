"""Bundles in MLflow's model registry, as models that anything which speaks MLflow can load.

A version holds the bundle's files, a signature (N×H×W×3 uint8 in and out), an example, and an alias that it is found
by: `models:/NAME@champion`. It comes of the run of the bundle's trial where the store knows that. A bundle that is
registered already gets no second version, so a call that was cut short can be made again.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from harness.core.errors import UserError
from harness.data.demo import find_demo_files
from harness.data.images import read_rgb
from harness.export import read_bundle_config, read_bundle_metrics
from harness.export.bundle import BUNDLE_FILES, ONNX
from harness.export.documents import BundleConfig, BundleMetrics
from harness.export.manifest import MANIFEST
from harness.tracking.entries import milliseconds
from harness.tracking.store import Attempts, check_address, connect, find_experiment, find_or_create_run, quote

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Alias = Literal["champion", "challenger"]
BUNDLES = "bundles"  # the experiment of bundles whose trial the store does not know
_DIGEST = "harness.bundle"  # the tag that a bundle is known by
_SERVED = Path(__file__).with_name("served_model.py")
_EXAMPLE_SIDES = (12, 24)  # low-resolution pixels: few, because MLflow writes examples as text


class Registration(NamedTuple):
    """A version of a registered model: the alias that it has now, the run that it comes of, whether it was there."""

    name: str
    version: int
    alias: Alias
    run_id: str
    was_there: bool

    @property
    def uri(self) -> str:
        """What MLflow loads it by."""
        return f"models:/{self.name}@{self.alias}"


def check_registration(name: str, tracking_uri: str) -> None:
    """Raise `UserError` for a name that no registered model can have, and an address that cannot be a store."""
    check_address(tracking_uri)
    if not name.strip() or set(name) & set("/:") or name != name.strip() or name in (".", ".."):
        raise UserError(f"--register {name!r}: expected a name without '/' and ':', for example camixersr-x4")


def register_bundle(
    bundle: Path, name: str, *, tracking_uri: str, artifact_root: Path | None, alias: Alias | None = None
) -> Registration:
    """Register a bundle under a name, make the name where it is new, and give the version an alias.

    `alias` None: `champion` where the name has none yet, else `challenger`; whichever version had it before loses it.
    `artifact_root` is the folder for artifacts of a database store; None leaves the place to the server. `UserError`
    where the bundle cannot be read, and where the store cannot be reached or refuses.
    """
    check_registration(name, tracking_uri)
    config, digest = read_bundle_config(bundle), _digest(bundle)
    tags = {_DIGEST: digest, **_describe(config), **_scores(read_bundle_metrics(bundle))}
    found: list[Registration] = []
    failures: list[str] = []

    def register() -> None:
        client = connect(tracking_uri)
        given: Alias = alias or ("challenger" if _has_champion(client, name) else "champion")
        version = _find_version(client, name, digest)
        was_there = version is not None
        if version is None:
            version = _make_version(client, bundle, config, name, tags, artifact_root)
        client.set_registered_model_alias(name, given, str(version.version))
        found.append(Registration(name, int(version.version), given, str(version.run_id), was_there))

    bundle_stays = f"the bundle {bundle} is whole, and the same command with --overwrite registers it"
    if not Attempts(tracking_uri, failures.append, bundle_stays).make(register):
        raise UserError(f"--register {name}: {failures[0]}")
    return found[0]


def _digest(bundle: Path) -> str:
    """Return what tells bundles apart; `UserError` for one that is older than manifests."""
    file = bundle / MANIFEST
    if not file.is_file():
        raise UserError(f"{bundle} has no {MANIFEST}; export it again to register it")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _has_champion(client: "MlflowClient", name: str) -> bool:
    models = client.search_registered_models(f"name = {quote(name)}")
    return any("champion" in model.aliases for model in models)


def _find_version(client: "MlflowClient", name: str, digest: str) -> "ModelVersion | None":
    versions = client.search_model_versions(f"name = {quote(name)}")
    return next((version for version in versions if version.tags.get(_DIGEST) == digest), None)


def _make_version(
    client: "MlflowClient",
    bundle: Path,
    config: BundleConfig,
    name: str,
    tags: dict[str, str],
    artifact_root: Path | None,
) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    run_id = _find_trial_run(client, config)
    if run_id is None:
        experiment = find_experiment(client, BUNDLES, artifact_root)
        started = milliseconds(config.exported_at)
        run = find_or_create_run(client, experiment, {_DIGEST: tags[_DIGEST]}, config.model.label(), started)
        run_id = str(run.info.run_id)
        client.set_terminated(run_id, status="FINISHED")
    place = f"bundles/{tags[_DIGEST][:12]}"
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model"
        _save_model(bundle, config, saved, Path(folder) / "bundle")
        client.log_artifacts(run_id, str(saved), place)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    root = str(client.get_run(run_id).info.artifact_uri).rstrip("/")
    label = f"{config.model.label()} ×{config.model.scale}"
    return client.create_model_version(name, f"{root}/{place}", run_id, tags=tags, description=label)


def _find_trial_run(client: "MlflowClient", config: BundleConfig) -> str | None:
    """Return the run of the trial that the bundle's network is of; None where the store does not know it."""
    experiment = client.get_experiment_by_name(config.study)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        return None
    identity = {"harness.record_id": config.record_id, "harness.network_id": config.network_id}
    condition = " and ".join(f"tags.`{tag}` = {quote(value)}" for tag, value in identity.items())
    runs = client.search_runs([experiment.experiment_id], condition, max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _describe(config: BundleConfig) -> dict[str, str]:
    """Return where a network came from, as tags."""
    tags = {
        "harness.study": config.study,
        "harness.record_id": config.record_id,
        "harness.network_id": config.network_id,
        "harness.picked_as": config.picked_as,
        "harness.licence": config.licence,
    }
    return {key: value for key, value in tags.items() if value}


def _scores(metrics: BundleMetrics) -> dict[str, str]:
    """Return what was measured as tags, for whoever compares versions."""
    point = metrics.point
    if point is None:
        return {}
    evaluation = point.evaluation
    tags = {
        "psnr_db": f"{evaluation.psnr_db:.4f}",
        "ssim": f"{evaluation.ssim:.5f}",
        "protocol": f"{evaluation.protocol} on {evaluation.dataset}",
        "macs": str(point.macs),
        "params": str(point.params),
    }
    if point.latency:
        first = point.latency[0]
        tags["latency_ms"] = f"{first.median:.3f}"
        tags["latency_conditions"] = f"{first.conditions} on {first.device_name}"
    return tags


def _save_model(bundle: Path, config: BundleConfig, target: Path, copied: Path) -> None:
    """Write the bundle as a model of MLflow's into the folder `target`, by way of a copy without files of others."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    copied.mkdir()
    for name in (*BUNDLE_FILES, MANIFEST):
        if (bundle / name).is_file():
            shutil.copyfile(bundle / name, copied / name)
    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    packages = ("mlflow", "numpy", "onnxruntime") if (bundle / ONNX).is_file() else ("mlflow", "numpy")
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # advice on type hints and packages
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(_SERVED),
            artifacts={"bundle": str(copied)},
            signature=ModelSignature(inputs=Schema([images]), outputs=Schema([images])),
            input_example=_example(),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in packages],
            metadata={"scale": config.model.scale, "task": config.task, "licence": config.licence},
        )


def _example() -> Any:
    """Return one small image as a batch: a piece of a photograph, in the proportions of a panorama."""
    height, width = _EXAMPLE_SIDES
    image_HWC = read_rgb(find_demo_files("validation")[0])
    return np.ascontiguousarray(image_HWC[64 : 64 + height, 192 : 192 + width])[None]

"""A deployable folder, written in one step.

config.json         the network with its routing, where it came from, its licence
model.safetensors   its weights
model.onnx          the same network for any runtime, with the routing built in; where the extra `onnx` is installed
parity.json         how near its output is to the network's, on photographs
example.py          restores an image with it, with nothing but onnxruntime and pillow installed
metrics.json        what was measured of it, under which protocol and on which device; calibration; compression
quantised.onnx      of a network whose search quantised it, with quantisation.json
LICENCE             what is known of the licence of the weights and of the images that they were trained on
README.md           the model card
SHA256SUMS          the checksum of every other file, written last
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from harness.core.choice import ChoiceRecord
from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.environment import now, observe_environment
from harness.core.errors import TrialFailedError, UserError, describe_validation_error
from harness.core.files import require_folder_place
from harness.core.records import CalibrationRecord, EvaluationRecord, PointRecord, TrialRecord
from harness.export.card import write_card, write_example
from harness.export.documents import IMPORTED, BundleCalibration, BundleConfig, BundleMetrics
from harness.export.licence import UNSTATED, describe_licence
from harness.export.manifest import MANIFEST, write_manifest
from harness.export.parity import check_parity
from harness.metrics import get_protocol
from harness.models import PanoramaNetwork, SRNetwork, build_model, describe_kernels
from harness.models.onnx_export.build import build_onnx

_CONFIG, _WEIGHTS, _METRICS = "config.json", "model.safetensors", "metrics.json"
ONNX, PARITY, EXAMPLE = "model.onnx", "parity.json", "example.py"
CARD, LICENCE = "README.md", "LICENCE"
QUANTISED, QUANTISATION = "quantised.onnx", "quantisation.json"
BUNDLE_FILES = (_CONFIG, _WEIGHTS, ONNX, PARITY, EXAMPLE, _METRICS, CARD, LICENCE, QUANTISED, QUANTISATION)
Tell = Callable[[str], None]
_CALIBRATED = ("detail", "schedule")  # policies that a search makes of gains


def write_bundle(
    path: Path,
    network: SRNetwork,
    record: TrialRecord,
    point: PointRecord,
    *,
    picked_as: str,
    baselines: dict[str, PointRecord],
    choice: ChoiceRecord | None = None,
    licence: str = UNSTATED,
    quantised: Path | None = None,
    overwrite: bool = False,
    tell: Tell = lambda _text: None,
) -> Path:
    """Write a bundle folder in one step and return its path.

    `network` carries the trained weights and the routing of `point`, which is one of `record`'s; `baselines` are
    measured in the same study and stand in the model card, as does what `choice` says. `licence` is that of the weights
    (see `parse_licence`). `quantised`: the folder of the network's quantised file under this routing, where it has one;
    what was measured of it is taken from `record`. Where there can be no ONNX file, `tell` gets a line, and the bundle
    is written without. `UserError` where `path` exists and is not to be replaced, or is no bundle. Whatever goes wrong,
    the old bundle stays.
    """
    check_target(path, overwrite=overwrite)
    assert getattr(network.config, "routing", None) == point.routing, "a bundle's metrics are those of its routing"
    assert point.quantised is None, "they are those of its weights, too"
    config = BundleConfig(
        model=network.config,
        task=record.training.task if record.training else "classic",
        study=record.study,
        record_id=record.record_id,
        network_id=record.network_id,
        picked_as=picked_as,
        exported_at=now(),
        environment=observe_environment(describe_kernels()),
        licence=licence,
    )
    is_calibrated = point.routing is not None and point.routing.policy in _CALIBRATED
    metrics = BundleMetrics(
        point=point,
        quantised=None if quantised is None else _find_quantised(record, point.routing),
        training=record.training,
        training_result=record.training_result,
        converged=record.training is not None and record.training.is_full_recipe,
        data=record.data,
        measured_in=record.environment,
        baselines=baselines,
        compression=record.compression,
        choice=choice,
        gains=record.calibration if is_calibrated else None,
    )
    return _write(path, config, metrics, network, save(network.state_dict()), quantised, tell)


def _find_quantised(record: TrialRecord, routing: RoutingConfig | None) -> PointRecord | None:
    """Return the point of a record's quantised file under a routing; None of records from before such points."""
    return next((one for one in record.points if one.quantised is not None and one.routing == routing), None)


def write_imported_bundle(
    path: Path,
    network: SRNetwork,
    weights: Path,
    entry: str,
    *,
    licence: str = UNSTATED,
    overwrite: bool = False,
    tell: Tell = lambda _text: None,
) -> Path:
    """Write a bundle of weights that were trained elsewhere, and measured nowhere, in one step; return its path.

    `network` carries what was read as `entry` of the file `weights`. Otherwise as `write_bundle`.
    """
    check_target(path, overwrite=overwrite)
    environment, content = observe_environment(describe_kernels()), save(network.state_dict())
    config = BundleConfig(
        model=network.config,
        study=weights.name,
        record_id=entry,
        network_id=hashlib.sha256(content).hexdigest()[:12],
        picked_as=IMPORTED,
        exported_at=now(),
        environment=environment,
        licence=licence,
    )
    metrics = BundleMetrics(
        point=None,
        training=None,
        training_result=None,
        converged=False,
        data=None,
        measured_in=environment,
        baselines={},
    )
    return _write(path, config, metrics, network, content, None, tell)


def write_calibrated_bundle(
    path: Path,
    source: Path,
    calibration: CalibrationRecord,
    *,
    evaluation: EvaluationRecord | None = None,
    overwrite: bool = False,
    tell: Tell = lambda _text: None,
) -> Path:
    """Write a copy of the bundle `source` under a calibrated routing, in one step, and return its path.

    What was measured under the routing before is kept as such; `evaluation` is that of the calibrated one. A quantised
    file stays behind: it has the routing before. `path` may be `source` itself. `UserError` and `tell` as of
    `write_bundle`, and where `source` is damaged.
    """
    check_target(path, overwrite=overwrite)
    config, metrics = read_bundle_config(source), read_bundle_metrics(source)
    assert isinstance(config.model, CAMixerSRConfig), "only networks that route are calibrated"
    point = metrics.point if metrics.calibration is None else metrics.calibration.point_before
    changes = {
        "model": config.model.with_routing(calibration.routing),
        "exported_at": now(),
        "environment": observe_environment(describe_kernels()),
        "licence": config.licence or UNSTATED,
    }
    known = BundleCalibration(record=calibration, evaluation=evaluation, point_before=point)
    metrics = metrics.model_copy(update={"point": None, "quantised": None, "calibration": known, "gains": None})
    config, content = config.model_copy(update=changes), (source / _WEIGHTS).read_bytes()
    network = build_model(config.model)
    network.load_state_dict(load_network(source).state_dict())
    return _write(path, config, metrics, network.eval(), content, None, tell)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise `UserError` where a bundle must not be written: over another without `overwrite`, over anything else."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; give --overwrite to replace it, or another --out")
    require_folder_place("--out", path.parent)
    if path.exists() and not is_bundle(path):
        raise UserError(f"{path} is no bundle, so it is not replaced; give another --out")
    if others := find_others(path):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{path} holds {others[0]}{more}, not of the bundle, so it is not replaced; move it, or give another --out"
        )


def find_others(path: Path) -> list[str]:
    """Return the names of files in a bundle's folder that are not the bundle's, hidden ones aside."""
    names = (file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file())
    return [name for name in names if name not in (*BUNDLE_FILES, MANIFEST) and not Path(name).name.startswith(".")]


def _write(
    path: Path,
    config: BundleConfig,
    metrics: BundleMetrics,
    network: SRNetwork,
    weights: bytes,
    quantised: Path | None,
    tell: Tell,
) -> Path:
    """Write the files beside `path` and move them into its place; whatever goes wrong, the old bundle stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary, retired = workplace / "new", workplace / "old"
    optional = ("calibration", "compression", "choice", "quantised", "gains")
    left_out = {name for name in optional if getattr(metrics, name) is None}
    try:
        temporary.mkdir()
        (temporary / _CONFIG).write_text(config.model_dump_json(indent=1), encoding="utf-8")
        (temporary / _WEIGHTS).write_bytes(weights)
        (temporary / _METRICS).write_text(metrics.model_dump_json(indent=1, exclude=left_out), encoding="utf-8")
        _add_onnx(temporary, network, tell)
        if quantised is not None:
            shutil.copyfile(quantised / "network.onnx", temporary / QUANTISED)
            shutil.copyfile(quantised / "quantisation.json", temporary / QUANTISATION)
        (temporary / LICENCE).write_text(f"{describe_licence(config, metrics)}\n", encoding="utf-8")
        names = [file.name for file in temporary.iterdir()]
        (temporary / CARD).write_text(write_card(config, metrics, names), encoding="utf-8")
        write_manifest(temporary)
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


def _add_onnx(folder: Path, network: SRNetwork, tell: Tell) -> None:
    """Write the ONNX file of a network, its parity and its example; where there can be none, tell so."""
    try:
        content = build_onnx(network).SerializeToString()
        parity = check_parity(network, content)
    except (UserError, TrialFailedError) as error:
        tell(f"the bundle has no {ONNX}: {error}")
        return
    (folder / ONNX).write_bytes(content)
    (folder / PARITY).write_text(parity.model_dump_json(indent=1), encoding="utf-8")
    (folder / EXAMPLE).write_text(write_example(network.scale), encoding="utf-8")


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


def onnx_file(path: Path) -> Path:
    """Return a bundle's ONNX file; `UserError` where it has none."""
    file = path / ONNX
    if not file.is_file():
        raise UserError(
            f"{path} has no {ONNX}: expected a bundle exported where the extra `onnx` is installed (pip install "
            "'harness[onnx]'), or --runtime eager"
        )
    return file


def bundle_identity(path: Path) -> str:
    """Return what tells a bundle's network from others: 12 hex digits over its config, routing too, and its weights.

    The same wherever the bundle lies and whatever was measured of it. `UserError` where it cannot be read.
    """
    model = read_bundle_config(path).model
    try:
        weights = (path / _WEIGHTS).read_bytes()
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise UserError(f"{path / _WEIGHTS} {reason}; `harness export` makes the bundle again") from None
    return hashlib.sha256(model.canonical_json().encode() + b"\n" + weights).hexdigest()[:12]


def read_bundle_metrics(path: Path) -> BundleMetrics:
    """Read what was measured of a bundle; `UserError` where it cannot be read."""
    file = path / _METRICS
    try:
        return BundleMetrics.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; `harness export` makes the bundle again") from None
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

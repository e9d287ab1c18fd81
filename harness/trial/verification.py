"""A bundle, checked again on the machine at hand: files, network, scores, latency, licence.

Checks go on after one that fails, as far as they can. What cannot be checked here is `not checked`, with the reason;
latency, which another machine or a busy one changes, is laid beside the recorded one and never fails.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError

from harness.core.conditions import Conditions, parse_conditions
from harness.core.errors import TrialFailedError, UserError, describe_error, describe_validation_error
from harness.core.quantisation import QuantisationRecord
from harness.core.records import EvaluationRecord, LatencyRecord, PointRecord
from harness.data import PairedDataset, open_dataset
from harness.data.catalogue import CATALOGUE
from harness.export import load_network, read_bundle_config, read_bundle_metrics
from harness.export.bundle import BUNDLE_FILES, CARD, LICENCE, ONNX, PARITY, QUANTISATION, QUANTISED
from harness.export.documents import BundleConfig, BundleMetrics, ParityRecord
from harness.export.manifest import MANIFEST, ManifestFindings, check_manifest
from harness.export.parity import MAX_ABS, check_parity
from harness.metrics import get_protocol
from harness.models import SRNetwork, build_seeded, preset_config
from harness.models.onnx_export.graph import import_onnx
from harness.profiling import (
    Effort,
    TargetNetwork,
    TargetSpec,
    load_target,
    measure_in_processes,
    measure_latencies,
)
from harness.profiling.onnx_session import import_onnxruntime
from harness.trial.calibration import routing_by
from harness.trial.evaluation import evaluate
from harness.trial.run import representative_input

PSNR_TOLERANCE_DB = 0.01  # of a mean: another processor rounds otherwise, and a window may be routed otherwise
SSIM_TOLERANCE = 0.0005
_LIMITS = re.compile(r"≥(\d+) runs, ≥([\d.e+]+) s, ≤([\d.e+]+) s")
_REFERENCE = "swinir-light"

Status = Literal["ok", "failed", "not checked"]
Progress = Callable[[str, int, int], None]  # (what is done, how many of it, of how many)


class Check(NamedTuple):
    """One check: what was found, in words, and the numbers behind it."""

    name: str
    status: Status
    detail: str
    values: dict[str, Any] = {}


class Verification(NamedTuple):
    """All checks of a bundle, in order, and the files in its folder that are not the bundle's."""

    checks: tuple[Check, ...]
    unknown_files: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)


class Surroundings(NamedTuple):
    """What a bundle is checked with: where its validation images may be, and how much is to be measured.

    `data`: a folder or dataset in place of the validation images that the bundle names; `images`: how many of them are
    restored again, None for all.
    """

    data: str | None = None
    data_dir: Path | None = None
    cache_dir: Path = Path("results/cache")
    images: int | None = None
    measure_latency: bool = True


def verify_bundle(
    path: Path, surroundings: Surroundings, progress: Progress = lambda _what, _done, _total: None
) -> Verification:
    """Check everything in a bundle again; see `Surroundings` for with what.

    Raises `UserError` where there is no bundle at all, and for a `data` that cannot be opened.
    """
    if not any((path / name).is_file() for name in ("config.json", MANIFEST)):
        raise UserError(f"{path} is no bundle: config.json not found; `harness export` makes one")
    config, config_check = _read("config", "config.json", lambda: read_bundle_config(path))
    metrics, metrics_check = _read("metrics", "metrics.json", lambda: read_bundle_metrics(path))
    manifest = check_manifest(path, BUNDLE_FILES)
    checks = [_check_files(path, manifest, config), config_check]
    network = None
    if config is None:
        checks.append(Check("weights", "not checked", "there is no config that they could fit"))
    else:
        network, weights_check = _load(path, config, None if metrics is None else metrics.point)
        checks.append(weights_check)
    checks.append(metrics_check)
    checks.append(_check_onnx(path, network))
    if config is not None and metrics is not None:
        checks.append(_check_calibration(config, metrics))
    checks += _check_quantised(path, config, metrics)
    if network is not None and config is not None and metrics is not None:
        evaluation = _recorded_evaluation(metrics)
        dataset, reason = _open_images(surroundings, network.scale, metrics, evaluation)
        checks.append(_check_scores(network, evaluation, dataset, reason, surroundings.images, progress))
        checks += _check_latencies(network, metrics, dataset, surroundings, progress)
    checks += [_check_licence(path, config), _check_card(path)]
    return Verification(tuple(checks), () if manifest is None else manifest.unknown)


def _read(name: str, file: str, read: Callable[[], Any]) -> tuple[Any, Check]:
    try:
        found = read()
    except UserError as error:
        return None, Check(name, "failed", str(error))
    return found, Check(name, "ok", f"{file} can be read")


def _check_files(path: Path, manifest: ManifestFindings | None, config: BundleConfig | None) -> Check:
    name = "checksums"
    if manifest is None:
        if config is not None and config.licence is not None:  # which bundles have as long as manifests
            return Check(name, "failed", f"{MANIFEST} is missing")
        return Check(name, "not checked", f"no {MANIFEST}: the bundle is older than manifests")
    if manifest.is_whole:
        return Check(name, "ok", f"{len(manifest.listed)} files are as they were written")
    parts = [f"changed: {', '.join(manifest.changed)}"] if manifest.changed else []
    parts += [f"missing: {', '.join(manifest.missing)}"] if manifest.missing else []
    parts += [manifest.problem] if manifest.problem else []
    values = {"changed": list(manifest.changed), "missing": list(manifest.missing)}
    return Check(name, "failed", "; ".join(parts), values)


def _load(path: Path, config: BundleConfig, point: PointRecord | None) -> tuple[SRNetwork | None, Check]:
    try:
        network = load_network(path)
        photograph = torch.rand(1, 3, 17, 23, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            output_BCHW = network(photograph)
    except (UserError, TrialFailedError) as error:
        return None, Check("weights", "failed", str(error))
    if output_BCHW.shape != (1, 3, 17 * network.scale, 23 * network.scale) or not torch.isfinite(output_BCHW).all():
        return None, Check("weights", "failed", f"{config.model.label()} gives no image of ×{network.scale}")
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    if point is not None and point.params != count:
        return None, Check(
            "weights", "failed", f"they are {count:,} parameters, and metrics.json says {point.params:,}"
        )
    return network, Check("weights", "ok", f"{config.model.label()} ×{network.scale} rebuilt, {count:,} parameters")


def _check_onnx(path: Path, network: SRNetwork | None) -> Check:
    """Compare the ONNX file with the network on photographs, as it was done when the bundle was written."""
    name, file = "ONNX parity", path / ONNX
    if not file.is_file():
        if (path / PARITY).is_file():
            return Check(name, "failed", f"{ONNX} is missing, of which {PARITY} is")
        return Check(name, "not checked", "no ONNX file")
    if network is None:
        return Check(name, "not checked", "there is no network to compare it with")
    try:
        import_onnx()
        import_onnxruntime()
    except UserError as error:
        return Check(name, "not checked", str(error))
    try:
        recorded = ParityRecord.model_validate_json((path / PARITY).read_bytes())
        if hashlib.sha256(file.read_bytes()).hexdigest() != recorded.sha256:
            return Check(name, "failed", f"{PARITY} is of another file than {ONNX}")
        if not recorded.max_abs <= MAX_ABS:
            return Check(name, "failed", f"{PARITY} tells of {recorded.max_abs:.2g}, beyond {MAX_ABS:g}")
        found = check_parity(network, file)
    except OSError as error:
        return Check(name, "failed", f"{error.filename}: {error.strerror}")
    except ValidationError as error:
        return Check(name, "failed", f"{PARITY}: {describe_validation_error(error)}")
    except UserError as error:
        return Check(name, "failed", str(error))
    except Exception as error:  # what a damaged file makes a runtime raise
        return Check(name, "failed", f"{ONNX} cannot be run: {describe_error(error)}")
    return Check(
        name,
        "ok",
        f"at most {found.max_abs:.2g} from the network and {found.psnr_db_difference:.2g} dB, recorded "
        f"{recorded.max_abs:.2g} and {recorded.psnr_db_difference:.2g}: {len(found.images)} sizes of photographs, "
        f"{found.runtime} {found.runtime_version}",
        {"now": found.model_dump(mode="json"), "recorded": recorded.model_dump(mode="json")},
    )


def _check_calibration(config: BundleConfig, metrics: BundleMetrics) -> Check:
    name, routing = "calibration", getattr(config.model, "routing", None)
    if metrics.calibration is not None:
        made = metrics.calibration.record.routing
    elif metrics.gains is not None and routing is not None and routing.policy in ("detail", "schedule"):
        per_block = routing.schedule or ()
        share = routing.gamma if routing.policy == "detail" else sum(per_block) / len(per_block)
        made = routing_by(metrics.gains, routing.policy, share)
    elif metrics.gains is None:
        return Check(name, "not checked", "the routing was not calibrated")
    else:
        made = None
    if made == routing:
        assert routing is not None
        return Check(name, "ok", f"it is that of the routing, {routing.label()}")
    return Check(name, "failed", "the recorded calibration is of another routing than config.json's")


def _check_quantised(path: Path, config: BundleConfig | None, metrics: BundleMetrics | None) -> list[Check]:
    """Check a quantised file against its record, and that it runs; nothing where there is none."""
    name = "quantised file"
    if not (path / QUANTISED).is_file() and not (path / QUANTISATION).is_file():
        return []
    try:
        record = QuantisationRecord.model_validate_json((path / QUANTISATION).read_bytes())
        scale = record.model.scale
        if hashlib.sha256((path / QUANTISED).read_bytes()).hexdigest() != record.sha256:
            return [Check(name, "failed", f"{QUANTISATION} is of another file than {QUANTISED}")]
        if config is not None and config.model != record.model:
            what = f"{record.model.label()} ×{scale}"
            return [Check(name, "failed", f"{QUANTISED} is of another network or routing than config.json's: {what}")]
        told = None if metrics is None or metrics.quantised is None else metrics.quantised.quantised
        if told is not None and told.sha256 != record.sha256:
            return [Check(name, "failed", f"metrics.json tells of another file than {QUANTISED}")]
        spec = TargetSpec(kind="onnx", source=str(path / QUANTISED), path=str((path / QUANTISED).resolve()))
        restorer = TargetNetwork(load_target(spec))  # which runs it at the sizes that it takes
        if restorer.scale != scale:
            return [Check(name, "failed", f"{QUANTISED} makes images of ×{restorer.scale}, expected ×{scale}")]
        side = restorer.tile or 64
        is_finite = bool(torch.isfinite(restorer(torch.full((1, 3, side, side), 0.5))).all())
    except ValidationError as error:
        return [Check(name, "failed", f"{QUANTISATION}: {describe_validation_error(error)}")]
    except UserError as error:
        missing = "is not installed" in str(error)
        return [Check(name, "not checked" if missing else "failed", str(error))]
    except OSError as error:
        return [Check(name, "failed", f"{error.filename}: {error.strerror}")]
    if not is_finite:
        return [Check(name, "failed", f"{QUANTISED} gives no image: its values are not finite")]
    needs = restorer.target.contract.needs()
    return [Check(name, "ok", f"{QUANTISED} is that of {QUANTISATION}, and runs in onnxruntime, at {needs}")]


def _recorded_evaluation(metrics: BundleMetrics) -> EvaluationRecord | None:
    """Return the scores that were measured under the bundle's own routing."""
    if metrics.calibration is not None:
        return metrics.calibration.evaluation
    return None if metrics.point is None else metrics.point.evaluation


def _open_images(
    surroundings: Surroundings, scale: int, metrics: BundleMetrics, evaluation: EvaluationRecord | None
) -> tuple[PairedDataset | None, str]:
    """Return the validation images, or None and why they are not at hand."""
    if evaluation is None:
        return None, "no scores are recorded"
    named = None if metrics.data is None else metrics.data.validation
    if metrics.calibration is not None:  # which was evaluated on images of its own
        named = evaluation.dataset if evaluation.dataset in ("demo", *CATALOGUE) else None
    source = surroundings.data or named
    if source is None:
        return None, f"where the images of `{evaluation.dataset}` are is not recorded; give --data"
    kept = None if metrics.data is None or metrics.data.data_dir is None else Path(metrics.data.data_dir)
    try:
        dataset = open_dataset(
            source,
            scale=scale,
            split="validation",
            data_dir=surroundings.data_dir or kept,
            cache_dir=surroundings.cache_dir,
        )
    except UserError as error:
        if surroundings.data is not None:
            raise
        return None, f"the validation images are not at hand, give --data: {error}"
    if dataset.content_hash != evaluation.dataset_hash:
        return None, f"the images of `{source}` here are not those that were scored"
    return dataset, ""


def _check_scores(
    network: SRNetwork,
    recorded: EvaluationRecord | None,
    dataset: PairedDataset | None,
    reason: str,
    limit: int | None,
    progress: Progress,
) -> Check:
    name = "PSNR"
    if recorded is None or dataset is None:
        return Check(name, "not checked", reason)
    if limit == 0:
        return Check(name, "not checked", "no images are to be restored")
    try:
        found = evaluate(
            network,
            dataset,
            get_protocol(recorded.protocol),
            tile=recorded.tile,
            overlap=recorded.overlap,
            wrap=recorded.wrap,
            limit=limit,
            progress=lambda done, total: progress("restoring images", done, total),
        )
    except (TrialFailedError, UserError) as error:
        return Check(name, "failed", str(error))
    count = len(found.images)
    then = recorded.images[:count]
    psnr_db, ssim = (
        (sum(getattr(image, key) for image in then) / count, getattr(found, key)) for key in ("psnr_db", "ssim")
    )
    worst_db = max(abs(one.psnr_db - other.psnr_db) for one, other in zip(found.images, then, strict=True))
    is_same = abs(psnr_db[0] - psnr_db[1]) <= PSNR_TOLERANCE_DB and abs(ssim[0] - ssim[1]) <= SSIM_TOLERANCE
    of = "" if count == len(recorded.images) else f" of {len(recorded.images)}"
    return Check(
        name,
        "ok" if is_same else "failed",
        f"{psnr_db[1]:.3f} dB now, {psnr_db[0]:.3f} recorded; SSIM {ssim[1]:.4f} and {ssim[0]:.4f}: {count}{of} images "
        f"of {recorded.dataset}, protocol {recorded.protocol}, at most {worst_db:.2g} dB apart",
        {"now_db": psnr_db[1], "recorded_db": psnr_db[0], "images": count, "largest_difference_db": worst_db},
    )


def _check_latencies(
    network: SRNetwork,
    metrics: BundleMetrics,
    dataset: PairedDataset | None,
    surroundings: Surroundings,
    progress: Progress,
) -> list[Check]:
    """Measure every recorded latency again; of a routing that was calibrated since, none is recorded."""
    recorded = () if metrics.point is None else metrics.point.latency
    if not recorded:
        return [Check("latency", "not checked", "none is recorded")]
    if not surroundings.measure_latency:
        return [Check("latency", "not checked", "it is not to be measured")]
    if dataset is None:
        dataset = open_dataset(
            "demo", scale=network.scale, split="validation", data_dir=None, cache_dir=surroundings.cache_dir
        )
    checks = []
    for done, entry in enumerate(recorded):
        progress("measuring latency", done, len(recorded))
        name = f"latency {entry.conditions}"
        try:
            checks.append(_lay_beside(name, entry, _measure_again(network, entry, dataset)))
        except (UserError, RuntimeError) as error:
            checks.append(Check(name, "not checked", f"cannot be measured here: {' '.join(str(error).split())}"))
    return checks


def _measure_again(network: SRNetwork, recorded: LatencyRecord, dataset: PairedDataset) -> LatencyRecord:
    limits = _LIMITS.search(recorded.protocol)
    effort = Effort(int(limits[1]), float(limits[2]), float(limits[3])) if limits else Effort()
    conditions: Conditions = parse_conditions(recorded.short_conditions)
    height, width = recorded.input_size
    input_BCHW = representative_input(dataset, (height, width)).expand(recorded.batch_size, -1, -1, -1)
    reference = None
    if recorded.reference == _REFERENCE:
        reference = build_seeded(preset_config(_REFERENCE, network.scale), seed=0).eval()
    name = None if reference is None else _REFERENCE
    if recorded.process == "shared" and conditions.runtime == "eager":
        return measure_latencies(
            {"network": network},
            input_BCHW,
            device=conditions.device,
            precision=conditions.precision,
            reference=reference,
            reference_name=name,
            min_repeats=effort.min_repeats,
            min_seconds=effort.min_seconds,
        )["network"]
    return measure_in_processes(
        {"network": network},
        input_BCHW[None],
        conditions,
        effort,
        reference=reference,
        reference_name=name,
        images=(dataset[0].name,),
    )["network"]


def _lay_beside(name: str, recorded: LatencyRecord, found: LatencyRecord) -> Check:
    parts = [f"{found.median:.2f} ms now, {recorded.median:.2f} recorded"]
    if found.ratio is not None and recorded.ratio is not None:
        parts.append(f"/ {found.reference} {found.ratio:.3f} now, {recorded.ratio:.3f} recorded")
    if recorded.device_name != found.device_name:
        parts.append(f"another device: recorded on {recorded.device_name}, here {found.device_name}")
    elif recorded.fingerprint is None or found.fingerprint is None:
        parts.append(f"on {found.device_name} as then")
    elif recorded.fingerprint.digest == found.fingerprint.digest:
        parts.append("the same device, versions and settings")
    else:
        then, now = recorded.fingerprint.model_dump(), found.fingerprint.model_dump()
        differing = [key for key in then if then[key] != now[key]]
        parts.append(f"on {found.device_name} as then, but for {', '.join(differing)}")
    if recorded.protocol_name != found.protocol_name:
        parts.append(f"protocol {found.protocol_name}, recorded by {recorded.protocol_name}")
    parts += ["noisy"] if found.is_noisy else []
    values = {
        key: {part: getattr(one, part) for part in ("median", "interval", "ratio", "ratio_interval", "is_noisy")}
        for key, one in (("now", found), ("recorded", recorded))
    }
    return Check(name, "ok", "; ".join(parts), values)


def _check_licence(path: Path, config: BundleConfig | None) -> Check:
    stated = None if config is None else config.licence
    file = path / LICENCE
    if stated is None and not file.is_file():
        return Check("licence", "not checked", "no licence: the bundle is older than licences")
    if not file.is_file():
        return Check("licence", "failed", f"{LICENCE} is missing")
    if stated is None or stated not in file.read_text(encoding="utf-8", errors="replace"):
        return Check("licence", "failed", f"{LICENCE} does not say {stated}, as config.json does")
    return Check("licence", "ok", stated)


def _check_card(path: Path) -> Check:
    file = path / CARD
    if not file.is_file() or not file.stat().st_size:
        return Check("model card", "failed", f"{CARD} is missing")
    return Check("model card", "ok", CARD)

"""A trained network to a quantised ONNX file, judged and timed in the runtime that is to run it."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from harness.compression import (
    calibrate_ranges,
    choose_layers,
    import_quantiser,
    prepare_graph,
    quantisable_layers,
    quantise_graph,
    round_graph,
)
from harness.core.conditions import Conditions
from harness.core.configs import INT8, STATIC, Precision, QuantisationConfig
from harness.core.device_lock import computing
from harness.core.environment import now, observe_environment
from harness.core.errors import TrialFailedError, UserError
from harness.core.quantisation import ChoiceRecord, QuantisationRecord
from harness.core.records import EvaluationRecord, LatencyRecord, PointRecord, QuantisedFile, TrialRecord
from harness.core.study_folder import StudyFolder
from harness.data import ImagePair, PairedDataset, to_tensor
from harness.export import build_onnx
from harness.metrics import Protocol, get_protocol
from harness.models import SRNetwork, describe_kernels
from harness.profiling import (
    DEFAULT,
    TILE_OVERLAP,
    Device,
    Effort,
    Target,
    TargetNetwork,
    TargetSpec,
    check_runtime,
    fit_to,
    load_target,
    measure_file_memory,
    measure_in_processes,
    measure_latencies,
    parse_device,
    run_in,
)
from harness.profiling.fingerprint import observe_device
from harness.profiling.runtimes import runtime_version
from harness.profiling.targets import InputContract
from harness.trial.calibration import choose_images
from harness.trial.evaluation import evaluate

NETWORK_FILE, RECORD_FILE = "network.onnx", "quantisation.json"
_JUDGED_BY = "light"  # the protocol that layers are chosen by

Progress = Callable[[str, int], None]  # (what is done, how often it was)


def check_quantisation(config: QuantisationConfig, device: Device) -> None:
    """Raise `UserError` unless all packages are installed and the runtime runs on the device."""
    if device.kind != "cpu":
        raise UserError(f"--device {device.text}: quantised files are run on the CPU; expected cpu or cpu:THREADS")
    import_quantiser()
    check_runtime("onnxruntime", device, "fp32")  # which exports, folds and calibrates, whatever then runs the file
    check_runtime(config.runtime, device, config.precision)


def check_images(config: QuantisationConfig, images: PairedDataset, *, setting: str, source: str) -> None:
    """Raise `UserError` where a stage of quantisation could not run: `setting` asks for it, `source` has the images."""
    check_quantisation(config, parse_device("cpu:1"))
    try:
        divide_images(images, config)
    except UserError as error:
        raise UserError(
            f"{setting}: {str(error).partition(';')[0]}; give more {source}, fewer `images` and `held_out`, or a "
            "smaller `tile`"
        ) from None


def divide_images(
    dataset: PairedDataset, config: QuantisationConfig
) -> tuple[tuple[ImagePair, ...], tuple[ImagePair, ...]]:
    """Return the images to calibrate on and those held out to judge layers by: centre crops, no image in both.

    Both are spread evenly over the images that a crop of `tile`² low-resolution pixels fits into; `UserError` where
    there are too few. What has no ranges to calibrate takes none.
    """
    calibrated = config.images if config.method in STATIC else 0
    total = calibrated + config.held_out
    remedy = "give more --calibration images, or fewer by --images and --held-out, or a smaller --tile"
    chosen = choose_images(dataset, total, config.tile, remedy=remedy)
    held_out = {position * total // config.held_out for position in range(config.held_out)}
    crops = [_crop(dataset[index], config.tile, dataset.scale) for index in chosen]
    return (
        tuple(crop for position, crop in enumerate(crops) if position not in held_out),
        tuple(crop for position, crop in enumerate(crops) if position in held_out),
    )


def _crop(pair: ImagePair, side: int, scale: int) -> ImagePair:
    top, left = ((length - side) // 2 for length in pair.lr_HWC.shape[:2])
    lr_HWC = pair.lr_HWC[top : top + side, left : left + side]
    hr_HWC = pair.hr_HWC[scale * top : scale * (top + side), scale * left : scale * (left + side)]
    return ImagePair(pair.name, hr_HWC, lr_HWC, pair.path)


def quantise(
    network: SRNetwork,
    calibration: PairedDataset,
    config: QuantisationConfig,
    folder: Path,
    *,
    weights: str = "",
    evaluation: PairedDataset | None = None,
    protocol: Protocol | None = None,
    device: str = "cpu:1",
    effort: Effort | None = DEFAULT,
    exported: Path | None = None,
    progress: Progress = lambda _what, _times: None,
) -> QuantisationRecord:
    """Write network.onnx and quantisation.json into `folder`, which is there, and return the record.

    `network` is in eval mode and has the routing that it is to have. The file takes one
    image of `config.tile`² at a time. Ranges are calibrated on images of `calibration`, layers are chosen by others of
    it (protocol `light`), and `evaluation` is for the last word alone: it must have no image of `calibration`. All of
    PSNR and latency is that of the runtime on `device` (`cpu:THREADS`). `effort`: of the latency, None for none.
    `exported`: a file of `build_onnx` of this very network for `config.tile`, where there is one already.
    Raises `UserError` for what can be mended: packages that are missing, too few images, a network that cannot be
    exported; `TrialFailedError` where the float network's output is not finite.
    """
    started = time.perf_counter()
    place = parse_device(device)
    check_quantisation(config, place)
    pairs, held_out_pairs = divide_images(calibration, config)
    held_out = PairedDataset(calibration.name, calibration.scale, held_out_pairs)
    threads = place.threads or 1
    target_file = folder / NETWORK_FILE
    with tempfile.TemporaryDirectory() as name:
        float_file, trial_file = Path(name) / "float.onnx", Path(name) / "trial.onnx"
        if exported is None:
            progress("exporting", 1)
            with computing(place.lock):
                model = build_onnx(network, size=(config.tile, config.tile), batch=1)
                float_file.write_bytes(model.SerializeToString())
        graph = prepare_graph(exported or float_file, threads=threads)
        quantise_graph(graph, float_file, "bf16")  # with its constants folded, as all others
        rounded = None
        if config.method in STATIC:
            ranges = calibrate_ranges(
                graph,
                [to_tensor(pair.lr_HWC).numpy() for pair in pairs],
                config.method,
                percentile=config.percentile,
                threads=threads,
                progress=lambda done, _total: progress("calibrating", done),
            )
            rounded = round_graph(graph, ranges)

        def score(file: Path, dataset: PairedDataset, rules: Protocol, precision: Precision) -> EvaluationRecord:
            return score_file(file, dataset, rules, config, device=device, precision=precision, scale=network.scale)

        def score_layers(layers: frozenset[str]) -> float:
            quantise_graph(graph, trial_file, config.method, layers=layers, rounded=rounded)
            judged.append(1)
            progress("judging layers", len(judged))
            try:
                return score(trial_file, held_out, rules, "fp32").psnr_db
            except TrialFailedError:  # an output that is not finite: these layers cannot be quantised together
                return float("-inf")

        judged: list[int] = []
        rules = get_protocol(_JUDGED_BY)
        psnr_db_float = score(float_file, held_out, rules, "fp32").psnr_db
        if config.method in INT8:
            choice = choose_layers(
                quantisable_layers(graph, config.method),
                score_layers,
                psnr_db_float,
                config.max_drop_db,
                routing=tuple(graph.routing),
            )
            quantise_graph(graph, target_file, config.method, layers=choice.quantised, rounded=rounded)
        else:
            quantise_graph(graph, target_file, config.method)
            psnr_db = score(target_file, held_out, rules, config.precision).psnr_db
            bound = config.max_drop_db
            choice = ChoiceRecord(
                quantised=tuple(graph.layers) if config.method == "fp16" else (),
                kept=(),
                routing=tuple(graph.routing),
                psnr_db_float=psnr_db_float,
                psnr_db=psnr_db,
                evaluations=2,
                is_met=bound is None or psnr_db_float - psnr_db <= bound,
            )
        before = after = None
        if evaluation is not None:
            progress("evaluating", 1)
            before = score(float_file, evaluation, protocol or rules, "fp32")
            after = score(target_file, evaluation, protocol or rules, config.precision)
        latency = None
        if effort is not None:
            progress("measuring latency", 1)
            latency = measure_against_float(
                target_file, float_file, held_out, config, device=device, effort=effort, scale=network.scale
            )
        record = QuantisationRecord(
            config=config,
            label=network.config.label(),
            model=network.config,
            weights=weights,
            choice=choice,
            calibration_dataset=calibration.name,
            calibration_hash=calibration.content_hash,
            calibration_images=tuple(pair.name for pair in pairs),
            held_out_images=tuple(pair.name for pair in held_out_pairs),
            before=before,
            after=after,
            latency=latency,
            file_bytes=target_file.stat().st_size,
            float_file_bytes=float_file.stat().st_size,
            sha256=hashlib.sha256(target_file.read_bytes()).hexdigest(),
            seconds=time.perf_counter() - started,
            environment=observe_environment(describe_kernels()),
            made_at=now(),
        )
    (folder / RECORD_FILE).write_text(record.model_dump_json(indent=1), encoding="utf-8")
    return record


def is_quantised(folder: Path) -> bool:
    """Whether a folder looks like a result of `write_quantised`."""
    return (folder / NETWORK_FILE).is_file() and (folder / RECORD_FILE).is_file()


def read_quantised(folder: Path) -> QuantisationRecord | None:
    """Return the record of a result that is whole: its file is the one that was measured; else None."""
    try:
        record = QuantisationRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
        content = (folder / NETWORK_FILE).read_bytes()
    except (OSError, ValidationError):
        return None
    return record if hashlib.sha256(content).hexdigest() == record.sha256 else None


def write_quantised(
    folder: Path, make: Callable[[Path], QuantisationRecord], *, overwrite: bool = False
) -> QuantisationRecord:
    """Have `make` write a result into a folder of its own and put that in `folder`'s place in one step.

    Whatever goes wrong, what was there before stays. `UserError` where a result is there that is not to be replaced.
    """
    if is_quantised(folder) and not overwrite:
        raise UserError(f"{folder} exists; give --overwrite to replace it, or another --out")
    with tempfile.TemporaryDirectory() as name:
        record = make(Path(name))
        folder.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        new, old = workplace / "new", workplace / "old"
        try:
            new.mkdir()
            for file in (NETWORK_FILE, RECORD_FILE):
                shutil.copy(Path(name) / file, new / file)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(workplace, ignore_errors=True)
    return record


def find_quantised(folder: StudyFolder, record: TrialRecord, point: PointRecord | None = None) -> Path | None:
    """Return the folder of the quantised file of a point, or of a record's first; None where it is none, or it is gone.

    Of a point in float, that of the file under the same routing.
    """
    files = [one for one in record.points if one.quantised is not None]
    if point is not None and point.quantised is None:
        point = next((one for one in files if one.routing == point.routing), point)
    if not files and point == record.points[0]:
        point = None  # of a version that quantised under the first routing alone
    file = folder.quantised_file(record, point)
    return file.parent if file is not None and is_quantised(file.parent) else None


def load_file(file: Path, tile: int, scale: int, threads: int) -> Target:
    """Load an ONNX file that `quantise` wrote; what it takes is known."""
    spec = TargetSpec(kind="onnx", source=str(file), path=str(file.resolve()), contract=_contract(tile, scale))
    return load_target(spec, threads=threads)


def score_file(
    file: Path,
    dataset: PairedDataset,
    rules: Protocol,
    config: QuantisationConfig,
    *,
    device: str,
    precision: Precision,
    scale: int,
) -> EvaluationRecord:
    """Score an ONNX file in its runtime, larger images in tiles."""
    place = parse_device(device)
    target = load_file(file, config.tile, scale, place.threads or 1)
    restorer = TargetNetwork(run_in(target, config.runtime, precision, place))
    return evaluate(restorer, dataset, rules, tile=config.tile, overlap=TILE_OVERLAP)


def measure_against_float(
    file: Path,
    float_file: Path,
    images: PairedDataset,
    config: QuantisationConfig,
    *,
    device: str,
    effort: Effort,
    scale: int,
) -> LatencyRecord:
    """Measure the latency of a quantised file interleaved with that of its float file, in the same runtime."""
    threads = parse_device(device).threads or 1
    quantised, reference = (load_file(each, config.tile, scale, threads) for each in (file, float_file))
    inputs_NBCHW = torch.stack([to_tensor(pair.lr_HWC) for pair in images])
    return measure_in_processes(
        {"quantised": quantised},
        inputs_NBCHW,
        Conditions(device, config.runtime, config.precision),
        effort,
        reference=reference,
        reference_name="the float file",
        reference_conditions=Conditions(device, config.runtime, "fp32"),
        images=[pair.name for pair in images],
    )["quantised"]


def describe_file(record: QuantisationRecord, file: str) -> QuantisedFile:
    """Return what a point says of the file that it is of, which lies at `file` in the network's folder."""
    config, choice = record.config, record.choice
    assert record.before is not None
    return QuantisedFile(
        method=config.method,
        runtime=config.runtime,
        precision=config.precision,
        tile=config.tile,
        file=file,
        sha256=record.sha256,
        layers=len(choice.quantised),
        kept=len(choice.kept),
        file_bytes=record.file_bytes,
        float_bytes=record.float_file_bytes,
        float_psnr_db=record.before.psnr_db,
        float_ratio=None if record.latency is None else record.latency.ratio,
    )


def measure_files(
    files: Mapping[str, Path],
    input_BCHW: Tensor,
    config: QuantisationConfig,
    under: Conditions,
    effort: Effort,
    *,
    scale: int,
    reference: SRNetwork | None,
    reference_name: str | None,
    images: Sequence[str] = (),
    in_process: bool = False,
) -> dict[str, LatencyRecord]:
    """Measure quantised files of one network in their runtime, interleaved with `reference` as a study measures it.

    `under` are conditions of the study, on a CPU: device, threads and input are theirs, and the reference runs under
    them, in its own runtime. So the ratio is of times to restore the same image on the same device. Inputs that are
    not as large as a file takes are restored in tiles. `in_process`: in this process, where the reference runs eagerly.
    """
    place = parse_device(under.device)
    own = Conditions(under.device, config.runtime, config.precision)
    targets = {name: load_file(file, config.tile, scale, place.threads or 1) for name, file in files.items()}
    if not in_process or under.runtime != "eager":
        return measure_in_processes(
            targets,
            input_BCHW[None],
            own,
            effort,
            reference=reference,
            reference_name=reference_name,
            reference_conditions=under._replace(input_size=None),
            images=images,
        )
    size = (input_BCHW.shape[-2], input_BCHW.shape[-1])
    records = measure_latencies(
        {name: fit_to(run_in(one, own.runtime, own.precision, place), size) for name, one in targets.items()},
        input_BCHW,
        device=under.device,
        precision=under.precision,
        reference=reference,
        reference_name=reference_name,
        min_repeats=effort.min_repeats,
        min_seconds=effort.min_seconds,
        max_seconds=effort.max_seconds,
    )
    facts = {
        "runtime": own.runtime,
        "precision": own.precision,
        "compared_under": under._replace(input_size=None).text,
        "fingerprint": observe_device(place, runtime_version(own.runtime)),
    }
    return {name: one.model_copy(update=facts) for name, one in records.items()}


def measure_memory(file: Path, input_BCHW: Tensor, config: QuantisationConfig, device: str, scale: int) -> int:
    """Return the bytes that a pass of a quantised file needs in its runtime, in a fresh process on a CPU."""
    threads = parse_device(device).threads or 1
    conditions = Conditions(device, config.runtime, config.precision)
    return measure_file_memory(load_file(file, config.tile, scale, threads), input_BCHW, conditions)


def _contract(tile: int, scale: int) -> InputContract:
    return InputContract(scale=scale, fixed_height=tile, fixed_width=tile, works_at=(tile, tile))

"""A trained network to a quantised ONNX file, judged and timed in the runtime that is to run it."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

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
from harness.core.records import EvaluationRecord, LatencyRecord, TrialRecord
from harness.core.study_folder import StudyFolder
from harness.data import ImagePair, PairedDataset, to_tensor
from harness.export import build_onnx
from harness.metrics import Protocol, get_protocol
from harness.models import SRNetwork, describe_kernels
from harness.profiling import (
    DEFAULT,
    Device,
    Effort,
    Target,
    TargetNetwork,
    TargetSpec,
    check_runtime,
    load_target,
    measure_in_processes,
    parse_device,
    run_in,
)
from harness.profiling.targets import InputContract
from harness.trial.calibration import choose_images
from harness.trial.evaluation import evaluate

NETWORK_FILE, RECORD_FILE = "network.onnx", "quantisation.json"
TILE_OVERLAP = 4  # low-resolution pixels, as in the protocol `large`
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


def find_quantised(folder: StudyFolder, record: TrialRecord) -> Path | None:
    """Return the folder of a trial's quantised network; None where it has none, or it is gone."""
    stages = () if record.compression is None else record.compression.stages
    files = [folder.network_dir(record.network_id) / stage.file for stage in stages if stage.file is not None]
    return next((file.parent for file in reversed(files) if is_quantised(file.parent)), None)


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
        reference_precision="fp32",
        images=[pair.name for pair in images],
    )["quantised"]


def _contract(tile: int, scale: int) -> InputContract:
    return InputContract(scale=scale, fixed_height=tile, fixed_width=tile, works_at=(tile, tile))

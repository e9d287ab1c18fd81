"""`harness quantise`: a trained network as an ONNX file of 8-bit integers or 16-bit floats."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options
from harness.cli.output import (
    command,
    console,
    counting_up,
    format_interval,
    format_number,
    messages,
    print_json,
    print_table,
)
from harness.core.errors import UserError

if TYPE_CHECKING:
    from harness.core.quantisation import QuantisationRecord

_MOST_LAYERS = 12  # that are named


class MethodName(StrEnum):
    """How a network is quantised."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    DYNAMIC = "dynamic"
    FP16 = "fp16"
    BF16 = "bf16"


class RuntimeName(StrEnum):
    """What runs ONNX files."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


def quantise(
    model: options.Model,
    calibration: Annotated[
        str,
        typer.Option(
            help="A folder of images, or a dataset's name, to calibrate on and to judge layers by: training images."
        ),
    ],
    evaluate: Annotated[
        str | None, typer.Option(help="Images to score the result on; none of them may be in --calibration.")
    ] = None,
    method: Annotated[
        MethodName,
        typer.Option(
            help="int8, ranges of activations by minmax, percentile or entropy on --calibration, or found in each pass "
            "(dynamic); fp16: 16-bit floats; bf16: bfloat16 by --runtime openvino."
        ),
    ] = MethodName.MINMAX,
    runtime: Annotated[
        RuntimeName | None,
        typer.Option(help="What runs the result and scores it.  [default: onnxruntime; openvino for bf16]"),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(min=0, help="Layers stay in float until PSNR falls by no more dB; inf: quantise all of them."),
    ] = 0.1,
    weights: options.Weights = None,
    scale: options.ScaleOption = None,
    gamma: options.Gamma = None,
    routing: options.Routing = None,
    tile: Annotated[
        int, typer.Option(min=8, help="Side of the images that the file takes, in low-resolution pixels.")
    ] = 64,
    images: Annotated[int, typer.Option(min=1, help="How many images to calibrate on.")] = 16,
    held_out: Annotated[int, typer.Option(min=1, help="How many others of --calibration to judge layers by.")] = 8,
    percentile: Annotated[
        float, typer.Option(help="Of --method percentile: how much of an activation its range holds, in percent.")
    ] = 99.999,
    protocol: Annotated[str, typer.Option(help=f"How --evaluate scores: {options.PROTOCOL_NAMES}.")] = "light",
    device: Annotated[str, typer.Option(help="cpu or cpu:THREADS.")] = "cpu",
    latency: Annotated[bool, typer.Option(help="Measure latency beside the float file too.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="At least 10 runs and 3 s rather than 15 and 10 s.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The result's folder.  [default: quantised/MODEL-METHOD in --results]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    data_dir: options.DataDir = None,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Quantise a trained network for onnxruntime or OpenVINO, and measure there what it costs and gains.

    Layers that decide where attention goes stay in float, and so do as many others as --max-drop asks for: each part of
    the network is quantised alone and judged by images that are neither calibrated nor evaluated on. The folder gets
    network.onnx, which `profile` and `evaluate` take, and quantisation.json.
    """
    from harness.cli.latency import read_effort
    from harness.cli.target import resolve_network
    from harness.core.configs import QuantisationConfig, parse_config
    from harness.core.errors import TrialFailedError
    from harness.data import PairedDataset, open_dataset, refuse_overlap
    from harness.data.overlap import drop_repeated
    from harness.metrics import get_protocol
    from harness.profiling import chosen_threads, parse_device
    from harness.trial.quantisation import check_quantisation, divide_images, write_quantised
    from harness.trial.quantisation import quantise as run_quantisation

    settings = {
        "method": method.value,
        "runtime": (runtime or (RuntimeName.OPENVINO if method == MethodName.BF16 else RuntimeName.ONNXRUNTIME)).value,
        "tile": tile,
        "images": images,
        "held_out": held_out,
        "max_drop_db": None if max_drop == float("inf") else max_drop,
        "percentile": percentile,
    }
    config = parse_config(QuantisationConfig, settings, "harness quantise")
    place = parse_device(device)
    check_quantisation(config, place)
    rules = get_protocol(protocol)
    if rules.spherical:
        raise UserError(f"--protocol {protocol} is for panoramas, which tiles cut; expected one for plain images")
    folder = out or results / "quantised" / f"{Path(model).name.removesuffix('.yaml')}-{method.value}"
    check_folder(folder, overwrite=overwrite)
    network, origin = resolve_network(model, scale, gamma, routing, weights)
    if origin == "untrained":
        raise UserError(
            f"{model} is untrained, and quantisation is judged by what training has made of it; give --weights"
        )

    def open_source(source: str, split: str) -> PairedDataset:
        return open_dataset(
            source,
            scale=network.scale,
            split="train" if split == "train" else "validation",
            data_dir=data_dir,
            cache_dir=results / "cache",
        )

    source = open_source(calibration, "train")
    pairs, _ = drop_repeated(source)
    tuning = PairedDataset(source.name, source.scale, pairs)
    scored = None if evaluate is None else open_source(evaluate, "validation")
    if scored is not None:
        refuse_overlap(tuning, scored, uses=("calibration", "evaluation"))
    divide_images(tuning, config)  # whether there are enough shows before the work is done
    try:
        with chosen_threads(place.threads), counting_up() as progress:
            record = write_quantised(
                folder,
                lambda made: run_quantisation(
                    network,
                    tuning,
                    config,
                    made,
                    weights=origin,
                    evaluation=scored,
                    protocol=rules,
                    device=place.text,
                    effort=read_effort(quick, None, None) if latency else None,
                    progress=progress,
                ),
                overwrite=overwrite,
            )
    except TrialFailedError as error:
        raise UserError(f"{model} with weights {origin}: {error}") from None
    if json:
        print_json({**record.model_dump(mode="json"), "drop_db": record.drop_db, "folder": str(folder)})
        return
    _print(record, folder)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise `UserError` where a result must not be written: over another without `overwrite`, over anything else."""
    from harness.core.files import require_folder_place
    from harness.trial.quantisation import is_quantised

    require_folder_place("--out", folder)
    if folder.exists() and not is_quantised(folder) and any(folder.iterdir()):
        raise UserError(f"--out {folder} is no result of `harness quantise`, so it is not replaced; give another --out")
    if is_quantised(folder) and not overwrite:
        raise UserError(f"--out {folder} exists; give --overwrite to replace it, or another name")


def _print(record: "QuantisationRecord", folder: Path) -> None:
    """Print what was done and what it came to."""
    from harness.cli.latency import remarks
    from harness.metrics import metric_label

    choice, config = record.choice, record.config
    lines = [["layers in " + ("fp16" if config.method == "fp16" else "int8"), str(len(choice.quantised))]]
    if config.method == "bf16":
        lines = []
    lines += [
        ["  kept in float", str(len(choice.kept))],
        ["  of routing, always in float", str(len(choice.routing))],
        [
            f"PSNR on {len(record.held_out_images)} images held out",
            f"{choice.psnr_db_float:.3f} → {choice.psnr_db:.3f} dB ({-choice.drop_db:+.3f})",
        ],
    ]
    if record.before is not None and record.after is not None and record.drop_db is not None:
        label = metric_label("psnr_db", record.before.protocol)
        lines.append(
            [
                f"{label} on {record.before.dataset}",
                f"{record.before.psnr_db:.3f} → {record.after.psnr_db:.3f} dB ({-record.drop_db:+.3f})",
            ]
        )
    if record.latency is not None:
        found = record.latency
        lines.append(
            [
                f"latency of {config.tile}×{config.tile}",
                f"{format_number(found.reference_median)} → {found.median:.2f} ms: "
                f"{format_number(found.ratio, 3)} ({format_interval(found.ratio_interval, 3)})",
            ]
        )
        for remark in remarks(found):
            messages.print(f"warning: {remark}")
    size = record.file_bytes / record.float_file_bytes
    lines.append(["file", f"{record.float_file_bytes / 2**20:.2f} → {record.file_bytes / 2**20:.2f} MiB: {size:.2f}"])
    where = f"{config.runtime}, {'cpu' if record.latency is None else record.latency.device}"
    print_table(f"{record.label}, {config.method}, {where}", ["", "value"], lines)
    if choice.kept:
        more = f" and {len(choice.kept) - _MOST_LAYERS} more" if len(choice.kept) > _MOST_LAYERS else ""
        console.print(f"kept in float: {', '.join(choice.kept[:_MOST_LAYERS])}{more}")
    for note in record.notes:
        messages.print(f"note: {note}")
    console.print(f"{folder}\nnext: {command()} evaluate {folder / 'network.onnx'} --data IMAGES")

"""`harness evaluate`: PSNR and SSIM of one network on one dataset."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.output import console, counting, format_number, messages, print_json, print_table


def evaluate(
    model: options.AnyTarget,
    data: Annotated[str, typer.Option(help="A folder of images, or a dataset's name.")],
    weights: options.Weights = None,
    scale: options.ScaleOption = None,
    gamma: options.Gamma = None,
    routing: options.Routing = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help=f"How to score: {options.PROTOCOL_NAMES}.  [default: light; odi for a bundle trained on panoramas]"
        ),
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Low-resolution tile side.  [default: the protocol's]")] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Overlap of tiles in low-resolution pixels.  [default: 4]")
    ] = None,
    wrap: Annotated[
        int | None,
        typer.Option(min=0, help="Columns by which panoramas go on around their seam.  [default: the protocol's]"),
    ] = None,
    device: options.TrainDevice = "cpu",
    runtime: Annotated[
        str | None, typer.Option(help="Of an ONNX file: onnxruntime or openvino.  [default: onnxruntime]")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of an ONNX file in OpenVINO: fp32 or bf16.")] = "fp32",
    threads: options.Threads = None,
    data_dir: options.DataDir = None,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Score a network on images under a named protocol, with the attention it really spent."""
    from harness.cli.target import default_protocol, resolve_restorer
    from harness.core.environment import observe_environment
    from harness.core.errors import TrialFailedError, UserError
    from harness.data import open_dataset
    from harness.metrics import get_protocol, metric_label
    from harness.models import describe_kernels
    from harness.profiling import TargetNetwork, chosen_threads
    from harness.trial import evaluate as run_evaluation

    rules = get_protocol(protocol or default_protocol(model))
    tile = rules.tile if tile is None else tile
    options.check_tiles(tile, overlap)
    if wrap and not rules.spherical:
        raise UserError(
            f"--wrap {wrap}: protocol {rules.name} is for plain images; expected --protocol odi, or no --wrap"
        )
    workers = options.resolve_threads(threads)
    network, origin, label = resolve_restorer(
        model, scale, gamma, routing, weights, threads=workers, runtime=runtime, precision=precision
    )
    place = options.check_train_device(device)
    if isinstance(network, TargetNetwork):
        if place != "cpu" and network.target.module is None:
            raise UserError(f"--device {device}: ONNX files are run on the CPU")
        if network.tile is not None and tile is None:
            tile = network.tile
            messages.print(f"note: {label} needs {network.target.contract.needs()}: images are restored in such tiles")
    dataset = open_dataset(
        data,
        scale=network.scale,
        split="validation",
        data_dir=data_dir,
        cache_dir=results / "cache",
        panoramas=rules.spherical,
    )
    narrowest = min(pair.lr_HWC.shape[1] for pair in dataset)
    if wrap is not None and wrap > narrowest:
        raise UserError(f"--wrap {wrap}: the narrowest image has {narrowest} low-resolution columns; expected no more")
    if origin == "untrained":
        messages.print("note: no --weights given: the network is untrained")
    try:
        with chosen_threads(workers), counting("evaluating") as progress:
            record = run_evaluation(
                network,
                dataset,
                rules,
                device=place,
                tile=tile,
                overlap=4 if overlap is None else overlap,
                wrap=wrap,
                progress=progress,
            )
    except TrialFailedError as error:
        raise UserError(f"{model} with weights {origin}: {error}") from None
    settings = getattr(network, "routing", None)
    if json:
        print_json(
            {
                "model": label,
                "config": None if network.config is None else network.config.model_dump(mode="json"),
                "weights": origin,
                "gamma": settings.gamma if settings else None,
                "routing": settings.policy if settings else None,
                **record.model_dump(mode="json"),
                "environment": observe_environment(describe_kernels()).model_dump(mode="json"),
            }
        )
        return
    label = f"{label} ×{network.scale}" + (f", {settings.label()}" if settings else "")
    rows = [
        [
            image.name,
            format_number(image.psnr_db, 3),
            format_number(image.ssim, 4),
            format_number(image.attention_share, 3),
        ]
        for image in (*record.images,)
    ]
    rows.append(
        [
            "mean",
            format_number(record.psnr_db, 3),
            format_number(record.ssim, 4),
            format_number(record.attention_share, 3),
        ]
    )
    title = f"{label} on {record.dataset}, protocol {record.protocol}, weights {origin}"
    metrics = [metric_label(name, rules.name) for name in ("psnr_db", "ssim")]
    print_table(title, ["image", *metrics, "attention share"], rows)
    if record.wrap:
        console.print(f"[dim]{record.seam_note}[/dim]")

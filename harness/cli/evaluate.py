"""`harness evaluate`: PSNR and SSIM of one network on one dataset."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.output import console, counting, format_number, messages, print_json, print_table


def evaluate(
    model: options.Model,
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
    threads: options.Threads = None,
    data_dir: options.DataDir = None,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Score a network on images under a named protocol, with the attention it really spent."""
    from harness.cli.target import default_protocol, resolve_network
    from harness.core.environment import observe_environment
    from harness.core.errors import TrialFailedError, UserError
    from harness.data import open_dataset
    from harness.metrics import get_protocol, metric_label
    from harness.models import describe_kernels
    from harness.profiling import chosen_threads
    from harness.trial import evaluate as run_evaluation

    rules = get_protocol(protocol or default_protocol(model))
    tile = rules.tile if tile is None else tile
    options.check_tiles(tile, overlap)
    if wrap and not rules.spherical:
        raise UserError(
            f"--wrap {wrap}: protocol {rules.name} is for plain images; expected --protocol odi, or no --wrap"
        )
    network, origin = resolve_network(model, scale, gamma, routing, weights)
    place = options.check_train_device(device)
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
        with chosen_threads(options.resolve_threads(threads)), counting("evaluating") as progress:
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
                "model": network.config.label(),
                "config": network.config.model_dump(mode="json"),
                "weights": origin,
                "gamma": settings.gamma if settings else None,
                "routing": settings.policy if settings else None,
                **record.model_dump(mode="json"),
                "environment": observe_environment(describe_kernels()).model_dump(mode="json"),
            }
        )
        return
    label = f"{network.config.label()} ×{network.scale}" + (f", {settings.label()}" if settings else "")
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

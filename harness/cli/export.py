"""`harness export`: one point of a study as a deployable bundle."""

import re
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.output import command, console, describe_point
from harness.core.errors import UserError


def export(
    study: Annotated[
        str,
        typer.Argument(
            help="A study's name (a folder under --results), or the path of its folder; with --weights a preset or a "
            "config file."
        ),
    ],
    pick: Annotated[
        str,
        typer.Option(
            help="knee, best-psnr, fastest, smallest, trial:N, point:ID (point_id of front.csv), bounds such as "
            "'latency_ms <= 20 and psnr_db >= 30', or 'weights: psnr_db=2, latency_ms=1'."
        ),
    ] = "knee",
    out: Annotated[Path | None, typer.Option(help="The bundle's folder.  [default: bundles/PICK in the study]")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights that were trained elsewhere, .safetensors or a released .pth, rather than a study's."
        ),
    ] = None,
    scale: options.ScaleOption = None,
    gamma: options.Gamma = None,
    routing: options.Routing = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    results: options.Results = Path("results"),
) -> None:
    """Export a trained network with config, weights, metrics and a model card.

    --scale, --gamma and --routing are for --weights; a study's networks have theirs.

    Bounds of --pick are METRIC <=, <, >= or > NUMBER, joined by `and`. Metrics: psnr_db (of luma also psnr_y_db), ssim,
    latency_ms, latency_ratio (both also /DEVICE: latency_ms/cpu:2), macs, params, peak_memory_bytes, attention_share;
    units may follow (20ms, 5G, 300k, 64MiB, 30%). Of the points that meet them all, the highest PSNR is taken where a
    cost is bounded from above, otherwise the lowest latency.

    Weights of --pick are METRIC=NUMBER, …: the point nearest to the best values of these metrics, each scaled to its
    range on the front (augmented Chebyshev distance).

    What was chosen is said with what it gives up against its neighbours on the front and against SwinIR-light.
    """
    if weights is not None:
        bundle = _export_weights(study, scale, gamma, routing, weights, out, overwrite=overwrite)
    elif scale is not None or gamma is not None or routing is not None:
        raise UserError("--scale, --gamma and --routing: a study's points have theirs; give --weights, or none of them")
    else:
        bundle = export_point(options.study_path(study, results), pick, out, overwrite=overwrite)
    console.print(f"bundle   {bundle}\nnext: {command()} upscale {bundle} IMAGE OUT.png")


def _export_weights(
    model: str,
    scale: int | None,
    gamma: float | None,
    routing: str | None,
    weights: Path,
    out: Path | None,
    *,
    overwrite: bool,
) -> Path:
    """Write the bundle of a model with weights that were trained elsewhere; return its folder."""
    from harness.cli.target import resolve_config
    from harness.export import write_imported_bundle
    from harness.models import build_model, load_weights

    if out is None:
        raise UserError("--weights: a bundle of no study has no folder of its own; give --out")
    if Path(model).is_dir():
        raise UserError(f"--weights {weights}: {model} is a folder; expected a preset or a config file")
    network = build_model(resolve_config(model, scale, gamma, routing))
    entry = load_weights(network, weights)
    return write_imported_bundle(out, network.eval(), weights, entry, overwrite=overwrite)


def export_point(folder: Path, pick: str, out: Path | None, *, overwrite: bool) -> Path:
    """Write the bundle of a pick and say what was picked; return its folder."""
    from harness.core.study_folder import StudyFolder
    from harness.export import write_bundle
    from harness.export.bundle import QUANTISED
    from harness.reporting import choose, load_study
    from harness.trial import load_trained
    from harness.trial.quantisation import find_quantised

    study = load_study(folder)
    point, choice = choose(study, pick)
    study_folder = StudyFolder(folder)
    record = study_folder.read_trial(point.record.record_id)  # with samples and scores of single images
    of_routing = [found for found in record.points if found.routing == point.measured.routing]
    measured = next(found for found in of_routing if found.quantised is None)  # what the weights are
    quantised = find_quantised(study_folder, record, measured)
    if point.measured.quantised is not None and quantised is None:
        raise UserError(
            f"{pick}: {point.label} is of {point.measured.quantised.file} in networks/{record.network_id}, which is "
            "gone; pick another point, or search anew"
        )
    network = load_trained(study_folder, record, measured.routing)
    baselines = {
        record.record_id.removeprefix("baseline-"): record.points[0] for record in study.baselines if record.points
    }
    path = out or study_folder.bundles_dir / re.sub(r"[^\w.-]+", "-", pick)
    write_bundle(
        path,
        network,
        record,
        measured,
        picked_as=pick,
        baselines=baselines,
        choice=choice,
        quantised=quantised,
        overwrite=overwrite,
    )
    console.print(f"\n{pick}: {choice.label}, {describe_point(point.measured)}", markup=False)
    for sentence in choice.sentences:
        console.print(f"  {sentence}", markup=False, soft_wrap=True)
    if point.measured.quantised is not None:
        console.print(
            f"quantised {path / QUANTISED}; the weights beside it are the same network in float: "
            f"{describe_point(measured)}"
        )
    return path

"""`harness export`: one point of a study as a deployable bundle."""

import re
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.output import command, console, describe_point


def export(
    study: options.StudyName,
    pick: Annotated[
        str, typer.Option(help="knee, best-psnr, fastest, smallest, trial:N, or point:ID (point_id of front.csv).")
    ] = "knee",
    out: Annotated[Path | None, typer.Option(help="The bundle's folder.  [default: bundles/PICK in the study]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    results: options.Results = Path("results"),
) -> None:
    """Export a trained network with config, weights, metrics and a model card."""
    bundle = export_point(options.study_path(study, results), pick, out, overwrite=overwrite)
    console.print(f"bundle   {bundle}\nnext: {command()} upscale {bundle} IMAGE OUT.png")


def export_point(folder: Path, pick: str, out: Path | None, *, overwrite: bool) -> Path:
    """Write the bundle of a pick and say what was picked; return its folder."""
    from harness.core.study_folder import StudyFolder
    from harness.export import write_bundle
    from harness.reporting import load_study
    from harness.reporting import pick as pick_point
    from harness.trial import load_trained

    study = load_study(folder)
    point = pick_point(study, pick)
    study_folder = StudyFolder(folder)
    record = study_folder.read_trial(point.record.record_id)  # with samples and scores of single images
    measured = next(found for found in record.points if found.routing == point.measured.routing)
    network = load_trained(study_folder, record, measured.routing)
    baselines = {
        record.record_id.removeprefix("baseline-"): record.points[0] for record in study.baselines if record.points
    }
    path = out or study_folder.bundles_dir / re.sub(r"[^\w.-]+", "-", pick)
    write_bundle(path, network, record, measured, picked_as=pick, baselines=baselines, overwrite=overwrite)
    console.print(f"\n{pick}: {point.label}, {describe_point(point.measured)}")
    return path

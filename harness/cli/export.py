"""`harness export`: one point of a study as a deployable bundle."""

import re
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.output import command, console, describe_point, note
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
    licence: options.Licence = "unstated",
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Register the bundle in MLflow's model registry, too.")
    ] = None,
    alias: Annotated[
        options.AliasName | None,
        typer.Option(help="Of the registered version.  [default: champion where there is none yet, else challenger]"),
    ] = None,
    tracking_uri: options.TrackingUri = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    results: options.Results = Path("results"),
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="onnx, pt2 or openvino: write one file for another runtime to --out, of a bundle, or of a preset or a "
            "config file with --weights, instead of a bundle.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="With --format: the only height and width of the file.  [default: any]"),
    ] = None,
) -> None:
    """Export a trained network with config, weights, metrics and a model card, or as a file for another runtime.

    --scale, --gamma and --routing are for --weights and --format; a study's networks have theirs.

    Bounds of --pick are METRIC <=, <, >= or > NUMBER, joined by `and`. Metrics: psnr_db (of luma also psnr_y_db), ssim,
    latency_ms, latency_ratio (both also /DEVICE: latency_ms/cpu:2), macs, params, peak_memory_bytes, attention_share;
    units may follow (20ms, 5G, 300k, 64MiB, 30%). Of the points that meet them all, the highest PSNR is taken where a
    cost is bounded from above, otherwise the lowest latency.

    Weights of --pick are METRIC=NUMBER, …: the point nearest to the best values of these metrics, each scaled to its
    range on the front (augmented Chebyshev distance).

    What was chosen is said with what it gives up against its neighbours on the front and against SwinIR-light.
    """
    if file_format is not None or size is not None:
        if register is not None or alias is not None or licence != "unstated":
            raise UserError("--register, --alias and --licence are for bundles; expected none of them with --format")
        from harness.cli.export_file import export_network

        if (options.study_path(study, results) / "study.json").is_file():
            raise UserError(
                f"--format takes a bundle, a preset or a config file, and {study} is a study; export a point of it "
                "first, then its bundle with --format"
            )

        export_network(study, scale, gamma, routing, weights, out, file_format, size, overwrite=overwrite)
        return
    from harness.export import parse_licence
    from harness.export.bundle import EXAMPLE

    licence = parse_licence(licence)
    store = tracking_uri or f"sqlite:///{(results / 'mlflow.db').resolve()}"
    if register is not None:
        from harness.tracking import check_registration

        check_registration(register, store)
    elif alias is not None:
        raise UserError(f"--alias {alias.value}: nothing is to be registered; give --register NAME, too")
    if weights is not None:
        bundle = _export_weights(study, scale, gamma, routing, weights, out, licence=licence, overwrite=overwrite)
    elif scale is not None or gamma is not None or routing is not None:
        raise UserError("--scale, --gamma and --routing: a study's points have theirs; give --weights, or none of them")
    else:
        bundle = export_point(options.study_path(study, results), pick, out, licence=licence, overwrite=overwrite)
    console.print(f"bundle   {bundle}")
    if register is not None:
        artifacts = None if tracking_uri else (results / "mlartifacts").resolve()
        _register(bundle, register, alias, store, artifacts)
    console.print(f"next: {command()} upscale {bundle} IMAGE OUT.png")
    if (bundle / EXAMPLE).is_file():
        console.print(f"or, in {bundle} and without harness:\n")
        console.print((bundle / EXAMPLE).read_text(encoding="utf-8"), markup=False, soft_wrap=True, end="")


def _register(bundle: Path, name: str, alias: options.AliasName | None, store: str, artifacts: Path | None) -> None:
    """Register a bundle and say what it is found by."""
    from harness.core.urls import SHOWN, without_credentials
    from harness.tracking import register_bundle

    found = register_bundle(
        bundle,
        name,
        tracking_uri=store,
        artifact_root=artifacts,
        alias=None if alias is None else alias.value,
    )
    console.print(
        f"model    {found.uri}, version {found.version} of {name} in {without_credentials(store, SHOWN)}",
        markup=False,
        soft_wrap=True,
    )


def _export_weights(
    model: str,
    scale: int | None,
    gamma: float | None,
    routing: str | None,
    weights: Path,
    out: Path | None,
    *,
    licence: str,
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
    return write_imported_bundle(out, network.eval(), weights, entry, licence=licence, overwrite=overwrite, tell=note)


def export_point(folder: Path, pick: str, out: Path | None, *, licence: str = "unstated", overwrite: bool) -> Path:
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
        licence=licence,
        quantised=quantised,
        overwrite=overwrite,
        tell=note,
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

"""`harness calibrate`: a better routing for a trained network, from a few images."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.output import (
    command,
    console,
    counting,
    format_number,
    messages,
    note,
    print_json,
    print_table,
)

_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
_MOST_NAMES = 5  # of images that a note names


class CalibratedPolicy(StrEnum):
    """Routing policies that are calibrated."""

    DETAIL = "detail"
    SCHEDULE = "schedule"


def calibrate(
    model: options.Model,
    data: Annotated[
        list[str], typer.Option(help="A folder of images, or a dataset's name, to tune on; may be given several times.")
    ],
    share: Annotated[float, typer.Option(help="Share of attention, ΣK/ΣN over blocks, in 0..1.")],
    weights: options.Weights = None,
    scale: options.ScaleOption = None,
    policy: Annotated[
        CalibratedPolicy,
        typer.Option(help="detail: blocks and windows; schedule: whole blocks, the same for any image."),
    ] = CalibratedPolicy.DETAIL,
    images: Annotated[int, typer.Option(min=1, help="How many images to tune on, spread evenly over --data.")] = 24,
    crop: Annotated[int, typer.Option(min=16, help="Side of each image's centre crop in low-resolution pixels.")] = 32,
    evaluate: Annotated[
        str | None, typer.Option(help="Images to evaluate the result on; none of them may be in --data.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help=f"How --evaluate scores: {options.PROTOCOL_NAMES}.  "
            "[default: light; odi for a bundle trained for panoramas]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the model with its routing here: a .yaml or .json file, or of a bundle a new bundle."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    threads: options.Threads = None,
    data_dir: options.DataDir = None,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Find out which blocks of a trained network deserve attention, by evaluations alone.

    Never tune on the images that the result is evaluated on: --evaluate refuses images that are in --data.
    """
    from harness.cli.target import default_protocol, resolve_network
    from harness.core.configs import RoutingConfig
    from harness.core.errors import TrialFailedError, UserError
    from harness.core.files import write_text
    from harness.data import PairedDataset, open_dataset, refuse_overlap
    from harness.data.overlap import drop_repeated
    from harness.export import check_target, read_bundle_metrics, write_calibrated_bundle
    from harness.metrics import get_protocol, metric_label
    from harness.profiling import chosen_threads
    from harness.trial import evaluate as run_evaluation
    from harness.trial import routed
    from harness.trial.calibration import calibrate as run_calibration
    from harness.trial.calibration import choose_images

    if protocol is not None and evaluate is None:
        raise UserError(f"--protocol {protocol} is for --evaluate, which is not given; give both or neither")
    writes_bundle = out is not None and out.suffix.lower() not in _CONFIG_SUFFIXES
    if out is not None and writes_bundle:
        if not Path(model).is_dir():
            raise UserError(f"--out {out}: expected a name ending in .yaml or .json; only of a bundle a bundle is made")
        if out.suffix[1:].isalpha() and not out.is_dir():
            raise UserError(
                f"--out {out}: a file's name ending in {out.suffix}; expected a folder for the bundle, or a name "
                "ending in .yaml or .json for the model alone"
            )
        check_target(out, overwrite=overwrite)
    elif out is not None and out.exists() and not overwrite:
        raise UserError(f"--out {out} exists; give --overwrite to replace it, or another name")
    network, origin = resolve_network(model, scale, None, None, weights)
    if origin == "untrained":
        raise UserError(f"{model} is untrained, and calibration measures what training has made of it; give --weights")
    if writes_bundle:
        read_bundle_metrics(Path(model))  # what is damaged shows before the work is done
    rules = get_protocol(protocol or default_protocol(model))

    def open_source(source: str, *, panoramas: bool = False) -> PairedDataset:
        cache = results / "cache"
        return open_dataset(
            source,
            scale=network.scale,
            split="validation",
            data_dir=data_dir,
            cache_dir=cache,
            panoramas=panoramas,
        )

    sources = [open_source(source) for source in data]
    pairs, repeated = drop_repeated(pair for source in sources for pair in source)
    if repeated:
        names = ", ".join(pair.describe() for pair in repeated[:_MOST_NAMES])
        more = f" and {len(repeated) - _MOST_NAMES} more" if len(repeated) > _MOST_NAMES else ""
        messages.print(f"note: images that are in --data more than once count once: without {names}{more}")
    tuning = PairedDataset("+".join(dict.fromkeys(source.name for source in sources)), network.scale, pairs)
    held_out = None if evaluate is None else open_source(evaluate, panoramas=rules.spherical)
    if held_out is not None:
        refuse_overlap(tuning, held_out, uses=("tuning", "evaluation"))
    choose_images(tuning, images, crop, remedy="give fewer --images, a smaller --crop or more --data")
    try:
        with chosen_threads(options.resolve_threads(threads)):
            with counting("calibrating") as progress:
                record = run_calibration(
                    network, tuning, share, policy=policy.value, images=images, crop=crop, progress=progress
                )
                scored = {}
            if held_out is not None:
                peers = (
                    record.routing,
                    RoutingConfig(policy="probability", gamma=share),
                    RoutingConfig(gamma=share),
                    RoutingConfig(gamma=1.0),
                )
                for routing in peers:
                    with counting(f"evaluating {routing.label()}") as progress:
                        scored[routing.label()] = run_evaluation(
                            routed(network, routing), held_out, rules, progress=progress
                        )
    except TrialFailedError as error:
        raise UserError(f"{model} with weights {origin}: {error}") from None
    calibrated = routed(network, record.routing)
    if out is not None and writes_bundle:
        evaluation = scored.get(record.routing.label())
        write_calibrated_bundle(out, Path(model), record, evaluation=evaluation, overwrite=overwrite, tell=note)
    elif out is not None:
        write_text(out, _format(calibrated.config.model_dump(mode="json"), out))
    if json:
        print_json(
            {
                "model": network.config.label(),
                "weights": origin,
                "config": calibrated.config.model_dump(mode="json"),
                "calibration": record.model_dump(mode="json"),
                "evaluations": {label: entry.model_dump(mode="json") for label, entry in scored.items()},
            }
        )
        return
    found = record.routing.per_block or ()
    print_table(
        f"{network.config.label()} ×{network.scale}, {record.routing.policy} at share {share:g}, tuned on {images} "
        f"crops of {record.dataset}",
        ["block", "gain alone (dB)", "gain beside (dB)", "weight" if policy == CalibratedPolicy.DETAIL else "γ_b"],
        [
            [str(block), f"{alone:+.4f}", f"{beside:+.4f}", format_number(value, 4)]
            for block, (alone, beside, value) in enumerate(
                zip(record.gains_alone_db, record.gains_beside_db, found, strict=True)
            )
        ],
    )
    console.print(
        f"on the crops: PSNR-Y {record.psnr_db:.3f} dB; without attention {record.psnr_db_without:.3f}, with all of it "
        f"{record.psnr_db_full:.3f}"
    )
    if held_out is not None:
        print_table(
            f"on {held_out.name}, protocol {rules.name}, images that were not tuned on",
            ["routing", metric_label("psnr_db", rules.name), "attention share"],
            [
                [label, format_number(entry.psnr_db, 3), format_number(entry.attention_share, 3)]
                for label, entry in scored.items()
            ],
        )
        seam_note = scored[record.routing.label()].seam_note
        if seam_note:
            console.print(f"[dim]{seam_note}[/dim]")
    if out is None:
        messages.print("note: no --out given: the routing is printed only")
    elif writes_bundle:
        console.print(f"bundle   {out}\nnext: {command()} upscale {out} IMAGE OUT.png")
    else:
        own = Path(model) / "model.safetensors" if Path(model).is_dir() else weights
        console.print(f"{out}\nnext: {command()} evaluate {out} --weights {own} --data IMAGES")


def _format(config: dict[str, object], path: Path) -> str:
    """Write a model config as YAML or JSON, as the file's name says."""
    import json

    import yaml

    if path.suffix.lower() == ".json":
        return json.dumps(config, indent=1) + "\n"
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

"""`harness train`: one configuration, trained to a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import TrainingBar, command, console, describe_record, stop_on_signals, warn_of_small
from harness.core.errors import UserError

if TYPE_CHECKING:
    from harness.core.configs import TrainingConfig
    from harness.data.datasets import PairedDataset, Split


def train(
    model: options.Model,
    train_images: Annotated[str, typer.Option("--train", help="Training images: a folder or a dataset's name.")],
    validation: Annotated[str, typer.Option(help="Validation images: a folder or a dataset's name.")],
    out: Annotated[Path, typer.Option(help="Where the run is kept; the bundle comes to OUT/bundle.")],
    scale: options.ScaleOption = None,
    gamma: options.Gamma = None,
    routing: options.Routing = None,
    recipe: Annotated[str | None, typer.Option(help="`paper` for the released set-up.")] = None,
    settings: options.Settings = None,
    task: Annotated[
        options.TaskName, typer.Option(help="odi for whole panoramas: loss and score weighted by latitude.")
    ] = options.TaskName.CLASSIC,
    protocol: Annotated[
        str | None, typer.Option(help="How to score: light, large, ntire or odi.  [default: light; odi for --task odi]")
    ] = None,
    latency_device: Annotated[str, typer.Option(help="Where to measure latency: cpu:THREADS or cuda:INDEX.")] = "cpu:1",
    device: options.TrainDevice = "cpu",
    threads: options.Threads = None,
    data_dir: options.DataDir = None,
    results: options.Results = Path("results"),
) -> None:
    """Train one configuration (settings by --set steps=…), score and measure it, and write a bundle. Resumes."""
    from harness.cli.target import resolve_config
    from harness.core.configs import DataConfig
    from harness.core.study_folder import StudyFolder
    from harness.data import open_dataset, refuse_overlap
    from harness.export import write_bundle
    from harness.metrics import get_protocol
    from harness.models import preset_config
    from harness.profiling import parse_device
    from harness.training import TrainingInterruptedError
    from harness.trial import Proposal, TrialSetup, build_seeded, load_trained, run_trial

    config = resolve_config(model, scale, gamma, routing)
    if config.family == "bicubic":
        raise UserError("bicubic has no weights to train; expected another model")
    training = _training_config(recipe, {"task": task.value, **options.parse_settings(settings)})
    if training.task == "odi" and protocol not in (None, "odi"):
        raise UserError(f"--protocol {protocol}: panoramas are scored by latitude; expected odi, or no protocol at all")
    rules = get_protocol(protocol or ("odi" if training.task == "odi" else "light"))

    def open_split(source: str, split: "Split", *, panoramas: bool) -> "PairedDataset":
        cache = results / "cache"
        return open_dataset(
            source, scale=config.scale, split=split, data_dir=data_dir, cache_dir=cache, panoramas=panoramas
        )

    trained_on = open_split(train_images, "train", panoramas=training.task == "odi")
    scored_on = open_split(validation, "validation", panoramas=rules.spherical)
    refuse_overlap(trained_on, scored_on)
    options.check_training(training, trained_on, options.check_train_device(device))
    warn_of_small(trained_on, training.hr_patch_size)
    out.mkdir(parents=True, exist_ok=True)
    reference = build_seeded(preset_config("swinir-light", config.scale), seed=0).eval()
    setup = TrialSetup(
        study=out.name,
        folder=StudyFolder(out),
        data=DataConfig(train=train_images, validation=validation, data_dir=str(data_dir) if data_dir else None),
        train=trained_on,
        validation=scored_on,
        protocol=rules,
        constraints=(),
        devices=(parse_device(latency_device).text,),
        latency_input_size=(64, 64),
        macs_input_size=(720 // config.scale, 1280 // config.scale),
        reference=reference,
        reference_name="swinir-light",
        train_device=options.check_train_device(device),
        threads=options.resolve_threads(threads),
    )
    settled = getattr(config, "routing", None)
    proposal = Proposal("trial-00000", "trial", 0, config, training, (settled,), settled)
    try:
        with stop_on_signals() as should_stop, TrainingBar() as bar:
            record = run_trial(setup, proposal, progress=bar, should_stop=should_stop)
    except TrainingInterruptedError as interruption:
        console.print(f"{interruption}; the same command again goes on from here")
        raise typer.Exit(130) from None
    console.print(describe_record(record))
    if record.state != "complete":
        raise typer.Exit(1)
    network = load_trained(setup.folder, record, settled)
    bundle = write_bundle(
        out / "bundle", network, record, record.points[0], picked_as="trained", baselines={}, overwrite=True
    )
    console.print(f"bundle   {bundle}\nnext: {command()} upscale {bundle} IMAGE OUT.png")


def _training_config(recipe: str | None, settings: dict[str, Any]) -> "TrainingConfig":
    from harness.core.configs import PAPER_RECIPE, TrainingConfig, parse_config

    if recipe not in (None, "paper"):
        raise UserError(f"--recipe {recipe!r}: expected paper, or no recipe at all")
    base = PAPER_RECIPE.model_dump() if recipe else {}
    if recipe is None and "steps" not in settings:
        raise UserError("say how long to train: --set steps=N, or --recipe paper")
    return parse_config(TrainingConfig, {**base, **settings}, "--set")

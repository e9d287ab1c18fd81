"""`harness train`: one configuration, trained to a bundle."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import (
    INTERRUPTED,
    TrainingBar,
    command,
    console,
    describe_record,
    messages,
    note,
    stop_on_signals,
    warn_of_small,
)
from harness.core.errors import TrialFailedError, UserError

_REMEDY = "give another --out, or --overwrite to replace it"
_SLURM_TASKS = "SLURM_STEP_TASKS_PER_NODE"
_LAUNCHERS = (  # what others call RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", _SLURM_TASKS),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)

if TYPE_CHECKING:
    from harness.core.configs import AnyModelConfig, DataConfig, TrainingConfig
    from harness.core.records import TrialRecord
    from harness.core.study_folder import StudyFolder
    from harness.data.datasets import PairedDataset, Split
    from harness.training import Group
    from harness.trial import Proposal


def train(
    model: options.Model,
    train_images: Annotated[str, typer.Option("--train", help="Training images: a folder or a dataset's name.")],
    validation: Annotated[str, typer.Option(help="Validation images: a folder or a dataset's name.")],
    out: Annotated[
        Path, typer.Option(help="Where the run is kept, a folder of its own; the bundle comes to OUT/bundle.")
    ],
    scale: options.ScaleOption = None,
    gamma: options.Gamma = None,
    routing: options.Routing = None,
    recipe: Annotated[str | None, typer.Option(help="`paper` for the released set-up.")] = None,
    settings: options.Settings = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="A bundle to learn from, beside the images; --set distillation.weight=… says how much."),
    ] = None,
    task: Annotated[
        options.TaskName, typer.Option(help="odi for whole panoramas: loss and score weighted by latitude.")
    ] = options.TaskName.CLASSIC,
    protocol: Annotated[
        str | None,
        typer.Option(help=f"How to score: {options.PROTOCOL_NAMES}.  [default: light; odi for --task odi]"),
    ] = None,
    latency_device: Annotated[str, typer.Option(help="Where to measure latency: cpu:THREADS or cuda:INDEX.")] = "cpu:1",
    device: options.TrainDevice = "cpu",
    licence: options.Licence = "unstated",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the run of other settings in --out, or train a finished one anew."),
    ] = False,
    threads: options.Threads = None,
    data_dir: options.DataDir = None,
    results: options.Results = Path("results"),
) -> None:
    """Train one configuration (settings by --set steps=…), score and measure it, and write a bundle.

    The same command again goes on where it was left; a finished run is reported again. Under torchrun several processes
    share each batch, on a GPU each with --device cuda.
    """
    from harness.cli.target import resolve_config
    from harness.core.configs import DataConfig
    from harness.core.files import require_folder_place
    from harness.core.study_folder import StudyFolder
    from harness.data import open_dataset, refuse_overlap
    from harness.export import check_target, parse_licence, read_bundle_config, write_bundle
    from harness.metrics import get_protocol, protocol_for
    from harness.models import preset_config
    from harness.profiling import parse_device
    from harness.training import TrainingInterruptedError
    from harness.trial import (
        Proposal,
        TrialSetup,
        build_seeded,
        find_teachers,
        load_trained,
        run_trial,
        with_teacher,
    )

    group = _find_group()
    place = _place(device, group)
    if not group.leads:
        group.join(place)  # which the first process does once it has found nothing wrong
    licence = parse_licence(licence)
    config = resolve_config(model, scale, gamma, routing)
    if config.family == "bicubic":
        raise UserError("bicubic has no weights to train; expected another model")
    given = {} if teacher is None else {"distillation.teacher": str(teacher)}
    training = _training_config(recipe, {"task": task.value, **options.parse_settings(settings), **given})
    if training.task == "odi" and protocol not in (None, "odi"):
        raise UserError(f"--protocol {protocol}: panoramas are scored by latitude; expected odi, or no protocol at all")
    rules = get_protocol(protocol or protocol_for(training.task))

    taught_by = training.distillation
    training = with_teacher(training, find_teachers([taught_by.teacher] if taught_by else [], config.scale))
    each_threads = options.resolve_threads(threads, group.local_size)
    measured_on = parse_device(latency_device).text
    data = DataConfig(train=train_images, validation=validation, data_dir=str(data_dir) if data_dir else None)
    settled = getattr(config, "routing", None)
    proposal = Proposal("trial-00000", "trial", 0, config, training, (settled,), settled)

    def open_split(source: str, split: "Split", *, panoramas: bool) -> "PairedDataset":
        cache = results / "cache"
        return open_dataset(
            source, scale=config.scale, split=split, data_dir=data_dir, cache_dir=cache, panoramas=panoramas
        )

    def open_training() -> "PairedDataset":
        return open_split(train_images, "train", panoramas=training.task == "odi")

    if not group.leads:
        _assist(group, proposal, open_training, place, each_threads)
        return
    group.check_batch_size(training.batch_size)
    require_folder_place("--out", out)
    folder, bundle = StudyFolder(out), out / "bundle"
    _refuse_study(folder)
    check_target(bundle, overwrite=True)
    known = None
    if not overwrite:
        settings_here = _settings(config, training, data, rules.name, measured_on)
        known = _find_same_run(folder, proposal.network_id(data), settings_here)

    trained_on = open_training()
    scored_on = open_split(validation, "validation", panoramas=rules.spherical)
    refuse_overlap(trained_on, scored_on)
    if known is not None and known.points[0].evaluation.dataset_hash != scored_on.content_hash:
        raise UserError(f"{out} holds a run that was scored on other images than {validation} holds now; {_REMEDY}")
    options.check_training(training, trained_on, place)
    warn_of_small(trained_on, training.hr_patch_size)
    out.mkdir(parents=True, exist_ok=True)
    reference = build_seeded(preset_config("swinir-light", config.scale), seed=0).eval()
    setup = TrialSetup(
        study=out.name,
        folder=folder,
        data=data,
        train=trained_on,
        validation=scored_on,
        protocol=rules,
        constraints=(),
        devices=(measured_on,),
        latency_input_size=(64, 64),
        macs_input_size=(720 // config.scale, 1280 // config.scale),
        reference=reference,
        reference_name="swinir-light",
        train_device=place,
        threads=each_threads,
    )
    group.join(place)
    _tell_sources(group, _name_sources(trained_on, training) if known is None else None)
    if known is not None:
        record = known
        messages.print(f"note: {out} was trained before with these settings; --overwrite trains it anew")
    else:
        try:
            with stop_on_signals() as should_stop, TrainingBar() as bar:
                record = run_trial(setup, proposal, progress=bar, should_stop=should_stop, group=group)
        except TrainingInterruptedError as interruption:
            console.print(f"{interruption}; the same command again goes on from here")
            raise typer.Exit(INTERRUPTED) from None
    group.leave()
    console.print(describe_record(record), markup=False)
    if record.state != "complete":
        raise typer.Exit(1)
    there = read_bundle_config(bundle) if known is not None and bundle.exists() else None
    if there is None or there.network_id != record.network_id or licence not in ("unstated", there.licence):
        network = load_trained(folder, record, settled)
        write_bundle(
            bundle,
            network,
            record,
            record.points[0],
            picked_as="trained",
            baselines={},
            licence=licence,
            overwrite=True,
            tell=note,
        )
    for other in _other_networks(folder, record.network_id):  # of a run that is replaced
        shutil.rmtree(other)
    console.print(f"bundle   {bundle}\nnext: {command()} upscale {bundle} IMAGE OUT.png")


def _find_group() -> "Group":
    """Return which process this is of those that torchrun, or another launcher like it, has started."""
    from harness.training import ALONE, Group

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given.keys() & {"RANK", "WORLD_SIZE"} or ("RANK" not in given and given["WORLD_SIZE"] == "1"):
        return ALONE
    got = ", ".join(f"{name}={value}" for name, value in given.items())
    if {"RANK", "WORLD_SIZE"} <= given.keys() and "LOCAL_RANK" not in given:
        given |= _find_local_rank(given["RANK"], given["WORLD_SIZE"])
    if missing := [name for name in names[:3] if name not in given]:
        raise UserError(
            f"{got}: {' and '.join(missing)} missing; expected what torchrun sets, LOCAL_RANK to the process's "
            "number on its machine (SLURM_LOCALID under srun); set it, or unset the others to train in one process"
        )
    try:
        rank, size, local_rank = (int(given[name]) for name in names[:3])
        local_size = int(given.get("LOCAL_WORLD_SIZE", size))
        if not (0 <= rank < size and 0 <= local_rank < local_size):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{got}: expected the numbers that torchrun gives; unset them to train in one process"
        ) from None
    return Group(rank, size, local_rank, local_size)


def _find_local_rank(rank: str, size: str) -> dict[str, str]:
    """Return LOCAL_RANK, and LOCAL_WORLD_SIZE where it is known, by a launcher that gives this rank of so many."""
    if size == "1":
        return {"LOCAL_RANK": "0"}
    for names in _LAUNCHERS:
        told = [os.environ.get(name) for name in names]
        if told[:2] == [rank, size] and told[2] is not None:
            local_size = told[3] if names[3] != _SLURM_TASKS else _count_slurm_tasks(size)
            return {"LOCAL_RANK": told[2], **({} if local_size is None else {"LOCAL_WORLD_SIZE": local_size})}
    return {}


def _count_slurm_tasks(size: str) -> str | None:
    """Return how many processes Slurm starts on this machine: of `2(x3),1`, two on the first three, one on the last."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get(_SLURM_TASKS, ""))
    tasks: list[str] = [count for count, machines in parts for _ in range(int(machines or 1))]
    here = os.environ.get("SLURM_NODEID", "")
    if not here.isdecimal() or int(here) >= len(tasks) or str(sum(map(int, tasks))) != size:
        return None
    return tasks[int(here)]


def _place(device: str, group: "Group") -> str:
    """Return where this process trains: of several, on a GPU of its own."""
    if group.size == 1 or device == "cpu":
        return options.check_train_device(device)
    if device != "cuda":
        raise UserError(
            f"--device {device}: {group.size} processes train on a GPU each, or all on CPUs; expected cuda or cpu"
        )
    return options.check_train_device(f"cuda:{group.local_rank}")


def _name_sources(images: "PairedDataset", training: "TrainingConfig") -> tuple[str, str | None]:
    """Return the identities of the images and of the teacher that are trained with."""
    return images.content_hash, training.distillation.teacher_id if training.distillation else None


def _tell_sources(group: "Group", sources: tuple[str, str | None] | None = None) -> tuple[str, str | None] | None:
    """Return what the first process tells: what it trains with, or None where the run is finished."""
    return group.tell(lambda: sources)


def _assist(
    group: "Group", proposal: "Proposal", open_images: Callable[[], "PairedDataset"], device: str, threads: int
) -> None:
    """Take part in the training that the first process of the group runs, and reports."""
    from harness.training import TrainingInterruptedError
    from harness.trial import assist_training

    try:
        sources = _tell_sources(group)
        if sources is None:
            return
        images = open_images()
        assert proposal.training is not None
        here = _name_sources(images, proposal.training)
        if here != sources:
            what = f"--train {images.name}" if here[0] != sources[0] else "--teacher"
            other = "other images" if here[0] != sources[0] else "another teacher"
            raise UserError(
                f"{what}: process {group.rank} finds {other} than the first process; expected the same on all "
                "machines; copy them there"
            )
        with stop_on_signals(announced=False) as should_stop:
            assist_training(images, proposal, group, device=device, threads=threads, should_stop=should_stop)
    except TrainingInterruptedError:
        raise SystemExit(INTERRUPTED) from None
    except TrialFailedError:
        raise SystemExit(1) from None
    finally:
        group.leave()


def _refuse_study(folder: "StudyFolder") -> None:
    """Refuse the folder of a search, whose records a run of its own would replace."""
    trials = {path.name for path in (folder.path / "trials").glob("*.json")}
    if folder.study_file.exists() or folder.database.exists() or trials - {"trial-00000.json"}:
        raise UserError(
            f"--out {folder.path} is the folder of a search, expected one of this run's own; give another --out"
        )


def _other_networks(folder: "StudyFolder", network: str) -> list[Path]:
    return sorted(path for path in folder.network_dir(network).parent.glob("*") if path.name != network)


def _settings(
    model: "AnyModelConfig", training: "TrainingConfig", data: "DataConfig", protocol: str | None, device: str | None
) -> dict[str, Any]:
    """Return, under the names that users know, what makes two runs the same."""
    parts = {
        "model": model.model_dump(mode="json"),
        "training": training.identity_values(),
        "data": data.model_dump(mode="json"),
    }
    named = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    return {**named, "protocol": protocol, "latency_device": device}


def _find_same_run(folder: "StudyFolder", network: str, here: dict[str, Any]) -> "TrialRecord | None":
    """Return the record of the same run where it was finished; `UserError` where the folder holds another run."""
    record = next(folder.read_trials(), None)
    if record is None:
        if _other_networks(folder, network):
            raise UserError(f"{folder.path} holds an unfinished run of other settings; {_REMEDY}")
        return None
    assert record.training is not None
    point = record.points[0] if record.points else None
    there = _settings(
        record.model,
        record.training,
        record.data,
        point.evaluation.protocol if point else here["protocol"],
        point.latency[0].device if point else here["latency_device"],
    )
    differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if differing:
        key = differing[0]
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        difference = f"{key} is {there.get(key)} there and {here.get(key)} here{more}"
        raise UserError(f"{folder.path} holds a run of other settings: {difference}; {_REMEDY}")
    return record if record.state == "complete" else None


def _training_config(recipe: str | None, settings: dict[str, Any]) -> "TrainingConfig":
    from harness.core.configs import PAPER_RECIPE, TrainingConfig, nest, parse_config

    if recipe not in (None, "paper"):
        raise UserError(f"--recipe {recipe!r}: expected paper, or no recipe at all")
    base = PAPER_RECIPE.model_dump() if recipe else {}
    if recipe is None and "steps" not in settings:
        raise UserError("say how long to train: --set steps=N, or --recipe paper")
    return parse_config(TrainingConfig, nest(settings, base), "--set")

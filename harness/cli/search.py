"""`harness search`: a Pareto search, from the start or from where it was left."""

import contextlib
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import (
    INTERRUPTED,
    TrainingBar,
    command,
    console,
    counting,
    describe_record,
    messages,
    stop_on_signals,
    warn_of_small,
)
from harness.core.errors import UserError
from harness.core.units import format_seconds
from harness.core.urls import SHOWN, without_credentials

if TYPE_CHECKING:
    from harness.core.importance import Importance
    from harness.core.records import StudyRecord, TrialRecord
    from harness.core.study_folder import StudyFolder
    from harness.reporting import ReportFiles, Study
    from harness.search import SearchSpace
    from harness.tracking import BackgroundTracker
    from harness.trial import TrialSetup


class Executor(StrEnum):
    """Where the workers of a search train."""

    PROCESSES = "processes"
    RAY = "ray"


def search(
    space: Annotated[str, typer.Argument(help="A search space: a YAML file, or a preset such as quickstart.")],
    study: Annotated[str | None, typer.Option(help="The study's name.  [default: the space's name]")] = None,
    train: Annotated[str | None, typer.Option(help="Training images: a folder or a dataset's name.")] = None,
    validation: Annotated[str | None, typer.Option(help="Validation images: a folder or a dataset's name.")] = None,
    networks: Annotated[int | None, typer.Option(min=1, help="Networks to train in all.")] = None,
    settings: options.Settings = None,
    device: options.TrainDevice = "cpu",
    threads: options.Threads = None,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Workers that train at once; they divide --threads among them."),
    ] = 1,
    executor: Annotated[
        Executor, typer.Option(help="Where workers train: in processes here, or on a Ray cluster (extra `ray`).")
    ] = Executor.PROCESSES,
    ray_address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS", help="HOST:PORT of a cluster; --threads are for each worker.  [default: here]"
        ),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(envvar="HARNESS_STORAGE", help="Optuna RDB URL.  [default: SQLite in the study]")
    ] = None,
    checkpoints: options.Checkpoints = None,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store.  [default: SQLite in --results]")
    ] = None,
    tracking: Annotated[bool, typer.Option(help="Log to MLflow.")] = True,
    data_dir: options.DataDir = None,
    download: Annotated[bool, typer.Option(help="Download a named dataset that is missing.")] = False,
    results: options.Results = Path("results"),
    report: Annotated[bool, typer.Option("--report", help="Write the report at the end and print the front.")] = False,
    export: Annotated[
        str | None,
        typer.Option(help="Export a pick at the end: knee, 'latency_ms <= 20', … (see `harness export --help`)."),
    ] = None,
) -> None:
    """Search for Pareto-optimal networks. The same command again resumes; Ctrl-C ends cleanly."""
    started = time.perf_counter()
    from harness.core.given import write_given
    from harness.reporting.picks import parse_pick
    from harness.reporting.progress import describe_progress, read_budget
    from harness.reporting.study import make_study
    from harness.search import (
        RayCluster,
        check_ray,
        find_space,
        read_space,
        refuse_failing,
        refuse_unreachable,
        run_search,
        study_record,
    )
    from harness.trial.quantisation import check_images

    if executor == Executor.RAY:
        check_ray()

    path = find_space(space)
    overrides = options.parse_settings(settings)
    given: dict[str, Any] = {
        "data.train": train,
        "data.validation": validation,
        "budget.networks": networks,
        "data.data_dir": str(data_dir) if data_dir else None,
    }
    overrides |= {key: value for key, value in given.items() if value is not None}
    parsed = read_space(path, overrides)
    name = study or path.stem
    _check_study_name(name)
    refuse_failing(parsed)
    refuse_unreachable(parsed)
    if export is not None:
        parse_pick(export, parsed.data.protocol)  # before hours of training rather than after
    on_cluster = executor == Executor.RAY and ray_address is not None  # of whose nodes nothing is known here
    each = (threads or 1) if on_cluster else _threads_each(threads, workers)
    setup = make_setup(name, parsed, results, device, each, download)
    for plan in parsed.quantisations():
        check_images(plan, setup.train, setting="compression.quantise", source="training images")
    space_text = path.read_text(encoding="utf-8").rstrip("\n") + "\n" + write_given(overrides)
    record = study_record(name, parsed, space_text, setup)
    _refuse_run(setup.folder)
    if setup.folder.study_file.is_file():
        known = setup.folder.read_study()
        if known.space_hash == record.space_hash:  # the study goes on under the record that it began with
            record = known
            if read_budget(known.space) != parsed.budget:
                later = write_given({"budget": parsed.budget.model_dump()})
                record = known.model_copy(update={"space": known.space + later})
    known_records: dict[str, TrialRecord] = {}
    tracker = _open_tracker(tracking_uri, record, results) if tracking else None
    phases = {"set-up": time.perf_counter() - started}

    def on_record(finished: "TrialRecord") -> None:
        console.print(describe_record(finished), markup=False)
        known_records[finished.record_id] = finished
        others = setup.folder.read_trials(but=known_records.keys())  # of earlier runs, and of workers elsewhere
        known_records.update((one.record_id, one) for one in list(others))
        study_now = make_study(record, known_records.values())
        console.print(f"  {describe_progress(study_now, parsed.budget)}", style="dim")
        group = "baselines" if finished.kind == "baseline" else "trials"
        phases[group] = phases.get(group, 0.0) + sum(finished.seconds.values())
        if tracker is not None:
            tracker.log_record(finished)

    def on_start() -> None:
        images = f"{setup.train.name} ({len(setup.train)} images) → {setup.validation.name} ({len(setup.validation)})"
        calibrated = "" if parsed.calibrate is None else f" and {len(parsed.calibrate.shares)} calibrated ones"
        console.print(
            f"study {name}: {parsed.budget.networks} networks, each at {len(parsed.routings())} points (γ × policy)"
            f"{calibrated}, {images}, ×{parsed.scale}, in {setup.folder.path}"
        )
        if tracker is not None:
            tracker.start()
            tracker.sync(setup.folder)

    with tracker or contextlib.nullcontext(), stop_on_signals() as should_stop, TrainingBar() as bar:
        outcome = run_search(
            parsed,
            setup,
            record,
            storage=storage,
            checkpoints=checkpoints,
            workers=workers,
            cluster=RayCluster(ray_address, warn=_warn) if executor == Executor.RAY else None,
            on_start=on_start,
            on_record=on_record,
            progress=bar,
            should_stop=should_stop,
        )
    console.print(f"\n{outcome.ending}: {outcome.reason}; {outcome.networks} networks trained")
    before = time.perf_counter()
    files, loaded, importance = _write_report(setup)
    phases["report"] = time.perf_counter() - before
    if tracker is not None:
        before = time.perf_counter()
        _track_report(tracker, setup.folder, files, loaded, importance, interrupted=outcome.ending == "interrupted")
        phases["tracking"] = time.perf_counter() - before
    if report:
        from harness.cli.report import print_front

        print_front(loaded)
    bundle = None
    if export is not None and outcome.networks:
        from harness.cli.export import export_point

        bundle = export_point(setup.folder.path, export, None, overwrite=True)
    _print_whereabouts(space, loaded, setup.folder, files, bundle, tracker, tracking_uri, results, phases, started)
    if outcome.ending == "interrupted":
        console.print("the same command again goes on from here")
        raise typer.Exit(INTERRUPTED)
    if outcome.ending == "failing":
        raise typer.Exit(1)


def _threads_each(threads: int | None, workers: int) -> int:
    """Return the threads of each worker; `UserError` where there are fewer than workers."""
    total = options.resolve_threads(threads)
    if total < workers:
        raise UserError(f"--workers {workers} on {total} threads: expected at least one for each; give fewer workers")
    return total // workers


def _check_study_name(name: str) -> None:
    if not name or any(sign in name for sign in "/\\\0") or name.startswith("."):
        raise UserError(f"--study {name!r}: expected a name without slashes that does not begin with a dot")


def _refuse_run(folder: "StudyFolder") -> None:
    """Refuse a folder that `harness train` made: the search's first trial would replace its record."""
    is_study = folder.study_file.exists() or folder.database.exists()
    if not is_study and any((folder.path / "trials").glob("*.json")):
        raise UserError(
            f"{folder.path} holds records of no study, such as those of `harness train`; give another --study"
        )


def images_elsewhere(
    space: "SearchSpace", train: str | None, validation: str | None, data_dir: Path | None
) -> "SearchSpace":
    """Return a space whose images are looked for elsewhere; they have to be the same."""
    given = {"train": train, "validation": validation, "data_dir": str(data_dir) if data_dir else None}
    changed = {name: value for name, value in given.items() if value is not None}
    return space.model_copy(update={"data": space.data.model_copy(update=changed)})


def make_setup(
    name: str, space: "SearchSpace", results: Path, device: str, threads: int, download: bool
) -> "TrialSetup":
    """Open the images and put together what all trials share."""
    from harness.core.conditions import parse_conditions
    from harness.core.study_folder import StudyFolder
    from harness.data import open_dataset, refuse_overlap
    from harness.metrics import get_protocol
    from harness.profiling import check_runtime, parse_device
    from harness.search import baseline_config
    from harness.trial import TrialSetup, build_seeded, find_teachers, with_teacher
    from harness.trial.calibration import check_calibration

    teachers = find_teachers(space.teachers(), space.scale)
    with_teacher(space.training_config(), teachers)  # which it may name
    place = options.check_train_device(device)
    for measured in map(parse_conditions, space.profile.devices):
        check_runtime(measured.runtime, parse_device(measured.device), measured.precision)
    protocol = get_protocol(space.data.protocol)
    data_dir = Path(space.data.data_dir) if space.data.data_dir else None

    def open_split(source: str, split: Any, *, panoramas: bool) -> Any:
        with counting(f"reading {without_credentials(source, SHOWN)}") as progress:
            return open_dataset(
                source,
                scale=space.scale,
                split=split,
                data_dir=data_dir,
                cache_dir=results / "cache",
                download=download,
                panoramas=panoramas,
                progress=lambda _what, done, total: progress(done, total),
            )

    train = open_split(space.data.train, "train", panoramas=space.task == "odi")
    validation = open_split(space.data.validation, "validation", panoramas=protocol.spherical)
    refuse_overlap(train, validation)
    options.check_training(space.training_config(), train, place, vary=space.dimensions)
    if space.calibrate is not None:
        check_calibration(space.calibrate, train)
    warn_of_small(train, space.training_config().hr_patch_size)
    wanted = [objective.metric for objective in space.objectives]
    wanted += [constraint.metric for constraint in space.parsed_constraints()]
    return TrialSetup(
        study=name,
        folder=StudyFolder(results / name),
        data=space.data_config,
        train=train,
        validation=validation,
        protocol=protocol,
        constraints=space.parsed_constraints(),
        devices=space.profile.devices,
        latency_input_size=space.profile.latency_input_size,
        macs_input_size=space.macs_input_size,
        reference=build_seeded(baseline_config(space, "swinir-light"), seed=0).eval(),
        reference_name="swinir-light",
        train_device=place,
        threads=threads,
        latency_repeats=space.profile.min_repeats,
        latency_seconds=space.profile.min_seconds,
        latency_process=space.profile.process,
        measure_memory="peak_memory_bytes" in wanted,
        calibration=space.calibrate,
        stopping=space.stopping,
        teachers=teachers,
        shares_training=space.compresses,
    )


def _default_store(results: Path) -> str:
    return f"sqlite:///{(results / 'mlflow.db').resolve()}"


def _warn(text: str) -> None:
    messages.print(f"warning: {text}")


def _open_tracker(tracking_uri: str | None, record: "StudyRecord", results: Path) -> "BackgroundTracker":
    from harness.tracking import BackgroundTracker, MlflowTracker

    results.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri or _default_store(results)
    artifacts = None if tracking_uri else (results / "mlartifacts").resolve()
    return BackgroundTracker(MlflowTracker(uri, record, artifact_root=artifacts, warn=_warn))


def _write_report(setup: "TrialSetup") -> "tuple[ReportFiles, Study, tuple[Importance, ...]]":
    """Write the report; return its files, the study that it was made of, and what the objectives hang on."""
    from harness.cli.report import find_importance
    from harness.reporting import load_study, make_pictures, write_report

    folder = setup.folder
    study = load_study(folder.path)
    importance = find_importance(study)
    pictures = make_pictures(study, folder, folder.path.parent / "cache", setup.validation)
    return write_report(folder.path, study=study, importance=importance, pictures=pictures), study, importance


def _track_report(
    tracker: "BackgroundTracker",
    folder: "StudyFolder",
    files: "ReportFiles",
    study: "Study",
    importance: "tuple[Importance, ...]",
    *,
    interrupted: bool,
) -> None:
    """Put the report, with whatever the store is missing, on the parent run."""
    from harness.reporting import summarise

    summary = summarise(study)
    numbers = {
        "hypervolume": summary["hypervolume"],
        "front_size": len(summary["front"]),
        "num_architectures": summary["num_architectures"],
        "num_points": summary["num_points"],
        **{f"importance/{one.metric}/{name}": share for one in importance for name, share in one.shares.items()},
    }
    tracker.sync(folder)
    tracker.log_front(
        files.front_csv,
        files.front_png,
        files.report_html,
        [dict(row) for row in summary["front"]],
        {name: float(value) for name, value in numbers.items() if value is not None},
    )
    tracker.finish(interrupted=interrupted)


def _print_whereabouts(
    space: str,
    study: "Study",
    folder: "StudyFolder",
    files: Any,
    bundle: Path | None,
    tracker: "BackgroundTracker | None",
    tracking_uri: str | None,
    results: Path,
    phases: dict[str, float],
    started: float,
) -> None:
    """Say where everything is and what to type next."""
    from harness.reporting import study_front

    name = study.record.name
    option = "" if results == Path("results") else f" --results {results}"
    total = time.perf_counter() - started
    spent = ", ".join(f"{phase} {format_seconds(seconds)}" for phase, seconds in phases.items())
    console.print(f"\ntime: {format_seconds(total)} ({spent})")
    console.print(f"report   {files.report_html}")
    console.print(f"front    {files.front_csv}, {files.front_png}")
    if bundle is not None:
        console.print(f"bundle   {bundle}")
    if tracker is not None:
        store = without_credentials(tracking_uri or _default_store(results), SHOWN)
        console.print(f"MLflow   {store}, experiment {name}")
    typed = command()
    console.print("\nnext:")
    if study.networks or study.baselines:
        console.print(
            f"  {typed} compare {name}{option} --published\n    the front beside SwinIR-light and published tables"
        )
    if bundle is not None:
        console.print(f"  {typed} upscale {bundle} IMAGE OUT.png\n    the exported network on an image of yours")
    elif study_front(study).points:
        console.print(f"  {typed} export {name}{option} --pick knee\n    a deployable bundle")
    if tracker is not None and tracking_uri is None:
        console.print(
            f"  {command('mlflow')} ui --backend-store-uri {_default_store(results)}\n    every run in the browser"
        )
    console.print(
        f"  {typed} search {space} --study mine --train FOLDER --validation FOLDER{option}\n"
        "    the same search on images of yours"
    )

"""`harness replay`: a trial of a study, run again from its record, and what came out otherwise."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import (
    INTERRUPTED,
    TrainingBar,
    console,
    format_interval,
    format_number,
    messages,
    print_json,
    print_table,
    stop_on_signals,
)
from harness.core.errors import UserError

if TYPE_CHECKING:
    from harness.core.configs import RoutingConfig
    from harness.core.records import LatencyRecord, StudyRecord, TrialRecord
    from harness.search import SearchSpace
    from harness.trial import Replay, TrialSetup


def replay(
    study: options.StudyName,
    trial: Annotated[int, typer.Option(min=0, metavar="N", help="The trial's number.")],
    latency: Annotated[bool, typer.Option(help="Measure latencies again, too.")] = True,
    train: options.TrainAgain = None,
    validation: options.ValidationAgain = None,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Run a trial again from its record and its images; exit code 1 where it comes out otherwise.

    The study is left as it is. Threads are those that the trial was trained on. --train and --validation are for images
    that lie elsewhere here, and for URLs with passwords, which no study keeps.
    """
    from harness.cli.search import images_elsewhere
    from harness.core.study_folder import StudyFolder
    from harness.search import read_study_space
    from harness.trial import refuse_replay
    from harness.trial import replay as run_again

    folder = StudyFolder(options.study_path(study, results))
    known = folder.read_study()
    records = list(folder.read_trials())
    record = _find_trial(records, trial, known.name)
    refuse_replay(record)
    try:
        space = read_study_space(known)
    except UserError as error:
        raise UserError(f"study {known.name!r} has a space that is not of this version: {error}") from None
    here = images_elsewhere(space, train, validation, None)
    setup = _make_setup(folder.path, known, record, records, space, here, latency=latency)
    routings: tuple[RoutingConfig | None, ...] = space.routings() if space.routes else (None,)
    suggested = space.routing_config(record.suggestion) if space.routes else None
    if not json:
        images = f"{len(setup.train)} training and {len(setup.validation)} validation images"
        where = f"{setup.train_device}, threads: {setup.threads}"
        messages.print(f"{record.record_id}  {record.label}: running it again on {images} ({where})")
    from harness.training import TrainingInterruptedError

    with stop_on_signals() as should_stop, TrainingBar() as bar:
        try:
            found = run_again(setup, record, routings, suggested, progress=bar, should_stop=should_stop)
        except TrainingInterruptedError as interruption:
            messages.print(f"replay of {record.record_id}: training was {interruption}; nothing is kept of it")
            raise typer.Exit(INTERRUPTED) from None
    if json:
        print_json(_document(known.name, found, setup.threads))
    else:
        _print_replay(found)
    if not found.is_identical:
        raise typer.Exit(1)


def _find_trial(records: "list[TrialRecord]", number: int, study: str) -> "TrialRecord":
    trials = {record.number: record for record in records if record.kind == "trial" and record.number is not None}
    if number not in trials:
        able = [str(other) for other, record in trials.items() if record.state in ("complete", "stopped", "failed")]
        raise UserError(
            f"no trial {number} in study {study!r}; trials that can be replayed: {', '.join(able) or 'none'}"
        )
    return trials[number]


def _make_setup(
    folder: Path,
    study: "StudyRecord",
    record: "TrialRecord",
    records: "list[TrialRecord]",
    space: "SearchSpace",
    here: "SearchSpace",
    *,
    latency: bool,
) -> "TrialSetup":
    """Open the images where they are `here`, as the search did; `UserError` where they are not the same any more."""
    from harness.cli.search import make_setup
    from harness.search import study_identity
    from harness.trial import with_teacher

    trained = record.training_result or next((one.training_result for one in records if one.training_result), None)
    device = trained.device if trained else "cpu"
    threads = trained.threads if trained else 1
    measured = here
    if not latency:  # whose runtimes and devices need not be here
        measured = here.model_copy(update={"profile": space.profile.model_copy(update={"devices": ("cpu:1",)})})
    setup = make_setup(study.name, measured, folder.parent, device, threads, download=False)
    if record.training is not None:
        with_teacher(record.training, setup.teachers)  # of which the identity of the study would not say so
    evaluations = [point.evaluation for one in (record, *records) for point in one.points]
    evaluations += [one.untrained for one in (record, *records) if one.untrained is not None]
    scored = next((one for one in evaluations), None)
    if scored is not None and scored.dataset_hash != setup.validation.content_hash:
        raise UserError(
            f"validation images {record.data.validation!r} have changed: their content hash is "
            f"{setup.validation.content_hash}, but {record.record_id} was scored on {scored.dataset_hash}; "
            "put back the images that the study used"
        )
    if study_identity(space, setup) != study.space_hash:
        raise UserError(
            f"training images {record.data.train!r} (or the space in study.json, or another teacher) have changed: the "
            f"study's hash is {study.space_hash}, but they make {study_identity(space, setup)}; put back the images "
            "that the study used"
        )
    return dataclasses.replace(setup, devices=study.devices, measure_latency=latency)


def _print_replay(found: "Replay") -> None:
    record, again = found.record, found.again
    if found.is_identical:
        ending = "" if record.state == "complete" else f" It was {record.state} again: {again.reason}."
        console.print(
            f"{record.record_id}  {record.label}: identical to the bit in {', '.join(found.compared)}.{ending}",
            markup=False,
            soft_wrap=True,
        )
    else:
        if record.state != again.state:
            reason = "" if again.reason is None else f", {again.reason}"
            console.print(
                f"{record.record_id}  {record.label}: was {record.state}, is {again.state} now{reason}",
                markup=False,
                soft_wrap=True,
            )
        title = f"\n{record.record_id}  {record.label}: {len(found.differences)} differences"
        print_table(title, ["", "record", "replay"], [list(one) for one in found.differences], text_columns=3)
    if found.latencies:
        rows = [
            [
                f"{pair.point}, {pair.then.short_conditions}",
                *_describe_latency(pair.then),
                *_describe_latency(pair.now),
                format_number(pair.now.median / pair.then.median, 3),
            ]
            for pair in found.latencies
        ]
        columns = ["latency (ms)", "record", "95 %", "/ reference", "replay", "95 %", "/ reference", "replay / record"]
        print_table("\nmeasured again, and not expected to be the same", columns, rows)
    for one in found.environment:
        console.print(f"environment: {one.what} was {one.then}, is {one.now}", markup=False, soft_wrap=True)


def _describe_latency(latency: "LatencyRecord") -> list[str]:
    doubt = " noisy" if latency.is_noisy else ""
    ratio = format_number(latency.ratio, 3)
    return [f"{latency.median:.3f}{doubt}", format_interval(latency.interval, 3), ratio]


def _document(study: str, found: "Replay", threads: int) -> dict[str, Any]:
    names = ("median", "interval", "ratio", "ratio_interval", "is_noisy")
    return {
        "study": study,
        "record_id": found.record.record_id,
        "label": found.record.label,
        "identical": found.is_identical,
        "ending": {
            name: {"state": record.state, "reason": record.reason}
            for name, record in (("then", found.record), ("now", found.again))
        },
        "threads": threads,
        "compared": found.compared,
        "differences": [one._asdict() for one in found.differences],
        "latencies": [
            {
                "point": pair.point,
                "conditions": pair.then.conditions,
                "then": {name: getattr(pair.then, name) for name in names},
                "now": {name: getattr(pair.now, name) for name in names},
                "median_ratio": pair.now.median / pair.then.median,
            }
            for pair in found.latencies
        ],
        "environment": [one._asdict() for one in found.environment],
        "seconds": sum(found.again.seconds.values()),
    }

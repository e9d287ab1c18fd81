"""`harness worker`: one more worker for a study that is being searched, on this machine or another."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options
from harness.cli.output import INTERRUPTED, TrainingBar, console, describe_record, stop_on_signals

if TYPE_CHECKING:
    from harness.core.records import TrialRecord


def worker(
    study: options.StudyName,
    storage: Annotated[
        str | None,
        typer.Option(envvar="HARNESS_STORAGE", help="The study's Optuna RDB URL.  [default: SQLite in the study]"),
    ] = None,
    checkpoints: options.Checkpoints = None,
    device: options.TrainDevice = "cpu",
    threads: options.Threads = None,
    train: options.TrainAgain = None,
    validation: options.ValidationAgain = None,
    data_dir: options.DataDir = None,
    results: options.Results = Path("results"),
) -> None:
    """Train for a study until its budget is spent. The study's folder must be one that all its workers reach.

    --train and --validation are for images that lie elsewhere here, and for URLs with passwords, which no study keeps.
    """
    from harness.cli.search import images_elsewhere, make_setup
    from harness.core.study_folder import StudyFolder
    from harness.search import join_search, read_study_space

    path = options.study_path(study, results)
    folder = StudyFolder(path)
    record = folder.read_study()
    space = read_study_space(record)
    here = images_elsewhere(space, train, validation, data_dir)
    setup = make_setup(record.name, here, path.parent, device, options.resolve_threads(threads), download=False)
    setup = dataclasses.replace(setup, data=record.data)  # by which networks are known
    console.print(f"working for study {record.name} in {path}; Ctrl-C ends cleanly")

    def tell(finished: "TrialRecord") -> None:
        console.print(describe_record(finished), markup=False)

    with stop_on_signals() as should_stop, TrainingBar() as bar:
        outcome = join_search(
            space,
            setup,
            record,
            storage=storage or f"sqlite:///{folder.database.resolve()}",
            checkpoints=checkpoints,
            on_record=tell,
            progress=bar,
            should_stop=should_stop,
        )
    console.print(f"{outcome.ending}: {outcome.reason}; {outcome.networks} networks trained")
    if outcome.ending == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if outcome.ending == "failing":
        raise typer.Exit(1)

"""`harness bench search`: what samplers and early stopping save of a study's training, replayed on a recorded table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options
from harness.cli.output import console, describe_record, stop_on_signals

if TYPE_CHECKING:
    from harness.core.records import TrialRecord

_SEEDS, _REPEATED = 3, 10  # seeds of so many networks, which say how much is chance


def record(
    space: Annotated[str, typer.Argument(help="A search space without endless dimensions.")] = "bench_search",
    study: Annotated[str, typer.Option(help="The folder in --results that the records are kept in.")] = "bench-search",
    workers: Annotated[int, typer.Option(min=1, help="Networks trained at once, on one thread each.")] = 2,
    results: options.Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="The table as CSV.  [default: table.csv in the folder]")] = None,
) -> None:
    """Train every network of a space and score it at every rung. The same command again goes on."""
    from harness.cli.search import make_setup
    from harness.core.files import write_text
    from harness.search import find_space, read_space
    from harness.search.table import plan_table, record_table, write_table

    parsed = read_space(find_space(space))
    setup = make_setup(study, parsed, results, "cpu", 1, download=False)
    tasks = plan_table(parsed, seeds=_SEEDS, repeated=_REPEATED)
    console.print(f"{len(tasks)} trainings of {parsed.training_config().steps} steps, in {setup.folder.path}")

    def tell(finished: "TrialRecord") -> None:
        console.print(describe_record(finished), markup=False)

    with stop_on_signals() as should_stop:
        is_whole = record_table(parsed, setup, tasks, workers=workers, on_record=tell, should_stop=should_stop)
    target = out or setup.folder.path / "table.csv"
    write_text(target, write_table(setup.folder.read_trials()))
    console.print(f"table    {target}" if is_whole else "the same command again goes on from here")
    if not is_whole:
        raise typer.Exit(130)

"""`harness bench table` and `harness bench search`: what samplers and early stopping save of a study's training."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from harness.cli import options
from harness.cli.output import (
    INTERRUPTED,
    console,
    counting,
    describe_record,
    messages,
    print_json,
    print_table,
    stop_on_signals,
)
from harness.core.errors import UserError

if TYPE_CHECKING:
    from harness.core.configs import StoppingConfig
    from harness.core.records import TrialRecord
    from harness.search.simulation import Curve, SearchBench

_SEEDS, _REPEATED = 3, 10  # seeds of so many networks, which say how much is chance
_QUIET_SECONDS = 10.0  # between lines on how far it is, where no bar is drawn
_COMMON = (
    "studies of one seed begin with the same random networks: 10 with tpe, the first generation with nsga2 and nsga3; "
    "so those do not differ from random at first"
)


def table(
    space: Annotated[str, typer.Argument(help="A search space without endless dimensions.")] = "bench_search",
    study: Annotated[str, typer.Option(help="The folder in --results that the records are kept in.")] = "bench-search",
    train: Annotated[str | None, typer.Option(help="Training images: a folder or a dataset's name.")] = None,
    validation: Annotated[str | None, typer.Option(help="Validation images: a folder or a dataset's name.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Networks trained at once, on one thread each.")] = 2,
    known: Annotated[
        Path | None,
        typer.Option(help="A table of the same space and images, whose whole networks need not be trained again."),
    ] = None,
    results: options.Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="The table as CSV.  [default: table.csv in the folder]")] = None,
) -> None:
    """Train every network of a space and score it at every rung. The same command again goes on."""
    from harness.cli.search import make_setup
    from harness.core.files import write_text
    from harness.search import find_space, read_space
    from harness.search.table import network_name, plan_table, read_rows, record_table, whole, write_table

    given = {"data.train": train, "data.validation": validation}
    parsed = read_space(find_space(space), {key: value for key, value in given.items() if value is not None})
    rows = [] if known is None else read_rows(known, parsed)
    have = whole(rows, parsed)
    rows = [row for row in rows if (row["network"], int(row["seed"])) in have]
    setup = make_setup(study, parsed, results, "cpu", 1, download=False)
    tasks = plan_table(parsed, seeds=_SEEDS, repeated=_REPEATED)
    missing = sum((network_name(task.values), task.seed) not in have for task in tasks)
    console.print(f"{missing} trainings of {parsed.training_config().steps} steps, in {setup.folder.path}")

    def tell(finished: "TrialRecord") -> None:
        console.print(describe_record(finished), markup=False)

    with stop_on_signals() as should_stop:
        is_whole = record_table(
            parsed, setup, tasks, workers=workers, known=have, on_record=tell, should_stop=should_stop
        )
    target = out or setup.folder.path / "table.csv"
    write_text(target, write_table(setup.folder.read_trials(), rows))
    console.print(f"table    {target}" if is_whole else "the same command again goes on from here")
    if not is_whole:
        raise typer.Exit(INTERRUPTED)


def search(
    recorded: Annotated[Path, typer.Argument(help="A table that `harness bench table` has made.")],
    space: Annotated[str, typer.Option(help="The space that it is of.")] = "bench_search",
    samplers: Annotated[
        str, typer.Option(help="Samplers, each with and without early stopping.")
    ] = "ehvi,tpe,random,nsga2",
    stopping: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GRACE:FACTOR", help="Early stopping; several times; `none` for none.  [default: the space's]"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Studies of each kind, of the same seeds.")] = 20,
    networks: Annotated[
        int, typer.Option(min=1, help="Whole trainings that a study may spend, at most all of the table.")
    ] = 40,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves as a PNG.")] = None,
    json: options.Json = False,
) -> None:
    """Replay studies on a recorded table: hypervolume against training steps, with and without early stopping."""
    from harness.search import find_space, read_space
    from harness.search.simulation import Table, compare_searches
    from harness.search.space import SamplerConfig

    parsed = read_space(find_space(space))
    known = Table.read(recorded, parsed)
    if networks > len(known.entries):
        raise UserError(
            f"--networks {networks}: {recorded} is of {len(known.entries)} networks; give that many or fewer"
        )
    rules = [_parse_stopping(text) for text in stopping] if stopping else [parsed.stopping]
    names = [name.strip() for name in samplers.split(",")]
    known_names = [name for name in get_args(SamplerConfig.model_fields["name"].annotation) if name != "grid"]
    unknown = sorted(set(names) - set(known_names))
    if unknown:
        raise UserError(f"--samplers {unknown[0]}: expected some of {', '.join(known_names)}")
    for rule in rules:
        known.require(rule)
    ways = [(name, rule) for name in names for rule in dict.fromkeys((None, *rules))]
    by_default = "" if stopping else f" (that of the space {space})"
    messages.print(
        f"replaying {seeds} studies of {networks} networks each with {', '.join(names)}; early stopping: "
        f"{', '.join(dict.fromkeys(map(_describe, rules)))}{by_default}",
        soft_wrap=True,
    )

    told_at = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told_at
        progress(done, total)
        if not messages.is_terminal and (done % seeds == 0 or time.monotonic() - told_at > _QUIET_SECONDS):
            messages.print(f"{done} of {total} studies replayed")
            told_at = time.monotonic()

    with counting("replaying") as progress:
        bench = compare_searches(
            parsed,
            known,
            ways,
            source=recorded.name,
            seeds=seeds,
            max_steps=networks * known.steps,
            progress=tell,
        )
    if plot is not None:
        from harness.reporting import draw_searches

        draw_searches(bench.model_dump(), plot)
    if json:
        print_json(bench.model_dump(mode="json"))
        return
    print_searches(bench)


def _parse_stopping(text: str) -> "StoppingConfig | None":
    from harness.core.configs import StoppingConfig, parse_config

    if text == "none":
        return None
    grace, colon, factor = text.partition(":")
    if not (colon and grace.isdigit() and factor.isdigit()):
        raise UserError(f"--stopping {text!r}: expected GRACE:FACTOR, for example 30:3, or none")
    return parse_config(StoppingConfig, {"grace_steps": int(grace), "factor": int(factor)}, "--stopping")


def print_searches(bench: "SearchBench") -> None:
    """Print what each way to search comes to, and how much the rungs say."""
    marks = [len(bench.grid) * part // 4 - 1 for part in (1, 2, 3, 4)]

    def row(curve: "Curve") -> list[str]:
        to_target = "never" if curve.steps_to_target is None else f"{curve.steps_to_target / bench.max_steps:.2f}"
        cells = [f"{curve.median[mark]:.3f} ({curve.lower[mark]:.3f}-{curve.upper[mark]:.3f})" for mark in marks]
        return [curve.sampler, _describe(curve.stopping), *cells, to_target, f"{curve.networks:.0f}/{curve.begun:.0f}"]

    shares = [f"at {bench.grid[mark]} steps" for mark in marks]
    title = (
        f"hypervolume as a share of that of all {bench.networks} networks: "
        f"median and quartiles of {bench.seeds} studies"
    )
    columns = ["sampler", "stopping", *shares, "steps to what\nTPE comes to", "trained/\nbegun"]
    print_table(title, columns, [row(curve) for curve in bench.curves], text_columns=2)
    console.print(f"[dim]{_COMMON}[/dim]")
    rungs = [
        [
            str(one.step),
            f"{one.rank_correlation:.2f}",
            f"{one.beyond_cost:.2f}",
            f"{one.spread:.4f}",
            "–" if one.seed_spread is None else f"{one.seed_spread:.4f}",
        ]
        for one in bench.reliability
    ]
    print_table(
        f"what a rung says of the end ({bench.objectives[0]}, best of each network)",
        ["step", "rank correlation", "correlation\nbeyond cost", "spread of networks", "spread of seeds"],
        rungs,
    )


def _describe(stopping: "StoppingConfig | None") -> str:
    return "none" if stopping is None else f"from {stopping.grace_steps}, best 1/{stopping.factor}"

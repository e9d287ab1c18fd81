"""`harness bench overhead`: what a study costs beside training and measuring, and what reports of large ones do."""

import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import console, counting, messages, print_json, print_table

if TYPE_CHECKING:
    from harness.core.records import StudyRecord, TrialRecord
    from harness.search import SearchSpace
    from harness.search.overhead import LoopCost, OverheadBench
    from harness.trial import TrialSetup

_MARKS = (100, 300, 1000)


def overhead(
    trials: Annotated[int, typer.Option(min=1, help="Trials of each study.")] = 1000,
    records: Annotated[int, typer.Option(min=1, help="Records in the folder that is reported and compared.")] = 10_000,
    space: Annotated[str, typer.Option(help="The search space; its networks must be endless.")] = "bench_overhead",
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Measure what a study costs beside training, evaluating and measuring, which one real trial's record stands for.

    A study without sampler and tracking, one with the space's sampler, and one with that and MLflow (in the background,
    a local SQLite store); then `harness report` and `harness compare` of a large folder in fresh processes.
    """
    from harness.cli.search import make_setup
    from harness.core.environment import now, observe_environment, usable_cores
    from harness.models import describe_kernels
    from harness.search import find_space, read_space, study_record
    from harness.search.overhead import (
        PROTOCOL,
        OverheadBench,
        measure_command,
        record_trial,
        write_records,
    )

    path = find_space(space)
    parsed = read_space(path, {"budget.networks": trials})
    with tempfile.TemporaryDirectory(prefix="harness-overhead-") as temporary:
        folder = Path(temporary)
        setup = make_setup("overhead", parsed, results, "cpu", 1, download=False)
        setup = _elsewhere(setup, folder, "overhead")
        record = study_record("overhead", parsed, path.read_text(encoding="utf-8"), setup)
        messages.print("running one real trial")
        template = record_trial(parsed, setup)
        loops = []
        for sampler, is_tracked in (("random", False), (parsed.sampler.name, False), (parsed.sampler.name, True)):
            overrides = {"budget.networks": trials, "sampler.name": sampler}
            loops.append(_measure(read_space(path, overrides), setup, record, template, folder, is_tracked=is_tracked))
        large = _elsewhere(setup, folder, "large")
        with counting(f"writing {records:,} records") as progress:
            write_records(
                parsed, large, record.model_copy(update={"name": "large"}), template, records, progress=progress
            )
        harness = [sys.executable, "-m", "harness"]
        commands = []
        for command in ("report", "compare"):
            messages.print(f"harness {command} of {records:,} records")
            commands.append(measure_command(f"harness {command}", [*harness, command, str(large.folder.path)], records))
    bench = OverheadBench(
        protocol=PROTOCOL,
        environment=observe_environment(describe_kernels()),
        usable_cores=usable_cores(),
        threads=setup.threads,
        record_bytes=len(template.model_dump_json(indent=1).encode()),
        points=len(template.points),
        loops=tuple(loops),
        commands=tuple(commands),
        measured_at=now(),
    )
    if json:
        print_json(bench.model_dump(mode="json"))
        return
    print_overhead(bench)


def _elsewhere(setup: "TrialSetup", folder: Path, name: str) -> "TrialSetup":
    from harness.core.study_folder import StudyFolder

    return dataclasses.replace(setup, study=name, folder=StudyFolder(folder / name))


def _measure(
    space: "SearchSpace",
    setup: "TrialSetup",
    record: "StudyRecord",
    template: "TrialRecord",
    folder: Path,
    *,
    is_tracked: bool,
) -> "LoopCost":
    """Run a study in a folder of its own, with MLflow if told to."""
    from harness.search.overhead import measure_loop
    from harness.tracking import BackgroundTracker, MlflowTracker

    name = f"{space.sampler.name}{'-mlflow' if is_tracked else ''}"
    setup, record = _elsewhere(setup, folder, name), record.model_copy(update={"name": name})
    with contextlib.ExitStack() as held:
        options: dict[str, Any] = {}
        if is_tracked:
            uri = f"sqlite:///{folder / 'mlflow.db'}"
            tracked = MlflowTracker(uri, record, artifact_root=folder / "artifacts", warn=messages.print)
            tracker = held.enter_context(BackgroundTracker(tracked))

            def end() -> None:
                tracker.sync(setup.folder)
                tracker.finish()

            options = {"on_start": tracker.start, "on_record": tracker.log_record, "at_end": end}
        progress = held.enter_context(counting(f"{space.budget.networks:,} trials, {name}"))
        return measure_loop(space, setup, record, template, _MARKS, is_tracked=is_tracked, progress=progress, **options)


def print_overhead(bench: "OverheadBench") -> None:
    """Print a row for each study, and one for each command."""
    marks = list(dict.fromkeys(mark for loop in bench.loops for mark in loop.at))
    rows = [
        [
            loop.sampler,
            "in the background" if loop.tracking else "none",
            *(f"{loop.at[mark]:.1f} ({loop.cpu_at[mark]:.1f})" if mark in loop.at else "–" for mark in marks),
            f"{loop.mean:.1f} ({loop.cpu_mean:.1f})",
            f"{loop.on_record:.2f}",
            f"{loop.end_seconds:.1f}",
        ]
        for loop in bench.loops
    ]
    columns = ["sampler", "MLflow", *(f"at {mark:,}" for mark in marks), "mean, end included", "handing on", "end (s)"]
    print_table("ms for each trial beside training and measuring (of processor time)", columns, rows, text_columns=2)
    commands = [
        [
            cost.command,
            f"{cost.records:,}",
            f"{cost.seconds:.1f}",
            f"{cost.cpu_seconds:.1f}",
            f"{cost.peak_bytes / 2**20:.0f}",
        ]
        for cost in bench.commands
    ]
    print_table("", ["fresh process", "records", "seconds", "of processor time", "peak MiB"], commands)
    console.print(
        f"{bench.protocol}; a record of {bench.points} points is {bench.record_bytes / 1024:.0f} KiB; "
        f"{bench.environment.cpu_model}, {bench.usable_cores} of {bench.environment.cpu_count} cores",
        soft_wrap=True,
    )

"""`harness status`: how far a study has come, from another terminal while its search runs."""

import gc
import json as json_text
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import console, describe_point, print_json
from harness.core.units import format_count, format_seconds

if TYPE_CHECKING:
    from harness.core.study_folder import KnownTrials
    from harness.reporting.progress import Progress
    from harness.reporting.runs import Run


_NOBODY = "no search is running here"


def status(
    study: options.StudyName,
    watch: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Say it again so often, until Ctrl-C.")
    ] = None,
    results: options.Results = Path("results"),
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout; with --watch, a line each time.")
    ] = False,
) -> None:
    """Say how far a study, or a run of train or compress, has come; nothing is written or locked.

    So its search is not disturbed.
    """
    from harness.reporting.progress import observe_progress, progress_document
    from harness.reporting.runs import is_run, observe_run, run_document

    folder = options.study_path(study, results)
    known: KnownTrials = {}

    def observe() -> tuple[dict[str, Any], Callable[[], None]]:
        """Return what stands as JSON, and what prints it."""
        if is_run(folder):
            run = observe_run(folder)
            return run_document(run), lambda: _print_run(run, folder)
        progress = observe_progress(folder, known)
        return progress_document(progress), lambda: _print_progress(progress, folder)

    gc.disable()  # records hold no cycles, and looking for some in thousands takes longer than reading them
    while True:
        document, show = observe()
        gc.freeze()
        gc.enable()
        if watch is not None and not json and console.is_terminal:
            console.clear()
        if json and watch is not None:
            print(json_text.dumps(document, allow_nan=False), flush=True)
        elif json:
            print_json(document)
        else:
            show()
        if watch is None:
            return
        try:
            time.sleep(watch)
        except KeyboardInterrupt:  # the way to end it
            return
        if not json and not console.is_terminal:
            console.print()


def _print_progress(progress: "Progress", folder: Path) -> None:
    from harness.reporting.progress import baseline_states, describe_networks, sparkline

    study, front = progress.study, progress.front
    console.print(f"[bold]{study.record.name}[/bold] in {folder}: {_describe_search(progress)}")
    rows = {"networks": f"{describe_networks(study, progress.budget)} trained{_describe_time(progress)}"}
    states = {state: count for state, count in progress.states.items() if count or state == "complete"}
    trials = [f"{count} {state}" for state, count in states.items()]
    rows["trials"] = ", ".join([*trials, f"{progress.running} running"])
    if baselines := baseline_states(progress):
        rows["baselines"] = ", ".join(f"{name} {state}" for name, state in baselines.items())
    rows["front"] = f"{len(front.points)} of {len(study.points)} points"
    if front.knee is not None:
        rows["knee"] = f"{front.knee.label}: {describe_point(front.knee.measured)}"
    rows["hypervolume"] = f"{front.hypervolume:.4g}"
    if len(progress.history) > 1:
        first, bars = progress.history[0], sparkline([moment.hypervolume for moment in progress.history])
        rows["hypervolume"] += f" {bars} from {first.hypervolume:.4g} after the first network"
    if progress.checkpoints:
        rows["in training" if progress.running or progress.baseline else "interrupted"] = ", ".join(
            f"network {one.network_id} (checkpoint of {one.size_bytes / 2**20:.1f} MiB{_age(one.seconds_old)})"
            for one in progress.checkpoints
        )
    if progress.checkpoints_unseen is not None:
        rows["in training"] = f"not known: {progress.checkpoints_unseen}"
    last, ago = progress.last, progress.last_seconds_ago
    if last is not None and ago is not None:
        rows["last"] = f"{last.record_id} {last.state}, {_ago(ago)} ({last.finished_at})"
    if progress.last_failure is not None:
        rows["last failure"] = f"{progress.last_failure.record_id}: {progress.last_failure.reason}"
    for name, words in rows.items():
        console.print(f"{name:<12} {words}", markup=False, soft_wrap=True)


def _print_run(run: "Run", folder: Path) -> None:
    ending = run.state if run.record is None or run.record.reason is None else f"{run.state}: {run.record.reason}"
    console.print(f"[bold]{run.name}[/bold] in {folder}: a run of `harness {run.kind}`, ", end="", highlight=False)
    console.print(ending, markup=False, soft_wrap=True)
    rows = {}
    if run.stages:
        told = [f"{one.name} {one.psnr_db:.2f} dB, {format_count(one.macs)} MACs" for one in run.stages]
        rows["stages"] = "; ".join(told)
    record = run.record
    if record is not None and record.points:
        best = max(record.produced, key=lambda point: point.evaluation.psnr_db)
        rows["network"] = f"{record.label}: {describe_point(best)}"
    if record is not None:
        rows["finished"] = record.finished_at
    else:
        rows["checkpoints"] = "none yet"
        if run.checkpoints:
            rows["checkpoints"] = ", ".join(
                f"network {one.network_id} ({one.size_bytes / 2**20:.1f} MiB"
                f"{_age(None if one.changed is None else run.seconds_since(one.changed))})"
                for one in run.checkpoints
            )
        rows["next"] = "unless it is running, the same command again goes on from here"
    if run.bundle is not None:
        rows["bundle"] = str(run.bundle)
    for name, words in rows.items():
        console.print(f"{name:<12} {words}", markup=False, soft_wrap=True)


def _describe_search(progress: "Progress") -> str:
    if progress.processes is None:
        return "whether a search is running cannot be told on this system"
    workers = ", ".join(map(str, progress.workers or ()))
    if not progress.processes:
        return f"no search leads here, a worker trains alone (process {workers})" if workers else _NOBODY
    joined = f", and a worker (process {workers})" if workers else ""
    return f"a search is running (process {', '.join(map(str, progress.processes))}){joined}"


def _describe_time(progress: "Progress") -> str:
    if progress.seconds_per_network is None:
        return ""
    left, waited = progress.seconds_left, progress.seconds_waited
    ahead = f", about {format_seconds(left)} left" if left else ""
    beside = f" and {format_seconds(waited)} of waiting for other processes" if waited and waited >= 0.1 else ""
    return f"; {format_seconds(progress.seconds_per_network)} each{beside}{ahead}"


def _age(seconds: float | None) -> str:
    return "" if seconds is None else f", {_ago(seconds)}"


def _ago(seconds: float) -> str:
    return f"{format_seconds(seconds)} ago"

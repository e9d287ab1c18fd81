"""Printing: JSON documents on stdout; everything for people on the console, progress on stderr."""

import json
import math
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from harness.core.records import PointRecord, TrialRecord
from harness.core.units import format_count, format_seconds

INTERRUPTED = 130  # exit code of what Ctrl-C has ended
_WIDTH = 140  # of lines where there is no terminal to ask
_NO_LIMIT = 10_000


def _make_console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _WIDTH)


console = _make_console(stderr=False)
messages = _make_console(stderr=True)


def note(text: str) -> None:
    """Print a line about something that went otherwise than it might, beside the results."""
    messages.print(f"note: {text}", markup=False, soft_wrap=True)


def command(name: str = "harness") -> str:
    """Return how to type a command of this installation: by name where the shell finds the same one, else by path."""
    started = Path(sys.argv[0])
    here = (Path(sys.executable) if started.name == "__main__.py" else started).with_name(name)  # `python -m harness`
    found = shutil.which(name)
    return name if found and here.exists() and Path(found).samefile(here) else str(here)


def print_json(document: Any) -> None:
    """Print one JSON document; numbers that are not finite become null."""
    print(json.dumps(_finite(document), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, columns: list[str], rows: list[list[str]], *, text_columns: int = 1) -> None:
    """Print a table under its title; the first `text_columns` columns are text, the others right-aligned numbers.

    Where there is no terminal, it is as wide as it needs to be: nothing is cut or wrapped.
    """
    table = Table(pad_edge=False)
    for index, column in enumerate(columns):
        is_text = index < text_columns
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        table.add_row(*row)
    console.print(f"[bold]{title}[/bold]")
    width = console.width
    console.width = width if console.is_terminal else _NO_LIMIT
    console.print(table)
    console.width = width


def format_number(value: float | None, digits: int = 2) -> str:
    """Write a number with so many digits, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def format_signed(value: float | None, digits: int = 2) -> str:
    """Write a difference with its sign and so many digits, or a dash: +0.12, −0.30, 0.00."""
    if value is None or not math.isfinite(value):
        return "–"
    rounded = round(value, digits)
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded):.{digits}f}"


def format_interval(interval: tuple[float, float] | None, digits: int) -> str:
    """Write an interval's ends with so many digits, or a dash."""
    return "–" if interval is None else f"{interval[0]:.{digits}f}–{interval[1]:.{digits}f}"


def describe_point(point: PointRecord) -> str:
    """Describe a point's measurements on one line."""
    latency, ratio = point.value("latency_ms"), point.value("latency_ratio")
    parts = [f"{point.evaluation.psnr_db:.2f} dB", f"{format_count(point.macs)} MACs"]
    if latency is not None:
        parts.append(f"{latency:.1f} ms")
    if ratio is not None:
        parts.append(f"{ratio:.2f} × SwinIR-light")
    return ", ".join(parts)


def describe_record(record: TrialRecord) -> str:
    """Describe how a trial ended on one line."""
    name = f"{record.record_id}  {record.label}"
    notes = "".join(f"; {note}" for note in record.notes)
    if record.state != "complete":
        return f"{name}: {record.state}, {record.reason}{notes}"
    best = max(record.produced, key=lambda point: point.evaluation.psnr_db)
    seconds = sum(record.seconds.values())
    points = f"{len(record.points)} points, best " if len(record.points) > 1 else ""
    if best.quantised is not None:
        points = f"{len(record.points)} points, of {best.quantised.label} best "
    note = ""
    if record.calibration is not None and record.calibration.note is not None:
        note = f"; no calibrated points: {record.calibration.note}"
    return f"{name}: {points}{describe_point(best)}, took {seconds:.0f} s{note}{notes}"


def describe_routing(row: dict[str, Any]) -> str:
    """Describe the routing of a report's row, and what runs its file: '' for networks that do neither."""
    quantised = row.get("quantised")
    if row["routing"] is None:
        return quantised or ""
    routing = str(row["routing"]) if row["gamma"] is None else f"{row['routing']} γ={row['gamma']:g}"
    return f"{routing}, {quantised}" if quantised else routing


def describe_effort(row: dict[str, Any]) -> str:
    """Describe the training of a report's row: ' (100 steps, 2 min 8 s)', '' for what is not trained."""
    if not row["steps"]:
        return ""
    return f" ({row['steps']} steps, {format_seconds(row['training_seconds'])})"


class TrainingBar:
    """Progress of trials: a live bar on a terminal, a line per phase elsewhere."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} images/s"),
            TimeRemainingColumn(),
            console=messages,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, loss=math.nan, rate=0.0, visible=False)
        self._name = ""

    def __enter__(self) -> "TrainingBar":
        if messages.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if messages.is_terminal:  # stopping what was never started would print an empty line
            self._progress.stop()

    def phase(self, record_id: str, label: str, phase: str) -> None:
        """Show that a trial enters a phase."""
        self._name = f"{record_id} {label}: {phase}"
        if messages.is_terminal:
            self._progress.reset(self._task, description=self._name, total=None, visible=True, loss=math.nan, rate=0.0)

    def training(self, progress: Any) -> None:
        """Show a training step."""
        if messages.is_terminal:
            self._progress.update(
                self._task,
                completed=progress.step,
                total=progress.steps,
                loss=progress.loss,
                rate=progress.images_per_second,
            )


def warn_of_small(dataset: Any, hr_patch_size: int) -> None:
    """Say which training images are left out because a crop does not fit into them."""
    small = dataset.names_smaller_than(hr_patch_size)
    if small:
        messages.print(
            f"note: {len(small)} of {len(dataset)} training images are smaller than hr_patch_size {hr_patch_size} "
            f"and are left out: {', '.join(small)}"
        )


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `progress(done, total)` that shows a bar on a terminal and nothing elsewhere."""
    with counting_parts(description) as progress:
        yield lambda done, total: progress(description, done, total)


@contextmanager
def counting_parts(first: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """Yield `progress(what, done, total)`: a bar on a terminal for what is being done, and nothing elsewhere.

    `first`: what is said to be done until then.
    """
    with Progress(
        TextColumn("{task.description}", markup=False),  # names of files may hold what markup is made of
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
    ) as bar:
        task = bar.add_task(first, total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@contextmanager
def counting_up() -> Iterator[Callable[[str, int], None]]:
    """Yield `progress(what, times)` for work whose end is not known: a line on a terminal and nothing elsewhere."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
    ) as line:
        task = line.add_task("", total=None)
        yield lambda what, times: line.update(task, description=what if times == 1 else f"{what}: {times}")


@contextmanager
def stop_on_signals(*, announced: bool = True) -> Iterator[Callable[[], bool]]:
    """Yield `should_stop()`; the first Ctrl-C (or SIGTERM) asks for a clean end, a second one ends at once.

    `announced`: say so, once it is asked for.
    """
    asked = False

    def ask(_signal: int, _frame: types.FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        if announced:
            print("\nstopping after this step and saving; once more to stop at once", file=sys.stderr)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

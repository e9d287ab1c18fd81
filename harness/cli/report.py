"""`harness report`: the front of a study, as files, a table or JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import (
    console,
    describe_effort,
    describe_routing,
    format_number,
    print_json,
    print_table,
)
from harness.core.units import format_count

if TYPE_CHECKING:
    from harness.core.importance import Importance
    from harness.reporting import Study

_COST_COLUMNS = ["MACs", "params", "latency (ms)", "/ SwinIR-light", "attention"]


def report(
    study: options.StudyName,
    results: options.Results = Path("results"),
    images: Annotated[bool, typer.Option(help="Restore validation images by the networks found, to look at.")] = True,
    mix: Annotated[
        bool, typer.Option("--mix", help="Lay latencies of several machines, protocols or versions side by side.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Write front.csv, front.png and report.html of a study, and print its front."""
    from harness.core.study_folder import StudyFolder
    from harness.reporting import load_study, make_pictures, summarise, write_report
    from harness.reporting.study import without_collection

    folder = options.study_path(study, results)
    with without_collection():  # between the steps too: each brings libraries, whose import collects again and again
        loaded = load_study(folder)
        importance = find_importance(loaded)
        if json:
            print_json(summarise(loaded, importance))
            return
        pictures = make_pictures(loaded, StudyFolder(folder), folder.parent / "cache") if images else None
        files = write_report(folder, study=loaded, importance=importance, pictures=pictures, mix=mix)
        print_front(loaded)
    console.print(f"\nreport   {files.report_html}\nfront    {files.front_csv}, {files.front_png}")


def find_importance(study: "Study") -> "tuple[Importance, ...]":
    """Find out what each objective of a study hangs on."""
    from harness.reporting.study import without_collection
    from harness.search import explain_objectives

    with without_collection():
        return explain_objectives(study.record, study.trials)


def print_front(study: "Study") -> None:
    """Print a study's front beside its baselines, and what it comes to."""
    from harness.metrics import metric_label
    from harness.reporting import summarise
    from harness.reporting.comparison import headline

    summary = summarise(study)
    rows = [_row(entry, _describe_front(entry, summary["knee"])) for entry in summary["front"]]
    for name, entry in summary["baselines"].items():
        if entry is not None:
            rows.append(_row(entry, f"[bold]{name}[/bold]{describe_effort(entry)}"))
    where = f"{summary['num_points']} points of {summary['num_architectures']} networks"
    protocol = summary["protocol"]
    title = f"\nfront of {summary['study']}: {len(summary['front'])} of {where}, protocol {protocol}"
    columns = ["", "routing", metric_label("psnr_db", protocol), metric_label("ssim", protocol), *_COST_COLUMNS]
    print_table(title, columns, rows, text_columns=2)
    console.print(headline(study))
    if not summary["converged"]:
        console.print(f"[dim]{summary['note']}[/dim]")
    if study.noise_note:
        console.print(f"[dim]{study.noise_note}[/dim]")
    if summary["seam_note"]:
        console.print(f"[dim]{summary['seam_note']}[/dim]")
    for note in study.calibration_notes:
        console.print(f"[dim]{note}[/dim]")


def _describe_front(entry: dict[str, Any], knee: Any) -> str:
    same = isinstance(knee, dict) and all(
        knee.get(key) == entry[key] for key in ("config_id", "gamma", "routing", "attention_share", "quantised")
    )
    return f"{entry['label']}" + ("  ← knee" if same else "")


def _row(entry: dict[str, Any], name: str) -> list[str]:
    return [
        name,
        describe_routing(entry),
        format_number(entry["psnr_db"], 3),
        format_number(entry["ssim"], 4),
        format_count(entry["macs"]),
        format_count(entry["params"]),
        format_number(entry["latency_ms_median"], 2),
        format_number(entry["latency_ratio"], 3),
        format_number(entry["attention_share"], 2),
    ]

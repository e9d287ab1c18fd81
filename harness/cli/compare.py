"""`harness compare`: the front against SwinIR-light and the published tables."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.output import console, format_number, make_table, print_json
from harness.core.units import format_count


def compare(
    study: options.StudyName,
    published: Annotated[bool, typer.Option("--published", help="Lay the published tables beside.")] = False,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Say how many fewer MACs, how many times faster and how many dB the front has against SwinIR-light."""
    from harness.reporting import compare as make_comparison
    from harness.reporting import load_study

    document = make_comparison(load_study(options.study_path(study, results)), published=published)
    if json:
        print_json(document)
        return
    rows = []
    for row in document["rows"]:
        macs = row.get("macs")
        rows.append(
            [
                str(row["label"]),
                format_number(row.get("psnr_db"), 3),
                "–" if macs is None else format_count(macs),
                format_number(row.get("latency_ms_median"), 2),
                str(row.get("sentence") or row.get("source") or ""),
            ]
        )
    table = make_table(
        f"{document['study']} against SwinIR-light",
        ["", "PSNR (dB)", "MACs", "latency (ms)", "against SwinIR-light, or source"],
        rows,
    )
    table.columns[-1].justify = "left"
    table.columns[-1].no_wrap = False
    console.print(table)
    console.print(document["headline"])
    if not document["converged"]:
        console.print(f"[dim]{document['note']}[/dim]")

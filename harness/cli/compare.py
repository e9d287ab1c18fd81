"""`harness compare`: the front against SwinIR-light and the published tables."""

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import console, format_number, print_json, print_table
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
    rows = [
        [
            f"{row['label']}, {row['routing']} γ={row['gamma']:g}" if row["routing"] else str(row["label"]),
            str(row["sentence"] or row["source"]),
            format_number(row["psnr_db"], 3),
            format_count(row["macs"]),
            format_number(row["latency_ms_median"], 2),
        ]
        for row in document["rows"]
        if row["role"] != "published"
    ]
    columns = ["", "against SwinIR-light", "PSNR (dB)", "MACs", "latency (ms)"]
    print_table(f"{document['study']} against SwinIR-light", columns, rows, text_columns=2)
    if published:
        _print_published([row for row in document["rows"] if row["role"] == "published"])
    console.print(document["headline"])
    if not document["converged"]:
        console.print(f"[dim]{document['note']}[/dim]")


def _print_published(rows: list[dict[str, Any]]) -> None:
    """Print published rows with one column of PSNR for each dataset."""
    datasets = list(dict.fromkeys(str(row["dataset"]) for row in rows))
    methods: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        macs = "–" if row["macs"] is None else format_count(row["macs"])
        method = (str(row["label"]), str(row["trained_on"]), str(row["source"]), macs, format_count(row["params"]))
        methods.setdefault(method, {})[str(row["dataset"])] = row["psnr_db"]
    print_table(
        "published, PSNR (dB): other training and other images than this study's",
        ["", "trained on", "source", "MACs", "params", *datasets],
        [[*method, *(format_number(scores.get(name)) for name in datasets)] for method, scores in methods.items()],
        text_columns=3,
    )

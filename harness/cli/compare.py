"""`harness compare`: the front against SwinIR-light and the published tables; or what was profiled."""

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import (
    console,
    describe_effort,
    describe_routing,
    format_interval,
    format_number,
    print_json,
    print_table,
)
from harness.core.errors import UserError
from harness.core.units import format_count


def compare(
    study: Annotated[str | None, typer.Argument(help="A study's name, or the path of its folder.")] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's cost columns beside ours; needs no study.")
    ] = False,
    published: Annotated[bool, typer.Option("--published", help="Lay the published tables beside.")] = False,
    profiles: Annotated[
        bool, typer.Option("--profiles", help="What `harness profile` has measured, in one table; needs no study.")
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(help="With --profiles: such conditions alone: cpu:1/bf16/64x64, cpu:1/batch4, …"),
    ] = None,
    mix: Annotated[
        bool, typer.Option("--mix", help="Let latencies of several protocols, devices or conditions share a column.")
    ] = False,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Say how many fewer MACs, how many times faster and how many dB the front has against SwinIR-light."""
    from harness.metrics import metric_label
    from harness.reporting import compare as make_comparison
    from harness.reporting import load_study

    if (study is not None) + paper + profiles != 1:
        raise UserError("say either a STUDY to compare, or --paper, or --profiles")
    if at is not None and not profiles:
        raise UserError(f"--at {at} goes with --profiles")
    if paper:
        _compare_paper(json)
        return
    if profiles:
        folder = results / "profiles"
        _compare_profiles(folder if folder.is_dir() else results, at, mix, json)  # or what --output named
        return
    assert study is not None
    document = make_comparison(load_study(options.study_path(study, results)), published=published, mix=mix)
    if json:
        print_json(document)
        return
    rows = [
        [
            f"{row['label']}, {routing}" if (routing := describe_routing(row)) else row["label"] + describe_effort(row),
            str(row["sentence"] or "–"),
            format_number(row["psnr_db"], 3),
            format_count(row["macs"]),
            format_number(row["latency_ms_median"], 2),
        ]
        for row in document["rows"]
        if row["role"] != "published"
    ]
    protocol = document["protocol"]
    columns = ["", "against SwinIR-light", metric_label("psnr_db", protocol), "MACs", "latency (ms)"]
    print_table(f"{document['study']} against SwinIR-light, protocol {protocol}", columns, rows, text_columns=2)
    if published:
        _print_published([row for row in document["rows"] if row["role"] == "published"])
    console.print(document["headline"])
    if not document["converged"]:
        console.print(f"[dim]{document['note']}[/dim]")
    if document["seam_note"]:
        console.print(f"[dim]{document['seam_note']}[/dim]")
    for setting in document["latency_settings"]:
        console.print(f"[dim]latency: {setting}[/dim]")


def _compare_profiles(folder: Path, at: str | None, mix: bool, json: bool) -> None:
    """Print the latencies that `harness profile` has measured."""
    from harness.reporting import compare_profiles, load_profiles

    document = compare_profiles(load_profiles(folder), conditions=at, mix=mix)
    if json:
        print_json(document)
        return
    table = [
        [
            row["label"],
            row["conditions"],
            format_number(row["latency_ms_median"]) + (" (noisy)" if row["is_noisy"] else ""),
            format_interval(row["latency_ms_interval"], 2),
            format_number(row["latency_ratio"], 3),
            format_interval(row["latency_ratio_interval"], 3),
            str(row["reference"] or "–"),
            format_count(row["params"]),
            row["measured_at"].partition("+")[0],
        ]
        for row in document["rows"]
    ]
    columns = ["", "conditions", "latency (ms)", "95 %", "ratio", "95 %", "reference", "params", "measured (UTC)"]
    print_table(f"profiles in {folder}", columns, table, text_columns=2)
    for setting in document["latency_settings"]:
        console.print(f"[dim]latency: {setting}[/dim]")


def _compare_paper(json: bool) -> None:
    """Print published parameters, MACs and FLOPs beside ours."""
    from harness.reporting import compare_with_paper

    rows = compare_with_paper()
    if json:
        print_json({"rows": rows})
        return
    table = [
        [
            str(row["network"]),
            str(row["source"]),
            f"×{row['scale']}",
            format_number(row["gamma"]),
            str(row["quantity"]),
            format_count(row["published"]),
            format_count(row["ours"]),
            f"{row['difference_percent']:+.2f} %",
        ]
        for row in rows
    ]
    columns = ["", "source", "scale", "γ", "", "published", "ours", "difference"]
    print_table("published costs of CAMixerSR (CVPR 2024) and ours", columns, table, text_columns=2)
    for quantity in ("macs", "flops", "params"):
        for convention in dict.fromkeys(str(row["convention"]) for row in rows if row["quantity"] == quantity):
            console.print(f"{quantity}: {convention}")


def _print_published(rows: list[dict[str, Any]]) -> None:
    """Print published rows with one column of PSNR for each dataset."""
    datasets = list(dict.fromkeys(str(row["dataset"]) for row in rows))
    methods: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        macs = "–" if row["macs"] is None else format_count(row["macs"])
        method = (str(row["label"]), str(row["trained_on"]), str(row["source"]), macs, format_count(row["params"]))
        methods.setdefault(method, {})[str(row["dataset"])] = row["psnr_db"]
    print_table(
        "published, PSNR (dB), protocol light: other training and other images than this study's",
        ["", "trained on", "source", "MACs", "params", *datasets],
        [[*method, *(format_number(scores.get(name)) for name in datasets)] for method, scores in methods.items()],
        text_columns=3,
    )

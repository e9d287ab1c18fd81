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
    format_signed,
    print_json,
    print_table,
)
from harness.core.errors import UserError
from harness.core.units import format_count


def compare(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY [OTHER]]", help="A study's name, or the path of its folder; OTHER's front against STUDY's."
        ),
    ] = None,
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
    interpolation: Annotated[
        str, typer.Option(help="With OTHER: how fronts lie between their points: pchip, akima, or cubic (VCEG-M33).")
    ] = "pchip",
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Say how many fewer MACs, how many times faster and how many dB the front has against SwinIR-light.

    Of two studies, compare the fronts: Bjøntegaard's averages (dB at equal latency, MACs and parameters; these at equal
    dB) with the ranges that they hold for, and hypervolumes from one reference.
    """
    from harness.metrics import metric_label
    from harness.reporting import compare as make_comparison
    from harness.reporting import compare_fronts, load_study

    studies = studies or []
    if bool(studies) + paper + profiles != 1:
        raise UserError("say either a STUDY to compare, or --paper, or --profiles")
    if len(studies) > 2:
        raise UserError(f"{len(studies)} studies given: expected one, or two to compare their fronts")
    if interpolation != "pchip" and len(studies) < 2:
        raise UserError(f"--interpolation {interpolation} goes with two studies")
    if published and len(studies) == 2:
        raise UserError("--published goes with one study")
    if at is not None and not profiles:
        raise UserError(f"--at {at} goes with --profiles")
    if paper:
        _compare_paper(json)
        return
    if profiles:
        folder = results / "profiles"
        _compare_profiles(folder if folder.is_dir() else results, at, mix, json)  # or what --output named
        return
    loaded = [load_study(options.study_path(study, results)) for study in studies]
    if len(loaded) == 2:
        _compare_fronts(compare_fronts(*loaded, interpolation=interpolation, mix=mix), json)
        return
    document = make_comparison(loaded[0], published=published, mix=mix)
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
    averages = document["bjontegaard"]
    if averages["rows"]:
        _print_averages(averages["rows"], "swinir-light", document["study"], "pchip")
    else:
        console.print(f"[dim]no averages against SwinIR-light: {averages['reason']}[/dim]")


def _compare_fronts(document: dict[str, Any], json: bool) -> None:
    """Print how the front of one study lies to that of another."""
    if json:
        print_json(document)
        return
    anchor, test = document["anchor"], document["test"]
    _print_averages(document["rows"], anchor, test, document["interpolation"])
    if document["hypervolumes"] is not None:
        first, second = document["hypervolumes"]
        more = "" if first <= 0 else f" ({100 * (second / first - 1):+.1f} %)"
        console.print(f"hypervolume: {anchor} {first:.4f}, {test} {second:.4f}{more}")
        console.print(f"[dim]both from {anchor}'s reference: {document['hypervolume_reference']}[/dim]")
    for note in document["notes"]:
        console.print(f"[dim]{note}[/dim]")
    for setting in document["latency_settings"]:
        console.print(f"[dim]latency: {setting}[/dim]")


def _print_averages(rows: list[dict[str, Any]], anchor: str, test: str, interpolation: str) -> None:
    """Print Bjøntegaard's averages with the ranges that they hold for, in numbers and in words."""
    from harness.reporting import bd_sentence

    table = [
        [
            row["label"],
            " and ".join(map(str, row["points"])),
            format_signed(row["bd_psnr_db"], 3),
            _describe_range(row["cost_overlap"], row["cost_overlap_share"]),
            format_signed(row["bd_cost_percent"], 1),
            _describe_range(row["psnr_overlap_db"], row["psnr_overlap_share"], digits=3),
        ]
        for row in rows
    ]
    quality = rows[0]["quality"]
    columns = ["cost", "points", f"BD-{quality} (dB)", "over costs", "BD-cost (%)", f"over {quality} (dB)"]
    title = f"{test} against {anchor}: averages at equal cost, and at equal {quality} (Bjøntegaard, {interpolation})"
    print_table(title, columns, table, text_columns=1)
    for row in rows:
        sentence = bd_sentence(row, test, anchor)
        if sentence is not None:
            console.print(sentence, markup=False)
        reasons = dict.fromkeys([row["bd_psnr_reason"], row["bd_cost_reason"]])
        for reason in filter(None, reasons):
            console.print(f"[dim]{row['label']}: {reason}[/dim]")


def _describe_range(ends: list[float] | None, share: float, digits: int | None = None) -> str:
    """Write a range with so many decimals (None: as costs are), and its share of what both span."""
    if ends is None:
        return "–"
    if digits is None:
        told = [format_count(end) if end >= 1 else f"{end:.3g}" for end in ends]
    else:
        told = [f"{end:.{digits}f}" for end in ends]
    return f"{told[0]}–{told[1]} ({100 * share:.0f} %)"


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

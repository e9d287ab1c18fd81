"""`harness profile`: parameters, operations, latency and memory of one network."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from harness.cli import options
from harness.cli.output import format_number, messages, print_json, print_table
from harness.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.cli.latency import Row
    from harness.cli.operations import Operations
    from harness.core.conditions import Conditions
    from harness.core.records import LatencyRecord
    from harness.models import SRNetwork
    from harness.profiling import Target

_WHOLE_TREE = -1


class ProfileCommand(TyperCommand):
    """Lets `--tree` stand alone: its depth may be left out, which Typer does not know."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a `--tree` without a number the value that stands for the whole tree."""
        completed = []
        for position, argument in enumerate(args):
            completed.append(argument)
            if argument == "--tree" and not "".join(args[position + 1 : position + 2]).isdigit():
                completed.append(str(_WHOLE_TREE))
        return super().parse_args(ctx, completed)


def profile(
    target: options.AnyTarget,
    weights: options.Weights = None,
    scale: options.ScaleOption = None,
    input_size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Low-resolution height and width.  [default: that of a 1280×720 output]"),
    ] = None,
    input_sizes: Annotated[str | None, typer.Option(help="Several sizes, such as 48x48,180x320.")] = None,
    batch_sizes: Annotated[str, typer.Option(help="Images at a time, several such as 1,4.")] = "1",
    images: Annotated[
        Path | None,
        typer.Option(
            help="A folder of low-resolution images to restore; routing depends on content. [default: random]"
        ),
    ] = None,
    gamma: options.Gamma = None,
    routing: options.Routing = None,
    device: Annotated[str, typer.Option(help="cpu, cpu:THREADS, cuda:INDEX or mps.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: 1]")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="eager, compile, onnxruntime or openvino.  [default: eager; of ONNX onnxruntime]")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    quick: Annotated[bool, typer.Option("--quick", help="At least 10 runs and 3 s rather than 15 and 10 s.")] = False,
    repeats: Annotated[int | None, typer.Option(min=3, help="Least number of timed runs.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Least seconds of timed runs.")] = None,
    reference: Annotated[
        str, typer.Option(help="What latencies are relative to: a preset, config file or bundle, or none.")
    ] = "swinir-light",
    no_reference: Annotated[bool, typer.Option("--no-reference", help="The same as --reference none.")] = False,
    tree: Annotated[
        int | None,
        typer.Option(metavar="[DEPTH]", help="Print the modules too, down to DEPTH levels.  [DEPTH default: all]"),
    ] = None,
    allow_gap: Annotated[
        bool, typer.Option("--allow-gap", help="Go on where counters differ by more than 1 % and nothing explains it.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, in the same fresh process.")] = True,
    sweep: Annotated[
        str | None, typer.Option(help="gamma: MACs and latency at every γ and in training mode, in percent of γ = 1.")
    ] = None,
    gammas: Annotated[str, typer.Option(help="Values of γ for --sweep.")] = "1,0.5,0.25,0",
    breakdown: Annotated[
        bool, typer.Option("--breakdown", help="Divide the time of a pass among the network's components too.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder that the record is added to.  [default: profiles in --results]")
    ] = None,
    results: options.Results = Path("results"),
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store.  [default: SQLite in --results]")
    ] = None,
    tracking: Annotated[bool, typer.Option(help="Log to MLflow.")] = True,
    json: options.Json = False,
) -> None:
    """Count parameters, activations and MACs (three counters), and measure latency beside a reference.

    The network and the reference run in fresh processes that take turns; every size with every batch is a row. The
    record is added to results/profiles and to MLflow.
    """
    from harness.cli import latency
    from harness.cli import sweep as sweeps
    from harness.cli.operations import print_tree, print_uncounted
    from harness.core.environment import now, observe_environment
    from harness.core.files import require_folder_place
    from harness.core.records import ProfileRecord
    from harness.models import describe_kernels
    from harness.profiling import parse_device

    conditions = latency.read_conditions(device, threads, runtime or "eager", precision)
    loaded = _load(target, scale, gamma, routing, weights, parse_device(conditions.device).threads or 1)
    if loaded.module is None and runtime is None:
        conditions = latency.read_conditions(device, threads, "onnxruntime", precision)
    _check_measurable(loaded, conditions)
    default_size = input_size or (_default_size(loaded) if input_sizes is None else (1, 1))
    rows = latency.read_rows(input_size, input_sizes, batch_sizes, default_size)
    for row in rows:
        loaded.check_size(row.size)
    inputs = latency.Inputs(images, loaded.in_channels)
    folder = output or results / "profiles"
    require_folder_place("--output", folder)
    effort = latency.read_effort(quick, repeats, seconds)
    reference = "none" if no_reference else reference

    def keep(record: ProfileRecord) -> Path:
        path = latency.keep_record(record, folder)
        if tracking:
            latency.track_record(record, tracking_uri, results)
        return path

    if sweep is not None:
        _check_sweep(sweep, gamma, rows, breakdown=breakdown, counts=tree is not None or allow_gap)
        sweeps.run_sweep(
            loaded,
            sweeps.read_gammas(gammas),
            rows[0],
            inputs,
            conditions,
            effort,
            reference=_choose_reference(loaded, reference),
            reference_name=reference,
            keep=keep,
            json=json,
        )
        return
    if breakdown:
        sweeps.check_breakdown(loaded, conditions)
    height, width = rows[0].size
    shares, operations = _count(loaded, inputs.make(latency.Row(rows[0].size, 1))[0][0], allow_gap=allow_gap)
    against = _choose_reference(loaded, reference)
    records = latency.measure_rows(
        loaded,
        rows,
        inputs,
        conditions,
        effort,
        reference=against,
        reference_name=reference,
        with_memory=memory,
    )
    divided = sweeps.run_breakdown(loaded, inputs.make(rows[0])[0][0], conditions, effort) if breakdown else None
    first = records[0]
    config = loaded.spec.config
    operations = _at_share(operations, loaded, shares, first)
    settings = getattr(loaded.network, "routing", None) if config is not None else None
    record = ProfileRecord(
        target=target,
        label=loaded.name,
        model=None if config is None else config.model_dump(mode="json"),
        weights=loaded.weights,
        params=operations.params,
        macs=operations.macs,
        activations=operations.activations,
        ntire_2024_score=_score(operations, first, against),
        breakdown=divided,
        rows=records,
        environment=observe_environment(describe_kernels()),
        measured_at=now(),
    )
    document: dict[str, Any] = {
        "model": loaded.name,
        "target": loaded.spec.model_dump(mode="json"),
        "config": record.model,
        "weights": loaded.weights,
        "scale": loaded.scale,
        "input_size": [height, width],
        "gamma": settings.gamma if settings else None,
        "routing": settings.policy if settings else None,
        "attention_share": first.attention_share,
        **operations.document(),
        "latency_ms": {"median": first.median, "iqr": first.iqr, "p90": first.p90},
        "latency_ratio": first.ratio,
        "ntire_2024_score": record.ntire_2024_score,
        "latency_record": first.model_dump(mode="json"),
        "rows": [latency.row_document(each) for each in records],
        "peak_memory_bytes": first.peak_memory_bytes,
        "environment": record.environment.model_dump(mode="json"),
        "breakdown": None if divided is None else {**divided.model_dump(mode="json"), "shares": divided.shares},
        "record_file": str(keep(record)),
    }
    if json:
        print_json(document)
        return
    lines = [
        *operations.rows(),
        ["attention share", format_number(document["attention_share"], 3)],
        *latency.describe_latency(first),
    ]
    if record.ntire_2024_score is not None:
        lines.append(["NTIRE 2024 score", f"{record.ntire_2024_score:.3f}  ({reference}: 7.389)"])
    if first.device.startswith("cpu") and conditions.runtime == "eager" and config is not None:
        lines.append(["  kernels", describe_kernels() or "none: torch's operators"])
    label = f"{loaded.name} ×{loaded.scale}" + (f", {settings.label()}" if settings else "")
    where = f"{first.device_name}, {first.device}, {conditions.runtime}, {precision}"
    print_table(f"{label}, input {height}×{width}, {where}", ["", "value"], lines)
    if len(records) > 1:
        latency.print_rows(f"latency by input and batch, {where}", records)
    if divided is not None:
        sweeps.print_breakdown(divided, Path(document["record_file"]).with_suffix(".png"))
    print_uncounted(operations.operators)
    if tree is not None and operations.record is not None:
        print_tree(operations.record, None if tree == _WHOLE_TREE else tree)
    messages.print(f"record: {document['record_file']}")


def _load(
    target: str, scale: int | None, gamma: float | None, routing: str | None, weights: Path | None, threads: int
) -> "Target":
    """Load what the user named, and check it against the scale that was asked for."""
    from harness.cli.target import resolve_target
    from harness.profiling import load_target

    loaded = load_target(resolve_target(target, scale, gamma, routing, weights), threads=threads)
    if scale is not None and scale != loaded.scale:
        raise UserError(f"--scale {scale}: {target} is of scale {loaded.scale}")
    return loaded


def _check_measurable(target: "Target", conditions: "Conditions") -> None:
    """Refuse what cannot be measured of a network of anybody's."""
    if target.module is not None:
        return
    if not conditions.device.startswith("cpu"):
        raise UserError(f"--device {conditions.device}: ONNX files are run on the CPU")
    if conditions.runtime not in ("onnxruntime", "openvino"):
        raise UserError(f"--runtime {conditions.runtime}: ONNX files are run by onnxruntime or openvino")


def _check_sweep(sweep: str, gamma: float | None, rows: "list[Row]", *, breakdown: bool, counts: bool) -> None:
    """Refuse what a sweep does not go with."""
    if sweep != "gamma":
        raise UserError(f"--sweep {sweep}: expected gamma")
    if gamma is not None:
        raise UserError(f"--gamma {gamma:g}: a sweep has a γ for each row; choose them with --gammas")
    if len(rows) > 1:
        raise UserError(f"--sweep gamma is of one size and batch: got {len(rows)}")
    if breakdown:
        raise UserError("--breakdown and --sweep are both given; give one of them")
    if counts:
        raise UserError("--sweep gamma gives canonical MACs: --tree and --allow-gap go with one γ")


def _default_size(target: "Target") -> tuple[int, int]:
    """Return the height and width for a 1280×720 output, or the nearest that the network takes."""
    asked = (720 // target.scale, 1280 // target.scale)
    size = target.contract.nearest(asked)
    if size != asked:
        messages.print(f"note: {target.name} needs {target.contract.needs()}: measured at {size[0]}×{size[1]}")
    return size


def _choose_reference(target: "Target", name: str) -> "SRNetwork | None":
    """Return the network that latencies are relative to; None, with a note, where none takes its input."""
    from harness.cli import latency

    if name != "none" and (target.scale not in (2, 3, 4) or target.in_channels != 3):
        messages.print(
            f"note: measured alone: {name} has scales 2, 3 and 4 and takes RGB, {target.name} is of scale "
            f"{target.scale} and takes {target.in_channels} channels"
        )
        return None
    return latency.resolve_reference(name, target.scale)


def _count(target: "Target", input_BCHW: "Tensor", *, allow_gap: bool) -> "tuple[list[float] | None, Operations]":
    """Return the share of attention in each block (None: no routing) and the operations for one input."""
    import torch

    from harness.cli.operations import count_target
    from harness.core.device_lock import computing
    from harness.models import SRNetwork

    shares = None
    with computing():
        if isinstance(target.network, SRNetwork):
            with torch.inference_mode():
                share_S = target.network.restore(input_BCHW).hard_share_SB.mean(dim=1)
            shares = share_S.tolist() if len(share_S) else None
        return shares, count_target(target, input_BCHW, shares, allow_gap=allow_gap)


def _at_share(
    operations: "Operations", target: "Target", shares: list[float] | None, latency: "LatencyRecord"
) -> "Operations":
    """Return the operations with the MACs of what was timed, where images get other shares than the one counted."""
    from harness.profiling import canonical_macs

    realised, config = latency.attention_share, target.spec.config
    if not shares or realised is None or config is None or math.isclose(realised, sum(shares) / len(shares)):
        return operations
    return replace(operations, macs=canonical_macs(config, latency.input_size, attention_share=realised))


def _score(operations: "Operations", latency: "LatencyRecord", reference: "SRNetwork | None") -> float | None:
    """Return the NTIRE 2024 score against the reference of the same run; None without one or without a count."""
    from harness.profiling import canonical_macs, ntire_score

    if reference is None or latency.reference_median is None or not operations.macs or operations.params is None:
        return None
    reference_macs = canonical_macs(reference.config, latency.input_size)
    reference_params = sum(parameter.numel() for parameter in reference.parameters())
    if not reference_macs or not reference_params:  # bicubic costs nothing that is counted
        return None
    return ntire_score(
        runtime=latency.median,
        reference_runtime=latency.reference_median,
        flops=operations.macs,
        reference_flops=reference_macs,
        params=operations.params,
        reference_params=reference_params,
    )

"""`harness profile`: parameters, operations, latency and memory of one network."""

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import options
from harness.cli.output import format_number, messages, print_json, print_table


def profile(
    model: options.Model,
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
    runtime: Annotated[str, typer.Option(help="eager, compile, onnxruntime or openvino.")] = "eager",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    quick: Annotated[bool, typer.Option("--quick", help="At least 10 runs and 3 s rather than 15 and 10 s.")] = False,
    repeats: Annotated[int | None, typer.Option(min=3, help="Least number of timed runs.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Least seconds of timed runs.")] = None,
    reference: Annotated[
        str, typer.Option(help="What latencies are relative to: a model as above, or none.")
    ] = "swinir-light",
    no_reference: Annotated[bool, typer.Option("--no-reference", help="The same as --reference none.")] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, in the same fresh process.")] = True,
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
    """Count parameters and MACs (three ways), and measure latency interleaved with SwinIR-light.

    The network and the reference run in fresh processes that take turns; every size with every batch is a row. The
    record is added to results/profiles and to MLflow.
    """
    import torch

    from harness.cli import latency
    from harness.cli.target import resolve_network
    from harness.core.device_lock import computing
    from harness.core.environment import now, observe_environment
    from harness.core.files import require_folder_place
    from harness.core.records import ProfileRecord
    from harness.core.units import format_count
    from harness.models import describe_kernels
    from harness.profiling import canonical_macs, count_macs

    conditions = latency.read_conditions(device, threads, runtime, precision)
    network, origin = resolve_network(model, scale, gamma, routing, weights)
    rows = latency.read_rows(input_size, input_sizes, batch_sizes, (720 // network.scale, 1280 // network.scale))
    against = latency.resolve_reference("none" if no_reference else reference, network.scale)
    folder = output or results / "profiles"
    require_folder_place("--output", folder)
    inputs = latency.Inputs(images)
    height, width = rows[0].size
    input_BCHW = inputs.make(latency.Row(rows[0].size, 1))[0][0]
    with computing(), torch.inference_mode():
        share_S = network.restore(input_BCHW).hard_share_SB.mean(dim=1)
    shares = share_S.tolist() if len(share_S) else None
    with computing():
        counted = count_macs(network, input_BCHW, config=network.config, attention_share=shares)
    records = latency.measure_rows(
        network,
        rows,
        inputs,
        conditions,
        latency.read_effort(quick, repeats, seconds),
        reference=against,
        reference_name=reference,
        with_memory=memory,
    )
    first = records[0]
    settings = getattr(network, "routing", None)
    document: dict[str, Any] = {
        "model": network.config.label(),
        "config": network.config.model_dump(mode="json"),
        "weights": origin,
        "scale": network.scale,
        "input_size": [height, width],
        "gamma": settings.gamma if settings else None,
        "routing": settings.policy if settings else None,
        "attention_share": sum(shares) / len(shares) if shares else None,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "macs": canonical_macs(network.config, (height, width), attention_share=shares),
        "macs_by_counter": counted.by_counter,
        "counters_agree": counted.agree,
        "counters_disagreement": counted.max_disagreement,
        "uncounted_operators": counted.uncounted,
        "latency_ms": {"median": first.median, "iqr": first.iqr, "p90": first.p90},
        "latency_ratio": first.ratio,
        "latency_record": first.model_dump(mode="json"),
        "rows": [latency.row_document(record) for record in records],
        "peak_memory_bytes": first.peak_memory_bytes,
        "environment": observe_environment(describe_kernels()).model_dump(mode="json"),
    }
    record = ProfileRecord(
        target=model,
        label=network.config.label(),
        model=document["config"],
        weights=origin,
        params=document["params"],
        macs=document["macs"],
        rows=records,
        environment=observe_environment(describe_kernels()),
        measured_at=now(),
    )
    document["record_file"] = str(latency.keep_record(record, folder))
    if tracking:
        latency.track_record(record, tracking_uri, results)
    if not counted.agree:
        messages.print(f"warning: the counters disagree by {counted.max_disagreement:.1%}: {counted.by_counter}")
    if json:
        print_json(document)
        return
    lines = [
        ["parameters", format_count(document["params"])],
        ["MACs (canonical)", format_count(document["macs"])],
        *([f"  by {name}", format_count(count)] for name, count in counted.by_counter.items()),
        ["attention share", format_number(document["attention_share"], 3)],
        *latency.describe_latency(first),
    ]
    if first.device.startswith("cpu") and runtime == "eager":
        lines.append(["  kernels", describe_kernels() or "none: torch's operators"])
    label = f"{network.config.label()} ×{network.scale}" + (f", {settings.label()}" if settings else "")
    where = f"{first.device_name}, {first.device}, {runtime}, {precision}"
    print_table(f"{label}, input {height}×{width}, {where}", ["", "value"], lines)
    if len(records) > 1:
        latency.print_rows(f"latency by input and batch, {where}", records)
    messages.print(f"record: {document['record_file']}")

"""`harness profile`: parameters, operations and latency of one network."""

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
    gamma: options.Gamma = None,
    routing: options.Routing = None,
    device: Annotated[str, typer.Option(help="cpu, cpu:THREADS or cuda:INDEX.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: 1]")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    repeats: Annotated[int, typer.Option(min=3, help="Least number of timed runs.")] = 10,
    seconds: Annotated[float, typer.Option(min=0, help="Least seconds of timed runs.")] = 3.0,
    reference: Annotated[bool, typer.Option(help="Interleave with SwinIR-light, for a ratio.")] = True,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, in a fresh process.")] = False,
    json: options.Json = False,
) -> None:
    """Count parameters and MACs (three ways), and measure latency interleaved with SwinIR-light."""
    import torch

    from harness.cli.target import resolve_network
    from harness.core.configs import Precision
    from harness.core.environment import observe_environment
    from harness.core.errors import UserError, unknown_name
    from harness.core.units import format_count
    from harness.models import describe_kernels, preset_config
    from harness.profiling import canonical_macs, count_macs, measure_latency, measure_peak_memory, parse_device
    from harness.trial import build_seeded

    precisions: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
    if precision not in precisions:
        raise unknown_name("precision", precision, precisions)
    if threads is not None and device not in ("cpu", f"cpu:{threads}"):
        raise UserError(f"--threads {threads} goes with --device cpu, got --device {device}")
    place = parse_device(f"cpu:{threads}" if threads is not None else device).text
    network, origin = resolve_network(model, scale, gamma, routing, weights)
    height, width = input_size or (720 // network.scale, 1280 // network.scale)
    if height < 1 or width < 1:
        raise UserError(f"--input-size {height} {width}: expected a height and a width of at least 1")
    input_BCHW = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        share_S = network.restore(input_BCHW).hard_share_SB.mean(dim=1)
    shares = share_S.tolist() if len(share_S) else None
    counted = count_macs(network, input_BCHW, config=network.config, attention_share=shares)
    latency = measure_latency(
        network,
        input_BCHW,
        device=place,
        reference=build_seeded(preset_config("swinir-light", network.scale), seed=0) if reference else None,
        reference_name="swinir-light" if reference else None,
        precision=precisions[precision],
        min_repeats=repeats,
        min_seconds=seconds,
    )
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
        "latency_ms": {"median": latency.median, "iqr": latency.iqr, "p90": latency.p90},
        "latency_ratio": latency.ratio,
        "latency_record": latency.model_dump(mode="json"),
        "peak_memory_bytes": measure_peak_memory(network.config, (height, width), place) if memory else None,
        "environment": observe_environment(describe_kernels()).model_dump(mode="json"),
    }
    if not counted.agree:
        messages.print(f"warning: the counters disagree by {counted.max_disagreement:.1%}: {counted.by_counter}")
    if json:
        print_json(document)
        return
    rows = [
        ["parameters", format_count(document["params"])],
        ["MACs (canonical)", format_count(document["macs"])],
        *([f"  by {name}", format_count(count)] for name, count in counted.by_counter.items()),
        ["attention share", format_number(document["attention_share"], 3)],
        ["latency median", f"{latency.median:.2f} ms"],
        ["  IQR, p90", f"{latency.iqr:.2f} ms, {latency.p90:.2f} ms"],
        ["  / SwinIR-light", format_number(latency.ratio, 3)],
        ["  runs", f"{len(latency.samples)} after {latency.warmup_runs} for warm-up"],
    ]
    if latency.device.startswith("cpu"):
        rows.append(["  kernels", describe_kernels() or "none: torch's operators"])
    if memory:
        rows.append(["peak memory", f"{document['peak_memory_bytes'] / 2**20:.1f} MiB"])
    label = f"{network.config.label()} ×{network.scale}" + (f", {settings.label()}" if settings else "")
    where = f"{latency.device_name}, {latency.device}, {precision}"
    print_table(f"{label}, input {height}×{width}, {where}", ["", "value"], rows)

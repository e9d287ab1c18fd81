"""`harness profile`: parameters, operations and latency of one network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from harness.cli import options
from harness.cli.output import format_number, messages, print_json, print_table
from harness.core.errors import UserError

if TYPE_CHECKING:
    from harness.cli.operations import Operations
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
    gamma: options.Gamma = None,
    routing: options.Routing = None,
    device: Annotated[str, typer.Option(help="cpu, cpu:THREADS or cuda:INDEX.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: 1]")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    repeats: Annotated[int, typer.Option(min=3, help="Least number of timed runs.")] = 10,
    seconds: Annotated[float, typer.Option(min=0, help="Least seconds of timed runs.")] = 3.0,
    reference: Annotated[bool, typer.Option(help="Interleave with SwinIR-light, for a ratio.")] = True,
    tree: Annotated[
        int | None,
        typer.Option(metavar="[DEPTH]", help="Print the modules too, down to DEPTH levels.  [DEPTH default: all]"),
    ] = None,
    allow_gap: Annotated[
        bool, typer.Option("--allow-gap", help="Go on where counters differ by more than 1 % and nothing explains it.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, in a fresh process.")] = False,
    json: options.Json = False,
) -> None:
    """Count parameters, activations and MACs (three counters), and measure latency interleaved with SwinIR-light."""
    from harness.cli.operations import print_tree, print_uncounted
    from harness.core.configs import Precision
    from harness.core.environment import observe_environment
    from harness.core.errors import unknown_name
    from harness.models import describe_kernels
    from harness.profiling import measure_latency, measure_peak_memory, parse_device

    precisions: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
    if precision not in precisions:
        raise unknown_name("precision", precision, precisions)
    if threads is not None and device not in ("cpu", f"cpu:{threads}"):
        raise UserError(f"--threads {threads} goes with --device cpu, got --device {device}")
    place = parse_device(f"cpu:{threads}" if threads is not None else device)
    loaded = _load(target, scale, gamma, routing, weights, place.threads or 1)
    _check_measurable(loaded, place.text, precision, memory)
    height, width = _choose_size(loaded, input_size)
    input_BCHW, shares, operations = _count(loaded, (height, width), allow_gap=allow_gap)
    beside = _reference_beside(loaded) if reference else None
    latency = measure_latency(
        loaded.network,
        input_BCHW,
        device=place.text,
        reference=beside,
        reference_name="swinir-light" if beside is not None else None,
        precision=precisions[precision],
        min_repeats=repeats,
        min_seconds=seconds,
    )
    config = loaded.spec.config
    settings = getattr(loaded.network, "routing", None) if config is not None else None
    score = _score(operations, latency, beside)
    document: dict[str, Any] = {
        "model": loaded.name,
        "target": loaded.spec.model_dump(mode="json"),
        "config": None if config is None else config.model_dump(mode="json"),
        "weights": loaded.weights,
        "scale": loaded.scale,
        "input_size": [height, width],
        "gamma": settings.gamma if settings else None,
        "routing": settings.policy if settings else None,
        "attention_share": sum(shares) / len(shares) if shares else None,
        **operations.document(),
        "latency_ms": {"median": latency.median, "iqr": latency.iqr, "p90": latency.p90},
        "latency_ratio": latency.ratio,
        "ntire_2024_score": score,
        "latency_record": latency.model_dump(mode="json"),
        "peak_memory_bytes": measure_peak_memory(config, (height, width), place.text) if memory and config else None,
        "environment": observe_environment(describe_kernels()).model_dump(mode="json"),
    }
    if json:
        print_json(document)
        return
    rows = [
        *operations.rows(),
        ["attention share", format_number(document["attention_share"], 3)],
        ["latency median", f"{latency.median:.2f} ms"],
        ["  IQR, p90", f"{latency.iqr:.2f} ms, {latency.p90:.2f} ms"],
        ["  / SwinIR-light", format_number(latency.ratio, 3)],
        ["  runs", f"{len(latency.samples)} after {latency.warmup_runs} for warm-up"],
    ]
    if score is not None:
        rows.append(["NTIRE 2024 score", f"{score:.3f}  (SwinIR-light: 7.389)"])
    if latency.device.startswith("cpu") and config is not None:
        rows.append(["  kernels", describe_kernels() or "none: torch's operators"])
    if memory:
        rows.append(["peak memory", f"{document['peak_memory_bytes'] / 2**20:.1f} MiB"])
    label = f"{loaded.name} ×{loaded.scale}" + (f", {settings.label()}" if settings else "")
    where = f"{latency.device_name}, {latency.device}, {precision}"
    print_table(f"{label}, input {height}×{width}, {where}", ["", "value"], rows)
    print_uncounted(operations.operators)
    if tree is not None and operations.record is not None:
        print_tree(operations.record, None if tree == _WHOLE_TREE else tree)


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


def _check_measurable(target: "Target", device: str, precision: str, memory: bool) -> None:
    """Refuse what cannot be measured of a network of anybody's."""
    if memory and target.spec.config is None:
        raise UserError(f"--memory: measured of presets, config files and bundles; got {target.name}")
    if target.module is None and not device.startswith("cpu"):
        raise UserError(f"--device {device}: ONNX files are run on the CPU")
    if target.module is None and precision != "fp32":
        raise UserError(f"--precision {precision}: an ONNX file runs in the precision that it was written with")


def _choose_size(target: "Target", input_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the input's height and width: those asked for, else those of a 1280×720 output that the network takes."""
    asked = input_size or (720 // target.scale, 1280 // target.scale)
    if min(asked) < 1:
        raise UserError(f"--input-size {asked[0]} {asked[1]}: expected a height and a width of at least 1")
    size = asked if input_size is not None else target.contract.nearest(asked)
    if size != asked:
        messages.print(f"note: {target.name} needs {target.contract.needs()}: measured at {size[0]}×{size[1]}")
    target.check_size(size)
    return size


def _count(target: "Target", size: tuple[int, int], *, allow_gap: bool) -> "tuple[Any, list[float] | None, Operations]":
    """Return the input, the share of attention that it realises in each block (None: no routing), the operations."""
    import torch

    from harness.cli.operations import count_target
    from harness.models import SRNetwork

    input_BCHW = torch.rand(1, target.in_channels, *size, generator=torch.Generator().manual_seed(0))
    shares = None
    if isinstance(target.network, SRNetwork):
        with torch.inference_mode():
            share_S = target.network.restore(input_BCHW).hard_share_SB.mean(dim=1)
        shares = share_S.tolist() if len(share_S) else None
    return input_BCHW, shares, count_target(target, input_BCHW, shares, allow_gap=allow_gap)


def _reference_beside(target: "Target") -> "SRNetwork | None":
    """Return SwinIR-light of the target's scale; None, with a note, where there is none that takes its input."""
    from harness.models import build_seeded, preset_config

    if target.scale not in (2, 3, 4) or target.in_channels != 3:
        messages.print(
            f"note: measured alone: SwinIR-light has scales 2, 3 and 4 and takes RGB, {target.name} is of scale "
            f"{target.scale} and takes {target.in_channels} channels"
        )
        return None
    return build_seeded(preset_config("swinir-light", target.scale), seed=0)


def _score(operations: "Operations", latency: "LatencyRecord", reference: "SRNetwork | None") -> float | None:
    """Return the NTIRE 2024 score against the reference of the same run; None without one or without a count."""
    from harness.profiling import canonical_macs, ntire_score

    if reference is None or latency.reference_median is None or operations.macs is None or operations.params is None:
        return None
    return ntire_score(
        runtime=latency.median,
        reference_runtime=latency.reference_median,
        flops=operations.macs,
        reference_flops=canonical_macs(reference.config, latency.input_size),
        params=operations.params,
        reference_params=sum(parameter.numel() for parameter in reference.parameters()),
    )

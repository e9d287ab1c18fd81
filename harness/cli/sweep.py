"""`harness profile --sweep gamma` and `--breakdown`: table 1 and figure 6 of the paper's supplementary, here."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli import latency
from harness.cli.output import format_interval, format_number, messages, print_json, print_table
from harness.core.conditions import Conditions
from harness.core.configs import CAMixerSRConfig, RoutingConfig, parse_config
from harness.core.environment import now, observe_environment
from harness.core.errors import UserError
from harness.core.records import BreakdownRecord, LatencyRecord, ProfileRecord
from harness.core.units import format_count

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import SRNetwork
    from harness.profiling import Effort, Target

TRAINING = "training"


def read_gammas(text: str) -> list[float]:
    """Return the values of γ, the largest first, 1 among them; `UserError` for what is none."""
    try:
        gammas = {float(part) for part in text.split(",")}
    except ValueError:
        raise UserError(f"--gammas {text!r}: expected numbers from 0 to 1, such as 1,0.5,0.25,0") from None
    if not all(0 <= gamma <= 1 for gamma in gammas):
        raise UserError(f"--gammas {text!r}: expected numbers from 0 to 1, such as 1,0.5,0.25,0")
    return sorted({1.0, *gammas}, reverse=True)


def run_sweep(
    target: "Target",
    gammas: Sequence[float],
    row: latency.Row,
    inputs: latency.Inputs,
    conditions: Conditions,
    effort: "Effort",
    *,
    reference: "SRNetwork | None",
    reference_name: str,
    keep: latency.Keeper,
    json: bool,
) -> None:
    """Measure a CAMixerSR at every γ and its pass of training mode in turns; print, draw and keep the records."""
    from harness.reporting import draw_sweep_png

    networks = _under_every_gamma(target, gammas, with_training=conditions.runtime == "eager")
    records = latency.measure_row(
        networks, row, inputs, conditions, effort, reference=reference, reference_name=reference_name
    )
    profiles = [_profile(target, networks[name], record) for name, record in records.items()]
    rows = sweep_rows(profiles)
    kept = [str(keep(profile)) for profile in profiles]
    plot = Path(kept[0]).with_name(Path(kept[0]).stem + "-sweep.png")
    title = f"{target.name} ×{target.scale}, {row.size[0]}×{row.size[1]}"
    where = f"{profiles[0].rows[0].device_name}, {conditions.text}"
    draw_sweep_png(rows, f"{title}\n{where}", plot)
    if json:
        print_json({"model": target.name, "sweep": rows, "plot": str(plot), "record_files": kept})
        return
    label = latency.reference_label(profiles[0].rows[0])
    columns = ["γ", "attention\nshare", "MACs", "% of\nγ=1", "median\n(ms)", "95 %", "% of\nγ=1", "95 %", f"/ {label}"]
    print_table(f"{title}, {where}", columns, [_table_line(each) for each in rows])
    messages.print(f"{len(kept)} records: {Path(kept[0]).parent}; plot: {plot}")


def sweep_rows(profiles: Sequence[ProfileRecord]) -> list[dict[str, Any]]:
    """Return a JSON-able row for each profile of a sweep, with MACs and latency in percent of γ = 1.

    All were measured in the same rounds, which are resampled for the interval of a percentage.
    """
    from harness.profiling import ratio_interval

    full = next(profile for profile in profiles if _gamma(profile) == 1)
    rows = []
    for profile in profiles:
        measured, whole = profile.rows[0], full.rows[0]
        rows.append(
            {
                "gamma": _gamma(profile),
                "mode": measured.mode,
                "attention_share": measured.attention_share,
                "macs": profile.macs,
                "macs_percent": 100 * profile.macs / full.macs if profile.macs and full.macs else None,
                "latency_ms": measured.median,
                "latency_ms_interval": measured.interval,
                "latency_percent": 100 * measured.median / whole.median,
                "latency_percent_interval": [100 * end for end in ratio_interval(measured.samples, whole.samples)],
                "latency_ratio": measured.ratio,
                "latency_ratio_interval": measured.ratio_interval,
            }
        )
    return rows


def _under_every_gamma(target: "Target", gammas: Sequence[float], *, with_training: bool) -> "dict[str, SRNetwork]":
    from harness.models import CAMixerSR
    from harness.trial import routed

    network = target.network
    if not isinstance(network, CAMixerSR):
        raise UserError(f"--sweep gamma: {target.name} does not route; expected a CAMixerSR")
    routing = network.routing
    if routing.policy not in ("fixed", "probability", "detail"):
        raise UserError(f"--sweep gamma: policy {routing.policy} does not go by γ; give --routing fixed or probability")
    networks: dict[str, SRNetwork] = {}
    if with_training:
        networks[TRAINING] = copy.deepcopy(network).train()
    for gamma in gammas:
        settings = {**routing.model_dump(exclude_none=True), "gamma": gamma}
        networks[f"{gamma:g}"] = routed(network, parse_config(RoutingConfig, settings, "--gammas"))
    return networks


def _profile(target: "Target", network: "SRNetwork", record: LatencyRecord) -> ProfileRecord:
    from harness.models import describe_kernels
    from harness.profiling import canonical_macs

    config = network.config
    assert isinstance(config, CAMixerSRConfig)
    # As the paper writes it, training takes both paths in every window.
    share = 1.0 if record.mode == "training" else record.attention_share
    macs = canonical_macs(config, record.input_size, attention_share=share)
    return ProfileRecord(
        target=target.spec.source,
        label=f"{target.name}, {TRAINING if record.mode == 'training' else config.routing.label()}",
        model=config.model_dump(mode="json"),
        weights=target.weights,
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=macs,
        rows=(record,),
        environment=observe_environment(describe_kernels()),
        measured_at=now(),
    )


def _gamma(profile: ProfileRecord) -> float | None:
    if profile.rows[0].mode == "training":
        return None
    assert profile.model is not None
    gamma: float = profile.model["routing"]["gamma"]
    return gamma


def _table_line(row: Mapping[str, Any]) -> list[str]:
    return [
        TRAINING if row["gamma"] is None else f"{row['gamma']:g}",
        format_number(row["attention_share"], 3),
        "–" if row["macs"] is None else format_count(row["macs"]),
        format_number(row["macs_percent"], 1),
        format_number(row["latency_ms"], 2),
        format_interval(row["latency_ms_interval"], 2),
        format_number(row["latency_percent"], 1),
        format_interval(row["latency_percent_interval"], 1),
        format_number(row["latency_ratio"], 3),
    ]


def check_breakdown(target: "Target", conditions: Conditions) -> None:
    """Raise `UserError` for networks and runtimes whose components are not known."""
    from harness.models import CAMixerSR
    from harness.models.swinir import SwinIR

    if not isinstance(target.network, CAMixerSR | SwinIR):
        raise UserError(f"--breakdown: the components of {target.name} are not known; expected a CAMixerSR or SwinIR")
    if conditions.runtime != "eager":
        raise UserError(f"--breakdown: got --runtime {conditions.runtime}; components are known in eager alone")


def run_breakdown(target: "Target", input_BCHW: "Tensor", conditions: Conditions, effort: "Effort") -> BreakdownRecord:
    """Divide the time of a pass among components, in a fresh process."""
    from harness.models import SRNetwork
    from harness.profiling import break_down_in_process

    assert isinstance(target.network, SRNetwork)
    record = break_down_in_process(target.network, input_BCHW, conditions, min_seconds=effort.min_seconds)
    if not record.adds_up:
        messages.print(
            f"warning: components add up to {100 * record.coverage:.1f} % of a pass without clocks, more than 3 % off; "
            "the machine was busy, or the network is so small that the clocks cost"
        )
    return record


def print_breakdown(record: BreakdownRecord, plot: Path) -> None:
    """Print and draw the time of each component."""
    from harness.reporting import draw_breakdown_png

    size = "{}×{}".format(*record.input_size)
    draw_breakdown_png(record, plot)
    lines = [[name, f"{record.component_ms[name]:.2f}", f"{100 * share:.1f}"] for name, share in record.shares.items()]
    total = sum(record.component_ms.values())
    lines.append(["sum", f"{total:.2f}", f"{100 * record.coverage:.1f} of a pass without clocks"])
    title = f"time by component, input {size}, {record.device}, {record.precision}: medians of {record.passes} passes"
    print_table(title, ["component", "ms", "%"], lines)
    messages.print(f"plot: {plot}")

"""Pictures of profiles: MACs and latency against γ, and how the time of a pass divides."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.files import atomic_path
from harness.core.records import BreakdownRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart.
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#8A8F98"
_COMPONENT_COLOURS = {
    "predictor": "#E69F00",
    "attention": "#D55E00",
    "convolution": "#0072B2",
    "ffn": "#009E73",
    "norms": "#CC79A7",
    "rest": "#8A8F98",
}
_NAMES = {"ffn": "FFN"}
_READABLE_SHARE = 0.04  # a part smaller than this has no room for its number


def draw_sweep_png(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw MACs and latency in percent of γ = 1 against γ, with the latency's interval, and training mode as a line.

    `rows` are those of `harness profile --sweep gamma --json`.
    """
    figure = _figure(6.4, 4.4)
    panel = figure.subplots()
    inference = [row for row in rows if row["mode"] == "inference"]
    gammas = [row["gamma"] for row in inference]
    latency = [row["latency_percent"] for row in inference]
    below = [max(0.0, row["latency_percent"] - row["latency_percent_interval"][0]) for row in inference]
    above = [max(0.0, row["latency_percent_interval"][1] - row["latency_percent"]) for row in inference]
    panel.plot(gammas, [row["macs_percent"] for row in inference], "s--", color=_BLUE, label="MACs")
    panel.errorbar(
        gammas, latency, (below, above), fmt="o-", color=_VERMILION, capsize=3, label="latency (95 % interval)"
    )
    for row in rows:
        if row["mode"] == "training":
            panel.axhline(row["latency_percent"], color=_GREY, linestyle=":", label="latency in training mode")
    panel.set_xlabel("γ, the share of windows with attention")
    panel.set_ylabel("% of γ = 1")
    panel.set_ylim(bottom=0)
    panel.set_xticks(gammas)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    panel.set_title(title, fontsize=10)
    _save(figure, path)


def draw_breakdown_png(record: BreakdownRecord, path: Path) -> None:
    """Draw the components' shares of a pass as one bar."""
    figure = _figure(7.2, 2.4)
    panel = figure.subplots()
    start = 0.0
    for name, share in record.shares.items():
        label = f"{_NAMES.get(name, name)} {100 * share:.1f} %"
        panel.barh([0], [share], left=start, color=_COMPONENT_COLOURS[name], edgecolor="white", label=label)
        if share >= _READABLE_SHARE:
            panel.text(start + share / 2, 0, f"{100 * share:.0f}", ha="center", va="center", color="white")
        start += share
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    panel.set_xlabel("% of the time of a pass")
    panel.set_yticks([])
    size = "{}×{}".format(*record.input_size)
    panel.set_title(f"{record.label}, input {size}, {record.device}, {record.total_ms:.1f} ms", fontsize=10)
    panel.legend(ncols=3, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    _save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")

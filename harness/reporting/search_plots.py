"""Hypervolume against training steps, of ways to search."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.files import atomic_path

_COLOURS = {"random": "#888888", "nsga2": "#0072B2", "nsga3": "#56B4E9", "tpe": "#D55E00", "gp": "#009E73"}
_OTHER = "#CC79A7"


def draw_searches(bench: Mapping[str, Any], path: Path) -> None:
    """Draw a `SearchBench` as PNG: medians as lines, dashed without early stopping, quartiles as bands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for curve in bench["curves"]:
        colour = _COLOURS.get(curve["sampler"], _OTHER)
        stopping = curve["stopping"]
        label = curve["sampler"]
        if stopping is not None:
            label += f", rungs from {stopping['grace_steps']}, best 1/{stopping['factor']}"
        axes.plot(bench["grid"], curve["median"], "--" if stopping is None else "-", color=colour, label=label)
        axes.fill_between(bench["grid"], curve["lower"], curve["upper"], color=colour, alpha=0.12, linewidth=0)
    axes.axhline(bench["target"], color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("training steps of all networks")
    axes.set_ylabel("hypervolume, share of the whole table's")
    axes.set_title(f"{bench['seeds']} studies each, replayed on {bench['networks']} networks", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")

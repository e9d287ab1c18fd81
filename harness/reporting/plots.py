"""Pictures of a study's front: as PNG (matplotlib), and as an interactive figure (plotly) for notebooks.

Colours are Okabe and Ito's, which people with any colour vision tell apart; shapes repeat what colours say.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from harness.core.files import atomic_path
from harness.core.importance import INTERACTIONS, Importance
from harness.core.records import METRIC_DIRECTIONS, TrialRecord
from harness.core.units import format_count, format_seconds
from harness.metrics import metric_label
from harness.reporting.front import Front, non_dominated, study_front
from harness.reporting.study import BASELINE_IDS, Point, Study

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _VERMILION, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8F98"
_BASELINE_COLOURS = {"bicubic": _GREEN, "swinir-light": _VERMILION}
_BASELINE_LABELS = {"bicubic": "bicubic", "swinir-light": "SwinIR-light"}
_UNITS = {
    "macs": (1e9, "MACs (G)"),
    "params": (1e3, "parameters (k)"),
    "peak_memory_bytes": (2**20, "peak memory (MiB)"),
}
# From this span on, points at the small end of a linear axis cannot be told apart.
_LOG_AXIS_RATIO = 8.0
_LONGEST_LABEL = 44
# What an interactive figure draws at most beside the front: more can neither be told apart nor moved at a good rate.
MOST_POINTS_DRAWN = 2000
MOST_CURVES_DRAWN = 200


_T = TypeVar("_T")


class Axis:
    """One metric as an axis: its values in a readable unit, and its label with that unit. Made by `study_axis`."""

    def __init__(self, metric: str, protocol: str):
        self.metric = metric
        self.unit, self.label = _UNITS.get(metric, (1.0, metric_label(metric, protocol)))
        self._known: dict[int, float | None] = {}  # by the id of what was measured, which the study holds

    def value(self, point: Point) -> float | None:
        """Return a point's value in the axis' unit; None where it was not measured, or is not finite."""
        key = id(point.measured)
        if key not in self._known:
            found = point.measured.value(self.metric)
            self._known[key] = None if found is None or not math.isfinite(found) else found / self.unit
        return self._known[key]

    def write(self, value: float) -> str:
        """Write a quality."""
        return f"{value:.2f} dB" if self.metric == "psnr_db" else f"{value:.4f}"


def study_axis(study: Study, metric: str) -> Axis:
    """Return the study's axis of a metric, which several figures and panels share."""
    axis: Axis = study.found.setdefault(f"axis {metric}", Axis(metric, study.record.protocol))
    return axis


def quality_metric(study: Study) -> str:
    """Return the metric of the vertical axis: the first objective that is a quality, PSNR where there is none."""
    names = [objective.metric for objective in study.record.objectives]
    return next((name for name in names if name in ("psnr_db", "ssim")), "psnr_db")


def cost_metrics(study: Study) -> list[str]:
    """Return the cost objectives in the study's order; MACs where there is none."""
    names = [objective.metric for objective in study.record.objectives]
    return [name for name in names if name not in ("psnr_db", "ssim")] or ["macs"]


def draw_front_png(study: Study, path: Path) -> None:
    """Draw quality against the first one or two costs of the study and write the PNG in one step.

    Light dots are all points, the line joins the front, the star is the knee; SwinIR-light and bicubic are marked.
    A cost axis is logarithmic when its values span more than a factor of 8. A study without points gets a picture that
    says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    front = study_front(study)
    quality = study_axis(study, quality_metric(study))
    costs = [study_axis(study, metric) for metric in cost_metrics(study)[:2]]
    figure = Figure(figsize=(6.4 * len(costs) + 0.6, 5.6), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left=0.62 / figure.get_figwidth() + 0.035, right=0.985, top=0.835, bottom=0.19, wspace=0.06)
    for index, (panel, cost) in enumerate(zip(panels, costs, strict=True)):
        _draw_panel(panel, study, front, cost, quality, annotate=index == 0)
    panels[0].set_ylabel(quality.label, fontsize=11)
    handles, labels = _legend(panels)
    if handles:
        figure.legend(
            handles, labels, loc="lower center", ncols=len(handles), frameon=False, fontsize=10, columnspacing=1.8
        )
    left = panels[0].get_position().x0
    title = f"{_shorten(study.record.name)}: ×{study.record.scale} super-resolution"
    figure.text(left, 0.945, title, fontsize=14, weight="bold", parse_math=False)
    figure.text(left, 0.892, _subtitle(study), fontsize=10, color="#5A5F69", parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _subtitle(study: Study) -> str:
    counted = f"{_plural(len(study.points), 'point')} of {_plural(study.num_architectures, 'network')}"
    recipe = study.convergence_note or "full training recipe"
    parts = [counted, f"protocol {study.record.protocol}", recipe if study.points else "no finished trial yet"]
    return " · ".join(parts)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _legend(panels: Sequence["Axes"]) -> tuple[list[Any], list[str]]:
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _draw_panel(panel: "Axes", study: Study, front: Front, cost: Axis, quality: Axis, *, annotate: bool) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panel.set_xlabel(cost.label, fontsize=11, parse_math=False)
    panel.grid(visible=True, which="major", color="#E4E7EC", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color("#B5BAC3")
    panel.tick_params(which="both", color="#B5BAC3", labelcolor="#3C4049", labelsize=10)
    feasible, violating = (_pairs(points, cost, quality) for points in _divide(_off_front(study, front)))
    best = _pairs(front.points, cost, quality)
    swinir = study.baseline("swinir-light")
    bicubic = study.baseline("bicubic")
    swinir_at = _pairs([swinir], cost, quality) if swinir else []
    if feasible:
        panel.plot(*_columns(feasible), "o", color=_GREY, markersize=5, alpha=0.45, mew=0, label="other points")
    if violating:
        panel.plot(*_columns(violating), "x", color=_GREY, markersize=5, alpha=0.7, label="violates a constraint")
    if best:
        line = _lower_hull_line(best, quality)
        panel.plot(*_columns(line), "-", color=_BLUE, linewidth=1.8, alpha=0.85, zorder=3)
        panel.plot(*_columns(best), "o", color=_BLUE, markersize=7, mec="white", mew=1.0, zorder=4, label="front")
    if swinir_at:
        panel.plot(*_columns(swinir_at), "D", color=_VERMILION, markersize=9, mec="white", zorder=5)
    costs = [x for x, _ in [*feasible, *violating, *best, *swinir_at]]
    if costs and min(costs) > 0 and max(costs) / min(costs) > _LOG_AXIS_RATIO:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(f"{cost.label}, log scale", fontsize=11, parse_math=False)
        _tick_log_axis(panel, min(costs), max(costs))
    floor = quality.value(bicubic) if bicubic else None
    if floor is not None:
        panel.axhline(floor, color=_GREEN, linewidth=1.6, linestyle=(0, (5, 3)), zorder=2)
        panel.annotate(
            f"bicubic, {quality.write(floor)}",
            (1, floor),
            xycoords=("axes fraction", "data"),
            **_beside(-4, -4, "right", _GREEN),
        )
    panel.margins(x=0.07, y=0.1)
    for x, y in swinir_at:
        effort = _describe_effort(swinir.record) if swinir else ""
        panel.annotate(f"SwinIR-light, {quality.write(y)}{effort}", (x, y), **_beside(8, -9, "right", _VERMILION))
    if front.knee is not None and (knee := _pairs([front.knee], cost, quality)):
        panel.plot(*_columns(knee), "*", color=_ORANGE, markersize=19, mec="#4A3300", mew=0.9, zorder=6, label="knee")
        if annotate:
            low, high = panel.get_xlim()
            across = np.geomspace(low, high, 30) if panel.get_xscale() == "log" else np.linspace(low, high, 30)
            line = [] if floor is None else [(float(x), floor) for x in across]
            _annotate_knee(panel, front.knee, knee[0], [*feasible, *violating, *best, *swinir_at, *line])
    if not (feasible or violating or best):
        panel.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
        panel.grid(visible=False)
        panel.text(
            0.5,
            0.5,
            "not measured" if study.points else "no finished trial yet",
            transform=panel.transAxes,
            ha="center",
            color="#5A5F69",
            fontsize=12,
        )


def _describe_effort(record: TrialRecord) -> str:
    """Return a second line with steps and seconds of training, or nothing for what was not trained."""
    result = record.training_result
    return f"\n{result.steps:,} steps, {format_seconds(result.seconds)}" if result else ""


def _beside(right: float, up: float, align: str, colour: str) -> dict[str, Any]:
    """Return the style of a label that stands beside its mark; offsets in points."""
    place = {"xytext": (right, up), "textcoords": "offset points", "ha": align, "va": "top"}
    return {**place, "fontsize": 10, "weight": "bold", "color": colour, "zorder": 7}


def _off_front(study: Study, front: Front) -> list[Point]:
    on_front = {id(point) for point in front.points}
    return [point for point in study.points if id(point) not in on_front]


def _divide(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Return the feasible points, and those that violate a constraint."""
    feasible: list[Point] = []
    violating: list[Point] = []
    for point in points:
        (feasible if point.measured.feasible else violating).append(point)
    return feasible, violating


def _pairs(points: Any, cost: Axis, quality: Axis) -> list[tuple[float, float]]:
    found = [(cost.value(point), quality.value(point)) for point in points]
    return [(x, y) for x, y in found if x is not None and y is not None]


def _columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _lower_hull_line(pairs: list[tuple[float, float]], quality: Axis) -> list[tuple[float, float]]:
    """Return the steps through those points that are not dominated in this panel's two metrics, cheapest first.

    A front over three objectives has points that two of them alone would not explain; those stay off the line.
    """
    kept = non_dominated(pairs, ["minimize", METRIC_DIRECTIONS[quality.metric]])
    return sorted({pair for pair, stays in zip(pairs, kept, strict=True) if stays})


def _tick_log_axis(panel: "Axes", low: float, high: float) -> None:
    """Put ticks at 1, 2, 5 of each decade, so that a log axis of one or two decades can be read."""
    from matplotlib.ticker import FixedLocator

    panel.xaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    mantissas = (1, 2, 5) if high / low < 1e3 else (1,)
    return [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]


def _annotate_knee(panel: "Axes", knee: Point, at: tuple[float, float], marks: list[tuple[float, float]]) -> None:
    """Write the knee's name into that corner of the panel where it covers the fewest marks, with a line to the knee."""
    from matplotlib.text import Text

    routing = knee.measured.routing
    quantised = knee.measured.quantised
    names = [*([routing.label()] if routing else []), *([quantised.label] if quantised else [])]
    lines = [_shorten(knee.record.label), *names, _measures(knee)]
    note = panel.annotate(
        "\n".join(lines),
        at,
        parse_math=False,
        xytext=(0, 0),
        textcoords="axes fraction",
        fontsize=9.5,
        multialignment="left",
        linespacing=1.35,
        color="#1F2329",
        zorder=8,
        bbox={"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": "#D0D4DB", "alpha": 0.94},
        arrowprops={"arrowstyle": "-", "color": "#6B7079", "linewidth": 0.9, "shrinkB": 9},
    )
    taken = [tuple(place) for place in panel.transData.transform([at, *spread(marks, MOST_POINTS_DRAWN)])]
    for text in panel.texts:
        if text is not note:
            box = text.get_window_extent()
            taken += [(box.x0 + box.width * part / 8, box.y0 + box.height / 2) for part in range(9)]

    def covered(corner: tuple[float, float, str, str]) -> int:
        note.set_position(corner[:2])
        note.set(ha=corner[2], va=corner[3])
        box = Text.get_window_extent(note).padded(8)  # of the words alone, without the line to the knee
        return sum(box.contains(x, y) for x, y in taken)

    corners = [
        (0.03, 0.96, "left", "top"),
        (0.97, 0.05, "right", "bottom"),
        (0.97, 0.3, "right", "bottom"),
        (0.97, 0.96, "right", "top"),
        (0.03, 0.05, "left", "bottom"),
    ]
    covered(min(corners, key=covered))


def _measures(point: Point) -> str:
    latency = point.latency()
    parts = [f"{point.measured.evaluation.psnr_db:.2f} dB", f"{format_count(point.measured.macs)}MACs"]
    if latency:
        parts.append(f"{latency.median:.1f} ms")
    return " · ".join(parts)


def _shorten(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def draw_front_html(study: Study) -> "go.Figure":
    """Return the front as an interactive plotly figure: one panel per cost; hovering shows all of a point.

    Of the points beside the front at most `MOST_POINTS_DRAWN` are drawn, evenly spread over the study.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    front = study_front(study)
    quality = study_axis(study, quality_metric(study))
    costs = [study_axis(study, metric) for metric in cost_metrics(study)]
    figure = make_subplots(rows=1, cols=len(costs), shared_yaxes=True, horizontal_spacing=0.04)
    others, violating = _divide(spread(_off_front(study, front), MOST_POINTS_DRAWN))
    floor = study.baseline("bicubic")
    for column, cost in enumerate(costs, start=1):
        line = _lower_hull_line(_pairs(front.points, cost, quality), quality)
        for name, points, marker in (
            ("other points", others, {"color": _GREY, "size": 7, "opacity": 0.5}),
            ("violates a constraint", violating, {"color": _GREY, "size": 7, "symbol": "x-thin-open", "opacity": 0.8}),
            ("front", front.points, {"color": _BLUE, "size": 9, "line": {"color": "white", "width": 1}}),
            ("knee", [front.knee] if front.knee else [], {"color": _ORANGE, "size": 17, "symbol": "star"}),
            *(
                (_BASELINE_LABELS[found], [baseline], {"color": _VERMILION, "size": 12, "symbol": "diamond"})
                for found in BASELINE_IDS
                if found != "bicubic" and (baseline := study.baseline(found))
            ),
        ):
            shown = [(p, x, y) for p in points if None not in (x := cost.value(p), y := quality.value(p))]
            if not shown:
                continue
            figure.add_trace(
                go.Scatter(
                    x=[x for _, x, _ in shown],
                    y=[y for _, _, y in shown],
                    mode="markers",
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    marker=marker,
                    text=[describe_point(study, point) for point, _, _ in shown],
                    hovertemplate="%{text}<extra></extra>",
                ),
                row=1,
                col=column,
            )
            if name == "front":
                figure.add_trace(
                    go.Scatter(
                        x=[x for x, _ in line],
                        y=[y for _, y in line],
                        mode="lines",
                        legendgroup=name,
                        showlegend=False,
                        hoverinfo="skip",
                        line={"color": _BLUE, "width": 2},
                    ),
                    row=1,
                    col=column,
                )
        level = quality.value(floor) if floor else None
        if level is not None:
            figure.add_hline(
                y=level,
                line={"color": _GREEN, "width": 2, "dash": "dash"},
                annotation={"text": f"bicubic, {quality.write(level)}", "font": {"color": _GREEN}},
                annotation_position="bottom right",
                row=1,
                col=column,
            )
        swinir = study.baseline("swinir-light")
        values = [x for p in (*study.points, *([swinir] if swinir else [])) if (x := cost.value(p)) is not None]
        log = bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_AXIS_RATIO
        axis: dict[str, Any] = {
            "title": {"text": f"{cost.label}{', log scale' if log else ''}"},
            "type": "log" if log else "linear",
        }
        if log:
            ticks = _log_ticks(min(values), max(values))
            axis |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
        figure.update_xaxes(**axis, row=1, col=column)
    figure.update_yaxes(title={"text": quality.label}, row=1, col=1)
    return _styled(figure, height=520)


def spread(entries: list[_T], most: int) -> list[_T]:
    """Return `most` entries, evenly spread, or all where there are no more."""
    if len(entries) <= most:
        return entries
    return [entries[index * len(entries) // most] for index in range(most)]


def ordered_dimensions(importance: Sequence[Importance]) -> list[str]:
    """Return all dimensions that have a share, those of the largest sum over objectives first, interactions last."""
    sums: dict[str, float] = {}
    for one in importance:
        for name, share in one.shares.items():
            sums[name] = sums.get(name, 0.0) + share
    return sorted(sums, key=lambda name: (name == INTERACTIONS, -sums[name], name))


def describe_point(study: Study, point: Point) -> str:
    """Return the hover text of a point: its name, where it comes from, and everything measured, escaped for HTML."""
    record, measured = point.record, point.measured
    evaluation = measured.evaluation
    lines = [f"<b>{html.escape(record.label)}</b>"]
    if measured.routing:
        lines.append(html.escape(measured.routing.label()))
    if measured.quantised:
        lines.append(html.escape(f"{measured.quantised.label}, {measured.quantised.file_bytes / 2**20:.2f} MiB"))
    if record.number is not None:
        lines.append(f"trial {record.number} · {record.network_id}")
    lines.append(
        f"{_quality_name('psnr_db', study)} {evaluation.psnr_db:.3f} dB · {_quality_name('ssim', study)} "
        f"{evaluation.ssim:.4f} · protocol {html.escape(evaluation.protocol)}"
    )
    lines.append(f"{format_count(measured.macs)}MACs · {format_count(measured.params)} parameters")
    for latency in measured.latency:
        ratio = f" · {latency.ratio:.2f} × SwinIR-light's" if latency.ratio is not None else ""
        lines.append(
            f"{latency.median:.2f} ms (IQR {latency.iqr:.2f}) on {html.escape(latency.short_conditions)}{ratio}"
        )
    if evaluation.attention_share is not None:
        lines.append(f"attention share {evaluation.attention_share:.3f}")
    if measured.peak_memory_bytes is not None:
        lines.append(f"peak memory {measured.peak_memory_bytes / 2**20:.1f} MiB")
    lines += [f"violates {html.escape(text)}" for text, value in measured.constraints.items() if value > 0]
    if record.training:
        lines.append(f"trained for {record.training.steps:,} steps")
    return "<br>".join(lines)


def _quality_name(metric: str, study: Study) -> str:
    return metric_label(metric, study.record.protocol, unit=False)


def _styled(figure: "go.Figure", *, height: int) -> "go.Figure":
    """Set what every figure shares; colours of text and grid follow the page's light or dark scheme in the report."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 16, "t": 16, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#3C4049"},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        hoverlabel={"align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)"},
    )
    figure.update_xaxes(gridcolor="rgba(128,134,145,0.22)", zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,134,145,0.22)", zeroline=False, automargin=True)
    return figure

"""The report: one HTML file that opens anywhere, offline, with the question answered first.

Everything that comes from a record is escaped. plotly.js is inside the file, so that it also opens without a network
and inside other pages that show artifacts.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, get_args

from harness.core.files import write_text
from harness.core.importance import Importance
from harness.core.records import LatencyRecord, TrialRecord, TrialState
from harness.core.study_folder import StudyFolder
from harness.core.units import format_count, format_seconds
from harness.metrics import metric_label
from harness.reporting.comparison import compare, describe_missing, format_difference
from harness.reporting.front import study_front
from harness.reporting.plots import (
    MOST_CURVES_DRAWN,
    MOST_POINTS_DRAWN,
    draw_front_html,
    draw_front_png,
    draw_hypervolume,
    draw_importance,
    draw_rungs,
    draw_training_curves,
    ordered_dimensions,
)
from harness.reporting.study import Study, load_study, without_collection
from harness.reporting.table import front_table, write_csv

_STATE_MEANINGS: dict[TrialState, str] = {
    "complete": "trained, evaluated and measured",
    "rejected": "a hard constraint ruled it out before training",
    "stopped": "stopped early while training",
    "failed": "ended by an error",
    "answered": "answered from a network that was trained before",
}
_MOST_REASONS = 200


@dataclass(frozen=True)
class ReportFiles:
    """The files that a report consists of."""

    front_csv: Path
    front_png: Path
    report_html: Path


@without_collection()
def write_report(
    study_dir: Path,
    out_dir: Path | None = None,
    study: Study | None = None,
    importance: Sequence[Importance] = (),
) -> ReportFiles:
    """Write front.csv, front.png and report.html, each in one step, to `out_dir` (default: the study's `report/`).

    `study` is what `load_study` read of the folder, for those who have done so already, `importance` what each
    objective hangs on. A study without a finished trial or without baselines gets a report that says so.
    `UserError` where there is none.
    """
    study = study or load_study(study_dir)
    folder = out_dir or StudyFolder(study_dir).report_dir
    files = ReportFiles(folder / "front.csv", folder / "front.png", folder / "report.html")
    write_csv(front_table(study), files.front_csv)
    draw_front_png(study, files.front_png)
    write_text(files.report_html, render_report(study, importance))
    return files


def render_report(study: Study, importance: Sequence[Importance] = ()) -> str:
    """Return the text of report.html."""
    from plotly.offline import get_plotlyjs

    comparison = compare(study)
    name = escape(study.record.name)
    sections = [
        f"<header><h1>{name}</h1><p class='lead'>{escape(comparison['headline'])}</p>{_facts(study)}</header>",
        _section("Front", _front_figure(study)),
        _section("Hypervolume over trained networks", _hypervolume_figure(study)),
        _section("Against SwinIR-light", _comparison_table(study, comparison["rows"])),
        _section("What the objectives hang on", _importance(study, importance)),
        _section("Trials", _trials(study)),
        _section("Training", _training_figure(study)),
        _section("Scores at rungs", _rungs_figure(study)),
        _section("How this was measured", _protocol(study)),
    ]
    body = "\n".join(section for section in sections if section)
    library = f"<script>{get_plotlyjs()}</script>" if "<div class='figure'>" in body else ""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{name}: search report</title><style>{_STYLE}</style>{library}</head>\n"
        f"<body><main>\n{body}\n</main><script>{_THEME_SCRIPT}</script></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _facts(study: Study) -> str:
    front = study_front(study)
    facts = [
        ("scale", f"×{study.record.scale}"),
        ("networks trained", f"{study.num_architectures:,}"),
        ("points measured", f"{len(study.points):,}"),
        ("points on the front", f"{len(front.points):,}"),
        ("hypervolume", f"{front.hypervolume:.4g}"),
        *([("knee", front.knee.label)] if front.knee else []),
        ("training", study.convergence_note or "full recipe"),
    ]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f"<dl class='facts'>{cells}</dl>"


def _front_figure(study: Study) -> str:
    if not study.points:
        return "<p>No trial has finished yet, so there is no front. Run the search on, then write the report again.</p>"
    objectives = ", ".join(
        f"{metric_label(objective.metric, study.record.protocol)} ({objective.direction})"
        for objective in study.record.objectives
    )
    front = study_front(study)
    words = (
        f"Objectives: {objectives}. The line joins those points of the front that are best in the two metrics shown; "
        f"the star is the knee, furthest on the good side of the line between the extremes. Hypervolume "
        f"{front.hypervolume:.4g}, measured from {front.hypervolume_reference}."
    )
    off_front = len(study.points) - len(front.points)
    if off_front > MOST_POINTS_DRAWN:
        words += f" Of the {off_front:,} other points {MOST_POINTS_DRAWN:,} are drawn; front.png has all of them."
    return f"{_figure(draw_front_html(study), 'front')}<p class='note'>{escape(words)}</p>"


def _hypervolume_figure(study: Study) -> str:
    figure = draw_hypervolume(study)
    if figure is None:
        return ""
    words = "After each network in the order in which they were finished, all measured from the reference above."
    return f"{_figure(figure, 'hypervolume')}<p class='note'>{words}</p>"


def _training_figure(study: Study) -> str:
    figure = draw_training_curves(study)
    if figure is None:
        return ""
    trained = sum(trial.training_result is not None for trial in study.trials)
    words = f"Curves of {MOST_CURVES_DRAWN:,} of {trained:,} networks, evenly spread over the study."
    note = f"<p class='note'>{escape(words)}</p>" if trained > MOST_CURVES_DRAWN else ""
    return _figure(figure, "training") + note


def _rungs_figure(study: Study) -> str:
    figure = draw_rungs(study)
    if figure is None:
        return ""
    words = "The best of each network's routings, by its averaged weights; a cross is where a network was stopped."
    images = {rung.images for trial in study.trials for rung in trial.rungs}
    if len(images) > 1 or max(images) < len(study.record.validation_images):
        words += " Rungs were scored on a part of the validation images, so their scores are not those of one set."
    scored = sum(bool(trial.rungs) for trial in study.trials)
    if scored > MOST_CURVES_DRAWN:
        words += f" Drawn are {MOST_CURVES_DRAWN:,} of {scored:,} networks, evenly spread over the study."
    return f"{_figure(figure, 'rungs')}<p class='note'>{escape(words)}</p>"


def _importance(study: Study, importance: Sequence[Importance]) -> str:
    figure = draw_importance(study, importance)
    labels = {one.metric: metric_label(one.metric, study.record.protocol, unit=False) for one in importance}
    reasons: dict[str, list[str]] = {}
    for one in importance:
        if one.reason:
            reasons.setdefault(one.reason, []).append(labels[one.metric])
    missing = [f"No shares of {', '.join(metrics)}: {reason}." for reason, metrics in reasons.items()]
    left_out = {name: why for one in importance for name, why in one.left_out.items()}
    missing += [f"{name} is left out: {why}." for name, why in left_out.items()]
    notes = f"<p class='note'>{escape(' '.join(missing))}</p>" if missing else ""
    if figure is None:
        return notes
    told = [one for one in importance if one.shares]
    rows = (
        [name, *("" if name not in one.shares else f"{one.shares[name]:.1%}" for one in told)]
        for name in ordered_dimensions(told)
    )
    counts = ", ".join(f"{labels[one.metric]} {one.points:,} points of {one.networks:,} networks" for one in told)
    words = (
        "How much of an objective's variance over the space each dimension explains alone, all others averaged over; "
        "interactions are what only several explain together (functional ANOVA of a random forest). "
        f"Taken from {counts}. With a few dozen networks, small shares are chance."
    )
    table = _table(("dimension", *(labels[one.metric] for one in told)), rows)
    return f"{_figure(figure, 'importance')}{table}<p class='note'>{escape(words)}</p>{notes}"


def _figure(figure: Any, identity: str) -> str:
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=identity,
        config={"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
    )
    return f"<div class='figure'>{drawn}</div>"


def _comparison_table(study: Study, rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "<p>No point is on the front, and no baseline was measured.</p>"
    psnr, ssim = _quality_names(study)
    names = ["network", "routing", "trial", psnr, "against SwinIR-light", "above bicubic", "latency", "times faster"]
    names += ["MACs", "fewer MACs", "parameters", ssim, "attention share", "training"]
    seam = f"; {study.seam_note}" if study.seam_note else ""
    notes = [f"{psnr} and {ssim}: protocol {study.record.protocol}{seam}."]
    labels = {row["label"].lower() for row in rows if row["role"] == "baseline"}
    notes += [] if "swinir-light" in labels else [f"No {describe_missing(study)}."]
    notes += [] if "bicubic" in labels else ["No bicubic baseline was measured in this study."]
    body = "".join(_comparison_row(row) for row in rows)
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    note = f"<p class='note'>{escape(' '.join(notes))}</p>"
    return f"{note}<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _quality_names(study: Study) -> tuple[str, str]:
    protocol = study.record.protocol
    return metric_label("psnr_db", protocol, unit=False), metric_label("ssim", protocol, unit=False)


def _comparison_row(row: dict[str, Any]) -> str:
    saving, faster = row["macs_saving_percent"], row["times_faster"]
    difference, above = row["psnr_difference_db"], row["psnr_above_bicubic_db"]
    seconds = f", {format_seconds(row['training_seconds'])}" if row["training_seconds"] else ""
    note = "<br><small>not converged</small>" if row["note"] else ""
    gamma = "" if row["gamma"] is None else f" γ={row['gamma']:g}"
    cells = [
        escape(row["label"]) + ("<br><small>★ knee</small>" if row["knee"] else ""),
        escape(", ".join(part for part in (f"{row['routing'] or ''}{gamma}", row["quantised"]) if part)),
        "" if row["trial"] is None else str(row["trial"]),
        f"{row['psnr_db']:.2f} dB",
        "" if difference is None else format_difference(difference) + note,
        "" if above is None or row["label"] == "bicubic" else format_difference(above) + note,
        "" if row["latency_ms_median"] is None else f"{row['latency_ms_median']:.2f} ms",
        "" if faster is None else f"{faster:.2f}",
        format_count(row["macs"]),
        "" if saving is None else f"{saving:.1f} %".replace("-", "−"),
        format_count(row["params"]),
        f"{row['ssim']:.4f}",
        "" if row["attention_share"] is None else f"{row['attention_share']:.3f}",
        f"{row['steps']:,} steps{seconds}" if row["steps"] else "none",
    ]
    kind = "knee" if row["knee"] else row["role"]
    return f"<tr class='{kind}'>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _trials(study: Study) -> str:
    counts = {state: sum(trial.state == state for trial in study.trials) for state in get_args(TrialState)}
    rows = ((state, f"{count:,}", _STATE_MEANINGS[state]) for state, count in counts.items())
    parts = [_table(("state", "trials", "meaning"), rows)]
    told = [trial for trial in (*study.baselines, *study.trials) if trial.state in ("rejected", "stopped", "failed")]
    if told:
        shown = (
            ("baseline" if trial.number is None else str(trial.number), trial.state, trial.label, trial.reason or "")
            for trial in told[:_MOST_REASONS]
        )
        more = f"<p>{len(told) - _MOST_REASONS:,} more are not shown.</p>" if len(told) > _MOST_REASONS else ""
        table = _table(("trial", "state", "network", "reason"), shown)
        parts.append(
            f"<details{' open' if len(told) <= 12 else ''}><summary>Why {len(told):,} did not finish</summary>"
        )
        parts.append(f"{table}{more}</details>")
    if study.calibration_notes:
        parts.append(f"<p class='note'>{escape('; '.join(study.calibration_notes))}.</p>")
    return "\n".join(parts)


def _protocol(study: Study) -> str:
    record = study.record
    training, result = (
        record.training,
        next((trial.training_result for trial in study.trials if trial.training_result), None),
    )
    lines: list[tuple[str, str]] = [
        (f"protocol of {' and '.join(_quality_names(study))}", f"{record.protocol}, ×{record.scale}"),
        ("trained on", record.data.train),
        ("validated on", f"{record.data.validation}: {', '.join(record.validation_images)}"),
        (
            "recipe",
            f"{training.steps:,} steps, batch {training.batch_size}, {training.hr_patch_size} px HR patches, "
            f"learning rate {training.learning_rate:g}, {training.precision}, seed {training.seed}"
            + (f", teacher {taught.teacher}: {taught.label()}" if (taught := training.distillation) else "")
            + (f" ({study.convergence_note})" if study.convergence_note else ""),
        ),
        ("constraints", "; ".join(record.constraints) or "none"),
        ("MACs", f"one multiply-accumulate is one; low-resolution input {_size(record.macs_input_size)}"),
        (
            "latency",
            f"low-resolution input {_size(record.latency_input_size)} on {', '.join(record.devices) or 'no device'}",
        ),
    ]
    if study.seam_note:
        lines.append(("seam", study.seam_note))
    firsts: dict[str, LatencyRecord] = {}
    noisy_runs: Counter[str] = Counter()
    for latency in (latency for point in study.points for latency in point.measured.latency):
        conditions = latency.conditions
        noisy_runs[conditions] += latency.is_noisy
        if conditions not in firsts or (latency.samples and not firsts[conditions].samples):
            firsts[conditions] = latency  # of lean records, one of each condition has its samples
    for conditions, one in firsts.items():
        threads = f", {one.threads} thread{'' if one.threads == 1 else 's'}" if one.threads else ""
        against = f", interleaved with {one.reference}" if one.reference else ""
        against += f", which ran under {one.compared_under}" if one.reference and one.compared_under else ""
        runs = f"median of {len(one.samples)} runs after {one.warmup_runs} warm-up runs"
        runtime = "" if one.runtime == "eager" else f", {one.runtime}"
        noisy = noisy_runs[conditions]
        doubt = f"; {noisy} noisy" if noisy else ""
        lines.append(
            (
                f"device {one.short_conditions}",
                f"{one.device_name}{threads}{runtime}, {one.precision}, {runs}{against}, {one.protocol_name}{doubt}",
            )
        )
    if result:
        lines.append(
            ("trained with", f"{result.device}, {result.threads} threads, {result.images_per_second:.0f} images/s")
        )
    for index, trial in enumerate(_one_per_environment((*study.trials, *study.baselines))):
        environment = trial.environment
        packages = ", ".join(f"{name} {version}" for name, version in sorted(environment.packages.items()))
        revision = environment.git_revision or "not a git checkout"
        words = (
            f"harness {environment.harness_version} ({revision}), Python {environment.python_version}, "
            f"{environment.platform}, {environment.cpu_model} ({environment.cpu_count} CPUs); {packages}"
        )
        lines.append(("environment" if not index else f"environment {index + 1}", words))
    lines.append(("created", record.created_at))
    space = f"<details><summary>Search space</summary><pre>{escape(record.space)}</pre></details>"
    return _table(None, lines) + space


def _one_per_environment(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    distinct: dict[str, TrialRecord] = {}
    for record in {id(record.environment): record for record in records}.values():
        distinct.setdefault(record.environment.canonical_json(), record)
    return list(distinct.values())


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]} (height × width)"


def _table(names: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    head = (
        "<thead><tr>" + "".join(f"<th scope='col'>{escape(name)}</th>" for name in names) + "</tr></thead>"
        if names
        else ""
    )
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table class='words'>{head}<tbody>{body}</tbody></table></div>"


_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1f2329; --soft: #5a5f69; --line: #e1e4e9;
  --knee: #fff4dc; --baseline: #fdeee6; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1d2026; --ink: #e8eaee; --soft: #a3a9b5;
  --line: #333842; --knee: #3a2f14; --baseline: #3a251c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { margin: 8px 0 4px; font-size: 26px; overflow-wrap: anywhere; } h2 { margin: 0 0 12px; font-size: 18px; }
.lead { font-size: 18px; max-width: 62em; margin: 8px 0 20px; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin: 20px 0; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 36px; margin: 0; }
.facts dt { color: var(--soft); font-size: 13px; } .facts dd { margin: 0; font-size: 18px; font-weight: 600; }
.note { color: var(--soft); font-size: 13.5px; }
.scroll, .figure { overflow-x: auto; } .figure > div { min-width: 620px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: 6px 9px; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
td small { color: var(--soft); }
th { white-space: normal; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
table.words th, table.words td { text-align: left; white-space: normal; overflow-wrap: break-word; }
table.words td:first-child { white-space: nowrap; padding-right: 24px; }
tr.knee { background: var(--knee); } tr.baseline { background: var(--baseline); }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; font-size: 13px; }
"""

# Figures have a transparent background; their text takes the page's colour, also when the scheme changes.
_THEME_SCRIPT = """
(function () {
  function recolour() {
    var style = getComputedStyle(document.body);
    var card = getComputedStyle(document.documentElement).getPropertyValue('--card');
    document.querySelectorAll('.plotly-graph-div').forEach(function (graph) {
      Plotly.relayout(graph, {
        'font.color': style.color, 'hoverlabel.bgcolor': card, 'hoverlabel.font.color': style.color
      });
    });
  }
  if (!window.Plotly) return;
  recolour();
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', recolour);
})();
"""

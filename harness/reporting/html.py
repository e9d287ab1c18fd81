"""The report: one HTML file that opens anywhere, offline, with the question answered first.

Everything that comes from a record is escaped. Answer, tables and crops stand in the HTML itself; charts are drawn by
`page.js` from one JSON document (`page_data.py`), without any library, so that the file is small and opens at once.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, get_args

from harness.core.errors import UserError
from harness.core.files import write_text
from harness.core.importance import Importance
from harness.core.records import LatencyRecord, TrialRecord, TrialState
from harness.core.study_folder import StudyFolder
from harness.core.units import format_count, format_seconds
from harness.metrics import metric_label
from harness.reporting.answer import QUESTION, answer
from harness.reporting.comparison import compare, describe_missing, format_difference
from harness.reporting.front import study_front
from harness.reporting.gallery import credit_images, describe_maps, write_crops, write_maps
from harness.reporting.page_data import MOST_GAMMA_NETWORKS, MOST_LINES_DRAWN, describe_page
from harness.reporting.picks import pick
from harness.reporting.pictures import Pictures
from harness.reporting.plots import MOST_CURVES_DRAWN, MOST_POINTS_DRAWN, draw_front_png, ordered_dimensions
from harness.reporting.published import load_published
from harness.reporting.study import Point, Study, load_study, without_collection
from harness.reporting.table import front_table, write_csv

_STATE_MEANINGS: dict[TrialState, str] = {
    "complete": "trained, evaluated and measured",
    "rejected": "a hard constraint ruled it out before training",
    "stopped": "stopped early while training",
    "failed": "ended by an error",
    "answered": "answered from a network that was trained before",
}
_MOST_REASONS = 200
_MOST_ROWS = 200
_PICKS = {"knee": "Best compromise (knee)", "best-psnr": "Best score", "fastest": "Fastest on the front"}


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
    pictures: Pictures | None = None,
    *,
    mix: bool = False,
) -> ReportFiles:
    """Write front.csv, front.png and report.html, each in one step, to `out_dir` (default: the study's `report/`).

    `study` is what `load_study` read of the folder, for those who have done so already, `importance` what each
    objective hangs on, `pictures` what `make_pictures` made of the study's networks. A study without a finished trial
    or without baselines gets a report that says so. `UserError` where there is none, and where latencies were measured
    under several settings (machines, versions), unless told to `mix` them.
    """
    study = study or load_study(study_dir)
    folder = out_dir or StudyFolder(study_dir).report_dir
    files = ReportFiles(folder / "front.csv", folder / "front.png", folder / "report.html")
    write_csv(front_table(study), files.front_csv)
    draw_front_png(study, files.front_png)
    write_text(files.report_html, render_report(study, importance, pictures, mix=mix))
    return files


def render_report(
    study: Study, importance: Sequence[Importance] = (), pictures: Pictures | None = None, *, mix: bool = False
) -> str:
    """Return the text of report.html; `mix` as of `write_report`."""
    page = describe_page(study)
    if pictures is not None:
        page["maps"] = describe_maps(pictures)
    comparison = compare(study, mix=mix)
    name = escape(study.record.name)
    sections = [
        _section("Fronts", "fronts", _fronts(study, page)),
        _section("What it looks like", "crops", write_crops(pictures) if pictures else ""),
        _section("Where attention goes", "attention", _maps(pictures)),
        _section("What attention buys: curves over γ", "curves", _gamma_curves(page)),
        _section("Against SwinIR-light", "comparison", _comparison(study, comparison["rows"])),
        _section("How the search went", "search", _hypervolume_figure(page)),
        _section("Dimensions and objectives", "dimensions", _parallel(study, page)),
        _section("What the objectives hang on", "importances", _importance(study, importance)),
        _section("Scores at rungs", "scores", _rungs_figure(study, page)),
        _section("Training", "losses", _training_figure(study, page)),
        _section("Trials", "trials", _trials(study)),
        _section("How this was measured", "protocol", _protocol(study, pictures)),
    ]
    body = "\n".join(section for section in sections if section)
    document = json.dumps(page, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":  # nothing in it can end the element that holds it
        document = document.replace(sign, f"\\u{ord(sign):04x}")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{name}: search report</title><style>{_read('page.css')}</style></head>\n"
        f"<body><main>\n{_header(study, sections)}\n{body}\n</main>"
        f"<script type='application/json' id='data'>{document}</script><script>{_read('page.js')}</script></body>"
        "</html>\n"
    )


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _section(title: str, identity: str, content: str) -> str:
    if not content:
        return ""
    heading = f'<h2 id="{identity}-title">{escape(title)}</h2>'
    return f'<section id="{identity}" aria-labelledby="{identity}-title">{heading}\n{content}\n</section>'


def _header(study: Study, sections: Sequence[str]) -> str:
    found = answer(study)
    named = [text.split("<h2 id=")[1].partition(">")[2].partition("<")[0] for text in sections if text]
    places = [text.partition('id="')[2].partition('"')[0] for text in sections if text]
    links = "".join(f"<a href='#{place}'>{title}</a>" for place, title in zip(places, named, strict=True))
    notes = "".join(f"<p class='note'>{escape(words)}</p>" for words in found.reservations)
    return (
        f"<header><div class='bar'><h1>{escape(study.record.name)}: architecture search, ×{study.record.scale} "
        "super-resolution</h1><button type='button' id='theme' hidden>Theme</button></div>"
        f"<div class='answer'><p class='question'>{escape(QUESTION)}</p><p class='lead'>{escape(found.sentence)}</p>"
        f"{notes}"
        f"{_export(study, found.point)}</div>{_picks(study)}{_facts(study)}<nav aria-label='sections'>{links}</nav>"
        "<noscript><p class='note'>Charts need scripts, which are switched off here; answer, tables and pictures "
        "are all there.</p></noscript></header>"
    )


def _picks(study: Study) -> str:
    """Return a card for each pick, with what it scores and costs, and the command that exports it."""
    roles: dict[int, tuple[Point, list[str]]] = {}
    for how in _PICKS:
        try:
            point = pick(study, how)
        except UserError:  # an empty front, or no latency
            continue
        roles.setdefault(id(point.measured), (point, []))[1].append(how)
    cards = "".join(_pick(study, point, hows) for point, hows in roles.values())
    return f"<div class='picks'>{cards}</div>" if cards else ""


def _pick(study: Study, point: Point, hows: Sequence[str]) -> str:
    latency = point.latency()
    time = [] if latency is None else [f"{latency.median:.3g} ms"]
    costs = [f"{format_count(point.measured.macs)}MACs", f"{format_count(point.measured.params)} parameters"]
    trial = "" if point.record.number is None else f", trial {point.record.number}"
    command = _command(study, hows[0])
    role = " · ".join(_PICKS[how] for how in hows)
    return (
        f"<div class='pick'><div class='role'>{escape(role)}</div><div class='who'>{escape(point.label + trial)}</div>"
        f"<p class='big'>{escape(' · '.join([f'{point.measured.evaluation.psnr_db:.2f} dB', *time]))}</p>"
        f"<p class='small'>{escape(' · '.join(costs))}</p>{command}</div>"
    )


def _command(study: Study, how: str) -> str:
    """Return the command that exports a pick, with a button that copies it."""
    command = escape(f"harness export {shlex.quote(study.record.name)} --pick {how}")
    button = f'<button type="button" hidden data-copy="{command}">copy</button>'
    return f"<div class='command'><code>{command}</code>{button}</div>"


def _export(study: Study, point: Point | None) -> str:
    return "" if point is None else _command(study, f"point:{point.point_id}")


def _facts(study: Study) -> str:
    front = study_front(study)
    facts = [
        ("networks trained", f"{study.num_architectures:,}"),
        ("points measured", f"{len(study.points):,}"),
        ("points on the front", f"{len(front.points):,}"),
        ("hypervolume", f"{front.hypervolume:.4g}"),
        ("training", study.convergence_note or "full recipe"),
    ]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f"<dl class='facts'>{cells}</dl>"


def _fronts(study: Study, page: dict[str, Any]) -> str:
    if not page["axes"]:
        return "<p>No trial has finished yet, so there is no front. Run the search on, then write the report again.</p>"
    opening = "" if study.points else "<p>No trial has finished yet, so there is no front.</p>"
    objectives = ", ".join(
        f"{metric_label(objective.metric, study.record.protocol)} ({objective.direction})"
        for objective in study.record.objectives
    )
    front = study_front(study)
    words = (
        f"Objectives: {objectives}. The line joins what no other point beats in the two measures shown; the star is "
        "the "
        "knee, furthest on the good side of the line between the extremes. Trials that did not finish have what was "
        "known "
        "of them when they ended: scores of stopped ones are those of their last rung; marks on a strip lack one "
        "measure. "
        f"Hypervolume {front.hypervolume:.4g}, measured from {front.hypervolume_reference}."
    )
    if page["left_out"]:
        drawn = len(study.points) - len(front.points) - page["left_out"]
        words += (
            f" Of the {drawn + page['left_out']:,} other points {drawn:,} are drawn, an even spread of at least "
            f"{MOST_POINTS_DRAWN:,}; front.png has all of them."
        )
    command = escape(f"harness export {shlex.quote(study.record.name)}")
    return (
        f"{opening}<p class='note'>Point at a mark to see its configuration; click it, or press Enter, to keep its "
        "details and "
        "the command that exports it.</p>"
        "<div class='row' id='legend'></div><div class='row' id='toggles' role='group' aria-label='points shown'></div>"
        f"<div class='charts' id='panels'></div><div id='pinned' data-command=\"{command}\" aria-live='polite' hidden>"
        "</div>"
        "<h3>Any two measures</h3><div class='row'><label>across <select id='across'></select></label>"
        "<label>up <select id='up'></select></label><button type='button' id='swap'>swap</button></div>"
        "<div class='row' id='pairs' role='group' aria-label='pairs of objectives'></div>"
        f"{_chart('front-any', 'front', 'large')}<p class='note'>{escape(words)}</p>"
    )


def _chart(identity: str, kind: str, size: str = "") -> str:
    return f"<div class='chart {size}' id=\"{identity}\" data-chart='{kind}'></div>"


def _hypervolume_figure(page: dict[str, Any]) -> str:
    if not page["hypervolume"]:
        return ""
    words = "The hypervolume after each network in the order in which they were finished, all from the reference above."
    return f"{_chart('hypervolume', 'hypervolume', 'low')}<p class='note'>{words}</p>"


def _gamma_curves(page: dict[str, Any]) -> str:
    curves = page["gamma"]["curves"]
    if not curves:
        return ""
    words = (
        "One trained network under several γ, without training it again: blue are networks of the front, dashed is "
        "policy "
        "probability. What is pointed at above is orange here."
    )
    networks = page["gamma"]["networks"]
    if networks > MOST_GAMMA_NETWORKS:
        words += f" Drawn are {MOST_GAMMA_NETWORKS} of {networks:,} networks, those of the front first."
    return f"<div class='charts' id='gammas'></div><p class='note'>{escape(words)}</p>"


def _parallel(study: Study, page: dict[str, Any]) -> str:
    if len(page["lines"]) < 2 or not page["dimensions"]:
        return ""
    words = "Blue lines are points of the front. Drag along an axis to keep the lines that pass there."
    if len(study.points) - len(study_front(study).points) > MOST_LINES_DRAWN:
        words += f" Beside the front, {MOST_LINES_DRAWN} lines are drawn."
    return (
        f"<p class='note'>{words}</p><div class='row controls'><button type='button' id='unbrush' hidden>show all "
        "lines</button>"
        f"<span id='brushed' class='soft' role='status'></span></div>"
        f"<div class='scroll'>{_chart('parallel', 'parallel', 'parallel')}</div>"
    )


def _maps(pictures: Pictures | None) -> str:
    maps = write_maps(pictures) if pictures else ""
    if not maps:
        return ""
    words = (
        "Windows of the low-resolution image that got attention, by the trained network's own routing; all others got "
        "convolution. Maps are of the image as it is, without tiles."
    )
    return f"<p class='note'>{words}</p>{maps}"


def _training_figure(study: Study, page: dict[str, Any]) -> str:
    if page["training"] is None:
        return ""
    trained = sum(trial.training_result is not None for trial in study.trials)
    words = "The loss of SwinIR-light is orange-red and thick, those of networks that were stopped are purple."
    if trained > MOST_CURVES_DRAWN:
        words += f" Curves of {MOST_CURVES_DRAWN:,} of {trained:,} networks, evenly spread over the study."
    return f"{_chart('training', 'training')}<p class='note'>{escape(words)}</p>"


def _rungs_figure(study: Study, page: dict[str, Any]) -> str:
    if page["rungs"] is None:
        return ""
    words = "The best of each network's routings, by its averaged weights; a cross is where a network was stopped."
    images = {rung.images for trial in study.trials for rung in trial.rungs}
    if len(images) > 1 or max(images) < len(study.record.validation_images):
        words += " Rungs were scored on a part of the validation images, so their scores are not those of one set."
    scored = sum(bool(trial.rungs) for trial in study.trials)
    if scored > MOST_CURVES_DRAWN:
        words += f" Drawn are {MOST_CURVES_DRAWN:,} of {scored:,} networks, evenly spread over the study."
    return f"{_chart('rungs', 'rungs')}<p class='note'>{escape(words)}</p>"


def _importance(study: Study, importance: Sequence[Importance]) -> str:
    labels = {one.metric: metric_label(one.metric, study.record.protocol, unit=False) for one in importance}
    reasons: dict[str, list[str]] = {}
    for one in importance:
        if one.reason:
            reasons.setdefault(one.reason, []).append(labels[one.metric])
    missing = [f"No shares of {', '.join(metrics)}: {reason}." for reason, metrics in reasons.items()]
    left_out = {name: why for one in importance for name, why in one.left_out.items()}
    missing += [f"{name} is left out: {why}." for name, why in left_out.items()]
    notes = f"<p class='note'>{escape(' '.join(missing))}</p>" if missing else ""
    told = [one for one in importance if one.shares]
    if not told:
        return notes
    names = ("dimension", *(f"{labels[one.metric]}, share of variance" for one in told))
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(_share(one.shares.get(name)) for one in told) + "</tr>"
        for name in ordered_dimensions(told)
    )
    counts = ", ".join(f"{labels[one.metric]} {one.points:,} points of {one.networks:,} networks" for one in told)
    words = (
        "How much of an objective's variance over the space each dimension explains alone, all others averaged over; "
        "interactions are what only several explain together (functional ANOVA of a random forest). "
        f"Taken from {counts}. With a few dozen networks, small shares are chance."
    )
    table = f"<table class='words shares'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='scroll' id=\"importance\">{table}</div><p class='note'>{escape(words)}</p>{notes}"


def _share(share: float | None) -> str:
    if share is None:
        return "<td></td>"
    return f"<td>{share:.1%}<span class='share' style='width:{100 * share:.1f}%'></span></td>"


def _comparison(study: Study, rows: Sequence[dict[str, Any]]) -> str:
    return _comparison_table(study, rows) + _published_table(study)


def _published_table(study: Study) -> str:
    """Return the published results at the study's scale, which compare with full training alone."""
    rows = load_published(study.record.scale)
    validation = study.record.data.validation.lower()
    rows = [row for row in rows if row["dataset"] == validation] or rows
    if not rows or study.record.protocol != "light":
        return ""
    cells = (
        (
            row["label"],
            row["dataset"],
            f"{row['psnr_db']:.2f} dB",
            f"{row['ssim']:.4f}",
            format_count(row["macs"]),
            format_count(row["params"]),
            f"{row['trained_on']}; {row['source']}",
        )
        for row in rows
    )
    psnr, ssim = _quality_names(study)
    table = _table(
        ("network", "images", psnr, ssim, "MACs of a 1280×720 output", "parameters", "trained on; source"), cells
    )
    words = "They compare with networks of full training on the same images alone."
    summary = f"<summary>Published results at ×{study.record.scale}</summary>"
    return f"<details>{summary}<p class='note'>{words}</p>{table}</details>"


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
    shown = [row for row in rows if row["role"] != "front"]
    shown += [row for row in rows if row["role"] == "front"][:_MOST_ROWS]
    if len(shown) < len(rows):
        notes.append(f"{len(rows) - len(shown):,} more points of the front are in front.csv.")
    body = "".join(_comparison_row(row) for row in shown)
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    note = f"<p class='note'>{escape(' '.join(notes))}</p>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"{note}<div class='scroll long' tabindex='0' role='region' aria-label='networks'>{table}</div>"


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


def _protocol(study: Study, pictures: Pictures | None) -> str:
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
    if pictures is not None and pictures.images:
        lines.append(("images shown", credit_images(pictures, record.data.validation)))
    lines.append(("published figures", "CAMixerSR, CVPR 2024, and its supplementary, as transcribed with the harness"))
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

"""The question of a study answered in plain words, with figures and what the answer costs."""

from typing import NamedTuple

from harness.core.units import format_count
from harness.metrics import metric_label
from harness.reporting.comparison import against, describe_missing
from harness.reporting.front import Front, study_front
from harness.reporting.published import load_published
from harness.reporting.study import Point, Study

QUESTION = "What is the fastest network that is at least as good as SwinIR-light?"


class Answer(NamedTuple):
    """`sentence` is what to remember, `reservations` what it must not be taken for, `point` whom it names."""

    sentence: str
    reservations: tuple[str, ...]
    point: Point | None


def answer(study: Study) -> Answer:
    """Answer `QUESTION`, or say what comes nearest, or why nothing can be said."""
    front = study_front(study)
    if front.knee is None:
        if study.points:
            words = "No network is on the front: every point violates a constraint or lacks the value of an objective."
        else:
            rejected = [trial for trial in study.trials if trial.state == "rejected"]
            words = "No network is on the front yet: no trial has finished."
            if rejected and len(rejected) == len(study.trials):
                words = (
                    f"No network was trained: all {len(rejected):,} proposals were rejected ({rejected[-1].reason})."
                )
        return Answer(words, (), None)
    reference = study.baseline("swinir-light")
    if reference is None:
        return _answer_without(study, front)
    goal = reference.measured.evaluation.psnr_db
    feasible = [point for point in study.points if point.measured.feasible]  # the fastest need not be on the front
    winners = [point for point in feasible if point.measured.evaluation.psnr_db >= goal]
    quality = metric_label("psnr_db", study.record.protocol, unit=False)
    conditions = _conditions(study)
    if winners:
        timed = {id(point): found for point in winners if (found := point.latency(conditions)) is not None}
        settings = {found.setting for found in timed.values()}
        if len(settings) == 1:
            of_timed = [point for point in winners if id(point) in timed]
            chosen = min(of_timed, key=lambda point: (timed[id(point)].median, point.measured.macs))
            fastest = f"fastest network{'' if conditions is None else f' under {conditions}'}"
        else:
            chosen = min(winners, key=lambda point: (point.measured.macs, -point.measured.evaluation.psnr_db))
            why = "latencies are of several settings" if settings else "no latency was measured"
            fastest = f"network with the fewest MACs ({why})"
        opening = f"{_name(chosen)} is the {fastest} that is at least as good as SwinIR-light"
    else:
        chosen = max(feasible, key=lambda point: point.measured.evaluation.psnr_db)
        opening = f"No network reaches SwinIR-light's {quality} of {goal:.2f} dB; the nearest is {_name(chosen)}"
    figures = describe_figures(chosen, conditions)
    sentence = f"{opening}: {figures}. Against SwinIR-light: {_without_note(chosen, reference)}."
    return Answer(sentence, (*_beside_bicubic(study, chosen), *_reservations(study)), chosen)


def _conditions(study: Study) -> str | None:
    """Return the conditions of the first latency among the objectives; None for the first of the study's."""
    named = [objective.metric for objective in study.record.objectives if objective.metric.startswith("latency_")]
    return next((metric.partition("/")[2] or None for metric in named), None)


def describe_figures(point: Point, conditions: str | None = None) -> str:
    """Say what a point scores and costs: '28.94 dB, 8.6 ms, 1.89 GMACs, 35.46 k parameters'."""
    latency = point.latency(conditions)
    time = [] if latency is None else [f"{latency.median:.3g} ms"]
    counts = [f"{format_count(point.measured.macs)}MACs", f"{format_count(point.measured.params)} parameters"]
    return ", ".join([f"{point.measured.evaluation.psnr_db:.2f} dB", *time, *counts])


def _answer_without(study: Study, front: Front) -> Answer:
    """Answer where SwinIR-light was not trained: its published figures compare with full training alone."""
    assert front.knee is not None
    best = max(front.points, key=lambda point: point.measured.evaluation.psnr_db)
    reservations = [f"There is nothing to beat here: no {describe_missing(study)}.", *_reservations(study)]
    published = next(
        (
            row
            for row in load_published(study.record.scale)
            if row["label"] == "SwinIR-light"
            and row["dataset"] == study.record.data.validation.lower()
            and study.record.protocol == "light"
        ),
        None,
    )
    if published is not None and study.converged:
        gap = best.measured.evaluation.psnr_db - published["psnr_db"]
        reservations.append(
            f"The published SwinIR-light has {published['psnr_db']:.2f} dB on {published['dataset']} after full "
            "training; "
            f"the best network here is {abs(gap):.2f} dB {'above' if gap >= 0 else 'below'} that."
        )
    elif published is not None:
        reservations.append("Published figures are of full training, so these networks are not held against them.")
    sentence = (
        f"Whether a network beats SwinIR-light cannot be said of this study. The best compromise is "
        f"{_name(front.knee)}: "
        f"{describe_figures(front.knee)}; the best score is {_name(best)}'s: {describe_figures(best)}."
    )
    if best is front.knee:
        sentence = (
            "Whether a network beats SwinIR-light cannot be said of this study. The best compromise, and the best "
            "score, "
            f"is {_name(best)}: {describe_figures(best)}."
        )
    return Answer(sentence, tuple(reservations), front.knee)


def _beside_bicubic(study: Study, chosen: Point) -> tuple[str, ...]:
    floor = study.baseline("bicubic")
    if floor is None or chosen.measured.evaluation.psnr_db >= floor.measured.evaluation.psnr_db:
        return ()
    return (
        f"Bicubic interpolation is better than it: {floor.measured.evaluation.psnr_db:.2f} dB. Nothing has been learnt "
        "yet; train longer.",
    )


def _reservations(study: Study) -> tuple[str, ...]:
    found = []
    if (note := study.convergence_note) is not None:
        found.append(
            f"Differences in dB are of short training ({note}): they rank networks, and say nothing of their limits."
        )
    if (note := study.noise_note) is not None:
        found.append(f"{note[0].upper()}{note[1:]}.")
    return tuple(found)


def _name(point: Point) -> str:
    number = point.record.number
    return point.label if number is None else f"{point.label} (trial {number})"


def _without_note(point: Point, reference: Point) -> str:
    found = against(point, reference)
    sentence: str = found["sentence"]
    return sentence.removesuffix(f" ({found['note']})") if found["note"] else sentence

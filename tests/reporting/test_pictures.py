"""Plots and the report: made of every kind of study, escaped, self-contained."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.core.errors import UserError
from harness.core.importance import Importance
from harness.core.records import StudyRecord, TrialRecord
from harness.reporting import draw_front_html, draw_front_png, load_study, summarise, write_report
from harness.reporting.html import render_report
from harness.reporting.page_data import describe_page
from harness.reporting.study import Study
from tests.records import (
    PSNR_MACS,
    bicubic_baseline,
    gains,
    one_of_each_state,
    point,
    rung,
    search_trials,
    study_record,
    swinir_baseline,
    trial,
    with_rungs,
    write_study,
)

BASELINES = (swinir_baseline(), bicubic_baseline())
EVIL = "<script>alert('x')</script>&\"</script>"
STUDIES: dict[str, tuple[tuple[TrialRecord, ...], tuple[TrialRecord, ...], StudyRecord]] = {
    "usual": (tuple(search_trials()), BASELINES, study_record()),
    "one cost": (tuple(search_trials(3)), BASELINES, study_record(objectives=PSNR_MACS)),
    "psnr only": (tuple(search_trials(3)), BASELINES, study_record(objectives=PSNR_MACS[:1])),
    "one point": ((trial(0, [point(27.0, 10)]),), BASELINES, study_record()),
    "200 points": (tuple(search_trials(40)), BASELINES, study_record()),
    "no baselines": (tuple(search_trials(3)), (), study_record()),
    "only baselines": ((), BASELINES, study_record()),
    "failed baseline": (
        tuple(search_trials(2)),
        (swinir_baseline(state="failed", reason="out of memory", points=()),),
        study_record(),
    ),
    "nothing": ((), (), study_record()),
    "all rejected": ((trial(0, state="rejected", reason="macs"),), (), study_record()),
    "every state": (tuple(one_of_each_state()), BASELINES, study_record()),
    "no latency": ((trial(0, [point(27.0, 10, latency_ms=None)]),), (), study_record()),
    "all infeasible": ((trial(0, [point(27.0, 10, constraints={"macs <= 1": 9.0})]),), BASELINES, study_record()),
}


class Tags(HTMLParser):
    """Collects what a browser would see as tags, and fails on tags that are left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag == "script":
            assert "src" not in dict(attrs), "the report loads something from elsewhere"
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


def read_html(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


@pytest.mark.parametrize("name", STUDIES)
def test_every_kind_of_study_is_drawn_and_reported(name: str, tmp_path: Path) -> None:
    trials, baselines, record = STUDIES[name]
    study = Study(record, trials, baselines)
    draw_front_png(study, tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 600
    assert (pixels.reshape(-1, 3) != 255).any(axis=1).mean() > 0.005  # something is drawn on the white
    draw_front_html(study).to_json()
    text = render_report(study)
    words = " ".join(read_html(text).words)
    assert record.name in words
    if not study.points:
        assert "No trial has finished yet" in words
    if not any(baseline.state == "complete" for baseline in baselines) and study.points:
        assert "No SwinIR-light baseline was trained" in words or "No point is on the front, and no baseline" in words
    for found in trials:
        if found.state in ("rejected", "stopped", "failed"):
            assert str(found.reason) in words


def test_front_png_shows_front_baselines_and_knee_in_their_colours(tmp_path: Path) -> None:
    trials, baselines, record = STUDIES["usual"]
    draw_front_png(Study(record, trials, baselines), tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as picture:
        colours = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0xE6, 0x9F, 0x00)):
        assert colour in colours


def test_everything_from_a_record_is_escaped() -> None:
    evil = trial(0, [point(27.0, 10, constraints={EVIL: -1.0})], label=EVIL)
    rejected = trial(1, state="rejected", reason=EVIL, label=EVIL)
    record = study_record(
        name=EVIL, space=EVIL, validation_images=(EVIL,), constraints=(EVIL,), devices=(EVIL,), protocol=EVIL
    )
    study = Study(record, (evil, rejected), BASELINES)
    text = render_report(study)
    tags = read_html(text)
    harmless = read_html(render_report(Study(study_record(), (trial(0, [point(27.0, 10)]),), BASELINES)))
    assert tags.scripts == harmless.scripts
    assert "<script>alert" not in text
    assert any(EVIL in words for words in tags.words)


def test_networks_without_calibrated_points_are_named() -> None:
    found = trial(3, [point(27.0, 10)], calibration=gains(note="attention helps no block of C28 on demo"))
    usual = trial(4, [point(27.0, 10)], calibration=gains(note=None))
    study = Study(study_record(), (found, usual), BASELINES)
    assert study.calibration_notes == ("trial 3 has no calibrated points: attention helps no block of C28 on demo",)
    assert f"{study.calibration_notes[0]}." in read_html(render_report(study)).words
    assert "calibrated points" not in render_report(Study(study_record(), (usual,), BASELINES))


def test_names_are_no_formulas(tmp_path: Path) -> None:
    trials = (trial(0, [point(27.0, 10)], label="$\\frac{$ \\x"), *search_trials(2)[1:])
    draw_front_png(Study(study_record(name="$\\frac{$ \\x", protocol="$^$"), trials, BASELINES), tmp_path / "front.png")


def test_the_report_is_one_file_that_needs_no_network() -> None:
    trials, baselines, record = STUDIES["usual"]
    text = render_report(Study(record, trials, baselines))
    assert not re.search(r"<(?:script|img|iframe)[^>]+src=|<link", text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert len(text) < 300_000


def test_curves_of_trials_without_points_can_be_shown() -> None:
    stopped = one_of_each_state()[2]
    text = render_report(Study(study_record(), (stopped,), ()))
    assert 'id="training"' in text


def test_hover_tells_configuration_routing_trial_and_values() -> None:
    trials, baselines, record = STUDIES["usual"]
    figure = draw_front_html(Study(record, trials, baselines))
    texts = [text for trace in figure.data if trace.text is not None for text in trace.text]
    text = next(text for text in texts if text.startswith(f"<b>{trials[0].label}</b>"))
    for part in ("fixed γ=", "trial 0", "PSNR", "SSIM", "MACs", "parameters", " ms", "attention share", "MiB", "steps"):
        assert part in text
    assert any("SwinIR-light" in text for text in texts)


def test_curves_leave_out_what_is_not_finite() -> None:
    record = search_trials(1)[0]
    assert record.training_result is not None
    curves = {"loss": tuple(float("nan") for _ in record.training_result.curve_steps)}
    broken = record.model_copy(update={"training_result": record.training_result.model_copy(update={"curves": curves})})
    assert describe_page(Study(study_record(), (broken,), ()))["training"] is None
    assert describe_page(Study(study_record(), (), ()))["training"] is None


def test_files_are_written_where_asked(tmp_path: Path) -> None:
    write_study(tmp_path / "study", study_record(), [*search_trials(3), *BASELINES])
    files = write_report(tmp_path / "study")
    assert files.report_html == tmp_path / "study" / "report" / "report.html"
    assert files.front_csv.read_text().startswith("record_id,")
    other = write_report(tmp_path / "study", tmp_path / "elsewhere")
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["front.csv", "front.png", "report.html"]
    assert other.report_html.read_text() == files.report_html.read_text()
    assert len(load_study(tmp_path / "study").trials) == 3
    with pytest.raises(UserError, match="no study in"):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_shares_of_dimensions_are_drawn_and_told() -> None:
    told = (
        Importance(
            metric="psnr_db",
            points=45,
            networks=9,
            shares={"model.channels": 0.7, EVIL: 0.2, "interactions": 0.1},
            left_out={"model.window": "a single value among the points"},
        ),
        Importance(
            metric="macs", points=45, networks=9, shares={EVIL: 0.9, "model.channels": 0.06, "interactions": 0.04}
        ),
        Importance(metric="latency_ms", points=3, networks=9, reason="3 points so far; it takes 10"),
    )
    trials, baselines, record = STUDIES["usual"]
    study = Study(record, trials, baselines)
    text = render_report(study, told)
    words = read_html(text).words
    assert 'id="importance"' in text
    assert "<script>alert" not in text
    assert words.index(EVIL) < words.index("model.channels") < words.index("interactions")
    assert words[words.index("model.channels") + 1 :][:2] == ["70.0%", "6.0%"]
    note = " ".join(words)
    assert "45 points of 9 networks" in note
    assert "No shares of latency: 3 points so far; it takes 10." in note
    assert "model.window is left out: a single value among the points." in note
    assert re.findall("style='width:([0-9.]+)%'", text) == ["20.0", "90.0", "70.0", "6.0", "10.0", "4.0"]
    without = render_report(study, told[2:])
    assert 'id="importance"' not in without
    assert "No shares of latency" in without
    assert "No shares" not in render_report(study)
    assert summarise(study, told)["importance"][2]["reason"] == told[2].reason


def test_scores_at_rungs_are_drawn_and_stopped_networks_end_in_a_cross() -> None:
    complete, stopped = with_rungs(), with_rungs(stopped=True)
    study = Study(study_record(), (complete, stopped, *search_trials(3)[2:]), BASELINES)
    whole, cut = describe_page(study)["rungs"]["ways"]
    final = max(point.evaluation.psnr_db for point in complete.points)
    assert whole["state"] == "complete"
    assert [place[:2] for place in whole["at"]] == [[11, 25.2], [33, 25.9], [100, pytest.approx(final, rel=1e-5)]]
    assert cut["state"] == "stopped"
    assert [place[:2] for place in cut["at"]] == [[11, 25.2], [33, 25.9]]
    assert "place 3 of 3" in cut["at"][1][2]
    text = render_report(study)
    assert 'id="rungs"' in text
    assert "a part of the validation images" not in text
    assert 'id="rungs"' not in render_report(Study(study_record(), tuple(search_trials(3)), BASELINES))
    assert describe_page(Study(study_record(), (), ()))["rungs"] is None


def test_rungs_of_more_and_more_images_stand_over_images() -> None:
    rungs = (rung(100, (26.0,), images=1), rung(100, (26.5,), images=2))
    study = Study(study_record(), (with_rungs().model_copy(update={"rungs": rungs}),), ())
    rungs = describe_page(study)["rungs"]
    assert rungs["over"] == "validation images"
    assert [place[0] for place in rungs["ways"][0]["at"]] == [1, 2, 3]
    assert "a part of the validation images" in render_report(study)

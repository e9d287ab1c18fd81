"""A study scored under `odi` never calls its scores PSNR and SSIM, and says what panoramas cost on top, everywhere."""

import re
from pathlib import Path

import pytest

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.records import CalibrationRecord, ObjectiveConfig, PointRecord, StudyRecord, TrialRecord
from harness.export import load_bundle, read_bundle_config, write_bundle, write_calibrated_bundle
from harness.metrics import PROTOCOLS, metric_label
from harness.models import PanoramaNetwork, build_model
from harness.reporting import Study, compare, draw_front_html, front_table, summarise
from harness.reporting.html import render_report
from harness.tracking.entries import study_note
from tests.cli.conftest import Call
from tests.records import (
    SHORT,
    bicubic_baseline,
    on_panoramas,
    point,
    search_trials,
    study_record,
    swinir_baseline,
    trial,
    write_study,
)

OBJECTIVES = (
    ObjectiveConfig(metric="ssim", direction="maximize"),
    ObjectiveConfig(metric="psnr_db", direction="maximize"),
    ObjectiveConfig(metric="latency_ms/cpu:1", direction="minimize"),
)
NOTE = (
    "images are continued by 32 columns at each side of the seam; MACs and latencies are without: ×(w+64)/w for w "
    "low-resolution columns, ×1.125 on demo"
)
TRIALS = search_trials(4)
CONFIG = CAMixerSRConfig(channels=8, groups=(1,))
BASELINES = (swinir_baseline(30.0), bicubic_baseline())


def odi_record(objectives: tuple[ObjectiveConfig, ...]) -> StudyRecord:
    training = SHORT.model_copy(update={"task": "odi"})
    return study_record(task="odi", protocol="odi", objectives=objectives, training=training)


def odi_study(objectives: tuple[ObjectiveConfig, ...] = OBJECTIVES) -> Study:
    trials, baselines = (tuple(map(on_panoramas, records)) for records in (TRIALS, BASELINES))
    return Study(odi_record(objectives), trials, baselines)


def flat_names(text: str) -> list[str]:
    """Every PSNR and SSIM that is not weighted by latitude, with what stands around it."""
    return re.findall(r".{0,20}(?<!WS-)\b(?:PSNR|SSIM)\b.{0,20}", text)


def report_without_library(study: Study) -> str:
    return re.sub(r"<script>.*?</script>", "", render_report(study), flags=re.DOTALL)


def test_a_label_follows_the_protocol() -> None:
    weighted = {name for name in PROTOCOLS if metric_label("psnr_db", name) == "WS-PSNR (dB)"}
    assert weighted == {name for name in PROTOCOLS if metric_label("ssim", name) == "WS-SSIM"} == {"odi"}
    assert metric_label("psnr_db", "odi", unit=False) == "WS-PSNR"
    assert metric_label("latency_ms/cpu:2", "odi") == "latency (ms) on cpu:2"
    assert metric_label("psnr_db", "of another version") == "PSNR (dB)"


@pytest.mark.parametrize("objectives", [OBJECTIVES, OBJECTIVES[1:]], ids=["by WS-SSIM", "by WS-PSNR"])
def test_report_and_figures(objectives: tuple[ObjectiveConfig, ...]) -> None:
    study = odi_study(objectives)
    text = report_without_library(study)
    assert flat_names(text) == []
    assert NOTE in text
    assert f"<th scope='col'>{'WS-PSNR'}</th>" in text
    assert "WS-PSNR and WS-SSIM: protocol odi" in text
    assert "protocol of WS-PSNR and WS-SSIM" in text
    assert "reaches SwinIR-light&#x27;s WS-PSNR" in text
    assert "L1 loss, weighted by latitude" in text
    axis = draw_front_html(study).layout.yaxis.title.text
    assert axis == ("WS-SSIM" if objectives[0].metric == "ssim" else "WS-PSNR (dB)")
    assert "WS-PSNR (dB)" in summarise(study)["hypervolume_reference"]


def test_numbers_for_machines() -> None:
    study = odi_study()
    assert set(front_table(study)["seam_factor"]) == {1.125}
    for document in (summarise(study), compare(study)):
        assert document["seam_note"] == NOTE
        assert document["protocol"] == "odi"
    assert summarise(study)["knee"]["seam_factor"] == 1.125
    assert study_note(study.record) == "psnr_db is WS-PSNR (dB), ssim is WS-SSIM: protocol odi, ×4"


def test_a_classic_study_says_nothing_of_seams() -> None:
    study = Study(study_record(objectives=OBJECTIVES), tuple(TRIALS), BASELINES)
    text = report_without_library(study)
    assert "seam" not in text
    assert "WS-" not in text
    assert "PSNR and SSIM: protocol light" in text
    assert summarise(study)["seam_note"] is None


def test_tables_of_the_command_line(call: Call, tmp_path: Path) -> None:
    study = odi_study()
    write_study(tmp_path / "results" / "quickstart", study.record, [*study.trials, *study.baselines])
    for arguments in (["report", "quickstart"], ["compare", "quickstart"]):
        printed = " ".join(call(*arguments).out.split())
        assert flat_names(printed) == []
        assert "WS-PSNR (dB)" in printed
        assert "protocol odi" in printed
        assert NOTE in printed


def write_card_of(path: Path, record: TrialRecord, baselines: dict[str, PointRecord]) -> str:
    write_bundle(path, build_model(CONFIG), record, record.points[0], picked_as="knee", baselines=baselines)
    return (path / "README.md").read_text(encoding="utf-8")


def test_the_model_card(tmp_path: Path) -> None:
    flat = trial(0, [point(27.0, 10, routing=CONFIG.routing)], model=CONFIG)
    baselines = {"bicubic": on_panoramas(bicubic_baseline()).points[0]}
    card = write_card_of(tmp_path / "odi", on_panoramas(flat), baselines)
    assert flat_names(card) == []
    assert "| network | WS-PSNR (dB) | WS-SSIM | MACs |" in card
    assert "WS-PSNR and WS-SSIM: protocol `odi`" in card
    assert f"Panoramas: {NOTE}." in card
    assert "; whole panoramas, h×2h, without a seam\n" in card
    card = write_card_of(tmp_path / "flat", flat, {})
    assert "seam" not in card
    assert "WS-" not in card


def test_the_model_card_of_a_calibrated_bundle(tmp_path: Path) -> None:
    record = on_panoramas(trial(0, [point(27.0, 10, routing=CONFIG.routing)], model=CONFIG))
    write_card_of(tmp_path / "odi", record, {})
    calibration = CalibrationRecord(
        dataset="set5", dataset_hash="1" * 16, images=("baby", "bird"), crop=16, wanted=(0,), gains_alone_db=(0.25,),
        gains_beside_db=(0.25,), gains_db=(0.25,), psnr_db_without=26.5, psnr_db_full=26.75, evaluations=7, seconds=1,
        routing=RoutingConfig(policy="schedule", schedule=(0.5,)), share=0.5, psnr_db=26.625,
    )  # fmt: skip
    scored = record.points[0].evaluation.model_copy(update={"psnr_db": 27.25, "ssim": 0.75, "attention_share": 0.5})
    path = write_calibrated_bundle(tmp_path / "calibrated", tmp_path / "odi", calibration, evaluation=scored)
    card = (path / "README.md").read_text(encoding="utf-8")
    (on_crops,) = flat_names(card)  # the crops that it was tuned on, flat ones
    assert "PSNR-Y 26.625 dB there" in on_crops
    assert "protocol `odi` on `demo` (3 images): WS-PSNR 27.250 dB, WS-SSIM 0.7500, attention share 0.50." in card
    assert "| network | WS-PSNR (dB) | WS-SSIM | MACs |" in card
    assert "| this network before its routing was calibrated (fixed γ=0.5) |" in card
    assert "WS-PSNR and WS-SSIM: protocol `odi` on `demo` (3 images)." in card
    assert f"Panoramas: {NOTE}." in card
    assert "; whole panoramas, h×2h, without a seam\n" in card
    assert read_bundle_config(path).task == "odi"
    loaded = load_bundle(path)
    assert isinstance(loaded, PanoramaNetwork)
    assert loaded.network.config == CONFIG.with_routing(calibration.routing)

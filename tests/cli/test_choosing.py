"""Choosing from a real study, and its front against another, as a user types it."""

import json
from pathlib import Path

import pytest

from harness.core.choice import ChoiceRecord
from harness.export import read_bundle_metrics
from harness.export.documents import BundleMetrics
from tests.cli.conftest import Call, FinishedStudy


@pytest.mark.parametrize(
    "pick", ["knee", "macs <= 100G and psnr_y_db >= 1", "psnr_db > 1dB", "weights: psnr_y_db=2, latency_ms=1"]
)
def test_what_is_given_up_is_printed_and_kept(call: Call, study: FinishedStudy, tmp_path: Path, pick: str) -> None:
    ended = call("export", "tiny", "--results", study.results, "--pick", pick, "--out", tmp_path / "bundle")
    assert ended.code == 0, ended.err
    choice = read_bundle_metrics(tmp_path / "bundle").choice
    assert choice is not None
    assert choice.pick == pick
    assert f"\n{pick}: {choice.label}, " in ended.out
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    for sentence in choice.sentences:
        assert f"\n  {sentence}\n" in ended.out
        assert f"\n- {sentence}\n" in card
    assert any(sentence.startswith("against SwinIR-light: gains ") for sentence in choice.sentences)
    assert any("next faster, " in sentence or "has less latency" in sentence for sentence in choice.sentences)
    assert any("next better, " in sentence or "has a higher PSNR" in sentence for sentence in choice.sentences)


def test_the_bundle_is_named_after_the_pick(call: Call, study: FinishedStudy, tmp_path: Path) -> None:
    """In the study's own folder, where `--out` is not given: of a copy."""
    import shutil

    shutil.copytree(study.folder, tmp_path / "results" / "tiny")
    assert call("export", "tiny", "--pick", "macs <= 100G and psnr_db >= 1").code == 0
    assert (tmp_path / "results" / "tiny" / "bundles" / "macs-100G-and-psnr_db-1" / "config.json").is_file()


def test_bundles_without_a_choice_are_read_as_before(study: FinishedStudy) -> None:
    text = (study.folder / "bundles" / "knee" / "metrics.json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert ChoiceRecord.model_validate(document.pop("choice")).pick == "knee"
    assert BundleMetrics.model_validate(document).choice is None


def test_a_search_says_what_its_export_gives_up(study: FinishedStudy) -> None:
    assert "chosen: the knee of the front" in study.output
    assert "against SwinIR-light: gains " in study.output


def test_bounds_that_nothing_meets(call: Call, study: FinishedStudy, tmp_path: Path) -> None:
    arguments = ("export", "tiny", "--results", study.results, "--out", tmp_path / "b", "--pick")
    message = call(*arguments, "latency_ms <= 1us").mistake
    assert message.startswith("nothing meets 'latency_ms <= 1us': nearest is C")
    assert "too much)" in message
    assert "character 11: expected `and` or the end, got ','" in call(*arguments, "macs <= 2G, psnr_db > 1").mistake
    assert not (tmp_path / "b").exists()


def test_help_shows_the_grammar(call: Call) -> None:
    text = " ".join(call("export", "--help").out.replace("│", " ").split())
    for words in ("joined by and", "latency_ms <= 20 and psnr_db >= 30", "weights: psnr_db=2, latency_ms=1", "64MiB"):
        assert words in text


def test_two_fronts(call: Call, study: FinishedStudy) -> None:
    """A study against itself: nothing between them, over whatever range there is."""
    arguments = ("compare", "tiny", study.folder, "--results", study.results)
    document = call(*arguments, "--json").document
    assert (document["anchor"], document["test"], document["interpolation"]) == ("tiny", "tiny", "pchip")
    assert {row["cost"] for row in document["rows"]} == {"latency_ms", "latency_ratio", "macs", "params"}
    for row in document["rows"]:
        assert row["points"][0] == row["points"][1]
        assert row["bd_psnr_db"] == (0.0 if row["points"][0] > 1 else None)
        assert (row["cost_overlap"] is None) == (row["bd_psnr_reason"] is not None)
    first, second = document["hypervolumes"]
    assert first == second
    printed = call(*arguments)
    assert printed.code == 0
    assert "tiny against tiny: averages at equal cost, and at equal PSNR (Bjøntegaard, pchip)" in printed.out
    assert f"hypervolume: tiny {first:.4f}, tiny {second:.4f}" in printed.out
    one = call("compare", "tiny", "--results", study.results).out
    assert "no averages against SwinIR-light: SwinIR-light is one point" in " ".join(one.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "b", "c"), "3 studies given: expected one, or two to compare their fronts"),
        (("a", "--interpolation", "cubic"), "--interpolation cubic goes with two studies"),
        (("a", "b", "--published"), "--published goes with one study"),
        (("a", "--paper"), "say either a STUDY to compare"),
        ((), "say either a STUDY to compare"),
    ],
)
def test_comparisons_that_are_none(call: Call, arguments: tuple[str, ...], message: str) -> None:
    assert message in call("compare", *arguments).mistake


def test_an_interpolation_that_is_none(call: Call, study: FinishedStudy) -> None:
    arguments = ("compare", "tiny", "tiny", "--results", study.results, "--interpolation", "spline")
    assert "unknown interpolation 'spline'; expected one of: pchip, akima, cubic" in call(*arguments).mistake

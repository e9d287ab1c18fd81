"""`harness calibrate`: from photographs to a model that other commands take; and calibration as a part of a search."""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import harness
from harness.core.configs import CAMixerSRConfig
from harness.data.images import write_png
from harness.export import read_bundle_config, read_bundle_metrics, write_bundle
from harness.models import CAMixerSR
from harness.trial import build_seeded
from tests.cli.conftest import Call
from tests.export.test_bundle import random_network, record_of
from tests.export.test_bundle import write as write_bundle_of
from tests.photographs import Photographs
from tests.records import SHORT
from tests.spaces import tiny_space, write_space
from tests.tiny_pairs import cut

CONFIG = CAMixerSRConfig(scale=2, groups=(1, 2), channels=8, window=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model file, its weights, and photographs to tune on and to evaluate on."""
    network = build_seeded(CONFIG, seed=3)
    assert isinstance(network, CAMixerSR)
    torch.nn.init.normal_(network.tail.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "model.json").write_text(CONFIG.model_dump_json(), encoding="utf-8")
    for name in ("coffee", "rocket"):
        write_png(tmp_path / "tune" / f"{name}.png", cut(name, 48, 64))
    write_png(tmp_path / "held_out" / "chelsea.png", cut("chelsea", 48, 64))
    return tmp_path


def test_a_calibrated_model_is_a_model(call: Call, folder: Path) -> None:
    out = folder / "calibrated.yaml"
    arguments = (
        "calibrate", folder / "model.json", "--weights", folder / "weights.safetensors", "--data", folder / "tune",
        "--share", "0.5", "--images", "2", "--crop", "16", "--threads", "1", "--out", out,
    )  # fmt: skip
    document = call(*arguments, "--evaluate", folder / "held_out", "--json").document
    record = document["calibration"]
    assert record["images"] == ["coffee", "rocket"]
    assert len(record["routing"]["block_weights"]) == 3
    assert set(document["evaluations"]) == {"detail γ=0.5", "probability γ=0.5", "fixed γ=0.5", "fixed γ=1"}
    evaluated = call(
        "evaluate", out, "--weights", folder / "weights.safetensors", "--data", folder / "held_out", "--json"
    ).document
    assert evaluated["config"]["routing"] == record["routing"]
    assert evaluated["psnr_db"] == document["evaluations"]["detail γ=0.5"]["psnr_db"]
    less = call(
        "evaluate", out, "--weights", folder / "weights.safetensors", "--data", folder / "held_out", "--json",
        "--gamma", "0.25",
    ).document  # fmt: skip
    assert less["config"]["routing"]["block_weights"] == record["routing"]["block_weights"]
    assert less["attention_share"] == pytest.approx(0.25, abs=0.01)
    assert "calibrated.yaml exists; give --overwrite" in call(*arguments).mistake


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_bundle_becomes_a_bundle_that_claims_nothing_of_the_routing_before(call: Call, folder: Path) -> None:
    source, out = folder / "bundle", folder / "made" / "calibrated"
    network = write_bundle_of(source, CONFIG)
    before = files_of(source)
    arguments = (
        "calibrate", source, "--data", folder / "tune", "--share", "0.5", "--images", "2", "--crop", "16",
        "--threads", "1",
    )  # fmt: skip
    ended = call(*arguments, "--out", out, "--evaluate", folder / "held_out")
    assert ended.code == 0, ended.err
    assert "harness upscale" in ended.out
    assert [path.name for path in out.parent.iterdir()] == ["calibrated"]
    assert (out / "model.safetensors").read_bytes() == before["model.safetensors"]

    loaded = harness.load_bundle(out)
    assert isinstance(loaded, CAMixerSR)
    assert loaded.routing.policy == "detail"
    assert loaded.routing.gamma == 0.5
    assert loaded.config.with_routing(CONFIG.routing) == network.config
    config = read_bundle_config(out)
    assert config.model_dump(exclude={"model", "exported_at", "environment"}) == (
        read_bundle_config(source).model_dump(exclude={"model", "exported_at", "environment"})
    )
    metrics, metrics_before = read_bundle_metrics(out), read_bundle_metrics(source)
    assert metrics.point is None
    assert metrics.calibration is not None
    assert metrics.calibration.record.routing == loaded.routing
    assert metrics.calibration.point_before == metrics_before.point
    assert metrics.model_copy(update={"point": metrics_before.point, "calibration": None}) == metrics_before
    scored = call("evaluate", out, "--data", folder / "held_out", "--json").document
    assert metrics.calibration.evaluation is not None
    assert scored["psnr_db"] == metrics.calibration.evaluation.psnr_db
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "**this network**" not in card
    assert "| this network before its routing was calibrated (fixed γ=0.5) |" in card
    assert "`detail γ=0.5` at a share of 0.5, calibrated after the network was picked" in card
    assert f"PSNR {scored['psnr_db']:.3f} dB" in card
    assert "does not hold for this one" in card

    written = files_of(out)
    assert "exists; give --overwrite" in call(*arguments, "--out", out).mistake
    assert files_of(out) == written
    assert files_of(source) == before
    again = call(*arguments, "--policy", "schedule", "--out", out, "--overwrite")
    assert again.code == 0, again.err
    in_place = call("calibrate", out, *arguments[2:], "--out", out, "--overwrite")  # a calibrated bundle, over itself
    assert in_place.code == 0, in_place.err
    latest = read_bundle_metrics(out).calibration
    assert latest is not None
    assert (latest.record.routing.policy, latest.evaluation) == ("detail", None)
    assert latest.point_before == metrics_before.point
    assert "has not been evaluated on other images" in (out / "README.md").read_text(encoding="utf-8")


def test_a_calibrated_bundle_replaces_nothing_else_and_is_never_half_written(call: Call, folder: Path) -> None:
    source = folder / "bundle"
    write_bundle_of(source, CONFIG)
    tuning = ("--data", folder / "tune", "--share", "0.5", "--images", "2", "--crop", "16", "--threads", "1")
    before = files_of(folder)
    refused = call("calibrate", source, *tuning, "--out", folder / "tune", "--overwrite").mistake
    assert "is no bundle, so it is not replaced" in refused
    of_a_file = ("calibrate", folder / "model.json", "--weights", folder / "weights.safetensors", *tuning)
    assert "only of a bundle a bundle is made" in call(*of_a_file, "--out", folder / "new").mistake
    assert files_of(folder) == before
    whole = (source / "metrics.json").read_text(encoding="utf-8")
    (source / "metrics.json").write_text(whole[:100], encoding="utf-8")
    assert "metrics.json: " in call("calibrate", source, *tuning, "--out", folder / "new").mistake
    (source / "metrics.json").unlink()
    assert "metrics.json cannot be read" in call("calibrate", source, *tuning, "--out", folder / "new").mistake
    assert not (folder / "new").exists()


def test_a_bundle_for_panoramas_is_evaluated_as_such(call: Call, folder: Path) -> None:
    """Under `odi`, continued around the seam, on whole panoramas alone; it is tuned on any images."""
    source, out = folder / "bundle", folder / "calibrated"
    record, point = record_of(CONFIG, training=SHORT.model_copy(update={"task": "odi"}))
    write_bundle(source, random_network(CONFIG), record, point, picked_as="knee", baselines={})
    write_png(folder / "panoramas" / "chelsea.png", cut("chelsea", 48, 96))
    arguments = (
        "calibrate", source, "--data", folder / "tune", "--share", "0.5", "--images", "2", "--crop", "16",
        "--threads", "1", "--out", out,
    )  # fmt: skip
    flat = call(*arguments, "--evaluate", folder / "held_out").mistake
    assert "chelsea.png: 64×48 pixels are no whole panorama" in flat
    assert "--protocol odi is for --evaluate" in call(*arguments, "--protocol", "odi").mistake
    assert not out.exists()
    ended = call(*arguments, "--evaluate", folder / "panoramas")
    assert ended.code == 0, ended.err
    for words in ("protocol odi", "WS-PSNR (dB)", "continued by 32 columns", "on the crops: PSNR-Y"):
        assert words in ended.out
    calibration = read_bundle_metrics(out).calibration
    assert calibration is not None
    assert calibration.evaluation is not None
    assert (calibration.evaluation.protocol, calibration.evaluation.wrap) == ("odi", 32)
    scored = call("evaluate", out, "--data", folder / "panoramas", "--protocol", "odi", "--json").document
    assert scored["psnr_db"] == calibration.evaluation.psnr_db
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"WS-PSNR {scored['psnr_db']:.3f} dB" in card
    assert f"PSNR-Y {calibration.record.psnr_db:.3f} dB there" in card
    classic = call(*arguments[:-2], "--evaluate", folder / "held_out", "--protocol", "light")
    assert "protocol light" in classic.out


def test_images_to_evaluate_on_are_not_tuned_on(call: Call, folder: Path) -> None:
    arguments = ("calibrate", folder / "model.json", "--data", folder / "tune", "--share", "0.5", "--images", "2")
    weights = ("--weights", folder / "weights.safetensors", "--crop", "16")
    refused = call(*arguments, *weights, "--evaluate", folder / "tune").mistake
    assert refused.startswith("evaluation image ")
    assert "coffee.png has the same pixels as tuning image " in refused
    few = call(*arguments[:-1], "3", *weights).mistake
    assert "tune has 2 images of at least 16×16" in few
    assert "give fewer --images, a smaller --crop or more --data" in few
    of_a_bundle = ("calibrate", folder / "bundle", *arguments[2:], "--out", folder / "x.txt")
    write_bundle_of(folder / "bundle", CONFIG)
    assert "x.txt: a file's name ending in .txt; expected a folder for the bundle" in call(*of_a_bundle).mistake
    assert "is untrained" in call(*arguments).mistake
    assert "expected a name ending in .yaml or .json" in call(*arguments, *weights, "--out", "there.txt").mistake


def test_images_that_are_given_twice_count_once(call: Call, folder: Path) -> None:
    arguments = (
        "calibrate", folder / "model.json", "--weights", folder / "weights.safetensors", "--data", folder / "tune",
        "--share", "0.5", "--crop", "16", "--threads", "1", "--json",
    )  # fmt: skip
    write_png(folder / "again" / "other.png", cut("coffee", 48, 64))
    twice = call(*arguments, "--data", folder / "again", "--data", folder / "tune", "--images", "2")
    once = call(*arguments, "--images", "2").document["calibration"]
    assert twice.document["calibration"]["images"] == once["images"] == ["coffee", "rocket"]
    assert twice.document["calibration"]["dataset_hash"] == once["dataset_hash"]
    assert "more than once count once: without" in twice.err
    assert "other.png" in twice.err
    too_many = call(*arguments, "--data", folder / "tune", "--images", "4")
    assert too_many.code == 2
    assert "tune has 2 images" in too_many.err


def test_weights_that_are_broken_are_one_line(call: Call, folder: Path) -> None:
    broken = {name: torch.full_like(value, torch.nan) for name, value in build_seeded(CONFIG, 0).state_dict().items()}
    save_file(broken, folder / "broken.safetensors")
    arguments = ("calibrate", folder / "model.json", "--weights", folder / "broken.safetensors", "--share", "0.5")
    tuning = ("--data", folder / "tune", "--images", "2", "--crop", "16", "--threads", "1")
    assert "not finite" in call(*arguments, *tuning).mistake


def test_a_searchs_calibrated_points_are_reported_and_exported(
    call: Call, photographs: Photographs, tmp_path: Path
) -> None:
    space = tiny_space(
        photographs,
        model={"groups": [1, 1], "window": 4},
        calibrate={"shares": [0.25, 0.75], "images": 2, "crop": 16},
        budget={"networks": 1},
    )
    ended = call("search", write_space(tmp_path / "tiny.yaml", space), "--no-tracking", "--threads", "1", "--report")
    assert ended.code == 0, ended.err
    assert "each at 3 points (γ × policy) and 2 calibrated ones" in ended.out
    assert "detail γ=0.25" in ended.out
    with Path("results/tiny/report/front.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["routing"] == "detail"]
    assert rows
    for row in rows:
        bundle = tmp_path / "bundle"
        pick = f"point:{row['point_id']}"
        assert call("export", "tiny", "--pick", pick, "--out", bundle, "--overwrite").code == 0
        scored = call("evaluate", bundle, "--data", photographs.validation, "--json").document
        assert scored["config"]["routing"]["block_weights"]
        assert scored["gamma"] == float(row["gamma"])
        assert scored["psnr_db"] == pytest.approx(float(row["psnr_db"]), abs=1e-9)

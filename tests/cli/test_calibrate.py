"""`harness calibrate`: from photographs to a model that other commands take; and calibration as a part of a search."""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.core.configs import CAMixerSRConfig
from harness.data.images import write_png
from harness.models import CAMixerSR
from harness.trial import build_seeded
from tests.cli.conftest import Call
from tests.photographs import Photographs
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


def test_images_to_evaluate_on_are_not_tuned_on(call: Call, folder: Path) -> None:
    arguments = ("calibrate", folder / "model.json", "--data", folder / "tune", "--share", "0.5", "--images", "2")
    weights = ("--weights", folder / "weights.safetensors", "--crop", "16")
    assert "has the same pixels as" in call(*arguments, *weights, "--evaluate", folder / "tune").mistake
    assert "is untrained" in call(*arguments).mistake
    assert "expected a name ending in .yaml or .json" in call(*arguments, *weights, "--out", "there.txt").mistake


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

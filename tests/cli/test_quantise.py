"""`harness quantise`, and what `evaluate` and `profile` make of its file."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from safetensors.torch import save_file

from tests.cli.conftest import Call
from tests.compression.networks import ROUTED, small_network
from tests.photographs import Photographs

SMALL = ("--tile", "16", "--images", "2", "--held-out", "1", "--device", "cpu:1")


@pytest.fixture
def model(tmp_path: Path) -> tuple[str, ...]:
    """A config and weights, as if they were trained."""
    (tmp_path / "model.json").write_text(ROUTED.model_dump_json(), encoding="utf-8")
    save_file(small_network().state_dict(), tmp_path / "w.safetensors")
    return ("model.json", "--weights", "w.safetensors")


def test_a_file_that_evaluate_and_profile_take(call: Call, model: tuple[str, ...], photographs: Photographs) -> None:
    common = ("--calibration", photographs.train, "--evaluate", photographs.validation, "--out", "int8", *SMALL)
    outcome = call("quantise", *model, *common, "--max-drop", "inf", "--no-latency", "--json")
    document = outcome.document
    assert document["folder"] == "int8"
    assert {path.name for path in Path("int8").iterdir()} == {"network.onnx", "quantisation.json"}
    record = json.loads(Path("int8/quantisation.json").read_text(encoding="utf-8"))
    assert record["choice"] == document["choice"]
    assert document["drop_db"] == document["before"]["psnr_db"] - document["after"]["psnr_db"]
    assert set(document["calibration_images"]).isdisjoint(document["held_out_images"])
    assert record["latency"] is None

    again = call("evaluate", "int8/network.onnx", "--data", photographs.validation, "--threads", "1", "--json")
    assert again.document["psnr_db"] == document["after"]["psnr_db"]
    assert (again.document["tile"], again.document["overlap"], again.document["config"]) == (16, 4, None)
    assert "exactly 16×16 pixels" in again.err

    profiled = call(
        *(
            "profile",
            "int8/network.onnx",
            "--repeats",
            "3",
            "--seconds",
            "0",
            "--no-reference",
            "--no-tracking",
            "--json",
        )
    ).document
    assert profiled["input_size"] == [16, 16]
    assert profiled["latency_record"]["runtime"] == "onnxruntime"
    weights = sum(p.numel() for name, p in small_network().named_parameters())
    assert profiled["params"] is None or profiled["params"] >= 0.9 * weights

    refused = call("quantise", *model, *common, "--no-latency")
    assert "--overwrite" in refused.mistake


@pytest.mark.slow
def test_people_are_told_what_was_not_reached(call: Call, model: tuple[str, ...], photographs: Photographs) -> None:
    outcome = call(
        *("quantise", *model, "--calibration", photographs.train, "--evaluate", photographs.validation, *SMALL),
        *("--method", "dynamic", "--max-drop", "0", "--quick", "--held-out", "2"),
    )
    assert outcome.code == 0, outcome.err
    assert "results/quantised/model" in outcome.out
    assert "kept in float" in outcome.out
    assert "of routing, always in float" in outcome.out
    record = json.loads(next(Path("results/quantised").glob("*/quantisation.json")).read_text(encoding="utf-8"))
    assert record["latency"]["reference"] == "the float file"
    assert record["latency"]["ratio"] > 0
    assert record["latency"]["input_size"] == [16, 16]
    assert record["choice"]["is_met"]


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "untrained": (["camixersr-s", "--calibration", "TRAIN"], ["untrained", "--weights"]),
    "no calibration": (["camixersr-s"], ["--calibration"]),
    "unknown method": (["MODEL", "--calibration", "TRAIN", "--method", "int4"], ["--method", "'percentile'"]),
    "bfloat16 elsewhere": (
        ["MODEL", "--calibration", "TRAIN", "--method", "bf16", "--runtime", "onnxruntime"],
        ["bf16", "openvino alone"],
    ),
    "a GPU": (["MODEL", "--calibration", "TRAIN", "--device", "gpu"], ["unknown device 'gpu'"]),
    "too few images": (["MODEL", "--calibration", "TRAIN"], ["has 0 images of at least 64×64", "--tile"]),
    "evaluated on what it is calibrated on": (
        ["MODEL", "--calibration", "TRAIN", "--evaluate", "TRAIN"],
        ["evaluation image", "calibration image"],
    ),
    "percentile of nothing": (
        ["MODEL", "--calibration", "TRAIN", "--method", "percentile", "--percentile", "20"],
        ["percentile", "greater than 50 (got 20"],
    ),
    "folder of something else": (["MODEL", "--calibration", "TRAIN", "--out", "TRAIN"], ["no result of"]),
    "panoramas": (["MODEL", "--calibration", "TRAIN", "--protocol", "odi"], ["--protocol odi", "panoramas"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(
    call: Call, name: str, model: tuple[str, ...], photographs: Photographs, tmp_path: Path
) -> None:
    arguments, words = MISTAKES[name]
    replaced = {"TRAIN": [str(photographs.train)], "MODEL": list(model)}
    typed = [word for argument in arguments for word in replaced.get(argument, [argument])]
    mistake = call("quantise", *typed, *([] if "--out" in typed else ["--out", "out"])).mistake
    for word in words:
        assert word in mistake
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bicubic", "--runtime", "openvino"], ["--runtime", "ONNX files"]),
        (["tests.profiling.networks:grey"], ["1 channels of 1", "RGB"]),
        (["network.onnx", "--runtime", "eager"], ["--runtime eager", "onnxruntime or openvino"]),
        (["network.onnx", "--precision", "bf16"], ["onnxruntime", "precision bf16"]),
    ],
)
def test_mistakes_of_evaluate(
    call: Call, arguments: list[str], words: list[str], photographs: Photographs, tmp_path: Path
) -> None:
    from tests.profiling.networks import Pyramid
    from tests.profiling.test_targets import write

    if arguments[0] == "network.onnx":
        write(Pyramid(), tmp_path / "network.onnx", side=16)
    mistake = call("evaluate", *arguments, "--data", photographs.validation).mistake
    for word in words:
        assert word in mistake


def test_evaluate_takes_networks_of_anybodys(call: Call, photographs: Photographs, tmp_path: Path) -> None:
    """The same network as factory, TorchScript and ONNX file of any size scores the same."""
    from tests.profiling.networks import Pyramid
    from tests.profiling.test_targets import write

    network = Pyramid()
    scores = []
    for name in ("network.pt", "network.onnx"):
        write(network, tmp_path / name)
        document: Any = call("evaluate", name, "--data", photographs.validation, "--threads", "1", "--json").document
        scores.append(document["psnr_db"])
        assert (document["model"], document["config"], document["tile"]) == (name, None, None)
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize(("package", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_extras_that_are_missing_are_named(
    call: Call,
    model: tuple[str, ...],
    photographs: Photographs,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    options = ("--runtime", "openvino") if package == "openvino" else ()
    mistake = call("quantise", *model, "--calibration", photographs.train, *SMALL, *options, "--out", "out").mistake
    assert f"pip install 'harness[{extra}]'" in mistake

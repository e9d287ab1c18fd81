"""`harness export --format`."""

from pathlib import Path

import onnxruntime
import pytest

from tests.cli.conftest import Call


def test_a_network_becomes_an_onnx_file(call: Call, tmp_path: Path) -> None:
    arguments = ("export", "bicubic", "--format", "onnx", "--out", "bicubic.onnx", "--scale", "2")
    said = call(*arguments, "--size", "9x8").out
    assert "takes 1×3×9×8" in said
    assert "opset 20" in said
    outputs = onnxruntime.InferenceSession(str(tmp_path / "bicubic.onnx")).get_outputs()
    assert outputs[0].shape == [1, 3, 18, 16]
    assert "--overwrite" in call(*arguments).mistake
    assert "any size and batch" in call(*arguments, "--overwrite").out
    outputs = onnxruntime.InferenceSession(str(tmp_path / "bicubic.onnx")).get_outputs()
    assert outputs[0].shape == ["batch", 3, "2*height", "2*width"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "9x8"), "give --format"),
        (("--format", "onnx"), "give --out"),
        (("--format", "tflite", "--out", "a.tflite"), "expected one of: onnx, openvino, pt2"),
        (("--format", "onnx", "--out", "a.pt2"), "called FILE.onnx"),
        (("--format", "onnx", "--out", "a.onnx", "--size", "0x8"), "--size 0x8"),
        (("--format", "onnx", "--out", "a.onnx", "--gamma", "0.5"), "does not route"),
    ],
)
def test_mistakes(call: Call, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in call("export", "bicubic", *arguments).mistake
    assert not list(tmp_path.glob("a.*"))


def test_no_file_beside_the_named_one_is_replaced(call: Call, tmp_path: Path) -> None:
    """OpenVINO's format is two files, of which one is named."""
    (tmp_path / "net.bin").write_text("precious", encoding="utf-8")
    assert "net.bin exists" in call("export", "bicubic", "--format", "openvino", "--out", "net.xml").mistake
    assert (tmp_path / "net.bin").read_text(encoding="utf-8") == "precious"

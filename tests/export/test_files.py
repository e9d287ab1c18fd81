"""`harness export --format`, and .pt2 files."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from harness.core.configs import CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.export import check_format, export_file, export_program
from tests.export.test_onnx import shaken

_TINY: dict[str, Any] = {"groups": (1,), "channels": 8, "window": 4, "scale": 2}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            CAMixerSRConfig(**_TINY, image_residual=True, routing=RoutingConfig(gamma=0.5)), marks=pytest.mark.slow
        ),
        SwinIRConfig(depths=(2,), embed_dim=12, num_heads=3),
    ],
    ids=lambda config: config.family,
)
def test_a_pt2_file_of_one_size_loads_back_and_is_the_same(config: Any, tmp_path: Path) -> None:
    network, path = shaken(config), tmp_path / "network.pt2"
    record = export_program(network, path, size=(7, 10))
    assert (record.size, record.batch, len(record.images)) == ((7, 10), 1, 1)
    image = torch.rand(1, 3, 7, 10)
    with torch.inference_mode():
        torch.testing.assert_close(torch.export.load(path).module()(image), network(image), atol=1e-4, rtol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["network.pt2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "routing",
    [
        RoutingConfig(gamma=0.5),
        RoutingConfig(policy="threshold"),
        RoutingConfig(policy="probability", gamma=0.3),
        RoutingConfig(policy="detail", gamma=0.4, block_weights=(1, 2)),
        RoutingConfig(policy="schedule", schedule=(0, 1)),
    ],
    ids=RoutingConfig.label,
)
def test_a_pt2_file_of_any_size(routing: RoutingConfig, tmp_path: Path) -> None:
    network = shaken(CAMixerSRConfig(**{**_TINY, "groups": (2,)}, routing=routing))
    record = export_program(network, tmp_path / "network.pt2")
    assert len(record.images) >= 2
    program = torch.export.load(tmp_path / "network.pt2").module()
    for batch, height, width in ((1, 8, 8), (3, 5, 21), (2, 9, 8)):
        image = torch.rand(batch, 3, height, width)
        with torch.inference_mode():
            torch.testing.assert_close(program(image), network(image), atol=1e-4, rtol=0)


def test_swinir_as_pt2_needs_a_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --size"):
        export_program(shaken(SwinIRConfig(depths=(1,), embed_dim=6, num_heads=1)), tmp_path / "network.pt2")


def test_a_file_that_is_not_its_network_is_not_written(tmp_path: Path) -> None:
    network = shaken(CAMixerSRConfig(**_TINY))
    network.get_parameter("tail.bias").data.fill_(float("nan"))  # what is no number is within no bounds
    path = tmp_path / "network.onnx"
    path.write_bytes(b"what was there")
    with pytest.raises(UserError, match="so it is not written: on 1×3×64×64"):
        export_file(network, path, "onnx")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"what was there"]


def test_an_onnx_file_has_its_sha256_in_the_record(tmp_path: Path) -> None:
    record = export_file(shaken(CAMixerSRConfig(**_TINY)), tmp_path / "network.onnx", "onnx", size=(8, 9), batch=1)
    model = onnx.load(tmp_path / "network.onnx")
    assert record.nodes == len(model.graph.node)
    assert record.model_validate_json(record.model_dump_json()) == record


@pytest.mark.slow
def test_openvino_files(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    network = shaken(CAMixerSRConfig(**_TINY, routing=RoutingConfig(policy="probability", gamma=0.4)))
    record = export_file(network, tmp_path / "network.xml", "openvino", size=(8, 9), batch=1)
    assert record.kind == "openvino"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["network.bin", "network.xml"]
    model = openvino.Core().compile_model(str(tmp_path / "network.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = torch.rand(1, 3, 8, 9)
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(model([image.numpy()])[0]), network(image), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [("tflite", "a.tflite", "unknown format 'tflite'"), ("onnx", "a.pt2", "is called FILE.onnx")],
)
def test_formats_that_are_none(name: str, file: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_format(name, Path(file))

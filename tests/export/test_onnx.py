"""ONNX graphs: as their network on real images, small, readable, without torch."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import inliner, numpy_helper

from harness.core.configs import BicubicConfig, BlockWidths, CAMixerSRConfig, LayerWidths, RoutingConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.export import ParityImage, build_onnx, check_parity, take_images
from harness.export.parity import open_session
from harness.models import SRNetwork, build_model, build_seeded, load_weights, preset_config
from harness.models.onnx_export.graph import OPSET

_SMALL: dict[str, Any] = {"groups": (1, 2), "channels": 12, "window": 4}
_BLOCKS = 20  # of the presets
_ROUTINGS = (
    *(RoutingConfig(gamma=gamma) for gamma in (0, 0.25, 0.5, 0.75, 1)),
    *(RoutingConfig(policy="probability", gamma=gamma) for gamma in (0, 0.3, 0.5, 0.8, 1)),
    RoutingConfig(policy="threshold"),
    RoutingConfig(policy="schedule", schedule=(0, 0.25, 0.5, 1) * 5),
    *(RoutingConfig(policy="detail", gamma=gamma, block_weights=(1, 0, 2, 0.5) * 5) for gamma in (0, 0.2, 0.6, 1)),
)


def shaken(config: Any, seed: int = 0) -> SRNetwork:
    """A network whose weights are all of some size, so that every path counts."""
    network = build_seeded(config, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return network


def first_blocks(routing: RoutingConfig, count: int) -> RoutingConfig:
    """The same routing of a network with fewer blocks."""
    values = routing.model_dump()
    for name in ("schedule", "block_weights"):
        if values.get(name):
            values[name] = values[name][:count]
    return RoutingConfig.model_validate(values)


@pytest.mark.parametrize("routing", _ROUTINGS, ids=RoutingConfig.label)
def test_a_small_network_is_the_same_under_every_routing_and_at_any_size(routing: RoutingConfig) -> None:
    network = shaken(CAMixerSRConfig(**_SMALL, routing=first_blocks(routing, 3)))
    model = build_onnx(network)
    record = check_parity(network, model)
    assert record.max_abs < 1e-4
    session = open_session(model.SerializeToString())
    for batch, height, width in ((1, 1, 1), (3, 1, 2), (2, 3, 4), (1, 4, 13), (2, 9, 8)):
        image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.inference_mode():
            np.testing.assert_allclose(session(image.numpy())[0], network(image).numpy(), atol=1e-4)


def test_images_of_a_batch_are_routed_by_themselves() -> None:
    network = shaken(CAMixerSRConfig(**_SMALL, routing=RoutingConfig(policy="probability", gamma=0.5)))
    session = open_session(build_onnx(network).SerializeToString())
    (image,) = (image for image in take_images(4, 4) if image.input_BCHW.shape[:3] == (2, 3, 60))
    inputs = image.input_BCHW.numpy()
    together, alone = session(inputs)[0], [session(inputs[index : index + 1])[0][0] for index in range(2)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("preset", ["camixersr-b", "camixersr-s"])
@pytest.mark.parametrize("routing", _ROUTINGS, ids=RoutingConfig.label)
def test_graphs_of_the_presets_are_small_and_have_no_dead_branch(preset: str, routing: RoutingConfig) -> None:
    config = preset_config(preset, 4)
    assert isinstance(config, CAMixerSRConfig)
    model = build_onnx(build_seeded(config.with_routing(routing), 0))
    assert len(model.graph.node) <= 1500
    kinds = Counter(node.op_type for node in model.graph.node)
    is_all = routing.policy in ("fixed", "probability") and routing.gamma == 1
    is_none = routing.policy in ("fixed", "probability", "detail") and routing.gamma == 0
    if is_none:
        assert kinds["Softmax"] == kinds["GatherND"] == kinds["TopK"] == kinds["SelectByProbability"] == 0
    if is_all:
        assert kinds["TopK"] == kinds["NonZero"] == kinds["SelectByProbability"] == 0
        assert not any("spatial_attention" in tensor.name for tensor in model.graph.initializer)
    data_dependent = routing.policy in ("probability", "threshold", "detail") and not (is_all or is_none)
    assert bool(kinds["NonZero"]) == (data_dependent and not (routing.policy == "detail" and routing.gamma == 1))


def test_a_file_says_what_it_is() -> None:
    network = shaken(CAMixerSRConfig(**_SMALL, scale=3, routing=RoutingConfig(gamma=0.25)))
    model = build_onnx(network, size=(8, 9), batch=2)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert CAMixerSRConfig.model_validate(json.loads(said["harness.config"])) == network.config
    assert (said["harness.gamma"], said["harness.policy"], said["harness.scale"]) == ("0.25", "fixed", "3")
    assert said["harness.opset"] == str(OPSET) == str(model.opset_import[0].version)
    assert [entry.name for entry in (*model.graph.input, *model.graph.output)] == ["image", "restored"]
    shapes = [[side.dim_value for side in entry.type.tensor_type.shape.dim] for entry in model.graph.output]
    assert shapes == [[2, 3, 24, 27]]
    stored = {tensor.name for tensor in model.graph.initializer}
    assert "groups.1.blocks.0.mixer.depthwise.weight" in stored
    assert any(node.name.startswith("groups.1.blocks.1.ffn.") for node in model.graph.node)


@pytest.mark.parametrize("routing", _ROUTINGS, ids=RoutingConfig.label)
@pytest.mark.parametrize("size", [(8, 12), (7, 13), (3, 2)])
def test_a_file_of_one_size_looks_up_no_shape(routing: RoutingConfig, size: tuple[int, int]) -> None:
    network = shaken(CAMixerSRConfig(**_SMALL, image_residual=True, routing=first_blocks(routing, 3)))
    model = build_onnx(network, size=size, batch=1)
    assert not {"Shape", "Size", "Range", "ConstantOfShape"} & {node.op_type for node in model.graph.node}
    record = check_parity(network, model)
    assert [image.size for image in record.images] == [size]
    with pytest.raises(UserError, match="cannot run on"):
        check_parity(network, model, [_noise(4, (size[0] + 1, size[1]))])


def _noise(scale: int, size: tuple[int, int]) -> ParityImage:
    height, width = size
    return ParityImage("noise", torch.rand(1, 3, *size), torch.rand(1, 3, scale * height, scale * width))


@st.composite
def pruned_networks(draw: st.DrawFn) -> CAMixerSRConfig:
    channels = draw(st.integers(12, 14))
    width = st.integers(1, channels)
    predictor = st.integers(3, 6)  # norms of one or two features leave nothing to rank windows by but ties
    groups = tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=2)))
    widths = tuple(
        BlockWidths(
            mixer=draw(width),
            query=draw(width),
            predictor=draw(predictor),
            offsets=draw(width),
            ffn=draw(st.integers(1, 12)),
        )
        for _ in range(sum(groups))
    )
    return CAMixerSRConfig(
        scale=draw(st.sampled_from([2, 3, 4])),
        groups=groups,
        channels=channels,
        window=draw(st.sampled_from([2, 3, 5])),
        widths=draw(st.sampled_from([widths, None])),
        scaled_attention=draw(st.booleans()),
        image_residual=draw(st.booleans()),
        spatial_attention=draw(st.booleans()),
        channel_attention=draw(st.booleans()),
        offsets=draw(st.booleans()),
        global_condition=draw(st.booleans()),
        window_condition=draw(st.booleans()),
        routing=draw(st.sampled_from([first_blocks(routing, sum(groups)) for routing in _ROUTINGS])),
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(pruned_networks(), st.integers(1, 13), st.integers(1, 13), st.integers(1, 2))
def test_any_config_pruned_or_ablated_is_the_same(config: CAMixerSRConfig, height: int, width: int, batch: int) -> None:
    network = shaken(config)
    image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(image).numpy()
    got = open_session(build_onnx(network).SerializeToString())(image.numpy())[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        SwinIRConfig(depths=(3, 2), embed_dim=12, num_heads=3, window=5, scale=3, image_residual=True),
        SwinIRConfig(
            depths=(2,),
            embed_dim=12,
            num_heads=3,
            widths=(LayerWidths(query=3, value=5, mlp=7), LayerWidths(query=1, value=2, mlp=1)),
        ),
        *(BicubicConfig(scale=scale) for scale in (2, 3, 4)),
    ],
    ids=lambda config: config.label(),
)
def test_networks_that_do_not_route(config: Any) -> None:
    network = shaken(config)
    assert check_parity(network, build_onnx(network)).max_abs < 1e-4
    model = build_onnx(network, size=(11, 16), batch=2)
    assert "Shape" not in {node.op_type for node in model.graph.node}
    assert check_parity(network, model).max_abs < 1e-4


def test_released_weights(reference: Path) -> None:
    network = build_model(preset_config("camixersr-s", 4))
    load_weights(network, reference / "weights" / "CAMixerSR_S.pth")
    record = check_parity(network.eval(), build_onnx(network))
    assert record.max_abs < 1e-4
    assert record.psnr_db_difference < 1e-3
    assert min(image.psnr_db for image in record.images) > 25
    sizes = [image.size for image in record.images]
    assert {height % 16 == 0 and width % 16 == 0 for height, width in sizes} == {True, False}
    assert {image.batch for image in record.images} == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("routing", _ROUTINGS, ids=RoutingConfig.label)
@pytest.mark.parametrize("preset", ["camixersr-s", "camixersr-b"])
def test_presets_under_every_routing(reference: Path, preset: str, routing: RoutingConfig) -> None:
    config = preset_config(preset, 4)
    assert isinstance(config, CAMixerSRConfig)
    network = build_seeded(config.with_routing(routing), 0).eval()
    if preset == "camixersr-s":
        load_weights(network, reference / "weights" / "CAMixerSR_S.pth")
    assert check_parity(network, build_onnx(network)).max_abs < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("routing", _ROUTINGS, ids=RoutingConfig.label)
def test_openvino(routing: RoutingConfig) -> None:
    pytest.importorskip("openvino")
    network = shaken(CAMixerSRConfig(**_SMALL, routing=first_blocks(routing, 3)))
    assert check_parity(network, build_onnx(network), runtime="openvino").max_abs < 1e-4


@pytest.mark.parametrize(
    ("config", "weight", "place"),
    [
        (CAMixerSRConfig(**_SMALL), "groups.1.blocks.0.ffn.project.weight", "groups.1.blocks.0, in"),
        (CAMixerSRConfig(**_SMALL), "groups.0.blocks.0.mixer.query_key.weight", "groups.0.blocks.0, in"),
        (CAMixerSRConfig(**_SMALL), "tail.bias", "tail"),
        (SwinIRConfig(depths=(1, 1), embed_dim=12, num_heads=3), "groups.1.blocks.0.mlp_out.weight", "groups.1, in"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_weight_is_found_and_its_place_named(config: Any, weight: str, place: str) -> None:
    network = shaken(config)
    model = build_onnx(network)
    (stored,) = (tensor for tensor in model.graph.initializer if tensor.name == weight)
    stored.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(stored), weight))
    with pytest.raises(UserError, match="on 1×3×64×64 ") as caught:
        check_parity(network, model)
    assert f"they part at {place}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_is_no_parity() -> None:
    network = shaken(CAMixerSRConfig(**_SMALL, offsets=False))
    model = build_onnx(network)
    (stored,) = (tensor for tensor in model.graph.initializer if tensor.name == "tail.bias")
    stored.CopyFrom(numpy_helper.from_array(np.full(48, np.nan, dtype=np.float32), "tail.bias"))
    with pytest.raises(UserError, match="differs by nan"):
        check_parity(network, model)


def test_a_file_runs_without_torch(tmp_path: Path) -> None:
    network = shaken(CAMixerSRConfig(**_SMALL, routing=RoutingConfig(policy="probability", gamma=0.4)))
    onnx.save(build_onnx(network), tmp_path / "model.onnx")
    script = (
        "import sys, numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(tmp_path / 'model.onnx')!r})\n"
        "(restored,) = session.run(['restored'], {'image': numpy.zeros((1, 3, 5, 7), numpy.float32)})\n"
        "assert restored.shape == (1, 3, 20, 28) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_functions_of_a_file_can_be_written_out() -> None:
    network = shaken(CAMixerSRConfig(**_SMALL, routing=RoutingConfig(policy="probability", gamma=0.4)))
    model = build_onnx(network)
    assert [function.name for function in model.functions] == ["SelectByProbability"]
    assert check_parity(network, inliner.inline_local_functions(model)).max_abs < 1e-4


@pytest.mark.parametrize(("size", "batch"), [((0, 4), None), ((4, -1), 1), (None, 0)])
def test_sizes_that_are_none(size: tuple[int, int] | None, batch: int | None) -> None:
    with pytest.raises(UserError, match="expected at least 1"):
        build_onnx(shaken(BicubicConfig()), size=size, batch=batch)

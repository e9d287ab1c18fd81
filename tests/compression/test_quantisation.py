"""Graphs that are quantised: what is in the files, what they restore, and which layers are chosen."""

import math
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.compression import (
    calibrate_ranges,
    choose_layers,
    prepare_graph,
    quantisable_layers,
    quantise_graph,
    round_graph,
)
from harness.compression.quantisation import group_layers
from harness.core.configs import STATIC, QuantisationMethod
from harness.core.errors import UserError
from tests.compression.networks import Exported, crops, export, likeness_db, run, weight_of

LAYERS = ("Conv", "MatMul", "Gemm", "MatMulInteger")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def rounded(exported: Exported) -> Any:
    return round_graph(exported.graph, calibrate_ranges(exported.graph, crops(), "minmax"))


def layer_nodes(model: Any) -> dict[str, Any]:
    return {node.name.partition("/")[0]: node for node in model.graph.node if node.op_type in LAYERS}


def test_layers_are_named_by_their_modules_and_those_of_routing_are_found(exported: Exported) -> None:
    modules = dict(exported.network.named_modules())
    mixer = "groups.0.blocks.0.mixer"
    together = {  # what the graph has one product for
        f"{mixer}.value_trunk": (f"{mixer}.value", f"{mixer}.predictor.trunk"),
        f"{mixer}.query_key": (f"{mixer}.query", f"{mixer}.key"),
    }
    found = (*exported.graph.layers, *exported.graph.routing)
    names = [name for layer in found for name in together.get(layer, (layer,))]
    assert len(names) == len(set(names))
    weighted = {name for name, module in modules.items() if getattr(module, "weight", None) is not None}
    assert set(names) == {name for name in weighted if "norm" not in name and "depthwise" not in name}
    routing = {f"groups.0.blocks.0.mixer.predictor.routing_{layer}" for layer in ("hidden", "out")}
    assert set(exported.graph.routing) == routing


def test_weights_are_int8_per_channel_and_symmetric(exported: Exported, rounded: Any, tmp_path: Path) -> None:
    quantise_graph(exported.graph, tmp_path / "int8.onnx", "minmax", rounded=rounded)
    model = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    nodes = {node.name: node for node in model.graph.node}
    for node_name in exported.graph.layers.values():
        node = nodes[node_name]
        (pair,) = [producers[node.input[1]]]
        assert pair.op_type == "DequantizeLinear"
        weight, scale, zero = (constants[name] for name in pair.input)
        assert weight.data_type == TensorProto.INT8
        axis = {attribute.name: attribute.i for attribute in pair.attribute}["axis"]
        assert list(scale.dims) == [weight.dims[axis]]
        assert weight.dims[axis] == weight.dims[0 if node.op_type == "Conv" else -1]
        assert not numpy_helper.to_array(zero).any()
        assert producers[node.input[0]].op_type == "DequantizeLinear"
    for node_name in exported.graph.routing.values():
        assert weight_of(model, nodes[node_name]).data_type == TensorProto.FLOAT
        assert producers[nodes[node_name].input[0]].op_type != "DequantizeLinear"
    counts = Counter(node.op_type for node in model.graph.node)
    weights = {nodes[name].input[1] for name in exported.graph.layers.values()}
    assert counts["DequantizeLinear"] >= counts["QuantizeLinear"] + len(weights)
    quantise_graph(exported.graph, tmp_path / "float.onnx", "bf16")  # the same graph, in float
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "float.onnx").stat().st_size


@pytest.mark.parametrize(
    "method",
    ["minmax", "percentile", pytest.param("entropy", marks=pytest.mark.slow), "dynamic", "fp16", "bf16"],
)
def test_outputs_are_near(exported: Exported, method: QuantisationMethod, tmp_path: Path) -> None:
    images = crops()
    found = round_graph(exported.graph, calibrate_ranges(exported.graph, images, method)) if method in STATIC else None
    quantise_graph(exported.graph, tmp_path / "network.onnx", method, rounded=found)
    likeness = [likeness_db(run(exported.file, image), run(tmp_path / "network.onnx", image)) for image in images]
    least = {"fp16": 50.0, "bf16": 100.0}.get(method, 25.0)
    assert min(likeness) > least, likeness
    if method != "bf16":
        assert max(likeness) < 100  # something was rounded
    routing = layer_nodes(onnx.load(tmp_path / "network.onnx"))
    model = onnx.load(tmp_path / "network.onnx")
    for name in exported.graph.routing:
        assert weight_of(model, routing[name]).data_type == TensorProto.FLOAT


def test_layers_that_are_kept_stay_in_float_to_the_bit(exported: Exported, rounded: Any, tmp_path: Path) -> None:
    kept = {name for name in exported.graph.layers if ".ffn." in name or name == "tail"}
    rest = set(exported.graph.layers) - kept
    quantise_graph(exported.graph, tmp_path / "mixed.onnx", "minmax", layers=rest, rounded=rounded)
    model, original = onnx.load(tmp_path / "mixed.onnx"), exported.graph.model
    nodes, before = layer_nodes(model), layer_nodes(original)
    assert {
        name for name in exported.graph.layers if weight_of(model, nodes[name]).data_type == TensorProto.INT8
    } == rest
    for name in kept:
        weight = numpy_helper.to_array(weight_of(model, nodes[name]))
        assert np.array_equal(weight, numpy_helper.to_array(weight_of(original, before[name])))
    quantise_graph(exported.graph, tmp_path / "none.onnx", "minmax", layers=(), rounded=rounded)
    image = crops(1)[0]
    assert np.abs(run(tmp_path / "none.onnx", image) - run(exported.file, image)).max() < 1e-5


def test_dynamic_quantisation_is_of_products_alone(exported: Exported, tmp_path: Path) -> None:
    quantise_graph(exported.graph, tmp_path / "dynamic.onnx", "dynamic")
    model = onnx.load(tmp_path / "dynamic.onnx")
    integers = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == len(quantisable_layers(exported.graph, "dynamic"))
    assert all(node.input[1] in integers for node in products)
    assert "head" not in quantisable_layers(exported.graph, "dynamic")
    assert {node.op_type for node in model.graph.node} >= {"Conv", "DynamicQuantizeLinear"}


def test_ranges_are_those_of_the_given_images_alone(exported: Exported) -> None:
    images = crops()
    for chosen in (images[:1], images[1:3]):
        lowest, highest = calibrate_ranges(exported.graph, chosen, "minmax")["image"].range_value
        assert (lowest.item(), highest.item()) == (min(map(np.min, chosen)), max(map(np.max, chosen)))
    whole = calibrate_ranges(exported.graph, images, "minmax")
    inner = calibrate_ranges(exported.graph, images, "percentile", percentile=90.0)
    assert set(whole.keys()) == set(inner.keys())
    widths = [(np.ptp(whole[name].range_value), np.ptp(inner[name].range_value)) for name in whole]
    assert all(narrow <= wide * 1.01 for wide, narrow in widths)
    assert np.mean([narrow / wide for wide, narrow in widths if wide > 0]) < 0.9


@pytest.mark.slow
def test_more_images_take_no_more_memory(exported: Exported) -> None:
    """Histograms hold no activations: of 150 times as many images neither."""
    script = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from harness.compression import calibrate_ranges, prepare_graph\n"
        "from tests.compression.networks import crops\n"
        "graph = prepare_graph(Path(sys.argv[1]))\n"
        "calibrate_ranges(graph, crops() * int(sys.argv[2]), 'percentile')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    few, many = (
        int(subprocess.check_output([sys.executable, "-c", script, str(exported.file), times]))
        for times in ("1", "150")
    )
    assert many < 1.1 * few


def make_graph(tmp_path: Path) -> Path:
    """Y = relu(x·W)·V, by the rows that x·R ranks first: R and S decide, W and V compute; U is dead."""
    nodes = [
        helper.make_node("MatMul", ["x", "r.weight"], ["ranked"]),
        helper.make_node("MatMul", ["ranked", "s.weight"], ["again"]),
        helper.make_node("ReduceMax", ["again"], ["best"], keepdims=0, axes=[1]),
        helper.make_node("TopK", ["best", "two"], ["values", "places"], axis=0),
        helper.make_node("MatMul", ["x", "w.weight"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["bent"]),
        helper.make_node("Gather", ["bent", "places"], ["chosen"], axis=0),
        helper.make_node("MatMul", ["chosen", "v.weight"], ["y"]),
    ]
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.normal(size=(4, 4)).astype(np.float32), f"{name}.weight") for name in "rswv"
    ]
    graph = helper.make_graph(
        nodes,
        "choosing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [*weights, numpy_helper.from_array(np.array([2], dtype=np.int64), "two")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "choosing.onnx")
    return tmp_path / "choosing.onnx"


def test_what_only_decides_is_found_in_any_graph(tmp_path: Path) -> None:
    graph = prepare_graph(make_graph(tmp_path))
    assert (list(graph.layers), list(graph.routing)) == (["w", "v"], ["r", "s"])


def test_files_that_are_none_are_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.onnx cannot be prepared"):
        prepare_graph(tmp_path / "text.onnx")
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "bend",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "bend.onnx")
    with pytest.raises(UserError, match="no layer to quantise"):
        prepare_graph(tmp_path / "bend.onnx")


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with warnings.catch_warnings(), pytest.raises(UserError, match=r"pip install 'harness\[onnx\]'$"):
        prepare_graph(tmp_path / "network.onnx")


class TestChoice:
    """Layers that are chosen by a score in closed form."""

    @given(
        drops=st.lists(st.floats(0, 1), min_size=1, max_size=12),
        bound=st.floats(0.01, 2),
        most_parts=st.sampled_from([2, 4, 64]),
    )
    def test_the_bound_holds_and_the_worst_stay_in_float(
        self, drops: list[float], bound: float, most_parts: int
    ) -> None:
        cost = {f"group.{index % 3}.layer{index}": drop for index, drop in enumerate(drops)}
        seen: list[frozenset[str]] = []

        def score(quantised: frozenset[str]) -> float:
            seen.append(quantised)
            return 30.0 - math.fsum(cost[name] for name in quantised)

        record = choose_layers(tuple(cost), score, 30.0, bound, most_parts=most_parts)
        assert record.is_met
        assert record.drop_db <= bound
        assert set(record.quantised) | set(record.kept) == set(cost)
        assert record.psnr_db == 30.0 - math.fsum(cost[name] for name in record.quantised)
        assert len(seen) == len(set(seen))  # nothing is measured twice
        assert seen[0] == frozenset(cost)
        if 30.0 - (30.0 - math.fsum(drops)) <= bound:
            assert (record.kept, len(seen)) == ((), 1)
        elif most_parts >= len(drops):
            cheapest_kept = min(cost[name] for name in record.kept)
            assert all(cost[name] <= cheapest_kept for name in record.quantised)
            assert record.drop_db + cheapest_kept > bound - 1e-9  # one less in float would not do

    def test_parts_give_back_the_layers_that_do_no_harm(self) -> None:
        layers = tuple(f"blocks.{block}.{layer}" for block in range(5) for layer in "abcd")

        def score(quantised: frozenset[str]) -> float:
            return 30.0 - 0.5 * ("blocks.3.c" in quantised) - 0.001 * len(quantised)

        record = choose_layers(layers, score, 30.0, 0.1, most_parts=5, routing=("r",))
        assert record.kept == ("blocks.3.c",)
        assert [entry.name for entry in record.sensitivities[:5]] == [f"blocks.{block}" for block in range(5)]
        assert record.sensitivities[3].drop_db == pytest.approx(0.504)
        assert record.routing == ("r",)
        assert record.drop_db == pytest.approx(0.019)

    def test_without_a_bound_all_layers_are_quantised(self) -> None:
        record = choose_layers(("a", "b"), lambda _quantised: 20.0, 30.0, None)
        assert (record.quantised, record.drop_db, record.is_met, record.sensitivities) == (("a", "b"), 10.0, True, ())

    def test_outputs_that_are_not_finite_are_no_choice(self) -> None:
        record = choose_layers(("a", "b"), lambda chosen: float("-inf") if "a" in chosen else 29.95, 30.0, 0.1)
        assert (record.quantised, record.kept) == (("b",), ("a",))

    def test_where_every_layer_hurts_none_is_quantised(self) -> None:
        record = choose_layers(("a", "b"), lambda _quantised: 29.0, 30.0, 0.1)
        assert (record.quantised, record.kept, record.drop_db) == ((), ("a", "b"), 0.0)


def test_parts_are_as_deep_as_their_number_allows() -> None:
    layers = ("head", "groups.0.a", "groups.0.b", "groups.1.a", "groups.1.a#2")
    assert list(group_layers(layers, 5)) == ["head", "groups.0.a", "groups.0.b", "groups.1.a"]
    assert group_layers(layers, 3) == {
        "head": ("head",),
        "groups.0": ("groups.0.a", "groups.0.b"),
        "groups.1": ("groups.1.a", "groups.1.a#2"),
    }
    assert list(group_layers(layers, 1)) == ["head", "groups"]

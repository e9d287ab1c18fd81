"""Counts of ONNX graphs against the counters of PyTorch and counts by hand."""

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.errors import UserError
from harness.profiling import count_onnx, count_operations
from tests.profiling.networks import Pyramid
from tests.profiling.test_targets import write


class Attentive(nn.Module):
    """Attention of three heads, a linear map and an einsum over the pixels of an image of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 12, 3, padding=1, groups=3)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.linear = nn.Linear(12, 12, bias=False)
        self.tail = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        features_BCHW = self.head(input_BCHW)
        tokens_BLC = features_BCHW.flatten(2).transpose(1, 2)
        tokens_BLC = self.linear(self.attention(tokens_BLC, tokens_BLC, tokens_BLC, need_weights=False)[0])
        energy_BCC = torch.einsum("blc,bld->bcd", tokens_BLC, tokens_BLC)
        mixed_BCHW = (tokens_BLC @ energy_BCC).transpose(1, 2).reshape(features_BCHW.shape)
        return F.pixel_shuffle(self.tail(mixed_BCHW), 2)


@pytest.mark.parametrize("side", [24, None])
def test_a_graph_counts_what_the_counters_count(tmp_path: Path, side: int | None) -> None:
    network = Pyramid(factor=4)
    file = str(write(network, tmp_path / "network.onnx", side=side))
    height, width = (side, side) if side else (20, 28)
    counted = count_onnx(file, "network", (1, 3, height, width))
    expected = count_operations(network, torch.rand(1, 3, height, width))
    assert (counted.macs, counted.activations, counted.reason) == (expected.macs, expected.activations, None)
    assert counted.params == expected.params
    (added,) = counted.operators
    assert (added.operator, added.times, added.share) == ("Add", 1, expected.operators[0].share)


def test_products_of_sizes_that_the_graph_works_out(tmp_path: Path) -> None:
    """Exported by way of torch.export every size follows from the input's; in a trace some depend on data."""
    network = Attentive()
    counted = count_onnx(str(write(network, tmp_path / "exported.onnx", dynamo=True)), "exported", (1, 3, 20, 28))
    expected = count_operations(network, torch.rand(1, 3, 20, 28))
    assert (counted.macs, counted.activations) == (expected.macs, expected.activations)
    shares = {operator.operator: operator.share for operator in counted.operators}
    assert shares["Softmax"] == max(shares.values(), key=float)  # type: ignore[arg-type]
    traced = count_onnx(str(write(network, tmp_path / "traced.onnx")), "traced", (1, 3, 20, 28))
    assert traced.macs is None
    assert "has a size that depends on data" in str(traced.reason)


def make(path: Path, nodes: list[Any], constants: dict[str, list[int]], opsets: tuple[str, ...] = ("",)) -> str:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, "h", "w"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, [0.5] * int(torch.Size(shape).numel()))
        for name, shape in constants.items()
    ]
    graph = helper.make_graph(nodes, "graph", [image], [output], initializers)
    versions = [helper.make_opsetid(domain, 20 if not domain else 1) for domain in opsets]
    onnx.save(helper.make_model(graph, opset_imports=versions), path)
    return str(path)


def test_a_gemm_of_transposed_operands_by_hand(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=2),  # 2 × h·w
        helper.make_node("Gemm", ["flat", "weight"], ["y"], transA=1, transB=1),  # h·w × 2 by 2 × 7
    ]
    counted = count_onnx(make(tmp_path / "g.onnx", nodes, {"weight": [7, 2]}), "g", (1, 2, 5, 6))
    assert (counted.macs, counted.params, counted.activations) == (5 * 6 * 7 * 2, 14, 0)


@pytest.mark.parametrize(
    ("node", "opsets", "words"),
    [
        (helper.make_node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft"), ("", "com.microsoft"), "FusedConv"),
        (helper.make_node("DeformConv", ["x", "w", "x"], ["y"]), ("",), "has DeformConv"),
        (helper.make_node("MatMul", ["somewhere", "w"], ["y"]), ("",), "MatMul 'y' has a size that depends on data"),
    ],
)
def test_what_cannot_be_counted_right_is_not_counted(
    tmp_path: Path, node: Any, opsets: tuple[str, ...], words: str
) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["positions"]),
        helper.make_node("Cast", ["positions"], ["somewhere"], to=TensorProto.FLOAT),
        node,
    ]
    counted = count_onnx(make(tmp_path / "g.onnx", nodes, {"w": [2, 2, 1, 1]}, opsets), "g", (1, 2, 5, 6))
    assert counted.macs is None
    assert words in str(counted.reason)


def test_a_file_that_is_none_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_text("hello", encoding="utf-8")
    with pytest.raises(UserError, match="onnx cannot read it"):
        count_onnx(str(tmp_path / "g.onnx"), "g.onnx", (1, 3, 8, 8))


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with warnings.catch_warnings(), pytest.raises(UserError, match=r'pip install "harness\[onnx\]"$'):
        count_onnx(str(tmp_path / "g.onnx"), "g.onnx", (1, 3, 8, 8))


def test_integers_that_stand_for_floats_are_parameters_and_their_scales_are_none(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.INT8, [3, 5], [1] * 15)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [5], [0.5] * 5)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["weight"], axis=1),
            helper.make_node("Transpose", ["x"], ["last"], perm=[0, 2, 3, 1]),
            helper.make_node("MatMul", ["last", "weight"], ["y"]),
        ],
        "rounded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight, scale],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "g.onnx")
    counted = count_onnx(str(tmp_path / "g.onnx"), "g", (1, 3, 4, 6))
    assert (counted.macs, counted.params) == (4 * 6 * 3 * 5, 15)

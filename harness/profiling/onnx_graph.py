"""Operations of an ONNX file, counted from its graph with the sizes that an input of one size gives every tensor.

The conventions are those of `counters`: one fused multiply-add is one; convolutions, matrix products and einsums of two
operands count, and nothing else. A graph with anything that may hold products of another kind (recurrent and quantised
operators, branches and loops, operators of other domains), or with a product of unknown size, has no count at all.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.errors import UserError, describe_error
from harness.core.records import UncountedOperator

Shape = tuple[int, ...]

# fmt: off
_MOVEMENT = {
    "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand", "EyeLike",
    "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "NonZero", "OneHot", "Pad", "Range", "Reshape",
    "ReverseSequence", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
}
_NOT_COUNTED = {
    "Attention", "ConvInteger", "DFT", "DeformConv", "Det", "GRU", "If", "LSTM", "Loop", "MatMulInteger",
    "QLinearConv", "QLinearMatMul", "RNN", "STFT", "Scan", "SequenceMap",
}
# fmt: on


@dataclass(frozen=True)
class OnnxCount:
    """What a graph costs: MACs, or None and the `reason`; the rest where there are MACs.

    `params`: elements of all floating-point constants stored in the file, because a file does not say which of them
    were parameters, and of integers that stand for them (QDQ), without the scales of these. `activations`: output
    elements of two-dimensional convolutions.
    """

    macs: int | None
    reason: str | None = None
    params: int | None = None
    activations: int | None = None
    operators: tuple[UncountedOperator, ...] = ()


def count_onnx(path: str, source: str, input_shape: Shape) -> OnnxCount:
    """Count the operations of an ONNX file for one input of shape B×C×h×w.

    Raises `UserError` where the package `onnx` is missing or cannot read the file.
    """
    try:
        import onnx
        from onnx import inliner, shape_inference
    except ImportError:
        raise UserError(
            'operations of ONNX files need onnx, which is not installed: pip install "harness[onnx]"'
        ) from None
    try:
        model = inliner.inline_local_functions(onnx.load(path))
        initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        _fix_input(model.graph, initializers, input_shape)
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        quantised, scales = _quantised_constants(graph)
    except Exception as error:
        raise UserError(f"{source}: onnx cannot read it ({describe_error(error)})") from None
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    params = sum(
        math.prod(tensor.dims)
        for name, tensor in initializers.items()
        if name in quantised or (tensor.data_type in floats and name not in scales)
    )
    return _count_nodes(graph.node, _known_shapes(graph), params)


def _quantised_constants(graph: Any) -> tuple[set[str], set[str]]:
    """Return the names of tensors that integers are turned into floats from, and of the scales of those."""
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    integers = {node.input[0] for node in pairs if node.op_type == "DequantizeLinear"}
    return integers, {node.input[1] for node in pairs}


def _fix_input(graph: Any, initializers: Mapping[str, Any], input_shape: Shape) -> None:
    """Give the image input its size, and forget all sizes that were found with another."""
    (image,) = [entry for entry in graph.input if entry.name not in initializers]
    for dimension, side in zip(image.type.tensor_type.shape.dim, input_shape, strict=True):
        dimension.dim_value = side
    del graph.value_info[:]
    for entry in graph.output:
        entry.type.tensor_type.ClearField("shape")


def _known_shapes(graph: Any) -> dict[str, Shape]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        dimensions = entry.type.tensor_type.shape.dim
        known = entry.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dimensions)
        if known:
            shapes.setdefault(entry.name, tuple(d.dim_value for d in dimensions))
    return shapes


def _count_nodes(nodes: Sequence[Any], shapes: Mapping[str, Shape], params: int) -> OnnxCount:
    macs = activations = 0
    elements: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for node in nodes:
        if node.domain not in ("", "ai.onnx") or node.op_type in _NOT_COUNTED:
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            return OnnxCount(None, f"the graph has {name}, whose operations are not known here")
        known = [shapes.get(name) for name in (*node.input, node.output[0])]
        if node.op_type in _PRODUCTS:
            needed = [known[0], known[1], known[-1]]
            if None in needed:
                return OnnxCount(
                    None, f"{node.op_type} {node.name or node.output[0]!r} has a size that depends on data"
                )
            left, right, output = (shape for shape in needed if shape is not None)
            attributes = {attribute.name: attribute for attribute in node.attribute}
            counted = _PRODUCTS[node.op_type](left, right, output, attributes)
            if counted is None:
                return OnnxCount(None, f"{node.op_type} {node.name or node.output[0]!r} is not one of two operands")
            macs += counted
            if node.op_type in ("Conv", "ConvTranspose") and len(output) == 4:
                activations += math.prod(output)
        elif node.op_type not in _MOVEMENT:
            times[node.op_type] += 1
            elements[node.op_type] += max((math.prod(shape) for shape in known if shape is not None), default=0)
    whole = macs + elements.total()
    operators = tuple(
        UncountedOperator(operator=name, times=times[name], share=count / whole if whole else 0.0)
        for name, count in elements.most_common()
    )
    return OnnxCount(macs, None, params, activations, operators)


def _convolution(_image: Shape, weight: Shape, output: Shape, _attributes: Mapping[str, Any]) -> int:
    return math.prod(output) * math.prod(weight[1:])  # weight: C_out × C_in/groups × sides


def _transposed_convolution(image: Shape, weight: Shape, _output: Shape, _attributes: Mapping[str, Any]) -> int:
    return math.prod(image) * math.prod(weight[1:])  # weight: C_in × C_out/groups × sides


def _gemm(left: Shape, _right: Shape, output: Shape, attributes: Mapping[str, Any]) -> int:
    transposed = "transA" in attributes and attributes["transA"].i
    return math.prod(output) * left[0 if transposed else 1]


def _matmul(left: Shape, _right: Shape, output: Shape, _attributes: Mapping[str, Any]) -> int:
    return math.prod(output) * left[-1]


def _einsum(left: Shape, right: Shape, _output: Shape, attributes: Mapping[str, Any]) -> int | None:
    """Count one for each combination of all indices; None for other than two operands with an index for each side."""
    equation: str = attributes["equation"].s.decode()
    operands = equation.replace(" ", "").split("->")[0].split(",")
    if len(operands) != 2 or [len(operand) for operand in operands] != [len(left), len(right)]:
        return None
    return math.prod(
        {**dict(zip(operands[0], left, strict=True)), **dict(zip(operands[1], right, strict=True))}.values()
    )


_PRODUCTS: dict[str, Callable[[Shape, Shape, Shape, Mapping[str, Any]], int | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
}

"""Multiply-accumulates (MACs) counted while a network runs, by two counters that look at it in different ways.

fvcore reads a trace of the network; ptflops (`aten`) sees every operator that is dispatched. What hides from one of
them shows as a disagreement or among the uncounted operators. One fused multiply-add is one; adding a bias is none.
Both count convolutions, linear maps, matrix products and attention, and nothing else: fvcore's own handles for norms,
pooling and grid_sample, and the bias additions of ptflops, are left out.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fvcore.nn.jit_analysis import JitModelAnalysis
from fvcore.nn.jit_handles import (
    addmm_flop_jit,
    conv_flop_count,
    conv_flop_jit,
    einsum_flop_jit,
    get_shape,
    linear_flop_jit,
)
from ptflops.aten_engine import FlopCounterMode
from ptflops.aten_ops import conv_flop_count as ptflops_conv_flop_count
from torch import Tensor, nn

from harness.core.configs import BicubicConfig, CAMixerSRConfig, SwinIRConfig
from harness.core.records import MacsRecord
from harness.profiling.closed_form import canonical_macs
from harness.profiling.network_state import preserved_training_state, written_out

AGREEMENT = 0.01  # counters further apart than this do not agree

# Operators that move or describe data and compute nothing: not worth a line among the uncounted.
# fmt: off
_MOVEMENT = {
    "alias", "broadcast_to", "clone", "concat", "detach_", "empty_like", "expand_as", "fill_", "flip",
    "index_copy", "index_copy_", "index_fill", "index_put", "index_select", "is_nonzero", "item", "lift_fresh",
    "linspace", "meshgrid", "movedim", "moveaxis", "mT", "new_ones", "numel", "ones_like", "pad", "pixel_shuffle",
    "pixel_unshuffle", "reflection_pad2d", "repeat", "repeat_interleave", "replication_pad2d", "reshape_as",
    "scalar_tensor", "scatter", "scatter_", "squeeze_", "swapaxes", "take_along_dim", "tensor_split", "tile",
    "transpose_", "unflatten", "unfold", "view_as", "where", "zero_",
}
# Operators that compute and that need a look at each occurrence: fvcore passes over the first line without a word, and
# the others also reckon sizes in a trace (height // window), which is no arithmetic of the network.
_NOTED = (
    "clamp", "clamp_", "relu", "relu_", "max", "floor", "ge", "gt", "eq",
    "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "neg", "pow", "reciprocal",
    "floor_divide", "remainder", "lt", "le", "ne",
)
# fmt: on


def count_macs(
    network: nn.Module,
    input_BCHW: Tensor,
    *,
    config: CAMixerSRConfig | SwinIRConfig | BicubicConfig | None = None,
    attention_share: float | Sequence[float] | None = None,
) -> MacsRecord:
    """Count the MACs of one forward pass of `network` in eval mode on `input_BCHW`, with each counter.

    `macs` is fvcore's count. With a `config` the closed form stands beside the counters (`attention_share`: the
    realised share, needed where routing depends on the image). `max_disagreement` is (largest − smallest) / largest.
    `uncounted` holds the computing operators of the trace without a handle, and how often each occurs.
    The network runs twice, one of ours operator by operator (`SRNetwork.is_literal`), and is left as it was: training
    flags, hooks, gradients.
    """
    with preserved_training_state(network), written_out(network), torch.no_grad():
        network.eval()
        traced, uncounted = _count_with_fvcore(network, input_BCHW)
        by_counter = {"fvcore": traced, "ptflops": _count_with_ptflops(network, input_BCHW)}
    batch_size, _, height, width = input_BCHW.shape
    if config is not None:
        by_counter["closed_form"] = canonical_macs(
            config, (height, width), attention_share=attention_share, batch_size=batch_size
        )
    largest = max(by_counter.values())
    disagreement = (largest - min(by_counter.values())) / largest if largest else 0.0
    return MacsRecord(
        macs=traced,
        by_counter=by_counter,
        agree=disagreement <= AGREEMENT,
        max_disagreement=disagreement,
        uncounted=uncounted,
        input_size=(height, width),
        batch_size=batch_size,
    )


def _count_with_fvcore(network: nn.Module, input_BCHW: Tensor) -> tuple[int, dict[str, int]]:
    """Return the MACs in the trace, and the computing operators without a handle."""
    noted: Counter[str] = Counter()

    def note(operator: str) -> Callable[[Any, Any], int]:
        def handle(_inputs: Any, outputs: Any) -> int:
            noted[operator] += get_shape(outputs[0]) != []  # a size in the trace is a tensor without dimensions
            return 0

        return handle

    analysis = JitModelAnalysis(network, input_BCHW)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle(**_FVCORE_HANDLES, **{f"aten::{name}": note(f"aten::{name}") for name in _NOTED})
    macs = int(analysis.total())
    found = Counter(analysis.unsupported_ops()) + noted
    return macs, {name: times for name, times in sorted(found.items()) if name.removeprefix("aten::") not in _MOVEMENT}


def _count_with_ptflops(network: nn.Module, input_BCHW: Tensor) -> int:
    """Return the MACs of the dispatched operators.

    The counting mode of ptflops is used by itself: its front end prints, leaves hooks on the network and turns an error
    into None.
    """
    # Without a module the mode registers no hooks; under no_grad compound operators arrive taken apart.
    counter = FlopCounterMode(output_params={"print_params": {}}, custom_hooks=_PTFLOPS_HANDLES)
    with counter:
        network(input_BCHW)
    return int(counter.complexity)


def _attention_macs(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Count softmax(q kᵀ) v: shapes (…, heads, L, E), (…, heads of k, S, E), (…, heads of v, S, Ev)."""
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _product_macs(left: Sequence[int], output: Sequence[int]) -> int:
    """Count a matrix product (broadcast or not): each output element takes as many MACs as a row of `left` is long."""
    return math.prod(output) * left[-1]


def _einsum_macs(inputs: Any, outputs: Any) -> Any:
    """Count an einsum of two operands as one for each combination of all indices; others as fvcore does."""
    equation = inputs[0].toIValue().replace(" ", "")
    operands = equation.split("->")[0].split(",")
    if len(operands) != 2 or "." in equation:
        return einsum_flop_jit(inputs, outputs)
    sizes: dict[str, int] = {}
    for indices, value in zip(operands, inputs[1].node().inputs(), strict=True):
        sizes.update(zip(indices, get_shape(value), strict=True))
    return math.prod(sizes.values())


def _traced_convolution_macs(inputs: Any, outputs: Any) -> int:
    """Count a convolution whose padding is given by name ('same', 'valid')."""
    return int(conv_flop_count(get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0])))


def _traced_product(inputs: Any, outputs: Any) -> int:
    return _product_macs(get_shape(inputs[0]), get_shape(outputs[0]))


_FVCORE_HANDLES: dict[str, Callable[[Any, Any], Any]] = {
    "aten::_convolution": conv_flop_jit,
    "aten::_convolution_mode": _traced_convolution_macs,
    "aten::linear": linear_flop_jit,
    "aten::addmm": addmm_flop_jit,
    "aten::mm": _traced_product,
    "aten::bmm": _traced_product,
    "aten::mv": _traced_product,
    "aten::dot": _traced_product,
    "aten::matmul": _traced_product,
    "aten::baddbmm": lambda inputs, outputs: _product_macs(get_shape(inputs[1]), get_shape(outputs[0])),
    "aten::einsum": _einsum_macs,
    "aten::scaled_dot_product_attention": lambda inputs, _: _attention_macs(*(get_shape(v) for v in inputs[:3])),
}


def _dispatched_convolution_macs(inputs: Any, outputs: Any) -> int:
    # ptflops' own handle adds one for each output element where there is a bias.
    image, weight, transposed = inputs[0], inputs[1], inputs[6]
    return int(ptflops_conv_flop_count(image.shape, weight.shape, outputs[0].shape, transposed=transposed, bias=False))


def _dispatched_product(inputs: Any, outputs: Any) -> int:
    return _product_macs(inputs[0].shape, outputs[0].shape)


def _dispatched_sum_and_product(inputs: Any, outputs: Any) -> int:
    return _product_macs(inputs[1].shape, outputs[0].shape)


def _dispatched_attention(inputs: Any, _outputs: Any) -> int:
    return _attention_macs(*(value.shape for value in inputs[:3]))


_PTFLOPS_HANDLES: dict[Any, Callable[[Any, Any], int]] = {
    torch.ops.aten.convolution: _dispatched_convolution_macs,
    torch.ops.aten.mm: _dispatched_product,
    torch.ops.aten.bmm: _dispatched_product,
    torch.ops.aten.mv: _dispatched_product,
    torch.ops.aten.dot: _dispatched_product,
    torch.ops.aten.addmm: _dispatched_sum_and_product,
    torch.ops.aten.baddbmm: _dispatched_sum_and_product,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _dispatched_attention,
    torch.ops.aten._scaled_dot_product_flash_attention: _dispatched_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention: _dispatched_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention: _dispatched_attention,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _dispatched_attention,
}

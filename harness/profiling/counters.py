"""Multiply-accumulates (MACs) counted while a network runs, by three counters, and by module.

fvcore reads a trace of the network; ptflops (`aten` engine) and PyTorch's `FlopCounterMode` see every operator that is
dispatched, each by formulas of its own. What hides from one of them shows as a disagreement or among the uncounted
operators. One fused multiply-add is one; adding a bias is none. All count convolutions, linear maps, matrix products
and attention, and nothing else: fvcore's own handles for norms, pooling and grid_sample, and the bias additions of
ptflops, are left out; attention, and products of matrices and vectors, are added where a counter lacks them. Reading at
positions (grid_sample, gather, scatter) is no multiply-accumulate: it is listed among the uncounted where it computes.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from ptflops.aten_engine import FlopCounterMode as PtflopsCounterMode
from ptflops.aten_ops import conv_flop_count as ptflops_conv_flop_count
from torch import Tensor, nn
from torch.export.unflatten import InterpreterModule
from torch.utils.flop_counter import FlopCounterMode

from harness.core.configs import AnyModelConfig, CustomConfig
from harness.core.errors import UserError, describe_error
from harness.core.records import CounterGap, MacsRecord, ModuleRecord, OperationsRecord, UncountedOperator
from harness.models.custom import CustomNetwork
from harness.profiling.closed_form import canonical_activations, canonical_macs
from harness.profiling.network_state import preserved_hooks, preserved_training_state, written_out
from harness.profiling.operators import OperatorLog

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
# Operators of PyTorch that are one node in a trace and made of products when they run.
_COMPOUND = {
    "addbmm",
    "addmv",
    "addr",
    "bilinear",
    "cdist",
    "chain_matmul",
    "conv_tbc",
    "gru",
    "gru_cell",
    "inner",
    "kron",
    "linalg_multi_dot",
    "lstm",
    "lstm_cell",
    "multi_head_attention_forward",
    "outer",
    "rnn_relu",
    "rnn_relu_cell",
    "rnn_tanh",
    "rnn_tanh_cell",
    "tensordot",
}  # fmt: skip


@dataclass(frozen=True)
class _Trace:
    """What fvcore read in a trace: MACs by module (with those inside), operators without a count, hiding ones."""

    by_module: Mapping[str, int]
    uncounted: dict[str, int]
    hiding: Mapping[str, tuple[str, ...]]  # by module, without those inside


def count_macs(
    network: nn.Module,
    input_BCHW: Tensor,
    *,
    config: AnyModelConfig | None = None,
    attention_share: float | Sequence[float] | None = None,
) -> MacsRecord:
    """Count the MACs of one forward pass as `count_operations` does, and return the counts alone."""
    record = count_operations(network, input_BCHW, config=config, attention_share=attention_share)
    return MacsRecord(**{name: getattr(record, name) for name in MacsRecord.model_fields})


def count_operations(
    network: nn.Module,
    input_BCHW: Tensor,
    *,
    config: AnyModelConfig | None = None,
    attention_share: float | Sequence[float] | None = None,
) -> OperationsRecord:
    """Count the operations of one forward pass of `network` in eval mode on `input_BCHW`, with each counter.

    With a `config` the closed form stands beside the counters (`attention_share`: the realised share, needed where
    routing depends on the image), and activations are those of the network as its paper writes it; in the tree they are
    those of the convolutions that ran. `max_disagreement` is (largest − smallest) / largest; where it is more than
    `AGREEMENT`, `gaps` holds the modules that it comes from.
    The network runs twice, one of ours operator by operator (`SRNetwork.is_literal`), and is left as it was: training
    flags, hooks, gradients. TorchScript cannot be traced with names, so fvcore leaves it out.
    Raises `UserError` where the network cannot run under any counter, and for TorchScript that was optimised, which
    runs operators that no counter is told of.
    """
    _refuse_optimised(network)
    missing: dict[str, str] = {}
    with preserved_training_state(network), written_out(network), _without_fast_paths(), torch.no_grad():
        if hasattr(network, "training"):
            network.eval()
        trace = _try_fvcore(network, input_BCHW, missing)
        log, dispatched = _count_dispatched(network, input_BCHW, missing)
    by_counter = {**({} if trace is None else {"fvcore": trace.by_module[""]}), **dispatched}
    macs = max(by_counter.values())
    modules = _build_tree(network, trace, log, tuple(dispatched))
    batch_size, _, height, width = input_BCHW.shape
    activations = modules[0].activations
    if config is not None:
        by_counter["closed_form"] = canonical_macs(
            config, (height, width), attention_share=attention_share, batch_size=batch_size
        )
        activations = canonical_activations(config, (height, width), batch_size=batch_size)
    largest = max(by_counter.values())
    disagreement = (largest - min(by_counter.values())) / largest if largest else 0.0
    agree = disagreement <= AGREEMENT
    return OperationsRecord(
        macs=macs,
        by_counter=by_counter,
        agree=agree,
        max_disagreement=disagreement,
        uncounted={} if trace is None else trace.uncounted,
        input_size=(height, width),
        batch_size=batch_size,
        params=modules[0].params,
        activations=activations,
        modules=modules,
        operators=_list_uncounted(trace, log, macs, tuple(by_counter)),
        gaps=() if agree else _find_gaps(modules, trace, log, by_counter),
        missing=missing,
    )


class Counts(NamedTuple):
    """What a network of a user's costs for one image: MACs, output elements of convolutions, trainable parameters."""

    macs: int
    activations: int
    params: int


def try_custom(config: AnyModelConfig) -> None:
    """Build a user's network and restore images of two sizes by it; `UserError` where that fails."""
    assert isinstance(config, CustomConfig)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = CustomNetwork(config).eval()
        for height, width in ((32, 32), (33, 43)):
            try:
                network(torch.zeros(1, 3, height, width))
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"{config.label()} fails on an image of {height}×{width} pixels: {describe_error(error)}; expected "
                    "a network for B×3×h×w of any height and width, or of multiples of the setting `multiple_of`"
                ) from None


def count_custom(config: CustomConfig, input_size: tuple[int, int] | None) -> Counts:
    """Build a user's network and count its operations for one image of (height, width); None: parameters alone.

    It runs on the device `meta`, which computes nothing, where it can. Raises `UserError` where it cannot be built or
    run, and where the counters differ by more than `AGREEMENT` for reasons that no listed operator explains.
    """
    with torch.random.fork_rng(devices=[]):
        network = CustomNetwork(config).eval()
    params = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    if input_size is None:
        return Counts(0, 0, params)
    try:
        record = count_operations(network.to("meta"), torch.empty(1, 3, *input_size, device="meta"), config=None)
    except Exception:  # a network that makes tensors of its own on the CPU, say
        network = CustomNetwork(config).eval()
        record = count_operations(network, torch.zeros(1, 3, *input_size), config=None)
    unexplained = [gap.path or gap.type for gap in record.gaps if not gap.explained_by]
    if unexplained:
        raise UserError(
            f"{config.label()}: counters of its MACs differ by {record.max_disagreement:.1%}, in "
            f"{', '.join(unexplained[:3])}; `harness profile {config.factory}` says more"
        )
    return Counts(record.macs, record.activations, params)


def _refuse_optimised(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, torch.jit.ScriptModule) and "prim::mkldnn" in str(getattr(module, "inlined_graph", "")):
            raise UserError(
                "no counter sees what torch.jit.optimize_for_inference puts in place of convolutions; "
                "give the network as it was before"
            )


@contextlib.contextmanager
def _without_fast_paths() -> Iterator[None]:
    """Keep `nn.MultiheadAttention` from its fused operator, which no counter knows and a trace does not have."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _try_fvcore(network: nn.Module, input_BCHW: Tensor, missing: dict[str, str]) -> _Trace | None:
    """Return the trace; None, and why in `missing`, where the network cannot be traced."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        missing["fvcore"] = "TorchScript takes no hooks, so its trace has no names of modules"
        return None
    try:
        with preserved_hooks(network):  # fvcore leaves its own where tracing fails
            return _count_with_fvcore(network, input_BCHW)
    except Exception as error:  # whatever the network does with the values that a trace has none of
        missing["fvcore"] = f"the network cannot be traced: {describe_error(error)}"
        return None


def _count_with_fvcore(network: nn.Module, input_BCHW: Tensor) -> _Trace:
    noted: Counter[str] = Counter()

    def note(operator: str) -> Callable[[Any, Any], int]:
        def handle(_inputs: Any, outputs: Any) -> int:
            noted[operator] += get_shape(outputs[0]) != []  # a size in the trace is a tensor without dimensions
            return 0

        return handle

    analysis = JitModelAnalysis(network, input_BCHW)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle(**_FVCORE_HANDLES, **{f"aten::{name}": note(f"aten::{name}") for name in _NOTED})
    by_module = {path: int(macs) for path, macs in analysis.by_module().items()}
    found = Counter(analysis.unsupported_ops()) + noted
    return _Trace(
        by_module={"": 0, **by_module},
        uncounted={
            name: times for name, times in sorted(found.items()) if name.removeprefix("aten::") not in _MOVEMENT
        },
        hiding=_find_hiding(network, analysis),
    )


def _find_hiding(network: nn.Module, analysis: JitModelAnalysis) -> dict[str, tuple[str, ...]]:
    """Return by module, without those inside, the operators of the trace that may hold MACs that it does not show."""
    paths = [path for path, _ in network.named_modules()]
    inside = {path: Counter(analysis.unsupported_ops(path)) for path in paths}
    hiding = {}
    for path, children in _children(paths).items():
        own = inside[path] - sum((inside[child] for child in children), Counter())
        hiding[path] = tuple(sorted(name for name in own if _may_hide(name)))
    return hiding


def _may_hide(operator: str) -> bool:
    namespace, _, name = operator.partition("::")
    return name in _COMPOUND if namespace == "aten" else operator.startswith("prim::PythonOp") or namespace != "prim"


def _count_dispatched(
    network: nn.Module, input_BCHW: Tensor, missing: dict[str, str]
) -> tuple[OperatorLog, dict[str, int]]:
    """Run the network once under both dispatching counters; without the one of PyTorch where it cannot run."""
    try:
        return _run_dispatched(network, input_BCHW, with_torch=True)
    except Exception as error:
        reason = describe_error(error)
    try:
        counted = _run_dispatched(network, input_BCHW, with_torch=False)
    except Exception as error:
        raise UserError(f"the network cannot run under a counter: {describe_error(error)}") from None
    missing["torch"] = reason
    return counted


def _run_dispatched(network: nn.Module, input_BCHW: Tensor, *, with_torch: bool) -> tuple[OperatorLog, dict[str, int]]:
    """Return the log of one run, and the MACs of each counter.

    The counting mode of ptflops is used by itself: its front end prints, leaves hooks on the network and turns an error
    into None. Without a module it registers no hooks; under no_grad compound operators arrive taken apart.
    """
    by_ptflops = PtflopsCounterMode(output_params={"print_params": {}}, custom_hooks=_PTFLOPS_HANDLES)
    by_torch = FlopCounterMode(display=False, custom_mapping=_TORCH_HANDLES)

    def read() -> dict[str, int]:
        counts = {"ptflops": int(sum(by_ptflops.flop_counts["Global"].values()))}
        return {**counts, "torch": by_torch.get_total_flops() // 2} if with_torch else counts

    log = OperatorLog(read, lambda func: with_torch and func._overloadpacket in by_torch.flop_registry)
    with by_ptflops, by_torch if with_torch else contextlib.nullcontext(), log, log.following(network):
        network(input_BCHW)
    return log, read()


def _build_tree(
    network: nn.Module, trace: _Trace | None, log: OperatorLog, dispatching: tuple[str, ...]
) -> tuple[ModuleRecord, ...]:
    """Return every module, each with those inside it, the network first; TorchScript tells nothing of those inside."""
    records = []
    scripted = [path for path, module in network.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    for path, module in network.named_modules():
        if any(path != other and _is_inside(path, other) for other in scripted):
            continue
        inside = [totals for name, totals in log.by_module.items() if _is_inside(name, path)]
        macs = {} if trace is None else {"fvcore": trace.by_module.get(path, 0)}
        macs.update({counter: sum(totals.macs[counter] for totals in inside) for counter in dispatching})
        records.append(
            ModuleRecord(
                path=path,
                type=_type_of(module),
                macs=max(macs.values()),
                macs_by_counter=macs,
                params=sum(parameter.numel() for parameter in module.parameters()),
                activations=sum(totals.activations for totals in inside),
            )
        )
    return tuple(records)


def _find_gaps(
    modules: Sequence[ModuleRecord], trace: _Trace | None, log: OperatorLog, by_counter: Mapping[str, int]
) -> tuple[CounterGap, ...]:
    """Return the modules in which counters differ by themselves, largest first; a closed form's is the network's."""
    by_path = {module.path: module for module in modules}
    gaps = []
    for path, children in _children(by_path).items():
        module = by_path[path]
        own = dict(module.macs_by_counter)
        for child in children:
            for counter, macs in by_path[child].macs_by_counter.items():
                own[counter] -= macs
        hiding = () if trace is None else trace.hiding.get(path, ())
        explained_by = tuple(sorted({*hiding, *log.by_module[path].opaque, *log.by_module[path].looked_into}))
        gaps.append(CounterGap(path=path, type=module.type, macs_by_counter=own, explained_by=explained_by))
    counted = max(macs for name, macs in by_counter.items() if name != "closed_form")
    if "closed_form" in by_counter:
        both = {"closed_form": by_counter["closed_form"], "counters": counted}
        gaps.append(CounterGap(path="", type=modules[0].type, macs_by_counter=both))
    return tuple(sorted((gap for gap in gaps if gap.size), key=lambda gap: -gap.size))


def _list_uncounted(
    trace: _Trace | None, log: OperatorLog, macs: int, counters: tuple[str, ...]
) -> tuple[UncountedOperator, ...]:
    """List what adds nothing to the MACs: first what counters cannot look into, then the largest share first."""
    elements = sum((totals.elements for totals in log.by_module.values()), Counter())
    whole = macs + elements.total()
    opaque = sum((totals.opaque for totals in log.by_module.values()), Counter())
    names = {name for names in (trace.hiding.values() if trace else ()) for name in names} - opaque.keys()
    listed = [
        UncountedOperator(
            operator=name,
            times=opaque[name] or (trace.uncounted.get(name, 0) if trace else 0),
            share=None,
            hidden_from=counters if name in opaque else ("fvcore",),
            modules=tuple(
                sorted(
                    {path for path, totals in log.by_module.items() if name in totals.opaque}
                    | {path for path, hiding in (trace.hiding.items() if trace else ()) if name in hiding}
                )
            ),
        )
        for name in sorted({*opaque, *names})
    ]
    for name, count in elements.most_common():
        times = sum(totals.times[name] for totals in log.by_module.values())
        modules = tuple(path for path, totals in log.by_module.items() if totals.times[name])
        listed.append(UncountedOperator(operator=name, times=times, share=count / whole, modules=modules))
    return tuple(listed)


def _type_of(module: nn.Module) -> str:
    """Return the class of a module, of a loaded one that of the module that was written."""
    if isinstance(module, InterpreterModule):
        name = module.type_name()
        return name.rpartition(".")[2] if name else "Module"
    return str(getattr(module, "original_name", type(module).__name__))


def _is_inside(path: str, parent: str) -> bool:
    return not parent or path == parent or path.startswith(f"{parent}.")


def _children(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the modules directly inside each module, by path."""
    children: dict[str, list[str]] = {path: [] for path in paths}
    for path in children:
        if path:
            children[path.rpartition(".")[0]].append(path)
    return children


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


def _recurrent_macs(input_TBC: Sequence[int], *weights: Sequence[int]) -> int:
    """Count a recurrent layer: both of its matrices (gates·H × C and gates·H × H) at each of T steps."""
    return math.prod(input_TBC[:2]) * sum(math.prod(weight) for weight in weights)


def _dispatched_recurrent(inputs: Any, _outputs: Any) -> int:
    return _recurrent_macs(*(value.shape for value in inputs[:3]))


_PTFLOPS_HANDLES: dict[Any, Callable[[Any, Any], int]] = {
    torch.ops.aten.convolution: _dispatched_convolution_macs,
    torch.ops.aten._convolution: _dispatched_convolution_macs,  # as TorchScript runs a traced convolution
    torch.ops.aten.convolution_overrideable: _dispatched_convolution_macs,
    torch.ops.aten.cudnn_convolution: _dispatched_convolution_macs,
    torch.ops.aten.mm: _dispatched_product,
    torch.ops.aten.bmm: _dispatched_product,
    torch.ops.aten.mv: _dispatched_product,
    torch.ops.aten.dot: _dispatched_product,
    torch.ops.aten.addmm: _dispatched_sum_and_product,
    torch.ops.aten.baddbmm: _dispatched_sum_and_product,
    torch.ops.aten.mkldnn_rnn_layer: _dispatched_recurrent,  # a direction of a layer of an LSTM
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _dispatched_attention,
    torch.ops.aten._scaled_dot_product_flash_attention: _dispatched_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention: _dispatched_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention: _dispatched_attention,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _dispatched_attention,
}


def _torch_product(left: Sequence[int], _right: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * _product_macs(left, out_shape)


def _torch_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _attention_macs(query, key, value)


def _torch_recurrent(steps: Sequence[int], inner: Sequence[int], recurrent: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _recurrent_macs(steps, inner, recurrent)


# What PyTorch's counter lacks; it counts 2 for each MAC.
_TORCH_HANDLES: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _torch_product,
    torch.ops.aten.dot: _torch_product,
    torch.ops.aten.mkldnn_rnn_layer: _torch_recurrent,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _torch_attention,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _torch_attention,
}

"""Every operator that a network dispatches: in which module, over how many elements, and what the counters make of it.

PyTorch's dispatcher hands each operator to the modes in force, compound ones taken apart. `OperatorLog` is such a mode;
it looks into operators of others (`torch.library`) too: their CPU kernel runs with all modes in force, so that counters
see the operators of PyTorch inside. What a kernel computes by other means stays unseen; such operators are opaque.
In case of doubt they are: one that ends by copying its result is taken for opaque unless MACs were found inside.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that move or describe data and compute nothing.
# fmt: off
_MOVEMENT = {
    "_conj", "_empty_affine_quantized", "_empty_per_channel_affine_quantized", "_local_scalar_dense", "_pin_memory",
    "_reshape_alias", "_reshape_copy", "_to_copy", "_to_dense", "_unsafe_view", "alias", "arange", "as_strided",
    "broadcast_to", "cat", "channel_shuffle", "clone", "constant_pad_nd", "contiguous", "copy", "copy_", "detach",
    "detach_", "diagonal", "empty", "empty_like", "empty_strided", "equal", "expand", "eye", "fill", "fill_",
    "flip", "full", "full_like", "gather", "index", "index_copy", "index_copy_", "index_fill", "index_put",
    "index_put_", "index_select", "int_repr", "is_nonzero", "item", "lift", "lift_fresh", "linspace", "masked_fill",
    "masked_fill_", "narrow", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "nonzero",
    "ones", "ones_like", "permute", "pixel_shuffle", "pixel_unshuffle", "q_scale", "q_zero_point", "qscheme",
    "rand", "randn", "reflection_pad1d", "reflection_pad2d", "repeat", "replication_pad1d", "replication_pad2d",
    "reshape", "resolve_conj", "resolve_neg", "roll", "scalar_tensor", "scatter", "scatter_", "select",
    "select_scatter", "set_", "slice", "slice_scatter", "split", "split_with_sizes", "squeeze", "squeeze_", "stack",
    "sym_numel", "sym_size", "sym_stride", "t", "t_", "to", "to_dense", "to_mkldnn", "transpose", "transpose_",
    "tril", "triu", "unbind", "unfold", "unsafe_split", "unsqueeze", "unsqueeze_", "upsample_nearest2d", "view",
    "view_as", "view_as_complex", "view_as_real", "where", "zero_", "zeros", "zeros_like",
}
# fmt: on
_CONVOLUTIONS = {"_convolution", "convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution"}
# Operators of PyTorch whose work is not in proportion to their elements, and the beginnings of the names of more.
_UNKNOWN = {"_cdist_forward", "_cudnn_rnn", "_int_mm", "_trilinear", "cholesky", "convolution_backward"}
_UNKNOWN_BEGINNINGS = ("_fft_", "_linalg_", "linalg_", "mkldnn_", "_native_multi_head", "_transformer_encoder")
_PYTORCH = {"aten", "prim", "prims"}  # namespaces of PyTorch's own operators


@dataclass
class ModuleTotals:
    """What happened in one module, without the modules inside it. MACs by counter; activations as in NTIRE's ESR."""

    macs: Counter[str] = field(default_factory=Counter)
    activations: int = 0
    elements: Counter[str] = field(default_factory=Counter)  # of operators that no counter counts
    times: Counter[str] = field(default_factory=Counter)
    opaque: Counter[str] = field(default_factory=Counter)
    looked_into: set[str] = field(default_factory=set)  # operators of others in which MACs were found


class OperatorLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Log of the operators dispatched while it is in force, by the module that was called last.

    Enter it after the counters' modes: `read` returns the MACs that each has counted so far, and what an operator adds
    to them is its module's. `is_counted(operator)`: whether a counter has a formula for an operator of others.
    """

    def __init__(self, read: Callable[[], Mapping[str, int]], is_counted: Callable[[Any], bool]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._read, self._is_counted = read, is_counted
        self._path = [""]
        self._inside: list[str] = []  # operators of others that run now
        self._results: list[Tensor] = []  # what operators of PyTorch computed inside them, kept until they end
        self.by_module: defaultdict[str, ModuleTotals] = defaultdict(ModuleTotals)

    @contextlib.contextmanager
    def following(self, network: nn.Module) -> Iterator[None]:
        """Follow which module of the network runs; the hooks that tell are removed in the end."""
        handles = []
        for name, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks: what it runs is its parent's
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._path.append(name)))
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self._path.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "namespace", "aten") not in _PYTORCH and not self._is_counted(func):
            return self._look_into(func, args, kwargs)
        if self._inside:  # below the kernel of others, compound operators arrive whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        before = self._read()
        output = func(*args, **kwargs)
        added = {counter: macs - before[counter] for counter, macs in self._read().items()}
        self._note(func, added, args, output)
        return output

    def _look_into(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the kernel of an operator of others with every mode in force.

        It is opaque where no MACs were found inside and its result is not what an operator of PyTorch computed there.
        """
        before = self._read()
        name = f"{func.namespace}::{func._opname}"
        self._inside.append(name)
        try:
            with self:
                output = func.redispatch(torch._C.DispatchKeySet(_kernel_key(args, kwargs)), *args, **kwargs)
        except RuntimeError:  # its kernel has another key; an error of its own comes again
            output = func(*args, **kwargs)
        finally:
            self._inside.pop()
        seen = {tensor.data_ptr() for tensor in self._results}
        results = [leaf.data_ptr() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if self._read() == before and (not results or not seen.issuperset(results)):
            self.by_module[self._path[-1]].opaque[name] += 1
        if not self._inside:
            self._results.clear()
        return output

    def _note(self, func: Any, added: Mapping[str, int], args: Any, output: Any) -> None:
        totals = self.by_module[self._path[-1]]
        namespace, name = getattr(func, "namespace", "higher_order"), getattr(func, "_opname", str(func))
        totals.macs.update({counter: macs for counter, macs in added.items() if macs})
        if any(added.values()):
            totals.looked_into.update(self._inside)
        if name in _CONVOLUTIONS:
            totals.activations += output.numel() if output.dim() == 4 else 0
        if name in _MOVEMENT and "reduce" not in getattr(func, "_overloadname", ""):  # scatter can add, too
            return
        if self._inside:
            self._results += [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if any(added.values()):
            return
        if name in _UNKNOWN or name.startswith(_UNKNOWN_BEGINNINGS):
            totals.opaque[f"{namespace}::{name}"] += 1
        else:
            totals.times[f"{namespace}::{name}"] += 1
            totals.elements[f"{namespace}::{name}"] += max(_elements(args), _elements(output))


def _kernel_key(args: Any, kwargs: Any) -> torch._C.DispatchKey:
    """Return the key of the kernel that an operator on these tensors has: that of the first one's backend."""
    first = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
    if first is None:
        return torch._C.DispatchKey.CPU
    if first.is_quantized:
        return torch._C.DispatchKey.QuantizedCPU
    return torch._C.DispatchKey.CUDA if first.is_cuda else torch._C.DispatchKey.CPU


def _elements(values: Any) -> int:
    """Return the elements of the largest tensor."""
    return max((leaf.numel() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)), default=0)

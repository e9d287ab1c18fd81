"""Feature maps as the kernels read them, and convolutions of them."""

import contextlib
import ctypes
import math
import mmap
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from harness.models import kernels
from harness.models.components import COMPONENTS, divide, is_listening, part_of
from harness.models.kernels import Kernels
from harness.models.network import SRNetwork

_MARGIN = 16  # zeros before and behind the columns of a line
_SLACK = 64  # floats behind a map
_LARGE_BYTES = 1 << 22
_KEPT_BYTES = 1 << 28  # of maps that are kept for the next pass
_LEAST_VALUES = 1 << 16  # of a map for each thread: fewer, and starting threads takes longer than they save
_DTYPES = (torch.float32, torch.bfloat16)
_READ_MODULES = frozenset((nn.Linear, nn.Conv2d, nn.LayerNorm, nn.LeakyReLU, nn.Sequential, nn.ModuleList))
_OURS = __name__.partition(".fused")[0]


def suits(network: SRNetwork, input_BCHW: Tensor) -> bool:
    """Say whether inference may run by kernels: on a CPU, without gradients, no tracer, counter or hook looking on."""
    return (
        type(input_BCHW) is Tensor
        and input_BCHW.device.type == "cpu"
        and input_BCHW.shape[1:2] == (3,)
        and not network.training
        and not network.is_literal
        and (network.features is None or working_dtype(input_BCHW) == torch.float32)
        and not torch.is_grad_enabled()
        and input_BCHW.dtype in _DTYPES
        and working_dtype(input_BCHW) in _DTYPES
        and _is_unseen(network)
    )


def trains(network: SRNetwork, features_BHWC: Tensor) -> bool:
    """Say whether training may run kernels: in float32 on a CPU, no tracer, counter or hook looking on."""
    return (
        type(features_BHWC) is Tensor
        and features_BHWC.device.type == "cpu"
        and network.training
        and features_BHWC.dtype == torch.float32
        and working_dtype(features_BHWC) == torch.float32
        and all(
            type(one) is nn.Parameter and one.dtype == torch.float32 and one.device.type == "cpu"
            for one in network.parameters()
        )
        and _is_unseen(network)
    )


def _is_unseen(network: SRNetwork) -> bool:
    """Say whether nobody looks on, who would see nothing of what kernels do, and whether there are kernels."""
    return (
        _get_current_dispatch_mode() is None
        and not torch._C._len_torch_function_stack()
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.compiler.is_compiling()
        and kernels.load() is not None
        and not any(_is_seen(module) for module in network.modules())
    )


def _is_seen(module: nn.Module) -> bool:
    """Say whether a module has to be called: it has hooks, or is one that kernels know nothing of."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    if "forward" in vars(module):
        return True
    kind = type(module)
    return kind not in _READ_MODULES and not kind.__module__.startswith(_OURS)


def working_dtype(input_BCHW: Tensor) -> torch.dtype:
    """Return the dtype of products: the input's, or that of autocast."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return input_BCHW.dtype


def compiled() -> Kernels:
    """Return the kernels, which `suits` has found to be there."""
    loaded = kernels.load()
    assert loaded is not None
    return loaded


def threads_for(shape: tuple[int, ...]) -> int:
    """Return how many of torch's threads are worth starting for maps of a shape."""
    return min(torch.get_num_threads(), max(1, math.prod(shape) // _LEAST_VALUES))


def structure(name: str, **fields: str) -> type[Any]:
    """Return a structure of the kernels' sources: its fields by C type, in order, names separated by spaces."""
    types = {"integers": ctypes.c_int64, "numbers": ctypes.c_float, "pointers": ctypes.c_void_p}
    described = [(field, types[kind.rstrip("_")]) for kind, names in fields.items() for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": described})


def as_floats(parameter: Tensor | None) -> Tensor:
    """Return a parameter as the kernels read it, by its address."""
    assert parameter is not None
    if parameter.device.type != "cpu":
        raise RuntimeError(f"the network's parameters are on {parameter.device}, the images on cpu; move one of them")
    return parameter.detach().to(torch.float32).contiguous()


def allocate(count: int) -> Tensor:
    """Return so many zeros in float32; large ones on huge pages where the system grants them.

    Maps are read line by line, each of them on a page of its own or nearly so.
    """
    if count * 4 < _LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(count)
    try:
        memory = mmap.mmap(-1, count * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a system without them, or without so much memory, of which torch then speaks
        return torch.zeros(count)
    return torch.frombuffer(memory, dtype=torch.float32, count=count)


class Map:
    """Features as lines of columns (maps.h): B×H×C×pitch with zeros in the margins.

    float32, or cells: what products of a precision read, with `is_half` two channels of bfloat16 in a word.
    """

    def __init__(self, images: int, height: int, channels: int, width: int, *, is_half: bool = False):
        self.shape = images, height, channels, width
        self.is_half = is_half
        self.pitch = _MARGIN + -(-width // 16) * 16 + _MARGIN
        lines = -(-channels // 2) if is_half else channels
        self.data = allocate(images * height * lines * self.pitch + _SLACK)
        self.pointer = self.data.data_ptr()

    def nchw(self, channels: slice = slice(None)) -> Tensor:
        """View what lies between the margins as B×C×H×W; of float32 only."""
        assert not self.is_half
        B, H, C, W = self.shape
        lines_BHCS = self.data[:-_SLACK].view(B, H, C, self.pitch)
        return lines_BHCS[:, :, channels, _MARGIN : _MARGIN + W].permute(0, 2, 1, 3)

    def nhwc(self) -> Tensor:
        """Copy what lies between the margins as B×H×W×C; of float32 only."""
        return self.nchw().permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)


class Maps:
    """All maps of a pass; networks add theirs. Kept for the next pass of equal `key` unless they are large.

    They hold nothing that outlives a pass: the margins are zeros, everything else is written before it is read.
    """

    _kept: "list[Maps]" = []

    def __init__(self, key: tuple[int, ...]):
        self.key = key
        self.workspace = torch.empty(0)

    def reserve(self, num_bytes: int) -> int:
        """Return the address of a workspace of so many bytes."""
        if self.workspace.numel() < num_bytes + 64:
            self.workspace = torch.empty(num_bytes + 64, dtype=torch.uint8)
        return -(-self.workspace.data_ptr() // 64) * 64

    @classmethod
    def take(cls: "type[_Maps]", key: tuple[int, ...]) -> "_Maps":
        """Return the maps kept from the last pass if they are of this kind, new ones otherwise."""
        try:
            kept = Maps._kept.pop()
            if type(kept) is cls and kept.key == key:
                return kept
        except IndexError:
            pass
        with torch.inference_mode(False), torch.no_grad():  # the next pass may be outside of inference mode
            return cls(key)

    def give_back(self) -> None:
        """Keep these maps, and no others, for the next pass."""
        size = sum(value.data.nbytes for value in vars(self).values() if isinstance(value, Map | Tensor))
        if size <= _KEPT_BYTES:
            Maps._kept[:] = [self]


_Maps = TypeVar("_Maps", bound=Maps)

_Convolution = structure(
    "Convolution",
    integers=(
        "images height width inputs outputs threads half cells side output_channels scale image_height image_width"
    ),
    pointers="weight bias input residual output workspace",
    numbers="slope",
)


@contextlib.contextmanager
def divided(call: Any) -> Iterator[None]:
    """Tell a listener how the time of the kernel that is called in the block divides among components, if there is one.

    `call`: the kernel's structure.
    """
    ticks = (ctypes.c_int64 * len(COMPONENTS))()
    call.ticks = ctypes.addressof(ticks) if is_listening() else None
    try:
        yield
    finally:
        call.ticks = None
    if any(ticks):
        divide(list(ticks))


@part_of("convolution")
def convolve(
    conv: nn.Conv2d,
    source: Map,
    target: Map | Tensor,
    maps: Maps,
    *,
    is_half: bool,
    residual: Map | None = None,
    slope: float = 1.0,
    scale: int = 0,
) -> None:
    """Run a 3×3 or 1×1 convolution of a map and a LeakyReLU into the first channels of `target`, adding `residual`.

    The residual may be the target. With `scale` the target is the images, B×3×height×width, and the outputs are
    shuffled into their pixels.
    """
    B, H, C, W = source.shape
    assert is_half or not source.is_half
    weight = as_floats(conv.weight)
    bias = torch.zeros(len(weight)) if conv.bias is None else as_floats(conv.bias)
    call = _Convolution(
        images=B,
        height=H,
        width=W,
        inputs=C,
        outputs=len(weight),
        threads=threads_for(source.shape),
        half=is_half,
        cells=source.is_half,
        side=weight.shape[-1],
        scale=scale,
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        input=source.pointer,
        residual=None if residual is None else residual.pointer,
        slope=slope,
    )
    if isinstance(target, Map):
        call.output, call.output_channels = target.pointer, target.shape[2]
    else:
        call.output, call.output_channels = target.data_ptr(), target.shape[1]
        call.image_height, call.image_width = target.shape[2:]
    run("convolution", call, maps)


def run(name: str, call: Any, maps: Maps) -> None:
    """Run a kernel with the workspace that it asks for."""
    library = compiled()
    reference = ctypes.byref(call)
    measure = library.function(f"{name}_workspace", (ctypes.c_void_p,), ctypes.c_int64)
    call.workspace = maps.reserve(measure(reference))
    library.function(f"{name}_run", (ctypes.c_void_p,), ctypes.c_int)(reference)

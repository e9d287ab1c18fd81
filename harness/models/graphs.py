"""Inference on CUDA recorded as a graph and replayed: one launch instead of hundreds or thousands.

`replayed` wraps a network's `restore`. What a pass launches depends on the shape of its input, on the network's config
and on a few settings of torch, all of them in `PassKey`, as long as nothing in it waits for the device
(`SRNetwork.is_static`). Such a pass runs as it is the first time, is recorded the second time and replayed from then
on: shapes that never come again cost nothing. Replays read the parameters where they lie, and nothing derived from them
is kept: weights changed in place are those of the next pass. Weights put elsewhere (`.to`, another module,
`load_state_dict(assign=True)`) make all recordings of the network void. Hooks on modules run when a pass is recorded,
and not when it is replayed.

Never executed on CUDA: tests run what is Python here, and show that the passes neither wait for the device nor read
the host's memory.
"""

import contextlib
import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from harness.models.components import is_listening
from harness.models.network import Restoration, SRNetwork

_MOST_PASSES = 8  # remembered of one network
_MOST_PIXELS = 2**18  # of all inputs recorded of one network: each keeps a pass's memory, and large ones gain least

Pass = Callable[[Tensor], Restoration]
Restore = TypeVar("Restore", bound=Callable[..., Restoration])


class PassKey(NamedTuple):
    """All that the launches of a pass depend on, beside where the weights lie."""

    config: object
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    autocast: torch.dtype | None
    numerics: tuple[object, ...]

    @property
    def pixels(self) -> int:
        """Pixels of the batch."""
        return self.shape[0] * self.shape[-2] * self.shape[-1]


def key_of(network: SRNetwork, input_BCHW: Tensor) -> PassKey:
    """Return the key of a pass under the present settings."""
    kind = input_BCHW.device.type
    return PassKey(
        network.config,
        tuple(input_BCHW.shape),
        input_BCHW.dtype,
        input_BCHW.device,
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        (
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
            torch.backends.cudnn.enabled,
            torch.are_deterministic_algorithms_enabled(),
        ),
    )


def suits(network: SRNetwork, input_BCHW: Tensor) -> bool:
    """Say whether a pass may be recorded: inference on CUDA, the same work whatever the image, unseen by tracers."""
    return (
        input_BCHW.is_cuda
        and type(input_BCHW) is Tensor
        and not network.training
        and not network.is_literal
        and network.features is None
        and network.is_static
        and not torch.is_grad_enabled()
        and 0 < input_BCHW[:, 0].numel() <= _MOST_PIXELS
        and _get_current_dispatch_mode() is None
        and not is_listening()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.compiler.is_compiling()
        and not torch.cuda.is_current_stream_capturing()
    )


def replayed(restore: Restore) -> Restore:
    """Wrap the method `restore` of a network: passes that `suits` allows, without a map of importance, are replayed."""

    @functools.wraps(restore)
    def replay_or_restore(network: SRNetwork, input_BCHW: Tensor, **options: Any) -> Restoration:
        if options.get("importance_BHW") is not None or not suits(network, input_BCHW):
            return restore(network, input_BCHW, **options)
        recordings = _RECORDINGS.get(network)
        if recordings is None:
            recordings = _RECORDINGS[network] = Recordings(network)
        return recordings.restore(key_of(network, input_BCHW), functools.partial(restore, network), input_BCHW)

    return cast(Restore, replay_or_restore)


class Recording(Protocol):
    """A recorded pass."""

    def replay(self, input_BCHW: Tensor) -> Restoration:
        """Return what the pass gives for an input of the shape that it was recorded with, in memory of its own."""


class CudaRecording:
    """A pass as a CUDA graph, with the memory of its input, of all that lies between and of its output."""

    def __init__(self, run: Pass, input_BCHW: Tensor):
        device = input_BCHW.device
        with torch.cuda.device(device), torch.inference_mode(False), torch.no_grad(), _uncached_autocast():
            self._stream = torch.cuda.current_stream()
            self._input_BCHW = torch.empty(input_BCHW.shape, dtype=input_BCHW.dtype, device=device)
            self._input_BCHW.copy_(input_BCHW)
            self._graph = torch.cuda.CUDAGraph()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(self._stream)
            with torch.cuda.stream(side):
                run(self._input_BCHW)  # libraries set themselves up, which cannot be recorded
                with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                    self._output = run(self._input_BCHW)
            self._stream.wait_stream(side)

    def replay(self, input_BCHW: Tensor) -> Restoration:
        """Run the graph on the current stream, after what was run of it before; copy the result out."""
        stream = torch.cuda.current_stream(input_BCHW.device)
        if stream != self._stream:
            stream.wait_stream(self._stream)
            self._input_BCHW.record_stream(stream)
            self._stream = stream
        self._input_BCHW.copy_(input_BCHW)
        self._graph.replay()
        return Restoration(*(part.clone() for part in self._output))


class Recordings:
    """The passes of one network, recorded or seen once; the latest used come last.

    At most 8 are remembered, and inputs of 2¹⁸ pixels recorded in all; the least recently used go first. Where a pass
    cannot be recorded a warning says so, and none is from then on. Threads take turns, because a recording has one
    place for its input.
    """

    def __init__(self, network: SRNetwork, record: Callable[[Pass, Tensor], Recording] = CudaRecording):
        self._record = record
        self._weights = _Weights(network)
        self._passes: OrderedDict[PassKey, Recording | None] = OrderedDict()
        self._has_failed = False
        self._lock = threading.Lock()

    def recorded(self) -> list[PassKey]:
        """Return the keys of the recorded passes, the latest used last."""
        return [key for key, recording in self._passes.items() if recording is not None]

    def restore(self, key: PassKey, run: Pass, input_BCHW: Tensor) -> Restoration:
        """Return what `run` gives for the input, by a replay of the pass where there is or can be a recording."""
        with self._lock:
            recording = None if self._has_failed else self._recall(key, run, input_BCHW)
            if recording is not None:
                # Looking at the weights takes as long as a small network: the device meanwhile replays. Where they have
                # moved, it reads the old ones, which `_Weights` keeps, and the result is thrown away.
                restored = recording.replay(input_BCHW)
                if self._weights.are_in_place():
                    return restored
                self._passes.clear()
                self._weights.look_up()
        return run(input_BCHW)

    def _recall(self, key: PassKey, run: Pass, input_BCHW: Tensor) -> Recording | None:
        """Return the recording of a pass, made now where it is seen for the second time; None the first time."""
        is_known, recording = key in self._passes, self._passes.pop(key, None)
        if is_known and recording is None:
            try:
                recording = self._record(run, input_BCHW)
            except RuntimeError as error:  # out of memory, or an operator that cannot be recorded
                self._has_failed = True
                self._passes.clear()
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(f"inference goes on without CUDA graphs: {reason}", RuntimeWarning, stacklevel=4)
                return None
        self._passes[key] = recording
        while len(self._passes) > _MOST_PASSES or sum(known.pixels for known in self.recorded()) > _MOST_PIXELS:
            self._passes.popitem(last=False)
        return recording


class _Weights:
    """Where the parameters and buffers of a network lie, and which modules it is made of.

    The storages are kept, so that none of their addresses can come to be another's; they are small.
    """

    def __init__(self, network: SRNetwork):
        # The dictionaries of the network, and not the network, which its recordings must not keep alive.
        self._root: tuple[dict[str, Any], ...] = (network._modules, network._parameters, network._buffers)
        self.look_up()

    def look_up(self) -> None:
        """Take note of where the weights lie now."""
        children, *dictionaries = self._root
        modules = [module for child in children.values() if child is not None for module in child.modules()]
        self._children = [(each, dict(each)) for each in (children, *(module._modules for module in modules))]
        for module in modules:
            dictionaries += [module._parameters, module._buffers]
        self._slots = [(each, name) for each in dictionaries for name in each]
        self._addresses = self._read()
        tensors = [each[name] for each, name in self._slots]
        self._storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]

    def are_in_place(self) -> bool:
        """Say whether all lie where they lay, in the modules that there were."""
        try:
            return self._read() == self._addresses and all(now == then for now, then in self._children)
        except KeyError:
            return False

    def _read(self) -> list[int | None]:
        return [None if (tensor := slots[name]) is None else tensor.data_ptr() for slots, name in self._slots]


@contextlib.contextmanager
def _uncached_autocast() -> Iterator[None]:
    """Cast weights anew in each pass under autocast: its cache does not outlive the context that it is made in."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


_RECORDINGS: WeakKeyDictionary[SRNetwork, Recordings] = WeakKeyDictionary()  # copies of a network start with none

"""Which component of a network is at work, told to whoever divides its time (profiling/breakdown.py).

`predictor`: the local and the global predictor, with channel and spatial attention, offsets and the choice of windows.
`attention`: all that mixes windows, value and out projection included. `convolution`: the mixer's two with what follows
them, and the 3×3 ones before, after and between the blocks. `ffn`. `norms`: those of the blocks with their residuals.
`rest`: the groups' ends, padding, moving data, and
what Python does between kernels. Components nest: time is that of the innermost.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, Protocol, TypeVar

COMPONENTS = ("predictor", "attention", "convolution", "ffn", "norms", "rest")  # as in kernels/stopwatch.h

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class Listener(Protocol):
    """Who wants to know."""

    def enter(self, component: str) -> None:
        """A component begins, inside of the present one."""

    def leave(self) -> None:
        """The present component ends."""

    def divide(self, ticks: Sequence[int]) -> None:
        """The time since the last call belongs to `COMPONENTS`, in these proportions."""


_listener: Listener | None = None


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell a listener, and no other, of all networks that run in the block, in whatever thread."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def is_listening() -> bool:
    """Say whether anybody is."""
    return _listener is not None


def component(name: str) -> contextlib.AbstractContextManager[None]:
    """Return the context in which a component is at work; one that does nothing while nobody listens."""
    return contextlib.nullcontext() if _listener is None else _enter(_listener, name)


@contextlib.contextmanager
def _enter(listener: Listener, name: str) -> Iterator[None]:
    listener.enter(name)
    try:
        yield
    finally:
        listener.leave()


def part_of(name: str) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Decorate a function all of which is work of a component."""

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        @functools.wraps(function)
        def run(*arguments: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
            with component(name):
                return function(*arguments, **options)

        return run

    return decorate


def divide(ticks: Sequence[int]) -> None:
    """Say how the time since the last change of components divides."""
    if _listener is not None:
        _listener.divide(ticks)

"""CPU kernels in C++, compiled when the project is installed (hatch_build.py), called through ctypes.

`kernels.cpp` is compiled once for each instruction set, a variant; `load` chooses the best that this processor runs.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import OutageError, UserError, explain_unmapped
from harness.models.kernels.sources import digest

LIBRARY = Path(__file__).parent / ("kernels.dylib" if sys.platform == "darwin" else "kernels.so")


class Kernels:
    """The kernels of one variant.

    `variant`: its name, such as "v3"; `variants`: all that this processor runs, best first; `compiler`: what compiled
    them, such as "clang 22.1.8".
    """

    def __init__(self, library: ctypes.CDLL, variants: tuple[str, ...], compiler: str, variant: str) -> None:
        assert variant in variants
        self._library = library
        self.variants = variants
        self.compiler = compiler
        self.variant = variant

    def function(
        self, name: str, argtypes: Sequence[type[Any]], restype: type[Any] | None = None
    ) -> Callable[..., Any]:
        """Return a kernel as a function of ctypes types; the interpreter's lock is free while it runs.

        Raises AttributeError if there is none of that name.
        """
        function = self._library[f"{name}_{self.variant}"]
        function.argtypes = argtypes
        function.restype = restype
        return function

    def of(self, variant: str) -> "Kernels":
        """Return the same kernels in another of `variants`, for comparisons."""
        return Kernels(self._library, self.variants, self.compiler, variant)


@functools.cache
def load() -> Kernels | None:
    """Return the kernels in the best variant for this processor; None if none were compiled for its platform.

    Raises UserError if the library does not fit: see `open_library`.
    """
    return open_library(LIBRARY)


def open_library(path: Path) -> Kernels | None:
    """Open a library in its best variant; None if there is no such file, or the processor is too old for every variant.

    Raises UserError if it is no such library, or was compiled from other sources than those that lie beside it;
    OutageError if there is too little memory for it, or it lies where no program may be run.
    """
    if not path.exists():
        return None
    try:
        library = ctypes.CDLL(str(path))
        variants, sources, compiler = (
            _text(library, f"harness_{name}") for name in ("variants", "sources", "compiler")
        )
    except (OSError, AttributeError) as error:
        is_noexec = bool(os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0))  # which macOS does not tell
        if unmapped := explain_unmapped(error, is_noexec=is_noexec):
            raise OutageError(unmapped) from None
        raise UserError(f"compiled kernels cannot be loaded ({error}); install again: pip install -e .") from None
    if sources != digest(path.parent):  # their functions may take other arguments than those that we would pass
        raise UserError(f"{path} was not compiled from the sources beside it; install again: pip install -e .")
    names = tuple(variants.split())
    return Kernels(library, names, compiler, names[0]) if names else None


def _text(library: ctypes.CDLL, name: str) -> str:
    function = library[name]
    function.argtypes = []
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()

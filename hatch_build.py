"""Compiles the CPU kernels when the project is installed or a wheel is built; hatchling runs this file.

The compiler is that of the package `ziglang`, which pyproject.toml asks for: clang with every platform's headers, so
nothing has to be installed beforehand, and libraries run on older systems too. One library holds `kernels.cpp` once for
each instruction set, and `dispatch.cpp`, which says at run time which of them the processor has. An editable
installation has it in the source tree; of a wheel, nothing stays there.
"""

import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "harness/models/kernels"

# Zig reads -O3 as -O2, and clang's own -O3 has to get past it. Never -ffast-math: kernels test for non-finite numbers.
# All names are internal or carry the variant, and no library of C++ is used, so that the linker merges nothing that was
# compiled for different processors.
FLAGS = (
    *("-std=c++17", "-O3", "-Xclang", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fomit-frame-pointer", "-g0"),
    *("-nostdinc++", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fPIC", "-pthread"),
    *("-fno-sanitize=undefined", "-Wall", "-Wextra"),
)

# By `zig cc`, not `zig c++`, and without the sanitizer: their libraries would be compiled first, for a minute.
LINK_FLAGS = ("-shared", "-pthread", "-fno-sanitize=undefined")

# Zig's x86_64_v4 splits vectors of 512 bits unless told otherwise; its -mtune would choose instructions like -mcpu.
X86_64_VARIANTS = {
    "v2": ("-mcpu=x86_64_v2",),
    "v3": ("-mcpu=x86_64_v3",),
    "v4": ("-mcpu=x86_64_v4-prefer_256_bit",),
    "v4bf16": ("-mcpu=x86_64_v4+avx512bf16-prefer_256_bit", "-Xclang", "-tune-cpu", "-Xclang", "znver4"),
}
AARCH64_VARIANTS: dict[str, tuple[str, ...]] = {"neon": ()}


class Target(NamedTuple):
    """A platform that kernels are compiled for.

    `triple` is zig's name of it, with the oldest system that the library runs on; `wheel_platform` says the same in the
    words of wheels. `variants`: name → flags.
    """

    triple: str
    wheel_platform: str
    library: str
    link_flags: tuple[str, ...]
    variants: dict[str, tuple[str, ...]]


def find_target(system: str, machine: str, libc: str) -> Target | None:
    """Return the target for `platform.system()`, `.machine()` and `.libc_ver()[0]`; None where there are no kernels."""
    architecture = {"x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}.get(machine)
    variants = X86_64_VARIANTS if architecture == "x86_64" else AARCH64_VARIANTS
    if architecture and system == "Linux" and libc == "glibc":
        triple, wheel_platform = f"{architecture}-linux-gnu.2.28", f"manylinux_2_28_{architecture}"
        return Target(triple, wheel_platform, "kernels.so", ("-Wl,-z,defs",), variants)
    if architecture and system == "Darwin":
        link_flags = ("-Wl,-install_name,@rpath/kernels.dylib",)
        return Target(f"{architecture}-macos.11.0", f"macosx_11_0_{machine}", "kernels.dylib", link_flags, variants)
    return None


def compile_library(target: Target, folder: Path, library: Path) -> None:
    """Compile the sources in `folder` for every variant and write the library, at once or not at all.

    Raises RuntimeError with the compiler's words if it fails.
    """
    digest = runpy.run_path(str(folder / "sources.py"))["digest"](folder)
    with tempfile.TemporaryDirectory(prefix="harness-kernels-") as name:
        scratch = Path(name)

        def compile_source(source: str, flags: tuple[str, ...], object_name: str) -> str:
            # -o relative and in `scratch`: no path of this machine gets into the library
            _run(scratch, "-target", target.triple, *flags, *FLAGS, "-c", str(folder / source), "-o", object_name)
            return object_name

        with ThreadPoolExecutor() as pool:
            pending = [
                pool.submit(compile_source, "kernels.cpp", (*flags, f"-DVARIANT={variant}"), f"{variant}.o")
                for variant, flags in target.variants.items()
            ]
            pending.append(pool.submit(compile_source, "dispatch.cpp", (f'-DSOURCES="{digest}"',), "dispatch.o"))
            objects = [future.result() for future in pending]
        _run(scratch, "-target", target.triple, *LINK_FLAGS, *target.link_flags, *objects, "-o", "library")
        fresh = library.with_name(f".{library.name}.{os.getpid()}")  # a process may have the old one in its memory
        shutil.copyfile(scratch / "library", fresh)
        fresh.chmod(0o755)
        fresh.replace(library)


def _run(scratch: Path, *arguments: str) -> None:
    """Run the compiler in `scratch`, where its caches stay too."""
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(scratch / "cache"), "ZIG_LOCAL_CACHE_DIR": str(scratch / "cache")}
    command = [sys.executable, "-m", "ziglang", "cc", *arguments]
    done = subprocess.run(command, cwd=scratch, env=os.environ | caches, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the CPU kernels could not be compiled: {' '.join(command)}\n{done.stderr}")
    sys.stderr.write(done.stderr)  # warnings


class KernelsHook(BuildHookInterface[BuilderConfig]):
    """Adds the compiled kernels to a wheel, or to the source tree for an editable installation."""

    _scratch: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; hatchling calls it before it collects the files."""
        system, machine = platform.system(), platform.machine()
        target = find_target(system, machine, platform.libc_ver()[0])
        if target is None:
            self.app.display_warning(
                f"harness: no compiled CPU kernels for {system} on {machine}; PyTorch's serve instead"
            )
            return
        folder = Path(self.root) / KERNELS
        if version == "editable":
            compile_library(target, folder, folder / target.library)
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="harness-wheel-")
        library = Path(self._scratch.name) / target.library
        compile_library(target, folder, library)
        build_data["force_include"][str(library)] = f"{KERNELS}/{target.library}"
        build_data["tag"] = f"py3-none-{target.wheel_platform}"
        build_data["pure_python"] = False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled; hatchling calls it after it has packed the wheel."""
        if self._scratch:
            self._scratch.cleanup()

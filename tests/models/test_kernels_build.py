import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from ctypes import CDLL
from pathlib import Path

import pytest

from harness.core.errors import UserError
from harness.models.kernels import LIBRARY, load, open_library
from hatch_build import AARCH64_VARIANTS, KERNELS, X86_64_VARIANTS, Target, find_target

ROOT = Path(__file__).parents[2]
TARGET = find_target(platform.system(), platform.machine(), platform.libc_ver()[0])

# What /proc/cpuinfo calls the features of each x86-64 variant, beyond those of the variant before it.
FLAGS = {
    "v2": {"pni", "ssse3", "cx16", "sse4_1", "sse4_2", "popcnt", "lahf_lm"},
    "v3": {"fma", "movbe", "xsave", "avx", "f16c", "abm", "avx2", "bmi1", "bmi2"},
    "v4": {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"},
    "v4bf16": {"avx512_bf16"},
}


@pytest.fixture
def target() -> Target:
    if TARGET is None:
        pytest.skip("no kernels for this platform")
    return TARGET


def exported_functions(library: Path, variants: dict[str, tuple[str, ...]]) -> dict[str, set[str]]:
    """Read the names of the library's symbol table, by variant."""
    names = re.findall(rb"(?<=\0)_?([A-Za-z]\w*)_(v\d\w*|neon)(?=\0)", library.read_bytes())
    return {variant: {name.decode() for name, of in names if of.decode() == variant} for variant in variants}


def test_every_installation_has_kernels(target: Target) -> None:
    kernels = load()
    assert kernels is not None, f"{LIBRARY} is missing: install again"
    assert kernels.variant == kernels.variants[0]
    assert set(kernels.variants) <= set(target.variants)
    assert re.fullmatch(r"clang \d+\.\d+\.\d+", kernels.compiler)


def test_the_variant_is_the_best_that_the_processor_runs(target: Target) -> None:
    kernels = load()
    assert kernels is not None
    if target.variants is AARCH64_VARIANTS:
        assert kernels.variants == ("neon",)
        return
    if platform.system() != "Linux":
        pytest.skip("the processor's features are read from /proc/cpuinfo")
    cpuinfo = Path("/proc/cpuinfo").read_text()
    (flags,) = {line.partition(":")[2] for line in cpuinfo.splitlines() if line.startswith("flags")}
    expected: list[str] = []
    for variant in X86_64_VARIANTS:
        if not set(flags.split()) >= FLAGS[variant]:
            break
        expected.insert(0, variant)
    assert list(kernels.variants) == expected


def test_all_variants_export_the_same_functions(target: Target) -> None:
    functions = exported_functions(LIBRARY, target.variants)
    names = set.union(*functions.values())
    assert names
    assert functions == dict.fromkeys(target.variants, names)
    library = CDLL(str(LIBRARY))
    for variant in target.variants:
        for name in names:
            assert hasattr(library, f"{name}_{variant}")
    kernels = load()
    assert kernels is not None
    for variant in kernels.variants:
        assert kernels.of(variant).variant == variant
        for name in names:
            assert callable(kernels.of(variant).function(name, []))
    with pytest.raises(AttributeError):
        kernels.function("nothing_of_that_name", [])


def test_nothing_is_shared_between_variants(target: Target) -> None:
    """The linker merges C++ functions of equal names; one for AVX-512 would then be in every variant."""
    mangled = set(re.findall(rb"(?<=\0)_?_Z\w+", LIBRARY.read_bytes()))
    assert {
        name for name in mangled if b"_GLOBAL__N_1" not in name and not name.lstrip(b"_").startswith(b"ZL")
    } == set()


@pytest.mark.skipif(platform.system() != "Linux", reason="ELF")
def test_the_library_runs_where_its_wheel_says(target: Target) -> None:
    content = LIBRARY.read_bytes()
    versions = {tuple(map(int, found)) for found in re.findall(rb"(?<=\0)GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)", content)}
    assert all(version <= (2, 28) for version in versions)
    needed = set(re.findall(rb"(?<=\0)lib[\w+-]+\.so[.\d]*(?=\0)", content))
    assert needed <= {b"libc.so.6", b"libm.so.6", b"libpthread.so.0"}


def test_a_library_of_other_sources_is_refused(target: Target, tmp_path: Path) -> None:
    assert open_library(tmp_path / LIBRARY.name) is None
    for path in [*LIBRARY.parent.glob("*.cpp"), *LIBRARY.parent.glob("*.h"), LIBRARY]:
        shutil.copy(path, tmp_path)
    assert open_library(tmp_path / LIBRARY.name) is not None
    with (tmp_path / "kernels.cpp").open("a") as file:
        file.write("// changed\n")
    with pytest.raises(UserError, match="not compiled from the sources beside it; install again"):
        open_library(tmp_path / LIBRARY.name)
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(UserError, match=r"cannot be loaded .*; install again"):
        open_library(tmp_path / "text.so")


OPEN = "import sys, pathlib; from harness.models.kernels import open_library; {}open_library(pathlib.Path(sys.argv[1]))"
LIMIT = """import re, resource
taken = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 10), resource.RLIM_INFINITY))
"""


def test_a_library_that_may_not_be_run_is_no_lack_of_memory(target: Target, tmp_path: Path) -> None:
    """On a real file system that is mounted noexec, where only these processes see it."""
    if platform.system() != "Linux" or shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    mount = f"mount -t tmpfs -o noexec tmpfs {tmp_path}"
    script = f'{mount} || exit 77; cp -r {LIBRARY.parent}/. {tmp_path}; exec "$@"'
    run_here = [sys.executable, "-c", OPEN.format(""), str(tmp_path / LIBRARY.name)]
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", *run_here], capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("nothing can be mounted here without being root")
    *_, last = done.stderr.splitlines()
    assert "OutageError" in last
    assert "mounted noexec" in last
    assert "memory" not in last


@pytest.mark.skipif(platform.system() != "Linux", reason="the size of a process is read from /proc")
def test_a_library_that_memory_is_too_little_for(target: Target, tmp_path: Path) -> None:
    """What cannot be known is not said: the system's words are those of noexec."""
    command = [sys.executable, "-c", OPEN.format(f"exec({LIMIT!r}); "), str(LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True)
    *_, last = done.stderr.splitlines()
    assert "OutageError" in last
    assert "there is too little memory, or it lies on a file system mounted noexec" in last


@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [("Windows", "AMD64", ""), ("Linux", "riscv64", "glibc"), ("Linux", "x86_64", ""), ("FreeBSD", "amd64", "")],
)
def test_other_platforms_are_installed_without(system: str, machine: str, libc: str) -> None:
    assert find_target(system, machine, libc) is None


@pytest.mark.slow
def test_a_wheel_made_of_the_source_distribution_has_kernels(target: Target, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"hatch_build.py", f"{KERNELS}/kernels.cpp", f"{KERNELS}/dispatch.cpp"} <= packed
    assert not {name for name in packed if name.endswith((".so", ".dylib"))}

    wheels, unpacked = tmp_path / "wheels", tmp_path / "unpacked"
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(wheels), str(sdist)], check=True)
    (wheel,) = wheels.iterdir()
    assert wheel.name.endswith(f"-py3-none-{target.wheel_platform}.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    print_kernels = "import harness.models.kernels as k; print(k.LIBRARY, k.load().variant)"
    environment = {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", print_kernels], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    kernels = load()
    assert kernels is not None
    assert done.stdout.split() == [str(unpacked / KERNELS / target.library), kernels.variant]

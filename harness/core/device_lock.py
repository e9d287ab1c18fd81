"""One measurement at a time on a device of this machine, and nothing of ours computing beside it.

Every process of this package says what it does: `measuring` a device excludes all others, `computing` on it (a training
step, an image restored, a network built) excludes measuring alone. Whoever computes lets go after each step, so a
measurement waits for the steps that have begun, and training pauses until the measurement is over.

Each device has two files that processes lock by `flock`. `room` is held by whoever is at work: shared for computing,
exclusive for measuring. `door` is held on the way in, and while measuring: it stays shut behind a measurement that
waits for the room, so that no number of training processes can keep it waiting. Devices are locked in one fixed order,
doors before rooms, so no two processes can wait for each other. The operating system frees the locks of a process that
ends, however it ends; nothing is ever written into the files.

The CPU is one device, however many threads are asked for: threads of a process share its caches and memory with those
of all others. Work on an accelerator is also launched from the CPU, so it counts there as computing. Processes that do
not see the same /tmp (containers, other machines) and programs that are not ours are not held off. Another
`lock_dir` (of the command line: the environment variable HARNESS_LOCKS) may be one that containers share, or that a
group of processes has for itself.
"""

import contextlib
import fcntl
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.core.errors import UserError
from harness.core.files import lock_holders

# Not tempfile.gettempdir(), which differs between users and sessions of one machine.
lock_dir = Path("/tmp/harness-locks")
CPU = "cpu"

_PATIENCE_SECONDS = 5.0
_QUIET_SECONDS = 60.0
_SHORTEST_WAIT = 0.001  # seconds; what is shorter is the way through the door
# Told, where there is somebody to tell, when a block has waited `_PATIENCE_SECONDS`, and as long as it waits: by this
# process not more often than each `_QUIET_SECONDS`.
announce: Callable[[str], object] | None = None
_announced_at = -math.inf

_here = threading.local()  # what this thread does: a second lock of its own would have it wait for itself


def waited_seconds() -> float:
    """Return for how many seconds in all this thread has waited, to compute or to measure."""
    return float(getattr(_here, "waited", 0.0))


@contextlib.contextmanager
def measuring(device: str = CPU, *, folder: Path | None = None) -> Iterator[float]:
    """Run the block while nobody else measures or computes on `device`; yield the seconds waited for that.

    `device` is `cpu` or another name that all processes call the device by. A block inside another of the same thread
    measures under the lock that is held. Raises `UserError` where the files cannot be made.
    """
    doing = getattr(_here, "doing", None)
    assert doing != "computing", "measuring inside a block that computes would wait for itself"
    if doing == "measuring":
        yield 0.0
        return
    with contextlib.ExitStack() as held:
        with _waiting((device,), folder) as started:
            if device != CPU:
                _enter(held, CPU, folder, exclusive=False)
            _enter(held, device, folder, exclusive=True)
        with _doing("measuring"):
            yield time.monotonic() - started


@contextlib.contextmanager
def computing(*devices: str, folder: Path | None = None, announced: bool = True) -> Iterator[float]:
    """Run the block while nobody measures one of `devices`, or the CPU; yield the seconds waited for that.

    Keep the block short: whoever wants to measure waits for its end. `announced`: say so where that takes long, which
    nobody wants to know of work in the background. Inside another block of the same thread nothing is
    waited for. A process started inside must not enter blocks of its own before this one ends.
    """
    if getattr(_here, "doing", None) is not None:
        yield 0.0
        return
    with contextlib.ExitStack() as held:
        with _waiting(devices or (CPU,), folder, announced=announced) as started:
            for name in (CPU, *sorted({*devices} - {CPU})):
                _enter(held, name, folder, exclusive=False)
        with _doing("computing"):
            yield time.monotonic() - started


@contextlib.contextmanager
def _waiting(devices: Sequence[str], folder: Path | None, *, announced: bool = True) -> Iterator[float]:
    """Yield when the wait for devices began; add how long the block takes, and say so once it has taken a while."""
    started, is_over = time.monotonic(), threading.Event()

    def tell() -> None:
        pause = _PATIENCE_SECONDS
        while not is_over.wait(pause):
            pause = _QUIET_SECONDS
            _announce(devices, folder, time.monotonic() - started)

    if announced and announce is not None:
        threading.Thread(target=tell, daemon=True, name="device lock").start()
    try:
        yield started
    finally:
        is_over.set()
        waited = time.monotonic() - started
        if waited > _SHORTEST_WAIT:
            _here.waited = waited_seconds() + waited


def _announce(devices: Sequence[str], folder: Path | None, waited: float) -> None:
    """Say who is waited for and how long it has been, unless that was said just now."""
    global _announced_at
    now = time.monotonic()
    if announce is None or now - _announced_at < _QUIET_SECONDS:
        return
    _announced_at = now
    folder = folder or lock_dir
    files = [folder / f"{name}.{part}" for name in dict.fromkeys((CPU, *devices)) for part in ("room", "door")]
    holders = sorted({process for file in files for process in lock_holders(file) or ()} - {os.getpid()})
    who = f"process {', '.join(map(str, holders))}" if holders else "another process"
    announce(
        f"waiting for {who} of harness, which measures or computes on {', '.join(devices)}: {waited:.0f} s so far; "
        "with a folder of locks of its own, HARNESS_LOCKS, this one would not wait, and would disturb what is measured"
    )


@contextlib.contextmanager
def _doing(what: str) -> Iterator[None]:
    _here.doing = what
    try:
        yield
    finally:
        _here.doing = None


def _enter(held: contextlib.ExitStack, device: str, folder: Path | None, *, exclusive: bool) -> None:
    """Go through the door into the room; only a measurement keeps the door shut behind it."""
    folder = folder or lock_dir
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    if exclusive:
        held.enter_context(_locked(folder / f"{device}.door", kind))
        held.enter_context(_locked(folder / f"{device}.room", kind))
        return
    with _locked(folder / f"{device}.door", kind):
        held.enter_context(_locked(folder / f"{device}.room", kind))


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    """Hold the file's lock; each use opens the file anew, because a lock belongs to an opened file.

    A file that was removed while it was waited for is no longer the one that others lock.
    """
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, kind)
            if _is_there(path, descriptor):
                yield
                return
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor, too
            os.close(descriptor)


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _open(path: Path) -> int:
    """Open a file that every user of the machine may lock.

    Existing files are opened without O_CREAT, which Linux refuses for files of others in a folder that all may write.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(stat.S_ISVTX | 0o777)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(descriptor, 0o666)  # whatever the umask: others lock it, too
            return descriptor
        return os.open(path, flags)
    except OSError as error:
        raise UserError(
            f"lock file {path} cannot be opened: {error.strerror}; expected a file that may be read, in a folder that "
            "may be written; remove it, or have its owner do so"
        ) from None


def lock_name(kind: str, identity: str = "") -> str:
    """Return the name of a device's lock: its kind, and which of its kind it is (a GPU's UUID)."""
    safe = "".join(sign if sign.isalnum() else "-" for sign in identity)
    return f"{kind}-{safe}" if safe else kind

"""Files that are never half written."""

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.core.errors import OutageError, UserError

NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes `path`'s place in one step.

    Readers see the old file or the whole new one. When the block raises, the old file stays and nothing is left over.
    Raises `OutageError` where there is no room on the disk.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        permissions = temporary.stat().st_mode  # those that the user's umask gives to new files
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(permissions)  # safetensors puts a file of its own there, which only its owner can read
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise OutageError(no_room(path, error)) from error
        raise


def no_room(path: Path, error: OSError) -> str:
    """Say that there is no room for a file, and what to do."""
    return f"{path} cannot be written: {error.strerror}; make room there, and the same command goes on"


def _sync_folder(folder: Path) -> None:
    """See to it that a file's new name outlasts a crash of the machine, where folders can be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` in one step, creating the folder."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_folder_place(what: str, path: Path) -> None:
    """Raise `UserError` naming `what` where `path` is a file, or lies below one: no folder can be there."""
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                raise UserError(f"{what} {path}: {place} is a file, expected a folder; give another {what}")
            return


@contextlib.contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold the lock (flock) of `path` beside others who share it, for `lock_holders` to tell; the file is created."""
    with path.open("a", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # some network file systems have none: nobody waits for it
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def exclusive_lock(path: Path, *, while_waiting: Callable[[], None], poll_s: float = 0.5) -> Iterator[None]:
    """Hold the lock (flock) of `path` alone; the file, which is left behind, is created.

    `while_waiting` is called again and again while another process holds it, and may raise. The system lets go of the
    lock of a process that ends, however it ends. Where a file system has no locks, nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(poll_s)
            except OSError:  # some network file systems have none
                break
        yield


def lock_holders(path: Path) -> tuple[int, ...] | None:
    """Return the processes of this machine that hold the lock (flock) of `path`; the file is not even opened.

    None where the system does not tell: Linux does, in /proc/locks.
    """
    try:
        lines = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return ()
    holders = []
    for line in lines:
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK":  # `->` instead: a process that waits
            continue
        process, (device, _, inode) = int(fields[4]), fields[5].rpartition(":")
        here = f"{os.major(wanted.st_dev):02x}:{os.minor(wanted.st_dev):02x}"
        if int(inode) == wanted.st_ino and (device == here or _has_opened(process, wanted)):
            holders.append(process)
    return tuple(holders)


def _has_opened(process: int, wanted: os.stat_result) -> bool:
    """Whether a process has a file open; some file systems are listed under another device than their files name."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(entry.stat(), wanted):
                    return True
    return False

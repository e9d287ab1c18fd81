"""Where the checkpoints of networks in training are kept: the study's folder, another one, or an fsspec URL.

Whoever reads sees the checkpoint of before or the whole new one: object storages take an object as a whole, anywhere
else it is written under another name and moved; what ends it (`training/checkpoint.py`) tells whether it is whole. A
place that a user names carries a mark of its study, by which a worker elsewhere knows that it sees the same one, and by
which a place that is gone is told from one that holds nothing yet.
"""

import contextlib
import math
import os
import posixpath
import queue
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from harness.core.errors import OutageError, UserError
from harness.core.files import atomic_path
from harness.core.urls import explain, is_url, stamps, without_credentials

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

MARK = "study.token"
PATIENCE_SECONDS = 300.0  # how long a place that is away is waited for, and how long one answer of it
LOOK_SECONDS = 10.0  # how long one who only looks waits
_PROBE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 30.0
_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "obs", "oci", "memory"}
)  # of objects
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modify", "created")

ResultT = TypeVar("ResultT")


class Listed(NamedTuple):
    """A checkpoint as a listing tells it: `changed` in seconds since 1970, None where the place does not tell."""

    network_id: str
    changed: float | None
    size_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one network, which may or may not be there."""

    place: "Place"
    name: str

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"

    def read(self) -> bytes | None:
        """Return what is in it, or None where there is none."""
        return self.place.read(self.name)

    def write(self, content: bytes | memoryview, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Write it in one step; a place that is away is waited for, but not where the run is to stop."""
        self.place.write(self.name, content, should_stop)

    def mark(self) -> int | str:
        """Return what changes when it is written again; 0 where there is none."""
        return self.place.mark(self.name)

    def touch(self) -> None:
        """Change its mark and nothing else, with no room on a disk."""
        self.place.touch(self.name)

    def remove(self) -> None:
        """Remove it, and what a kill in the middle of writing has left of it."""
        self.place.remove(self.name)


class Place(ABC):
    """Where checkpoints are kept, by name; a network's is its id and `suffix`."""

    suffix = ".pt"

    def checkpoint(self, network_id: str) -> Checkpoint:
        """Return the checkpoint of a network."""
        return Checkpoint(self, network_id + self.suffix)

    @abstractmethod
    def __str__(self) -> str:
        """Return the path or the URL, without credentials."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return what is there, or None."""

    @abstractmethod
    def write(self, name: str, content: bytes | memoryview, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Write in one step."""

    @abstractmethod
    def mark(self, name: str) -> int | str:
        """Return what changes when it is written again; 0 where there is none."""

    @abstractmethod
    def touch(self, name: str) -> None:
        """Change the mark of what is there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove what is there, with temporary files of it."""

    @abstractmethod
    def find(self) -> list[Listed]:
        """Return the checkpoints that are there, in no order."""


class Folder(Place):
    """A folder, with plain errors of the operating system."""

    def __init__(self, path: Path, suffix: str = Place.suffix):
        self.path = path
        self.suffix = suffix

    def __str__(self) -> str:
        return str(self.path)

    def make(self) -> None:
        """Make the folder."""
        self.path.mkdir(parents=True, exist_ok=True)

    def below(self, name: str) -> "Folder":
        """Return a folder in it."""
        return Folder(self.path / name)

    def read(self, name: str) -> bytes | None:
        """Return what is in a file, or None."""
        file = self.path / name
        return file.read_bytes() if file.is_file() else None

    def write(self, name: str, content: bytes | memoryview, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Write a file beside it, and put it in its place."""
        with atomic_path(self.path / name) as temporary, temporary.open("wb") as file:
            file.write(content)

    def mark(self, name: str) -> int | str:
        """Return when it was changed."""
        file = self.path / name
        return file.stat().st_mtime_ns if file.is_file() else 0

    def touch(self, name: str) -> None:
        """Set the time of its change."""
        os.utime(self.path / name)

    def remove(self, name: str) -> None:
        """Remove it, and temporary files of it."""
        file = self.path / name
        file.unlink(missing_ok=True)
        for temporary in file.parent.glob(f".{file.name}.*"):
            temporary.unlink(missing_ok=True)

    def find(self) -> list[Listed]:
        """Return the checkpoints that are there."""
        found = []
        for path in self.path.glob(f"*{self.suffix}"):
            name = path.relative_to(self.path).as_posix()
            if name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):  # its network is done
                status = path.stat()
                found.append(Listed(name.removesuffix(self.suffix), status.st_mtime, status.st_size))
        return found


class Remote(Place):
    """An fsspec URL, with the errors of its driver; connected to anew after `forget`."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._connection: tuple[AbstractFileSystem, str] | None = None

    def __str__(self) -> str:
        return without_credentials(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_connection": None}

    def make(self) -> None:
        """Make the folder, where there are folders."""
        files, root = self._connect()
        if not self._takes_objects(files):
            files.makedirs(root, exist_ok=True)

    def below(self, name: str) -> "Remote":
        """Return a folder in it."""
        return Remote(f"{self.url}/{name}")

    def forget(self) -> None:
        """Connect anew next time."""
        self._connection = None

    def _connect(self) -> "tuple[AbstractFileSystem, str]":
        if self._connection is None:
            from fsspec.core import url_to_fs

            files, root = url_to_fs(self.url, skip_instance_cache=True)
            self._connection = (files, root.rstrip("/"))
        self._connection[0].invalidate_cache()  # of listings: others write there, too
        return self._connection

    @staticmethod
    def _takes_objects(files: "AbstractFileSystem") -> bool:
        protocol = files.protocol
        return bool(_STORES.intersection([protocol] if isinstance(protocol, str) else protocol))

    def read(self, name: str) -> bytes | None:
        """Return what is there, or None."""
        files, root = self._connect()
        try:
            content: bytes = files.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes | memoryview, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Write an object, or a file beside it that takes its place."""
        files, root = self._connect()
        if self._takes_objects(files):
            files.pipe_file(f"{root}/{name}", bytes(content))
            return
        temporary = f"{root}/.{name}.{secrets.token_hex(4)}"
        try:
            files.pipe_file(temporary, bytes(content))
            files.mv(temporary, f"{root}/{name}")
        except Exception:
            with contextlib.suppress(Exception):
                files.rm_file(temporary)
            raise

    def mark(self, name: str) -> int | str:
        """Return what the driver says of it that changes."""
        files, root = self._connect()
        try:
            return str([value for value in stamps(files.info(f"{root}/{name}")) if value is not None])
        except FileNotFoundError:
            return 0

    def touch(self, name: str) -> None:
        """Write it again."""
        content = self.read(name)
        if content is not None:
            self.write(name, content)

    def remove(self, name: str) -> None:
        """Remove it, and temporary files of it."""
        files, root = self._connect()
        found = [name]
        if not self._takes_objects(files):
            listed = [posixpath.basename(path) for path in files.ls(root, detail=False)]
            found = [one for one in listed if one == name or one.startswith(f".{name}.")]
        for one in found:
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(f"{root}/{one}")

    def find(self) -> list[Listed]:
        """Return the checkpoints that are there."""
        files, root = self._connect()
        found = []
        try:
            entries = files.ls(root, detail=True)
        except FileNotFoundError:  # nothing was ever written there
            return []
        for entry in entries:
            name = posixpath.basename(entry["name"].rstrip("/"))
            if entry["type"] == "file" and name.endswith(self.suffix) and not name.startswith("."):
                found.append(Listed(name.removesuffix(self.suffix), _time(entry), int(entry.get("size") or 0)))
        return found


class GivenPlace(Place):
    """A place that a user has named: what is away is waited for, and then is an `OutageError` of one line."""

    def __init__(self, inner: Folder | Remote):
        self.inner = inner

    def __str__(self) -> str:
        return str(self.inner)

    def below(self, name: str) -> "GivenPlace":
        """Return a folder in it."""
        return GivenPlace(self.inner.below(name))

    def probe(self, *, make: bool = False) -> None:
        """Raise `UserError` where something small cannot be written, replaced, read and removed; `make` the folder."""
        name = f"probe-{secrets.token_hex(4)}"

        def act() -> None:
            if make:
                self.inner.make()
            for content in (b"one", b"another"):
                self.inner.write(name, content)
                if self.inner.read(name) != content:
                    raise OSError("what was written is not what is read")
            self.inner.remove(name)
            if self.inner.read(name) is not None:
                raise OSError("what was removed is still there")

        self._once(act, _PROBE_SECONDS)

    def claim(self) -> str:
        """Mark the place as that of a study; return the mark."""
        token = secrets.token_hex(8)

        def act() -> None:
            self.inner.make()
            self.inner.write(MARK, token.encode())

        self._once(act, _PROBE_SECONDS)
        return token

    def check(self, token: str) -> None:
        """Raise `UserError` where this is not the place that was marked so, or where it cannot be written to."""
        found = self._once(lambda: self.inner.read(MARK), _PROBE_SECONDS)
        if found != token.encode():
            raise UserError(
                f"checkpoints at {str(self)!r}: what is seen there from here is not the place that the study keeps its "
                f"checkpoints in ({MARK} {'is missing' if found is None else 'is another'}); expected a folder or URL "
                "that is the same on all machines; give one by --checkpoints, another one where it was emptied"
            )
        self.probe()

    def read(self, name: str) -> bytes | None:
        """Return what is there; None only where the place itself is there."""

        def act() -> bytes | None:
            content = self.inner.read(name)
            if content is None and self.inner.read(MARK) is None:  # drivers say so where a server is in trouble, too
                raise FileNotFoundError("the place itself is gone")
            return content

        return self._patiently("read", act)

    def write(self, name: str, content: bytes | memoryview, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Write in one step, where the place itself is there."""

        def act() -> None:
            if isinstance(self.inner, Folder) and not self.inner.path.is_dir():  # a share that is not mounted
                raise FileNotFoundError("the folder is gone")
            self.inner.write(name, content)

        self._patiently("written", act, should_stop)

    def mark(self, name: str) -> int | str:
        """Return what changes when it is written again."""
        return self._patiently("read", lambda: self.inner.mark(name))

    def touch(self, name: str) -> None:
        """Change the mark, if that can be done at once."""
        self._patiently("written", lambda: self.inner.touch(name), lambda: True)

    def remove(self, name: str) -> None:
        """Remove what is there."""
        self._patiently("removed", lambda: self.inner.remove(name))

    def find(self) -> list[Listed]:
        """Return the checkpoints that are there; `UserError` where that cannot be told, or not at once."""
        return self._once(self.inner.find, LOOK_SECONDS)

    def _once(self, act: Callable[[], ResultT], patience_s: float) -> ResultT:
        try:
            return _within(patience_s, act)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # of any driver: there is no class that all of them share
            self._forget()
            raise UserError(
                f"checkpoints at {str(self)!r} cannot be kept: {self._explain(error)}; expected a folder or fsspec URL "
                "that all workers can write to, read and delete in, such as s3://bucket/prefix, with the driver of its "
                "kind (s3fs, gcsfs, adlfs, …) installed and its credentials given to each of them (those in a URL are "
                "not kept with the study: give it to all by --checkpoints)"
            ) from error

    def _patiently(
        self, what: str, act: Callable[[], ResultT], should_stop: Callable[[], bool] = lambda: False
    ) -> ResultT:
        """Return what an act gives, tried again while the place is away; it must be one that may be done twice."""
        started, pause = time.monotonic(), 1.0
        while True:
            try:
                return _within(PATIENCE_SECONDS, act)
            except (UserError, MemoryError):
                raise
            except Exception as error:
                self._forget()
                again = time.monotonic() + pause
                if should_stop() or again > started + PATIENCE_SECONDS:
                    raise OutageError(
                        f"checkpoints at {str(self)!r} cannot be {what}: {self._explain(error)}; once the place is "
                        "back, the same command goes on"
                    ) from error
            while time.monotonic() < again and not should_stop():
                time.sleep(min(0.2, pause))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _forget(self) -> None:
        if isinstance(self.inner, Remote):
            self.inner.forget()

    def _explain(self, error: BaseException) -> str:
        return explain(error, self.inner.url if isinstance(self.inner, Remote) else "")


def parse_place(text: str) -> GivenPlace:
    """Return the place that a user names by a path or an fsspec URL; nothing is connected to."""
    if not text.strip():
        raise UserError("--checkpoints '': expected a folder or an fsspec URL, such as s3://bucket/prefix")
    if text.startswith(("file:", "local:")):
        from fsspec.implementations.local import LocalFileSystem

        return GivenPlace(Folder(Path(LocalFileSystem._strip_protocol(text)).resolve()))
    return GivenPlace(Remote(text) if is_url(text) else Folder(Path(text).expanduser().resolve()))


def _within(patience_s: float, call: Callable[[], ResultT]) -> ResultT:
    """Return what a call gives; `TimeoutError` where it takes longer, as drivers do for hosts that are gone."""
    ended: queue.SimpleQueue[tuple[ResultT | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except BaseException as error:
            ended.put((None, error))

    threading.Thread(target=run, daemon=True, name="checkpoints").start()
    try:
        result, error = ended.get(timeout=patience_s)
    except queue.Empty:
        raise TimeoutError(f"no answer for {patience_s:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _time(entry: dict[str, Any]) -> float | None:
    """Return when a file was written, as a driver's description of it says."""
    told = next((entry[key] for key in _TIMES if entry.get(key) is not None), None)
    if isinstance(told, str):
        with contextlib.suppress(ValueError):
            told = datetime.fromisoformat(f"{told[:8]}T{told[8:14]}" if told[:14].isdecimal() else told)
    if isinstance(told, datetime):
        return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()
    return float(told) if isinstance(told, int | float) and math.isfinite(told) else None

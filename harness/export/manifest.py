"""The checksum manifest of a bundle: SHA256SUMS, which `sha256sum -c` reads, over every file but itself."""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from harness.core.files import write_text

MANIFEST = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\n]+)")


class ManifestFindings(NamedTuple):
    """What a manifest says of a folder: names of files that changed or are gone, and of those it does not know.

    `problem`: why it cannot be believed at all, in words.
    """

    listed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every listed file is there as it was written; unknown files do no harm."""
        return not (self.changed or self.missing or self.problem)


def write_manifest(folder: Path) -> None:
    """Write SHA256SUMS over all files of a folder, which has no folders; it is to be the last file written there."""
    names = sorted(file.name for file in folder.iterdir() if file.name != MANIFEST)
    write_text(folder / MANIFEST, _render({name: _digest(folder / name) for name in names}))


def check_manifest(folder: Path, expected: Collection[str] = ()) -> ManifestFindings | None:
    """Compare a folder with its manifest; None where it has none.

    `expected` are names that must be listed where they are there: a file that the manifest forgot has been swapped in.
    The manifest itself must be spelt as `write_manifest` does, to the byte.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    here = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    content = file.read_bytes()
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError:
        return ManifestFindings(problem=f"{MANIFEST} is no list of checksums")
    entries = [_LINE.fullmatch(line) for line in lines]
    recorded = {entry[2]: entry[1] for entry in entries if entry is not None}
    if not recorded or _render(recorded).encode() != content:
        return ManifestFindings(problem=f"{MANIFEST} is not as it was written")
    unlisted = [name for name in here if name not in recorded and name != MANIFEST]
    return ManifestFindings(
        listed=tuple(recorded),
        changed=tuple(name for name in recorded if name in here and _digest(folder / name) != recorded[name]),
        missing=tuple(name for name in recorded if name not in here),
        unknown=tuple(name for name in unlisted if name not in expected),
        problem=next((f"{name} is not in {MANIFEST}" for name in unlisted if name in expected), None),
    )


def _render(digests: dict[str, str]) -> str:
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

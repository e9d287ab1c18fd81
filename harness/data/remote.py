"""Folders of images at an fsspec URL (`s3://…`, `gs://…`, `https://…`, `zip://*::photos.zip`), copied into the cache.

A copy is made once and kept; a file is fetched again where the remote one has changed, and removed where it is gone.
Drivers of object storages are packages of their own, which fsspec names where one is missing.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from harness.core.errors import OutageError, UserError
from harness.core.files import atomic_path, write_text
from harness.core.urls import SHOWN, explain, stamps, without_credentials
from harness.data.catalogue import Progress
from harness.data.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_MANIFEST = ".copied.json"


def copy_folder(url: str, cache_dir: Path, *, scale: int, progress: Progress | None = None) -> Path:
    """Copy the folder of images at `url` into the cache, and return the copy.

    What `open_dataset` reads of a folder at `scale` is copied: its own images, those of `HR/` and of
    `LR_bicubic/X{scale}/`. Several processes may copy at the same time. `UserError` with one line where the URL cannot
    be read, and why.
    """
    from fsspec.core import url_to_fs

    shown = without_credentials(url, SHOWN)
    try:
        files, root = url_to_fs(url)
        name = posixpath.basename(without_credentials(root).rstrip("/")) or "images"
        place = hashlib.sha256(without_credentials(url).encode()).hexdigest()[:16]
        copy = cache_dir / "remote" / place / name
        copy.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.with_name(".lock")):
            _copy_changed(files, root.rstrip("/"), copy, scale, f"fetching {shown}", progress)
    except (OutageError, MemoryError):
        raise
    except Exception as error:  # of any driver: there is no class that all of them share
        raise UserError(
            f"images at {shown!r} cannot be read: {explain(error, url)}; expected a folder of images at an fsspec URL "
            "that all workers reach, such as s3://bucket/folder, with the driver and credentials of its kind (no study "
            "keeps them: where they are in its URLs, give --train and --validation again)"
        ) from error
    return copy


def _copy_changed(
    files: "AbstractFileSystem", root: str, copy: Path, scale: int, what: str, progress: Progress | None
) -> None:
    manifest = copy.with_name(_MANIFEST)
    known: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    found = dict(_list_images(files, root, scale))
    if not found:
        raise FileNotFoundError(f"no images there, which end in {', '.join(IMAGE_SUFFIXES)}")
    for relative in known.keys() - found.keys():
        (copy / relative).unlink(missing_ok=True)
    kept = {name: stamp for name, stamp in known.items() if found.get(name) == stamp and (copy / name).is_file()}
    missing = sorted(found.keys() - kept.keys())
    try:
        for index, relative in enumerate(missing):
            with atomic_path(copy / relative) as temporary:
                files.get_file(f"{root}/{relative}" if root else relative, str(temporary))
            kept[relative] = found[relative]
            if progress is not None:
                progress(what, index + 1, len(missing))
    finally:
        if kept != known:
            write_text(manifest, json.dumps(kept))


def _list_images(files: "AbstractFileSystem", root: str, scale: int) -> Iterator[tuple[str, str]]:
    """Yield the images below the root, as paths relative to it, with what changes when they do."""
    for folder in ("", "HR", f"LR_bicubic/X{scale}"):
        place = "/".join(part for part in (root, folder) if part)
        if folder and not files.isdir(place):
            continue
        for entry in files.ls(place, detail=True):
            name = posixpath.basename(entry["name"].rstrip("/"))
            if entry["type"] == "file" and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                changing = stamps(entry)
                if not any(value is not None for value in changing):  # a web server lists names alone
                    changing = stamps(files.info(entry["name"]))
                yield posixpath.join(folder, name), str([value for value in changing if value is not None])

"""Opening a source of images (the demo, a known name, a folder) as pairs of high and low resolution.

Decoded HR and LR images are cached on disk once (`harness.data.cache`), keyed by the content of their files.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UserError
from harness.core.panorama import require_panorama
from harness.core.urls import is_url
from harness.data.cache import CachedImage, load_or_make
from harness.data.catalogue import CATALOGUE, Progress, Split, find_named_folders
from harness.data.demo import find_demo_files
from harness.data.images import DECODER_VERSION, IMAGE_SUFFIXES, list_images, read_rgb
from harness.data.imresize import RESIZE_VERSION, ImageArray, crop_to_multiple, downscale
from harness.data.overlap import refuse_overlap
from harness.data.pairs import ImagePair, PairedDataset, check_sizes, hash_content
from harness.data.remote import copy_folder

__all__ = ["ImagePair", "PairedDataset", "Progress", "Split", "open_dataset", "refuse_overlap"]

_FLAT_REMEDY = "crop or remove it, or do without task odi and protocol odi"


@dataclass(frozen=True)
class _Source:
    """One image's files; `lr_path` is None where the LR image is to be made."""

    name: str
    hr_path: Path
    lr_path: Path | None


@dataclass(frozen=True)
class _CachedPair:
    name: str
    path: Path
    hr: CachedImage
    lr: CachedImage


class _CachedPairs(Sequence[ImagePair]):
    """Pairs whose arrays are mapped when they are asked for."""

    def __init__(self, entries: list[_CachedPair]):
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> ImagePair:  # type: ignore[override]  # slices are not offered
        entry = self._entries[index]
        return ImagePair(entry.name, entry.hr.open(), entry.lr.open(), entry.path)


def open_dataset(
    source: str,
    *,
    scale: int,
    split: Split,
    data_dir: Path | None,
    cache_dir: Path,
    download: bool = False,
    panoramas: bool = False,
    progress: Progress | None = None,
) -> PairedDataset:
    """Open `source` at `scale` as HR images, cropped to a multiple of the scale (top-left), and their LR images.

    `source` is `demo`, a name of `CATALOGUE` found under `data_dir` (downloaded where `download` is allowed and a
    verified address known), the path of a folder, or its fsspec URL (`s3://…`), which is copied into `cache_dir`. A
    folder with `HR/` and `LR_bicubic/X{scale}/` (files `NAMEx{scale}.png`) uses those LR files; the LR images of any
    other are made by `downscale`. The split matters to `demo` and to names only. Images come in the order of their file
    names, named by them without suffix. The first opening decodes and resizes every image into `cache_dir`; later ones
    only hash the files. `progress(what, done, total)` is called along the way.

    Raises `UserError` naming the file or folder: unknown source, URL that cannot be read, missing or empty folder,
    missing LR file, LR file of another size, image smaller than `scale`, image that cannot be read and, with
    `panoramas`, image that is no whole equirectangular panorama.
    """
    if is_url(source):
        source = str(copy_folder(source, cache_dir, scale=scale, progress=progress))
    sources = _find_sources(source, scale, split, data_dir, download, progress)
    name = source if source == "demo" or source in CATALOGUE else _name_folder(Path(source).resolve())
    entries: list[_CachedPair] = []
    for index, image in enumerate(sources):
        entries.append(_cache_pair(image, scale, cache_dir))
        if panoramas:
            require_panorama(str(image.hr_path), entries[-1].hr.shape[:2], scale=scale, remedy=_FLAT_REMEDY)
        if progress is not None:
            progress(f"reading images of {name}", index + 1, len(sources))
    content_hash = hash_content((entry.hr.pixel_hash, entry.lr.pixel_hash) for entry in entries)
    return PairedDataset(name, scale, _CachedPairs(entries), content_hash)


def _find_sources(
    source: str, scale: int, split: Split, data_dir: Path | None, download: bool, progress: Progress | None
) -> list[_Source]:
    if source == "demo":
        return [_Source(path.stem, path, None) for path in find_demo_files(split)]
    if source in CATALOGUE:
        if data_dir is None:
            raise UserError(
                f"dataset {source!r} is looked for in a data directory, and none is given; "
                "give one, or the path of a folder of images"
            )
        hr_folders = find_named_folders(
            source, scale=scale, split=split, data_dir=data_dir, download=download, progress=progress
        )
        return [image for hr_folder in hr_folders for image in _list_sources(hr_folder, scale)]
    folder = Path(source)
    if not folder.is_dir():
        known = ", ".join(sorted(["demo", *CATALOGUE]))
        raise UserError(
            f"no folder {source!r}, nor a dataset of that name; expected a folder of images or one of: {known}"
        )
    if (folder / "HR").is_dir():
        return _list_sources(folder / "HR", scale)
    return _list_sources(folder, scale)


def _name_folder(folder: Path) -> str:
    return f"{folder.parent.name}/HR" if folder.name == "HR" else folder.name


def _list_sources(hr_folder: Path, scale: int) -> list[_Source]:
    paths = list_images(hr_folder)
    if not paths:
        raise UserError(f"{hr_folder}: no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    stems = Counter(path.stem for path in paths)
    lr_folder = _find_lr_folder(hr_folder, scale)
    sources = []
    for path in paths:
        lr_path = lr_folder / f"{path.stem}x{scale}.png" if lr_folder else None
        if lr_path is not None and not lr_path.is_file():
            raise UserError(f"{lr_path}: missing, expected the ×{scale} low-resolution image of {path}")
        sources.append(_Source(path.stem if stems[path.stem] == 1 else path.name, path, lr_path))
    return sources


def _find_lr_folder(hr_folder: Path, scale: int) -> Path | None:
    """Return the folder of LR images beside `…/HR` or `…/NAME_HR`, None where there is none."""
    if not (hr_folder.name == "HR" or hr_folder.name.endswith("_HR")):
        return None
    lr_folder = hr_folder.with_name(hr_folder.name[: -len("HR")] + "LR_bicubic") / f"X{scale}"
    return lr_folder if lr_folder.is_dir() else None


def _cache_pair(source: _Source, scale: int, cache_dir: Path) -> _CachedPair:
    hr_key = f"{_hash_file(source.hr_path)}-d{DECODER_VERSION}"
    hr = load_or_make(cache_dir / f"{hr_key}-x{scale}-hr.npy", lambda: _read_hr(source.hr_path, scale))
    if source.lr_path is None:
        lr_file = cache_dir / f"{hr_key}-x{scale}-lr-r{RESIZE_VERSION}.npy"
        lr = load_or_make(lr_file, lambda: downscale(hr.open(), scale))
    else:
        lr_path = source.lr_path
        lr = load_or_make(cache_dir / f"{_hash_file(lr_path)}-d{DECODER_VERSION}-rgb.npy", lambda: read_rgb(lr_path))
        check_sizes(str(lr_path), hr.shape, lr.shape, scale)
    return _CachedPair(source.name, source.hr_path, hr, lr)


def _read_hr(path: Path, scale: int) -> ImageArray:
    image_HWC = read_rgb(path)
    height, width = image_HWC.shape[:2]
    if min(height, width) < scale:
        raise UserError(f"{path}: {width}×{height} pixels are too few for ×{scale}; remove it")
    return crop_to_multiple(image_HWC, scale)


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error

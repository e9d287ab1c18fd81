"""Datasets known by name: where they usually lie under a data directory, and how to get them.

A download is offered only where the address and a published checksum are known; nothing else is fetched.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pooch
from filelock import FileLock

from harness.core.errors import UserError, unknown_name
from harness.data.demo import DEMO_TERMS
from harness.data.images import list_images

Split = Literal["train", "validation"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Archive:
    """A zip file to download: its address, SHA-256, size, and the folder below the data directory that it becomes.

    The zip holds one folder with the name of `folder`'s last part.
    """

    url: str
    sha256: str
    size_bytes: int
    folder: str


@dataclass(frozen=True)
class ImageSet:
    """HR images in one folder: the places to look, in order, and how many images there must be (None: any number).

    `{scale}` in a place stands for the scale.
    """

    folders: tuple[str, ...]
    count: int | None = None
    archive: Archive | None = None


@dataclass(frozen=True)
class NamedDataset:
    """A dataset of the literature: the image sets of each split; an empty split does not exist.

    `terms`: under which those who published it let its images be used, in their words as far as possible; None where
    that is not known here.
    """

    description: str
    train: tuple[ImageSet, ...] = ()
    validation: tuple[ImageSet, ...] = ()
    terms: str | None = None


# What https://data.vision.ee.ethz.ch/cvl/DIV2K/ says of it.
_DIV2K_TERMS = (
    "DIV2K (Agustsson and Timofte, 2017) is made available for academic research purpose only, and the copyright of "
    "its images belongs to their original owners (https://data.vision.ee.ethz.ch/cvl/DIV2K/)"
)


def _benchmark(names: Sequence[str], count: int | None, inner: Sequence[str] = ("HR", "GTmod12", "")) -> ImageSet:
    """Say where a benchmark set lies: alone or among others, the HR images in a folder of their own or not."""
    roots = [f"{parent}{name}" for parent in ("", "SR_testing_datasets/", "benchmark/") for name in names]
    return ImageSet(tuple(f"{root}/{folder}".rstrip("/") for root in roots for folder in inner), count)


# Checksums: the URL checksums that TensorFlow Datasets publishes for div2k.
_DIV2K_TRAIN = ImageSet(
    ("DIV2K/DIV2K_train_HR", "DIV2K_train_HR", "DIV2K/train/HR"),
    800,
    Archive(
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
        "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
        3_530_603_713,
        "DIV2K/DIV2K_train_HR",
    ),
)
_DIV2K_VALIDATION = ImageSet(
    ("DIV2K/DIV2K_valid_HR", "DIV2K_valid_HR", "DIV2K/valid/HR", "DIV2K/val/HR"),
    100,
    Archive(
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_valid_HR.zip",
        "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
        448_993_893,
        "DIV2K/DIV2K_valid_HR",
    ),
)
_FLICKR2K = ImageSet(("Flickr2K/Flickr2K_HR", "Flickr2K_HR", "Flickr2K/HR", "DF2K/Flickr2K_HR"), 2650)


def _div8k_test(size: str) -> ImageSet:
    """Say where a set that ClassSR cut from DIV8K lies; it has its own HR images for each scale."""
    names = (f"test{size}", f"Test{size.upper()}")
    return _benchmark(names, 100, ("HR/X{scale}", "HR", ""))


CATALOGUE: dict[str, NamedDataset] = {
    "set5": NamedDataset("5 images (Bevilacqua et al., 2012)", validation=(_benchmark(("Set5",), 5),)),
    "set14": NamedDataset("14 images (Zeyde et al., 2010)", validation=(_benchmark(("Set14",), 14),)),
    "b100": NamedDataset(
        "100 test images of BSD300 (Martin et al., 2001)",
        validation=(_benchmark(("B100", "BSD100", "BSDS100"), 100),),
    ),
    "urban100": NamedDataset("100 city views (Huang et al., 2015)", validation=(_benchmark(("Urban100",), 100),)),
    "manga109": NamedDataset("109 manga pages (Matsui et al., 2017)", validation=(_benchmark(("Manga109",), 109),)),
    "div2k": NamedDataset(
        "800 + 100 images of 2K (Agustsson and Timofte, 2017)",
        train=(_DIV2K_TRAIN,),
        validation=(_DIV2K_VALIDATION,),
        terms=_DIV2K_TERMS,
    ),
    "df2k": NamedDataset(
        "DIV2K and Flickr2K",
        train=(_DIV2K_TRAIN, _FLICKR2K),
        validation=(_DIV2K_VALIDATION,),
        terms=f"{_DIV2K_TERMS}; nothing is known here of the terms of Flickr2K",
    ),
    "f2k": NamedDataset(
        "Flickr2K, 2650 images (Lim et al., 2017); its test images F2K", (_FLICKR2K,), (_benchmark(("F2K",), None),)
    ),
    "test2k": NamedDataset("100 images of 2K (Kong et al., 2021)", validation=(_div8k_test("2k"),)),
    "test4k": NamedDataset("100 images of 4K (Kong et al., 2021)", validation=(_div8k_test("4k"),)),
    "test8k": NamedDataset("100 images of 8K (Kong et al., 2021)", validation=(_div8k_test("8k"),)),
    "odi-sr": NamedDataset(
        "omnidirectional images (Deng et al., 2021), as cleaned for OSRT",
        train=(ImageSet(("odisr/training/HR", "lau_dataset_clean/odisr/training/HR", "ODI-SR/training/HR")),),
        validation=(ImageSet(("odisr/testing/HR", "lau_dataset_clean/odisr/testing/HR", "ODI-SR/testing/HR")),),
    ),
}


def known_terms(source: str) -> str | None:
    """Return the terms that the images of a source (`demo`, a dataset's name, a folder) come under, where known."""
    if source == "demo":
        return DEMO_TERMS
    return CATALOGUE[source].terms if source in CATALOGUE else None


def find_named_folders(
    name: str,
    *,
    scale: int,
    split: Split,
    data_dir: Path,
    download: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Return the folders of HR images that make up a split of a known dataset, downloading them if allowed and known.

    Raises `UserError` for an unknown name, a split that the dataset does not have, a dataset that is not found (saying
    where it was looked for and what to do), a folder with another number of images than it has to have, and a failed
    download.
    """
    if name not in CATALOGUE:
        raise unknown_name("dataset", name, CATALOGUE)
    image_sets = getattr(CATALOGUE[name], split)
    if not image_sets:
        others = ", ".join(sorted(known for known, dataset in CATALOGUE.items() if getattr(dataset, split)))
        raise UserError(
            f"dataset {name!r} has no {split} images; expected one of: {others}; or give the path of a folder of images"
        )
    return [_find_folder(name, image_set, scale, data_dir, download, progress) for image_set in image_sets]


def download_archive(archive: Archive, data_dir: Path, progress: Progress | None = None) -> Path:
    """Download, verify and unpack `archive`; return its folder, which appears whole or not at all.

    Other processes that want the same folder wait for the first. Raises `UserError` when the download fails or is cut
    short, its SHA-256 is another, the disk is too full, or the zip does not hold the folder.
    """
    target = data_dir / archive.folder
    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(data_dir / f".{target.name}.lock"):
        if target.is_dir():
            return target
        needed, free = 2 * archive.size_bytes, shutil.disk_usage(data_dir).free
        if free < needed:
            raise UserError(
                f"{archive.url}: to download and unpack it, {data_dir} needs {needed / 1e9:.1f} GB free, "
                f"but has {free / 1e9:.1f} GB; free some or choose another data directory"
            )
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as scratch:
            file = Path(scratch) / "archive.zip"
            _fetch(archive, file, progress)
            unpacked = Path(scratch) / "unpacked"
            try:
                with zipfile.ZipFile(file) as content:
                    content.extractall(unpacked)
            except zipfile.BadZipFile as error:
                raise UserError(f"{archive.url}: not a zip file: {error}") from error
            if not (unpacked / target.name).is_dir():
                raise UserError(f"{archive.url}: has no folder {target.name!r}")
            target.parent.mkdir(parents=True, exist_ok=True)
            (unpacked / target.name).rename(target)
    return target


def _find_folder(
    name: str, image_set: ImageSet, scale: int, data_dir: Path, download: bool, progress: Progress | None
) -> Path:
    places = [place.format(scale=scale) for place in image_set.folders]
    found = [folder for place in places if (folder := data_dir / place).is_dir() and list_images(folder)]
    archive = image_set.archive
    if found:
        folder = found[0]
    elif archive is not None and download:
        folder = download_archive(archive, data_dir, progress)
    else:
        if archive is None:
            remedy = f"no verified download is known: get it by hand and put its HR images into {data_dir / places[0]}"
        else:
            remedy = (
                f"allow its download ({archive.size_bytes / 1e9:.1f} GB from {archive.url}) "
                f"or put its HR images into {data_dir / places[0]}"
            )
        raise UserError(f"dataset {name!r} not found in {data_dir}: looked for {', '.join(places)}; {remedy}")
    number = len(list_images(folder))
    if image_set.count is not None and number != image_set.count:
        raise UserError(
            f"dataset {name!r}: {folder} holds {number} images, expected {image_set.count}; "
            "complete it, or give the folder's path to use what is there"
        )
    return folder


class _DownloadProgress:
    """Reports a download's bytes in the form of the progress bar that pooch drives."""

    def __init__(self, what: str, total: int, progress: Progress):
        self.what, self.total, self.progress, self.done = what, total, progress, 0

    def update(self, count: int) -> None:
        self.done += count
        self.progress(self.what, self.done, self.total)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _fetch(archive: Archive, file: Path, progress: Progress | None) -> None:
    """Download `archive` into `file` and check it."""
    bar = _DownloadProgress(f"downloading {archive.url}", archive.size_bytes, progress) if progress else False
    try:
        pooch.HTTPDownloader(progressbar=bar)(archive.url, str(file), None)
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors
        raise UserError(f"{archive.url}: the download failed: {error}; try again, or get it by hand") from error
    found = pooch.file_hash(str(file), alg="sha256")
    if found != archive.sha256:
        raise UserError(
            f"{archive.url}: the download has SHA-256 {found}, expected {archive.sha256}; "
            "nothing was kept; try again, or get it by hand"
        )

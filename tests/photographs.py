"""Tiny real photographs: crops out of those that come with scikit-image, train and validation from different ones."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from harness.data.demo import find_demo_files


@dataclass(frozen=True)
class Photographs:
    """Two folders of PNG files."""

    train: Path
    validation: Path


def cut_photographs(folder: Path) -> Photographs:
    """Cut the crops into `folder`: three of 96 pixels a side to train on, one of 64 to validate on."""
    found = Photographs(folder / "train", folder / "validation")
    _cut("coffee.png", 250, 100, 96, found.train)
    _cut("chelsea.png", 150, 60, 96, found.train)
    _cut("rocket.jpg", 300, 250, 96, found.train)
    _cut("astronaut.png", 190, 60, 64, found.validation)
    return found


def _cut(name: str, left: int, top: int, side: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {path.name: path for path in (*find_demo_files("train"), *find_demo_files("validation"))}
    with Image.open(files[name]) as image:
        image.convert("RGB").crop((left, top, left + side, top + side)).save(folder / f"{Path(name).stem}.png")

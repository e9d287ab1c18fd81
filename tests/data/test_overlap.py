from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from harness.core.errors import UserError
from harness.data.datasets import PairedDataset, open_dataset, refuse_overlap
from harness.data.demo import find_demo_files
from harness.data.images import read_rgb


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def open_folder(folder: Path, cache: Path, scale: int = 4) -> PairedDataset:
    return open_dataset(str(folder), scale=scale, split="train", data_dir=None, cache_dir=cache)


def folder_of(folder: Path, **images: npt.NDArray[np.uint8]) -> Path:
    folder.mkdir()
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def motorcycles() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    left, right = (path for path in find_demo_files("train") if path.name.startswith("motorcycle"))
    return read_rgb(left), read_rgb(right)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_stereo_pair_is_never_split(
    tmp_path: Path, cache: Path, motorcycles: tuple[npt.NDArray[np.uint8], ...], scale: int
) -> None:
    left, right = motorcycles
    for index, (a, b) in enumerate([(left, right), (right, left), (left[:, ::-1], right), (np.rot90(left), right)]):
        train = open_folder(folder_of(tmp_path / f"train{index}", a=np.ascontiguousarray(a)), cache, scale)
        validation = open_folder(folder_of(tmp_path / f"validation{index}", b=b), cache, scale)
        with pytest.raises(UserError, match=r"validation\d/b\.png is nearly identical to .*train\d/a\.png; remove it"):
            refuse_overlap(train, validation)


def test_demo_split_holds(cache: Path) -> None:
    for scale in (2, 4):
        train = open_dataset("demo", scale=scale, split="train", data_dir=None, cache_dir=cache)
        validation = open_dataset("demo", scale=scale, split="validation", data_dir=None, cache_dir=cache)
        refuse_overlap(train, validation)
        with pytest.raises(UserError, match=r"chelsea\.png has the same pixels as"):
            refuse_overlap(PairedDataset("all", scale, [*train, validation[1]]), validation)


@pytest.mark.parametrize("folder", ["T91", pytest.param("BSDS80", marks=pytest.mark.slow)])
def test_training_sets_of_the_field_are_accepted_beside_set5(reference: Path, cache: Path, folder: str) -> None:
    for scale in (2, 4):
        train = open_folder(reference / "images" / folder, cache, scale)
        refuse_overlap(train, open_folder(reference / "images" / "Set5", cache, scale))


def test_same_pixels_are_found_under_another_name_and_format(photographs: Path, tmp_path: Path, cache: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.open(photographs / "photo2.png").save(other / "holiday.bmp")
    with pytest.raises(UserError, match=r"holiday\.bmp has the same pixels as training image .*photo2\.png"):
        refuse_overlap(open_folder(photographs, cache), open_folder(other, cache))


def test_resaved_and_resized_copies_are_found(tmp_path: Path, cache: Path) -> None:
    coffee = Image.fromarray(read_rgb(find_demo_files("validation")[2]))
    train = open_folder(folder_of(tmp_path / "train", coffee=np.asarray(coffee)), cache)
    for name, copy in (("small", coffee.resize((300, 200))), ("shaved", coffee.crop((6, 4, 594, 396)))):
        folder = tmp_path / name
        folder.mkdir()
        copy.save(folder / f"{name}.jpg", quality=60)
        with pytest.raises(UserError, match=rf"{name}\.jpg is nearly identical to .*coffee\.png"):
            refuse_overlap(train, open_folder(folder, cache))


def test_flat_images_and_textures_are_not_mistaken(tmp_path: Path, cache: Path, rng: np.random.Generator) -> None:
    def noise(spread: int) -> npt.NDArray[np.uint8]:
        return rng.integers(120 - spread, 121 + spread, (96, 96, 3)).astype(np.uint8)

    def flat(level: int) -> npt.NDArray[np.uint8]:
        return np.full((96, 96, 3), level, np.uint8)

    train = open_folder(folder_of(tmp_path / "a", flat=flat(10), calm=noise(2), rough=noise(100)), cache)
    refuse_overlap(
        train, open_folder(folder_of(tmp_path / "b", flat=flat(200), calm=noise(2), rough=noise(100)), cache)
    )
    with pytest.raises(UserError, match=r"same\.png has the same pixels as .*flat\.png"):
        refuse_overlap(train, open_folder(folder_of(tmp_path / "c", same=flat(10)), cache))


def test_halves_of_one_texture_are_different_images(cache: Path, tmp_path: Path) -> None:
    by_name = {path.name: read_rgb(path) for path in find_demo_files("train")}
    for name in ("grass.png", "gravel.png", "brick.png"):
        left, right = by_name[name][:, :256], by_name[name][:, 256:]
        refuse_overlap(
            open_folder(folder_of(tmp_path / f"left-{name}", left=left), cache),
            open_folder(folder_of(tmp_path / f"right-{name}", right=right), cache),
        )

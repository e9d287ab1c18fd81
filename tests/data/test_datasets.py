import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.core.errors import UserError
from harness.data.datasets import ImagePair, PairedDataset, open_dataset
from harness.data.images import list_images, read_rgb
from harness.data.imresize import crop_to_multiple, downscale


def open_folder(folder: Path, cache: Path, scale: int = 4) -> PairedDataset:
    return open_dataset(str(folder), scale=scale, split="train", data_dir=None, cache_dir=cache)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_plain_folder_gets_its_lr_made(photographs: Path, tmp_path: Path, scale: int) -> None:
    dataset = open_folder(photographs, tmp_path / "cache", scale)
    assert (dataset.name, dataset.scale, len(dataset)) == ("photographs", scale, 4)
    assert [pair.name for pair in dataset] == ["photo0", "photo1", "photo2", "photo3"]
    for path, pair in zip(list_images(photographs), dataset, strict=True):
        image = read_rgb(path)
        assert np.array_equal(pair.hr_HWC, crop_to_multiple(image, scale))
        assert np.array_equal(pair.lr_HWC, downscale(image, scale))
        assert pair.path == path
        assert not pair.hr_HWC.flags.writeable
        assert not pair.lr_HWC.flags.writeable


def test_set5_folder_uses_its_lr_files_and_they_equal_ours(reference: Path, tmp_path: Path) -> None:
    folder = reference / "images" / "Set5"
    given = open_folder(folder, tmp_path / "cache")
    made = open_folder(folder / "HR", tmp_path / "cache")
    named = open_dataset(
        "set5", scale=4, split="validation", data_dir=reference / "images", cache_dir=tmp_path / "cache"
    )
    assert [pair.name for pair in given] == ["baby", "bird", "butterfly", "head", "woman"]
    assert given.content_hash == named.content_hash
    assert (given.name, made.name, named.name) == ("Set5", "Set5/HR", "set5")
    # The folder HR/ given by itself has LR_bicubic/ beside it and means the same images.
    assert made.content_hash == given.content_hash


def test_given_lr_files_are_used_as_they_are(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "paired"
    (folder / "LR_bicubic" / "X4").mkdir(parents=True)
    photographs.rename(folder / "HR")
    for path in list_images(folder / "HR"):
        dark = downscale(read_rgb(path), 4) // 2
        Image.fromarray(dark).save(folder / "LR_bicubic" / "X4" / f"{path.stem}x4.png")
    dataset = open_folder(folder, tmp_path / "cache")
    for pair in dataset:
        assert np.array_equal(pair.lr_HWC, downscale(np.asarray(pair.hr_HWC), 4) // 2)
    # There is no X2 folder: those are made.
    assert np.array_equal(
        open_folder(folder, tmp_path / "cache", 2)[0].lr_HWC, downscale(read_rgb(folder / "HR" / "photo0.png"), 2)
    )
    lr_file = folder / "LR_bicubic" / "X4" / "photo1x4.png"
    Image.new("RGB", (16, 15)).save(lr_file)
    with pytest.raises(UserError, match=r"photo1x4\.png: the low-resolution image has 16×15 pixels, expected 16×16"):
        open_folder(folder, tmp_path / "cache")
    lr_file.unlink()
    with pytest.raises(UserError, match=r"photo1x4\.png: missing.*photo1\.png"):
        open_folder(folder, tmp_path / "cache")


def test_cache_is_filled_once_and_not_written_again(photographs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = open_folder(photographs, cache)
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 8
    again = open_folder(photographs, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    assert again.content_hash == first.content_hash
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.hr_HWC, b.hr_HWC)
        assert np.array_equal(a.lr_HWC, b.lr_HWC)


def test_cache_follows_content_not_names(photographs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = open_folder(photographs, cache)
    (photographs / "photo0.png").rename(photographs / "a.png")  # stays the first
    assert open_folder(photographs, cache).content_hash == before.content_hash
    (photographs / "a.png").rename(photographs / "z.png")  # becomes the last
    assert open_folder(photographs, cache).content_hash != before.content_hash
    Image.new("RGB", (60, 60), "red").save(photographs / "photo1.png")
    changed = open_folder(photographs, cache)
    assert (changed[0].hr_HWC[0, 0] == (255, 0, 0)).all()


def test_content_hash_counts_pixels_only(photographs: Path, tmp_path: Path) -> None:
    cached = open_folder(photographs, tmp_path / "cache")
    in_memory = PairedDataset("other name", 4, [ImagePair("x", pair.hr_HWC, pair.lr_HWC) for pair in cached])
    assert in_memory.content_hash == cached.content_hash
    pairs = list(cached)
    darker = ImagePair("photo0", pairs[0].hr_HWC, pairs[0].lr_HWC // 2)
    assert PairedDataset("photographs", 4, [darker, *pairs[1:]]).content_hash != cached.content_hash
    for path in list_images(photographs):  # another lossless format holds the same content
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    assert open_folder(photographs, tmp_path / "cache").content_hash == cached.content_hash


@pytest.mark.parametrize("damage", ["empty", "garbage", "half", "one byte short", "longer", "other type"])
def test_damaged_cache_entries_are_made_again(photographs: Path, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    expected = [(np.array(pair.hr_HWC), np.array(pair.lr_HWC)) for pair in open_folder(photographs, cache)]
    for path in cache.iterdir():
        content = path.read_bytes()
        if damage == "other type":
            with path.open("wb") as file:
                np.save(file, np.zeros((4, 4, 3), np.float32))
            continue
        path.write_bytes(
            {
                "empty": b"",
                "garbage": b"garbage" * 9999,
                "half": content[: len(content) // 2],
                "one byte short": content[:-1],
                "longer": content + b"\0",
            }[damage]
        )
    for (hr, lr), pair in zip(expected, open_folder(photographs, cache), strict=True):
        assert np.array_equal(pair.hr_HWC, hr)
        assert np.array_equal(pair.lr_HWC, lr)


def test_several_threads_may_fill_one_cache(photographs: Path, tmp_path: Path) -> None:
    hashes: list[str] = []

    def open_and_note() -> None:
        hashes.append(open_folder(photographs, tmp_path / "cache").content_hash)

    threads = [threading.Thread(target=open_and_note) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hashes) == 6
    assert len(set(hashes)) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 8


def test_progress_is_told(photographs: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    open_dataset(
        str(photographs),
        scale=2,
        split="train",
        data_dir=None,
        cache_dir=tmp_path / "cache",
        progress=lambda *state: told.append(state),
    )
    assert told == [("reading images of photographs", done, 4) for done in range(1, 5)]


def test_same_stem_in_two_formats_keeps_the_full_names(photographs: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "blue").save(photographs / "photo0.bmp")
    names = [pair.name for pair in open_folder(photographs, tmp_path / "cache")]
    assert names == ["photo0.bmp", "photo0.png", "photo1", "photo2", "photo3"]


def test_mistakes_name_the_folder_or_file(photographs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"no folder .*nowhere.*one of: b100, demo, df2k"):
        open_folder(tmp_path / "nowhere", cache)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty: no images; expected files ending in \.png"):
        open_folder(empty, cache)
    (empty / "HR").mkdir()
    with pytest.raises(UserError, match="HR: no images"):
        open_folder(empty, cache)
    Image.new("RGB", (40, 3)).save(photographs / "thin.png")
    with pytest.raises(UserError, match=r"thin\.png: 40×3 pixels are too few for ×4"):
        open_folder(photographs, cache)
    (photographs / "thin.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"thin\.png: cannot be read"):
        open_folder(photographs, cache)
    with pytest.raises(UserError, match="looked for in a data directory, and none is given"):
        open_dataset("set5", scale=4, split="validation", data_dir=None, cache_dir=cache)
    with pytest.raises(UserError, match="has no images"):
        PairedDataset("nothing", 2, [])
    with pytest.raises(UserError, match="expected 8×8 for ×2 of 16×16"):
        PairedDataset("odd", 2, [ImagePair("a", np.zeros((16, 16, 3), np.uint8), np.zeros((8, 9, 3), np.uint8))])


def test_demo_has_its_fixed_split(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    train = open_dataset("demo", scale=4, split="train", data_dir=None, cache_dir=cache)
    validation = open_dataset("demo", scale=4, split="validation", data_dir=None, cache_dir=cache)
    assert (train.name, len(train)) == ("demo", 12)
    assert [pair.name for pair in validation] == ["astronaut", "chelsea", "coffee"]
    assert min(min(pair.hr_HWC.shape[:2]) for pair in train) >= 300
    assert validation[0].hr_HWC.shape == (512, 512, 3)


def test_thousands_of_images_need_no_open_files(photographs: Path, tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list a process's open files")
    dataset = open_folder(photographs, tmp_path / "cache")
    before = len(list(descriptors.iterdir()))
    for pair in dataset:
        assert pair.hr_HWC.size
    del pair
    assert len(list(descriptors.iterdir())) == before

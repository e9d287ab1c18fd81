"""Images at fsspec URLs: real file systems of fsspec, in memory, on disk and in a zip file."""

import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from harness.core.configs import DataConfig
from harness.core.errors import UserError
from harness.data import PairedDataset, open_dataset
from harness.data.remote import copy_folder
from tests.guarded import PASSWORD, guarded


def opened(source: str, cache: Path) -> PairedDataset:
    return open_dataset(source, scale=2, split="train", data_dir=None, cache_dir=cache)


def to_memory(photographs: Path, name: str) -> str:
    files = fsspec.filesystem("memory")
    if files.exists(f"/{name}"):
        files.rm(f"/{name}", recursive=True)
    files.put(f"{photographs}/", f"/{name}/", recursive=True)
    return f"memory://{name}"


def to_disk(photographs: Path, name: str) -> str:
    return f"file://{photographs}"


def to_zip(photographs: Path, name: str) -> str:
    with zipfile.ZipFile(photographs.with_suffix(".zip"), "w") as archive:
        for path in photographs.rglob("*"):
            archive.write(path, path.relative_to(photographs.parent))
    return f"zip://{photographs.name}::{photographs.with_suffix('.zip')}"


@pytest.mark.parametrize("put", [to_memory, to_disk, to_zip])
@pytest.mark.parametrize("layout", ["flat", "HR and LR"])
def test_it_is_the_dataset_of_the_folder(
    photographs: Path, tmp_path: Path, put: Callable[[Path, str], str], layout: str
) -> None:
    if layout == "HR and LR":
        made = opened(str(photographs), tmp_path / "made")
        (photographs / "LR_bicubic" / "X2").mkdir(parents=True)
        (photographs / "HR").mkdir()
        from PIL import Image

        for pair in made:
            Image.fromarray(255 - pair.lr_HWC).save(photographs / "LR_bicubic" / "X2" / f"{pair.name}x2.png")
            shutil.move(photographs / f"{pair.name}.png", photographs / "HR")
    local = opened(str(photographs), tmp_path / "local")
    remote = opened(put(photographs, "photographs"), tmp_path / "remote")
    assert remote.content_hash == local.content_hash
    assert remote.name == local.name
    assert [pair.name for pair in remote] == [pair.name for pair in local]


def test_archives_in_folders_with_an_at_sign_are_told_apart(tmp_path: Path, photographs: Path) -> None:
    copies = []
    for owner, photo in (("one", "photo0.png"), ("two", "photo1.png")):
        archive = tmp_path / f"{owner}@work" / "p.zip"
        archive.parent.mkdir()
        with zipfile.ZipFile(archive, "w") as file:
            file.write(photographs / photo, f"photos/{photo}")
        url = f"zip://photos::{archive}"
        assert DataConfig(train=url).train == url
        copies.append(copy_folder(url, tmp_path / "cache", scale=2))
    assert [sorted(path.name for path in copy.glob("*.png")) for copy in copies] == [["photo0.png"], ["photo1.png"]]


def test_only_what_changed_is_fetched_again(photographs: Path, tmp_path: Path) -> None:
    url = to_memory(photographs, "changing")
    fetched: list[str] = []

    def copy() -> Path:
        fetched.clear()
        return copy_folder(url, tmp_path, scale=2, progress=lambda what, done, total: fetched.append(what))

    first = copy()
    assert len(fetched) == 4
    assert copy() == first
    assert not fetched
    files = fsspec.filesystem("memory")
    files.rm("/changing/photo1.png")
    (photographs / "photo2.png").write_bytes((photographs / "photo0.png").read_bytes())
    files.put(str(photographs / "photo2.png"), "/changing/photo2.png")
    (first / "photo3.png").unlink()
    copy()
    assert len(fetched) == 2
    assert sorted(path.name for path in first.iterdir()) == ["photo0.png", "photo2.png", "photo3.png"]
    assert (first / "photo2.png").read_bytes() == (photographs / "photo0.png").read_bytes()


def test_a_copy_that_was_cut_short_goes_on(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = to_memory(photographs, "cut")
    files = fsspec.filesystem("memory")
    original = type(files).get_file
    fetched: list[str] = []

    def failing(self: object, remote: str, local: str, **options: object) -> None:
        if len(fetched) == 2:
            raise ConnectionResetError(104, "Connection reset by peer")
        fetched.append(remote)
        original(self, remote, local, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(files), "get_file", failing)
        with pytest.raises(UserError, match="Connection reset by peer"):
            copy_folder(url, tmp_path, scale=2)
    again: list[str] = []
    copy = copy_folder(url, tmp_path, scale=2, progress=lambda what, done, total: again.append(what))
    assert len(again) == 2
    assert len(list(copy.glob("*.png"))) == 4
    assert not [path for path in copy.iterdir() if path.name.startswith(".")]


def test_processes_that_copy_at_the_same_time_have_it_once(photographs: Path, tmp_path: Path) -> None:
    url = to_memory(photographs, "shared")
    fetched: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: copy_folder(url, tmp_path, scale=2, progress=lambda what, done, total: fetched.append(what))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 4


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://nothing-here", "nothing-here"),
        ("nosuch://bucket/images", "nosuch"),
        ("zip://*::/no/such/file.zip", "file.zip"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(UserError, match=r"images at .* cannot be read: .*expected a folder of images") as caught:
        opened(url, tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none")
    with pytest.raises(UserError, match=r"no images there, which end in \.png"):
        opened(f"file://{tmp_path / 'empty'}", tmp_path / "cache")


def test_passwords_are_not_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        opened("nosuch://someone:secret@host/images", tmp_path)
    assert "secret" not in str(caught.value)


def test_a_password_opens_images_and_is_kept_nowhere(photographs: Path, tmp_path: Path) -> None:
    local = opened(str(photographs), tmp_path / "local")
    with guarded(photographs) as (_, url):
        remote = opened(f"{url}/", tmp_path / "remote")
        with pytest.raises(UserError, match=r"cannot be read: .*give --train and --validation again") as caught:
            opened(url.replace(PASSWORD, f"{PASSWORD}?"), tmp_path / "remote")
    assert remote.content_hash == local.content_hash
    assert remote.name.startswith("127.0.0.1")
    kept = [str(path).encode() + path.read_bytes() for path in (tmp_path / "remote").rglob("*") if path.is_file()]
    assert kept
    for text in (*kept, remote.name.encode(), str(caught.value).encode()):
        assert PASSWORD.encode() not in text

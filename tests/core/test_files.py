import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from harness.core.files import atomic_path, lock_holders, write_text


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    previous = os.umask(request.param)
    yield request.param
    os.umask(previous)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "text.json"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert (temporary.parent, temporary.suffix) == (
            path.parent,
            ".json",
        )  # one file system; a writer sees the suffix
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["text.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_when_the_block_raises_the_old_file_stays_and_nothing_is_left(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]
    path.unlink()
    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_when_the_block_writes_nothing_at_all_the_file_is_empty_and_when_it_removes_it_it_fails(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").read_bytes() == b""
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "gone") as temporary:
        temporary.unlink()
    assert names(tmp_path) == ["empty"]


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new and longer")
        assert reader.read() == "old"
    assert path.read_text() == "new and longer"


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the block that ended last
    assert names(tmp_path) == ["file"]


def test_files_have_the_permissions_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "text", "x")
    with atomic_path(tmp_path / "weights.safetensors") as temporary:
        save_file({"a": torch.zeros(3)}, temporary)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path.name


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "γ ≤ ½")
    assert (tmp_path / "text").read_bytes() == "γ ≤ ½".encode()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="this system does not tell who holds locks")
def test_who_holds_a_lock_is_told_without_touching_it(tmp_path: Path) -> None:
    path = tmp_path / "search.lock"
    assert lock_holders(path) == ()
    assert not path.exists()
    with FileLock(path):
        assert lock_holders(path) == (os.getpid(),)
        other = tmp_path / "another.lock"
        other.touch()
        assert lock_holders(other) == ()
    assert lock_holders(path) == ()

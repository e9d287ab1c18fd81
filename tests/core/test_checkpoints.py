"""Where checkpoints are kept, at real places: folders, memory, a server of S3 and one of FTP."""

import contextlib
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.core import checkpoints
from harness.core.checkpoints import MARK, GivenPlace, parse_place
from harness.core.errors import OutageError, UserError
from tests.places import FtpServer, s3_server

KINDS = ("path", "file", "memory", "s3", "ftp")


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place of each kind, which does not exist yet."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        yield f"s3://bucket/{uuid.uuid4().hex}"
    elif request.param == "ftp":
        with FtpServer(tmp_path / "ftp") as server:
            yield server.url
    else:
        kinds = {
            "path": f"{tmp_path}/kept",
            "file": f"file://{tmp_path}/kept",
            "memory": f"memory://{uuid.uuid4().hex}",
        }
        yield kinds[request.param]


def claimed(url: str) -> GivenPlace:
    place = parse_place(url).below("study")
    place.claim()
    return place


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_what_is_written_is_read_until_it_is_removed(url: str) -> None:
    parse_place(url).probe(make=True)
    place = claimed(url)
    checkpoint = place.checkpoint("0123456789ab")
    assert (checkpoint.read(), checkpoint.mark(), place.find()) == (None, 0, [])
    checkpoint.write(b"first" * 100_000)
    first = checkpoint.mark()
    assert first == checkpoint.mark() != 0
    checkpoint.write(memoryview(b"second"))
    assert checkpoint.read() == b"second"
    assert checkpoint.mark() != first
    (listed,) = place.find()
    assert (listed.network_id, listed.size_bytes) == ("0123456789ab", 6)
    assert listed.changed is not None
    assert abs(listed.changed - time.time()) < 60
    other = pickle.loads(pickle.dumps(place)).checkpoint("0123456789ab")
    assert other.read() == b"second"
    checkpoint.touch()
    assert checkpoint.read() == b"second"
    other.remove()
    other.remove()
    assert (checkpoint.read(), checkpoint.mark(), place.find()) == (None, 0, [])


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_a_place_that_is_another_one_is_refused(url: str) -> None:
    place = parse_place(url).below("study")
    token = place.claim()
    place.check(token)
    for _ in range(2):
        with pytest.raises(UserError, match=f"not the place .*{MARK} is another") as caught:
            place.check("0" * 16)
        place.claim()
    with pytest.raises(UserError, match="is another"):
        place.check(token)
    place.inner.remove(MARK)
    with pytest.raises(UserError, match=f"not the place .*{MARK} is missing"):
        place.check(token)
    assert "\n" not in str(caught.value)


_WRITER = """
import hashlib, os, sys
from harness.core.checkpoints import parse_place

checkpoint = parse_place(sys.argv[1]).below("study").checkpoint("network")
while True:
    content = os.urandom(20_000_000)
    checkpoint.write(content + hashlib.sha256(content).digest())
    print("written", flush=True)
"""


@pytest.mark.parametrize(
    "url", ["path", *(pytest.param(url, marks=pytest.mark.slow) for url in ("s3", "ftp"))], indirect=True
)
def test_who_writes_may_be_killed_and_who_reads_sees_no_half(url: str) -> None:
    """A writer is killed in the middle again and again, while another one reads."""
    place = claimed(url)
    checkpoint = place.checkpoint("network")
    for number in range(4):
        before = checkpoint.read()
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, url], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        deadline = time.monotonic() + 0.3 + 0.11 * number
        while time.monotonic() < deadline:
            _assert_whole(checkpoint.read())
        writer.kill()
        writer.wait()
        _assert_whole(checkpoint.read())
        assert checkpoint.read() != before
    checkpoint.remove()
    assert place.find() == []
    if isinstance(place.inner, checkpoints.Folder):
        assert [path.name for path in place.inner.path.iterdir()] == [MARK]


def _assert_whole(content: bytes | None) -> None:
    assert content is not None
    assert hashlib.sha256(content[:-32]).digest() == content[-32:]


# ---- what cannot be reached ----


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nosuch://someone:secret@host/prefix", "Protocol not known: nosuch"),
        ("gs://bucket/prefix", "gcsfs"),
        ("ftp://someone:secret@127.0.0.1:1/prefix", "refused"),
        ("FILE/below", "Not a directory"),
        ("file://FILE/below", "Not a directory"),
        ("/proc/nothing", "No such file"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_on_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "file").touch()
    if "gs:" in text and _is_installed("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(UserError, match=r"checkpoints at '.*' cannot be kept: .*; expected a folder") as caught:
        parse_place(text.replace("FILE", str(tmp_path / "file"))).probe(make=True)
    message = str(caught.value)
    assert reason in message
    assert "secret" not in message
    assert "\n" not in message


def _is_installed(package: str) -> bool:
    with contextlib.suppress(ImportError):
        __import__(package)
        return True
    return False


def test_a_bucket_that_is_not_there_is_told(s3: None) -> None:
    with pytest.raises(UserError, match=r"checkpoints at 's3://no-such-bucket/x' cannot be kept: .*bucket"):
        parse_place("s3://no-such-bucket/x").probe(make=True)


def test_a_wrong_password_is_told_and_no_password(tmp_path: Path) -> None:
    with FtpServer(tmp_path / "ftp") as server:
        parse_place(server.url).probe(make=True)
        with pytest.raises(
            UserError, match=r"checkpoints at 'ftp://127\.0\.0\.1:\d+/kept' cannot be kept: 530"
        ) as caught:
            parse_place(server.url.replace("secret", "hunter2")).probe(make=True)
        assert "hunter2" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_must_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        parse_place(str(tmp_path)).probe()


def test_a_place_must_have_a_name() -> None:
    with pytest.raises(UserError, match="expected a folder or an fsspec URL"):
        parse_place(" ")


# ---- what is lost in the middle ----


def test_a_server_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FtpServer(tmp_path / "ftp") as server:
        checkpoint = claimed(server.url).checkpoint("network")
        checkpoint.write(b"first")
        server.kill()

        def start(_seconds: float) -> None:
            if not server.is_running:
                server.start()

        monkeypatch.setattr(time, "sleep", start)
        assert checkpoint.read() == b"first"
        server.kill()
        checkpoint.write(b"second")
        server.kill()
        assert checkpoint.mark() != 0
        assert checkpoint.read() == b"second"


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [False, True])
def test_a_server_that_stays_away_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freeze: bool) -> None:
    """One that is gone, and one that says nothing more."""
    monkeypatch.setattr(checkpoints, "PATIENCE_SECONDS", 2.0)
    with FtpServer(tmp_path / "ftp") as server:
        checkpoint = claimed(server.url).checkpoint("network")
        checkpoint.write(b"first")
        if freeze:
            server.freeze()
        else:
            server.kill()
        for act in (checkpoint.read, lambda: checkpoint.write(b"second"), checkpoint.mark, checkpoint.remove):
            with pytest.raises(OutageError, match="once the place is back, the same command goes on") as caught:
                act()
            assert "secret" not in str(caught.value)
            assert "\n" not in str(caught.value)
        started = time.monotonic()
        monkeypatch.setattr(checkpoints, "PATIENCE_SECONDS", 2.0 if freeze else 100.0)
        with pytest.raises(OutageError):
            checkpoint.write(b"second", lambda: True)  # who is to stop does not wait
        assert time.monotonic() - started < 10


def test_a_share_that_is_not_mounted_any_more_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the disk below it, and nothing is trained again for the lack of a checkpoint."""
    monkeypatch.setattr(checkpoints, "PATIENCE_SECONDS", 0.5)
    place = claimed(str(tmp_path / "share"))
    place.checkpoint("network").write(b"first")
    shutil.move(tmp_path / "share", tmp_path / "elsewhere")
    with pytest.raises(OutageError, match="is gone"):
        place.checkpoint("network").write(b"second")
    with pytest.raises(OutageError, match="is gone"):
        place.checkpoint("network").read()
    assert not (tmp_path / "share").exists()
    shutil.move(tmp_path / "elsewhere", tmp_path / "share")
    assert place.checkpoint("network").read() == b"first"


def test_a_full_disk_is_not_waited_for(tmp_path: Path) -> None:
    """A limit of the size of files stands for it, in a process of its own."""
    script = f"""
        import resource
        from harness.core.checkpoints import parse_place
        from harness.core.errors import OutageError

        place = parse_place({str(tmp_path)!r})
        place.claim()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            place.checkpoint("network").write(bytes(5000))
        except OutageError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "make room there, and the same command goes on" in done.stdout

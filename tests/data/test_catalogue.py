import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.core.errors import UserError
from harness.data import catalogue
from harness.data.catalogue import CATALOGUE, Archive, ImageSet, NamedDataset, download_archive, find_named_folders
from harness.data.datasets import open_dataset


def put_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(np.full((12, 12, 3), index, np.uint8)).save(folder / f"{index:04d}.png")


def make_zip(folder: str, count: int = 3) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(count):
            image = io.BytesIO()
            Image.fromarray(np.full((12, 12, 3), 40 * index, np.uint8)).save(image, format="PNG")
            archive.writestr(f"{folder}/{index:04d}.png", image.getvalue())
    return buffer.getvalue()


class Server:
    """A web server on this machine: `/zip` whole, `/cut` half of what it announces, anything else is not found."""

    def __init__(self) -> None:
        self.content = make_zip("Tiny_HR")
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                if self.path not in ("/zip", "/cut"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(server.content)))
                self.end_headers()
                half = len(server.content) // 2
                self.wfile.write(server.content if self.path == "/zip" else server.content[:half])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def archive(self, path: str = "/zip", sha256: str | None = None, folder: str = "Tiny/Tiny_HR") -> Archive:
        url = f"http://127.0.0.1:{self._http.server_address[1]}{path}"
        return Archive(url, sha256 or hashlib.sha256(self.content).hexdigest(), len(self.content), folder)

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not path.name.endswith(".lock"))


def test_download_is_verified_unpacked_and_not_repeated(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int, int]] = []
    folder = download_archive(server.archive(), tmp_path / "data", lambda *state: told.append(state))
    assert folder == tmp_path / "data" / "Tiny" / "Tiny_HR"
    assert visible(tmp_path / "data") == ["0000.png", "0001.png", "0002.png", "Tiny", "Tiny_HR"]
    assert told[-1] == (f"downloading {server.archive().url}", len(server.content), len(server.content))
    assert download_archive(server.archive(), tmp_path / "data") == folder
    assert server.requests == ["/zip"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("path", "sha256", "message"),
    [
        ("/zip", "0" * 64, "the download has SHA-256 [0-9a-f]{64}, expected 0{64}; nothing was kept"),
        ("/cut", None, "the download (failed|has SHA-256)"),
        ("/missing", None, "the download failed: 404"),
    ],
)
def test_failed_download_keeps_nothing(
    server: Server, tmp_path: Path, path: str, sha256: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=f"127.0.0.1.*{message}"):
        download_archive(server.archive(path, sha256), tmp_path)
    assert visible(tmp_path) == []
    download_archive(server.archive(), tmp_path)  # and a second try succeeds
    assert len(visible(tmp_path)) == 5


def test_unreachable_server_is_named(tmp_path: Path) -> None:
    server = Server()
    archive = server.archive()
    server.stop()
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*the download failed"):
        download_archive(archive, tmp_path)
    assert visible(tmp_path) == []


def test_content_that_is_not_what_it_should_be_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folder 'Other_HR'"):
        download_archive(server.archive(folder="Tiny/Other_HR"), tmp_path)
    server.content = b"no zip"
    with pytest.raises(UserError, match="not a zip file"):
        download_archive(server.archive(), tmp_path)
    assert visible(tmp_path) == []


def test_full_disk_is_noticed_before_the_download(server: Server, tmp_path: Path) -> None:
    archive = server.archive()
    huge = Archive(archive.url, archive.sha256, 10**18, archive.folder)
    with pytest.raises(UserError, match=r"needs 2000000000\.0 GB free"):
        download_archive(huge, tmp_path)
    assert server.requests == []


def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(download_archive(server.archive(), tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4
    assert server.requests == ["/zip"]


def test_named_dataset_is_downloaded_only_when_allowed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_set = ImageSet(("Tiny/Tiny_HR",), 3, server.archive())
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", NamedDataset("three images", validation=(image_set,)))
    data_dir, cache_dir = tmp_path / "data", tmp_path / "cache"
    with pytest.raises(UserError, match=r"'tiny' not found in .*looked for Tiny/Tiny_HR; allow its download"):
        open_dataset("tiny", scale=2, split="validation", data_dir=data_dir, cache_dir=cache_dir)
    assert server.requests == []
    dataset = open_dataset("tiny", scale=2, split="validation", data_dir=data_dir, cache_dir=cache_dir, download=True)
    assert [pair.name for pair in dataset] == ["0000", "0001", "0002"]
    assert dataset[2].lr_HWC.shape == (6, 6, 3)


def test_the_known_names_are_these() -> None:
    assert sorted(CATALOGUE) == [
        *("b100", "df2k", "div2k", "f2k", "manga109", "odi-sr", "set14", "set5", "test2k", "test4k", "test8k"),
        "urban100",
    ]
    with_download = {
        name
        for name, dataset in CATALOGUE.items()
        for image_set in (*dataset.train, *dataset.validation)
        if image_set.archive is not None
    }
    assert with_download == {"div2k", "df2k"}


@pytest.mark.parametrize("folder", ["Set5/HR", "Set5", "Set5/GTmod12", "SR_testing_datasets/Set5", "benchmark/Set5/HR"])
def test_usual_layouts_are_found(tmp_path: Path, folder: str) -> None:
    put_images(tmp_path / folder, 5)
    assert find_named_folders("set5", scale=4, split="validation", data_dir=tmp_path) == [tmp_path / folder]


def test_scale_is_part_of_some_layouts(tmp_path: Path) -> None:
    for scale in (2, 4):
        put_images(tmp_path / "test2k" / "HR" / f"X{scale}", 100)
    found = find_named_folders("test2k", scale=4, split="validation", data_dir=tmp_path)
    assert found == [tmp_path / "test2k" / "HR" / "X4"]


def test_union_has_the_images_of_both_and_the_lr_files_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (ImageSet(("DIV2K/DIV2K_train_HR",)), ImageSet(("Flickr2K/Flickr2K_HR",)))
    monkeypatch.setitem(catalogue.CATALOGUE, "df2k", NamedDataset("small", train=parts))
    put_images(tmp_path / "DIV2K" / "DIV2K_train_HR", 2)
    put_images(tmp_path / "Flickr2K" / "Flickr2K_HR", 3)
    lr_folder = tmp_path / "DIV2K" / "DIV2K_train_LR_bicubic" / "X2"
    lr_folder.mkdir(parents=True)
    for index in range(2):
        Image.fromarray(np.full((6, 6, 3), 99, np.uint8)).save(lr_folder / f"{index:04d}x2.png")
    dataset = open_dataset("df2k", scale=2, split="train", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert [int(pair.lr_HWC[0, 0, 0]) for pair in dataset] == [99, 99, 0, 1, 2]


def test_mistakes_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown dataset 'set6'; expected one of: b100, df2k"):
        find_named_folders("set6", scale=4, split="validation", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"looked for Set5/HR, .*no verified download is known.*put its HR images into"):
        find_named_folders("set5", scale=4, split="validation", data_dir=tmp_path, download=True)
    with pytest.raises(UserError, match=r"'div2k' not found.*allow its download \(3\.5 GB from https://data\.vision"):
        find_named_folders("div2k", scale=4, split="train", data_dir=tmp_path)
    with pytest.raises(UserError, match="'set5' has no train images; expected one of: df2k, div2k, f2k, odi-sr"):
        find_named_folders("set5", scale=4, split="train", data_dir=tmp_path)
    put_images(tmp_path / "Set5", 4)
    with pytest.raises(UserError, match=r"Set5 holds 4 images, expected 5; complete it"):
        find_named_folders("set5", scale=4, split="validation", data_dir=tmp_path)

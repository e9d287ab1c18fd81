from pathlib import Path

import numpy as np
import pytest
import torch

from harness.core.configs import BicubicConfig, CAMixerSRConfig
from harness.core.errors import UserError
from harness.data.images import write_png
from harness.data.imresize import ImageArray
from harness.export import list_jobs, read_importance, upscale_image
from harness.metrics import to_uint8
from harness.models import CAMixerSR, SRNetwork, build_model
from tests.tiny_pairs import cut


@pytest.fixture(scope="module")
def network() -> SRNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(CAMixerSRConfig(channels=8, groups=(1,), window=4, scale=3, image_residual=True)).eval()


def forward(network: SRNetwork, image_HWC: ImageArray) -> ImageArray:
    x_BCHW = torch.from_numpy(image_HWC.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        return to_uint8(network(x_BCHW)[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [(20, 30), (1, 1), (5, 3), (16, 16)])
def test_upscaling_is_one_forward_pass(network: SRNetwork, size: tuple[int, int]) -> None:
    image_HWC = cut("coffee", *size)
    upscaled_HWC = upscale_image(network, image_HWC)
    assert upscaled_HWC.dtype == np.uint8
    assert upscaled_HWC.shape == (3 * size[0], 3 * size[1], 3)
    assert np.array_equal(upscaled_HWC, forward(network, image_HWC))


def test_a_tile_that_covers_the_image_changes_nothing(network: SRNetwork) -> None:
    image_HWC = cut("coffee", 20, 30)
    assert np.array_equal(upscale_image(network, image_HWC, tile=30), upscale_image(network, image_HWC))
    told: list[tuple[int, int]] = []
    upscale_image(network, image_HWC, tile=30, progress=lambda *state: told.append(state))
    assert told == []


def test_tiles_are_those_of_the_image_and_progress_counts_them(network: SRNetwork) -> None:
    image_HWC = cut("coffee", 16, 32)
    told: list[tuple[int, int]] = []
    tiled_HWC = upscale_image(network, image_HWC, tile=16, overlap=0, progress=lambda *state: told.append(state))
    assert told == [(1, 2), (2, 2)]
    halves = [upscale_image(network, np.ascontiguousarray(image_HWC[:, half : half + 16])) for half in (0, 16)]
    assert np.array_equal(tiled_HWC, np.concatenate(halves, axis=1))


def test_overlapping_tiles_of_bicubic_come_close_to_the_whole() -> None:
    """Away from tiles' borders bicubic sees the same pixels; with the overlap averaged little is left at them."""
    bicubic = build_model(BicubicConfig(scale=2)).eval()
    image_HWC = cut("coffee", 40, 40)
    whole, tiled = upscale_image(bicubic, image_HWC), upscale_image(bicubic, image_HWC, tile=24, overlap=8)
    difference = np.abs(whole.astype(int) - tiled.astype(int))
    assert np.array_equal(whole[:30, :30], tiled[:30, :30])
    assert difference.mean() < 1


def test_the_input_is_not_changed_and_may_be_read_only(network: SRNetwork) -> None:
    image_HWC = cut("coffee", 12, 12).copy()
    before = image_HWC.copy()
    image_HWC.flags.writeable = False
    upscale_image(network, image_HWC[::-1])
    assert np.array_equal(image_HWC, before)


def test_broken_weights_are_no_image() -> None:
    broken = build_model(CAMixerSRConfig(channels=8, groups=(1,), window=4, scale=2)).eval()
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        upscale_image(broken, cut("coffee", 12, 12))


# What becomes what ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png"):
        write_png(tmp_path / "in" / name, cut("coffee", 8, 8))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_a_folder_becomes_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert list_jobs(folder, out) == [(folder / "a.png", out / "a.png"), (folder / "b.png", out / "b.png")]


def test_a_file_becomes_a_file_or_goes_into_a_folder(folder: Path, tmp_path: Path) -> None:
    source = folder / "a.png"
    assert list_jobs(source, tmp_path / "x.png") == [(source, tmp_path / "x.png")]
    assert list_jobs(source, tmp_path / "X.PNG") == [(source, tmp_path / "X.PNG")]
    assert list_jobs(source, tmp_path / "out") == [(source, tmp_path / "out" / "a.png")]
    (tmp_path / "v1.2").mkdir()
    assert list_jobs(source, tmp_path / "v1.2") == [(source, tmp_path / "v1.2" / "a.png")]
    assert list_jobs(source, tmp_path / "out", ".webp") == [(source, tmp_path / "out" / "a.webp")]
    for name in ("x.jpg", "x.webp", "x.TIF"):
        assert list_jobs(source, tmp_path / name) == [(source, tmp_path / name)]
    with pytest.raises(UserError, match=r"x\.gif: outputs are PNG, JPEG, WebP or TIFF; expected a name ending in"):
        list_jobs(source, tmp_path / "x.gif")


def test_folders_in_a_folder_are_kept_and_the_output_among_them_is_no_input(folder: Path) -> None:
    for place in ("deep/er", "out", ".hidden"):
        write_png(folder / place / "a.png", cut("coffee", 8, 8))
    write_png(folder / "deep" / ".a.png.1f.png", cut("coffee", 8, 8))
    jobs = list_jobs(folder, folder / "out")
    assert [path.relative_to(folder).as_posix() for path, _ in jobs] == ["a.png", "b.png", "deep/er/a.png"]
    assert jobs[-1][1] == folder / "out" / "deep" / "er" / "a.png"


def test_an_input_is_never_an_output(folder: Path, tmp_path: Path) -> None:
    for source, target in ((folder, folder), (folder / "a.png", folder / "a.png"), (folder / "a.png", folder)):
        with pytest.raises(UserError, match=r"a\.png is an input, and would be replaced by what is made of it"):
            list_jobs(source, target)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="is an input"):
        list_jobs(folder, tmp_path / "link")
    assert list_jobs(folder, folder, ".webp")[0][1] == folder / "a.webp"


def test_two_inputs_never_become_one_output(folder: Path, tmp_path: Path) -> None:
    (folder / "a.jpg").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png would both become .*a\.png; rename one of them"):
        list_jobs(folder, tmp_path / "out")


def test_impossible_sources_and_targets_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.png not found; expected an image file or a folder of images"):
        list_jobs(tmp_path / "nowhere.png", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; expected a folder, because .*in is one"):
        list_jobs(folder, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no images \(\.png, \.jpg"):
        list_jobs(tmp_path / "empty", tmp_path / "out")


def test_a_map_of_importance_is_read_at_the_size_of_the_image(tmp_path: Path) -> None:
    map_HW = np.zeros((10, 20), dtype=np.uint8)
    map_HW[:, 10:] = 255
    write_png(tmp_path / "map.png", map_HW)
    importance_HW = read_importance(tmp_path / "map.png", (20, 40), 8.0)
    assert importance_HW.shape == (20, 40)
    assert importance_HW[:, :18].max() == 0
    assert importance_HW[:, 22:].min() == pytest.approx(8.0)
    assert read_importance(tmp_path / "map.png", (7, 13), 8.0).shape == (7, 13)  # 6.5 rows, rounded
    with pytest.raises(UserError, match=r"map\.png is 20×10, but the image 40×40: expected the same proportions"):
        read_importance(tmp_path / "map.png", (40, 40), 8.0)


def test_a_map_of_importance_may_be_an_array(tmp_path: Path) -> None:
    path = tmp_path / "map.npy"
    for dtype in (np.float64, np.uint8, np.bool_):
        np.save(path, np.eye(6, 9, dtype=dtype))
        assert np.array_equal(read_importance(path, (6, 9), 8.0), 8 * np.eye(6, 9, dtype=np.float32))
    np.save(path, np.asfortranarray(np.arange(54.0).reshape(6, 9)))
    assert np.array_equal(read_importance(path, (6, 9), 0.5), np.arange(54, dtype=np.float32).reshape(6, 9) / 2)
    assert read_importance(path, (12, 18), 1.0).max() == pytest.approx(53)
    with pytest.raises(UserError, match=r"map\.npy is 9×6, but the image 6×9: expected the same proportions"):
        read_importance(path, (9, 6), 1.0)


def test_arrays_that_are_no_map_of_importance_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.npy"
    for array, finding in (
        (np.zeros((6, 9, 3)), r"height × width, got float64 \(6, 9, 3\)"),
        (np.zeros((6, 9), dtype=complex), "real numbers"),
        (np.full((6, 9), np.nan), "not finite"),
        (np.full((6, 9), np.inf), "not finite"),
        (np.full((6, 9), 1e300), "not finite"),  # in float32
        (np.full((6, 9), -0.1), "below 0"),
        (np.zeros((0, 9)), r"height × width, got float64 \(0, 9\)"),
        (np.array([[{}]]), "cannot be read"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(UserError, match=rf"map\.npy.*{finding}"):
            read_importance(path, (6, 9), 1.0)
    np.save(path, np.zeros((6, 9)))
    whole = path.read_bytes()
    for damaged in (whole[:-8], whole[:40], b"", b"no array"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"map\.npy cannot be read as a NumPy array"):
            read_importance(path, (6, 9), 1.0)
    with path.open("wb") as file:
        np.savez(file, np.zeros((6, 9)))
    with pytest.raises(UserError, match="an archive of arrays"):
        read_importance(path, (6, 9), 1.0)
    with pytest.raises(UserError, match=r"none\.npy cannot be read"):
        read_importance(tmp_path / "none.npy", (6, 9), 1.0)


def test_upscaling_follows_a_map_of_importance() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model(CAMixerSRConfig(channels=8, groups=(1,), window=4, scale=3)).eval()
    assert isinstance(network, CAMixerSR)
    torch.nn.init.normal_(network.tail.weight, generator=torch.Generator().manual_seed(0))
    image_HWC = cut("coffee", 20, 30)
    plain = upscale_image(network, image_HWC)
    zeros = np.zeros((20, 30), dtype=np.float32)
    assert np.array_equal(upscale_image(network, image_HWC, importance_HW=zeros), plain)
    sides = [zeros.copy(), zeros.copy()]
    sides[0][:, :15], sides[1][:, 15:] = 1000.0, 1000.0
    left, right = (upscale_image(network, image_HWC, importance_HW=side) for side in sides)
    assert not np.array_equal(left, right)
    with pytest.raises(UserError, match="does not route"):
        upscale_image(build_model(BicubicConfig(scale=2)), image_HWC, importance_HW=zeros)

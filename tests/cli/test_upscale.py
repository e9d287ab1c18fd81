"""`harness upscale --importance`: a bundle, an image and a map come to a file, or to one line and no file."""

from pathlib import Path

import numpy as np
import pytest

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.data.images import read_rgb, write_png
from harness.export import upscale_image
from tests.cli.conftest import Call
from tests.export.test_bundle import write
from tests.tiny_pairs import cut

MODEL = CAMixerSRConfig(channels=8, groups=(1, 1), window=4, scale=2)
ROUTINGS = {
    "fixed": RoutingConfig(gamma=0.25),
    "detail": RoutingConfig(policy="detail", gamma=0.25, block_weights=(1.0, 0.5)),
}
HEIGHT, WIDTH = 32, 48


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An image, maps that are fine and maps that are not."""
    write_png(tmp_path / "in.png", cut("coffee", HEIGHT, WIDTH))
    bright_HW = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    bright_HW[:16, :16] = 255
    write_png(tmp_path / "bright.png", bright_HW)
    write_png(tmp_path / "black.png", np.zeros((HEIGHT // 2, WIDTH // 2), dtype=np.uint8))
    write_png(tmp_path / "square.png", np.zeros((HEIGHT, HEIGHT), dtype=np.uint8))
    np.save(tmp_path / "bright.npy", bright_HW > 0)
    np.save(tmp_path / "zeros.npy", np.zeros((HEIGHT, WIDTH)))
    np.save(tmp_path / "square.npy", np.zeros((HEIGHT, HEIGHT)))
    np.save(tmp_path / "nan.npy", np.where(bright_HW > 0, np.nan, 0.0))
    np.save(tmp_path / "below.npy", np.full((HEIGHT, WIDTH), -1.0))
    np.save(tmp_path / "colours.npy", np.zeros((HEIGHT, WIDTH, 3)))
    (tmp_path / "text.npy").write_text("no array", encoding="utf-8")
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("routing", ROUTINGS)
def test_attention_follows_the_map_and_zeros_change_nothing(call: Call, place: Path, routing: str) -> None:
    write(place / "bundle", MODEL.with_routing(ROUTINGS[routing]))

    def upscaled(name: str, *options: str | Path) -> Path:
        assert call("upscale", "bundle", "in.png", f"{name}.png", "--threads", "1", *options).code == 0
        return place / f"{name}.png"

    plain = upscaled("plain")
    for black in ("black.png", "zeros.npy"):
        assert upscaled(f"by-{black}", "--importance", black).read_bytes() == plain.read_bytes()
    guided = read_rgb(upscaled("guided", "--importance", "bright.png"))
    changed_HW = (guided != read_rgb(plain)).any(axis=2)
    assert changed_HW.any()
    assert np.array_equal(read_rgb(upscaled("array", "--importance", "bright.npy")), guided)
    no_weight = upscaled("no-weight", "--importance", "bright.npy", "--importance-weight", "0")
    assert no_weight.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    ("importance", "words"),
    [
        ("square.png", "square.png is 32×32, but the image 48×32: expected the same proportions"),
        ("square.npy", "square.npy is 32×32, but the image 48×32: expected the same proportions"),
        ("nan.npy", "nan.npy holds values below 0 or not finite"),
        ("below.npy", "below.npy holds values below 0 or not finite"),
        ("colours.npy", "expected an array of real numbers with two dimensions"),
        ("text.npy", "text.npy cannot be read as a NumPy array"),
        ("text.png", "text.png: cannot be read"),
        ("none.npy", "none.npy cannot be read as a NumPy array"),
        ("none.png", "none.png: no such image file"),
    ],
)
def test_a_map_that_cannot_be_used_is_named_and_nothing_is_written(
    call: Call, place: Path, importance: str, words: str
) -> None:
    write(place / "bundle", MODEL)
    before = sorted(place.rglob("*"))
    assert words in call("upscale", "bundle", "in.png", "out/out.png", "--importance", importance).mistake
    assert sorted(place.rglob("*")) == before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--importance", "bright.npy", "--importance-weight", "inf"),
            "weight of importance is inf, expected a number",
        ),
        (
            ("--importance", "bright.png", "--importance-weight", "nan"),
            "--importance-weight",
        ),
        (("--importance", "bright.npy", "--importance-weight", "1e300"), "weight of importance is 1e+300"),
        (("--importance", "huge.npy"), "huge.npy holds 2e+38, which times the weight 10 is more than 1e+30"),
        (("--tile", "4"), "--tile 4: expected at least 8"),
        (("--tile", "16", "--overlap", "16"), "--overlap 16: expected less than the tile's side, 16"),
        (("--overlap", "512"), "--overlap 512: expected less than the tile's side, 512"),
        (("--tile", "0", "--overlap", "4"), "--overlap 4: images are restored whole"),
    ],
)
def test_numbers_that_cannot_be_are_refused(call: Call, place: Path, options: tuple[str, ...], words: str) -> None:
    write(place / "bundle", MODEL)
    np.save(place / "huge.npy", np.full((HEIGHT, WIDTH), 2e38))
    before = sorted(place.rglob("*"))
    assert words in call("upscale", "bundle", "in.png", "out.png", *options).mistake
    assert sorted(place.rglob("*")) == before


def test_an_overlap_of_more_than_half_a_tile_is_taken_as_it_is(call: Call, place: Path) -> None:
    network = write(place / "bundle", MODEL)
    assert call("upscale", "bundle", "in.png", "out.png", "--tile", "16", "--overlap", "12").code == 0
    expected_HWC = upscale_image(network, read_rgb(place / "in.png"), tile=16, overlap=12)
    assert np.array_equal(read_rgb(place / "out.png"), expected_HWC)


def test_a_folder_with_images_that_cannot_be_read_is_refused_by_their_names(call: Call, place: Path) -> None:
    """Before the first of them is upscaled; without them the same command does the rest."""
    write(place / "bundle", MODEL)
    folder = place / "images"
    write_png(folder / "a.png", cut("coffee", HEIGHT, WIDTH))
    whole = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])  # its header is fine
    write_png(folder / "c.png", cut("rocket", HEIGHT, WIDTH))
    (folder / "d.jpg").write_text("no image", encoding="utf-8")
    mistake = call("upscale", "bundle", "images", "out").mistake
    assert mistake.startswith("2 of 4 images cannot be used, so none is upscaled: ")
    assert "b.png: cannot be read" in mistake
    assert "d.jpg: cannot be read" in mistake
    assert not (place / "out").exists()
    (folder / "b.png").unlink()
    (folder / "d.jpg").unlink()
    assert call("upscale", "bundle", "images", "out").code == 0
    assert sorted(path.name for path in (place / "out").iterdir()) == ["a.png", "c.png"]

"""`harness upscale --importance`: a bundle, an image and a map come to a file, or to one line and no file."""

from pathlib import Path

import numpy as np
import pytest

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.data.images import read_rgb, write_png
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

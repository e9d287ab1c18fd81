"""`harness upscale`: a bundle and images of every kind come to files, or to one line and no file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.data.images import read_rgb, write_png
from harness.data.imresize import ImageArray
from harness.data.pictures import read_picture
from harness.export import load_network, upscale_image, write_bundle
from harness.metrics import get_protocol
from tests.cli.conftest import Call
from tests.export.test_bundle import random_network, record_of, write
from tests.records import SHORT
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


def test_a_folder_with_images_that_cannot_be_read_goes_on_without_them(call: Call, place: Path) -> None:
    """Each is named on a line, the exit code is that of a mistake, and nothing half written is left."""
    write(place / "bundle", MODEL)
    folder = place / "images"
    write_png(folder / "a.png", cut("coffee", HEIGHT, WIDTH))
    whole = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])  # its header is fine
    write_png(folder / "c" / "c.png", cut("rocket", HEIGHT, WIDTH))
    (folder / "d.jpg").write_text("no image", encoding="utf-8")
    done = call("upscale", "bundle", "images", "out")
    assert done.code == 2
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["left out", "left out", "harness"]
    assert "b.png: cannot be read" in lines[0]
    assert "d.jpg: cannot be read" in lines[1]
    assert lines[2] == ("harness: error: 2 of 4 images were left out, the others are done; mend or remove them")
    out = place / "out"
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == ["a.png", "c", "c/c.png"]
    refused = call("upscale", "bundle", "images", "out").mistake
    assert "a.png exists (and 1 more); give --overwrite" in refused


def picture(mode: str) -> Image.Image:
    """A small photograph in a mode of Pillow's."""
    grey_HW = cut("coffee", HEIGHT, WIDTH)[..., 1]
    if mode == "I;16":
        return Image.fromarray(grey_HW.astype(np.uint16) * 257)
    image = Image.fromarray(cut("coffee", HEIGHT, WIDTH))
    if mode in ("LA", "RGBA"):
        alpha_HW = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        alpha_HW[:, 12:36] = 255
        image.putalpha(Image.fromarray(alpha_HW))
    return image.quantize(16) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "made"),
    [("L", "L"), ("LA", "LA"), ("RGBA", "RGBA"), ("I;16", "I;16"), ("P", "RGB"), ("1", "L"), ("RGB", "RGB")],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_what_kind_of_image_goes_in_comes_out(call: Call, place: Path, mode: str, made: str, suffix: str) -> None:
    write(place / "bundle", MODEL)
    picture(mode).save(f"in{suffix}")
    assert call("upscale", "bundle", f"in{suffix}", f"out{suffix}").code == 0
    with Image.open(f"out{suffix}") as image:
        assert (image.mode, image.size) == (made, (2 * WIDTH, 2 * HEIGHT))


def test_grey_is_the_luma_of_what_the_network_makes_and_16_bits_stay(call: Call, place: Path) -> None:
    """A grey image restored as RGB; in 16 bits it differs from that in 8 by rounding alone."""
    network = write(place / "bundle", MODEL)
    grey_HW = cut("coffee", HEIGHT, WIDTH)[..., 1]
    write_png(place / "grey.png", grey_HW)
    Image.fromarray(grey_HW.astype(np.uint16) * 257).save("grey16.png")
    for name in ("grey", "grey16"):
        assert call("upscale", "bundle", f"{name}.png", f"out/{name}.png").code == 0
    rgb_HWC = upscale_image(network, np.repeat(grey_HW[..., None], 3, axis=2)).astype(np.float64)
    made_HW, made16_HW = (np.asarray(Image.open(f"out/{name}.png")) for name in ("grey", "grey16"))
    assert np.abs(made_HW - rgb_HWC @ np.array([0.299, 0.587, 0.114])).max() <= 1
    assert made16_HW.dtype == np.uint16
    assert np.abs(made16_HW / 257 - made_HW).max() <= 0.51


def test_transparency_is_bicubic_and_hidden_colours_never_show(call: Call, place: Path) -> None:
    write(place / "bundle", MODEL)
    image_HWC = np.asarray(picture("RGBA")).copy()
    Image.fromarray(image_HWC).save("a.png")
    hidden_HW = image_HWC[..., 3] == 0
    image_HWC[hidden_HW, :3] = np.random.default_rng(0).integers(0, 255, (hidden_HW.sum(), 3))
    Image.fromarray(image_HWC).save("b.png")
    for name in ("a", "b"):
        assert call("upscale", "bundle", f"{name}.png", f"out/{name}.png").code == 0
    assert Path("out/a.png").read_bytes() == Path("out/b.png").read_bytes()
    with Image.open("out/a.png") as made:
        alpha_HW = np.asarray(made)[..., 3]
    assert set(np.unique(alpha_HW[:, :20])) == {0}  # all transparent, and all opaque, away from the edges
    assert set(np.unique(alpha_HW[:, 30:66])) == {255}
    assert np.array_equal(alpha_HW, np.broadcast_to(alpha_HW[:1], alpha_HW.shape))  # as the input: the same in all rows
    assert "JPEG has no room for transparency" in call("upscale", "bundle", "a.png", "a.jpg").mistake
    assert not Path("a.jpg").exists()


@pytest.mark.parametrize("source", [".png", ".jpg", ".webp", ".tif"])
def test_profile_and_exif_are_kept_and_rotation_is_applied_once(call: Call, place: Path, source: str) -> None:
    write(place / "bundle", MODEL)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription], exif[ExifTags.Base.Orientation] = "a cup", 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.01
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    picture("RGB").save(f"turned{source}", icc_profile=profile, exif=exif.tobytes())
    upright_HWC = read_picture(Path(f"turned{source}")).colour_HWC
    assert upright_HWC.shape == (WIDTH, HEIGHT, 3)
    for made in (".png", ".jpg", ".webp", ".tif"):
        assert call("upscale", "bundle", f"turned{source}", f"out{made}").code == 0
        with Image.open(f"out{made}") as image:
            image.load()
            assert image.size == (2 * HEIGHT, 2 * WIDTH)
            assert ImageOps.exif_transpose(image).size == image.size
            assert image.info["icc_profile"] == profile
            found = image.getexif()
            assert found[ExifTags.Base.ImageDescription] == "a cup"
            assert found.get(ExifTags.Base.Orientation, 1) == 1
            assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] == pytest.approx(0.01)
            assert found.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


def test_exif_is_kept_byte_for_byte_but_for_the_rotation(place: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 3, "somebody"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = bytes(range(256))
    stored = exif.tobytes()
    picture("RGB").save("turned.jpg", exif=stored)
    found = read_picture(Path("turned.jpg")).exif
    assert found is not None
    differing = [(one, other) for one, other in zip(stored, found, strict=True) if one != other]
    assert differing == [(3, 1)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: picture("RGB").convert("CMYK").save("bad.jpg"), "has colour mode CMYK"),
        (lambda: Path("bad.jpg").write_bytes(b""), "cannot be read"),
    ],
)
def test_images_that_would_not_be_kept_faithfully_are_refused(
    call: Call, place: Path, make: Callable[[], object], words: str
) -> None:
    write(place / "bundle", MODEL)
    make()
    assert words in call("upscale", "bundle", "bad.jpg", "out.png").mistake
    assert not Path("out.png").exists()


def test_a_file_that_is_there_is_kept_and_a_format_is_that_of_folders(call: Call, place: Path) -> None:
    write(place / "bundle", MODEL)
    Path("out.png").write_text("precious", encoding="utf-8")
    assert "out.png exists; give --overwrite" in call("upscale", "bundle", "in.png", "out.png").mistake
    assert Path("out.png").read_text(encoding="utf-8") == "precious"
    assert "--format webp: out.jpg says by its name" in (
        call("upscale", "bundle", "in.png", "out.jpg", "--format", "webp").mistake
    )
    assert call("upscale", "bundle", "in.png", "out", "--format", "webp").code == 0
    assert np.array_equal(
        read_rgb(Path("out/in.webp")), upscale_image(load_network(place / "bundle"), read_rgb(place / "in.png"))
    )


# ONNX files ----------------------------------------------------------------------------------------------------------


def close(file: Path, other_HWC: ImageArray) -> bool:
    return bool(np.abs(read_rgb(file).astype(int) - other_HWC).max() <= 1)  # a level, where sums are rounded otherwise


@pytest.mark.parametrize("tiles", [(), ("--tile", "16", "--overlap", "4")])
def test_onnxruntime_gives_what_eager_gives(call: Call, place: Path, tiles: tuple[str, ...]) -> None:
    pytest.importorskip("onnxruntime")
    write(place / "bundle", MODEL)
    for runtime in ("eager", "onnxruntime"):
        assert call("upscale", "bundle", "in.png", f"{runtime}.png", "--runtime", runtime, *tiles).code == 0
    assert call("upscale", "bundle/model.onnx", "in.png", "file.png", *tiles).code == 0
    for made in ("onnxruntime.png", "file.png"):
        assert close(place / made, read_rgb(place / "eager.png"))
    refused = call("upscale", "bundle", "in.png", "out.png", "--runtime", "onnxruntime", "--importance", "bright.png")
    assert "maps guide networks that run in eager" in refused.mistake
    assert (
        "expected onnxruntime" in call("upscale", "bundle/model.onnx", "in.png", "x.png", "--runtime", "eager").mistake
    )
    (place / "bundle" / "model.onnx").unlink()
    mistake = call("upscale", "bundle", "in.png", "out.png", "--runtime", "onnxruntime").mistake
    assert "bundle has no model.onnx" in mistake


def test_panoramas_have_no_seam_in_onnxruntime(call: Call, place: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = random_network(MODEL)
    record, point = record_of(MODEL, training=SHORT.model_copy(update={"task": "odi"}))
    write_bundle(place / "bundle", network, record, point, picked_as="knee", baselines={})
    write_png(place / "round.png", cut("coffee", 24, 48))
    for option, wrap in (((), get_protocol("odi").wrap), (("--no-panorama",), 0)):
        done = call("upscale", "bundle", "round.png", "out.png", "--runtime", "onnxruntime", "--overwrite", *option)
        assert done.code == 0
        assert close(place / "out.png", upscale_image(network, cut("coffee", 24, 48), wrap=wrap))


def test_a_file_of_one_size_is_used_in_tiles_and_by_its_folder(call: Call, place: Path) -> None:
    """As `quantise` makes them; images smaller than its size, too."""
    pytest.importorskip("onnxruntime")
    from harness.models.onnx_export.build import build_onnx

    network = write(place / "bundle", MODEL)
    (place / "fixed").mkdir()
    (place / "fixed" / "network.onnx").write_bytes(build_onnx(network, size=(16, 16), batch=1).SerializeToString())
    expected_HWC = upscale_image(network, read_rgb(place / "in.png"), tile=16, overlap=2)
    for model in ("fixed", "fixed/network.onnx"):
        assert call("upscale", model, "in.png", "out.png", "--overwrite").code == 0
        assert close(place / "out.png", expected_HWC)
    write_png(place / "small.png", cut("coffee", 9, 12))
    assert call("upscale", "fixed", "small.png", "small-out.png").code == 0
    assert read_rgb(place / "small-out.png").shape == (18, 24, 3)
    assert "--overlap 16: fixed takes images of 16×16" in (
        call("upscale", "fixed", "in.png", "x.png", "--overlap", "16").mistake
    )
    write_png(place / "images" / "coffee.png", cut("coffee", 64, 64))
    scored = [
        call("evaluate", model, "--data", "images", "--json").document for model in ("fixed", "fixed/network.onnx")
    ]
    assert scored[0]["psnr_db"] == scored[1]["psnr_db"]
    (place / "fixed" / "another.onnx").write_bytes(b"")
    assert "fixed holds 2 ONNX files; name one of them" in call("upscale", "fixed", "in.png", "x.png").mistake
    assert "is no bundle" in call("upscale", "images", "in.png", "x.png").mistake
    assert "nowhere.onnx not found" in call("upscale", "nowhere.onnx", "in.png", "x.png").mistake


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_in_the_middle_leaves_no_half_written_image(place: Path, number: signal.Signals) -> None:
    """What is there is whole; after Ctrl-C nothing else is."""
    network = write(place / "bundle", MODEL)
    source_HWC = cut("coffee", 128, 128)
    for index in range(40):
        write_png(place / "images" / f"{index:02}.png", source_HWC)
    command = [sys.executable, "-m", "harness", "upscale", "bundle", "images", "out", "--threads", "1"]
    process = subprocess.Popen(
        command,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((place / "out").glob("[!.]*.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    code = process.wait(timeout=60)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    made = sorted((place / "out").glob("[!.]*.png"))
    assert 0 < len(made) < 40
    expected_HWC = upscale_image(network, source_HWC)
    assert all(np.array_equal(read_rgb(file), expected_HWC) for file in made)
    if number == signal.SIGINT:
        assert len(list((place / "out").iterdir())) == len(made)

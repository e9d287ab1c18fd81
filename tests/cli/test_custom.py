"""A network of a user's own: searched by the README's example, trained, exported, and refused where it fails."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from harness.core.configs import CustomConfig
from harness.core.study_folder import StudyFolder
from harness.export import load_network
from harness.models import build_seeded, load_weights
from harness.profiling import canonical_activations, canonical_macs, count_params
from tests.cli.conftest import Call
from tests.photographs import Photographs
from tests.spaces import tiny_space, write_space
from tests.test_readme import blocks

CODE = next(text for text in blocks("python") if "def make_net(" in text)
SPACE = next(text for text in blocks("yaml") if "family: custom" in text)

HALVED = """
from torch import nn


class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x):
        assert x.shape[-1] % 8 == x.shape[-2] % 8 == 0
        return self.up(x)
"""


@pytest.fixture
def place(tmp_path: Path, photographs: Photographs) -> Path:
    """The README's two files, the space with the budget and the images of a test."""
    (tmp_path / "mynet.py").write_text(CODE, encoding="utf-8")
    given = yaml.safe_load(SPACE)
    kept = {name: given[name] for name in ("scale", "model", "dimensions", "constraints")}
    write_space(tmp_path / "mynet.yaml", tiny_space(photographs, **kept, sampler=None, calibrate=None))
    return tmp_path


def test_the_example_is_thirty_lines_at_most_and_valid() -> None:
    assert len(CODE.splitlines()) + len(SPACE.splitlines()) <= 30
    assert yaml.safe_load(SPACE)["model"]["factory"] == "mynet.py:make_net"


def test_the_example_is_searched_exported_and_used(call: Call, place: Path, photographs: Photographs) -> None:
    done = call("search", "mynet.yaml", "--study", "own", "--export", "best-psnr")
    assert done.code == 0, done.err
    folder = StudyFolder(place / "results" / "own")
    records = [record for record in folder.read_trials() if record.kind == "trial" and record.state == "complete"]
    assert len(records) == 2
    for record in records:
        assert isinstance(record.model, CustomConfig)
        channels, blocks_, kernel = (record.model.settings.get(name) for name in ("channels", "blocks", "kernel"))
        assert isinstance(channels, int)
        assert isinstance(blocks_, int)
        assert isinstance(kernel, int)
        inner = blocks_ * kernel**2 * channels**2
        assert record.points[0].macs == 16 * 16 * (27 * channels + inner + 9 * channels * 48)
        assert record.points[0].params == 28 * channels + inner + 2 * blocks_ * channels + (9 * channels + 1) * 48
        assert record.points[0].params <= 60_000
    again = call("search", "mynet.yaml", "--study", "own")
    assert again.code == 0, again.err
    assert len([one for one in folder.read_trials() if one.kind == "trial" and one.state == "complete"]) == 2
    image = next(photographs.validation.rglob("*.png"))
    assert call("upscale", "results/own/bundles/best-psnr", image, "out.png").code == 0
    (place / "mynet.py").write_text(f"{CODE}\nchanged = True\n", encoding="utf-8")
    assert "was made with another search space" in call("search", "mynet.yaml", "--study", "own").mistake
    assert "its file has changed" in call("upscale", "results/own/bundles/best-psnr", image, "out2.png").mistake


def test_one_network_is_trained(
    call: Call, place: Path, photographs: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ["--train", photographs.train, "--validation", photographs.validation, "--threads", "1"]
    settings = ["--set", "batch_size=1", "--set", "hr_patch_size=32", "--set", "steps=2"]
    done = call("train", "mynet.py:make_net", "--scale", "2", *images, *settings, "--out", "run")
    assert done.code == 0, done.err
    monkeypatch.chdir(place)
    assert load_network(place / "run" / "bundle")(torch.rand(1, 3, 9, 7)).shape == (1, 3, 18, 14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"family": "custom"}}, "model: factory: required key is missing"),
        ({"model": {"family": "custom", "factory": "nowhere.py:make_net"}}, "nowhere.py not found"),
        ({"model": {"family": "custom", "factory": "mynet.py:other"}}, "no attribute 'other'"),
        ({"dimensions": {"model.settings.width": {"choices": [1]}}}, "takes no setting 'width'; it takes: channels, "),
        ({"dimensions": {"model.settings.blocks": {"choices": ["two"]}}}, "calling make_net("),
        ({"dimensions": {"model.settings.kernel": {"choices": [2]}}}, "makes (1, 3, "),
        ({"model": {"family": "custom", "factory": "mynet.py:make_net", "multiple_of": 0}}, "multiple_of"),
        ({"sampler": {"name": "ehvi"}}, "ehvi needs costs in closed form"),
        ({"compression": {"left": 0.5}}, "channels are removed of camixersr and swinir"),
        ({"dimensions": {"model.channels": {"choices": [8]}}}, "no such setting; allowed: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line(
    call: Call, place: Path, photographs: Photographs, changes: dict[str, object], message: str
) -> None:
    known = yaml.safe_load((place / "mynet.yaml").read_text(encoding="utf-8"))
    write_space(place / "mynet.yaml", {**known, **changes})
    assert message in call("search", "mynet.yaml").mistake
    assert not (place / "results" / "mynet" / "trials").exists()


def test_costs_are_those_that_count_by_hand(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    config = CustomConfig(factory="mynet.py:make_net", scale=3, settings={"channels": 8, "blocks": 1, "kernel": 3})
    assert canonical_macs(config, (10, 20), batch_size=2) == 2 * 200 * (27 * 8 + 9 * 64 + 9 * 8 * 27)
    assert canonical_activations(config, (10, 20)) == 200 * (8 + 8 + 27)
    assert count_params(config) == sum(one.numel() for one in build_seeded(config, 0).parameters())


def test_counting_buffers_are_no_hindrance(call: Call, place: Path, photographs: Photographs) -> None:
    """A batch norm counts batches in whole numbers, of which there is no moving average."""
    normed = CODE.replace("nn.PReLU(channels)]", "nn.BatchNorm2d(channels), nn.ReLU()]")
    (place / "normed.py").write_text(normed, encoding="utf-8")
    images = ["--train", photographs.train, "--validation", photographs.validation, "--threads", "1", "--scale", "2"]
    settings = ["--set", "batch_size=2", "--set", "hr_patch_size=32", "--set", "steps=3"]
    done = call("train", "normed.py:make_net", *images, *settings, "--out", "run")
    assert done.code == 0, done.err
    state = load_file(place / "run" / "bundle" / "model.safetensors")
    (count,) = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert count == 3


def test_bounds_that_no_network_keeps_are_refused_at_once(call: Call, place: Path) -> None:
    known = yaml.safe_load((place / "mynet.yaml").read_text(encoding="utf-8"))
    write_space(place / "mynet.yaml", {**known, "constraints": ["params <= 100"]})
    told = call("search", "mynet.yaml").mistake
    assert "no network of the space can meet it; the smallest params in the space are 3808 (make_net channels=8" in told


def test_weights_of_the_plain_module_are_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    network = build_seeded(CustomConfig(factory="mynet.py:make_net", scale=2), 1)
    plain = {name.removeprefix("network."): value for name, value in network.state_dict().items()}
    save_file(plain, place / "plain.safetensors")
    other = build_seeded(CustomConfig(factory="mynet.py:make_net", scale=2), 0)
    load_weights(other, place / "plain.safetensors")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in network.state_dict().items())


def test_networks_that_need_multiples_are_given_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "halved.py").write_text(HALVED, encoding="utf-8")
    image = torch.rand(1, 3, 13, 8)
    network = build_seeded(CustomConfig(factory="halved.py:Halved", scale=2, multiple_of=8), 0).eval()
    assert torch.equal(network(image), torch.nn.functional.interpolate(image, scale_factor=2))

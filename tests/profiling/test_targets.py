"""Networks by name and from files that torch and torch.onnx write, and what they are found to take."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from harness.core.configs import CAMixerSRConfig
from harness.core.errors import UserError
from harness.models import build_seeded
from harness.profiling import InputContract, TargetNetwork, TargetSpec, load_target, parse_target
from harness.profiling.targets import find_contract
from tests.profiling import networks

HERE = "tests.profiling.networks"
SIDES = {2: Dim("height", min=4, max=2048), 3: Dim("width", min=4, max=2048)}


def load(text: str, **options: Any) -> Any:
    spec = parse_target(text, **options)
    assert spec is not None
    return load_target(spec)


def write(network: nn.Module, path: Path, *, side: int | None = None, dynamo: bool = False) -> Path:
    """Write a network in the format that the name asks for, for images of one side or of any.

    `dynamo`: ONNX by way of torch.export, slowly, instead of a trace.
    """
    network.eval()
    image = torch.rand(1, 3, side or 48, side or 48)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = None if side else (SIDES,)
        if path.suffix == ".pt2":
            torch.export.save(torch.export.export(network, (image,), dynamic_shapes=dynamic), path)
        elif path.suffix == ".onnx" and dynamo:
            torch.onnx.export(network, (image,), path, dynamic_shapes=dynamic, verbose=False)
        elif path.suffix == ".onnx":
            axes = {"image": {2: "height", 3: "width"}} if dynamic else None
            torch.onnx.export(network, (image,), path, input_names=["image"], dynamic_axes=axes, dynamo=False)
        elif path.suffix == ".ts":
            torch.jit.save(torch.jit.script(network), path)
        else:
            torch.jit.save(torch.jit.trace(network, image), path)  # type: ignore[no-untyped-call]
    return path


@pytest.mark.parametrize("suffix", [".pt", ".ts", ".pt2", ".onnx"])
def test_a_file_restores_what_the_network_does(tmp_path: Path, suffix: str) -> None:
    network = networks.Pyramid().eval()
    target = load(str(write(network, tmp_path / f"network{suffix}")))
    assert (target.scale, target.in_channels) == (2, 3)
    assert target.contract.needs() == "any height and width"
    image_BCHW = torch.rand(1, 3, 20, 36)
    with torch.no_grad():
        torch.testing.assert_close(target.network(image_BCHW), network(image_BCHW), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_file_for_one_size_is_found_out(tmp_path: Path, suffix: str) -> None:
    target = load(str(write(networks.any_size(), tmp_path / f"network{suffix}", side=24)))
    assert (target.contract.fixed_height, target.contract.fixed_width) == (24, 24)
    with pytest.raises(
        UserError, match=r"needs exactly 24×24 pixels \(tried 24×24.*\); got 24×32; give --input-size 24 24"
    ):
        target.check_size((24, 32))


def test_a_factory_is_called_under_a_seed_of_its_own() -> None:
    state = torch.get_rng_state()
    first, second = load(f"{HERE}:any_size"), load(f"{HERE}:any_size")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.module.head.weight, second.module.head.weight)
    assert not first.module.training
    assert load(f"{HERE}:finished").module is networks.finished


def test_a_file_of_python_finds_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "parts_beside.py").write_text("from torch import nn\nHead = nn.Conv2d\n", encoding="utf-8")
    (tmp_path / "net.py").write_text(
        "import parts_beside\ndef make():\n    return parts_beside.Head(3, 3, 1)\n", encoding="utf-8"
    )
    assert load(f"{tmp_path / 'net.py'}:make").scale == 1


def test_weights_of_a_factory(tmp_path: Path) -> None:
    network = networks.Pyramid()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    target = load(f"{HERE}:any_size", weights=tmp_path / "w.pth")
    assert torch.equal(target.module.head.weight, network.head.weight)
    with pytest.raises(UserError, match=r"do not fit .*needs_16: down\.weight has shape"):
        load(f"{HERE}:needs_16", weights=tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["any_size", "needs_16", "grey"])
def test_a_spec_travels_as_json_and_then_nothing_is_run(name: str) -> None:
    target = load(f"{HERE}:{name}")
    spec = TargetSpec.model_validate_json(json.dumps(target.spec.model_dump(mode="json")))
    assert spec == target.spec
    again = load_target(spec)
    assert again.contract == target.contract
    assert again.module is not None
    image_BCHW = torch.rand(1, again.in_channels, 32, 32)
    assert torch.equal(again.module(image_BCHW), target.module(image_BCHW))


def test_another_process_in_another_folder_loads_the_same_network(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Conv2d(3, 3, 1)\n", encoding="utf-8"
    )
    target = load(f"{tmp_path / 'near.py'}:make")
    program = (
        "import sys; from harness.profiling import TargetSpec, load_target; "
        "target = load_target(TargetSpec.model_validate_json(sys.stdin.read())); "
        "print(target.module.weight.sum().item(), target.scale)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=target.spec.model_dump_json(),
        capture_output=True,
        text=True,
        cwd=tmp_path / "far",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
    )
    assert done.stdout.split() == [str(target.module.weight.sum().item()), "1"]


def test_a_network_of_ours_is_its_config() -> None:
    config = CAMixerSRConfig(channels=12, groups=(1,), window=8, scale=3)
    target = load_target(TargetSpec(kind="model", source="ours.yaml", config=config))
    assert target.contract == InputContract(scale=3)
    expected = build_seeded(config, seed=0).state_dict()
    assert target.module is not None
    assert all(torch.equal(value, expected[name]) for name, value in target.module.state_dict().items())
    target.check_size((7, 9))


@pytest.mark.parametrize(
    ("name", "multiple", "scale", "channels"), [("needs_16", 16, 2, 3), ("needs_12", 12, 1, 3), ("grey", 1, 3, 1)]
)
def test_what_a_network_takes_is_found(name: str, multiple: int, scale: int, channels: int) -> None:
    contract = load(f"{HERE}:{name}").contract
    assert (contract.height_multiple, contract.width_multiple) == (multiple, multiple)
    assert (contract.scale, contract.in_channels, contract.out_channels) == (scale, channels, channels)


class Steps(nn.Module):
    """Takes heights and widths that are multiples of two numbers."""

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, input_BCHW: Tensor) -> Tensor:
        height, width = input_BCHW.shape[-2:]
        if height % self.rows or width % self.columns:
            raise ValueError("not a multiple")
        return input_BCHW.repeat_interleave(2, -1).repeat_interleave(2, -2)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 16), columns=st.sampled_from((1, 2, 4, 8, 32, 64)))
def test_any_multiples_are_found(rows: int, columns: int) -> None:
    """Wherever one of the tried sides is a multiple of both."""
    sides = (64, 96, 120, 168, 112, 128, 144, 176, 208, 240, 256, 320, 384, 512)
    network = Steps(rows, columns)
    if not any(side % rows == 0 and side % columns == 0 for side in sides):
        with pytest.raises(UserError, match="runs at no size"):
            find_contract(network, "steps")
        return
    contract = find_contract(network, "steps")
    assert (contract.height_multiple, contract.width_multiple) == (rows, columns)
    assert contract.nearest((30, 30)) == (-(-30 // rows) * rows, -(-30 // columns) * columns)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        (
            "needs_16",
            (30, 30),
            r"needs height and width that are multiples of 16 \(tried 64×64, .*\); got 30×30; give --input-size 32 32$",
        ),
        ("mirrored", (10, 12), r"at least 21×23.* got 10×12: it fails: RuntimeError: "),
    ],
)
def test_a_size_that_it_does_not_take_is_refused(name: str, size: tuple[int, int], words: str) -> None:
    target = load(f"{HERE}:{'Mirrored' if name == 'mirrored' else name}")
    with pytest.raises(UserError, match=words):
        target.check_size(size)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nowhere.to.be:found", "no module named 'nowhere'"),
        (f"{HERE}:nothing", "no attribute 'nothing' in .*; it has .*any_size"),
        (f"{HERE}:HERE.nothing", "no attribute 'HERE.nothing'"),
        (f"{HERE}:raises", r"calling raises\(\) fails: RuntimeError: no weights; expected"),
        (f"{HERE}:needs_arguments", "missing 1 required positional argument.*takes no arguments"),
        (f"{HERE}:no_module", "returns a int; expected an nn.Module"),
        (f"{HERE}:__doc__", "is a str; expected a function"),
        (f"{HERE}:classifier", r"returns a torch.float32 tensor of shape \(1, 4\).*expected a batch of images"),
        (f"{HERE}:lists", "returns a list; expected a tensor"),
        ("missing.py:make", "missing.py not found"),
        ("missing.onnx", "missing.onnx not found; expected a file of kind ONNX"),
        ("broken.py:make", "importing it fails: SyntaxError"),
        ("leaves.py:make", "importing it fails: SystemExit"),
        ("broken.pt", "no TorchScript file"),
        ("broken.ts", "no TorchScript file"),
        ("broken.pt2", "no torch.export file"),
        ("broken.onnx", "onnxruntime cannot load it"),
        ("broken.py", "expected broken.py:FACTORY"),
        ("weights.pth", "holds weights alone; name their network, and give --weights weights.pth"),
    ],
)
def test_a_mistake_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("broken.py", "broken.pt", "broken.ts", "broken.pt2", "broken.onnx"):
        Path(name).write_text("def (:\n", encoding="utf-8")
    Path("leaves.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    with pytest.raises(UserError, match=words) as raised:
        load(text)
    assert "\n" not in str(raised.value)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ("about to fail\n" if "raises" in text else "")


def test_an_onnx_file_without_onnxruntime_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "network.onnx").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)  # as where it is not installed
    with pytest.raises(UserError, match=r'pip install "harness\[onnx\]"$'):
        load(str(tmp_path / "network.onnx"))


def test_what_names_no_network_of_anybodys() -> None:
    assert parse_target("camixersr-s") is None
    assert parse_target("model.yaml") is None
    factory: Callable[[], nn.Module] = networks.any_size
    assert parse_target(f"{HERE}:{factory.__name__}") is not None


class TestTargetNetwork:
    """Networks of anybody's as `evaluate` takes them."""

    def test_any_size_is_padded_to_what_the_network_needs_and_cut_again(self) -> None:
        target = load(f"{HERE}:needs_16")
        network = TargetNetwork(target)
        images_BCHW = torch.rand(2, 3, 20, 32)
        padded_BCHW = torch.cat((images_BCHW, images_BCHW[:, :, 7:19].flip(2)), dim=2)  # 20 + 12 rows, mirrored
        with torch.no_grad():
            restored = network.restore(images_BCHW)
            assert torch.allclose(restored.image_BCHW, target.network(padded_BCHW)[:, :, :40], atol=1e-5)
        assert restored.hard_share_SB.shape == (0, 2)
        assert (network.scale, network.tile) == (2, None)

    def test_a_file_of_one_size_says_so(self, tmp_path: Path) -> None:
        network = TargetNetwork(load(str(write(networks.any_size(), tmp_path / "network.onnx", side=48))))
        assert network.tile == 48
        assert network.restore(torch.rand(1, 3, 30, 48)).image_BCHW.shape == (1, 3, 60, 96)
        with pytest.raises(UserError, match=r"needs exactly 48×48 pixels; got 48×49; give tiles"):
            network.restore(torch.rand(1, 3, 48, 49))

    def test_only_rgb(self) -> None:
        with pytest.raises(UserError, match="1 channels of 1; expected RGB"):
            TargetNetwork(load(f"{HERE}:grey"))

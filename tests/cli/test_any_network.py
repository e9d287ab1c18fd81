"""`harness profile` of networks of anybody's: factories, files, what they need, and counters that differ."""

import math
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Call
from tests.profiling.networks import Pyramid
from tests.profiling.test_targets import write

QUICK = ("--repeats", "3", "--seconds", "0", "--threads", "1")
SIZE = ("--input-size", "16", "24")
NETWORKS = "tests.profiling.networks"
# Two convolutions of 3×3 and 8 features, one up and down again, and one to 12.
MACS = 16 * 24 * (3 * 8 * 9 + 2 * 64 + 8 * 12 * 9)
ACTIVATIONS = 16 * 24 * (8 + 8 + 8 + 12)

DETOUR = """
import torch
from torch import nn

print("imported")

class Detour(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return self.tail(torch.from_numpy(self.body(x).numpy()))

@torch.library.custom_op("harness_cli_tests::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy() / 2)

class Halved(Detour):
    def forward(self, x):
        return self.tail(halve(self.body(x)))
"""


@pytest.fixture
def detour(tmp_path: Path) -> Path:
    (tmp_path / "detour.py").write_text(DETOUR, encoding="utf-8")
    return tmp_path / "detour.py"


@pytest.mark.slow
def test_a_factory_is_measured_beside_swinir(call: Call) -> None:
    document = call("profile", f"{NETWORKS}:any_size", *SIZE, *QUICK, "--json").document
    assert document["target"]["kind"] == "factory"
    assert (document["scale"], document["input_size"], document["config"]) == (2, [16, 24], None)
    assert document["macs_by_counter"] == {"fvcore": MACS, "ptflops": MACS, "torch": MACS}
    assert (document["macs"], document["activations"], document["counters_agree"]) == (MACS, ACTIVATIONS, True)
    assert document["modules"][0]["params"] == document["params"] == sum(p.numel() for p in Pyramid().parameters())
    (added,) = document["uncounted_operators"]
    assert (added["operator"], added["times"]) == ("aten::add", 1)
    assert added["share"] == pytest.approx(8 * 16 * 24 / (MACS + 8 * 16 * 24))
    swinir_macs = 16 * 24 * (27 * 60 + 24 * (8 * 3600 + 128 * 60) + 45 * 3600 + 27 * 4 * 60)
    score = (
        0.7 * math.exp(2 * document["latency_ratio"])
        + 0.15 * math.exp(2 * MACS / swinir_macs)
        + 0.15 * math.exp(2 * document["params"] / 910_152)
    )
    assert document["ntire_2024_score"] == pytest.approx(score)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", pytest.param(".pt", marks=pytest.mark.slow)])
def test_a_file_costs_what_the_network_costs(call: Call, tmp_path: Path, suffix: str) -> None:
    write(Pyramid(), tmp_path / f"network{suffix}")
    outcome = call("profile", f"network{suffix}", *SIZE, *QUICK, "--no-reference", "--json")
    document = outcome.document
    assert (document["macs"], document["activations"], document["scale"]) == (MACS, ACTIVATIONS, 2)
    assert document["params"] == sum(p.numel() for p in Pyramid().parameters())
    assert document["latency_ms"]["median"] > 0
    assert document["ntire_2024_score"] is None
    noisy = "warning: cpu:1/"  # where the machine is busy
    assert suffix == ".pt" or all(line.startswith(noisy) for line in outcome.err.splitlines()), outcome.err
    paths = [module["path"] for module in document["modules"]]
    assert (
        paths
        == {
            ".pt": [""],
            ".pt2": ["", "head", "down", "up", "tail", "tail.0", "tail.1"],
            ".onnx": [],
        }[suffix]
    )


@pytest.mark.slow
def test_frozen_torchscript_has_no_count_of_parameters(call: Call, tmp_path: Path) -> None:
    frozen = torch.jit.freeze(torch.jit.script(Pyramid().eval()))
    torch.jit.save(frozen, tmp_path / "frozen.pt")
    outcome = call("profile", "frozen.pt", *SIZE, *QUICK, "--json")
    assert (outcome.document["macs"], outcome.document["params"]) == (MACS, None)
    assert outcome.document["ntire_2024_score"] is None
    assert "TorchScript that is frozen" in outcome.err


@pytest.mark.slow
def test_the_default_size_is_one_that_the_network_takes(call: Call) -> None:
    outcome = call("profile", f"{NETWORKS}:needs_256", *QUICK, "--no-reference", "--json")
    assert outcome.document["input_size"] == [256, 512]
    assert "multiples of 256: measured at 256×512" in outcome.err


def test_a_network_that_swinir_cannot_stand_beside_is_measured_alone(call: Call) -> None:
    outcome = call("profile", f"{NETWORKS}:grey", *SIZE, *QUICK, "--tree")
    assert outcome.code == 0
    assert "Conv2d" in outcome.out.partition("Modules")[2]
    assert "takes 1 channels" in outcome.err
    assert "NTIRE 2024" not in outcome.out


@pytest.mark.slow
def test_the_tree_goes_as_deep_as_is_asked_for(call: Call) -> None:
    outcome = call("profile", f"{NETWORKS}:any_size", "--tree", "1", *SIZE, *QUICK, "--no-reference")
    assert outcome.code == 0, outcome.err
    tree = outcome.out.partition("Modules")[2]
    names = ("(network)", "head", "down", "up ", "tail", "0  Conv2d", "1  PixelShuffle")
    assert [name in tree for name in names] == [True] * 5 + [False] * 2


def test_a_gap_that_nothing_explains_ends_the_command(call: Call, detour: Path) -> None:
    message = call("profile", f"{detour.name}:Detour", *SIZE, *QUICK, "--json")
    lines = message.err.splitlines()
    assert (message.code, message.out, lines[0], len(lines)) == (2, "", "imported", 2)
    for words in ("differ by 78.6%", "body.2 (Conv2d): fvcore 0, ptflops 221.18 k", "body.0 (Conv2d)", "--allow-gap"):
        assert words in lines[1]
    allowed = call("profile", f"{detour.name}:Detour", *SIZE, *QUICK, "--no-reference", "--allow-gap", "--json")
    assert allowed.document["macs"] == max(allowed.document["macs_by_counter"].values())
    assert [gap["path"] for gap in allowed.document["counter_gaps"]] == ["body.2", "body.0"]
    assert "warning: detour.py:Detour: the counters differ" in allowed.err


@pytest.mark.slow
def test_an_operator_that_nothing_looks_into_is_told(call: Call, detour: Path) -> None:
    outcome = call("profile", f"{detour.name}:Halved", *SIZE, *QUICK, "--no-reference")
    assert outcome.code == 0
    assert "no counter can look into harness_cli_tests::halve: the MACs are a lower bound" in outcome.err
    assert "≥ " in outcome.out
    assert "harness_cli_tests::halve ×1 (unknown)" in outcome.out


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "size": (
        [f"{NETWORKS}:needs_16", "--input-size", "30", "30"],
        ["needs height and width that are multiples of 16 (tried 64×64", "got 30×30", "--input-size 32 32"],
    ),
    "size that is too small": (
        [f"{NETWORKS}:Mirrored", "--input-size", "8", "8"],
        ["at least 21×21", "got 8×8"],
    ),
    "module": (["no_such_module:make"], ["no module named 'no_such_module'", "FILE.py:FACTORY"]),
    "attribute": ([f"{NETWORKS}:nothing"], ["no attribute 'nothing'", "any_size"]),
    "file without factory": (["net.py"], ["expected net.py:FACTORY"]),
    "missing file": (["net.onnx"], ["net.onnx not found"]),
    "no module returned": ([f"{NETWORKS}:no_module"], ["expected an nn.Module"]),
    "no images": ([f"{NETWORKS}:classifier"], ["expected a batch of images"]),
    "scale of another network": ([f"{NETWORKS}:any_size", "--scale", "4"], ["--scale 4", "is of scale 2"]),
    "routing": ([f"{NETWORKS}:any_size", "--gamma", "1"], ["--gamma", "does not route"]),
    "weights beside a file": (["broken.onnx", "--weights", "w.pth"], ["has its own"]),
    "corrupt TorchScript": (["broken.pt"], ["broken.pt: no TorchScript file"]),
    "corrupt export": (["broken.pt2"], ["broken.pt2: no torch.export file"]),
    "corrupt ONNX": (["broken.onnx"], ["broken.onnx: onnxruntime cannot load it"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_one_line(call: Call, tmp_path: Path, mistake: str) -> None:
    for name in ("broken.pt", "broken.pt2", "broken.onnx"):
        (tmp_path / name).write_text("hello\n", encoding="utf-8")
    arguments, words = MISTAKES[mistake]
    message = call("profile", *arguments).mistake
    for word in words:
        assert word in message

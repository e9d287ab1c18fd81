"""Weights from files: ours, released ones, and files that are neither."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.core.configs import CAMixerSRConfig
from harness.core.errors import UserError
from harness.models import build_model, load_weights

CONFIG = CAMixerSRConfig(scale=2, groups=(1,), channels=8, window=4)


def test_our_weights_round_trip(tmp_path: Path) -> None:
    source, target = build_model(CONFIG), build_model(CONFIG)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save({"params": source.state_dict()}, tmp_path / "w.pth")
    for name, entry in (("w.safetensors", "safetensors"), ("w.pth", "params")):
        assert load_weights(target, tmp_path / name) == entry
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_params_ema_is_preferred(tmp_path: Path) -> None:
    ema, raw, target = (build_model(CONFIG) for _ in range(3))
    torch.save({"params": raw.state_dict(), "params_ema": ema.state_dict()}, tmp_path / "w.pth")
    assert load_weights(target, tmp_path / "w.pth") == "params_ema"
    assert torch.equal(target.state_dict()["head.weight"], ema.state_dict()["head.weight"])


def test_released_small_weights_are_of_the_small_network_only(reference: Path) -> None:
    weights = reference / "weights" / "CAMixerSR_S.pth"
    with pytest.raises(UserError, match=r"do not fit C48 .* ×4: .*shape"):
        load_weights(build_model(CAMixerSRConfig(channels=48)), weights)
    with pytest.raises(UserError, match=r"do not fit C36 .* ×2: tail.*shape"):
        load_weights(build_model(CAMixerSRConfig(channels=36, scale=2)), weights)
    with pytest.raises(UserError, match="is not in the network"):
        load_weights(build_model(CAMixerSRConfig(channels=36, groups=(4, 4, 6))), weights)


class _Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[return-value]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"params": _Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        load_weights(build_model(CONFIG), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.pth", b"PK\x03\x04 not a zip"),
        ("text.pth", b"hello"),
        ("empty.pth", b""),
        ("cut.safetensors", b"\x10\x00"),
        ("pickle.pth", pickle.dumps([1, 2])),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_weights(build_model(CONFIG), tmp_path / name)


def test_missing_file_and_partial_state(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        load_weights(build_model(CONFIG), tmp_path / "none.pth")
    state = build_model(CONFIG).state_dict()
    state.pop("tail.bias")
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"tail\.bias is missing"):
        load_weights(build_model(CONFIG), tmp_path / "part.pth")

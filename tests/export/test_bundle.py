import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import harness
from harness.core.configs import (
    PAPER_RECIPE,
    BicubicConfig,
    CAMixerSRConfig,
    DataConfig,
    RoutingConfig,
    SwinIRConfig,
    TrainingConfig,
)
from harness.core.errors import UserError
from harness.core.records import PointRecord, TrialRecord, network_id
from harness.export import is_bundle, load_bundle, read_bundle_config, write_bundle
from harness.models import SRNetwork, build_model
from harness.profiling import count_params
from harness.trial import build_seeded
from tests import records

AnyModelConfig = CAMixerSRConfig | SwinIRConfig | BicubicConfig

FILES = {
    *("LICENCE", "README.md", "SHA256SUMS", "config.json", "metrics.json", "model.safetensors"),
    *("model.onnx", "parity.json", "example.py"),
}
SMALL = CAMixerSRConfig(channels=8, groups=(1, 1), window=4, scale=2)
SWINIR = SwinIRConfig(embed_dim=12, depths=(1,), num_heads=2, window=4, scale=3, image_residual=True)
MODELS: dict[str, AnyModelConfig] = {
    "fixed": SMALL,
    "threshold": SMALL.with_routing(RoutingConfig(policy="threshold")),
    "probability": SMALL.with_routing(RoutingConfig(policy="probability", gamma=0.3)),
    "schedule": SMALL.with_routing(RoutingConfig(policy="schedule", schedule=(0.25, 1.0))),
    "residual": SMALL.model_copy(update={"image_residual": True, "scale": 4}),
    "ablated": SMALL.model_copy(update={"offsets": False, "global_condition": False, "spatial_attention": False}),
    "swinir": SWINIR,
    "bicubic": BicubicConfig(scale=4),
}


def random_network(model: AnyModelConfig, seed: int = 0) -> SRNetwork:
    """A network with weights of every kind, none of them as it was initialised; the same in every run."""
    network = build_seeded(model, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return network


def record_of(
    model: AnyModelConfig, training: TrainingConfig | None = records.SHORT
) -> tuple[TrialRecord, PointRecord]:
    routing = model.routing if isinstance(model, CAMixerSRConfig) else None
    point = records.point(
        27.4321,
        3_210_000_000,
        routing=routing,
        share=0.5 if routing else None,
        latency_ms=12.34,
        params=count_params(model),
    )
    values = {
        "model": model,
        "label": model.label(),
        "training": training,
        "network_id": network_id(model, training, DataConfig()),
        "training_result": records.training_record(training) if training and training.steps < 1000 else None,
    }
    return records.trial(7, [point]).model_copy(update=values), point


def write(path: Path, model: AnyModelConfig = SMALL, *, seed: int = 0, overwrite: bool = False) -> SRNetwork:
    network = random_network(model, seed)
    record, point = record_of(model)
    baselines = {"swinir-light": records.swinir_baseline().points[0], "bicubic": records.bicubic_baseline().points[0]}
    returned = write_bundle(path, network, record, point, picked_as="knee", baselines=baselines, overwrite=overwrite)
    assert returned == path
    return network


@pytest.mark.parametrize("name", MODELS)
def test_a_bundle_gives_the_network_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    network = write(tmp_path / "bundle", MODELS[name])
    loaded = harness.load_bundle(tmp_path / "bundle")
    assert loaded.config == MODELS[name]
    assert not loaded.training
    assert loaded.state_dict().keys() == network.state_dict().keys()
    x_BCHW = torch.rand(2, 3, 11, 14, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = network.restore(x_BCHW), loaded.restore(x_BCHW)
    assert torch.equal(expected.image_BCHW, found.image_BCHW)
    assert torch.equal(expected.hard_share_SB, found.hard_share_SB)


def test_a_bundle_moves_and_its_path_may_be_text(tmp_path: Path) -> None:
    network = write(tmp_path / "bundle")
    shutil.move(tmp_path / "bundle", tmp_path / "elsewhere")
    loaded = load_bundle(str(tmp_path / "elsewhere"))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True))


def test_a_bundle_says_what_it_is_and_where_it_came_from(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "bundle")
    path = tmp_path / "deep" / "bundle"
    assert is_bundle(path)
    assert {file.name for file in path.iterdir()} == FILES
    assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]
    config = read_bundle_config(path)
    record, point = record_of(SMALL)
    assert (config.model, config.study, config.record_id) == (SMALL, "quickstart", "trial-00007")
    assert (config.network_id, config.picked_as, config.format_version) == (record.network_id, "knee", 1)
    metrics = json.loads((path / "metrics.json").read_text())
    assert PointRecord.model_validate(metrics["point"]) == point
    assert metrics["converged"] is False
    assert metrics["training"] == records.SHORT.model_dump(mode="json")
    assert set(metrics["baselines"]) == {"swinir-light", "bicubic"}
    assert metrics["measured_in"]["cpu_model"] == records.ENVIRONMENT.cpu_model


def test_the_files_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        write(tmp_path / "bundle")
    finally:
        os.umask(previous)
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "bundle").iterdir()} == dict.fromkeys(
        FILES, "0o644"
    )


# The model card ------------------------------------------------------------------------------------------------------


def test_the_card_states_the_measured_numbers_and_that_training_did_not_converge(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert card.startswith("# C8 groups 1-1 M4 ×4\n")
    params = f"{count_params(SMALL) / 1e3:.2f} k"
    for row in (
        f"| **this network** (fixed γ=0.5) | 27.432 | 0.7743 | 3.21 G | {params} | 12.34 | 0.154 | 0.50 |",
        "| swinir-light | 27.000 | 0.7700 | 62.71 G | 929.63 k | 80.00 | 1.000 | – |",
        "| bicubic | 26.500 | 0.7650 | 0 | 0 | 0.40 | 0.005 | – |",
    ):
        assert row in card
    assert "**Not converged**" in card
    assert (
        "100 steps of 8 patches of 128² high-resolution pixels from `demo`, 10.0 s on cpu (1 threads), seed 0." in card
    )
    assert "protocol `light` on `demo` (3 images)" in card
    assert "interleaved with SwinIR-light" in card


def test_the_card_of_a_full_recipe_does_not_say_so(tmp_path: Path) -> None:
    record, point = record_of(SMALL, PAPER_RECIPE)
    record = record.model_copy(update={"training_result": records.training_record(PAPER_RECIPE)})
    write_bundle(tmp_path / "bundle", random_network(SMALL), record, point, picked_as="knee", baselines={})
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "500000 steps of 64 patches of 256²" in card
    assert "Not converged" not in card


def test_the_card_of_bicubic_has_nothing_to_say_about_training(tmp_path: Path) -> None:
    baseline, network = records.bicubic_baseline(), build_model(BicubicConfig(scale=4))
    write_bundle(tmp_path / "bundle", network, baseline, baseline.points[0], picked_as="trial:0", baselines={})
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "It has no weights." in card
    assert "(no routing)" in card


# Overwriting ---------------------------------------------------------------------------------------------------------


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_bundle_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write(path)
    before = content_of(tmp_path)
    with pytest.raises(UserError, match="exists; give --overwrite"):
        write(path, seed=1)
    assert content_of(tmp_path) == before
    network = write(path, seed=1, overwrite=True)
    assert torch.equal(next(load_bundle(path).parameters()), next(network.parameters()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photographs"
    if kind == "file":
        path.write_text("precious")
    else:
        path.mkdir()
    if kind == "folder":
        (path / "precious.txt").write_text("precious")
    before = content_of(tmp_path)
    with pytest.raises(UserError, match="is no bundle, so it is not replaced"):
        write(path, overwrite=True)
    assert content_of(tmp_path) == before


def test_the_old_bundle_stays_when_writing_the_new_one_fails(tmp_path: Path) -> None:
    """A weight that safetensors refuses to write stands for a full disk."""
    path = tmp_path / "bundle"
    write(path)
    before = content_of(tmp_path)
    network = random_network(SMALL)
    network.register_buffer("sparse", torch.eye(3).to_sparse())
    record, point = record_of(SMALL)
    with pytest.raises(Exception, match="sparse"):
        write_bundle(path, network, record, point, picked_as="knee", baselines={}, overwrite=True)
    assert content_of(tmp_path) == before
    with pytest.raises(Exception, match="sparse"):
        write_bundle(tmp_path / "new", network, record, point, picked_as="knee", baselines={})
    assert content_of(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses the second of the two renames."""
    path = tmp_path / "bundle"
    write(path)
    before = content_of(tmp_path)
    rename = Path.rename

    def refuse(source: Path, target: Path) -> Path:
        if source.name == "new":
            raise PermissionError(f"cannot rename {source}")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        write(path, seed=1, overwrite=True)
    assert content_of(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_with_files_of_somebody_elses_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write(path)
    (path / ".DS_Store").write_text("")
    write(path, overwrite=True)
    (path / "deep").mkdir()
    (path / "deep" / "notes.txt").write_text("precious")
    before = content_of(tmp_path)
    with pytest.raises(UserError, match=r"bundle holds deep/notes\.txt, not of the bundle, so it is not replaced"):
        write(path, overwrite=True)
    assert content_of(tmp_path) == before


# Damage --------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    with pytest.raises(UserError, match=r"is no bundle: config\.json not found; `harness export` makes one"):
        load_bundle(tmp_path)
    with pytest.raises(UserError, match="is no bundle"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"", "Invalid JSON"),
        ("config.json", b"\xff\xfe\x00", "Invalid JSON"),
        ("config.json", b'{"format_version": 2}', "format_version"),
        ("config.json", b"[1, 2]", "config.json: value"),
        ("model.safetensors", b"", "does not fit"),
        ("model.safetensors", b"hello", "does not fit"),
        ("model.safetensors", None, "does not fit"),
    ],
)
def test_a_damaged_bundle_is_one_clear_error(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    path = tmp_path / "bundle"
    write(path)
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_bundle(path)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="does not fit"):
        load_bundle(path)


def test_weights_of_another_network_are_refused_and_the_misfit_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", SMALL.model_copy(update={"groups": (1, 2)}))
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match=r"does not fit config\.json: .*groups\.1\.blocks\.1") as caught:
        load_bundle(tmp_path / "a")
    assert "\n" not in str(caught.value)

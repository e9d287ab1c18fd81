"""A bundle checked again: whole ones, ones with a single byte changed anywhere, and what cannot be checked here."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.configs import CalibratedPolicy
from harness.core.records import CalibrationRecord
from harness.data import open_dataset
from harness.data.images import write_png
from harness.export import write_bundle, write_calibrated_bundle
from harness.export.manifest import check_manifest, write_manifest
from harness.metrics import get_protocol
from harness.trial import evaluate
from harness.trial.calibration import routing_by
from harness.trial.verification import Surroundings, Verification, verify_bundle
from tests.export.test_bundle import FILES, SMALL, random_network, record_of, write
from tests.records import gains
from tests.tiny_pairs import cut


def verify(bundle: Path, **options: Any) -> Verification:
    folder = bundle.parent
    return verify_bundle(bundle, Surroundings(cache_dir=folder / "cache", measure_latency=False, **options))


def states(found: Verification) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with scores that are true of its network, on images beside it."""
    folder = tmp_path_factory.mktemp("scored")
    for name in ("coffee", "rocket"):
        write_png(folder / "validation" / f"{name}.png", cut(name, 32, 48))
    network = random_network(SMALL)
    dataset = open_dataset(
        str(folder / "validation"), scale=SMALL.scale, split="validation", data_dir=None, cache_dir=folder / "cache"
    )
    record, point = record_of(SMALL)
    point = point.model_copy(update={"evaluation": evaluate(network, dataset, get_protocol("light"))})
    data = record.data.model_copy(update={"validation": str(folder / "validation")})
    record = record.model_copy(update={"data": data, "points": (point,)})
    return write_bundle(folder / "bundle", network, record, point, picked_as="knee", baselines={})


@pytest.fixture
def bundle(scored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "bundle"))


def test_a_whole_bundle_passes_and_its_scores_are_found_again(bundle: Path) -> None:
    found = verify(bundle)
    assert found.is_whole
    checks = {check.name: check for check in found.checks}
    assert {name for name, state in states(found).items() if state == "ok"} >= {
        *("checksums", "config", "weights", "metrics", "PSNR", "licence", "model card"),
    }
    psnr = checks["PSNR"].values
    assert psnr["images"] == 2
    assert psnr["largest_difference_db"] < 1e-6
    assert "2 images of validation, protocol light" in checks["PSNR"].detail
    assert states(found)["latency"] == "not checked"
    assert "1 of 2 images" in {check.name: check for check in verify(bundle, images=1).checks}["PSNR"].detail
    (bundle / "notes.txt").write_text("mine", encoding="utf-8")
    (bundle / "deep").mkdir()
    (bundle / "deep" / "more.txt").write_text("mine", encoding="utf-8")
    again = verify(bundle, images=0)
    assert again.is_whole
    assert again.unknown_files == ("deep/more.txt", "notes.txt")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_single_byte_that_changes_is_found(scored: Path, data: st.DataObject) -> None:
    """In any file, the manifest itself among them, at any place, to any other byte."""
    name = data.draw(st.sampled_from(sorted(file.name for file in scored.iterdir())))
    file = scored / name
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    try:
        file.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
        found = check_manifest(scored, FILES)
        assert found is not None
        assert not found.is_whole
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_a_shortened_and_a_missing_file_fail_the_verification(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    for damaged in (bytes([content[0] ^ 1]) + content[1:], content[:-1], content + b"\n", None):
        (bundle / name).unlink()
        if damaged is not None:
            (bundle / name).write_bytes(damaged)
        found = verify(bundle, images=0)
        assert not found.is_whole
        assert states(found)["checksums"] == "failed"
        (bundle / name).write_bytes(content)
    assert verify(bundle, images=0).is_whole


def test_a_file_that_the_manifest_forgot_is_no_file_of_somebody_elses(bundle: Path) -> None:
    (bundle / "quantised.onnx").write_bytes(b"swapped in")
    found = verify(bundle, images=0)
    assert "quantised.onnx is not in SHA256SUMS" in found.checks[0].detail
    assert not found.is_whole


def test_scores_that_are_not_the_networks_fail(bundle: Path, tmp_path: Path) -> None:
    """Weights of another network with a manifest of their own: nothing but restoring the images again finds it."""
    from safetensors.torch import save_file

    from harness.export.manifest import write_manifest

    save_file(random_network(SMALL, seed=1).state_dict(), bundle / "model.safetensors")
    write_manifest(bundle)
    assert states(verify(bundle))["PSNR"] == "failed"
    assert states(verify(bundle))["checksums"] == "ok"


def test_counts_that_are_not_the_networks_fail(bundle: Path) -> None:
    metrics = json.loads((bundle / "metrics.json").read_text(encoding="utf-8"))
    metrics["point"]["params"] += 1
    (bundle / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    write_manifest(bundle)
    found = {check.name: check for check in verify(bundle, images=0).checks}
    assert found["checksums"].status == "ok"
    assert found["weights"].status == "failed"
    assert "and metrics.json says" in found["weights"].detail


@pytest.mark.parametrize(
    ("content", "told"), [(b"no graph", "cannot be run"), (None, "model.onnx is missing, of which parity.json is")]
)
def test_an_onnx_file_that_is_none_or_is_gone_fails(bundle: Path, content: bytes | None, told: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    file, parity = bundle / "model.onnx", bundle / "parity.json"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
        record = json.loads(parity.read_text(encoding="utf-8"))
        record["sha256"] = hashlib.sha256(content).hexdigest()
        parity.write_text(json.dumps(record), encoding="utf-8")
    write_manifest(bundle)
    (check,) = (check for check in verify(bundle, images=0).checks if check.name == "ONNX parity")
    assert check.status == "failed"
    assert told in check.detail or "model.onnx" in check.detail


def test_images_that_are_others_or_away_are_not_checked(bundle: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "others" / "astronaut.png", cut("astronaut", 32, 48))
    checks = {check.name: check for check in verify(bundle, data=str(tmp_path / "others")).checks}
    assert checks["PSNR"].status == "not checked"
    assert "are not those that were scored" in checks["PSNR"].detail
    record, point = record_of(SMALL)
    data = record.data.model_copy(update={"validation": str(tmp_path / "nowhere")})
    record = record.model_copy(update={"data": data})
    write_bundle(tmp_path / "away", random_network(SMALL), record, point, picked_as="knee", baselines={})
    checks = {check.name: check for check in verify(tmp_path / "away").checks}
    assert checks["PSNR"].status == "not checked"
    assert "not at hand, give --data" in checks["PSNR"].detail


def test_an_older_bundle_is_whole_as_far_as_can_be_told(bundle: Path) -> None:
    """Without manifest and licence; but one of today without its manifest has lost it."""
    (bundle / "SHA256SUMS").unlink()
    assert states(verify(bundle, images=0))["checksums"] == "failed"
    (bundle / "LICENCE").unlink()
    config = bundle / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    del values["licence"]
    config.write_text(json.dumps(values), encoding="utf-8")
    found = verify(bundle, images=0)
    assert found.is_whole
    checks = {check.name: check for check in found.checks}
    assert checks["checksums"].status == checks["licence"].status == "not checked"
    assert "older than manifests" in checks["checksums"].detail


@pytest.mark.parametrize("policy", ["detail", "schedule"])
def test_a_calibration_of_another_routing_fails(tmp_path: Path, policy: CalibratedPolicy) -> None:
    """Of a bundle that was calibrated, and of a point that its search has calibrated."""
    gained = gains(None)
    routing = routing_by(gained, policy, 0.25)
    write(tmp_path / "bundle")
    calibration = CalibrationRecord(**gained.model_dump(), routing=routing, share=0.25, psnr_db=25.0)
    write_calibrated_bundle(tmp_path / "later", tmp_path / "bundle", calibration)
    model = SMALL.with_routing(routing)
    record, point = record_of(model)
    record = record.model_copy(update={"calibration": gained})
    write_bundle(tmp_path / "searched", random_network(model), record, point, picked_as="knee", baselines={})
    for name in ("later", "searched"):
        assert states(verify(tmp_path / name))["calibration"] == "ok"
        metrics = tmp_path / name / "metrics.json"
        content = metrics.read_text(encoding="utf-8")
        key = "block_weights" if policy == "detail" else "schedule"
        if name == "searched":
            content = re.sub(r'("gains_db":\s*\[\s*)0\.1(,\s*)0\.0', r"\g<1>0.0\g<2>0.1", content)
        else:
            content = re.sub(rf'("{key}":\s*\[\s*)[\d.]+(,\s*)[\d.]+', r"\g<1>0.0\g<2>0.5", content)
        metrics.write_text(content, encoding="utf-8")
        assert states(verify(tmp_path / name))["calibration"] == "failed"

"""Bundles in a real registry: a SQLite store, read back by MLflow itself, in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow import MlflowClient

from harness.core.errors import UserError
from harness.export import load_network, upscale_image, write_bundle
from harness.metrics import get_protocol
from harness.tracking import check_registration, register_bundle, served_model
from tests.export.test_bundle import SMALL, random_network, record_of, write
from tests.records import SHORT
from tests.tiny_pairs import cut
from tests.tracking.test_tracker import Server, Store, fresh_database, server, store

__all__ = ["fresh_database", "server", "store"]  # fixtures

ROOT = Path(__file__).parents[2]
_LOAD = """
import json, sys
import mlflow, numpy as np

model = mlflow.pyfunc.load_model(sys.argv[1])
signature = model.metadata.signature
made = model.predict(np.load("images.npy"))
np.save("made.npy", made)
example = model.predict(model.input_example)
print(json.dumps({
    "dtype": str(made.dtype),
    "signature": [str(spec.type) + str(spec.shape) for spec in (*signature.inputs, *signature.outputs)],
    "example": [list(model.input_example.shape), list(example.shape)],
    "torch": "torch" in sys.modules,
}))
"""


def load_elsewhere(store: str, uri: str, images_NHWC: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Load a model by its address in a fresh process; return what it makes of images, and what it says of itself."""
    np.save(folder / "images.npy", images_NHWC)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, uri],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": store, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "made.npy"), json.loads(done.stdout)


def register(store: Store, bundle: Path, **options: Any) -> Any:
    return register_bundle(bundle, "cam", tracking_uri=store.uri, artifact_root=store.folder / "artifacts", **options)


@pytest.mark.slow
def test_a_registered_bundle_loads_in_a_fresh_process_and_gives_the_networks_images(
    store: Store, tmp_path: Path
) -> None:
    """Of the run of its trial, with signature and example; the first version is the champion."""
    write(tmp_path / "bundle")
    record, _ = record_of(SMALL)
    assert store.tracker().log_record(record)
    found = register(store, tmp_path / "bundle")
    assert (found.uri, found.version, found.was_there) == ("models:/cam@champion", 1, False)
    assert found.run_id == store.child(record.record_id).info.run_id
    (tmp_path / "bundle" / "private.txt").write_text("mine", encoding="utf-8")
    images_NHWC = np.stack([cut("coffee", 20, 30), cut("rocket", 20, 30)])
    made_NHWC, said = load_elsewhere(store.uri, found.uri, images_NHWC, tmp_path)
    network = load_network(tmp_path / "bundle")
    expected_NHWC = np.stack([upscale_image(network, image_HWC) for image_HWC in images_NHWC])
    assert np.abs(made_NHWC.astype(int) - expected_NHWC).max() <= 1
    assert said["dtype"] == "uint8"
    assert said["signature"] == ["uint8(-1, -1, -1, 3)"] * 2
    assert said["example"] == [[1, 12, 24, 3], [1, 24, 48, 3]]
    assert not said["torch"]  # by the ONNX file alone
    assert store.warnings == []
    version = MlflowClient(store.uri).get_model_version("cam", "1")
    assert version.tags["psnr_db"] == "27.4321"
    assert version.tags["harness.record_id"] == record.record_id


def test_versions_and_their_aliases(store: Store, tmp_path: Path) -> None:
    """A later one challenges unless it is told otherwise, and the same bundle is no second version."""
    for name in ("first", "second"):
        write(tmp_path / name, seed=len(name))
    assert register(store, tmp_path / "first").alias == "champion"
    second = register(store, tmp_path / "second")
    assert (second.version, second.alias, second.was_there) == (2, "challenger", False)
    digest = hashlib.sha256((tmp_path / "second" / "SHA256SUMS").read_bytes()).hexdigest()
    again = register(store, tmp_path / "second", alias="champion")
    assert (again.version, again.alias, again.was_there) == (2, "champion", True)
    client = MlflowClient(store.uri)
    assert client.get_model_version_by_alias("cam", "champion").tags["harness.bundle"] == digest
    assert len(client.search_model_versions("name = 'cam'")) == 2
    experiment = client.get_experiment_by_name("bundles")
    assert experiment is not None
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"FINISHED"}
    image_HWC = cut("coffee", 20, 30)
    made_HWC = mlflow.pyfunc.load_model(client.get_model_version("cam", "2").source).predict(image_HWC[None])[0]
    expected_HWC = upscale_image(load_network(tmp_path / "second"), image_HWC)
    assert np.abs(made_HWC.astype(int) - expected_HWC).max() <= 1


def test_a_store_that_is_away_or_none_is_one_clear_line(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"--register cam: MLflow tracking to http://127.0.0.1:1 failed .* is whole"):
        register_bundle(tmp_path / "bundle", "cam", tracking_uri="http://127.0.0.1:1", artifact_root=None)
    with pytest.raises(UserError, match="is no MLflow store"):
        check_registration("cam", "nonsense")
    for name in ("", "a/b", "a:b", " a"):
        with pytest.raises(UserError, match="expected a name without '/' and ':'"):
            check_registration(name, "sqlite:///x.db")
    (tmp_path / "bundle" / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="has no SHA256SUMS; export it again"):
        register_bundle(tmp_path / "bundle", "cam", tracking_uri="sqlite:///x.db", artifact_root=None)


@pytest.mark.slow
def test_a_server_keeps_the_files_and_gives_them_back(server: Server, tmp_path: Path) -> None:
    """Through its own artifact store; and a second try, after it was away, makes no second version."""
    write(tmp_path / "bundle")
    bundle = tmp_path / "bundle"
    server.kill()
    with pytest.raises(UserError, match="is whole, and the same command"):
        register_bundle(bundle, "cam", tracking_uri=server.uri, artifact_root=None)
    server.start()
    found = [register_bundle(bundle, "cam", tracking_uri=server.uri, artifact_root=None) for _ in range(2)]
    assert [(one.version, one.was_there) for one in found] == [(1, False), (1, True)]
    images_NHWC = cut("coffee", 20, 30)[None]
    made_NHWC, _ = load_elsewhere(server.uri, found[0].uri, images_NHWC, tmp_path)
    expected_HWC = upscale_image(load_network(bundle), images_NHWC[0])
    assert np.abs(made_NHWC[0].astype(int) - expected_HWC).max() <= 1


@pytest.mark.parametrize("has_onnx", [True, False])
@pytest.mark.parametrize("task", ["classic", "odi"])
def test_what_is_served_is_what_upscale_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, has_onnx: bool
) -> None:
    """In tiles, and of panoramas without a seam; by the ONNX file and by the network."""
    monkeypatch.setattr(served_model, "TILE", 16)
    monkeypatch.setattr(served_model, "OVERLAP", 4)
    network = random_network(SMALL)
    record, point = record_of(SMALL, training=SHORT.model_copy(update={"task": task}))
    bundle = write_bundle(tmp_path / "bundle", network, record, point, picked_as="knee", baselines={})
    if not has_onnx:
        (bundle / "model.onnx").unlink()
    model: Any = served_model.ImageUpscaler()
    context = types.SimpleNamespace(artifacts={"bundle": str(bundle)})
    model.load_context(context)
    image_HWC = cut("coffee", 24, 48)
    (made_HWC,) = model.predict(context, image_HWC[None])
    wrap = get_protocol("odi").wrap if task == "odi" else 0
    expected_HWC = upscale_image(network, image_HWC, tile=16, overlap=4, wrap=wrap)
    assert np.abs(made_HWC.astype(int) - expected_HWC).max() <= 1
    if task == "odi":
        with pytest.raises(ValueError, match="whole panoramas"):
            model.predict(context, cut("coffee", 24, 40)[None])

"""The ONNX file of a bundle: run by the example that is printed, and left out where it cannot be made."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from harness.core.records import CalibrationRecord
from harness.data.images import read_rgb, write_png
from harness.export import load_network, upscale_image, write_bundle, write_calibrated_bundle
from harness.export.documents import ParityRecord
from harness.trial.calibration import routing_by
from harness.trial.verification import Surroundings, verify_bundle
from tests.export.test_bundle import MODELS, SMALL, random_network, record_of, write
from tests.records import gains
from tests.tiny_pairs import cut

ROOT = Path(__file__).parents[2]


def example_of(bundle: Path) -> str:
    """The lines of Python that the card shows for the ONNX file."""
    card = (bundle / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return next(str(text) for text in found if "onnxruntime" in text)


def run_example(python: Path, bundle: Path, folder: Path) -> np.ndarray[Any, Any]:
    """Run the example as a user of the card does, on a photograph whose sides no window divides."""
    write_png(folder / "in.png", cut("coffee", 21, 34))
    code = example_of(bundle)
    command = [str(python), "-c", code, str(folder / "in.png"), str(folder / "out.png")]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, cwd=bundle, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return read_rgb(folder / "out.png")


# Not those without conditions: with random weights their windows are ranked by what only rounding tells apart.
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"ablated"}))
def test_the_example_of_the_card_gives_the_networks_image(tmp_path: Path, name: str) -> None:
    network = write(tmp_path / "bundle", MODELS[name])
    code = example_of(tmp_path / "bundle")
    assert len(code.splitlines()) == 15
    assert code == (tmp_path / "bundle" / "example.py").read_text(encoding="utf-8")
    made_HWC = run_example(Path(sys.executable), tmp_path / "bundle", tmp_path)
    assert np.abs(made_HWC.astype(int) - upscale_image(network, cut("coffee", 21, 34))).max() <= 1
    parity = ParityRecord.model_validate_json((tmp_path / "bundle" / "parity.json").read_bytes())
    assert parity.max_abs < 1e-4
    assert len(parity.images) >= 3


@pytest.mark.slow
def test_the_example_needs_nothing_but_onnxruntime_and_pillow(tmp_path: Path) -> None:
    """In an environment of its own, made as the card says."""
    network = write(tmp_path / "bundle")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=300)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "onnxruntime", "pillow"]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
    if installed.returncode != 0:
        pytest.skip(f"pip cannot install onnxruntime and pillow here: {installed.stderr.strip().splitlines()[-1]}")
    listed = subprocess.run([str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"^(torch|harness|onnx)\s", listed, re.MULTILINE)
    made_HWC = run_example(python, tmp_path / "bundle", tmp_path)
    assert np.abs(made_HWC.astype(int) - upscale_image(network, cut("coffee", 21, 34))).max() <= 1


def test_a_calibrated_copy_has_the_file_of_its_own_routing(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    found = gains(None)
    routing = routing_by(found, "detail", 0.75)
    record = CalibrationRecord(**found.model_dump(), routing=routing, share=0.75, psnr_db=25.0)
    copy = write_calibrated_bundle(tmp_path / "copy", tmp_path / "bundle", record)
    made_HWC = run_example(Path(sys.executable), copy, tmp_path)
    expected_HWC = upscale_image(load_network(copy), cut("coffee", 21, 34))
    assert np.abs(made_HWC.astype(int) - expected_HWC).max() <= 1
    assert not np.array_equal(made_HWC, run_example(Path(sys.executable), tmp_path / "bundle", tmp_path))


_WITHOUT_ONNX = """
import sys
sys.modules["onnx"] = None  # as where it is not installed
from pathlib import Path
from tests.export.test_bundle import SMALL, random_network, record_of
from harness.export import write_bundle
record, point = record_of(SMALL)
write_bundle(Path(sys.argv[1]), random_network(SMALL), record, point, picked_as="knee", baselines={}, tell=print)
"""


def test_a_bundle_is_written_without_where_onnx_is_not_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT_ONNX, str(tmp_path / "bundle")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.count("\n") == 1
    assert re.match(r"the bundle has no model\.onnx: .*pip install", done.stdout)
    files = {file.name for file in (tmp_path / "bundle").iterdir()}
    assert not files & {"model.onnx", "parity.json", "example.py"}
    assert "onnxruntime" not in (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    found = verify_bundle(tmp_path / "bundle", Surroundings(cache_dir=tmp_path, images=0, measure_latency=False))
    assert found.is_whole
    checks = {check.name: check for check in found.checks}
    assert (checks["ONNX parity"].status, checks["ONNX parity"].detail) == ("not checked", "no ONNX file")


def test_an_onnx_file_of_another_network_fails_the_verification(tmp_path: Path) -> None:
    """With a manifest and a parity record that fit it: running it finds out."""
    from harness.export.manifest import write_manifest

    write(tmp_path / "bundle")
    write(tmp_path / "other", seed=1)
    for name in ("model.onnx", "parity.json"):
        (tmp_path / "bundle" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    write_manifest(tmp_path / "bundle")
    found = verify_bundle(tmp_path / "bundle", Surroundings(cache_dir=tmp_path, images=0, measure_latency=False))
    checks = {check.name: check for check in found.checks}
    assert checks["checksums"].status == "ok"
    assert checks["ONNX parity"].status == "failed"
    assert "is not what the network is" in checks["ONNX parity"].detail


def test_a_network_whose_file_would_differ_is_written_without_it(tmp_path: Path) -> None:
    """Weights that are no numbers stand for whatever makes a runtime differ."""
    network = random_network(SMALL)
    next(network.parameters()).data.fill_(float("nan"))
    record, point = record_of(SMALL)
    told: list[str] = []
    write_bundle(tmp_path / "bundle", network, record, point, picked_as="knee", baselines={}, tell=told.append)
    assert len(told) == 1
    assert not (tmp_path / "bundle" / "model.onnx").exists()

"""A network to a quantised file, judged in the runtime that runs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from harness.core.configs import QuantisationConfig
from harness.core.errors import UserError
from harness.core.quantisation import QuantisationRecord
from harness.data import PairedDataset
from harness.metrics import get_protocol
from harness.profiling import TargetNetwork, load_target, parse_target
from harness.trial import evaluate
from harness.trial.quantisation import divide_images, is_quantised, quantise, score_file, write_quantised
from tests.compression.networks import PAIRS, small_network
from tests.tiny_pairs import VALIDATION, tiny_pairs

CONFIG = QuantisationConfig(tile=16, images=2, held_out=2, max_drop_db=None)
LIGHT = get_protocol("light")


def images() -> PairedDataset:
    return tiny_pairs(PAIRS, 2, "train")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantisationRecord]:
    folder = tmp_path_factory.mktemp("quantised")
    held_out = tiny_pairs(VALIDATION, 2, "validation")
    return folder, quantise(small_network(), images(), CONFIG, folder, evaluation=held_out, protocol=LIGHT, effort=None)


def test_no_image_is_calibrated_on_and_judged_by() -> None:
    calibrated, held_out = divide_images(images(), CONFIG)
    names = [[pair.name for pair in pairs] for pairs in (calibrated, held_out)]
    assert names == [["chelsea", "rocket"], ["astronaut", "coffee"]]
    assert {pair.lr_HWC.shape for pair in (*calibrated, *held_out)} == {(16, 16, 3)}
    assert {pair.hr_HWC.shape for pair in (*calibrated, *held_out)} == {(32, 32, 3)}
    dynamic = QuantisationConfig(method="dynamic", tile=16, held_out=2)
    assert [len(pairs) for pairs in divide_images(images(), dynamic)] == [0, 2]
    with pytest.raises(UserError, match=r"has 3 images of at least 24×24 .* 4 are to be .*--calibration"):
        divide_images(images(), CONFIG.model_copy(update={"tile": 24}))


def test_the_record_says_what_the_runtime_restores(quantised: tuple[Path, QuantisationRecord]) -> None:
    """Its PSNR is that of the file, run by onnxruntime as anybody would."""
    folder, record = quantised
    assert QuantisationRecord.model_validate_json((folder / "quantisation.json").read_bytes()) == record
    assert record.before is not None
    assert record.after is not None
    spec = parse_target(str(folder / "network.onnx"))
    assert spec is not None
    held_out = tiny_pairs(VALIDATION, 2, "validation")
    again = evaluate(TargetNetwork(load_target(spec)), held_out, LIGHT, tile=16, overlap=4)
    assert [image.psnr_db for image in again.images] == [image.psnr_db for image in record.after.images]
    whole = evaluate(small_network(), held_out, LIGHT, tile=16, overlap=4)
    assert record.before.psnr_db == pytest.approx(whole.psnr_db, abs=1e-3)  # the exporter changed nothing
    assert record.drop_db == record.before.psnr_db - record.after.psnr_db
    assert 0 < abs(record.drop_db) < 0.5
    assert record.file_bytes == (folder / "network.onnx").stat().st_size < record.float_file_bytes
    assert len(record.choice.quantised) >= 15
    assert len(record.choice.routing) == 2
    assert (record.choice.kept, record.calibration_images) == ((), ("chelsea", "rocket"))


@pytest.mark.slow
def test_a_bound_is_met_on_the_images_held_out(tmp_path: Path) -> None:
    """Half of what quantising everything costs: met by the file itself, with fewer layers quantised."""
    free = quantise(small_network(), images(), CONFIG, tmp_path, effort=None)
    bound = free.choice.drop_db / 2
    assert bound > 0
    config = CONFIG.model_copy(update={"max_drop_db": bound})
    record = quantise(small_network(), images(), config, tmp_path, effort=None)
    assert record.choice.is_met
    assert record.choice.drop_db <= bound
    assert 0 < len(record.choice.kept) < len(free.choice.quantised)
    assert set(record.choice.kept) | set(record.choice.quantised) == set(free.choice.quantised)
    judged = PairedDataset("held out", 2, divide_images(images(), config)[1])
    found = score_file(tmp_path / "network.onnx", judged, LIGHT, config, device="cpu:1", precision="fp32", scale=2)
    assert found.psnr_db == record.choice.psnr_db
    assert record.notes == ()


def test_what_is_there_is_replaced_in_one_step_or_not_at_all(
    tmp_path: Path, quantised: tuple[Path, QuantisationRecord]
) -> None:
    folder = tmp_path / "result"
    write_quantised(folder, lambda made: quantise(small_network(), images(), CONFIG, made, effort=None))
    assert is_quantised(folder)
    with pytest.raises(UserError, match="exists"):
        write_quantised(folder, lambda made: quantise(small_network(), images(), CONFIG, made, effort=None))
    before = (folder / "network.onnx").read_bytes()
    too_many = CONFIG.model_copy(update={"images": 9})
    with pytest.raises(UserError, match="has 4 images"):
        write_quantised(folder, lambda made: quantise(small_network(), images(), too_many, made), overwrite=True)
    assert (folder / "network.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


KILLED = """
import sys
from pathlib import Path
from harness.trial.quantisation import quantise, write_quantised
from tests.trial.test_quantisation import CONFIG, images
from tests.compression.networks import small_network

write_quantised(
    Path(sys.argv[1]),
    lambda made: quantise(
        small_network(), images(), CONFIG, made, effort=None,
        progress=lambda what, times: print(what, times, flush=True),
    ),
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["exporting", "calibrating", "judging layers"])
def test_killed_in_the_middle_it_leaves_no_half_file(when: str, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "quantised"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith(when) for line in process.stdout)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if folder.exists():  # on a busy machine the last stage may have ended before the signal came
        assert when == "judging layers"
        assert is_quantised(folder)


@pytest.mark.slow
def test_openvino_runs_the_same_file(tmp_path: Path, quantised: tuple[Path, QuantisationRecord]) -> None:
    pytest.importorskip("openvino")
    _, of_onnxruntime = quantised
    held_out = tiny_pairs(VALIDATION, 2, "validation")
    config = CONFIG.model_copy(update={"runtime": "openvino"})
    record = quantise(small_network(), images(), config, tmp_path, evaluation=held_out, protocol=LIGHT, effort=None)
    assert record.sha256 == of_onnxruntime.sha256
    assert record.before is not None
    assert of_onnxruntime.before is not None
    assert record.before.psnr_db == pytest.approx(of_onnxruntime.before.psnr_db, abs=1e-3)  # bfloat16 is off by more
    assert record.drop_db is not None
    assert abs(record.drop_db) < 0.5
    rounded = QuantisationConfig(method="bf16", runtime="openvino", tile=16, held_out=2)
    record = quantise(small_network(), images(), rounded, tmp_path, evaluation=held_out, protocol=LIGHT, effort=None)
    assert (record.choice.quantised, record.calibration_images) == ((), ())
    assert record.drop_db is not None
    assert 0 < abs(record.drop_db) < 0.1

"""A search whose networks are quantised: files and networks in float on one front, picked, killed, resumed."""

import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from harness.core.quantisation import QuantisationRecord
from harness.core.records import TrialRecord, point_id
from harness.core.study_folder import StudyFolder
from harness.export import read_bundle_metrics
from tests.cli.conftest import Call, run_harness
from tests.photographs import Photographs
from tests.search.conftest import wait_for
from tests.spaces import tiny_space, write_space

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

FILE = {"method": "minmax", "tile": 16, "images": 2, "held_out": 1, "max_drop_db": None}
LABEL = "int8 minmax in onnxruntime"


def write_quantising_space(folder: Path, photographs: Photographs) -> Path:
    space = tiny_space(
        photographs,
        dimensions={
            "model.channels": {"choices": [8]},
            "compression.left": {"choices": [1.0, 0.6]},
            "compression.quantise": {"choices": [None, FILE]},
            "routing.gamma": {"choices": [0.0, 1.0]},
        },
        compression={"tune_steps": 1, "crops": 1},
        sampler={"name": "grid"},
        budget={"networks": 4},
        objectives=["psnr_db", "latency_ms", "macs"],
        constraints=["latency_ms <= 100000"],
        baselines=["bicubic"],
    )
    return write_space(folder / "small.yaml", space)


def trials_of(folder: StudyFolder) -> list[TrialRecord]:
    return [record for record in folder.read_trials() if record.kind == "trial"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, photographs: Photographs) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    file = write_quantising_space(folder, photographs)
    outcome = run_harness("search", file, "--results", folder / "results", "--threads", "1", "--report")
    assert outcome.code == 0, outcome.err
    assert f"of {LABEL} best" in outcome.out
    return folder / "results"


@pytest.mark.slow
def test_networks_in_float_pruned_ones_and_files_stand_on_one_front(searched: Path, call: Call) -> None:
    from mlflow import MlflowClient

    folder = StudyFolder(searched / "small")
    records = [one for one in trials_of(folder) if one.state == "complete"]
    quantised = [one for one in records if one.plan is not None and one.plan.quantise is not None]
    assert (len(records), len(quantised)) == (4, 2)
    assert [len(one.points) for one in quantised] == [4, 4]
    assert {one.suggestion["compression.left"] for one in quantised} == {1.0, 0.6}
    document = call("report", "small", "--results", searched, "--json").document
    assert document["num_points"] == 2 * 2 + 2 * 4
    told = optuna.load_study(study_name="small", storage=f"sqlite:///{folder.database}").get_trials()
    for record in records:
        values = {
            trial.params["routing.gamma"]: trial.values
            for trial in told
            if trial.state.name == "COMPLETE" and trial.user_attrs["network"] == record.network_id
        }
        expected = {
            point.routing.gamma: [point.value(name) for name in ("psnr_db", "latency_ms", "macs")]
            for point in record.produced
            if point.routing is not None
        }
        assert values == expected
    compared = call("compare", "small", "--results", searched, "--json").document
    assert any("run by onnxruntime" in setting for setting in compared["latency_settings"])
    status = call("status", "small", "--results", searched)
    assert "of 12 points" in status.out
    client = MlflowClient(f"sqlite:///{searched / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = {run.data.tags.get("harness.record_id"): run for run in client.search_runs([experiment.experiment_id])}
    for record in quantised:
        metrics = runs[record.record_id].data.metrics
        for point in record.produced:
            assert point.routing is not None
            name = f"fixed/gamma_{point.routing.gamma:.2f}/minmax-onnxruntime"
            assert metrics[f"psnr_db/{name}"] == point.evaluation.psnr_db
            assert metrics[f"latency_ms/cpu:1/{name}"] == point.latency[0].median
            assert metrics[f"file_bytes/{name}"] == point.quantised.file_bytes  # type: ignore[union-attr]
            if point.routing.gamma == record.suggestion["routing.gamma"]:
                assert metrics["psnr_db"] == point.evaluation.psnr_db


@pytest.mark.slow
def test_a_file_gives_what_is_recorded_of_its_point(searched: Path, photographs: Photographs, call: Call) -> None:
    folder = StudyFolder(searched / "small")
    record = next(one for one in trials_of(folder) if one.produced != one.points)
    for point in record.produced:
        file = folder.quantised_file(record, point)
        assert file is not None
        again = call("evaluate", file, "--data", photographs.validation, "--json").document
        assert again["psnr_db"] == point.evaluation.psnr_db
        assert again["ssim"] == point.evaluation.ssim


@pytest.mark.slow
def test_a_bundle_of_a_file_has_it_and_what_was_measured_of_it(
    searched: Path, photographs: Photographs, call: Call
) -> None:
    folder = StudyFolder(searched / "small")
    record = next(one for one in trials_of(folder) if one.produced != one.points)
    for picked in record.produced:
        name = point_id(record.network_id, picked.routing, picked.quantised)
        outcome = call(
            "export", "small", "--results", searched, "--pick", f"point:{name}", "--out", "one", "--overwrite"
        )
        assert outcome.code == 0, outcome.err
        assert LABEL in outcome.out
        metrics = read_bundle_metrics(Path("one"))
        assert metrics.quantised == picked
        assert metrics.point is not None
        assert (metrics.point.routing, metrics.point.quantised) == (picked.routing, None)
        of_file = call("evaluate", "one/quantised.onnx", "--data", photographs.validation, "--json").document
        assert of_file["psnr_db"] == picked.evaluation.psnr_db
        in_float = call("evaluate", "one", "--data", photographs.validation, "--json").document
        assert in_float["psnr_db"] == metrics.point.evaluation.psnr_db
        card = Path("one/README.md").read_text(encoding="utf-8")
        assert f"| {picked.evaluation.psnr_db:.3f} |" in card
        assert (
            "MiB. Its scores and latency are those of the file in that runtime, beside swinir-light under cpu:1" in card
        )
        kept = QuantisationRecord.model_validate_json(Path("one/quantisation.json").read_bytes())
        assert kept.sha256 == picked.quantised.sha256  # type: ignore[union-attr]
    plain = next(one for one in trials_of(folder) if one.produced == one.points and one.state == "complete")
    assert call("export", "small", "--results", searched, "--pick", f"trial:{plain.number}", "--out", "two").code == 0
    assert read_bundle_metrics(Path("two")).quantised is None
    assert not Path("two/quantised.onnx").exists()
    assert "quantised" not in Path("two/metrics.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_killed_while_it_quantises_it_goes_on_from_there(
    searched: Path, tmp_path: Path, photographs: Photographs
) -> None:
    """What the kill left is not made again, and what is made again has the same bits."""
    file = write_quantising_space(tmp_path, photographs)
    command = [sys.executable, "-m", "harness", "search", str(file), "--no-tracking", "--threads", "1"]
    command += ["--results", str(tmp_path / "results")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    study = StudyFolder(tmp_path / "results" / "small")
    wait_for(lambda: any(study.path.glob("networks/*/quantised/network.onnx")), process)
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    (kept,) = study.path.glob("networks/*/quantised/network.onnx")
    assert not any(kept.parents[1].glob("quantised-*"))
    made = kept.stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert kept.stat().st_mtime_ns == made
    records, others = (
        {one.network_id: one for one in trials_of(folder) if one.state == "complete"}
        for folder in (study, StudyFolder(searched / "small"))
    )
    assert len(records) == len(others) == 4
    by_name = {str(one.plan): one for one in others.values()}
    for record in records.values():
        other = by_name[str(record.plan)]
        assert [one.evaluation.psnr_db for one in record.points] == [one.evaluation.psnr_db for one in other.points]
        assert [one.quantised.sha256 for one in record.points if one.quantised] == [
            one.quantised.sha256 for one in other.points if one.quantised
        ]


def test_conditions_that_a_file_has_no_latency_under_are_refused(tmp_path: Path, photographs: Photographs) -> None:
    from harness.core.errors import UserError
    from harness.search import read_space

    def refused(**changes: object) -> str:
        settings = tiny_space(photographs, compression={"left": 0.5, "quantise": FILE}, **changes)
        with pytest.raises(UserError) as error:
            read_space(write_space(tmp_path / "unfit.yaml", settings))
        return str(error.value)

    assert "no latency on cuda:0; expected cpu:THREADS" in refused(profile={"devices": ["cuda:0", "cpu:1"]})
    devices = {"devices": ["cpu:1", "cuda:0"]}
    assert "no latency on cuda:0" in refused(profile=devices, objectives=["psnr_db", "latency_ms/cuda:0"])
    assert "no latency on cuda:0" in refused(profile=devices, constraints=["latency_ms/cuda:0 <= 3"])
    assert "protocol odi for whole panoramas" in refused(task="odi")

"""From photographs to an enlarged image: search, report, compare, export, upscale, and what MLflow holds in the end."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

import harness
from harness.core.study_folder import StudyFolder
from harness.data.images import read_rgb
from harness.export import load_network, read_bundle_metrics, upscale_image
from harness.trial import load_trained
from tests.cli.conftest import Call, FinishedStudy
from tests.photographs import Photographs
from tests.spaces import tiny_space, write_space


class TestSearch:
    def test_says_what_was_found_and_what_comes_next(self, study: FinishedStudy) -> None:
        for words in (
            "study tiny: 2 networks, each at 3 points",
            "baseline-bicubic",
            "baseline-swinir-light",
            "trial-00000  C24 groups 1 M4: rejected, params is 22961, but the space demands params <= 20000",
            "finished: the budget of 2 networks is spent; 2 networks trained",
            "front of tiny",
            "← knee",
            "not converged: 2 steps",
            "time: ",
            "harness compare tiny",
            "harness upscale",
            "mlflow ui --backend-store-uri sqlite:///",
        ):
            assert words in study.output
        assert study.store in study.output.replace("\n", "")

    def test_leaves_records_weights_report_and_bundle(self, study: FinishedStudy) -> None:
        folder = StudyFolder(study.folder)
        states = {record.record_id: record.state for record in folder.read_trials()}
        assert states == {
            "baseline-bicubic": "complete",
            "baseline-swinir-light": "complete",
            "trial-00000": "rejected",
            "trial-00001": "complete",
            "trial-00004": "complete",
        }
        for record in folder.read_trials():
            trains = record.state == "complete" and record.record_id != "baseline-bicubic"
            assert folder.weights_file(record.network_id).is_file() == trains
        assert not list(study.folder.glob("networks/*/checkpoint.pt"))
        assert {path.name for path in folder.report_dir.iterdir()} >= {"front.csv", "front.png", "report.html"}
        assert (folder.bundles_dir / "knee" / "model.safetensors").is_file()

    def test_baselines_are_trained_like_the_networks(self, study: FinishedStudy) -> None:
        records = {record.record_id: record for record in StudyFolder(study.folder).read_trials()}
        swinir, trained = records["baseline-swinir-light"], records["trial-00001"]
        assert swinir.training == trained.training
        assert swinir.data == trained.data
        assert swinir.model.family == "swinir"
        assert swinir.model.image_residual
        for record in (swinir, trained):
            for point in record.points:
                (latency,) = point.latency
                assert (latency.reference, latency.device, latency.input_size) == ("swinir-light", "cpu:1", (8, 8))


class TestStore:
    @pytest.fixture(scope="class")
    def client(self, study: FinishedStudy) -> MlflowClient:
        return MlflowClient(study.store)

    @pytest.fixture(scope="class")
    def runs(self, client: MlflowClient) -> dict[str, Run]:
        (experiment,) = (found for found in client.search_experiments() if found.name == "tiny")
        found = client.search_runs([experiment.experiment_id], max_results=100)
        return {run.data.tags.get("harness.record_id", "parent"): run for run in found}

    def test_holds_a_parent_and_a_child_for_every_record(self, runs: dict[str, Run]) -> None:
        assert sorted(runs) == [
            "baseline-bicubic",
            "baseline-swinir-light",
            "parent",
            "trial-00000",
            "trial-00001",
            "trial-00004",
        ]
        parent = runs["parent"]
        assert parent.info.status == "FINISHED"
        children = [run for name, run in runs.items() if name != "parent"]
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}

    def test_the_parent_holds_the_front(self, client: MlflowClient, runs: dict[str, Run], tmp_path: Path) -> None:
        parent = runs["parent"]
        artifacts = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
        assert artifacts >= {"front.csv", "front.png", "report.html", "front.json", "study.json", "space.yaml"}
        table = json.loads(Path(client.download_artifacts(parent.info.run_id, "front.json", str(tmp_path))).read_text())
        assert len(table["data"]) == parent.data.metrics["front_size"]
        assert parent.data.metrics["num_points"] == 6
        assert parent.data.metrics["num_architectures"] == 2

    def test_a_child_holds_everything_that_its_record_holds(
        self, client: MlflowClient, runs: dict[str, Run], study: FinishedStudy, tmp_path: Path
    ) -> None:
        records = {record.record_id: record for record in StudyFolder(study.folder).read_trials()}
        for name in ("trial-00001", "baseline-swinir-light"):
            run, record = runs[name], records[name]
            assert run.info.status == "FINISHED"
            assert run.data.params["training.steps"] == "2"
            file = client.download_artifacts(run.info.run_id, "record.json", str(tmp_path))
            assert Path(file).read_text(encoding="utf-8") == record.model_dump_json(indent=1)
            curve = client.get_metric_history(run.info.run_id, "training/loss")
            assert record.training_result is not None
            assert [entry.step for entry in curve] == list(record.training_result.curve_steps)
            assert [entry.value for entry in curve] == pytest.approx(record.training_result.curves["loss"])
            best = max(point.evaluation.psnr_db for point in record.points)
            assert best in [pytest.approx(value) for value in run.data.metrics.values()]

    def test_states_and_baselines_are_told_apart(self, runs: dict[str, Run]) -> None:
        rejected = runs["trial-00000"]
        assert rejected.info.status != "FINISHED"
        assert "rejected" in rejected.data.tags.values()
        assert any("params <= 20000" in value for value in rejected.data.tags.values())
        for name, run in runs.items():
            if name != "parent":
                assert ("baseline" in run.data.tags.values()) == name.startswith("baseline")


class TestReportAndExport:
    def test_the_csv_is_the_front(self, call: Call, study: FinishedStudy) -> None:
        front = call("report", "tiny", "--results", study.results, "--json").document["front"]
        with (study.folder / "report" / "front.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        on_front = [row for row in rows if row["config_id"] in {point["config_id"] for point in front}]
        assert len(on_front) >= len(front)
        scores = [float(row["psnr_db"]) for row in on_front]
        assert all(point["psnr_db"] in [pytest.approx(score) for score in scores] for point in front)

    @pytest.mark.parametrize("pick", ["knee", "best-psnr", "fastest", "smallest", "trial:4", "macs <= 9G"])
    def test_every_pick_is_rebuilt_to_the_bit(
        self, call: Call, study: FinishedStudy, photographs: Photographs, tmp_path: Path, pick: str
    ) -> None:
        exported = call("export", "tiny", "--results", study.results, "--pick", pick, "--out", tmp_path / "bundle")
        assert exported.code == 0
        assert pick in exported.out
        network = harness.load_bundle(tmp_path / "bundle")
        config = json.loads((tmp_path / "bundle" / "config.json").read_text(encoding="utf-8"))
        folder = StudyFolder(study.folder)
        record = next(record for record in folder.read_trials() if record.record_id == config["record_id"])
        point = next(point for point in record.points if point.routing == getattr(network, "routing", None))
        original = load_trained(folder, record, point.routing)
        input_BCHW = torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(network(input_BCHW), original(input_BCHW))
        if pick == "trial:4":
            assert config["record_id"] == "trial-00004"

    def test_upscale_writes_what_the_network_makes(
        self, call: Call, study: FinishedStudy, photographs: Photographs, tmp_path: Path
    ) -> None:
        bundle = study.folder / "bundles" / "knee"
        done = call("upscale", bundle, photographs.validation, tmp_path / "out")
        assert done.code == 0
        assert "256×256" in done.out
        source = photographs.validation / "astronaut.png"
        with Image.open(tmp_path / "out" / "astronaut.png") as image:
            assert (image.size, image.mode) == ((256, 256), "RGB")
            made = np.asarray(image)
        assert np.array_equal(made, upscale_image(load_network(bundle), read_rgb(source)))
        enlarged = np.asarray(Image.open(source).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC))
        assert np.abs(made.astype(float) - enlarged.astype(float)).mean() < 10


class TestAgain:
    @pytest.mark.slow
    def test_a_larger_budget_goes_on(self, call: Call, photographs: Photographs, tmp_path: Path) -> None:
        space = write_space(tmp_path / "again.yaml", tiny_space(photographs))
        first = call("search", space, "--networks", "1")
        assert first.code == 0, first.err
        trials = tmp_path / "results" / "again" / "trials"
        before = {path.name: path.stat().st_mtime_ns for path in trials.iterdir()}
        more = call("search", space, "--networks", "2", "--set", "description=more")
        assert "2 networks trained" in more.out
        after = {path.name: path.stat().st_mtime_ns for path in trials.iterdir()}
        assert after.items() > before.items()
        assert "# on the command line: budget.networks: 1" in StudyFolder(trials.parent).read_study().space
        client = MlflowClient(f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}")
        (experiment,) = (found for found in client.search_experiments() if found.name == "again")
        assert len(client.search_runs([experiment.experiment_id])) == 1 + len(after)

    @pytest.mark.slow
    def test_a_store_out_of_reach_costs_no_trial(self, call: Call, photographs: Photographs, tmp_path: Path) -> None:
        space = write_space(tmp_path / "offline.yaml", tiny_space(photographs, budget={"networks": 1}))
        done = call("search", space, "--tracking-uri", "sqlite:////dev/null/mlflow.db")
        assert done.code == 0
        assert "1 networks trained" in done.out
        assert done.err.count("warning: MLflow tracking") == 1

    @pytest.mark.slow
    def test_train_makes_a_bundle_once_and_replaces_it_only_when_asked(
        self, call: Call, photographs: Photographs, tmp_path: Path
    ) -> None:
        model, run = tmp_path / "model.yaml", tmp_path / "run"
        model.write_text("{family: camixersr, groups: [1], channels: 8, window: 4, scale: 2}", encoding="utf-8")
        arguments = ["train", model, "--train", photographs.train, "--validation", photographs.validation]
        arguments += ["--out", "run", "--threads", "1", "--set", "batch_size=1", "--set", "hr_patch_size=32"]
        left = run / "networks" / "another" / "checkpoint.pt"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"")
        assert "run holds an unfinished run of other settings" in call(*arguments, "--set", "steps=2").mistake
        done = call(*arguments, "--set", "steps=2", "--overwrite")
        assert done.code == 0, done.err
        assert not left.exists()
        network = harness.load_bundle(run / "bundle")
        assert network.config.label() == "C8 groups 1 M4"
        assert not list(run.glob("networks/*/checkpoint.pt"))

        def written() -> dict[Path, tuple[int, bytes]]:
            return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}

        before = written()
        again = call(*arguments, "--set", "steps=2")
        assert again.code == 0, again.err
        assert "was trained before with these settings" in again.err
        assert done.out == again.out
        for other, words in {
            ("steps=3",): "run holds a run of other settings: training.steps is 2 there and 3 here; give another --out",
            ("steps=2", "--protocol", "ntire"): "protocol is light there and ntire here",
            ("steps=2", "--gamma", "0.25"): "model.routing",
        }.items():
            assert words in call(*arguments, "--set", *other).mistake
        space = write_space(tmp_path / "run.yaml", tiny_space(photographs))
        searched = call("search", space, "--results", tmp_path, "--study", "run", "--no-tracking").mistake
        assert "run holds records of no study, such as those of `harness train`; give another --study" in searched
        assert written() == before
        assert call(*arguments, "--set", "steps=3", "--overwrite").code == 0
        assert read_bundle_metrics(run / "bundle").training_result.steps == 3  # type: ignore[union-attr]
        assert len(list(run.glob("networks/*"))) == 1

    def test_train_leaves_a_searchs_folder_and_files_alone(
        self, call: Call, study: FinishedStudy, photographs: Photographs, tmp_path: Path
    ) -> None:
        shutil.copytree(study.folder, tmp_path / "study")
        (tmp_path / "file").write_text("precious", encoding="utf-8")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        arguments = ["train", "camixersr-s", "--train", photographs.train, "--validation", photographs.validation]
        arguments += ["--set", "steps=1", "--overwrite", "--out"]
        assert "study is the folder of a search" in call(*arguments, "study").mistake
        for out in ("file", "file/run"):
            assert f"--out {out}: file is a file, expected a folder" in call(*arguments, out).mistake
        (tmp_path / "study" / "study.json").unlink()
        (tmp_path / "study" / "study.db").unlink()
        assert "study is the folder of a search" in call(*arguments, "study").mistake
        assert {path: path.read_bytes() for path in before if path.exists()}.items() <= before.items()
        assert {path for path in tmp_path.rglob("*") if path.is_file()} <= before.keys()


@pytest.mark.slow
def test_a_search_that_only_fails_ends_by_itself(call: Call, photographs: Photographs, tmp_path: Path) -> None:
    training = {"steps": 2, "batch_size": 1, "hr_patch_size": 32, "learning_rate": 1e30, "weight_decay": 0}
    space = write_space(tmp_path / "failing.yaml", tiny_space(photographs, training=training, baselines=[]))
    done = call("search", space, "--no-tracking")
    assert done.code == 1
    assert "failing: 5 trials in a row failed" in done.out
    assert done.out.count(": failed, ") == 5
    assert done.out.count(" is nan at step ") + done.out.count(" is inf at step ") == 5
    assert "Traceback" not in done.err
    document = call("report", "failing", "--json").document
    assert document["trials"]["failed"] == 5
    assert (document["num_points"], document["front"]) == (0, [])

"""A teacher by one option or one key: `train --teacher`, search spaces, workers, replays; weights from elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import harness
from harness.core.configs import CAMixerSRConfig
from harness.core.study_folder import StudyFolder
from harness.export import bundle_identity, load_network, read_bundle_config, read_bundle_metrics
from tests.cli.conftest import Call, Outcome
from tests.export.test_bundle import random_network, write
from tests.photographs import Photographs
from tests.spaces import tiny_space, write_space

TEACHER = CAMixerSRConfig(channels=12, groups=(1, 1), window=4, scale=4, image_residual=True)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A bundle at ×4."""
    write(tmp_path / "teacher", TEACHER)
    return tmp_path / "teacher"


class TestTrain:
    @pytest.fixture
    def train(self, call: Call, photographs: Photographs, teacher: Path, tmp_path: Path) -> Call:
        model = tmp_path / "model.yaml"
        model.write_text("{family: camixersr, groups: [1], channels: 8, window: 4, scale: 4}", encoding="utf-8")

        def run(*more: str | Path) -> Outcome:
            images = ["--train", photographs.train, "--validation", photographs.validation, "--threads", "1"]
            settings = ["--set", "batch_size=1", "--set", "hr_patch_size=32", "--set", "steps=2"]
            return call("train", model, *images, *settings, "--out", "run", *more)

        return run

    def test_a_network_learns_from_a_bundle_and_its_own_bundle_says_so(
        self, train: Call, teacher: Path, tmp_path: Path
    ) -> None:
        options = ["--teacher", "teacher", "--set", "distillation.feature_weight=0.125"]
        done = train(*options, "--set", "distillation.weight=0.25")
        assert done.code == 0, done.err
        metrics = read_bundle_metrics(tmp_path / "run" / "bundle")
        assert metrics.training is not None
        assert metrics.training.distillation is not None
        assert metrics.training.distillation.label() == "output 0.25, attention 0.125"
        assert metrics.training_result is not None
        assert metrics.training_result.teacher == bundle_identity(teacher)
        card = (tmp_path / "run" / "bundle" / "README.md").read_text(encoding="utf-8")
        assert f"It learnt from a teacher, too: `teacher` ({bundle_identity(teacher)}), output 0.25" in card
        assert "was trained before" in train(*options, "--set", "distillation.weight=0.25").err
        assert "training.distillation is {" in train(*options).mistake
        write(teacher, TEACHER, seed=1, overwrite=True)  # another one under the same path
        assert "training.distillation is {" in train(*options, "--set", "distillation.weight=0.25").mistake
        shutil.rmtree(teacher)
        assert "teacher teacher is no bundle" in train(*options).mistake

    def test_mistakes(self, train: Call, tmp_path: Path) -> None:
        write(tmp_path / "double", TEACHER.model_copy(update={"scale": 2}))
        assert "teacher double is of scale 2, but the networks" in train("--teacher", "double").mistake
        for options, words in {
            ("--teacher", "nowhere"): "teacher nowhere is no bundle: expected a folder with config.json",
            ("--teacher", "teacher", "--set", "distillation.weight=1.5"): "distillation.weight: Input should be less",
            ("--teacher", "teacher", "--set", "distillation.features=all"): "distillation.features: Input should be 'n",
            ("--teacher", "teacher", "--set", "distillation.alpha=1"): "distillation.alpha: unknown key",
            ("--set", "distillation.weight=0.5"): "distillation.teacher: required key is missing",
        }.items():
            assert words in train(*options).mistake
        assert not (tmp_path / "run").exists()


class TestSearch:
    @pytest.mark.slow
    def test_a_search_chooses_whether_to_learn_from_a_teacher(
        self, call: Call, photographs: Photographs, teacher: Path, tmp_path: Path
    ) -> None:
        space = tiny_space(
            photographs,
            training={
                **tiny_space(photographs)["training"],
                "distillation": {"teacher": "teacher", "features": "affinity"},
            },
            baseline_training={"distillation": None},
            dimensions={
                "model.channels": {"choices": [8]},
                "training.distillation.weight": {"choices": [0.0, 0.5, 1.0]},
                "routing.gamma": {"choices": [0.5]},
            },
            sampler={"name": "grid"},
            baselines=["swinir-light"],
            budget={"networks": 2},
        )
        file = write_space(tmp_path / "taught.yaml", space)
        done = call("search", file, "--no-tracking", "--threads", "1")
        assert done.code == 0, done.err
        folder = StudyFolder(tmp_path / "results" / "taught")
        records = {record.record_id: record for record in folder.read_trials()}
        baseline = records.pop("baseline-swinir-light")
        assert baseline.training is not None
        assert baseline.training.distillation is None
        weights = set()
        for record in records.values():
            assert record.state == "complete", record.reason
            assert record.training is not None
            assert record.training.distillation is not None
            assert record.training.distillation.teacher_id == bundle_identity(teacher)
            weights.add(record.training.distillation.weight)
        assert len(weights) == len(records) == 2
        again = call("replay", "taught", "--trial", "0", "--no-latency")
        assert again.code == 0, again
        assert "identical to the bit" in again.out
        more = ["--networks", "3", "--no-tracking", "--threads", "1"]
        shutil.move(teacher, tmp_path / "away")
        for arguments in (["worker", "taught"], ["search", file, *more], ["replay", "taught", "--trial", "0"]):
            assert call(*arguments).mistake.startswith("teacher teacher is no bundle: expected a folder")
        write(teacher, TEACHER, seed=1)
        assert "other images or another teacher" in call("search", file, *more).mistake
        assert "by its config and weights, expected" in call("replay", "taught", "--trial", "0").mistake
        shutil.rmtree(teacher)
        shutil.move(tmp_path / "away", teacher)
        assert "3 networks trained" in call("search", file, *more).out
        assert call("report", "taught").code == 0

    def test_a_whole_section_may_be_chosen_or_left_out(
        self, call: Call, photographs: Photographs, teacher: Path, tmp_path: Path
    ) -> None:
        space = tiny_space(
            photographs,
            dimensions={
                "training.distillation": {"choices": [None, {"teacher": str(teacher), "weight": 0.25}]},
                "model.channels": {"choices": [8, 12]},
                "routing.gamma": {"choices": [0.5]},
            },
            sampler={"name": "ehvi", "startup_networks": 2},
            budget={"networks": 4},
            baselines=[],
        )
        done = call("search", write_space(tmp_path / "either.yaml", space), "--no-tracking", "--threads", "1")
        assert "4 networks trained" in done.out, done
        records = list(StudyFolder(tmp_path / "results" / "either").read_trials())
        trainings = [record.training for record in records if record.training]
        assert sorted(one.distillation is None for one in trainings) == [False, False, True, True]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"training.distillation": {"teacher": "nowhere"}}, "teacher nowhere is no bundle"),
            ({"training.distillation": {"teacher": "teacher", "weight": 2}}, "less than or equal to 1 (got 2)"),
            ({"training.distillation": {"weight": 0.5}}, "teacher: required key is missing"),
            ({"training.distillation": {"teacher": "teacher", "alpha": 0.5}}, "alpha: unknown key; allowed: teacher,"),
            (
                {"dimensions.training.distillation.weight": {"choices": [0.0, 0.5]}},
                "distillation.teacher: required key is missing",
            ),
            ({"dimensions.training.distillation.alpha": {"choices": [0, 1]}}, "training.distillation.weight"),
            ({"scale": 2, "training.distillation": {"teacher": "teacher"}}, "is of scale 4, but the networks"),
        ],
        ids=str,
    )
    def test_mistakes(
        self,
        call: Call,
        photographs: Photographs,
        teacher: Path,
        tmp_path: Path,
        changes: dict[str, object],
        words: str,
    ) -> None:
        file = write_space(tmp_path / "space.yaml", tiny_space(photographs))
        settings = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        assert words in call("search", file, "--no-tracking", *settings).mistake


class TestWeightsFromElsewhere:
    def test_become_a_bundle_that_teaches_is_calibrated_and_restores(
        self, call: Call, photographs: Photographs, tmp_path: Path
    ) -> None:
        model, weights = tmp_path / "model.yaml", tmp_path / "weights.safetensors"
        model.write_text("{family: camixersr, groups: [1, 1], channels: 8, window: 4, scale: 4}", encoding="utf-8")
        network = random_network(CAMixerSRConfig(channels=8, groups=(1, 1), window=4, scale=4))
        save_file(network.state_dict(), weights)
        done = call("export", model, "--weights", weights, "--out", "bundle", "--gamma", "0.25")
        assert done.code == 0, done.err
        config = read_bundle_config(tmp_path / "bundle")
        assert (config.picked_as, config.study) == ("imported", "weights.safetensors")
        loaded = harness.load_bundle(tmp_path / "bundle")
        assert loaded.config.routing.gamma == 0.25  # type: ignore[union-attr]
        expected = network.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
        card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
        assert "Entry `safetensors` of the file `weights.safetensors`" in card
        assert "It was trained elsewhere." in card
        assert "Nothing was" in card
        images = ["--data", photographs.train, "--images", "1", "--crop", "16", "--share", "0.25"]
        assert call("calibrate", "bundle", *images, "--out", "tuned", "--threads", "1").code == 0
        assert load_network(tmp_path / "tuned").config.routing.policy == "detail"  # type: ignore[union-attr]
        assert call("upscale", "tuned", photographs.validation / "astronaut.png", "out.png").code == 0

    def test_mistakes(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "w.pth").write_bytes(b"hello")
        assert "give --out" in call("export", "camixersr-s", "--weights", "w.pth").mistake
        assert "cannot be read" in call("export", "camixersr-s", "--weights", "w.pth", "--out", "b").mistake
        assert "not found" in call("export", "camixersr-s", "--weights", "no.pth", "--out", "b").mistake
        assert "give --weights" in call("export", "some", "--gamma", "0.5").mistake
        assert not (tmp_path / "b").exists()

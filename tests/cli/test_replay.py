"""`harness replay`: the same trial again, to the bit, and told where it is not."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from harness.core.study_folder import StudyFolder
from tests.cli.conftest import Call, FinishedStudy, run_harness, written
from tests.photographs import Photographs, cut_photographs
from tests.spaces import tiny_space, write_space


@pytest.fixture
def copied(study: FinishedStudy, tmp_path: Path) -> StudyFolder:
    """A copy of the finished study, to be tampered with."""
    shutil.copytree(study.folder, tmp_path / "results" / "tiny")
    shutil.copytree(study.results / "cache", tmp_path / "results" / "cache")
    return StudyFolder(tmp_path / "results" / "tiny")


def edit(folder: StudyFolder, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record's file by hand."""
    path = folder.path / "trials" / f"trial-{number:05d}.json"
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


class TestOfAStudy:
    def test_a_trial_is_the_same_to_the_bit_and_the_study_is_left_alone(self, call: Call, study: FinishedStudy) -> None:
        before = written(study.folder)
        done = call("replay", "tiny", "--results", study.results, "--trial", "1", "--no-latency")
        assert (done.code, done.out.count("\n")) == (0, 1), done
        assert "trial-00001  C8 groups 1 M4: identical to the bit in ending, 5 curves" in done.out
        assert "weights" in done.out
        assert "threads: 1" in done.err
        assert written(study.folder) == before

    def test_latencies_stand_side_by_side(self, call: Call, study: FinishedStudy) -> None:
        document = call("replay", study.folder, "--trial", "4", "--json").document
        assert document["identical"]
        assert document["ending"] == {when: {"state": "complete", "reason": None} for when in ("then", "now")}
        assert document["environment"] == []
        record = next(one for one in StudyFolder(study.folder).read_trials() if one.number == 4)
        assert [pair["then"]["median"] for pair in document["latencies"]] == [
            point.latency[0].median for point in record.points
        ]
        for pair in document["latencies"]:
            assert pair["conditions"] == "cpu:1/eager/fp32/8x8"
            for side in ("then", "now"):
                low, high = pair[side]["interval"]
                assert low <= pair[side]["median"] <= high
                assert pair[side]["ratio"] > 0
            assert pair["median_ratio"] == pytest.approx(pair["now"]["median"] / pair["then"]["median"])

    def test_what_trained_nothing_cannot_be_replayed(
        self, call: Call, study: FinishedStudy, copied: StudyFolder
    ) -> None:
        mistake = call("replay", "tiny", "--results", study.results, "--trial", "0").mistake
        assert "trial-00000 trained nothing: it was rejected, params is 22961" in mistake
        mistake = call("replay", "tiny", "--results", study.results, "--trial", "77").mistake
        assert mistake == "no trial 77 in study 'tiny'; trials that can be replayed: 1, 4"
        edit(copied, 4, lambda values: values.update(state="answered", reason="known", answered_by="trial-00001"))
        assert "answered by trial-00001; replay that one" in call("replay", "tiny", "--trial", "4").mistake
        assert "no study in" in call("replay", "nothing", "--trial", "4").mistake


class TestTampered:
    def test_weights_that_are_off_by_a_bit(self, call: Call, copied: StudyFolder) -> None:
        record = next(one for one in copied.read_trials() if one.number == 1)
        path = copied.weights_file(record.network_id)
        tensors = load_file(path)
        name = next(iter(tensors))
        tensors[name].flatten()[0] = torch.nextafter(tensors[name].flatten()[0], torch.tensor(9.0))
        save_file(tensors, path)
        done = call("replay", "tiny", "--trial", "1", "--no-latency", "--json")
        assert done.code == 1
        (difference,) = json.loads(done.out)["differences"]
        assert difference["what"] == f"weights, 1 of {len(tensors)} tensors"
        assert name in difference["then"]
        path.unlink()
        (difference,) = json.loads(call("replay", "tiny", "--trial", "1", "--no-latency", "--json").out)["differences"]
        assert (difference["what"], difference["now"]) == ("weights", "trained again")

    def test_a_record_whose_numbers_were_changed(self, call: Call, copied: StudyFolder) -> None:
        def change(values: dict[str, Any]) -> None:
            values["training_result"]["curves"]["loss"][1] += 1e-9
            values["points"][2]["evaluation"]["psnr_db"] += 1e-9
            values["points"][1]["macs"] += 1
            values["environment"]["packages"]["torch"] = "2.12.0"

        edit(copied, 1, change)
        done = call("replay", "tiny", "--trial", "1", "--no-latency", "--json")
        assert done.code == 1
        document = json.loads(done.out)
        assert [one["what"] for one in document["differences"]] == [
            "curve loss",
            "fixed γ=0.5: MACs",
            "fixed γ=1: PSNR (dB)",
        ]
        assert [(one["what"], one["then"]) for one in document["environment"]] == [("torch", "2.12.0")]
        told = call("replay", "tiny", "--trial", "1", "--no-latency")
        assert told.code == 1
        assert "3 differences" in told.out
        assert "environment: torch was 2.12.0" in told.out

    def test_a_record_of_another_network(self, call: Call, copied: StudyFolder) -> None:
        edit(copied, 1, lambda values: values["model"].update(channels=12))
        mistake = call("replay", "tiny", "--trial", "1").mistake
        assert "its model, training and data make" in mistake
        assert "the record was edited, or is of another version" in mistake


@pytest.fixture(scope="module")
def own_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Photographs]:
    """A study of images of its own, with a trial that completes and one that fails."""
    folder = tmp_path_factory.mktemp("own")
    images = cut_photographs(folder)
    space = tiny_space(
        images,
        training={"steps": 2, "batch_size": 1, "hr_patch_size": 32, "weight_decay": 0},
        dimensions={
            "training.learning_rate": {"choices": [1e-3, 1e30]},
            "routing.gamma": {"choices": [0.0, 1.0]},
        },
        model={"groups": [1], "channels": 8, "window": 4},
        baselines=[],
        enqueue=[
            {"training.learning_rate": 1e-3, "routing.gamma": 1.0},
            {"training.learning_rate": 1e30, "routing.gamma": 1.0},
        ],
    )
    text = write_space(folder / "own.yaml", space)
    text.write_text(text.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")  # no end of line at the end
    set_steps = ["--set", "training.steps=3", "--set", "model={groups: [1], channels: 8, window: 4}"]
    done = run_harness("search", text, "--threads", "1", "--no-tracking", *set_steps, cwd=folder)
    assert ": failed, " in done.out, done.err
    return folder, images


class TestImagesAndEndings:
    @pytest.mark.slow
    def test_a_failed_trial_fails_again(self, own_study: tuple[Path, Photographs], tmp_path: Path, call: Call) -> None:
        folder, _ = own_study
        trials = {one.number: one for one in StudyFolder(folder / "results" / "own").read_trials()}
        failed = min(number for number, one in trials.items() if one.state == "failed" and number is not None)
        done = call("replay", folder / "results" / "own", "--trial", str(failed))
        assert done.code == 0, done
        assert f"It was failed again: {trials[failed].reason}." in done.out
        shutil.copytree(folder / "results" / "own", tmp_path / "copy" / "own")
        edit(StudyFolder(tmp_path / "copy" / "own"), failed, lambda values: values.update(reason="out of memory"))
        done = call("replay", tmp_path / "copy" / "own", "--trial", str(failed), "--json")
        assert done.code == 1
        (difference,) = json.loads(done.out)["differences"]
        assert (difference["what"], difference["then"]) == ("ending", "failed: out of memory")
        assert difference["now"] == f"failed: {trials[failed].reason}"

    def test_settings_of_the_command_line_belong_to_the_study(
        self, own_study: tuple[Path, Photographs], call: Call
    ) -> None:
        done = call("replay", own_study[0] / "results" / "own", "--trial", "0", "--no-latency")
        assert done.code == 0, done

    @pytest.mark.parametrize(
        ("which", "words"), [("validation", "but trial-00000 was scored on"), ("train", "training images")]
    )
    def test_other_images_are_refused(
        self, own_study: tuple[Path, Photographs], call: Call, which: str, words: str
    ) -> None:
        folder, images = own_study
        path = sorted(getattr(images, which).iterdir())[0]
        kept, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        try:
            pixels = np.array(Image.open(path))
            pixels[0, 0, 0] ^= 1
            Image.fromarray(pixels).save(path)
            mistake = call("replay", folder / "results" / "own", "--trial", "0").mistake
        finally:
            path.write_bytes(kept)
            os.utime(path, ns=times)
        assert words in mistake
        assert "put back the images that the study used" in mistake

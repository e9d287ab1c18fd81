"""A user's mistake: exit code 2, one line on stderr, nothing on stdout, nothing left behind."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Call, FinishedStudy
from tests.photographs import Photographs
from tests.spaces import tiny_space, write_space

CORES = os.cpu_count() or 1

# Arguments, and words of the answer. HR: a folder of images; SPACE: a valid space.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown option": (["--nope"], ["No such option: --nope"]),
    "unknown command": (["serach"], ["No such command 'serach'"]),
    "missing argument": (["profile"], ["Missing argument"]),
    "option without value": (["profile", "bicubic", "--scale"], ["--scale", "requires an argument"]),
    "unknown model": (["profile", "edsr"], ["unknown model 'edsr'", "camixersr-s", "swinir-light", "a bundle folder"]),
    "model file that is no config": (["profile", "text.txt"], ["text.txt", "expected a mapping"]),
    "model file with an unknown key": (["profile", "model.yaml"], ["model.yaml", "width", "unknown key"]),
    "folder that is no bundle": (["profile", "HR"], ["is no bundle"]),
    "scale that is no number": (["profile", "bicubic", "--scale", "four"], ["--scale", "valid integer"]),
    "scale that is not offered": (["profile", "bicubic", "--scale", "5"], ["scale is 5, expected 2, 3 or 4"]),
    "γ out of range": (["profile", "camixersr-s", "--gamma", "1.5"], ["--gamma", "less than or equal to 1 (got 1.5)"]),
    "γ that is no number": (["profile", "camixersr-s", "--gamma", "half"], ["--gamma", "valid number"]),
    "γ of a network that does not route": (["profile", "swinir-light", "--gamma", "1"], ["does not route"]),
    "unknown routing": (["profile", "camixersr-s", "--routing", "best"], ["--routing", "'probability'"]),
    "input size of one side": (["profile", "bicubic", "--input-size", "8"], ["--input-size", "2 arguments"]),
    "input size of nothing": (["profile", "bicubic", "--input-size", "0", "8"], ["--input-size 0 8", "at least 1"]),
    "unknown device": (["profile", "bicubic", "--device", "gpu"], ["unknown device 'gpu'", "cuda:INDEX"]),
    "GPU that is not there": (["profile", "bicubic", "--device", "cuda:99"], ["no such CUDA device", "cpu:1"]),
    "too many threads to measure": (["profile", "bicubic", "--threads", str(CORES + 1)], [f"cpu:{CORES}"]),
    "threads of another device": (["profile", "bicubic", "--threads", "1", "--device", "cuda:0"], ["--threads 1"]),
    "unknown precision": (["profile", "bicubic", "--precision", "fp8"], ["unknown precision 'fp8'", "bf16"]),
    "unknown runtime": (["profile", "bicubic", "--runtime", "tvm"], ["unknown runtime 'tvm'", "openvino"]),
    "precision that a runtime lacks": (
        ["profile", "bicubic", "--runtime", "onnxruntime", "--precision", "bf16"],
        ["onnxruntime"],
    ),
    "sizes that are none": (["profile", "bicubic", "--input-sizes", "48,64"], ["--input-sizes '48,64'", "180x320"]),
    "sizes given twice": (
        ["profile", "bicubic", "--input-sizes", "8x8", "--input-size", "8", "8"],
        ["--input-size and --input-sizes"],
    ),
    "batches that are none": (["profile", "bicubic", "--batch-sizes", "1,0"], ["--batch-sizes '1,0'", "at least 1"]),
    "images that are not there": (
        ["profile", "bicubic", "--images", "nowhere"],
        ["--images nowhere", "no such folder"],
    ),
    "folder without images to profile on": (
        ["profile", "bicubic", "--images", "empty"],
        ["--images empty", "no images in it"],
    ),
    "unknown reference": (["profile", "bicubic", "--reference", "edsr"], ["--reference edsr", "or none"]),
    "too few repeats": (["profile", "bicubic", "--repeats", "1"], ["--repeats", "greater than or equal to 3"]),
    "missing weights": (["evaluate", "camixersr-s", "--data", "HR", "--weights", "no.pth"], ["no.pth not found"]),
    "weights that are none": (["evaluate", "camixersr-s", "--data", "HR", "--weights", "text.txt"], ["text.txt"]),
    "unknown protocol": (["evaluate", "bicubic", "--data", "HR", "--protocol", "best"], ["'best'", "light", "odi"]),
    "tile of nothing": (["evaluate", "bicubic", "--data", "HR", "--tile", "4"], ["--tile 4", "at least 8"]),
    "overlap without tiles": (
        ["evaluate", "bicubic", "--data", "HR", "--overlap", "4"],
        ["--overlap 4", "give a --tile"],
    ),
    "overlap of a whole tile": (
        ["evaluate", "bicubic", "--data", "HR", "--tile", "16", "--overlap", "16"],
        ["--overlap 16", "less than the tile's side, 16"],
    ),
    "overlap of a whole tile of the protocol": (
        ["evaluate", "bicubic", "--data", "HR", "--protocol", "large", "--overlap", "64"],
        ["--overlap 64", "less than the tile's side, 64"],
    ),
    "plain images around a seam": (
        ["evaluate", "bicubic", "--data", "HR", "--wrap", "8"],
        ["--wrap 8", "protocol light", "--protocol odi"],
    ),
    "missing folder": (["evaluate", "bicubic", "--data", "none"], ["'none'", "expected a folder of images", "set5"]),
    "folder without images": (["evaluate", "bicubic", "--data", "empty"], ["empty: no images", ".png"]),
    "corrupt image": (["evaluate", "bicubic", "--data", "corrupt"], ["corrupt.png: cannot be read"]),
    "dataset that is not there": (["evaluate", "bicubic", "--data", "set5"], ["'set5'", "data directory"]),
    "too many threads": (
        ["evaluate", "bicubic", "--data", "HR", "--threads", "999"],
        ["--threads 999", f"{CORES} cores"],
    ),
    "threads as a device": (["evaluate", "bicubic", "--data", "HR", "--device", "cpu:2"], ["--threads"]),
    "results that cannot be": (["evaluate", "bicubic", "--data", "HR", "--results", "text.txt/r"], ["text.txt"]),
    "unknown study to report": (["report", "none"], ["no study in results/none", "harness search"]),
    "unknown study to compare": (["compare", "none"], ["no study in results/none"]),
    "path without a study": (["worker", "runs/none", "--results", "runs"], ["no study in runs/none: study.json not"]),
    "study that is looked for elsewhere": (
        ["replay", "none", "--trial", "1"],
        ["no study in results/none", "--results (or HARNESS_RESULTS)", "/results was looked in"],
    ),
    "unknown study to export": (["export", "none"], ["no study in results/none"]),
    "bundle that is none": (["upscale", "HR", "HR", "out"], ["is no bundle", "harness export"]),
    "unknown space": (["search", "fast"], ["no search space 'fast'", "quickstart"]),
    "setting without =": (["search", "SPACE", "--set", "seed"], ["--set 'seed'", "KEY=VALUE"]),
    "setting that is no YAML": (["search", "SPACE", "--set", "seed=[1"], ["--set 'seed=[1'", "not YAML"]),
    "setting that does not exist": (
        ["search", "SPACE", "--set", "training.lr=1"],
        ["training.lr: unknown key", "steps"],
    ),
    "setting out of range": (["search", "SPACE", "--set", "training.steps=0"], ["training.steps", "(got 0)"]),
    "budget of nothing": (["search", "SPACE", "--networks", "0"], ["--networks", "greater than or equal to 1"]),
    "study name with a slash": (["search", "SPACE", "--study", "a/b"], ["--study 'a/b'", "without slashes"]),
    "images in both sets": (["search", "SPACE", "--train", "HR"], ["has the same pixels as training image"]),
    "too few images to calibrate on": (
        ["search", "SPACE", "--set", "calibrate={images: 4, crop: 16}"],
        ["calibrate: train has 3 images of at least 16×16 low-resolution pixels, but 4"],
    ),
    "too small images to calibrate on": (
        ["search", "SPACE", "--set", "calibrate={images: 1}"],
        ["calibrate: train has 0 images of at least 32×32 low-resolution pixels, but 1"],
    ),
    "a constraint that none can meet": (
        ["search", "SPACE", "--set", "constraints=[macs <= 1]"],
        ["constraint macs <= 1: no network of the space can meet it; the smallest macs in the space are", "raise"],
    ),
    "pick that is none, before anything is trained": (
        ["search", "SPACE", "--export", "nicest"],
        ["unknown pick 'nicest'", "latency_ms <= 20 and psnr_db >= 30", "weights: psnr_db=2"],
    ),
    "bounds that are none, before anything is trained": (
        ["search", "SPACE", "--export", "latency_ms = 20"],
        ["--pick 'latency_ms = 20', character 12: expected one of <= < >= >, got '='"],
    ),
    "early stopping after the end": (
        ["search", "SPACE", "--set", "stopping.grace_steps=2"],
        ["stopping.grace_steps: 2 steps are not before the end of training, after 2", "leave `stopping` out"],
    ),
    "device to train on": (["search", "SPACE", "--device", "cuda:99"], ["no such CUDA device"]),
    "storage that is none": (
        ["search", "SPACE", "--no-tracking", "--storage", "nonsense"],
        ["storage nonsense cannot be used"],
    ),
    "storage out of reach": (
        ["search", "SPACE", "--no-tracking", "--storage", "postgresql://u:secret@127.0.0.1:1/db"],
        ["storage postgresql://…@127.0.0.1:1/db cannot be used"],
    ),
    "place of checkpoints out of reach": (
        ["search", "SPACE", "--no-tracking", "--checkpoints", "ftp://u:secret@127.0.0.1:1/kept"],
        ["checkpoints at 'ftp://127.0.0.1:1/kept' cannot be kept", "refused", "that all workers can write to"],
    ),
    "place of checkpoints without a driver": (
        ["search", "SPACE", "--no-tracking", "--checkpoints", "nosuch://u:secret@host/kept"],
        ["checkpoints at 'nosuch://host/kept' cannot be kept: Protocol not known: nosuch"],
    ),
    "tracking store that is none": (
        ["search", "SPACE", "--tracking-uri", "nonsense"],
        ["'nonsense' is no MLflow store"],
    ),
    "nothing to train": (
        ["train", "bicubic", "--train", "HR", "--validation", "HR", "--out", "o"],
        ["bicubic has no weights to train"],
    ),
    "training without steps": (
        ["train", "camixersr-s", "--train", "HR", "--validation", "HR", "--out", "o"],
        ["--set steps=N"],
    ),
    "unknown training setting": (
        [
            "train",
            "camixersr-s",
            "--train",
            "HR",
            "--validation",
            "HR",
            "--out",
            "o",
            "--set",
            "steps=2",
            "--set",
            "lr=1",
        ],
        ["--set: lr: unknown key"],
    ),
    "training on what is validated on": (
        ["train", "camixersr-s", "--train", "HR", "--validation", "HR", "--out", "o", "--set", "steps=2"],
        ["has the same pixels as training image"],
    ),
}


@pytest.fixture
def place(tmp_path: Path, photographs: Photographs) -> Path:
    shutil.copytree(photographs.validation, tmp_path / "HR")
    write_space(tmp_path / "SPACE", tiny_space(photographs))
    (tmp_path / "text.txt").write_text("hello\n", encoding="utf-8")
    (tmp_path / "model.yaml").write_text("family: camixersr\nwidth: 3\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt").mkdir()
    whole = (photographs.validation / "astronaut.png").read_bytes()
    (tmp_path / "corrupt" / "corrupt.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_is_answered_with_one_line(call: Call, place: Path, mistake: str) -> None:
    arguments, words = MISTAKES[mistake]
    before = files_of(place)
    message = call(*arguments).mistake
    for word in words:
        assert word in message
    assert "Traceback" not in message
    assert "secret" not in message
    assert files_of(place) == before


def test_unknown_pick(call: Call, study: FinishedStudy, tmp_path: Path) -> None:
    message = call("export", "tiny", "--results", study.results, "--pick", "prettiest", "--out", "b").mistake
    assert "'prettiest'" in message
    assert "knee" in message
    assert "trial:N" in message
    assert "999" in call("export", "tiny", "--results", study.results, "--pick", "trial:999", "--out", "b").mistake
    assert not (tmp_path / "b").exists()


def test_a_trial_that_trained_nothing_cannot_be_exported(call: Call, study: FinishedStudy) -> None:
    message = call("export", "tiny", "--results", study.results, "--pick", "trial:0", "--out", "b").mistake
    assert "rejected" in message


def test_a_study_without_a_front_cannot_be_exported(call: Call, place: Path) -> None:
    limits = ["--set", "constraints=[latency_ms <= 1e-9]", "--set", "sampler.name=grid", "--no-tracking"]
    limits += ["--set", "dimensions.model.channels={choices: [8]}"]
    ended = call("search", "SPACE", "--study", "none-fits", *limits)
    assert (ended.code, ended.err) == (0, "")
    assert "exhausted" in ended.out
    assert " export none-fits" not in ended.out  # among what comes next
    assert " search SPACE --study mine --train FOLDER" in ended.out
    assert "none-fits" in call("export", "none-fits", "--out", "b").mistake
    assert call("report", "none-fits", "--json").document["front"] == []
    assert not (place / "b").exists()


def test_a_bundle_that_is_there_is_kept(call: Call, study: FinishedStudy, tmp_path: Path) -> None:
    arguments = ("export", "tiny", "--results", study.results, "--out", "bundle")
    assert call(*arguments).code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "bundle").iterdir()}
    assert "--overwrite" in call(*arguments).mistake
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "bundle").iterdir()} == before
    assert call(*arguments, "--overwrite").code == 0


def test_a_folder_that_is_no_bundle_is_never_replaced(call: Call, study: FinishedStudy, place: Path) -> None:
    message = call("export", "tiny", "--results", study.results, "--out", "HR", "--overwrite").mistake
    assert "is no bundle, so it is not replaced" in message
    assert files_of(place / "HR")


def test_a_place_that_cannot_be_written(call: Call, study: FinishedStudy, place: Path) -> None:
    assert "text.txt" in call("export", "tiny", "--results", study.results, "--out", "text.txt/bundle").mistake
    bundle = study.folder / "bundles" / "knee"
    assert "text.txt" in call("upscale", bundle, "HR/astronaut.png", "text.txt/big.png").mistake


def test_upscaling(call: Call, study: FinishedStudy, place: Path) -> None:
    bundle = study.folder / "bundles" / "knee"
    assert "missing.png not found" in call("upscale", bundle, "missing.png", "big.png").mistake
    assert "corrupt.png: cannot be read" in call("upscale", bundle, "corrupt/corrupt.png", "big.png").mistake
    assert "outputs are PNG" in call("upscale", bundle, "HR/astronaut.png", "big.gif").mistake
    assert "no images" in call("upscale", bundle, "empty", "out").mistake
    Image.new("RGB", (8, 8)).save(place / "big.png")
    before = (place / "big.png").read_bytes()
    assert "--overwrite" in call("upscale", bundle, "HR/astronaut.png", "big.png").mistake
    assert (place / "big.png").read_bytes() == before
    assert "has its own" in call("evaluate", bundle, "--data", "HR", "--weights", "text.txt").mistake
    assert "--scale 2" in call("evaluate", bundle, "--data", "HR", "--scale", "2").mistake


def test_another_space_under_the_same_name(call: Call, study: FinishedStudy, place: Path) -> None:
    results = place / "results"
    shutil.copytree(study.folder, results / "tiny")
    before = files_of(results)
    refused = call("search", study.space, "--results", results, "--set", "training.steps=3", "--no-tracking").mistake
    assert "'tiny' was made with another search space" in refused
    assert "--study" in refused
    assert files_of(results) == before


def test_a_damaged_record(call: Call, study: FinishedStudy, place: Path) -> None:
    shutil.copytree(study.folder, place / "results" / "tiny")
    (place / "results" / "tiny" / "study.json").write_text("{}", encoding="utf-8")
    assert "study.json: not a StudyRecord" in call("report", "tiny").mistake


@pytest.mark.parametrize(
    ("setting", "finding"),
    [
        ("training.hr_patch_size=30", "not a multiple of the scale"),
        ("training.hr_patch_size=100000", "no image of demo"),
        ("training.precision=fp16", "no fast fp16"),
    ],
)
def test_settings_that_no_trial_could_train_with_are_refused(
    call: Call, tmp_path: Path, setting: str, finding: str
) -> None:
    message = call("search", "quickstart", "--results", tmp_path / "new", "--set", setting, "--no-tracking").mistake
    assert finding in message
    assert not (tmp_path / "new" / "quickstart").exists()


@pytest.mark.parametrize(
    ("environment", "device", "words"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cpu", "RANK=x, WORLD_SIZE=2, LOCAL_RANK=0: expected"),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
            "cuda:1",
            "--device cuda:1: 2 processes train on a GPU each, or all on CPUs; expected cuda or cpu",
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cpu", "process 1 of 2 finds no others"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cpu", "RANK=2, WORLD_SIZE=2, LOCAL_RANK=0: expected"),
        (
            {"RANK": "1", "WORLD_SIZE": "2"},
            "cpu",
            "RANK=1, WORLD_SIZE=2: LOCAL_RANK missing; expected what",
        ),
        ({"RANK": "1"}, "cpu", "RANK=1: WORLD_SIZE and LOCAL_RANK missing"),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"},
            "cpu",
            "RANK=1, WORLD_SIZE=2: LOCAL_RANK missing",  # of another step
        ),
    ],
)
def test_processes_that_cannot_train_together(
    call: Call, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], device: str, words: str
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    train = ["train", "camixersr-s", "--train", "HR", "--validation", "HR", "--out", "o", "--set", "steps=2"]
    assert words in call(*train, "--device", device).mistake

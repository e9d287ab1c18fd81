"""Options and arguments that several commands share."""

from collections.abc import Container
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.core.errors import UserError

if TYPE_CHECKING:
    from harness.core.configs import TrainingConfig
    from harness.data import PairedDataset


class AliasName(StrEnum):
    """What a registered version is found by."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"


class PolicyName(StrEnum):
    """Routing policies that need nothing but γ."""

    FIXED = "fixed"
    PROBABILITY = "probability"
    THRESHOLD = "threshold"


class TaskName(StrEnum):
    """What networks are trained for."""

    CLASSIC = "classic"
    ODI = "odi"


Model = Annotated[
    str, typer.Argument(help="A preset (camixersr-s|m|b, swinir-light, bicubic), a config file, a bundle.")
]
AnyTarget = Annotated[
    str,
    typer.Argument(
        help="As for the other commands; or any network: MODULE:FACTORY or FILE.py:FACTORY (a function that returns an "
        "nn.Module), a TorchScript file (.pt, .ts), a torch.export file (.pt2), an ONNX file (.onnx)."
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Trained weights: .safetensors, or a released .pth. A bundle has its own.")
]
ScaleOption = Annotated[int | None, typer.Option(help="Upscaling factor 2, 3 or 4 of a preset.  [default: 4]")]
Gamma = Annotated[float | None, typer.Option(help="Attention ratio γ in 0..1.  [default: the config's, presets 0.5]")]
Routing = Annotated[PolicyName | None, typer.Option(help="Routing policy.  [default: the config's, fixed for presets]")]
PROTOCOL_NAMES = "light, light-rounded, large, ntire or odi"  # for help texts, which load nothing heavy

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
Results = Annotated[
    Path, typer.Option(envvar="HARNESS_RESULTS", help="Where studies, caches and the MLflow store are.")
]
Checkpoints = Annotated[
    str | None,
    typer.Option(
        envvar="HARNESS_CHECKPOINTS",
        help="A folder or fsspec URL for checkpoints, which all workers reach.  [default: the study's folder]",
    ),
]
DataDir = Annotated[Path | None, typer.Option(envvar="HARNESS_DATA_DIR", help="Where named datasets are looked for.")]
TrainAgain = Annotated[
    str | None, typer.Option("--train", help="Where the same training images are.  [default: where the study says]")
]
ValidationAgain = Annotated[
    str | None, typer.Option("--validation", help="The same of the validation images.  [default: where the study says]")
]
StudyName = Annotated[str, typer.Argument(help="A study's name (a folder under --results), or the path of its folder.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads for training and evaluation.  [default: all cores]")
]
TrainDevice = Annotated[str, typer.Option(help="Where to train and evaluate: cpu, or cuda:INDEX.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE (YAML), replaces a setting; may be given several times.")
]

Licence = Annotated[
    str,
    typer.Option(help="The licence of the weights, an SPDX expression such as CC-BY-4.0, for the bundle to state."),
]

TrackingUri = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store.  [default: SQLite in --results]")
]


def study_path(study: str, results: Path) -> Path:
    """Return a study's folder from its name or path; names have no slashes."""
    named = results / study
    is_path = Path(study).is_dir() or len(Path(study).parts) > 1
    return Path(study) if is_path and not (named / "study.json").is_file() else named


def parse_settings(settings: list[str] | None) -> dict[str, object]:
    """Parse `KEY=VALUE` settings, values as YAML."""
    import yaml

    parsed: dict[str, object] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {setting!r}: expected KEY=VALUE, for example training.steps=200")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {setting!r}: the value is not YAML") from None
    return parsed


def resolve_threads(threads: int | None, processes: int = 1) -> int:
    """Return the number of threads of each of `processes`; `UserError` for more than there are cores."""
    import os

    cores = os.cpu_count() or 1
    if threads is not None and threads > cores:
        raise UserError(f"--threads {threads}: this machine has {cores} cores")
    return threads or max(cores // processes, 1)


def check_training(training: "TrainingConfig", images: "PairedDataset", device: str, vary: Container[str] = ()) -> None:
    """Refuse fixed settings that no trial could be trained with: patch size, precision; `vary` are dimensions."""
    from harness.data import CropSampler

    if "training.precision" not in vary and device == "cpu" and training.precision == "fp16":
        raise UserError("training.precision is fp16 on a CPU, which has no fast fp16; expected fp32 or bf16")
    if "training.hr_patch_size" not in vary:
        CropSampler(
            images,
            batch_size=training.batch_size,
            hr_patch_size=training.hr_patch_size,
            augment=training.augment,
            seed=0,
            task=training.task,
        )


def check_tiles(tile: int | None, overlap: int | None) -> None:
    """Refuse tiles (None: images are restored whole) and overlaps (None: not given) that cannot be used."""
    if tile is not None and tile < 8:
        raise UserError(f"--tile {tile}: expected at least 8")
    if overlap is not None and tile is None:
        raise UserError(f"--overlap {overlap}: images are restored whole, so no tiles overlap; give a --tile, too")
    if overlap is not None and tile is not None and overlap >= tile:
        raise UserError(f"--overlap {overlap}: expected less than the tile's side, {tile}")


def check_train_device(device: str) -> str:
    """Check that a training device exists."""
    from harness.profiling import parse_device

    if device.startswith("cpu:"):
        raise UserError(f"--device {device}: for training say cpu, and --threads for the number of threads")
    return "cpu" if device == "cpu" else parse_device(device).text

"""The published tables, as transcribed in `results/reference`, to be laid beside our own rows."""

import csv
from pathlib import Path
from typing import Any

from harness.core.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_LIGHT_DATASETS = ("set5", "set14", "bsd100", "urban100", "manga109")
_DATASET_NAMES = {"bsd100": "b100"}


def published_dir() -> Path:
    """Return the folder of the transcribed tables: inside an installed wheel, or at the top of a source checkout."""
    for folder in (_PACKAGE / "published", _PACKAGE.parent / "results" / "reference"):
        if (folder / "light_by_gamma.csv").is_file():
            return folder
    raise UserError(
        f"published tables not found beside {_PACKAGE}; expected results/reference/*.csv; reinstall harness"
    )


def load_published(scale: int) -> list[dict[str, Any]]:
    """Return the published light-SR results at `scale` (×2 or ×4), one row per network, γ and dataset.

    PSNR and SSIM on Y (protocol `light`); `macs` as the paper counts them for a 1280×720 output; `params` in units.
    All were trained to convergence on full data, as `trained_on` says. Source: CAMixerSR, CVPR 2024, and supplementary.
    """
    rows: list[dict[str, Any]] = []
    for line in read_published_table("light_by_gamma.csv"):
        if int(line["scale"]) == scale:
            label = f"CAMixerSR γ={float(line['gamma']):g}"
            rows += _datasets(line, label, float(line["gamma"]), line["trained_on"], "CAMixerSR supplementary, table 3")
    for line in read_published_table("light_peers_x4.csv"):
        if int(line["scale"]) == scale:
            gamma = 0.5 if line["method"] == "CAMixerSR" else None
            rows += _datasets(line, line["method"], gamma, "full data", "CAMixerSR main paper, lightweight SR ×4")
    return rows


def _datasets(line: dict[str, str], label: str, gamma: float | None, data: str, source: str) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "gamma": gamma,
            "dataset": _DATASET_NAMES.get(name, name),
            "psnr_db": float(line[f"{name}_psnr"]),
            "ssim": float(line[f"{name}_ssim"]),
            "macs": round(float(line["gmacs_1280x720"]) * 1e9),
            "params": round(float(line["params_k"]) * 1e3),
            "source": source,
            "trained_on": f"{data} to convergence",
        }
        for name in _LIGHT_DATASETS
        if line[f"{name}_psnr"]
    ]


def read_published_table(name: str) -> list[dict[str, str]]:
    """Return the lines of a transcribed table, as text by column name."""
    with (published_dir() / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))

"""A search space whose trials take a fraction of a second, to be varied by tests."""

from pathlib import Path
from typing import Any

import yaml

from tests.photographs import Photographs


def tiny_space(photographs: Photographs, **changes: Any) -> dict[str, Any]:
    """Return the settings of a tiny space; `changes` replace whole sections, and None takes one out."""
    settings: dict[str, Any] = {
        "scale": 4,
        "data": {"train": str(photographs.train), "validation": str(photographs.validation)},
        "model": {"groups": [1], "window": 4, "image_residual": True},
        "training": {"steps": 2, "batch_size": 1, "hr_patch_size": 32, "checkpoint_interval": 1},
        "dimensions": {
            "model.channels": {"low": 8, "high": 24, "step": 4},
            "routing.gamma": {"choices": [0.0, 0.5, 1.0]},
        },
        "objectives": ["psnr_db", "macs"],
        "profile": {
            "latency_input_size": [8, 8],
            "macs_input_size": [16, 16],
            "min_repeats": 3,
            "min_seconds": 0,
            "process": "shared",
        },
        "sampler": {"name": "random"},
        "budget": {"networks": 2},
        "baselines": ["bicubic"],
    }
    return {key: value for key, value in {**settings, **changes}.items() if value is not None}


def write_space(path: Path, settings: dict[str, Any]) -> Path:
    """Write settings as a YAML file."""
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path

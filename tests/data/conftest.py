from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def photographs(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder with four RGB images, 50 to 70 pixels a side, unlike one another."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index, (height, width) in enumerate([(50, 61), (64, 64), (70, 53), (55, 66)]):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"photo{index}.png")
    return folder

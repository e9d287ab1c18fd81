"""The dataset `demo`: photographs that come inside the scikit-image wheel, in a fixed split; no download."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from harness.core.errors import UserError

# No validation image resembles a training image. The stereo pair motorcycle_left/right is kept on one side.
DEMO_FILES: dict[Literal["train", "validation"], tuple[str, ...]] = {
    "train": (
        "rocket.jpg",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "hubble_deep_field.jpg",
        "retina.jpg",
        "ihc.png",
        "camera.png",
        "brick.png",
        "grass.png",
        "gravel.png",
        "coins.png",
        "moon.png",
    ),
    "validation": ("astronaut.png", "chelsea.png", "coffee.png"),
}

DEMO_TERMS = (
    "photographs of the scikit-image package; what is known of the licence of each, for most of them CC0 or public "
    "domain, stands in the documentation of `skimage.data`"
)


def find_demo_files(split: Literal["train", "validation"]) -> list[Path]:
    """Return the files of the split, in their fixed order; `UserError` when this scikit-image does not carry them."""
    spec = find_spec("skimage")  # found, not imported: only its files are wanted
    if spec is None or spec.origin is None:
        raise UserError(
            "dataset 'demo' is the photographs of scikit-image, which is not installed: pip install scikit-image"
        )
    folder = Path(spec.origin).parent / "data"
    files = [folder / name for name in DEMO_FILES[split]]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"dataset 'demo': the installed scikit-image has no {', '.join(missing)} in {folder}; "
            "pip install --force-reinstall 'scikit-image>=0.24'"
        )
    return files

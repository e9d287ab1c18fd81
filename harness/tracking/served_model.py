"""What the model registry serves: a bundle's ONNX file by onnxruntime, or else the bundle itself by harness.

MLflow copies this one file into each registered model and runs it where the model is loaded. So it imports harness only
for a bundle that has no ONNX file, and does by itself what `harness upscale` does: tiles, and panoramas without a seam.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

TILE, OVERLAP = 512, 32  # low-resolution pixels, as of `harness upscale`
_SEAM = 32  # columns that panoramas are continued by, rounded up to whole windows

Restore = Callable[[Any], Any]  # uint8 H×W×3 → uint8 (scale·H)×(scale·W)×3


class ImageUpscaler(PythonModel):
    """Upscales batches of images of one size: N×H×W×3 uint8 in, N×(scale·H)×(scale·W)×3 uint8 out."""

    def load_context(self, context: Any) -> None:
        """Open the bundle that lies in the model."""
        self.restore = _open_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # which MLflow would take up
        """Upscale each image by itself."""
        return np.stack([self.restore(image_HWC) for image_HWC in np.asarray(model_input, dtype=np.uint8)])


def _open_bundle(folder: Path) -> Restore:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    window = config["model"].get("window", 1)
    wrap = -(-_SEAM // window) * window if config["task"] == "odi" else 0
    file = folder / "model.onnx"
    restore = _open_onnx(file, config["model"]["scale"], wrap) if file.is_file() else _open_network(folder, wrap)

    def checked(image_HWC: Any) -> Any:
        if wrap and image_HWC.shape[1] != 2 * image_HWC.shape[0]:
            raise ValueError(f"expected whole panoramas, twice as wide as high; got {image_HWC.shape[:2]}")
        return restore(image_HWC)

    return checked


def _open_network(folder: Path, wrap: int) -> Restore:
    from harness.export import load_network, upscale_image

    network = load_network(folder)
    return lambda image_HWC: upscale_image(network, image_HWC, tile=TILE, overlap=OVERLAP, wrap=wrap)


def _open_onnx(file: Path, scale: int, wrap: int) -> Restore:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def restore(image_HWC: Any) -> Any:
        width = image_HWC.shape[1]
        continued_HWC = image_HWC[:, np.arange(-wrap, width + wrap) % width]
        input_CHW = continued_HWC.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        total_CHW = np.zeros((3, *(scale * side for side in input_CHW.shape[1:])), np.float32)
        times_HW = np.zeros(total_CHW.shape[1:], np.float32)
        tops, lefts = (_starts(side) for side in input_CHW.shape[1:])
        for top, left in ((top, left) for top in tops for left in lefts):
            part_CHW = session.run(None, {name: input_CHW[None, :, top : top + TILE, left : left + TILE]})[0][0]
            area = (
                slice(scale * top, scale * top + part_CHW.shape[1]),
                slice(scale * left, scale * left + part_CHW.shape[2]),
            )
            total_CHW[:, *area] += part_CHW
            times_HW[area] += 1
        restored_HWC = (total_CHW / times_HW).transpose(1, 2, 0)[:, scale * wrap : scale * (wrap + width)]
        return np.floor(np.clip(restored_HWC.astype(np.float64) * 255, 0, 255) + 0.5).astype(np.uint8)

    return restore


def _starts(side: int) -> list[int]:
    """Return where tiles begin along an axis, the last one flush with its end."""
    return [0] if side <= TILE else [*range(0, side - TILE, TILE - OVERLAP), side - TILE]


set_model(ImageUpscaler())

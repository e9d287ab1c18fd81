"""ONNX files of networks at inference, with γ and policy built in: built from config and weights, not traced.

The graph takes `image` (B×3×h×w, float32 in [0, 1]) and gives `restored` (B×3×(scale·h)×(scale·w), not clipped). It
pads to whole windows by reflection, as the networks do, and crops in the end. Height, width and batch are free, or
constants where they are given; a graph of constants has no shape to look up. Opset and config stand in the file's
metadata.
"""

import importlib.metadata
from typing import Any

import numpy as np
from torch import Tensor

from harness.core.configs import CAMixerSRConfig, CustomConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.models import SRNetwork
from harness.models.onnx_export.camixersr import add_camixersr
from harness.models.onnx_export.graph import OPSET, Array, Graph, import_onnx
from harness.models.onnx_export.parts import Image, add_bicubic
from harness.models.onnx_export.swinir import add_swinir

INPUT, OUTPUT = "image", "restored"


def build_onnx(network: SRNetwork, *, size: tuple[int, int] | None = None, batch: int | None = None) -> Any:
    """Return the `onnx.ModelProto` of a network's inference under its routing; see the module.

    `size`: the only (height, width) that the graph is to take, `batch` the only number of images; None: any.
    Raises `UserError` where the package `onnx` is missing, for a network of a user's own, and where a size or a batch
    is no positive number.
    """
    onnx = import_onnx()
    for name, value in (("height", size and size[0]), ("width", size and size[1]), ("batch", batch)):
        if value is not None and value < 1:
            raise UserError(f"{name} of the ONNX file is {value}, expected at least 1, or none for any")
    config, graph = network.config, Graph()
    state: dict[str, Array] = {name: _to_array(value) for name, value in network.state_dict().items()}
    image = Image(graph, INPUT, size, batch)
    if isinstance(config, CAMixerSRConfig):
        add_camixersr(graph, image, config, state, OUTPUT)
    elif isinstance(config, SwinIRConfig):
        add_swinir(graph, image, config, state, OUTPUT)
    elif isinstance(config, CustomConfig):
        raise UserError(f"{config.label()}: ONNX files are built of CAMixerSR, SwinIR and bicubic alone")
    else:
        graph.rename(add_bicubic(graph, image, config.scale), OUTPUT)
    height, width = size or ("height", "width")
    out_height, out_width = (
        side * config.scale if isinstance(side, int) else f"{config.scale}*{side}" for side in (height, width)
    )
    floats = onnx.TensorProto.FLOAT
    value_info = onnx.helper.make_tensor_value_info
    inputs = [value_info(INPUT, floats, [batch or "batch", 3, height, width])]
    outputs = [value_info(OUTPUT, floats, [batch or "batch", 3, out_height, out_width])]
    return graph.finish(inputs, outputs, name=_identifier(config.label()), metadata=_metadata(network, size, batch))


def _metadata(network: SRNetwork, size: tuple[int, int] | None, batch: int | None) -> dict[str, str]:
    """Return what the file says of itself."""
    config = network.config
    routing = getattr(config, "routing", None)
    entries = {
        "harness.version": importlib.metadata.version("harness"),
        "harness.config": config.canonical_json(),
        "harness.label": config.label(),
        "harness.scale": str(config.scale),
        "harness.opset": str(OPSET),
        "harness.size": "any" if size is None else f"{size[0]}x{size[1]}",
        "harness.batch": "any" if batch is None else str(batch),
        "harness.input": "RGB, B×3×h×w, float32 in [0, 1]",
    }
    if routing is not None:
        entries["harness.routing"] = routing.label()
        entries["harness.gamma"] = f"{routing.gamma:g}"
        entries["harness.policy"] = routing.policy
    return entries


def _to_array(value: Tensor) -> Array:
    return np.asarray(value.detach().cpu().numpy())


def _identifier(label: str) -> str:
    return "".join(sign if sign.isalnum() else "_" for sign in label)

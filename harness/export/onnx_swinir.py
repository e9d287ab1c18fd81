"""The ONNX graph of SwinIR."""

from harness.core.configs import SwinIRConfig
from harness.core.errors import UserError
from harness.export.graph import Array, Graph
from harness.export.onnx_parts import Image


def add_swinir(
    graph: Graph, image: Image, config: SwinIRConfig, state: dict[str, Array], to: str, blocks: dict[str, str]
) -> str:
    """Add a SwinIR from the image to `to`; `blocks` gets what each layer makes, by its module."""
    raise UserError("SwinIR has no ONNX graph yet")

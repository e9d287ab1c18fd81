"""ONNX graphs of the networks, built from config and weights; the optional extra `onnx`."""

from harness.models.onnx_export.build import INPUT, OUTPUT, build_onnx
from harness.models.onnx_export.graph import OPSET, import_onnx, inline_functions

__all__ = ["INPUT", "OPSET", "OUTPUT", "build_onnx", "import_onnx", "inline_functions"]

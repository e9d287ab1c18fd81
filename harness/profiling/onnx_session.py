"""Networks of ONNX files, run by onnxruntime on the CPU (the optional extra `onnx`)."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import UserError

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxNetwork:
    """An ONNX file as a function of one batch of images; images and results are float32 tensors on the CPU.

    `threads` are those inside operators. `declared_input`: batch, channels, height and width, None where they are free.
    Raises `UserError` where onnxruntime is not installed, and for a file that it cannot run on one batch of images.
    """

    def __init__(self, path: str, source: str, threads: int):
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # errors come as exceptions
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin in others' turns
        try:
            self.session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors have no common base
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{source}: onnxruntime cannot load it ({type(error).__name__}: {reason})") from None
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
            found = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
            raise UserError(
                f"{source}: expected one input, a batch of images B×C×h×w in float32 or float16; got {found}"
            )
        self.path = path
        self.input_name: str = inputs[0].name
        self.dtype: Any = _TYPES[inputs[0].type]
        self.declared_input = tuple(side if isinstance(side, int) else None for side in inputs[0].shape)

    def __call__(self, input_BCHW: Tensor) -> Tensor:
        """Run the network on one batch of images."""
        outputs = self.session.run(None, {self.input_name: input_BCHW.detach().cpu().numpy().astype(self.dtype)})
        return torch.from_numpy(outputs[0]).float()

    @functools.cached_property
    def is_float32(self) -> bool:
        """Whether all runtimes are to give the same images: nothing in the file is rounded further than to float32."""
        import onnx

        model = onnx.load(self.path)
        rounded = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
        operators = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
        stored = any(tensor.data_type in rounded for tensor in model.graph.initializer)
        return not stored and not any(node.op_type in operators for node in model.graph.node)


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`; `UserError` with the command that installs it where it is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            'ONNX files are run by onnxruntime, which is not installed: pip install "harness[onnx]"'
        ) from None
    return onnxruntime

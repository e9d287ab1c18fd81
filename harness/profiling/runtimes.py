"""Runtimes that a network is measured under: eager, torch.compile, onnxruntime, OpenVINO.

Under all but eager the network runs operator by operator as its paper writes it, because tracers do not see through
kernels of our own; onnxruntime and OpenVINO get the same ONNX graph, exported for one shape of input. OpenVINO runs
bfloat16 on CPUs that have it unless it is told float32; it is told what the precision says. Optional packages are
imported when they are used.
"""

import contextlib
import copy
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.core.conditions import RUNTIMES, Runtime
from harness.core.configs import Precision
from harness.core.errors import UserError, unknown_name
from harness.models import SRNetwork
from harness.models.custom import CustomNetwork
from harness.models.onnx_export import build_onnx, inline_functions
from harness.profiling.device import Device
from harness.profiling.onnx_session import OnnxNetwork
from harness.profiling.targets import Target

_OPSET = 18
_OPENVINO_PRECISION = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_PACKAGES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}

_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}

Pass = Callable[[Tensor], object]


def check_runtime(runtime: str, device: Device, precision: Precision) -> Runtime:
    """Return the runtime if it is known, installed, and runs on the device in the precision; else raise `UserError`."""
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    for package in _PACKAGES.get(runtime, ()):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(
                f"runtime {runtime} needs the package {package}, which is not installed; "
                f"install it: pip install 'harness[{_EXTRAS[runtime]}]'"
            ) from None
    if runtime == "openvino" and device.kind != "cpu":
        raise UserError(f"runtime openvino is measured on a CPU: got device {device.text!r}, expected cpu:THREADS")
    if runtime == "onnxruntime" and precision != "fp32":
        raise UserError(
            f"runtime onnxruntime runs the network as it is stored: got precision {precision}, expected fp32"
        )
    if runtime == "onnxruntime" and device.kind != "cpu":
        provider, available = _onnx_provider(device), importlib.import_module("onnxruntime").get_available_providers()
        if provider not in available:
            raise UserError(
                f"the installed onnxruntime does not run on {device.text!r}: it has {', '.join(available)}; "
                f"expected one with {provider}"
            )
    return runtime


def runtime_version(runtime: Runtime) -> str | None:
    """Return the version of onnxruntime or OpenVINO; None for what is torch's own."""
    return str(importlib.import_module(runtime).__version__) if runtime in _PACKAGES else None


def prepare(network: nn.Module, runtime: Runtime, precision: Precision, device: Device, example_BCHW: Tensor) -> Pass:
    """Return what runs `network`, which is in eval mode and on the device, on inputs of the example's shape.

    Casting to `precision` in eager and under torch.compile is the caller's (autocast). Raises `UserError` where the
    runtime cannot run the network.
    """
    if runtime == "eager":
        return network
    if runtime == "compile":
        return _compile(_write_out(network), example_BCHW)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, example_BCHW, path)
        try:
            return (_load_onnxruntime if runtime == "onnxruntime" else _load_openvino)(path, precision, device)
        except Exception as error:  # each runtime has errors of its own kind
            raise UserError(f"runtime {runtime} cannot run {_name(network)}: {_first_line(error)}") from error


def prepare_file(network: OnnxNetwork, runtime: Runtime, precision: Precision, device: Device) -> Pass:
    """Return what runs an ONNX file in a runtime for such files; `UserError` where that cannot run it."""
    if runtime == "onnxruntime":
        return network
    try:
        run = _load_openvino(Path(network.path), precision, device)
    except Exception as error:  # OpenVINO's have no common base
        raise UserError(f"runtime {runtime} cannot run {network.path}: {_first_line(error)}") from error
    dtype = torch.from_numpy(np.empty(0, network.dtype)).dtype
    return lambda input_BCHW: run(input_BCHW.to(dtype))


def run_in(target: Target, runtime: Runtime, precision: Precision, device: Device) -> Target:
    """Return a target of an ONNX file as the runtime runs it, for whoever calls it; its images are float32 tensors."""
    network = target.network
    assert isinstance(network, OnnxNetwork)
    run = prepare_file(network, runtime, precision, device)
    return replace(target, network=lambda input_BCHW: torch.as_tensor(run(input_BCHW)).float())


def _write_out(network: nn.Module) -> nn.Module:
    """Return the network as tracers see through it: operator by operator."""
    written_out = copy.copy(network)
    if isinstance(written_out, SRNetwork):
        written_out.is_literal = True
    return written_out


def _compile(network: nn.Module, example_BCHW: Tensor) -> Pass:
    compiled = torch.compile(network, dynamic=False)
    try:
        compiled(example_BCHW)
    except Exception as error:  # the tracer's, the generator's, the C++ compiler's
        raise UserError(f"torch.compile cannot compile {_name(network)}: {_first_line(error)}") from error
    return compiled


def export_onnx(network: nn.Module, example_BCHW: Tensor, path: Path) -> None:
    """Write the ONNX graph of a network in eval mode for one shape of input: of one of ours, the file that is exported.

    Others are traced, and not optimised by the exporter: that takes minutes for hundreds of operators, and runtimes do
    it again. `UserError` where the network cannot be exported.
    """
    if isinstance(network, SRNetwork) and not isinstance(network, CustomNetwork):
        batch, _, height, width = example_BCHW.shape
        path.write_bytes(build_onnx(network, size=(height, width), batch=batch).SerializeToString())
        return
    try:
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            example_BCHW = example_BCHW.clone().cpu()  # a tensor of inference mode cannot be traced
            program = torch.onnx.export(
                torch.export.export(copy.deepcopy(network).cpu(), (example_BCHW,), strict=False),
                (example_BCHW,),
                input_names=["input"],
                output_names=["output"],
                opset_version=_OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except Exception as error:  # the exporter raises nearly anything
        raise UserError(f"{_name(network)} cannot be exported to ONNX: {_first_line(error)}") from error


def _load_onnxruntime(path: Path, precision: Precision, device: Device) -> Pass:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    if device.threads is not None:
        options.intra_op_num_threads = device.threads
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin in others' turns
    session = onnxruntime.InferenceSession(str(path), options, providers=[_onnx_provider(device)])
    (given,) = session.get_inputs()
    return lambda input_BCHW: session.run(None, {given.name: input_BCHW.cpu().numpy()})[0]


def _onnx_provider(device: Device) -> str:
    return {"cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}.get(device.kind, "CPUExecutionProvider")


def _load_openvino(path: Path, precision: Precision, device: Device) -> Pass:
    openvino = importlib.import_module("openvino")
    settings = {
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISION[precision],
        "INFERENCE_NUM_THREADS": device.threads,
        "NUM_STREAMS": 1,
    }
    core = openvino.Core()
    model = core.compile_model(_read_inlined(core, path), "CPU", settings)
    return lambda input_BCHW: model([input_BCHW.numpy()])[0]


def _read_inlined(core: Any, path: Path) -> Any:
    """Read an ONNX file for OpenVINO, which knows no functions that a file defines itself."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(path)
    if not model.functions:
        return core.read_model(str(path))
    with tempfile.TemporaryDirectory() as folder:
        inlined = Path(folder) / "inlined.onnx"
        onnx.save(inline_functions(model), inlined)
        return core.read_model(str(inlined))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and warnings to itself: what matters is an error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _name(network: nn.Module) -> str:
    return network.config.label() if isinstance(network, SRNetwork) else type(network).__name__


def _first_line(error: Exception) -> str:
    """Return the innermost cause in one line: exporters wrap it in pages of advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return (lines or [type(cause).__name__])[0][:300]

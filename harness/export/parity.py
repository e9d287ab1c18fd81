"""Whether an exported file restores images as its network does: real images of several sizes, within bounds.

The network runs eagerly in float32 on the CPU, by whatever path it takes there; the file runs in its runtime. Both are
compared before clipping and rounding. Windows that are ranked by nearly equal numbers may be ranked otherwise by
another runtime, whose sums round otherwise; then whole windows differ, and the message says how many.
"""

import copy
import hashlib
import importlib
import importlib.metadata
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from harness.core.errors import UserError, describe_error
from harness.data import to_tensor
from harness.data.demo import find_demo_files
from harness.data.images import read_rgb
from harness.data.imresize import imresize
from harness.export.documents import ImageParity, ParityRecord
from harness.models import SRNetwork
from harness.models.onnx_export import import_onnx, inline_functions

MAX_ABS, MAX_PSNR_DB = 1e-3, 0.01  # how far a file may be from its network: values in [0, 1], and dB
FloatArray = npt.NDArray[np.float32]
ParityRuntime = Literal["onnxruntime", "openvino"]

_LARGE = 64  # low-resolution pixels: the sides of the images are about so long
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


class ParityImage(NamedTuple):
    """Real images of one size: `input_BCHW` in [0, 1], and what they were made of, `scale` times as large."""

    name: str
    input_BCHW: Tensor
    target_BCHW: Tensor


def take_images(
    scale: int, window: int = 16, *, size: tuple[int, int] | None = None, batch: int | None = None
) -> list[ParityImage]:
    """Return photographs of several sizes, multiples of the window and not, alone and by two; or all of `size`.

    They are crops of the validation images of the dataset `demo`, shrunk as the field does (`imresize`); a size that no
    photograph has is made by mirroring.
    """
    most = max(1, round(_LARGE / window))
    large, less = most * window, max(1, most - 1) * window
    sizes = [(large, large, 1), (less, large, 2), (large - 1, less - window // 3, 1), (window // 2, less - 1, 2)]
    if size is not None:
        sizes = [(*size, 1)]
    photographs = [(path.stem, read_rgb(path)) for path in find_demo_files("validation")]
    found = []
    for number, (height, width, count) in enumerate(sizes):
        names, pairs = [], []
        for index in range(batch or count):
            name, photograph = photographs[(number + index) % len(photographs)]
            target_HWC = _cut(photograph, scale * height, scale * width)
            pairs.append((imresize(target_HWC, size=(height, width)) if scale > 1 else target_HWC, target_HWC))
            names.append(name)
        inputs_BHWC, targets_BHWC = (np.stack(images) for images in zip(*pairs, strict=True))
        found.append(ParityImage("+".join(names), to_tensor(inputs_BHWC), to_tensor(targets_BHWC)))
    return found


def check_parity(
    network: SRNetwork,
    model: Any,
    images: Sequence[ParityImage] | None = None,
    *,
    runtime: ParityRuntime = "onnxruntime",
) -> ParityRecord:
    """Return how far an ONNX file is from its network; `UserError` beyond the bounds, saying on which image and where.

    `model`: an `onnx.ModelProto`, its bytes, or the path of a file; `images` are those of `take_images` by default, of
    the size that the file is for. Raises `UserError`, too, where a package is missing or the runtime cannot run it.
    """
    onnx = import_onnx()
    content = model if isinstance(model, bytes) else None
    if isinstance(model, str | Path):
        content = Path(model).read_bytes()
    proto = model if content is None else onnx.load_from_string(content)
    if content is None:
        content = proto.SerializeToString()
    entry = proto.graph.input[0]
    batch, _, height, width = (
        side.dim_value if side.HasField("dim_value") else None for side in entry.type.tensor_type.shape.dim
    )
    size = None if height is None or width is None else (height, width)
    if images is None:
        images = take_images(network.scale, getattr(network.config, "window", 16), size=size, batch=batch)
    session = open_session(content, runtime)
    what = f"the ONNX file of {network.config.label()} in {runtime}"
    found = _compare(
        network, lambda x: session(x)[0], images, what, lambda image: _find_place(network, proto, image, runtime)
    )
    return ParityRecord(
        kind="onnx",
        runtime=runtime,
        runtime_version=str(importlib.import_module(runtime).__version__),
        provider="CPUExecutionProvider" if runtime == "onnxruntime" else "CPU",
        torch_version=str(torch.__version__),
        harness_version=importlib.metadata.version("harness"),
        sha256=hashlib.sha256(content).hexdigest(),
        opset=next(opset.version for opset in proto.opset_import if opset.domain == ""),
        nodes=len(proto.graph.node),
        size=size,
        batch=batch,
        max_abs_bound=MAX_ABS,
        psnr_db_bound=MAX_PSNR_DB,
        images=found,
    )


def check_module(network: SRNetwork, module: nn.Module, path: Path, images: Sequence[ParityImage]) -> ParityRecord:
    """Return how far an exported program, loaded again from `path`, is from its network; see `check_parity`."""

    def run(input_BCHW: FloatArray) -> FloatArray:
        with torch.no_grad():
            output: FloatArray = module(torch.from_numpy(input_BCHW)).numpy()
        return output

    size = None if len({image.input_BCHW.shape for image in images}) > 1 else images[0].input_BCHW.shape
    found = _compare(network, run, images, f"the exported program of {network.config.label()}", lambda _image: "")
    return ParityRecord(
        kind="pt2",
        runtime="torch",
        runtime_version=str(torch.__version__),
        provider="CPU",
        torch_version=str(torch.__version__),
        harness_version=importlib.metadata.version("harness"),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        opset=None,
        nodes=None,
        size=None if size is None else (size[2], size[3]),
        batch=None if size is None else size[0],
        max_abs_bound=MAX_ABS,
        psnr_db_bound=MAX_PSNR_DB,
        images=found,
    )


def open_session(
    content: bytes, runtime: ParityRuntime = "onnxruntime", *, threads: int = 1
) -> Callable[[FloatArray], list[FloatArray]]:
    """Return what runs an ONNX file in float32 on the CPU: from one batch of images to all outputs.

    `UserError` where the runtime is not installed or cannot load the file.
    """
    try:
        package = importlib.import_module(runtime)
    except ImportError:
        raise UserError(
            f'{runtime}, which is to run the exported file, is not installed: pip install "harness[{_EXTRAS[runtime]}]"'
        ) from None
    try:
        if runtime == "openvino":
            return _open_openvino(package, content, threads)
        options = package.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # errors come as exceptions
        session = package.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtimes' errors have no common base
        raise UserError(f"{runtime} cannot load the exported file ({describe_error(error)})") from None
    name = session.get_inputs()[0].name
    return lambda input_BCHW: [np.asarray(output) for output in session.run(None, {name: input_BCHW})]


def _open_openvino(package: Any, content: bytes, threads: int) -> Callable[[FloatArray], list[FloatArray]]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    inlined = inline_functions(import_onnx().load_from_string(content)).SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(inlined)
        core = package.Core()
        compiled = core.compile_model(core.read_model(str(file)), "CPU", settings)

    def run(input_BCHW: FloatArray) -> list[FloatArray]:
        found = compiled([input_BCHW])
        return [np.array(found[index]) for index in range(len(compiled.outputs))]

    return run


def _compare(
    network: SRNetwork,
    run: Callable[[FloatArray], FloatArray],
    images: Sequence[ParityImage],
    what: str,
    find_place: Callable[[ParityImage], str],
) -> tuple[ImageParity, ...]:
    """Return how far `run` is from the network on each image; `UserError` beyond the bounds."""
    found = []
    for image in images:
        batch, _, height, width = image.input_BCHW.shape
        size = f"{batch}×3×{height}×{width} ({image.name})"
        with _inference(network):
            expected = network(image.input_BCHW).numpy()
        try:
            got = run(image.input_BCHW.numpy())
        except Exception as error:
            raise UserError(f"{what} cannot run on {size}: {describe_error(error)}") from None
        if got.shape != expected.shape:
            raise UserError(f"{what} gives {got.shape} for {size}, expected {expected.shape}")
        max_abs = float(np.abs(got.astype(np.float64) - expected).max())
        psnr_db = [_psnr_db(output, image.target_BCHW.numpy()) for output in (expected, got)]
        entry = ImageParity(
            name=image.name,
            batch=batch,
            size=(height, width),
            max_abs=max_abs,
            psnr_db=psnr_db[0],
            psnr_db_exported=psnr_db[1],
        )
        if not (max_abs <= MAX_ABS and abs(entry.psnr_db_difference) <= MAX_PSNR_DB):  # whatever is NaN is beyond
            raise UserError(
                f"{what} is not what the network is, so it is not written: on {size} it differs by {max_abs:.2g} "
                f"(allowed {MAX_ABS:g}) and {entry.psnr_db_difference:+.4f} dB (allowed {MAX_PSNR_DB:g})"
                f"{find_place(image)}"
            )
        found.append(entry)
    return tuple(found)


@contextmanager
def _inference(network: nn.Module) -> Iterator[None]:
    """Run a network in eval mode without gradients, and leave its mode as it was."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


def _find_place(network: SRNetwork, model: Any, image: ParityImage, runtime: ParityRuntime) -> str:
    """Return the first module at whose end the file differs from the network, as the end of a sentence."""
    onnx = import_onnx()
    made = {tensor for node in model.graph.node for tensor in node.output}
    outputs: dict[str, Tensor] = {}
    tensors = {}
    handles = []
    for name, module in network.named_modules():
        tensor = _tensor_of(name, type(module).__name__)
        if tensor in made:
            tensors[name] = tensor
            handles.append(module.register_forward_hook(_keep(outputs, name)))
    try:
        with _inference(network):
            network(image.input_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    opened = copy.deepcopy(model)
    float32 = onnx.TensorProto.FLOAT
    opened.graph.output.extend(onnx.helper.make_tensor_value_info(tensors[name], float32, None) for name in outputs)
    got = open_session(opened.SerializeToString(), runtime)(image.input_BCHW.numpy())
    for name, found in zip(outputs, got[1:], strict=True):
        expected = outputs[name].numpy()
        apart = np.abs(found.reshape(expected.shape).astype(np.float64) - expected)
        allowed = MAX_ABS * max(1.0, float(np.abs(expected).max()))
        if not apart.max() <= allowed:
            windows = _count_windows(apart, allowed, network) if name.startswith("groups") else ""
            return f"; they part at {name}{windows}"
    return "; they part after the last block" if outputs else ""


def _tensor_of(name: str, kind: str) -> str | None:
    """Return the tensor of a graph that is what a module gives; None for modules that are not looked at."""
    if name in ("head", "body_tail", "tail"):
        return name
    return {"Block": f"{name}.norm2", "SwinGroup": f"{name}.sum"}.get(kind)


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[name] = output[0] if isinstance(output, tuple) else output

    return hook


def _count_windows(apart: npt.NDArray[np.float64], allowed: float, network: SRNetwork) -> str:
    """Say in how many windows of B×H×W×C features two differ: few of them were routed differently."""
    window = getattr(network.config, "window", 1)
    B, H, W, _ = apart.shape
    if H % window or W % window:
        return ""
    worst = apart.reshape(B, H // window, window, W // window, window, -1).max(axis=(2, 4, 5))
    return f", in {int((~(worst <= allowed)).sum())} of {worst.size} windows"


def _psnr_db(output_BCHW: FloatArray, target_BCHW: FloatArray) -> float:
    """Return the PSNR of clipped images against what they were made of, over all values, in dB."""
    apart = np.clip(output_BCHW, 0, 1).astype(np.float64) - target_BCHW
    error = float(np.square(apart).mean())
    return -10 * math.log10(error) if error else math.inf


def _cut(photograph_HWC: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return the middle of a photograph; where it is too small, it is mirrored on."""
    more = [max(0, side - have) for side, have in zip((height, width), photograph_HWC.shape, strict=False)]
    if any(more):
        photograph_HWC = np.pad(photograph_HWC, ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
    top, left = (photograph_HWC.shape[0] - height) // 2, (photograph_HWC.shape[1] - width) // 2
    return np.ascontiguousarray(photograph_HWC[top : top + height, left : left + width])

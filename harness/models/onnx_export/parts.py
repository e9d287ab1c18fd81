"""What all networks' ONNX graphs are made of: sizes, padding, cropping, linear layers, convolutions, bicubic upscaling.

Shape suffixes as in the networks: B batch, C channels, H W the padded size, h w the image's.
"""

import numpy as np

from harness.models.onnx_export.graph import Array, Graph

_CUBIC = -0.5  # the kernel's a
_REACH = 2  # low-resolution pixels to either side


class Image:
    """The input of a graph, and its sizes."""

    def __init__(self, graph: Graph, name: str, size: tuple[int, int] | None, batch: int | None):
        self.graph = graph
        self.name = name
        self.size = size
        self.batch_size = batch
        self.batch = self._side("batch", 0, batch)
        self.height, self.width = (
            self._side(side, axis, size and size[axis - 2]) for axis, side in ((2, "height"), (3, "width"))
        )

    def _side(self, name: str, axis: int, known: int | None) -> str:
        if known is not None:
            return self.graph.whole(known)
        return self.graph.call("Shape", self.name, to=f"size.{name}", start=axis, end=axis + 1)


def round_up(graph: Graph, side: str, multiple: int, to: str) -> str:
    """Return a side rounded up to whole windows, and the number of these."""
    with graph.part("size"):
        more = graph.call("Add", side, graph.whole(multiple - 1), to=f"{to}.more")
        return graph.call("Div", more, graph.whole(multiple), to=f"{to}.windows")


def add_range(graph: Graph, count: str, to: str) -> str:
    """Return 0 … count − 1."""
    empty = graph.constant("scalar", np.array([], dtype=np.int64))
    scalar = graph.call("Reshape", count, empty, to=f"{to}.count")
    return graph.call(
        "Range", graph.constant("0", np.array(0)), scalar, graph.constant("1", np.array(1)), to=f"{to}.range"
    )


def pad_reflecting(graph: Graph, tensor: str, side: str, target: str, axis: int, to: str) -> str:
    """Pad one axis at its end by reflection, again and again where it is short: with a period of 2(side − 1).

    See `harness.models.padding.pad_to_size`.
    """
    with graph.part("pad"):
        two, one = graph.whole(2), graph.whole(1)
        last = graph.call("Sub", side, one, to=f"{to}.last")
        twice = graph.call("Mul", last, two, to=f"{to}.twice")
        period = graph.call("Max", twice, one, to=f"{to}.period")
        phase = graph.call("Mod", add_range(graph, target, to), period, to=f"{to}.phase")
        back = graph.call("Sub", twice, phase, to=f"{to}.back")
        places = graph.call("Min", phase, back, to=f"{to}.places")
        return graph.call("Gather", tensor, places, to=to, axis=axis)


def pad_symmetric(graph: Graph, tensor: str, side: str, pad: int, axis: int, to: str) -> str:
    """Pad one axis at both ends by mirroring with the edge repeated; see `harness.models.padding.pad_symmetric`."""
    with graph.part("bicubic"):
        twice = graph.call("Mul", side, graph.whole(2), to=f"{to}.twice")
        padded = graph.call("Add", side, graph.whole(2 * pad), to=f"{to}.padded")
        start = graph.call("Sub", add_range(graph, padded, to), graph.whole(pad), to=f"{to}.start")
        phase = graph.call("Mod", start, twice, to=f"{to}.phase")
        last = graph.call("Sub", twice, graph.whole(1), to=f"{to}.last")
        places = graph.call("Min", phase, graph.call("Sub", last, phase, to=f"{to}.back"), to=f"{to}.places")
        return graph.call("Gather", tensor, places, to=to, axis=axis)


def cubic_kernel(distance: Array) -> Array:
    """Return the cubic kernel with a = −0.5 (Keys 1981)."""
    x = np.abs(distance)
    near = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
    far = _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def add_bicubic(graph: Graph, image: Image, scale: int) -> str:
    """Return the image upscaled as `harness.models.bicubic` does: one convolution with a kernel for each phase."""
    phases = (np.arange(scale) + 0.5) / scale - 0.5  # where an output lies beside the centre of its input
    taps = np.arange(-_REACH, _REACH + 1)
    lines = cubic_kernel(phases[:, None] - taps)  # scale × 5
    kernels = np.einsum("pi,qj->pqij", lines, lines).reshape(scale**2, 1, taps.size, taps.size)
    padded = pad_symmetric(graph, image.name, image.height, _REACH, 2, "rows")
    padded = pad_symmetric(graph, padded, image.width, _REACH, 3, "columns")
    with graph.part("bicubic"):
        weight = graph.constant("bicubic.kernels", np.tile(kernels, (3, 1, 1, 1)).astype(np.float32))
        phases_BCHW = graph.call("Conv", padded, weight, to="phases", group=3)
        return graph.call("DepthToSpace", phases_BCHW, to="upscaled", blocksize=scale, mode="CRD")


def add_linear(graph: Graph, tensor: str, name: str, weight: Array, bias: Array | None = None, to: str = "") -> str:
    """Return a linear layer of the last axis; `weight` is out × in, as PyTorch has it, and stored in × out."""
    matrix = graph.weight(f"{name}.weight", weight.T)
    product = graph.call("MatMul", tensor, matrix, to=(to or name) if bias is None else f"{to or name}.product")
    return product if bias is None else graph.call("Add", product, graph.weight(f"{name}.bias", bias), to=to or name)


def add_convolution(
    graph: Graph,
    tensor_BCHW: str,
    name: str,
    weight: Array,
    bias: Array | None,
    *,
    pad: int = 0,
    group: int = 1,
    dilation: int = 1,
    stride: int = 1,
) -> str:
    """Return a convolution of a map B×C×H×W."""
    stored = [graph.weight(f"{name}.weight", weight)]
    if bias is not None:
        stored.append(graph.weight(f"{name}.bias", bias))
    return graph.call(
        "Conv",
        tensor_BCHW,
        *stored,
        to=name,
        kernel_shape=weight.shape[2:],
        pads=[pad] * 4,
        strides=[stride] * 2,
        dilations=[dilation] * 2,
        group=group,
    )


def add_norm(graph: Graph, tensor: str, name: str, weight: Array, bias: Array, epsilon: float) -> str:
    """Return the layer norm of the last axis."""
    stored = graph.weight(f"{name}.weight", weight), graph.weight(f"{name}.bias", bias)
    return graph.call("LayerNormalization", tensor, *stored, to=name, axis=-1, epsilon=epsilon)


def to_channels_first(graph: Graph, tensor_BHWC: str, to: str) -> str:
    """Return B×C×H×W."""
    return graph.call("Transpose", tensor_BHWC, to=to, perm=[0, 3, 1, 2])


def to_channels_last(graph: Graph, tensor_BCHW: str, to: str) -> str:
    """Return B×H×W×C."""
    return graph.call("Transpose", tensor_BCHW, to=to, perm=[0, 2, 3, 1])


def crop(graph: Graph, tensor_BCHW: str, image: Image, scale: int, to: str) -> str:
    """Cut the padding off a restored image."""
    sides = graph.call("Concat", image.height, image.width, to="crop.size", axis=0)
    ends = graph.call("Mul", sides, graph.whole(scale), to="crop.ends")
    return graph.call("Slice", tensor_BCHW, graph.whole(0, 0), ends, graph.whole(2, 3), to=to)

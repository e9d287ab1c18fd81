"""The ONNX graph of SwinIR: tokens lie window by window, and go from plain to shifted windows and back by an index.

Shape suffixes: B batch, C channels, H W the padded size, M window side, L = M² tokens of a window, X windows of the
batch, T = X·L tokens, A heads of d channels, P the pixels of the batch, row by row.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from harness.core.configs import SwinIRConfig
from harness.models.onnx_export.graph import Array, Graph
from harness.models.onnx_export.parts import (
    Image,
    add_bicubic,
    add_convolution,
    add_linear,
    add_norm,
    add_range,
    crop,
    pad_reflecting,
    round_up,
    to_channels_first,
    to_channels_last,
)
from harness.models.swinir import DIV2K_MEAN, mask_kinds, relative_position_index

_EPS = 1e-5


def add_swinir(graph: Graph, image: Image, config: SwinIRConfig, state: Mapping[str, Array], to: str) -> str:
    """Add a SwinIR from the image to `to`."""
    return _SwinIRGraph(graph, image, config, state).add(to)


class _Layout(NamedTuple):
    """Which pixel each token is, where each pixel is among the tokens, and where each token is in the other layout."""

    order_T: str
    back_P: str
    from_other_T: str


class _SwinIRGraph:
    def __init__(self, graph: Graph, image: Image, config: SwinIRConfig, state: Mapping[str, Array]):
        self.graph, self.image, self.config, self.state = graph, image, config, state
        self.window, self.channels = config.window, config.embed_dim

    def add(self, to: str) -> str:
        graph, config, image = self.graph, self.config, self.image
        mean = graph.constant("mean", np.array(DIV2K_MEAN, dtype=np.float32).reshape(1, 3, 1, 1))
        padded = self._pad(graph.call("Sub", image.name, mean, to="centred"))
        plain, shifted = self._lay_out()
        shallow_BCHW = self._convolve(padded, "head", pad=1)
        x_PC = self._norm(self._to_pixels(shallow_BCHW, "shallow"), "embed_norm")
        layer = 0
        for group, depth in enumerate(config.depths):
            with graph.part(f"groups.{group}"):
                x_PC = self._add_group(x_PC, layer, depth, plain, shifted)
                layer += depth
        deep = self._convolve(self._to_map(self._norm(x_PC, "norm"), "body_tail.input"), "body_tail", pad=1)
        tail = self._convolve(graph.call("Add", deep, shallow_BCHW, to="body_tail.sum"), "tail", pad=1)
        restored = graph.call("DepthToSpace", tail, to="shuffle", blocksize=config.scale, mode="CRD")
        if image.size is None or any(side % self.window for side in image.size):
            restored = crop(graph, restored, image, config.scale, "crop")
        base = add_bicubic(graph, image, config.scale) if config.image_residual else mean
        return graph.rename(graph.call("Add", restored, base, to="base"), to)

    # Sizes and windows: once in a graph

    def _pad(self, tensor_BCHW: str) -> str:
        graph, image, M = self.graph, self.image, self.window
        self.rows, self.columns = round_up(graph, image.height, M, "height"), round_up(graph, image.width, M, "width")
        with graph.part("size"):
            self.height = graph.call("Mul", self.rows, graph.whole(M), to="padded.height")
            self.width = graph.call("Mul", self.columns, graph.whole(M), to="padded.width")
            channels = graph.whole(self.channels)
            sides = image.batch, self.height, self.width
            self.map_shape = graph.call("Concat", *sides, to="map", axis=0)
            self.shape_BHWC = graph.call("Concat", *sides, channels, to="features", axis=0)
        if image.size is None or image.size[0] % M:
            tensor_BCHW = pad_reflecting(graph, tensor_BCHW, image.height, self.height, 2, "rows")
        if image.size is None or image.size[1] % M:
            tensor_BCHW = pad_reflecting(graph, tensor_BCHW, image.width, self.width, 3, "columns")
        return tensor_BCHW

    def _lay_out(self) -> tuple[_Layout, _Layout]:
        """Return plain windows and those shifted by half a window; see `harness.models.swinir.lay_out`."""
        graph, M = self.graph, self.window
        shift, whole = M // 2, graph.whole
        with graph.part("windows"):
            windows = graph.call("Mul", self.rows, self.columns, to="count")
            total = graph.call("Mul", self.image.batch, windows, to="count.all")
            tokens = add_range(graph, graph.call("Mul", total, whole(M * M), to="tokens"), "tokens")
            split = [self.image.batch, self.rows, whole(M), self.columns, whole(M)]
            pixels = graph.call("Concat", *split, to="shape.pixels", axis=0)
            split[2], split[3] = split[3], split[2]
            windowed = graph.call("Concat", *split, to="shape.windows", axis=0)

            def exchange(flat: str, shape: str, to: str) -> str:
                """Turn pixels into windows, or windows into pixels."""
                parts = graph.call("Reshape", flat, shape, to=f"{to}.parts")
                return graph.call("Transpose", parts, to=to, perm=[0, 1, 3, 2, 4])

            def roll(map_BHW: str, by: int, to: str) -> str:
                for axis, side, name in ((1, self.height, "rows"), (2, self.width, "columns")):
                    moved = graph.call("Add", add_range(graph, side, f"{to}.{name}"), whole(by), to=f"{to}.{name}.by")
                    places = graph.call("Mod", moved, side, to=f"{to}.{name}.places")
                    map_BHW = graph.call("Gather", map_BHW, places, to=f"{to}.{name}", axis=axis)
                return map_BHW

            def flatten(tensor: str, to: str) -> str:
                return graph.call("Reshape", tensor, whole(-1), to=to)

            plain_T = flatten(exchange(tokens, pixels, "plain.windows"), "plain")
            place_BHW = graph.call("Reshape", tokens, self.map_shape, to="map")
            shifted_T = flatten(exchange(roll(place_BHW, shift, "map.shifted"), pixels, "shifted.windows"), "shifted")
            positions = exchange(tokens, windowed, "positions.windows")
            back_BHW = graph.call("Reshape", positions, self.map_shape, to="positions")
            back_of_plain = flatten(back_BHW, "plain.back")
            back_of_shifted = flatten(roll(back_BHW, -shift, "positions.shifted"), "shifted.back")
            from_shifted = graph.call("Gather", back_of_shifted, plain_T, to="plain.from_shifted", axis=0)
            from_plain = graph.call("Gather", back_of_plain, shifted_T, to="shifted.from_plain", axis=0)
            self.kind_X = self._find_kinds(windows, total)
            self.masks = graph.constant("masks", self._masks())
        return _Layout(plain_T, back_of_plain, from_shifted), _Layout(shifted_T, back_of_shifted, from_plain)

    def _find_kinds(self, windows: str, total: str) -> str:
        """Return which of the masks is each shifted window's: 1 for the last column, 2 for the last row, 3 for both."""
        graph, one = self.graph, self.graph.whole(1)
        place = graph.call("Mod", add_range(graph, total, "kind"), windows, to="kind.place")
        at_edge = []
        for name, sides, position in (
            ("right", self.columns, graph.call("Mod", place, self.columns, to="kind.column")),
            ("bottom", self.rows, graph.call("Div", place, self.columns, to="kind.row")),
        ):
            last = graph.call("Sub", sides, one, to=f"kind.{name}.last")
            at_edge.append(
                graph.cast(graph.call("Equal", position, last, to=f"kind.is_{name}"), "int64", to=f"kind.{name}")
            )
        right, bottom = at_edge
        return graph.call("Add", right, graph.call("Mul", bottom, graph.whole(2), to="kind.twice"), to="kind")

    def _masks(self) -> Array:
        """Return the masks as 4×1×L×L."""
        masks: Array = mask_kinds(self.window, torch.zeros(()))[0].numpy()
        return masks[:, None]

    # Groups and layers

    def _add_group(self, x_PC: str, layer: int, depth: int, plain: _Layout, shifted: _Layout) -> str:
        graph = self.graph
        y_TC = graph.call("Gather", x_PC, plain.order_T, to="plain", axis=0)
        layout = plain
        for index in range(depth):
            if index:
                layout = shifted if index % 2 else plain
            with graph.part(f"blocks.{index}"):
                if index:
                    y_TC = graph.call("Gather", y_TC, layout.from_other_T, to="moved", axis=0)
                y_TC = self._add_layer(y_TC, layer + index, is_shifted=layout is shifted)
        y_PC = graph.call("Gather", y_TC, layout.back_P, to="pixels", axis=0)
        convolved = self._convolve(self._to_map(y_PC, "conv.input"), "conv", pad=1)
        return graph.call("Add", self._to_pixels(convolved, "conv.output"), x_PC, to="sum")

    def _add_layer(self, x_TC: str, layer: int, *, is_shifted: bool) -> str:
        graph = self.graph
        normal_TC = self._norm(x_TC, "norm1")
        with graph.part("attention"):
            attended = self._attend(normal_TC, layer, is_shifted=is_shifted)
        x_TC = graph.call("Add", x_TC, attended, to="attended")
        hidden = graph.call("Gelu", self._linear(self._norm(x_TC, "norm2"), "mlp_hidden"), to="mlp_hidden.active")
        return graph.call("Add", x_TC, self._linear(hidden, "mlp_out"), to="sum")

    def _attend(self, x_TC: str, layer: int, *, is_shifted: bool) -> str:
        graph, A, L = self.graph, self.config.num_heads, self.window**2
        widths = self.config.layer_widths(layer)
        d, e = widths.query, widths.value
        weight, bias = self._of("qkv.weight").copy(), self._of("qkv.bias").copy()
        weight[: A * d] *= d**-0.5  # of the queries
        bias[: A * d] *= d**-0.5
        qkv = add_linear(graph, x_TC, "qkv", weight, bias)
        parts = graph.call_many("Split", qkv, graph.whole(A * d, A * d, A * e), to=("q", "k", "v"), axis=1)
        heads = []
        for part, name, channels, perm in zip(
            parts, ("query", "key", "value"), (d, d, e), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True
        ):
            split = graph.call("Reshape", part, graph.whole(-1, L, A, channels), to=f"{name}.heads")
            heads.append(graph.call("Transpose", split, to=name, perm=perm))
        query_XALd, key_XAdL, value_XALe = heads
        scores = graph.call("MatMul", query_XALd, key_XAdL, to="scores.free")
        scores = graph.call("Add", scores, self._add_bias(is_shifted=is_shifted), to="scores")
        weights = graph.call("Softmax", scores, to="weights", axis=-1)
        attended_XALe = graph.call("MatMul", weights, value_XALe, to="attended.heads")
        attended_XLAe = graph.call("Transpose", attended_XALe, to="attended.tokens", perm=[0, 2, 1, 3])
        attended = graph.call("Reshape", attended_XLAe, graph.whole(-1, A * e), to="attended")
        return self._linear(attended, "proj")

    def _add_bias(self, *, is_shifted: bool) -> str:
        """Return what is added to the scores: position bias (A×L×L), in shifted windows with each one's mask."""
        graph = self.graph
        index_LL = graph.constant("position_index", relative_position_index(self.window).numpy())
        table = graph.weight("position_bias", self._of("position_bias"))
        bias_LLA = graph.call("Gather", table, index_LL, to="bias.positions", axis=0)
        bias_ALL = graph.call("Transpose", bias_LLA, to="bias", perm=[2, 0, 1])
        if not is_shifted:
            return bias_ALL
        bias_KALL = graph.call("Add", bias_ALL, self.masks, to="bias.kinds")
        return graph.call("Gather", bias_KALL, self.kind_X, to="bias.windows", axis=0)

    # Layers by their names under the part at hand

    def _of(self, name: str) -> Array:
        return self.state[self.graph.path(name)]

    def _linear(self, tensor_TC: str, name: str) -> str:
        return add_linear(self.graph, tensor_TC, name, self._of(f"{name}.weight"), self._of(f"{name}.bias"))

    def _norm(self, tensor: str, name: str) -> str:
        return add_norm(self.graph, tensor, name, self._of(f"{name}.weight"), self._of(f"{name}.bias"), _EPS)

    def _convolve(self, tensor: str, name: str, *, pad: int) -> str:
        return add_convolution(self.graph, tensor, name, self._of(f"{name}.weight"), self._of(f"{name}.bias"), pad=pad)

    def _to_map(self, x_PC: str, to: str) -> str:
        """Return B×C×H×W."""
        map_BHWC = self.graph.call("Reshape", x_PC, self.shape_BHWC, to=f"{to}.map")
        return to_channels_first(self.graph, map_BHWC, to)

    def _to_pixels(self, map_BCHW: str, to: str) -> str:
        """Return P×C."""
        map_BHWC = to_channels_last(self.graph, map_BCHW, f"{to}.map")
        return self.graph.call("Reshape", map_BHWC, self.graph.whole(-1, self.channels), to=to)

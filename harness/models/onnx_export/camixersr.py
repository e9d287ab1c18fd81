"""The ONNX graph of CAMixerSR: windows are picked, gathered, attended to and scattered back in the graph itself.

It computes what `CAMixerSR` does at inference, under one routing. Where a block attends nowhere there is no attention
in it, where it attends everywhere nothing is ranked. Three things are put together beforehand, which changes rounding
alone: "hard minus simple" of the logits is one output, the trunk's bias is the weight of a condition that is 1, and
queries and keys, which occur as a product only, have one matrix where that is no larger (a key's bias adds the same to
all scores of a query and goes).

Shape suffixes: B batch, C channels, H W the padded size, M window side, L = M² tokens of a window, N windows of an
image, K hard windows of each image (or, where K differs, of all: B is then 1), X = B·K·L their pixels, E predictor
features, V channels of values, S blocks.
"""

import math
from collections.abc import Mapping

import numpy as np

from harness.core.configs import CAMixerSRConfig
from harness.models.camixersr import Predictor
from harness.models.onnx_export.graph import DOMAIN, Array, Graph
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
from harness.models.routing import LEAST_DETAIL, LUMA, count_fixed, count_windows, knows_counts

_EPS = 1e-6
_BY_PROBABILITY = "SelectByProbability"
_SLOPE = Predictor.slope
_INSIDE = 1 - 2.0**-23  # what takes the last position to the next lower float, so that it has a neighbour to its right

# Of the five rows that make up x + X̃ at a pixel, from the six numbers that go with it (see `_add_warped`): their places
# are `six @ _SAME + _BESIDE`, (image, row, column) after each other; with how far the position lies from its upper left
# corner, `inside @ _SLOPES + _STARTS` are their weights by row, then by column.
_CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)  # row, column
_OWN = np.eye(3)
_SAME = np.block([[np.tile(_OWN, 4), np.zeros((3, 3))], [np.zeros((3, 12)), _OWN]]).astype(np.float32)
_BESIDE = np.pad(_CORNERS, ((0, 1), (1, 0))).ravel()
_SLOPES = np.zeros((6, 10), dtype=np.float32)
_SLOPES[1, 0:4], _SLOPES[2, 5:9] = 2 * _CORNERS.T - 1
_STARTS = np.concatenate([[*(1 - line), 1] for line in _CORNERS.T]).astype(np.float32)


def add_camixersr(graph: Graph, image: Image, config: CAMixerSRConfig, state: Mapping[str, Array], to: str) -> str:
    """Add a CAMixerSR from the image to `to`."""
    return _CAMixerSRGraph(graph, image, config, state).add(to)


def _select_by_probability(graph: Graph) -> str:
    """Return which windows are hard under the policy `probability`: the K = floor(aΣp + b + ½) highest of an image.

    `score` (B×1×R×Q): logit differences, whose sigmoids are p. All images' windows come after each other.
    """
    column, flat = graph.whole(0, -1, 1), graph.whole(-1)
    score_BN1 = graph.call("Reshape", "score", column, to="score.flat")
    hard_BN1 = graph.call("Sigmoid", graph.cast(score_BN1, "double", to="score.double"), to="probability")
    total = graph.call("ReduceSum", hard_BN1, graph.whole(1), to="probability.sum")
    weight = graph.call("Add", graph.call("Mul", total, "slope", to="weight.slope"), "offset", to="weight")
    rounded = graph.call("Add", weight, graph.constant("half", np.array([0.5])), to="weight.rounded")
    count_B11 = graph.cast(rounded, "int64", to="count")
    _, order_BN1 = graph.call_many("TopK", score_BN1, "windows", to=("order.score", "order"), axis=1)
    ranks_1N1 = graph.call("Reshape", add_range(graph, "windows", "rank"), graph.whole(1, -1, 1), to="rank")
    first_BN1 = graph.call("Less", ranks_1N1, count_B11, to="first")
    mask_BN1 = graph.call("ScatterElements", first_BN1, order_BN1, first_BN1, to="mask", axis=1)
    return graph.call("Reshape", mask_BN1, flat, to="hard")


class _CAMixerSRGraph:
    def __init__(self, graph: Graph, image: Image, config: CAMixerSRConfig, state: Mapping[str, Array]):
        self.graph, self.image, self.config, self.state = graph, image, config, state
        self.window = config.window
        self.num_windows: int | None = None  # of an image, where that is known
        if image.size is not None:
            self.num_windows = math.prod(-(-side // self.window) for side in image.size)
        self._counts: dict[float, tuple[str, str]] = {}
        self._probability: tuple[str, str] | None = None
        self._flat_places: str | None = None
        self._shape: str | None = None

    def add(self, to: str) -> str:
        graph, config = self.graph, self.config
        padded = self._lay_out()
        shallow_BHWC = to_channels_last(graph, self._convolve(padded, "head", pad=1), "shallow")
        reads = [config.reads_predictor(block) for block in range(config.num_blocks)]
        condition = self._add_conditions(shallow_BHWC) if any(reads) else ""
        if (
            any(self._known_count(block) is None for block in range(config.num_blocks))
            and config.routing.policy == "detail"
        ):
            self._select_by_detail()
        x_BHWC, block = shallow_BHWC, 0
        for group, count in enumerate(config.groups):
            start_BHWC = x_BHWC
            for index in range(count):
                with graph.part(f"groups.{group}.blocks.{index}"):
                    x_BHWC = self._add_block(x_BHWC, condition, block)
                block += 1
            with graph.part(f"groups.{group}"):
                x_BHWC = self._add_with_residual(x_BHWC, "tail", start_BHWC)
        deep = self._convolve(to_channels_first(graph, x_BHWC, "body_tail.input"), "body_tail", pad=1)
        shallow = "head"
        tail = self._convolve(graph.call("Add", deep, shallow, to="body_tail.sum"), "tail", pad=1)
        restored = graph.call("DepthToSpace", tail, to="shuffle", blocksize=config.scale, mode="CRD")
        is_padded = self.image.size is None or any(side % self.window for side in self.image.size)
        if is_padded:
            restored = crop(graph, restored, self.image, config.scale, "crop")
        if config.image_residual:
            restored = graph.call("Add", restored, add_bicubic(graph, self.image, config.scale), to="residual")
        return graph.rename(restored, to)

    # Sizes, windows and conditions: once in a graph

    def _lay_out(self) -> str:
        """Pad the image to whole windows, and say which pixels each window holds; return the padded image."""
        graph, image, M = self.graph, self.image, self.window
        self.rows = round_up(graph, image.height, M, "height")
        self.columns = round_up(graph, image.width, M, "width")
        with graph.part("size"):
            self.height = graph.call("Mul", self.rows, graph.whole(M), to="padded.height")
            self.width = graph.call("Mul", self.columns, graph.whole(M), to="padded.width")
            self.windows = graph.call("Mul", self.rows, self.columns, to="windows")
        padded = image.name
        if image.size is None or image.size[0] % M:
            padded = pad_reflecting(graph, padded, image.height, self.height, 2, "rows")
        if image.size is None or image.size[1] % M:
            padded = pad_reflecting(graph, padded, image.width, self.width, 3, "columns")
        with graph.part("windows"):
            pixels = graph.call("Mul", self.height, self.width, to="pixels")
            all_pixels = graph.call("Mul", image.batch, pixels, to="pixels.all")
            shape = graph.call(
                "Concat", image.batch, self.rows, graph.whole(M), self.columns, graph.whole(M), to="shape", axis=0
            )
            flat = graph.call("Reshape", add_range(graph, all_pixels, "pixels"), shape, to="pixels.map")
            flat = graph.call("Transpose", flat, to="pixels.windows", perm=[0, 1, 3, 2, 4])
            flat = graph.call(
                "Reshape",
                flat,
                graph.call("Concat", image.batch, self.windows, graph.whole(M * M), graph.whole(1), to="shape", axis=0),
                to="pixels.of",
            )
            one = graph.whole(1)
            strides = graph.call("Concat", pixels, self.width, one, to="strides", axis=0)
            self.sides = graph.call("Concat", image.batch, self.height, self.width, to="sides", axis=0)
            quotient = graph.call("Div", flat, strides, to="places.unbounded")
            self.places_BNL3 = graph.call("Mod", quotient, self.sides, to="places")
            limits = graph.call("Concat", self.sides, self.sides, to="limits.both", axis=0)
            limits = graph.call("Sub", limits, graph.whole(0, 1, 1, 0, 0, 0), to="limits.whole")
            limits = graph.cast(limits, "float", to="limits.float")
            inside = graph.constant("inside", np.array([1, _INSIDE, _INSIDE, 1, 1, 1], dtype=np.float32))
            self.limits = graph.call("Mul", limits, inside, to="limits")
        return padded

    def _add_conditions(self, shallow_BHWC: str) -> str:
        """Return what all trunks read beside the values: global and window condition, and 1 for the bias."""
        graph, config, M = self.graph, self.config, self.window
        with graph.part("condition"):
            line = np.linspace(-1, 1, M, dtype=np.float32)
            tile = np.ones((1, M, M, 1), dtype=np.float32)
            if config.window_condition:
                tile = np.concatenate((*np.broadcast_arrays(line[:, None, None], line[:, None]), tile[0]), axis=-1)[
                    None
                ]
            repeats = graph.call(
                "Concat", self.image.batch, self.rows, self.columns, graph.whole(1), to="repeats", axis=0
            )
            parts = [graph.call("Tile", graph.constant("coordinates", tile), repeats, to="coordinates")]
        if config.global_condition:
            with graph.part("global_predictor"):
                map_BCHW = "head"
                for layer, pad in (("0", 0), ("2", 1)):
                    map_BCHW = self._convolve(map_BCHW, layer, pad=pad)
                    map_BCHW = graph.call("LeakyRelu", map_BCHW, to=f"{int(layer) + 1}", alpha=_SLOPE)
                parts.insert(0, to_channels_last(graph, map_BCHW, "output"))
        return parts[0] if len(parts) == 1 else graph.call("Concat", *parts, to="condition", axis=-1)

    # A block

    def _add_block(self, x_BHWC: str, condition: str, block: int) -> str:
        graph = self.graph
        with graph.part("mixer"):
            if self.config.reads_predictor(block):
                value_BHWV, features_BHWE = self._add_value_and_trunk(x_BHWC, condition)
            else:
                value_BHWV, features_BHWE = self._linear(x_BHWC, "value"), ""
            features_BEHW = ""
            if features_BHWE:
                features_BEHW = to_channels_first(graph, features_BHWE, "predictor.features.map")
            mixed_BHWV = self._mix(x_BHWC, value_BHWV, features_BHWE, features_BEHW, block)
            convolved = self._convolve_mixed(mixed_BHWV, features_BEHW)
            mixed = self._add_with_residual(convolved, "out", x_BHWC)
        x_BHWC = self._norm(mixed, "norm1")
        with graph.part("ffn"):
            transformed = self._add_ffn(x_BHWC)
        return self._norm(graph.call("Add", transformed, x_BHWC, to="ffn.sum"), "norm2")

    def _add_value_and_trunk(self, x_BHWC: str, condition_BHWY: str) -> tuple[str, str]:
        """Return values and the predictor's features, whose trunk reads values: both by one product."""
        graph = self.graph
        value, bias = (self._of(f"value.{kind}").astype(np.float64) for kind in ("weight", "bias"))
        trunk, trunk_bias = (self._of(f"predictor.trunk.{kind}").astype(np.float64) for kind in ("weight", "bias"))
        V, E = len(value), len(trunk)
        of_value, of_condition = trunk[:, :V], trunk[:, V:]
        nothing = np.zeros((V, of_condition.shape[1]))
        rows = np.concatenate(
            (
                np.concatenate((value, nothing, bias[:, None]), axis=1),
                np.concatenate((of_value @ value, of_condition, (trunk_bias + of_value @ bias)[:, None]), axis=1),
            )
        )
        conditions = graph.call("Concat", x_BHWC, condition_BHWY, to="conditions", axis=-1)
        both = add_linear(graph, conditions, "value_trunk", rows)
        value_BHWV, trunk_BHWE = graph.call_many("Split", both, graph.whole(V, E), to=("value", "trunk"), axis=-1)
        with graph.part("predictor"):
            trunk_BHWE = self._norm(trunk_BHWE, "trunk_norm")
            return value_BHWV, graph.call("LeakyRelu", trunk_BHWE, to="features", alpha=_SLOPE)

    def _convolve_mixed(self, mixed_BHWV: str, features_BEHW: str) -> str:
        """Return GELU of both depthwise convolutions, times the channel attention, and what they were made of."""
        graph = self.graph
        mixed_BVHW = to_channels_first(graph, mixed_BHWV, "mixed.map")
        V = len(self._of("value.bias"))
        convolved = self._convolve(mixed_BVHW, "depthwise", pad=1, group=V)
        convolved = self._convolve(convolved, "depthwise_dilated", pad=2, dilation=2, group=V)
        convolved = graph.call("Gelu", convolved, to="gelu")
        if self.config.channel_attention:
            with graph.part("predictor"):
                mean = graph.call("GlobalAveragePool", features_BEHW, to="features.mean")
                weight = self._of("channel_attention.weight")[:, :, None, None]
                attention = add_convolution(
                    graph, mean, "channel_attention", weight, self._of("channel_attention.bias")
                )
                attention = graph.call("Sigmoid", attention, to="channels")
            convolved = graph.call("Mul", convolved, attention, to="convolved")
        convolved = graph.call("Add", convolved, mixed_BVHW, to="convolved.sum")
        return to_channels_last(graph, convolved, "out.input")

    def _add_ffn(self, x_BHWC: str) -> str:
        graph = self.graph
        expanded = to_channels_first(graph, self._linear(x_BHWC, "expand"), "expand.map")
        convolved = self._convolve(expanded, "depthwise", pad=1, group=len(self._of("expand.weight")))
        left, right = graph.call_many("Split", convolved, to=("left", "right"), axis=1, num_outputs=2)
        gated = graph.call("Mul", graph.call("Gelu", left, to="gelu"), right, to="gated.map")
        return self._linear(to_channels_last(graph, gated, "gated"), "project")

    # Routing: which windows get attention

    def _mix(self, x_BHWC: str, value_BHWV: str, features_BHWE: str, features_BEHW: str, block: int) -> str:
        """Return the attention of the hard windows and the spatial attention of the others."""
        graph, routing = self.graph, self.config.routing
        count = self._known_count(block)
        simple = value_BHWV
        if self.config.spatial_attention and count != "all":
            with graph.part("predictor"):
                spatial = self._convolve(features_BEHW, "spatial_attention", pad=1)
                spatial = graph.call("Sigmoid", spatial, to="space.map")
                spatial = to_channels_last(graph, spatial, "space")
            simple = graph.call("Mul", value_BHWV, spatial, to="simple")
        if count == "none":
            return simple
        if count == "all":
            places_BKL3 = self.places_BNL3
        elif routing.policy == "detail":
            places_BKL3 = self._take_places(self._mask_by_detail(block))
        else:
            with graph.part("predictor"):
                score_B1RQ = self._add_logits(features_BEHW)
                places_BKL3 = self._pick_windows(score_B1RQ, block)
        attended = self._attend(x_BHWC, value_BHWV, features_BHWE, places_BKL3)
        return graph.call("ScatterND", simple, places_BKL3, attended, to="mixed")

    def _known_count(self, block: int) -> str | None:
        """Return "none" or "all" where that many windows get attention whatever the image, and whatever its size."""
        routing = self.config.routing
        if routing.never_attends(block):
            return "none"
        if routing.policy == "detail":
            alive = sum(weight > 0 for weight in routing.block_weights or ())
            share = routing.gamma * self.config.num_blocks
            return "none" if share == 0 else "all" if share >= alive else None
        if not knows_counts(routing):
            return None
        if self.num_windows is not None:
            count = count_windows(routing, block, self.num_windows)
            return "none" if count == 0 else "all" if count == self.num_windows else None
        gamma = self._gamma(block)
        return "none" if gamma == 0 else "all" if gamma == 1 else None

    def _gamma(self, block: int) -> float:
        routing = self.config.routing
        return routing.gamma if routing.schedule is None else routing.schedule[block]

    def _add_logits(self, features_BEHW: str) -> str:
        """Return what windows are ranked by, B×1×R×Q: the logit difference "hard minus simple"."""
        graph, M = self.graph, self.window
        mean = graph.call("ReduceMean", features_BEHW, graph.whole(1), to="routing.mean")
        hidden_weight = self._of("routing_hidden.weight").reshape(M, 1, M, M)
        hidden = add_convolution(
            graph, mean, "routing_hidden", hidden_weight, self._of("routing_hidden.bias"), stride=M
        )
        hidden = graph.call("LeakyRelu", hidden, to="routing_hidden.active", alpha=_SLOPE)
        weight, bias = self._of("routing_out.weight"), self._of("routing_out.bias")
        return add_convolution(
            graph, hidden, "routing_out", (weight[:1] - weight[1:])[:, :, None, None], bias[:1] - bias[1:]
        )

    def _pick_windows(self, score_B1RQ: str, block: int) -> str:
        """Return the pixels of the hard windows (B×K×L×3, or 1×K×L×3 where images have different K)."""
        graph, policy = self.graph, self.config.routing.policy
        if policy == "threshold":
            score = graph.call("Reshape", score_B1RQ, graph.whole(-1), to="score")
            return self._take_places(graph.call("Relu", score, to="hard"))
        if policy == "probability":
            mask = graph.call(_BY_PROBABILITY, score_B1RQ, self.windows, *self._weight(), to="hard", domain=DOMAIN)
            return self._take_places(mask)
        score_BN1 = graph.call("Reshape", score_B1RQ, graph.whole(0, -1, 1), to="score")
        count, count_or_1 = self._count_fixed(self._gamma(block))
        _, hard_BK1 = graph.call_many("TopK", score_BN1, count_or_1, to=("hard.score", "hard"), axis=1)
        if count != count_or_1:
            hard_BK1 = graph.call("Slice", hard_BK1, graph.whole(0), count, graph.whole(1), to="hard.first")
        return graph.call("GatherND", self.places_BNL3, hard_BK1, to="places", batch_dims=1)

    def _weight(self) -> tuple[str, str]:
        """Return a and b of K = floor(aΣp + bN + ½), b times N."""
        graph, gamma = self.graph, self.config.routing.gamma
        if self._probability is None:
            slope, offset = (2 * gamma, 0.0) if gamma <= 0.5 else (2 - 2 * gamma, 2 * gamma - 1)
            with graph.root(), graph.part("windows"):
                double = graph.cast(self.windows, "double", to="count.double")
                share = graph.call("Mul", double, graph.constant("offset", np.array([offset])), to="count.offset")
            self._probability = graph.constant("slope", np.array([slope])), share
            graph.define(_BY_PROBABILITY, ("score", "windows", "slope", "offset"), _select_by_probability)
        return self._probability

    def _take_places(self, mask: str) -> str:
        """Return the pixels (1×K×L×3) of the windows at which a map of one dimension is not 0."""
        graph = self.graph
        windows_1K = graph.call("NonZero", mask, to="hard.windows")
        return graph.call("Gather", self._all_places(), windows_1K, to="places", axis=0)

    def _all_places(self) -> str:
        if self._flat_places is None:
            shape = self.graph.whole(-1, self.window**2, 3)
            with self.graph.root():
                self._flat_places = self.graph.call("Reshape", self.places_BNL3, shape, to="windows.places.all")
        return self._flat_places

    def _count_fixed(self, gamma: float) -> tuple[str, str]:
        """Return K = floor(γN + 1e-9), and the greater of K and 1: not every runtime looks for the highest of none."""
        graph = self.graph
        if gamma not in self._counts:
            if self.num_windows is not None:
                count = graph.whole(count_fixed(gamma, self.num_windows))  # which is not 0, or nothing is ranked
                self._counts[gamma] = count, count
            else:
                with graph.root(), graph.part("windows"):
                    count = self._floor(self.windows, gamma, "count")
                    self._counts[gamma] = count, graph.call("Max", count, graph.whole(1), to="count.positive")
        return self._counts[gamma]

    def _floor(self, total: str, gamma: float, to: str) -> str:
        """Return floor(γ·total + 1e-9)."""
        graph = self.graph
        double = graph.cast(total, "double", to=f"{to}.double")
        share = graph.call("Mul", double, graph.constant("gamma", np.array([gamma])), to=f"{to}.share")
        share = graph.call("Add", share, graph.constant("slack", np.array([1e-9])), to=f"{to}.slack")
        return graph.cast(share, "int64", to=to)

    def _select_by_detail(self) -> None:
        """Find the hard windows of all blocks under the policy `detail`, by the input alone; see `select_by_detail`."""
        graph, weights = self.graph, self.config.routing.block_weights
        assert weights is not None
        self.alive = [block for block, weight in enumerate(weights) if weight > 0]
        with graph.part("detail"):
            detail_B1N = self._measure_detail()
            least = graph.constant("least", np.array(LEAST_DETAIL))
            score_B1N = graph.call("Log", graph.call("Max", detail_B1N, least, to="least"), to="score")
            logs = np.array([math.log(weights[block]) for block in self.alive]).reshape(1, -1, 1)
            score_BSN = graph.call("Add", score_B1N, graph.constant("weights", logs), to="scores")
            score_BX = graph.call("Reshape", score_BSN, graph.whole(0, -1), to="scores.flat")
            everything = graph.call("Mul", self.windows, graph.whole(len(weights)), to="pairs")
            possible = graph.call("Mul", self.windows, graph.whole(len(self.alive)), to="pairs.alive")
            count = self._floor(everything, self.config.routing.gamma, "count")
            count = graph.call("Min", count, possible, to="count.possible")
            order = graph.call_many("TopK", score_BX, possible, to=("hard.score", "hard"), axis=1)[1]
            ranks_X = add_range(graph, possible, "rank")
            first_X = graph.call("Less", ranks_X, count, to="first")
            shape = graph.call("Concat", self.image.batch, possible, to="shape", axis=0)
            first_BX = graph.call("Expand", first_X, shape, to="first.all")
            mask_BX = graph.call("ScatterElements", first_BX, order, first_BX, to="mask.flat", axis=1)
            shape = graph.call("Concat", graph.whole(0, len(self.alive)), self.windows, to="mask.shape", axis=0)
            mask_BSN = graph.call("Reshape", mask_BX, shape, to="mask.images")
            mask_SBN = graph.call("Transpose", mask_BSN, to="mask.blocks", perm=[1, 0, 2])
            self.detail_mask = graph.call("Reshape", mask_SBN, graph.whole(len(self.alive), -1), to="mask")

    def _mask_by_detail(self, block: int) -> str:
        index = self.graph.constant("block", np.array(self.alive.index(block)))
        return self.graph.call("Gather", self.detail_mask, index, to="hard", axis=0)

    def _measure_detail(self) -> str:
        """Return the detail of each window (B×1×N, double) as `measure_detail` does."""
        graph, image, M = self.graph, self.image, self.window
        double_BCHW = graph.cast(image.name, "double", to="image")
        luma = graph.constant("luma", np.array(LUMA).reshape(1, 3, 1, 1))
        luma_BCHW = graph.call("Mul", double_BCHW, luma, to="luma.parts")
        luma_B1HW = graph.call("ReduceSum", luma_BCHW, graph.whole(1), to="luma")
        mean = graph.call("Pad", luma_B1HW, graph.whole(0, 0, 1, 1, 0, 0, 1, 1), to="luma.bordered", mode="edge")
        for axis, side, name in ((3, image.width, "columns"), (2, image.height, "rows")):
            parts = []
            for shift in range(3):
                end = graph.call("Add", side, graph.whole(shift), to=f"{name}.end")
                parts.append(
                    graph.call("Slice", mean, graph.whole(shift), end, graph.whole(axis), to=f"{name}.{shift}")
                )
            mean = graph.call("Sum", *parts, to=name)
        mean = graph.call("Div", mean, graph.constant("nine", np.array(9.0)), to="mean")
        apart = graph.call("Sub", luma_B1HW, mean, to="apart")
        square = graph.call("Mul", apart, apart, to="square")
        more = [
            graph.call("Sub", padded, side, to="padding")
            for padded, side in ((self.height, image.height), (self.width, image.width))
        ]
        pads = graph.call("Concat", graph.whole(0, 0, 0, 0, 0, 0), *more, to="pads", axis=0)
        padded = graph.call("Pad", square, pads, to="square.padded")
        shape = graph.call(
            "Concat", image.batch, self.rows, graph.whole(M), self.columns, graph.whole(M), to="windows.shape", axis=0
        )
        windows = graph.call("Reshape", padded, shape, to="windows")
        sums = graph.call("ReduceSum", windows, graph.whole(2, 4), to="sums", keepdims=0)
        return graph.call("Reshape", sums, graph.whole(0, 1, -1), to="detail")

    # Attention in the hard windows

    def _attend(self, x_BHWC: str, value_BHWV: str, features_BHWE: str, places_BKL3: str) -> str:
        """Return the attention of some windows (B×K×L×V)."""
        graph = self.graph
        x_BKLC = graph.call("GatherND", x_BHWC, places_BKL3, to="windows.x")
        keyed_BKLC = x_BKLC
        if self.config.offsets:
            with graph.part("predictor"):
                keyed_BKLC = self._add_warped(x_BHWC, features_BHWE, places_BKL3)
        value_BKLV = graph.call("GatherND", value_BHWV, places_BKL3, to="windows.value")
        query, key = self._project(x_BKLC, keyed_BKLC)
        key = graph.call("Transpose", key, to="key.transposed", perm=[0, 1, 3, 2])
        scores = graph.call("MatMul", query, key, to="scores")
        weights = graph.call("Softmax", scores, to="attention", axis=-1)
        return graph.call("MatMul", weights, value_BKLV, to="attended")

    def _project(self, x_BKLC: str, keyed_BKLC: str) -> tuple[str, str]:
        """Return queries and keys: their product is that of the network's, apart from what softmax takes away."""
        graph, C = self.graph, self.config.channels
        weight, bias, key = self._of("query.weight"), self._of("query.bias"), self._of("key.weight")
        scale = C**-0.5 if self.config.scaled_attention else 1.0
        if len(weight) < C:
            query = add_linear(graph, x_BKLC, "query", scale * weight, scale * bias)
            return query, add_linear(graph, keyed_BKLC, "key", key)
        double = np.float64
        together = scale * (key.T.astype(double) @ weight.astype(double))
        return add_linear(
            graph, x_BKLC, "query_key", together, scale * (key.T.astype(double) @ bias.astype(double))
        ), keyed_BKLC

    def _add_warped(self, x_BHWC: str, features_BHWE: str, places_BKL3: str) -> str:
        """Return x + X̃ in some windows (B×K×L×C), X̃ being x read at displaced pixels: bilinear, the border repeated.

        Six numbers go with a pixel: image, row and column that it is displaced to, and its own. Five rows of features
        are added up: the four corners around the former, weighted by how near they are, and the latter.
        """
        graph = self.graph
        places_X3 = graph.call("Reshape", places_BKL3, graph.whole(-1, 3), to="pixels")
        features_XE = graph.call("GatherND", features_BHWE, places_X3, to="pixels.features")
        hidden = self._gemm(
            features_XE, "offsets_hidden", self._of("offsets_hidden.weight"), self._of("offsets_hidden.bias")
        )
        hidden = graph.call("LeakyRelu", hidden, to="offsets_hidden.active", alpha=_SLOPE)
        weight, bias = self._of("offsets_out.weight"), self._of("offsets_out.bias")
        to_place = np.zeros((6, 2), dtype=np.float32)
        to_place[2, 0] = to_place[1, 1] = 1  # x first
        offsets_X6 = graph.call(
            "Tanh", self._gemm(hidden, "offsets_out", to_place @ weight, to_place @ bias), to="offsets"
        )
        own_X3 = graph.cast(places_X3, "float", to="own")
        twice = graph.constant("twice", np.tile(np.eye(3, dtype=np.float32), 2))
        position = graph.call("Gemm", own_X3, twice, offsets_X6, to="position.free", beta=Predictor.max_offset)
        position = graph.call("Relu", position, to="position.positive")
        position_X6 = graph.call("Min", position, self.limits, to="position")
        corner_X6 = graph.call("Floor", position_X6, to="corner")
        inside_X6 = graph.call("Sub", position_X6, corner_X6, to="inside")
        corners = graph.call(
            "Gemm", corner_X6, graph.constant("same", _SAME), graph.constant("beside", _BESIDE), to="corners.float"
        )
        corners = graph.cast(corners, "int64", to="corners.whole")
        corners_X53 = graph.call("Reshape", corners, graph.whole(-1, 5, 3), to="corners")
        corners_X5C = graph.call("GatherND", x_BHWC, corners_X53, to="corners.x")
        slopes, starts = graph.constant("slopes", _SLOPES), graph.constant("starts", _STARTS)
        weights = graph.call("Gemm", inside_X6, slopes, starts, to="weights.lines")
        weights_X25 = graph.call("Reshape", weights, graph.whole(-1, 2, 5), to="weights.both")
        weights_X15 = graph.call("ReduceProd", weights_X25, graph.whole(1), to="weights", keepdims=1)
        sum_X1C = graph.call("MatMul", weights_X15, corners_X5C, to="keyed.pixels")
        return graph.call("Reshape", sum_X1C, self._window_shape(places_BKL3), to="keyed")

    def _window_shape(self, places_BKL3: str) -> str:
        """Return the shape of features in windows, B×K×L×C, where these are their pixels."""
        end = self.graph.whole(-1, self.window**2, self.config.channels)
        if places_BKL3 != self.places_BNL3 and not knows_counts(self.config.routing):
            return self.graph.whole(1, -1, self.window**2, self.config.channels)
        if self._shape is None:
            with self.graph.root():
                self._shape = self.graph.call("Concat", self.image.batch, end, to="windows.shape", axis=0)
        return self._shape

    # Layers by their names under the part at hand

    def _of(self, name: str) -> Array:
        return self.state[self.graph.path(name)]

    def _linear(self, tensor: str, name: str) -> str:
        bias = self.state.get(self.graph.path(f"{name}.bias"))
        return add_linear(self.graph, tensor, name, self._of(f"{name}.weight"), bias)

    def _gemm(self, tensor_XY: str, name: str, weight: Array, bias: Array) -> str:
        stored = self.graph.weight(f"{name}.weight", weight.T), self.graph.weight(f"{name}.bias", bias)
        return self.graph.call("Gemm", tensor_XY, *stored, to=name)

    def _add_with_residual(self, tensor: str, name: str, residual: str) -> str:
        """Return a linear layer plus what came before, by one sum."""
        graph = self.graph
        product = add_linear(graph, tensor, name, self._of(f"{name}.weight"))
        bias = graph.weight(f"{name}.bias", self._of(f"{name}.bias"))
        return graph.call("Sum", product, bias, residual, to=f"{name}.sum")

    def _norm(self, tensor: str, name: str) -> str:
        return add_norm(self.graph, tensor, name, self._of(f"{name}.weight"), self._of(f"{name}.bias"), _EPS)

    def _convolve(self, tensor: str, name: str, *, pad: int = 0, group: int = 1, dilation: int = 1) -> str:
        weight, bias = self._of(f"{name}.weight"), self.state.get(self.graph.path(f"{name}.bias"))
        return add_convolution(self.graph, tensor, name, weight, bias, pad=pad, group=group, dilation=dilation)

"""CAMixerSR's inference on a CPU, strip by strip: the same network and the same result, close to the machine's limit.

On a CPU the plain network waits for memory: every elementwise step reads and writes whole feature maps. Here a block
runs over strips of a few rows that stay in the cache, and what attention leaves alone costs nothing:

- q and k exist for hard windows only, and as one product: q·k = (W_kᵀ(W_q x + b_q))·(x + X̃) plus terms that are
  constant along the keys, which softmax drops. The warp and its sum are one weighted gather of five rows a pixel.
- The value projection is linear and softmax sums to one, so it comes after the mixing: attention works on x itself,
  simple windows are x·A_s, and one product with W_v (and b_v times the weight of each pixel) serves both. The
  predictor's first layer reads x through W_t·W_v.
- Depthwise convolutions need rows above and below: a strip ends three rows (mixer) and one more (FFN) before the rows
  that are there, and the next strip goes on from there. x is replaced in place, once no window can warp into it.

All of this is derived from the network's parameters in each pass; nothing is stored. `CAMixerSR.restore` chooses this
path where `suits` allows it; the plain one serves training, other devices, tracing and counting.

Shape suffixes: those of camixersr.py, and P = B·H·W pixels, G segments of a row that is M pixels wide (P = G·M).
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.errors import TrialFailedError
from harness.models.routing import RoutingPlan, select_windows
from harness.models.warping import rows_of_warped_sum, segments_of_windows, sum_rows

if TYPE_CHECKING:
    from harness.models.camixersr import Block, CAMixerSR, Group, Predictor

_STRIP_BYTES = 1_200_000  # of one feature map, for each thread: what two or three of fit into a core's cache
_ATTENDED_AT_ONCE = 8  # windows whose queries, keys and scores stay in the cache
_FEWEST_ROWS = 8  # of a strip
_MIXER_HALO = 3  # rows that the two depthwise convolutions of the mixer see above and below
_WARP_REACH = 9  # rows around a window that its keys may read: offsets of up to 8 pixels, and the next row
_PACKED_FROM = 4  # strips of an image from which packing the weights of convolutions pays


def suits(network: "CAMixerSR", input_BCHW: Tensor) -> bool:
    """Say whether inference may run strip by strip: on a CPU, without gradients, unseen by tracers and counters."""
    return (
        input_BCHW.device.type == "cpu"
        and not network.training
        and not network.is_literal
        and not torch.is_grad_enabled()
        and working_dtype(input_BCHW) in (torch.float32, torch.bfloat16)
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.compiler.is_compiling()
    )


def working_dtype(input_BCHW: Tensor) -> torch.dtype:
    """Return the dtype that features are kept in: the input's, or that of autocast."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return input_BCHW.dtype


class _Size(NamedTuple):
    """Sides of what is worked on: images, rows, columns, channels, window, rows of a strip, images of a strip."""

    B: int
    H: int
    W: int
    C: int
    M: int
    strip: int
    images: int


class _Attention(NamedTuple):
    """The hard windows of a block, and what their keys are made of.

    `segments_KM`: the row segments of each window. `starts`: how many hard windows come before each row of windows, of
    all images in turn. `rows_KL5`, `weights_KL5`: the rows of x whose weighted sum is a key; None without offsets.
    """

    segments_KM: Tensor
    starts: list[int]
    rows_KL5: Tensor | None
    weights_KL5: Tensor | None


def run_groups(
    network: "CAMixerSR", shallow_BHWC: Tensor, condition_BHWX: Tensor | None, plan: RoutingPlan
) -> tuple[Tensor, list[Tensor]]:
    """Run all groups on the shallow features; return the deep ones (B×H×W×C) and each block's shares (B)."""
    B, H, W, C = shallow_BHWC.shape
    dtype, M = shallow_BHWC.dtype, network.config.window
    pixels = max(1, _STRIP_BYTES * torch.get_num_threads() // (C * dtype.itemsize))
    size = _Size(B, H, W, C, M, min(H, max(_FEWEST_ROWS, pixels // W)), min(B, max(1, pixels // (H * W))))
    with torch.autocast("cpu", enabled=False):
        parts = [] if condition_BHWX is None else [condition_BHWX.to(dtype)]
        condition_PX = torch.cat((*parts, shallow_BHWC.new_ones(B, H, W, 1)), dim=-1).view(B * H * W, -1)
        runner = _Runner(size, condition_PX, plan)
        x_PC, spare_PC = shallow_BHWC.clone().view(-1, C), torch.empty_like(shallow_BHWC).view(-1, C)
        shares: list[Tensor] = []
        for group in cast("Iterable[Group]", network.groups):
            spare_PC.copy_(x_PC)
            shares += [runner.run(block, x_PC) for block in cast("Iterable[Block]", group.blocks)]
            spare_PC.addmm_(x_PC, runner.in_dtype(group.tail.weight).t()).add_(runner.in_dtype(group.tail.bias))
            x_PC, spare_PC = spare_PC, x_PC
    return x_PC.view(B, H, W, C), shares


class _Runner:
    """Runs blocks in place on features P×C; holds the buffers that all of them use."""

    def __init__(self, size: _Size, condition_PX: Tensor, plan: RoutingPlan):
        self.size = size
        self.condition_PX = condition_PX
        self.plan = plan
        self.dtype = condition_PX.dtype
        rows = size.images * size.H if size.images > 1 else min(size.H, size.strip + _WARP_REACH + 2 * size.M)
        kept = size.images * size.H if size.images > 1 else min(size.H, size.strip + _MIXER_HALO + 2)
        self.mixed_PC = condition_PX.new_empty(size.B * size.H * size.W, size.C)
        self.unprojected_PC = condition_PX.new_empty(rows * size.W, size.C)
        self.gate_PC = condition_PX.new_empty(kept * size.W, size.C)
        self.linear_PC = condition_PX.new_empty(kept * size.W, size.C)

    def in_dtype(self, weight: Tensor) -> Tensor:
        """Return a parameter, or what is derived of some, in the dtype of the features."""
        return weight.detach().to(self.dtype)

    def run(self, block: "Block", x_PC: Tensor) -> Tensor:
        """Run one block; return each image's share of hard windows (B)."""
        size, mixer = self.size, block.mixer
        features_PE = maps_SP = spatial_P = channel_B1C = None
        if mixer.block not in self.plan.unread:
            features_PE = self._predict(block, x_PC)
            maps_SP = self._read_maps(mixer.predictor, features_PE)
            spatial_P, channel_B1C = self._attend_cheaply(mixer.predictor, features_PE, maps_SP)
        mask_BN = self._select(block, maps_SP)
        attention = None
        if mask_BN is not None and mask_BN.any():
            attention = self._plan_attention(block, features_PE, mask_BN)
        strips = _Strips(self, block, x_PC, spatial_P, channel_B1C, attention)
        for first in range(0, size.B, size.images):
            strips.run_images(first, min(first + size.images, size.B))
        if mask_BN is None:
            return torch.zeros(size.B)
        return mask_BN.float().mean(dim=1)

    def _predict(self, block: "Block", x_PC: Tensor) -> Tensor:
        """Return the predictor's features T (P×E) of x."""
        predictor, value, C = block.mixer.predictor, block.mixer.value, self.size.C
        read_EC = predictor.trunk.weight[:, :C]
        weight_CE = self.in_dtype(read_EC @ value.weight).t()
        bias_E = predictor.trunk.bias + read_EC @ value.bias
        condition_XE = self.in_dtype(torch.cat((predictor.trunk.weight[:, C:], bias_E[:, None]), dim=1)).t()
        norm = predictor.trunk_norm
        E = weight_CE.shape[1]
        features_PE = x_PC.new_empty(len(x_PC), E)
        for rows in _pieces(len(x_PC), self.size.strip * self.size.W * self.size.images):
            raw = torch.mm(x_PC[rows], weight_CE).addmm_(self.condition_PX[rows], condition_XE).float()
            normed = F.layer_norm(raw, (E,), norm.weight.float(), norm.bias.float(), norm.eps)
            features_PE[rows] = F.leaky_relu_(normed, predictor.slope)
        return features_PE

    def _read_maps(self, predictor: "Predictor", features_PE: Tensor) -> Tensor:
        """Return the maps that are sums over features, as S×P: the mean, and the nine taps of spatial attention."""
        E = features_PE.shape[1]
        mean_1E = features_PE.new_full((1, E), 1 / E)
        if predictor.spatial_attention is None:
            return mean_1E @ features_PE.t()
        taps_9E = self.in_dtype(predictor.spatial_attention.weight[0].reshape(E, 9).t())
        return torch.mm(torch.cat((mean_1E, taps_9E)), features_PE.t())

    def _attend_cheaply(
        self, predictor: "Predictor", features_PE: Tensor, maps_SP: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return spatial (P) and channel attention (B×1×C); None where they are ablated."""
        B, H, W = self.size.B, self.size.H, self.size.W
        spatial_P = None
        if predictor.spatial_attention is not None:
            taps_9BHW = maps_SP[1:].view(9, B, H, W)
            sum_BHW = taps_9BHW[4] + self.in_dtype(predictor.spatial_attention.bias)  # type: ignore[arg-type]
            for tap in (0, 1, 2, 3, 5, 6, 7, 8):  # a 3×3 convolution to one channel: shifted sums
                rows, columns = _overlap(tap // 3 - 1, H), _overlap(tap % 3 - 1, W)
                sum_BHW[:, rows[0], columns[0]] += taps_9BHW[tap, :, rows[1], columns[1]]
            spatial_P = sum_BHW.sigmoid_().view(-1)
        channel_B1C = None
        if predictor.channel_attention is not None:
            mean_BE = features_PE.view(B, H * W, -1).mean(dim=1)
            head = predictor.channel_attention
            channel_B1C = torch.sigmoid(F.linear(mean_BE, self.in_dtype(head.weight), self.in_dtype(head.bias)))[
                :, None
            ]
        return spatial_P, channel_B1C

    def _select(self, block: "Block", maps_SP: Tensor | None) -> Tensor | None:
        """Return the hard windows (B×N); None where there are none by construction."""
        size, plan, mixer = self.size, self.plan, block.mixer
        routing = plan.routing
        if routing.never_attends(mixer.block) or (routing.gamma == 0 and routing.policy in ("fixed", "probability")):
            return None
        if plan.mask_SBN is not None:
            return plan.mask_SBN[mixer.block]
        assert maps_SP is not None
        B, H, W, M = size.B, size.H, size.W, size.M
        mean_BRMQM = maps_SP[0].float().view(B, H // M, M, W // M, M)
        flat_BNL = mean_BRMQM.transpose(2, 3).reshape(B, -1, M * M)
        predictor = mixer.predictor
        hidden = F.leaky_relu_(_linear(predictor.routing_hidden, flat_BNL), predictor.slope)
        return select_windows(_linear(predictor.routing_out, hidden), routing, mixer.block, plan.importance_BN)

    def _plan_attention(self, block: "Block", features_PE: Tensor | None, mask_BN: Tensor) -> _Attention:
        """Find the hard windows' pixels and predict where their keys look."""
        B, H, W, _, M, _, _ = self.size
        predictor = block.mixer.predictor
        windows = mask_BN.view(B, H // M, W // M).nonzero()
        segments_KM = segments_of_windows(windows, (H, W), M)
        counts = mask_BN.view(B * (H // M), W // M).sum(dim=1).cumsum(0).tolist()
        starts = [0, *(int(count) for count in counts)]
        if predictor.offsets_hidden is None or predictor.offsets_out is None:
            return _Attention(segments_KM, starts, None, None)
        assert features_PE is not None
        E = features_PE.shape[1]
        features_XE = features_PE.view(-1, M * E).index_select(0, segments_KM.view(-1)).view(-1, E)
        hidden = F.leaky_relu_(_linear(predictor.offsets_hidden, features_XE), predictor.slope)
        bias_2, weight_2X = predictor.offsets_out.bias.float(), predictor.offsets_out.weight.float()
        offsets_2X = torch.addmm(bias_2[:, None], weight_2X, hidden.float().t()).tanh_().mul_(predictor.max_offset)
        if not torch.isfinite(offsets_2X).all():
            raise TrialFailedError(
                f"block {block.mixer.block} predicts offsets that are not finite; the weights or the input are not"
            )
        rows_KL5, weights_KL5 = rows_of_warped_sum(offsets_2X.view(2, -1, M, M), windows, (H, W))
        return _Attention(segments_KM, starts, rows_KL5, weights_KL5.to(self.dtype))


class _Strips:
    """One block, from its routing to its end."""

    def __init__(
        self,
        runner: _Runner,
        block: "Block",
        x_PC: Tensor,
        spatial_P: Tensor | None,
        channel_B1C: Tensor | None,
        attention: _Attention | None,
    ):
        size, mixer, ffn, in_dtype = runner.size, block.mixer, block.ffn, runner.in_dtype
        C = size.C
        self.size, self.x_PC, self.attention, self.runner = size, x_PC, attention, runner
        self.channel_B1C = channel_B1C
        # What a pixel's value weighs: its spatial attention, and 1 where softmax has already shared it out.
        self.weight_P = x_PC.new_ones(len(x_PC)) if spatial_P is None else spatial_P
        self.is_weighted = spatial_P is not None
        self.value_CC, self.value_bias_C = in_dtype(mixer.value.weight).t(), in_dtype(mixer.value.bias)
        if attention is not None:
            self.query_CC = in_dtype(mixer.query.weight.float().t() @ mixer.key.weight.float())
            self.query_bias_C = in_dtype(mixer.query.bias.float() @ mixer.key.weight.float())
            self.attention_scale = mixer.attention_scale
        convolution = _packed if size.H // size.strip >= _PACKED_FROM else _unpacked
        inner, outer = mixer.depthwise, mixer.depthwise_dilated
        assert inner.bias is not None
        assert outer.bias is not None
        self.depthwise = convolution(in_dtype(inner.weight), in_dtype(inner.bias), 1, "none", size)
        self.dilated = convolution(in_dtype(outer.weight), in_dtype(outer.bias), 2, "gelu", size)
        self.out_CC, self.out_bias_C = in_dtype(mixer.out.weight).t(), mixer.out.bias.float()
        self.norms = [(norm.weight.float(), norm.bias.float(), norm.eps) for norm in (block.norm1, block.norm2)]
        expand, depthwise = in_dtype(ffn.expand.weight), in_dtype(ffn.depthwise.weight)
        self.expand_gate_CC, self.expand_linear_CC = expand[:C].t(), expand[C:].t()
        self.gate = convolution(depthwise[:C], None, 1, "gelu", size)
        self.linear = convolution(depthwise[C:], None, 1, "none", size)
        self.project_CC = in_dtype(ffn.project.weight).t()

    def run_images(self, first: int, last: int) -> None:
        """Run images `first` … `last` - 1: one in strips of rows, or several that make up a strip together."""
        size = self.size
        R = size.H // size.M
        attended = 0  # rows of windows whose mixed values are there
        mixed_to = done_to = 0  # rows that norm1 and that norm2 have written
        for start in range(0, size.H, size.strip):
            is_last = start + size.strip >= size.H
            mixed_end = size.H if is_last else start + size.strip - _MIXER_HALO
            done_end = size.H if is_last else mixed_end - 1
            needed = R if is_last else min(R, -(-(mixed_end + _WARP_REACH) // size.M))
            if needed > attended:
                self._mix(first, last, attended, needed)
                attended = needed
            if mixed_end <= mixed_to:
                continue
            self._finish_mixer(first, last, mixed_to, mixed_end, max(done_to - 1, 0))
            self._finish_block(first, last, max(done_to - 1, 0), mixed_end, done_to, done_end)
            mixed_to, done_to = mixed_end, done_end

    def _mix(self, first: int, last: int, first_row: int, last_row: int) -> None:
        """Put the mixed values of some rows of windows into `mixed_PC`: attended ones, others by their weight."""
        _, H, W, C, M, _, _ = self.size
        R = H // M
        begin, end = (first * H + first_row * M) * W, ((last - 1) * H + last_row * M) * W
        unprojected_PC = self.runner.unprojected_PC[: end - begin]
        weight_P = self.weight_P[begin:end]
        hard = range(0)
        if self.attention is not None:
            starts = self.attention.starts
            hard = range(starts[first * R + first_row], starts[(last - 1) * R + last_row])
        if len(hard) * M * M < end - begin:
            if self.is_weighted:
                torch.mul(self.x_PC[begin:end], weight_P[:, None], out=unprojected_PC)
            else:
                unprojected_PC.copy_(self.x_PC[begin:end])
        if self.attention is not None and len(hard):
            self._attend(hard, unprojected_PC.view(-1, M * C), begin // M)
            segments = self.attention.segments_KM[hard.start : hard.stop].view(-1) - begin // M
            weight_P.view(-1, M).index_fill_(0, segments, 1.0)
        mixed_PC = torch.mm(unprojected_PC, self.value_CC, out=self.runner.mixed_PC[begin:end])
        if mixed_PC.dtype == torch.float32:
            mixed_PC.addr_(weight_P, self.value_bias_C)
        else:  # addr is not vectorised for bfloat16
            mixed_PC.addmm_(weight_P[:, None], self.value_bias_C[None])

    def _attend(self, hard: range, output_GX: Tensor, first_segment: int) -> None:
        """Write softmax(q kᵀ) x of some hard windows into their segments of `output_GX`."""
        assert self.attention is not None
        segments_KM, _, rows_KL5, weights_KL5 = self.attention
        C, M = self.size.C, self.size.M
        x_GX = self.x_PC.view(-1, M * C)
        for start in range(hard.start, hard.stop, _ATTENDED_AT_ONCE):
            some = slice(start, min(start + _ATTENDED_AT_ONCE, hard.stop))
            segments = segments_KM[some].view(-1)
            x_XC = x_GX.index_select(0, segments).view(-1, C)
            query_XC = torch.addmm(self.query_bias_C, x_XC, self.query_CC)
            key_XC = x_XC
            if rows_KL5 is not None and weights_KL5 is not None:
                key_XC = sum_rows(self.x_PC, rows_KL5[some], weights_KL5[some])
            query, key, value = (part.view(-1, 1, M * M, C) for part in (query_XC, key_XC, x_XC))
            attended = F.scaled_dot_product_attention(query, key, value, scale=self.attention_scale)
            output_GX.index_copy_(0, segments - first_segment, attended.reshape(-1, M * C))

    def _finish_mixer(self, first: int, last: int, begin: int, end: int, kept_from: int) -> None:
        """Rows `begin` … `end`: the convolutions, the projection, norm1 (into x), and the FFN's expansion."""
        _, H, W, C, _, _, _ = self.size
        mixed_BHWC = self.runner.mixed_PC.view(-1, H, W, C)[first:last]
        inner_begin, inner_end = max(begin - 2, 0), min(end + 2, H)
        inner = mixed_BHWC[:, max(inner_begin - 1, 0) : min(inner_end + 1, H)]
        inner = _convolve_rows(self.depthwise, inner, inner_begin, inner_end, 1, H)
        convolved = _convolve_rows(self.dilated, inner, begin, end, 2, H).reshape(last - first, -1, C)
        mixed = mixed_BHWC[:, begin:end].reshape(last - first, -1, C)
        x_PC = self._rows(self.x_PC, first, last, begin, end)
        if self.channel_B1C is None:
            convolved.add_(mixed)
        elif x_PC.dtype == torch.float32 or last - first > 1:
            torch.addcmul(mixed, convolved, self.channel_B1C[first:last], out=convolved)
        else:  # in bfloat16 a product costs less than elementwise arithmetic
            x_PC.addmm_(mixed.view(-1, C), self.out_CC)
            convolved.mul_(self.channel_B1C[first])
        x_PC.addmm_(convolved.view(-1, C), self.out_CC)
        normed_PC = self._normalise(x_PC, self.out_bias_C, 0)
        kept = (begin - kept_from) * W  # pixels of the expansion that the last strip left for the next
        for buffer_PC, weight_CC in (
            (self.runner.gate_PC, self.expand_gate_CC),
            (self.runner.linear_PC, self.expand_linear_CC),
        ):
            torch.mm(normed_PC, weight_CC, out=buffer_PC[kept : kept + len(normed_PC)])

    def _finish_block(self, first: int, last: int, kept_from: int, kept_to: int, begin: int, end: int) -> None:
        """Rows `begin` … `end`: the FFN's convolutions, gate and projection, and norm2 (into x)."""
        _, H, W, C, _, _, _ = self.size
        pixels = (last - first) * (kept_to - kept_from) * W
        halves = []
        for buffer_PC, convolution in ((self.runner.gate_PC, self.gate), (self.runner.linear_PC, self.linear)):
            expanded_BHWC = buffer_PC[:pixels].view(last - first, -1, W, C)
            halves.append(_convolve_rows(convolution, expanded_BHWC, begin, end, 1, H).reshape(-1, C))
            if kept_to < H:  # the next strip goes on from here
                kept = min(2, kept_to - kept_from) * W
                buffer_PC[:kept] = buffer_PC[pixels - kept : pixels].clone()
        x_PC = self._rows(self.x_PC, first, last, begin, end)
        x_PC.addmm_(halves[0].mul_(halves[1]), self.project_CC)
        self._normalise(x_PC, None, 1)

    def _normalise(self, x_PC: Tensor, bias_C: Tensor | None, index: int) -> Tensor:
        """Replace x by LN(x + bias), in float32 (LayerNorm is slow in bfloat16); return the result."""
        weight_C, offset_C, eps = self.norms[index]
        wide_PC = x_PC.float()  # x itself where it is float32
        if bias_C is not None:
            wide_PC.add_(bias_C)
        normed_PC = F.layer_norm(wide_PC, (len(weight_C),), weight_C, offset_C, eps).to(x_PC.dtype)
        x_PC.copy_(normed_PC)
        return normed_PC

    def _rows(self, x_PC: Tensor, first: int, last: int, begin: int, end: int) -> Tensor:
        """View rows `begin` … `end` of the images; of more than one image, all of them."""
        H, W = self.size.H, self.size.W
        return x_PC[(first * H + begin) * W : ((last - 1) * H + end) * W]


_Convolution = Callable[[Tensor, int], Tensor]


def _unpacked(weight: Tensor, bias: Tensor | None, dilation: int, activation: str, size: _Size) -> _Convolution:
    """Return a depthwise 3×3 convolution of B×H×W×C with zeros on `rows` above and below, then `activation`."""
    fused = _fused_convolution()

    def convolve(x_BHWC: Tensor, rows: int) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        padding, dilations = (rows, dilation), (dilation, dilation)
        if fused is not None:
            y_BCHW: Tensor = fused(x_BCHW, weight, bias, padding, (1, 1), dilations, size.C, activation, [], "none")
        else:
            y_BCHW = F.conv2d(x_BCHW, weight, bias, 1, padding, dilations, groups=size.C)
            y_BCHW = F.gelu(y_BCHW) if activation == "gelu" else y_BCHW
        return y_BCHW.permute(0, 2, 3, 1)

    return convolve


def _packed(weight: Tensor, bias: Tensor | None, dilation: int, activation: str, size: _Size) -> _Convolution:
    """As `_unpacked`, with the weights laid out beforehand."""
    if _fused_convolution() is not None:
        shape = [1, size.C, size.strip + 2 * dilation, size.W]
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, (0, dilation), (1, 1), (dilation, dilation), size.C, shape
        )
    return _unpacked(weight, bias, dilation, activation, size)


def _fused_convolution() -> Any:
    """Return oneDNN's convolution with an activation in the same pass; None in builds of torch without it."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def _convolve_rows(convolution: _Convolution, x_BHWC: Tensor, begin: int, end: int, reach: int, height: int) -> Tensor:
    """Return rows `begin` … `end` of a convolution, from rows begin - reach … end + reach as far as there are any."""
    touches_top, touches_bottom = begin - reach < 0, end + reach > height
    if not (touches_top or touches_bottom):
        return convolution(x_BHWC, 0)
    given_from = max(begin - reach, 0)
    return convolution(x_BHWC, reach)[:, begin - given_from : end - given_from]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Run a linear layer in the dtype of `x`."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _overlap(shift: int, side: int) -> tuple[slice, slice]:
    """Return where shifted positions lie inside, and what they read."""
    return slice(max(0, -shift), side - max(0, shift)), slice(max(0, shift), side + min(0, shift))


def _pieces(total: int, most: int) -> list[slice]:
    return [slice(start, min(start + most, total)) for start in range(0, total, most)]

"""CAMixerSR by fused kernels (camixersr.h).

Shape suffixes: those of models/camixersr.py.
"""

import ctypes
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.configs import BlockWidths
from harness.core.errors import TrialFailedError
from harness.models.components import component, part_of
from harness.models.fused.maps import (
    Map,
    Maps,
    allocate,
    as_floats,
    compiled,
    convolve,
    divided,
    structure,
    threads_for,
    working_dtype,
)
from harness.models.network import Restoration
from harness.models.routing import RoutingPlan, select_windows

if TYPE_CHECKING:
    from harness.models.camixersr import Block, CAMixerSR, Group

_Block = structure(
    "CAMixerBlock",
    integers="mixer query predictor offsets ffn",
    pointers=(
        "value_weight value_bias query_weight query_bias key_weight "
        "depthwise_weight depthwise_bias dilated_weight dilated_bias out_weight out_bias "
        "trunk_weight trunk_bias trunk_norm_weight trunk_norm_bias "
        "offsets_hidden_weight offsets_hidden_bias offsets_out_weight offsets_out_bias "
        "channel_weight channel_bias spatial_weight spatial_bias "
        "norm1_weight norm1_bias norm2_weight norm2_bias expand_weight ffn_depthwise_weight project_weight"
    ),
)
_Pass = structure(
    "CAMixerPass",
    integers="images height width channels window conditions threads half keep_tokens",
    numbers="attention_scale max_offset slope eps",
    pointers="x next mixed tokens next_tokens predicted condition mean feature_sums workspace windows",
    integers_="hard",
    pointers_="ticks",
)
_GLOBAL_FEATURES = 8  # of the global predictor
_READ = frozenset(name for name, _ in _Block._fields_)


class _CAMixerMaps(Maps):
    """The maps of images B×3×H×W with C channels and X conditions, for a precision.

    V and E are those of the block that has the most. Lines lie one after the other and are all equally long, so that
    blocks that have fewer find zeros in the margins too.
    """

    def __init__(self, key: tuple[int, ...]):
        super().__init__(key)
        B, H, W, C, V, E, X, is_half = key
        self.input, self.shallow = Map(B, H, 3, W), Map(B, H, C, W)
        self.start, self.x, self.next = (Map(B, H, C, W, is_half=bool(is_half)) for _ in range(3))
        self.mixed = Map(B, H, V, W, is_half=bool(is_half))
        self.predicted = Map(B, H, E, W)
        self.condition, self.condition_hidden = Map(B, H, X, W), Map(B, H, _GLOBAL_FEATURES, W)
        self.mean_BHW = torch.empty(B, H, W)
        self.sums_BHE = torch.empty(B, H, E)
        token_pitch = -(-C // 32) * 16 if is_half else -(-C // 16) * 16
        self.tokens, self.next_tokens = (allocate(B * H * W * token_pitch + 64) for _ in range(2))


def restore_camixersr(network: "CAMixerSR", input_BCHW: Tensor, padded_BCHW: Tensor, plan: RoutingPlan) -> Restoration:
    """Restore images that are padded to multiples of the window; the residual image is the caller's to add."""
    config = network.config
    is_half = working_dtype(input_BCHW) == torch.bfloat16
    (B, _, H, W), (h, w) = padded_BCHW.shape, input_BCHW.shape[-2:]
    widths = config.widths or (config.block_widths(0),) * config.num_blocks
    values, features = max(one.mixer for one in widths), max(one.predictor for one in widths)
    maps = _CAMixerMaps.take((B, H, W, config.channels, values, features, config.condition_channels, is_half))
    with torch.autocast("cpu", enabled=False):
        maps.input.nchw().copy_(padded_BCHW)
        convolve(network.head, maps.input, maps.shallow, maps, is_half=is_half)
        if len(plan.unread) < config.num_blocks:
            _set_conditions(network, maps)
        shares = _Runner(network, maps, plan, widths, is_half).run_groups()
        convolve(network.body_tail, maps.x, maps.shallow, maps, is_half=is_half, residual=maps.shallow)
        scale = config.scale
        image_BCHW = torch.empty(B, 3, h * scale, w * scale)
        convolve(network.tail, maps.shallow, image_BCHW, maps, is_half=is_half, scale=scale)
    maps.give_back()
    return Restoration(image_BCHW.to(input_BCHW.dtype), torch.stack(shares))


def _blocks(network: "CAMixerSR") -> "Iterator[Block]":
    for group in cast("Iterable[Group]", network.groups):
        yield from cast("Iterable[Block]", group.blocks)


@part_of("predictor")
def _set_conditions(network: "CAMixerSR", maps: _CAMixerMaps) -> None:
    """Put the global and the window condition side by side, in float32."""
    config = network.config
    coordinates = maps.condition.shape[2] - 2 * config.window_condition
    if network.global_predictor is not None:
        narrow, first_relu, wide, second_relu = cast("tuple[nn.Module, ...]", network.global_predictor)
        assert isinstance(narrow, nn.Conv2d)
        assert isinstance(wide, nn.Conv2d)
        slopes = [cast("nn.LeakyReLU", relu).negative_slope for relu in (first_relu, second_relu)]
        convolve(narrow, maps.shallow, maps.condition_hidden, maps, is_half=False, slope=slopes[0])
        convolve(wide, maps.condition_hidden, maps.condition, maps, is_half=False, slope=slopes[1])
    if config.window_condition:
        _, H, _, W = maps.condition.shape
        line_M = torch.linspace(-1, 1, config.window)
        target_B2HW = maps.condition.nchw(slice(coordinates, None))
        target_B2HW[:, 0] = line_M.repeat(H // config.window)[:, None]
        target_B2HW[:, 1] = line_M.repeat(W // config.window)


class _Runner:
    """Runs blocks and groups on the maps of a pass."""

    def __init__(
        self,
        network: "CAMixerSR",
        maps: _CAMixerMaps,
        plan: RoutingPlan,
        widths: tuple[BlockWidths, ...],
        is_half: bool,
    ):
        B, H, C, W = maps.x.shape
        self.network, self.maps, self.plan, self.widths = network, maps, plan, widths
        M = network.config.window
        self.windows = B, H // M, W // M
        mixer = next(_blocks(network)).mixer
        predictor = mixer.predictor
        self.call = _Pass(
            images=B,
            height=H,
            width=W,
            channels=C,
            window=M,
            conditions=maps.condition.shape[2],
            threads=threads_for(maps.x.shape),
            half=is_half,
            attention_scale=mixer.attention_scale,
            max_offset=predictor.max_offset,
            slope=predictor.slope,
            eps=predictor.trunk_norm.eps,
            mixed=maps.mixed.pointer,
            predicted=maps.predicted.pointer,
            condition=maps.condition.pointer,
            mean=maps.mean_BHW.data_ptr(),
            feature_sums=maps.sums_BHE.data_ptr(),
        )
        self.reference = ctypes.byref(self.call)
        library, pointer = compiled(), ctypes.c_void_p
        measure = library.function("camixersr_workspace", (pointer, pointer), ctypes.c_int64)
        needed = (measure(self.reference, ctypes.byref(_Block(**dict(one)))) for one in set(widths))
        self.call.workspace = maps.reserve(max(needed))
        self.predict = library.function("camixersr_predict", (pointer, pointer))
        self.transform = library.function("camixersr_transform", (pointer, pointer), ctypes.c_int)
        self.begin = library.function("camixersr_begin", (pointer, pointer))
        self.finish_group = library.function("camixersr_finish_group", (pointer,) * 4)
        self.every_window = torch.arange(B * (H // M) * (W // M), dtype=torch.int32)

    def run_groups(self) -> list[Tensor]:
        """Run all groups from the shallow map to `maps.x`; return each block's shares of hard windows (B)."""
        maps = self.maps
        shares: list[Tensor] = []
        attending = [self._may_attend(block) for block in _blocks(self.network)] + [False]
        self.call.keep_tokens = attending[0]
        self._point()
        self.begin(self.reference, maps.shallow.pointer)
        self._swap()
        for group in cast("Iterable[Group]", self.network.groups):
            spare, maps.start = maps.start, maps.x  # what the group begins with stays as it is
            blocks = list(cast("Iterable[Block]", group.blocks))
            for block in blocks:
                is_last = block is blocks[-1]  # the group's end makes the tokens then
                self.call.keep_tokens = attending[len(shares) + 1] and not is_last
                shares.append(self._run(block))
                if block is blocks[0]:
                    maps.next = spare
            self.call.keep_tokens = attending[len(shares)]
            weight, bias = as_floats(group.tail.weight), as_floats(group.tail.bias)
            self._point()
            self.finish_group(self.reference, weight.data_ptr(), bias.data_ptr(), maps.start.pointer)
            self._swap()
            if self.network.features is not None:
                self.network.features.append(maps.x.nhwc())
        return shares

    def _run(self, block: "Block") -> Tensor:
        """Run one block; return each image's share of hard windows (B)."""
        held = dict(_parameters(block))
        widths = dict(self.widths[block.mixer.block])
        fields = _Block(**widths, **{name: parameter.data_ptr() for name, parameter in held.items()})
        reference = ctypes.byref(fields)
        self._point()
        if block.mixer.block not in self.plan.unread:
            with component("predictor"):
                self.predict(self.reference, reference)
        order, self.call.hard, share_B = self._select(block)
        self.call.windows = order.data_ptr()
        with divided(self.call):
            is_unbounded = self.transform(self.reference, reference)
        if is_unbounded:
            raise TrialFailedError(
                f"block {block.mixer.block} predicts offsets that are not finite; the weights or the input are not"
            )
        self._swap()
        return share_B

    def _point(self) -> None:
        maps = self.maps
        self.call.x, self.call.next = maps.x.pointer, maps.next.pointer
        self.call.tokens, self.call.next_tokens = maps.tokens.data_ptr(), maps.next_tokens.data_ptr()

    def _swap(self) -> None:
        """Make what a kernel wrote what the next one reads."""
        maps = self.maps
        maps.x, maps.next = maps.next, maps.x
        if self.call.keep_tokens:
            maps.tokens, maps.next_tokens = maps.next_tokens, maps.tokens

    def _may_attend(self, block: "Block") -> bool:
        """Whether a block may have hard windows, as far as the routing alone tells."""
        routing = self.plan.routing
        none = routing.gamma == 0 and routing.policy in ("fixed", "probability")
        return not none and not routing.never_attends(block.mixer.block)

    @part_of("predictor")
    def _select(self, block: "Block") -> tuple[Tensor, int, Tensor]:
        """Return all windows of the batch, the hard ones first, how many these are, and each image's share of them."""
        B, R, Q = self.windows
        if not self._may_attend(block):
            return self.every_window, 0, torch.zeros(B)
        if self.plan.mask_SBN is not None:
            mask_BN = self.plan.mask_SBN[block.mixer.block]
        else:
            M, predictor = block.mixer.window, block.mixer.predictor
            mean_BRMQM = self.maps.mean_BHW.view(B, R, M, Q, M)
            flat_BNL = mean_BRMQM.transpose(2, 3).reshape(B, R * Q, M * M)
            hidden = F.leaky_relu_(_linear(predictor.routing_hidden, flat_BNL), predictor.slope)
            logits_BN2 = _linear(predictor.routing_out, hidden)
            mask_BN = select_windows(logits_BN2, self.plan.routing, block.mixer.block, self.plan.importance_BN)
        flat_X = mask_BN.reshape(-1)
        order_X = torch.argsort(flat_X.to(torch.uint8), descending=True, stable=True).int()
        return order_X, int(flat_X.sum()), mask_BN.float().mean(dim=1)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Run a linear layer in float32."""
    return F.linear(x, as_floats(layer.weight), as_floats(layer.bias))


def _parameters(block: "Block") -> Iterator[tuple[str, Tensor]]:
    """Yield what the kernels read of a block, by the names of camixersr.h."""
    mixer, ffn, predictor = block.mixer, block.ffn, block.mixer.predictor
    modules = {
        "value": mixer.value,
        "query": mixer.query,
        "key": mixer.key,
        "depthwise": mixer.depthwise,
        "dilated": mixer.depthwise_dilated,
        "out": mixer.out,
        "trunk": predictor.trunk,
        "trunk_norm": predictor.trunk_norm,
        "offsets_hidden": predictor.offsets_hidden,
        "offsets_out": predictor.offsets_out,
        "channel": predictor.channel_attention,
        "spatial": predictor.spatial_attention,
        "norm1": block.norm1,
        "norm2": block.norm2,
        "expand": ffn.expand,
        "ffn_depthwise": ffn.depthwise,
        "project": ffn.project,
    }
    for name, module in modules.items():
        if module is None:
            continue
        weight = as_floats(module.weight)
        yield f"{name}_weight", weight
        if f"{name}_bias" in _READ:
            yield f"{name}_bias", torch.zeros(len(weight)) if module.bias is None else as_floats(module.bias)

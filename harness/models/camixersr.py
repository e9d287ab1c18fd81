"""CAMixerSR: windows with detail get attention, plain windows get cheap convolution (CVPR 2024).

Shape suffixes: B batch, C channels, H W the padded low-resolution size, M window side, L = M² tokens of a window,
N = (H/M)(W/M) windows, R rows and Q columns of windows (N = R·Q), K hard windows of the whole batch, X = B·N, D
predictor inputs, E predictor features, V channels of values, S blocks. The paper's E is D // 4, its V is C; pruning
leaves fewer. Features are kept channels-last (x_BHWC): pointwise convolutions are linear maps, LayerNorm is the native
one and depthwise convolutions run channels-last.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.errors import UserError
from harness.models import fused
from harness.models.bicubic import upscale_bicubic
from harness.models.components import component, part_of
from harness.models.graphs import replayed
from harness.models.network import AnyGenerator, Restoration, SRNetwork, draw_exponential
from harness.models.padding import pad_to_multiple
from harness.models.routing import (
    RoutingPlan,
    count_windows,
    knows_counts,
    plan_routing,
    rank_windows,
    select_windows,
)
from harness.models.warping import rows_of_warped_sum, segments_of_windows, sum_rows, warp

_SLOPE = 0.1
_EPS = 1e-6
_HEAD_MULTIPLE = 8  # what the fused attention kernels of accelerators want the channels of a head to be a multiple of
MOST_ATTENDED = 65535  # windows in one call: as many as CUDA lets a grid have blocks in its last dimension


def to_channels_last(x_BCHW: Tensor) -> Tensor:
    """View or copy B×C×H×W as B×H×W×C."""
    return x_BCHW.permute(0, 2, 3, 1).contiguous()


def convolve(conv: nn.Module, x_BHWC: Tensor) -> Tensor:
    """Run a convolution on channels-last features."""
    y_BCHW: Tensor = conv(x_BHWC.permute(0, 3, 1, 2))
    return to_channels_last(y_BCHW)


def as_windows(x_BHWC: Tensor, window: int) -> Tensor:
    """View B×H×W×C as B×R×Q×M×M×C without a copy."""
    B, H, W, C = x_BHWC.shape
    return x_BHWC.view(B, H // window, window, W // window, window, C).permute(0, 1, 3, 2, 4, 5)


def from_windows(x_BRQMMC: Tensor) -> Tensor:
    """Undo `as_windows`: B×H×W×C."""
    B, R, Q, M, _, C = x_BRQMMC.shape
    return x_BRQMMC.permute(0, 1, 3, 2, 4, 5).reshape(B, R * M, Q * M, C)


def window_coordinates(window: int, height: int, width: int, like: Tensor) -> Tensor:
    """Return the window condition H×W×2: row and column in the window, linspace(-1, 1, M), for all windows."""
    line = torch.linspace(-1, 1, window, device=like.device, dtype=like.dtype)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack((rows, columns), dim=-1).repeat(height // window, width // window, 1)


class MixerMode(NamedTuple):
    """How windows are mixed; the result and all gradients are the same.

    `is_literal`: every operator as the paper writes it; at inference the offsets and the warp of every window.
    `is_dense`: in training both paths in every window. `runs_kernels`: in training the depthwise convolutions run by
    kernels (fused/training.py). `gumbel_SBN2`: the noise of training on the logits of each block; None without.
    """

    is_literal: bool
    is_dense: bool
    runs_kernels: bool
    gumbel_SBN2: Tensor | None


def apply(linear: nn.Linear, x: Tensor, mode: MixerMode, width: int | None = None) -> Tensor:
    """Run a linear layer whose outputs are continued by zeros to `width`."""
    more = 0 if width is None else width - linear.out_features
    if more:
        return F.linear(x, F.pad(linear.weight, (0, 0, 0, more)), F.pad(linear.bias, (0, more)))
    projected: Tensor = fused.project(linear, x) if mode.runs_kernels else linear(x)
    return projected


class Predictor(nn.Module):
    """The local predictor: offsets, channel and spatial attention and the routing logits of one block."""

    slope = _SLOPE
    max_offset = 8.0  # pixels

    def __init__(self, config: CAMixerSRConfig, block: int):
        super().__init__()
        widths, M = config.block_widths(block), config.window
        E = widths.predictor
        self.window = M
        self.trunk = nn.Linear(widths.mixer + config.condition_channels, E)
        self.trunk_norm = nn.LayerNorm(E, eps=_EPS)
        self.offsets_hidden = nn.Linear(E, widths.offsets) if config.offsets else None
        self.offsets_out = nn.Linear(widths.offsets, 2) if config.offsets else None
        self.channel_attention = nn.Linear(E, widths.mixer) if config.channel_attention else None
        self.spatial_attention = nn.Conv2d(E, 1, 3, padding=1) if config.spatial_attention else None
        self.routing_hidden = nn.Linear(M * M, M)
        self.routing_out = nn.Linear(M, 2)

    @part_of("predictor")
    def features(self, conditions_BHWD: Tensor, mode: MixerMode) -> Tensor:
        """Return the trunk's features T (B×H×W×E), which all four heads read."""
        return F.leaky_relu(self.trunk_norm(apply(self.trunk, conditions_BHWD, mode)), _SLOPE)

    @part_of("predictor")
    def predict_offsets(self, features_BHWE: Tensor) -> Tensor | None:
        """Return displacements in pixels (B×H×W×2, x first, within ±8), always in float32 or wider."""
        if self.offsets_hidden is None or self.offsets_out is None:
            return None
        raw: Tensor = self.offsets_out(F.leaky_relu(self.offsets_hidden(features_BHWE), _SLOPE))
        return self.max_offset * torch.tanh(raw if raw.dtype == torch.float64 else raw.float())

    @part_of("predictor")
    def attend_channels(self, features_BHWE: Tensor) -> Tensor | None:
        """Return channel attention (B×1×1×V) in (0, 1)."""
        if self.channel_attention is None:
            return None
        return torch.sigmoid(self.channel_attention(features_BHWE.mean(dim=(1, 2), keepdim=True)))

    @part_of("predictor")
    def attend_space(self, features_BHWE: Tensor) -> Tensor | None:
        """Return spatial attention (B×H×W×1) in (0, 1)."""
        if self.spatial_attention is None:
            return None
        return torch.sigmoid(convolve(self.spatial_attention, features_BHWE))

    @part_of("predictor")
    def route(self, features_BHWE: Tensor) -> Tensor:
        """Return routing logits (B×N×2, [..., 0] for "hard"), always in float32 or wider."""
        windows_BRQMM1 = as_windows(features_BHWE.mean(dim=-1, keepdim=True), self.window)
        flat_BNL = windows_BRQMM1.reshape(features_BHWE.shape[0], -1, self.window**2)
        logits: Tensor = self.routing_out(F.leaky_relu(self.routing_hidden(flat_BNL), _SLOPE))
        return logits if logits.dtype == torch.float64 else logits.float()


class CAMixer(nn.Module):
    """The content-aware mixer (algorithm 1 of the supplementary). `block` counts from 0 over the whole network."""

    def __init__(self, config: CAMixerSRConfig, block: int):
        super().__init__()
        C, widths = config.channels, config.block_widths(block)
        V = widths.mixer
        self.block = block
        self.window = config.window
        self.attention_scale = C**-0.5 if config.scaled_attention else 1.0
        self.predictor = Predictor(config, block)
        self.value = nn.Linear(C, V)
        self.query = nn.Linear(C, widths.query)
        self.key = nn.Linear(C, widths.query)
        self.depthwise = nn.Conv2d(V, V, 3, padding=1, groups=V)
        self.depthwise_dilated = nn.Conv2d(V, V, 3, padding=2, dilation=2, groups=V)
        self.out = nn.Linear(V, C)

    @part_of("attention")
    def forward(
        self,
        x_BHWC: Tensor,
        condition_BHWX: Tensor | None,
        plan: RoutingPlan,
        mode: MixerMode,
    ) -> tuple[Tensor, Tensor]:
        """Mix; return the features (B×H×W×C) and each image's share of hard windows (B)."""
        features_BHWE = value_BHWV = apply(self.value, x_BHWC, mode)
        if self.training or self.block not in plan.unread:
            with component("predictor"):
                conditions = value_BHWV if condition_BHWX is None else torch.cat((value_BHWV, condition_BHWX), dim=-1)
                features_BHWE = self.predictor.features(conditions, mode)
        if self.training:
            gumbel_BN2 = None if mode.gumbel_SBN2 is None else mode.gumbel_SBN2[self.block]
            with component("predictor"):
                mask_BN = draw_mask(self.predictor.route(features_BHWE), gumbel_BN2)
            mix = self._mix_densely if mode.is_dense else self._mix_sparsely
            mixed_BHWV = mix(x_BHWC, value_BHWV, features_BHWE, mask_BN, mode)
            hard_share_B = mask_BN.mean(dim=1)
        else:
            select = self._mix_selected if mode.is_literal else self._mix_gathered
            mixed_BHWV, hard_share_B = select(x_BHWC, value_BHWV, features_BHWE, plan, mode)
        with component("convolution"):
            channel_B11V = self.predictor.attend_channels(features_BHWE)
            if mode.runs_kernels:
                convolved = fused.convolve_mixed(mixed_BHWV, channel_B11V, self.depthwise, self.depthwise_dilated)
            else:
                convolved = F.gelu(convolve(self.depthwise_dilated, convolve(self.depthwise, mixed_BHWV)))
                if channel_B11V is not None:
                    convolved = convolved * channel_B11V
                convolved = convolved + mixed_BHWV
        return apply(self.out, convolved, mode), hard_share_B

    def _mix_selected(
        self, x_BHWC: Tensor, value_BHWV: Tensor, features_BHWE: Tensor, plan: RoutingPlan, mode: MixerMode
    ) -> tuple[Tensor, Tensor]:
        """Inference, literal: attention for the selected windows, spatial attention for the others."""
        B, H, W, C = x_BHWC.shape
        M, V = self.window, value_BHWV.shape[-1]
        spatial_BHW1 = self.predictor.attend_space(features_BHWE)
        mixed_BHWV = value_BHWV.clone() if spatial_BHW1 is None else value_BHWV * spatial_BHW1
        if plan.routing.never_attends(self.block):
            return mixed_BHWV, x_BHWC.new_zeros(B)  # offsets, logits, q and k are dead by construction
        if plan.mask_SBN is not None:
            mask_BN = plan.mask_SBN[self.block]  # the logits are dead
        else:
            logits_BN2 = self.predictor.route(features_BHWE)
            mask_BN = select_windows(logits_BN2, plan.routing, self.block, plan.importance_BN)
        keyed_BHWC = self._warped_sum(x_BHWC, features_BHWE)
        image_K, row_K, column_K = mask_BN.view(B, H // M, W // M).nonzero(as_tuple=True)
        query_KLQ = apply(self.query, as_windows(x_BHWC, M)[image_K, row_K, column_K].view(-1, M * M, C), mode)
        key_KLQ = apply(self.key, as_windows(keyed_BHWC, M)[image_K, row_K, column_K].view(-1, M * M, C), mode)
        value_KLV = as_windows(value_BHWV, M)[image_K, row_K, column_K].view(-1, M * M, V)
        attended_KLV = self._attend(query_KLQ, key_KLQ, value_KLV)
        windows_BRQMMV = as_windows(mixed_BHWV, M)
        windows_BRQMMV[image_K, row_K, column_K] = attended_KLV.view(-1, M, M, V).to(mixed_BHWV.dtype)
        return mixed_BHWV, mask_BN.to(x_BHWC.dtype).mean(dim=1)

    def _mix_gathered(
        self, x_BHWC: Tensor, value_BHWV: Tensor, features_BHWE: Tensor, plan: RoutingPlan, mode: MixerMode
    ) -> tuple[Tensor, Tensor]:
        """Inference: `_mix_selected` with offsets, warp, q and k of the hard windows only.

        Where K is known beforehand nothing waits for the device, and no shape depends on the image. Where offsets are
        NaN, so is the result; the CPU kernels raise an error there.
        """
        spatial_BHW1 = self.predictor.attend_space(features_BHWE)
        mixed_BHWV = value_BHWV.clone() if spatial_BHW1 is None else value_BHWV * spatial_BHW1
        windows_K3, hard_share_B = self._find_windows(x_BHWC, features_BHWE, plan)
        if len(windows_K3):
            attended_KLV, segments_KM = self._attend_windows(x_BHWC, value_BHWV, features_BHWE, windows_K3, mode)
            _write_windows(mixed_BHWV, segments_KM, attended_KLV)
        return mixed_BHWV, hard_share_B

    @part_of("predictor")
    def _find_windows(self, x_BHWC: Tensor, features_BHWE: Tensor, plan: RoutingPlan) -> tuple[Tensor, Tensor]:
        """Return the hard windows (K×3: image, row, column) and each image's share of them (B)."""
        B, H, W, _ = x_BHWC.shape
        R, Q = H // self.window, W // self.window
        N, device = R * Q, x_BHWC.device
        count = count_windows(plan.routing, self.block, N)
        if count is None:
            if plan.mask_SBN is not None:
                mask_BN = plan.mask_SBN[self.block]
            else:
                logits_BN2 = self.predictor.route(features_BHWE)
                mask_BN = select_windows(logits_BN2, plan.routing, self.block, plan.importance_BN)
            windows_K3 = mask_BN.view(B, R, Q).nonzero() if plan.windows is None else plan.windows[self.block]
            return windows_K3, mask_BN.to(x_BHWC.dtype).mean(dim=1)
        if 0 < count < N:
            hardest_BN = rank_windows(self.predictor.route(features_BHWE), plan.importance_BN)
        else:
            hardest_BN = torch.arange(N, device=device).expand(B, N)  # all or none: the logits are dead
        chosen_BK = hardest_BN[:, :count]
        image_BK = torch.arange(B, device=device)[:, None].expand(B, count)
        windows_BK3 = torch.stack((image_BK, chosen_BK // Q, chosen_BK % Q), dim=-1)
        first_BN = x_BHWC.new_zeros(B, N)  # K/N by the same operator as from a mask, which need not round alike
        first_BN[:, :count].fill_(1)
        return windows_BK3.view(-1, 3), first_BN.mean(dim=1)

    def _mix_densely(
        self, x_BHWC: Tensor, value_BHWV: Tensor, features_BHWE: Tensor, mask_BN: Tensor, mode: MixerMode
    ) -> Tensor:
        """Training: every window takes both paths, weighted by the straight-through mask."""
        B, H, W, C = x_BHWC.shape
        M, V = self.window, value_BHWV.shape[-1]
        mask_X11 = mask_BN.reshape(-1, 1, 1).to(x_BHWC.dtype)
        keyed_BHWC = self._warped_sum(x_BHWC, features_BHWE)
        query = apply(self.query, as_windows(x_BHWC, M).reshape(-1, M * M, C) * mask_X11, mode)
        key = apply(self.key, as_windows(keyed_BHWC, M).reshape(-1, M * M, C) * mask_X11, mode)
        value = as_windows(value_BHWV, M).reshape(-1, M * M, V)
        spatial_BHW1 = self.predictor.attend_space(features_BHWE)
        simple = value if spatial_BHW1 is None else value * as_windows(spatial_BHW1, M).reshape(-1, M * M, 1)
        mixed = mask_X11 * self._attend(query, key, value) + (1 - mask_X11) * simple
        return from_windows(mixed.view(B, H // M, W // M, M, M, V))

    def _mix_sparsely(
        self, x_BHWC: Tensor, value_BHWV: Tensor, features_BHWE: Tensor, mask_BN: Tensor, mode: MixerMode
    ) -> Tensor:
        """Training: attention for the hard windows only, with the result and the gradients of `_mix_densely`."""
        B, H, W, _ = x_BHWC.shape
        R, Q = H // self.window, W // self.window
        windows_K3 = (mask_BN.detach() > 0.5).view(B, R, Q).nonzero()
        image_K, row_K, column_K = windows_K3.unbind(1)
        mask_K11 = mask_BN.view(B, R, Q)[image_K, row_K, column_K][:, None, None].to(x_BHWC.dtype)
        attended_KLV, segments_KM = self._attend_windows(x_BHWC, value_BHWV, features_BHWE, windows_K3, mode, mask_K11)
        spatial_BHW1 = self.predictor.attend_space(features_BHWE)
        if spatial_BHW1 is None:
            spatial_BHW1 = value_BHWV.new_ones(B, H, W, 1)
        mixed: Tensor = _MaskedMix.apply(value_BHWV, spatial_BHW1, attended_KLV, mask_BN, segments_KM)  # type: ignore[no-untyped-call]
        return mixed

    def _attend_windows(
        self,
        x_BHWC: Tensor,
        value_BHWV: Tensor,
        features_BHWE: Tensor,
        windows_K3: Tensor,
        mode: MixerMode,
        mask_K11: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the attention of some windows (K×L×V) and their row segments (K×M).

        Offsets, warp, q and k are those of these windows only; q and k are made of features times `mask_K11`.
        """
        _, H, W, C = x_BHWC.shape
        M = self.window
        segments_KM = segments_of_windows(windows_K3, (H, W), M)
        x_KLC = keyed_KLC = _gather_windows(x_BHWC, segments_KM)
        offsets_KL2 = self.predictor.predict_offsets(_gather_windows(features_BHWE, segments_KM))
        if offsets_KL2 is not None:
            offsets_2KMM = offsets_KL2.permute(2, 0, 1).view(2, -1, M, M)
            rows_KL5, weights_KL5 = rows_of_warped_sum(offsets_2KMM, windows_K3, (H, W))
            keyed_KLC = sum_rows(x_BHWC.reshape(-1, C), rows_KL5, weights_KL5).view(-1, M * M, C)
        if mask_K11 is not None:
            x_KLC, keyed_KLC = x_KLC * mask_K11, keyed_KLC * mask_K11
        value_KLV = _gather_windows(value_BHWV, segments_KM)
        width = head_width(max(self.query.out_features, value_KLV.shape[-1]), x_BHWC.device)
        return self.attend(x_KLC, keyed_KLC, value_KLV, width, mode), segments_KM

    def attend(self, x_KLC: Tensor, keyed_KLC: Tensor, value_KLV: Tensor, width: int, mode: MixerMode) -> Tensor:
        """Return the attention of windows with queries of `x_KLC` and keys of `keyed_KLC`.

        All three are continued by zeros to `width` channels, which changes nothing: the scores get zeros added.
        """
        V = value_KLV.shape[-1]
        query_KLQ = apply(self.query, x_KLC, mode, width)
        key_KLQ = apply(self.key, keyed_KLC, mode, width)
        value_KLV = F.pad(value_KLV, (0, width - V)) if width > V else value_KLV
        if not len(value_KLV):  # not every kernel takes a batch of none
            return (query_KLQ + key_KLQ + value_KLV.to(query_KLQ.dtype))[..., :V]
        parts = zip(*(torch.split(part, MOST_ATTENDED) for part in (query_KLQ, key_KLQ, value_KLV)), strict=True)
        attended = [self._attend(*part) for part in parts]
        return (attended[0] if len(attended) == 1 else torch.cat(attended))[..., :V]

    def _warped_sum(self, x_BHWC: Tensor, features_BHWE: Tensor) -> Tensor:
        """Return x + X̃, what keys are made of; x alone where the offsets are ablated."""
        offsets_BHW2 = self.predictor.predict_offsets(features_BHWE)
        return x_BHWC if offsets_BHW2 is None else x_BHWC + warp(x_BHWC, offsets_BHW2).to(x_BHWC.dtype)

    def _attend(self, query_XLQ: Tensor, key_XLQ: Tensor, value_XLV: Tensor) -> Tensor:
        """Single-head attention inside each window."""
        attended = F.scaled_dot_product_attention(
            query_XLQ[:, None], key_XLQ[:, None], value_XLV[:, None].to(query_XLQ.dtype), scale=self.attention_scale
        )
        return attended[:, 0]


def head_width(channels: int, device: torch.device) -> int:
    """Return how many channels a head of attention that has so many gets on a device."""
    return channels if device.type == "cpu" else -(-channels // _HEAD_MULTIPLE) * _HEAD_MULTIPLE


def _gather_windows(map_BHWX: Tensor, segments_KM: Tensor) -> Tensor:
    """Return some windows of a map, by their row segments, as K×L×X."""
    M = segments_KM.shape[1]
    segments = map_BHWX.reshape(-1, M * map_BHWX.shape[-1]).index_select(0, segments_KM.view(-1))
    return segments.view(-1, M * M, map_BHWX.shape[-1])


def _write_windows(map_BHWX: Tensor, segments_KM: Tensor, windows_KLX: Tensor) -> None:
    """Put windows into a map, in place."""
    segments = _segments(map_BHWX, segments_KM.shape[1])
    segments.index_copy_(0, segments_KM.view(-1), windows_KLX.to(map_BHWX.dtype).reshape(-1, segments.shape[1]))


def draw_gumbel(shape: tuple[int, int, int, int], generator: AnyGenerator | None, device: torch.device) -> Tensor:
    """Draw standard Gumbel noise S×B×N×2, block by block, on the CPU whatever the device: the same numbers on all."""
    blocks, *of_block = shape
    noise = torch.stack([-draw_exponential(of_block, generator).log() for _ in range(blocks)])
    if device.type == "cuda":
        return noise.pin_memory().to(device, non_blocking=True)  # pinned, so that nothing waits for the device
    return noise.to(device)


def draw_mask(logits_BN2: Tensor, gumbel_BN2: Tensor | None) -> Tensor:
    """Draw the straight-through mask (B×N, 1 = hard): onehot − stop_gradient(soft) + soft.

    As in the released network the Gumbel logits are the softmaxed probabilities p, at temperature 1: soft is the
    softmax of p + Gumbel noise. Without noise soft = softmax(p), and the one-hot is argmax p.
    """
    logits = torch.softmax(logits_BN2, dim=-1)
    if gumbel_BN2 is not None:
        logits = logits + gumbel_BN2.to(logits.dtype)
    soft_BN = torch.softmax(logits, dim=-1)[..., 0]
    onehot_BN = (logits[..., 0] >= logits[..., 1]).to(soft_BN.dtype)
    return onehot_BN - soft_BN.detach() + soft_BN


def check_importance(importance_BHW: Tensor, input_BCHW: Tensor) -> None:
    """Raise `UserError` unless a map of importance is finite and lies over the images, one for each or one for all."""
    count, (h, w) = len(input_BCHW), input_BCHW.shape[-2:]
    counts = "1" if count == 1 else f"{count} or 1"
    if importance_BHW.dim() != 3 or importance_BHW.shape[0] not in (1, count) or importance_BHW.shape[1:] != (h, w):
        raise UserError(f"the map of importance has shape {tuple(importance_BHW.shape)}, expected ({counts}, {h}, {w})")
    if not torch.isfinite(importance_BHW).all():
        raise UserError("the map of importance holds values that are not finite; expected 0 where nothing matters")


class _MaskedMix(torch.autograd.Function):
    """m·attention + (1 − m)·V·A_s for the straight-through mask m, with attention known where m is 1.

    Where m is 0, q and k are constant over a window, so that attention is the mean of V there: that is all that the
    gradient of m needs, and nothing else depends on it, being multiplied by 0.
    """

    @staticmethod
    def forward(
        ctx: Any, value_BHWV: Tensor, spatial_BHW1: Tensor, attended_KLV: Tensor, mask_BN: Tensor, segments_KM: Tensor
    ) -> Tensor:
        mixed_BHWV = value_BHWV * spatial_BHW1
        _write_windows(mixed_BHWV, segments_KM, attended_KLV)
        ctx.save_for_backward(value_BHWV, spatial_BHW1, attended_KLV, segments_KM)
        ctx.mask_dtype = mask_BN.dtype
        return mixed_BHWV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHWV: Tensor) -> tuple[Tensor | None, ...]:
        value_BHWV, spatial_BHW1, attended_KLV, segments_KM = ctx.saved_tensors
        B, _, W, V = value_BHWV.shape
        K, M = segments_KM.shape
        grad_BHWV = grad_BHWV.contiguous()
        segments = segments_KM.view(-1)
        attended_grad_KLV = _segments(grad_BHWV, M).index_select(0, segments).view(K, M * M, V)
        spatial_grad_BHW1 = (grad_BHWV * value_BHWV).sum(dim=-1, keepdim=True)
        value_grad_BHWV = grad_BHWV * spatial_BHW1
        # The gradient of m: attention minus the simple path, over all values of the window.
        simple_BRQ = as_windows(spatial_grad_BHW1 * spatial_BHW1, M).sum(dim=(3, 4, 5))
        uniform_BRQ = (as_windows(grad_BHWV, M).sum(dim=(3, 4)) * as_windows(value_BHWV, M).mean(dim=(3, 4))).sum(
            dim=-1
        )
        attention_BN = uniform_BRQ.view(-1).to(ctx.mask_dtype)
        window_K = (segments_KM[:, 0] // (M * (W // M))) * (W // M) + segments_KM[:, 0] % (W // M)
        attention_BN[window_K] = (attended_grad_KLV * attended_KLV).sum(dim=(1, 2)).to(ctx.mask_dtype)
        mask_grad_BN = attention_BN.view(B, -1) - simple_BRQ.view(B, -1).to(ctx.mask_dtype)
        _segments(value_grad_BHWV, M).index_fill_(0, segments, 0)
        _segments(spatial_grad_BHW1, M).index_fill_(0, segments, 0)
        return value_grad_BHWV, spatial_grad_BHW1, attended_grad_KLV, mask_grad_BN, None


def _segments(map_BHWX: Tensor, window: int) -> Tensor:
    """View B×H×W×X as rows that are a window wide."""
    return map_BHWX.view(-1, window * map_BHWX.shape[-1])


class GatedFFN(nn.Module):
    """The convolutional feed-forward network: 1×1 C→2F, depthwise 3×3, GELU(a)·b, 1×1 F→C; no biases.

    The paper's F is C; pruning leaves fewer.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(channels, 2 * hidden, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project = nn.Linear(hidden, channels, bias=False)

    @part_of("ffn")
    def forward(self, x_BHWC: Tensor, mode: MixerMode) -> Tensor:
        """Transform B×H×W×C."""
        if mode.runs_kernels:
            gated_BHWC = fused.convolve_gated(fused.project(self.expand, x_BHWC), self.depthwise.weight)
        else:
            gated_BHWC = F.gelu(self._expand(x_BHWC, 0)) * self._expand(x_BHWC, 1)
        return apply(self.project, gated_BHWC, mode)

    def _expand(self, x_BHWC: Tensor, half: int) -> Tensor:
        """Return one half of the expansion, by itself: strided halves of one map cost far more in what follows."""
        expand_CC = self.expand.weight.chunk(2)[half]
        depthwise_C133 = self.depthwise.weight.chunk(2)[half]
        expanded_BCHW = F.linear(x_BHWC, expand_CC).permute(0, 3, 1, 2)
        return to_channels_last(F.conv2d(expanded_BCHW, depthwise_C133, padding=1, groups=len(depthwise_C133)))


class Block(nn.Module):
    """Post-norm block: x = LN(mixer(x) + x); x = LN(ffn(x) + x)."""

    def __init__(self, config: CAMixerSRConfig, block: int):
        super().__init__()
        self.mixer = CAMixer(config, block)
        self.norm1 = nn.LayerNorm(config.channels, eps=_EPS)
        self.ffn = GatedFFN(config.channels, config.block_widths(block).ffn)
        self.norm2 = nn.LayerNorm(config.channels, eps=_EPS)

    def forward(
        self,
        x_BHWC: Tensor,
        condition_BHWX: Tensor | None,
        plan: RoutingPlan,
        mode: MixerMode,
    ) -> tuple[Tensor, Tensor]:
        """Return the features and each image's share of hard windows."""
        mixed, hard_share_B = self.mixer(x_BHWC, condition_BHWX, plan, mode)
        with component("norms"):
            x_BHWC = self.norm1(mixed + x_BHWC)
            return self.norm2(self.ffn(x_BHWC, mode) + x_BHWC), hard_share_B


class Group(nn.Module):
    """A group of blocks that ends with a 1×1 convolution and adds the group's input."""

    def __init__(self, config: CAMixerSRConfig, first_block: int, num_blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, first_block + index) for index in range(num_blocks))
        self.tail = nn.Linear(config.channels, config.channels)


class CAMixerSR(SRNetwork):
    """CAMixerSR. `routing` may be set on a trained network at any time; it acts in eval mode.

    In train mode every window takes both paths under a straight-through mask drawn with Gumbel noise from `generator`
    (`routing_noise = False` takes the argmax instead, as the golden vectors do). By default attention then runs in hard
    windows only, with the same result and gradients; `is_dense`, as `is_literal`, makes it run in all of them.
    """

    is_dense: bool = False

    def __init__(self, config: CAMixerSRConfig):
        super().__init__()
        self.config: CAMixerSRConfig = config
        self.routing_noise = True
        C = config.channels
        self.head = nn.Conv2d(3, C, 3, padding=1)
        self.global_predictor = (
            nn.Sequential(
                nn.Conv2d(C, 8, 1),
                nn.LeakyReLU(_SLOPE),
                nn.Conv2d(8, 2, 3, padding=1),
                nn.LeakyReLU(_SLOPE),
            )
            if config.global_condition
            else None
        )
        firsts = [sum(config.groups[:index]) for index in range(len(config.groups))]
        self.groups = nn.ModuleList(
            Group(config, first, count) for first, count in zip(firsts, config.groups, strict=True)
        )
        self.body_tail = nn.Conv2d(C, C, 3, padding=1)
        self.tail = nn.Conv2d(C, 3 * config.scale**2, 3, padding=1)
        if config.image_residual:  # start from the bicubic image
            nn.init.zeros_(self.tail.weight)
            nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    @property
    def routing(self) -> RoutingConfig:
        """The routing in force at inference."""
        return self.config.routing

    @routing.setter
    def routing(self, routing: RoutingConfig) -> None:
        self.config = self.config.with_routing(routing)

    @property
    def is_static(self) -> bool:
        """Whether K is known beforehand: inference then does the same work whatever is in the image."""
        return knows_counts(self.routing)

    @replayed
    def restore(
        self, input_BCHW: Tensor, *, generator: AnyGenerator | None = None, importance_BHW: Tensor | None = None
    ) -> Restoration:
        """Restore a batch of any size; see `Restoration`.

        `importance_BHW` (a map for each image, or one for all: 1×h×w) guides the attention at inference: its mean over
        a window is added to what windows are ranked by, the logit difference or, under `detail`, log w_b + log e_n. The
        number of windows that get attention stays the policy's own; a map of zeros changes nothing.
        """
        config = self.config
        h, w = input_BCHW.shape[-2:]
        if importance_BHW is not None:
            check_importance(importance_BHW, input_BCHW)
        padded_BCHW = pad_to_multiple(input_BCHW, config.window)
        plan = plan_routing(config.routing, padded_BCHW, (h, w), config.window, importance_BHW)
        blocks = range(config.num_blocks)
        plan = plan._replace(unread=frozenset(block for block in blocks if not config.reads_predictor(block)))
        if fused.suits(self, input_BCHW):
            image_BCHW, hard_share_SB = fused.restore_camixersr(self, input_BCHW, padded_BCHW, plan)
        else:
            image_BCHW, hard_share_SB = self._restore_plainly(padded_BCHW, plan, generator)
            image_BCHW = image_BCHW[..., : h * config.scale, : w * config.scale]
        if config.image_residual:
            image_BCHW = image_BCHW + upscale_bicubic(input_BCHW, config.scale)
        return Restoration(image_BCHW, hard_share_SB)

    def _restore_plainly(self, padded_BCHW: Tensor, plan: RoutingPlan, generator: AnyGenerator | None) -> Restoration:
        """Restore padded images by torch's operators; the padding stays."""
        with component("convolution"):
            shallow_BHWC = to_channels_last(self.head(padded_BCHW.contiguous(memory_format=torch.channels_last)))
        is_read = self.training or len(plan.unread) < self.config.num_blocks
        condition_BHWX = self._conditions(shallow_BHWC) if is_read else None
        x_BHWC, shares = self._run_groups(shallow_BHWC, condition_BHWX, plan, generator)
        with component("convolution"):
            deep_BHWC = convolve(self.body_tail, x_BHWC) + shallow_BHWC
            image_BCHW = F.pixel_shuffle(self.tail(deep_BHWC.permute(0, 3, 1, 2)), self.config.scale)
        return Restoration(image_BCHW, torch.stack(shares))

    def _run_groups(
        self, x_BHWC: Tensor, condition_BHWX: Tensor | None, plan: RoutingPlan, generator: AnyGenerator | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all groups as the paper writes them; return the features and each block's shares of hard windows."""
        B, H, W, _ = x_BHWC.shape
        R, Q = H // self.config.window, W // self.config.window
        is_literal = self.is_literal or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
        gumbel_SBN2 = None
        if self.training and self.routing_noise:
            gumbel_SBN2 = draw_gumbel((self.config.num_blocks, B, R * Q, 2), generator, x_BHWC.device)
        elif not self.training and not is_literal:
            plan = plan.look_up_windows((R, Q))
        runs_kernels = not is_literal and fused.trains(self, x_BHWC)
        mode = MixerMode(is_literal, is_literal or self.is_dense, runs_kernels, gumbel_SBN2)
        shares: list[Tensor] = []
        for group in self.groups:
            start_BHWC = x_BHWC
            for block in group.blocks:  # type: ignore[union-attr]
                x_BHWC, hard_share_B = block(x_BHWC, condition_BHWX, plan, mode)
                shares.append(hard_share_B)
            x_BHWC = apply(group.tail, x_BHWC, mode) + start_BHWC  # type: ignore[arg-type]
            if self.features is not None:
                self.features.append(x_BHWC)
        return x_BHWC, shares

    @part_of("predictor")
    def _conditions(self, shallow_BHWC: Tensor) -> Tensor | None:
        """Return the global and the window condition side by side (B×H×W×0..4), shared by every block."""
        B, H, W, _ = shallow_BHWC.shape
        parts = []
        if self.global_predictor is not None:
            parts.append(convolve(self.global_predictor, shallow_BHWC))
        if self.config.window_condition:
            coordinates = window_coordinates(self.config.window, H, W, shallow_BHWC)
            parts.append(coordinates.expand(B, -1, -1, -1))
        return torch.cat(parts, dim=-1) if parts else None

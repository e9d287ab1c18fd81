"""CAMixerSR word for word: algorithm 1 and nothing else, the oracle that the fast paths are held against.

Every line is one line of the paper: images are B×C×H×W, pointwise layers are 1×1 convolutions, LayerNorm is written
out, attention is a softmax of a matrix product, and training takes both paths in every window. Nothing here is fast,
and nothing but the rule that selects windows (`routing.py`), padding and bicubic upscaling is shared with the network
that it checks. The parameters are that network's own, not copies: gradients land in the same place.

Shape suffixes: B batch, C channels, H W the padded low-resolution size, M window side, L = M² tokens of a window,
N windows of an image, X = B·N, K hard windows of the whole batch, D predictor inputs, E predictor features.

C stands for the channels inside a block too, of which pruning may leave fewer.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.configs import CAMixerSRConfig
from harness.models.bicubic import upscale_bicubic
from harness.models.camixersr import Block, CAMixer, CAMixerSR, GatedFFN, Group, Predictor
from harness.models.network import AnyGenerator, Restoration, SRNetwork, draw_exponential
from harness.models.padding import pad_to_multiple
from harness.models.routing import RoutingPlan, plan_routing, select_windows


class LiteralCAMixerSR(SRNetwork):
    """A CAMixerSR computed word for word, with parameters, mode and routing of the `network` it is given."""

    def __init__(self, network: CAMixerSR):
        super().__init__()
        self.network = network

    @property
    def config(self) -> CAMixerSRConfig:  # type: ignore[override]
        """The network's config, with the routing in force."""
        return self.network.config

    def restore(
        self, input_BCHW: Tensor, *, generator: AnyGenerator | None = None, importance_BHW: Tensor | None = None
    ) -> Restoration:
        """Restore a batch of any size, as `CAMixerSR.restore` does."""
        network, config = self.network, self.config
        h, w = input_BCHW.shape[-2:]
        padded_BCHW = pad_to_multiple(input_BCHW, config.window)
        plan = plan_routing(config.routing, padded_BCHW, (h, w), config.window, importance_BHW)
        shallow_BCHW = _convolve(network.head, padded_BCHW)
        conditions = []
        if network.global_predictor is not None:
            first, _, second, _ = network.global_predictor
            hidden = F.leaky_relu(_convolve(first, shallow_BCHW), 0.1)
            conditions.append(F.leaky_relu(_convolve(second, hidden), 0.1))
        if config.window_condition:
            conditions.append(_window_condition(shallow_BCHW, config.window))
        x_BCHW, shares = shallow_BCHW, []
        for group in cast("Iterable[Group]", network.groups):
            start_BCHW = x_BCHW
            for block in cast("Iterable[Block]", group.blocks):
                x_BCHW, share_B = self._block(block, x_BCHW, conditions, plan, generator)
                shares.append(share_B)
            x_BCHW = _pointwise(group.tail, x_BCHW) + start_BCHW
        deep_BCHW = _convolve(network.body_tail, x_BCHW) + shallow_BCHW
        image_BCHW = F.pixel_shuffle(_convolve(network.tail, deep_BCHW), config.scale)
        image_BCHW = image_BCHW[..., : h * config.scale, : w * config.scale]
        if config.image_residual:
            image_BCHW = image_BCHW + upscale_bicubic(input_BCHW, config.scale)
        return Restoration(image_BCHW, torch.stack(shares))

    def _block(
        self,
        block: Block,
        x_BCHW: Tensor,
        conditions: list[Tensor],
        plan: RoutingPlan,
        generator: AnyGenerator | None,
    ) -> tuple[Tensor, Tensor]:
        """Post-norm: x = LN(mixer(x) + x); x = LN(ffn(x) + x)."""
        mixed_BCHW, share_B = self._mixer(block.mixer, x_BCHW, conditions, plan, generator)
        x_BCHW = _normalise(block.norm1, mixed_BCHW + x_BCHW)
        return _normalise(block.norm2, _feed_forward(block.ffn, x_BCHW) + x_BCHW), share_B

    def _mixer(
        self,
        mixer: CAMixer,
        x_BCHW: Tensor,
        conditions: list[Tensor],
        plan: RoutingPlan,
        generator: AnyGenerator | None,
    ) -> tuple[Tensor, Tensor]:
        """Algorithm 1."""
        predictor, M = mixer.predictor, self.config.window
        value_BCHW = _pointwise(mixer.value, x_BCHW)
        trunk_BEHW = _pointwise(predictor.trunk, torch.cat([value_BCHW, *conditions], dim=1))
        features_BEHW = F.leaky_relu(_normalise(predictor.trunk_norm, trunk_BEHW), 0.1)
        simple_BCHW = value_BCHW
        if predictor.spatial_attention is not None:
            simple_BCHW = value_BCHW * torch.sigmoid(_convolve(predictor.spatial_attention, features_BEHW))
        keyed_BCHW = x_BCHW + _warp(x_BCHW, _offsets(predictor, features_BEHW)) if self.config.offsets else x_BCHW
        logits_BN2 = _routing_logits(predictor, features_BEHW, M)
        x_XLC, keyed_XLC, value_XLC, simple_XLC = (
            _split(image_BCHW, M) for image_BCHW in (x_BCHW, keyed_BCHW, value_BCHW, simple_BCHW)
        )
        if self.network.training:
            mask_BN = _draw(logits_BN2, generator, self.network.routing_noise)
            mask_X11 = mask_BN.reshape(-1, 1, 1).to(x_BCHW.dtype)
            attended_XLC = _attend(mixer, x_XLC * mask_X11, keyed_XLC * mask_X11, value_XLC * mask_X11, self.config)
            mixed_XLC = attended_XLC + (1 - mask_X11) * simple_XLC
        else:
            if plan.mask_SBN is not None:
                mask_BN = plan.mask_SBN[mixer.block]
            else:
                mask_BN = select_windows(logits_BN2, plan.routing, mixer.block, plan.importance_BN)
            hard_K = mask_BN.flatten().nonzero()[:, 0]
            attended_KLC = _attend(mixer, x_XLC[hard_K], keyed_XLC[hard_K], value_XLC[hard_K], self.config)
            mixed_XLC = simple_XLC.index_copy(0, hard_K, attended_KLC.to(simple_XLC.dtype))
        mixed_BCHW = _join(mixed_XLC, value_BCHW, M)
        convolved = F.gelu(_convolve(mixer.depthwise_dilated, _convolve(mixer.depthwise, mixed_BCHW)))
        if predictor.channel_attention is not None:
            pooled_BE11 = features_BEHW.mean(dim=(2, 3), keepdim=True)
            convolved = convolved * torch.sigmoid(_pointwise(predictor.channel_attention, pooled_BE11))
        return _pointwise(mixer.out, convolved + mixed_BCHW), mask_BN.to(x_BCHW.dtype).mean(dim=1)


def _convolve(conv: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Run a convolution."""
    assert isinstance(conv, nn.Conv2d)
    x_BCHW = x_BCHW.contiguous()
    return F.conv2d(x_BCHW, conv.weight, conv.bias, 1, conv.padding, conv.dilation, conv.groups)


def _pointwise(layer: nn.Linear, x_BCHW: Tensor) -> Tensor:
    """Run a linear layer as the 1×1 convolution that it is."""
    return F.conv2d(x_BCHW, layer.weight[:, :, None, None], layer.bias)


def _normalise(norm: nn.LayerNorm, x_BCHW: Tensor) -> Tensor:
    """LayerNorm over the channels of each pixel, in float32 or wider."""
    x_BCHW = _widen(x_BCHW)
    centred = x_BCHW - x_BCHW.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    return centred / torch.sqrt(variance + norm.eps) * norm.weight[:, None, None] + norm.bias[:, None, None]


def _widen(x: Tensor) -> Tensor:
    """Return float32, or float64 where the input is."""
    return x if x.dtype == torch.float64 else x.float()


def _window_condition(like_BCHW: Tensor, window: int) -> Tensor:
    """Row and column inside the window, each linspace(-1, 1, M), for every window (B×2×H×W)."""
    B, _, H, W = like_BCHW.shape
    line = torch.linspace(-1, 1, window, device=like_BCHW.device, dtype=like_BCHW.dtype)
    rows_HW = line.repeat(H // window)[:, None].expand(H, W)
    columns_HW = line.repeat(W // window)[None].expand(H, W)
    return torch.stack((rows_HW, columns_HW)).expand(B, -1, -1, -1)


def _offsets(predictor: Predictor, features_BEHW: Tensor) -> Tensor:
    """Return displacements in pixels (B×2×H×W), x first."""
    assert predictor.offsets_hidden is not None
    assert predictor.offsets_out is not None
    hidden = F.leaky_relu(_pointwise(predictor.offsets_hidden, features_BEHW), 0.1)
    return 8 * torch.tanh(_widen(_pointwise(predictor.offsets_out, hidden)))


def _warp(x_BCHW: Tensor, offsets_B2HW: Tensor) -> Tensor:
    """Read pixel (u, v) at (u + dx, v + dy), bilinear, border padding."""
    _, _, H, W = x_BCHW.shape
    u_W = torch.arange(W, device=x_BCHW.device, dtype=offsets_B2HW.dtype)
    v_H1 = torch.arange(H, device=x_BCHW.device, dtype=offsets_B2HW.dtype)[:, None]
    x_BHW = 2 * (u_W + offsets_B2HW[:, 0]) / (W - 1) - 1
    y_BHW = 2 * (v_H1 + offsets_B2HW[:, 1]) / (H - 1) - 1
    grid_BHW2 = torch.stack((x_BHW, y_BHW), dim=-1)
    image_BCHW = x_BCHW.to(grid_BHW2.dtype).contiguous()
    return F.grid_sample(image_BCHW, grid_BHW2, "bilinear", "border", align_corners=True).to(x_BCHW.dtype)


def _routing_logits(predictor: Predictor, features_BEHW: Tensor, window: int) -> Tensor:
    """Return routing logits (B×N×2), [..., 0] for "hard": each window's mean over channels, flattened."""
    mean_B1HW = features_BEHW.mean(dim=1, keepdim=True)
    flat_BNL = _split(mean_B1HW, window).reshape(len(features_BEHW), -1, window**2)
    return _widen(predictor.routing_out(F.leaky_relu(predictor.routing_hidden(flat_BNL), 0.1)))


def _draw(logits_BN2: Tensor, generator: AnyGenerator | None, noise: bool) -> Tensor:
    """Draw the straight-through hard Gumbel-softmax mask (B×N, 1 = hard) of the softmaxed logits."""
    probability_BN2 = torch.softmax(logits_BN2, dim=-1)
    if noise:
        gumbel_BN2 = -torch.log(draw_exponential(probability_BN2.shape, generator))
        probability_BN2 = probability_BN2 + gumbel_BN2.to(probability_BN2)
    soft_BN2 = torch.softmax(probability_BN2, dim=-1)
    onehot_BN2 = F.one_hot(probability_BN2.argmax(dim=-1), 2).to(soft_BN2.dtype)
    return (onehot_BN2 - soft_BN2.detach() + soft_BN2)[..., 0]


def _attend(mixer: CAMixer, x_KLC: Tensor, keyed_KLC: Tensor, value_KLC: Tensor, config: CAMixerSRConfig) -> Tensor:
    """Return softmax(q kᵀ) v of each window; scores over √C where algorithm 1 is followed to the letter."""
    query_KLC, key_KLC = mixer.query(x_KLC), mixer.key(keyed_KLC)
    scores_KLL = query_KLC @ key_KLC.transpose(1, 2)
    if config.scaled_attention:
        scores_KLL = scores_KLL / config.channels**0.5
    return torch.softmax(scores_KLL, dim=-1) @ value_KLC


def _split(x_BCHW: Tensor, window: int) -> Tensor:
    """Cut into windows, row by row: X×L×C."""
    B, C, H, W = x_BCHW.shape
    x = x_BCHW.reshape(B, C, H // window, window, W // window, window)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, window**2, C)


def _join(x_XLC: Tensor, like_BCHW: Tensor, window: int) -> Tensor:
    """Undo `_split`."""
    B, C, H, W = like_BCHW.shape
    x = x_XLC.reshape(B, H // window, W // window, window, window, C)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(B, C, H, W)


def _feed_forward(ffn: GatedFFN, x_BCHW: Tensor) -> Tensor:
    """1×1 C→2C, depthwise 3×3, GELU(a)·b, 1×1 C→C."""
    a_BCHW, b_BCHW = _convolve(ffn.depthwise, _pointwise(ffn.expand, x_BCHW)).chunk(2, dim=1)
    return _pointwise(ffn.project, F.gelu(a_BCHW) * b_BCHW)

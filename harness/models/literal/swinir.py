"""SwinIR word for word: window attention one head after the other, the oracle that the fast path is held against.

Features are B×H×W×C, windows are cut out of images that are rolled by half a window, and the mask has the nine regions
of the released network. Nothing here is fast, and nothing but padding and bicubic upscaling is shared with the network
that it checks. The parameters are that network's own, not copies.

Shape suffixes: B batch, C channels, H W the padded low-resolution size, M window side, L = M² tokens of a window,
N windows of an image, X = B·N, A heads, d = C / A unless pruned.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.configs import SwinIRConfig
from harness.models.bicubic import upscale_bicubic
from harness.models.network import AnyGenerator, Restoration, SRNetwork
from harness.models.padding import pad_to_multiple
from harness.models.swinir import SwinBlock, SwinGroup, SwinIR, WindowAttention


class LiteralSwinIR(SRNetwork):
    """A SwinIR computed word for word, with the parameters of the `network` it is given."""

    def __init__(self, network: SwinIR):
        super().__init__()
        self.network = network

    @property
    def config(self) -> SwinIRConfig:  # type: ignore[override]
        """The network's config."""
        return self.network.config

    def restore(self, input_BCHW: Tensor, *, generator: AnyGenerator | None = None) -> Restoration:
        """Restore a batch of any size, as `SwinIR.restore` does."""
        network, config = self.network, self.config
        h, w = (side * config.scale for side in input_BCHW.shape[-2:])
        mean_311 = torch.tensor((0.4488, 0.4371, 0.4040)).to(input_BCHW)[:, None, None]
        shallow_BHWC = _convolve(network.head, pad_to_multiple(input_BCHW - mean_311, config.window).movedim(1, -1))
        x_BHWC = _normalise(network.embed_norm, shallow_BHWC)
        for group in cast("Iterable[SwinGroup]", network.groups):
            start_BHWC = x_BHWC
            for index, block in enumerate(cast("Iterable[SwinBlock]", group.blocks)):
                x_BHWC = _layer(block, x_BHWC, config.window, config.window // 2 if index % 2 else 0)
            x_BHWC = start_BHWC + _convolve(group.conv, x_BHWC)
        deep_BHWC = _convolve(network.body_tail, _normalise(network.norm, x_BHWC)) + shallow_BHWC
        image_BCHW = F.pixel_shuffle(_convolve(network.tail, deep_BHWC).movedim(-1, 1), config.scale)[..., :h, :w]
        base = upscale_bicubic(input_BCHW, config.scale) if config.image_residual else mean_311
        return Restoration(image_BCHW + base, torch.zeros(0, len(input_BCHW), device=input_BCHW.device))


def _layer(block: SwinBlock, x_BHWC: Tensor, window: int, shift: int) -> Tensor:
    """Pre-norm: x = x + attention(LN(x)); x = x + MLP(LN(x))."""
    _, H, W, _ = x_BHWC.shape
    rolled_BHWC = torch.roll(_normalise(block.norm1, x_BHWC), (-shift, -shift), (1, 2))
    mask_NLL = shift_mask(H, W, window, shift).to(x_BHWC.device) if shift else None
    attended_XLC = _attend(block.attention, split(rolled_BHWC, window), mask_NLL, window)
    x_BHWC = x_BHWC + torch.roll(join(attended_XLC, x_BHWC.shape, window), (shift, shift), (1, 2))
    hidden_BHWC = F.gelu(_linear(block.mlp_hidden, _normalise(block.norm2, x_BHWC)))
    return x_BHWC + _linear(block.mlp_out, hidden_BHWC)


def _attend(attention: WindowAttention, x_XLC: Tensor, mask_NLL: Tensor | None, window: int) -> Tensor:
    """Return softmax(q kᵀ / √d + B + mask) v of each window, head by head, projected."""
    X = len(x_XLC)
    width, value_width = attention.widths.query, attention.widths.value
    bias_LLA = attention.position_bias[_relative_positions(window).to(x_XLC.device)]
    query_XLC, key_XLC, value_XLC = attention.split(_linear(attention.qkv, x_XLC), -1)
    heads = []
    for head in range(attention.num_heads):
        mine = slice(head * width, (head + 1) * width)
        scores_XLL = query_XLC[..., mine] @ key_XLC[..., mine].transpose(1, 2) / width**0.5 + bias_LLA[..., head]
        if mask_NLL is not None:
            scores_XLL = scores_XLL + mask_NLL.to(scores_XLL.dtype).repeat(X // len(mask_NLL), 1, 1)
        heads.append(scores_XLL.softmax(-1) @ value_XLC[..., head * value_width : (head + 1) * value_width])
    return _linear(attention.proj, torch.cat(heads, dim=-1))


def _relative_positions(window: int) -> Tensor:
    """Return the row (L×L) of the (2M−1)² table that holds the bias of each pair of tokens, query first."""
    rows_L, columns_L = torch.arange(window**2) // window, torch.arange(window**2) % window
    down_LL = rows_L[:, None] - rows_L + window - 1
    right_LL = columns_L[:, None] - columns_L + window - 1
    return down_LL * (2 * window - 1) + right_LL


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Return Swin's mask (N×L×L): the shifted image has nine regions; −100 between tokens of different ones."""
    region_HW = torch.zeros(height, width)
    region = 0
    for rows in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
        for columns in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
            region_HW[rows, columns] = region
            region += 1
    region_NL = split(region_HW[None, :, :, None], window)[..., 0]
    return torch.where(region_NL[:, :, None] == region_NL[:, None, :], 0.0, -100.0)


def split(x_BHWC: Tensor, window: int) -> Tensor:
    """Cut B×H×W×C into X×L×C windows, image by image and row by row."""
    B, H, W, C = x_BHWC.shape
    x = x_BHWC.reshape(B, H // window, window, W // window, window, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, C)


def join(x_XLC: Tensor, shape: torch.Size, window: int) -> Tensor:
    """Undo `split`."""
    B, H, W, C = shape
    x = x_XLC.reshape(B, H // window, W // window, window, window, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(shape)


def _convolve(conv: nn.Conv2d, x_BHWC: Tensor) -> Tensor:
    """Run a 3×3 convolution."""
    return F.conv2d(x_BHWC.movedim(-1, 1).contiguous(), conv.weight, conv.bias, padding=1).movedim(1, -1)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _normalise(norm: nn.LayerNorm, x_BHWC: Tensor) -> Tensor:
    """LayerNorm over the channels of each pixel."""
    return F.layer_norm(x_BHWC, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

"""SwinIR with the pixel-shuffle-direct upsampler; its default config is SwinIR-light, the baseline of every comparison.

Shape suffixes: B batch, C channels, H W the padded size, M window side, L = M² tokens, N windows of an image,
X = B·N windows of the batch, A heads, d = C / A.
"""

import functools

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from harness.core.configs import SwinIRConfig
from harness.models.bicubic import upscale_bicubic
from harness.models.camixersr import as_windows, convolve, from_windows, to_channels_last
from harness.models.network import Restoration, SRNetwork
from harness.models.padding import pad_to_multiple

_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


def relative_position_index(window: int) -> Tensor:
    """Return the L×L index into the (2M−1)² table of relative positions, rows first."""
    line = torch.arange(window)
    positions_2L = torch.stack(torch.meshgrid(line, line, indexing="ij")).flatten(1)
    relative_2LL = positions_2L[:, :, None] - positions_2L[:, None, :] + window - 1
    return relative_2LL[0] * (2 * window - 1) + relative_2LL[1]


@functools.lru_cache(maxsize=32)
def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the N×1×L×L mask of a shifted partition: 0 within a region, −100 between regions (Swin)."""
    region_HW = torch.zeros(height, width, device=device)
    for axis, side in enumerate((height, width)):
        bounds = torch.tensor([side - window, side - shift], device=device)
        third = torch.bucketize(torch.arange(side, device=device), bounds, right=True)
        region_HW = region_HW * 3 + (third[:, None] if axis == 0 else third[None, :])
    region_NL = as_windows(region_HW[None, :, :, None], window).reshape(-1, window * window)
    return ((region_NL[:, :, None] != region_NL[:, None, :]).to(dtype) * -100.0)[:, None]


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learnt relative position bias."""

    def __init__(self, channels: int, num_heads: int, window: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("position_index", relative_position_index(window), persistent=False)
        self.position_index: Tensor

    def forward(self, x_XLC: Tensor, mask_N1LL: Tensor | None) -> Tensor:
        """Attend; the windows of image i are rows i·N … of `x_XLC`."""
        X, L, C = x_XLC.shape
        A = self.num_heads
        query, key, value = self.qkv(x_XLC).view(X, L, 3, A, C // A).permute(2, 0, 3, 1, 4).unbind(0)
        scores_XALL = (query * (C // A) ** -0.5) @ key.transpose(-2, -1)
        scores_XALL = scores_XALL + self.position_bias[self.position_index].permute(2, 0, 1)
        if mask_N1LL is not None:
            masked = scores_XALL.view(-1, mask_N1LL.shape[0], A, L, L) + mask_N1LL
            scores_XALL = masked.view(X, A, L, L)
        attended = torch.softmax(scores_XALL, dim=-1) @ value
        projected: Tensor = self.proj(attended.transpose(1, 2).reshape(X, L, C))
        return projected


class SwinBlock(nn.Module):
    """Pre-norm Swin layer; every second one of a group works on windows shifted by half a window."""

    def __init__(self, config: SwinIRConfig, shift: int):
        super().__init__()
        C = config.embed_dim
        self.window = config.window
        self.shift = shift
        self.norm1 = nn.LayerNorm(C)
        self.attention = WindowAttention(C, config.num_heads, config.window)
        self.norm2 = nn.LayerNorm(C)
        self.mlp_hidden = nn.Linear(C, int(C * config.mlp_ratio))
        self.mlp_out = nn.Linear(int(C * config.mlp_ratio), C)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Transform B×H×W×C."""
        B, H, W, C = x_BHWC.shape
        M, shift = self.window, self.shift
        normed = self.norm1(x_BHWC)
        mask = None
        if shift:
            normed = torch.roll(normed, (-shift, -shift), (1, 2))
            mask = shift_mask(H, W, M, shift, normed.device, normed.dtype)
        attended = self.attention(as_windows(normed, M).reshape(-1, M * M, C), mask)
        attended = from_windows(attended.view(B, H // M, W // M, M, M, C))
        if shift:
            attended = torch.roll(attended, (shift, shift), (1, 2))
        x_BHWC = x_BHWC + attended
        hidden: Tensor = self.mlp_out(F.gelu(self.mlp_hidden(self.norm2(x_BHWC))))
        return x_BHWC + hidden


class SwinGroup(nn.Module):
    """A residual group of Swin layers that ends with one 3×3 convolution."""

    def __init__(self, config: SwinIRConfig, depth: int):
        super().__init__()
        half = config.window // 2
        self.blocks = nn.ModuleList(SwinBlock(config, half if index % 2 else 0) for index in range(depth))
        self.conv = nn.Conv2d(config.embed_dim, config.embed_dim, 3, padding=1)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Transform B×H×W×C."""
        y_BHWC = x_BHWC
        for block in self.blocks:
            y_BHWC = block(y_BHWC)
        return convolve(self.conv, y_BHWC) + x_BHWC


class SwinIR(SRNetwork):
    """SwinIR; nothing is routed."""

    def __init__(self, config: SwinIRConfig):
        super().__init__()
        self.config: SwinIRConfig = config
        C = config.embed_dim
        self.register_buffer("mean_1311", torch.tensor(_DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)
        self.mean_1311: Tensor
        self.head = nn.Conv2d(3, C, 3, padding=1)
        self.embed_norm = nn.LayerNorm(C)
        self.groups = nn.ModuleList(SwinGroup(config, depth) for depth in config.depths)
        self.norm = nn.LayerNorm(C)
        self.body_tail = nn.Conv2d(C, C, 3, padding=1)
        self.tail = nn.Conv2d(C, 3 * config.scale**2, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if config.image_residual:  # start from the bicubic image: the mean is added back with the residual
            nn.init.zeros_(self.tail.weight)
            nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def restore(self, input_BCHW: Tensor, *, generator: Generator | None = None) -> Restoration:
        """Restore a batch of any size; see `Restoration`."""
        scale = self.config.scale
        B, _, h, w = input_BCHW.shape
        centred_BCHW = pad_to_multiple(input_BCHW - self.mean_1311, self.config.window)
        shallow_BHWC = to_channels_last(self.head(centred_BCHW.contiguous(memory_format=torch.channels_last)))
        x_BHWC = self.embed_norm(shallow_BHWC)
        for group in self.groups:
            x_BHWC = group(x_BHWC)
        deep_BHWC = convolve(self.body_tail, self.norm(x_BHWC)) + shallow_BHWC
        image_BCHW = F.pixel_shuffle(self.tail(deep_BHWC.permute(0, 3, 1, 2)), scale)[..., : h * scale, : w * scale]
        base = upscale_bicubic(input_BCHW, scale) if self.config.image_residual else self.mean_1311
        return Restoration(image_BCHW + base, torch.zeros(0, B, device=input_BCHW.device))

"""SwinIR written for reading, one step after the other: the oracle for the fast network, whose state dict it loads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.configs import SwinIRConfig
from harness.models.bicubic import upscale_bicubic
from harness.models.padding import pad_to_multiple
from harness.models.swinir import relative_position_index


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


class Attention(nn.Module):
    def __init__(self, config: SwinIRConfig):
        super().__init__()
        C = config.embed_dim
        self.config = config
        self.qkv = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C)
        self.position_bias = nn.Parameter(torch.zeros((2 * config.window - 1) ** 2, config.num_heads))

    def forward(self, x_XLC: Tensor, mask_NLL: Tensor | None) -> Tensor:
        X, _, C = x_XLC.shape
        bias_LLA = self.position_bias[relative_position_index(self.config.window)]
        width = C // self.config.num_heads
        query, key, value = self.qkv(x_XLC).split(C, dim=-1)
        heads = []
        for head in range(self.config.num_heads):
            mine = slice(head * width, (head + 1) * width)
            scores_XLL = query[..., mine] @ key[..., mine].transpose(1, 2) / width**0.5 + bias_LLA[..., head]
            if mask_NLL is not None:
                scores_XLL = scores_XLL + mask_NLL.to(scores_XLL.dtype).repeat(X // len(mask_NLL), 1, 1)
            heads.append(scores_XLL.softmax(-1) @ value[..., mine])
        output: Tensor = self.proj(torch.cat(heads, dim=-1))
        return output


class Layer(nn.Module):
    def __init__(self, config: SwinIRConfig, shift: int):
        super().__init__()
        C = config.embed_dim
        self.window, self.shift = config.window, shift
        self.norm1 = nn.LayerNorm(C)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(C)
        self.mlp_hidden = nn.Linear(C, int(C * config.mlp_ratio))
        self.mlp_out = nn.Linear(int(C * config.mlp_ratio), C)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        _, H, W, _ = x_BHWC.shape
        M, s = self.window, self.shift
        rolled = torch.roll(self.norm1(x_BHWC), (-s, -s), (1, 2))
        mask_NLL = shift_mask(H, W, M, s) if s else None
        attended = join(self.attention(split(rolled, M), mask_NLL), x_BHWC.shape, M)
        x_BHWC = x_BHWC + torch.roll(attended, (s, s), (1, 2))
        hidden: Tensor = self.mlp_out(F.gelu(self.mlp_hidden(self.norm2(x_BHWC))))
        return x_BHWC + hidden


class Group(nn.Module):
    def __init__(self, config: SwinIRConfig, depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(Layer(config, config.window // 2 if index % 2 else 0) for index in range(depth))
        self.conv = nn.Conv2d(config.embed_dim, config.embed_dim, 3, padding=1)


class LiteralSwinIR(nn.Module):
    def __init__(self, config: SwinIRConfig):
        super().__init__()
        self.config = config
        C = config.embed_dim
        self.head = nn.Conv2d(3, C, 3, padding=1)
        self.embed_norm = nn.LayerNorm(C)
        self.groups = nn.ModuleList(Group(config, depth) for depth in config.depths)
        self.norm = nn.LayerNorm(C)
        self.body_tail = nn.Conv2d(C, C, 3, padding=1)
        self.tail = nn.Conv2d(C, 3 * config.scale**2, 3, padding=1)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        mean_311 = torch.tensor((0.4488, 0.4371, 0.4040)).to(input_BCHW).view(3, 1, 1)
        h, w = (side * self.config.scale for side in input_BCHW.shape[-2:])
        shallow_BCHW = self.head(pad_to_multiple(input_BCHW - mean_311, self.config.window))
        x_BHWC = self.embed_norm(shallow_BCHW.permute(0, 2, 3, 1))
        for group in self.groups:
            y_BHWC = x_BHWC
            for block in group.blocks:  # type: ignore[union-attr]
                y_BHWC = block(y_BHWC)
            x_BHWC = x_BHWC + group.conv(y_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[operator]
        deep_BCHW = self.body_tail(self.norm(x_BHWC).permute(0, 3, 1, 2)) + shallow_BCHW
        image_BCHW: Tensor = F.pixel_shuffle(self.tail(deep_BCHW), self.config.scale)[..., :h, :w]
        base = upscale_bicubic(input_BCHW, self.config.scale) if self.config.image_residual else mean_311
        return image_BCHW + base

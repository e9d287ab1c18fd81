"""SwinIR with the pixel-shuffle-direct upsampler; its default config is SwinIR-light, the baseline of every comparison.

Shape suffixes: B batch, C channels, H W the padded size, M window side, L = M² tokens of a window, X windows and
T = X·L tokens of a chunk or of the batch, K kinds of windows (see `lay_out`), A heads, each of d channels of queries
and keys and e of values: C / A unless pruned.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.configs import LayerWidths, SwinIRConfig
from harness.models import fused
from harness.models.bicubic import upscale_bicubic
from harness.models.camixersr import MOST_ATTENDED, as_windows, convolve, head_width, to_channels_last
from harness.models.components import component, part_of
from harness.models.graphs import replayed
from harness.models.network import AnyGenerator, Restoration, SRNetwork
from harness.models.padding import pad_to_multiple

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_CACHED_TOKENS = 3584  # the activations of so many stay in the cache of one core


def relative_position_index(window: int) -> Tensor:
    """Return the L×L index into the (2M−1)² table of relative positions, rows first."""
    line = torch.arange(window)
    positions_2L = torch.stack(torch.meshgrid(line, line, indexing="ij")).flatten(1)
    relative_2LL = positions_2L[:, :, None] - positions_2L[:, None, :] + window - 1
    return relative_2LL[0] * (2 * window - 1) + relative_2LL[1]


class Windows(NamedTuple):
    """The tokens of a batch laid out as windows, those under the same mask side by side.

    `order_T`: where in the images, row by row, each token of the windows lies; `back_T`: the inverse; `from_other_T`:
    where in the other layout, shifted for plain and plain for shifted. `mask_1KLL`: 0 within a region of a shifted
    partition, −∞ between regions (Swin's −100 leaves weights of 1e-44, on which processors are slow). `kinds` and
    `kind_X`: which of the masks is each window's.
    """

    order_T: Tensor
    back_T: Tensor
    from_other_T: Tensor
    mask_1KLL: Tensor
    kinds: tuple[int, ...]
    kind_X: Tensor


def mask_kinds(window: int, like: Tensor) -> Tensor:
    """Return the masks of shifted windows (1×4×L×L): inside, beyond the right edge, the bottom edge, both."""
    # Whole numbers, because torch.compile does not compare truth values.
    wrapped = (torch.arange(window, device=like.device) >= window - window // 2).long()
    columns_L, rows_L = wrapped.repeat(window), wrapped.repeat_interleave(window)
    columns_LL, rows_LL = columns_L[:, None] != columns_L, rows_L[:, None] != rows_L
    apart_KLL = torch.stack((torch.zeros_like(rows_LL), columns_LL, rows_LL, columns_LL | rows_LL))
    return like.new_zeros(1, *apart_KLL.shape).masked_fill(apart_KLL, -torch.inf)


def lay_out(x_BHWC: Tensor, window: int) -> tuple[Windows, Windows]:
    """Return the plain windows of B×H×W×C features and those shifted by half a window."""
    B, H, W, _ = x_BHWC.shape
    M, shift = window, window // 2
    place_BHW1 = torch.arange(B * H * W, device=x_BHWC.device).view(B, H, W, 1)
    plain_T = as_windows(place_BHW1, M).reshape(-1)
    rolled = as_windows(torch.roll(place_BHW1, (-shift, -shift), (1, 2)), M)
    # Windows inside, those that wrap around the right edge, the bottom edge, both.
    parts = (rolled[:, :-1, :-1], rolled[:, :-1, -1:], rolled[:, -1:, :-1], rolled[:, -1:, -1:])
    shifted_T = torch.cat([part.reshape(-1) for part in parts])
    back_of_plain_T, back_of_shifted_T = (
        torch.empty_like(order_T).scatter_(0, order_T, place_BHW1.view(-1)) for order_T in (plain_T, shifted_T)
    )
    mask_1KLL = mask_kinds(M, x_BHWC)
    counts = [part.numel() // M**2 for part in parts]
    kinds = tuple(kind for kind, count in enumerate(counts) for _ in range(count))
    kind_X = torch.cat([torch.full((count,), kind, device=x_BHWC.device) for kind, count in enumerate(counts)])
    none = (0,) * len(kinds)
    return (
        Windows(plain_T, back_of_plain_T, back_of_shifted_T[plain_T], mask_1KLL[:, :1], none, torch.zeros_like(kind_X)),
        Windows(shifted_T, back_of_shifted_T, back_of_plain_T[shifted_T], mask_1KLL, kinds, kind_X),
    )


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learnt relative position bias."""

    def __init__(self, channels: int, num_heads: int, window: int, widths: LayerWidths):
        super().__init__()
        self.num_heads = num_heads
        self.widths = widths
        self.qkv = nn.Linear(channels, num_heads * (2 * widths.query + widths.value))
        self.proj = nn.Linear(num_heads * widths.value, channels)
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("position_index", relative_position_index(window), persistent=False)
        self.position_index: Tensor

    def bias(self, mask_1KLL: Tensor) -> Tensor:
        """Return what is added to the scores (keys × queries) of each head under each mask: position bias and mask."""
        index_LL = self.position_index.t()
        bias_AT = self.position_bias.t().contiguous().index_select(1, index_LL.flatten())
        return bias_AT.view(-1, 1, *index_LL.shape) + mask_1KLL

    @part_of("attention")
    def forward(self, x_XLC: Tensor, bias_AXLL: Tensor) -> Tensor:
        """Attend inside each window, on a CPU head by head: the scores of one head stay in its cache.

        `bias_AXLL` (X = 1 for the same in all windows) is keys × queries on a CPU, queries × keys elsewhere.
        """
        X, L, C = x_XLC.shape
        if x_XLC.device.type != "cpu":
            attended: Tensor = self.proj(self.attend_at_once(x_XLC, bias_AXLL))
            return attended
        projected: Tensor = self.proj(self._attend(x_XLC.reshape(-1, C).t(), bias_AXLL))
        return projected.view(X, L, C)

    def split(self, qkv: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split queries, keys and values, one after the other along a dimension."""
        d, e = self.num_heads * self.widths.query, self.num_heads * self.widths.value
        query, key, value = torch.split(qkv, [d, d, e], dim)
        return query, key, value

    def attend_at_once(self, x_XLC: Tensor, bias_AXLL: Tensor) -> Tensor:
        """Return the heads' results side by side (X×L×Ae) by one call, for which accelerators have fused kernels."""
        X, L, _ = x_XLC.shape
        d, e = self.widths.query, self.widths.value
        width = head_width(max(d, e), x_XLC.device)
        query_XALd, key_XALd, value_XALd = (
            F.pad(part.view(X, L, self.num_heads, -1), (0, width - channels)).transpose(1, 2)
            for part, channels in zip(self.split(self.qkv(x_XLC), -1), (d, d, e), strict=True)
        )
        bias_XALL = bias_AXLL.transpose(0, 1).to(query_XALd.dtype).expand(X, -1, -1, -1)
        attended_XALd = F.scaled_dot_product_attention(
            query_XALd, key_XALd, value_XALd, attn_mask=bias_XALL, scale=d**-0.5
        )
        return attended_XALd[..., :e].transpose(1, 2).reshape(X, L, -1)

    def _attend(self, x_CT: Tensor, bias_AXLL: Tensor) -> Tensor:
        """Return the heads' results side by side (T×Ae)."""
        A, L, T = self.num_heads, bias_AXLL.shape[-1], x_CT.shape[1]
        qkv = torch.addmm(self.qkv.bias[:, None], self.qkv.weight, x_CT)
        parts = (part.view(A, -1, T // L, L).transpose(1, 2).unbind() for part in self.split(qkv, 0))
        attended = []
        for query_XdL, key_XdL, value_XeL, bias_XLL in zip(*parts, bias_AXLL.unbind(), strict=True):
            scores_XLL = torch.baddbmm(bias_XLL.mT, query_XdL.mT, key_XdL, alpha=query_XdL.shape[1] ** -0.5)
            attended.append(torch.bmm(torch.softmax(scores_XLL, dim=-1), value_XeL.mT))
        return torch.cat(attended, dim=-1).view(T, -1)


class SwinBlock(nn.Module):
    """Pre-norm Swin layer; every second one of a group works on windows shifted by half a window."""

    def __init__(self, config: SwinIRConfig, layer: int):
        super().__init__()
        C, widths = config.embed_dim, config.layer_widths(layer)
        self.norm1 = nn.LayerNorm(C)
        self.attention = WindowAttention(C, config.num_heads, config.window, widths)
        self.norm2 = nn.LayerNorm(C)
        self.mlp_hidden = nn.Linear(C, widths.mlp)
        self.mlp_out = nn.Linear(widths.mlp, C)

    def forward(self, x_XLC: Tensor, windows: Windows) -> Tensor:
        """Transform all windows of a batch, on a CPU a few at a time: their activations then stay in its cache."""
        bias_AKLL = self.attention.bias(windows.mask_1KLL)
        few = _CACHED_TOKENS * torch.get_num_threads() // x_XLC.shape[1]
        if x_XLC.device.type != "cpu":
            bias_AKLL, few = bias_AKLL.mT.contiguous(), MOST_ATTENDED
        chunks, start = [], 0
        for chunk_XLC in x_XLC.chunk(-(-len(x_XLC) // max(few, 1))):
            stop = start + len(chunk_XLC)
            first, last = windows.kinds[start], windows.kinds[stop - 1]
            alike = first == last
            bias = bias_AKLL[:, first : first + 1] if alike else bias_AKLL.index_select(1, windows.kind_X[start:stop])
            chunks.append(self.transform(chunk_XLC, bias))
            start = stop
        return torch.cat(chunks)

    def transform(self, x_XLC: Tensor, bias_AXLL: Tensor) -> Tensor:
        """Transform some windows."""
        with component("norms"):
            x_XLC = x_XLC + self.attention(self.norm1(x_XLC), bias_AXLL)
            normal_XLC = self.norm2(x_XLC)
            with component("ffn"):
                transformed: Tensor = self.mlp_out(F.gelu(self.mlp_hidden(normal_XLC)))
            return x_XLC + transformed


class SwinGroup(nn.Module):
    """A residual group of Swin layers that ends with one 3×3 convolution."""

    def __init__(self, config: SwinIRConfig, first_layer: int, depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(config, first_layer + index) for index in range(depth))
        self.conv = nn.Conv2d(config.embed_dim, config.embed_dim, 3, padding=1)

    def forward(self, x_BHWC: Tensor, plain: Windows, shifted: Windows) -> Tensor:
        """Transform B×H×W×C."""
        C = x_BHWC.shape[-1]
        y_TC = x_BHWC.reshape(-1, C).index_select(0, plain.order_T)
        windows = plain
        for index, block in enumerate(self.blocks):
            if index:
                windows = shifted if index % 2 else plain
                y_TC = y_TC.index_select(0, windows.from_other_T)
            y_TC = block(y_TC.view(len(windows.kinds), -1, C), windows).view(-1, C)
        y_BHWC = y_TC.index_select(0, windows.back_T).view(x_BHWC.shape)
        with component("convolution"):
            return convolve(self.conv, y_BHWC) + x_BHWC


class SwinIR(SRNetwork):
    """SwinIR; nothing is routed."""

    def __init__(self, config: SwinIRConfig):
        super().__init__()
        self.config: SwinIRConfig = config
        C = config.embed_dim
        self.register_buffer("mean_1311", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)
        self.mean_1311: Tensor
        self.head = nn.Conv2d(3, C, 3, padding=1)
        self.embed_norm = nn.LayerNorm(C)
        firsts = [sum(config.depths[:index]) for index in range(len(config.depths))]
        self.groups = nn.ModuleList(
            SwinGroup(config, first, depth) for first, depth in zip(firsts, config.depths, strict=True)
        )
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

    @property
    def is_static(self) -> bool:
        """Whether inference does the same work whatever is in the image: it does."""
        return True

    @replayed
    def restore(self, input_BCHW: Tensor, *, generator: AnyGenerator | None = None) -> Restoration:
        """Restore a batch of any size; see `Restoration`."""
        scale = self.config.scale
        B, _, h, w = input_BCHW.shape
        centred_BCHW = pad_to_multiple(input_BCHW - self.mean_1311, self.config.window)
        if fused.suits(self, input_BCHW):
            masks_KLL = mask_kinds(self.config.window, torch.zeros(()))[0]
            image_BCHW = fused.restore_swinir(self, input_BCHW, centred_BCHW, (masks_KLL[:1], masks_KLL))
        else:
            image_BCHW = self._restore_plainly(centred_BCHW)[..., : h * scale, : w * scale]
        base = upscale_bicubic(input_BCHW, scale) if self.config.image_residual else self.mean_1311
        return Restoration(image_BCHW + base, torch.zeros(0, B, device=input_BCHW.device))

    def _restore_plainly(self, centred_BCHW: Tensor) -> Tensor:
        """Restore padded images by torch's operators; the padding stays."""
        with component("convolution"):
            shallow_BHWC = to_channels_last(self.head(centred_BCHW.contiguous(memory_format=torch.channels_last)))
        with component("norms"):
            x_BHWC = self.embed_norm(shallow_BHWC)
        plain, shifted = lay_out(x_BHWC, self.config.window)
        for group in self.groups:
            x_BHWC = group(x_BHWC, plain, shifted)
            if self.features is not None:
                self.features.append(x_BHWC)
        with component("norms"):
            normal_BHWC = self.norm(x_BHWC)
        with component("convolution"):
            deep_BHWC = convolve(self.body_tail, normal_BHWC) + shallow_BHWC
            return F.pixel_shuffle(self.tail(deep_BHWC.permute(0, 3, 1, 2)), self.config.scale)

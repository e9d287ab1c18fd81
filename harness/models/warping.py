"""Bilinear reading of features at displaced pixels.

Shape suffixes: B batch, C channels, H W sides, M window side, L = M², K windows of the whole batch, P = B·H·W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def warp(x_BHWC: Tensor, offsets_BHW2: Tensor) -> Tensor:
    """Read pixel (u, v) at (u + dx, v + dy), bilinear, border padding; `offsets` in pixels, channel 0 = x, 1 = y.

    Where the offset is NaN, so is the result: `grid_sample` would read a border pixel there, and its gradient on a CPU
    ends the process.
    """
    _, H, W, _ = x_BHWC.shape
    columns = torch.arange(W, device=x_BHWC.device, dtype=offsets_BHW2.dtype)
    rows = torch.arange(H, device=x_BHWC.device, dtype=offsets_BHW2.dtype)
    grid_BHW2 = torch.stack(
        (
            (columns + offsets_BHW2[..., 0]) * (2.0 / (W - 1)) - 1.0,
            (rows[:, None] + offsets_BHW2[..., 1]) * (2.0 / (H - 1)) - 1.0,
        ),
        dim=-1,
    )
    warped = F.grid_sample(
        x_BHWC.permute(0, 3, 1, 2).to(grid_BHW2.dtype), grid_BHW2, "bilinear", "border", align_corners=True
    )
    return warped.permute(0, 2, 3, 1).contiguous() + 0 * offsets_BHW2.sum(dim=-1, keepdim=True)


def segments_of_windows(windows_K3: Tensor, size: tuple[int, int], window: int) -> Tensor:
    """Return the row segments of some windows (K×M): rows of features viewed as (P/M)×(M·C).

    `windows_K3`: image, row and column of each window; `size`: height and width of an image.
    """
    image_K, row_K, column_K = windows_K3.unbind(1)
    height, width = size
    columns = width // window
    first_K = (image_K * height + row_K * window) * columns + column_K
    return first_K[:, None] + torch.arange(window, device=first_K.device) * columns


def rows_of_warped_sum(offsets_2KMM: Tensor, windows_K3: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return which rows of features P×C, by what weights, make up x + X̃ at the pixels of some windows.

    `windows_K3`: as above. `offsets_2KMM`: displacements in pixels, x first. The result is K×L×5 twice: int32 rows, the
    pixel's own and its four bilinear neighbours, all of them inside the pixel's image whatever the offsets; and
    weights, which carry the gradient of the offsets and are NaN where these are.
    """
    image_K, row_K, column_K = windows_K3.unbind(1)
    height, width = size
    window = offsets_2KMM.shape[-1]
    line = torch.arange(window, device=offsets_2KMM.device)
    own_x_KM = (column_K * window)[:, None] + line
    own_y_KM = (row_K * window)[:, None] + line
    x_KMM = (offsets_2KMM[0] + own_x_KM[:, None, :]).clamp(0, width - 1)
    y_KMM = (offsets_2KMM[1] + own_y_KM[:, :, None]).clamp(0, height - 1)
    left, top = x_KMM.detach().floor(), y_KMM.detach().floor()
    right_weight, below_weight = x_KMM - left, y_KMM - top
    left, top = left.int().clamp_(0, width - 1), top.int().clamp_(0, height - 1)  # where NaN became any number
    image_start_K = (image_K * (height * width)).int()[:, None, None]
    corner = torch.add(left, top, alpha=width).add_(image_start_K)
    beside, beneath = (left < width - 1).int(), (top < height - 1).int() * width
    own = (own_y_KM[:, :, None] * width + own_x_KM[:, None, :]).int() + image_start_K
    below = corner + beneath
    left_weight, above_weight = 1 - right_weight, 1 - below_weight
    rows_KMM5 = torch.stack((own, corner, corner + beside, below, below + beside), dim=-1)
    weights_KMM5 = torch.stack(
        (
            torch.ones_like(right_weight),
            left_weight * above_weight,
            right_weight * above_weight,
            left_weight * below_weight,
            right_weight * below_weight,
        ),
        dim=-1,
    )
    return rows_KMM5.view(-1, window**2, 5), weights_KMM5.view(-1, window**2, 5)


def sum_rows(x_PC: Tensor, rows_KL5: Tensor, weights_KL5: Tensor) -> Tensor:
    """Return the weighted sums of rows of `x_PC` as (K·L)×C."""
    return F.embedding_bag(
        rows_KL5.view(-1, 5), x_PC, per_sample_weights=weights_KL5.view(-1, 5).to(x_PC.dtype), mode="sum"
    )

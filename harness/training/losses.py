"""The losses of the paper."""

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.metrics import latitude_weights


def l1_loss(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Return the mean absolute error over all values, in float32."""
    return F.l1_loss(output_BCHW.float(), target_BCHW)


def weighted_l1_loss(output_BCHW: Tensor, target_BCHW: Tensor, weights_BH: Tensor) -> Tensor:
    """Return the mean over all values of the absolute error times its row's weight, in float32 (eq. 6, supplementary).

    The mean is over values, not over weights: crops near the poles count less than crops near the equator, the mean
    over disjoint crops is the loss of the image that they cover, and weights of 1 give `l1_loss`.
    """
    return ((output_BCHW.float() - target_BCHW).abs() * weights_BH[:, None, :, None]).mean()


def crop_weights(first_row_B: Tensor, image_rows_B: Tensor, side: int) -> Tensor:
    """Return the row weights (B×`side`, float32, in ]0, 1]) of crops out of equirectangular images of `image_rows_B`.

    They are those of the whole image's rows, cos((l + 0.5 − H/2)·π/H), from row `first_row_B` on.
    """
    weights = [
        torch.from_numpy(latitude_weights(rows)[first : first + side])
        for first, rows in zip(first_row_B.tolist(), image_rows_B.tolist(), strict=True)
    ]
    return torch.stack(weights).float()


def ratio_loss(hard_share_SB: Tensor, gamma: float) -> Tensor:
    """Return 2γ·(mean − 0.5)², the mean over blocks, images and windows of the mask (CAMixerSR, algorithm 1)."""
    return 2 * gamma * (hard_share_SB.float().mean() - 0.5) ** 2

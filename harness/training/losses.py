"""The two losses of the paper."""

from torch import Tensor
from torch.nn import functional as F


def l1_loss(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Return the mean absolute error over all values, in float32."""
    return F.l1_loss(output_BCHW.float(), target_BCHW)


def ratio_loss(hard_share_SB: Tensor, gamma: float) -> Tensor:
    """Return 2γ·(mean − 0.5)², the mean over blocks, images and windows of the mask (CAMixerSR, algorithm 1)."""
    return 2 * gamma * (hard_share_SB.float().mean() - 0.5) ** 2

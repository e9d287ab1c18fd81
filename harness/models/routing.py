"""Which windows get attention at inference: deterministic, and image by image.

The released network draws noise at inference and couples the images of a batch; here the windows of each image are
ranked by the logit difference "hard minus simple" (which, unlike the probability, does not saturate in float32), ties
in window order, and the policy says how many of them are hard.
"""

import torch
from torch import Tensor

from harness.core.configs import RoutingConfig


def count_fixed(gamma: float, num_windows: int) -> int:
    """Return K = floor(γN + 1e-9), the number of hard windows of the policies `fixed` and `schedule`."""
    return int(gamma * num_windows + 1e-9)


def select_windows(logits_BN2: Tensor, routing: RoutingConfig, block: int) -> Tensor:
    """Select the hard windows of one block: a boolean mask B×N.

    `logits_BN2`: routing logits, [..., 0] for "hard". The policies are those of `RoutingConfig`; `block` counts from 0
    over the whole network and picks γ_b of a schedule. Image i's row depends on image i alone.
    """
    num_windows = logits_BN2.shape[1]
    if routing.policy == "threshold":
        return logits_BN2[..., 0] > logits_BN2[..., 1]  # p > 0.5
    ranks_BN = _rank(logits_BN2[..., 0] - logits_BN2[..., 1])
    if routing.policy == "probability":
        return ranks_BN < _count_by_probability(logits_BN2, routing.gamma)
    gamma = routing.schedule[block] if routing.schedule is not None else routing.gamma
    return ranks_BN < count_fixed(gamma, num_windows)


def _rank(score_BN: Tensor) -> Tensor:
    """Rank each row's scores: 0 for the highest; equal scores keep their order."""
    order_BN = torch.argsort(score_BN, dim=1, descending=True, stable=True)
    positions_BN = torch.arange(score_BN.shape[1], device=score_BN.device).expand_as(order_BN)
    return torch.empty_like(order_BN).scatter_(1, order_BN, positions_BN)


def _count_by_probability(logits_BN2: Tensor, gamma: float) -> Tensor:
    """Return K = floor(Σw + 0.5) per image (B×1), w = 2γp for γ ≤ .5 and p + (2γ−1)(1−p) above."""
    hard_BN = torch.softmax(logits_BN2.double(), dim=-1)[..., 0]
    weights_BN = 2 * gamma * hard_BN if gamma <= 0.5 else hard_BN + (2 * gamma - 1) * (1 - hard_BN)
    return torch.floor(weights_BN.sum(1, keepdim=True) + 0.5).long()

"""Which windows get attention at inference: deterministic, and image by image.

The released network draws noise at inference and couples the images of a batch; here the windows of each image are
ranked by the logit difference "hard minus simple" (which, unlike the probability, does not saturate in float32), ties
in window order, and the policy says how many of them are hard. The policy `detail` ranks by the detail of the input
instead, over all blocks at once. A map of importance may be added to either ranking.

Shape suffixes: B images, H W sides in pixels, N windows of an image, S blocks.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.configs import RoutingConfig

LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # of BT.601, for inputs in [0, 1]
LEAST_DETAIL = 1e-12  # of flat windows, so that they are ranked by the weights of the blocks alone


def count_fixed(gamma: float, num_windows: int) -> int:
    """Return K = floor(γN + 1e-9), the number of hard windows of the policies `fixed` and `schedule`."""
    count: int = torch.sym_int(gamma * num_windows + 1e-9)  # type: ignore[no-untyped-call]  # `int`, of free sizes too
    return count


def knows_counts(routing: RoutingConfig) -> bool:
    """Say whether K is known for every block before any image is seen."""
    return routing.policy in ("fixed", "schedule") or (routing.policy == "probability" and routing.gamma in (0, 1))


def count_windows(routing: RoutingConfig, block: int, num_windows: int) -> int | None:
    """Return K, the number of hard windows of one block in each image; None where it depends on the image."""
    if routing.never_attends(block):
        return 0
    if not knows_counts(routing):
        return None
    return count_fixed(_gamma(routing, block), num_windows)


def rank_windows(logits_BN2: Tensor, importance_BN: Tensor | None = None) -> Tensor:
    """Return the windows of each image (B×N) from the hardest on: the first K of them are those of `select_windows`."""
    return _sort(_score(logits_BN2, importance_BN))


def select_windows(
    logits_BN2: Tensor, routing: RoutingConfig, block: int, importance_BN: Tensor | None = None
) -> Tensor:
    """Select the hard windows of one block by its logits: a boolean mask B×N, of any policy but `detail`.

    `logits_BN2`: routing logits, [..., 0] for "hard". The policies are those of `RoutingConfig`; `block` counts from 0
    over the whole network and picks γ_b of a schedule. `importance_BN` is added to the logit differences that windows
    are ranked by; it never changes K. Image i's row depends on image i alone.
    """
    score_BN = _score(logits_BN2, importance_BN)
    if routing.policy == "threshold":  # p > 0.5
        difference_BN = _score(logits_BN2)
        if importance_BN is None:
            return difference_BN > 0
        return _rank(score_BN) < (difference_BN > 0).sum(1, keepdim=True)
    ranks_BN = _rank(score_BN)
    if routing.policy == "probability":
        return ranks_BN < _count_by_probability(logits_BN2, routing.gamma)
    return ranks_BN < count_fixed(_gamma(routing, block), logits_BN2.shape[1])


def select_by_detail(detail_BN: Tensor, routing: RoutingConfig, importance_BN: Tensor | None = None) -> Tensor:
    """Select the hard windows of all blocks under the policy `detail`: a boolean mask S×B×N.

    The floor(γSN + 1e-9) pairs with the highest log w_b + log e_n, plus `importance_BN` where it is given, get
    attention: ties in the order of the blocks, then of the windows. Blocks of weight 0 get none.
    """
    assert routing.block_weights is not None
    num_images, num_windows = detail_BN.shape
    num_blocks = len(routing.block_weights)
    alive = [block for block, weight in enumerate(routing.block_weights) if weight > 0]
    weights_S = torch.tensor([math.log(routing.block_weights[block]) for block in alive], dtype=torch.float64)
    score_BN = detail_BN.double().clamp(min=LEAST_DETAIL).log()
    if importance_BN is not None:
        score_BN = score_BN + importance_BN
    score_BSN = weights_S.to(score_BN.device)[None, :, None] + score_BN[:, None]
    ranks_BX = _rank(score_BSN.reshape(num_images, len(alive) * num_windows))
    chosen_BX = ranks_BX < count_fixed(routing.gamma, num_blocks * num_windows)
    mask_SBN = torch.zeros(num_blocks, num_images, num_windows, dtype=torch.bool, device=detail_BN.device)
    mask_SBN[alive] = chosen_BX.view(num_images, len(alive), num_windows).transpose(0, 1)
    return mask_SBN


def measure_detail(padded_BCHW: Tensor, size: tuple[int, int], window: int) -> Tensor:
    """Return the detail e_n of each window (B×N ≥ 0, float64): the sum of (Y − mean of Y over 3×3)² of its pixels.

    `padded_BCHW`: RGB in [0, 1], padded to multiples of `window`; Y is the luma of BT.601, borders are replicated. Only
    the pixels of the image itself, `size` = (h, w) at the top left, count: what restores padding is cut off.
    """
    h, w = size
    weights_C = torch.tensor(LUMA, dtype=torch.float64, device=padded_BCHW.device)
    luma_BHW = (padded_BCHW[..., :h, :w].double() * weights_C[:, None, None]).sum(1)
    bordered_BHW = F.pad(luma_BHW[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    columns = bordered_BHW[..., :-2] + bordered_BHW[..., 1:-1] + bordered_BHW[..., 2:]
    mean_BHW = (columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:]) / 9
    return sum_over_windows((luma_BHW - mean_BHW).square(), window)


def sum_over_windows(map_BHW: Tensor, window: int) -> Tensor:
    """Sum a map over each window of `window`² pixels (B×N, row by row); windows may reach over right and bottom."""
    B, H, W = map_BHW.shape
    padded_BHW = F.pad(map_BHW, (0, -W % window, 0, -H % window))
    return padded_BHW.view(B, -(-H // window), window, -(-W // window), window).sum(dim=(2, 4)).flatten(1)


class RoutingPlan(NamedTuple):
    """What routing one batch needs beside the logits of each block.

    `importance_BN`: what is added to the ranking of each window. `mask_SBN`: the hard windows of all blocks where they
    are known from the input alone (policy `detail`). `unread`: blocks whose predictor nothing reads. `windows`: the
    same as `mask_SBN`, as image, row and column (K×3) for each block, where they were looked up for all blocks at once.
    """

    routing: RoutingConfig
    importance_BN: Tensor | None
    mask_SBN: Tensor | None
    unread: frozenset[int] = frozenset()
    windows: tuple[Tensor, ...] | None = None

    def look_up_windows(self, size: tuple[int, int]) -> "RoutingPlan":
        """Return the plan with `windows` where there is a `mask_SBN`; images are `size` = (R, Q) windows high and wide.

        On other devices than the CPU that waits for the device: here once, rather than once in each block.
        """
        if self.mask_SBN is None:
            return self
        found_X4 = self.mask_SBN.view(*self.mask_SBN.shape[:2], *size).nonzero()
        counts_S = self.mask_SBN.sum(dim=(1, 2)).tolist()
        return self._replace(windows=torch.split(found_X4[:, 1:], counts_S))


def plan_routing(
    routing: RoutingConfig, padded_BCHW: Tensor, size: tuple[int, int], window: int, importance_BHW: Tensor | None
) -> RoutingPlan:
    """Plan the routing of a batch of images of `size` = (h, w), padded to multiples of `window` at right and bottom.

    `importance_BHW` (one map for each image, or one for all) lies over the images; a window's importance is the mean
    over its pixels inside the image.
    """
    importance_BN = None
    if importance_BHW is not None:
        area_BN = sum_over_windows(torch.ones_like(importance_BHW), window)
        importance_BN = (sum_over_windows(importance_BHW, window) / area_BN).expand(len(padded_BCHW), -1)
    mask_SBN = None
    if routing.policy == "detail":
        mask_SBN = select_by_detail(measure_detail(padded_BCHW, size, window), routing, importance_BN)
    return RoutingPlan(routing, importance_BN, mask_SBN)


def _gamma(routing: RoutingConfig, block: int) -> float:
    return routing.schedule[block] if routing.schedule is not None else routing.gamma


def _score(logits_BN2: Tensor, importance_BN: Tensor | None = None) -> Tensor:
    """Return what windows are ranked by."""
    difference_BN = logits_BN2[..., 0] - logits_BN2[..., 1]
    return difference_BN if importance_BN is None else difference_BN + importance_BN


def _sort(score_BN: Tensor) -> Tensor:
    """Return the places of each row's scores from the highest on; equal scores keep their order."""
    return torch.argsort(score_BN, dim=1, descending=True, stable=True)


def _rank(score_BN: Tensor) -> Tensor:
    """Rank each row's scores: 0 for the highest; equal scores keep their order."""
    order_BN = _sort(score_BN)
    positions_BN = torch.arange(score_BN.shape[1], device=score_BN.device).expand_as(order_BN)
    return torch.empty_like(order_BN).scatter_(1, order_BN, positions_BN)


def _count_by_probability(logits_BN2: Tensor, gamma: float) -> Tensor:
    """Return K = floor(Σw + 0.5) per image (B×1), w = 2γp for γ ≤ .5 and p + (2γ−1)(1−p) above."""
    hard_BN = torch.softmax(logits_BN2.double(), dim=-1)[..., 0]
    weights_BN = 2 * gamma * hard_BN if gamma <= 0.5 else hard_BN + (2 * gamma - 1) * (1 - hard_BN)
    return torch.floor(weights_BN.sum(1, keepdim=True) + 0.5).long()

import math

import pytest
import torch

from harness.training.losses import l1_loss, ratio_loss


def test_l1_loss_is_the_mean_absolute_error_in_float32() -> None:
    output, target = torch.tensor([0.0, 0.5, 1.0, 0.25]), torch.tensor([0.0, 0.0, 0.5, 0.5])
    assert l1_loss(output, target).item() == (0 + 0.5 + 0.5 + 0.25) / 4
    half = l1_loss(output.bfloat16(), target)
    assert half.dtype == torch.float32
    assert half.item() == 1.25 / 4


def test_ratio_loss_is_2_gamma_times_the_squared_distance_of_the_mean_share_from_one_half() -> None:
    share_SB = torch.tensor([[1.0, 0.5], [0.75, 0.75]])  # mean 0.75
    assert ratio_loss(share_SB, 0.5).item() == 0.0625
    assert ratio_loss(share_SB, 1.0).item() == 0.125
    assert ratio_loss(share_SB, 0.0).item() == 0
    assert ratio_loss(torch.full((2, 3), 0.5), 1.0).item() == 0
    assert ratio_loss(torch.zeros(2, 3), 0.25).item() == 0.125  # below the half it costs as much as above


def test_ratio_loss_looks_at_the_mean_and_pulls_every_share_alike() -> None:
    share_SB = torch.tensor([[1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    ratio_loss(share_SB, 0.5).backward()  # type: ignore[no-untyped-call]
    assert share_SB.grad is not None
    # d/ds of 2γ(mean − ½)² = 4γ(mean − ½)/n, with γ = ½, mean ¾, n = 4
    assert torch.equal(share_SB.grad, torch.full((2, 2), 0.125))
    assert math.isclose(share_SB.grad.sum().item(), 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ratio_loss_is_taken_in_float32(dtype: torch.dtype) -> None:
    share_SB = torch.full((64, 64), 0.501).to(dtype)
    assert ratio_loss(share_SB, 1.0).dtype == torch.float32
    assert ratio_loss(share_SB, 1.0).item() == pytest.approx(2 * (share_SB[0, 0].item() - 0.5) ** 2, rel=1e-3)

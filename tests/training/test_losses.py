import math

import pytest
import torch

from harness.metrics import latitude_weights
from harness.training.losses import crop_weights, l1_loss, ratio_loss, weighted_l1_loss


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


# Latitude ------------------------------------------------------------------------------------------------------------


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_crops_weights_are_those_of_its_rows_in_the_whole_image() -> None:
    """cos((l + ½ − H/2)π/H) with l counted in the image; the equator of 4 rows lies between rows 1 and 2."""
    weights_BH = crop_weights(torch.tensor([0, 2, 90]), torch.tensor([4, 4, 1000]), side=2)
    assert weights_BH.dtype == torch.float32
    expected = [
        [math.cos(3 * math.pi / 8), math.cos(math.pi / 8)],
        [math.cos(math.pi / 8), math.cos(3 * math.pi / 8)],
        [math.sin(90.5 * math.pi / 1000), math.sin(91.5 * math.pi / 1000)],  # from the pole on
    ]
    assert torch.allclose(weights_BH, torch.tensor(expected), atol=1e-7)


def test_the_mean_over_all_crops_is_the_loss_of_the_image() -> None:
    output, target = noise(1, 3, 24, 16), noise(1, 3, 24, 16, seed=1)
    whole = weighted_l1_loss(output, target, crop_weights(torch.tensor([0]), torch.tensor([24]), 24))
    crops = [(row, column) for row in range(0, 24, 8) for column in range(0, 16, 8)]
    outputs, targets = (
        torch.cat([image[..., row : row + 8, column : column + 8] for row, column in crops])
        for image in (output, target)
    )
    rows = torch.tensor([row for row, _ in crops])
    loss = weighted_l1_loss(outputs, targets, crop_weights(rows, torch.full_like(rows, 24), 8))
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    written_out = sum(
        math.cos((row + 0.5 - 12) * math.pi / 24) * (output - target)[..., row, :].abs().sum().item()
        for row in range(24)
    ) / (3 * 24 * 16)
    assert whole.item() == pytest.approx(written_out, rel=1e-6)
    assert latitude_weights(24).mean() == pytest.approx(2 / math.pi, rel=1e-2)  # what it is to the plain loss


def test_constant_weights_give_the_plain_loss() -> None:
    output, target = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    plain = l1_loss(output, target).item()
    assert weighted_l1_loss(output, target, torch.ones(2, 8)).item() == pytest.approx(plain, rel=1e-6)
    assert weighted_l1_loss(output, target, torch.full((2, 8), 0.25)).item() == pytest.approx(plain / 4, rel=1e-6)
    assert weighted_l1_loss(output.bfloat16(), target, torch.ones(2, 8)).dtype == torch.float32


def test_an_error_near_the_pole_counts_less_than_the_same_error_at_the_equator() -> None:
    target = torch.zeros(2, 3, 4, 4)
    weights_BH = crop_weights(torch.tensor([0, 48]), torch.tensor([100, 100]), 4)
    output = torch.stack([torch.full((3, 4, 4), 0.5), torch.zeros(3, 4, 4)])
    at_pole, at_equator = (weighted_l1_loss(image, target, weights_BH).item() for image in (output, output.flip(0)))
    assert at_pole == pytest.approx(0.25 * weights_BH[0].mean().item())
    assert at_pole < 0.07 * at_equator

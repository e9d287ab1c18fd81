"""Importance against formulas written out, on real gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.compression import accumulate_gradients, find_groups, score_units
from harness.core.configs import Importance
from harness.core.errors import UserError
from harness.models import CAMixerSR
from tests.compression.test_channels import NETWORKS, build


def gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


FORMULAS: dict[Importance, Callable[[Tensor], Tensor]] = {
    "magnitude": lambda weight: weight.abs(),
    "group-norm": lambda weight: weight.square(),
    "taylor": lambda weight: (weight * gradient(weight)).abs(),
}


def crops(scale: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.rand(2, 3, 16, 16, generator=generator), torch.rand(2, 3, 16 * scale, 16 * scale, generator=generator))
        for _ in range(2)
    ]


@pytest.mark.parametrize("importance", FORMULAS)
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_the_formulas(name: str, importance: Importance) -> None:
    network = build(name)
    groups = find_groups(network.config)  # type: ignore[arg-type]
    accumulate_gradients(network, crops(network.scale), F.l1_loss)
    scores = score_units(network, groups, importance)
    for group in groups:
        expected_U = torch.zeros(group.units, dtype=torch.float64)
        for member in group.members:
            if member.axis == "in" and importance == "magnitude":
                continue
            weight = network.get_submodule(member.module).weight
            assert isinstance(weight, Tensor)
            each = FORMULAS[importance](weight).detach().double()
            by_channel = each if member.axis == "out" else each.transpose(0, 1)
            expected_U += by_channel.flatten(1).sum(1)[member.positions_UR].sum(1) if each.dim() > 1 else each
        torch.testing.assert_close(scores[group.name], expected_U, rtol=1e-4, atol=1e-12)
        assert len(scores[group.name]) == group.units


def test_gradients_are_means_over_crops_and_the_network_is_left_as_it_was() -> None:
    network = build("plain")
    assert isinstance(network, CAMixerSR)
    first, second = crops(network.scale)
    found = []
    for some in ([first], [second], [first, second], [first, second]):
        accumulate_gradients(network, some, F.l1_loss)
        found.append([one.grad.clone() for one in network.parameters() if one.grad is not None])
    for one, other, both, again in zip(*found, strict=True):
        torch.testing.assert_close(both, (one + other) / 2, rtol=1e-4, atol=1e-9)
        assert torch.equal(both, again)
    assert not network.training
    assert network.routing_noise


def test_random_is_drawn_from_its_seed() -> None:
    network = build("plain")
    groups = find_groups(network.config)  # type: ignore[arg-type]
    one, same, other = (score_units(network, groups, "random", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_taylor_without_gradients_is_refused() -> None:
    network = build("plain")
    with pytest.raises(UserError, match="needs gradients"):
        score_units(network, find_groups(network.config), "taylor")  # type: ignore[arg-type]

"""What each unit of a channel group is worth, by torch-pruning's criteria.

`magnitude`: the L1 norm of the weights that make a unit (Li et al., ICLR 2017). `group-norm`: the squared L2 norm of
all weights that make or read it (DepGraph, CVPR 2023). `taylor`: Σ|w·∂L/∂w| over the same weights, the first-order
change of the loss without them (Molchanov et al., CVPR 2019), for gradients of the training loss on real crops.
`random`: the control.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from harness.compression.channels import ChannelGroup, Member
from harness.core.configs import Importance
from harness.core.errors import UserError
from harness.models import CAMixerSR, SRNetwork


def accumulate_gradients(
    network: SRNetwork,
    crops: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    turn: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> None:
    """Leave in the network's parameters the mean gradient of `loss(output, target)` over pairs of batches (B×3×h×w).

    The network runs as in training, with both paths of the mixer under the mask, but without noise: the same crops give
    the same gradients. Each batch is computed inside a `turn()`.
    """
    was_training, noise = network.training, network.routing_noise if isinstance(network, CAMixerSR) else True
    network.train()
    network.zero_grad()
    if isinstance(network, CAMixerSR):
        network.routing_noise = False
    try:
        count = 0
        for low_BCHW, high_BCHW in crops:
            with turn():
                loss(network(low_BCHW), high_BCHW).backward()  # type: ignore[no-untyped-call]
            count += 1
        for parameter in network.parameters():
            if parameter.grad is None:  # of what nothing depends on
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= max(count, 1)
    finally:
        network.train(was_training)
        if isinstance(network, CAMixerSR):
            network.routing_noise = noise


def score_units(
    network: SRNetwork, groups: Sequence[ChannelGroup], importance: Importance, *, seed: int = 0
) -> dict[str, Tensor]:
    """Return the importance of each group's units (U, float64, ≥ 0), by the name of the group.

    `taylor` reads gradients that `accumulate_gradients` has left: `UserError` where there are none. Sums over all
    weights of a unit compare across groups: one that runs through every block has more of them than one inside a block.
    """
    criterion = _criterion(importance)
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for group in groups:
        if importance == "random":
            scores[group.name] = torch.rand(group.units, generator=generator, dtype=torch.float64)
            continue
        members = [one for one in group.members if importance != "magnitude" or one.axis == "out"]
        if importance == "taylor" and any(_weight(network, member).grad is None for member in members):
            raise UserError("importance taylor needs gradients: expected accumulate_gradients to have run")
        scores[group.name] = criterion(_as_torch_pruning(network, members))[: group.units].double()
    return scores


def _criterion(importance: Importance) -> Any:
    """Return torch-pruning's criterion; what several positions of a unit are worth is added up."""
    criteria = torch_pruning.importance
    settings = {"group_reduction": "sum", "normalizer": None}
    match importance:
        case "magnitude":
            return criteria.GroupMagnitudeImportance(p=1, **settings)
        case "group-norm":
            return criteria.GroupMagnitudeImportance(p=2, **settings)
        case "taylor":
            return criteria.GroupTaylorImportance(**settings)
        case "random":
            return None


def _weight(network: SRNetwork, member: Member) -> Tensor:
    weight = network.get_submodule(member.module).weight
    assert isinstance(weight, Tensor)
    return weight


class _Item(tuple[Any, list[int]]):
    """What torch-pruning iterates over: a dependency and positions, and the unit that each of them belongs to."""

    root_idxs: list[int]


def _as_torch_pruning(network: SRNetwork, members: Sequence[Member]) -> Any:
    """Return members as a group of torch-pruning, with every unit in it.

    A depthwise convolution counts as the outputs that it has: the criteria pass over what is called depthwise.
    """
    group = torch_pruning.dependency.Group()
    for member in members:
        module = network.get_submodule(member.module)
        node = torch_pruning.dependency.Node(module, None, member.module)
        handler = _handler(module, member.axis)
        dependency = torch_pruning.dependency.Dependency(handler, handler, node, node)
        positions_P, order_P = member.positions_UR.flatten().sort()
        unit_P = order_P // member.positions_UR.shape[1]
        item = _Item((dependency, positions_P.tolist()))
        item.root_idxs = unit_P.tolist()
        group.items.append(item)
    return group


def _handler(module: nn.Module, axis: str) -> Any:
    if isinstance(module, nn.LayerNorm):
        return torch_pruning.prune_layernorm_out_channels
    if isinstance(module, nn.Conv2d):
        return torch_pruning.prune_conv_out_channels if axis == "out" else torch_pruning.prune_conv_in_channels
    return torch_pruning.prune_linear_out_channels if axis == "out" else torch_pruning.prune_linear_in_channels

"""How many units each channel group gives up, so that a network costs no more than a target and loses least.

Every group has levels: widths that are multiples of `round_to`, each with what the network loses there (`Curves`). The
levels that lose least for a saving are those with the smallest loss − λ·saving, group by group; λ is bisected until the
whole network, by its exact cost, meets the target, and what was given up too much is given back.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from harness.compression.channels import ChannelGroup
from harness.core.errors import UserError

LEAST_SHARE = 0.1  # of a group's units stay, whatever they are worth
TARGET_TOLERANCE = 0.03  # by which the achieved cost may miss the target
_BISECTIONS = 60
_HELD_GROUPS = 8

Fewer = dict[str, int]  # units less, by the name of their group
Cost = Callable[[Fewer], float]  # of a network with so many units less


class Level(NamedTuple):
    """A width that a group may have: how many units fewer, and what the network loses, in any unit."""

    fewer: int
    loss: float


Curves = Mapping[str, Sequence[Level]]  # of each group, from no unit less on


def widths_of(group: ChannelGroup, round_to: int = 1) -> list[int]:
    """Return the widths that a group may have, the present one first: then multiples of `round_to` below it."""
    least = max(group.least, -(-group.units * LEAST_SHARE // 1), 1)
    return [group.units] + [width for width in range(group.units - 1, 0, -1) if width >= least and not width % round_to]


def nearest_width(group: ChannelGroup, share: float, round_to: int = 1) -> int:
    """Return the width that a group may have which is nearest to a share of its own."""
    return min(widths_of(group, round_to), key=lambda width: abs(width - share * group.units))


def sum_up_scores(groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], round_to: int = 1) -> Curves:
    """Return what groups lose at each of their widths: the sum of the importance of the units that go."""
    curves: dict[str, list[Level]] = {}
    for group in groups:
        lost_U = scores[group.name].sort().values.cumsum(0)
        counts = [group.units - width for width in widths_of(group, round_to)]
        curves[group.name] = [Level(count, float(lost_U[count - 1]) if count else 0.0) for count in counts]
    return curves


def choose_least_loss(curves: Curves, cost: Cost, target: float, tolerance: float = TARGET_TOLERANCE) -> Fewer:
    """Return how many units each group gives up: the cost is at most `target`, and near it, and the loss least.

    Raises `UserError` where the target cannot be met, saying what can, and where widths are too coarse to come within
    the `tolerance`, a fraction of it.
    """
    whole = cost({})
    if whole <= target:
        return {}
    savings = {
        name: [whole - cost({name: level.fewer}) if level.fewer else 0.0 for level in levels]
        for name, levels in curves.items()
    }
    fewer = _solve(curves, savings, cost, target)
    if _misses(cost(fewer), target, tolerance):
        fewer = _come_nearer(fewer, curves, savings, cost, target, tolerance)
    return _checked(fewer, cost, target, tolerance)


def _come_nearer(
    fewer: Fewer,
    curves: Curves,
    savings: Mapping[str, Sequence[float]],
    cost: Cost,
    target: float,
    tolerance: float,
) -> Fewer:
    """Return a choice within the tolerance, where one group gives up less than is best, and the others more.

    Where steps of some groups are as large as the tolerance, this tries each of the largest; of what is found that
    which loses least, and the given choice where nothing is.
    """
    found: list[tuple[float, Fewer]] = []
    by_step = sorted(fewer, key=lambda name: -max(savings[name]) / len(savings[name]))
    for name in by_step[:_HELD_GROUPS]:
        index = next(index for index, level in enumerate(curves[name]) if level.fewer == fewer[name])
        for other in range(index - 1, -1, -1):
            held = slice(other, other + 1)
            some, saved = {**curves, name: curves[name][held]}, {**savings, name: savings[name][held]}
            try:
                choice = _solve(some, saved, cost, target)
            except UserError:  # the others cannot make up for it
                break
            if not _misses(cost(choice), target, tolerance):
                loss = sum(
                    next(level.loss for level in curves[group] if level.fewer == count)
                    for group, count in choice.items()
                )
                found.append((loss, choice))
                break
    return min(found, key=lambda each: each[0])[1] if found else fewer


def _solve(curves: Curves, savings: Mapping[str, Sequence[float]], cost: Cost, target: float) -> Fewer:
    """Bisect λ, and widen again what need not be so narrow."""

    def best(weight: float) -> dict[str, int]:
        """Return the index of each group's level of smallest loss − λ·saving; of equals, the first."""
        chosen = {}
        for name, levels in curves.items():
            objectives = [level.loss - weight * saving for level, saving in zip(levels, savings[name], strict=True)]
            chosen[name] = objectives.index(min(objectives))
        return chosen

    def costs(chosen: Mapping[str, int]) -> float:
        return cost({name: curves[name][index].fewer for name, index in chosen.items() if curves[name][index].fewer})

    low, high = 0.0, _steepest(curves, savings)
    if costs(best(high)) > target:
        raise _unreachable(target, costs(best(high)), cost({}))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if costs(best(middle)) <= target else (middle, high)
    chosen = _give_back(best(high), curves, costs, target)
    return {name: curves[name][index].fewer for name, index in chosen.items() if curves[name][index].fewer}


def _steepest(curves: Curves, savings: Mapping[str, Sequence[float]]) -> float:
    """Return a λ so large that every group gives up all that it can."""
    least = min((saving for of_group in savings.values() for saving in of_group if saving > 0), default=1.0)
    return 2 * (1 + max(level.loss for levels in curves.values() for level in levels)) / least


def _give_back(
    chosen: dict[str, int], curves: Curves, costs: Callable[[Mapping[str, int]], float], target: float
) -> dict[str, int]:
    """Widen groups again, level by level, the one that loses most first, as long as the target is met."""
    open_groups = {name for name, index in chosen.items() if index}
    while open_groups:
        name = max(open_groups, key=lambda name: curves[name][chosen[name]].loss - curves[name][chosen[name] - 1].loss)
        wider = {**chosen, name: chosen[name] - 1}
        if costs(wider) <= target:
            chosen = wider
            if not chosen[name]:
                open_groups.remove(name)
        else:
            open_groups.remove(name)
    return chosen


def choose_uniformly(
    groups: Sequence[ChannelGroup], cost: Cost, target: float, round_to: int = 1, tolerance: float = TARGET_TOLERANCE
) -> Fewer:
    """Return how many units each group gives up where all give up the same share, as nearly as the target allows.

    `UserError` as `choose_least_loss`.
    """

    def at(share: float) -> Fewer:
        """Widths nearest to that share of each group's own."""
        fewer = {}
        for group in groups:
            width = nearest_width(group, share, round_to)
            if width < group.units:
                fewer[group.name] = group.units - width
        return fewer

    whole, least = cost({}), cost(at(0.0))
    if least > target:
        raise _unreachable(target, least, whole)
    if whole <= target:
        return {}
    chosen = _bisect_share(groups, cost, at, target, round_to)
    coarsest = max(groups, key=lambda group: len(group.members))
    fewer = chosen.get(coarsest.name, 0)
    counts = [coarsest.units - width for width in widths_of(coarsest, round_to)]
    for count in reversed(counts[: counts.index(fewer)] if _misses(cost(chosen), target, tolerance) else []):

        def held(share: float, count: int = count) -> Fewer:
            return {**at(share), coarsest.name: count}

        if cost(held(0.0)) > target:
            break
        found = _bisect_share([group for group in groups if group is not coarsest], cost, held, target, round_to)
        if not _misses(cost(found), target, tolerance):
            chosen = found
            break
    return _checked({name: count for name, count in chosen.items() if count}, cost, target, tolerance)


def _bisect_share(
    groups: Sequence[ChannelGroup], cost: Cost, at: Callable[[float], Fewer], target: float, round_to: int
) -> Fewer:
    """Return the widths of the largest share that meets the target, and some wider ones that it leaves room for."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) <= target else (low, middle)
    chosen = at(low)
    levels = {group.name: [group.units - width for width in widths_of(group, round_to)] for group in groups}
    while True:  # give back level by level, in turn
        before = dict(chosen)
        for group in groups:
            if fewer := chosen.get(group.name, 0):
                some = {**chosen, group.name: levels[group.name][levels[group.name].index(fewer) - 1]}
                if cost(some) <= target:
                    chosen = some
        if chosen == before:
            return chosen


def _unreachable(target: float, least: float, whole: float) -> UserError:
    return UserError(
        f"target {target:.4g} cannot be reached by removing channels: the whole network costs {whole:.4g}, and "
        f"{least:.4g} is left at the least; expected a target between them, or more kinds of channels"
    )


def _misses(reached: float, target: float, tolerance: float) -> bool:
    return reached < (1 - tolerance) * target


def _checked(fewer: Fewer, cost: Cost, target: float, tolerance: float) -> Fewer:
    reached = cost(fewer)
    if _misses(reached, target, tolerance):
        raise UserError(
            f"target {target:.4g} is not met within {100 * tolerance:g} %: {reached:.4g} is what these widths come "
            "nearest to; expected a smaller round_to, or a target near that"
        )
    return fewer


def least_important(scores: Mapping[str, Tensor], fewer: Fewer) -> dict[str, list[int]]:
    """Return the units of smallest importance that groups give up; of equals, those that come first."""
    return {
        name: scores[name].argsort(stable=True)[:count].sort().values.tolist() for name, count in fewer.items() if count
    }

"""How many units each channel group gives up, so that a network costs no more than a target and loses least.

Every group has levels: widths that are multiples of `round_to`, each with what the network loses there (`Curves`). The
levels that lose least for each saving are found as of a knapsack, exactly; which saving meets the target is told by the
whole network's exact cost.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from harness.compression.channels import ChannelGroup
from harness.core.errors import UserError

LEAST_SHARE = 0.1  # of a group's units stay, whatever they are worth
TARGET_TOLERANCE = 0.03  # by which the achieved cost may miss the target
_BISECTIONS = 60
_STEPS = 8192  # into which a network's cost is divided
_RELINEARISATIONS = 8

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

    Where savings add up, nothing within the tolerance loses less, but for choices closer to its ends than savings are
    rounded: to 1/8192 of the whole network's cost. Savings of channels that meet in a product of two widths do not;
    they are taken where the network has been narrowed already, again and again as long as that loses less. Raises
    `UserError` where the target cannot be met, saying what can, and where widths are too coarse to come within the
    `tolerance`, a fraction of it.
    """
    whole = cost({})
    if whole <= target:
        return {}
    least = cost({name: max(level.fewer for level in levels) for name, levels in curves.items()})
    if least > target:
        raise _unreachable(target, least, whole)
    best, nearest = _choose_at({}, curves, cost, target, tolerance)
    if best is None:
        raise _too_coarse(nearest, target, tolerance)
    for _ in range(_RELINEARISATIONS):
        other, _ = _choose_at(best, curves, cost, target, tolerance)
        if other is None or _loss(other, curves) >= _loss(best, curves):
            break
        best = other
    return best


def _loss(fewer: Fewer, curves: Curves) -> float:
    return sum(next(level.loss for level in curves[name] if level.fewer == count) for name, count in fewer.items())


def _choose_at(here: Fewer, curves: Curves, cost: Cost, target: float, tolerance: float) -> tuple[Fewer | None, float]:
    """Return the choice of least loss by the savings at `here`, None where none comes near; and the nearest cost."""
    plan = _Knapsack(curves, cost, here, cost({}) / _STEPS)
    reachable = np.flatnonzero(np.isfinite(plan.loss)).tolist()
    enough = bisect_left(reachable, True, key=lambda steps: cost(plan.choose(steps)) <= target)
    middle = reachable[min(enough, len(reachable) - 1)]
    # Savings that do not add up, and rounding to steps, put this somewhat off.
    reach = int(2 * tolerance * target / plan.step) + len(curves)
    near = reachable[bisect_left(reachable, middle - reach) : bisect_right(reachable, middle + reach)]
    nearest = 0.0
    for steps in sorted(near, key=lambda steps: plan.loss[steps]):
        fewer = plan.choose(steps)
        reached = cost(fewer)
        if reached <= target:
            if not _misses(reached, target, tolerance):
                return fewer, reached
            nearest = max(nearest, reached)
    return None, nearest


class _Knapsack:
    """The least loss for each saving (Bellman's recursion over groups, of each of which one level is taken).

    Savings are those of a group alone, where the others are as in `here`, in units of `step`; `most` is how many of
    them all groups can save, `loss` the least for each number of them, infinite where no choice saves that much.
    """

    def __init__(self, curves: Curves, cost: Cost, here: Fewer, step: float) -> None:
        self.curves, self.step = curves, step
        self._steps: dict[str, list[int]] = {}
        for name, levels in curves.items():
            costs = [cost({**here, name: level.fewer}) for level in levels]
            self._steps[name] = [round((costs[0] - each) / step) for each in costs]
        self.most = sum(max(of_group) for of_group in self._steps.values())
        self.loss = np.full(self.most + 1, np.inf)
        self.loss[0] = 0.0
        self._taken: dict[str, npt.NDArray[np.int16]] = {}
        for name, levels in curves.items():
            loss, taken = np.full(self.most + 1, np.inf), np.zeros(self.most + 1, np.int16)
            for index, (level, saved) in enumerate(zip(levels, self._steps[name], strict=True)):
                if saved < 0:  # a width that costs more is of no use
                    continue
                with_level = self.loss[: self.most + 1 - saved] + level.loss
                better = with_level < loss[saved:]
                loss[saved:][better], taken[saved:][better] = with_level[better], index
            self.loss, self._taken[name] = loss, taken

    def choose(self, steps: int) -> Fewer:
        """Return the choice of least loss that saves exactly so many steps: units less, of the groups that give any."""
        fewer: Fewer = {}
        for name in reversed(list(self.curves)):
            index = int(self._taken[name][steps])
            steps -= self._steps[name][index]
            if count := self.curves[name][index].fewer:
                fewer[name] = count
        return {name: fewer[name] for name in self.curves if name in fewer}


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
        raise _too_coarse(reached, target, tolerance)
    return fewer


def _too_coarse(reached: float, target: float, tolerance: float) -> UserError:
    return UserError(
        f"target {target:.4g} is not met within {100 * tolerance:g} %: {reached:.4g} is what these widths come "
        "nearest to; expected a smaller round_to, or a target near that"
    )


def least_important(scores: Mapping[str, Tensor], fewer: Fewer) -> dict[str, list[int]]:
    """Return the units of smallest importance that groups give up; of equals, those that come first."""
    return {
        name: scores[name].argsort(stable=True)[:count].sort().values.tolist() for name, count in fewer.items() if count
    }

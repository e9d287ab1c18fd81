"""Asynchronous successive halving for several objectives (Li et al., "A System for Massively Parallel Hyperparameter
Tuning", MLSys 2020, with non-dominated sorting and crowding of Deb et al., "A fast and elitist multiobjective genetic
algorithm: NSGA-II", 2002, in place of one loss).

At a rung a network goes on if it is among the best 1/η of those that have come to it so far, itself included. A
network is a set of points, one for each routing; the points of all networks are sorted into fronts. A network stands on
the best front that any of its points is on, and among networks of one front the one with the loneliest point there goes
first. Nobody waits: while fewer than η networks have come to a rung, all go on.
"""

from collections.abc import Mapping

import moocore
import numpy as np
import numpy.typing as npt

from harness.trial import Verdict

Points = npt.NDArray[np.float64]  # points × objectives, all to be minimised


def judge(own: Points, others: Mapping[str, Points], factor: int) -> Verdict:
    """Compare a network with the others that have come to the same rung."""
    places = rank_networks([own, *others.values()])
    place = int(places[0]) + 1
    networks = len(places)
    is_promoted = networks < factor or place <= networks // factor
    return Verdict(promoted=is_promoted, place=place, networks=networks)


def rank_networks(networks: list[Points]) -> npt.NDArray[np.int64]:
    """Return the place of each network, from 0; of networks that are equally good the first one given comes last."""
    points = np.concatenate(networks)
    owner = np.repeat(np.arange(len(networks)), [len(one) for one in networks])
    fronts = sort_into_fronts(points)
    best = np.array([fronts[owner == index].min(initial=len(points)) for index in range(len(networks))])
    lonely = np.zeros(len(networks))
    for front in np.unique(best):
        members = np.flatnonzero(fronts == front)
        distance = crowding(points[members])
        np.maximum.at(lonely, owner[members], np.where(best[owner[members]] == front, distance, 0))
    order = np.lexsort((-np.arange(len(networks)), -lonely, best))
    places = np.empty(len(networks), dtype=np.int64)
    places[order] = np.arange(len(networks))
    return places


def sort_into_fronts(points: Points) -> npt.NDArray[np.int64]:
    """Return the front of each point: 0 where none dominates it, 1 where only points of front 0 do, and so on."""
    if points.shape[1] == 1:
        return np.unique(points[:, 0], return_inverse=True)[1].astype(np.int64)
    return np.asarray(moocore.pareto_rank(points), dtype=np.int64)


def crowding(points: Points) -> npt.NDArray[np.float64]:
    """Return the crowding distance of each point of a front: infinite at an objective's ends.

    Of equal points all but the last have 0.
    """
    distance = np.zeros(len(points))
    _, first = np.unique(points[::-1], axis=0, return_index=True)
    last = len(points) - 1 - first
    distinct = points[last]
    own = np.zeros(len(distinct))
    for values in distinct.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        if span > 0:
            own[order[0]] = own[order[-1]] = np.inf
            own[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    if len(distinct) == 1:
        own[:] = np.inf
    distance[last] = own
    return distance

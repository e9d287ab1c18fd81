"""Successive halving by fronts and crowding: closed forms and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.search.halving import crowding, judge, rank_networks, sort_into_fronts


def array(*points: tuple[float, ...]) -> np.ndarray:
    """Points × objectives."""
    return np.array(points, dtype=np.float64)


def test_fronts_are_peeled_off() -> None:
    points = array((1, 5), (2, 2), (5, 1), (2, 6), (3, 3), (6, 6), (2, 2))
    assert sort_into_fronts(points).tolist() == [0, 0, 0, 1, 1, 2, 0]


def test_crowding_is_that_of_the_neighbours() -> None:
    """(1, 5), (2, 4), (4, 2), (5, 1): the inner ones' neighbours are 3 of 4 apart in both objectives."""
    distance = crowding(array((1, 5), (2, 4), (4, 2), (5, 1), (2, 4))[[4, 0, 1, 2, 3]])
    assert distance.tolist() == [0, np.inf, 1.5, 1.5, np.inf]
    assert crowding(array((3, 3))).tolist() == [np.inf]


def test_a_network_stands_on_the_front_of_its_best_point() -> None:
    good, mixed, bad = array((1, 5), (5, 1)), array((9, 9), (3, 3)), array((6, 6), (4, 7))
    assert rank_networks([bad, mixed, good]).tolist() == [2, 1, 0]


def test_the_loneliest_of_a_front_goes_first() -> None:
    ends = [array((0, 10)), array((10, 0))]
    near, far = array((1, 9)), array((5, 4))
    assert rank_networks([near, far, *ends])[:2].tolist() == [3, 2]


def test_who_comes_last_of_equals() -> None:
    same = array((1, 1))
    assert judge(same, {"a": same, "b": same}, 3).place == 3
    assert sort_into_fronts(array((3,), (1,), (2,), (1,))).tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize(("others", "promoted"), [(0, True), (1, True), (2, False), (5, False)])
def test_the_worst_goes_on_while_few_have_come(others: int, promoted: bool) -> None:
    found = judge(array((9, 9)), {str(index): array((1 + index, 1)) for index in range(others)}, 3)
    assert found == (promoted, others + 1, others + 1)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_share_that_goes_on_is_that_of_the_factor(factor: int) -> None:
    """Networks that come in random order, each judged as it comes."""
    drawn = np.random.default_rng(0).uniform(size=(300, 2, 2))
    seen: dict[str, np.ndarray] = {}
    promoted = 0
    for index, network in enumerate(drawn):
        promoted += judge(network, seen, factor).promoted
        seen[str(index)] = network
    assert promoted / len(drawn) == pytest.approx(1 / factor, abs=0.08)


points_of = st.lists(st.tuples(*[st.integers(0, 6).map(float)] * 3), min_size=1, max_size=4)


@given(st.lists(points_of, min_size=1, max_size=8))
def test_places_are_a_permutation_and_respect_dominance(networks: list[list[tuple[float, ...]]]) -> None:
    arrays = [array(*points) for points in networks]
    places = rank_networks(arrays)
    assert sorted(places.tolist()) == list(range(len(arrays)))
    for one, place in zip(arrays, places, strict=True):
        for other, other_place in zip(arrays, places, strict=True):
            beaten = all(((q <= p).all() and (q < p).any()) for p in one for q in [min(other, key=tuple)])
            if len(other) == 1 and beaten:  # one point dominates all of the network
                assert other_place < place


@given(st.lists(st.tuples(*[st.floats(-5, 5)] * 2), min_size=1, max_size=12))
def test_fronts_do_not_depend_on_order_or_units(drawn: list[tuple[float, float]]) -> None:
    points = array(*drawn)
    fronts = sort_into_fronts(points)
    assert (sort_into_fronts(points[::-1])[::-1] == fronts).all()
    assert (sort_into_fronts(points * 4) == fronts).all()

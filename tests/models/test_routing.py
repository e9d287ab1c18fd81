"""Which windows are chosen: closed forms for K, and the order of equal and saturated logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.core.configs import Policy, RoutingConfig
from harness.models.padding import pad_to_multiple
from harness.models.routing import count_fixed, measure_detail, plan_routing, select_by_detail, select_windows


def logits_of(differences: list[list[float]]) -> Tensor:
    """Logits whose hard-minus-simple differences are given."""
    hard = torch.tensor(differences)
    return torch.stack((hard, torch.zeros_like(hard)), dim=-1)


def select(differences: list[list[float]], policy: Policy = "fixed", gamma: float = 0.5) -> list[list[bool]]:
    chosen: list[list[bool]] = select_windows(
        logits_of(differences), RoutingConfig(policy=policy, gamma=gamma), 0
    ).tolist()
    return chosen


@pytest.mark.parametrize(
    ("gamma", "windows", "expected"),
    [(0.0, 7, 0), (1.0, 7, 7), (0.5, 7, 3), (0.3, 10, 3), (0.7, 10, 7), (0.1, 10, 1), (0.29, 100, 29), (0.5, 1, 0)],
)
def test_fixed_count_is_the_floor_without_rounding_error(gamma: float, windows: int, expected: int) -> None:
    assert count_fixed(gamma, windows) == expected


def test_fixed_takes_the_highest_differences() -> None:
    assert select([[0.1, 3.0, -2.0, 1.0]]) == [[False, True, False, True]]


def test_saturated_logits_keep_their_rank() -> None:
    """Both probabilities are exactly 1.0 in float32; the logits still tell them apart."""
    assert torch.softmax(torch.tensor([90.0, 0.0]), 0)[0] == torch.softmax(torch.tensor([95.0, 0.0]), 0)[0] == 1
    assert select([[90.0, 95.0, 90.0, 94.0]]) == [[False, True, False, True]]


def test_equal_logits_are_taken_in_window_order() -> None:
    assert select([[2.0] * 6], gamma=0.5) == [[True, True, True, False, False, False]]
    assert select([[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]], gamma=2 / 3) == [[True, True, False, True, False, True]]


def test_threshold_ignores_gamma() -> None:
    for gamma in (0.0, 0.5, 1.0):
        assert select([[-1.0, 0.0, 1.0, 40.0]], "threshold", gamma) == [[False, False, True, True]]


def test_schedule_takes_the_gamma_of_its_block() -> None:
    routing = RoutingConfig(policy="schedule", schedule=(0.0, 0.5, 1.0))
    logits = logits_of([[3.0, 1.0, 2.0, 0.0]])
    counts = [select_windows(logits, routing, block).sum().item() for block in range(3)]
    assert counts == [0, 2, 4]


@settings(max_examples=60, deadline=None)
@given(
    differences=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    gamma=st.floats(0, 1),
    policy=st.sampled_from(["fixed", "probability", "threshold"]),
)
def test_counts_follow_the_formulas(differences: list[float], gamma: float, policy: Policy) -> None:
    windows = len(differences)
    chosen = select([differences], policy, gamma)[0]
    p = [1 / (1 + math.exp(-value)) for value in torch.tensor(differences).double().tolist()]
    if policy == "fixed":
        assert sum(chosen) == math.floor(gamma * windows + 1e-9)
    elif policy == "threshold":
        assert sum(chosen) == sum(value > 0 for value in torch.tensor(differences).tolist())
    else:
        weights = [2 * gamma * v if gamma <= 0.5 else v + (2 * gamma - 1) * (1 - v) for v in p]
        assert abs(sum(chosen) - (sum(weights) + 0.5)) <= 1 + 1e-6  # the floor of it, up to rounding at a border
        assert sum(chosen) <= windows
    if 0 < sum(chosen) < windows and policy != "threshold":
        taken = [value for value, hard in zip(differences, chosen, strict=True) if hard]
        left = [value for value, hard in zip(differences, chosen, strict=True) if not hard]
        assert min(taken) >= max(left)


@pytest.mark.parametrize("policy", ["fixed", "probability"])
def test_ends_of_gamma_are_none_and_all(policy: Policy) -> None:
    differences = [[-3.0, 0.0, 2.0, 50.0, -50.0]]
    assert select(differences, policy, 0.0) == [[False] * 5]
    assert select(differences, policy, 1.0) == [[True] * 5]


@pytest.mark.parametrize("policy", ["fixed", "probability", "threshold"])
def test_rows_do_not_see_each_other(policy: Policy) -> None:
    rows = [[5.0, 1.0, -1.0, 0.2], [-5.0, -4.0, -6.0, -4.0], [9.0, 9.0, 9.0, 9.0]]
    together = select(rows, policy, 0.6)
    assert together == [select([row], policy, 0.6)[0] for row in rows]


# The detail of the input ----------------------------------------------------------------------------------------------


def detail_routing(weights: tuple[float, ...], gamma: float = 0.5) -> RoutingConfig:
    return RoutingConfig(policy="detail", gamma=gamma, block_weights=weights)


def test_detail_takes_the_best_pairs_of_block_and_window() -> None:
    """Products 1 4 2 | 3 12 6 | dead: the four best of nine pairs, whichever blocks they are in."""
    mask = select_by_detail(torch.tensor([[1.0, 4.0, 2.0]]), detail_routing((1.0, 3.0, 0.0), 0.45), None)
    assert mask[:, 0].tolist() == [[False, True, False], [True, True, True], [False, False, False]]


def test_equal_products_are_taken_in_the_order_of_blocks_then_windows() -> None:
    mask = select_by_detail(torch.ones(1, 4), detail_routing((1.0, 1.0), 0.75), None)
    assert mask[:, 0].tolist() == [[True] * 4, [True, True, False, False]]
    flat = select_by_detail(torch.zeros(1, 4), detail_routing((1.0, 2.0), 0.25), None)  # no detail at all
    assert flat[:, 0].tolist() == [[False] * 4, [True, True, False, False]]


@settings(max_examples=60, deadline=None)
@given(
    detail=st.lists(st.floats(0, 1e4), min_size=1, max_size=9),
    weights=st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=1, max_size=5),
    gamma=st.floats(0, 1),
)
def test_detail_spends_exactly_its_share(detail: list[float], weights: list[float], gamma: float) -> None:
    mask = select_by_detail(torch.tensor([detail, detail[::-1]]), detail_routing(tuple(weights), gamma), None)
    alive = sum(weight > 0 for weight in weights)
    expected = min(math.floor(gamma * len(weights) * len(detail) + 1e-9), alive * len(detail))
    assert mask.sum(dim=(0, 2)).tolist() == [expected, expected]
    assert not mask[[weight == 0 for weight in weights]].any()


def test_detail_is_the_energy_that_a_mean_over_three_pixels_takes_away() -> None:
    image = torch.rand(1, 3, 7, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    luma = (65.481 * image[0, 0] + 128.553 * image[0, 1] + 24.966 * image[0, 2]) / 255
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for row in range(7):
        for column in range(10):
            rows = [min(max(row + step, 0), 6) for step in (-1, 0, 1)]
            columns = [min(max(column + step, 0), 9) for step in (-1, 0, 1)]
            mean = sum(luma[r, c] for r in rows for c in columns) / 9
            expected[row // 4, column // 4] += (luma[row, column] - mean) ** 2
    padded = pad_to_multiple(image, 4)
    assert torch.allclose(measure_detail(padded, (7, 10), 4), expected.flatten()[None], rtol=1e-12)
    padded[..., 7:, :] = 9.0  # what lies outside the image does not count
    padded[..., 10:] = -9.0
    assert torch.allclose(measure_detail(padded, (7, 10), 4), expected.flatten()[None], rtol=1e-12)


def test_detail_prefers_edges_to_flat_ground() -> None:
    image = torch.full((1, 3, 8, 16), 0.5)
    image[..., 8:] = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    plan = plan_routing(detail_routing((1.0,), 0.5), image, (8, 16), 8, None)
    assert plan.mask_SBN is not None
    assert plan.mask_SBN.tolist() == [[[False, True]]]


# Maps of importance ---------------------------------------------------------------------------------------------------

GUIDED = [
    RoutingConfig(gamma=0.25),
    RoutingConfig(policy="probability", gamma=0.25),
    RoutingConfig(policy="threshold"),
    RoutingConfig(policy="schedule", schedule=(0.25, 0.5)),
    detail_routing((1.0, 0.7), 0.25),
]


def select_all(routing: RoutingConfig, importance: Tensor | None) -> Tensor:
    """The masks (2 blocks × 3 images × 12 windows) of fixed logits and images of 12×16 pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2, 3, 12, 2, generator=generator)
    image = torch.rand(3, 3, 12, 16, generator=generator)
    plan = plan_routing(routing, image, (12, 16), 4, importance)
    if plan.mask_SBN is not None:
        return plan.mask_SBN
    return torch.stack([select_windows(logits[block], routing, block, plan.importance_BN) for block in range(2)])


@pytest.mark.parametrize("routing", GUIDED, ids=lambda routing: routing.policy)
def test_windows_under_the_map_come_first_and_cost_stays(routing: RoutingConfig) -> None:
    importance = torch.zeros(1, 12, 16)
    importance[:, 4:8, 8:12] = 1000.0  # window 6
    plain, guided = select_all(routing, None), select_all(routing, importance)
    assert plain.sum((0, 2)).tolist() == guided.sum((0, 2)).tolist()
    if routing.policy != "detail":  # whose windows move between blocks
        assert torch.equal(plain.sum(2), guided.sum(2))
    assert guided[..., 6].all()
    assert not plain[..., 6].all()
    assert torch.equal(select_all(routing, torch.zeros(1, 12, 16)), plain)
    assert torch.equal(select_all(routing, torch.full((3, 12, 16), 2.5)), plain)  # equally important everywhere


def test_importance_is_the_mean_over_the_pixels_inside_the_image() -> None:
    importance = torch.zeros(1, 5, 6)
    importance[:, 4, :] = 3.0
    importance[:, :, 4:] += 1.0
    plan = plan_routing(RoutingConfig(), torch.zeros(2, 3, 8, 8), (5, 6), 4, importance)
    assert plan.importance_BN is not None
    assert plan.importance_BN.tolist() == [[0.0, 1.0, 3.0, 4.0]] * 2

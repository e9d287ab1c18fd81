"""Which windows are chosen: closed forms for K, and the order of equal and saturated logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.core.configs import Policy, RoutingConfig
from harness.models.routing import count_fixed, select_windows


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

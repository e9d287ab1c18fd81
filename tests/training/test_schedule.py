import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.configs import PAPER_RECIPE, ScheduleConfig, TrainingConfig
from harness.training import learning_rate_at


def config(steps: int, **schedule: Any) -> TrainingConfig:
    return TrainingConfig(steps=steps, learning_rate=0.5, schedule=ScheduleConfig(**schedule))


def test_paper_recipe_halves_at_250k_400k_450k_and_475k() -> None:
    for milestone, before, after in ((250, 1, 2), (400, 2, 4), (450, 4, 8), (475, 8, 16)):
        assert learning_rate_at(PAPER_RECIPE, milestone * 1000 - 1) == 5e-4 / before
        assert learning_rate_at(PAPER_RECIPE, milestone * 1000) == 5e-4 / after
    assert learning_rate_at(PAPER_RECIPE, 0) == 5e-4
    assert learning_rate_at(PAPER_RECIPE, 499_999) == 5e-4 / 16


def test_cosine_starts_at_the_peak_and_comes_to_the_final_fraction() -> None:
    cosine = config(1000, name="cosine", final_fraction=0.25)
    assert learning_rate_at(cosine, 0) == 0.5
    assert learning_rate_at(cosine, 500) == pytest.approx(0.5 * (0.25 + 0.75 / 2), rel=1e-12)
    assert learning_rate_at(cosine, 1000) == pytest.approx(0.125, rel=1e-12)  # the end, one step after the last
    assert learning_rate_at(cosine, 999) == pytest.approx(0.125, rel=1e-4)
    assert learning_rate_at(config(1, name="cosine"), 0) == 0.5


@pytest.mark.parametrize("name", ["constant", "multistep", "cosine"])
def test_warm_up_is_linear_and_reaches_the_peak_at_its_last_step(name: str) -> None:
    warm = config(100, name=name, warmup_steps=4)
    assert [learning_rate_at(warm, step) for step in range(4)] == [0.125, 0.25, 0.375, 0.5]
    assert learning_rate_at(warm, 4) == 0.5  # the schedule itself begins


def test_cosine_runs_over_what_the_warm_up_leaves() -> None:
    warm = config(100, name="cosine", warmup_steps=20, final_fraction=0.0)
    assert learning_rate_at(warm, 60) == pytest.approx(0.25, rel=1e-12)
    assert learning_rate_at(warm, 99) == pytest.approx(0.25 * (1 + math.cos(math.pi * 79 / 80)), rel=1e-12)


def test_milestones_count_from_the_first_step_whatever_the_warm_up_and_their_order() -> None:
    stepped = config(10, name="multistep", milestones=(0.8, 0.5), factor=0.1, warmup_steps=2)
    rates = [learning_rate_at(stepped, step) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005], rel=1e-12)


def test_a_warm_up_longer_than_the_run_never_leaves_it() -> None:
    warm = config(3, name="cosine", warmup_steps=10)
    assert [learning_rate_at(warm, step) for step in range(3)] == pytest.approx([0.05, 0.1, 0.15], rel=1e-12)


@given(
    steps=st.integers(1, 10_000),
    warmup=st.integers(0, 50),
    name=st.sampled_from(["constant", "multistep", "cosine"]),
    share=st.floats(0, 1, exclude_max=True),
)
def test_rates_are_positive_never_above_the_peak_and_never_rise_after_the_warm_up(
    steps: int, warmup: int, name: str, share: float
) -> None:
    settings = config(steps, name=name, warmup_steps=warmup)
    step = int(share * steps)
    rate = learning_rate_at(settings, step)
    assert 0 < rate <= 0.5
    if warmup <= step < steps - 1:
        assert learning_rate_at(settings, step + 1) <= rate

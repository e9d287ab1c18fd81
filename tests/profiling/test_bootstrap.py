"""Bootstrap intervals: closed forms where there are some, and how often they hold the truth."""

import math

import numpy as np
import pytest

from harness.profiling.bootstrap import median_interval, ratio_interval


def test_one_value_or_equal_values_leave_no_doubt() -> None:
    assert median_interval([3.5]) == (3.5, 3.5)
    assert median_interval([2.0] * 9) == (2.0, 2.0)
    assert ratio_interval([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == (0.5, 0.5)  # whatever slows both cancels


def test_two_values() -> None:
    """Resamples of {0, 1} have medians 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4."""
    assert median_interval([0.0, 1.0]) == (0.0, 1.0)


def test_three_values() -> None:
    """The median of a resample of three values is the least with probability 7/27, so it bounds the interval."""
    assert median_interval([1.0, 2.0, 3.0]) == (1.0, 3.0)


def test_the_interval_is_that_of_the_order_statistics() -> None:
    """A resample's median of n = 2m − 1 exceeds the k-th least value with the binomial probability P(B(n, k/n) < m)."""
    n, m = 25, 13

    def exceeds(k: int) -> float:
        return sum(math.comb(n, i) * (k / n) ** i * (1 - k / n) ** (n - i) for i in range(m))

    lowest = next(k for k in range(1, n + 1) if 1 - exceeds(k) > 0.025)
    highest = next(k for k in range(1, n + 1) if 1 - exceeds(k) > 0.975)
    lower, upper = median_interval([float(k) for k in range(1, n + 1)])
    assert abs(lower - lowest) <= 1
    assert abs(upper - highest) <= 1


def test_intervals_are_the_same_each_time_and_scale() -> None:
    values = np.random.default_rng(1).lognormal(size=40)
    lower, upper = median_interval(values.tolist())
    assert median_interval(values.tolist()) == (lower, upper)
    assert median_interval((10 * values).tolist()) == pytest.approx((10 * lower, 10 * upper))
    assert lower < np.median(values) < upper


def test_long_runs_are_drawn_in_blocks() -> None:
    values = np.random.default_rng(2).normal(100, 1, size=6000)
    lower, upper = median_interval(values.tolist())
    assert upper - lower == pytest.approx(2 * 1.96 * math.sqrt(math.pi / 2 / 6000), rel=0.2)  # asymptotic variance


def test_the_median_is_inside_about_as_often_as_said() -> None:
    """Coverage over 200 runs of 25 skewed samples: 95 % within what 200 runs can tell, and the bootstrap's own bias."""
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(200):
        lower, upper = median_interval((10 + generator.exponential(size=25)).tolist())
        inside += lower <= 10 + math.log(2) <= upper
    assert 0.88 <= inside / 200 <= 0.99


def test_a_ratio_survives_what_slows_both() -> None:
    """Rounds that are up to three times as slow for both: the interval is narrow and holds the true ratio of 2."""
    generator = np.random.default_rng(4)
    inside, widths = 0, []
    for _ in range(100):
        speed = generator.uniform(1, 3, size=20)
        above = 2 * speed * generator.normal(1, 0.02, size=20)
        below = speed * generator.normal(1, 0.02, size=20)
        lower, upper = ratio_interval(above.tolist(), below.tolist())
        inside += lower <= 2 <= upper
        alone = median_interval(above.tolist())
        widths.append((upper - lower) / (alone[1] - alone[0]))
    assert inside >= 90
    assert np.median(widths) < 0.2


def test_rounds_must_pair() -> None:
    with pytest.raises(ValueError, match="3 samples over 2"):
        ratio_interval([1, 2, 3], [1, 2])

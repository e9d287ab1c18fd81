"""Intervals of medians and of ratios of medians by the percentile bootstrap (Efron 1979).

Samples are drawn again with replacement, 2,000 times, from a generator of fixed seed; the 2.5th and the 97.5th
percentile of the medians found bound the interval. A ratio's numerator and denominator were measured in the same
rounds, so rounds are drawn, and what slows both at once cancels.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
CONFIDENCE = 0.95
_MOST_DRAWN = 4_000_000  # values at a time, 32 MB: long runs of a fast network have thousands of samples

Interval = tuple[float, float]


def median_interval(samples: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the 95 % interval of the median of `samples`, of which there is at least one."""
    values = np.asarray(samples, dtype=np.float64)
    return _percentiles(np.concatenate([np.median(values[drawn], axis=1) for drawn in _draws(len(values), seed)]))


def ratio_interval(numerator: Sequence[float], denominator: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the 95 % interval of median(numerator) / median(denominator); entry i of both is from round i."""
    above, below = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if above.shape != below.shape:
        raise ValueError(f"rounds must pair: got {len(above)} samples over {len(below)}")
    ratios = [np.median(above[drawn], axis=1) / np.median(below[drawn], axis=1) for drawn in _draws(len(above), seed)]
    return _percentiles(np.concatenate(ratios))


def _draws(count: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield indices of `RESAMPLES` samples of `count` from `count`, as rows, in blocks that fit into memory."""
    assert count > 0
    generator = np.random.default_rng(seed)
    rows = max(1, _MOST_DRAWN // count)
    for start in range(0, RESAMPLES, rows):
        yield generator.integers(0, count, size=(min(rows, RESAMPLES - start), count))


def _percentiles(values: npt.NDArray[np.float64]) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    lower, upper = np.percentile(values, [tail, 100 - tail])
    return float(lower), float(upper)

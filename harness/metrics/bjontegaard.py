"""Bjøntegaard's averages between two curves of cost and quality: dB at equal cost, and cost at equal dB.

G. Bjøntegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001: quality as a function of
log₁₀(cost), or the other way round, integrated over the range that both curves have; the average is the difference of
the integrals over its length. Curves lie between their points as one of these says:

`pchip`: piecewise cubics that are monotone where the points are, as the common test conditions of HEVC and VVC use
(JCTVC-L1100, JVET-T2010). The default: these curves are fronts, which rise from every point to the next; those of a
search lie unevenly, and no piece depends on points further away than its neighbours. Two points are enough.

`akima`: Akima's piecewise cubics (Herglotz et al., "Beyond Bjøntegaard", ICIP 2022), which may overshoot.

`cubic`: one polynomial of third degree, through four points as in VCEG-M33, by least squares through more; it swings
where points lie unevenly.
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

Interpolation = Literal["pchip", "akima", "cubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
_LEAST_POINTS: dict[Interpolation, int] = {"pchip": 2, "akima": 3, "cubic": 4}
_Values = npt.NDArray[np.float64]


class Average(NamedTuple):
    """An average over the range that two curves share, and that range in its own unit.

    `share` is the range over that of both curves together, logarithmic where it is one of costs. Without a `value`
    the `reason` says why.
    """

    value: float | None
    overlap: tuple[float, float] | None
    share: float
    reason: str | None = None


def bd_psnr(anchor: npt.ArrayLike, test: npt.ArrayLike, interpolation: Interpolation = "pchip") -> Average:
    """Return by how many dB `test` is better than `anchor` on average at equal cost; the overlap is a range of costs.

    Both are curves (points, 2) of cost and dB, costs above 0, each point dearer and better than the one before;
    `ValueError` otherwise. There is no value where the curves share no costs, or one has too few points.
    """
    first, second = _log_curve(anchor), _log_curve(test)
    found = _average(first, second, interpolation)
    if found.overlap is None:
        return found._replace(reason=found.reason or "the curves have no cost in common")
    return found._replace(overlap=(10 ** found.overlap[0], 10 ** found.overlap[1]))


def bd_cost(anchor: npt.ArrayLike, test: npt.ArrayLike, interpolation: Interpolation = "pchip") -> Average:
    """Return how much more `test` costs than `anchor` on average at equal dB, as a share: −0.1 is 10 % less.

    The average is that of log₁₀(cost), so the share is one of geometric means. The overlap is a range of dB; curves
    are those of `bd_psnr`, and so is what raises, and what there is no value for.
    """
    first, second = _log_curve(anchor)[:, ::-1], _log_curve(test)[:, ::-1]
    found = _average(first, second, interpolation)
    if found.value is None:
        return found._replace(reason=found.reason or "the curves have no quality in common")
    return found._replace(value=math.expm1(found.value * math.log(10)))


def _log_curve(curve: npt.ArrayLike) -> _Values:
    points = np.asarray(curve, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or (points[:, 0] <= 0).any():
        raise ValueError("a curve has finite values, and costs above 0")
    points = np.stack([np.log10(points[:, 0]), points[:, 1]], axis=-1)
    if (np.diff(points, axis=0) <= 0).any():
        raise ValueError("each point of a curve costs more than the one before, and is better")
    return points


def _average(anchor: _Values, test: _Values, interpolation: Interpolation) -> Average:
    """Return the mean difference of the second column over the range that the first columns share."""
    least = _LEAST_POINTS[interpolation]
    fewest = min(len(anchor), len(test))
    if fewest < least:
        which = (
            "both have" if len(anchor) == len(test) else f"the {'first' if len(anchor) < len(test) else 'second'} has"
        )
        return Average(None, None, 0.0, f"a curve of {interpolation} takes {least} points, and {which} {fewest}")
    low, high = max(anchor[0, 0], test[0, 0]), min(anchor[-1, 0], test[-1, 0])
    whole = max(anchor[-1, 0], test[-1, 0]) - min(anchor[0, 0], test[0, 0])
    if not low < high:
        return Average(None, None, 0.0)
    integrals = [_integrate(curve, low, high, interpolation) for curve in (anchor, test)]
    value = (integrals[1] - integrals[0]) / (high - low)
    overlap, share = (float(low), float(high)), float((high - low) / whole)
    both = np.concatenate([anchor[:, 1], test[:, 1]])
    if abs(value) > both.max() - both.min():  # which no two values that the curves have are apart
        return Average(None, overlap, share, f"between its points a curve of {interpolation} swings out of all bounds")
    return Average(float(value), overlap, share)


def _integrate(curve: _Values, low: float, high: float, interpolation: Interpolation) -> float:
    if interpolation == "cubic":
        integral = np.polynomial.Polynomial.fit(curve[:, 0], curve[:, 1], 3).integ()
        return float(integral(high) - integral(low))
    from scipy.interpolate import (  # type: ignore[import-untyped]  # late: most reports average nothing
        Akima1DInterpolator,
        PchipInterpolator,
    )

    interpolator = PchipInterpolator if interpolation == "pchip" else Akima1DInterpolator
    return float(interpolator(curve[:, 0], curve[:, 1]).integrate(low, high))

"""Bjøntegaard's averages against published values, another implementation's, and closed forms."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.metrics.bjontegaard import Interpolation, bd_cost, bd_psnr

METHODS: tuple[Interpolation, ...] = get_args(Interpolation)
Curve = list[tuple[float, float]]

# JCTVC-E137's spreadsheet: rates (kbit/s) and PSNR (dB) of two sequences, with its BD-rates, as the tests of VMAF's
# `bd_rate_calculator` state them (https://github.com/Netflix/vmaf, python/test/bd_rate_calculator_test.py).
E137: list[tuple[Curve, Curve, float]] = [
    (
        [(18883.6928, 34.2911), (33905.6656, 37.247), (61279.976, 40.3953), (108048.8736, 43.6471)],
        [(18910.912, 34.3147), (33928.7472, 37.2761), (61299.9936, 40.4232), (108061.2784, 43.6768)],
        -0.00465215420752807,
    ),
    (
        [(1017.6184, 32.0603), (2394.488, 33.8977), (7622.7456, 35.3756), (40433.8848, 37.5761)],
        [(1017.0984, 32.0822), (2390.0944, 33.9194), (7587.0024, 35.4025), (40370.12, 37.5982)],
        -0.018779823450567612,
    ),
]
# The example of the package `bjontegaard` (Herglotz et al.): x265, two presets; dB and % of its version 1.3.0.
X265: tuple[Curve, Curve] = (
    [(1358.24, 34.851), (2486.44, 36.845), (4593.60, 38.615), (9487.76, 40.037)],
    [(1356.24, 34.987), (2451.52, 36.970), (4469.00, 38.651), (9787.80, 40.121)],
)
X265_VALUES: dict[Interpolation, tuple[float, float]] = {
    "cubic": (0.12040941911451103, -4.420462706125383),
    "pchip": (0.11969278542479489, -4.417485350589045),
    "akima": (0.11940927028529469, -4.425245156997493),
}
OTHERS = json.loads((Path(__file__).parent / "bjontegaard_values.json").read_text(encoding="utf-8"))


@st.composite
def curves(draw: st.DrawFn, least: int = 2) -> Curve:
    """Steps of at least 0.05 in dB and in log₁₀(cost): unlike in a search, but rounding is no matter then."""
    steps = draw(st.lists(st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)), min_size=least, max_size=8))
    start = draw(st.tuples(st.floats(0, 1), st.floats(25, 26)))
    return [(float(10**cost), float(psnr_db)) for cost, psnr_db in np.cumsum([start, *steps[1:]], axis=0)]


@pytest.mark.parametrize(("anchor", "test", "expected"), E137)
def test_the_values_that_jctvc_e137_publishes(anchor: Curve, test: Curve, expected: float) -> None:
    assert bd_cost(anchor, test).value == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_the_example_of_another_implementation(method: Interpolation) -> None:
    psnr_db, percent = X265_VALUES[method]
    assert bd_psnr(*X265, method).value == pytest.approx(psnr_db, rel=1e-9)
    assert 100 * (bd_cost(*X265, method).value or 0) == pytest.approx(percent, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", OTHERS["pairs"])
def test_values_of_another_implementation(pair: dict[str, Any], method: Interpolation) -> None:
    psnr_db, percent = pair[method]
    found, cost = bd_psnr(pair["anchor"], pair["test"], method), bd_cost(pair["anchor"], pair["test"], method)
    assert (found.overlap is None) == (psnr_db is None)
    assert (cost.overlap is None) == (percent is None)
    costs, qualities = zip(*pair["anchor"], *pair["test"], strict=True)
    if found.value is not None:
        assert found.value == pytest.approx(psnr_db, rel=1e-9, abs=1e-9)
    elif psnr_db is not None:  # where this one refuses, the other's mean is beyond every difference that there is
        assert method != "pchip"
        assert abs(psnr_db) > max(qualities) - min(qualities)
    if cost.value is not None:  # cubes of 28 dB, summed as they are, cost the other one digits
        assert 100 * cost.value == pytest.approx(percent, rel=1e-6 if method == "cubic" else 1e-9, abs=1e-6)
    elif percent is not None:
        assert method != "pchip"
        assert abs(math.log(1 + percent / 100)) > math.log(max(costs) / min(costs))


@pytest.mark.parametrize("method", METHODS)
@given(curve=curves(least=4))
@settings(deadline=None)
def test_a_curve_against_itself_is_nothing(curve: Curve, method: Interpolation) -> None:
    assert bd_psnr(curve, curve, method).value == 0
    assert bd_cost(curve, curve, method).value == 0
    assert bd_cost(curve, curve, method).share == bd_psnr(curve, curve, method).share == 1


@given(curve=curves(), factor=st.floats(0.2, 5))
@settings(deadline=None)
def test_costs_times_a_factor(curve: Curve, factor: float) -> None:
    scaled = [(cost * factor, psnr_db) for cost, psnr_db in curve]
    found = bd_cost(curve, scaled)
    assert found.value == pytest.approx(factor - 1, abs=1e-9)
    assert found.overlap == (curve[0][1], curve[-1][1])


@given(curve=curves(), shift_db=st.floats(-2, 2))
@settings(deadline=None)
def test_quality_and_a_constant(curve: Curve, shift_db: float) -> None:
    shifted = [(cost, psnr_db + shift_db) for cost, psnr_db in curve]
    found = bd_psnr(curve, shifted)
    assert found.value == pytest.approx(shift_db, abs=1e-9)
    assert found.overlap == pytest.approx((curve[0][0], curve[-1][0]))


def test_a_straight_line_has_a_closed_form() -> None:
    """PSNR = 30 + 2·log₁₀(cost): twice the cost is 2·log₁₀(2) less at equal cost, whatever lies between points."""
    line = [(cost, 30 + 2 * math.log10(cost)) for cost in (1.0, 2.0, 5.0, 10.0, 40.0)]
    dearer = [(2 * cost, psnr_db) for cost, psnr_db in line]
    for method in METHODS:
        found = bd_psnr(line, dearer, method)
        assert found.value == pytest.approx(-2 * math.log10(2), abs=1e-9)
        assert found.overlap == pytest.approx((2, 40))
        assert found.share == pytest.approx(math.log(20) / math.log(80))
        assert bd_cost(line, dearer, method).value == pytest.approx(1, abs=1e-9)


@given(anchor=curves(), test=curves())
@settings(deadline=None)
def test_the_other_way_round(anchor: Curve, test: Curve) -> None:
    there, back = bd_psnr(anchor, test), bd_psnr(test, anchor)
    assert (there.overlap, there.share) == (back.overlap, back.share)
    assert (there.value is None) == (back.value is None) == (there.reason is not None)
    if there.value is not None and back.value is not None:
        assert there.value == -back.value
    dearer, cheaper = bd_cost(anchor, test).value, bd_cost(test, anchor).value
    if dearer is not None and cheaper is not None:
        assert (1 + dearer) * (1 + cheaper) == pytest.approx(1)


@given(anchor=curves(), test=curves())
@settings(deadline=None)
def test_a_curve_that_is_nowhere_worse_is_better_on_average(anchor: Curve, test: Curve) -> None:
    """By `pchip`, which overshoots no point: within the range that both have, the average is between the extremes."""
    found = bd_psnr(anchor, test)
    assume(found.value is not None and found.overlap is not None)
    assert found.value is not None
    most = max(psnr_db for _, psnr_db in test) - min(psnr_db for _, psnr_db in anchor)
    least = min(psnr_db for _, psnr_db in test) - max(psnr_db for _, psnr_db in anchor)
    assert least <= found.value <= most


def test_why_there_is_no_value() -> None:
    one, two, three = [(1.0, 30.0)], [(1.0, 30.0), (2.0, 31.0)], [(1.0, 30.0), (2.0, 31.0), (4.0, 31.5)]
    assert bd_psnr(one, two).reason == "a curve of pchip takes 2 points, and the first has 1"
    assert bd_psnr(three, two, "akima").reason == "a curve of akima takes 3 points, and the second has 2"
    assert bd_cost(three, three, "cubic").reason == "a curve of cubic takes 4 points, and both have 3"
    assert bd_psnr([], two).reason == "a curve of pchip takes 2 points, and the first has 0"
    dear = [(2.0, 30.0), (3.0, 30.5)]
    assert bd_psnr(two, dear) == (None, None, 0.0, "the curves have no cost in common")
    assert bd_cost(two, dear).overlap == (30.0, 30.5)
    assert bd_cost(two, [(1.0, 31.0), (2.0, 32.0)]).reason == "the curves have no quality in common"
    steep = [(1.0, 30.0), (10.0, 30.7), (1e60, 30.701), (2e60, 31.0)]
    even = [(1.0, 30.0), (10.0, 30.3), (20.0, 30.6), (30.0, 31.0)]
    assert "swings out of all bounds" in str(bd_cost(even, steep, "cubic").reason)


@pytest.mark.parametrize(
    "curve", [[(1.0, 30.0), (1.0, 31.0)], [(1.0, 31.0), (2.0, 30.0)], [(0.0, 30.0), (2.0, 31.0)], [(1.0, math.nan)]]
)
def test_what_is_no_curve_is_refused(curve: Curve) -> None:
    with pytest.raises(ValueError, match="curve"):
        bd_psnr([(1.0, 30.0), (2.0, 31.0)], curve)

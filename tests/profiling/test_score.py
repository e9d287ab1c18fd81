"""The NTIRE 2024 efficient-SR score against its formula."""

import math

import pytest

from harness.core.errors import UserError
from harness.profiling import ntire_score

REFERENCE = {"reference_runtime": 13.54, "reference_flops": 19.67e9, "reference_params": 0.317e6}  # RLFN, as published


def test_the_reference_itself_has_e_squared() -> None:
    assert ntire_score(runtime=13.54, flops=19.67e9, params=0.317e6, **REFERENCE) == pytest.approx(math.e**2)


def test_each_ratio_has_its_weight() -> None:
    nothing = {"runtime": 0.0, "flops": 0.0, "params": 0.0}
    assert ntire_score(**nothing, **REFERENCE) == pytest.approx(1.0)
    for name, weight, reference in (("runtime", 0.7, 13.54), ("flops", 0.15, 19.67e9), ("params", 0.15, 0.317e6)):
        half = ntire_score(**{**nothing, name: reference / 2}, **REFERENCE)
        assert half == pytest.approx(1 - weight + weight * math.e)


def test_units_do_not_matter() -> None:
    once = ntire_score(runtime=5, flops=3, params=2, reference_runtime=9, reference_flops=8, reference_params=7)
    twice = ntire_score(runtime=10, flops=6, params=4, reference_runtime=18, reference_flops=16, reference_params=14)
    assert once == pytest.approx(twice)


def test_what_makes_no_sense_is_refused_and_what_is_huge_is_infinite() -> None:
    with pytest.raises(UserError, match="flops 1 against 0; expected ≥ 0 against > 0"):
        ntire_score(runtime=1, flops=1, params=1, reference_runtime=1, reference_flops=0, reference_params=1)
    with pytest.raises(UserError, match="runtime -1"):
        ntire_score(runtime=-1, flops=1, params=1, reference_runtime=1, reference_flops=1, reference_params=1)
    huge = ntire_score(runtime=1e6, flops=1, params=1, reference_runtime=1, reference_flops=1, reference_params=1)
    assert huge == math.inf

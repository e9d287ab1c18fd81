"""The fronts of two studies against each other."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import UserError
from harness.core.records import ObjectiveConfig, PointRecord, TrialRecord
from harness.metrics import bd_cost, bd_psnr
from harness.reporting import bd_sentence, compare, compare_fronts, study_front
from harness.reporting.front import cost_curve
from harness.reporting.study import Study
from tests.records import (
    PSNR_MACS,
    SHORT,
    bicubic_baseline,
    point,
    search_trials,
    study_record,
    swinir_baseline,
    trial,
)


def study(name: str, *records: TrialRecord, **changes: Any) -> Study:
    baselines = (swinir_baseline(), bicubic_baseline())
    return Study(study_record(name=name, **changes), records, baselines)


def changed(record: TrialRecord, *, cost: float = 1.0, psnr_db: float = 0.0) -> TrialRecord:
    """The same trial, every cost of it times a factor, every PSNR some dB higher."""

    def change(measured: PointRecord) -> PointRecord:
        latency = tuple(
            one.model_copy(update={"median": cost * one.median, "ratio": cost * (one.ratio or 0)})
            for one in measured.latency
        )
        scored = measured.evaluation.model_copy(update={"psnr_db": measured.evaluation.psnr_db + psnr_db})
        costs = {"macs": round(cost * measured.macs), "params": round(cost * measured.params)}
        return measured.model_copy(update={"evaluation": scored, "latency": latency, **costs})

    return record.model_copy(update={"points": tuple(map(change, record.points))})


def by_cost(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["cost"]: row for row in document["rows"]}


def test_every_cost_is_compared_over_the_range_that_it_names() -> None:
    first, second = study("a", *search_trials(9, seed=0)), study("b", *search_trials(9, seed=3))
    document = compare_fronts(first, second)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    rows = by_cost(document)
    assert list(rows) == ["latency_ms", "latency_ratio", "macs", "params"]
    for cost, row in rows.items():
        curves = [
            [(found.measured.value(cost), found.measured.evaluation.psnr_db) for found in cost_curve(one.points, cost)]
            for one in (first, second)
        ]
        low, high = row["cost_overlap"]
        assert low == pytest.approx(max(curve[0][0] for curve in curves))  # type: ignore[type-var]
        assert high == pytest.approx(min(curve[-1][0] for curve in curves))  # type: ignore[type-var]
        assert row["psnr_overlap_db"] == [max(c[0][1] for c in curves), min(c[-1][1] for c in curves)]
        assert row["points"] == [len(curve) for curve in curves]
        assert row["bd_psnr_db"] == bd_psnr(*curves).value  # type: ignore[arg-type]
        assert row["bd_cost_percent"] == 100 * (bd_cost(*curves).value or 0)  # type: ignore[arg-type]
        assert 0 < row["cost_overlap_share"] < 1


def test_what_a_factor_and_a_shift_come_to() -> None:
    trials = search_trials(9)
    first = study("a", *trials)
    dearer = compare_fronts(first, study("b", *(changed(one, cost=1.25) for one in trials)))
    better = compare_fronts(first, study("b", *(changed(one, psnr_db=0.25) for one in trials)))
    for cost in ("latency_ms", "latency_ratio", "macs", "params"):
        assert by_cost(dearer)[cost]["bd_cost_percent"] == pytest.approx(25, abs=0.01)  # parameters are whole numbers
        assert by_cost(dearer)[cost]["bd_psnr_db"] < 0
        assert by_cost(better)[cost]["bd_psnr_db"] == pytest.approx(0.25)
        assert by_cost(better)[cost]["bd_cost_percent"] < 0


def test_sentences_say_of_how_much_they_are() -> None:
    low = [trial(0, [point(26.0, 10, params=10)]), trial(1, [point(27.0, 100, params=100)])]
    high = [trial(0, [point(26.9, 20, params=90)]), trial(1, [point(28.0, 200, params=900)])]
    row = by_cost(compare_fronts(study("a", *low), study("b", *high)))["params"]
    assert row["cost_overlap_share"] == pytest.approx(math.log(100 / 90) / math.log(90))
    assert row["psnr_overlap_share"] == pytest.approx(0.05)
    sentence = bd_sentence(row, "b", "a")
    assert sentence is not None
    assert sentence.startswith("b against a, on average: 0.0")
    assert "dB worse at equal parameters (over 2 % of their range, too little to judge by); parameters " in sentence
    assert sentence.endswith("% higher at equal PSNR (over 5 % of their range, too little to judge by)")
    whole = by_cost(compare_fronts(study("a", *low), study("b", *(changed(one, psnr_db=0.1) for one in low))))["macs"]
    assert "0.100 dB better at equal MACs (over 100 % of their range); MACs" in str(bd_sentence(whole, "b", "a"))


def test_a_study_against_itself_is_nothing() -> None:
    one = study("a", *search_trials(9))
    document = compare_fronts(one, one)
    assert {(row["bd_psnr_db"], row["bd_cost_percent"]) for row in document["rows"]} == {(0.0, 0.0)}
    assert document["hypervolumes"] == [pytest.approx(study_front(one).hypervolume)] * 2


def test_hypervolumes_are_of_one_reference() -> None:
    """A box of 1 dB × 3/4 of SwinIR-light's MACs, and one of 2 × 1/2, although the second study has another bicubic."""
    quarter = 62_710_000_000 // 4
    first = study("a", trial(0, [point(27.5, quarter)]), objectives=PSNR_MACS)
    second = Study(
        study_record(name="b", objectives=PSNR_MACS),
        (trial(0, [point(28.5, 2 * quarter)]),),
        (swinir_baseline(), bicubic_baseline(20.0)),
    )
    document = compare_fronts(first, second)
    assert document["hypervolumes"] == pytest.approx([0.75, 1.0])
    assert "bicubic's 26.5" in document["hypervolume_reference"]
    reasons = {row["bd_psnr_reason"] for row in document["rows"]}
    assert reasons == {"a curve of pchip takes 2 points, and both have 1"}


def test_other_images_are_refused() -> None:
    def elsewhere(record: TrialRecord) -> TrialRecord:
        points = [
            one.model_copy(update={"evaluation": one.evaluation.model_copy(update={"dataset_hash": "beef"})})
            for one in record.points
        ]
        return record.model_copy(update={"points": tuple(points)})

    trials = search_trials(3)
    with pytest.raises(UserError, match=r"a and b .*other validation images, demo \(d0d0\) and demo \(beef\)"):
        compare_fronts(study("a", *trials), study("b", *map(elsewhere, trials)))
    with pytest.raises(UserError, match="other protocols, light and odi"):
        compare_fronts(study("a", *trials), study("b", *trials, protocol="odi"))
    with pytest.raises(UserError, match="other scales, ×4 and ×2"):
        compare_fronts(study("a", *trials), study("b", *trials, scale=2))
    with pytest.raises(UserError, match="expected one of: pchip, akima, cubic"):
        compare_fronts(study("a", *trials), study("b", *trials), interpolation="spline")


def test_latencies_of_another_machine_are_not_mixed_unasked() -> None:
    def elsewhere(record: TrialRecord) -> TrialRecord:
        points = [
            one.model_copy(update={"latency": tuple(x.model_copy(update={"device_name": "B"}) for x in one.latency)})
            for one in record.points
        ]
        return record.model_copy(update={"points": tuple(points)})

    trials = search_trials(3)
    first, second = study("a", *trials), study("b", *map(elsewhere, trials))
    document = compare_fronts(first, second)
    assert list(by_cost(document)) == ["macs", "params"]
    assert document["hypervolumes"] is None
    notes = " | ".join(document["notes"])
    assert "no latencies on cpu:1: interleaved, Example CPU" in notes
    assert "do not compare; measure alike, or give --mix" in notes
    assert "no hypervolume: latencies were measured under different settings" in notes
    document = compare_fronts(first, second, mix=True)
    assert len(document["latency_settings"]) == 2
    assert {"latency_ms", "latency_ratio"} <= set(by_cost(document))
    assert document["hypervolumes"] is not None


def test_what_cannot_be_compared_is_said() -> None:
    trials = search_trials(3)
    first = study("a", *trials)
    second = study(
        "b",
        *search_trials(3, devices=("cpu:2",)),
        devices=("cpu:2",),
        macs_input_size=(64, 64),
        objectives=(PSNR_MACS[0], ObjectiveConfig(metric="params", direction="minimize")),
        training=SHORT.model_copy(update={"steps": 4000}),
    )
    document = compare_fronts(first, second)
    assert list(by_cost(document)) == ["params"]
    notes = " | ".join(document["notes"])
    assert "no latencies: they were measured on cpu:1 and cpu:2" in notes
    assert "no MACs: they were counted for inputs of 180×320 and 64×64" in notes
    assert "no hypervolume: objectives are psnr_db, latency_ms, macs in one and psnr_db, params in the other" in notes
    assert "networks were trained otherwise (100 and 4,000 steps)" in notes
    assert "a: not converged: 100 steps" in notes


def test_latencies_of_every_shared_device() -> None:
    trials = search_trials(3, devices=("cpu:1", "cuda:0"))
    first = study("a", *trials, devices=("cpu:1", "cuda:0"))
    second = study("b", *trials, devices=("cuda:0", "cpu:1"))
    rows = by_cost(compare_fronts(first, second))
    assert {"latency_ms/cpu:1", "latency_ms/cuda:0", "latency_ratio/cuda:0"} <= set(rows)
    assert rows["latency_ms/cuda:0"]["bd_psnr_db"] == 0


def test_one_point_of_swinir_light_has_no_average_and_several_have() -> None:
    found = study("a", *search_trials(3))
    assert compare(found)["bjontegaard"] == {
        "rows": [],
        "reason": "SwinIR-light is one point, and an average takes a curve of two at least",
    }
    bare = Study(study_record(), found.trials, ())
    assert "no swinir-light baseline" in compare(bare)["bjontegaard"]["reason"]
    baseline = swinir_baseline()
    wide = baseline.points[0].model_copy(update={"macs": 10, "params": 10})
    poor = wide.model_copy(update={"evaluation": wide.evaluation.model_copy(update={"psnr_db": 26.6})})
    curve = baseline.model_copy(update={"points": (baseline.points[0], poor)})
    rows = compare(Study(study_record(), found.trials, (curve,)))["bjontegaard"]["rows"]
    assert [row["cost"] for row in rows] == ["latency_ms", "macs", "params"]
    assert rows[1]["points"][0] == 2
    assert rows[1]["bd_psnr_db"] is not None


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=12))
def test_a_curve_is_what_brute_force_finds(values: list[tuple[int, int]]) -> None:
    trials = [trial(number, [point(float(quality), cost)]) for number, (cost, quality) in enumerate(values)]
    expected = sorted(
        {
            (cost, quality)
            for cost, quality in values
            if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in values)
        }
    )
    found = cost_curve(study("a", *trials).points, "macs")
    assert [(one.measured.macs, one.measured.evaluation.psnr_db) for one in found] == expected
    assert (np.diff([one.measured.evaluation.psnr_db for one in found]) > 0).all()


def test_a_curve_has_no_infeasible_points_and_none_without_a_cost() -> None:
    points = [
        point(27.0, 10),
        point(29.0, 5, constraints={"macs <= 1": 4.0}),
        point(math.inf, 20),
        point(26.0, 0),
        point(28.0, 30, latency_ms=None),
    ]
    trials = [trial(number, [one]) for number, one in enumerate(points)]
    found = study("a", *trials).points
    assert [one.record.number for one in cost_curve(found, "macs")] == [0, 4]
    assert [one.record.number for one in cost_curve(found, "latency_ms")] == [0]

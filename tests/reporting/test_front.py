"""Fronts against brute force and closed forms."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.records import Direction, ObjectiveConfig, TrialRecord, point_id
from harness.reporting.front import hypervolume, knee_index, non_dominated, study_front
from harness.reporting.picks import pick
from harness.reporting.study import Study
from harness.reporting.table import points_table
from tests.records import (
    PSNR_LATENCY_MACS,
    PSNR_MACS,
    bicubic_baseline,
    point,
    search_trials,
    study_record,
    swinir_baseline,
    trial,
    with_quantised,
)

DIRECTIONS: tuple[Direction, ...] = ("minimize", "maximize")
MIN2: list[Direction] = ["minimize", "minimize"]


def study(*records: TrialRecord, **changes: Any) -> Study:
    trials = tuple(record for record in records if record.kind == "trial")
    return Study(study_record(**changes), trials, tuple(record for record in records if record.kind == "baseline"))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], list[Direction]]:
    """Small integers make ties and duplicates common."""
    objectives = draw(st.integers(1, 4))
    ways: st.SearchStrategy[Direction] = st.sampled_from(DIRECTIONS)
    rows = draw(st.lists(st.lists(st.integers(0, 4).map(float), min_size=objectives, max_size=objectives), max_size=12))
    directions = draw(st.lists(ways, min_size=objectives, max_size=objectives))
    return rows, directions


def dominates(one: list[float], other: list[float], directions: list[Direction]) -> bool:
    better = [a > b if way == "maximize" else a < b for a, b, way in zip(one, other, directions, strict=True)]
    worse = [a < b if way == "maximize" else a > b for a, b, way in zip(one, other, directions, strict=True)]
    return any(better) and not any(worse)


@given(problems())
@settings(deadline=None)
def test_non_dominated_is_what_brute_force_finds(problem: tuple[list[list[float]], list[Direction]]) -> None:
    rows, directions = problem
    expected = [not any(dominates(other, row, directions) for other in rows) for row in rows]
    assert non_dominated(rows, directions).tolist() == expected


@given(problems())
@settings(deadline=None, max_examples=50)
def test_hypervolume_is_the_count_of_unit_cells_that_are_dominated(
    problem: tuple[list[list[float]], list[Direction]],
) -> None:
    rows, directions = problem
    signs = np.array([-1 if way == "maximize" else 1 for way in directions])
    limit = np.where(signs > 0, 4.0, 0.0)
    cells = np.stack(np.meshgrid(*[np.arange(4)] * len(directions), indexing="ij"), axis=-1).reshape(
        -1, len(directions)
    )
    # In minimised form the box runs from limit − 4 to limit; a cell counts when a row is at or below its lower corner.
    corners = cells + np.where(signs > 0, 0, -4)
    minimised = np.array(rows).reshape(-1, len(directions)) * signs
    inside = [row for row in minimised if (row < limit * signs).all()]
    expected = sum(any((row <= corner).all() for row in inside) for corner in corners)
    assert hypervolume(rows, limit, directions) == pytest.approx(expected)


def test_hypervolume_of_two_boxes_is_their_union() -> None:
    # Boxes of 1 × 3 and 3 × 1 from the corner (4, 4) share 1 × 1: 3 + 3 − 1.
    assert hypervolume([[3, 1], [1, 3]], [4, 4], MIN2) == pytest.approx(5)
    assert hypervolume([[0.5, 10]], [0, 12], ["maximize", "minimize"]) == pytest.approx(1)
    assert hypervolume([[5, 0], [4, 0]], [4, 4], MIN2) == 0
    assert hypervolume([], [4, 4], MIN2) == 0
    assert hypervolume([[3]], [4], ["minimize"]) == 1


def test_values_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        non_dominated([[math.nan, 1]], MIN2)
    with pytest.raises(ValueError, match="2 objectives"):
        non_dominated([[1, 2, 3]], MIN2)
    with pytest.raises(ValueError, match="empty front"):
        knee_index([], MIN2)


def test_the_knee_is_furthest_from_the_line_through_the_extremes() -> None:
    # Distances to x + y = 1 after scaling: 0, 0.3/√2, 0.6/√2, 0.1/√2, 0.
    front: list[list[float]] = [[0, 1], [0.1, 0.6], [0.2, 0.2], [0.7, 0.2 - 1e-9], [1, 0]]
    assert knee_index(front, MIN2) == 2
    scaled = [[100 - 30 * x, 7e9 * y] for x, y in front]
    assert knee_index(scaled, ["maximize", "minimize"]) == 2


def test_the_knee_of_small_fronts() -> None:
    assert knee_index([[3, 4]], MIN2) == 0
    assert knee_index([[0, 1], [1, 0]], MIN2) == 0  # both are extremes: the first
    assert knee_index([[5], [2], [3]], ["minimize"]) == 1
    assert knee_index([[1, 5], [1, 2]], MIN2) == 1  # the first objective has no say
    four: list[list[float]] = [[0, 0, 1, 1], [1, 1, 0, 0], [0.2, 0.2, 0.2, 0.2]]
    assert knee_index(four, ["minimize"] * 4) == 2


def test_the_front_holds_feasible_points_of_trials_with_every_objective() -> None:
    good = trial(0, [point(27.0, 10)])
    infeasible = trial(1, [point(29.0, 5, constraints={"macs <= 1": 4.0})])
    unmeasured = trial(2, [point(30.0, 1, latency_ms=None)])
    broken = trial(3, [point(math.nan, 1)])
    dominated = trial(4, [point(26.0, 20)])
    found = study(good, infeasible, unmeasured, broken, dominated, swinir_baseline(40.0), bicubic_baseline(25.0))
    front = study_front(found)
    assert [chosen.record.number for chosen in front.points] == [0]
    assert front.knee == front.points[0]


def test_repeated_points_count_once() -> None:
    model = CAMixerSRConfig(channels=24)
    one = point(27.0, 10, routing=RoutingConfig(gamma=0.5), share=0.5)
    same = point(27.0, 10, routing=RoutingConfig(gamma=0.51), share=0.5)  # another γ, the same K in every block
    other = point(27.0, 10, routing=RoutingConfig(policy="probability", gamma=0.5), share=0.5)
    found = study(trial(0, [one, same, other], model=model), trial(1, [one], model=model))
    assert len(found.points) == 2
    assert len(study_front(found).points) == 2
    assert found.num_architectures == 1


def test_the_hypervolume_is_measured_from_the_baselines_and_says_so() -> None:
    # 1 dB above bicubic and a quarter of SwinIR-light's 62.71 G leave a box of 1 × 0.75.
    found = study(
        trial(0, [point(27.5, 62_710_000_000 // 4)]), swinir_baseline(), bicubic_baseline(26.5), objectives=PSNR_MACS
    )
    front = study_front(found)
    assert front.hypervolume == pytest.approx(0.75)
    assert "bicubic's 26.5" in front.hypervolume_reference
    assert "SwinIR-light's 62.71 G" in front.hypervolume_reference


def test_the_hypervolume_without_baselines_is_measured_from_the_worst_point() -> None:
    found = study(
        trial(0, [point(27.0, 10)]), trial(1, [point(28.0, 20)]), trial(2, [point(26.0, 20)]), objectives=PSNR_MACS
    )
    front = study_front(found)
    assert front.hypervolume == pytest.approx(0.5)  # 1 dB above 26 dB at half of the dearest; 28 dB costs as much as it
    assert "the worst feasible point's" in front.hypervolume_reference


@pytest.mark.parametrize("metrics", [["psnr_db"], ["psnr_db", "ssim", "latency_ratio", "attention_share"], ["params"]])
def test_any_number_of_objectives_works(metrics: list[str]) -> None:
    ways: dict[str, Direction] = {"psnr_db": "maximize", "ssim": "maximize"}
    objectives = tuple(ObjectiveConfig(metric=name, direction=ways.get(name, "minimize")) for name in metrics)
    front = study_front(study(*search_trials(), bicubic_baseline(), swinir_baseline(), objectives=objectives))
    assert front.points
    assert math.isfinite(front.hypervolume)


def test_an_objective_may_name_a_device() -> None:
    objectives = (PSNR_MACS[0], ObjectiveConfig(metric="latency_ms/cuda:0", direction="minimize"))
    front = study_front(
        study(*search_trials(2, devices=("cpu:1", "cuda:0")), objectives=objectives, devices=("cpu:1", "cuda:0"))
    )
    assert front.points
    assert "cuda:0" in front.hypervolume_reference


def test_points_of_quantised_files_stand_on_the_front_under_names_of_their_own() -> None:
    plain, record = search_trials(2)
    record = with_quantised(record)
    found = study(plain, record, swinir_baseline(), objectives=PSNR_LATENCY_MACS)
    assert len(found.points) == len(plain.points) + 2 * len(record.points) // 2
    files = [one for one in study_front(found).points if one.measured.quantised is not None]
    assert files  # in half the time, nothing in float is better in everything
    assert {one.point_id.rpartition("/")[2] for one in files} == {"minmax-onnxruntime"}
    assert all(one.label.endswith(", int8 minmax in onnxruntime") for one in files)
    assert len({one.point_id for one in found.points}) == len(found.points)
    suggested = pick(found, "trial:1").measured
    assert suggested.quantised is not None
    assert suggested.routing == getattr(record.model, "routing", None)
    name = point_id(record.network_id, suggested.routing)
    assert pick(found, f"point:{name}").measured.quantised is None
    assert pick(found, f"point:{name}/minmax-onnxruntime").measured == suggested
    assert pick(found, "fastest").measured.quantised is not None
    of_files = [row for row in points_table(found).to_dict("records") if row["quantised"] == row["quantised"]]
    assert {row["quantised"] for row in of_files if row["quantised"]} == {"int8 minmax in onnxruntime"}
    by_id = {row["point_id"]: row for row in of_files}
    row = by_id[f"{name}/minmax-onnxruntime"]
    assert (row["latency_ms_median"], row["file_bytes"]) == (suggested.latency[0].median, 64_000)

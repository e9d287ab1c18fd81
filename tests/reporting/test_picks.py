"""Choosing one point: by name, bounds or weights; and what that gives up."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.choice import ChoiceRecord, MetricChange, TradeOff
from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.errors import UserError
from harness.core.records import ObjectiveConfig, PointRecord, TrialRecord
from harness.reporting import choose, pick, study_front
from harness.reporting.picks import chebyshev_distances, parse_pick
from harness.reporting.study import Point, Study
from harness.reporting.tradeoffs import find_neighbours
from tests.records import (
    PSNR_LATENCY_MACS,
    PSNR_MACS,
    bicubic_baseline,
    one_of_each_state,
    point,
    search_trials,
    study_record,
    swinir_baseline,
    trial,
)

PSNR_LATENCY = PSNR_LATENCY_MACS[:2]
Row = tuple[float, float | None, int]  # dB, ms, MACs


def study(*records: TrialRecord, **changes: Any) -> Study:
    trials = tuple(record for record in records if record.kind == "trial")
    return Study(study_record(**changes), trials, tuple(record for record in records if record.kind == "baseline"))


def study_of(*rows: Row, **changes: Any) -> Study:
    """A study of one network for each row."""
    trials = [
        trial(number, [point(psnr_db, macs, latency_ms=latency_ms, params=1000 * macs)])
        for number, (psnr_db, latency_ms, macs) in enumerate(rows)
    ]
    return study(*trials, swinir_baseline(), bicubic_baseline(), **changes)


def number(found: Point) -> int:
    assert found.record.number is not None
    return found.record.number


def dominates(one: PointRecord, other: PointRecord, metrics: list[str]) -> bool:
    signs = [-1 if metric in ("psnr_db", "ssim") else 1 for metric in metrics]
    pairs = [(sign * (one.value(m) or 0), sign * (other.value(m) or 0)) for sign, m in zip(signs, metrics, strict=True)]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


# Small whole numbers make ties and duplicates common; a few points have no latency.
ROWS = st.tuples(st.integers(20, 26).map(float), st.one_of(st.none(), st.integers(1, 6).map(float)), st.integers(1, 6))
TIMED = st.tuples(st.integers(20, 26).map(float), st.integers(1, 6).map(float), st.integers(1, 6))
STUDIES = st.lists(ROWS, min_size=1, max_size=10)


def test_picks() -> None:
    found = study(
        trial(0, [point(27.0, 100, latency_ms=10.0, params=9)]),
        trial(1, [point(26.0, 10, latency_ms=2.0, params=5)]),
        trial(2, [point(26.8, 30, latency_ms=3.0, params=3)]),
    )
    assert pick(found, "best-psnr").record.number == 0
    assert pick(found, "fastest").record.number == 1
    assert pick(found, "smallest").record.number == 2
    assert pick(found, "knee").record.number == 2
    assert pick(found, "trial:1").record.number == 1


def test_a_trial_is_picked_under_the_routing_that_it_suggested() -> None:
    trials = search_trials(1)
    model = trials[0].model
    assert isinstance(model, CAMixerSRConfig)
    answered = trial(
        7,
        state="answered",
        reason="trained before",
        answered_by=trials[0].record_id,
        model=model.with_routing(RoutingConfig(gamma=0.75)),
        network_id=trials[0].network_id,
    )
    found = study(*trials, answered)
    assert pick(found, "trial:0").measured.routing == model.routing
    assert pick(found, "trial:7").measured.routing == RoutingConfig(gamma=0.75)


def test_any_point_is_picked_by_its_id_also_one_that_is_dominated() -> None:
    model = CAMixerSRConfig(groups=(1, 1), channels=16)
    routings = [RoutingConfig(policy="detail", gamma=gamma, block_weights=(1.0, 0.5)) for gamma in (0.1, 0.25)]
    best = point(30.0, 5, routing=model.routing)
    found = study(trial(0, [best, *(point(27.0, 10, routing=routing) for routing in routings)], model=model))
    network = found.trials[0].network_id
    identities = [f"{network}/detail-{routing.config_hash()[:6]}" for routing in routings]
    assert [pick(found, f"point:{identity}").measured.routing for identity in identities] == routings
    with pytest.raises(UserError, match=f"its network has {network}/fixed-0.5, {identities[0]}, {identities[1]}"):
        pick(found, f"point:{network}/detail")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nicest", "expected one of: knee, best-psnr, fastest, smallest, trial:N, point:ID"),
        ("trial:99", "trials with points: trial:0, trial:4"),
        ("trial:x", "no trial 'x'"),
        ("trial:-1", "no trial '-1'"),
        ("trial:3", "it was failed: loss is not finite at step 17"),
        ("point:ffffffffffff/fixed-0.5", "the column point_id of front.csv names points"),
    ],
)
def test_an_impossible_pick_says_what_is_possible(how: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pick(study(*one_of_each_state()), how)


def test_an_empty_front_cannot_be_picked_from() -> None:
    with pytest.raises(UserError, match="no feasible point"):
        pick(study(trial(1, state="rejected", reason="too large")), "knee")
    with pytest.raises(UserError, match="trials with points: none yet"):
        pick(study(), "trial:0")
    with pytest.raises(UserError, match="measured no latency"):
        pick(study(trial(0, [point(27.0, 10, latency_ms=None)]), objectives=PSNR_MACS), "fastest")


# Bounds --------------------------------------------------------------------------------------------------------------

FOUR: list[Row] = [(30.0, 40.0, 400), (29.0, 20.0, 300), (28.0, 10.0, 200), (27.0, 5.0, 100)]


@pytest.mark.parametrize(
    ("how", "chosen", "rule"),
    [
        ("latency_ms <= 20", 1, "the highest PSNR of the 3 of 4 feasible points that meet latency_ms <= 20"),
        ("latency_ms<20", 2, "the highest PSNR of the 2 of 4"),
        ("latency_ms<=20ms and psnr_y_db>=28", 1, "the highest PSNR of the 2 of 4"),
        ("psnr_db >= 28", 2, "the lowest latency of the 3 of 4"),
        ("psnr_db > 28.5dB", 1, "the lowest latency of the 2 of 4"),
        ("latency_ms_median <= 10", 2, "the highest PSNR of the 2 of 4"),
        ("latency_ms/cpu:1 <= 10", 2, "the highest PSNR of the 2 of 4"),
        ("latency_ratio <= 25%", 1, "the highest PSNR of the 3 of 4"),
        ("macs <= .0002M", 2, "the highest PSNR of the 2 of 4"),
        ("latency_ms >= 10", 2, "the lowest latency of the 3 of 4"),
        ("params < 1M and ssim > 0.77", 0, "the highest PSNR of the 3 of 4"),
    ],
)
def test_bounds_choose_by_a_rule_that_is_said(how: str, chosen: int, rule: str) -> None:
    found, record = choose(study_of(*FOUR), how)
    assert number(found) == chosen
    assert record.rule.startswith(rule)
    assert (record.pick, record.record_id) == (how, found.record.record_id)


def test_the_cheapest_by_macs_where_no_latency_was_measured() -> None:
    found, record = choose(study_of((27.0, None, 10), (28.0, None, 20), objectives=PSNR_MACS), "psnr_db >= 20")
    assert number(found) == 0
    assert record.rule.startswith("the lowest MACs of the 2 of 2")
    assert "latency_ms" not in record.values


def test_points_that_violate_the_studys_constraints_are_not_chosen() -> None:
    better = trial(0, [point(30.0, 5, constraints={"macs <= 1": 4.0})])
    assert number(pick(study(better, trial(1, [point(28.0, 5)])), "macs <= 10")) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("latency_ms <= 2", r"nearest is .* \(trial 3\) at latency 5.00 ms \(3.00 ms too much\)"),
        ("psnr_db > 30", r"nearest is .* \(trial 0\) at PSNR 30.000 dB \(the bound itself\)"),
        (
            "latency_ms <= 18 and psnr_db >= 29.1",
            r"\(trial 1\) at latency 20.00 ms \(2.00 ms too much\) and PSNR 29.000 dB \(0.100 dB too little\)",
        ),
        ("macs <= 150 and latency_ms <= 4ms", r"\(trial 3\) at latency 5.00 ms \(1.00 ms too much\)$"),
    ],
)
def test_bounds_that_nothing_meets_name_the_nearest(how: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^nothing meets {how!r}: .*{message}"):
        choose(study_of(*FOUR), how)


@given(
    STUDIES,
    st.integers(0, 7),
    st.integers(19, 27),
    st.sampled_from(["latency_ms <= {0}", "psnr_db >= {1}", "latency_ms < {0} and psnr_db > {1}", "macs <= {0}"]),
)
@settings(deadline=None)
def test_what_is_chosen_by_bounds_meets_them_and_nothing_that_does_beats_it(
    rows: list[Row], most: int, least: int, form: str
) -> None:
    found = study_of(*rows, objectives=PSNR_LATENCY_MACS if all(row[1] for row in rows) else PSNR_MACS)
    how = form.format(most, least)
    bounds = parse_pick(how, "light").bounds

    def meets(measured: PointRecord) -> bool:
        return all(bound.violation(measured.value(bound.metric)) <= 0 for bound in bounds)

    meeting = [one.measured for one in found.points if meets(one.measured)]
    try:
        chosen = pick(found, how).measured
    except UserError as error:
        assert not meeting
        assert "nearest is" in str(error) or "no feasible point" in str(error)  # noqa: PT017
        return
    assert meets(chosen)
    metrics = [objective.metric for objective in found.record.objectives]
    assert not any(dominates(other, chosen, metrics) for other in meeting)
    if "latency_ms <" in how or "macs" in how:
        assert chosen.evaluation.psnr_db == max(one.evaluation.psnr_db for one in meeting)


# Weights -------------------------------------------------------------------------------------------------------------


def test_the_augmented_chebyshev_distance() -> None:
    """By hand: three points, weights 3 and 1 as ¾ and ¼; max + .05 × sum."""
    found = chebyshev_distances([[0.0, 10.0], [1.0, 4.0], [4.0, 0.0]], [3, 1])
    middle = [0.75 * 0.25, 0.25 * 0.4]
    assert found == pytest.approx([0.25 * 1.05, max(middle) + 0.05 * sum(middle), 0.75 * 1.05])
    assert chebyshev_distances([[2.0, 7.0]], [1, 1]) == [0.0]
    assert chebyshev_distances([[2.0, 1.0], [2.0, 0.0]], [1, 1]) == pytest.approx([0.525, 0.0])


def test_a_point_in_a_hollow_of_the_front_is_chosen() -> None:
    """No weighted sum ever chooses the middle one, because it lies behind the line between the other two."""
    found = study_of((30.0, 10.0, 1), (26.0, 6.0, 1), (20.0, 2.0, 1), objectives=PSNR_LATENCY)
    ranges = np.array([[0, 1.0], [0.4, 0.5], [1.0, 0.0]])
    assert all(int(np.argmin(ranges @ [w, 1 - w])) != 1 or 0.45 < w < 0.6 for w in np.linspace(0, 1, 101))
    assert number(pick(found, "weights: psnr_db=1, latency_ms=1")) == 1
    hollow = study_of((30.0, 10.0, 1), (24.5, 6.5, 1), (20.0, 2.0, 1), objectives=PSNR_LATENCY)
    inside = np.array([[0, 1.0], [0.55, 0.5625], [1.0, 0.0]])
    assert all(int(np.argmin(inside @ [w, 1 - w])) != 1 for w in np.linspace(0, 1, 101))
    assert number(pick(hollow, "weights: psnr_db=1, latency_ms=1")) == 1


def test_weights_move_the_choice_along_the_front() -> None:
    found = study_of(*FOUR)
    by_weight = [number(pick(found, f"weights: psnr_db={weight}, latency_ms=1")) for weight in (0.01, 1, 100)]
    assert by_weight == sorted(by_weight, reverse=True)
    assert (by_weight[0], by_weight[-1]) == (3, 0)
    point_found, record = choose(found, "weights: psnr_y_db=1, params=1")
    assert "augmented Chebyshev, ρ = 0.05" in record.rule
    assert "points that no other beats in PSNR, parameters" in record.rule
    assert record.values["params"] == point_found.measured.params


@given(
    st.lists(TIMED, min_size=1, max_size=12),
    st.tuples(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.01, 100)),
    st.sampled_from([["psnr_db", "latency_ms"], ["macs", "psnr_db"], ["psnr_db", "latency_ms", "macs"], ["macs"]]),
)
@settings(deadline=None)
def test_a_compromise_is_never_dominated(
    rows: list[Row], weights: tuple[float, float, float], metrics: list[str]
) -> None:
    found = study_of(*rows)
    text = ", ".join(f"{metric}={weight!r}" for metric, weight in zip(metrics, weights, strict=False))
    chosen, record = choose(found, f"weights: {text}")
    everything = ["psnr_db", "latency_ms", "macs"]
    assert not any(dominates(other.measured, chosen.measured, everything) for other in found.points)
    assert record.on_front


# What it gives up ----------------------------------------------------------------------------------------------------


@given(st.lists(TIMED, min_size=1, max_size=12), st.data())
@settings(deadline=None)
def test_neighbours_are_the_two_beside_it_on_a_front_of_two_objectives(rows: list[Row], data: st.DataObject) -> None:
    found = study_of(*rows, objectives=PSNR_LATENCY)
    front = sorted(
        {(one.measured.value("latency_ms"), one.measured.evaluation.psnr_db) for one in study_front(found).points}
    )
    chosen = data.draw(st.sampled_from(study_front(found).points))
    place = front.index((chosen.measured.value("latency_ms"), chosen.measured.evaluation.psnr_db))
    record = choose(found, f"point:{chosen.point_id}")[1]
    for step, neighbour in (
        (record.cheaper, front[place - 1] if place else None),
        (record.better, front[place + 1] if place + 1 < len(front) else None),
    ):
        assert (step is None) == (neighbour is None)
        if step is not None:
            by_metric = {change.metric: change for change in step.changes}
            assert (by_metric["latency_ms"].after, by_metric["psnr_db"].after) == neighbour


def test_each_step_says_gains_and_losses_absolute_and_relative() -> None:
    record = choose(study_of(*FOUR, objectives=PSNR_LATENCY), "trial:1")[1]
    assert record.cheaper is not None
    assert record.better is not None
    assert record.reference is not None
    squared_error = 100 * (10**0.1 - 1)
    assert record.cheaper.sentence.startswith("next faster, C24 groups 1-1 M16")
    assert record.cheaper.sentence.endswith(
        "(trial 2): gains 10.00 ms latency (50.0 %), 100 MACs (33.3 %), 100.00 k parameters (33.3 %); "
        f"gives up 1.000 dB PSNR ({squared_error:.1f} % more squared error)"
    )
    assert record.better.sentence.startswith("next better, ")
    assert "gives up 20.00 ms latency (100.0 %), 100 MACs (33.3 %)" in record.better.sentence
    # SwinIR-light: 27 dB, 80 ms in the same run, 62.71 G MACs, 929,628 parameters
    changes = {change.metric: change for change in record.reference.changes}
    assert (changes["psnr_db"].before, changes["psnr_db"].after) == (27.0, 29.0)
    assert (changes["latency_ms"].before, changes["latency_ms"].percent) == (80.0, -75.0)
    assert record.reference.sentence.startswith("against SwinIR-light: gains 2.000 dB PSNR (36.9 % less squared error)")
    assert record.reference.sentence.endswith("gives up nothing [not converged: 100 steps]")
    assert record.notes == ()


def test_the_ends_of_a_front_say_that_they_are() -> None:
    found = study_of(*FOUR, objectives=PSNR_LATENCY)
    assert choose(found, "fastest")[1].cheaper is None
    assert "no point of the front has less latency" in choose(found, "fastest")[1].notes
    assert choose(found, "best-psnr")[1].better is None
    assert "no point of the front has a higher PSNR" in choose(found, "best-psnr")[1].notes
    alone = choose(study_of((27.0, 5.0, 10)), "knee")[1]
    assert (alone.cheaper, alone.better, len(alone.notes)) == (None, None, 2)


def test_neighbours_go_by_macs_where_there_is_no_latency() -> None:
    rows: list[Row] = [(27.0, None, 10), (28.0, None, 20), (29.0, None, 40)]
    record = choose(study_of(*rows, objectives=PSNR_MACS), "trial:1")[1]
    assert record.cost == "macs"
    assert record.cheaper is not None
    assert record.cheaper.sentence.startswith("next with less MACs, ")
    assert "gains 10 MACs (50.0 %)" in record.cheaper.sentence
    assert record.reference is not None
    assert {change.metric for change in record.reference.changes} == {"psnr_db", "macs", "params"}


def test_a_point_off_the_front_names_what_beats_it() -> None:
    found = study_of(*FOUR, (26.0, 30.0, 500))
    record = choose(found, "trial:4")[1]
    assert not record.on_front
    assert "nowhere worse in the objectives" in record.notes[-1]
    infeasible = study(trial(0, [point(29.0, 5, constraints={"macs <= 1": 4.0})]), trial(1, [point(28.0, 1)]))
    assert "it violates macs <= 1, which the study demands" in choose(infeasible, "trial:0")[1].notes


def test_without_swinir_light_the_published_figures_are_not_compared() -> None:
    trials = search_trials(2)
    record = choose(study(*trials, data=study_record().data.model_copy(update={"validation": "set5"})), "knee")[1]
    assert record.reference is None
    (note,) = [note for note in record.notes if "SwinIR-light" in note]
    assert note == (
        "no SwinIR-light was trained in this study, so nothing is said against it; published for it on set5: PSNR "
        "32.44 dB, not comparable with networks that are not fully trained"
    )
    elsewhere = choose(study(*trials), "knee")[1]
    assert "published figures of it are of other images than demo" in " ".join(elsewhere.notes)
    assert "not converged: 100 steps" in elsewhere.notes


def timed_elsewhere(record: TrialRecord) -> TrialRecord:
    points = [
        one.model_copy(update={"latency": tuple(x.model_copy(update={"device_name": "B"}) for x in one.latency)})
        for one in record.points
    ]
    return record.model_copy(update={"points": tuple(points)})


def test_latencies_of_another_setting_are_never_compared_silently() -> None:
    found = study_of(*FOUR, objectives=PSNR_LATENCY)
    first, *others = found.trials
    mixed = Study(found.record, (timed_elsewhere(first), *others), found.baselines)
    for how in ("fastest", "latency_ms <= 20", "psnr_db >= 28", "weights: psnr_db=1, latency_ms=2"):
        with pytest.raises(
            UserError, match=r"1 of .*, B, .*; [23] of .*measure them alike, or choose by another metric"
        ):
            choose(mixed, how)
    assert "latencies of several settings are mixed in it" in choose(mixed, "knee")[1].rule
    assert "mixed" not in choose(found, "knee")[1].rule
    two = (*PSNR_LATENCY, ObjectiveConfig(metric="latency_ms/cuda:0", direction="minimize"))
    devices = ("cpu:1", "cuda:0")
    both = study(*search_trials(3, devices=devices), objectives=two, devices=devices)
    assert "mixed" not in choose(both, "knee")[1].rule  # two devices, each under one setting
    by_macs = choose(mixed, "macs <= 350")[1]
    assert by_macs.better is None  # trial 0 is better, but was timed elsewhere
    assert any("1 points of the front were timed under another setting" in note for note in by_macs.notes)
    own = choose(mixed, "trial:0")[1]
    assert own.cheaper is None
    assert own.reference is not None  # whose latency is that of the same run
    assert {change.metric for change in own.reference.changes} >= {"latency_ms", "psnr_db"}


def test_milliseconds_that_ratios_contradict_are_in_doubt() -> None:
    """The faster one was measured beside a SwinIR-light that was faster still."""
    found = study_of(*FOUR[:2], objectives=PSNR_LATENCY)
    first, second = found.trials
    (measured,) = second.points
    (timed,) = measured.latency
    busy = timed.model_copy(update={"reference_median": 30.0, "ratio": 20.0 / 30.0})
    second = second.model_copy(update={"points": (measured.model_copy(update={"latency": (busy,)}),)})
    cheaper = choose(Study(found.record, (first, second), found.baselines), "trial:0")[1].cheaper
    assert cheaper is not None
    assert cheaper.note is not None
    assert "relative to SwinIR-light of the same run it goes from 0.500 to 0.667, the other way" in cheaper.note
    calm = choose(found, "trial:0")[1].cheaper
    assert calm is not None
    assert calm.note is None


def test_records_are_json_and_come_back() -> None:
    record = choose(study_of(*FOUR), "latency_ms <= 20")[1]
    assert ChoiceRecord.model_validate_json(record.model_dump_json()) == record
    json.loads(record.model_dump_json())
    assert len(record.sentences) == 4 + len(record.notes)


def test_words_of_every_metric() -> None:
    def words(metric: str, before: float, after: float, percent: float | None) -> str:
        return MetricChange(metric=metric, label="x", before=before, after=after, percent=percent).words

    assert words("ssim", 0.8, 0.75, -6.25) == "0.0500 x (6.2 %)"
    assert words("peak_memory_bytes", 5e6, 1e6, -80.0) == "4.00 MB x (80.0 %)"
    assert words("peak_memory_bytes", 512, 0, -100.0) == "512 B x (100.0 %)"
    assert words("attention_share", 0.0, 0.5, None) == "0.50 x"
    assert words("psnr_db", 28.0, 28.0004, -0.0092) == "0.0004 dB x (0.009 % less squared error)"
    assert words("latency_ratio/cpu:2", 1.0, 0.25, -75.0) == "0.750 x (75.0 %)"
    equal = MetricChange(metric="macs", label="MACs", before=1, after=1, percent=0.0)
    step = TradeOff(title="next faster, ", label="A", record_id="r", point_id="p", changes=(equal,))
    assert step.sentence == "next faster, A: gains nothing; gives up nothing"


def test_neighbours_of_equal_points() -> None:
    found = study_of((27.0, 5.0, 10), (27.0, 5.0, 10), (28.0, 6.0, 10), (28.0, 7.0, 10)).points
    assert find_neighbours(found, found[0], "latency_ms") == (None, found[2])
    assert find_neighbours(found, found[3], "latency_ms") == (found[2], None)


@pytest.mark.parametrize(
    ("how", "protocol", "message"),
    [
        ("psnr_y_db >= 30", "odi", "PSNR is scored under protocol odi, not on luma; say psnr_db"),
        ("weights: psnr_y_db=1", "large", "PSNR is scored under protocol large, not on luma; say psnr_db"),
        ("latency_ms", "light", "character 11: expected one of <= < >= >, but it ends"),
        ("latency <= 20", "light", "character 1: unknown metric 'latency'; metrics are attention_share, latency_ms"),
        ("weights: psnr=1", "light", "character 10: unknown metric 'psnr'"),
        ("weights", "light", "character 8: expected `:`, but it ends"),
        ("Knee", "light", "unknown pick 'Knee'; expected one of: knee, .*\"latency_ms <= 20 and psnr_db >= 30\""),
    ],
)
def test_what_is_no_pick(how: str, protocol: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_pick(how, protocol)


def test_metrics_that_nobody_measured() -> None:
    found = study_of((27.0, None, 10), (28.0, None, 20), objectives=PSNR_MACS)
    with pytest.raises(
        UserError, match=r"no feasible point of study 'quickstart' has latency_ms; they have psnr_db, ssim"
    ):
        pick(found, "latency_ms <= 20")
    with pytest.raises(UserError, match=r"has latency_ms/cuda:0; .* \(latencies on cpu:1\)"):
        pick(study_of(*FOUR), "weights: latency_ms/cuda:0=1")
    partly = study_of((27.0, None, 10), (28.0, 9.0, 20), objectives=PSNR_MACS)
    assert number(pick(partly, "latency_ms <= 20")) == 1
    unscored = study(trial(0, [point(math.nan, 10)]), trial(1, [point(27.0, 20)]))
    assert number(pick(unscored, "macs <= 20")) == 1


@pytest.mark.parametrize("how", ["knee", "fastest", "latency_ms <= 30", "weights: psnr_db=1, latency_ms=1"])
def test_any_objectives_and_devices_will_do(how: str) -> None:
    objectives = (
        ObjectiveConfig(metric="ssim", direction="maximize"),
        ObjectiveConfig(metric="latency_ms/cuda:0", direction="minimize"),
    )
    found = study(
        *search_trials(3, devices=("cpu:1", "cuda:0")),
        swinir_baseline(),
        objectives=objectives,
        devices=("cpu:1", "cuda:0"),
    )
    record = choose(found, how)[1]
    assert record.cost == "latency_ms/cuda:0"
    assert {"ssim", "psnr_db", "latency_ms/cuda:0"} <= set(record.values)
    assert any("latency on cuda:0" in sentence for sentence in record.sentences)

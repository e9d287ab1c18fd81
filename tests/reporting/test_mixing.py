"""Latencies that do not compare never stand in one column unasked."""

from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UserError
from harness.core.records import PointRecord, ProfileRecord
from harness.reporting import compare, compare_profiles, load_profiles, load_study
from harness.reporting.html import render_report
from harness.reporting.study import latency_settings
from tests.records import (
    ENVIRONMENT,
    latency,
    search_trials,
    study_record,
    swinir_baseline,
    with_quantised,
    write_study,
)


def profile(name: str, *medians: float, **changes: Any) -> ProfileRecord:
    return ProfileRecord(
        target=name,
        label=name,
        model={"family": "bicubic", "scale": 4},
        weights="none needed",
        params=0,
        macs=0,
        rows=tuple(latency(median).model_copy(update=changes) for median in medians),
        environment=ENVIRONMENT,
        measured_at="2026-01-02T03:05:00+00:00",
    )


def test_a_study_measured_under_two_protocols(tmp_path: Path) -> None:
    trials = [*search_trials(4), swinir_baseline()]
    write_study(tmp_path / "same", study_record(), trials)
    document = compare(load_study(tmp_path / "same"))
    assert len(document["latency_settings"]) == 1

    def later(found: Any) -> Any:
        points = [
            point.model_copy(
                update={"latency": tuple(one.model_copy(update={"protocol": "later: 3"}) for one in point.latency)}
            )
            for point in found.points
        ]
        return found.model_copy(update={"points": tuple(points)})

    write_study(tmp_path / "mixed", study_record(), [*trials[:-1], later(trials[-1])])
    mixed = load_study(tmp_path / "mixed")
    with pytest.raises(UserError, match=r"different protocols.*interleaved.*later.*--mix"):
        compare(mixed)
    document = compare(mixed, mix=True)
    assert len(document["latency_settings"]) == 2
    assert document["rows"]


def test_latencies_of_quantised_files_compare_where_their_reference_ran_as_that_of_the_others(tmp_path: Path) -> None:
    record = with_quantised(search_trials(1)[0], faster=0.1)
    write_study(tmp_path / "one", study_record(), [record, swinir_baseline()])
    study = load_study(tmp_path / "one")
    document = compare(study)
    same, note = document["latency_settings"]
    assert "cpu:1/eager/fp32/64x64" in same
    assert note.endswith(f"quantised: {same}, run by onnxruntime, fp32")
    assert {row["quantised"] for row in document["rows"] if row["role"] == "baseline"} == {None}
    text = render_report(study)
    assert "int8 minmax in onnxruntime" in text
    assert "which ran under cpu:1" in text

    def elsewhere(point: PointRecord) -> PointRecord:
        if point.quantised is None:
            return point
        changed = {"device": "cpu:2", "compared_under": "cpu:2"}
        return point.model_copy(update={"latency": tuple(one.model_copy(update=changed) for one in point.latency)})

    moved = record.model_copy(update={"points": tuple(map(elsewhere, record.points))})
    write_study(tmp_path / "two", study_record(), [moved, swinir_baseline()])
    other = load_study(tmp_path / "two")
    assert all(one.latency("cpu:1") is None for one in other.points if one.measured.quantised is not None)
    with pytest.raises(UserError, match=r"cpu:1/eager/fp32/64x64.*cpu:2/eager/fp32/64x64"):
        latency_settings([one.measured.latency[0] for one in other.points])


def test_profiles_of_one_setting_stand_in_one_table() -> None:
    document = compare_profiles([profile("a", 1.0, 2.0), profile("b", 3.0)])
    assert [(row["label"], row["latency_ms_median"]) for row in document["rows"]] == [
        ("a", 1.0),
        ("a", 2.0),
        ("b", 3.0),
    ]
    assert len(document["latency_settings"]) == 1


def test_profiles_of_several_devices_are_refused_filtered_or_mixed() -> None:
    found = [profile("a", 1.0), profile("b", 3.0, device="cpu:2"), profile("c", 4.0, precision="bf16")]
    with pytest.raises(UserError, match=r"cpu:1/eager/fp32/64x64.*cpu:2/eager/fp32/64x64.*--mix"):
        compare_profiles(found)
    assert [row["label"] for row in compare_profiles(found, conditions="cpu:2")["rows"]] == ["b"]
    assert [row["label"] for row in compare_profiles(found, conditions="cpu:1/bf16/64x64")["rows"]] == ["c"]
    assert [row["label"] for row in compare_profiles(found, mix=True)["rows"]] == ["a", "b", "c"]
    with pytest.raises(UserError, match="no profile was measured under 'cpu:4'"):
        compare_profiles(found, conditions="cpu:4")


def test_what_is_no_profile_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no profiles in"):
        load_profiles(tmp_path)
    (tmp_path / "other.json").write_text('{"rows": 3}', encoding="utf-8")
    with pytest.raises(UserError, match=r"other\.json: not a ProfileRecord"):
        load_profiles(tmp_path)

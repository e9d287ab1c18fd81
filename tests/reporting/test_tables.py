"""Tables, the JSON summary, the comparison and the published figures."""

import json
import math
from pathlib import Path

import pytest

from harness.core.configs import PAPER_RECIPE, DataConfig, RoutingConfig
from harness.core.errors import UserError
from harness.reporting import compare, load_published, load_study, points_table, published_dir, summarise
from harness.reporting import published as published_module
from harness.reporting.comparison import format_difference
from harness.reporting.study import Study
from harness.reporting.table import front_table, write_csv
from tests.records import (
    bicubic_baseline,
    latency,
    one_of_each_state,
    point,
    search_trials,
    study_record,
    swinir_baseline,
    trial,
    write_study,
)

POINT_FIELDS = {
    "config_id",
    "trial",
    "label",
    "gamma",
    "routing",
    "attention_share",
    "psnr_db",
    "ssim",
    "macs",
    "params",
    "latency_ms_median",
    "latency_ratio",
    "quantised",
    "protocol",
    "seam_factor",
}


def full_study(**changes: object) -> Study:
    return Study(study_record(**changes), tuple(search_trials()), (swinir_baseline(), bicubic_baseline()))


def test_a_study_is_read_back_from_its_folder(tmp_path: Path) -> None:
    records = [*search_trials(12), swinir_baseline(), bicubic_baseline()]
    write_study(tmp_path, study_record(), records)
    study = load_study(tmp_path)
    assert [record.number for record in study.trials] == list(range(12))
    assert {record.record_id for record in study.baselines} == {"baseline-swinir-light", "baseline-bicubic"}
    assert study.record == study_record()
    with pytest.raises(UserError, match="no study in"):
        load_study(tmp_path / "elsewhere")


def test_one_row_per_point_and_baseline() -> None:
    study = full_study()
    table = points_table(study)
    assert len(table) == 45 + 2
    assert table["on_front"].sum() == len(front_table(study)) > 0
    assert table["knee"].sum() == 1
    assert not table.loc[table["kind"] == "baseline", "on_front"].any()
    assert set(table.loc[~table["feasible"], "violated"]) == {"macs <= 30e9"}
    bicubic = table[table["label"] == "bicubic"].iloc[0]
    assert bicubic["steps"] == 0
    assert bicubic["training_seconds"] == 0
    assert table.loc[table["kind"] == "trial", "converged"].eq(False).all()


def test_further_devices_have_their_own_columns() -> None:
    devices = ("cpu:1", "cuda:0")
    measured = point(27.0, 10).model_copy(update={"latency": (latency(20.0), latency(2.0, device="cuda:0"))})
    study = Study(study_record(devices=devices), (trial(0, [measured]),), (swinir_baseline(),))
    row = points_table(study).iloc[0]
    assert row["latency_ms_median"] == 20.0
    assert row["latency_ms_median/cuda:0"] == 2.0
    assert row["latency_ratio/cuda:0"] == 2.0 / 80.0
    empty = Study(study_record(devices=devices), (), ())
    assert list(points_table(empty).columns) == list(points_table(study).columns)


def test_an_empty_front_is_a_csv_with_its_header(tmp_path: Path) -> None:
    write_csv(front_table(Study(study_record(), (), ())), tmp_path / "front.csv")
    (header,) = (tmp_path / "front.csv").read_text().splitlines()
    assert header.startswith("record_id,trial,kind,label")


def test_the_summary_has_the_promised_fields_and_is_json() -> None:
    summary = summarise(full_study())
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["study"] == "quickstart"
    assert summary["num_architectures"] == 9
    assert summary["num_points"] == 45
    assert summary["trials"]["complete"] == 9
    assert set(summary["front"][0]) == POINT_FIELDS
    assert set(summary["knee"]) == POINT_FIELDS
    assert set(summary["baselines"]["swinir-light"]) == POINT_FIELDS | {"steps", "training_seconds"}
    assert summary["baselines"]["swinir-light"]["steps"] == 100
    assert summary["baselines"]["bicubic"]["gamma"] is None
    assert summary["hypervolume"] > 0
    assert "bicubic" in summary["hypervolume_reference"]
    assert summary["converged"] is False
    assert summary["note"].startswith("not converged")
    assert [objective["metric"] for objective in summary["objectives"]] == ["psnr_db", "latency_ms", "macs"]
    pairs = [(row["psnr_db"], -row["macs"], -row["latency_ms_median"]) for row in summary["front"]]
    assert not any(all(a >= b for a, b in zip(x, y, strict=True)) and x != y for x in pairs for y in pairs)


def test_no_nan_reaches_the_json() -> None:
    study = Study(
        study_record(), (trial(0, [point(math.nan, 10)]), trial(1, [point(math.inf, 10)])), (swinir_baseline(math.nan),)
    )
    summary = summarise(study)
    json.dumps(summary, allow_nan=False)
    assert summary["baselines"]["swinir-light"]["psnr_db"] is None
    assert summary["front"] == []
    assert summary["knee"] is None
    json.dumps(compare(study), allow_nan=False)


def test_a_study_without_any_record_is_summed_up() -> None:
    summary = summarise(Study(study_record(), (), ()))
    assert summary["num_architectures"] == summary["num_points"] == 0
    assert summary["baselines"] == {"bicubic": None, "swinir-light": None}
    assert summary["hypervolume"] == 0
    states = summarise(Study(study_record(), tuple(one_of_each_state()), ()))["trials"]
    assert states == {"complete": 1, "rejected": 1, "stopped": 1, "failed": 1, "answered": 1}


def test_the_comparison_says_macs_speed_and_decibels() -> None:
    reference = swinir_baseline(27.0)  # 62.71 G, 80 ms
    study = Study(
        study_record(),
        (trial(0, [point(26.75, 31_355_000_000, latency_ms=20.0)]),),
        (reference, bicubic_baseline(26.5)),
    )
    comparison = compare(study)
    row = comparison["rows"][0]
    assert row["macs_saving_percent"] == pytest.approx(50)
    assert row["times_faster"] == pytest.approx(4)
    assert row["psnr_difference_db"] == pytest.approx(-0.25)
    assert row["psnr_above_bicubic_db"] == pytest.approx(0.25)
    assert row["sentence"] == "50.0 % fewer MACs, 4.00 times faster, −0.25 dB (not converged: 100 steps)"
    assert comparison["headline"].startswith("No network of the front reaches SwinIR-light's PSNR; the closest: C16")
    roles = {row["label"]: (row["role"], row["steps"], row["training_seconds"]) for row in comparison["rows"]}
    assert roles["SwinIR-light"] == ("baseline", 100, 10.0)
    assert roles["bicubic"] == ("baseline", 0, 0.0)
    assert {row["note"] for row in comparison["rows"]} == {"not converged: 100 steps"}


def test_a_larger_slower_network_is_said_to_be_so() -> None:
    study = Study(
        study_record(), (trial(0, [point(27.2, 75_252_000_000, latency_ms=160.0)]),), (swinir_baseline(27.0),)
    )
    assert compare(study)["rows"][0]["sentence"].startswith(
        "20.0 % more MACs, 2.00 times slower, +0.20 dB (not converged"
    )
    assert "Fastest network that is at least as good as SwinIR-light" in compare(study)["headline"]


def test_speed_is_the_ratio_of_runs_side_by_side() -> None:
    # The machine was twice as slow while the trial was timed: 40 ms beside SwinIR-light's 160 ms.
    measured = point(27.0, 10).model_copy(update={"latency": (latency(40.0, reference_median=160.0),)})
    study = Study(study_record(), (trial(0, [measured]),), (swinir_baseline(27.0),))
    assert compare(study)["rows"][0]["times_faster"] == pytest.approx(4)


def test_only_a_full_recipe_goes_without_the_words() -> None:
    full = (trial(0, [point(27.0, 10)], training=PAPER_RECIPE),)
    both = Study(
        study_record(training=PAPER_RECIPE), full, (swinir_baseline(training=PAPER_RECIPE), bicubic_baseline())
    )
    assert "not converged" not in json.dumps(compare(both))
    assert summarise(both)["converged"] is True
    assert summarise(both)["note"] is None
    one = Study(study_record(training=PAPER_RECIPE), full, (swinir_baseline(),))
    assert compare(one)["rows"][0]["sentence"].endswith("0.00 dB (not converged: 100 steps)")
    assert summarise(one)["converged"] is False


def test_a_comparison_without_baselines_says_so() -> None:
    comparison = compare(Study(study_record(), tuple(search_trials(3)), ()))
    assert "no SwinIR-light baseline" in comparison["headline"]
    assert all(row["sentence"] is None for row in comparison["rows"])
    assert compare(Study(study_record(), (), ()))["rows"] == []


@pytest.mark.parametrize(
    ("value", "text"), [(-0.251, "−0.25 dB"), (0.04, "+0.04 dB"), (-0.001, "0.00 dB"), (0.0, "0.00 dB")]
)
def test_a_difference_is_written_with_its_sign(value: float, text: str) -> None:
    assert format_difference(value) == text


def test_published_rows_are_those_of_the_tables() -> None:
    rows = load_published(4)
    swinir = next(row for row in rows if row["label"] == "SwinIR-light" and row["dataset"] == "set5")
    assert (swinir["psnr_db"], swinir["ssim"], swinir["macs"], swinir["params"]) == (
        32.44,
        0.8976,
        61_700_000_000,
        930_000,
    )
    base = next(
        row for row in rows if row["gamma"] == 0.25 and row["dataset"] == "urban100" and "DF2K" in row["trained_on"]
    )
    assert base["psnr_db"] == 26.63  # supplementary, table 3
    assert all(row["source"].startswith("CAMixerSR") and "convergence" in row["trained_on"] for row in rows)
    assert {row["label"] for row in load_published(2)} == {"CAMixerSR γ=1", "CAMixerSR γ=0.5", "CAMixerSR γ=0.25"}
    assert load_published(3) == []


def test_published_rows_stand_beside_those_of_the_same_scale_and_dataset() -> None:
    study = full_study(data=DataConfig(train="div2k", validation="set5"))
    rows = [row for row in compare(study, published=True)["rows"] if row["role"] == "published"]
    assert {row["dataset"] for row in rows} == {"set5"}
    assert set(rows[0]) == set(compare(study)["rows"][0])
    assert {row["dataset"] for row in compare(full_study(), published=True)["rows"] if row["role"] == "published"} > {
        "set5"
    }


def test_published_tables_are_found_in_a_wheel_and_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert published_dir().parts[-2:] == ("results", "reference")
    monkeypatch.setattr(published_module, "_PACKAGE", tmp_path / "harness")
    with pytest.raises(UserError, match="published tables not found"):
        published_dir()
    (tmp_path / "harness" / "published").mkdir(parents=True)
    (tmp_path / "harness" / "published" / "light_by_gamma.csv").write_text("gamma\n")
    assert published_dir() == tmp_path / "harness" / "published"


def test_transcribed_tables_equal_the_reference(reference: Path) -> None:
    names = {
        "runtime.csv": "supp_table1_runtime.csv",
        "large_by_gamma.csv": "supp_table2_large_image.csv",
        "light_by_gamma.csv": "supp_table3_light.csv",
        "light_peers_x4.csv": "main_light_x4_peers.csv",
        "large_peers_x4.csv": "main_large_image_peers.csv",
        "odi_peers.csv": "main_odi_peers.csv",
    }
    for ours, theirs in names.items():
        assert (published_dir() / ours).read_text() == (reference / "tables" / theirs).read_text()


def test_thresholds_have_no_gamma() -> None:
    study = Study(
        study_record(), (trial(0, [point(27.0, 10, routing=RoutingConfig(policy="threshold"), share=0.4)]),), ()
    )
    (row,) = summarise(study)["front"]
    assert (row["gamma"], row["routing"], row["attention_share"]) == (None, "threshold", 0.4)

"""What `--json` prints: one document on stdout, with everything that a machine was promised, and notes on stderr."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.records import ProfileRecord
from harness.profiling import canonical_macs
from tests.cli.conftest import Call, FinishedStudy, run_harness
from tests.photographs import Photographs

POINT_FIELDS = {
    "config_id",
    "gamma",
    "routing",
    "attention_share",
    "psnr_db",
    "ssim",
    "macs",
    "params",
    "latency_ms_median",
    "latency_ratio",
}
QUICK = ("--repeats", "3", "--seconds", "0", "--no-tracking")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    config = CAMixerSRConfig(groups=(1, 2), channels=8, window=4)
    path = tmp_path / "model.json"
    path.write_text(config.model_dump_json(), encoding="utf-8")
    return path


def assert_no_nan(document: Any) -> None:
    json.dumps(document, allow_nan=False)


class TestProfile:
    def test_fields(self, call: Call, model_file: Path) -> None:
        arguments = ("--input-size", "24", "32", "--gamma", "0.5", "--routing", "fixed", "--device", "cpu")
        outcome = call("profile", model_file, *arguments, "--threads", "1", "--json", *QUICK)
        document = outcome.document
        assert all(line.startswith("warning: cpu:1/eager/fp32/24x32: ") for line in outcome.err.splitlines())
        assert_no_nan(document)
        assert document["scale"] == 4
        assert document["input_size"] == [24, 32]
        assert (document["gamma"], document["routing"]) == (0.5, "fixed")
        assert document["attention_share"] == 0.5  # 24 of 48 windows
        assert document["params"] > 0
        assert {"fvcore", "ptflops", "closed_form"} & set(document["macs_by_counter"])
        assert document["counters_agree"]
        assert all(abs(count / document["macs"] - 1) < 0.01 for count in document["macs_by_counter"].values())
        assert set(document["latency_ms"]) == {"median", "iqr", "p90"}
        assert 0 < document["latency_ms"]["median"] <= document["latency_ms"]["p90"]
        record = document["latency_record"]
        assert document["latency_ratio"] == pytest.approx(record["median"] / record["reference_median"])
        assert (record["device"], record["threads"], record["reference"]) == ("cpu:1", 1, "swinir-light")
        assert document["weights"] == "untrained"
        assert document["config"]["groups"] == [1, 2]
        assert document["environment"]["packages"]["torch"]
        assert (record["process"], record["protocol"][:13]) == ("fresh", "interleaved-3")
        assert record["peak_memory_bytes"] == document["peak_memory_bytes"] >= 96 * 128 * 3 * 4  # of the output
        assert record["interval"][0] <= record["median"] <= record["interval"][1]
        low, high = record["ratio_interval"]
        assert low <= record["ratio"] <= high

    @pytest.mark.slow
    def test_rows_on_real_images_are_kept(self, call: Call, model_file: Path, photographs: Photographs) -> None:
        sizes = ("--input-sizes", "8x12,16x16", "--batch-sizes", "2", "--images", photographs.train)
        arguments = (*sizes, "--routing", "probability", "--gamma", "1", "--reference", "bicubic", "--json")
        document = call("profile", model_file, *arguments, *QUICK).document
        rows = [(row["input_size"], row["batch_size"]) for row in document["rows"]]
        assert rows == [([8, 12], 2), ([16, 16], 2)]
        kept = ProfileRecord.model_validate_json(Path(document["record_file"]).read_bytes())
        assert Path(document["record_file"]).parent == Path("results/profiles")
        assert [(row.input_size, row.batch_size) for row in kept.rows] == [((8, 12), 2), ((16, 16), 2)]
        for row in kept.rows:
            assert row.reference == "bicubic"
            assert row.attention_share == 1.0
            assert row.images
            assert set(row.images) <= {path.name for path in photographs.train.rglob("*.png")}
        call("profile", "bicubic", "--input-sizes", "8x12", "--no-reference", "--no-memory", "--json", *QUICK)
        assert len(list(Path("results/profiles").iterdir())) == 2
        assert "conditions" in call("compare", "--profiles").mistake
        listed = call("compare", "--profiles", "--at", "cpu:1/16x16/batch2", "--json").document["rows"]
        assert [row["latency_ms_median"] for row in listed] == [document["rows"][1]["latency_ms"]["median"]]
        assert len(call("compare", "--profiles", "--mix", "--json").document["rows"]) == 3

    @pytest.mark.slow
    def test_profiles_accumulate_in_mlflow(self, call: Call) -> None:
        from mlflow import MlflowClient

        for _ in range(2):
            arguments = ("--input-size", "8", "8", "--no-reference", "--json", *QUICK[:-1])
            document = call("profile", "bicubic", *arguments).document
        client = MlflowClient(f"sqlite:///{Path('results/mlflow.db').resolve()}")
        experiment = client.get_experiment_by_name("profiles")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert len(runs) == 2
        (run,) = [
            run
            for run in runs
            if run.data.metrics["latency_ms/cpu:1/eager/fp32/8x8"] == document["latency_ms"]["median"]
        ]
        assert run.data.params["reference"] == "null"
        assert run.data.params["device.threads"] == "1"

    @pytest.mark.slow
    def test_runtimes(self, call: Call, model_file: Path) -> None:
        pytest.importorskip("onnxruntime")
        arguments = ("--input-size", "8", "8", "--runtime", "onnxruntime", "--reference", "bicubic", "--json")
        record = call("profile", model_file, *arguments, *QUICK).document["latency_record"]
        assert (record["runtime"], record["fingerprint"]["runtime_version"] is None) == ("onnxruntime", False)
        assert record["output_error"] < 1e-4

    @pytest.mark.slow
    def test_gamma_changes_the_cost(self, call: Call, model_file: Path) -> None:
        macs = [
            call("profile", model_file, "--input-size", "8", "8", "--gamma", gamma, "--json", "--no-reference", *QUICK)
            .document["macs"]
            for gamma in ("0", "1")
        ]  # fmt: skip
        config = CAMixerSRConfig.model_validate_json(model_file.read_text(encoding="utf-8"))
        routed = [config.with_routing(RoutingConfig(gamma=gamma)) for gamma in (0, 1)]
        assert macs == [canonical_macs(one, (8, 8)) for one in routed]
        assert macs[0] < macs[1]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("model", "scale", "params"),
        [("camixersr-s", 4, 351_238), ("camixersr-b", 2, 745_846), ("swinir-light", 3, 918_267)],
    )
    def test_presets_have_the_published_parameters(self, call: Call, model: str, scale: int, params: int) -> None:
        arguments = ("--scale", str(scale), "--input-size", "16", "16", "--no-reference", "--json")
        document = call("profile", model, *arguments, *QUICK).document
        assert (document["params"], document["scale"]) == (params, scale)
        assert document["latency_ratio"] is None

    def test_a_network_that_does_not_route(self, call: Call) -> None:
        document = call("profile", "bicubic", "--input-size", "8", "8", "--json", "--no-reference", *QUICK).document
        assert (document["gamma"], document["routing"], document["attention_share"]) == (None, None, None)
        assert document["params"] == 0

    def test_table_for_people(self, call: Call) -> None:
        outcome = call("profile", "bicubic", "--input-size", "8", "8", "--no-reference", *QUICK)
        assert outcome.code == 0
        assert "latency median" in outcome.out
        assert "{" not in outcome.out


class TestEvaluate:
    def test_fields(self, call: Call, model_file: Path, photographs: Photographs) -> None:
        arguments = ("--data", photographs.validation, "--gamma", "0.25", "--routing", "fixed", "--protocol", "light")
        outcome = call("evaluate", model_file, *arguments, "--json")
        document = outcome.document
        assert_no_nan(document)
        assert "untrained" in outcome.err
        assert document["protocol"] == "light"
        assert document["attention_share"] == 0.25
        assert (document["gamma"], document["routing"], document["scale"]) == (0.25, "fixed", 4)
        (image,) = document["images"]
        assert image["name"] == "astronaut"
        assert (image["psnr_db"], image["ssim"]) == (document["psnr_db"], document["ssim"])
        assert image["attention_share"] == 0.25
        assert math.isfinite(document["psnr_db"])
        assert -1 <= document["ssim"] <= 1

    def test_given_low_resolution_images_are_used(self, call: Call, photographs: Photographs, tmp_path: Path) -> None:
        data = tmp_path / "set"
        shutil.copytree(photographs.validation, data / "HR")
        made = call("evaluate", "bicubic", "--data", data, "--json").document
        from PIL import Image

        lower = data / "LR_bicubic" / "X4" / "astronautx4.png"
        lower.parent.mkdir(parents=True)
        Image.open(data / "HR" / "astronaut.png").resize((16, 16), Image.Resampling.NEAREST).save(lower)
        given = call("evaluate", "bicubic", "--data", data, "--json").document
        assert given["psnr_db"] < made["psnr_db"] - 1
        assert given["dataset_hash"] != made["dataset_hash"]

    def test_bicubic_needs_no_weights_and_says_nothing(self, call: Call, photographs: Photographs) -> None:
        outcome = call("evaluate", "bicubic", "--data", photographs.validation, "--scale", "2", "--json")
        assert outcome.err == ""
        assert outcome.document["psnr_db"] > 25
        assert outcome.document["attention_share"] is None

    def test_a_bundle(self, call: Call, study: FinishedStudy, photographs: Photographs) -> None:
        bundle = study.folder / "bundles" / "knee"
        document = call("evaluate", bundle, "--data", photographs.validation, "--json").document
        metrics = json.loads((bundle / "metrics.json").read_text(encoding="utf-8"))
        assert document["psnr_db"] == metrics["point"]["evaluation"]["psnr_db"]
        assert document["weights"].endswith("model.safetensors")

    def test_released_weights_on_set5(self, call: Call, reference: Path) -> None:
        weights = reference / "weights" / "CAMixerSR_S.pth"
        arguments = ("--data", reference / "images" / "Set5", "--scale", "4", "--gamma", "1", "--threads", "1")
        document = call("evaluate", "camixersr-s", "--weights", weights, *arguments, "--json").document
        assert document["psnr_db"] == pytest.approx(32.33, abs=0.01)
        assert document["attention_share"] == 1
        assert len(document["images"]) == 5
        assert "params_ema" in document["weights"]

    def test_a_named_dataset(self, call: Call, reference: Path) -> None:
        arguments = ("--data", "set5", "--data-dir", reference / "images", "--json")
        document = call("evaluate", "bicubic", *arguments).document
        assert document["psnr_db"] == pytest.approx(28.42, abs=0.02)  # the published bicubic score


class TestReport:
    def test_fields(self, call: Call, study: FinishedStudy) -> None:
        outcome = call("report", "tiny", "--results", study.results, "--json")
        document = outcome.document
        assert outcome.err == ""
        assert_no_nan(document)
        assert document["study"] == "tiny"
        assert document["num_architectures"] == 2
        assert document["num_points"] == 6
        assert document["trials"]["complete"] == 2
        assert document["trials"]["rejected"] == 1
        assert document["hypervolume"] >= 0
        assert document["hypervolume_reference"]
        assert document["front"]
        for point in document["front"]:
            assert set(point) >= POINT_FIELDS
        assert set(document["baselines"]) == {"bicubic", "swinir-light"}
        for baseline in document["baselines"].values():
            assert set(baseline) >= POINT_FIELDS
        assert document["baselines"]["swinir-light"]["params"] == 929_628
        assert 0.1 < document["baselines"]["swinir-light"]["latency_ratio"] < 10  # against itself, on any machine
        assert document["converged"] is False

    def test_the_front_is_not_dominated(self, call: Call, study: FinishedStudy) -> None:
        front = call("report", "tiny", "--results", study.results, "--json").document["front"]
        for one in front:
            for other in front:
                assert not (
                    other["psnr_db"] > one["psnr_db"]
                    and other["macs"] < one["macs"]
                    and other["latency_ms_median"] < one["latency_ms_median"]
                )

    def test_a_study_is_found_by_its_path_too(self, call: Call, study: FinishedStudy) -> None:
        by_name = call("report", "tiny", "--results", study.results, "--json").document
        assert call("report", study.folder, "--json").document == by_name

    def test_files_for_people(self, call: Call, study: FinishedStudy, tmp_path: Path) -> None:
        shutil.copytree(study.folder, tmp_path / "results" / "tiny")
        outcome = call("report", "tiny")
        assert outcome.code == 0
        for name in ("report.html", "front.csv", "front.png"):
            assert (tmp_path / "results" / "tiny" / "report" / name).stat().st_size > 100
            assert name in outcome.out
        assert "swinir-light" in outcome.out
        assert "not converged" in outcome.out
        page = tmp_path / "results" / "tiny" / "report" / "report.html"
        text = page.read_text(encoding="utf-8")
        assert "SwinIR-light</b>" in text
        assert text.count("data:image/png") >= 4  # bicubic, SwinIR-light, a network, the photograph
        assert call("report", "tiny", "--no-images").code == 0
        assert "data:image" not in page.read_text(encoding="utf-8")


class TestCompare:
    def test_fields(self, call: Call, study: FinishedStudy) -> None:
        outcome = call("compare", "tiny", "--results", study.results, "--json")
        document = outcome.document
        assert outcome.err == ""
        assert_no_nan(document)
        assert document["study"] == "tiny"
        roles = [row["role"] for row in document["rows"]]
        assert roles.count("baseline") == 2
        against = [row for row in document["rows"] if row["role"] == "front"]
        swinir = next(row for row in document["rows"] if row["label"] == "SwinIR-light")
        for row in against:
            assert row["macs_saving_percent"] == pytest.approx(100 * (1 - row["macs"] / swinir["macs"]))
            assert row["psnr_difference_db"] == pytest.approx(row["psnr_db"] - swinir["psnr_db"])
            assert "not converged" in row["sentence"]

    def test_published_tables(self, call: Call, study: FinishedStudy) -> None:
        own = call("compare", "tiny", "--results", study.results, "--json").document["rows"]
        both = call("compare", "tiny", "--results", study.results, "--published", "--json").document["rows"]
        assert len(both) > len(own)
        published = [row for row in both if row["role"] not in ("front", "baseline")]
        assert all(row["source"] for row in published)

    def test_sentences_for_people(self, call: Call, study: FinishedStudy) -> None:
        outcome = call("compare", "tiny", "--results", study.results)
        assert outcome.code == 0
        assert "fewer MACs" in outcome.out
        assert "not converged" in outcome.out


@pytest.mark.slow
def test_documents_are_alone_on_stdout(study: FinishedStudy) -> None:
    """In a process of its own, whatever libraries print."""
    outcome = run_harness(
        "profile", study.folder / "bundles" / "knee", "--input-size", "8", "8", "--no-reference", "--json", *QUICK
    )
    assert outcome.document["weights"].endswith("model.safetensors")
    assert outcome.out.startswith("{\n")
    assert outcome.out.endswith("}\n")
    assert outcome.err == ""

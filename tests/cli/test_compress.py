"""`harness compress`: bundles in, smaller bundles out; targets, mistakes, and the same command again."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from harness.export import bundle_identity, load_bundle, read_bundle_metrics
from harness.models import SRNetwork
from tests.cli.conftest import Call, FinishedStudy, written
from tests.photographs import Photographs


@pytest.fixture(scope="module")
def bundle(study: FinishedStudy) -> Path:
    return study.folder / "bundles" / "knee"


def arguments(bundle: Path, photographs: Photographs, *more: str) -> tuple[str, ...]:
    images = ("--train", str(photographs.train), "--validation", str(photographs.validation))
    return ("compress", str(bundle), *images, "--threads", "1", "--tune-steps", "2", "--out", "small", *more)


def status_of_unfinished(call: Call) -> str:
    """What is told of the run in `small` where a kill came before its record."""
    shutil.copytree("small", "killed", ignore=shutil.ignore_patterns("trials", "bundle"))
    told = call("status", "killed")
    assert told.code == 0, told.err
    assert "the same command again goes on from here" in told.out
    return told.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "cost"),
    [
        pytest.param(("--left", "0.7"), "macs", id="macs"),
        pytest.param(("--target-params", "{params}"), "params", id="params", marks=pytest.mark.slow),
    ],
)
def test_a_bundle_becomes_a_smaller_one(
    call: Call, bundle: Path, photographs: Photographs, target: tuple[str, str], cost: str
) -> None:
    before = read_bundle_metrics(bundle).point
    assert before is not None
    option, value = target
    value = value.format(params=int(0.7 * before.params))
    document = call(*arguments(bundle, photographs, option, value, "--json")).document
    metrics = read_bundle_metrics(Path("small/bundle"))
    assert metrics.compression is not None
    assert metrics.point is not None
    stages = metrics.compression.stages
    assert [stage.kind for stage in stages] == ["train", "prune", "tune"]
    assert 0.97 * 0.7 <= getattr(stages[-1], cost) / getattr(stages[0], cost) <= 0.7
    assert metrics.compression.parent == bundle_identity(bundle)
    assert stages[0].psnr_db == pytest.approx(before.evaluation.psnr_db, abs=1e-9)
    assert document["bundle"] == "small/bundle"
    network = load_bundle("small/bundle")
    assert isinstance(network, SRNetwork)
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 9, 14)).shape == (1, 3, 36, 56)
    card = Path("small/bundle/README.md").read_text(encoding="utf-8")
    assert "by structured pruning to 70" in card
    again = call("evaluate", "small/bundle", "--data", photographs.validation, "--json").document
    assert again["psnr_db"] == metrics.point.evaluation.psnr_db
    files = written(Path("small/trials"))
    repeated = call(*arguments(bundle, photographs, option, value))
    assert repeated.code == 0, repeated.err
    assert "was compressed before with these settings" in repeated.err
    status = call("status", "small")
    assert "small in small: a run of `harness compress`, complete" in status.out
    assert "tune 1" in status.out
    assert "bundle       small/bundle" in status.out
    told = call("status", "small", "--json").document
    assert (told["kind"], told["state"], len(told["stages"])) == ("compress", "complete", 3)
    assert "a run of `harness compress`, unfinished" in status_of_unfinished(call)
    assert "channels left, summed over blocks" in repeated.out
    assert "group-norm global" not in repeated.err  # which auto has tried before
    for more in (("--protocol", "large"), ("--latency-device", "cpu:2")):
        other = call(*arguments(bundle, photographs, option, value, *more))
        assert other.code == 2
        assert "holds a run" in other.err
    assert written(Path("small/trials")) == files
    settled = ("--importance", "group-norm", "--scope", "global")
    other = call(*arguments(bundle, photographs, "--left", "0.8", *settled))
    assert "holds a run of other settings: target.share is" in other.mistake.replace("target.amount", "target.share")
    assert "is a bundle; expected a folder" in call(*arguments(bundle, photographs)[:-1], bundle, option, value).mistake


def test_mistakes_are_one_line(call: Call, study: FinishedStudy, bundle: Path, photographs: Photographs) -> None:
    def mistake(*more: str) -> str:
        return call(*arguments(bundle, photographs, *more)).mistake

    assert "none given: expected one of --target-macs" in mistake()
    assert "--left given: expected one of" in mistake("--left", "0.5", "--target-macs", "1M").replace(
        "--target-macs, --left", "--left"
    )
    whole = call("compress", "tiny", "--results", study.results, *arguments(bundle, photographs, "--left", "0.7")[2:])
    assert (
        f"tiny is a study; expected one of its points, as a bundle: `harness export tiny --results {study.results} "
        in (whole.mistake)
    )
    assert f"--pick knee` makes {bundle}" in whole.mistake
    assert "--left 1.5: expected a share between 0 and 1" in mistake("--left", "1.5")
    assert "--target-macs 'many': expected a number above 0, such as 500M" in mistake("--target-macs", "many")
    assert "--target-latency '3 apples'" in mistake("--target-latency", "3 apples")
    told = mistake("--target-macs", "10")
    found = re.fullmatch(
        r"--target-macs asks for 10 MACs: the network has (.* [kM]), of which (.* [kM]) are left when all channels go "
        r"that may; expected at least (.* [kM]), and less than (.* [kM])",
        told,
    )
    assert found is not None, told
    assert (found[3], found[4]) == (found[2], found[1])
    assert "expected at least" in mistake("--target-params", "9G")
    least = float(mistake("--left", "0.001").partition("a share of at least ")[2].partition(",")[0])
    assert 0.001 < least < 1
    assert "the network takes" in mistake("--target-latency", "1000000ms")
    assert "no channels 'value'" in mistake("--left", "0.7", "--kinds", "value")
    assert "--cost 'dollars'" in mistake("--left", "0.7", "--cost", "dollars")
    untrained = ("compress", "camixersr-s", *arguments(bundle, photographs, "--left", "0.7")[2:])
    assert "there is nothing to compress" in call(*untrained).mistake
    assert not Path("small").exists()


def test_a_search_compresses_what_it_trains(photographs: Photographs, tmp_path: Path, call: Call) -> None:
    """A share as dimension: networks of it and without it stand on one front, and MLflow has the stages."""
    from mlflow import MlflowClient

    from harness.core.study_folder import StudyFolder
    from tests.spaces import tiny_space, write_space

    dimensions = {
        "model.channels": {"choices": [16, 24]},
        "compression.left": {"choices": [1.0, 0.6]},
        "routing.gamma": {"choices": [0.0, 1.0]},
    }
    space = tiny_space(
        photographs,
        dimensions=dimensions,
        compression={"tune_steps": 2, "crops": 1},
        sampler={"name": "ehvi", "startup_networks": 2},
        budget={"networks": 4},
        objectives=["psnr_db", "macs"],
        constraints=["params <= 1000000"],
    )
    results = tmp_path / "results"
    outcome = call(
        "search", write_space(tmp_path / "both.yaml", space), "--results", results, "--threads", "1", "--report"
    )
    assert outcome.code == 0, outcome.err
    records = [one for one in StudyFolder(results / "both").read_trials() if one.kind == "trial"]
    assert len(records) == 4
    assert {one.state for one in records} == {"complete"}
    pruned = [one for one in records if one.compression is not None]
    assert {one.suggestion["compression.left"] for one in pruned} == {0.6}
    assert len(pruned) == 2
    for record in pruned:
        assert record.compression is not None
        first, last = record.compression.stages[0], record.compression.stages[-1]
        assert 0.97 * 0.6 <= last.macs / first.macs <= 0.6
        assert [point.routing.gamma for point in record.points if point.routing] == [0.0, 1.0]
        channels = record.suggestion["model.channels"]
        whole = next(one for one in records if one.compression is None and one.suggestion["model.channels"] == channels)
        assert whole.training_result is not None
        assert whole.points[0].evaluation.psnr_db != record.points[0].evaluation.psnr_db
    client = MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("both")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    stages = [run for run in runs if "harness.stage" in run.data.tags]
    parents = {
        run.info.run_id: run.data.tags["harness.record_id"] for run in runs if "harness.record_id" in run.data.tags
    }
    found = sorted((parents[run.data.tags["mlflow.parentRunId"]], run.data.tags["harness.stage"]) for run in stages)
    assert found == sorted((one.record_id, stage) for one in pruned for stage in ("train", "prune 1", "tune 1"))
    assert all({"psnr_db", "macs", "params"} <= run.data.metrics.keys() for run in stages)
    document = call("report", "both", "--results", results, "--json").document
    assert document["num_points"] == 8
    unfit = {
        **space,
        "compression": {"left": 0.5, "importance": "luck"},
        "dimensions": {"model.channels": {"choices": [16]}},
    }
    mistake = call("search", write_space(tmp_path / "unfit.yaml", unfit), "--results", results).mistake
    assert "importance" in mistake
    lacking = {**unfit, "compression": {"tune_steps": 3}}
    assert (
        "`left` is missing" in call("search", write_space(tmp_path / "x.yaml", lacking), "--results", results).mistake
    )
    wrong = {**unfit, "compression": {"left": 0.5, "kinds": ["mlp"]}}
    assert "no channels 'mlp'" in call("search", write_space(tmp_path / "y.yaml", wrong), "--results", results).mistake

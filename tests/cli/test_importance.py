"""What objectives hang on, from a search to its report and its store."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cli.conftest import Call
from tests.photographs import Photographs
from tests.spaces import tiny_space, write_space


@pytest.mark.slow
def test_shares_are_in_report_document_and_store(call: Call, photographs: Photographs, tmp_path: Path) -> None:
    gammas = {"choices": [0.0, 0.25, 0.5, 0.75, 1.0]}
    dimensions = {"model.channels": {"low": 8, "high": 64, "step": 4}, "routing.gamma": gammas}
    space = write_space(tmp_path / "tiny.yaml", tiny_space(photographs, dimensions=dimensions))
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = call("search", space, "--results", tmp_path, "--tracking-uri", store, "--threads", "1")
    assert done.code == 0, done.err
    psnr, macs = call("report", "tiny", "--results", tmp_path, "--json").document["importance"]
    assert (macs["metric"], macs["points"], macs["networks"]) == ("macs", 10, 2)
    assert macs["shares"]["model.channels"] > 0.8
    assert 'id="importance"' in (tmp_path / "tiny" / "report" / "report.html").read_text(encoding="utf-8")
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    for one in (psnr, macs):
        names = {f"importance/{one['metric']}/{name}": share for name, share in one["shares"].items()}
        assert len(names) == 3
        assert {name: parent.data.metrics[name] for name in names} == pytest.approx(names, abs=1e-12)

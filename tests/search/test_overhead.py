"""The bench of a study's overhead, on few trials: the real loop and folder, with a record in the place of trials."""

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.core.records import TrialRecord
from harness.search import read_space, study_record
from harness.search.overhead import measure_command, measure_loop, write_records
from harness.trial import TrialSetup
from tests.records import search_trials
from tests.search.conftest import MakeStudy, Study


@pytest.fixture
def prepared(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, dict[str, Any]]:
    """A study of a tiny space that is not run, and what a search of it would be given."""
    study = make_study(budget={"networks": 4}, baselines=["bicubic", "swinir-light"])
    given: list[TrialSetup] = []

    def catch(space: Any, setup: TrialSetup, record: Any, **_: Any) -> Any:
        given.append(setup)

    with monkeypatch.context() as patched:
        patched.setattr("tests.search.conftest.run_search", catch)
        study.run()
    space = read_space(study.space_file)
    record = study_record("tiny", space, "", given[0])
    return study, {"space": space, "setup": given[0], "record": record, "template": search_trials(1)[0]}


def test_a_loop_goes_through_storage_and_folder_and_trains_nothing(prepared: tuple[Study, dict[str, Any]]) -> None:
    study, arguments = prepared
    seen: list[TrialRecord] = []
    cost = measure_loop(**arguments, marks=(2, 4, 100), on_record=seen.append)
    assert cost.trials >= 4
    assert list(cost.at) == [2, 4]
    assert cost.mean > 0
    records = list(study.folder.read_trials())
    assert {record.record_id for record in seen} == {record.record_id for record in records}
    assert len({record.network_id for record in study.trained}) == 4
    assert len(study.trials("COMPLETE")) >= 4 * 3  # each point was told
    assert not (study.folder.path / "networks").exists()


@pytest.mark.slow
def test_a_large_folder_is_reported_in_a_process_of_its_own(
    prepared: tuple[Study, dict[str, Any]], tmp_path: Path
) -> None:
    study, arguments = prepared
    write_records(**arguments, count=5)
    assert len(list(study.folder.read_trials())) == 7
    cost = measure_command("harness report", [sys.executable, "-m", "harness", "report", str(study.folder.path)], 5)
    assert (study.folder.report_dir / "report.html").is_file()
    assert cost.seconds > 0
    assert cost.peak_bytes > 50e6
    with pytest.raises(RuntimeError, match="no study"):
        measure_command("harness report", [sys.executable, "-m", "harness", "report", str(tmp_path / "none")], 0)

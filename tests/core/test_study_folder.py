import math
from pathlib import Path

import pytest

from harness.core.configs import RoutingConfig
from harness.core.errors import UserError
from harness.core.records import TrialRecord
from harness.core.study_folder import StudyFolder
from tests import records


def test_a_study_and_its_trials_come_back_as_they_were_written(tmp_path: Path) -> None:
    study = records.study_record()
    trials = [*records.one_of_each_state(), records.swinir_baseline(), records.bicubic_baseline()]
    folder = records.write_study(tmp_path / "study", study, trials)
    assert folder.read_study() == study
    assert list(folder.read_trials()) == sorted(trials, key=lambda record: record.record_id)


def test_a_record_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.write_trial(records.trial(1, state="failed", reason="first"))
    folder.write_trial(records.trial(1, state="failed", reason="second"))
    assert [record.reason for record in folder.read_trials()] == ["second"]


def test_numbers_that_json_has_no_words_for_survive(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    point = records.point(math.inf, 3, routing=RoutingConfig(), constraints={"latency_ms/cuda:0 <= 3": math.inf})
    folder.write_trial(records.trial(1, [point]))
    (record,) = folder.read_trials()
    assert record.points[0].evaluation.psnr_db == math.inf
    assert record.points[0].constraints == {"latency_ms/cuda:0 <= 3": math.inf}
    assert not record.points[0].feasible


def test_every_network_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    assert folder.weights_file("abc") == tmp_path / "networks" / "abc" / "weights.safetensors"
    assert folder.checkpoint_file("abc").parent == folder.network_dir("abc") != folder.network_dir("abd")


def test_a_folder_without_a_study_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study in .*: study\.json not found; run `harness search` first, or"):
        StudyFolder(tmp_path).read_study()
    assert list(StudyFolder(tmp_path).read_trials()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Invalid JSON"),
        (b'{"study": "a", ', "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"{}", "study: required key is missing"),
        (b'{"colour": 3}', "colour: unknown key"),
    ],
)
def test_a_damaged_record_is_named_on_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    folder = StudyFolder(tmp_path)
    folder.write_trial(records.trial(1))
    path = tmp_path / "trials" / "trial-00002.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"trial-00002\.json: not a TrialRecord of this version: ") as caught:
        list(folder.read_trials())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_record_is_not_quoted_in_full(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.write_trial(records.search_trials(1)[0])
    (path,) = (tmp_path / "trials").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="Invalid JSON") as caught:
        list(folder.read_trials())
    assert len(str(caught.value)) < 400


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    text = records.trial(1).model_dump_json().replace('"schema_version":1', '"schema_version":2')
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "trial-00001.json").write_text(text)
    with pytest.raises(UserError, match=r"schema_version: Input should be 1 \(got 2\)"):
        list(folder.read_trials())


def test_files_that_are_being_written_are_not_read(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.write_trial(records.trial(1))
    (tmp_path / "trials" / ".trial-00002.json.abcd.json").write_text("{")
    assert len(list(folder.read_trials())) == 1


def test_a_point_knows_its_metrics_by_name_and_device() -> None:
    point = records.point(27.5, 3_000, routing=RoutingConfig(gamma=0.25), latency_ms=20, devices=("cpu:1", "cpu:2"))
    slow = point.latency[1].model_copy(update={"median": 30.0, "ratio": None})
    point = point.model_copy(update={"latency": (point.latency[0], slow)})
    assert (point.value("psnr_db"), point.value("macs"), point.value("params")) == (27.5, 3_000, 100_000)
    assert (point.value("attention_share"), point.value("peak_memory_bytes")) == (0.25, 50_000_000)
    assert (point.value("latency_ms"), point.value("latency_ratio")) == (20, 0.25)  # alone: the first device
    assert (point.value("latency_ms/cpu:1"), point.value("latency_ms/cpu:2")) == (20, 30)
    assert point.value("latency_ratio/cpu:2") is None
    assert point.value("latency_ms/cuda:0") is None


def test_a_point_is_feasible_when_every_constraint_holds() -> None:
    violations = [({}, True), ({"a": 0.0, "b": -1.0}, True), ({"a": -1.0, "b": 1e-9}, False), ({"a": math.nan}, False)]
    for constraints, feasible in violations:
        assert records.point(27, 3, constraints=constraints).feasible == feasible


def test_records_survive_json() -> None:
    for record in records.one_of_each_state():
        assert TrialRecord.model_validate_json(record.model_dump_json()) == record

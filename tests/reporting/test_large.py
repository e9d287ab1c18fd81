"""Large studies: reports draw a part of the points, and neither time nor memory grows faster than the study."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.core.records import TrialRecord
from harness.reporting import load_study, points_table, study_front, summarise, write_report
from harness.reporting.html import render_report
from harness.reporting.page_data import describe_page
from harness.reporting.plots import MOST_CURVES_DRAWN, MOST_POINTS_DRAWN
from harness.reporting.study import Study
from tests.records import bicubic_baseline, search_trials, study_record, swinir_baseline, with_rungs, write_study

# Reads, reports and compares a study; prints seconds of processor time and the peak in KiB.
REPORT = """
import json, resource, sys, time
from pathlib import Path
import harness.reporting
from harness.reporting import compare, load_study, write_report
folder = Path(sys.argv[1])
started = time.process_time()
study = load_study(folder)
write_report(folder, study=study)
compare(study)
print(json.dumps([time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def many_trials(count: int) -> list[TrialRecord]:
    """Records of different networks, with the samples of real ones."""
    trials = []
    for trial in search_trials(count):
        points = tuple(
            point.model_copy(
                update={
                    "latency": tuple(
                        latency.model_copy(update={"samples": tuple(latency.median + n for n in range(100))})
                        for latency in point.latency
                    )
                }
            )
            for point in trial.points
        )
        trials.append(trial.model_copy(update={"points": points, "network_id": f"{trial.number:012x}"}))
    return trials


def test_reading_a_folder_makes_the_same_reports_as_its_records(tmp_path: Path) -> None:
    records = [*search_trials(12)[2:], with_rungs(), with_rungs(stopped=True)]
    records.sort(key=lambda trial: trial.record_id)
    baselines = (bicubic_baseline(), swinir_baseline())
    write_study(tmp_path, study_record(), [*records, *baselines])
    whole, read = Study(study_record(), tuple(records), baselines), load_study(tmp_path)
    assert summarise(read) == summarise(whole)
    assert points_table(read).equals(points_table(whole))
    assert render_report(read) == render_report(whole)


def test_a_report_says_what_it_leaves_out_and_the_front_is_whole() -> None:
    study = Study(study_record(), tuple(many_trials(500)), (swinir_baseline(), bicubic_baseline()))
    text = render_report(study)
    page = describe_page(study)
    assert "are drawn, an even spread of at least 2,000; front.png has all of them" in text
    assert f"Curves of {MOST_CURVES_DRAWN:,} of 500 networks" in text
    kinds = Counter(page["kinds"][point["k"]] for point in page["points"])
    assert kinds["front"] == len(study_front(study).points)
    others = len(study.points) - kinds["front"]
    assert MOST_POINTS_DRAWN <= others - page["left_out"] < 1.2 * MOST_POINTS_DRAWN
    assert page["left_out"] > 0
    assert len(text) < 3e6
    few = Study(study_record(), tuple(many_trials(20)), (swinir_baseline(), bicubic_baseline()))
    assert "are drawn, an even spread" not in render_report(few)


@pytest.mark.slow
def test_time_and_memory_of_a_report_grow_with_the_study_at_most(tmp_path: Path) -> None:
    """From 1,000 to 4,000 records."""
    trials = many_trials(4000)
    seconds, peaks = {}, {}
    for count in (1, 1000, 4000):
        folder = tmp_path / str(count)
        (folder / "trials").mkdir(parents=True)
        write_study(folder, study_record(), [swinir_baseline(), bicubic_baseline()])
        for trial in trials[:count]:
            (folder / "trials" / f"{trial.record_id}.json").write_text(trial.model_dump_json())
        done = subprocess.run([sys.executable, "-c", REPORT, str(folder)], capture_output=True, text=True, check=True)
        seconds[count], peaks[count] = json.loads(done.stdout)
    fixed = seconds[1]
    assert seconds[4000] - fixed < 4 * 2 * max(seconds[1000] - fixed, 0.25 * fixed)
    assert (peaks[4000] - peaks[1000]) * 1024 / 3000 < 100_000  # bytes a record, whose file has four times as many
    assert (tmp_path / "4000" / "report" / "report.html").stat().st_size < 20e6


def test_write_report_takes_what_was_read(tmp_path: Path) -> None:
    write_study(tmp_path, study_record(), search_trials(2))
    study = load_study(tmp_path)
    assert write_report(tmp_path, study=study).report_html.is_file()

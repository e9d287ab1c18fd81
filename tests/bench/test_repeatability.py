"""Whether latencies repeat: the numbers by hand, and a short run with real processes."""

import psutil
import pytest

from harness.bench import measure_repeatability
from harness.bench.repeatability import busy_process, ranks_agree, relative_iqr
from harness.core.configs import CAMixerSRConfig
from harness.profiling import Effort


def test_relative_iqr_by_hand() -> None:
    assert relative_iqr([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)  # quartiles 2 and 4, median 3
    assert relative_iqr([2, 2, 2]) == 0


def test_ranks() -> None:
    assert ranks_agree({"a": [1, 2], "b": [3, 4]})
    assert not ranks_agree({"a": [1, 4], "b": [3, 2]})


@pytest.mark.slow
def test_the_busy_process_computes_and_ends() -> None:
    before = set(psutil.Process().children())  # of other tests
    with busy_process():
        (child,) = set(psutil.Process().children()) - before
        while child.cpu_times().user < 1.5:  # it has imported torch by then, or this test ends with the suite's limit
            assert child.is_running()
    assert not child.is_running()


@pytest.mark.slow
def test_every_session_measures_every_network() -> None:
    networks = {name: CAMixerSRConfig(channels=12, groups=groups) for name, groups in (("S", (1,)), ("L", (2, 2)))}
    bench = measure_repeatability(
        networks, Effort(min_repeats=3, min_seconds=0), sessions=3, input_size=(16, 16), is_busy=True
    )
    assert {name: len(records) for name, records in bench.records.items()} == {"S": 3, "L": 3}
    assert {record.process for records in bench.records.values() for record in records} == {"fresh"}
    for name, records in bench.records.items():
        assert bench.spread[name] == relative_iqr([record.ratio or 0 for record in records])
    assert bench.closest > 1
    assert bench.repeats == (bench.ranks_agree and max(bench.spread.values()) <= 0.05)

"""The latency of a trial: under the conditions that its space names, by the protocol of `harness profile`."""

from pathlib import Path

import pytest

from harness.core.records import latency_value
from harness.trial import run_trial
from tests.trial.studies import ROUTINGS, propose, setup_study


@pytest.mark.slow
def test_every_routing_is_measured_under_every_condition_in_fresh_processes(tmp_path: Path) -> None:
    setup = setup_study(
        tmp_path,
        "latency_ms/cpu:1/bf16/8x8 <= 1e9",
        devices=("cpu:1", "cpu:1/bf16/8x8"),
        latency_process="fresh",
        latency_repeats=2,
    )
    record = run_trial(setup, propose(routings=ROUTINGS[:3]))
    assert record.state == "complete", record.reason
    assert len(record.points) == 3
    for point in record.points:
        plain, cast = point.latency
        assert [one.short_conditions for one in point.latency] == ["cpu:1", "cpu:1/bf16"]
        assert (plain.input_size, cast.input_size) == ((16, 24), (8, 8))
        assert {one.process for one in point.latency} == {"fresh"}
        assert plain.images == (setup.validation[0].name,)
        assert plain.reference == "swinir-tiny"
        assert point.routing is not None
        assert plain.attention_share == point.routing.gamma
        assert point.value("latency_ms") == plain.median
        assert point.value("latency_ms/cpu:1/bf16/8x8") == latency_value([cast], "latency_ms") == cast.median
        assert point.constraints["latency_ms/cpu:1/bf16/8x8 <= 1e+09"] == cast.median - 1e9

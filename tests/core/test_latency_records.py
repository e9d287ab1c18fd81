"""Latency records: old ones keep their content, metrics find the conditions that they name."""

import json

from harness.core.records import LatencyRecord, find_latency, latency_value
from tests.records import latency

OLD = """{"protocol": "interleaved-2: ≥10 runs, ≥1 s, ≤120 s for all 3", "device": "cpu:1", "device_name": "AMD EPYC",
"threads": 1, "precision": "fp32", "input_size": [64, 64], "batch_size": 1, "warmup_runs": 3, "median": 2.5, "iqr": 0.1,
"p90": 2.7, "samples": [2.4, 2.5, 2.7], "reference": "swinir-light", "reference_median": 100.0,
"reference_samples": [99.0, 100.0, 101.0], "ratio": 0.025, "torch_version": "2.13.0",
"measured_at": "2026-01-02T03:05:00+00:00"}"""


def test_records_of_the_older_protocol_are_read_and_written_as_they_were() -> None:
    record = LatencyRecord.model_validate_json(OLD)
    assert json.loads(record.model_dump_json()) == json.loads(OLD)
    assert (record.runtime, record.interval, record.attempts, record.process) == ("eager", None, 1, None)


def test_settings_tell_protocols_devices_and_conditions_apart() -> None:
    old = LatencyRecord.model_validate_json(OLD)
    others = [
        old.model_copy(update=change)
        for change in (
            {"protocol": "interleaved-3: ≥10 runs"},
            {"device_name": "Intel Xeon"},
            {"device": "cpu:2"},
            {"precision": "bf16"},
            {"runtime": "compile"},
            {"input_size": (64, 65)},
            {"batch_size": 4},
            {"process": "fresh"},
            {"reference": "bicubic"},
            {"torch_version": "2.14.0"},
            {"mode": "training"},
            {"images": ("a.png", "b.png")},
        )
    ]
    assert len({record.setting for record in (old, *others)}) == 1 + len(others)
    longer = old.model_copy(update={"protocol": "interleaved-2: ≥15 runs, ≥10 s, ≤120 s for all 2"})
    assert longer.setting == old.setting  # measured for longer, by the same rules


def test_metrics_name_device_runtime_precision_and_size() -> None:
    plain = latency(10.0)
    records = [
        latency(20.0, device="cpu:2"),
        plain.model_copy(update={"precision": "bf16", "median": 6.0}),
        plain.model_copy(update={"runtime": "openvino", "median": 7.0}),
        plain.model_copy(update={"input_size": (128, 128), "median": 40.0}),
        plain,
    ]
    assert latency_value(records, "latency_ms") == 20.0
    assert latency_value(records, "latency_ms/cpu:1/bf16") == 6.0
    assert latency_value(records, "latency_ms/cpu:1/openvino") == 7.0
    assert latency_value(records, "latency_ms/cpu:1/64x64") == 10.0
    assert latency_value(records, "latency_ms/cpu:1") == 40.0  # the first size of that device
    assert latency_value(records, "latency_ratio/cpu:1/64x64/fp32/eager") == plain.ratio
    assert latency_value(records, "latency_ms/cpu:1/fp16") is None
    assert find_latency([], None) is None


def test_a_file_compared_under_other_conditions_than_its_own_stands_for_these() -> None:
    """In its runtime beside networks that run eagerly: found under their conditions, and under no others."""
    plain = latency(10.0)
    own = {"runtime": "onnxruntime", "median": 6.0, "compared_under": "cpu:1"}
    beside = plain.model_copy(update=own)
    cast = plain.model_copy(update={**own, "compared_under": "cpu:1/bf16", "median": 6.1})
    assert latency_value([beside, cast], "latency_ms") == 6.0
    assert latency_value([beside, cast], "latency_ms/cpu:1/64x64") == 6.0
    assert latency_value([beside, cast], "latency_ms/cpu:1/bf16") == 6.1
    assert latency_value([beside, cast], "latency_ms/cpu:1/onnxruntime") is None
    assert latency_value([beside, cast], "latency_ms/cpu:2") is None
    assert beside.setting == plain.setting != cast.setting
    assert (beside.conditions, beside.runtime_note) == ("cpu:1/onnxruntime/fp32/64x64", "onnxruntime, fp32")
    assert plain.runtime_note is None
    assert LatencyRecord.model_validate_json(beside.model_dump_json()) == beside

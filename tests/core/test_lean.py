"""Lean records: what reports look at is kept, what is equal is held once."""

from harness.core.lean import LeanReader
from harness.core.records import TrialRecord
from tests.records import search_trials


def reread(record: TrialRecord) -> TrialRecord:
    """What `lean` takes is a record of its own."""
    return TrialRecord.model_validate_json(record.model_dump_json())


def test_the_bulk_goes_and_the_rest_stays() -> None:
    records = search_trials(3)
    reader = LeanReader()
    lean = [reader.lean(reread(record)) for record in records]
    for whole, small in zip(records, lean, strict=True):
        assert (small.record_id, small.label, small.model) == (whole.record_id, whole.label, whole.model)
        for before, after in zip(whole.points, small.points, strict=True):
            for metric in ("psnr_db", "ssim", "latency_ms", "latency_ratio", "macs", "params", "attention_share"):
                assert after.value(metric) == before.value(metric)
            assert (after.routing, after.constraints) == (before.routing, before.constraints)
            assert after.latency[0].setting == before.latency[0].setting
            assert after.evaluation.images == ()
        assert small.training_result is not None
        assert set(small.training_result.curves) == {"l1_loss"}
    samples = [latency.samples for record in lean for point in record.points for latency in point.latency]
    assert samples[0] == records[0].points[0].latency[0].samples  # says how many runs there were
    assert not any(samples[1:])


def test_what_is_equal_is_one_object() -> None:
    reader = LeanReader()
    first, second = (reader.lean(reread(record)) for record in search_trials(2))
    assert first.training is second.training
    assert first.environment is second.environment
    assert first.points[1].routing is second.points[1].routing

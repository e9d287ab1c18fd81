"""Peak memory, measured in processes of their own: orders and proportions only."""

import pytest

from harness.core.configs import BicubicConfig, CAMixerSRConfig
from harness.core.errors import UserError
from harness.profiling.memory import measure_peak_memory


@pytest.mark.slow
def test_memory_covers_the_output_and_grows_with_the_image() -> None:
    config = CAMixerSRConfig(channels=24, groups=(1,), window=8)
    small, large = (measure_peak_memory(config, size) for size in ((64, 64), (256, 256)))
    features_bytes = 256 * 256 * 24 * 4
    assert 4 * features_bytes < large < 100 * features_bytes
    assert 4 < large / small < 40


def test_bicubic_needs_at_least_its_output() -> None:
    assert measure_peak_memory(BicubicConfig(), (256, 256), batch_size=2) >= 2 * 3 * 1024 * 1024 * 4


def test_failures_are_told() -> None:
    with pytest.raises(UserError, match="at least 1"):
        measure_peak_memory(BicubicConfig(), (0, 4))
    with pytest.raises(UserError, match="expected cpu:THREADS"):
        measure_peak_memory(BicubicConfig(), (4, 4), device="npu")
    with pytest.raises(RuntimeError, match="took longer than"):
        measure_peak_memory(BicubicConfig(), (4, 4), timeout_seconds=0.05)

"""What bfloat16 costs in quality: the released Small ×4 weights on Set5, under autocast and in float32."""

from pathlib import Path

import pytest
import torch

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.data import PairedDataset, open_dataset
from harness.metrics import get_protocol
from harness.models import SRNetwork, build_model, load_weights
from harness.trial import evaluate, routed

MOST_LOST_DB = 0.02  # of mean PSNR-Y


@pytest.fixture(scope="module")
def small(reference: Path) -> SRNetwork:
    network = build_model(CAMixerSRConfig(channels=36)).eval()
    load_weights(network, reference / "weights" / "CAMixerSR_S.pth")
    return network


@pytest.fixture(scope="module")
def set5(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> PairedDataset:
    folder = str(reference / "images" / "Set5")
    cache = tmp_path_factory.mktemp("cache")
    return open_dataset(folder, scale=4, split="validation", data_dir=None, cache_dir=cache)


@pytest.mark.parametrize(
    "routing",
    [
        *(RoutingConfig(gamma=gamma) for gamma in (1.0, 0.5)),
        *(pytest.param(RoutingConfig(gamma=gamma), marks=pytest.mark.slow) for gamma in (0.25, 0.0)),
        pytest.param(RoutingConfig(policy="probability", gamma=0.5), marks=pytest.mark.slow),
        RoutingConfig(policy="threshold"),
    ],
    ids=RoutingConfig.label,
)
def test_bfloat16_costs_next_to_no_quality(small: SRNetwork, set5: PairedDataset, routing: RoutingConfig) -> None:
    """Windows that change sides included."""
    network, protocol = routed(small, routing), get_protocol("light")
    exact = evaluate(network, set5, protocol)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = evaluate(network, set5, protocol)
    print(f"{routing.label()}: {exact.psnr_db:.4f} dB in float32, {rounded.psnr_db - exact.psnr_db:+.4f} in bfloat16")
    assert rounded.psnr_db != exact.psnr_db  # bfloat16 was at work
    assert rounded.psnr_db == pytest.approx(exact.psnr_db, abs=MOST_LOST_DB)
    assert rounded.attention_share == pytest.approx(exact.attention_share, abs=0.01)

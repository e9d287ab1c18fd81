"""The routing policies on the released Small ×4 weights: PSNR-Y on Set5 as measured with the released network.

The figures were measured for this project with `params_ema`; γ=1 is also the published 32.33 dB of the network.
"""

from pathlib import Path

import pytest

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.data import PairedDataset, open_dataset
from harness.metrics import get_protocol
from harness.models import SRNetwork, build_model, load_weights
from harness.trial import evaluate, routed

pytestmark = pytest.mark.slow

BLOCKS = 20


def schedule_of(*blocks: int) -> RoutingConfig:
    """Attention in these whole blocks, counted from 0, and nowhere else."""
    return RoutingConfig(policy="schedule", schedule=tuple(float(block in blocks) for block in range(BLOCKS)))


# Routing, PSNR-Y in dB, share of attention; a share of None is decided by the images.
MEASURED = [
    (RoutingConfig(gamma=1.0), 32.330, 1.0),
    (RoutingConfig(gamma=0.5), 32.260, 0.5),
    (RoutingConfig(policy="probability", gamma=0.5), 32.343, 0.5),
    (RoutingConfig(policy="threshold"), 32.331, None),
    (RoutingConfig(policy="probability", gamma=0.75), 32.341, 0.75),
    (RoutingConfig(gamma=0.25), 32.206, 0.25),
    (RoutingConfig(policy="probability", gamma=0.25), 32.250, 0.25),
    (RoutingConfig(gamma=0.0), 32.061, 0.0),
    (schedule_of(5, 6, 7, 9, 10, 13, 17, 18), 32.346, 0.4),
    (schedule_of(5, 7, 9, 10, 13), 32.294, 0.25),
    (schedule_of(5, 7, 10, 13), 32.292, 0.2),
]


@pytest.fixture(scope="module")
def small(reference: Path) -> SRNetwork:
    network = build_model(CAMixerSRConfig(channels=36)).eval()
    assert load_weights(network, reference / "weights" / "CAMixerSR_S.pth") == "params_ema"
    return network


@pytest.fixture(scope="module")
def set5(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> PairedDataset:
    return open_dataset(
        str(reference / "images" / "Set5"),
        scale=4,
        split="validation",
        data_dir=None,
        cache_dir=tmp_path_factory.mktemp("cache"),
    )


@pytest.mark.parametrize(
    ("routing", "psnr_y_db", "share"),
    MEASURED,
    ids=[f"{routing.label()} {psnr_y_db}" for routing, psnr_y_db, _ in MEASURED],
)
def test_policies_reproduce_the_measured_quality(
    small: SRNetwork, set5: PairedDataset, routing: RoutingConfig, psnr_y_db: float, share: float | None
) -> None:
    record = evaluate(routed(small, routing), set5, get_protocol("light"))
    assert record.attention_share is not None
    print(f"{routing.label()}: {record.psnr_db:.3f} dB at a share of {record.attention_share:.4f}")
    assert record.psnr_db == pytest.approx(psnr_y_db, abs=0.01)
    if share is not None:  # floors and roundings of K cost at most a window in a block and image
        assert record.attention_share == pytest.approx(share, abs=0.02)
    assert record.attention_share == pytest.approx(sum(record.attention_share_per_block or ()) / BLOCKS, abs=1e-12)

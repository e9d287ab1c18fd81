"""Our networks against inputs and outputs of the released ones (golden vectors)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.core.configs import CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.models import CAMixerSR, SRNetwork, build_model, load_weights
from harness.models.checkpoints import adapt_released
from harness.training.losses import l1_loss, ratio_loss

CAMIXERSR = {
    "camixersr_x2_groups21_feats24": CAMixerSRConfig(scale=2, groups=(2, 1), channels=24),
    "camixersr_x3_groups11_feats20": CAMixerSRConfig(scale=3, groups=(1, 1), channels=20),
}
SWINIR = {
    "swinir_x2_depths21_embed30": SwinIRConfig(scale=2, depths=(2, 1), embed_dim=30, num_heads=6),
    "swinir_x4_depths22_embed24": SwinIRConfig(scale=4, depths=(2, 2), embed_dim=24, num_heads=4),
}


def load_vectors(reference: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(reference / "vectors" / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def load_parameters(network: SRNetwork, vectors: dict[str, np.ndarray]) -> None:
    state = {key[6:]: torch.from_numpy(value) for key, value in vectors.items() if key.startswith("param/")}
    network.load_state_dict(adapt_released(state, network))


@pytest.mark.parametrize("gamma", [1.0, 0.75, 0.5, 0.25, 0.0])
@pytest.mark.parametrize("name", CAMIXERSR)
def test_camixersr_inference(reference: Path, name: str, gamma: float) -> None:
    vectors = load_vectors(reference, name)
    network = build_model(CAMIXERSR[name].with_routing(RoutingConfig(gamma=gamma))).eval()
    load_parameters(network, vectors)
    with torch.inference_mode():
        output = network(torch.from_numpy(vectors["input_chw"])[None])[0]
    expected = torch.from_numpy(vectors[f"output_gamma{gamma:.2f}"])
    assert (output - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", CAMIXERSR)
def test_camixersr_training_mode(reference: Path, name: str) -> None:
    """Output, both losses and the gradient norm of every parameter, mask = argmax p in place of a draw."""
    vectors = load_vectors(reference, name)
    network = build_model(CAMIXERSR[name])
    assert isinstance(network, CAMixerSR)
    load_parameters(network, vectors)
    network.routing_noise = False
    restored = network.train().restore(torch.from_numpy(vectors["input_chw"])[None])
    assert (restored.image_BCHW[0] - torch.from_numpy(vectors["train_output"])).abs().max() <= 1e-4
    share_loss = ratio_loss(restored.hard_share_SB, gamma=0.5)
    total = l1_loss(restored.image_BCHW, torch.from_numpy(vectors["train_target"])[None]) + share_loss
    assert share_loss.item() == pytest.approx(float(vectors["train_ratio_loss"]), abs=1e-5)
    assert total.item() == pytest.approx(float(vectors["train_total_loss"]), abs=1e-5)
    total.backward()  # type: ignore[no-untyped-call]
    released = [str(entry) for entry in vectors["train_grad_names"]]
    positions = adapt_released({entry: torch.tensor(index) for index, entry in enumerate(released)}, network)
    gradients = {entry: value.grad for entry, value in network.named_parameters()}
    assert gradients.keys() == positions.keys()
    for entry, position in positions.items():
        gradient = gradients[entry]
        assert gradient is not None, entry
        expected = float(vectors["train_grad_norms"][int(position)])
        assert gradient.norm().item() == pytest.approx(expected, rel=1e-3, abs=1e-6), entry


@pytest.mark.parametrize("name", SWINIR)
def test_swinir_inference(reference: Path, name: str) -> None:
    vectors = load_vectors(reference, name)
    network = build_model(SWINIR[name]).eval()
    load_parameters(network, vectors)
    with torch.inference_mode():
        output = network(torch.from_numpy(vectors["input_chw"])[None])[0]
    assert (output - torch.from_numpy(vectors["output_chw"])).abs().max() <= 1e-4


@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_released_small_weights(reference: Path, gamma: float) -> None:
    """γ between 0 and 1 depends on how the released code's sort breaks ties, so only the ends are compared."""
    vectors = load_vectors(reference, "camixersr_s_x4_official_weights")
    network = build_model(CAMixerSRConfig(channels=36, routing=RoutingConfig(gamma=gamma))).eval()
    assert load_weights(network, reference / "weights" / "CAMixerSR_S.pth") == "params_ema"
    input_HWC = torch.from_numpy(vectors["input"])
    with torch.inference_mode():
        output = network(input_HWC.permute(2, 0, 1)[None].float() / 255)[0]
    assert (output - torch.from_numpy(vectors[f"output_gamma{gamma:.2f}"])).abs().max() <= 1e-4

"""Before anything is timed: the fast paths give what the network written word for word gives, or nothing is timed."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.models import CAMixerSR, Restoration, SRNetwork
from harness.models.literal import LiteralCAMixerSR
from harness.profiling import Device
from harness.trial import build_seeded

OUTPUT_TOLERANCE = 1e-4  # in full scale
GRADIENT_TOLERANCE = 1e-3  # of the gradient's norm
_GRADIENT_FLOOR = 1e-6  # of the largest gradient's norm: some gradients are zero but for rounding
ROUTINGS = (
    *(RoutingConfig(gamma=gamma) for gamma in (1.0, 0.5, 0.25, 0.0)),
    RoutingConfig(policy="probability", gamma=0.5),
    RoutingConfig(policy="threshold"),
)


class BrokenPathError(RuntimeError):
    """A path of the network does not give what the network written word for word gives."""


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Keep float32 products and convolutions float32 on GPUs, where torch may round what goes in."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed


def lively(config: CAMixerSRConfig, device: Device) -> CAMixerSR:
    """Return a network of fixed weights that route windows apart and look far, unlike fresh ones."""
    network = build_seeded(config, seed=0)
    assert isinstance(network, CAMixerSR)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "offsets_out.weight" in name or "routing_out.weight" in name:
                parameter.mul_(10)
    return network.to(device.torch_device)


def small_input(config: CAMixerSRConfig, device: Device) -> Tensor:
    """Return two images of a few windows that do not fill their last row and column."""
    side = 2 * config.window
    noise = torch.rand(2, 3, side + 1, side + 5, generator=torch.Generator().manual_seed(0))
    return (noise * torch.linspace(0.2, 1, side + 5)).to(device.torch_device)


def check_inference(config: CAMixerSRConfig, device: Device, routings: Sequence[RoutingConfig] = ROUTINGS) -> float:
    """Return the largest difference in full scale; raise `BrokenPathError` beyond 1e-4 or for other windows."""
    network = lively(config, device).eval()
    oracle, input_BCHW = LiteralCAMixerSR(network), small_input(config, device)
    worst = 0.0
    with torch.inference_mode(), full_precision():
        for routing in routings:
            network.routing = routing
            expected = oracle.restore(input_BCHW)
            for network.is_literal in (False, True):
                what = f"{config.label()}, {routing.label()}, {_path(network)} inference"
                worst = max(worst, _compare(network.restore(input_BCHW), expected, what))
    return worst


def check_training(config: CAMixerSRConfig, device: Device) -> float:
    """Return the largest difference in full scale; raise `BrokenPathError` as for inference, or for other gradients."""
    network = lively(config, device).train()
    oracle, input_BCHW = LiteralCAMixerSR(network), small_input(config, device)
    worst = 0.0
    with full_precision():
        expected, wanted = _differentiate(oracle, input_BCHW)
        floor = _GRADIENT_FLOOR * max(float(gradient.norm()) for gradient in wanted)
        names = [name for name, _ in network.named_parameters()]
        for network.is_literal in (False, True):
            what = f"{config.label()}, {_path(network)} training"
            found, got = _differentiate(network, input_BCHW)
            worst = max(worst, _compare(found, expected, what))
            for name, one, other in zip(names, got, wanted, strict=True):
                difference, size = float((one - other).norm()), float(other.norm())
                if not difference <= GRADIENT_TOLERANCE * size + floor:
                    raise BrokenPathError(
                        f"{what}: the gradient of {name} is off by {difference:.2g}, its norm being {size:.2g}; "
                        "nothing was timed"
                    )
    return worst


def _path(network: SRNetwork) -> str:
    return "operator-by-operator" if network.is_literal else "default"


def _compare(found: Restoration, expected: Restoration, what: str) -> float:
    if not torch.equal(found.hard_share_SB, expected.hard_share_SB):
        raise BrokenPathError(f"{what}: attends to other windows than algorithm 1 does; nothing was timed")
    difference = float((found.image_BCHW - expected.image_BCHW).abs().max())
    if not difference <= OUTPUT_TOLERANCE:
        raise BrokenPathError(
            f"{what}: off by {difference:.2g} of full scale from algorithm 1, expected at most {OUTPUT_TOLERANCE:g}; "
            "nothing was timed"
        )
    return difference


def _differentiate(network: SRNetwork, input_BCHW: Tensor) -> tuple[Restoration, list[Tensor]]:
    """Return a training step's outputs, and the gradients of all parameters."""
    network.zero_grad()
    restored = network.restore(input_BCHW, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(restored.image_BCHW.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    image_loss = (restored.image_BCHW * weights.to(input_BCHW)).mean()
    loss = image_loss + (restored.hard_share_SB + 0.5).square().mean()  # both reach the routing, neither drowns
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for parameter in network.parameters()
    ]
    return Restoration(*(part.detach() for part in restored)), gradients

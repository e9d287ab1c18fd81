"""Before anything is timed: the fast paths give what the network written word for word gives, or nothing is timed."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.core.configs import CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.models import CAMixerSR, Restoration, SRNetwork
from harness.models.literal import word_for_word
from harness.profiling import Device
from harness.trial import build_seeded, routed

OUTPUT_TOLERANCE = 1e-4  # in full scale
BF16_TOLERANCE = 2.0  # times the oracle's error in bfloat16: rounding features once more, as paths do, makes √2
GRADIENT_TOLERANCE = 1e-3  # of the gradient's norm
_GRADIENT_FLOOR = 1e-6  # of the largest gradient's norm: some gradients are zero but for rounding
ROUTINGS = (
    *(RoutingConfig(gamma=gamma) for gamma in (1.0, 0.5, 0.25, 0.0)),
    RoutingConfig(policy="probability", gamma=0.5),
    RoutingConfig(policy="threshold"),
)


_TALL_PIXELS = 2**14  # more than any path works on at a time
_TALL_ROUTING = RoutingConfig(gamma=0.5)


class BrokenPathError(RuntimeError):
    """A path of the network does not give what the network written word for word gives."""


class InferenceCheck(NamedTuple):
    """How far the fast paths are from the network word for word in float32.

    `difference`: the largest one in full scale, of float32. `bf16_error`: the largest root mean square, of autocast to
    bfloat16, as a share of the output's standard deviation.
    """

    difference: float
    bf16_error: float


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


def lively(config: CAMixerSRConfig | SwinIRConfig, device: Device) -> SRNetwork:
    """Return a network of fixed weights none of which is idle: they look far, tell windows apart and scale norms.

    In a fresh SwinIR attention is all but uniform; in a fresh CAMixerSR windows are all alike and offsets small.
    """
    network = build_seeded(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if "offsets_out.weight" in name or "routing_out.weight" in name:
                parameter.mul_(10)
            elif "position_bias" in name:
                parameter.copy_(drawn)
            elif "norm" in name or (config.image_residual and name.startswith("tail")):  # which starts at zero
                parameter.add_(drawn, alpha=0.1)
            elif isinstance(config, SwinIRConfig) and parameter.dim() == 2:
                parameter.copy_(drawn * parameter.shape[1] ** -0.5)
            elif isinstance(config, SwinIRConfig) and parameter.dim() == 1:
                parameter.add_(drawn, alpha=0.1)
    return network.to(device.torch_device)


def small_input(config: CAMixerSRConfig | SwinIRConfig, device: Device) -> Tensor:
    """Return two images of a few windows that do not fill their last row and column."""
    side = 2 * config.window
    return _noise(2, side + 1, side + 5).to(device.torch_device)


def tall_input(config: CAMixerSRConfig | SwinIRConfig, device: Device) -> Tensor:
    """Return one image that is higher than what is worked on at a time, of as narrow windows."""
    width = 2 * config.window + 5
    return _noise(1, _TALL_PIXELS // width, width).to(device.torch_device)


def _noise(images: int, height: int, width: int) -> Tensor:
    noise = torch.rand(images, 3, height, width, generator=torch.Generator().manual_seed(0))
    return noise * torch.linspace(0.2, 1, width)


def check_inference(
    config: CAMixerSRConfig | SwinIRConfig, device: Device, routings: Sequence[RoutingConfig] = ROUTINGS
) -> InferenceCheck:
    """Return how far off the fast paths are; `BrokenPathError` where that is too far, or where other windows attend.

    In float32 outputs may be off by 1e-4 of full scale. Under autocast to bfloat16 their root mean square error may be
    twice that of the network word for word under the same autocast; that is compared where no window is selected (γ = 1
    and 0), for one that changes sides would be no error. `routings` are those of two small images, the default path is
    also compared on one that is worked on in parts.
    """
    network = lively(config, device).eval()
    small_BCHW, tall_BCHW = small_input(config, device), tall_input(config, device)
    settings: Sequence[RoutingConfig | None] = routings if isinstance(network, CAMixerSR) else [None]
    differences, bf16_errors = [0.0], [0.0]
    with torch.inference_mode(), full_precision():
        for routing in settings:
            path = routed(network, routing)
            oracle = word_for_word(path)
            expected = oracle.restore(small_BCHW)
            for path.is_literal in (False, True):
                differences.append(_compare(path.restore(small_BCHW), expected, _describe(path)))
            if routing is None or (routing.policy == "fixed" and routing.gamma in (0, 1)):
                inherent = _bf16_error(oracle, small_BCHW, expected.image_BCHW)
                for path.is_literal in (False, True):
                    error = _bf16_error(path, small_BCHW, expected.image_BCHW)
                    if not error <= BF16_TOLERANCE * inherent:
                        raise BrokenPathError(
                            f"{_describe(path)} in bfloat16: off by {error:.2g} of the output's standard deviation, "
                            f"expected at most {BF16_TOLERANCE:g} times the {inherent:.2g} of the network word for "
                            "word; nothing was timed"
                        )
                    bf16_errors.append(error)
            path.is_literal = False
        path = routed(network, _TALL_ROUTING)
        expected = word_for_word(path).restore(tall_BCHW)
        differences.append(_compare(path.restore(tall_BCHW), expected, f"{_describe(path)} of a tall image"))
    return InferenceCheck(max(differences), max(bf16_errors))


def check_training(config: CAMixerSRConfig, device: Device) -> float:
    """Return the largest difference in full scale; raise `BrokenPathError` as for inference, or for other gradients.

    Three paths are compared: the default one, with all windows on both paths, and that operator by operator.
    """
    network = lively(config, device).train()
    oracle, input_BCHW = word_for_word(network), small_input(config, device)
    worst = 0.0
    with full_precision():
        expected, wanted = _differentiate(oracle, input_BCHW)
        floor = _GRADIENT_FLOOR * max(float(gradient.norm()) for gradient in wanted)
        names = [name for name, _ in network.named_parameters()]
        assert isinstance(network, CAMixerSR)
        for network.is_literal, network.is_dense in ((False, False), (False, True), (True, True)):
            dense = ", dense" if network.is_dense else ""
            what = f"{config.label()}, {_path(network)}{dense} training"
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


def _describe(network: SRNetwork) -> str:
    routing = f", {network.routing.label()}" if isinstance(network, CAMixerSR) else ""
    return f"{network.config.label()}{routing}, {_path(network)} inference"


def _compare(found: Restoration, expected: Restoration, what: str) -> float:
    if not torch.equal(found.hard_share_SB, expected.hard_share_SB):
        raise BrokenPathError(f"{what}: attends to other windows than algorithm 1 does; nothing was timed")
    difference = float((found.image_BCHW - expected.image_BCHW).abs().max())
    if not difference <= OUTPUT_TOLERANCE:
        raise BrokenPathError(
            f"{what}: off by {difference:.2g} of full scale from the network word for word, "
            f"expected at most {OUTPUT_TOLERANCE:g}; nothing was timed"
        )
    return difference


def _bf16_error(network: SRNetwork, input_BCHW: Tensor, expected_BCHW: Tensor) -> float:
    """Return the root mean square error under autocast to bfloat16, as a share of the output's standard deviation."""
    with torch.autocast(input_BCHW.device.type, dtype=torch.bfloat16):
        found_BCHW = network.restore(input_BCHW).image_BCHW
    return float((found_BCHW - expected_BCHW).square().mean().sqrt() / expected_BCHW.std())


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

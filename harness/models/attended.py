"""Which windows a trained CAMixerSR gives attention to: the masks behind the shares that networks report.

Shape suffixes: B images, N windows of an image (row by row), S blocks, H W sides in pixels.
"""

import torch
from torch import Tensor, nn

from harness.models.camixersr import CAMixerSR
from harness.models.padding import pad_to_multiple
from harness.models.routing import plan_routing, select_windows


def find_attended(network: CAMixerSR, input_BCHW: Tensor) -> Tensor:
    """Return the windows that get attention, of every block: a boolean mask S×B×N.

    The network runs as the paper writes it, in eval mode and under its routing; all it was is restored. Its images are
    padded at right and bottom to whole windows, so that N = ⌈h/M⌉·⌈w/M⌉.
    """
    config, routing = network.config, network.routing
    h, w = input_BCHW.shape[-2:]
    padded_BCHW = pad_to_multiple(input_BCHW, config.window)
    plan = plan_routing(routing, padded_BCHW, (h, w), config.window, None)
    if plan.mask_SBN is not None:
        return plan.mask_SBN
    logits: dict[int, Tensor] = {}
    blocks = [block for group in network.groups for block in group.blocks]  # type: ignore[union-attr]
    was_literal, was_training = network.is_literal, network.training
    handles = []
    for index, block in enumerate(blocks):

        def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor, index: int = index) -> None:
            logits[index] = output

        handles.append(block.mixer.predictor.routing_out.register_forward_hook(keep))
    try:
        network.is_literal = True
        network.eval()
        with torch.inference_mode():
            network.restore(input_BCHW)
    finally:
        network.is_literal = was_literal
        network.train(was_training)
        for handle in handles:
            handle.remove()
    windows = padded_BCHW.shape[-2] * padded_BCHW.shape[-1] // config.window**2
    nowhere_BN = torch.zeros(len(input_BCHW), windows, dtype=torch.bool, device=input_BCHW.device)
    return torch.stack(
        [
            nowhere_BN
            if routing.never_attends(index)
            else select_windows(logits[index].to(_wide(logits[index])), routing, index)
            for index in range(len(blocks))
        ]
    )


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32

"""The exponential moving average of the weights, which is what is evaluated and exported."""

import torch
from torch import Tensor, nn


class MovingAverage:
    """Average of a network's parameters and buffers with decay min(decay, (1 + step) / (10 + step)).

    The warm-up lets short runs forget their start; after about 10/(1 − decay) steps it is the plain decay.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the weights after step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        latest = network.state_dict()
        floats = [name for name, value in latest.items() if value.is_floating_point()]
        # All at once: on GPUs a few launches instead of one for each tensor.
        torch._foreach_lerp_([self.weights[name] for name in floats], [latest[name] for name in floats], 1 - decay)
        for name in latest.keys() - floats:  # counts, as of batches, have no average
            self.weights[name].copy_(latest[name])

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take the average over from a checkpoint."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

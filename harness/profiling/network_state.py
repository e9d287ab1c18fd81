"""The state of a network that measuring must leave as it was."""

import contextlib
from collections.abc import Iterator

from torch import nn

from harness.models import SRNetwork


@contextlib.contextmanager
def preserved_training_state(*networks: nn.Module) -> Iterator[None]:
    """Give every module its `training` flag back at the end, however the block ends."""
    flags = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def written_out(network: nn.Module) -> Iterator[None]:
    """Let a network of ours run operator by operator, as its paper writes it, so that counters see all of them."""
    if not isinstance(network, SRNetwork):
        yield
        return
    was_literal, network.is_literal = network.is_literal, True
    try:
        yield
    finally:
        network.is_literal = was_literal

"""The state of a network that measuring must leave as it was."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def preserved_training_state(*networks: nn.Module) -> Iterator[None]:
    """Give every module its `training` flag back at the end, however the block ends."""
    flags = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training

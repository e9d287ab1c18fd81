"""The state of a network that measuring must leave as it was."""

import contextlib
from collections.abc import Iterator

from torch import nn

from harness.models import SRNetwork


@contextlib.contextmanager
def preserved_training_state(*networks: nn.Module) -> Iterator[None]:
    """Give every module its `training` flag back at the end, however the block ends; frozen TorchScript has none."""
    modules = [module for network in networks for module in network.modules() if hasattr(module, "training")]
    flags = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def preserved_hooks(network: nn.Module) -> Iterator[None]:
    """Take off at the end whatever forward hooks were hung on modules inside the block, however it ends."""
    modules = list(network.modules())
    before = [(set(module._forward_pre_hooks), set(module._forward_hooks)) for module in modules]
    try:
        yield
    finally:
        for module, (pre_hooks, hooks) in zip(modules, before, strict=True):
            for key in set(module._forward_pre_hooks) - pre_hooks:
                del module._forward_pre_hooks[key]
            for key in set(module._forward_hooks) - hooks:
                del module._forward_hooks[key]


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

"""The networks word for word, as their papers write them: the oracles that the fast paths are held against."""

from harness.models.camixersr import CAMixerSR
from harness.models.literal.camixersr import LiteralCAMixerSR
from harness.models.literal.swinir import LiteralSwinIR
from harness.models.network import SRNetwork
from harness.models.swinir import SwinIR

__all__ = ["LiteralCAMixerSR", "LiteralSwinIR", "word_for_word"]


def word_for_word(network: SRNetwork) -> LiteralCAMixerSR | LiteralSwinIR:
    """Return the oracle of a CAMixerSR or SwinIR, with the parameters of that network."""
    if isinstance(network, CAMixerSR):
        return LiteralCAMixerSR(network)
    assert isinstance(network, SwinIR)
    return LiteralSwinIR(network)

"""PSNR and SSIM under named protocols: pure functions on numpy arrays."""

from harness.metrics.fidelity import latitude_weights
from harness.metrics.protocols import PROTOCOLS, Protocol, Score, get_protocol, score, to_uint8

__all__ = ["PROTOCOLS", "Protocol", "Score", "get_protocol", "latitude_weights", "score", "to_uint8"]

"""PSNR and SSIM under named protocols: pure functions on numpy arrays."""

from harness.metrics.fidelity import latitude_weights
from harness.metrics.protocols import (
    PROTOCOLS,
    Protocol,
    Score,
    get_protocol,
    metric_label,
    protocol_for,
    score,
    to_uint8,
)

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Score",
    "get_protocol",
    "latitude_weights",
    "metric_label",
    "protocol_for",
    "score",
    "to_uint8",
]

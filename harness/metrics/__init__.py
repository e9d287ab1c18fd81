"""PSNR and SSIM under named protocols, averages between curves: pure functions on numpy arrays."""

from harness.metrics.bjontegaard import INTERPOLATIONS, Average, Interpolation, bd_cost, bd_psnr
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
    "INTERPOLATIONS",
    "PROTOCOLS",
    "Average",
    "Interpolation",
    "Protocol",
    "Score",
    "bd_cost",
    "bd_psnr",
    "get_protocol",
    "latitude_weights",
    "metric_label",
    "protocol_for",
    "score",
    "to_uint8",
]

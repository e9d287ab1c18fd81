"""Bundles: a trained network with its config, weights, metrics and model card; and using one on images."""

from harness.export.bundle import is_bundle, load_bundle, load_network, read_bundle_config, write_bundle
from harness.export.upscale import list_jobs, read_importance, upscale_image

__all__ = [
    "is_bundle",
    "list_jobs",
    "load_bundle",
    "load_network",
    "read_bundle_config",
    "read_importance",
    "upscale_image",
    "write_bundle",
]

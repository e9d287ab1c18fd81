"""Bundles: a trained network with its config, weights, metrics and model card; and using one on images."""

from harness.export.bundle import (
    bundle_identity,
    check_target,
    is_bundle,
    load_bundle,
    load_network,
    onnx_file,
    read_bundle_config,
    read_bundle_metrics,
    write_bundle,
    write_calibrated_bundle,
    write_imported_bundle,
)
from harness.export.licence import parse_licence
from harness.export.upscale import list_jobs, read_importance, upscale_image, upscale_picture

__all__ = [
    "bundle_identity",
    "check_target",
    "is_bundle",
    "list_jobs",
    "load_bundle",
    "load_network",
    "onnx_file",
    "parse_licence",
    "read_bundle_config",
    "read_bundle_metrics",
    "read_importance",
    "upscale_image",
    "upscale_picture",
    "write_bundle",
    "write_calibrated_bundle",
    "write_imported_bundle",
]

"""Bundles: a trained network with its config, weights, metrics and model card; files for other runtimes; their use."""

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
from harness.export.files import FORMATS, FileFormat, check_format, export_file
from harness.export.licence import parse_licence
from harness.export.parity import ParityImage, check_parity, take_images
from harness.export.program import export_program
from harness.export.upscale import list_jobs, read_importance, upscale_image, upscale_picture
from harness.models.onnx_export.build import build_onnx

__all__ = [
    "FORMATS",
    "FileFormat",
    "ParityImage",
    "build_onnx",
    "bundle_identity",
    "check_format",
    "check_parity",
    "check_target",
    "export_file",
    "export_program",
    "is_bundle",
    "list_jobs",
    "load_bundle",
    "load_network",
    "onnx_file",
    "parse_licence",
    "read_bundle_config",
    "read_bundle_metrics",
    "read_importance",
    "take_images",
    "upscale_image",
    "upscale_picture",
    "write_bundle",
    "write_calibrated_bundle",
    "write_imported_bundle",
]

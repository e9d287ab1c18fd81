"""The networks: CAMixerSR, SwinIR-light and bicubic, with routing, tiling and checkpoint adapters."""

from harness.models.acceleration import describe_kernels
from harness.models.camixersr import CAMixerSR
from harness.models.checkpoints import load_plain_weights, load_weights
from harness.models.network import AnyGenerator, PartGenerator, Restoration, SRNetwork, keep_features
from harness.models.panorama import PanoramaNetwork, restore_image, restore_panorama
from harness.models.registry import PRESETS, build_model, build_seeded, preset_config
from harness.models.tiling import restore_tiled, restore_whole

__all__ = [
    "PRESETS",
    "AnyGenerator",
    "CAMixerSR",
    "PanoramaNetwork",
    "PartGenerator",
    "Restoration",
    "SRNetwork",
    "build_model",
    "build_seeded",
    "describe_kernels",
    "keep_features",
    "load_plain_weights",
    "load_weights",
    "preset_config",
    "restore_image",
    "restore_panorama",
    "restore_tiled",
    "restore_whole",
]

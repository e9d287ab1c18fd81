"""Presets and families by name: explicit dictionaries, no fallbacks."""

from collections.abc import Callable
from typing import cast, get_args

import torch

from harness.core.configs import AnyModelConfig, BicubicConfig, CAMixerSRConfig, CustomConfig, Scale, SwinIRConfig
from harness.core.errors import UserError, unknown_name
from harness.core.seeding import derive_seed
from harness.models.bicubic import Bicubic
from harness.models.camixersr import CAMixerSR
from harness.models.custom import CustomNetwork
from harness.models.network import SRNetwork
from harness.models.swinir import SwinIR

# The paper's Small, Medium and Base differ in channels alone (supplementary, table 2).
PRESETS: dict[str, Callable[[Scale], AnyModelConfig]] = {
    "camixersr-s": lambda scale: CAMixerSRConfig(scale=scale, channels=36),
    "camixersr-m": lambda scale: CAMixerSRConfig(scale=scale, channels=48),
    "camixersr-b": lambda scale: CAMixerSRConfig(scale=scale, channels=60),
    "swinir-light": lambda scale: SwinIRConfig(scale=scale),
    "bicubic": lambda scale: BicubicConfig(scale=scale),
}


def preset_config(name: str, scale: int) -> AnyModelConfig:
    """Return the config of a preset at a scale of 2, 3 or 4; `UserError` for any other name or scale."""
    if name not in PRESETS:
        raise unknown_name("model", name, PRESETS)
    if scale not in get_args(Scale):
        raise UserError(f"scale is {scale}, expected 2, 3 or 4")
    return PRESETS[name](cast(Scale, scale))


def build_model(config: AnyModelConfig) -> SRNetwork:
    """Build the network of a config, freshly initialised from torch's global generator, in train mode."""
    if isinstance(config, CAMixerSRConfig):
        return CAMixerSR(config)
    if isinstance(config, SwinIRConfig):
        return SwinIR(config)
    if isinstance(config, CustomConfig):
        return CustomNetwork(config)
    return Bicubic(config)


def build_seeded(config: AnyModelConfig, seed: int) -> SRNetwork:
    """Build a network whose initial weights depend on `seed` alone; every global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))  # torch.manual_seed would reseed GPUs too
        return build_model(config)

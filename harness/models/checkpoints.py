"""Weights from files: our own, and the released checkpoints' naming, through one adapter."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.models.network import SRNetwork

# Released name → ours, applied in order to a whole name.
_CAMIXERSR_RULES = (
    (r"^body\.(\d+)\.body\.(\d+)\.", r"groups.\1.blocks.\2."),
    (r"^body\.(\d+)\.body_tail\.", r"groups.\1.tail."),
    (r"\.mixer\.project_v\.", ".mixer.value."),
    (r"\.mixer\.project_q\.", ".mixer.query."),
    (r"\.mixer\.project_k\.", ".mixer.key."),
    (r"\.mixer\.project_out\.", ".mixer.out."),
    (r"\.mixer\.conv_sptial\.0\.", ".mixer.depthwise."),
    (r"\.mixer\.conv_sptial\.1\.", ".mixer.depthwise_dilated."),
    (r"\.mixer\.route\.in_conv\.0\.", ".mixer.predictor.trunk."),
    (r"\.mixer\.route\.in_conv\.1\.", ".mixer.predictor.trunk_norm."),
    (r"\.mixer\.route\.out_offsets\.0\.", ".mixer.predictor.offsets_hidden."),
    (r"\.mixer\.route\.out_offsets\.2\.", ".mixer.predictor.offsets_out."),
    (r"\.mixer\.route\.out_mask\.0\.", ".mixer.predictor.routing_hidden."),
    (r"\.mixer\.route\.out_mask\.2\.", ".mixer.predictor.routing_out."),
    (r"\.mixer\.route\.out_CA\.1\.", ".mixer.predictor.channel_attention."),
    (r"\.mixer\.route\.out_SA\.0\.", ".mixer.predictor.spatial_attention."),
    (r"\.ffn\.project_in\.", ".ffn.expand."),
    (r"\.ffn\.dwconv\.", ".ffn.depthwise."),
    (r"\.ffn\.project_out\.", ".ffn.project."),
    (r"^tail\.0\.", "tail."),
)
_SWINIR_RULES = (
    (r"^conv_first\.", "head."),
    (r"^patch_embed\.norm\.", "embed_norm."),
    (r"^layers\.(\d+)\.residual_group\.blocks\.(\d+)\.", r"groups.\1.blocks.\2."),
    (r"^layers\.(\d+)\.conv\.", r"groups.\1.conv."),
    (r"\.attn\.relative_position_bias_table$", ".attention.position_bias"),
    (r"\.attn\.(qkv|proj)\.", r".attention.\1."),
    (r"\.mlp\.fc1\.", ".mlp_hidden."),
    (r"\.mlp\.fc2\.", ".mlp_out."),
    (r"^conv_after_body\.", "body_tail."),
    (r"^upsample\.0\.", "tail."),
)
_CUSTOM_RULES = ((r"^(?!network\.)", "network."),)  # the state of a user's own module
_RULES = {"camixersr": _CAMIXERSR_RULES, "swinir": _SWINIR_RULES, "custom": _CUSTOM_RULES}
# Buffers of the released files that are recomputed here.
_RECOMPUTED = re.compile(r"(relative_position_index|attn_mask)$")


def adapt_released(state: dict[str, Tensor], network: SRNetwork) -> dict[str, Tensor]:
    """Rename released weights to ours and drop the two unit axes of pointwise convolutions; ours pass unchanged."""
    expected = network.state_dict()
    if state.keys() == expected.keys():
        return state
    adapted = {}
    for name, tensor in state.items():
        if _RECOMPUTED.search(name):
            continue
        for pattern, replacement in _RULES.get(network.config.family, ()):
            name = re.sub(pattern, replacement, name)
        target = expected.get(name)
        if target is not None and tensor.dim() == 4 and target.dim() == 2 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        adapted[name] = tensor
    return adapted


def load_weights(network: SRNetwork, path: Path) -> str:
    """Load a `.safetensors` or `.pth` file into `network`, strictly; return which entry of the file was taken.

    A released `.pth` holds `params_ema` and `params`; the first is taken. Nothing is unpickled but tensors
    (`weights_only=True`). `UserError` for a file that is missing, unreadable, or of another network.
    """
    entry, state = _read_state(path)
    adapted = adapt_released(state, network)
    label = f"{network.config.label()} ×{network.scale}"
    _check_fit(network, adapted, path, label, "name the config that they were trained with")
    network.load_state_dict(adapted)
    return entry


def load_plain_weights(network: nn.Module, path: Path, label: str) -> str:
    """Load a file as `load_weights` does into a network of anybody's, under the names that the file has."""
    entry, state = _read_state(path)
    _check_fit(network, state, path, label, "expected the network's own names and shapes")
    network.load_state_dict(state)
    return entry


def _check_fit(network: nn.Module, state: dict[str, Tensor], path: Path, label: str, remedy: str) -> None:
    """Raise `UserError` for weights that are not exactly those of the network."""
    expected = network.state_dict()
    wrong = [f"{name} is missing" for name in expected.keys() - state.keys()]
    wrong += [f"{name} is not in the network" for name in state.keys() - expected.keys()]
    wrong += [
        f"{name} has shape {tuple(tensor.shape)}, the network has {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if wrong:
        raise UserError(
            f"weights {path} do not fit {label}: {sorted(wrong)[0]}"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
            + f"; {remedy}"
        )


def _read_state(path: Path) -> tuple[str, dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"weights {path} not found; expected a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return "safetensors", load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the loaders' errors have no common base
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise UserError(f"weights {path} cannot be read as plain tensors: {reason}") from None
    for entry in ("params_ema", "params", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            return entry, content[entry]
    if isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values()):
        return "state_dict", content
    raise UserError(f"weights {path} hold no state dict; expected one of params_ema, params, or tensors by name")

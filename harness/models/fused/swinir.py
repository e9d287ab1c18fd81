"""SwinIR by fused kernels (swinir.h).

Shape suffixes: those of models/swinir.py, and P the queries padded to whole blocks.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.components import part_of
from harness.models.fused.maps import (
    Map,
    Maps,
    as_floats,
    convolve,
    divided,
    run,
    structure,
    threads_for,
    working_dtype,
)

if TYPE_CHECKING:
    from harness.models.swinir import SwinBlock, SwinGroup, SwinIR

_BLOCK = 32  # tokens that the kernels work on at once
_LOG2_E = 1.4426950408889634
_Layer = structure(
    "SwinLayer",
    integers="images height width channels window heads query value hidden shift threads half",
    pointers=(
        "x workspace norm1_weight norm1_bias qkv_weight qkv_bias score_bias proj_weight proj_bias "
        "norm2_weight norm2_bias hidden_weight hidden_bias out_weight out_bias ticks"
    ),
    numbers="eps",
)
_Normalisation = structure(
    "Normalisation",
    integers="images height width channels threads",
    pointers="weight bias input output workspace",
    numbers="eps",
)


class _SwinIRMaps(Maps):
    """The maps of images B×3×H×W with C channels."""

    def __init__(self, key: tuple[int, ...]):
        super().__init__(key)
        B, H, W, C = key
        self.input = Map(B, H, 3, W)
        self.shallow, self.start, self.x, self.next = (Map(B, H, C, W) for _ in range(4))


def restore_swinir(
    network: "SwinIR", input_BCHW: Tensor, padded_BCHW: Tensor, masks_KLL: tuple[Tensor, Tensor]
) -> Tensor:
    """Restore images whose mean is subtracted and that are padded; what the residual is added to is the caller's.

    `masks_KLL`: the masks of plain and of shifted windows, by kind.
    """
    is_half = working_dtype(input_BCHW) == torch.bfloat16
    (B, _, H, W), (h, w) = padded_BCHW.shape, input_BCHW.shape[-2:]
    scale = network.config.scale
    maps = _SwinIRMaps.take((B, H, W, network.config.embed_dim))
    with torch.autocast("cpu", enabled=False):
        maps.input.nchw().copy_(padded_BCHW)
        convolve(network.head, maps.input, maps.shallow, maps, is_half=is_half)
        _normalise(network.embed_norm, maps.shallow, maps.x, maps)
        for group in cast("Iterable[SwinGroup]", network.groups):
            maps.start.data.copy_(maps.x.data)
            for index, block in enumerate(cast("Iterable[SwinBlock]", group.blocks)):
                _transform(block, network, maps, masks_KLL[index % 2], is_half)
            convolve(group.conv, maps.x, maps.next, maps, is_half=is_half, residual=maps.start)
            maps.x, maps.next = maps.next, maps.x
            if network.features is not None:
                network.features.append(maps.x.nhwc())
        _normalise(network.norm, maps.x, maps.next, maps)
        convolve(network.body_tail, maps.next, maps.x, maps, is_half=is_half, residual=maps.shallow)
        image_BCHW = torch.empty(B, 3, h * scale, w * scale)
        convolve(network.tail, maps.x, image_BCHW, maps, is_half=is_half, scale=scale)
    maps.give_back()
    return image_BCHW.to(input_BCHW.dtype)


@part_of("norms")
def _normalise(norm: nn.LayerNorm, source: Map, target: Map, maps: Maps) -> None:
    B, H, C, W = source.shape
    weight, bias = as_floats(norm.weight), as_floats(norm.bias)
    call = _Normalisation(
        images=B,
        height=H,
        width=W,
        channels=C,
        threads=threads_for(source.shape),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        input=source.pointer,
        output=target.pointer,
        eps=norm.eps,
    )
    run("normalisation", call, maps)


def _transform(block: "SwinBlock", network: "SwinIR", maps: _SwinIRMaps, masks_KLL: Tensor, is_half: bool) -> None:
    """Run one layer in place; windows under several masks are those shifted by half a window."""
    B, H, C, W = maps.x.shape
    config = network.config
    held = dict(_parameters(block))
    bias_AKLL = block.attention.bias(masks_KLL[None]).float() * _LOG2_E
    L = bias_AKLL.shape[-1]
    bias_AKLP = F.pad(bias_AKLL, (0, -L % _BLOCK)).contiguous()
    call = _Layer(
        images=B,
        height=H,
        width=W,
        channels=C,
        window=config.window,
        heads=config.num_heads,
        query=block.attention.widths.query,
        value=block.attention.widths.value,
        hidden=block.mlp_hidden.out_features,
        shift=config.window // 2 if len(masks_KLL) > 1 else 0,
        threads=threads_for(maps.x.shape),
        half=is_half,
        x=maps.x.pointer,
        score_bias=bias_AKLP.data_ptr(),
        eps=block.norm1.eps,
        **{name: parameter.data_ptr() for name, parameter in held.items()},
    )
    with divided(call):
        run("swinir", call, maps)


def _parameters(block: "SwinBlock") -> Iterator[tuple[str, Tensor]]:
    """Yield what the kernels read of a layer, by the names of swinir.h."""
    modules: dict[str, nn.Linear | nn.LayerNorm] = {
        "norm1": block.norm1,
        "qkv": block.attention.qkv,
        "proj": block.attention.proj,
        "norm2": block.norm2,
        "hidden": block.mlp_hidden,
        "out": block.mlp_out,
    }
    for name, module in modules.items():
        yield f"{name}_weight", as_floats(module.weight)
        yield f"{name}_bias", as_floats(module.bias)

"""Multiply-accumulates (MACs) by the closed form: what a config costs, without building its network.

One fused multiply-add is one. Counted: convolutions, linear maps, matrix products and attention of the network as its
paper writes it, on the padded input; what an implementation folds or skips to be faster does not change the count.
Below, P is the number of padded low-resolution pixels of the batch, N the windows of one image, K those that get
attention, C the channels, M the window's side, s the scale. Inside a block: V channels of values, Q of queries and
keys, D = V and the conditions, which its predictor sees, E of the predictor, F of each half of the FFN.
"""

import functools
import math
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING

from harness.core.configs import AnyModelConfig, BicubicConfig, BlockWidths, CAMixerSRConfig, CustomConfig, SwinIRConfig
from harness.core.errors import UserError

if TYPE_CHECKING:
    from harness.profiling.counters import Counts

PAPER_OUTPUT_SIZE = (720, 1280)  # height, width of the output that tables 1 and 3 of the supplementary count
PAPER_TILE_SIZE = (32, 32)  # low-resolution tile that table 2 counts


def canonical_macs(
    config: AnyModelConfig,
    input_size: tuple[int, int],
    *,
    attention_share: float | Sequence[float] | None = None,
    batch_size: int = 1,
) -> int:
    """Return the canonical MACs of one forward pass; the sum of `macs_by_part`, which says what the arguments mean."""
    return sum(macs_by_part(config, input_size, attention_share=attention_share, batch_size=batch_size).values())


def macs_by_part(
    config: AnyModelConfig,
    input_size: tuple[int, int],
    *,
    attention_share: float | Sequence[float] | None = None,
    batch_size: int = 1,
) -> dict[str, int]:
    """Return the canonical MACs of each part of the network.

    `input_size` is the low-resolution (height, width) in pixels, before padding. `attention_share` is the realised K/N:
    one number for all blocks or one for each; None takes it from the routing of the config: exactly for `fixed`,
    `schedule` and, where blocks are equally wide, `detail`, in expectation (γ) for `probability`. A realised share
    gives the nearest integer. The image residual and bicubic interpolation have no MACs. A network of a user's has no
    closed form: it is built, and run under the counters, which must agree.

    Raises `UserError` for sizes and shares that make no sense, and for `threshold` without a share.
    """
    height, width = input_size
    if height < 1 or width < 1 or batch_size < 1:
        raise UserError(f"input size and batch must be at least 1: got {height}×{width} pixels, batch {batch_size}")
    if isinstance(config, CAMixerSRConfig):
        return _camixersr_parts(config, input_size, attention_share, batch_size)
    if attention_share is not None:
        raise UserError(f"{config.label()} does not route, so it has no attention share: got {attention_share}")
    if isinstance(config, SwinIRConfig):
        return _swinir_parts(config, input_size, batch_size)
    if isinstance(config, CustomConfig):
        return {"counted": batch_size * _counted(config, input_size).macs}
    return {"interpolation": 0}


def canonical_activations(config: AnyModelConfig, input_size: tuple[int, int], *, batch_size: int = 1) -> int:
    """Return the output elements of all convolutions of one forward pass, on the padded input.

    So the NTIRE challenges on efficient super-resolution count activations. The network is taken as its paper writes
    it: pointwise layers are 1×1 convolutions, while queries, keys and routing logits, and all of SwinIR's layers
    between its convolutions, are linear maps, which have none. Routing changes nothing.
    """
    if isinstance(config, BicubicConfig):
        return 0
    if isinstance(config, CustomConfig):
        return batch_size * _counted(config, input_size).activations
    height, width = padded_size(input_size, config.window)
    pixels = batch_size * height * width
    tail = 3 * config.scale**2 * pixels
    if isinstance(config, SwinIRConfig):
        return (len(config.depths) + 2) * config.embed_dim * pixels + tail
    channels, each = config.channels, [config.block_widths(block) for block in range(config.num_blocks)]
    alive, read = _needs_attention(config), [config.reads_predictor(block) for block in range(config.num_blocks)]
    return (
        (len(config.groups) + 2) * channels * pixels  # head, tails of groups, tail of the body
        + (8 + 2) * pixels * bool(config.global_condition and any(read))
        + sum(block.predictor for block in compress(each, read)) * pixels
        + sum(block.offsets + 2 for block in compress(each, alive)) * pixels * config.offsets
        + config.num_blocks * pixels * config.spatial_attention
        + sum(block.mixer for block in each) * batch_size * config.channel_attention
        + sum(3 * block.mixer + 4 * block.ffn for block in each) * pixels  # value, depthwise; expansion, depthwise
        + config.num_blocks * 2 * channels * pixels  # out, projection
        + tail
    )


def paper_macs_fvcore(
    config: CAMixerSRConfig,
    output_size: tuple[int, int] = PAPER_OUTPUT_SIZE,
    *,
    attention_share: float | Sequence[float] | None = None,
) -> int:
    """Return MACs as tables 1 and 3 of CAMixerSR's supplementary print them, for an output of (height, width) pixels.

    The canonical count plus what fvcore adds to it: 4 for each output element of the warp and 1 for each element that
    the global average reads, which is E + 4C per padded pixel and block. The published γ < 1 lie within 2 % only,
    because the released code draws K at random.
    """
    input_size = (output_size[0] // config.scale, output_size[1] // config.scale)
    canonical = canonical_macs(config, input_size, attention_share=attention_share)
    height, width = padded_size(input_size, config.window)
    each = [config.block_widths(block).predictor for block in range(config.num_blocks)]
    pooled = sum(each) if config.channel_attention else 0
    # A block without attention has no warp.
    num_warps = sum(_needs_attention(config)) if config.offsets else 0
    return canonical + height * width * (pooled + num_warps * 4 * config.channels)


def paper_flops_tile(
    config: CAMixerSRConfig,
    tile_size: tuple[int, int] = PAPER_TILE_SIZE,
    *,
    attention_share: float | Sequence[float] | None = None,
) -> int:
    """Return FLOPs as table 2 of CAMixerSR's supplementary prints them, for one low-resolution tile.

    Two for each MAC, but only one for those of the two matrix products of attention.
    """
    parts = macs_by_part(config, tile_size, attention_share=attention_share)
    return 2 * sum(parts.values()) - parts["attention"]


def count_params(model: AnyModelConfig) -> int:
    """Return the number of trainable parameters, without building the network."""
    if isinstance(model, BicubicConfig):
        return 0
    if isinstance(model, CustomConfig):
        return _counted(model, None).params
    image_channels = 3 * model.scale**2
    if isinstance(model, SwinIRConfig):
        C, A = model.embed_dim, model.num_heads
        each = [model.layer_widths(layer) for layer in range(sum(model.depths))]
        qkv = sum((C + 1) * A * (2 * layer.query + layer.value) for layer in each)
        projection = sum(A * layer.value * C + C for layer in each)
        mlp = sum(2 * C * layer.mlp + layer.mlp + C for layer in each)
        others = len(each) * ((2 * model.window - 1) ** 2 * A + 4 * C) + len(model.depths) * (9 * C * C + C)
        ends = (27 * C + C) + (9 * C * C + C) + 4 * C + 9 * C * image_channels + image_channels
        return qkv + projection + mlp + others + ends
    C = model.channels
    blocks = sum(_count_block_params(model, model.block_widths(block)) for block in range(model.num_blocks))
    groups = len(model.groups) * (C * C + C)
    conditions = (8 * C + 8 + 9 * 8 * 2 + 2) * model.global_condition
    return blocks + groups + conditions + (27 * C + C) + (9 * C * C + C) + 9 * C * image_channels + image_channels


@functools.lru_cache(maxsize=4096)
def _count_once(canonical_json: str, input_size: tuple[int, int] | None) -> "Counts":
    from harness.profiling.counters import count_custom

    return count_custom(CustomConfig.model_validate_json(canonical_json), input_size)


def _counted(config: CustomConfig, input_size: tuple[int, int] | None) -> "Counts":
    """Return what counters find of a network of a user's, for which nobody has a closed form."""
    return _count_once(config.canonical_json(), input_size)


def _count_block_params(model: CAMixerSRConfig, widths: BlockWidths) -> int:
    C, M = model.channels, model.window
    V, Q, E, F = widths.mixer, widths.query, widths.predictor, widths.ffn
    D = V + model.condition_channels
    predictor = D * E + E + 2 * E + (M**3 + M) + (2 * M + 2)
    predictor += ((E + 1 + 2) * widths.offsets + 2) * model.offsets
    predictor += (E * V + V) * model.channel_attention + (9 * E + 1) * model.spatial_attention
    mixer = (C * V + V) + 2 * (C * Q + Q) + 2 * (9 * V + V) + (V * C + C)
    return mixer + predictor + 3 * C * F + 18 * F + 4 * C


def padded_size(input_size: tuple[int, int], window: int) -> tuple[int, int]:
    """Return (height, width) rounded up to multiples of the window."""
    height, width = input_size
    return math.ceil(height / window) * window, math.ceil(width / window) * window


def _camixersr_parts(
    config: CAMixerSRConfig,
    input_size: tuple[int, int],
    attention_share: float | Sequence[float] | None,
    batch_size: int,
) -> dict[str, int]:
    height, width = padded_size(input_size, config.window)
    pixels = batch_size * height * width
    C, area, blocks = config.channels, config.window**2, config.num_blocks
    windows = height * width // area
    hard_windows_S = _count_hard_windows(config, windows, batch_size, attention_share)
    alive, read = _needs_attention(config), [config.reads_predictor(block) for block in range(blocks)]
    routed = 0 if config.routing.policy == "detail" else sum(alive)  # `detail` decides without the routing logits

    each = [config.block_widths(block) for block in range(blocks)]
    trunk = sum((one.mixer + config.condition_channels) * one.predictor for one in compress(each, read))
    offsets = sum(one.predictor * one.offsets + 2 * one.offsets for one in compress(each, alive))
    routing = area * config.window + 2 * config.window
    values, hidden = sum(one.mixer for one in each), sum(one.ffn for one in each)
    projected = sum(hard * 2 * C * one.query for hard, one in zip(hard_windows_S, each, strict=True))
    attended = sum(hard * (one.query + one.mixer) for hard, one in zip(hard_windows_S, each, strict=True))
    return {
        "head": 27 * C * pixels,
        "global_predictor": (8 * C + 144) * pixels if config.global_condition and any(read) else 0,
        "predictor_trunk": trunk * pixels,
        "offsets": offsets * pixels if config.offsets else 0,
        "routing": routed * routing * batch_size * windows,
        "spatial_attention": 9 * sum(one.predictor for one in each) * pixels if config.spatial_attention else 0,
        "channel_attention": sum(one.predictor * one.mixer for one in each) * batch_size * config.channel_attention,
        "value": C * values * pixels,
        "query_key": round(projected * area),
        "attention": round(attended * area**2),
        "mixer_convolutions": (18 * values + C * values) * pixels,
        "ffn": (3 * C * hidden + 18 * hidden) * pixels,
        "group_tails": len(config.groups) * C**2 * pixels,
        "body_tail": 9 * C**2 * pixels,
        "tail": 27 * config.scale**2 * C * pixels,
    }


def _needs_attention(config: CAMixerSRConfig) -> list[bool]:
    """Say for each block whether it may attend.

    One with γ_b = 0 in a schedule, or of weight 0 under `detail`, has no offsets, routing logits, q and k.
    """
    return [not config.routing.never_attends(block) for block in range(config.num_blocks)]


def _count_hard_windows(
    config: CAMixerSRConfig, windows: int, batch_size: int, attention_share: float | Sequence[float] | None
) -> list[float]:
    """Return K of the batch in each block: whole where the routing fixes it, else the share of all windows.

    `detail` fixes the sum alone: it is shared out evenly among the blocks that may attend.
    """
    routing, blocks = config.routing, config.num_blocks
    if attention_share is not None:
        shares = list(attention_share) if isinstance(attention_share, Sequence) else [attention_share] * blocks
        if len(shares) != blocks:
            raise UserError(f"attention_share has {len(shares)} values, but groups {config.groups} make {blocks}")
        if not all(0 <= share <= 1 for share in shares):
            raise UserError(f"attention_share must lie between 0 and 1: got {attention_share}")
        return [_without_rounding_error(share, batch_size * windows) for share in shares]
    if routing.policy == "probability":
        return [routing.gamma * batch_size * windows] * blocks
    if routing.policy == "detail":
        alive = _needs_attention(config)
        hard = batch_size * min(math.floor(routing.gamma * blocks * windows + 1e-9), sum(alive) * windows)
        return [hard / sum(alive) if attends else 0.0 for attends in alive]
    if routing.policy == "threshold":
        raise UserError(
            "the cost of routing `threshold` depends on the image: give the realised attention_share (0 to 1), "
            "which evaluating the network reports"
        )
    gammas = routing.schedule if routing.schedule is not None else (routing.gamma,) * blocks
    return [float(batch_size * math.floor(gamma * windows + 1e-9)) for gamma in gammas]


def _without_rounding_error(share: float, windows: int) -> float:
    """Return share × windows, whole where it misses a whole number by no more than float32 loses."""
    hard = share * windows
    return float(round(hard)) if abs(hard - round(hard)) <= 1e-6 * windows else hard


def _swinir_parts(config: SwinIRConfig, input_size: tuple[int, int], batch_size: int) -> dict[str, int]:
    height, width = padded_size(input_size, config.window)
    pixels = batch_size * height * width
    C, A, area = config.embed_dim, config.num_heads, config.window**2
    each = [config.layer_widths(layer) for layer in range(sum(config.depths))]
    return {
        "head": 27 * C * pixels,
        "query_key_value": sum(C * A * (2 * layer.query + layer.value) for layer in each) * pixels,
        "attention": sum(A * (layer.query + layer.value) for layer in each) * area * pixels,
        "projection": sum(A * layer.value * C for layer in each) * pixels,
        "mlp": sum(2 * C * layer.mlp for layer in each) * pixels,
        "group_tails": len(config.depths) * 9 * C**2 * pixels,
        "body_tail": 9 * C**2 * pixels,
        "tail": 27 * config.scale**2 * C * pixels,
    }

"""Multiply-accumulates (MACs) by the closed form: what a config costs, without building its network.

One fused multiply-add is one. Counted: convolutions, linear maps, matrix products and attention of the network as its
paper writes it, on the padded input; what an implementation folds or skips to be faster does not change the count.
Below, P is the number of padded low-resolution pixels of the batch, N the windows of one image, K those that get
attention, C the channels, M the window's side, s the scale, D the channels that the predictor of a block sees.
"""

import math
from collections.abc import Sequence

from harness.core.configs import BicubicConfig, CAMixerSRConfig, SwinIRConfig
from harness.core.errors import UserError

PAPER_OUTPUT_SIZE = (720, 1280)  # height, width of the output that tables 1 and 3 of the supplementary count
PAPER_TILE_SIZE = (32, 32)  # low-resolution tile that table 2 counts


def canonical_macs(
    config: CAMixerSRConfig | SwinIRConfig | BicubicConfig,
    input_size: tuple[int, int],
    *,
    attention_share: float | Sequence[float] | None = None,
    batch_size: int = 1,
) -> int:
    """Return the canonical MACs of one forward pass; the sum of `macs_by_part`, which says what the arguments mean."""
    return sum(macs_by_part(config, input_size, attention_share=attention_share, batch_size=batch_size).values())


def macs_by_part(
    config: CAMixerSRConfig | SwinIRConfig | BicubicConfig,
    input_size: tuple[int, int],
    *,
    attention_share: float | Sequence[float] | None = None,
    batch_size: int = 1,
) -> dict[str, int]:
    """Return the canonical MACs of each part of the network.

    `input_size` is the low-resolution (height, width) in pixels, before padding. `attention_share` is the realised K/N:
    one number for all blocks or one for each; None takes it from the routing of the config: exactly for `fixed`,
    `schedule` and `detail`, in expectation (γ) for `probability`. A realised share gives the nearest integer. The image
    residual and bicubic interpolation have no MACs.

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
    return {"interpolation": 0}


def canonical_activations(
    config: CAMixerSRConfig | SwinIRConfig | BicubicConfig, input_size: tuple[int, int], *, batch_size: int = 1
) -> int:
    """Return the output elements of all convolutions of one forward pass, on the padded input.

    So the NTIRE challenges on efficient super-resolution count activations. The network is taken as its paper writes
    it: pointwise layers are 1×1 convolutions, while queries, keys and routing logits, and all of SwinIR's layers
    between its convolutions, are linear maps, which have none. Routing changes nothing.
    """
    if isinstance(config, BicubicConfig):
        return 0
    height, width = padded_size(input_size, config.window)
    pixels = batch_size * height * width
    tail = 3 * config.scale**2 * pixels
    if isinstance(config, SwinIRConfig):
        return (len(config.depths) + 2) * config.embed_dim * pixels + tail
    channels, hidden, seen = config.channels, _predictor_channels(config) // 4, _predictor_channels(config)
    alive = sum(_needs_attention(config))
    read = sum(config.reads_predictor(block) for block in range(config.num_blocks))
    return (
        (len(config.groups) + 2) * channels * pixels  # head, tails of groups, tail of the body
        + (8 + 2) * pixels * bool(config.global_condition and read)
        + read * hidden * pixels
        + alive * (seen // 8 + 2) * pixels * config.offsets
        + config.num_blocks * pixels * config.spatial_attention
        + config.num_blocks * channels * batch_size * config.channel_attention
        + config.num_blocks * (1 + 2 + 1 + 2 + 2 + 1) * channels * pixels  # value, depthwise, out; FFN
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
    the global average reads, which is D//4 + 4C per padded pixel and block. The published γ < 1 lie within 2 % only,
    because the released code draws K at random.
    """
    input_size = (output_size[0] // config.scale, output_size[1] // config.scale)
    canonical = canonical_macs(config, input_size, attention_share=attention_share)
    height, width = padded_size(input_size, config.window)
    pooled = _predictor_channels(config) // 4 if config.channel_attention else 0
    # A block without attention has no warp.
    num_warps = sum(_needs_attention(config)) if config.offsets else 0
    return canonical + height * width * (config.num_blocks * pooled + num_warps * 4 * config.channels)


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


def count_params(model: CAMixerSRConfig | SwinIRConfig | BicubicConfig) -> int:
    """Return the number of trainable parameters, without building the network."""
    if isinstance(model, BicubicConfig):
        return 0
    image_channels = 3 * model.scale**2
    if isinstance(model, SwinIRConfig):
        C, hidden = model.embed_dim, int(model.embed_dim * model.mlp_ratio)
        attention = 4 * (C * C + C) + (2 * model.window - 1) ** 2 * model.num_heads
        layer = attention + 2 * C * hidden + hidden + C + 4 * C
        groups = sum(depth * layer + 9 * C * C + C for depth in model.depths)
        return groups + (27 * C + C) + (9 * C * C + C) + 4 * C + 9 * C * image_channels + image_channels
    C, M = model.channels, model.window
    D = _predictor_channels(model)
    E, offsets = D // 4, D // 8
    predictor = D * E + E + 2 * E + (M**3 + M) + (2 * M + 2)
    predictor += (E * offsets + offsets + 2 * offsets + 2) * model.offsets
    predictor += (E * C + C) * model.channel_attention + (9 * E + 1) * model.spatial_attention
    mixer = 4 * (C * C + C) + 2 * (9 * C + C)
    block = mixer + predictor + 3 * C * C + 18 * C + 4 * C
    groups = model.num_blocks * block + len(model.groups) * (C * C + C)
    conditions = (8 * C + 8 + 9 * 8 * 2 + 2) * model.global_condition
    return groups + conditions + (27 * C + C) + (9 * C * C + C) + 9 * C * image_channels + image_channels


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
    channels, area, blocks = config.channels, config.window**2, config.num_blocks
    windows = height * width // area
    hard_windows = _count_hard_windows(config, windows, batch_size, attention_share)
    alive = sum(_needs_attention(config))
    read = sum(config.reads_predictor(block) for block in range(blocks))
    routed = 0 if config.routing.policy == "detail" else alive  # `detail` decides without the routing logits

    seen = _predictor_channels(config)
    hidden = seen // 4
    trunk = seen * hidden
    offsets = hidden * (seen // 8) + 2 * (seen // 8)
    routing = area * config.window + 2 * config.window
    return {
        "head": 27 * channels * pixels,
        "global_predictor": (8 * channels + 144) * pixels if config.global_condition and read else 0,
        "predictor_trunk": read * trunk * pixels,
        "offsets": alive * offsets * pixels if config.offsets else 0,
        "routing": routed * routing * batch_size * windows,
        "spatial_attention": blocks * 9 * hidden * pixels if config.spatial_attention else 0,
        "channel_attention": blocks * hidden * channels * batch_size if config.channel_attention else 0,
        "value": blocks * channels**2 * pixels,
        "query_key": round(hard_windows * 2 * channels**2 * area),
        "attention": round(hard_windows * 2 * area**2 * channels),
        "mixer_convolutions": blocks * (18 * channels + channels**2) * pixels,
        "ffn": blocks * (3 * channels**2 + 18 * channels) * pixels,
        "group_tails": len(config.groups) * channels**2 * pixels,
        "body_tail": 9 * channels**2 * pixels,
        "tail": 27 * config.scale**2 * channels * pixels,
    }


def _predictor_channels(config: CAMixerSRConfig) -> int:
    return config.channels + 2 * config.global_condition + 2 * config.window_condition


def _needs_attention(config: CAMixerSRConfig) -> list[bool]:
    """Say for each block whether it may attend.

    One with γ_b = 0 in a schedule, or of weight 0 under `detail`, has no offsets, routing logits, q and k.
    """
    return [not config.routing.never_attends(block) for block in range(config.num_blocks)]


def _count_hard_windows(
    config: CAMixerSRConfig, windows: int, batch_size: int, attention_share: float | Sequence[float] | None
) -> float:
    """Return K of the batch over all blocks: whole where the routing fixes it, else the share of all windows."""
    routing, blocks = config.routing, config.num_blocks
    if attention_share is not None:
        shares = list(attention_share) if isinstance(attention_share, Sequence) else [attention_share] * blocks
        if len(shares) != blocks:
            raise UserError(f"attention_share has {len(shares)} values, but groups {config.groups} make {blocks}")
        if not all(0 <= share <= 1 for share in shares):
            raise UserError(f"attention_share must lie between 0 and 1: got {attention_share}")
        return sum(_without_rounding_error(share, batch_size * windows) for share in shares)
    if routing.policy == "probability":
        return routing.gamma * batch_size * windows * blocks
    if routing.policy == "detail":
        reached = sum(_needs_attention(config)) * windows
        return float(batch_size * min(math.floor(routing.gamma * blocks * windows + 1e-9), reached))
    if routing.policy == "threshold":
        raise UserError(
            "the cost of routing `threshold` depends on the image: give the realised attention_share (0 to 1), "
            "which evaluating the network reports"
        )
    gammas = routing.schedule if routing.schedule is not None else (routing.gamma,) * blocks
    return float(batch_size * sum(math.floor(gamma * windows + 1e-9) for gamma in gammas))


def _without_rounding_error(share: float, windows: int) -> float:
    """Return share × windows, whole where it misses a whole number by no more than float32 loses."""
    hard = share * windows
    return float(round(hard)) if abs(hard - round(hard)) <= 1e-6 * windows else hard


def _swinir_parts(config: SwinIRConfig, input_size: tuple[int, int], batch_size: int) -> dict[str, int]:
    height, width = padded_size(input_size, config.window)
    pixels = batch_size * height * width
    channels, layers = config.embed_dim, sum(config.depths)
    hidden = int(channels * config.mlp_ratio)
    return {
        "head": 27 * channels * pixels,
        "query_key_value": layers * 3 * channels**2 * pixels,
        "attention": layers * 2 * config.window**2 * channels * pixels,
        "projection": layers * channels**2 * pixels,
        "mlp": layers * 2 * channels * hidden * pixels,
        "group_tails": len(config.depths) * 9 * channels**2 * pixels,
        "body_tail": 9 * channels**2 * pixels,
        "tail": 27 * config.scale**2 * channels * pixels,
    }

"""Smaller networks out of trained ones: channels that go, by torch-pruning's criteria, and what is left."""

from harness.compression.channels import (
    KINDS,
    ChannelGroup,
    Member,
    Narrowing,
    PrunableConfig,
    Removed,
    find_groups,
    narrow,
    remove_channels,
    silence_channels,
)
from harness.compression.importance import accumulate_gradients, score_units
from harness.compression.selection import (
    TARGET_TOLERANCE,
    Cost,
    Curves,
    Fewer,
    Level,
    choose_least_loss,
    choose_uniformly,
    least_important,
    nearest_width,
    sum_up_scores,
    widths_of,
)

__all__ = [
    "KINDS",
    "TARGET_TOLERANCE",
    "ChannelGroup",
    "Cost",
    "Curves",
    "Fewer",
    "Level",
    "Member",
    "Narrowing",
    "PrunableConfig",
    "Removed",
    "accumulate_gradients",
    "choose_least_loss",
    "choose_uniformly",
    "find_groups",
    "least_important",
    "narrow",
    "nearest_width",
    "remove_channels",
    "score_units",
    "silence_channels",
    "sum_up_scores",
    "widths_of",
]

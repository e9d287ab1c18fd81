"""Which channels of a network belong together, and the same network without some of them.

A channel group is a set of units that can only go together: a unit is one channel, or one of each head, with all rows
and columns of weights that make it or read it. Groups are named here and not found in a trace: the mixer's masks,
windows and routing tie channels together in a trace that have nothing to do with each other, and where a tracer finds
no way through it leaves layers out without a word. torch-pruning judges the units (importance.py).

What is left is a config (`widths`) and weights like any other. Scores over √d, means over the predictor's features and
whatever else depends on a width is folded into the weights, so that a network without some channels gives exactly what
the whole one gives with those channels silenced.

Shape suffixes: U units of a group, R positions of each along an axis.
"""

import copy
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.core.configs import KINDS, BlockWidths, CAMixerSRConfig, LayerWidths, SwinIRConfig
from harness.core.errors import UserError
from harness.models import SRNetwork, build_seeded

PrunableConfig = CAMixerSRConfig | SwinIRConfig
Axis = Literal["out", "in"]
_LEAST = {"features": 4}  # the smallest width that a config takes, where it is not 1
_TOLERANCE = 1e-9  # in full scale, in float64


class Member(NamedTuple):
    """An axis of a module's weight along which units lie: `positions_UR` of each. 'out' is the bias's too."""

    module: str
    axis: Axis
    positions_UR: Tensor


class ChannelGroup(NamedTuple):
    """Units that are pruned one by one, each with all of its members.

    `block` is the block or layer, counted from 0 over the whole network; None for `features`. The first member makes
    the units, the others pass them on or read them.
    """

    kind: str
    block: int | None
    units: int
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """What a group is called: `features`, `mixer 3`."""
        return self.kind if self.block is None else f"{self.kind} {self.block}"

    @property
    def least(self) -> int:
        """The fewest units that must stay."""
        return _LEAST.get(self.kind, 1)


Removed = Mapping[str, Collection[int]]  # units by the name of their group


def find_groups(config: PrunableConfig, kinds: Collection[str] | None = None) -> tuple[ChannelGroup, ...]:
    """Return the channel groups of a network, all or those of some kinds; `UserError` for a kind that it has not."""
    known = KINDS[config.family]
    for kind in kinds or ():
        if kind not in known:
            raise UserError(f"{config.label()} has no channels {kind!r}; expected some of {', '.join(known)}")
    groups = _camixersr_groups(config) if isinstance(config, CAMixerSRConfig) else _swinir_groups(config)
    return tuple(group for group in groups if kinds is None or group.kind in kinds)


def _lines(count: int, *starts: int) -> Tensor:
    """Return the positions of units whose lines begin at `starts`: unit u lies at u behind each of them."""
    return torch.arange(count)[:, None] + torch.tensor(starts)


def _camixersr_groups(config: CAMixerSRConfig) -> Iterator[ChannelGroup]:
    features = [Member("head", "out", _lines(config.channels, 0))]
    read = [("body_tail", "in"), ("body_tail", "out"), ("tail", "in")]
    if config.global_condition:
        read.append(("global_predictor.0", "in"))
    switches = {"offsets_hidden": "offsets"}
    ablated = {
        module
        for module in ("offsets_hidden", "channel_attention", "spatial_attention")
        if not getattr(config, switches.get(module, module))
    }
    places = [(group, block) for group, count in enumerate(config.groups) for block in range(count)]
    for index, (group, block) in enumerate(places):
        prefix = f"groups.{group}.blocks.{block}"
        mixer, predictor, widths = f"{prefix}.mixer", f"{prefix}.mixer.predictor", config.block_widths(index)
        inside: list[tuple[str, int, list[tuple[str, Axis, tuple[int, ...]]]]] = [
            (
                "mixer",
                widths.mixer,
                [
                    (f"{mixer}.value", "out", (0,)),
                    (f"{mixer}.depthwise", "out", (0,)),
                    (f"{mixer}.depthwise_dilated", "out", (0,)),
                    (f"{mixer}.out", "in", (0,)),
                    (f"{predictor}.trunk", "in", (0,)),  # what comes behind them are the conditions, which stay
                    (f"{predictor}.channel_attention", "out", (0,)),
                ],
            ),
            ("query", widths.query, [(f"{mixer}.query", "out", (0,)), (f"{mixer}.key", "out", (0,))]),
            (
                "predictor",
                widths.predictor,
                [
                    (f"{predictor}.trunk", "out", (0,)),
                    (f"{predictor}.trunk_norm", "out", (0,)),
                    (f"{predictor}.offsets_hidden", "in", (0,)),
                    (f"{predictor}.channel_attention", "in", (0,)),
                    (f"{predictor}.spatial_attention", "in", (0,)),
                ],
            ),
            (
                "offsets",
                widths.offsets if config.offsets else 0,
                [(f"{predictor}.offsets_hidden", "out", (0,)), (f"{predictor}.offsets_out", "in", (0,))],
            ),
            (
                "ffn",
                widths.ffn,
                [
                    (f"{prefix}.ffn.expand", "out", (0, widths.ffn)),
                    (f"{prefix}.ffn.depthwise", "out", (0, widths.ffn)),
                    (f"{prefix}.ffn.project", "in", (0,)),
                ],
            ),
        ]
        for kind, units, members in inside:
            if units:
                found = tuple(
                    Member(module, axis, _lines(units, *starts))
                    for module, axis, starts in members
                    if module.rpartition(".")[2] not in ablated
                )
                yield ChannelGroup(kind, index, units, found)
        read += [(f"{mixer}.{name}", "in") for name in ("value", "query", "key")]
        read += [(f"{mixer}.out", "out"), (f"{prefix}.norm1", "out"), (f"{prefix}.norm2", "out")]
        read += [(f"{prefix}.ffn.expand", "in"), (f"{prefix}.ffn.project", "out")]
    for group in range(len(config.groups)):
        read += [(f"groups.{group}.tail", "in"), (f"groups.{group}.tail", "out")]
    features += [Member(module, _axis(axis), _lines(config.channels, 0)) for module, axis in read]
    yield ChannelGroup("features", None, config.channels, tuple(features))


def _swinir_groups(config: SwinIRConfig) -> Iterator[ChannelGroup]:
    features = [Member("head", "out", _lines(config.embed_dim, 0))]
    read = [("embed_norm", "out"), ("norm", "out"), ("body_tail", "in"), ("body_tail", "out"), ("tail", "in")]
    places = [(group, block) for group, count in enumerate(config.depths) for block in range(count)]
    for index, (group, block) in enumerate(places):
        prefix = f"groups.{group}.blocks.{block}"
        widths, heads = config.layer_widths(index), range(config.num_heads)
        d, e = widths.query, widths.value
        queries = [head * d for head in heads]
        keys = [config.num_heads * d + start for start in queries]
        values = [2 * config.num_heads * d + head * e for head in heads]
        qkv, proj = f"{prefix}.attention.qkv", f"{prefix}.attention.proj"
        yield ChannelGroup("query", index, d, (Member(qkv, "out", _lines(d, *queries, *keys)),))
        read_values = Member(proj, "in", _lines(e, *(head * e for head in heads)))
        yield ChannelGroup("value", index, e, (Member(qkv, "out", _lines(e, *values)), read_values))
        hidden = (Member(f"{prefix}.mlp_hidden", "out", _lines(widths.mlp, 0)),)
        yield ChannelGroup(
            "mlp", index, widths.mlp, (*hidden, Member(f"{prefix}.mlp_out", "in", _lines(widths.mlp, 0)))
        )
        read += [(f"{prefix}.norm1", "out"), (f"{prefix}.norm2", "out"), (qkv, "in"), (proj, "out")]
        read += [(f"{prefix}.mlp_hidden", "in"), (f"{prefix}.mlp_out", "out")]
    for group in range(len(config.depths)):
        read += [(f"groups.{group}.conv", "in"), (f"groups.{group}.conv", "out")]
    features += [Member(module, _axis(axis), _lines(config.embed_dim, 0)) for module, axis in read]
    yield ChannelGroup("features", None, config.embed_dim, tuple(features))


def _axis(name: str) -> Axis:
    return "out" if name == "out" else "in"


def narrow(config: PrunableConfig, fewer: Mapping[str, int]) -> PrunableConfig:
    """Return the config of a network with so many units fewer in the groups of these names.

    Raises `UserError` where fewer units than a group's `least` would stay.
    """
    for group in find_groups(config):
        count = fewer.get(group.name, 0)
        if not 0 <= count <= group.units - min(group.least, group.units):
            raise UserError(
                f"{group.name} has {group.units} channels, of which {count} cannot go: at least {group.least} must stay"
            )
    if not any(fewer.values()):
        return config
    return type(config).model_validate(Narrowing(config)(fewer).model_dump())


class Narrowing:
    """`narrow` of one config for many choices, unchecked: for counting what they cost."""

    def __init__(self, config: PrunableConfig):
        self.config = config
        self.kinds = KINDS[config.family][1:]
        self.widths: Sequence[BlockWidths | LayerWidths]
        if isinstance(config, CAMixerSRConfig):
            self.widths = [config.block_widths(block) for block in range(config.num_blocks)]
        else:
            self.widths = [config.layer_widths(layer) for layer in range(sum(config.depths))]
        self.names = [{kind: f"{kind} {index}" for kind in self.kinds} for index in range(len(self.widths))]

    def __call__(self, fewer: Mapping[str, int]) -> PrunableConfig:
        """Return the config with so many units fewer."""
        widths = tuple(
            one
            if fewer.keys().isdisjoint(names.values())
            else type(one).model_construct(
                **{kind: getattr(one, kind) - fewer.get(name, 0) for kind, name in names.items()}
            )
            for one, names in zip(self.widths, self.names, strict=True)
        )
        features = "channels" if isinstance(self.config, CAMixerSRConfig) else "embed_dim"
        left = getattr(self.config, features) - fewer.get("features", 0)
        return self.config.model_copy(update={features: left, "widths": widths})


def remove_channels(network: SRNetwork, removed: Removed, *, checked: bool = True) -> SRNetwork:
    """Return a new network in eval mode without the units `removed`, with the weights of the others; the old one stays.

    It gives what `silence_channels` gives, which is `checked` here on noise, in float64. `UserError` for groups and
    units that the network does not have, and where too few would stay.
    """
    config = network.config
    assert isinstance(config, PrunableConfig)
    groups = {group.name: group for group in find_groups(config)}
    _check_removed(groups, removed)
    narrowed = narrow(config, {name: len(set(units)) for name, units in removed.items()})
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    gone: dict[tuple[str, Axis], set[int]] = defaultdict(set)
    for name, units in removed.items():
        for member in groups[name].members:
            gone[member.module, member.axis] |= set(member.positions_UR[sorted(set(units))].flatten().tolist())
    for (module, axis), positions in gone.items():
        for parameter in ("weight", "bias") if axis == "out" else ("weight",):
            if (name := f"{module}.{parameter}") in state:
                dim = 0 if axis == "out" else 1
                kept = [index for index in range(state[name].shape[dim]) if index not in positions]
                state[name] = state[name].index_select(dim, torch.tensor(kept))
    for name, factor in _rescaled(config, narrowed):
        state[name] = state[name] * factor
    pruned = build_seeded(narrowed, 0)
    pruned.load_state_dict(state)  # strict: refuses whatever has not shrunk as the config says
    pruned.eval()
    if checked:
        _check_equal(silence_channels(network, removed), pruned)
    return pruned


def _check_removed(groups: Mapping[str, ChannelGroup], removed: Removed) -> None:
    for name, units in removed.items():
        if name not in groups:
            raise UserError(f"the network has no channels {name!r}; expected some of {', '.join(groups)}")
        wrong = [unit for unit in units if not 0 <= unit < groups[name].units]
        if wrong:
            raise UserError(f"{name} has no channel {wrong[0]}; expected 0 to {groups[name].units - 1}")


def _rescaled(config: PrunableConfig, narrowed: PrunableConfig) -> Iterator[tuple[str, float | Tensor]]:
    """Yield the weights that a changed width would act on, and by what they make up for it."""
    if isinstance(config, CAMixerSRConfig) and isinstance(narrowed, CAMixerSRConfig):
        index = 0
        for group, count in enumerate(config.groups):
            for block in range(count):
                mixer = f"groups.{group}.blocks.{block}.mixer"
                # The mean over E features of a pixel, of which some are gone.
                before, after = (one.block_widths(index).predictor for one in (config, narrowed))
                yield f"{mixer}.predictor.routing_hidden.weight", after / before
                if config.scaled_attention:
                    factor = (narrowed.channels / config.channels) ** 0.5
                    yield from ((f"{mixer}.query.{name}", factor) for name in ("weight", "bias"))
                index += 1
        return
    assert isinstance(config, SwinIRConfig)
    assert isinstance(narrowed, SwinIRConfig)
    index = 0
    for group, count in enumerate(config.depths):
        for block in range(count):
            before, after = (one.layer_widths(index).query for one in (config, narrowed))
            values = narrowed.layer_widths(index).value
            factor_O = torch.ones(config.num_heads * (2 * after + values))
            factor_O[: config.num_heads * after] = (after / before) ** 0.5  # of the queries alone
            qkv = f"groups.{group}.blocks.{block}.attention.qkv"
            yield f"{qkv}.weight", factor_O[:, None]
            yield f"{qkv}.bias", factor_O
            index += 1


def silence_channels(network: SRNetwork, removed: Removed) -> SRNetwork:
    """Return a copy of the network, in eval mode, in which the units `removed` are zeros wherever they come from.

    Norms over channels are those of the others: a norm over zeros is no zero, and counts them.
    """
    assert isinstance(network.config, PrunableConfig)
    silenced = copy.deepcopy(network).eval()
    for group in find_groups(network.config):
        units = sorted(set(removed.get(group.name, ())))
        if not units:
            continue
        for member in group.members:
            if member.axis == "in":
                continue
            module = silenced.get_submodule(member.module)
            positions = member.positions_UR[units].flatten()
            if isinstance(module, nn.LayerNorm):
                parent, _, name = member.module.rpartition(".")
                setattr(silenced.get_submodule(parent), name, _NormOfSome(module, positions))
                continue
            with torch.no_grad():
                for parameter in module.parameters(recurse=False):
                    parameter[positions] = 0
    return silenced


class _NormOfSome(nn.Module):
    """LayerNorm over all channels but some, which are zeros."""

    def __init__(self, norm: nn.LayerNorm, silent: Tensor):
        super().__init__()
        self.norm = norm
        self.eps = norm.eps
        kept = torch.ones(norm.normalized_shape[0], dtype=torch.bool)
        kept[silent] = False
        self.register_buffer("kept", kept.nonzero()[:, 0], persistent=False)
        self.kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        weight, bias = self.norm.weight[self.kept], self.norm.bias[self.kept]
        normal = nn.functional.layer_norm(x[..., self.kept], (len(self.kept),), weight, bias, self.eps)
        return torch.zeros_like(x).index_copy(-1, self.kept, normal)


def _check_equal(silenced: SRNetwork, pruned: SRNetwork) -> None:
    """Raise `RuntimeError` unless both give the same; a wrong group would show here, and ours are right."""
    assert isinstance(pruned.config, PrunableConfig)
    side = 2 * pruned.config.window + 3
    input_BCHW = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, found = (copy.deepcopy(one).double() for one in (silenced, pruned))
    with torch.inference_mode():
        difference = (expected(input_BCHW) - found(input_BCHW)).abs().max().item()
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"the pruned network is {difference:.3g} off the one with these channels silenced")

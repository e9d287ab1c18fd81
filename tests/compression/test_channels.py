"""Networks without some of their channels: the same as with those channels silenced, smaller, and nothing else."""

import random
from typing import Any

import pytest
import torch
import torch_pruning
from torch import nn

from harness.compression import channels, find_groups, narrow, remove_channels, silence_channels
from harness.core.configs import KINDS, BicubicConfig, CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.models import SRNetwork, build_model
from harness.models.literal import word_for_word
from harness.profiling import canonical_macs, count_macs, count_params
from tests.models.test_literal import build as build_camixersr

CAMIXERSRS: dict[str, dict[str, Any]] = {
    "plain": {"channels": 24, "window": 8, "groups": (1, 2)},
    "bare": {"channels": 20, "window": 8, "groups": (1, 1), "offsets": False, "channel_attention": False},
    "scaled": {"channels": 20, "window": 8, "groups": (1, 1), "scaled_attention": True, "spatial_attention": False},
    "residual, no conditions": {
        "channels": 16,
        "window": 4,
        "groups": (2,),
        "image_residual": True,
        "global_condition": False,
        "window_condition": False,
    },
}


def build(name: str) -> SRNetwork:
    if name == "swinir":
        torch.manual_seed(3)
        network = build_model(SwinIRConfig(embed_dim=24, depths=(2, 1), num_heads=3)).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        return network
    return build_camixersr(**CAMIXERSRS[name])


NETWORKS = [*CAMIXERSRS, "swinir"]


def draw(network: SRNetwork, share: float, kinds: tuple[str, ...] | None = None, seed: int = 0) -> dict[str, list[int]]:
    """Units of a share of each group, at random."""
    generator = random.Random(seed)
    assert isinstance(network.config, CAMixerSRConfig | SwinIRConfig)
    return {
        group.name: generator.sample(range(group.units), min(int(share * group.units), group.units - group.least))
        for group in find_groups(network.config, kinds)
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_gives_what_the_silenced_network_gives(name: str) -> None:
    """For each kind alone and for all, twice in a row, in float64; the oracle word for word agrees, too."""
    network = build(name)
    assert isinstance(network.config, CAMixerSRConfig | SwinIRConfig)
    input_BCHW = torch.rand(2, 3, 19, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for kinds in (None, *((kind,) for kind in KINDS[network.config.family])):
        if kinds is not None and not find_groups(network.config, kinds):
            continue  # ablated
        smaller = network
        for share in (0.3, 0.6):
            removed = draw(smaller, share, kinds)
            silenced, smaller = silence_channels(smaller, removed), remove_channels(smaller, removed, checked=False)
            assert isinstance(smaller.config, CAMixerSRConfig | SwinIRConfig)
            with torch.inference_mode():
                expected, found = silenced.double()(input_BCHW), smaller.double()(input_BCHW)
                literal = word_for_word(smaller)(input_BCHW)
            assert (expected - found).abs().max() < 1e-9, kinds
            assert (literal - found).abs().max() < 1e-6, kinds
            smaller = smaller.float()
            assert count_params(smaller.config) == sum(one.numel() for one in smaller.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_silencing_changes_the_output(name: str) -> None:
    """What the comparison rests on: channels that go are not ones that nobody would miss."""
    network = build(name)
    assert isinstance(network.config, CAMixerSRConfig | SwinIRConfig)
    input_BCHW = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = network(input_BCHW)
        for kind in KINDS[network.config.family]:
            if kind != "offsets" and find_groups(network.config, (kind,)):  # offsets move keys by little
                changed = silence_channels(network, draw(network, 0.5, (kind,)))(input_BCHW)
                assert (changed - whole).abs().max() > 1e-5, kind


def test_a_wrong_group_does_not_go_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("plain")
    groups = {group.name: group for group in find_groups(network.config)}  # type: ignore[arg-type]
    value, *others = groups["mixer 1"].members
    turned = (value, *(one._replace(positions_UR=one.positions_UR.flip(0)) for one in others))
    wrong = [group if name != "mixer 1" else group._replace(members=turned) for name, group in groups.items()]
    monkeypatch.setattr(channels, "find_groups", lambda config, kinds=None: wrong)
    with pytest.raises(RuntimeError, match="off the one with these channels silenced"):
        remove_channels(network, {"mixer 1": [0, 1, 2]})


def test_macs_of_every_counter_shrink_with_the_widths() -> None:
    """The mixer's interior really shrinks, by as much as its share of the whole; all four counters say so."""
    network = build_camixersr(channels=24, window=8, groups=(1, 2))
    smaller = remove_channels(network, draw(network, 0.5, ("mixer", "query", "ffn")))
    assert isinstance(smaller.config, CAMixerSRConfig)
    for one in (network, smaller):
        with torch.no_grad():
            share = one.restore(torch.zeros(1, 3, 32, 32)).hard_share_SB.mean(dim=1).tolist()
        record = count_macs(one, torch.zeros(1, 3, 32, 32), config=one.config, attention_share=share)
        assert len(set(record.by_counter.values())) == 1
    assert canonical_macs(smaller.config, (32, 32)) < 0.85 * canonical_macs(network.config, (32, 32))
    mixer = smaller.get_submodule("groups.1.blocks.0.mixer")
    for layer in ("value", "out", "depthwise", "depthwise_dilated"):
        assert 12 in mixer.get_submodule(layer).weight.shape  # type: ignore[operator]


def test_the_old_network_and_the_global_generator_are_left_alone() -> None:
    network = build("plain")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    remove_channels(network, draw(network, 0.5))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_pruned_network_is_trained_on_and_loaded_again() -> None:
    network = remove_channels(build("plain"), draw(build("plain"), 0.4)).train()
    loss = network(torch.rand(2, 3, 16, 16)).square().mean()
    loss.backward()
    assert all(one.grad is not None and torch.isfinite(one.grad).all() for one in network.parameters())
    assert isinstance(network.config, CAMixerSRConfig)
    again = build_model(CAMixerSRConfig.model_validate_json(network.config.canonical_json()))
    again.load_state_dict(network.state_dict())
    routed = network.config.with_routing(RoutingConfig(gamma=0.25))
    assert routed.widths == network.config.widths


def test_what_cannot_go_is_refused() -> None:
    network = build("plain")
    with pytest.raises(UserError, match=r"no channels 'value'; expected some of features, mixer"):
        find_groups(CAMixerSRConfig(), ("value",))
    with pytest.raises(UserError, match="no channels 'mixer 9'"):
        remove_channels(network, {"mixer 9": [0]})
    with pytest.raises(UserError, match="ffn 0 has no channel 24; expected 0 to 23"):
        remove_channels(network, {"ffn 0": [24]})
    with pytest.raises(UserError, match="ffn 0 has 24 channels, of which 24 cannot go: at least 1 must stay"):
        remove_channels(network, {"ffn 0": range(24)})
    with pytest.raises(UserError, match="features has 24 channels, of which 21 cannot go: at least 4"):
        narrow(CAMixerSRConfig(channels=24), {"features": 21})
    assert "bicubic" not in KINDS
    assert BicubicConfig().family == "bicubic"


class Ffn(nn.Module):
    """A block's FFN by modules alone, as a tracer can follow it."""

    def __init__(self, network: SRNetwork):
        super().__init__()
        ffn = network.get_submodule("groups.0.blocks.0.ffn")
        self.expand, self.depthwise, self.project = (
            ffn.get_submodule(name) for name in ("expand", "depthwise", "project")
        )

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        expanded_BCHW = self.depthwise(self.expand(x_BHWC).permute(0, 3, 1, 2))
        first, second = expanded_BCHW.chunk(2, dim=1)
        projected: torch.Tensor = self.project((nn.functional.gelu(first) * second).permute(0, 2, 3, 1))
        return projected


def test_groups_are_those_that_a_tracer_finds_where_it_finds_a_way() -> None:
    """torch-pruning's graph of the gated FFN: both halves of the expansion go with the projection's input."""
    network = build("plain")
    graph = torch_pruning.DependencyGraph().build_dependency(Ffn(network), torch.rand(1, 6, 6, 24))
    root = network.get_submodule("groups.0.blocks.0.ffn.project")
    found = graph.get_pruning_group(root, torch_pruning.prune_linear_in_channels, idxs=[3, 7])
    traced = {
        (id(item.dep.target.module), item.dep.handler.__name__.rsplit("_", 2)[1], tuple(sorted(item.idxs)))
        for item in found
        if isinstance(item.dep.target.module, nn.Linear | nn.Conv2d)
    }
    (group,) = (one for one in find_groups(network.config, ("ffn",)) if one.block == 0)  # type: ignore[arg-type]
    ours = {
        (id(network.get_submodule(one.module)), one.axis, tuple(sorted(one.positions_UR[[3, 7]].flatten().tolist())))
        for one in group.members
    }
    assert ours == traced

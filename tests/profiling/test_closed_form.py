"""The closed form against the published figures and against counts by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.configs import BicubicConfig, CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.core.errors import UserError
from harness.models import build_model
from harness.profiling.closed_form import (
    canonical_macs,
    count_params,
    macs_by_part,
    padded_size,
    paper_flops_tile,
    paper_macs_fvcore,
)


def fixed(gamma: float) -> RoutingConfig:
    return RoutingConfig(policy="fixed", gamma=gamma)


# CAMixerSR, supplementary, tables 1 and 3: GMAdds for an output of 1280×720.
@pytest.mark.parametrize(
    ("scale", "gamma", "published_g"),
    [(4, 1.0, 77.9), (4, 0.5, 53.8), (4, 0.25, 43.0), (2, 1.0, 294.1), (2, 0.5, 205.2), (2, 0.25, 160.7)],
)
def test_tables_1_and_3(scale: int, gamma: float, published_g: float) -> None:
    config = CAMixerSRConfig.model_validate({"scale": scale, "routing": fixed(gamma)})
    tolerance = 0.005 if gamma == 1 else 0.02  # K was drawn at random below γ = 1
    assert paper_macs_fvcore(config) / 1e9 == pytest.approx(published_g, rel=tolerance)


# CAMixerSR, supplementary, table 2: FLOPs (M) of one tile, γ = 1, .5, .25, 0.
@pytest.mark.parametrize(
    ("channels", "published_m"),
    [(36, (894, 652, 532, 410)), (48, (1370, 1030, 858, 686)), (60, (1960, 1490, 1260, 1030))],
)
def test_table_2(channels: int, published_m: tuple[float, ...]) -> None:
    for gamma, published in zip((1.0, 0.5, 0.25, 0.0), published_m, strict=True):
        counted = paper_flops_tile(CAMixerSRConfig(channels=channels, routing=fixed(gamma))) / 1e6
        assert counted == pytest.approx(published, rel=0.01), gamma


def test_swinir_light_for_a_1280x720_output() -> None:
    assert canonical_macs(SwinIRConfig(scale=4), (180, 320)) / 1e9 == pytest.approx(62.71, abs=0.005)
    assert canonical_macs(SwinIRConfig(scale=2), (360, 640)) / 1e9 == pytest.approx(240.9, abs=0.05)


def test_bicubic_and_the_image_residual_cost_no_macs() -> None:
    assert canonical_macs(BicubicConfig(), (10, 10)) == 0
    for config in (CAMixerSRConfig(), SwinIRConfig()):
        residual = config.model_copy(update={"image_residual": True})
        assert canonical_macs(residual, (30, 20)) == canonical_macs(config, (30, 20))


def test_parts_by_hand() -> None:
    """C = 12, M = 8: D = 16, D//4 = 4, D//8 = 2. 20×37 pads to 24×40: 960 pixels, 15 windows; γ = .4 gives K = 6."""
    config = CAMixerSRConfig(channels=12, groups=(1, 2), window=8, scale=3, routing=fixed(0.4))
    assert padded_size((20, 37), 8) == (24, 40)
    assert macs_by_part(config, (20, 37)) == {
        "head": 3 * 9 * 12 * 960,
        "global_predictor": (12 * 8 + 8 * 9 * 2) * 960,
        "predictor_trunk": 3 * 16 * 4 * 960,
        "offsets": 3 * (4 * 2 + 2 * 2) * 960,
        "routing": 3 * (64 * 8 + 8 * 2) * 15,
        "spatial_attention": 3 * 9 * 4 * 960,
        "channel_attention": 3 * 4 * 12,
        "value": 3 * 144 * 960,
        "query_key": 3 * 6 * 2 * 144 * 64,
        "attention": 3 * 6 * 2 * 64 * 64 * 12,
        "mixer_convolutions": 3 * (9 * 12 + 9 * 12 + 144) * 960,
        "ffn": 3 * (12 * 24 + 9 * 24 + 144) * 960,
        "group_tails": 2 * 144 * 960,
        "body_tail": 9 * 144 * 960,
        "tail": 12 * 9 * 27 * 960,
    }


def test_ablations_drop_their_parts() -> None:
    config = CAMixerSRConfig(channels=12, groups=(2,), window=8)
    parts = macs_by_part(config, (8, 16))
    for switch, part in (
        ("offsets", "offsets"),
        ("spatial_attention", "spatial_attention"),
        ("channel_attention", "channel_attention"),
    ):
        ablated = macs_by_part(config.model_copy(update={switch: False}), (8, 16))
        assert ablated == {**parts, part: 0}
    no_global = macs_by_part(config.model_copy(update={"global_condition": False}), (8, 16))
    assert no_global["global_predictor"] == 0
    assert no_global["predictor_trunk"] == 2 * 14 * 3 * 128  # D = 14, D//4 = 3
    unconditioned = config.model_copy(update={"global_condition": False, "window_condition": False})
    assert macs_by_part(unconditioned, (8, 16))["predictor_trunk"] == 2 * 12 * 3 * 128


def test_a_block_scheduled_to_zero_drops_what_attention_alone_needs() -> None:
    config = CAMixerSRConfig(channels=12, groups=(2,), window=8)
    none = config.with_routing(RoutingConfig(policy="schedule", schedule=(0.0, 0.0)))
    one = config.with_routing(RoutingConfig(policy="schedule", schedule=(0.0, 0.5)))
    parts, parts_of_none, parts_of_one = (macs_by_part(c, (16, 16)) for c in (config, none, one))
    for part in ("offsets", "routing", "query_key", "attention"):
        assert parts_of_none[part] == 0
        assert parts_of_one[part] * 2 == parts[part]
    # `fixed` at γ = 0 decides at run time: offsets and routing logits stay.
    assert macs_by_part(config.with_routing(fixed(0.0)), (16, 16))["offsets"] == parts["offsets"]
    # The warp is dead with them, under the convention that counts it.
    warp = 16 * 16 * 4 * 12
    extra = paper_macs_fvcore(one, (64, 64)) - paper_macs_fvcore(none, (64, 64))
    assert extra == canonical_macs(one, (16, 16)) - canonical_macs(none, (16, 16)) + warp


def test_detail_spends_a_static_number_of_windows_without_routing_logits() -> None:
    config = CAMixerSRConfig(channels=12, groups=(3,), window=8)
    fixed_half, detail = (
        macs_by_part(config.with_routing(routing), (16, 24), batch_size=2)
        for routing in (fixed(0.5), RoutingConfig(policy="detail", gamma=0.5, block_weights=(1.0, 0.0, 3.0)))
    )
    assert detail["attention"] == fixed_half["attention"]  # 3 of 6 windows in 3 blocks; 9 of the 18 pairs
    assert detail["query_key"] == fixed_half["query_key"]
    assert detail["routing"] == 0
    assert detail["offsets"] * 3 == fixed_half["offsets"] * 2
    # Blocks of weight 0 cap what can be spent: 6 of 18 pairs.
    one = config.with_routing(RoutingConfig(policy="detail", gamma=0.9, block_weights=(0.0, 0.0, 3.0)))
    assert macs_by_part(one, (16, 24))["attention"] == 6 * 2 * 64**2 * 12


def test_a_realised_share_stands_in_for_the_policy() -> None:
    config = CAMixerSRConfig(channels=12, groups=(2,), window=8, routing=RoutingConfig(policy="threshold"))
    half = canonical_macs(config.with_routing(fixed(0.5)), (16, 16))
    assert canonical_macs(config, (16, 16), attention_share=0.5) == half
    assert canonical_macs(config, (16, 16), attention_share=(0.25, 0.75)) == half
    assert canonical_macs(config.with_routing(RoutingConfig(policy="probability")), (16, 16)) == half
    assert isinstance(canonical_macs(config, (16, 16), attention_share=1 / 3), int)
    # A share that went through float32 still means a whole number of windows: 5 of 15.
    third = canonical_macs(config, (24, 40), attention_share=0.3333333432674408)
    assert third == canonical_macs(config.with_routing(fixed(1 / 3)), (24, 40))


def test_batch_multiplies() -> None:
    for config in (CAMixerSRConfig(channels=12, groups=(1,), window=8), SwinIRConfig()):
        assert canonical_macs(config, (9, 9), batch_size=3) == 3 * canonical_macs(config, (9, 9))


def test_what_makes_no_sense_is_refused() -> None:
    config = CAMixerSRConfig(groups=(2,))
    with pytest.raises(UserError, match="realised attention_share"):
        canonical_macs(config.with_routing(RoutingConfig(policy="threshold")), (16, 16))
    with pytest.raises(UserError, match=r"3 values, but groups \(2,\) make 2"):
        canonical_macs(config, (16, 16), attention_share=(0, 0, 0))
    with pytest.raises(UserError, match="between 0 and 1"):
        canonical_macs(config, (16, 16), attention_share=1.5)
    with pytest.raises(UserError, match="at least 1"):
        canonical_macs(config, (0, 16))
    with pytest.raises(UserError, match="does not route"):
        canonical_macs(SwinIRConfig(), (16, 16), attention_share=0.5)


CAMIXERSRS = st.builds(
    CAMixerSRConfig,
    groups=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    channels=st.integers(8, 48),
    window=st.sampled_from([2, 4, 8, 16]),
    scale=st.sampled_from([2, 3, 4]),
    **{
        name: st.booleans()
        for name in ("offsets", "channel_attention", "spatial_attention", "global_condition", "window_condition")
    },
)
SWINIRS = st.builds(
    SwinIRConfig,
    depths=st.lists(st.integers(1, 2), min_size=1, max_size=2).map(tuple),
    embed_dim=st.integers(1, 6).map(lambda sixth: 6 * sixth),
    num_heads=st.sampled_from([1, 2, 3, 6]),
    window=st.sampled_from([4, 8]),
    scale=st.sampled_from([2, 3, 4]),
)


@settings(max_examples=30, deadline=None)
@given(st.one_of(CAMIXERSRS, SWINIRS))
def test_parameters_are_those_of_the_network(config: CAMixerSRConfig | SwinIRConfig) -> None:
    network = build_model(config)
    assert count_params(config) == sum(parameter.numel() for parameter in network.parameters())
    assert count_params(BicubicConfig(scale=4)) == 0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=24, max_size=24))
def test_parameters_of_pruned_networks_are_those_of_the_network(sizes: list[int]) -> None:
    names = ("mixer", "query", "predictor", "offsets", "ffn")
    blocks = [dict(zip(names, sizes[5 * block :], strict=False)) for block in range(3)]
    layers = [dict(zip(("query", "value", "mlp"), sizes[3 * layer :], strict=False)) for layer in range(4)]
    pruned = (
        CAMixerSRConfig.model_validate({"groups": (1, 2), "channels": sizes[-1] + 3, "widths": blocks}),
        SwinIRConfig.model_validate({"depths": (1, 3), "embed_dim": sizes[-1], "num_heads": 3, "widths": layers}),
    )
    for config in pruned:
        assert count_params(config) == sum(parameter.numel() for parameter in build_model(config).parameters())

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.core.configs import (
    MODEL_CONFIG,
    PAPER_RECIPE,
    BicubicConfig,
    BlockWidths,
    CAMixerSRConfig,
    DataConfig,
    DistillationConfig,
    FrozenConfig,
    LayerWidths,
    RoutingConfig,
    ScheduleConfig,
    SwinIRConfig,
    TrainingConfig,
    look_up,
    nest,
    parse_config,
    parse_model_config,
)
from harness.core.errors import UserError
from harness.core.records import network_id, point_id

UNIT = st.floats(0, 1)
ROUTINGS = st.one_of(
    st.builds(RoutingConfig, policy=st.sampled_from(["fixed", "probability", "threshold"]), gamma=UNIT),
    st.builds(RoutingConfig, policy=st.just("schedule"), schedule=st.tuples(UNIT, UNIT, UNIT)),
    st.builds(RoutingConfig, policy=st.just("detail"), gamma=UNIT, block_weights=st.tuples(UNIT, UNIT, UNIT)),
)
CAMIXERS = st.builds(
    CAMixerSRConfig,
    scale=st.sampled_from([2, 3, 4]),
    groups=st.sampled_from([(3,), (1, 2), (2, 1), (1, 1, 1)]),  # three blocks, as the schedules above
    channels=st.integers(4, 1024),
    window=st.integers(2, 128),
    offsets=st.booleans(),
    image_residual=st.booleans(),
    routing=ROUTINGS,
)
TRAININGS = st.builds(
    TrainingConfig,
    steps=st.integers(1, 10**7),
    learning_rate=st.floats(1e-8, 10),
    grad_clip_norm=st.none() | st.floats(1e-3, 1e3),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    schedule=st.builds(
        ScheduleConfig, milestones=st.lists(UNIT, max_size=5).map(tuple), warmup_steps=st.integers(0, 99)
    ),
    seed=st.integers(0, 2**40),
    distillation=st.none()
    | st.builds(
        DistillationConfig,
        teacher=st.just("teacher"),
        teacher_id=st.none() | st.just("0123456789ab"),
        weight=UNIT,
        features=st.sampled_from(["none", "attention", "affinity"]),
        feature_weight=UNIT,
    ),
)
CONFIGS = [
    CAMixerSRConfig(),
    CAMixerSRConfig(routing=RoutingConfig(policy="schedule", schedule=(0.1,) * 20)),
    SwinIRConfig(),
    BicubicConfig(scale=2),
    TrainingConfig(),
    PAPER_RECIPE,
    DataConfig(),
]


@given(st.one_of(CAMIXERS, TRAININGS, st.builds(SwinIRConfig, scale=st.sampled_from([2, 3, 4]))))
def test_configs_survive_json_with_their_identity(config: FrozenConfig) -> None:
    for again in (
        type(config).model_validate_json(config.model_dump_json()),
        type(config).model_validate(json.loads(config.canonical_json())),
    ):
        assert again == config
        assert again.config_hash() == config.config_hash()


def test_identities_are_pinned() -> None:
    """A stored study is found again by these: they may change only together with a new schema version."""
    assert CAMixerSRConfig().config_hash() == "a4a25117f170"
    assert PAPER_RECIPE.config_hash() == "c7c94f9b0a36"
    assert RoutingConfig().config_hash() == "c6d9b749e6bc"
    assert network_id(CAMixerSRConfig(), TrainingConfig(), DataConfig()) == "106f901489e8"
    assert network_id(BicubicConfig(), None, DataConfig()) == "47363ce4e107"


def test_only_another_task_than_classic_is_written() -> None:
    """Trainings from before there were tasks are classic ones, and keep their identity."""
    assert TrainingConfig.model_validate({"task": "classic"}).canonical_json() == TrainingConfig().canonical_json()
    assert "task" not in TrainingConfig().model_dump()
    odi = TrainingConfig(task="odi")
    assert odi.model_dump()["task"] == "odi"
    assert TrainingConfig.model_validate_json(odi.model_dump_json()) == odi


def test_a_teacher_is_written_only_where_there_is_one_and_known_by_its_identity() -> None:
    assert "distillation" not in TrainingConfig().canonical_json()
    near = DistillationConfig(teacher="here", teacher_id="0123456789ab", weight=0.25)
    assert near.model_dump()["teacher_id"] == "0123456789ab"
    assert "teacher_id" not in DistillationConfig(teacher="here").model_dump()
    far, unknown, other = (
        near.model_copy(update=changes)
        for changes in ({"teacher": "there"}, {"teacher_id": None}, {"teacher_id": "ba9876543210"})
    )

    def identity(distillation: DistillationConfig | None) -> str:
        return network_id(CAMixerSRConfig(), TrainingConfig(distillation=distillation), DataConfig())

    assert identity(near) == identity(far)
    assert len({identity(one) for one in (None, near, unknown, other)}) == 4
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(ValidationError, match="weight"):
            DistillationConfig(teacher="here", weight=weight)


def test_dotted_names_are_settings_of_a_section() -> None:
    base = {"steps": 5, "schedule": {"name": "cosine"}, "distillation": None}
    settings = {"steps": 7, "schedule.factor": 0.5, "distillation.teacher": "here"}
    expected = {"steps": 7, "schedule": {"name": "cosine", "factor": 0.5}, "distillation": {"teacher": "here"}}
    assert nest(settings, base) == expected
    assert base["schedule"] == {"name": "cosine"}
    assert nest({"distillation": None, "distillation.weight": 0.5}) == {"distillation": {"weight": 0.5}}
    assert look_up(expected, "schedule.factor") == 0.5
    assert look_up(expected, "steps") == 7
    assert look_up({"training": {}}, "training.distillation.weight") is None
    assert look_up(None, "weight") is None


def test_canonical_json_is_sorted_and_without_spaces() -> None:
    assert RoutingConfig().canonical_json() == '{"gamma":0.5,"policy":"fixed","schedule":null}'
    assert DataConfig(train="größe").canonical_json() == (
        '{"data_dir":null,"train":"gr\\u00f6\\u00dfe","validation":"demo"}'
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_configs_are_frozen_and_refuse_unknown_keys(config: FrozenConfig) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, next(iter(type(config).model_fields)), 1)
    with pytest.raises(UserError, match=r"^here: chanels: unknown key$"):
        parse_config(type(config), {**config.model_dump(), "chanels": 3}, "here")


def test_a_schedule_has_one_gamma_for_each_block() -> None:
    schedule = RoutingConfig(policy="schedule", schedule=(0.5, 0.5, 0.5))
    assert CAMixerSRConfig(groups=(1, 2), routing=schedule).num_blocks == 3
    with pytest.raises(ValidationError, match=r"3 values, but groups \(2, 2\) have 4 blocks"):
        CAMixerSRConfig(groups=(2, 2), routing=schedule)
    with pytest.raises(ValidationError, match="3 values, but groups"):
        CAMixerSRConfig(groups=(2, 2)).with_routing(schedule)


def test_detail_has_one_weight_for_each_block() -> None:
    routing = RoutingConfig(policy="detail", block_weights=(2.0, 0.0, 0.5))
    assert CAMixerSRConfig(groups=(1, 2), routing=routing).routing.never_attends(1)
    with pytest.raises(ValidationError, match=r"routing\.block_weights has 3 values, but groups .2, 2. have 4 blocks"):
        CAMixerSRConfig(groups=(2, 2), routing=routing)
    with pytest.raises(ValidationError, match="goes with policy 'detail', and only with it"):
        RoutingConfig(policy="detail")
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValidationError):
            RoutingConfig(policy="detail", block_weights=(wrong,))


@pytest.mark.parametrize("values", [{"policy": "schedule"}, {"policy": "fixed", "schedule": (0.5,)}])
def test_a_schedule_goes_with_its_policy_alone(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="goes with policy 'schedule', and only with it"):
        RoutingConfig(**values)


@pytest.mark.parametrize(
    ("config_type", "values", "message"),
    [
        (RoutingConfig, {"gamma": 1.01}, r"gamma: .*less than or equal to 1 \(got 1.01\)"),
        (RoutingConfig, {"gamma": math.nan}, "gamma: "),
        (RoutingConfig, {"policy": "random"}, r"policy: .*'fixed', 'probability', 'threshold', 'schedule' or 'detail'"),
        (CAMixerSRConfig, {"scale": 5}, r"scale: .*\(got 5\)"),
        (CAMixerSRConfig, {"groups": ()}, "groups: .*at least 1 item"),
        (CAMixerSRConfig, {"groups": (4, 0)}, r"groups\.1: .*greater than or equal to 1 \(got 0\)"),
        (CAMixerSRConfig, {"channels": 3}, "channels: "),
        (CAMixerSRConfig, {"routing": {"gama": 1}}, r"routing\.gama: unknown key"),
        (SwinIRConfig, {"embed_dim": 50}, "value: embed_dim 50 is not a multiple of num_heads 6$"),
        (TrainingConfig, {"betas": (0.9, 1.0)}, r"betas\.1: .*less than 1 \(got 1.0\)"),
        (TrainingConfig, {"steps": 0}, r"steps: .*\(got 0\)"),
        (TrainingConfig, {"learning_rate": 0}, "learning_rate: "),
        (TrainingConfig, {"ema_decay": 1}, "ema_decay: "),
        (TrainingConfig, {"precision": "fp8"}, "precision: "),
    ],
)
def test_values_out_of_range_are_named_on_one_line(
    config_type: type[FrozenConfig], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"space.yaml: {message}") as caught:
        parse_config(config_type, values, "space.yaml")
    assert "\n" not in str(caught.value)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(UserError) as caught:
        parse_config(TrainingConfig, {"steps": list(range(1000))}, "x")
    assert str(caught.value).endswith("…)")
    assert len(str(caught.value)) < 250


def test_families_are_told_apart_by_their_key() -> None:
    for config in (CAMixerSRConfig(), SwinIRConfig(scale=2), BicubicConfig()):
        assert parse_model_config(config.model_dump(), "here") == config
        assert MODEL_CONFIG.validate_json(config.model_dump_json()) == config
    with pytest.raises(UserError, match=r"here: .*'camixersr', 'swinir', 'bicubic'"):
        parse_model_config({"family": "edsr"}, "here")
    with pytest.raises(UserError, match="here: "):
        parse_model_config({"scale": 2}, "here")


def test_labels_name_the_network() -> None:
    assert CAMixerSRConfig(channels=24, groups=(1, 1)).label() == "C24 groups 1-1 M16"
    assert SwinIRConfig(scale=3).label() == "SwinIR-light"
    assert SwinIRConfig(depths=(2, 2)).label() == "SwinIR C60 depths 2-2"
    assert BicubicConfig().label() == "bicubic"
    assert [RoutingConfig(gamma=0.25).label(), RoutingConfig(policy="threshold").label()] == [
        "fixed γ=0.25",
        "threshold",
    ]


def test_only_as_many_pixels_as_the_paper_trained_on_are_a_full_recipe() -> None:
    assert PAPER_RECIPE.hr_pixels == 500_000 * 64 * 256 * 256
    assert PAPER_RECIPE.is_full_recipe
    assert PAPER_RECIPE.model_copy(update={"batch_size": 128, "steps": 250_000}).is_full_recipe
    assert not PAPER_RECIPE.model_copy(update={"steps": 499_999}).is_full_recipe


# Identity ------------------------------------------------------------------------------------------------------------


BLOCK, LAYER = BlockWidths(mixer=9, query=8, predictor=3, offsets=2, ffn=7), LayerWidths(query=3, value=2, mlp=9)


def other_value(value: Any, name: str, part: FrozenConfig) -> Any:
    """A valid value of a field that is not the one it has."""
    special: dict[str, Any] = {
        "scale": 2,
        "window": 4,
        "embed_dim": 30,
        "num_heads": 5,
        "precision": "bf16",
        "schedule": {"name": "constant"},
        "betas": (0.8, 0.9),
        "data_dir": "elsewhere",
        "groups": (1, 2),
        "depths": (1,),
        "grad_clip_norm": None,
        "ema_decay": 0.5,
        "task": "odi",
        "distillation": {"teacher": "teacher"},
        "train": "set5",
        "validation": "set5",
        "widths": (BLOCK,) * 20 if isinstance(part, CAMixerSRConfig) else (LAYER,) * 24,
    }
    if name in special:
        return special[name]
    return not value if isinstance(value, bool) else value / 2 if isinstance(value, float) else value + 1


def test_a_networks_identity_ignores_routing_and_checkpoint_interval_and_nothing_else() -> None:
    parts: tuple[FrozenConfig, FrozenConfig, FrozenConfig]
    for model, ignored in ((CAMixerSRConfig(), {"routing"}), (SwinIRConfig(), set[str]())):
        parts = (model, TrainingConfig(), DataConfig())
        original = network_id(model, TrainingConfig(), DataConfig())
        seen = {original}
        count = 1
        for index, part in enumerate(parts):
            for name in type(part).model_fields:
                if name in {"family", "routing", "checkpoint_interval"}:
                    continue
                values = {**part.model_dump(), name: other_value(getattr(part, name), name, part)}
                changed = [*parts]
                changed[index] = type(part).model_validate(values)
                seen.add(network_id(*changed))  # type: ignore[arg-type]
                count += 1
        assert len(seen) == count
        often = TrainingConfig(checkpoint_interval=7)
        assert network_id(model, often, DataConfig()) == original
        if ignored:
            threshold = RoutingConfig(policy="threshold")
            assert network_id(model.with_routing(threshold), TrainingConfig(), DataConfig()) == original  # type: ignore[union-attr]


def test_points_of_a_network_have_different_identities() -> None:
    routings = [
        *(RoutingConfig(gamma=gamma) for gamma in (0.0, 0.05, 0.5, 1.0)),
        RoutingConfig(policy="probability"),
        RoutingConfig(policy="threshold"),
        RoutingConfig(policy="schedule", schedule=(0.5,)),
        RoutingConfig(policy="schedule", schedule=(0.5, 0.5)),
        RoutingConfig(policy="detail", block_weights=(0.5,)),
        RoutingConfig(policy="detail", block_weights=(0.5, 0.5)),
        RoutingConfig(policy="detail", block_weights=(0.5, 0.5), gamma=0.25),
    ]
    assert len({point_id("abc", routing) for routing in (*routings, None)}) == 12
    assert point_id("abc", RoutingConfig(gamma=0.05)) == "abc/fixed-0.05"
    assert point_id("abc", RoutingConfig(policy="threshold", gamma=0.1)) == "abc/threshold"  # γ is ignored by it
    assert point_id("abc", None) == "abc"


def test_widths_are_one_for_each_block() -> None:
    with pytest.raises(ValidationError, match=r"widths has 2 values, but groups \(1, 2\) have 3 blocks"):
        CAMixerSRConfig(groups=(1, 2), widths=(BLOCK, BLOCK))
    with pytest.raises(ValidationError, match=r"widths has 1 values, but depths \(2,\) have 2 layers"):
        SwinIRConfig(depths=(2,), widths=(LAYER,))


def test_configs_of_before_widths_keep_their_identity() -> None:
    assert (CAMixerSRConfig().config_hash(), SwinIRConfig().config_hash()) == ("a4a25117f170", "08e1860bfd85")
    pruned = CAMixerSRConfig(groups=(1,), widths=(BLOCK,))
    assert CAMixerSRConfig.model_validate_json(pruned.canonical_json()) == pruned
    assert pruned.label() == "C60 groups 1 M16 pruned"

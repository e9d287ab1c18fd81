"""What is learnt from a teacher: distances by hand, the loss written out, and runs with and without one."""

import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.configs import (
    CAMixerSRConfig,
    DistillationConfig,
    RoutingConfig,
    ScheduleConfig,
    SwinIRConfig,
    TrainingConfig,
)
from harness.core.errors import UserError
from harness.core.seeding import derive_seed
from harness.models import SRNetwork, keep_features
from harness.models.padding import pad_to_multiple
from harness.models.swinir import SwinIR
from harness.training import TrainingInterruptedError, train
from harness.training.checkpoint import load_checkpoint
from harness.training.distillation import affinity_distance, attention_distance, feature_loss, match_depths
from tests.tiny_pairs import VALIDATION, tiny_pairs
from tests.training.runs import SHORT, SMALL, SMALL_SWINIR, build, checkpoint_at, run, same_weights, sampler, stop_after

WIDE = CAMixerSRConfig(
    channels=12, groups=(1, 1), window=8, scale=2, routing=RoutingConfig(policy="probability", gamma=0.6)
)


def taught(config: TrainingConfig = SHORT, **changes: Any) -> TrainingConfig:
    return config.model_copy(update={"distillation": DistillationConfig(teacher="teacher", **changes)})


def make_teacher(model: CAMixerSRConfig | SwinIRConfig = WIDE) -> SRNetwork:
    """A network whose weights are all other than those of any student."""
    network = build(model, seed=5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
    return network


# Distances of features -----------------------------------------------------------------------------------------------


def column(*places: list[float]) -> Tensor:
    """Features of an image that is one place wide."""
    return torch.tensor(places)[None, :, None]


def test_attention_is_the_squared_distance_of_unit_maps_of_energy() -> None:
    own, other = column([3.0, 3.0], [4.0, 4.0]), column([2.0], [0.0])  # energies 9 and 16; 4 and 0
    expected = (9 / math.sqrt(337) - 1) ** 2 + (16 / math.sqrt(337)) ** 2
    assert attention_distance(own, other).item() == pytest.approx(expected)
    assert attention_distance(own, 7 * own).item() == pytest.approx(0, abs=1e-12)
    assert attention_distance(column([1.0], [0.0]), column([0.0], [1.0])).item() == pytest.approx(2)
    both = attention_distance(
        torch.cat((own, own[..., :1].repeat(1, 1, 1, 2))), torch.cat((own, other.repeat(1, 1, 1, 2)))
    )
    assert both.item() == pytest.approx(expected / 2)  # a mean over images


def test_affinity_is_the_difference_of_cosines_between_places() -> None:
    apart, alike = column([2.0, 0.0], [0.0, 5.0]), column([1.0, 1.0, 1.0], [3.0, 3.0, 3.0])
    assert affinity_distance(apart, alike).item() == pytest.approx(0.5)  # two of the four pairs: 0 and 1
    assert affinity_distance(apart, column([0.0, 1.0], [1.0, 0.0])).item() == pytest.approx(0)
    diagonal = column([1.0, 0.0], [1.0, 1.0])
    assert affinity_distance(diagonal, alike).item() == pytest.approx(2 * (1 - math.sqrt(0.5)) / 4)
    assert affinity_distance(column([1.0], [1.0]), column([1.0], [-1.0])).item() == pytest.approx(1)


def test_affinities_are_those_between_places_of_one_tile() -> None:
    """17 places: those of the first 16 are compared with each other, the last one with itself alone."""
    own, other = torch.ones(1, 17, 1, 1), torch.ones(1, 17, 1, 1)
    other[:, 16] = -1
    assert affinity_distance(own, other).item() == 0
    other[:, 15] = -1  # 2·15 of 16² + 1 pairs are off by 2
    assert affinity_distance(own, other).item() == pytest.approx(2 * 15 * 2 / 257)


def test_groups_are_compared_at_the_same_share_of_the_depth() -> None:
    assert match_depths(1, 4) == (3,)
    assert match_depths(2, 4) == (1, 3)
    assert match_depths(4, 4) == (0, 1, 2, 3)
    assert match_depths(3, 4) == (0, 2, 3)
    assert match_depths(4, 2) == (0, 0, 0, 1)
    assert match_depths(4, 1) == (0, 0, 0, 0)


def test_padding_of_either_network_counts_for_nothing() -> None:
    own, other = torch.rand(2, 12, 16, 3), torch.rand(2, 16, 16, 5)
    padded = torch.cat((own, 1e3 * torch.rand(2, 12, 16, 3)), dim=2)
    for kind in ("attention", "affinity"):
        found = feature_loss([own, padded], [other], (12, 13), kind)
        expected = feature_loss([own[:, :, :13]], [other[:, :12, :13]], (12, 13), kind)
        assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("model", [SMALL, WIDE, SMALL_SWINIR], ids=["camixersr", "padded", "swinir"])
@pytest.mark.parametrize("is_literal", [False, True], ids=["kernels", "operators"])
def test_networks_keep_the_features_of_each_group_and_give_the_same_images(
    model: CAMixerSRConfig | SwinIRConfig, is_literal: bool
) -> None:
    """The last map, through what comes after the groups, is the image."""
    network, low = make_teacher(model).eval(), torch.rand(2, 3, 12, 20)
    network.is_literal = is_literal
    with torch.no_grad():
        plain = network(low)
        with keep_features(network) as features:
            kept = network(low)
        with keep_features(network, wanted=False) as none:
            assert torch.equal(network(low), plain)
    assert none == []
    assert network.features is None
    assert torch.allclose(kept, plain, atol=1e-5)
    is_swinir = isinstance(network, SwinIR)
    side = model.window
    width = model.embed_dim if isinstance(model, SwinIRConfig) else model.channels
    groups = model.depths if isinstance(model, SwinIRConfig) else model.groups
    padded_size = [-(-length // side) * side for length in (12, 20)]
    assert [tuple(one.shape) for one in features] == [(2, *padded_size, width)] * len(groups)
    parts: Any = network
    with torch.no_grad():
        shift = parts.mean_1311 if is_swinir else 0
        deep = parts.norm(features[-1]) if is_swinir else features[-1]
        body = parts.body_tail(deep.permute(0, 3, 1, 2)) + parts.head(pad_to_multiple(low - shift, side))
        image = F.pixel_shuffle(parts.tail(body), 2)[..., :24, :40] + shift
    assert torch.allclose(image, plain, atol=1e-4)


# The loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["none", "attention", "affinity"])
def test_steps_are_shares_of_both_distances_beside_features_and_ratio_loss(features: str) -> None:
    """Two steps written out again with torch's own parts."""
    changes = {"steps": 2, "grad_clip_norm": None, "weight_decay": 0.1, "schedule": ScheduleConfig(name="constant")}
    config = taught(SHORT.model_copy(update=changes), weight=0.3, features=features, feature_weight=0.7)
    _, record, _ = run(config, teacher=make_teacher())
    network, batches, teacher = build().train(), sampler(config), make_teacher().eval()
    generator = torch.Generator().manual_seed(derive_seed(0, "routing noise"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=config.betas, weight_decay=0.1)
    for step in range(2):
        low, high, _, _ = batches.next_batch()
        with torch.no_grad(), keep_features(teacher) as maps:
            target = teacher(low)
        with keep_features(network) as own_maps:
            restored = network.restore(low, generator=generator)
        l1, distance = ((restored.image_BCHW - other).abs().mean() for other in (high, target))
        expected = {"l1_loss": l1, "distillation_loss": distance}
        loss = 0.7 * l1 + 0.3 * distance + (restored.hard_share_SB.mean() - 0.5) ** 2
        if features != "none":
            measure = attention_distance if features == "attention" else affinity_distance
            expected["feature_loss"] = measure(own_maps[0][:, :12, :12], maps[-1][:, :12, :12])
            loss = loss + 0.7 * expected["feature_loss"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, value in {**expected, "loss": loss}.items():
            assert record.curves[name][step] == pytest.approx(value.item(), rel=1e-4), name
    assert ("feature_loss" in record.curves) == (features != "none")


def test_a_share_of_all_leaves_nothing_to_the_images() -> None:
    _, record, _ = run(taught(weight=1.0, features="none"), model=SMALL_SWINIR, teacher=make_teacher())
    assert record.curves["loss"] == record.curves["distillation_loss"]
    assert record.curves["l1_loss"] != record.curves["loss"]  # it is recorded all the same


def test_panoramas_are_compared_with_the_teachers_by_latitude_too() -> None:
    config = taught(SHORT.model_copy(update={"steps": 1, "task": "odi"}), weight=1.0)
    _, record, _ = run(config, model=SMALL_SWINIR, teacher=make_teacher())
    low, _, first_rows, image_rows = sampler(config).next_batch()
    with torch.no_grad():
        errors_BH = (build(SMALL_SWINIR).train()(low) - make_teacher().eval()(low)).abs().mean(dim=(1, 3))
    rows_BH = first_rows[:, None] + torch.arange(24) + 0.5 - image_rows[:, None] / 2
    expected = (errors_BH * torch.cos(rows_BH * math.pi / image_rows[:, None])).mean()
    assert record.curves["distillation_loss"][0] == pytest.approx(expected.item(), rel=1e-4)
    assert "ws_l1_loss" in record.curves


@pytest.mark.parametrize("changes", [{"features": "none"}, {"features": "affinity", "feature_weight": 0.0}])
def test_without_a_share_training_is_the_same_to_the_bit(changes: dict[str, Any]) -> None:
    free, free_record, _ = run()
    found, record, _ = run(taught(weight=0.0, **changes), teacher=make_teacher())
    assert same_weights(free, found)
    assert record.curves == free_record.curves


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_teacher_is_left_alone_and_follows_its_own_routing(precision: str) -> None:
    teacher, before = make_teacher(), make_teacher().eval()
    seen: list[Tensor] = []
    restore = teacher.restore

    def look(low_BCHW: Tensor) -> Any:
        assert not teacher.training
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
        restored = restore(low_BCHW)
        seen.append(restored.hard_share_SB)
        with torch.no_grad():
            assert torch.equal(restored.hard_share_SB, before.restore(low_BCHW).hard_share_SB)
        return restored

    teacher.restore = look  # type: ignore[method-assign, assignment]
    run(taught(SHORT.model_copy(update={"precision": precision}), features="attention"), teacher=teacher)
    assert len(seen) == SHORT.steps
    assert same_weights(teacher, before)
    assert all(one.grad is None and not one.requires_grad for one in teacher.parameters())
    assert not teacher.training


def test_a_teacher_of_another_scale_is_refused() -> None:
    teacher = make_teacher(WIDE.model_copy(update={"scale": 4}))
    with pytest.raises(
        UserError, match="teacher teacher is of scale 4, but the network that learns from it of 2"
    ) as caught:
        run(taught(), teacher=teacher)
    assert "\n" not in str(caught.value)


def test_a_student_is_drawn_towards_its_teacher() -> None:
    """On photographs that it was not trained on; the teacher sees everything a little too bright."""
    model = SMALL.model_copy(update={"image_residual": True})
    teacher = build(WIDE.model_copy(update={"image_residual": True}), seed=5)
    with torch.no_grad():
        teacher.tail.bias.add_(0.1)  # type: ignore[union-attr, operator]
    config = SHORT.model_copy(update={"steps": 60, "learning_rate": 4e-3})
    followers = {
        weight: run(
            taught(config, weight=weight, features="none") if weight else config,
            model=model,
            teacher=teacher if weight else None,
        )
        for weight in (0.0, 0.3, 0.9)
    }
    batch = sampler(SHORT.model_copy(update={"batch_size": 16}), tiny_pairs(VALIDATION, 2)).next_batch()
    with torch.no_grad():
        target = teacher(batch.low_BCHW)
        distances = {
            weight: (network(batch.low_BCHW) - target).abs().mean().item()
            for weight, (network, _, _) in followers.items()
        }
    assert distances[0.9] < distances[0.3] < distances[0.0]
    assert distances[0.9] < 0.5 * distances[0.0]
    curve = followers[0.9][1].curves["distillation_loss"]
    assert sum(curve[-10:]) < 0.5 * sum(curve[:10])


@pytest.mark.parametrize("features", ["attention", "affinity"])
def test_features_come_to_be_like_the_teachers(features: str) -> None:
    config = taught(SHORT.model_copy(update={"steps": 60}), weight=0.0, features=features, feature_weight=10.0)
    curve = run(config, teacher=make_teacher())[1].curves["feature_loss"]
    assert sum(curve[-10:]) < 0.8 * sum(curve[:10])


# Interruptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {}),
        ({"features": "none"}, {}),
        ({"features": "affinity", "weight": 0.0}, {}),
        ({"features": "attention"}, {"precision": "bf16"}),
    ],
    ids=str,
)
def test_a_run_stopped_and_resumed_gives_the_same_bits(
    tmp_path: Path, changes: dict[str, Any], more: dict[str, Any]
) -> None:
    config = taught(SHORT.model_copy(update=more), **changes)
    whole, whole_record, _ = run(config, teacher=make_teacher())
    for part in (1, 5):
        with pytest.raises(TrainingInterruptedError):
            run(config, teacher=make_teacher(), checkpoint=tmp_path / "run.pt", should_stop=stop_after(part))
    state = load_checkpoint(checkpoint_at(tmp_path / "run.pt"), "run")
    assert state is not None
    assert state["network"].keys() == whole.state_dict().keys()  # nothing of the teacher is kept
    resumed, record, _ = run(config, teacher=make_teacher(), checkpoint=tmp_path / "run.pt")
    assert same_weights(whole, resumed)
    assert record.curves == whole_record.curves
    assert record.resumed_from == (1, 6)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    script = f"""
        import os, signal, torch
        from pathlib import Path
        from tests.training.runs import run
        from tests.training.test_distillation import make_teacher, taught

        torch.set_num_threads(1)
        run(
            taught(features="attention"),
            teacher=make_teacher(),
            checkpoint=Path({str(checkpoint)!r}),
            progress=lambda state: os.kill(os.getpid(), signal.SIGKILL) if state.step == 7 else None,
        )
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL
    whole, whole_record, _ = run(taught(features="attention"), teacher=make_teacher())
    resumed, record, _ = run(taught(features="attention"), teacher=make_teacher(), checkpoint=checkpoint)
    assert record.resumed_from == (4,)
    assert same_weights(whole, resumed)
    assert record.curves == whole_record.curves


def test_a_teacher_goes_with_a_config_that_asks_for_one() -> None:
    for config, teacher in ((SHORT, make_teacher()), (taught(), None)):
        with pytest.raises(AssertionError):
            train(build(), sampler(), config, teacher=teacher)

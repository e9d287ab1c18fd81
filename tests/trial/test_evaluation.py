import math

import numpy as np
import pytest
import torch

from harness.core.configs import BicubicConfig, CAMixerSRConfig, RoutingConfig, SwinIRConfig
from harness.core.errors import TrialFailedError, UserError
from harness.core.records import EvaluationRecord
from harness.data import ImagePair, PairedDataset, to_tensor
from harness.metrics import get_protocol, score, to_uint8
from harness.models import SRNetwork, restore_panorama, restore_tiled
from harness.trial import build_seeded, evaluate, routed, to_image
from tests.tiny_pairs import VALIDATION, cut, tiny_pairs
from tests.trial.studies import ROUTINGS, SMALL

LIGHT = get_protocol("light")


def network(routing: RoutingConfig | None = None, config: CAMixerSRConfig = SMALL) -> SRNetwork:
    return build_seeded(config.with_routing(routing or RoutingConfig()), seed=1).eval()


def test_tensors_hold_the_image_in_0_to_1_and_give_it_back() -> None:
    image_HWC = cut("coffee", 20, 30)
    tensor = to_tensor(image_HWC)
    assert (tensor.shape, tensor.dtype) == ((1, 3, 20, 30), torch.float32)
    assert tensor[0, 2, 7, 11].item() == np.float32(image_HWC[7, 11, 2]) / np.float32(255)
    assert np.array_equal(to_image(tensor), image_HWC)
    assert to_image(torch.tensor([-0.5, 0.5 / 255, 1.5]).view(1, 3, 1, 1)).ravel().tolist() == [0, 1, 255]


@pytest.mark.parametrize("routing", ROUTINGS, ids=lambda routing: routing.label())
def test_scores_are_those_of_each_image_and_their_mean(routing: RoutingConfig) -> None:
    dataset = tiny_pairs(VALIDATION, 2)
    record = evaluate(network(routing), dataset, LIGHT)
    expected = []
    for pair, image in zip(dataset, record.images, strict=True):
        with torch.no_grad():
            output = network(routing)(to_tensor(pair.lr_HWC))[0].permute(1, 2, 0).numpy()
        result = score(to_uint8(output), pair.hr_HWC, LIGHT, 2)
        assert (image.name, image.psnr_db, image.ssim) == (pair.name, result.psnr_db, result.ssim)
        expected.append((result.psnr_db, result.ssim))
    assert (record.psnr_db, record.ssim) == pytest.approx(tuple(np.mean(expected, axis=0)))
    assert (record.protocol, record.scale, record.dataset) == ("light", 2, "tiny")
    assert record.dataset_hash == dataset.content_hash


def test_shares_weigh_each_image_by_its_windows() -> None:
    """At γ = 0.5, 48×64 and 40×40 at ×2 are 24×32 and 20×20 pixels: 6·8 = 48 and 5·5 = 25 windows of 4×4."""
    record = evaluate(network(RoutingConfig(gamma=0.5)), tiny_pairs(VALIDATION, 2), LIGHT)
    assert [image.attention_share for image in record.images] == pytest.approx([24 / 48, 12 / 25])
    assert record.attention_share == pytest.approx((24 + 12) / (48 + 25), rel=1e-6)
    assert record.attention_share_per_block == pytest.approx([36 / 73, 36 / 73], rel=1e-6)


def test_shares_are_per_block_and_windows_are_of_the_padded_image() -> None:
    schedule = RoutingConfig(policy="schedule", schedule=(1.0, 0.25))
    dataset = tiny_pairs((("coffee", 44, 60), ("rocket", 42, 38)), 2)  # 22×30 → 6·8 windows, 21×19 → 6·5
    record = evaluate(network(schedule), dataset, LIGHT)
    hard = [48 + 30, math.floor(0.25 * 48) + math.floor(0.25 * 30)]
    assert record.attention_share_per_block == pytest.approx([hard[0] / 78, hard[1] / 78], rel=1e-6)
    assert record.attention_share == pytest.approx(sum(hard) / (2 * 78), rel=1e-6)


def test_shares_of_tiled_images_count_the_windows_of_every_tile() -> None:
    """With tiles of 16 overlapping by 4, 24×32 needs 2·3 tiles of 4·4 windows, 20×12 needs 2·1 tiles of 4·3."""
    routing = RoutingConfig(gamma=0.3)  # floor(.3·16) = 4 of 16, floor(.3·12) = 3 of 12
    record = evaluate(
        network(routing), tiny_pairs((("coffee", 48, 64), ("rocket", 40, 24)), 2), LIGHT, tile=16, overlap=4
    )
    assert [image.attention_share for image in record.images] == pytest.approx([4 / 16, 3 / 12])
    assert record.attention_share == pytest.approx(0.25, rel=1e-6)
    routing = RoutingConfig(gamma=0.32)  # 5 of 16, 3 of 12
    record = evaluate(
        network(routing), tiny_pairs((("coffee", 48, 64), ("rocket", 40, 24)), 2), LIGHT, tile=16, overlap=4
    )
    assert record.attention_share == pytest.approx((6 * 5 + 2 * 3) / (6 * 16 + 2 * 12), rel=1e-6)


@pytest.mark.parametrize(
    "config", [BicubicConfig(scale=2), SwinIRConfig(embed_dim=12, depths=(1,), num_heads=2, window=4, scale=2)]
)
def test_networks_that_do_not_route_have_no_share(config: BicubicConfig | SwinIRConfig) -> None:
    record = evaluate(build_seeded(config, 0), tiny_pairs(VALIDATION, 2), LIGHT)
    assert (record.attention_share, record.attention_share_per_block) == (None, None)
    assert {image.attention_share for image in record.images} == {None}
    assert math.isfinite(record.psnr_db)


def test_protocol_large_restores_in_its_tiles() -> None:
    large = get_protocol("large")
    dataset = tiny_pairs((("coffee", 200, 160),), 2)
    record = evaluate(network(), dataset, large)
    with torch.inference_mode():
        tiled = restore_tiled(network(), to_tensor(dataset[0].lr_HWC), tile=64, overlap=4).image_BCHW
        whole = network()(to_tensor(dataset[0].lr_HWC))
    assert record.psnr_db == score(to_image(tiled), dataset[0].hr_HWC, large, 2).psnr_db
    assert record.psnr_db != score(to_image(whole), dataset[0].hr_HWC, large, 2).psnr_db
    assert evaluate(network(), dataset, large, tile=100).psnr_db == pytest.approx(
        score(to_image(whole), dataset[0].hr_HWC, large, 2).psnr_db
    )


def test_a_perfect_output_scores_infinity() -> None:
    """A flat image is what bicubic restores exactly."""
    flat = PairedDataset(
        "flat", 2, [ImagePair("flat", np.full((32, 32, 3), 77, np.uint8), np.full((16, 16, 3), 77, np.uint8))]
    )
    record = evaluate(build_seeded(BicubicConfig(scale=2), 0), flat, LIGHT)
    assert (record.psnr_db, record.ssim) == (math.inf, 1.0)
    assert EvaluationRecord.model_validate_json(record.model_dump_json()) == record


def test_another_scale_is_refused() -> None:
    with pytest.raises(UserError, match="tiny is of scale ×4, the network of ×2"):
        evaluate(network(), tiny_pairs(VALIDATION, 4), LIGHT)


def test_broken_weights_fail_and_give_no_number() -> None:
    dataset = tiny_pairs(VALIDATION, 2)
    for routing in ROUTINGS:
        broken = network(routing)
        with torch.no_grad():
            for parameter in broken.parameters():
                parameter.fill_(math.nan)
        with pytest.raises(TrialFailedError, match="the output for coffee is not finite"):
            evaluate(broken, dataset, LIGHT)


def test_broken_offsets_fail_although_grid_sample_hides_them() -> None:
    broken = network(RoutingConfig(gamma=0.5))
    with torch.no_grad():
        for name, parameter in broken.named_parameters():
            if "offsets_out" in name:
                parameter.fill_(math.nan)
    with pytest.raises(TrialFailedError, match="not finite"):
        evaluate(broken, tiny_pairs(VALIDATION, 2), LIGHT)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_also_after_a_failure(training: bool) -> None:
    kept = network().train(training)
    evaluate(kept, tiny_pairs(VALIDATION, 2), LIGHT)
    with torch.no_grad():
        next(kept.parameters()).fill_(math.nan)
    with pytest.raises(TrialFailedError):
        evaluate(kept, tiny_pairs(VALIDATION, 2), LIGHT)
    assert {module.training for module in kept.modules()} == {training}


def test_evaluation_is_deterministic_and_touches_no_global_generator() -> None:
    state = torch.get_rng_state()
    first, second = (evaluate(network().train(), tiny_pairs(VALIDATION, 2), LIGHT) for _ in range(2))
    assert first.model_copy(update={"seconds": 0.0}) == second.model_copy(update={"seconds": 0.0})
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_counts_images() -> None:
    told: list[tuple[int, int]] = []
    evaluate(network(), tiny_pairs(VALIDATION, 2), LIGHT, progress=lambda *state: told.append(state))
    assert told == [(1, 2), (2, 2)]


def test_progress_counts_the_tiles_of_all_images() -> None:
    """At ×2, 24×32 needs 2·3 tiles of 16 overlapping by 4, and 20×20 needs 2·2."""
    told: list[tuple[int, int]] = []
    evaluate(
        network(), tiny_pairs(VALIDATION, 2), LIGHT, tile=16, overlap=4, progress=lambda *state: told.append(state)
    )
    assert told == [(done, 10) for done in range(1, 11)]


def test_nonsense_tiles_are_refused() -> None:
    with pytest.raises(UserError, match="tile 8 with overlap 8"):
        evaluate(network(), tiny_pairs(VALIDATION, 2), LIGHT, tile=8, overlap=8)


def test_panoramas_are_continued_around_their_seam_and_scored_by_latitude() -> None:
    odi = get_protocol("odi")
    dataset = tiny_pairs((("coffee", 48, 96),), 2)
    record = evaluate(network(), dataset, odi)
    with torch.inference_mode():
        restored = restore_panorama(network(), to_tensor(dataset[0].lr_HWC), context=odi.wrap)
    output_HWC, target_HWC = to_image(restored.image_BCHW), dataset[0].hr_HWC
    assert record.psnr_db == score(output_HWC, target_HWC, odi, 2).psnr_db
    squares_H = ((output_HWC.astype(float) - target_HWC) ** 2).mean(axis=(1, 2))
    weights_H = np.cos((np.arange(48) + 0.5 - 24) * np.pi / 48)
    mse = (squares_H * weights_H).sum() / weights_H.sum()
    assert record.psnr_db == pytest.approx(10 * math.log10(255**2 / mse))
    assert (record.protocol, record.wrap, record.tile, record.overlap) == ("odi", 32, None, 0)
    plain = evaluate(network(), dataset, odi, wrap=0)
    assert (plain.wrap, plain.seam_factor, plain.seam_note) == (0, 1, None)
    assert plain.psnr_db != record.psnr_db


def test_shares_of_panoramas_count_the_windows_of_the_continued_image() -> None:
    """24×48 continued by 32 on either side is 24×112 pixels: 6·28 windows of 4×4; 20×20 becomes 20×84: 5·21."""
    dataset = tiny_pairs((("coffee", 48, 96), ("rocket", 40, 40)), 2)
    record = evaluate(network(RoutingConfig(gamma=0.3)), dataset, get_protocol("odi"))
    hard = [math.floor(0.3 * 168), math.floor(0.3 * 105)]
    assert record.attention_share == pytest.approx(sum(hard) / (168 + 105), rel=1e-6)
    assert record.seam_factor == pytest.approx((24 * 112 + 20 * 84) / (24 * 48 + 20 * 20))
    wide = evaluate(network(config=SMALL.model_copy(update={"window": 24})), dataset, get_protocol("odi"))
    assert wide.wrap == 48
    assert wide.seam_factor == pytest.approx((24 * 144 + 20 * 116) / (24 * 48 + 20 * 20))
    assert wide.seam_note is not None
    assert "by 48 columns at each side of the seam" in wide.seam_note
    assert "×(w+96)/w" in wide.seam_note


def test_routed_shares_weights_and_leaves_the_original_as_it_is() -> None:
    original = network(RoutingConfig(gamma=0.5))
    variant = routed(original, RoutingConfig(gamma=1.0))
    assert original.config != variant.config
    assert all(a is b for a, b in zip(original.parameters(), variant.parameters(), strict=True))
    record = evaluate(variant, tiny_pairs(VALIDATION, 2), LIGHT)
    assert record.attention_share == 1
    assert evaluate(original, tiny_pairs(VALIDATION, 2), LIGHT).attention_share == pytest.approx(36 / 73)
    bicubic = build_seeded(BicubicConfig(scale=2), 0)
    assert routed(bicubic, None) is bicubic


def test_too_small_an_image_has_no_score() -> None:
    with pytest.raises(UserError, match="too small for protocol 'light'"):
        evaluate(network(), tiny_pairs((("coffee", 12, 12),), 2), LIGHT)

"""Pictures of the report: what networks really made of images, with the scores that were recorded of it."""

import base64
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.study_folder import StudyFolder
from harness.data import to_tensor
from harness.metrics.colour import luma_bt601
from harness.models import CAMixerSR, build_seeded
from harness.models.attended import find_attended
from harness.reporting import make_pictures
from harness.reporting.gallery import describe_maps, list_maps, write_crops, write_maps
from harness.reporting.html import render_report
from harness.reporting.pictures import MOST_LR_PIXELS, _find_crop, _find_part
from harness.reporting.study import Study
from harness.trial import load_trained, routed, to_image
from tests.records import search_trials, study_record
from tests.reporting.conftest import Pictured
from tests.reporting.test_pictures import read_html


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_tiles_are_what_the_networks_make_of_the_image(pictured: Pictured) -> None:
    pictures = pictured.pictures
    assert [picture.name for picture in pictures.images] == sorted(picture.name for picture in pictures.images)
    assert len(pictures.images) == 2
    for picture in pictures.images:
        names = [tile.name for tile in picture.tiles]
        assert names[0] == "bicubic"
        assert names[-1] == "HR"
        pair = next(pair for pair in pictured.images if pair.name == picture.name)
        left, top, side = picture.box
        inside = slice(top, top + side), slice(left, left + side)
        assert np.array_equal(decode(picture.tiles[-1].png), pair.hr_HWC[inside])
        for tile in picture.tiles[1:-1]:
            found = next(point for point in pictured.study.points if point.label == tile.name)
            network = load_trained(pictured.folder, found.record, found.measured.routing)
            with torch.inference_mode():
                image_HWC = to_image(network(to_tensor(pair.lr_HWC)))
            assert np.array_equal(decode(tile.png), image_HWC[inside])
            record = pictured.folder.read_trial(found.record.record_id)
            measured = next(one for one in record.points if one.routing == found.measured.routing)
            assert tile.image_psnr_db == next(
                one.psnr_db for one in measured.evaluation.images if one.name == picture.name
            )
            x, y, crop = picture.crop
            seen = slice(top + y, top + y + crop), slice(left + x, left + x + crop)
            error = np.mean((luma_bt601(image_HWC[seen]) - luma_bt601(pair.hr_HWC[seen])) ** 2)
            assert tile.crop_psnr_db == pytest.approx(10 * math.log10(255**2 / error))


def test_maps_hold_the_share_that_was_recorded(pictured: Pictured) -> None:
    for picture in pictured.pictures.images:
        assert {one.gamma for one in picture.maps} == {0.0, 0.5, 1.0}
        for one in picture.maps:
            rows, columns = one.size
            assert (rows, columns) == tuple(-(-side // 16) for side in picture.lr_size)
            assert {len(mask) for mask in one.masks} == {rows * columns}
            record = next(trial for trial in pictured.study.trials if trial.label == one.name)
            whole = pictured.folder.read_trial(record.record_id)
            point = next(point for point in whole.points if point.routing and point.routing.gamma == one.gamma)
            share = next(image.attention_share for image in point.evaluation.images if image.name == picture.name)
            assert one.share == pytest.approx(share)
            assert one.share == pytest.approx(sum(mask.count("1") for mask in one.masks) / len("".join(one.masks)))
    described = describe_maps(pictured.pictures)
    for entry, (_, maps) in zip(described, list_maps(pictured.pictures), strict=True):
        none = maps[0].chosen == "fixed γ=0"
        assert entry["at"][entry["first"]]["routing"] == ("fixed γ=0.5" if none else maps[0].chosen)
    assert write_maps(pictured.pictures).count("<figure") == len(described)


@pytest.mark.parametrize("policy", ["fixed", "probability", "threshold", "schedule", "detail"])
def test_attended_windows_make_up_the_share_of_a_network(policy: str) -> None:
    settings = {"schedule": {"schedule": (0.25, 0.0)}, "detail": {"block_weights": (1.0, 0.5)}}.get(policy, {})
    model = CAMixerSRConfig(groups=(1, 1), channels=8, window=8)
    network = build_seeded(model, seed=3).eval()
    assert isinstance(network, CAMixerSR)
    variant = routed(network, RoutingConfig(policy=policy, gamma=0.4, **settings))
    assert isinstance(variant, CAMixerSR)
    input_BCHW = torch.rand(2, 3, 37, 29, generator=torch.Generator().manual_seed(1))
    mask_SBN = find_attended(variant, input_BCHW)
    assert mask_SBN.shape == (2, 2, 5 * 4)
    assert not variant.is_literal
    with torch.inference_mode():
        share_SB = variant.restore(input_BCHW).hard_share_SB
    assert torch.allclose(mask_SBN.float().mean(dim=2), share_SB)


def test_what_is_missing_is_said(pictured: Pictured, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("copied")
    cache = elsewhere / "cache"
    copied = make_pictures(pictured.study, StudyFolder(elsewhere), cache, pictured.images)
    assert copied.images == ()
    assert copied.notes == ("No images: the weights of the networks are not in the study's folder.",)
    assert "No images: the weights" in " ".join(read_html(write_crops(copied)).words)
    assert "SwinIR-light is not among them: it was not trained in this study." in pictured.pictures.notes
    nothing = make_pictures(Study(study_record(), (), ()), pictured.folder, cache, pictured.images)
    assert nothing.notes[0].startswith("No network is on the front")
    other = Study(study_record(), tuple(search_trials(1)), ())
    for record in other.trials:
        StudyFolder(elsewhere).network_dir(record.network_id).mkdir(parents=True)
        StudyFolder(elsewhere).weights_file(record.network_id).write_bytes(b"no weights")
    changed = make_pictures(other, StudyFolder(elsewhere), cache, pictured.images)
    assert changed.images == ()
    assert "are not those any more that the networks were scored on" in changed.notes[0]


def test_a_large_image_is_cut_to_where_detail_is() -> None:
    image_HWC = np.full((400, 600, 3), 128, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    image_HWC[250:350, 420:520] = noise
    top, left, height, width = _find_part(image_HWC)
    assert height * width <= MOST_LR_PIXELS
    assert top <= 250
    assert left <= 420
    assert top + height >= 350
    assert left + width >= 520
    assert _find_part(image_HWC[:100, :100]) == (0, 0, 100, 100)


def test_the_crop_is_where_restorations_differ() -> None:
    plain = np.zeros((64, 80, 3), dtype=np.uint8)
    other = plain.copy()
    other[20:36, 50:66] = 200
    assert _find_crop([plain, other], 16) == (20, 50)
    assert _find_crop([plain, other], 64)[0] == 0


def test_the_report_shows_pictures_and_says_whose_they_are(pictured: Pictured) -> None:
    text = render_report(pictured.study, pictures=pictured.pictures)
    words = " ".join(read_html(text).words)
    for part in ("What it looks like", "Where attention goes", "LR, bicubic", "HR", "CC0", "crop "):
        assert part in words
    assert len(text) < 10e6
    without = render_report(pictured.study)
    assert "What it looks like" not in without
    assert "data:image" not in without

"""A study whose networks and images are there to be looked at, and a real browser."""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pytest
from safetensors.torch import save_file

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.records import PointRecord, StudyRecord, TrialRecord
from harness.core.study_folder import StudyFolder
from harness.data import PairedDataset
from harness.metrics import get_protocol
from harness.models import build_seeded
from harness.reporting import Pictures, Study, load_study, make_pictures
from harness.trial import evaluate, routed
from tests.records import bicubic_baseline, point, study_record, trial, write_study
from tests.tiny_pairs import tiny_pairs

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
GAMMAS = (0.0, 0.5, 1.0)


class Pictured(NamedTuple):
    """A study in a folder, with weights of two networks, its validation images, and the pictures made of them."""

    study: Study
    folder: StudyFolder
    images: PairedDataset
    pictures: Pictures


def scored_trial(folder: StudyFolder, images: PairedDataset, number: int, model: CAMixerSRConfig) -> TrialRecord:
    """A record of a network of random weights, which are kept, with its real scores."""
    network = build_seeded(model, seed=number).eval()
    points: list[PointRecord] = []
    for gamma in GAMMAS:
        routing = RoutingConfig(gamma=gamma)
        found = evaluate(routed(network, routing), images, get_protocol("light"))
        made = point(0.0, 1_000_000_000 * (number + 1), routing=routing, latency_ms=5.0 * (number + 1) + gamma)
        points.append(made.model_copy(update={"evaluation": found}))
    record = trial(number, points, model=model)
    folder.network_dir(record.network_id).mkdir(parents=True)
    save_file(network.state_dict(), folder.weights_file(record.network_id))
    return record


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Pictured:
    """Two networks of random weights, on parts of photographs."""
    path = tmp_path_factory.mktemp("pictured") / "study"
    folder = StudyFolder(path)
    images = tiny_pairs((("astronaut", 192, 256), ("chelsea", 160, 192), ("coffee", 96, 96)), 4, "demo")
    trials = [
        scored_trial(folder, images, number, CAMixerSRConfig(groups=groups, channels=8, window=16))
        for number, groups in enumerate(((1,), (1, 1)))
    ]
    bicubic = bicubic_baseline()
    network = build_seeded(bicubic.model, seed=0).eval()
    found = evaluate(network, images, get_protocol("light"))
    scored = bicubic.points[0].model_copy(update={"evaluation": found})
    record: StudyRecord = study_record(validation_images=tuple(pair.name for pair in images), devices=("cpu:1",))
    write_study(path, record, [*trials, bicubic.model_copy(update={"points": (scored,)})])
    study = load_study(path)
    return Pictured(study, folder, images, make_pictures(study, folder, path.parent / "cache", images))


def find_browser() -> str | None:
    """Return the path of a browser: HARNESS_BROWSER, or a Chromium of the system."""
    named = os.environ.get("HARNESS_BROWSER")
    return named or next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """A headless Chromium, which asks no network for anything by itself."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, and HARNESS_BROWSER names none")
    quiet = ["disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update"]
    arguments = ["--no-sandbox", *(f"--{name}" for name in quiet), "--disable-sync"]
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=arguments)
        yield found
        found.close()

"""The answer of a study in plain words: who wins, what it costs, and what cannot be said."""

import pytest

from harness.core.configs import PAPER_RECIPE, DataConfig
from harness.reporting.answer import answer
from harness.reporting.page_data import describe_page
from harness.reporting.published import load_published
from harness.reporting.study import Study
from tests.records import (
    bicubic_baseline,
    one_of_each_state,
    point,
    quantised_point,
    search_trials,
    study_record,
    swinir_baseline,
    trial,
    with_rungs,
)

NETWORKS = (
    trial(0, [point(27.2, 30_000_000_000, latency_ms=40.0)], label="slow", network_id="a"),
    trial(1, [point(27.0, 20_000_000_000, latency_ms=20.0)], label="equal", network_id="b"),
    trial(2, [point(26.9, 10_000_000_000, latency_ms=10.0)], label="small", network_id="c"),
)


def test_the_fastest_that_is_as_good_is_named_with_what_it_costs() -> None:
    found = answer(Study(study_record(), NETWORKS, (swinir_baseline(27.0),)))
    assert found.point is not None
    assert found.point.record is NETWORKS[1]
    assert found.sentence == (
        "equal (trial 1) is the fastest network that is at least as good as SwinIR-light: 27.00 dB, 20 ms, 20.00 "
        "GMACs, "
        "100.00 k parameters. Against SwinIR-light: 68.1 % fewer MACs, 4.00 times faster, 0.00 dB."
    )
    assert "not converged: 100 steps" in found.reservations[0]


def test_the_nearest_is_named_where_none_is_as_good() -> None:
    found = answer(Study(study_record(), NETWORKS, (swinir_baseline(28.0),)))
    assert found.sentence.startswith(
        "No network reaches SwinIR-light's PSNR of 28.00 dB; the nearest is slow (trial 0): 27.20 dB, 40 ms"
    )
    assert "−0.80 dB" in found.sentence


def test_without_latencies_the_smallest_is_named() -> None:
    untimed = tuple(
        trial(number, [point(27.5, macs, latency_ms=None)], network_id=str(number), label=f"n{number}")
        for number, macs in enumerate((20, 10))
    )
    objectives = study_record().objectives
    record = study_record(objectives=(objectives[0], objectives[2]))
    found = answer(Study(record, untimed, (swinir_baseline(27.0),)))
    assert found.sentence.startswith("n1 (trial 1) is the network with the fewest MACs (no latency was measured) that")


def test_the_fastest_is_named_where_it_is_not_on_the_front() -> None:
    """By PSNR and MACs the faster network is dominated, and still the answer to what is fastest."""
    better = trial(0, [point(27.2, 20, latency_ms=40.0)], label="better", network_id="a")
    faster = trial(1, [point(27.1, 21, latency_ms=10.0)], label="faster", network_id="b")
    objectives = study_record().objectives
    record = study_record(objectives=(objectives[0], objectives[2]))
    found = answer(Study(record, (better, faster), (swinir_baseline(27.0),)))
    assert found.sentence.startswith("faster (trial 1) is the fastest network that is at least as good")


def test_latencies_of_two_machines_are_not_ordered() -> None:
    slow, fast = NETWORKS[0], NETWORKS[1]
    moved = [one.model_copy(update={"torch_version": "0.0"}) for one in fast.points[0].latency]
    fast = fast.model_copy(update={"points": (fast.points[0].model_copy(update={"latency": tuple(moved)}),)})
    settings = {found.setting for one in (slow, fast) for found in one.points[0].latency}
    assert len(settings) == 2
    found = answer(Study(study_record(), (slow, fast), (swinir_baseline(27.0),)))
    assert "is the network with the fewest MACs (latencies are of several settings) that" in found.sentence


def test_without_a_trained_swinir_nothing_is_said_to_beat_it() -> None:
    found = answer(Study(study_record(), NETWORKS, (bicubic_baseline(),)))
    assert found.sentence.startswith("Whether a network beats SwinIR-light cannot be said of this study.")
    assert "no SwinIR-light baseline was trained in this study" in found.reservations[0]
    assert not any("published" in words.lower() for words in found.reservations)  # none on these images


def test_published_figures_are_held_against_full_training_alone() -> None:
    data = DataConfig(train="df2k", validation="set5")
    short = answer(Study(study_record(data=data), NETWORKS, ()))
    assert any("Published figures are of full training" in words for words in short.reservations)
    full = tuple(one.model_copy(update={"training": PAPER_RECIPE}) for one in NETWORKS)
    found = answer(Study(study_record(data=data, training=PAPER_RECIPE), full, ()))
    rows = load_published(4)
    psnr = next(row["psnr_db"] for row in rows if row["label"] == "SwinIR-light" and row["dataset"] == "set5")
    assert found.reservations[-1].startswith(f"The published SwinIR-light has {psnr:.2f} dB on set5")
    assert f"{psnr - 27.2:.2f} dB below that" in found.reservations[-1]


def test_studies_without_a_front_say_so() -> None:
    assert "no trial has finished" in answer(Study(study_record(), (), ())).sentence
    broken = trial(0, [point(27.0, 10, constraints={"macs <= 1": 9.0})])
    assert "violates a constraint" in answer(Study(study_record(), (broken,), ())).sentence


def test_trials_that_did_not_finish_have_what_was_known_of_them() -> None:
    complete, rejected, _, failed, _ = one_of_each_state()
    rejected = rejected.model_copy(update={"params": 123_000, "violations": {"macs <= 30000000000": 11.2e9}})
    stopped = with_rungs(stopped=True)
    page = describe_page(Study(study_record(), (complete, rejected, stopped, failed), (swinir_baseline(),)))
    keys = [axis["key"] for axis in page["axes"]]

    def known(kind: str) -> dict[str, float | None]:
        found = next(one for one in page["points"] if page["kinds"][one["k"]] == kind)
        return dict(zip(keys, found["v"], strict=True))

    assert known("rejected")["params"] == 123
    assert known("rejected")["macs"] is not None  # counted: nothing has to be trained for it
    assert known("rejected")["psnr_db"] is None
    assert known("stopped")["psnr_db"] == 25.9  # at its last rung
    assert known("stopped")["macs"] == 3
    assert "after 33 steps" in next(one for one in page["points"] if page["kinds"][one["k"]] == "stopped")["note"]
    assert known("failed")["psnr_db"] is None


def test_dimensions_are_those_of_the_space() -> None:
    space = "dimensions: {model.groups: 1, routing.gamma: 2, training.distillation.weight: 3}"
    page = describe_page(Study(study_record(space=space), tuple(search_trials(4)), ()))
    groups, gamma, weight = page["dimensions"]
    assert (groups["name"], gamma["choices"]) == ("model.groups", None)
    placed = [(one["d"][0], one["n"], one["d"][1]) for one in page["points"] if "d" in one]
    for place, network, _ in placed:
        assert f"groups {groups['choices'][place]} " in page["networks"][network]["label"] + " "
    assert {one[2] for one in placed} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert all(one["d"][2] is None for one in page["points"] if "d" in one)
    assert weight["name"] == "training.distillation.weight"


@pytest.mark.parametrize("space", ["", "{", "name: quickstart\n", "- 1"])
def test_a_space_that_cannot_be_read_leaves_the_usual_dimensions(space: str) -> None:
    page = describe_page(Study(study_record(space=space), tuple(search_trials(2)), ()))
    assert page["dimensions"][0]["name"] == "model.groups"


def test_points_of_files_say_so_and_keep_their_own_curves() -> None:
    record = search_trials(1)[0]
    files = tuple(quantised_point(one, psnr_db=26.0, latency_ms=3.0) for one in record.points)
    file = files[0].quantised
    assert file is not None
    study = Study(study_record(), (record.model_copy(update={"points": (*record.points, *files)}),), ())
    page = describe_page(study)
    assert len(study.points) == 2 * len(record.points)
    told = [one for one in page["points"] if file.label in (one.get("r") or "")]
    assert len(told) == len(files)
    sizes = f"{file.file_bytes / 2**20:.2f} MiB, {file.float_bytes / 2**20:.2f} in float"
    assert all(sizes in one["note"] for one in told)
    assert len({one["id"] for one in page["points"] if "d" in one}) == len(study.points)
    policies = [curve["policy"] for curve in page["gamma"]["curves"]]
    assert policies == ["fixed", f"fixed, {file.label}"]

import json
import math
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.core.configs import BicubicConfig, CalibrationConfig, RoutingConfig, SwinIRConfig
from harness.core.device_lock import computing, measuring
from harness.core.errors import UserError
from harness.core.records import WAITING, TrialRecord
from harness.data import ImagePair, PairedDataset
from harness.profiling import canonical_macs
from harness.training import TrainingInterruptedError, TrainingProgress
from harness.trial import (
    Proposal,
    TrialSetup,
    answer_from,
    build_seeded,
    evaluate,
    load_trained,
    representative_input,
    run_trial,
    to_image,
)
from harness.trial.calibration import calibrate
from harness.trial.run import _Observed
from tests.tiny_pairs import VALIDATION, tiny_pairs
from tests.trial.studies import ROUTINGS, SHORT, SMALL, propose, setup_study

SWINIR = SwinIRConfig(embed_dim=12, depths=(1,), num_heads=2, window=4, scale=2)


class Told:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.steps: list[int] = []

    def phase(self, record_id: str, label: str, phase: str) -> None:
        assert record_id == "trial-00003"
        self.phases.append(phase)

    def training(self, progress: TrainingProgress) -> None:
        self.steps.append(progress.step)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialSetup, Proposal, TrialRecord, Told]:
    setup = setup_study(tmp_path_factory.mktemp("study"), "macs <= 1e9", "psnr_db >= 99", measure_memory=False)
    proposal, told = propose(routings=ROUTINGS), Told()
    return setup, proposal, run_trial(setup, proposal, progress=told), told


Finished = tuple[TrialSetup, Proposal, TrialRecord, Told]


def test_a_complete_record_holds_the_whole_line(finished: Finished) -> None:
    setup, proposal, record, told = finished
    assert (record.state, record.reason) == ("complete", None)
    assert (record.study, record.record_id, record.number, record.kind) == ("tiny", "trial-00003", 3, "trial")
    assert (record.model, record.training, record.suggestion) == (SMALL, SHORT, {"channels": 8})
    assert record.network_id == proposal.network_id(setup.data)
    assert [point.routing for point in record.points] == list(ROUTINGS)
    assert record.params == sum(parameter.numel() for parameter in build_seeded(SMALL, 0).parameters())
    assert {point.params for point in record.points} == {record.params}
    assert record.macs_check is not None
    assert record.macs_check.agree
    assert record.training_result is not None
    assert record.training_result.steps == 6
    assert told.steps == [1, 2, 3, 4, 5, 6]
    assert told.phases == [
        "counting operations",
        "scoring untrained",
        "training",
        "evaluating",
        "measuring latency",
    ]
    assert set(record.seconds) - {WAITING} == {
        "counting",
        "untrained evaluation",
        "training",
        "evaluation",
        "latency",
        "memory",
    }
    assert record.started_at <= record.finished_at


def test_the_record_on_disk_is_the_one_returned(finished: Finished) -> None:
    setup, _, record, _ = finished
    assert list(setup.folder.read_trials()) == [record]
    assert not setup.folder.checkpoint_file(record.network_id).exists()
    assert sorted(path.name for path in setup.folder.network_dir(record.network_id).iterdir()) == [
        "weights.safetensors"
    ]


@pytest.mark.parametrize("index", range(len(ROUTINGS)), ids=[routing.label() for routing in ROUTINGS])
def test_points_are_what_the_saved_weights_score_under_each_routing(finished: Finished, index: int) -> None:
    setup, _, record, _ = finished
    network = build_seeded(SMALL.with_routing(ROUTINGS[index]), seed=99).eval()
    network.load_state_dict(load_file(setup.folder.weights_file(record.network_id)))
    independent = evaluate(network, setup.validation, setup.protocol)
    found = record.points[index].evaluation
    assert found.model_copy(update={"seconds": 0.0}) == independent.model_copy(update={"seconds": 0.0})


def test_macs_are_the_closed_form_and_follow_the_realised_share_where_content_decides(finished: Finished) -> None:
    setup, _, record, _ = finished
    for point, routing in zip(record.points, ROUTINGS, strict=True):
        share = point.evaluation.attention_share_per_block
        decided_by_content = routing.policy in ("probability", "threshold")
        expected = canonical_macs(
            SMALL.with_routing(routing), setup.macs_input_size, attention_share=share if decided_by_content else None
        )
        assert point.macs == expected
    zero, half, one = (record.points[index].macs for index in range(3))
    assert zero < half < one


def test_constraints_are_measured_at_every_point_and_reject_no_trained_network(finished: Finished) -> None:
    _, _, record, _ = finished
    for point in record.points:
        assert point.constraints == {
            "macs <= 1e+09": point.macs - 1e9,
            "psnr_db >= 99": 99 - point.evaluation.psnr_db,
        }
        assert not point.feasible


def test_latency_is_measured_beside_the_reference_at_every_point(finished: Finished) -> None:
    setup, _, record, _ = finished
    for point in record.points:
        (latency,) = point.latency
        assert (latency.device, latency.input_size, latency.reference) == ("cpu:1", (16, 24), "swinir-tiny")
        assert latency.median > 0
        assert latency.ratio == latency.median / (latency.reference_median or math.nan)
    assert setup.reference is not None
    assert not setup.reference.training


def test_the_untrained_score_is_that_of_the_seeded_weights(finished: Finished) -> None:
    setup, _, record, _ = finished
    expected = evaluate(build_seeded(SMALL.with_routing(ROUTINGS[0]), SHORT.seed), setup.validation, setup.protocol)
    assert record.untrained is not None
    assert record.untrained.images == expected.images
    assert record.untrained.psnr_db < record.points[0].evaluation.psnr_db


@pytest.mark.parametrize("routing", ROUTINGS, ids=lambda routing: routing.label())
def test_load_trained_rebuilds_the_network_bit_for_bit(finished: Finished, routing: RoutingConfig) -> None:
    setup, _, record, _ = finished
    network = load_trained(setup.folder, record, routing)
    assert network.config == SMALL.with_routing(routing)
    assert not network.training
    saved = load_file(setup.folder.weights_file(record.network_id))
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())


def test_missing_or_damaged_weights_are_the_users_error(finished: Finished, tmp_path: Path) -> None:
    setup, _, record, _ = finished
    elsewhere = setup_study(tmp_path).folder
    with pytest.raises(UserError, match=r"the weights of trial-00003 cannot be read from .*weights\.safetensors"):
        load_trained(elsewhere, record, None)
    content = setup.folder.weights_file(record.network_id).read_bytes()
    path = elsewhere.weights_file(record.network_id)
    path.parent.mkdir(parents=True)
    path.write_bytes(content[:-10])
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_trained(elsewhere, record, None)
    assert "\n" not in str(caught.value)


def without_time(record: TrialRecord) -> str:
    """What of a record must not change from run to run."""
    assert record.training_result is not None
    content = {
        "points": [
            {
                **point.model_dump(mode="json", exclude={"latency": True, "evaluation": {"seconds"}}),
            }
            for point in record.points
        ],
        "curves": record.training_result.curves,
        "untrained": record.untrained.images if record.untrained else None,
        "macs": record.macs_check,
    }
    return json.dumps(content, default=lambda value: value.model_dump(mode="json"), sort_keys=True)


def test_the_same_proposal_gives_the_same_bits_again_also_when_interrupted(finished: Finished, tmp_path: Path) -> None:
    setup, proposal, record, _ = finished
    again = setup_study(tmp_path, "macs <= 1e9", "psnr_db >= 99")
    asked = 0

    def stop_at_the_third() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    with pytest.raises(TrainingInterruptedError):
        run_trial(again, proposal, should_stop=stop_at_the_third)
    assert list(again.folder.read_trials()) == []
    assert again.folder.checkpoint_file(record.network_id).exists()
    told = Told()
    second = run_trial(again, proposal, progress=told)
    assert told.steps == [4, 5, 6]
    assert without_time(second) == without_time(record)
    assert second.training_result is not None
    assert second.training_result.resumed_from == (3,)
    assert again.folder.weights_file(record.network_id).read_bytes() == (
        setup.folder.weights_file(record.network_id).read_bytes()
    )


def test_another_seed_is_another_network(finished: Finished, tmp_path: Path) -> None:
    setup, _, record, _ = finished
    other = run_trial(
        setup_study(tmp_path), propose(training=SHORT.model_copy(update={"seed": 1}), routings=ROUTINGS[:1])
    )
    assert other.network_id != record.network_id
    assert other.points[0].evaluation.psnr_db != record.points[0].evaluation.psnr_db
    assert setup.folder.weights_file(record.network_id).exists()


# Rejected ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ("params <= 100", r"params is \d+, but the space demands params <= 100"),
        ("macs <= 1e4", r"macs is [\d.e+]+, but the space demands macs <= 10000"),
        ("latency_ms <= 0.001", r"latency_ms is [\d.]+ untrained, but the space demands latency_ms <= 0.001"),
        ("latency_ms/cpu:1 <= 0.001", r"latency_ms/cpu:1 is [\d.]+ untrained"),
        ("latency_ratio <= 0.0001", r"latency_ratio is [\d.]+ untrained"),
        ("peak_memory_bytes <= 1", r"peak_memory_bytes is [\d.e+]+ untrained"),
    ],
)
def test_what_is_known_before_training_rejects_a_proposal(tmp_path: Path, constraint: str, reason: str) -> None:
    told = Told()
    setup = setup_study(tmp_path, constraint)
    record = run_trial(setup, propose(), progress=told)
    assert record.state == "rejected"
    assert record.reason is not None
    assert re.match(reason, record.reason), record.reason
    assert told.steps == []
    assert (record.points, record.training_result, record.untrained) == ((), None, None)
    assert record.params is not None
    assert list(setup.folder.read_trials()) == [record]
    assert not setup.folder.weights_file(record.network_id).exists()


def test_constraints_on_cost_act_on_the_suggested_routing(tmp_path: Path) -> None:
    cheap = canonical_macs(SMALL.with_routing(RoutingConfig(gamma=0.0)), (30, 50))
    setup = setup_study(tmp_path, f"macs <= {cheap}")
    dear = propose(routings=(RoutingConfig(gamma=1.0),))
    assert run_trial(setup, dear).state == "rejected"
    record = run_trial(setup, propose(routings=(RoutingConfig(gamma=0.0), RoutingConfig(gamma=1.0))))
    assert record.state == "complete"
    assert [point.feasible for point in record.points] == [True, False]


def test_a_cost_that_content_decides_rejects_nothing_before_training(tmp_path: Path) -> None:
    setup = setup_study(tmp_path, "macs <= 1")
    record = run_trial(setup, propose(routings=(RoutingConfig(policy="threshold"),)))
    assert record.state == "complete"
    assert [point.feasible for point in record.points] == [False]


def test_baselines_are_measured_whatever_they_cost(tmp_path: Path) -> None:
    setup = setup_study(tmp_path, "params <= 1", "latency_ms <= 0.0001")
    for name, model, training in (("swinir", SWINIR, SHORT), ("bicubic", BicubicConfig(scale=2), None)):
        proposal = propose(
            model,
            training=training,
            routings=(None,),
            record_id=f"baseline-{name}",
            kind="baseline",
            number=None,
            suggestion={},
        )
        record = run_trial(setup, proposal)
        assert record.state == "complete", record.reason
        (point,) = record.points
        assert point.routing is None
        assert point.evaluation.attention_share is None
        assert point.constraints["params <= 1"] == (record.params or 0) - 1
        network = load_trained(setup.folder, record, None)
        assert evaluate(network, setup.validation, setup.protocol).images == point.evaluation.images
    assert record.training is None
    assert record.untrained is None
    assert {found.record_id for found in setup.folder.read_trials()} == {"baseline-swinir", "baseline-bicubic"}


# Failed --------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    setup = setup_study(tmp_path)
    wild = SHORT.model_copy(update={"learning_rate": 1e30, "grad_clip_norm": None})
    record = run_trial(setup, propose(training=wild))
    assert record.state == "failed"
    assert record.reason is not None
    assert record.reason.startswith("loss is nan at step 2")
    assert record.points == ()
    assert record.untrained is not None  # what was found before stays
    folder = setup.folder.network_dir(record.network_id)
    assert [path.name for path in folder.iterdir()] == ["traceback.txt"]
    assert "TrialFailedError: loss is nan at step 2" in (folder / "traceback.txt").read_text()
    assert list(setup.folder.read_trials()) == [record]


def test_a_crash_is_a_failure_that_names_the_error(tmp_path: Path) -> None:
    """No training image is as large as a patch."""
    setup = setup_study(tmp_path)
    record = run_trial(setup, propose(training=SHORT.model_copy(update={"hr_patch_size": 200})))
    assert record.state == "failed"
    assert record.reason is not None
    assert record.reason.startswith("UserError: no image of tiny has 200×200 pixels")


def test_threads_are_those_of_the_setup_and_come_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    record = run_trial(
        setup_study(tmp_path, threads=before + 1), propose(training=SHORT.model_copy(update={"steps": 1}))
    )
    assert record.training_result is not None
    assert record.training_result.threads == before + 1
    assert torch.get_num_threads() == before


def test_an_answered_proposal_points_to_the_network_that_answers_it(finished: Finished, tmp_path: Path) -> None:
    _, _, trained, _ = finished
    setup = setup_study(tmp_path)
    proposal = propose(record_id="trial-00009", number=9, routings=ROUTINGS[1:2])
    record = answer_from(setup, proposal, trained)
    assert (record.state, record.answered_by, record.params) == ("answered", "trial-00003", trained.params)
    assert record.reason == "the network was trained by trial-00003"
    assert record.network_id == trained.network_id
    assert record.points == ()
    assert list(setup.folder.read_trials()) == [record]


# Parts ---------------------------------------------------------------------------------------------------------------


def test_seeded_networks_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_seeded(SMALL, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = build_seeded(SMALL, 5), build_seeded(SMALL, 6)
    assert torch.equal(next(first.parameters()), next(second.parameters()))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_representative_input_is_the_centre_of_a_larger_image() -> None:
    dataset = tiny_pairs(VALIDATION, 2)  # the first is 24×32
    image_HWC = dataset[0].lr_HWC
    assert np.array_equal(to_image(representative_input(dataset, (10, 12))), image_HWC[7:17, 10:22])
    assert np.array_equal(to_image(representative_input(dataset, (24, 32))), image_HWC)


@pytest.mark.parametrize("size", [(30, 40), (30, 12), (10, 50), (200, 300)])
def test_representative_input_mirrors_a_smaller_image(size: tuple[int, int]) -> None:
    rows, columns = np.indices((3, 4))
    image_HWC = np.stack([rows * 16 + columns] * 3, axis=-1).astype(np.uint8)
    hr_HWC = image_HWC.repeat(2, 0).repeat(2, 1)
    dataset = PairedDataset("grid", 2, [ImagePair("grid", hr_HWC, image_HWC)])
    found = to_image(representative_input(dataset, size))
    assert found.shape == (*size, 3)
    for axis, side in ((0, 3), (1, 4)):
        places = found[..., 0] // 16 if axis == 0 else found[..., 0] % 16
        line = places[:, 0] if axis == 0 else places[0]
        start = (size[axis] - side) // 2
        mirrored = [(index - start) % (2 * side) for index in range(size[axis])]
        expected = [place if place < side else 2 * side - 1 - place for place in mirrored]
        assert line.tolist() == expected


# Calibration ---------------------------------------------------------------------------------------------------------


def test_calibrated_points_are_those_of_the_saved_weights_on_training_images(tmp_path: Path) -> None:
    config = CalibrationConfig(policy="schedule", shares=(0.25, 0.75), images=2, crop=16)
    setup = setup_study(tmp_path, calibration=config)
    proposal, told = propose(), Told()
    record = run_trial(setup, proposal, progress=told)
    assert told.phases.index("training") < told.phases.index("calibrating") < told.phases.index("evaluating")
    assert [point.routing for point in record.points[:1]] == list(proposal.routings)
    network = load_trained(setup.folder, record, RoutingConfig(gamma=1.0))
    for share, point in zip((0.25, 0.75), record.points[1:], strict=True):
        again = calibrate(network, setup.train, share, policy="schedule", images=2, crop=16)
        assert point.routing == again.routing
        scored = evaluate(load_trained(setup.folder, record, again.routing), setup.validation, setup.protocol)
        assert scored.psnr_db == point.evaluation.psnr_db
        assert record.calibration is not None
        assert record.calibration.gains_db == again.gains_db
        assert point.macs == canonical_macs(SMALL.with_routing(again.routing), setup.macs_input_size)
    written = (tmp_path / "trials" / "trial-00003.json").read_text(encoding="utf-8")
    assert TrialRecord.model_validate_json(written) == record


def test_what_does_not_route_is_not_calibrated(tmp_path: Path) -> None:
    setup = setup_study(tmp_path, calibration=CalibrationConfig(images=2, crop=16))
    record = run_trial(setup, propose(SWINIR, routings=(None,), kind="baseline"))
    assert (record.state, len(record.points), record.calibration) == ("complete", 1, None)


def test_a_record_without_calibration_says_nothing_of_it(finished: Finished) -> None:
    """Records from before there was calibration keep their hash, by which tracking knows them."""
    assert "calibration" not in json.loads(finished[2].model_dump_json())


def test_waiting_for_others_is_a_phase_of_its_own(tmp_path: Path) -> None:
    observed, is_measuring = _Observed(started_at=""), threading.Event()

    def measure() -> None:
        with measuring(folder=tmp_path):
            is_measuring.set()
            time.sleep(0.2)

    other = threading.Thread(target=measure)
    began = time.perf_counter()
    with observed.timed("outer"), observed.timed("inner"):
        other.start()
        is_measuring.wait()
        with computing(folder=tmp_path) as waited:
            other.join()
    took = time.perf_counter() - began
    assert observed.seconds[WAITING] == pytest.approx(waited, abs=0.05)
    assert sum(observed.seconds.values()) == pytest.approx(took, abs=0.05)
    assert observed.seconds["outer"] + observed.seconds["inner"] == pytest.approx(took - waited, abs=0.05)


def test_phases_inside_of_a_phase_are_counted_once() -> None:
    observed = _Observed(started_at="")
    began = time.perf_counter()
    with observed.timed("outer"):
        with observed.timed("inner"):
            time.sleep(0.05)
        with observed.timed("inner"), observed.timed("innermost"):
            time.sleep(0.05)
    took = time.perf_counter() - began
    assert observed.seconds["inner"] >= 0.05
    assert observed.seconds["innermost"] >= 0.05
    assert sum(observed.seconds.values()) <= took
    assert observed.seconds["outer"] <= took - 0.1

"""Trials whose trained network is compressed: the chain, its targets, latency-true choices, kills and replays."""

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.compression import choose_least_loss, find_groups, score_units
from harness.core.conditions import Conditions
from harness.core.configs import (
    CAMixerSRConfig,
    CompressionConfig,
    QuantisationConfig,
    RoutingConfig,
    SwinIRConfig,
    TrainingConfig,
)
from harness.core.constraints import parse_constraint
from harness.core.errors import TrialFailedError, UserError
from harness.core.files import exclusive_lock
from harness.core.quantisation import QuantisationRecord
from harness.core.records import WAITING, TrialRecord, point_id
from harness.export import write_bundle
from harness.models import SRNetwork, build_model
from harness.models.tiling import restore_tiled
from harness.profiling import Effort, canonical_macs, count_params, export_onnx, fit_to, measure_in_processes
from harness.training import TrainingInterruptedError
from harness.trial import (
    Parent,
    Proposal,
    TrialSetup,
    build_seeded,
    evaluate,
    least_cost,
    load_trained,
    refuse_replay,
    replay,
    representative_input,
    run,
    run_trial,
)
from harness.trial import compression as chain
from harness.trial.compression import LatencyTable, Workshop, choose_units, draw_crops, measure_losses, score_crops
from harness.trial.quantisation import find_quantised, measure_files, quantise, score_file
from harness.trial.quantisation import load_file as load_onnx
from harness.trial.replay import _compare as compare_records
from harness.trial.verification import Surroundings, verify_bundle
from tests.trial.studies import SHORT, SMALL, propose, setup_study

MODEL = CAMixerSRConfig(channels=16, groups=(1, 1), window=4, scale=2)
HALF = CompressionConfig(left=0.5, tune_steps=4, rounds=2, crops=2)


class KilledError(Exception):
    """What ends a run in the middle here."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialSetup, Proposal, TrialRecord]:
    setup = setup_study(tmp_path_factory.mktemp("study"))
    proposal = propose(MODEL, compression=HALF)
    return setup, proposal, run_trial(setup, proposal)


Finished = tuple[TrialSetup, Proposal, TrialRecord]


def test_the_chain_stands_in_the_record(finished: Finished) -> None:
    setup, proposal, record = finished
    assert record.state == "complete", record.reason
    assert record.compression is not None
    stages = record.compression.stages
    assert [(stage.kind, stage.round) for stage in stages] == [
        *(("train", 0), ("prune", 1), ("tune", 1), ("prune", 2), ("tune", 2)),
    ]
    macs = [stage.macs for stage in stages]
    whole = canonical_macs(MODEL, setup.macs_input_size)
    assert macs[0] == whole
    assert 0.97 * 0.5**0.5 <= macs[1] / whole <= 0.5**0.5
    assert 0.97 * 0.5 <= macs[3] / whole <= 0.5
    assert [stage.params for stage in stages] == sorted((stage.params for stage in stages), reverse=True)
    assert all(stage.latency[0].reference == "swinir-tiny" for stage in stages if stage.kind != "tune")
    assert [one.steps for one in record.compression.tuning] == [2, 2]
    assert record.compression.model == MODEL
    assert isinstance(record.model, CAMixerSRConfig)
    assert record.model.widths is not None
    assert record.params == count_params(record.model) == stages[-1].params
    assert record.points[0].macs == canonical_macs(record.model, setup.macs_input_size)
    assert record.macs_check is not None
    assert record.macs_check.agree
    assert record.network_id == proposal.network_id(setup.data) != proposal.trained_id(setup.data)
    assert TrialRecord.model_validate_json(record.model_dump_json()) == record


def test_what_is_kept_is_the_network_that_was_measured(finished: Finished) -> None:
    setup, proposal, record = finished
    network = load_trained(setup.folder, record, RoutingConfig(gamma=0.5))
    found = evaluate(network, setup.validation, setup.protocol)
    assert found.psnr_db == record.points[0].evaluation.psnr_db == record.compression.stages[-1].psnr_db  # type: ignore[union-attr]
    trained = build_model(MODEL)
    trained.load_state_dict(load_file(setup.folder.weights_file(proposal.trained_id(setup.data))))
    before = evaluate(trained.eval(), setup.validation, setup.protocol)
    assert before.psnr_db == record.compression.stages[0].psnr_db  # type: ignore[union-attr]
    left = {path.name for path in setup.folder.network_dir(record.network_id).iterdir()}
    assert left == {"weights.safetensors"}
    others = {path.name for path in setup.folder.network_dir("").iterdir()}
    assert others == {record.network_id, proposal.trained_id(setup.data)}


def test_another_compression_of_the_same_training_does_not_train_again(finished: Finished) -> None:
    setup, _, record = finished
    other = propose(MODEL, record_id="trial-00004", compression=HALF.model_copy(update={"left": 0.8, "rounds": 1}))
    again = run_trial(setup, other)
    assert again.state == "complete", again.reason
    assert "training" not in again.seconds
    assert again.notes == (f"trained before, as network {other.trained_id(setup.data)}",)
    assert "compression" in again.seconds
    assert again.training_result == record.training_result
    assert again.compression is not None
    assert again.compression.stages[0].psnr_db == record.compression.stages[0].psnr_db  # type: ignore[union-attr]


def test_a_replay_finds_no_difference(finished: Finished) -> None:
    setup, _, record = finished
    refuse_replay(record)
    found = replay(setup, record, (RoutingConfig(gamma=0.5),), RoutingConfig(gamma=0.5))
    assert found.is_identical, found.differences
    assert "weights" in found.compared
    assert "5 stages" in found.compared


@pytest.mark.slow
def test_what_is_pruned_does_not_hang_on_the_routing_that_came_first(tmp_path: Path) -> None:
    routings = (RoutingConfig(gamma=0.5), RoutingConfig(gamma=0.0), RoutingConfig(gamma=1.0))
    models = []
    for index, suggested in enumerate(routings):
        setup = setup_study(tmp_path / str(index))
        plan = HALF.model_copy(update={"rounds": 1, "tune_steps": 0})
        record = run_trial(setup, propose(MODEL, routings=routings, suggested=suggested, compression=plan))
        assert record.state == "complete", record.reason
        models.append(record.model)
    assert models[0] == models[1] == models[2]


@pytest.mark.slow
def test_weights_of_a_record_that_is_not_compressed_are_taken_and_kept(tmp_path: Path) -> None:
    """Even where training again would not give the same bits: they are what the record was measured with."""
    setup = setup_study(tmp_path)
    plain = run_trial(setup, propose(MODEL))
    file = setup.folder.weights_file(plain.network_id)
    altered = {name: 1.01 * tensor for name, tensor in load_file(file).items()}
    from safetensors.torch import save_file

    save_file(altered, file)
    record = run_trial(setup, propose(MODEL, record_id="trial-00004", compression=HALF))
    assert record.state == "complete", record.reason
    assert "training" not in record.seconds
    assert record.training_result == plain.training_result
    assert all(torch.equal(altered[name], tensor) for name, tensor in load_file(file).items())
    found = replay(setup, record, (RoutingConfig(gamma=0.5),), RoutingConfig(gamma=0.5))
    assert not any(one.what.startswith("untrained") for one in found.differences)


@pytest.mark.parametrize("moment", ["training", "pruned", "tuning", "second round"])
def test_a_run_that_was_killed_goes_on_and_ends_alike(
    finished: Finished, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proposal, record = finished
    setup = setup_study(tmp_path)
    calls = 0
    observe, steps = chain._observe, 0

    def kill(kind: str, round_: int, *arguments: Any) -> Any:
        if (moment, kind, round_) in {("pruned", "tune", 1), ("second round", "prune", 2)}:
            raise KilledError
        return observe(kind, round_, *arguments)  # type: ignore[arg-type]

    def should_stop() -> bool:
        nonlocal steps, calls
        steps += 1
        limit = {"training": 3, "tuning": 7}.get(moment)
        return limit is not None and steps == limit

    monkeypatch.setattr(chain, "_observe", kill)
    if moment in ("training", "tuning"):
        with pytest.raises(TrainingInterruptedError):
            run_trial(setup, proposal, should_stop=should_stop)
    else:
        assert run_trial(setup, proposal).state == "failed"
        assert setup.folder.stage_file(record.network_id).exists()
    monkeypatch.setattr(chain, "_observe", observe)
    again = run_trial(setup, proposal)
    assert again.state == "complete", again.reason
    one, other = (load_file(folder.weights_file(record.network_id)) for folder in (finished[0].folder, setup.folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [stage.psnr_db for stage in again.compression.stages] == [  # type: ignore[union-attr]
        stage.psnr_db
        for stage in record.compression.stages  # type: ignore[union-attr]
    ]


def test_a_damaged_stage_is_made_again(finished: Finished, tmp_path: Path) -> None:
    _, proposal, record = finished
    setup = setup_study(tmp_path)
    file = setup.folder.stage_file(record.network_id)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no safetensors")
    again = run_trial(setup, proposal)
    assert again.state == "complete", again.reason
    assert again.compression is not None
    assert len(again.compression.stages) == 5


def test_a_swinir_from_weights_elsewhere_is_compressed(tmp_path: Path) -> None:
    setup = setup_study(tmp_path / "study")
    config = SwinIRConfig(embed_dim=32, depths=(2,), num_heads=2, window=4, scale=2)
    network = build_seeded(config, 5)
    weights = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    save_file(network.state_dict(), weights)
    plan = CompressionConfig(
        left=0.6, cost="params", scope="uniform", importance="group-norm", tune_steps=0, round_to=2
    )
    proposal = propose(config, routings=(None,), compression=plan, parent=Parent("abcdef012345", weights))
    record = run_trial(setup, proposal)
    assert record.state == "complete", record.reason
    assert record.training_result is None
    assert record.compression is not None
    assert record.compression.parent == "abcdef012345"
    assert 0.97 * 0.6 <= record.params / count_params(config) <= 0.6  # type: ignore[operator]
    assert isinstance(record.model, SwinIRConfig)
    assert record.model.embed_dim % 2 == 0
    assert all(width % 2 == 0 for layer in record.model.widths or () for width in (layer.query, layer.value, layer.mlp))


def test_what_is_left_may_learn_from_what_it_was(finished: Finished) -> None:
    setup, _, plain = finished
    taught = propose(MODEL, record_id="trial-00005", compression=HALF.model_copy(update={"distil": True}))
    record = run_trial(setup, taught)
    assert record.state == "complete", record.reason
    assert record.compression is not None
    assert plain.compression is not None
    assert [one.teacher for one in record.compression.tuning] == [taught.trained_id(setup.data)] * 2
    assert "feature_loss" in record.compression.tuning[0].curves
    first, other = record.compression.stages[2], plain.compression.stages[2]
    assert record.compression.stages[1].psnr_db == plain.compression.stages[1].psnr_db
    assert first.psnr_db != other.psnr_db


HOW = QuantisationConfig(method="minmax", tile=16, images=1, held_out=1, max_drop_db=None)
BOTH = (RoutingConfig(gamma=0.5), RoutingConfig(gamma=0.0))


@pytest.fixture(scope="module")
def quantised(finished: Finished) -> tuple[TrialSetup, Proposal, TrialRecord]:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    setup = dataclasses.replace(finished[0], constraints=(parse_constraint("latency_ms <= 1e-9"),))
    plan = CompressionConfig(left=1.0, quantise=HOW)
    proposal = propose(MODEL, record_id="trial-00006", routings=BOTH, compression=plan)
    return setup, proposal, run_trial(setup, proposal)


@pytest.mark.slow
def test_what_comes_out_is_quantised_at_last(quantised: Finished) -> None:
    """The quantised file runs in its runtime, is scored there, and stands as the last stage; pruning is left out."""
    setup, _, record = quantised
    assert record.state == "complete", record.reason
    assert record.compression is not None
    before, stage = record.compression.stages
    assert (before.kind, stage.kind) == ("train", "quantise")
    assert stage.file is not None
    folder = setup.folder.network_dir(record.network_id)
    assert (folder / stage.file).is_file()
    kept = QuantisationRecord.model_validate_json((folder / "quantised" / "quantisation.json").read_bytes())
    assert kept.after is not None
    assert kept.choice.quantised
    assert stage.psnr_db == kept.after.psnr_db != before.psnr_db
    assert stage.psnr_db == pytest.approx(before.psnr_db, abs=1)
    assert stage.latency[0].runtime == "onnxruntime"
    assert record.model == MODEL
    assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "quantised", "quantised-fixed-0"}
    bundle = write_bundle(
        setup.folder.path / "bundle",
        load_trained(setup.folder, record, record.points[0].routing),
        record,
        record.points[0],
        picked_as="knee",
        baselines={},
        quantised=find_quantised(setup.folder, record),
    )
    assert (bundle / "quantised.onnx").read_bytes() == (folder / stage.file).read_bytes()
    around = Surroundings(cache_dir=setup.folder.path / "cache", images=0, measure_latency=False)
    checks = {check.name: check for check in verify_bundle(bundle, around).checks}
    assert checks["quantised file"].status == checks["checksums"].status == "ok"
    assert "`quantised.onnx`" in (bundle / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_quantised_files_are_points_measured_beside_the_reference(quantised: Finished) -> None:
    """A file for each routing, its scores those of its own run; latencies stand for the study's conditions."""
    setup, _, record = quantised
    of_float, of_files = record.points[:2], record.points[2:]
    assert record.produced == of_files
    assert [point.routing for point in of_files] == [point.routing for point in of_float] == list(BOTH)
    assert len({point_id(record.network_id, point.routing, point.quantised) for point in record.points}) == 4
    for point, whole in zip(of_files, of_float, strict=True):
        told = point.quantised
        assert told is not None
        file = setup.folder.quantised_file(record, point)
        assert file is not None
        kept = QuantisationRecord.model_validate_json((file.parent / "quantisation.json").read_bytes())
        assert hashlib.sha256(file.read_bytes()).hexdigest() == told.sha256 == kept.sha256
        assert (told.file_bytes, told.label) == (file.stat().st_size, "int8 minmax in onnxruntime")
        found = score_file(file, setup.validation, setup.protocol, HOW, device="cpu:1", precision="fp32", scale=2)
        assert [one.psnr_db for one in found.images] == [one.psnr_db for one in point.evaluation.images]
        assert point.evaluation.psnr_db != whole.evaluation.psnr_db
        assert kept.before is not None
        assert told.float_psnr_db == kept.before.psnr_db
        assert (point.macs, point.params) == (whole.macs, whole.params)
        assert point.evaluation.attention_share == whole.evaluation.attention_share
        (latency,), (beside,) = point.latency, whole.latency
        assert (latency.runtime, latency.compared_under, latency.reference) == ("onnxruntime", "cpu:1", "swinir-tiny")
        assert latency.setting == beside.setting
        assert latency.conditions != beside.conditions
        assert point.value("latency_ms") == point.value("latency_ms/cpu:1") == latency.median
        assert point.value("latency_ms/cpu:1/onnxruntime") is None  # no condition of this study
        assert point.constraints["latency_ms <= 1e-09"] == latency.median - 1e-9
    assert setup.folder.quantised_file(record) == setup.folder.quantised_file(record, of_files[0])
    assert setup.folder.quantised_file(record, of_float[0]) is None
    again = TrialRecord.model_validate_json(record.model_dump_json())
    assert again == record
    assert "quantised" not in json.loads(record.model_dump_json())["points"][0]


@pytest.mark.slow
def test_records_from_before_points_of_files_are_told_by_their_points_in_float(quantised: Finished) -> None:
    setup, _, record = quantised
    assert record.compression is not None
    old = json.loads(record.model_dump_json())
    old["points"] = old["points"][:2]
    read = TrialRecord.model_validate(old)
    assert read.produced == read.points == record.points[:2]
    assert json.loads(read.model_dump_json()) == old
    assert setup.folder.quantised_file(read) == setup.folder.quantised_file(record)


@pytest.mark.slow
def test_a_replay_of_a_quantised_trial_finds_no_difference(quantised: Finished) -> None:
    setup, _, record = quantised
    found = replay(setup, record, BOTH, BOTH[0])
    assert found.is_identical, found.differences
    assert "PSNR, SSIM, attention and MACs of 4 points" in found.compared
    assert {pair.point for pair in found.latencies} >= {"fixed γ=0, int8 minmax in onnxruntime", "fixed γ=0"}
    older = record.model_copy(update={"points": record.points[:2]})
    assert compare_records(older, found.again)[1] == ()


@pytest.mark.slow
def test_an_input_that_is_no_tile_is_restored_in_tiles(quantised: Finished) -> None:
    """In a process of its own: 16×24 in tiles of 16×16 by the float file is what eager gives tile by tile."""
    setup, _, record = quantised
    file = setup.folder.quantised_file(record)
    assert file is not None
    network = load_trained(setup.folder, record, BOTH[0])
    input_BCHW = representative_input(setup.validation, (16, 24))
    whole = file.parent / "float.onnx"
    export_onnx(network, input_BCHW[..., :16], whole)
    try:
        found = measure_files(
            {"float": whole},
            input_BCHW,
            HOW,
            Conditions("cpu:1"),
            Effort(2, 0.0),
            scale=2,
            reference=setup.reference,
            reference_name="swinir-tiny",
        )["float"]
        fitted = fit_to(load_onnx(whole, 16, 2, 1), (16, 24))(input_BCHW)
    finally:
        whole.unlink()
    assert (found.input_size, found.runtime, found.compared_under) == ((16, 24), "onnxruntime", "cpu:1")
    beside: dict[str, Any] = {"reference": setup.reference, "reference_name": "swinir-tiny"}
    eager = measure_in_processes({"one": network}, input_BCHW[None], Conditions("cpu:1"), Effort(2, 0.0), **beside)
    assert found.setting == eager["one"].setting
    assert found.runtime_note is not None
    assert found.runtime_note.startswith("onnxruntime 1.")
    assert found.ratio == pytest.approx(found.median / (found.reference_median or 0))
    with torch.inference_mode():
        expected = restore_tiled(network, input_BCHW, tile=16, overlap=4).image_BCHW
    assert fitted.shape == (1, 3, 32, 48)
    assert torch.allclose(fitted, expected, atol=1e-4)


@pytest.mark.slow
def test_stopped_in_the_quantisation_it_goes_on_and_keeps_what_is_finished(
    quantised: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proposal, record = quantised
    setup = setup_study(tmp_path)
    made = []

    def count(*arguments: Any, **settings: Any) -> QuantisationRecord:
        made.append(settings["weights"])
        return quantise(*arguments, **settings)

    monkeypatch.setattr(run, "quantise", count)
    folder = setup.folder.network_dir(record.network_id)
    with pytest.raises(TrainingInterruptedError, match="stopped at quantisation 2 of 2"):
        run_trial(setup, proposal, should_stop=lambda: len(made) == 1)
    assert (folder / "quantised").is_dir()
    assert not (folder / "quantised-fixed-0").exists()
    again = run_trial(setup, proposal)
    assert again.state == "complete", again.reason
    assert len(made) == 2
    assert [point.evaluation.psnr_db for point in again.points] == [point.evaluation.psnr_db for point in record.points]
    shas = [[one.quantised.sha256 for one in each.produced if one.quantised] for each in (again, record)]
    assert shas[0] == shas[1]


LONG = SHORT.model_copy(update={"steps": 150})
TRAINER = """
import os, sys
from pathlib import Path
from harness.core import device_lock
from tests.trial.test_compression import HALF, LONG, MODEL, propose, run_trial, setup_study

device_lock.lock_dir = Path(os.environ["HARNESS_LOCKS"])
run_trial(setup_study(Path(sys.argv[1]), shares_training=True), propose(MODEL, training=LONG, compression=HALF))
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True], ids=["finished", "killed"])
def test_a_network_is_trained_by_one_worker_for_all_of_its_compressions(tmp_path: Path, is_killed: bool) -> None:
    """A second one waits for its weights; where the first one dies, the lock is free, and the second one trains."""
    setup = setup_study(tmp_path, shares_training=True)
    one = HALF.model_copy(update={"rounds": 1, "left": 0.8})
    second = propose(MODEL, record_id="trial-00004", training=LONG, compression=one)
    with subprocess.Popen([sys.executable, "-c", TRAINER, str(tmp_path)]) as process:
        while not any(tmp_path.glob("networks/*/checkpoint.pt")):
            assert process.poll() is None
            time.sleep(0.01)
        waited = 0

        def should_stop() -> bool:
            nonlocal waited
            waited += 1
            if is_killed and waited == 1:
                process.kill()
            return False

        record = run_trial(setup, second, should_stop=should_stop)
    assert record.state == "complete", record.reason
    assert record.seconds[WAITING] > 0
    assert ("training" in record.seconds) is is_killed
    assert process.returncode == (-signal.SIGKILL if is_killed else 0)
    assert bool(record.notes) is not is_killed


def test_whoever_waits_for_a_training_may_be_stopped(tmp_path: Path) -> None:
    setup = setup_study(tmp_path, shares_training=True)
    proposal = propose(MODEL, compression=HALF)
    lock = setup.folder.training_lock(proposal.trained_id(setup.data))
    with (
        exclusive_lock(lock, while_waiting=lambda: None),
        pytest.raises(TrainingInterruptedError, match="which trains the same network"),
    ):
        run_trial(setup, proposal, should_stop=lambda: True)


def test_targets_out_of_reach_end_with_what_is_reachable(tmp_path: Path) -> None:
    setup = setup_study(tmp_path)
    plan = HALF.model_copy(update={"left": 0.02, "rounds": 1})
    record = run_trial(setup, propose(MODEL, compression=plan))
    assert record.state == "failed"
    assert "cannot be reached by removing channels" in str(record.reason)
    whole, least = least_cost(MODEL, plan, setup.macs_input_size)
    assert f"{least:.4g} is left at the least" in str(record.reason)
    assert 0.02 * whole < least < 0.5 * whole


def workshop(setup: TrialSetup, measure: Any = None) -> Workshop:
    training = TrainingConfig(steps=1, batch_size=2, hr_patch_size=24)
    return Workshop(
        training=training,
        images=setup.train,
        macs_input_size=(32, 32),
        score=lambda network: evaluate(network, setup.validation, setup.protocol),
        measure=measure,
    )


class Clock:
    """Latencies by a closed form of our own in place of a device's: what the choice does with them can be computed."""

    def __init__(self, weights: Mapping[str, float]):
        self.weights = weights
        self.runs = 0

    def time(self, network: SRNetwork) -> float:
        assert isinstance(network.config, CAMixerSRConfig)
        units: dict[str, int] = {}
        for group in find_groups(network.config):
            units[group.kind] = units.get(group.kind, 0) + group.units
        return 10 + sum(self.weights.get(kind, 0.0) * count for kind, count in units.items())

    def __call__(self, variants: Mapping[str, SRNetwork]) -> Any:
        from tests.records import latency

        self.runs += 1
        times = {name: self.time(network) for name, network in variants.items()}
        return {name: latency(ms).model_copy(update={"interval": (0.99 * ms, 1.01 * ms)}) for name, ms in times.items()}


def test_by_latency_goes_what_takes_time_and_not_what_takes_macs(tmp_path: Path) -> None:
    """On a clock where only the FFN takes time nothing else is pruned; where nothing does, nothing is."""
    setup = setup_study(tmp_path)
    network = build_seeded(MODEL, 3).eval()
    plan = CompressionConfig(left=0.8, cost="latency", importance="group-norm", crops=1)
    clock = Clock({"ffn": 1.0})
    place = workshop(setup, clock)
    choice = choose_units(network, plan, place, draw_crops(place, 1), network)
    assert {name.partition(" ")[0] for name in choice.removed} == {"ffn"}
    assert choice.cost == pytest.approx(0.8, rel=0.03)
    assert choice.estimate == pytest.approx(choice.cost, abs=0.01)
    by_macs = choose_units(network, plan.model_copy(update={"cost": "macs"}), place, draw_crops(place, 1), network)
    assert {name.partition(" ")[0] for name in by_macs.removed} != {"ffn"}
    idle = workshop(setup, Clock({}))
    with pytest.raises(UserError, match="cannot be reached"):
        choose_units(network, plan, idle, draw_crops(idle, 1), network)


def test_a_table_that_is_wrong_is_corrected_by_what_is_measured(tmp_path: Path) -> None:
    """Kinds that save together what either saves alone: the sum is too high, and the first choice too slow."""
    setup = setup_study(tmp_path)
    network = build_seeded(MODEL, 3).eval()

    class Shared(Clock):
        def time(self, network: SRNetwork) -> float:
            whole = {"ffn": 32, "mixer": 32}
            assert isinstance(network.config, CAMixerSRConfig)
            units = dict.fromkeys(whole, 0)
            for group in find_groups(network.config, tuple(whole)):
                units[group.kind] += group.units
            saved = max(1 - units[kind] / whole[kind] for kind in whole) * 50
            return 100 - saved

    plan = CompressionConfig(left=0.8, cost="latency", importance="group-norm", kinds=("ffn", "mixer"), crops=1)
    place = workshop(setup, Shared({}))
    choice = choose_units(network, plan, place, draw_crops(place, 1), network)
    assert choice.cost <= 0.8 * 1.03
    assert choice.cost == pytest.approx(0.8, abs=0.05)


def test_a_target_that_is_missed_by_latency_is_no_success(tmp_path: Path) -> None:
    setup = setup_study(tmp_path)
    network = build_seeded(MODEL, 3).eval()

    class Stubborn(Clock):
        """Each kind alone saves much, all together no more than a quarter."""

        def time(self, network: SRNetwork) -> float:
            return max(super().time(network), 0.75 * (10 + 32 + 32))

    plan = CompressionConfig(left=0.5, cost="latency", importance="group-norm", kinds=("ffn", "mixer"), crops=1)
    place = workshop(setup, Stubborn({"ffn": 1.0, "mixer": 1.0}))
    with pytest.raises(UserError, match=r"are not reached: 75\.0% are left|cannot be reached"):
        choose_units(network, plan, place, draw_crops(place, 1), network)


def test_a_round_whose_target_is_met_already_removes_nothing(tmp_path: Path) -> None:
    setup = setup_study(tmp_path)
    whole, smaller = build_seeded(MODEL, 3).eval(), build_seeded(MODEL.model_copy(update={"channels": 8}), 3).eval()
    plan = CompressionConfig(left=0.9, cost="latency", importance="group-norm", crops=1)
    place = workshop(setup, Clock({"ffn": 1.0}))
    choice = choose_units(smaller, plan, place, draw_crops(place, 1), whole)
    assert choice.removed == {}
    assert choice.cost < 0.9


def test_a_table_adds_savings_up_and_never_lets_them_fall() -> None:
    table = LatencyTable(
        {"features": [(0, 0.0), (8, 0.4)], "ffn": [(0, 0.0), (0.5, 0.0), (4, 0.1), (8, 0.1)]},
        {"features": 1, "ffn": 2},
    )
    assert table.left({}) == 1
    assert table.left({"ffn 0": 4}) == pytest.approx(0.95)
    assert table.left({"ffn 0": 2.25, "ffn 1": 8}) == pytest.approx(1 - 0.025 - 0.05)  # type: ignore[dict-item]
    assert table.left({"features": 4, "ffn 0": 4}) == pytest.approx(0.8 * 0.95)


def test_nothing_is_pruned_where_it_is_not_measured_to_be_faster(tmp_path: Path) -> None:
    setup = setup_study(tmp_path)
    network = build_seeded(MODEL, 3).eval()

    class Deceiving(Clock):
        def __call__(self, variants: Mapping[str, SRNetwork]) -> Any:
            self.weights = {"ffn": 1.0} if "whole" in variants else {}
            return super().__call__(variants)

    plan = CompressionConfig(left=0.8, cost="latency", importance="group-norm", crops=1)
    place = workshop(setup, Deceiving({}))
    with pytest.raises(TrialFailedError, match="which is not faster; nothing is pruned"):
        choose_units(network, plan, place, draw_crops(place, 1), network)


def test_losses_are_measured_in_db_on_crops(tmp_path: Path) -> None:
    setup = setup_study(tmp_path)
    network = build_seeded(MODEL, 3).eval()
    place = workshop(setup)
    crops = draw_crops(place, 2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(crops, draw_crops(place, 2), strict=True))
    low_BCHW, high_BCHW = crops[0]
    with torch.inference_mode():
        error_B = (network(low_BCHW).clamp(0, 1) - high_BCHW).square().mean(dim=(1, 2, 3))
    assert score_crops(network, crops[:1]) == pytest.approx((-10 * error_B.log10()).mean().item(), abs=1e-5)
    groups = find_groups(MODEL)
    curves = measure_losses(network, groups, score_units(network, groups, "group-norm"), crops)
    for group in groups:
        losses = [level.loss for level in curves[group.name]]
        assert losses[0] == 0
        assert losses == sorted(losses)
    fewer = choose_least_loss(curves, lambda fewer: 100.0 - sum(fewer.values()), 95.0)
    assert 0 < sum(fewer.values()) <= 8


def test_a_network_without_channels_to_remove_is_refused(tmp_path: Path) -> None:
    from harness.core.configs import BicubicConfig

    setup = setup_study(tmp_path)
    with pytest.raises(UserError, match="bicubic has no channels to remove"):
        chain.compress(
            build_model(BicubicConfig(scale=2)),
            HALF,
            workshop(setup),
            parent="",
            tune=lambda network, config, name: pytest.fail("tuned"),
            file=tmp_path / "stage",
        )
    assert SMALL.widths is None
    assert SHORT.steps == 6

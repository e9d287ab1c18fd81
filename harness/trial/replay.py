"""A trial run again from its record, and what came out otherwise.

On a CPU with the same versions and threads, training and evaluation are deterministic: loss curves, weights, scores,
attention shares and counts must be the same to the bit. Latencies are measured, so they are laid side by side and never
judged.
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.core.configs import AnyModelConfig, RoutingConfig, Rung, TrainingConfig
from harness.core.errors import UserError
from harness.core.records import (
    EvaluationRecord,
    LatencyRecord,
    PointRecord,
    QuantisedFile,
    RoutedLatency,
    TrialRecord,
    network_id,
)
from harness.core.study_folder import StudyFolder
from harness.trial.run import Proposal, TrialProgress, TrialSetup, Verdict, run_trial


class Difference(NamedTuple):
    """Something that should be the same and is not, in words, or that differs of the environment."""

    what: str
    then: str
    now: str


class LatencyPair(NamedTuple):
    """A latency of the record beside that of the replay."""

    point: str
    then: LatencyRecord
    now: LatencyRecord


@dataclass(frozen=True)
class Replay:
    """What a trial came to when it was run again.

    `compared` names what was compared, with how many of each; `differences` are those that should not be.
    `environment` are those that may explain them, `latencies` what was measured in both runs.
    """

    record: TrialRecord
    again: TrialRecord
    compared: tuple[str, ...]
    differences: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    latencies: tuple[LatencyPair, ...]

    @property
    def is_identical(self) -> bool:
        """Whether everything is the same that should be."""
        return not self.differences


@dataclass(frozen=True)
class _ReplaySetup(TrialSetup):
    """A setup whose rungs are those that the record came to."""

    visited: tuple[Rung, ...] = ()

    def rungs(self, training: TrainingConfig) -> tuple[Rung, ...]:
        """Return the rungs of the record, whatever the training."""
        return self.visited


def replay(
    setup: TrialSetup,
    record: TrialRecord,
    routings: tuple[RoutingConfig | None, ...],
    suggested: RoutingConfig | None,
    *,
    progress: TrialProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Replay:
    """Run the trial of a record of `setup.folder` again, in a temporary folder, and compare.

    `routings` are what the space evaluates networks at and `suggested` what the trial proposed; those of the record's
    own points win. Constraints are not checked again; at a rung the record's verdict is repeated. `UserError`: see
    `refuse_replay`.
    """
    proposal = Proposal(
        record_id=record.record_id,
        kind=record.kind,
        number=record.number,
        model=model_before(record),
        training=record.training,
        compression=record.plan,
        routings=_find_routings(record) or routings,
        suggested=suggested,
        suggestion=record.suggestion,
    )
    refuse_replay(record)
    verdicts = {Rung(seen.step, seen.images): seen for seen in record.rungs}

    def judge(rung: Rung, _points: tuple[PointRecord, ...]) -> Verdict:
        seen = verdicts[rung]
        return Verdict(promoted=seen.promoted, place=seen.place, networks=seen.networks)

    with tempfile.TemporaryDirectory(prefix="harness-replay-") as temporary:
        values = {field.name: getattr(setup, field.name) for field in dataclasses.fields(TrialSetup)}
        values |= {"folder": StudyFolder(Path(temporary)), "data": record.data}
        values |= {"constraints": (), "measure_memory": False}
        values["calibration"] = setup.calibration if record.calibration is not None or not record.points else None
        again = run_trial(
            _ReplaySetup(**values, visited=tuple(verdicts)),
            proposal,
            judge=judge if verdicts else None,
            progress=progress,
            should_stop=should_stop,
        )
        weights = None
        if record.state == again.state == "complete" and record.training is not None:
            weights = _compare_weights(setup.folder, StudyFolder(Path(temporary)), record.network_id)
    compared, differences = _compare(record, again)
    if record.state == again.state == "complete" and record.training is not None:
        compared += ("weights",)
        differences += () if weights is None else (weights,)
    return Replay(
        record=record,
        again=again,
        compared=compared,
        differences=differences,
        environment=_compare_environments(record, again),
        latencies=tuple(_pair_latencies(record, again)),
    )


def refuse_replay(record: TrialRecord) -> None:
    """Raise `UserError` for a trial that trained nothing, and for a record whose settings are not its own any more."""
    compression = record.plan
    identity = network_id(model_before(record), record.training, record.data, compression)
    if record.state == "answered":
        raise UserError(f"{record.record_id} trained nothing: it was answered by {record.answered_by}; replay that one")
    if record.state == "rejected":
        raise UserError(f"{record.record_id} trained nothing: it was rejected, {record.reason}; replay another trial")
    if compression is not None and compression.cost == "latency":
        raise UserError(
            f"{record.record_id} was pruned by latencies that were measured, which are never the same twice; replay a "
            "trial that was not"
        )
    if identity != record.network_id:
        raise UserError(
            f"{record.record_id} says network {record.network_id}, but its model, training and data make {identity}: "
            "the record was edited, or is of another version; replay another trial"
        )


def model_before(record: TrialRecord) -> AnyModelConfig:
    """Return the config that a trial proposed: that before its compression."""
    return record.model if record.compression is None else record.compression.model


def _find_routings(record: TrialRecord) -> tuple[RoutingConfig | None, ...]:
    """Return the routings that a record's network was scored at, without those that were calibrated after training."""
    holders: Sequence[Any] = record.points or (record.rungs[0].points if record.rungs else ())
    routings = tuple(dict.fromkeys(holder.routing for holder in holders))
    if record.calibration is None:
        return routings
    return tuple(one for one in routings if one is None or one.policy not in ("schedule", "detail"))


def _compare(record: TrialRecord, again: TrialRecord) -> tuple[tuple[str, ...], tuple[Difference, ...]]:
    """Compare what is deterministic, but for the weights; say what there was to compare, and what differs."""
    if all(point.quantised is None for point in record.points):  # of a version whose files were no points
        points = tuple(point for point in again.points if point.quantised is None)
        again = again.model_copy(update={"points": points})
    then, now = dict(_facts(record)), dict(_facts(again))
    if record.untrained is None or again.untrained is None:  # the training was an earlier trial's
        then, now = ({what: one for what, one in facts.items() if what[:9] != "untrained"} for facts in (then, now))
    told = {**then, **now} if record.state == again.state else then.keys() & now.keys()  # else one came further
    differences = [_differ(what, then.get(what), now.get(what)) for what in told if then.get(what) != now.get(what)]
    compared = ["ending"]
    if record.training_result is not None:
        compared.append(f"{len(record.training_result.curves)} curves")
    if record.rungs:
        compared.append(f"{len(record.rungs)} rungs")
    if record.compression is not None:
        compared.append(f"{len(record.compression.stages)} stages")
    if record.points:
        compared.append(f"PSNR, SSIM, attention and MACs of {len(record.points)} points")
    if record.params is not None:
        compared.append("params")
    return tuple(compared), tuple(differences)


def _facts(record: TrialRecord) -> Iterator[tuple[str, Any]]:
    """Yield everything of a record that running it again must give again."""
    yield "ending", record.state if record.state == "complete" else f"{record.state}: {record.reason}"
    yield "params", record.params
    for stage in () if record.compression is None else record.compression.stages:
        name = f"{stage.kind} {stage.round}"
        yield f"PSNR after {name}", stage.psnr_db
        yield f"channels after {name}", tuple(stage.widths.items())
    if record.macs_check is not None:
        yield "MACs, counted", record.macs_check.macs
    if record.training_result is not None:
        yield "curves at steps", record.training_result.curve_steps
        for name, curve in record.training_result.curves.items():
            yield f"curve {name}", curve
    if record.untrained is not None:
        yield from _scores("untrained", record.untrained)
    for rung in record.rungs:
        for at in rung.points:
            where = f"rung of {rung.step} steps, {_describe(at.routing)}"
            yield f"{where}: PSNR (dB)", at.psnr_db
            yield f"{where}: SSIM", at.ssim
            yield f"{where}: attention", at.attention_share
            yield f"{where}: MACs", at.macs
    if record.calibration is not None:
        for name, value in record.calibration.model_dump(mode="json", exclude={"seconds"}).items():
            yield f"calibration: {name}", tuple(value) if isinstance(value, list) else value
    for point in record.points:
        where = _describe(point.routing, point.quantised)
        yield f"{where}: routing", None if point.routing is None else point.routing.canonical_json()
        yield from _scores(where, point.evaluation)
        yield f"{where}: MACs", point.macs
        yield f"{where}: params", point.params


def _scores(where: str, evaluation: EvaluationRecord) -> Iterator[tuple[str, Any]]:
    yield f"{where}: PSNR (dB)", evaluation.psnr_db
    yield f"{where}: SSIM", evaluation.ssim
    yield f"{where}: attention", evaluation.attention_share
    yield f"{where}: attention of blocks", evaluation.attention_share_per_block
    for image in evaluation.images:
        yield f"{where}: {image.name}", (image.psnr_db, image.ssim, image.attention_share)
    yield f"{where}: protocol", f"{evaluation.protocol}, tile {evaluation.tile}, wrap {evaluation.wrap}"


def _describe(routing: RoutingConfig | None, quantised: QuantisedFile | None = None) -> str:
    if quantised is not None:
        return f"{_describe(routing)}, {quantised.label}"
    if routing is None:
        return "point"
    return f"schedule {routing.config_hash()[:6]}" if routing.policy == "schedule" else routing.label()


def _differ(what: str, then: Any, now: Any) -> Difference:
    """Say how two values differ: of curves where first, and there by how much."""
    if isinstance(then, tuple) and isinstance(now, tuple) and len(then) == len(now) > 3:
        index = next(index for index, pair in enumerate(zip(then, now, strict=True)) if pair[0] != pair[1])
        count = sum(one != other for one, other in zip(then, now, strict=True))
        return Difference(f"{what}, value {index + 1} and {count - 1} more", _write(then[index]), _write(now[index]))
    return Difference(what, _write(then), _write(now))


def _write(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return f"{len(value)} values" if len(value) > 3 else ", ".join(map(_write, value))
    return repr(value) if isinstance(value, float) else str(value)


def _compare_weights(then: StudyFolder, now: StudyFolder, network: str) -> Difference | None:
    """Compare the averaged weights that both runs ended with."""
    try:
        before = load_file(then.weights_file(network))
    except (OSError, SafetensorError) as error:
        return Difference("weights", f"cannot be read: {' '.join(str(error).split())}", "trained again")
    after = load_file(now.weights_file(network))
    if {name: tensor.shape for name, tensor in before.items()} != {name: one.shape for name, one in after.items()}:
        return Difference("weights", f"{len(before)} tensors", f"{len(after)} tensors, of other names or shapes")
    different = [name for name in before if not torch.equal(before[name], after[name])]
    if not different:
        return None
    furthest = max((before[name].double() - after[name].double()).abs().max().item() for name in different)
    return Difference(
        f"weights, {len(different)} of {len(before)} tensors",
        f"such as {different[0]}",
        f"off by {furthest:.3g} at most" if math.isfinite(furthest) else "not finite",
    )


def _compare_environments(record: TrialRecord, again: TrialRecord) -> tuple[Difference, ...]:
    then, now = dict(_surroundings(record)), dict(_surroundings(again))
    return tuple(
        Difference(what, _write(then[what]), _write(now[what]))
        for what in then
        if what in now and then[what] != now[what]
    )


def _surroundings(record: TrialRecord) -> Iterator[tuple[str, Any]]:
    """Yield where a record was made: versions, machine, threads, and the device's fingerprint where it has one."""
    for name, value in record.environment.model_dump(exclude={"packages"}).items():
        yield name.replace("_", " "), value
    for package in ("torch", "numpy", "pillow"):
        yield package, record.environment.packages.get(package)
    if record.training_result is not None:
        yield "training device", record.training_result.device
        yield "training threads", record.training_result.threads
        yield "training processes", record.training_result.processes
    seen: dict[str, Any] = {}
    for _, latency in _latencies(record):
        if latency.fingerprint is not None:
            for name, value in latency.fingerprint.model_dump().items():
                if name not in ("device", "kernels", "cpu_model", "cpu_count", "platform", "torch_version"):
                    seen.setdefault(f"{latency.short_conditions}: {name.replace('_', ' ')}", value)
    yield from seen.items()


def _latencies(record: TrialRecord) -> Iterator[tuple[str, LatencyRecord]]:
    holders: list[PointRecord | RoutedLatency] = [*record.points, *record.early_latency]
    for holder in holders:
        for latency in holder.latency:
            yield _describe(holder.routing, getattr(holder, "quantised", None)), latency


def _pair_latencies(record: TrialRecord, again: TrialRecord) -> Iterator[LatencyPair]:
    known = {(point, latency.conditions): latency for point, latency in _latencies(again)}
    for point, latency in _latencies(record):
        now = known.get((point, latency.conditions))
        if now is not None:
            yield LatencyPair(point, latency, now)

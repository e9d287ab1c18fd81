"""From a trained network to a smaller one: prune, tune, and again, every stage measured.

Which units go is judged on training crops alone; validation images only tell how good a stage is. What a stage costs is
exact for MACs and parameters. Latency is measured: a table of what the network is at three widths of each kind of
channels, all in one run, tells what a unit of each kind saves; a width that is not measured to be faster saves nothing
and is not chosen; what comes out is measured again, and the choice corrected where the table was wrong.

A run that was killed goes on from its last stage, and from the checkpoint of the tuning that it was in.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from harness.compression import (
    TARGET_TOLERANCE,
    ChannelGroup,
    Cost,
    Curves,
    Fewer,
    Level,
    Narrowing,
    PrunableConfig,
    accumulate_gradients,
    choose_least_loss,
    choose_uniformly,
    find_groups,
    least_important,
    nearest_width,
    remove_channels,
    score_units,
    sum_up_scores,
    widths_of,
)
from harness.core.configs import (
    KINDS,
    MODEL_CONFIG,
    CAMixerSRConfig,
    CompressionConfig,
    RoutingConfig,
    ScheduleConfig,
    TrainingConfig,
)
from harness.core.device_lock import computing
from harness.core.errors import TrialFailedError, UserError
from harness.core.files import atomic_path
from harness.core.quantisation import QuantisationRecord
from harness.core.records import (
    CompressionRecord,
    EvaluationRecord,
    LatencyRecord,
    StageKind,
    StageRecord,
    TrainingRecord,
)
from harness.core.seeding import derive_seed
from harness.data import CropSampler, PairedDataset
from harness.models import SRNetwork, build_model
from harness.profiling import canonical_macs, count_params, parse_device
from harness.training.losses import l1_loss

_PROBED_SHARES = (0.75, 0.5, 0.25)  # of a group's width, at which losses and latencies are measured
_CORRECTIONS = 3
_LATENCY_TOLERANCE = 0.03
_TABLE_TOLERANCE = 0.1  # of estimates, which are measured afterwards
_STAGES = TypeAdapter(tuple[StageRecord, ...])
_TUNING = TypeAdapter(tuple[TrainingRecord, ...])

Crops = Sequence[tuple[Tensor, Tensor]]  # low- and high-resolution batches


Measure = Callable[[Mapping[str, SRNetwork]], Mapping[str, LatencyRecord]]


@dataclass(frozen=True)
class Workshop:
    """What a compression works with.

    `training` is how the network was trained, and `images` on what. `score` evaluates on the validation images,
    `measure` returns latencies of several networks out of one run, by name (None: none are measured).
    `macs_input_size` is low-resolution (height, width). Gradients and PSNR on crops are computed on `device`.
    """

    training: TrainingConfig
    images: PairedDataset
    macs_input_size: tuple[int, int]
    score: Callable[[SRNetwork], EvaluationRecord]
    measure: Measure | None
    device: str = "cpu"


class _State(NamedTuple):
    """A network, and the stages that have made it."""

    network: SRNetwork
    stages: tuple[StageRecord, ...]
    tuning: tuple[TrainingRecord, ...]


class Choice(NamedTuple):
    """Which units go, and what it was to come to."""

    removed: dict[str, list[int]]
    cost: float
    target: float
    estimate: float | None = None


def compress(
    network: SRNetwork,
    config: CompressionConfig,
    workshop: Workshop,
    *,
    parent: str,
    tune: Callable[[SRNetwork, TrainingConfig, str], TrainingRecord],
    file: Path,
    forget: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda phase: None,
) -> tuple[SRNetwork, CompressionRecord]:
    """Return the compressed network, in eval mode, and the record of its stages.

    `parent` is the identity of `network`, which stays as it is. `tune` trains a network in place, as a run with a name
    of its own; the last stage is kept in `file`, and `forget` throws away what training and tuning have kept before it.
    Raises `UserError` for a network without channels to remove and for targets that cannot be reached, and
    `TrialFailedError` where pruning does not make it faster.
    """
    before = network.config
    if not isinstance(before, PrunableConfig):
        raise UserError(f"{before.label()} has no channels to remove; expected CAMixerSR or SwinIR")
    find_groups(before, config.kinds)
    crops = draw_crops(workshop, config.crops)
    whole = network
    state = _read_state(file, network)
    if not state.stages:
        state = _State(network, (_observe("train", 0, network, workshop, crops),), ())
        _write_state(file, state)
    for round_ in range(1, config.rounds + 1) if config.left < 1 else ():
        done = {(stage.kind, stage.round) for stage in state.stages}
        if ("prune", round_) not in done:
            tell(f"pruning, round {round_} of {config.rounds}")
            started = time.perf_counter()
            choice = choose_units(state.network, config, workshop, crops, whole, round_)
            smaller = remove_channels(state.network, choice.removed)
            stage = _observe("prune", round_, smaller, workshop, crops)
            spent = time.perf_counter() - started
            found = {"cost": choice.cost, "target": choice.target, "estimate": choice.estimate, "seconds": spent}
            state = _State(smaller, (*state.stages, stage.model_copy(update=found)), state.tuning)
            forget()  # before the stage is there: a checkpoint is of the tuning that follows the last stage
            _write_state(file, state)
        if ("tune", round_) not in done and config.tune_steps:
            tell(f"tuning, round {round_} of {config.rounds}")
            started = time.perf_counter()
            tuned = tune(state.network, tuning_config(workshop.training, config), f"round-{round_}")
            stage = _observe("tune", round_, state.network, workshop, crops)
            stage = stage.model_copy(update={"seconds": time.perf_counter() - started})
            state = _State(state.network, (*state.stages, stage), (*state.tuning, tuned))
            _write_state(file, state)
    record = CompressionRecord(config=config, model=before, parent=parent, stages=state.stages, tuning=state.tuning)
    return state.network.eval(), record


def compare_plans(
    network: SRNetwork, plans: Sequence[CompressionConfig], workshop: Workshop
) -> tuple[CompressionConfig, list[float]]:
    """Return the plan whose first round of pruning leaves the best network, and what each comes to (dB on crops).

    All are judged on the same crops, as many as the first one asks for. Of a plan that cannot meet the target that is
    −inf; `UserError` where none can.
    """
    crops = draw_crops(workshop, plans[0].crops)
    scores_db: list[float] = []
    for plan in plans:
        try:
            choice = choose_units(network, plan, workshop, crops, network)
        except UserError:
            if plan is plans[-1] and not any(map(math.isfinite, scores_db)):
                raise
            scores_db.append(-math.inf)
            continue
        scores_db.append(score_crops(remove_channels(network, choice.removed), crops, workshop.device))
    return plans[scores_db.index(max(scores_db))], scores_db


def least_cost(config: PrunableConfig, compression: CompressionConfig, size: tuple[int, int]) -> tuple[float, float]:
    """Return what a network costs, in MACs or parameters, and what it does when all channels go that may."""
    cost = exact_cost(config, compression.cost, size)
    groups = find_groups(config, compression.kinds)
    return cost({}), cost({group.name: group.units - widths_of(group, compression.round_to)[-1] for group in groups})


def tuning_config(training: TrainingConfig, config: CompressionConfig) -> TrainingConfig:
    """Return how a pruned network is trained on in one round: as before, at a lower rate, by a cosine to its end."""
    steps = -(-config.tune_steps // config.rounds)
    changes: dict[str, Any] = {
        "steps": steps,
        "learning_rate": training.learning_rate * config.tune_rate,
        "schedule": ScheduleConfig(name="cosine", warmup_steps=min(steps // 20, 100)),
        "checkpoint_interval": min(training.checkpoint_interval, steps),
    }
    return training.model_copy(update=changes)


def quantise_stage(stages: Sequence[StageRecord], record: QuantisationRecord, file: str) -> StageRecord:
    """Return the last stage of a chain: what the network is in the runtime once it is quantised."""
    assert record.after is not None
    return stages[-1].model_copy(
        update={
            "kind": "quantise",
            "round": 0,
            "psnr_db": record.after.psnr_db,
            "ssim": record.after.ssim,
            "crops_psnr_db": None,
            "latency": () if record.latency is None else (record.latency,),
            "file": file,
            "cost": None,
            "target": None,
            "estimate": None,
            "seconds": record.seconds,
        }
    )


def draw_crops(workshop: Workshop, batches: int) -> Crops:
    """Return batches of training crops, the same ones for the same training."""
    training = workshop.training
    sampler = CropSampler(
        workshop.images,
        batch_size=training.batch_size,
        hr_patch_size=training.hr_patch_size,
        augment=False,
        seed=derive_seed(training.seed, "compression"),
        task=training.task,
    )
    drawn = [sampler.next_batch() for _ in range(batches)]
    return [(batch.low_BCHW, batch.high_BCHW) for batch in drawn]


def score_crops(network: SRNetwork, crops: Crops, device: str = "cpu") -> float:
    """Return the mean PSNR (dB, RGB, clipped to [0, 1]) over crops; `TrialFailedError` where it is not finite.

    Measurements of others go before, between batches. The network is left where it was, in its mode.
    """
    was_training = network.training
    network.eval().to(device)
    values: list[Tensor] = []
    for low_BCHW, high_BCHW in crops:
        with computing(parse_device(device).lock), torch.inference_mode():
            output_BCHW = network(low_BCHW.to(device)).clamp(0, 1)
            error_B = (output_BCHW - high_BCHW.to(device)).square().mean(dim=(1, 2, 3))
            values.append(-10 * torch.log10(error_B.double().clamp_min(1e-10)).cpu())
    network.train(was_training).to("cpu")
    mean_db = torch.cat(values).mean().item()
    if not math.isfinite(mean_db):
        raise TrialFailedError("the output on training crops is not finite; the weights are not")
    return mean_db


def _find_gradients(network: SRNetwork, crops: Crops, device: str) -> None:
    """Leave gradients on crops in the network, computed batch by batch."""
    network.to(device)
    placed = ((low_BCHW.to(device), high_BCHW.to(device)) for low_BCHW, high_BCHW in crops)
    accumulate_gradients(network, placed, l1_loss, turn=lambda: computing(parse_device(device).lock))
    network.to("cpu")


def choose_units(
    network: SRNetwork,
    config: CompressionConfig,
    workshop: Workshop,
    crops: Crops,
    whole: SRNetwork,
    round_: int = 1,
) -> Choice:
    """Choose the units that go in one round, so that `left`^(round / rounds) of the cost of `whole` stays."""
    assert isinstance(network.config, PrunableConfig)
    groups = find_groups(network.config, config.kinds)
    share = config.left ** (round_ / config.rounds)
    if config.importance == "taylor":
        _find_gradients(network, crops, workshop.device)
    scores = score_units(
        network, groups, config.importance, seed=derive_seed(workshop.training.seed, "importance", round_)
    )
    network.zero_grad()
    if config.scope == "measured":
        curves = measure_losses(network, groups, scores, crops, config.round_to, workshop.device)
    else:
        curves = sum_up_scores(groups, scores, config.round_to)

    tolerance = _TABLE_TOLERANCE if config.cost == "latency" else TARGET_TOLERANCE

    def choose(cost: Cost, target: float) -> Fewer:
        if config.scope == "uniform":
            return choose_uniformly(groups, cost, target, config.round_to, tolerance)
        return choose_least_loss(curves, cost, target, tolerance)

    if config.cost == "latency":
        return _choose_by_latency(network, groups, scores, config.round_to, choose, workshop, whole, share)
    cost = exact_cost(network.config, config.cost, workshop.macs_input_size)
    target = share * exact_cost(_config_of(whole), config.cost, workshop.macs_input_size)({})
    fewer = choose(cost, target)
    return Choice(least_important(scores, fewer), cost(fewer), target)


def _config_of(network: SRNetwork) -> PrunableConfig:
    assert isinstance(network.config, PrunableConfig)
    return network.config


def exact_cost(config: PrunableConfig, cost: str, size: tuple[int, int]) -> Cost:
    """Return canonical MACs (`macs`) or parameters (`params`) as a function of how many units go.

    Routing `threshold`, whose MACs depend on the image, counts as γ = 0.5.
    """
    if isinstance(config, CAMixerSRConfig) and config.routing.policy == "threshold":
        config = config.with_routing(RoutingConfig(gamma=0.5))
    narrowing = Narrowing(config)
    if cost == "params":
        return lambda fewer: float(count_params(narrowing(fewer)))
    return lambda fewer: float(canonical_macs(narrowing(fewer), size))


def _probed_counts(group: ChannelGroup, round_to: int) -> list[int]:
    """Return how many units less the probed widths are; none where a group is too narrow to have any."""
    nearest = {nearest_width(group, share, round_to) for share in _PROBED_SHARES}
    return sorted(group.units - width for width in nearest if width < group.units)


def measure_losses(
    network: SRNetwork,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    crops: Crops,
    round_to: int = 1,
    device: str = "cpu",
) -> Curves:
    """Return what each group loses alone at each width, in dB over crops: measured at three widths, linear in between.

    Losses count from 0 and never fall: what is better without some units is as good as with them.
    """
    whole_db = score_crops(network, crops, device)
    curves: dict[str, list[Level]] = {}
    for group in groups:
        known = [Level(0, 0.0)]
        for count in _probed_counts(group, round_to):
            fewer = remove_channels(network, least_important(scores, {group.name: count}), checked=False)
            known.append(Level(count, max(known[-1].loss, whole_db - score_crops(fewer, crops, device))))
        counts = [group.units - width for width in widths_of(group, round_to)]
        curves[group.name] = [Level(count, _interpolate(known, count)) for count in counts if count <= known[-1].fewer]
    return curves


def _interpolate(known: Sequence[tuple[float, float]], count: float) -> float:
    for (left, lower), (right, upper) in itertools.pairwise(known):
        if count <= right:
            return lower + (upper - lower) * (count - left) / (right - left)
    return known[-1][1]


class LatencyTable(NamedTuple):
    """What share of a network's latency units of each kind save, when all groups of the kind give up as many.

    `savings` are by kind: units less of each group (of the mean group), and the share saved, from (0, 0) on; it never
    falls, and a width that was not measured to be faster saves no more than a wider one.
    """

    savings: Mapping[str, Sequence[tuple[float, float]]]
    groups: Mapping[str, int]

    def left(self, fewer: Fewer) -> float:
        """Return the share of the latency that is left: groups of a block add up, and all shrink with the features."""
        saved = dict.fromkeys(self.savings, 0.0)
        for name, count in fewer.items():
            kind = name.partition(" ")[0]
            saved[kind] += _interpolate(self.savings[kind], count) / self.groups[kind]
        features = saved.pop("features", 0.0)
        return (1 - features) * (1 - sum(saved.values()))


def measure_savings(
    network: SRNetwork,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    measure: Measure,
    round_to: int = 1,
) -> LatencyTable:
    """Measure the network with each kind of channels at three widths, in all groups at once, all in one run."""
    by_kind: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        by_kind.setdefault(group.kind, []).append(group)
    probed: dict[str, dict[str, float]] = {kind: {} for kind in by_kind}  # units less of the mean group, by variant
    variants = {"whole": network}
    for kind, alike in by_kind.items():
        most = 0.0
        for share in _PROBED_SHARES:
            fewer = {group.name: group.units - nearest_width(group, share, round_to) for group in alike}
            mean = sum(fewer.values()) / len(fewer)
            if mean > most:
                most = probed[kind][f"{kind} {share}"] = mean
                variants[f"{kind} {share}"] = remove_channels(network, least_important(scores, fewer), checked=False)
    records = measure(variants)
    whole = records["whole"]
    savings = {kind: [(0.0, 0.0)] for kind in by_kind}
    for kind, means in probed.items():
        for name, mean in means.items():
            saved = 1 - records[name].median / whole.median if _is_faster(records[name], whole) else 0.0
            savings[kind].append((mean, max(savings[kind][-1][1], saved)))
    return LatencyTable(savings, {kind: len(alike) for kind, alike in by_kind.items()})


def _is_faster(one: LatencyRecord, than: LatencyRecord) -> bool:
    """Whether the intervals of two latencies out of one run are apart; without intervals nothing speaks against it."""
    return one.interval is None or than.interval is None or one.interval[1] < than.interval[0]


def _choose_by_latency(
    network: SRNetwork,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    round_to: int,
    choose: Callable[[Cost, float], Fewer],
    workshop: Workshop,
    whole: SRNetwork,
    share: float,
) -> Choice:
    """Choose by the table, measure what comes out, and choose again for a target as far off as the table was."""
    measure = workshop.measure
    if measure is None:
        raise UserError("compression by latency measures it; expected a space or command that measures latency")
    table = measure_savings(network, groups, scores, measure, round_to)
    now = 1.0
    if network is not whole:
        measured = measure({"whole": whole, "now": network})
        now = measured["now"].median / measured["whole"].median
    target = share / now  # of this network's latency
    if target >= 1:  # reached by rounds before
        return Choice({}, now, share, now)
    aim, best = target / (1 + _LATENCY_TOLERANCE / 2), None
    for _ in range(_CORRECTIONS):
        try:
            fewer = choose(table.left, aim)
        except UserError:
            if best is not None:
                break  # no nearer than before
            least = now * table.left({group.name: group.units - widths_of(group, round_to)[-1] for group in groups})
            raise UserError(
                f"{share:.1%} of the latency cannot be reached by removing channels: by what was measured, {least:.1%} "
                "are left at the least; expected more than that, or more kinds of channels"
            ) from None
        removed = least_important(scores, fewer)
        measured = measure({"now": network, "candidate": remove_channels(network, removed, checked=False)})
        before, after = measured["now"], measured["candidate"]
        ratio = after.median / before.median
        if not _is_faster(after, before):
            if best is not None:
                break
            raise TrialFailedError(
                f"without {sum(fewer.values())} channels the network takes {ratio:.3f} of its time on {after.device}, "
                "which is not faster; nothing is pruned"
            )
        choice = Choice(removed, ratio * now, share, table.left(fewer) * now)
        # The best that meets the target is the slowest of them; of those that do not, the fastest.
        rank = (ratio > target * (1 + _LATENCY_TOLERANCE), abs(ratio - target))
        if best is None or rank < best[0]:
            best = (rank, choice)
        if abs(ratio / target - 1) <= _LATENCY_TOLERANCE:
            break
        aim *= target / ratio
    assert best is not None
    (misses, _), choice = best
    if misses:
        raise UserError(
            f"{share:.1%} of the latency are not reached: {choice.cost:.1%} are left of it, as measured, in the best "
            f"of {_CORRECTIONS} choices; expected a larger share, more kinds of channels, or more rounds"
        )
    return choice


def _observe(kind: StageKind, round_: int, network: SRNetwork, workshop: Workshop, crops: Crops) -> StageRecord:
    """Record what a network is; its latency beside the study's reference, as that of points.

    That of a tuned network is the pruned one's.
    """
    config = _config_of(network)
    widths = dict.fromkeys(KINDS[config.family], 0)
    for group in find_groups(config):
        widths[group.kind] += group.units
    evaluation = workshop.score(network)
    latency: tuple[LatencyRecord, ...] = ()
    if workshop.measure is not None and kind != "tune":
        latency = (workshop.measure({"stage": network})["stage"],)
    return StageRecord(
        kind=kind,
        round=round_,
        params=count_params(config),
        macs=round(exact_cost(config, "macs", workshop.macs_input_size)({})),
        widths=widths,
        psnr_db=evaluation.psnr_db,
        ssim=evaluation.ssim,
        crops_psnr_db=score_crops(network, crops, workshop.device),
        latency=latency,
    )


def _write_state(file: Path, state: _State) -> None:
    """Keep a stage in one file, written in one step: weights, and beside them config and records."""
    told = {
        "model": _config_of(state.network).canonical_json(),
        "stages": _STAGES.dump_json(state.stages).decode(),
        "tuning": _TUNING.dump_json(state.tuning).decode(),
    }
    with atomic_path(file) as temporary:
        temporary.write_bytes(save(state.network.state_dict(), metadata=told))


def _read_state(file: Path, network: SRNetwork) -> _State:
    """Return the last stage that was kept; the network itself, without any, where there is none that can be read."""
    try:
        with safe_open(file, framework="pt") as kept:
            told = kept.metadata()
            weights = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 (no dictionary)
        found = build_model(MODEL_CONFIG.validate_python(json.loads(told["model"])))
        found.load_state_dict(weights)
        return _State(found.eval(), _STAGES.validate_json(told["stages"]), _TUNING.validate_json(told["tuning"]))
    except FileNotFoundError:
        return _State(network, (), ())
    except Exception:  # damaged: the stages are made again
        file.unlink(missing_ok=True)
        return _State(network, (), ())

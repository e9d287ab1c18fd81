"""A study as it is read for reports: its record, its trials, its baselines, and the points they hold."""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.core.configs import TrainingConfig
from harness.core.errors import UserError
from harness.core.lean import LeanReader
from harness.core.records import LatencyRecord, PointRecord, StudyRecord, TrialRecord, find_latency, point_id
from harness.core.study_folder import StudyFolder

BaselineName = Literal["bicubic", "swinir-light"]
BASELINE_IDS: dict[BaselineName, str] = {"bicubic": "baseline-bicubic", "swinir-light": "baseline-swinir-light"}


@dataclass(frozen=True, slots=True)
class Point:
    """One point with the record of the network that it belongs to."""

    record: TrialRecord
    measured: PointRecord

    @property
    def point_id(self) -> str:
        """The identity of (network, routing, file)."""
        return point_id(self.record.network_id, self.measured.routing, self.measured.quantised)

    @property
    def identity(self) -> tuple[str, str | None, tuple[float, ...] | None, float | None, str | None]:
        """(network, policy, γ or weight of each block, realised attention share, file): what makes points distinct.

        Two γ that come to the same K in every block are the same point.
        """
        routing, share = self.measured.routing, self.measured.evaluation.attention_share
        return (
            self.record.network_id,
            routing.policy if routing else None,
            routing.per_block if routing else None,
            None if share is None else round(share, 9),
            None if self.measured.quantised is None else self.measured.quantised.sha256,
        )

    @property
    def label(self) -> str:
        """The network's label with its routing, such as 'C24 groups 1-1 M16, fixed γ=0.5', and what runs its file."""
        routing, quantised = self.measured.routing, self.measured.quantised
        parts = [self.record.label, routing.label() if routing else None, quantised.label if quantised else None]
        return ", ".join(part for part in parts if part)

    def latency(self, conditions: str | None = None) -> LatencyRecord | None:
        """Return the latency under `conditions` such as `cpu:1` or `cpu:1/bf16` (None: the first); None without one."""
        return find_latency(self.measured.latency, conditions)


@dataclass(frozen=True)
class Study:
    """Everything that a study's folder says. Reports are functions of this and of nothing else.

    `found` is for what is expensive to find and needed by several reports, such as the front.
    """

    record: StudyRecord
    trials: tuple[TrialRecord, ...]
    baselines: tuple[TrialRecord, ...]
    found: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def all_points(self) -> tuple[Point, ...]:
        """Every point of the complete trials, in the order of the records, repeated ones included."""
        return tuple(
            Point(trial, point) for trial in self.trials if trial.state == "complete" for point in trial.points
        )

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The distinct points of the complete trials; of repeated ones, the first counts."""
        distinct: dict[object, Point] = {}
        for point in self.all_points:
            distinct.setdefault(point.identity, point)
        return tuple(distinct.values())

    def baseline(self, name: BaselineName) -> Point | None:
        """Return the point of a baseline, or None where it is absent or did not complete."""
        for record in self.baselines:
            if record.record_id == BASELINE_IDS[name] and record.state == "complete" and record.points:
                return Point(record, record.points[0])
        return None

    @cached_property
    def networks(self) -> tuple[TrialRecord, ...]:
        """The trials that trained a network to the end; of repeated networks, the first counts."""
        distinct: dict[str, TrialRecord] = {}
        for trial in self.trials:
            if trial.state == "complete":
                distinct.setdefault(trial.network_id, trial)
        return tuple(distinct.values())

    @property
    def num_architectures(self) -> int:
        """The number of distinct networks that trials trained to the end."""
        return len({point.record.network_id for point in self.points})

    @cached_property
    def recipes(self) -> tuple[TrainingConfig, ...]:
        """How the networks behind the points and baselines were trained; the study's own recipe when there are none."""
        holders = {id(point.record): point.record for point in self.points}
        records = [*holders.values(), *(found for found in self.baselines if found.points)]
        return tuple(record.training for record in records if record.training) or (self.record.training,)

    @cached_property
    def converged(self) -> bool:
        """Whether every network had a full recipe; otherwise comparisons in dB say 'not converged'."""
        return all(recipe.is_full_recipe for recipe in self.recipes)

    @cached_property
    def convergence_note(self) -> str | None:
        """The words 'not converged' with the steps, or None after full recipes."""
        return None if self.converged else not_converged(recipe for recipe in self.recipes if not recipe.is_full_recipe)

    @cached_property
    def noise_note(self) -> str | None:
        """How many latencies are of runs that other work disturbed, in words; None where none is."""
        found = [latency for point in self.points for latency in point.measured.latency]
        noisy = sum(latency.is_noisy for latency in found)
        if not noisy:
            return None
        return (
            f"{noisy:,} of {len(found):,} latencies are of noisy runs, which other work on the machine disturbed: "
            "milliseconds may be twice too long, and small differences are none"
        )

    @cached_property
    def seam_note(self) -> str | None:
        """What MACs and latencies leave out of panoramas, in words; None where nothing was continued around a seam."""
        holders = [*self.all_points, *(point for name in BASELINE_IDS if (point := self.baseline(name)))]
        notes = dict.fromkeys(point.measured.evaluation.seam_note for point in holders)
        return "; ".join(note for note in notes if note) or None

    @property
    def calibration_notes(self) -> tuple[str, ...]:
        """Which networks have no calibrated points, and why; empty where all have, or none was calibrated."""
        return tuple(
            f"trial {trial.number} has no calibrated points: {trial.calibration.note}"
            for trial in self.trials
            if trial.calibration is not None and trial.calibration.note is not None
        )


def not_converged(recipes: Iterable[TrainingConfig]) -> str:
    """Return 'not converged: 100 steps', with the range where the steps differ."""
    steps = [recipe.steps for recipe in recipes]
    low, high = f"{min(steps):,}", f"{max(steps):,}"
    return f"not converged: {low if low == high else f'{low}–{high}'} steps"


def latency_settings(
    latencies: Sequence[LatencyRecord], *, mix: bool = False, remedy: str = "give --mix to see them side by side"
) -> list[str]:
    """Return the settings (protocol, device, conditions) that latencies of one column were measured under, each once.

    Raises `UserError` for more than one, because such numbers do not compare, unless told to `mix` them; `remedy` is
    what else to do than to measure them alike.
    """
    counts = Counter(latency.setting for latency in latencies)
    notes = Counter(
        f"{latency.setting}, run by {latency.runtime_note}" for latency in latencies if latency.runtime_note
    )
    if len(counts) > 1 and not mix:
        found = "; ".join(f"{count} of {setting}" for setting, count in counts.items())
        raise UserError(
            f"latencies of one column were measured under different protocols, devices or conditions: {found}; measure "
            f"them alike, or {remedy}"
        )
    return [*counts, *(f"{count} of them quantised: {note}" for note, count in notes.items())]


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Let the garbage collector wait: it would look through all records of a study again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@without_collection()
def load_study(folder: Path) -> Study:
    """Read a study's folder; `UserError` where there is no study, or a file is not a record of this version.

    The records of trials are lean: without samples, scores of single images and rungs (see `core/lean.py`).
    """
    source = StudyFolder(folder)
    reader = LeanReader()
    found = (one if one.kind == "baseline" else reader.lean(one) for one in source.read_trials())
    return make_study(source.read_study(), found)


def make_study(record: StudyRecord, found: Iterable[TrialRecord]) -> Study:
    """Put a study together of its record and those of its trials and baselines; `UserError` where one stands twice."""
    trials: list[TrialRecord] = []
    baselines: list[TrialRecord] = []
    for one in found:
        (baselines if one.kind == "baseline" else trials).append(one)
    trials.sort(key=lambda trial: (trial.number is None, trial.number or 0, trial.record_id))
    if len({trial.record_id for trial in trials}) != len(trials):
        raise UserError(f"study {record.name!r}: two files in trials/ hold the same record_id; keep one of them")
    return Study(record=record, trials=tuple(trials), baselines=tuple(baselines))

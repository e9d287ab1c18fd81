"""How far a study has come, from its records, its checkpoints and its lock: read while a search runs, writing nothing.

Nothing is locked or opened for writing, and no network is loaded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import ValidationError

from harness.core.checkpoints import Listed, parse_place
from harness.core.configs import BudgetConfig
from harness.core.errors import UserError
from harness.core.files import lock_holders
from harness.core.given import read_given
from harness.core.records import WAITING, StudyRecord, TrialRecord, TrialState
from harness.core.study_folder import KnownTrials, StudyFolder
from harness.core.units import format_seconds
from harness.reporting.front import Front, Moment, hypervolume_history, study_front
from harness.reporting.study import BASELINE_IDS, Study, make_study

_BARS = "▁▂▃▄▅▆▇█"
_MOST_MOMENTS = 40


class Checkpoint(NamedTuple):
    """A network that is being trained, or whose training was interrupted: its checkpoint's age and size.

    Some object storages do not tell an age.
    """

    network_id: str
    seconds_old: float | None
    size_bytes: int


@dataclass(frozen=True)
class Progress:
    """How far a study has come.

    `processes` search in its folder, and `workers` (`harness worker`) train for it: none, or None where the system does
    not tell. `baseline` is the one that the search is at now. `budget` is None where the text of
    the space does not say it any more. `checkpoints` are those of networks without a record; `checkpoints_unseen`
    says why none are known, where the place that they are kept at cannot be looked at. `seconds_per_network` is the
    mean of the complete trials, `seconds_waited` what each waited for other processes besides, `seconds_left` what the
    networks that are left would take at the pace of the complete ones, those trained side by side and breaks left out:
    None before the first, and without a budget.
    """

    study: Study
    front: Front
    history: tuple[Moment, ...]
    budget: BudgetConfig | None
    processes: tuple[int, ...] | None
    workers: tuple[int, ...] | None
    baseline: str | None
    checkpoints: tuple[Checkpoint, ...]
    checkpoints_unseen: str | None
    seconds_per_network: float | None
    seconds_waited: float | None
    seconds_left: float | None
    last: TrialRecord | None
    last_failure: TrialRecord | None
    observed_at: datetime

    @property
    def states(self) -> dict[TrialState, int]:
        """How many trials ended in which state, baselines left aside."""
        return count_states(self.study)

    @property
    def is_searched(self) -> bool | None:
        """Whether anybody works for the study on this machine; None where the system does not tell."""
        return None if self.processes is None else bool(self.processes or self.workers)

    @property
    def running(self) -> int:
        """How many networks are in training, by their checkpoints: none where nobody works, baselines left aside."""
        of_baseline = self.baseline is not None
        return 0 if self.is_searched is False else max(0, len(self.checkpoints) - of_baseline)

    @property
    def last_seconds_ago(self) -> float | None:
        """How long ago the last record was written."""
        return None if self.last is None else max(0.0, self.observed_at.timestamp() - _time(self.last.finished_at))


def observe_progress(folder: Path, known: KnownTrials | None = None, now: datetime | None = None) -> Progress:
    """Read how far a study has come; `UserError` where there is none. `known`: see `StudyFolder.read_trials`."""
    source = StudyFolder(folder)
    processes, workers = lock_holders(source.search_lock), lock_holders(source.worker_lock)
    record = source.read_study()
    checkpoints, unseen = _find_checkpoints(source, record)  # before those of trials: what is done meanwhile has one
    study = make_study(record, source.read_trials(known))
    now = now or datetime.now(UTC)
    records = sorted((*study.trials, *study.baselines), key=lambda one: (one.finished_at, one.record_id))
    budget = read_budget(record.space)
    return Progress(
        study=study,
        front=study_front(study),
        history=hypervolume_history(study, _MOST_MOMENTS),
        budget=budget,
        processes=processes,
        workers=workers,
        baseline=_find_baseline(study) if processes else None,
        checkpoints=tuple(
            Checkpoint(network, None if changed is None else max(0.0, now.timestamp() - changed), size)
            for network, changed, size in checkpoints
            if not _is_over(network, changed, records)
        ),
        checkpoints_unseen=unseen,
        seconds_per_network=_mean([_seconds(one) - one.seconds.get(WAITING, 0.0) for one in study.networks]),
        seconds_waited=_mean([one.seconds.get(WAITING, 0.0) for one in study.networks]),
        seconds_left=estimate_seconds_left(study, budget),
        last=records[-1] if records else None,
        last_failure=next((one for one in reversed(records) if one.state == "failed"), None),
        observed_at=now,
    )


def _find_baseline(study: Study) -> str | None:
    """Return the baseline that a search in the study's folder is at: they are trained first, one after the other."""
    try:
        space, given = yaml.safe_load(study.record.space), read_given(study.record.space)
        names = list(given.get("baselines", space.get("baselines", list(BASELINE_IDS))))
    except (yaml.YAMLError, AttributeError, TypeError):
        return None
    done = {one.record_id for one in study.baselines if one.state == "complete"}
    return next((str(name) for name in names if f"baseline-{name}" not in done), None)


def read_budget(space_text: str) -> BudgetConfig | None:
    """Return the budget that a study's text of its space says, or None where it cannot be read."""
    try:
        space = yaml.safe_load(space_text)
        settings = dict(space.get("budget") or {})
        for key, value in read_given(space_text).items():
            if key == "budget":
                settings = dict(value)
            elif key.startswith("budget."):
                settings[key.removeprefix("budget.")] = value
        return BudgetConfig.model_validate(settings)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, ValidationError):
        return None


def count_states(study: Study) -> dict[TrialState, int]:
    """Return how many trials ended in which state."""
    states = [trial.state for trial in study.trials]
    return {state: states.count(state) for state in get_args(TrialState)}


def estimate_seconds_left(study: Study, budget: BudgetConfig | None) -> float | None:
    """Return what the networks that are left of the budget take at the pace of the complete ones, or None."""
    mean = _mean([_seconds(one) for one in study.networks])
    if mean is None or budget is None:
        return None
    return max(0, budget.networks - len(study.networks)) * mean / _side_by_side(study.networks)


def describe_progress(study: Study, budget: BudgetConfig | None) -> str:
    """Describe on one line how far a study has come."""
    front = study_front(study)
    parts = [f"{describe_networks(study, budget)} networks trained"]
    others = [f"{count} {state}" for state, count in count_states(study).items() if count and state != "complete"]
    parts += [", ".join(others)] if others else []
    if front.points:
        parts.append(f"front of {len(front.points)}, hypervolume {front.hypervolume:.4g}")
    left = estimate_seconds_left(study, budget)
    if left:
        parts.append(f"about {format_seconds(left)} left")
    return "; ".join(parts)


def describe_networks(study: Study, budget: BudgetConfig | None) -> str:
    """Say how many networks are trained of how many: '3 of 8'."""
    trained = len(study.networks)
    return f"{trained}" if budget is None else f"{trained} of {budget.networks}"


def sparkline(values: Sequence[float]) -> str:
    """Draw values as bars between the smallest and the largest; equal ones as low bars."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)


def baseline_states(progress: Progress) -> dict[str, str]:
    """Return how each baseline ended, by name; `running` for the one that the search is at."""
    states: dict[str, str] = {one.record_id.removeprefix("baseline-"): one.state for one in progress.study.baselines}
    return states if progress.baseline is None else {**states, progress.baseline: "running"}


def progress_document(progress: Progress) -> dict[str, Any]:
    """Return progress as a dict that is valid JSON."""
    study, last, failure = progress.study, progress.last, progress.last_failure
    knee = progress.front.knee
    return {
        "study": study.record.name,
        "observed_at": progress.observed_at.isoformat(timespec="seconds"),
        "searching": progress.is_searched,
        "processes": progress.processes,
        "workers": progress.workers,
        "networks": len(study.networks),
        "budget": None if progress.budget is None else progress.budget.model_dump(),
        "trials": {**progress.states, "running": progress.running},
        "baselines": baseline_states(progress),
        "front_size": len(progress.front.points),
        "knee": None if knee is None else knee.point_id,
        "hypervolume": progress.front.hypervolume,
        "hypervolume_reference": progress.front.hypervolume_reference,
        "history": [moment._asdict() for moment in progress.history],
        "checkpoints": [checkpoint._asdict() for checkpoint in progress.checkpoints],
        "checkpoints_unseen": progress.checkpoints_unseen,
        "seconds_per_network": progress.seconds_per_network,
        "seconds_waited": progress.seconds_waited,
        "seconds_left": progress.seconds_left,
        "last_record": _brief(last),
        "last_failure": _brief(failure),
    }


def _brief(record: TrialRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    names = ("record_id", "label", "state", "reason", "finished_at")
    return {name: getattr(record, name) for name in names}


def _find_checkpoints(folder: StudyFolder, record: StudyRecord) -> tuple[list[Listed], str | None]:
    """Find checkpoints, the latest first; or say why they cannot be found."""
    try:
        if record.checkpoints is not None and folder.token_file.is_file():
            folder = folder.keep_checkpoints(parse_place(record.checkpoints), record.name)
        found = folder.checkpoints.find()
    except UserError as error:
        return [], str(error)
    return sorted(found, key=lambda entry: -(entry.changed or 0.0)), None


def _is_over(network: str, changed: float | None, records: Iterable[TrialRecord]) -> bool:
    """Whether a network has a record that is not older than its checkpoint, to the second."""
    return any(
        record.network_id == network
        and record.state in ("complete", "stopped", "failed")
        and (changed is None or _time(record.finished_at) >= int(changed))
        for record in records
    )


def _seconds(record: TrialRecord) -> float:
    return sum(record.seconds.values())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _side_by_side(networks: Sequence[TrialRecord]) -> float:
    """Return how many trials ran at a time, over the time in which any did; times of records are whole seconds."""
    spans = sorted((_time(record.started_at), _time(record.finished_at)) for record in networks)
    busy, until = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    total = sum(end - start for start, end in spans)
    return max(1.0, total / busy) if busy else 1.0


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()

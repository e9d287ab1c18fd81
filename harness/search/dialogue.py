"""What is asked of Optuna and told to it: proposals, points, rungs and reasons.

All that several workers have to know of each other's networks stands in the study: a network's values at a rung are
attributes of its trial, so that whoever comes to that rung reads them, wherever the study is stored.
"""

import contextlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from harness.core.configs import Rung
from harness.search.halving import Points, judge
from harness.search.proposals import Params, decode_params, distribution, encode_values, suggest
from harness.search.samplers import make_sampler
from harness.search.space import ROUTING_DIMENSIONS, SearchSpace, Values
from harness.search.storage import ONCE, add_finished, at_once
from harness.trial import Verdict

_AGAIN = "again"  # attribute of a trial that another takes the place of


class Point(NamedTuple):
    """What is told of one routing of a trained network."""

    suggestion: Values
    values: Sequence[float]
    violations: Mapping[str, float]


class Overview:
    """What a study's trials say together. Finished ones change no more, so that each of them is looked at once.

    `rest`: all trials from the first on that is not finished.
    """

    def __init__(self) -> None:
        self.rest: Sequence[FrozenTrial] = ()
        self._settled = 0  # trials before the rest
        self._places = 0
        self._newest = -1
        self._record_ids: set[object] = set()
        self._by_network: dict[object, list[FrozenTrial]] = {}

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Take note of a study's trials: all of them, in the order of their numbers."""
        while self._settled < len(trials) and trials[self._settled].state.is_finished():
            trial = trials[self._settled]
            self._settled += 1
            self._places += _AGAIN not in trial.user_attrs
            self._newest = max(self._newest, trial._trial_id)
            self._record_ids.add(trial.user_attrs.get("record_id"))
            self._by_network.setdefault(trial.user_attrs.get("network"), []).append(trial)
        self.rest = trials[self._settled :]

    @property
    def places(self) -> int:
        """How many trials there are that were not proposed again."""
        return self._places + sum(_AGAIN not in trial.user_attrs for trial in self.rest)

    @property
    def newest(self) -> int:
        """The greatest id of a trial, -1 where there is none."""
        return max((self._newest, *(trial._trial_id for trial in self.rest)))

    def has(self, record_id: str) -> bool:
        """Whether a trial has the id of a record."""
        return record_id in self._record_ids or any(
            trial.user_attrs.get("record_id") == record_id for trial in self.rest
        )

    def of_network(self, network: str) -> list[FrozenTrial]:
        """Return the trials that proposed a network, and those that were added for its points."""
        rest = [trial for trial in self.rest if trial.user_attrs.get("network") == network]
        return [*self._by_network.get(network, ()), *rest]


class Dialogue:
    """One side of a study: every call reads what others have told meanwhile."""

    def __init__(self, space: SearchSpace, study: optuna.Study):
        self.space = space
        self.study = study
        self._signs = np.array([-1.0 if one.direction == "maximize" else 1.0 for one in space.objectives])
        self._overview = Overview()

    def read(self) -> Overview:
        """Return what all trials of the study say now."""
        self._overview.read(self.study.get_trials(deepcopy=False))
        return self._overview

    def ask(self, seen: Overview | None = None) -> Trial:
        """Return a new trial, or the one that waits longest, with the sampler of its place among those `seen` last.

        Trials that were proposed again do not count, so that a study that was interrupted goes on as it would have.
        """
        self.study.sampler = make_sampler(self.space, (seen or self.read()).places)
        with warnings.catch_warnings():  # heartbeats are the worker's, not those of `Study.optimize`
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            return self.study.ask()

    def at_once(self, trial: Trial) -> contextlib.AbstractContextManager[None]:
        """Write what is suggested and said of a trial in the block when it ends, all at once."""
        return at_once(self.study, trial._trial_id)

    def suggest(self, trial: Trial) -> Values:
        """Return what the sampler proposes for a trial."""
        return suggest(trial, self.space)

    def set_aside(self, trial: Trial | FrozenTrial) -> None:
        """Mark a trial that still runs as one that another takes the place of; whoever has closed it has marked it."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.study._storage.set_trial_user_attr(trial._trial_id, _AGAIN, True)

    def queued(self) -> set[str]:
        """Return all proposals that were ever queued, as sorted JSON."""
        trials = self.study.get_trials(deepcopy=False)
        return {key(trial.user_attrs["proposal"]) for trial in trials if "proposal" in trial.user_attrs}

    def was_queued(self, once: str) -> bool:
        """Whether a proposal was ever queued for the reason that `once` names."""
        return any(trial.user_attrs.get(ONCE) == once for trial in self.study.get_trials(deepcopy=False))

    def queue(self, params: Params, *, once: str, **marks: int | str) -> None:
        """Queue a proposal, once for the reason that `once` names, whoever else queues it for the same reason."""
        if not self.was_queued(once):
            self.study.enqueue_trial(params, user_attrs={"proposal": params, ONCE: once, **marks})

    def tell_point(self, trial: Trial, values: Sequence[float], violations: Mapping[str, float]) -> None:
        """Tell the objectives of a trained network's suggested point."""
        with self._unless_told(trial):
            self._constrain(trial, violations)
            self.study.tell(trial, list(values))

    @contextlib.contextmanager
    def _unless_told(self, trial: Trial) -> Iterator[None]:
        """Pass by a trial that was told before: the storage was lost before it said so."""
        try:
            yield
        except (UpdateFinishedTrialError, ValueError):
            if self.study._storage.get_trial(trial._trial_id).state == TrialState.RUNNING:
                raise

    def add_points(self, record_id: str, network: str, points: Sequence[Point]) -> None:
        """Add other points of a trained network as finished siblings of its trial, each once."""
        seen = self.read()
        told = [trial for trial in seen.of_network(network) if trial.state == TrialState.COMPLETE]
        routings = [_routing(self.values_of(trial)) for trial in told]
        missing = [
            create_trial(
                params=encode_values(point.suggestion),
                distributions={name: distribution(self.space.dimensions[name]) for name in point.suggestion},
                values=list(point.values),
                constraints=dict(point.violations) or None,
                user_attrs={
                    "record_id": record_id,
                    "network": network,
                    ONCE: f"{network} {json.dumps(_routing(point.suggestion))}",
                },
            )
            for point in points
            if _routing(point.suggestion) not in routings
        ]
        if missing:
            add_finished(self.study, missing, seen.newest)

    def tell_unfinished(
        self, trial: Trial, state: TrialState, reason: str, violations: Mapping[str, float] | None = None
    ) -> None:
        """Tell that there are no objectives, and why; `violations` say that the region is infeasible."""
        with self._unless_told(trial):
            self._constrain(trial, violations or {})
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=state)

    def judge(self, trial: Trial, network: str, rung: Rung, points: Sequence[Sequence[float]], factor: int) -> Verdict:
        """Compare a network with all that have come to the rung, and tell its objectives there to those that will."""
        own = np.array(points, dtype=np.float64) * self._signs
        others = self._come_to(rung)
        others.pop(network, None)
        verdict = judge(own, others, factor)
        with contextlib.suppress(UpdateFinishedTrialError):  # taken over: whoever did tells this rung, too
            trial.set_user_attr(_name(rung), json.dumps(own.tolist()))
        return verdict

    def _come_to(self, rung: Rung) -> dict[str, Points]:
        found = {}
        for trial in self.study.get_trials(deepcopy=False):
            told = trial.user_attrs.get(_name(rung))
            if told is not None:
                found[str(trial.user_attrs["network"])] = np.array(json.loads(told), dtype=np.float64)
        return found

    def values_of(self, trial: optuna.trial.FrozenTrial) -> Values:
        """Return what a trial proposed."""
        return decode_params(self.space, trial.params)

    @staticmethod
    def _constrain(trial: Trial, violations: Mapping[str, float]) -> None:
        for name, violation in violations.items():
            trial.set_constraint(name, violation)


def _routing(suggestion: Values) -> Values:
    return {name: suggestion[name] for name in sorted(suggestion) if name in ROUTING_DIMENSIONS}


def key(params: Params) -> str:
    """Return a proposal as sorted JSON."""
    return json.dumps(params, sort_keys=True)


def relative_violation(violation: float, bound: float) -> float:
    """Return a violation as a fraction of its bound, because samplers add them up; 1 for what was not measured."""
    return violation / (abs(bound) or 1.0) if math.isfinite(violation) else 1.0


def _name(rung: Rung) -> str:
    return f"rung {rung.step}/{rung.images}"

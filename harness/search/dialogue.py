"""What is asked of Optuna and told to it: proposals, points, rungs and reasons.

All that several workers have to know of each other's networks stands in the study: a network's values at a rung are
attributes of its trial, so that whoever comes to that rung reads them, wherever the study is stored.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from harness.core.configs import Rung
from harness.search.halving import Points, judge
from harness.search.proposals import Params, decode_params, distribution, encode_values, suggest
from harness.search.samplers import make_sampler
from harness.search.space import SearchSpace, Values
from harness.search.storage import ONCE
from harness.trial import Verdict

_AGAIN = "again"  # attribute of a trial that another takes the place of


class Dialogue:
    """One side of a study: every call reads what others have told meanwhile."""

    def __init__(self, space: SearchSpace, study: optuna.Study):
        self.space = space
        self.study = study
        self._signs = np.array([-1.0 if one.direction == "maximize" else 1.0 for one in space.objectives])

    def ask(self) -> Trial:
        """Return a new trial, or the one that waits longest, with the sampler of its place in the study.

        Trials that were proposed again do not count, so that a study that was interrupted goes on as it would have.
        """
        trials = self.study.get_trials(deepcopy=False)
        place = sum(_AGAIN not in trial.user_attrs for trial in trials)
        self.study.sampler = make_sampler(self.space, place)
        with warnings.catch_warnings():  # heartbeats are the worker's, not those of `Study.optimize`
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            return self.study.ask()

    def suggest(self, trial: Trial) -> Values:
        """Return what the sampler proposes for a trial."""
        return suggest(trial, self.space)

    def set_aside(self, trial: Trial | FrozenTrial) -> None:
        """Mark a trial that still runs as one that another takes the place of."""
        self.study._storage.set_trial_user_attr(trial._trial_id, _AGAIN, True)

    def queued(self) -> set[str]:
        """Return all proposals that were ever queued, as sorted JSON."""
        trials = self.study.get_trials(deepcopy=False)
        return {key(trial.user_attrs["proposal"]) for trial in trials if "proposal" in trial.user_attrs}

    def is_waiting(self) -> bool:
        """Whether a proposal is queued."""
        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def queue(self, params: Params, *, once: str, **marks: int) -> None:
        """Queue a proposal, once for the reason that `once` names, whoever else queues it for the same reason."""
        if any(trial.user_attrs.get(ONCE) == once for trial in self.study.get_trials(deepcopy=False)):
            return
        self.study.enqueue_trial(params, user_attrs={"proposal": params, ONCE: once, **marks})

    def is_open(self, trial: Trial) -> bool:
        """Whether a trial still runs: it was told already where the storage was lost before it said so."""
        return self.study._storage.get_trial(trial._trial_id).state == TrialState.RUNNING

    def tell_point(self, trial: Trial, values: Sequence[float], violations: Mapping[str, float]) -> None:
        """Tell the objectives of a trained network's suggested point."""
        if self.is_open(trial):
            self._constrain(trial, violations)
            self.study.tell(trial, list(values))

    def add_point(
        self, suggestion: Values, values: Sequence[float], violations: Mapping[str, float], marks: Mapping[str, object]
    ) -> None:
        """Add another point of a trained network as a finished sibling of its trial, once."""
        point = {name: suggestion[name] for name in sorted(suggestion) if name.startswith("routing.")}
        once = f"point {marks['network']} {json.dumps(point)}"
        self.study.add_trial(
            create_trial(
                params=encode_values(suggestion),
                distributions={name: distribution(self.space.dimensions[name]) for name in suggestion},
                values=list(values),
                constraints=dict(violations) or None,
                user_attrs={**marks, ONCE: once},
            )
        )

    def tell_unfinished(
        self, trial: Trial, state: TrialState, reason: str, violations: Mapping[str, float] | None = None
    ) -> None:
        """Tell that there are no objectives, and why; `violations` say that the region is infeasible."""
        if self.is_open(trial):
            self._constrain(trial, violations or {})
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=state)

    def judge(self, trial: Trial, network: str, rung: Rung, points: Sequence[Sequence[float]], factor: int) -> Verdict:
        """Compare a network with all that have come to the rung, and tell its objectives there to those that will."""
        own = np.array(points, dtype=np.float64) * self._signs
        others = self._come_to(rung)
        others.pop(network, None)
        verdict = judge(own, others, factor)
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


def key(params: Params) -> str:
    """Return a proposal as sorted JSON."""
    return json.dumps(params, sort_keys=True)


def relative_violation(violation: float, bound: float) -> float:
    """Return a violation as a fraction of its bound, because samplers add them up; 1 for what was not measured."""
    return violation / (abs(bound) or 1.0) if math.isfinite(violation) else 1.0


def _name(rung: Rung) -> str:
    return f"rung {rung.step}/{rung.images}"

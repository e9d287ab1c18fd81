"""Proposals by expected hypervolume improvement, where what a network costs is known before it is trained.

Parameters and MACs follow from a config by their closed forms, and latency and memory nearly do; only scores hang on
what training makes of the weights. So a score has a Gaussian process over networks (a linear part and a Matérn part, in
dimensions and logarithms of costs, and noise, which is the luck of a seed), whose outputs are the routings that every
network is evaluated at. Of a pool the network is proposed whose points, all routings together, are expected to add most
to the hypervolume of the feasible points so far (Emmerich et al., "Single- and multiobjective evolutionary optimization
assisted by Gaussian random field metamodels", IEEE TEVC 2006; objectives that are cheap are kept out of the
expectation, as in Allmendinger et al., "Surrogate-assisted multicriteria optimization: complexities, prospective
solutions, and business case", JMCDA 2017). Networks that cost more than constraints allow are never proposed.

All is derived from the study and a seed: a study that was interrupted goes on as it would have.
"""

import functools
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any

import moocore
import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from harness.core.configs import CAMixerSRConfig, CompressionConfig, look_up
from harness.core.constraints import KNOWN_BEFORE_TRAINING, Constraint
from harness.core.errors import UserError
from harness.profiling import canonical_macs, count_params
from harness.search.proposals import (
    Params,
    count_networks,
    decode_params,
    distribution,
    draw,
    encode_values,
    grid,
    is_whole,
    with_routing,
)
from harness.search.space import ROUTING_DIMENSIONS, SearchSpace, encode

Array = npt.NDArray[np.float64]

_LISTED = 1024  # networks of a space that is searched whole; of a larger one as many are drawn
_NEIGHBOURS = 8  # of each network on the front, besides
_SHORTLIST = 48  # networks whose improvement is integrated; the others fall behind by an optimist's estimate
_SAMPLES = 16
_MOST_TRAINED = 300  # networks, or points, that a surrogate is fitted to
_LENGTHS = (1.0, 2.0, 4.0, 8.0)  # of deviations from a trend, in standard deviations of the inputs
_BENDS = (0.1, 0.3, 0.6, 0.9)  # share of such deviations in what is no noise
_NOISES = (0.001, 0.01, 0.05, 0.15, 0.4)  # share of noise
_LEVEL = 0.3  # variance of the level
_LEAST_WEIGHT = 1e-3  # of a place of the grid beside the best one, to be averaged over
_REFERENCE = 1.1  # the reference point: worst value found, and a tenth of the range


class EHVISampler(BaseSampler):
    """Optuna's interface to proposals by expected hypervolume improvement; made anew for each trial.

    The first `startup_networks` are drawn at random from as many equal parts of the pool, sorted by MACs.
    """

    def __init__(self, space: SearchSpace, seed: int, startup_networks: int):
        self._space = space
        self._startup = startup_networks
        self._random = np.random.default_rng(seed)
        self._independent = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all dimensions."""
        return {name: distribution(dimension) for name, dimension in self._space.dimensions.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return what to propose; nothing where the whole pool is known."""
        if "fixed_params" in trial.system_attrs:  # what was queued needs no proposal
            return {}
        others = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        return propose(self._space, others, self._random, self._startup)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value: of a dimension that no proposal was made for."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def propose(
    space: SearchSpace, trials: Iterable[FrozenTrial], random: np.random.Generator, startup_networks: int
) -> dict[str, Any]:
    """Return the params of the network, and of its routing, to train next; empty where every network is known."""
    known = _Known(space, trials)
    pool = _find_pool(space, known, random)
    if not pool:
        return {}
    if len(known.trained | known.running) < startup_networks:
        return _spread(space, pool, random, len(known.closed) % startup_networks, startup_networks)
    return _Proposer(space, known, pool, random).propose()


class _Network:
    """A network that may be proposed, or was: its dimensions as numbers, and costs by closed form at each routing."""

    def __init__(self, space: SearchSpace, params: Params):
        """Raise `UserError` where settings do not go together."""
        values = decode_params(space, params)
        model = space.model_config_for(values)
        compression = space.compression_config(values) or CompressionConfig(left=1.0)
        settings = {
            "model": model.model_dump(),
            "training": space.training_config(values).model_dump(),
            "compression": compression.model_dump(),
        }
        size = space.macs_input_size
        self.params = params
        self.known: dict[str, Array] = {}
        params_left = count_params(model) * (compression.left if compression.cost == "params" else 1.0)
        if isinstance(model, CAMixerSRConfig):
            macs = [
                canonical_macs(
                    model.model_copy(update={"routing": routing}),
                    size,
                    attention_share=0.5 if routing.policy == "threshold" else None,
                )
                for routing in space.routings()
            ]
        else:
            macs = [canonical_macs(model, size)]
        self.macs = np.array(macs, dtype=float) * (compression.left if compression.cost != "params" else 1.0)
        if not space.compresses:  # else what is left shows when a network is pruned
            self.known["params"] = np.full(len(space.routings()), params_left)
            if not any(routing.policy == "threshold" for routing in space.routings()):
                self.known["macs"] = self.macs
        self.features = [
            number
            for name in space.dimensions
            if name not in ROUTING_DIMENSIONS
            for number in _as_numbers(space, name, look_up(settings, name), params.get(name))
        ]
        self.features += [float(np.log(1 + cost)) for cost in (params_left, self.macs[0], self.macs[-1])]


def _as_numbers(space: SearchSpace, name: str, value: Any, code: Any) -> list[float]:
    """Return a dimension as numbers that surrogates take distances of, from the setting and what stands for it.

    Logarithms of what is positive throughout, lists of whole numbers by their sum and length; a place for each of other
    choices.
    """
    dimension = space.dimensions[name]
    listed = dimension.choices if dimension.choices is not None else (dimension.low, dimension.high)
    if all(isinstance(one, list | tuple) and one and all(isinstance(part, int) for part in one) for one in listed):
        parts = [float(part) for part in value]
        return [math.log(1 + sum(parts)), math.log(1 + len(parts))]
    if all(isinstance(one, int | float) for one in listed):  # true and false are numbers, too
        is_scale = all(not isinstance(one, bool) and one > 0 for one in listed if one is not None)
        numbers = [math.log(max(one, 1e-12)) if is_scale else float(one) for one in (*listed, value) if one is not None]
        return [float(np.mean(numbers)), 1.0] if value is None else [numbers[-1], 0.0]
    return [float(code == encode(one)) for one in listed]


class _Known:
    """What a study's trials tell: networks, values of metrics at points, and what is not to be proposed again."""

    def __init__(self, space: SearchSpace, trials: Iterable[FrozenTrial]):
        self.networks: dict[str, Params] = {}
        self.closed: set[str] = set()  # trained, begun, stopped, or failed
        self.trained: set[str] = set()
        self.running: set[str] = set()
        self.refused: set[tuple[str, int]] = set()  # points that a constraint has rejected before training
        self.told: dict[str, dict[tuple[str, int], float]] = {}  # by metric: values of points
        self.feasible: dict[tuple[str, int], tuple[float, ...]] = {}  # objectives of points
        places = {routing: place for place, routing in enumerate(space.routings())}
        constraints = {constraint.name: constraint for constraint in space.parsed_constraints()}

        @functools.cache
        def place_of(routing: tuple[tuple[str, Any], ...]) -> int:
            return places[space.routing_config(decode_params(space, dict(routing)))] if space.routes else 0

        for trial in trials:
            if not is_whole(space, trial.params):  # it is being suggested just now, or its process was killed then
                continue
            place = place_of(tuple((name, trial.params[name]) for name in ROUTING_DIMENSIONS if name in trial.params))
            network = {name: code for name, code in trial.params.items() if name not in ROUTING_DIMENSIONS}
            point = (key_of(network), place)
            self.networks.setdefault(point[0], network)
            is_complete = trial.state == TrialState.COMPLETE
            violations = {name: told for name, told in trial.constraints.items() if name in constraints}
            if is_complete:
                self.closed.add(point[0])
                self.trained.add(point[0])
                for objective, value in zip(space.objectives, trial.values, strict=True):
                    self.told.setdefault(objective.metric, {})[point] = value
                if all(violation <= 0 for violation in violations.values()):
                    self.feasible[point] = tuple(trial.values)
            elif any(violation > 0 for violation in violations.values()):
                self.refused.add(point)
            else:
                self.closed.add(point[0])
                if trial.state == TrialState.RUNNING:
                    self.running.add(point[0])
            for name, violation in violations.items():
                if (is_complete or violation > 0) and violation != 1.0:  # 1 stands for what was not measured, too
                    told = _undo_violation(constraints[name], violation)
                    self.told.setdefault(constraints[name].metric, {})[point] = told


def key_of(network: Params) -> str:
    """Return the text that a network's params are known by."""
    return json.dumps(network, sort_keys=True)


def _undo_violation(constraint: Constraint, violation: float) -> float:
    """Return the value of a metric whose violation, as a fraction of the bound, was told."""
    signed = violation * (abs(constraint.bound) or 1.0)
    return constraint.bound + (signed if constraint.operator == "<=" else -signed)


def _find_pool(space: SearchSpace, known: _Known, random: np.random.Generator) -> list[_Network]:
    """Return networks that may be proposed: all where they can be listed, else as many drawn, and the front's kin."""
    number = count_networks(space, limit=4 * _LISTED)
    found: dict[str, Params] = {}
    if number is not None and number <= _LISTED:
        for params in grid(space):
            network = {name: code for name, code in params.items() if name not in ROUTING_DIMENSIONS}
            found[key_of(network)] = network
    else:
        front = _front(space, known)
        drawn = [draw(space, random) for _ in range(_LISTED)]
        drawn += [draw(space, random, near=known.networks[name]) for name in front for _ in range(_NEIGHBOURS)]
        for params in drawn:
            network = {name: code for name, code in params.items() if name not in ROUTING_DIMENSIONS}
            found[key_of(network)] = network
    pool = []
    for name, network in sorted(found.items()):
        if name in known.closed:
            continue
        candidate = _build(space, network)
        if candidate is not None and _allowed(space, candidate, known).any():
            pool.append(candidate)
    return pool


def _build(space: SearchSpace, params: Params) -> _Network | None:
    """Return a network; None where its settings do not go together."""
    try:
        return _Network(space, params)
    except UserError:
        return None


def _front(space: SearchSpace, known: _Known) -> list[str]:
    """Return the networks of the feasible points that no other dominates, the latest 32 of them."""
    if not known.feasible:
        return []
    signs = _signs(space)
    points = np.array(list(known.feasible.values())) * signs
    kept = moocore.is_nondominated(points) if points.shape[1] > 1 else points[:, 0] == points[:, 0].min()
    names = [name for (name, _), is_kept in zip(known.feasible, kept, strict=True) if is_kept]
    return list(dict.fromkeys(names))[-32:]


def _signs(space: SearchSpace) -> Array:
    return np.array([-1.0 if one.direction == "maximize" else 1.0 for one in space.objectives])


def _allowed(space: SearchSpace, network: _Network, known: _Known) -> npt.NDArray[np.bool_]:
    """Return at which routings no constraint on what is known by closed form speaks against a network."""
    name = key_of(network.params)
    allowed = np.array([(name, place) not in known.refused for place in range(len(space.routings()))])
    for constraint in space.parsed_constraints():
        for place, value in enumerate(network.known.get(constraint.metric, ())):
            allowed[place] &= constraint.violation(float(value)) <= 0
    return allowed


def _spread(
    space: SearchSpace, pool: Sequence[_Network], random: np.random.Generator, number: int, startup: int
) -> dict[str, Any]:
    """Return one of the first networks: from a part of its own of the pool, sorted by MACs."""
    ordered = sorted(pool, key=lambda network: (network.macs[-1], key_of(network.params)))
    part = np.array_split(np.arange(len(ordered)), startup)[number]
    network = ordered[int(random.choice(part))] if len(part) else ordered[int(random.integers(len(ordered)))]
    return {**network.params, **_routing_params(space, int(random.integers(len(space.routings()))))}


def _routing_params(space: SearchSpace, place: int) -> Params:
    """Return the params of a routing of the space."""
    return encode_values(with_routing(space, {}, space.routings()[place]))


class _Proposer:
    """The networks of a pool, what each is expected to be measured at, and what that adds to the hypervolume."""

    def __init__(self, space: SearchSpace, known: _Known, pool: list[_Network], random: np.random.Generator):
        self.space = space
        self.known = known
        self.random = random
        self.signs = _signs(space)
        self.objectives = [objective.metric for objective in space.objectives]
        self.constraints = space.parsed_constraints()
        self.policies = sorted({routing.policy for routing in space.routings()})
        self.trained = {name: _Network(space, known.networks[name]) for name in self._choose_trained()}
        begun = (_build(space, known.networks[name]) for name in sorted(known.running - self.trained.keys()))
        self.pool, self.candidates = [*pool, *(network for network in begun if network is not None)], len(pool)
        features = np.array([network.features for network in (*self.pool, *self.trained.values())])
        self.centre, self.width = features.mean(axis=0), features.std(axis=0)
        self.width[self.width < 1e-9] = 1.0

    def _choose_trained(self) -> list[str]:
        """Return the networks that surrogates are fitted to: all, or those on the front and others at random."""
        names = list(dict.fromkeys(name for told in self.known.told.values() for name, _ in told))
        if len(names) <= _MOST_TRAINED:
            return names
        front = _front(self.space, self.known)
        others = sorted(set(names) - set(front))
        drawn = self.random.permutation(len(others))[: _MOST_TRAINED - len(front)]
        return front + [others[index] for index in sorted(drawn)]

    def propose(self) -> dict[str, Any]:
        """Return the params of the network that is expected to add most, at the routing that adds most of it."""
        predicted = {
            metric: self._predict(metric)
            for metric in dict.fromkeys([*self.objectives, *(one.metric for one in self.constraints)])
        }
        costs_PR: npt.NDArray[np.bool_] = np.array([_allowed(self.space, network, self.known) for network in self.pool])
        excess_PR: Array = np.zeros(costs_PR.shape)
        for constraint in self.constraints:
            mean_PR, _ = predicted[constraint.metric]
            sign = 1.0 if constraint.operator == "<=" else -1.0
            beyond_PR = sign * (mean_PR - constraint.bound) / (abs(constraint.bound) or 1.0)
            excess_PR += np.maximum(beyond_PR, 0.0)
            if _is_cost(constraint.metric):
                costs_PR &= beyond_PR <= 0
        if not costs_PR[: self.candidates].any():  # as near to what is demanded as can be
            return self._params(*divmod(int(excess_PR[: self.candidates].argmin()), excess_PR.shape[1]))
        mean_PRM: Array = np.stack([predicted[metric][0] for metric in self.objectives], axis=-1) * self.signs
        measured = np.array(list(self.known.feasible.values())).reshape(-1, len(self.signs)) * self.signs
        improvement = _Improvement(
            measured, mean_PRM[costs_PR], mean_PRM[self.candidates :].reshape(-1, len(self.signs))
        )

        def gain(index: int, shift: Array) -> float:
            """Return what a network adds whose scores are so many standard deviations above the mean, by metric."""
            drawn = {
                metric: predicted[metric][0][index] + predicted[metric][1][index] * shift[place]
                for place, metric in enumerate(scores)
            }
            is_feasible_R = costs_PR[index].copy()
            for constraint in self.constraints:
                if constraint.metric in drawn:
                    is_feasible_R &= np.array([constraint.violation(value) <= 0 for value in drawn[constraint.metric]])
            points_RM = mean_PRM[index].copy()
            for column, metric in enumerate(self.objectives):
                if metric in drawn:
                    points_RM[:, column] = drawn[metric] * self.signs[column]
            return improvement.of(points_RM[is_feasible_R])

        scores = [metric for metric in predicted if not _is_cost(metric)]
        better = np.array([1.0 if metric in self._maximised() else -1.0 for metric in scores])
        for optimism in (1.0, 2.0, 4.0):
            hopes = np.array([gain(index, optimism * better) for index in range(self.candidates)])
            if hopes.any():
                break
        else:  # nothing speaks for any: what is nearest to feasible, whichever
            distance = excess_PR[: self.candidates].min(axis=1)
            nearest = int(self.random.choice(np.flatnonzero(distance <= distance.min() + 1e-9)))
            return self._params(nearest, int(excess_PR[nearest].argmin()))
        shortlist = np.argsort(-hopes, kind="stable")[:_SHORTLIST]
        draws = self._draw_shifts(len(scores))
        expected = [float(np.mean([gain(int(index), shift) for shift in draws])) for index in shortlist]
        best = int(shortlist[int(np.argmax(expected))])
        alone = [
            improvement.of(mean_PRM[best][place : place + 1]) if costs_PR[best, place] else -1.0
            for place in range(costs_PR.shape[1])
        ]
        return self._params(best, int(np.argmax(alone)))

    def _draw_shifts(self, scores: int) -> Array:
        """Return samples × scores of standard normal numbers: of each score one from each of equally likely parts."""
        parts = np.array([NormalDist().inv_cdf((part + 0.5) / _SAMPLES) for part in range(_SAMPLES)])
        return np.array([self.random.permutation(parts) for _ in range(scores)]).reshape(scores, _SAMPLES).T

    def _maximised(self) -> set[str]:
        """Return the metrics of which more is better, as objective or, where it is none, as constraint."""
        wanted = {one.metric: one.operator == ">=" for one in self.constraints}
        wanted |= {one.metric: one.direction == "maximize" for one in self.space.objectives}
        return {metric for metric, is_more in wanted.items() if is_more}

    def _params(self, index: int, place: int) -> dict[str, Any]:
        return {**self.pool[index].params, **_routing_params(self.space, place)}

    def _predict(self, metric: str) -> tuple[Array, Array]:
        """Return mean and standard deviation of a metric, networks of the pool × routings."""
        if metric in self.pool[0].known:
            mean_PR = np.array([network.known[metric] for network in self.pool])
            return mean_PR, np.zeros(mean_PR.shape)
        told = {point: value for point, value in self.known.told.get(metric, {}).items() if point[0] in self.trained}
        if not told:
            empty = np.zeros((len(self.pool), len(self.pool[0].macs)))
            return empty, empty
        return self._predict_cost(told) if _is_cost(metric) else self._predict_score(told)

    def _predict_score(self, told: dict[tuple[str, int], float]) -> tuple[Array, Array]:
        """Predict by a process over networks, whose outputs are the routings."""
        names = list(dict.fromkeys(name for name, _ in told))
        values_NR = np.full((len(names), len(self.pool[0].macs)), np.nan)
        rows = {name: row for row, name in enumerate(names)}
        for (name, place), value in told.items():
            values_NR[rows[name], place] = value
        level_R = np.nanmean(np.where(np.isnan(values_NR).all(axis=0), np.nanmean(values_NR), values_NR), axis=0)
        offset_N = np.nanmean(values_NR - level_R, axis=1)
        values_NR = np.where(np.isnan(values_NR), level_R + offset_N[:, None], values_NR)
        inputs_NF = self._standard([self.trained[name] for name in names])
        mean_PR, spread_P = _regress(inputs_NF, values_NR, self._standard(self.pool))
        return mean_PR, np.broadcast_to(spread_P[:, None], mean_PR.shape)

    def _predict_cost(self, told: dict[tuple[str, int], float]) -> tuple[Array, Array]:
        """Predict by a process over points, of the logarithm: a cost is what it is, and is taken for certain."""
        points = list(told)
        if len(points) > _MOST_TRAINED:
            points = [points[index] for index in sorted(self.random.permutation(len(points))[:_MOST_TRAINED])]
        values_N1 = np.log([[max(told[point], 1e-12)] for point in points])
        inputs_NF = self._at_routings([(self.trained[name], place) for name, place in points])
        places = range(len(self.pool[0].macs))
        inputs_PF = self._at_routings([(network, place) for network in self.pool for place in places])
        mean_P1, _ = _regress(inputs_NF, values_N1, inputs_PF, with_spread=False)
        mean_PR = np.exp(mean_P1.reshape(len(self.pool), -1))
        return mean_PR, np.zeros(mean_PR.shape)

    def _standard(self, networks: Sequence[_Network]) -> Array:
        features: Array = (np.array([network.features for network in networks]) - self.centre) / self.width
        return features

    def _at_routings(self, points: Sequence[tuple[_Network, int]]) -> Array:
        """Return the features of points: of the network, and what the routing makes of its MACs."""
        routings = self.space.routings()
        features = self._standard([network for network, _ in points])
        macs = np.log([1 + network.macs[place if len(network.macs) > 1 else 0] for network, place in points])
        policies = [[float(routings[place].policy == policy) for policy in self.policies] for _, place in points]
        return np.column_stack((features, macs - macs.mean(), np.array(policies)))


def _is_cost(metric: str) -> bool:
    return metric.partition("/")[0] in KNOWN_BEFORE_TRAINING


def _regress(inputs_NF: Array, values_NR: Array, at_PF: Array, *, with_spread: bool = True) -> tuple[Array, Array]:
    """Fit Gaussian processes to outputs of one kernel; return mean (P×R) and standard deviation (P), noise included.

    The kernel is a level, a linear trend, deviations from it of any shape (Matérn 5/2) and noise. What share each has
    and how long deviations are is averaged over a grid, by the posterior of each under a flat prior; the whole variance
    has a conjugate one (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, sections 2.2, 5.2).
    From few networks a maximum of the likelihood is overconfident: studies that began with four found .81 of a
    hypervolume where those that began with six found .90. Outputs are nearly copies of each other, so that all together
    count as one.
    """
    level_R = values_NR.mean(axis=0)
    width = float(values_NR.std(axis=0).mean()) or 1e-3
    targets_NR = (values_NR - level_R) / width
    count, features = inputs_NF.shape
    linear_NN, linear_PN = (inputs @ inputs_NF.T / features for inputs in (inputs_NF, at_PF))
    distance_NN, distance_PN = (_distances(inputs, inputs_NF) for inputs in (inputs_NF, at_PF))
    fits = []
    for length in _LENGTHS:
        smooth_NN = _matern(distance_NN / length)
        for bend, noise in itertools.product(_BENDS, _NOISES):
            covariance_NN = (1 - noise) * (bend * smooth_NN + (1 - bend) * linear_NN + _LEVEL) + noise * np.eye(count)
            root_NN = np.linalg.cholesky(covariance_NN + 1e-9 * np.eye(count))
            whitened_NR = np.linalg.solve(root_NN, targets_NR)
            misfit = float(np.square(whitened_NR).sum(axis=0).mean())
            shape, rate = 1 + count / 2, 1 + misfit / 2
            evidence = -np.log(np.diag(root_NN)).sum() - shape * math.log(rate)
            fits.append((evidence, length, bend, noise, root_NN, whitened_NR, rate / shape))
    best = max(evidence for evidence, *_ in fits)
    fits = [fit for fit in fits if fit[0] > best + math.log(_LEAST_WEIGHT)]
    weights = np.exp(np.array([evidence - best for evidence, *_ in fits]))
    weights /= weights.sum()
    smooth_PN = {length: _matern(distance_PN / length) for length in {fit[1] for fit in fits}}
    means, variances = [], []
    for _, length, bend, noise, root_NN, whitened_NR, scale in fits:
        cross_PN = (1 - noise) * (bend * smooth_PN[length] + (1 - bend) * linear_PN + _LEVEL)
        means.append(cross_PN @ np.linalg.solve(root_NN.T, whitened_NR))
        if with_spread:
            own_P = (1 - noise) * (bend + (1 - bend) * np.square(at_PF).mean(axis=1) + _LEVEL) + noise
            explained_P = np.square(np.linalg.solve(root_NN, cross_PN.T)).sum(axis=0)
            variances.append(np.maximum(own_P - explained_P, noise) * scale)
    mean_PR = np.einsum("k,kpr->pr", weights, np.array(means))
    if not with_spread:
        return mean_PR * width + level_R, np.zeros(len(at_PF))
    between_P = np.einsum("k,kpr->p", weights, np.square(np.array(means) - mean_PR)) / values_NR.shape[1]
    return mean_PR * width + level_R, np.sqrt(weights @ np.array(variances) + between_P) * width


def _distances(one_PF: Array, other_NF: Array) -> Array:
    squares = np.square(one_PF).sum(axis=1)[:, None] + np.square(other_NF).sum(axis=1) - 2 * one_PF @ other_NF.T
    distances: Array = np.sqrt(np.maximum(squares, 0.0))
    return distances


def _matern(distance: Array) -> Array:
    """Return the Matérn covariance of smoothness 5/2 at distances in lengths."""
    scaled = math.sqrt(5) * distance
    covariance: Array = (1 + scaled + np.square(scaled) / 3) * np.exp(-scaled)
    return covariance


class _Improvement:
    """What points add to the hypervolume of measured ones; networks that are being trained count as they are predicted.

    Objectives, all to be minimised, are scaled to the range of what is measured and what is predicted.
    """

    def __init__(self, measured: Array, predicted: Array, running: Array):
        known = np.concatenate((measured, running))
        every = np.concatenate((known, predicted))
        self._best = every.min(axis=0)
        span = every.max(axis=0) - self._best
        self._span = np.where(span > 0, span, 1.0)
        self._reference = np.full(every.shape[1], _REFERENCE)
        scaled = (known - self._best) / self._span
        if len(scaled) and scaled.shape[1] > 1:
            scaled = scaled[moocore.is_nondominated(scaled)]
        self._front = scaled
        self._before = self._volume(scaled)

    def of(self, points: Array) -> float:
        """Return how much points (points × objectives) add."""
        if not len(points):
            return 0.0
        return self._volume(np.concatenate((self._front, (points - self._best) / self._span))) - self._before

    def _volume(self, points: Array) -> float:
        if not len(points):
            return 0.0
        if points.shape[1] == 1:
            return max(0.0, float(self._reference[0] - points.min()))
        return float(moocore.hypervolume(points, ref=self._reference))

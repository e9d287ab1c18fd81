"""Proposals by expected hypervolume improvement: what they may be, and that they find what is worth training."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import numpy.typing as npt
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.profiling import canonical_macs, count_params
from harness.search import SearchSpace, ehvi, read_space
from harness.search.dialogue import Dialogue, Point
from harness.search.ehvi import _Improvement, propose
from harness.search.proposals import Params, decode_params, distribution, draw, encode_values, grid
from harness.search.space import ROUTING_DIMENSIONS
from harness.search.storage import connect
from tests.spaces import write_space

Array = npt.NDArray[np.float64]
DIMENSIONS: dict[str, Any] = {
    "model.groups": {"choices": [[1], [1, 1], [2, 2], [3, 3], [4, 4]]},
    "model.channels": {"low": 8, "high": 48, "step": 4},
    "model.offsets": {"choices": [True, False]},
    "routing.gamma": {"choices": [0.0, 0.5, 1.0]},
    "routing.policy": {"choices": ["fixed", "probability"]},
}
OBJECTIVES = ["psnr_db", "latency_ms", "macs"]


@pytest.fixture
def make_space(tmp_path: Path) -> Callable[..., SearchSpace]:
    def make(**changes: Any) -> SearchSpace:
        settings: dict[str, Any] = {
            "scale": 4,
            "training": {"steps": 10},
            "dimensions": DIMENSIONS,
            "objectives": OBJECTIVES,
            "baselines": [],
        }
        return read_space(write_space(tmp_path / "space.yaml", settings | changes))

    return make


def macs_of(space: SearchSpace, params: Mapping[str, Any]) -> int:
    values = decode_params(space, dict(params))
    model = space.model_config_for(values).model_copy(update={"routing": space.routing_config(values)})
    return canonical_macs(model, space.macs_input_size)


def measure(space: SearchSpace, params: Mapping[str, Any], luck: float = 0.0) -> dict[str, float]:
    """What a made-up network is measured at: wide ones are good, offsets are worth much and cost next to nothing."""
    values = decode_params(space, dict(params))
    macs = macs_of(space, params)
    psnr_db = 28 + 0.5 * np.log(values["model.channels"]) + 0.5 * values.get("model.offsets", True) + luck
    psnr_db += 0.05 * values.get("routing.gamma", 0.5)
    params_count = count_params(space.model_config_for(values))
    return {
        "params": float(params_count),
        "psnr_db": float(psnr_db),
        "macs": float(macs),
        "latency_ms": 2.0 + macs / 1e8,
        "ssim": 0.5,
    }


def routed(space: SearchSpace, network: Params) -> list[Params]:
    """A network at each routing of the space."""
    points = [params for params in grid(space) if {**params, **network} == params]
    assert len(points) == len(space.routings())
    return points


def told(space: SearchSpace, points: Sequence[Params], luck: float = 0.0, **changes: Any) -> list[FrozenTrial]:
    """Trials as a study holds them."""
    found = []
    for params in points:
        measured = measure(space, params, luck)
        violations = {
            one.name: one.violation(measured[one.metric]) / abs(one.bound) for one in space.parsed_constraints()
        }
        settings: dict[str, Any] = {
            "params": params,
            "distributions": {name: distribution(space.dimensions[name]) for name in params},
            "values": [measured[one.metric] for one in space.objectives],
            "constraints": violations or None,
        }
        found.append(create_trial(**(settings | changes)))
    return found


def trained(space: SearchSpace, number: int, seed: int = 0) -> tuple[list[FrozenTrial], list[Params]]:
    """So many random networks, told; and which those are."""
    random = np.random.default_rng(seed)
    networks: dict[str, Params] = {}
    while len(networks) < number:
        params = {name: code for name, code in draw(space, random).items() if name not in ROUTING_DIMENSIONS}
        networks[str(params)] = params
    chosen = list(networks.values())
    luck = random.normal(size=number) * 0.02
    trials = [
        trial
        for network, own in zip(chosen, luck, strict=True)
        for trial in told(space, routed(space, network), float(own))
    ]
    return trials, chosen


def without_routing(params: Mapping[str, Any]) -> Params:
    return {name: code for name, code in params.items() if name not in ROUTING_DIMENSIONS}


class TestProposals:
    @pytest.mark.parametrize("startup", [1, 30])
    def test_a_proposal_is_a_point_of_the_space_that_is_new(
        self, make_space: Callable[..., SearchSpace], startup: int
    ) -> None:
        space = make_space()
        trials, networks = trained(space, 12)
        listed = grid(space)
        for seed in range(5):
            params = propose(space, trials, np.random.default_rng(seed), startup)
            assert params in listed
            assert without_routing(params) not in networks

    def test_the_same_study_and_seed_give_the_same(self, make_space: Callable[..., SearchSpace]) -> None:
        space = make_space()
        trials, _ = trained(space, 8)
        one, again = (propose(space, trials, np.random.default_rng(3), 1) for _ in range(2))
        assert one == again
        drawn = [propose(space, [], np.random.default_rng(seed), 4) for seed in range(6)]
        assert len({str(params) for params in drawn}) > 1

    def test_what_runs_was_stopped_or_failed_is_not_proposed(self, make_space: Callable[..., SearchSpace]) -> None:
        """Of a space of four networks three are taken, each in its way."""
        dimensions = {"model.channels": {"choices": [8, 12, 16, 20]}, "routing.gamma": {"choices": [0.0, 1.0]}}
        space = make_space(dimensions=dimensions)
        taken = told(space, routed(space, {"model.channels": 8}))
        for channels, state in ((12, TrialState.RUNNING), (16, TrialState.PRUNED)):
            point = routed(space, {"model.channels": channels})[:1]
            taken += told(space, point, state=state, values=None)
        assert without_routing(propose(space, taken, np.random.default_rng(0), 1)) == {"model.channels": 20}
        taken += told(space, routed(space, {"model.channels": 20})[:1], state=TrialState.FAIL, values=None)
        assert propose(space, taken, np.random.default_rng(0), 1) == {}

    @pytest.mark.parametrize("startup", [1, 10])
    def test_costs_that_are_known_are_never_too_high(
        self, make_space: Callable[..., SearchSpace], startup: int
    ) -> None:
        """A network whose MACs are too many with full attention is proposed with less of it, or not at all."""
        space = make_space(constraints=["macs <= 3e9", "params <= 40000"])
        trials, _ = trained(space, 6)
        for seed in range(20):
            params = propose(space, trials, np.random.default_rng(seed), startup)
            assert macs_of(space, params) <= 3e9
            assert count_params(space.model_config_for(decode_params(space, params))) <= 40000

    def test_a_bound_of_latency_is_learnt(self, make_space: Callable[..., SearchSpace]) -> None:
        """From networks that keep it and from a rejected one; all that is proposed keeps it, within the fit."""
        space = make_space(constraints=["latency_ms <= 40"])
        trials, _ = trained(space, 8)
        wide = routed(space, {"model.groups": "[4,4]", "model.channels": 48, "model.offsets": True})[-1]
        trials += told(space, [wide], state=TrialState.PRUNED, values=None)
        found = [propose(space, trials, np.random.default_rng(seed), 1) for seed in range(10)]
        assert wide not in found
        assert max(measure(space, params)["latency_ms"] for params in found) <= 40 * 1.05

    def test_where_nothing_is_allowed_the_nearest_is_proposed(self, make_space: Callable[..., SearchSpace]) -> None:
        space = make_space(constraints=["latency_ms <= 1"])
        trials, networks = trained(space, 5)
        params = propose(space, trials, np.random.default_rng(0), 1)
        left = [one for one in grid(space) if without_routing(one) not in networks]
        least = min(measure(space, one)["latency_ms"] for one in left)
        assert measure(space, params)["latency_ms"] <= 1.5 * least

    @pytest.mark.parametrize("objectives", [["psnr_db"], ["psnr_db", "macs"], ["macs", "params"], ["ssim", "macs"]])
    def test_any_number_of_objectives(self, make_space: Callable[..., SearchSpace], objectives: list[str]) -> None:
        space = make_space(objectives=objectives)
        trials, networks = trained(space, 6)
        assert without_routing(propose(space, trials, np.random.default_rng(0), 1)) not in networks

    def test_the_best_of_one_objective_is_found(self, make_space: Callable[..., SearchSpace]) -> None:
        """Wide networks with offsets are best, whatever the depth; eight random ones tell as much."""
        space = make_space(objectives=["psnr_db"])
        trials, _ = trained(space, 8)
        for seed in range(3):
            params = propose(space, trials, np.random.default_rng(seed), 1)
            assert params["model.offsets"]
            assert params["model.channels"] >= 40

    def test_a_space_without_end(self, make_space: Callable[..., SearchSpace]) -> None:
        """Learning rates cannot be listed: a pool is drawn, the front's kin among it, under the space's conditions."""
        dimensions = {
            **DIMENSIONS,
            "model.spatial_attention": {"choices": [True, False], "when": {"model.groups": [[1, 1]]}},
            "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        }
        space = make_space(dimensions=dimensions)
        random = np.random.default_rng(0)
        trials = []
        for _ in range(6):
            network = without_routing(draw(space, random))
            routings = [{"routing.gamma": one.gamma, "routing.policy": one.policy} for one in space.routings()]
            trials += told(space, [{**network, **encode_values(routing)} for routing in routings])
        for seed in range(3):
            params = propose(space, trials, np.random.default_rng(seed), 1)
            assert ("model.spatial_attention" in params) == (params["model.groups"] == "[1,1]")
            assert 1e-4 <= params["training.learning_rate"] <= 1e-2


@pytest.mark.parametrize("near", [False, True])
def test_what_is_drawn_belongs_to_the_space(make_space: Callable[..., SearchSpace], near: bool) -> None:
    dimensions: dict[str, Any] = {
        "model.groups": {"choices": [[1], [1, 1]]},
        "model.channels": {"low": 8, "high": 48, "step": 4},
        "training.seed": {"low": 1, "high": 1000, "log": True},
        "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "training.weight_decay": {"low": 0.0, "high": 1.0},
        "model.spatial_attention": {"choices": [True, False], "when": {"model.groups": [[1, 1]]}},
    }
    space = make_space(dimensions=dimensions)
    random = np.random.default_rng(0)
    known = draw(space, random)
    for _ in range(100):
        params = draw(space, random, near=known if near else None)
        assert ("model.spatial_attention" in params) == (params["model.groups"] == "[1,1]")
        assert all(space.dimensions[name].contains(decode_params(space, {name: params[name]})[name]) for name in params)
        if near:
            assert sum(params.get(name) != known.get(name) for name in dimensions) <= 3  # two, and what hangs on one


def test_the_surrogate_is_an_average_of_gaussian_processes() -> None:
    """By explicit inverses, and evidence by numerical integration over the variance (prior: inverse gamma(1, 1))."""
    random = np.random.default_rng(0)
    inputs, at = random.normal(size=(9, 5)), random.normal(size=(7, 5))
    values = 28 + 0.2 * inputs[:, :1] + random.normal(size=(9, 1)) * 0.3 + random.normal(size=(9, 3)) * 0.02
    level, width = values.mean(axis=0), values.std(axis=0).mean()
    targets = (values - level) / width

    def covariance(one: Array, other: Array, length: float, bend: float) -> Array:
        scaled = np.sqrt(5) * np.sqrt(np.square(one[:, None] - other[None]).sum(axis=-1)) / length
        smooth = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
        found: Array = bend * smooth + (1 - bend) * one @ other.T / 5 + ehvi._LEVEL
        return found

    logarithms = np.linspace(-8, 12, 4001)
    evidence, means, variances = [], [], []
    for length, bend, noise in itertools.product(ehvi._LENGTHS, ehvi._BENDS, ehvi._NOISES):
        known = (1 - noise) * covariance(inputs, inputs, length, bend) + noise * np.eye(9)
        inverse, cross = np.linalg.inv(known), (1 - noise) * covariance(at, inputs, length, bend)
        misfit = np.mean([target @ inverse @ target for target in targets.T])
        density = -4.5 * logarithms - (misfit / 2 + 1) / np.exp(logarithms) - 2 * logarithms + logarithms
        shift = density.max()
        evidence.append(np.log(np.exp(density - shift).sum()) + shift - np.linalg.slogdet(known)[1] / 2)
        means.append(cross @ inverse @ targets)
        own = np.diag((1 - noise) * covariance(at, at, length, bend)) + noise
        variances.append((own - np.einsum("pn,nm,pm->p", cross, inverse, cross)) * (1 + misfit / 2) / (1 + 4.5))
    weights = np.exp(np.array(evidence) - max(evidence))
    weights = np.where(weights > ehvi._LEAST_WEIGHT, weights, 0)
    weights /= weights.sum()
    mean = np.einsum("k,kpr->pr", weights, np.array(means))
    between = np.einsum("k,kpr->p", weights, np.square(np.array(means) - mean)) / 3
    found_mean, found_spread = ehvi._regress(inputs, values, at)
    assert found_mean == pytest.approx(mean * width + level, abs=1e-6)
    assert found_spread == pytest.approx(np.sqrt(weights @ np.array(variances) + between) * width, rel=1e-5)
    alone, _ = ehvi._regress(inputs, values, at, with_spread=False)
    assert alone == pytest.approx(found_mean)


def test_a_proposal_is_that_of_the_greatest_expectation(make_space: Callable[..., SearchSpace]) -> None:
    """Recomputed from the predictions with 200 draws; what the mean alone would choose is another network at times."""
    space = make_space(objectives=["psnr_db", "macs"])
    is_of_mean = []
    for seed in range(4):
        trials, _ = trained(space, 8, seed)
        chosen = propose(space, trials, np.random.default_rng(1), 1)
        known = ehvi._Known(space, trials)
        pool = ehvi._find_pool(space, known, np.random.default_rng(1))
        proposer = ehvi._Proposer(space, known, pool, np.random.default_rng(1))
        (mean, spread), (macs, _) = proposer._predict("psnr_db"), proposer._predict("macs")
        points = np.array(list(known.feasible.values())) * [-1, 1]
        every = np.concatenate((points, np.stack((-mean, macs), axis=-1).reshape(-1, 2)))
        best, span = every.min(axis=0), np.ptp(every, axis=0)

        def gain(scores: Array, costs: Array, front: Array, best: Array = best, span: Array = span) -> float:
            added = np.concatenate((front, np.stack((-scores, costs), axis=-1)))
            one, other = (
                moocore.hypervolume((values - best) / span, ref=[ehvi._REFERENCE] * 2) for values in (added, front)
            )
            return float(one - other)

        draws = np.random.default_rng(0).normal(size=200)
        gains = [
            np.mean([gain(mean[index] + draw * spread[index], macs[index], points) for draw in draws])
            for index in range(len(pool))
        ]
        place = [network.params for network in pool].index(without_routing(chosen))
        assert gains[place] >= 0.95 * max(gains)
        of_mean = [gain(mean[index], macs[index], points) for index in range(len(pool))]
        is_of_mean.append(place == int(np.argmax(of_mean)))
    assert not all(is_of_mean)


def test_a_network_that_is_being_trained_counts_as_it_is_predicted(make_space: Callable[..., SearchSpace]) -> None:
    """What one worker is at is not proposed to another, nor what would add nothing to it."""
    space = make_space(objectives=["psnr_db", "macs"])
    trials, _ = trained(space, 10)
    first = propose(space, trials, np.random.default_rng(1), 1)
    running = told(space, [first], state=TrialState.RUNNING, values=None)
    second = propose(space, trials + running, np.random.default_rng(1), 1)
    assert without_routing(second) != without_routing(first)
    failed = told(space, [first], state=TrialState.FAIL, values=None)
    assert second != propose(space, trials + failed, np.random.default_rng(1), 1)  # as if it were never there


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.FAIL])
def test_a_trial_that_was_not_wholly_suggested_says_nothing(
    make_space: Callable[..., SearchSpace], state: TrialState
) -> None:
    """Its process was killed when it had stored one dimension; the routing of default is none of the space's."""
    dimensions = {
        **DIMENSIONS,
        "routing.gamma": {"choices": [0.0, 1.0]},
        "routing.policy": {"choices": ["probability"]},
    }
    space = make_space(dimensions=dimensions)
    trials, _ = trained(space, 4)
    params: Params = {"model.channels": 8}
    partial = create_trial(
        state=state, params=params, distributions={"model.channels": distribution(space.dimensions["model.channels"])}
    )
    args = (np.random.default_rng(0), 1)
    assert propose(space, [*trials, partial], *args) == propose(space, trials, np.random.default_rng(0), 1)


def test_settings_that_are_null_elsewhere(make_space: Callable[..., SearchSpace]) -> None:
    """A range under a condition, null where that does not hold; choices that are settings of settings."""
    space = make_space(
        training={"steps": 10, "grad_clip_norm": None},
        dimensions={
            **DIMENSIONS,
            "training.grad_clip_norm": {"low": 0.1, "high": 10.0, "log": True, "when": {"model.groups": [[1]]}},
            "training.schedule": {"choices": [{"name": "constant"}, {"name": "cosine", "warmup_steps": 2}]},
        },
    )
    random = np.random.default_rng(0)
    drawn = [without_routing(draw(space, random)) for _ in range(20)]
    features = [ehvi._Network(space, params).features for params in drawn]
    assert np.isfinite(features).all()
    by_schedule = {params["training.schedule"]: network[-5:-3] for params, network in zip(drawn, features, strict=True)}
    assert len(by_schedule) == 2
    assert len({str(numbers) for numbers in by_schedule.values()}) == 2


def test_where_nothing_speaks_for_any_network_seeds_differ(make_space: Callable[..., SearchSpace]) -> None:
    """A score that none has come to, and that none seems to come to."""
    space = make_space(constraints=["psnr_db >= 60"])
    trials, _ = trained(space, 6)
    found = {str(propose(space, trials, np.random.default_rng(seed), 1)) for seed in range(6)}
    failed = told(space, [grid(space)[0]], state=TrialState.FAIL, values=None)
    begun = {str(propose(space, failed, np.random.default_rng(seed), 1)) for seed in range(6)}
    assert found
    assert len(begun) > 1


def test_an_improvement_is_the_area_that_is_added() -> None:
    """Two objectives from 0 to 1, reference 1.1; by hand."""
    front = np.array([[0.0, 1.0], [1.0, 0.0]])
    improvement = _Improvement(front, np.empty((0, 2)), np.empty((0, 2)))
    assert improvement.of(np.array([[0.5, 0.5]])) == pytest.approx(0.5 * 0.5)
    assert improvement.of(np.array([[0.5, 0.5], [0.75, 0.25]])) == pytest.approx(0.25 + 0.25 * 0.25)
    assert improvement.of(np.array([[1.0, 1.0]])) == pytest.approx(0.0)
    assert improvement.of(np.empty((0, 2))) == 0.0
    beside = _Improvement(front, np.empty((0, 2)), np.array([[0.5, 0.5]]))
    assert beside.of(np.array([[0.5, 0.5]])) == pytest.approx(0.0)
    one = _Improvement(np.array([[2.0], [4.0]]), np.empty((0, 1)), np.empty((0, 1)))
    assert one.of(np.array([[1.0]])) == pytest.approx(0.5)


@pytest.mark.slow
def test_a_study_of_it_finds_the_front_sooner_than_chance(
    make_space: Callable[..., SearchSpace], tmp_path: Path
) -> None:
    """Through Optuna and its storage, twelve networks of 110: six of the front's best by this against random ones."""

    def run(sampler: str, seed: int) -> float:
        changes = {"sampler": {"name": sampler, "startup_networks": 4}, "seed": seed}
        space = make_space(**changes)
        directions = [one.direction for one in space.objectives]
        storage = connect(f"sqlite:///{tmp_path / f'{sampler}{seed}.db'}")
        study = optuna.create_study(directions=directions, storage=storage)
        dialogue = Dialogue(space, study)
        random = np.random.default_rng(seed)
        found = []
        for number in range(12):
            trial = dialogue.ask()
            dialogue.suggest(trial)
            params = dict(trial.params)
            luck = float(random.normal() * 0.02)
            points = routed(space, without_routing(params))
            measured = {str(point): [measure(space, point, luck)[metric] for metric in OBJECTIVES] for point in points}
            trial.set_user_attr("network", str(number))
            own = next(point for point in points if point == params)
            dialogue.tell_point(trial, measured[str(own)], {})
            others = [Point(decode_params(space, point), measured[str(point)], {}) for point in points if point != own]
            dialogue.add_points(str(number), str(number), others)
            found += list(measured.values())
        scaled = (np.array(found) * [-1, 1, 1] - [-30.6, 2, 0]) / [1.6, 120, 1.2e10]
        return float(moocore.hypervolume(scaled, ref=np.ones(3)))

    volumes = {sampler: [run(sampler, seed) for seed in range(3)] for sampler in ("ehvi", "random")}
    assert np.median(volumes["ehvi"]) > max(volumes["random"])

"""Samplers by name, made anew for every trial from study seed and trial number: a resumed search goes on alike."""

from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler

from harness.core.seeding import derive_seed
from harness.search.space import SamplerConfig, SearchSpace, encode


def make_sampler(space: SearchSpace, trial_number: int) -> BaseSampler:
    """Make the space's sampler for one trial; everything else that it knows, it reads from the study."""
    seed = derive_seed(space.seed, "sampler", trial_number) % 2**32
    return _SAMPLERS[space.sampler.name](space, space.sampler, seed)


def _startup_trials(space: SearchSpace, config: SamplerConfig) -> int:
    """Return the start-up in trials: every network brings one for each of its points."""
    return config.startup_networks * len(space.routings())


def _grid(space: SearchSpace, _config: SamplerConfig, _seed: int) -> BaseSampler:
    grid = {name: [encode(value) for value in dimension.values() or ()] for name, dimension in space.dimensions.items()}
    return optuna.samplers.GridSampler(grid, seed=space.seed)


# Quasi-random and grid sequences belong to the whole study, so their seed is the study's.
_SAMPLERS: dict[str, Callable[[SearchSpace, SamplerConfig, int], BaseSampler]] = {
    "tpe": lambda space, config, seed: optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=_startup_trials(space, config), multivariate=True, group=True
    ),
    "nsga2": lambda _space, config, seed: optuna.samplers.NSGAIISampler(
        seed=seed, population_size=config.population_size
    ),
    "nsga3": lambda _space, config, seed: optuna.samplers.NSGAIIISampler(
        seed=seed, population_size=config.population_size
    ),
    "gp": lambda space, config, seed: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=_startup_trials(space, config)
    ),
    "qmc": lambda space, _config, _seed: optuna.samplers.QMCSampler(
        seed=space.seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
    ),
    "random": lambda _space, _config, seed: optuna.samplers.RandomSampler(seed=seed),
    "grid": _grid,
}

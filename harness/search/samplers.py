"""Samplers by name, made anew for every trial from study seed and trial number: a resumed search goes on alike."""

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler

from harness.core.seeding import derive_seed
from harness.search.ehvi import EHVISampler
from harness.search.space import SamplerConfig, SearchSpace


def make_sampler(space: SearchSpace, trial_number: int) -> BaseSampler:
    """Make the space's sampler for the trial of a number; everything else that it knows, it reads from the study."""
    seed = derive_seed(space.seed, "sampler", trial_number) % 2**32
    with warnings.catch_warnings():  # which samplers Optuna calls experimental is no news for who searches
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _SAMPLERS[space.sampler.name](space, space.sampler, seed)


def _startup_trials(space: SearchSpace, config: SamplerConfig) -> int:
    """Return the start-up in trials: every network brings one for each of its points."""
    return config.startup * len(space.routings())


# A quasi-random sequence belongs to the whole study, so its seed is the study's; what it leaves to independent sampling
# (the first trial, conditional dimensions) must differ from trial to trial. A grid's points are queued one by one, so
# that its sampler is never asked.
_SAMPLERS: dict[str, Callable[[SearchSpace, SamplerConfig, int], BaseSampler]] = {
    "tpe": lambda space, config, seed: optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=_startup_trials(space, config),
        multivariate=True,
        group=True,
    ),
    "ehvi": lambda space, config, seed: EHVISampler(space, seed, config.startup),
    "nsga2": lambda _space, config, seed: optuna.samplers.NSGAIISampler(
        seed=seed, population_size=config.population_size
    ),
    "nsga3": lambda _space, config, seed: optuna.samplers.NSGAIIISampler(
        seed=seed, population_size=config.population_size
    ),
    "gp": lambda space, config, seed: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=_startup_trials(space, config), warn_independent_sampling=False
    ),
    "qmc": lambda space, _config, seed: optuna.samplers.QMCSampler(
        seed=space.seed,
        scramble=True,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
        warn_independent_sampling=False,
    ),
    "random": lambda _space, _config, seed: optuna.samplers.RandomSampler(seed=seed),
    "grid": lambda _space, _config, seed: optuna.samplers.RandomSampler(seed=seed),
}

"""What a trial proposes: values by dimension name, their coding for Optuna, and the points of a grid.

Coded values (`params`) are scalars that a sampler can hold; decoded ones (`values`) are what the configs take.
"""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from harness.core.configs import RoutingConfig
from harness.core.seeding import derive_seed
from harness.search.space import ROUTING_DIMENSIONS, Dimension, Scalar, SearchSpace, Values, encode

Params = dict[str, Scalar]


def suggest(trial: Trial, space: SearchSpace) -> Values:
    """Ask the trial for every dimension whose condition holds; return decoded values by dimension name."""
    values: Values = {}
    for name, dimension in space.dimensions.items():
        if _is_varied(dimension, values):
            values[name] = decode(dimension, _suggest_code(trial, name, distribution(dimension)))
    return values


def _suggest_code(trial: Trial, name: str, known: BaseDistribution) -> Any:
    if isinstance(known, CategoricalDistribution):
        return trial.suggest_categorical(name, known.choices)
    if isinstance(known, IntDistribution):
        return trial.suggest_int(name, known.low, known.high, step=known.step, log=known.log)
    assert isinstance(known, FloatDistribution)
    return trial.suggest_float(name, known.low, known.high, step=known.step, log=known.log)


def distribution(dimension: Dimension) -> BaseDistribution:
    """Return what Optuna knows the dimension as."""
    if dimension.choices is not None:
        return CategoricalDistribution([encode(choice) for choice in dimension.choices])
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.is_integer:
        low, high, step = int(dimension.low), int(dimension.high), int(dimension.step or 1)
        return IntDistribution(low, high, log=dimension.log, step=step)
    return FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log, step=dimension.step)


def decode(dimension: Dimension, code: Any) -> Any:
    """Return the value of a code; `encode` is the other way."""
    if dimension.choices is not None:
        return next(choice for choice in dimension.choices if encode(choice) == code)
    return encode(code)


def decode_params(space: SearchSpace, params: Params) -> Values:
    """Return the values of a proposal's params."""
    return {name: decode(space.dimensions[name], code) for name, code in params.items()}


def encode_values(values: Values) -> Params:
    """Return the params of a proposal's values."""
    return {name: encode(value) for name, value in values.items()}


def with_routing(space: SearchSpace, values: Values, routing: RoutingConfig) -> Values:
    """Return values with those of a routing of the space in their place, as far as they are dimensions.

    `threshold` ignores γ, but it must be one of the space's: that of the values, or the first.
    """
    chosen: Values = {"routing.gamma": routing.gamma, "routing.policy": routing.policy}
    if routing.policy == "threshold" and "routing.gamma" in space.dimensions:
        listed = space.dimensions["routing.gamma"].values()
        assert listed is not None
        chosen["routing.gamma"] = values.get("routing.gamma", listed[0])
    return {**values, **{name: value for name, value in chosen.items() if name in space.dimensions}}


def grid(space: SearchSpace) -> list[Params]:
    """Return every point of a space whose dimensions can all be listed, in an order that the space's seed settles."""
    points = [encode_values(values) for values in combine(space, space.dimensions)]
    random.Random(derive_seed(space.seed, "grid")).shuffle(points)
    return points


def count_networks(space: SearchSpace, limit: int = 100_000) -> int | None:
    """Return how many networks a space has; None where they are endless, or more than `limit` before conditions."""
    names = [name for name in space.dimensions if name not in ROUTING_DIMENSIONS]
    total = 1
    for name in names:
        listed = space.dimensions[name].values()
        if listed is None:
            return None
        total *= len(listed)
        if total > limit:
            return None
    return len(combine(space, names))


def draw(space: SearchSpace, random: np.random.Generator, near: Params | None = None) -> Params:
    """Return a random point of a space; with `near` the params of a point, one that differs in a dimension or two."""
    kept = set(near or {})
    if kept:
        kept -= set(random.choice(sorted(kept), size=min(2, len(kept))).tolist())
    values: Values = {}
    for name, dimension in space.dimensions.items():
        if _is_varied(dimension, values):
            values[name] = decode(dimension, near[name]) if near and name in kept else _draw_value(dimension, random)
    return encode_values(values)


def _draw_value(dimension: Dimension, random: np.random.Generator) -> Any:
    listed = dimension.values()
    if listed is not None:
        return listed[int(random.integers(len(listed)))]
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.log:
        value = float(np.exp(random.uniform(np.log(dimension.low), np.log(dimension.high))))
        value = min(max(value, dimension.low), dimension.high)
        return round(value) if dimension.is_integer else value
    return float(random.uniform(dimension.low, dimension.high))


def combine(space: SearchSpace, names: Iterable[str]) -> list[Values]:
    """Return every combination of the values of some dimensions, which can all be listed, under their conditions."""
    points: list[Values] = [{}]
    for name in names:
        dimension = space.dimensions[name]
        listed = dimension.values()
        assert listed is not None
        points = [
            extended
            for values in points
            for extended in (
                [{**values, name: value} for value in listed] if _is_varied(dimension, values) else [values]
            )
        ]
    return points


def is_whole(space: SearchSpace, params: Params) -> bool:
    """Whether params hold every dimension that is varied under them."""
    values = decode_params(space, params)
    return bool(params) and all(
        name in params for name, dimension in space.dimensions.items() if _is_varied(dimension, values)
    )


def _is_varied(dimension: Dimension, values: Values) -> bool:
    """Whether the dimension's condition holds under the values of earlier dimensions."""
    return all(
        name in values and encode(values[name]) in {encode(value) for value in allowed}
        for name, allowed in dimension.when.items()
    )

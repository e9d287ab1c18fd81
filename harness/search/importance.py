"""How much of each objective the searched dimensions explain, from records alone: functional ANOVA.

Optuna's fANOVA (Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014) fits a
random forest to the points, and divides the variance of what the forest predicts over the whole space: a dimension's
share is that of its own average effect, with all others averaged over. What is left is interaction of several. The
forest is scikit-learn's, which MLflow brings.

A dimension is what the network, its training or its routing really had, so that one whose condition does not hold has
its fixed setting. It is given to the forest as places: every choice a place, a range in sixteen equal parts (of the
logarithm where it is `log`), so that each counts alike in averages, and long lists of choices cost no more than ranges.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import create_trial

from harness.core.configs import CompressionConfig, look_up
from harness.core.errors import UserError
from harness.core.importance import INTERACTIONS, Importance
from harness.core.records import PointRecord, StudyRecord, TrialRecord, point_id
from harness.core.seeding import derive_seed
from harness.search.space import Dimension, Scalar, SearchSpace, encode, read_study_space

FEWEST_POINTS = 10
MOST_POINTS = 2000
_PARTS = 16
_TREES = 16  # of eight levels: twice as many, or as deep as can be, say the same within .01 and take much longer
_DEPTH = 8


class _Point(NamedTuple):
    record: TrialRecord
    measured: PointRecord


_Studies = dict[tuple[object, ...], optuna.Study]  # by the places of their points in each dimension


def explain_objectives(record: StudyRecord, trials: Iterable[TrialRecord]) -> tuple[Importance, ...]:
    """Return what each objective of a study hangs on, over the distinct points of complete trials.

    Calibrated points, to which no dimension leads, are left aside. Of more than `MOST_POINTS` as many are drawn by the
    study's seed: every so-many-th would meet the same γ again and again. The same records give the same numbers.
    """
    try:
        space = read_study_space(record)
    except UserError as error:
        return tuple(
            Importance(metric=objective.metric, points=0, networks=0, reason=str(error))
            for objective in record.objectives
        )
    points = _find_points(space, trials)
    if len(points) > MOST_POINTS:
        drawn = random.Random(derive_seed(space.seed, "importance")).sample(range(len(points)), MOST_POINTS)
        points = [points[index] for index in sorted(drawn)]
    settings = [_settings(space, point) for point in points]
    known: _Studies = {}
    return tuple(_explain(space, objective.metric, points, settings, known) for objective in record.objectives)


def _find_points(space: SearchSpace, trials: Iterable[TrialRecord]) -> list[_Point]:
    routings = {None, *space.routings()}
    distinct: dict[str, _Point] = {}
    for trial in trials:
        if trial.kind == "trial" and trial.state == "complete":
            for point in trial.produced:
                if point.routing in routings:
                    distinct.setdefault(point_id(trial.network_id, point.routing), _Point(trial, point))
    return list(distinct.values())


def _settings(space: SearchSpace, point: _Point) -> dict[str, Scalar]:
    """Return what a point had in each dimension, as a sampler holds it."""
    chain = point.record.compression
    parts = {
        "model": point.record.model if chain is None else chain.model,
        "training": point.record.training,
        "compression": CompressionConfig(left=1.0) if chain is None else chain.config,
        "routing": point.measured.routing,
    }
    found: dict[str, Scalar] = {}
    for name in space.dimensions:
        section, _, setting = name.partition(".")
        part = parts[section]
        values = None if part is None else part.model_dump(mode="json", include={setting.partition(".")[0]})
        found[name] = encode(look_up(values, setting))
    return found


def _explain(
    space: SearchSpace,
    metric: str,
    points: Sequence[_Point],
    settings: Sequence[Mapping[str, Scalar]],
    known: _Studies,
) -> Importance:
    measured = [(point, found, point.measured.value(metric)) for point, found in zip(points, settings, strict=True)]
    finite = [(point, found, value) for point, found, value in measured if value is not None and math.isfinite(value)]
    values = [float(value) for _, _, value in finite]
    columns = {
        name: _places(dimension, [found[name] for _, found, _ in finite])
        for name, dimension in space.dimensions.items()
    }
    varied = {name: places for name, places in columns.items() if len(set(places)) > 1}
    networks = len({point.record.network_id for point, _, _ in finite})
    told: dict[str, Any] = {"metric": metric, "points": len(finite), "networks": networks}
    reason = None
    if len(finite) < FEWEST_POINTS:
        reason = f"{len(finite)} points so far; it takes {FEWEST_POINTS}"
    elif len(set(values)) == 1:
        reason = f"all {len(finite)} points have the same value"
    elif not varied:
        reason = "no dimension has two values among the points"
    if reason is not None:
        return Importance(**told, reason=reason)
    key = tuple((name, *places) for name, places in varied.items())
    if key not in known:
        known[key] = _make_study(varied, len(finite))
    shares = _divide(known[key], values, derive_seed(space.seed, "importance", metric) % 2**32)
    left_out = {name: "a single value among the points" for name in columns if name not in varied}
    return Importance(**told, shares=shares, left_out=left_out)


def _places(dimension: Dimension, settings: Sequence[Scalar]) -> list[int]:
    """Number what points had in a dimension, from 0 without gaps, in the dimension's order."""
    if dimension.choices is not None:
        known = [encode(choice) for choice in dimension.choices]
        ranks: list[Any] = [
            (known.index(value), "") if value in known else (len(known), str(value)) for value in settings
        ]
    else:
        ranks = [_part_of_range(dimension, value) for value in settings]
    order = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return [order[rank] for rank in ranks]


def _part_of_range(dimension: Dimension, value: Scalar) -> int:
    """Return which of the equal parts of a range a value lies in; -1 for fixed settings below it or of another kind."""
    assert dimension.low is not None
    assert dimension.high is not None
    if not isinstance(value, int | float) or value < dimension.low:
        return -1
    if value >= dimension.high:
        return _PARTS - 1 if value == dimension.high else _PARTS
    low, high, at = (math.log(end) if dimension.log else end for end in (dimension.low, dimension.high, value))
    return min(int(_PARTS * (at - low) / (high - low)), _PARTS - 1)


def _make_study(columns: Mapping[str, Sequence[int]], points: int) -> optuna.Study:
    """Return a study of points without values: a trial each, by their order."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    spans: dict[str, BaseDistribution] = {
        name: FloatDistribution(-0.5, max(places) + 0.5) for name, places in columns.items()
    }
    study.add_trials(
        [
            create_trial(
                params={name: float(places[index]) for name, places in columns.items()},
                distributions=spans,
                value=0.0,
            )
            for index in range(points)
        ]
    )
    return study


def _divide(study: optuna.Study, values: Sequence[float], seed: int) -> dict[str, float]:
    """Return the share of each column, the largest first, and that of their interactions."""
    even = (np.array(values) - np.mean(values)) / np.std(values)  # a forest takes tiny variances for none
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, max_depth=_DEPTH, seed=seed)
    found = evaluator.evaluate(study, target=lambda trial: float(even[trial.number]))
    alone = {name: float(share) for name, share in sorted(found.items(), key=lambda entry: (-entry[1], entry[0]))}
    return {**alone, INTERACTIONS: max(0.0, 1.0 - sum(alone.values()))}

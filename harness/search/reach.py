"""What is refused before anything is trained: constraints that no network of a space can meet, networks that fail."""

import math
from collections.abc import Iterator

from harness.core.configs import AnyModelConfig, CAMixerSRConfig
from harness.core.constraints import Constraint
from harness.core.errors import UserError
from harness.profiling import canonical_macs, count_params, try_custom
from harness.search.proposals import combine
from harness.search.space import Dimension, SearchSpace

_LISTED = (
    4096  # networks that are looked through; of a larger space those at the ends of dimensions that costs grow with
)
_BUILT = 100  # networks of users' own that are built to be counted
_GROWING = frozenset({"model.channels", "model.embed_dim", "model.mlp_ratio"})


def refuse_unreachable(space: SearchSpace) -> None:
    """Raise `UserError` for a bound on parameters or MACs that no network of the space can keep at any routing.

    Only where that is certain: spaces with too many networks to look through are passed by.
    """
    models = {name: dimension for name, dimension in space.dimensions.items() if name.startswith("model.")}
    if space.model.get("family") == "custom" and _count(models) > _BUILT:
        return
    for constraint in space.parsed_constraints():
        if constraint.metric not in ("params", "macs") or space.compresses:  # what is left shows when it is pruned
            continue
        nearest = _find_nearest(space, constraint)
        if nearest is not None and constraint.violation(nearest[0]) > 0:
            is_upper = constraint.operator == "<="
            raise UserError(
                f"constraint {constraint.name}: no network of the space can meet it; the "
                f"{'smallest' if is_upper else 'largest'} {constraint.metric} in the space are {nearest[0]} "
                f"({nearest[1]}); {'raise' if is_upper else 'lower'} the bound, or widen the space's dimensions"
            )


def refuse_failing(space: SearchSpace) -> None:
    """Raise `UserError` where a user's own network, the first of the space, cannot be built or restores no image."""
    if space.model.get("family") != "custom":
        return
    first = {name: dimension.first for name, dimension in space.dimensions.items() if name.startswith("model.")}
    try_custom(space.model_config_for(first))


def _find_nearest(space: SearchSpace, constraint: Constraint) -> tuple[int, str] | None:
    """Return the cost that comes nearest to keeping a bound, and whose it is; None where that is not certain."""
    is_upper = constraint.operator == "<="
    models = _list_models(space, smallest=is_upper)
    if not models:
        return None
    found = (cost for model in models for cost in _costs(space, model, constraint.metric, smallest=is_upper))
    return (min if is_upper else max)(found, key=lambda cost: cost[0])


def _list_models(space: SearchSpace, *, smallest: bool) -> list[AnyModelConfig]:
    """Return models of which one has the least cost of the space, or the greatest; none where that is not certain."""
    needed = {name for name in space.dimensions if name.startswith("model.")}
    for name in reversed(list(space.dimensions)):  # conditions name earlier dimensions
        if name in needed:
            needed |= space.dimensions[name].when.keys()
    dimensions = {name: dimension for name, dimension in space.dimensions.items() if name in needed}
    is_whole = _count(dimensions) <= _LISTED
    if not is_whole:
        asked = {other for dimension in dimensions.values() for other in dimension.when}
        for name in _GROWING & dimensions.keys() - asked:
            dimensions[name] = _end(dimensions[name], smallest=smallest)
        if _count(dimensions) > _LISTED:
            return []
    models: list[AnyModelConfig] = []
    for values in combine(space.model_copy(update={"dimensions": dimensions}), dimensions):
        try:
            models.append(space.model_config_for(values))
        except UserError:  # settings that do not go together
            if not is_whole:  # others in between may
                return []
    return models


def _count(dimensions: dict[str, Dimension]) -> float:
    """Return how many combinations of values there are, conditions left aside."""
    listed = [dimension.values() for dimension in dimensions.values()]
    return math.prod(math.inf if values is None else len(values) for values in listed)


def _end(dimension: Dimension, *, smallest: bool) -> Dimension:
    """Return a dimension with nothing but its least value, or its greatest."""
    values = dimension.choices if dimension.choices is not None else (dimension.low, dimension.high)
    return Dimension(choices=((min if smallest else max)(values),), when=dimension.when)


def _costs(space: SearchSpace, model: AnyModelConfig, metric: str, *, smallest: bool) -> Iterator[tuple[int, str]]:
    """Yield a network's costs, each with whose it is: of every policy at the γ where it does least, or most."""
    if metric == "params":
        yield count_params(model), model.label()
        return
    if not isinstance(model, CAMixerSRConfig):
        yield canonical_macs(model, space.macs_input_size), model.label()
        return
    ends = {}
    for routing in sorted(space.routings(), key=lambda routing: routing.gamma, reverse=smallest):
        ends[routing.policy] = routing
    for routing in ends.values():
        share = float(not smallest) if routing.policy == "threshold" else None  # it may turn out to be any
        routed = model.model_copy(update={"routing": routing})
        yield (
            canonical_macs(routed, space.macs_input_size, attention_share=share),
            f"{model.label()}, {routing.label()}",
        )

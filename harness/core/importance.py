"""How much of an objective each searched dimension explains: what a search's room computes and others show."""

from harness.core.configs import FrozenConfig

INTERACTIONS = "interactions"  # beside the dimensions, what none of them explains alone


class Importance(FrozenConfig):
    """What one objective of a study hangs on, over `points` of `networks`.

    `shares`: the part of the objective's variance that each dimension explains alone, the largest first, and under
    `INTERACTIONS` the rest, which only several of them explain together; they add up to 1. `left_out` says why a
    dimension has no share, and `reason` why there are none at all.
    """

    metric: str
    points: int
    networks: int
    shares: dict[str, float] = {}
    left_out: dict[str, str] = {}
    reason: str | None = None

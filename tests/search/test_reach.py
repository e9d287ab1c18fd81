"""Bounds that no network of a space can keep, against the costs of all its networks."""

import re
from pathlib import Path
from typing import Any

import pytest

from harness.core.constraints import parse_constraint
from harness.core.errors import UserError
from harness.profiling import canonical_macs, count_params
from harness.search import SearchSpace, reach, read_space, refuse_unreachable
from harness.search.proposals import decode_params, grid
from tests.spaces import write_space

SETTINGS: dict[str, Any] = {
    "scale": 4,
    "training": {"steps": 90, "batch_size": 1, "hr_patch_size": 32},
    "dimensions": {
        "model.groups": {"choices": [[2], [1, 1], [1]]},
        "model.channels": {"low": 8, "high": 20, "step": 4},
        "model.window": {"choices": [4, 7], "when": {"model.groups": [[1], [2]]}},
        "training.seed": {"low": 0, "high": 9999},
        "routing.gamma": {"choices": [0.75, 0.25]},
    },
    "objectives": ["psnr_db", "macs"],
    "baselines": [],
}
SWINIR: dict[str, Any] = {
    **SETTINGS,
    "model": {"family": "swinir", "depths": [2], "num_heads": 1},
    "dimensions": {"model.embed_dim": {"low": 10, "high": 30, "step": 5}, "model.num_heads": {"choices": [2, 5]}},
}


def make(tmp_path: Path, constraint: str, settings: dict[str, Any] = SETTINGS, **dimensions: Any) -> SearchSpace:
    changed = {**settings, "dimensions": {**settings["dimensions"], **dimensions}, "constraints": [constraint]}
    return read_space(write_space(tmp_path / "space.yaml", changed))


def costs(space: SearchSpace, metric: str) -> list[int]:
    """What each point of a space costs, by its own closed form; settings that do not go together left out."""
    seeded = space.dimensions.get("training.seed")
    few = {} if seeded is None else {"training.seed": seeded.model_copy(update={"high": 0})}
    found = []
    for params in grid(space.model_copy(update={"dimensions": {**space.dimensions, **few}})):
        values = decode_params(space, params)
        try:
            model = space.model_config_for(values)
        except UserError:
            continue
        if space.routes:
            model = model.model_copy(update={"routing": space.routing_config(values)})
        found.append(count_params(model) if metric == "params" else canonical_macs(model, space.macs_input_size))
    return found


@pytest.mark.parametrize("listed", [4096, 4], ids=["looked through", "its ends"])
@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("settings", [SETTINGS, SWINIR], ids=["camixersr", "swinir"])
def test_the_bound_is_the_cost_of_the_cheapest_and_of_the_dearest(
    settings: dict[str, Any], metric: str, listed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = costs(make(tmp_path, f"{metric} <= 1", settings), metric)
    monkeypatch.setattr(reach, "_LISTED", max(listed, 12) if settings is SETTINGS else listed)
    for constraint, is_met in (
        (f"{metric} <= {min(every)}", True),
        (f"{metric} <= {min(every) - 1}", False),
        (f"{metric} >= {max(every)}", True),
        (f"{metric} >= {max(every) + 1}", False),
    ):
        space = make(tmp_path, constraint, settings)
        if is_met:
            refuse_unreachable(space)
            continue
        name = re.escape(parse_constraint(constraint).name)
        end = f"smallest {metric} in the space are {min(every)} " if "<=" in constraint else f" are {max(every)} "
        with pytest.raises(UserError, match=f"constraint {name}: no network .*{end}") as caught:
            refuse_unreachable(space)
        assert "\n" not in str(caught.value)


def test_nothing_is_said_where_it_is_not_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_unreachable(make(tmp_path, "latency_ms <= 1e-9"))
    monkeypatch.setattr(reach, "_LISTED", 1)
    refuse_unreachable(make(tmp_path, "params <= 1"))
    monkeypatch.setattr(reach, "_LISTED", 2)
    # At its ends no network has three heads: ten channels are no multiple of three, and fifteen are.
    refuse_unreachable(make(tmp_path, "params <= 1", SWINIR, **{"model.num_heads": {"choices": [2, 3]}}))


def test_content_may_make_any_share_of_attention(tmp_path: Path) -> None:
    policies = {"routing.policy": {"choices": ["fixed", "threshold"]}}
    free, dear = (
        costs(make(tmp_path, "macs <= 1", **{"routing.gamma": {"choices": [gamma]}}), "macs") for gamma in (0, 1)
    )
    refuse_unreachable(make(tmp_path, f"macs <= {min(free)}", **policies))
    refuse_unreachable(make(tmp_path, f"macs >= {max(dear)}", **policies))
    for constraint in (f"macs <= {min(free) - 1}", f"macs >= {max(dear) + 1}"):
        with pytest.raises(UserError, match="threshold"):
            refuse_unreachable(make(tmp_path, constraint, **policies))

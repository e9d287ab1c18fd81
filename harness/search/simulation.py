"""Studies replayed on a table of trained networks: what a sampler and early stopping reach for how many training steps.

A replayed study asks and tells as a real one does, through the same `Dialogue`; instead of training a network it looks
up what the table says of it at every rung, and counts the steps.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState

from harness.core.configs import Rung, StoppingConfig
from harness.core.errors import UserError
from harness.search.dialogue import Dialogue
from harness.search.halving import Points
from harness.search.proposals import encode_values
from harness.search.space import ROUTING_DIMENSIONS, SearchSpace, Values
from harness.search.table import COLUMNS

_MOST_REPEATS = 200  # proposals in a row of networks that are known


class Entry(NamedTuple):
    """What a table knows of a trained network: objectives of each routing (by γ) at each step."""

    params: int
    steps: dict[int, dict[float, tuple[float, ...]]]


class Table:
    """A recorded table, for the objectives of a space."""

    def __init__(self, rows: Iterable[dict[str, str]], metrics: tuple[str, ...]):
        by_seed: defaultdict[tuple[str, int], dict[int, dict[float, tuple[float, ...]]]] = defaultdict(dict)
        params: dict[str, int] = {}
        for row in rows:
            values = tuple(float(row[metric]) for metric in metrics)
            by_seed[row["network"], int(row["seed"])].setdefault(int(row["step"]), {})[float(row["gamma"])] = values
            params[row["network"]] = int(row["params"])
        self.entries = {
            network: Entry(params[network], steps) for (network, seed), steps in by_seed.items() if seed == 0
        }
        self.repeated: dict[str, list[Entry]] = defaultdict(list)
        for (network, _), steps in by_seed.items():
            self.repeated[network].append(Entry(params[network], steps))
        self.steps = max(step for entry in self.entries.values() for step in entry.steps)

    @classmethod
    def read(cls, path: Path, metrics: tuple[str, ...]) -> "Table":
        """Read a table's CSV; `UserError` where it is none."""
        try:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames is None or not set(COLUMNS) <= set(reader.fieldnames):
                    raise UserError(f"{path}: expected a table with the columns {', '.join(COLUMNS)}")
                return cls(list(reader), metrics)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; make one with `harness bench table`") from None

    def points(self) -> Points:
        """Return all points of all networks at the end."""
        return np.array([values for entry in self.entries.values() for values in entry.steps[self.steps].values()])


class Progress(NamedTuple):
    """A replayed study after a network was trained to the end: steps so far, and objectives of all points found."""

    steps: int
    points: Points


def network_key(values: Values) -> str:
    """Return the name that a table has for a network."""
    chosen = {name: value for name, value in values.items() if name not in ROUTING_DIMENSIONS}
    return json.dumps(encode_values(chosen), sort_keys=True, separators=(",", ":"))


def replay(space: SearchSpace, table: Table, *, stopping: StoppingConfig | None, max_steps: int) -> list[Progress]:
    """Replay a study until so many training steps are spent, or the space is known; by the space's sampler and seed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [objective.direction for objective in space.objectives]
    study = optuna.create_study(directions=directions, storage=optuna.storages.InMemoryStorage())
    dialogue = Dialogue(space, study)
    rungs = [] if stopping is None else [rung.step for rung in stopping.rungs(table.steps, 1)]
    spent, repeats = 0, 0
    ended: dict[str, bool] = {}  # whether a network was trained to the end
    found: list[tuple[float, ...]] = []
    progress: list[Progress] = []
    while spent < max_steps and repeats < _MOST_REPEATS and len(ended) < len(table.entries):
        trial = dialogue.ask()
        values = dialogue.suggest(trial)
        name = network_key(values)
        entry, gamma = table.entries[name], float(values["routing.gamma"])
        if name in ended:
            repeats += 1
            if ended[name]:
                dialogue.tell_point(trial, entry.steps[table.steps][gamma], {})
            else:
                dialogue.tell_unfinished(trial, TrialState.PRUNED, "stopped before")
            continue
        repeats = 0
        trial.set_user_attr("network", name)
        trained, is_promoted = 0, True
        for step in rungs:
            spent, trained = spent + step - trained, step
            points = list(entry.steps[step].values())
            assert stopping is not None
            is_promoted = dialogue.judge(trial, name, Rung(step, 1), points, stopping.factor).promoted
            if not is_promoted:
                break
        ended[name] = is_promoted
        if not is_promoted:
            dialogue.tell_unfinished(trial, TrialState.PRUNED, "stopped")
            continue
        spent += table.steps - trained
        told = entry.steps[table.steps]
        dialogue.tell_point(trial, told[gamma], {})
        for other, objectives in told.items():
            if other != gamma:
                dialogue.add_point({**values, "routing.gamma": other}, objectives, {}, {})
        found += told.values()
        progress.append(Progress(spent, np.array(found)))
    return progress

"""Studies replayed on a table of trained networks: what a sampler and early stopping reach for how many training steps.

A replayed study asks and tells as a real one does, through the same `Dialogue`; instead of training a network it looks
up what the table says of it at every rung, and counts the steps.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import moocore
import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import TrialState

from harness.core.configs import FrozenConfig, Rung, StoppingConfig
from harness.core.errors import UserError
from harness.search.dialogue import Dialogue, Point
from harness.search.halving import Points
from harness.search.space import SearchSpace
from harness.search.table import COLUMNS, gammas, network_name, plan_table, read_rows, scored

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
        self.scored = sorted({step for entry in self.entries.values() for step in entry.steps})
        self.steps = self.scored[-1]

    @classmethod
    def read(cls, path: Path, space: SearchSpace) -> "Table":
        """Read a table's CSV; `UserError` where it is none of the whole space and its objectives."""
        metrics = tuple(one.metric for one in space.objectives)
        strange = [metric for metric in metrics if metric not in COLUMNS]
        if strange:
            known = ", ".join(COLUMNS[COLUMNS.index("psnr_db") :])
            raise UserError(f"objective {strange[0]}: a table has {known}; give a space with objectives among those")
        if "routing.gamma" not in space.dimensions:
            raise UserError(
                "the space has no dimension routing.gamma; expected one that has, of which there is a table"
            )
        rows = read_rows(path, space, any_rungs=True)
        found = scored(rows)
        steps = {space.training_config().steps, *(step for places in found.values() for step, _ in places)}
        expected = set(itertools.product(steps, gammas(space)))
        networks = [network_name(task.values) for task in plan_table(space, seeds=1, repeated=0)]
        for network, seed in dict.fromkeys([*((network, 0) for network in networks), *found]):
            missing = len(expected - found.get((network, seed), set()))
            if missing:
                raise UserError(
                    f"{path}: {missing} of {len(expected)} rows are missing of network {network} with seed {seed}; "
                    "expected every network of the space at every step and gamma; complete it with "
                    f"`harness bench table --known {path}`"
                )
        return cls(rows, metrics)

    def points(self) -> Points:
        """Return all points of all networks at the end."""
        return np.array([values for entry in self.entries.values() for values in entry.steps[self.steps].values()])

    def require(self, stopping: StoppingConfig | None) -> None:
        """Refuse rungs that the table knows nothing of."""
        wanted = [] if stopping is None else [rung.step for rung in stopping.rungs(self.steps, 1)]
        if stopping is not None and not wanted:
            raise UserError(
                f"stopping from step {stopping.grace_steps} on: the networks of the table were trained for "
                f"{self.steps} steps, so that none would be stopped; give an earlier step"
            )
        if not set(wanted) <= set(self.scored):
            raise UserError(
                f"rungs at {', '.join(map(str, wanted))} steps: the table was scored at "
                f"{', '.join(map(str, self.scored))}; give a grace and a factor whose rungs are among those"
            )

    def reliability(self, signs: npt.NDArray[np.float64]) -> "tuple[RungReliability, ...]":
        """Say of each rung how well the first objective there foretells that of the end."""
        ends = self._best(self.steps, signs)
        others = np.array(
            [np.mean(list(entry.steps[self.steps].values()), axis=0)[1:] for entry in self.entries.values()]
        )
        costs = np.log(np.maximum(others, 1e-12))
        found = []
        for step in self.scored:
            spread = [
                float(np.std([self._best_of(entry, step, signs) for entry in same], ddof=1))
                for same in self.repeated.values()
                if len(same) > 1
            ]
            values = self._best(step, signs)
            found.append(
                RungReliability(
                    step=step,
                    rank_correlation=_rank_correlation(values, ends),
                    beyond_cost=_correlation(_without(costs, values), _without(costs, ends)),
                    spread=float(np.std(values, ddof=1)),
                    seed_spread=float(np.mean(spread)) if spread else None,
                )
            )
        return tuple(found)

    def _best(self, step: int, signs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([self._best_of(entry, step, signs) for entry in self.entries.values()])

    @staticmethod
    def _best_of(entry: Entry, step: int, signs: npt.NDArray[np.float64]) -> float:
        return min(float(values[0] * signs[0]) for values in entry.steps[step].values())


class RungReliability(FrozenConfig):
    """What a rung says of the end: of each network's best value of the first objective, over its routings.

    `rank_correlation`: Spearman's, with the end. `beyond_cost`: Pearson's, of what is left of both when all that is
    linear in the logarithms of the other objectives, which are known without training, is taken out. `spread`: the
    standard deviation over networks; `seed_spread` that over seeds of one network, on average; None without networks
    that were trained more than once.
    """

    step: int
    rank_correlation: float
    beyond_cost: float
    spread: float
    seed_spread: float | None


class Curve(FrozenConfig):
    """Hypervolume against training steps of one way to search, over seeds: median and quartiles.

    Hypervolumes are shares of that of all the table's points, objectives scaled to the table's range.
    `steps_to_target`: when the median comes to the target, None if it never does. `networks`: trained to the end, and
    `begun`, on average.
    """

    sampler: str
    stopping: StoppingConfig | None
    lower: tuple[float, ...]
    median: tuple[float, ...]
    upper: tuple[float, ...]
    steps_to_target: int | None
    networks: float
    begun: float


class SearchBench(FrozenConfig):
    """Ways to search, replayed on a table; `target` is the hypervolume that plain TPE comes to for `max_steps`."""

    table: str
    networks: int
    objectives: tuple[str, ...]
    seeds: int
    max_steps: int
    grid: tuple[int, ...]
    target: float
    reliability: tuple[RungReliability, ...]
    curves: tuple[Curve, ...]


def _rank_correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation; ties get ranks in the order given, which equal floats hardly ever need."""
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float) for values in (one, other)]
    return _correlation(*ranks)


def _correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return Pearson's correlation; 0 where one of both is constant."""
    first, second = one - one.mean(), other - other.mean()
    spreads = (first @ first) * (second @ second)
    return float(first @ second / np.sqrt(spreads)) if spreads > 0 else 0.0


def _without(known: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return what is left of values when what is linear in the columns of `known` is taken out."""
    columns = np.column_stack((np.ones(len(values)), known))
    left: npt.NDArray[np.float64] = values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]
    return left


class Progress(NamedTuple):
    """A replayed study after a whole training: steps so far, objectives of all points, networks begun."""

    steps: int
    points: Points
    begun: int


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
        name = network_name(values)
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
        others = [Point({**values, "routing.gamma": other}, told[other], {}) for other in told if other != gamma]
        dialogue.add_points(name, name, others)
        found += told.values()
        progress.append(Progress(spent, np.array(found), len(ended)))
    return progress


def compare_searches(
    space: SearchSpace,
    table: Table,
    ways: Sequence[tuple[str, StoppingConfig | None]],
    *,
    source: str,
    seeds: int,
    max_steps: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SearchBench:
    """Replay studies of each way, a sampler with or without early stopping, under so many seeds.

    The target is what plain TPE comes to, which is replayed in any case.
    """
    plain: tuple[str, StoppingConfig | None] = ("tpe", None)
    ways = [plain, *(way for way in ways if way != plain)]
    for _, stopping in ways:
        table.require(stopping)
    grid = np.linspace(table.steps, max_steps, 200).round().astype(int)
    signs = np.array([-1.0 if one.direction == "maximize" else 1.0 for one in space.objectives])
    measure = _Volume(table.points() * signs)
    replayed: dict[tuple[str, StoppingConfig | None], list[list[Progress]]] = {}
    for index, way in enumerate(ways):
        sampler, stopping = way
        replayed[way] = []
        for seed in range(seeds):
            changes: Mapping[str, object] = {
                "sampler": space.sampler.model_copy(update={"name": sampler}),
                "seed": seed,
                "stopping": stopping,
            }
            study = space.model_copy(update=changes)
            replayed[way].append(replay(study, table, stopping=stopping, max_steps=max_steps))
            progress(index * seeds + seed + 1, len(ways) * seeds)
    volumes = {
        way: np.array([_at(grid, run, [measure.of(one.points * signs) for one in run]) for run in runs])
        for way, runs in replayed.items()
    }
    target = float(np.median(volumes[plain][:, -1]))
    return SearchBench(
        table=source,
        networks=len(table.entries),
        objectives=tuple(one.metric for one in space.objectives),
        seeds=seeds,
        max_steps=max_steps,
        grid=tuple(grid.tolist()),
        target=target,
        reliability=table.reliability(signs),
        curves=tuple(_curve(way, volumes[way], replayed[way], grid, target) for way in ways),
    )


def _curve(
    way: tuple[str, StoppingConfig | None],
    volumes: npt.NDArray[np.float64],
    runs: list[list[Progress]],
    grid: npt.NDArray[np.int64],
    target: float,
) -> Curve:
    lower, median, upper = np.quantile(volumes, (0.25, 0.5, 0.75), axis=0)
    reached = np.flatnonzero(median >= target - 1e-12)
    lasts = [run[-1] for run in runs if run]
    return Curve(
        sampler=way[0],
        stopping=way[1],
        lower=tuple(lower.tolist()),
        median=tuple(median.tolist()),
        upper=tuple(upper.tolist()),
        steps_to_target=int(grid[reached[0]]) if len(reached) else None,
        networks=float(np.mean([len(run) for run in runs])),
        begun=float(np.mean([last.begun for last in lasts])) if lasts else 0.0,
    )


def _at(grid: npt.NDArray[np.int64], run: list[Progress], volumes: list[float]) -> npt.NDArray[np.float64]:
    """Return the hypervolume that a replayed study has come to at each number of steps."""
    steps = np.array([0, *(one.steps for one in run)])
    return np.array([0.0, *volumes])[np.searchsorted(steps, grid, side="right") - 1]


class _Volume:
    """Hypervolume of points as a share of that of all points, each objective scaled to the range of all."""

    def __init__(self, points: Points):
        self.best, self.worst = points.min(axis=0), points.max(axis=0)
        self.whole = 1.0
        self.whole = self.of(points)

    def of(self, points: Points) -> float:
        """Return the share."""
        span = np.where(self.worst > self.best, self.worst - self.best, 1.0)
        scaled = (points - self.best) / span
        return float(moocore.hypervolume(scaled, ref=np.full(scaled.shape[1], 1.0 + 1e-3))) / self.whole

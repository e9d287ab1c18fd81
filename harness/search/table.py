"""A table of all networks of a small space, each trained and scored at every rung: what studies are replayed on.

Records are those of any study; the table is made of them and can be made again. A run that was ended in whatever way
goes on with the networks that have none.
"""

import csv
import io
import json
import math
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import product
from pathlib import Path
from typing import NamedTuple, cast

from harness.core.configs import RoutingConfig, Rung
from harness.core.errors import UserError
from harness.core.records import PointRecord, TrialRecord
from harness.core.seeding import derive_seed
from harness.search.proposals import Params, decode_params, grid
from harness.search.space import ROUTING_DIMENSIONS, SearchSpace, Values
from harness.trial import Proposal, TrialSetup, Verdict, run_trial, with_teacher

COLUMNS = ("network", "seed", "params", "step", "gamma", "psnr_db", "ssim", "macs", "latency_ms", "latency_ratio")


Place = tuple[int, float | None]  # that a network is scored at: step and γ
_REMEDY = "make one with `harness bench table`"


class Task(NamedTuple):
    """A network to be trained with a seed."""

    record_id: str
    number: int
    values: Values
    seed: int


def plan_table(space: SearchSpace, *, seeds: int, repeated: int) -> list[Task]:
    """Return every network of the space once, and `repeated` of them, drawn by the space's seed, `seeds` times."""
    networks: dict[str, Params] = {}
    for params in grid(space):
        architecture = {name: code for name, code in params.items() if name not in ROUTING_DIMENSIONS}
        networks[json.dumps(architecture, sort_keys=True)] = architecture
    drawn = sorted(networks, key=lambda name: derive_seed(space.seed, "repeated", name))
    tasks = [(name, 0) for name in sorted(networks, key=lambda name: derive_seed(space.seed, "order", name))]
    tasks += [(name, seed) for seed in range(1, seeds) for name in drawn[:repeated]]
    return [
        Task(f"trial-{number:05d}", number, decode_params(space, networks[name]), seed)
        for number, (name, seed) in enumerate(tasks)
    ]


def record_table(
    space: SearchSpace,
    setup: TrialSetup,
    tasks: Iterable[Task],
    *,
    workers: int,
    known: Collection[tuple[str, int]] = (),
    on_record: Callable[[TrialRecord], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train what has no complete record yet, in so many processes; return whether all of it was done.

    `known` are networks, with their seeds, that another table has rows of: they are left out.
    """
    done = {record.record_id for record in setup.folder.read_trials() if record.state == "complete"}
    left = [
        task for task in tasks if task.record_id not in done and (network_name(task.values), task.seed) not in known
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(space, setup)) as pool:
        waiting: set[Future[TrialRecord]] = set()
        while left or waiting:
            while left and len(waiting) < workers and not should_stop():
                waiting.add(pool.submit(_run, left.pop(0)))
            if not waiting:
                return False
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED, timeout=1.0)
            for future in finished:
                on_record(future.result())
    return True


_given: tuple[SearchSpace, TrialSetup] | None = None  # of a process of the pool


def _begin(space: SearchSpace, setup: TrialSetup) -> None:
    global _given
    _given = (space, setup)


def _run(task: Task) -> TrialRecord:
    assert _given is not None
    space, setup = _given
    values = {**task.values, "training.seed": task.seed}
    proposal = Proposal(
        record_id=task.record_id,
        kind="trial",
        number=task.number,
        model=space.model_config_for(values),
        training=with_teacher(space.training_config(values), setup.teachers),
        routings=space.routings(),
        suggested=space.routings()[0],
        suggestion=values,
    )
    return run_trial(setup, proposal, judge=_promote)


def _promote(_rung: Rung, _points: tuple[PointRecord, ...]) -> Verdict:
    return Verdict(promoted=True, place=1, networks=1)


def network_name(values: Values) -> str:
    """Return the name that a table has for a network: what was suggested of it, without seed and routing."""
    left_out = (*ROUTING_DIMENSIONS, "training.seed")
    chosen = {name: value for name, value in values.items() if name not in left_out}
    return json.dumps(chosen, sort_keys=True, separators=(",", ":"))


def table_rows(records: Iterable[TrialRecord]) -> Iterator[dict[str, object]]:
    """Yield a row for each network, seed, rung (and the end) and γ; latencies are those of the end."""
    for record in records:
        if record.state != "complete" or record.training is None:
            continue
        latency = {point.routing: point for point in record.produced}
        scored: list[tuple[int, RoutingConfig | None, float, float, int]] = [
            (rung.step, point.routing, point.psnr_db, point.ssim, point.macs)
            for rung in record.rungs
            for point in rung.points
        ]
        scored += [
            (record.training.steps, point.routing, point.evaluation.psnr_db, point.evaluation.ssim, point.macs)
            for point in record.produced
        ]
        for step, routing, psnr_db, ssim, macs in scored:
            yield {
                "network": network_name(record.suggestion),
                "seed": record.training.seed,
                "params": record.params,
                "step": step,
                "gamma": None if routing is None else routing.gamma,
                "psnr_db": round(psnr_db, 5),
                "ssim": round(ssim, 6),
                "macs": macs,
                "latency_ms": round(latency[routing].value("latency_ms") or 0.0, 5),
                "latency_ratio": round(latency[routing].value("latency_ratio") or 0.0, 6),
            }


def write_table(records: Iterable[TrialRecord], known: Sequence[Mapping[str, str]] = ()) -> str:
    """Return the table as CSV; the rows of a `known` table are kept, but where there are records of the same."""
    rows: list[Mapping[str, object]] = list(table_rows(records))
    recorded = {(row["network"], row["seed"]) for row in rows}
    rows += [row for row in known if (row["network"], int(row["seed"])) not in recorded]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (str(row["network"]), int(str(row["seed"])), int(str(row["step"])))))
    return text.getvalue()


def read_rows(path: Path, space: SearchSpace, *, any_rungs: bool = False) -> list[dict[str, str]]:
    """Read the rows of a table of a space's networks; `UserError` where it is none, or one of another space.

    With `any_rungs` it may be scored at other steps than the space's rungs.
    """
    places = _places(space)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if sorted(reader.fieldnames or ()) != sorted(COLUMNS):
                got = ", ".join(reader.fieldnames or ()) or "nothing"
                raise UserError(
                    f"{path}: expected a table with the columns {', '.join(COLUMNS)}, got {got[:200]}; {_REMEDY}"
                )
            rows = []
            for row in reader:
                _check(row, f"{path}, line {reader.line_num}", places, any_rungs)
                rows.append(row)
            return rows
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is no UTF-8; expected a table as CSV in UTF-8; {_REMEDY}"
        ) from None
    except csv.Error as error:
        raise UserError(f"{path}: {error}; expected a table as CSV; {_REMEDY}") from None


def whole(rows: Iterable[Mapping[str, str]], space: SearchSpace) -> set[tuple[str, int]]:
    """Return the networks, with their seeds, that rows say all of: every rung, and the end, at every γ of the space."""
    places = _places(space)
    return {(network, seed) for (network, seed), found in scored(rows).items() if places[network] <= found}


def scored(rows: Iterable[Mapping[str, str]]) -> dict[tuple[str, int], set[Place]]:
    """Return the steps and γ that there are rows of, of each network and seed."""
    found: defaultdict[tuple[str, int], set[Place]] = defaultdict(set)
    for row in rows:
        found[row["network"], int(row["seed"])].add((int(row["step"]), _gamma(row["gamma"])))
    return found


def gammas(space: SearchSpace) -> set[float | None]:
    """Return every γ that a table has of a network of the space; None of networks that do not route."""
    return {routing.gamma for routing in space.routings()} if space.routes else {None}


def _places(space: SearchSpace) -> dict[str, set[Place]]:
    """Return the steps and γ that a table has of each network of a space."""
    places: dict[str, set[Place]] = {}
    for task in plan_table(space, seeds=1, repeated=0):
        steps = space.training_config(task.values).steps
        rungs = () if space.stopping is None else space.stopping.rungs(steps, 1)
        places[network_name(task.values)] = set(product([*(rung.step for rung in rungs), steps], gammas(space)))
    return places


def _gamma(text: str) -> float | None:
    return float(text) if text else None


def _check(row: dict[str, str], where: str, places: Mapping[str, set[Place]], any_rungs: bool) -> None:
    """Refuse a row that is none, or none of the space's."""
    filled = sum(value is not None for name, value in row.items() if name is not None)
    cells = filled + len(row.get(cast(str, None), ()))  # where `csv` puts cells beyond the last column
    if cells != len(COLUMNS):
        raise UserError(f"{where}: {cells} cells; expected {len(COLUMNS)}, as many as columns; {_REMEDY}")
    for name in COLUMNS[1:]:
        kind = "a whole number" if name in ("seed", "params", "step") else "a number"
        try:
            number = (int if kind == "a whole number" else float)(row[name] or ("0" if name == "gamma" else ""))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{where}: {name} is {row[name]!r}; expected {kind}; {_REMEDY}")
    if row["network"] not in places:
        raise UserError(
            f"{where}: {row['network']!r} is none of the space's {len(places)} networks; expected a table of the "
            f"space; {_REMEDY}"
        )
    place = int(row["step"]), _gamma(row["gamma"])
    known = places[row["network"]]
    steps, known_gammas = sorted({step for step, _ in known}), {gamma for _, gamma in known}
    if place[1] not in known_gammas:
        listed = ", ".join(
            "none" if one is None else f"{one:g}" for one in sorted(known_gammas, key=lambda one: one or 0)
        )
        raise UserError(f"{where}: gamma is {row['gamma']!r}; expected one of the space's ({listed}); {_REMEDY}")
    if place not in known and not (any_rungs and 0 < place[0] < steps[-1]):
        raise UserError(
            f"{where}: scored at step {place[0]}; expected the space's rungs and end "
            f"({', '.join(map(str, steps))}); {_REMEDY}"
        )

"""How a study's storage behaves as the study grows and as workers become more.

    OMP_NUM_THREADS=1 python results/benchmarks/scaling.py STORAGE [--out scaling.json]

STORAGE is a URL of an empty database, such as sqlite:////tmp/study.db or postgresql+psycopg://user@host/studies.
Nothing is trained: a turn is what a worker says to the study for one network of five points (ask, suggest, mark, tell,
add four siblings). Times are processor time of the process, and of the database server where it runs on this machine.
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import optuna
import psutil

from harness.core.environment import observe_environment
from harness.models import describe_kernels
from harness.search import SearchSpace, find_space, read_space
from harness.search.dialogue import Dialogue, Overview, Point
from harness.search.storage import add_finished, connect

SIZES = (1_000, 10_000, 20_000)  # trials in the study, siblings among them
WORKERS = (1, 2, 4)
TURNS = 40  # of each worker
SAMPLED = 5  # proposals of the space's sampler, at each size


def space(sampler: str) -> SearchSpace:
    """Return the space of `harness bench overhead`: five dimensions, three objectives."""
    return read_space(find_space("bench_overhead"), {"sampler.name": sampler})


def open_dialogue(url: str, name: str, sampler: str) -> Dialogue:
    """Open the study, or begin it."""
    chosen = space(sampler)
    directions: Any = [objective.direction for objective in chosen.objectives]
    study = optuna.create_study(storage=connect(url), study_name=name, directions=directions, load_if_exists=True)
    return Dialogue(chosen, study)


def take_turn(dialogue: Dialogue, name: str) -> None:
    """Say what a worker says of one network."""
    trial = dialogue.ask(dialogue.read())
    record = f"{name}-{trial.number}"
    with dialogue.at_once(trial):
        trial.set_user_attr("worker", {"host": name, "pid": 0})
        trial.set_user_attr("record_id", record)
    with dialogue.at_once(trial):
        values = dialogue.suggest(trial)
        trial.set_user_attr("network", record)
    dialogue.tell_point(trial, [30.0, 10.0, 1e9], {})
    others = [gamma for gamma in (0.0, 0.25, 0.5, 0.75, 1.0) if gamma != values["routing.gamma"]]
    points = [
        Point({**values, "routing.gamma": gamma}, [30 + gamma, 10 + gamma, 1e9 * (1 + gamma)], {}) for gamma in others
    ]
    dialogue.add_points(record, record, points)


def fill(url: str, name: str, count: int) -> None:
    """Add finished random trials until there are so many."""
    dialogue = open_dialogue(url, name, "random")
    scratch = Dialogue(dialogue.space, optuna.create_study(directions=dialogue.study.directions))
    while (known := len(dialogue.study.get_trials(deepcopy=False))) < count:
        made = []
        for index in range(min(500, count - known)):
            trial = scratch.ask(Overview())
            scratch.suggest(trial)
            mark = f"filled {known + index}"
            values = [30 + (index * 7919 % 1000) / 500, 5 + (index * 104729 % 1000) / 50, 1e9 * (1 + index % 97)]
            made.append(
                optuna.trial.create_trial(
                    params=trial.params,
                    distributions=trial.distributions,
                    values=values,
                    user_attrs={"record_id": mark, "network": mark, "once": mark},
                )
            )
        newest = max((trial._trial_id for trial in dialogue.study.get_trials(deepcopy=False)), default=-1)
        add_finished(dialogue.study, made, newest)


def look(url: str, name: str, sampler: str, found: Any) -> None:
    """Open a large study in a fresh process; say what it took, and what a proposal takes then."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, clock = time.process_time(), time.perf_counter()
    dialogue = open_dialogue(url, name, sampler)
    dialogue.study.get_trials(deepcopy=False)
    loaded = time.process_time() - started, time.perf_counter() - clock
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    started = time.process_time()
    for _ in range(20):
        dialogue.study.get_trials(deepcopy=False)
    read = (time.process_time() - started) / 20
    started = time.process_time()
    for _ in range(SAMPLED):
        take_turn(dialogue, sampler)
    turn = (time.process_time() - started) / SAMPLED
    found.put(
        {
            "load_s": loaded[1],
            "load_cpu_s": loaded[0],
            "memory_mib": memory / 1024,
            "read_ms": 1e3 * read,
            f"turn_{sampler}_ms": 1e3 * turn,
        }
    )


def work(url: str, name: str, worker: int, ready: Any, found: Any) -> None:
    """Take turns as fast as possible."""
    dialogue = open_dialogue(url, name, "random")
    dialogue.study.get_trials(deepcopy=False)
    ready.wait()
    clock, started = time.perf_counter(), time.process_time()
    for _ in range(TURNS):
        take_turn(dialogue, f"worker{worker}")
    found.put((time.perf_counter() - clock, time.process_time() - started))


def server_seconds() -> dict[int, float]:
    """Return the processor time of every process of a PostgreSQL server on this machine."""
    return {
        process.pid: sum(process.cpu_times()[:2])
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "postgres"
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storage")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: Any = context.Queue()
    sizes = []
    for size in SIZES:
        fill(arguments.storage, "growing", size)
        row: dict[str, Any] = {"trials": size}
        for sampler in ("random", "tpe"):
            process = context.Process(target=look, args=(arguments.storage, "growing", sampler, found))
            process.start()
            row |= found.get(timeout=550)
            process.join()
        sizes.append(row)
        print(row, flush=True)
    many = []
    for workers in WORKERS:
        name = f"shared{workers}"
        fill(arguments.storage, name, 1_000)
        ready = context.Barrier(workers)
        processes = [
            context.Process(target=work, args=(arguments.storage, name, worker, ready, found))
            for worker in range(workers)
        ]
        before = server_seconds()
        for process in processes:
            process.start()
        told = [found.get(timeout=550) for _ in processes]
        server = sum(seconds - before.get(pid, 0.0) for pid, seconds in server_seconds().items())
        for process in processes:
            process.join()
        turns = workers * TURNS
        many.append(
            {
                "workers": workers,
                "turns_per_s": turns / max(seconds for seconds, _ in told),
                "cpu_ms": 1e3 * sum(seconds for _, seconds in told) / turns,
                "server_cpu_ms": 1e3 * server / turns,
            }
        )
        print(many[-1], flush=True)
    result = {
        "storage": arguments.storage.partition(":")[0],
        "environment": observe_environment(describe_kernels()).model_dump(mode="json"),
        "sizes": sizes,
        "workers": many,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

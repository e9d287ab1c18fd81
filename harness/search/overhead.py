"""What a study costs beside training, evaluating and measuring: `harness bench overhead`.

Protocol `overhead-1`. One trial is run for real. Then a study goes through the real loop, storage and folder, with
`run_trial` (which trains, evaluates and measures: what the figures leave out) replaced by a function that writes the
recorded record again, under the proposal's names and with other values. Counted is all that passes from the end of one
such trial to the beginning of the next, and the writing of the record; not counted is making the record up. A study
with random sampling and without tracking is the harness alone; one with the space's sampler and a tracker adds theirs,
and is charged with what the tracker still has to write at the end. Nothing trains meanwhile, so what is written in the
background has no idle core to hide on where there is but one.

Commands that read a large folder are timed in fresh processes, from the start of the interpreter on.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from harness.core.configs import FrozenConfig, RoutingConfig
from harness.core.environment import EnvironmentRecord
from harness.core.records import PointRecord, StudyRecord, TrialRecord
from harness.core.seeding import derive_seed
from harness.core.study_folder import StudyFolder
from harness.search.space import SearchSpace, Values
from harness.search.study import baseline_config, run_search
from harness.trial import Proposal, TrialSetup, Verdict, run_trial

PROTOCOL = "overhead-1"
# Runs a command from a small process: the peak that the system tells of a child begins with its parent's size.
_MEASURED = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
_MEAN_OVER = 50  # trials, for the figure at a trial
# The network whose trial is recorded.
_RECORDED: Values = {"model.groups": (2, 2), "model.channels": 24, "model.window": 8, "training.learning_rate": 1e-3}


class LoopCost(FrozenConfig):
    """What a study cost for each trial, in milliseconds of the clock and of this process's processor time.

    `at` maps a number of trials to the mean over the last 50 before it, `mean` is over all with what was waited for at
    the end, `on_record` the part in which a record is handed to whoever wants it, such as a tracker.
    """

    sampler: str
    tracking: bool
    trials: int
    at: dict[int, float]
    cpu_at: dict[int, float]
    mean: float
    cpu_mean: float
    on_record: float
    end_seconds: float


class CommandCost(FrozenConfig):
    """What a command took in a fresh process; `peak_bytes` is its peak resident memory."""

    command: str
    records: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


class OverheadBench(FrozenConfig):
    """What `harness bench overhead` found; `record_bytes` and `points` are those of the record that was repeated."""

    protocol: str
    environment: EnvironmentRecord
    usable_cores: int
    threads: int
    record_bytes: int
    points: int
    loops: tuple[LoopCost, ...]
    commands: tuple[CommandCost, ...]
    measured_at: str


def record_trial(space: SearchSpace, setup: TrialSetup) -> TrialRecord:
    """Run one real trial in the setup's folder and return its record."""
    proposal = Proposal(
        record_id="trial-00000",
        kind="trial",
        number=0,
        model=space.model_config_for(_RECORDED),
        training=space.training_config(_RECORDED),
        routings=space.routings(),
        suggested=space.routings()[0],
        suggestion=_RECORDED,
    )
    record = run_trial(setup, proposal, judge=lambda rung, points: Verdict(promoted=True, place=1, networks=1))
    assert record.state == "complete", record.reason
    return record


class _Repeater:
    """Takes the place of `run_trial`, and keeps the time."""

    def __init__(self, template: TrialRecord):
        self._template = template
        self._left: tuple[float, float] | None = None
        self.costs: list[tuple[float, float]] = []  # seconds of the clock and of the processor, for each trial
        self._starts = _clocks()

    def __call__(self, setup: TrialSetup, proposal: Proposal, **_: Any) -> TrialRecord:
        entered = _clocks()
        before = _between(self._left or self._starts, entered)
        record = repeat_record(self._template, setup, proposal)
        made = _clocks()
        setup.folder.write_trial(record)
        self._left = _clocks()
        written = _between(made, self._left)
        self.costs.append((before[0] + written[0], before[1] + written[1]))
        return record


def measure_loop(
    space: SearchSpace,
    setup: TrialSetup,
    record: StudyRecord,
    template: TrialRecord,
    marks: Sequence[int],
    *,
    on_start: Callable[[], None] = lambda: None,
    on_record: Callable[[TrialRecord], None] = lambda record: None,
    at_end: Callable[[], object] = lambda: None,
    is_tracked: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LoopCost:
    """Run the space's study in the setup's folder with `template` in the place of every trial.

    `on_start` and `on_record` are called as by `run_search`, and counted; so is `at_end`, which waits for what they
    left to be done. `marks` are the numbers of trials to give a figure at.
    """
    repeater = _Repeater(template)
    handed = [0.0]

    def hand_on(finished: TrialRecord) -> None:
        started = time.perf_counter()
        on_record(finished)
        handed[0] += time.perf_counter() - started
        progress(len(repeater.costs), space.budget.networks)

    run_search(space, setup, record, on_start=on_start, on_record=hand_on, run_trial=repeater)
    started = _clocks()
    at_end()
    end = _between(started, _clocks())
    costs = repeater.costs[len(space.baselines) :]  # what comes before is setting up
    trials = len(costs)
    reached = [mark for mark in marks if mark <= trials]
    return LoopCost(
        sampler=space.sampler.name,
        tracking=is_tracked,
        trials=trials,
        at={mark: _mean_ms(costs[max(0, mark - _MEAN_OVER) : mark], 0) for mark in reached},
        cpu_at={mark: _mean_ms(costs[max(0, mark - _MEAN_OVER) : mark], 1) for mark in reached},
        mean=_mean_ms(costs, 0) + 1e3 * end[0] / trials,
        cpu_mean=_mean_ms(costs, 1) + 1e3 * end[1] / trials,
        on_record=1e3 * handed[0] / trials,
        end_seconds=end[0],
    )


def write_records(
    space: SearchSpace,
    setup: TrialSetup,
    record: StudyRecord,
    template: TrialRecord,
    count: int,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fill the setup's folder with so many repeated records of random networks, and baselines."""
    folder: StudyFolder = setup.folder
    folder.write_study(record)
    for name in space.baselines:
        model = baseline_config(space, name)
        training = None if name == "bicubic" else space.baseline_training_config()
        proposal = Proposal(f"baseline-{name}", "baseline", None, model, training, (None,), None)
        folder.write_trial(repeat_record(template, setup, proposal))
    generator = random.Random(space.seed)
    for number in range(count):
        values = {**_RECORDED, "training.learning_rate": generator.uniform(2e-4, 2e-3)}
        proposal = Proposal(
            record_id=f"trial-{number:05d}",
            kind="trial",
            number=number,
            model=space.model_config_for(values),
            training=space.training_config(values),
            routings=space.routings(),
            suggested=space.routings()[0],
            suggestion=values,
        )
        made = repeat_record(template, setup, proposal)
        # Not `write_trial`, which waits for the disk: nobody needs these after a crash.
        (folder.path / "trials" / f"{made.record_id}.json").write_text(made.model_dump_json(indent=1), encoding="utf-8")
        progress(number + 1, count)


def measure_command(name: str, arguments: Sequence[str], records: int) -> CommandCost:
    """Run a command in a fresh process and return what it took; its output is thrown away."""
    finished = subprocess.run([sys.executable, "-c", _MEASURED, *arguments], capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {finished.stderr.strip()}")
    seconds, cpu_seconds, peak = json.loads(finished.stdout)
    unit = 1 if sys.platform == "darwin" else 1024
    return CommandCost(command=name, records=records, seconds=seconds, cpu_seconds=cpu_seconds, peak_bytes=peak * unit)


def repeat_record(template: TrialRecord, setup: TrialSetup, proposal: Proposal) -> TrialRecord:
    """Return the record of a proposal that is never trained: the template's, with values that depend on the network."""
    network = proposal.network_id(setup.data)
    generator = random.Random(derive_seed(0, "repeat", network))
    skill, size = generator.gauss(0, 0.1), 2 ** generator.uniform(-1.5, 1.5)
    return template.model_copy(
        update={
            "study": setup.study,
            "record_id": proposal.record_id,
            "kind": proposal.kind,
            "number": proposal.number,
            "label": proposal.model.label(),
            "network_id": network,
            "model": proposal.model,
            "training": proposal.training,
            "suggestion": proposal.suggestion,
            "points": tuple(
                _repeat_point(template.points[index % len(template.points)], routing, skill, size, generator)
                for index, routing in enumerate(proposal.routings)
            ),
        }
    )


def _repeat_point(
    point: PointRecord, routing: RoutingConfig | None, skill: float, size: float, generator: random.Random
) -> PointRecord:
    share = None if routing is None else routing.gamma
    evaluation = point.evaluation.model_copy(
        update={
            "psnr_db": point.evaluation.psnr_db + skill + 0.1 * size * (1 + (share or 0)) + generator.gauss(0, 0.01),
            "attention_share": share,
        }
    )
    latencies = tuple(
        latency.model_copy(
            update={
                "median": latency.median * size,
                "samples": tuple(sample * size for sample in latency.samples),
                "ratio": None if latency.ratio is None else latency.ratio * size,
            }
        )
        for latency in point.latency
    )
    changes = {
        "routing": routing,
        "evaluation": evaluation,
        "macs": round(point.macs * size),
        "params": round(point.params * size),
        "latency": latencies,
    }
    return point.model_copy(update=changes)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _between(earlier: tuple[float, float], later: tuple[float, float]) -> tuple[float, float]:
    return later[0] - earlier[0], later[1] - earlier[1]


def _mean_ms(costs: Sequence[tuple[float, float]], clock: int) -> float:
    return 1e3 * sum(cost[clock] for cost in costs) / max(1, len(costs))

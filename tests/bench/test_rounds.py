"""Rounds: who takes a turn when, and when they end."""

import time
from collections.abc import Callable

from harness.bench.rounds import Contestant, Effort, measure_rounds
from harness.profiling import parse_device

CPU = parse_device("cpu:1")


def recorder(log: list[str], name: str, seconds: float = 0.0) -> Callable[[], None]:
    def run() -> None:
        log.append(name)
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    return run


def test_contestants_take_turns_in_an_order_drawn_anew() -> None:
    log: list[str] = []
    contestants = [Contestant(name, recorder(log, name, 0.001)) for name in "abc"]
    times, _ = measure_rounds(contestants, CPU, Effort(rounds=6, max_seconds=60, turn_seconds=0.0))
    assert log[:3] == ["a", "b", "c"]  # to warm up
    rounds = ["".join(log[start : start + 3]) for start in range(3, len(log), 3)]
    assert len(rounds) == 6
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1
    for measured in times.values():
        assert len(measured.samples_ms) == 6
        assert 1 <= measured.best_ms == min(measured.samples_ms) <= measured.median_ms


def test_short_runs_are_repeated_within_a_turn_after_an_untimed_one() -> None:
    log: list[str] = []
    times, core_share = measure_rounds(
        [Contestant("a", recorder(log, "a"))], CPU, Effort(rounds=2, max_seconds=60, turn_seconds=0.1)
    )
    assert len(times["a"].samples_ms) == 2 * 10
    assert len(log) == 2 + 2 * (1 + 10)
    assert core_share is not None


def test_slow_ones_sit_rounds_out_and_warm_up_once_for_their_like() -> None:
    log: list[str] = []
    contestants = [
        Contestant("a", recorder(log, "a", 0.004), every=2),
        Contestant("b", recorder(log, "b", 0.004), every=2, first=1, like="a"),
        Contestant("c", recorder(log, "c")),
    ]
    times, _ = measure_rounds(contestants, CPU, Effort(rounds=5, max_seconds=60, turn_seconds=0.001))
    assert [len(times[name].samples_ms) for name in "ab"] == [3, 2]
    assert log.count("a") == 1 + 3
    assert log.count("b") == 2
    assert len(times["c"].samples_ms) >= 5


def test_time_runs_out_for_nobody_before_a_turn() -> None:
    log: list[str] = []
    contestants = [Contestant(name, recorder(log, name), every=3, first=index) for index, name in enumerate("abc")]
    told: list[tuple[int, int]] = []
    times, _ = measure_rounds(
        contestants,
        CPU,
        Effort(rounds=9, max_seconds=0, turn_seconds=0.0),
        progress=lambda *done: told.append(done),
    )
    assert all(len(measured.samples_ms) == 1 for measured in times.values())
    assert told == [(1, 10), (2, 10), (3, 10), (4, 10)]

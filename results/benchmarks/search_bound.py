"""What the luck of seeds leaves to find on a recorded table: `python results/benchmarks/search_bound.py TABLE.csv`.

A proposer that knows the cost of every network, and what networks like it score on average over the whole table
(regression by tenths: each network is predicted from the other nine), but not how lucky its own seed was, chooses by
expected hypervolume improvement. It knows from the start what a study has to find out.
"""

import sys
from pathlib import Path

import numpy as np

from harness.search import find_space, read_space
from harness.search.ehvi import _Improvement, _Network, _regress
from harness.search.simulation import Table, _Volume
from harness.search.space import encode

RUNS, NETWORKS, SAMPLES = 20, 40, 16


def main(path: Path) -> None:
    """Print how much of the score's variance is luck, and the hypervolume after so many networks."""
    import json

    space = read_space(find_space("bench_search"))
    table = Table.read(path, tuple(one.metric for one in space.objectives))
    names = sorted(table.entries)
    known = [_Network(space, {k: encode(v) for k, v in json.loads(name).items()}) for name in names]
    features = np.array([network.features for network in known])
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    signs = np.array([-1.0 if one.direction == "maximize" else 1.0 for one in space.objectives])
    points = np.array([list(table.entries[name].steps[table.steps].values()) for name in names]) * signs
    score = points[:, :, 0]
    parts = np.random.default_rng(0).permutation(len(names)) % 10
    average, luck = np.empty_like(score), np.empty(len(names))
    for part in range(10):
        own = parts == part
        average[own], luck[own] = _regress(features[~own], score[~own], features[own])
    missed = (score - average).mean(axis=1)
    print(f"score of networks: standard deviation {score[:, 0].std():.4f}, of which unexplained {missed.std():.4f}")
    volume = _Volume(points.reshape(-1, len(signs)))
    expected = points.copy()
    expected[:, :, 0] = average
    runs = np.empty((RUNS, NETWORKS))
    for run in range(RUNS):
        random = np.random.default_rng(run)
        chosen: list[int] = []
        for number in range(NETWORKS):
            left = [index for index in range(len(names)) if index not in chosen]
            improvement = _Improvement(
                points[chosen].reshape(-1, len(signs)),
                expected.reshape(-1, len(signs)),
                points[:0].reshape(-1, len(signs)),
            )
            gains = []
            for index in left:
                draws = np.repeat(expected[index][None], SAMPLES, axis=0)
                draws[:, :, 0] += (random.standard_normal(SAMPLES) * missed.std())[:, None]
                gains.append(np.mean([improvement.of(draw) for draw in draws]))
            chosen.append(left[int(np.argmax(gains))])
            runs[run, number] = volume.of(points[chosen].reshape(-1, len(signs)))
    for number in (5, 10, 13, 20, 30, 40):
        low, median, high = np.quantile(runs[:, number - 1], (0.25, 0.5, 0.75))
        print(f"{number} networks: {median:.3f} ({low:.3f}-{high:.3f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

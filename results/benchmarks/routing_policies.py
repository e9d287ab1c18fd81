"""Routing policies at equal shares of attention, tuned on some images and compared on others.

    HARNESS_REFERENCE=... OMP_NUM_THREADS=1 python results/benchmarks/routing_policies.py

Needs the released Small ×4 weights (`weights/CAMixerSR_S.pth`) and the folders `images/BSDS80`, `images/T91` and
`images/Set5` of HARNESS_REFERENCE. Writes routing_policies.csv and routing_policies.json beside itself, row by row.
"""

import csv
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.data import PairedDataset, open_dataset, refuse_overlap
from harness.metrics import get_protocol
from harness.models import CAMixerSR, build_model, load_weights
from harness.profiling import canonical_macs
from harness.trial import evaluate, routed
from harness.trial.calibration import (
    TuningCrops,
    choose_images,
    find_wanted,
    mean_gains,
    measure_gains,
    schedule_by,
    weights_by,
    whole_blocks,
)

SHARES = (0.5, 0.4, 0.25, 0.1)
TUNING_IMAGES, CROP = {"BSDS80": 12, "T91": 12}, 32
HELD_OUT_IMAGES = {"BSDS80": 24, "T91": 30, "Set5": 5}
EVOLUTION_STEPS = 40
RESAMPLES = 10_000
FOLDER = Path(__file__).parent
REFERENCE = Path(os.environ.get("HARNESS_REFERENCE", ""))


def main() -> None:
    """Tune, evaluate and write."""
    torch.set_num_threads(1)
    network = build_model(CAMixerSRConfig(channels=36)).eval()
    assert isinstance(network, CAMixerSR)
    load_weights(network, REFERENCE / "weights" / "CAMixerSR_S.pth")
    blocks = network.config.num_blocks
    sets = {name: open_set(name) for name in HELD_OUT_IMAGES}
    tuned_on = {name: choose_images(sets[name], count, CROP) for name, count in TUNING_IMAGES.items()}
    tuning = PairedDataset(
        "BSDS80+T91", 4, [sets[name][index] for name, indices in tuned_on.items() for index in indices]
    )
    held_out = {}
    for name, count in HELD_OUT_IMAGES.items():
        rest = [index for index in range(len(sets[name])) if index not in tuned_on.get(name, [])]
        held_out[name] = subset(sets[name], spread(rest, count))
    for dataset in held_out.values():
        refuse_overlap(tuning, dataset)

    crops = TuningCrops(network, tuning, range(len(tuning)), CROP)
    hard_S = crops.shares(RoutingConfig(policy="probability"))
    alone_db, beside_db = measure_gains(crops, blocks, ()), measure_gains(crops, blocks, find_wanted(crops))
    gains_db = mean_gains(alone_db, beside_db)
    forward = forward_order(crops, blocks, math.ceil(max(SHARES) * blocks))
    log("gains", [round(gain, 4) for gain in gains_db])
    log("forward order", forward)

    rows: list[dict[str, object]] = []
    found: dict[str, dict[str, object]] = {}
    for share in SHARES:
        ranked = schedule_by(alone_db, share)
        candidates = {
            "fixed": RoutingConfig(gamma=share),
            "probability": RoutingConfig(policy="probability", gamma=share),
            "schedule, gains alone": ranked,
            "schedule, gains at both ends": schedule_by(gains_db, share),
            "schedule, forward selection": whole_blocks(forward, blocks, share),
            "schedule, evolution of γ_b": evolve(crops, ranked, crops.score(ranked)),
            "probability within blocks that gain": restrict(hard_S, gains_db, share),
            "detail, gains alone": weights_by(alone_db, share),
            "detail, gains at both ends": weights_by(gains_db, share),
        }
        scores: dict[str, dict[str, np.ndarray]] = {}
        for label, routing in candidates.items():
            found[f"{share:g} {label}"] = routing.model_dump(mode="json")
            scores[label] = {}
            realised: dict[str, float | None] = {}
            for name, dataset in held_out.items():
                record = evaluate(routed(network, routing), dataset, get_protocol("light"))
                scores[label][name] = np.array([image.psnr_db for image in record.images])
                realised[name] = record.attention_share
            scores[label]["all"] = np.concatenate(list(scores[label].values()))
            for name, values in scores[label].items():
                row: dict[str, object] = {
                    "share": share,
                    "policy": label,
                    "images": name,
                    "count": len(values),
                    "attention_share": "" if name == "all" else f"{realised[name]:.4f}",
                    "macs_720p": canonical_macs(network.config.with_routing(routing), (180, 320)),
                    "psnr_y_db": f"{values.mean():.4f}",
                }
                for against, key in (("schedule, gains alone", "schedule"), ("probability",) * 2):
                    if against in scores:
                        difference = values - scores[against][name]
                        low, high = bootstrap(difference)
                        row[f"minus_{key}_db"] = f"{difference.mean():+.4f}"
                        row[f"minus_{key}_95"] = f"{low:+.4f} to {high:+.4f}"
                rows.append(row)
            log(share, label, [rows[-1].get(key) for key in ("psnr_y_db", "minus_schedule_db", "minus_schedule_95")])
            write(rows, found)


def open_set(name: str) -> PairedDataset:
    """Open a folder of the reference at ×4; the cache lies beside this file."""
    folder = str(REFERENCE / "images" / name)
    return open_dataset(folder, scale=4, split="validation", data_dir=None, cache_dir=FOLDER.parent / "cache")


def subset(dataset: PairedDataset, indices: list[int]) -> PairedDataset:
    """Return some images of a data set."""
    return PairedDataset(dataset.name, dataset.scale, [dataset[index] for index in indices])


def spread(indices: list[int], count: int) -> list[int]:
    """Return `count` of the indices, evenly spread."""
    return [indices[position * len(indices) // count] for position in range(count)]


def forward_order(crops: TuningCrops, blocks: int, count: int) -> list[int]:
    """Add the block that helps most beside those added before, `count` times; the other blocks follow."""
    order: list[int] = []
    while len(order) < count:
        others = [block for block in range(blocks) if block not in order]
        order.append(
            max(others, key=lambda block: crops.score(whole_blocks([*order, block], blocks, (len(order) + 1) / blocks)))
        )
    return [*order, *(block for block in range(blocks) if block not in order)]


def evolve(crops: TuningCrops, routing: RoutingConfig, best_db: float) -> RoutingConfig:
    """Move a third or two thirds of a block's γ to another block, at random, and keep what scores higher (1+1)."""
    generator = np.random.default_rng(0)
    best = list(routing.schedule or ())
    steps = 0
    while steps < EVOLUTION_STEPS:
        giver, taker = generator.choice(len(best), 2, replace=False)
        amount = min(float(generator.choice((1 / 3, 2 / 3))), best[giver], 1 - best[taker])
        if amount < 0.1:
            continue
        tried = list(best)
        tried[giver] = round(tried[giver] - amount, 9)
        tried[taker] = round(tried[taker] + amount, 9)
        value = crops.score(RoutingConfig(policy="schedule", schedule=tuple(tried)))
        steps += 1
        if value > best_db:
            best, best_db = tried, value
    return RoutingConfig(policy="schedule", schedule=tuple(best))


def restrict(hard_S: list[float], gains_db: list[float], share: float) -> RoutingConfig:
    """Spread attention as `probability` does (mean p of each block) over the blocks that gain more than 0.002 dB."""
    weights = [p if gain > 0.002 else 0.0 for p, gain in zip(hard_S, gains_db, strict=True)]
    low, high = 0.0, 1e6
    for _ in range(100):  # bisection on the factor that realises the share
        factor = (low + high) / 2
        if sum(min(1.0, factor * weight) for weight in weights) < share * len(weights):
            low = factor
        else:
            high = factor
    gammas = tuple(round(min(1.0, high * weight), 9) for weight in weights)
    return RoutingConfig(policy="schedule", schedule=gammas)


def bootstrap(difference: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean over resampled images."""
    picks = np.random.default_rng(0).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def write(rows: list[dict[str, object]], found: dict[str, dict[str, object]]) -> None:
    """Write the table and the routings."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with (FOLDER / "routing_policies.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, keys, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    (FOLDER / "routing_policies.json").write_text(json.dumps(found, indent=0, ensure_ascii=False), encoding="utf-8")


def log(*values: object) -> None:
    """Say what happens."""
    print(*values, file=sys.stderr, flush=True)


main()

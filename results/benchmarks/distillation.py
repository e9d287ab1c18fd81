"""What a small network gains from a teacher at equal steps: several losses, three seeds each, on held-out images.

    HARNESS_REFERENCE=... OMP_NUM_THREADS=1 python results/benchmarks/distillation.py WORK_FOLDER

Needs the released Small ×4 weights (`weights/CAMixerSR_S.pth`), which teach, and the folders `images/T91` (to train
on), `images/Set5` and `images/BSDS80` (to score) of HARNESS_REFERENCE. Writes distillation.json beside itself, run by
run, and prints the table of distillation.md; a command that was ended in whatever way goes on from the checkpoints in
WORK_FOLDER.
"""

import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from harness.core.checkpoints import Checkpoint, Folder
from harness.core.configs import (
    CAMixerSRConfig,
    DistillationConfig,
    RoutingConfig,
    ScheduleConfig,
    TrainingConfig,
)
from harness.core.device_lock import computing
from harness.core.files import write_text
from harness.core.seeding import derive_seed
from harness.data import CropSampler, PairedDataset, open_dataset, refuse_overlap
from harness.export import write_imported_bundle
from harness.metrics import get_protocol
from harness.models import build_model, build_seeded, load_weights
from harness.profiling import canonical_macs
from harness.training import train
from harness.trial import evaluate, find_teachers, load_teacher, with_teacher

STUDENT = CAMixerSRConfig(channels=16, groups=(1, 1), window=8, image_residual=True)
TEACHER = CAMixerSRConfig(channels=36, routing=RoutingConfig(gamma=1.0))
TRAINING = TrainingConfig(
    steps=1000,
    batch_size=8,
    hr_patch_size=64,
    learning_rate=2e-3,
    schedule=ScheduleConfig(name="cosine", warmup_steps=30),
    checkpoint_interval=250,
)
LONGER, FACTOR = "images alone, 2.5 × the steps", 2.5  # about as long as with a teacher and its features
VARIANTS: dict[str, dict[str, Any] | None] = {
    "images alone": None,
    "output, α = .5": {"weight": 0.5},
    "output, α = .9": {"weight": 0.9},
    "output, α = .5, attention .02": {"weight": 0.5, "features": "attention", "feature_weight": 0.02},
    "output, α = .5, affinity .02": {"weight": 0.5, "features": "affinity", "feature_weight": 0.02},
    LONGER: None,
}
SEEDS = (0, 1, 2)
SEEDS_OF = {"output, α = .9": (0,)}  # as the first seed of it said no more than α = .5
SCORED = {"Set5": None, "BSDS80": 40}
T_95 = 4.302652729911275  # of Student's distribution with two degrees of freedom
FOLDER = Path(__file__).parent
REFERENCE = Path(os.environ.get("HARNESS_REFERENCE", ""))


def main(work: Path) -> None:
    """Train and score what is missing, print the table."""
    torch.set_num_threads(1)
    results = FOLDER / "distillation.json"
    known = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {"runs": []}
    teacher = work / "teacher"
    if not teacher.exists():
        network = build_model(TEACHER).eval()
        entry = load_weights(network, REFERENCE / "weights" / "CAMixerSR_S.pth")
        write_imported_bundle(teacher, network, REFERENCE / "weights" / "CAMixerSR_S.pth", entry)
    identities = find_teachers([str(teacher)], 4)
    sets = {name: open_set(name, work) for name in ("T91", *SCORED)}
    for name in SCORED:
        refuse_overlap(sets["T91"], sets[name])
    protocol = {
        "student": STUDENT.model_dump(mode="json"),
        "teacher": TEACHER.model_dump(mode="json"),
        "teacher_id": identities[str(teacher)],
        "training": TRAINING.model_dump(mode="json", exclude={"seed", "checkpoint_interval"}),
        "threads": 1,
        "scored": {name: count or len(sets[name]) for name, count in SCORED.items()},
        "macs_1280x720": {
            "student": canonical_macs(STUDENT, (180, 320)),
            "teacher": canonical_macs(TEACHER, (180, 320)),
        },
    }
    if known.get("protocol", protocol) != protocol:
        sys.exit(f"{results} is of another protocol; move it away")
    known["protocol"] = protocol
    done = {(run["variant"], run["seed"]) for run in known["runs"]}
    if "teacher" not in known:
        taught = load_teacher(make_training(teacher, identities, {}, 0))
        assert taught is not None
        known["teacher"] = {name: score(taught, sets[name], count) for name, count in SCORED.items()}
        known["untrained"] = {
            name: score(build_seeded(STUDENT, 0), sets[name], count) for name, count in SCORED.items()
        }
    planned = [(variant, seed) for seed in SEEDS for variant in VARIANTS if seed in SEEDS_OF.get(variant, SEEDS)]
    for variant, seed in sorted(planned, key=lambda run: run[0] == LONGER):
        if (variant, seed) not in done:
            training = make_training(teacher, identities, VARIANTS[variant], seed)
            if variant == LONGER:
                training = training.model_copy(update={"steps": round(FACTOR * training.steps)})
            network = build_seeded(STUDENT, seed)
            checkpoint = work / f"{training.config_hash()}.pt"
            before = time.process_time()
            record = train(
                network,
                sampler(sets["T91"], training),
                training,
                threads=1,
                teacher=load_teacher(training),
                checkpoint=Checkpoint(Folder(work), checkpoint.name),
                identity=training.config_hash(),
                turn=computing,
            )
            last = {name: curve[-1] for name, curve in record.curves.items()}
            known["runs"].append(
                {
                    "variant": variant,
                    "seed": seed,
                    "seconds": record.seconds,
                    "cpu_seconds": time.process_time() - before,
                    "resumed_from": record.resumed_from,
                    "last": last,
                    "cpu": find_cpu(),
                    "torch": str(torch.__version__),
                    **{name: score(network, sets[name], count) for name, count in SCORED.items()},
                }
            )
            write_text(results, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
            checkpoint.unlink(missing_ok=True)
            print(known["runs"][-1], flush=True)
    print(describe(known))


def make_training(
    teacher: Path, identities: dict[str, str], changes: dict[str, Any] | None, seed: int
) -> TrainingConfig:
    """Return the training of a variant with a seed."""
    distillation = None if changes is None else DistillationConfig(teacher=str(teacher), **changes)
    return with_teacher(TRAINING.model_copy(update={"seed": seed, "distillation": distillation}), identities)


def open_set(name: str, work: Path) -> PairedDataset:
    """Open a folder of images at ×4."""
    source = str(REFERENCE / "images" / name)
    return open_dataset(source, scale=4, split="validation", data_dir=None, cache_dir=work / "cache")


def sampler(images: PairedDataset, training: TrainingConfig) -> CropSampler:
    """Return the crops that `harness train` would draw."""
    return CropSampler(
        images,
        batch_size=training.batch_size,
        hr_patch_size=training.hr_patch_size,
        augment=training.augment,
        seed=derive_seed(training.seed, "crops"),
    )


def score(network: Any, images: PairedDataset, limit: int | None) -> float:
    """Return the mean PSNR-Y of protocol `light`."""
    return evaluate(network, images, get_protocol("light"), limit=limit).psnr_db


def find_cpu() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def interval(values: list[float]) -> str:
    """Return the mean and half of its 95 % interval by Student's t; of one value, the value."""
    half = f" ± {T_95 * stdev(values) / math.sqrt(len(values)):.3f}" if len(values) == len(SEEDS) else " (one seed)"
    return f"{mean(values):.3f}{half}"


def describe(known: dict[str, Any]) -> str:
    """Return the table as Markdown: means over seeds, and differences from the images alone seed by seed."""
    runs = {(run["variant"], run["seed"]): run for run in known["runs"]}
    lines = ["| learnt from | " + " | ".join(f"{name} | − images alone" for name in SCORED) + " | CPU seconds |"]
    lines.append("|---" * (2 * len(SCORED) + 2) + "|")
    for variant in VARIANTS:
        found = {seed: runs[variant, seed] for seed in SEEDS if (variant, seed) in runs}
        if not found:
            continue
        cells = []
        for name in SCORED:
            gains = [run[name] - runs["images alone", seed][name] for seed, run in found.items()]
            cells.append(interval([run[name] for run in found.values()]))
            cells.append("–" if variant == "images alone" else interval(gains))
        whole = [run["cpu_seconds"] for run in found.values() if not run["resumed_from"]]
        lines.append(f"| {variant} | {' | '.join(cells)} | {f'{mean(whole):.0f}' if whole else '–'} |")
    for who, name in (("teacher", "the teacher itself"), ("untrained", "the student, untrained")):
        lines.append(f"| {name} | {' | – | '.join(f'{value:.3f}' for value in known[who].values())} | – | – |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))

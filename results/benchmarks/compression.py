"""Pruned large networks against small ones trained from scratch, at equal MACs and at equal measured latency.

`python results/benchmarks/compression.py IMAGES FOLDER [SEED ...]`: IMAGES holds T91, BSDS80 and Set5; FOLDER keeps the
runs, and the same command again goes on where it was left. It writes FOLDER/compression.json, and compression.png
beside it.

Every network is given the same number of training steps in all: those from scratch `TRAINED` + `TUNED`, pruned ones
`TRAINED` as the large network and `TUNED` after pruning.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from harness.core.configs import CAMixerSRConfig, CompressionConfig, DataConfig, RoutingConfig, TrainingConfig
from harness.core.environment import observe_environment
from harness.core.records import TrialRecord
from harness.core.study_folder import StudyFolder
from harness.data import PairedDataset, open_dataset
from harness.metrics import get_protocol
from harness.models import SRNetwork, describe_kernels, preset_config
from harness.profiling import measure_latencies
from harness.trial import (
    Parent,
    Proposal,
    TrialSetup,
    build_seeded,
    evaluate,
    load_trained,
    representative_input,
    run_trial,
)

TRAINED, TUNED = 2430, 810
GAMMA = RoutingConfig(gamma=0.5)
LARGE = CAMixerSRConfig(groups=(3, 3), channels=32, window=8, image_residual=True, routing=GAMMA)
SHARES = (0.75, 0.5, 0.35, 0.25)
SCRATCH = (28, 23, 19, 16)  # channels of networks with about these shares of the large one's MACs
RECIPE = {
    "batch_size": 8,
    "hr_patch_size": 64,
    "learning_rate": 2e-3,
    "schedule": {"name": "cosine", "warmup_steps": 30},
    "checkpoint_interval": 270,
}
PLANS = {
    **{f"global {share}": {"left": share} for share in SHARES},
    "uniform 0.5": {"left": 0.5, "scope": "uniform"},
    "random 0.5": {"left": 0.5, "importance": "random", "scope": "uniform"},
    **{f"measured, MACs {share}": {"left": share, "scope": "measured"} for share in (0.6, 0.4)},
    **{f"measured, latency {share}": {"left": share, "scope": "measured", "cost": "latency"} for share in (0.75, 0.6)},
}


def main(images: Path, folder: Path, seeds: list[int], parts: tuple[str, ...] = ("scratch", "pruned")) -> None:
    """Run what is missing, one seed after the other; then measure all networks together, and write what there is."""
    cache = folder / "cache"

    def open_images(name: str, split: Any) -> PairedDataset:
        return open_dataset(str(images / name), scale=4, split=split, data_dir=None, cache_dir=cache)

    train, set5, bsds = (
        open_images("T91", "train"),
        open_images("Set5", "validation"),
        open_images("BSDS80", "validation"),
    )
    setup = TrialSetup(
        study="compression",
        folder=StudyFolder(folder),
        data=DataConfig(train="T91", validation="Set5"),
        train=train,
        validation=set5,
        protocol=get_protocol("light"),
        constraints=(),
        devices=("cpu:1",),
        latency_input_size=(64, 64),
        macs_input_size=(180, 320),
        reference=build_seeded(preset_config("swinir-light", 4), 0).eval(),
        reference_name="swinir-light",
        threads=1,
        latency_repeats=20,
    )
    rows: list[dict[str, Any]] = []
    networks: dict[str, SRNetwork] = {}

    def run(kind: str, proposal: Proposal) -> TrialRecord:
        known = {one.record_id: one for one in setup.folder.read_trials()}
        record = known.get(proposal.record_id)
        if record is None or record.state != "complete":
            record = run_trial(setup, proposal)
        assert record.state == "complete", record.reason
        networks[record.record_id] = load_trained(setup.folder, record, GAMMA)
        rows.append(describe(kind, record))
        print(rows[-1], flush=True)
        return record

    def describe(kind: str, record: TrialRecord) -> dict[str, Any]:
        point, chain = record.points[0], record.compression
        return {
            "kind": kind,
            "name": record.record_id,
            "seed": record.training.seed if record.training else None,
            "network": record.label,
            "macs": point.macs,
            "params": point.params,
            "set5_psnr_db": point.evaluation.psnr_db,
            "bsds80_psnr_db": evaluate(networks[record.record_id], bsds, setup.protocol).psnr_db,
            "pruned_psnr_db": chain.stages[1].psnr_db if chain else None,
            "widths": chain.stages[-1].widths if chain else None,
        }

    def propose(name: str, model: CAMixerSRConfig, steps: int, seed: int, **changes: Any) -> Proposal:
        training = TrainingConfig.model_validate({**RECIPE, "steps": steps, "seed": seed})
        return Proposal(f"{name} s{seed}", "trial", None, model, training, (GAMMA,), GAMMA, **changes)

    for seed in seeds:
        large = run("large, unpruned", propose("large", LARGE, TRAINED, seed))
        for channels in (LARGE.channels, *SCRATCH) if "scratch" in parts else ():
            model = LARGE.model_copy(update={"channels": channels})
            run("from scratch", propose(f"scratch C{channels}", model, TRAINED + TUNED, seed))
        parent = Parent(large.network_id, setup.folder.weights_file(large.network_id))
        for name, settings in PLANS.items() if "pruned" in parts else ():
            plan = CompressionConfig.model_validate({"tune_steps": TUNED, **settings})
            run(name, propose(name, LARGE, TRAINED, seed, compression=plan, parent=parent))
    found = measure_latencies(
        networks,
        representative_input(set5, (64, 64)),
        device="cpu:1",
        reference=setup.reference,
        reference_name=setup.reference_name,
        min_repeats=40,
        max_seconds=30,
    )
    for row in rows:
        latency = found[row["name"]]
        row |= {"latency_ms": latency.median, "interval_ms": latency.interval, "latency_ratio": latency.ratio}
    (folder / "compression.json").write_text(json.dumps({"rows": rows, **CONDITIONS}, indent=1) + "\n")
    draw(rows, folder / "compression.png")


CONDITIONS = {
    "steps": {"from scratch": TRAINED + TUNED, "pruned": [TRAINED, TUNED]},
    "recipe": RECIPE,
    "environment": observe_environment(describe_kernels()).model_dump(mode="json"),
}


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw PSNR against MACs and against latency."""
    kinds = {
        "from scratch": ("from scratch", "o", "#0072B2"),
        "global": ("pruned, global (Taylor)", "s", "#D55E00"),
        "uniform": ("pruned, uniform (Taylor)", "^", "#009E73"),
        "random": ("pruned, random (control)", "x", "#999999"),
        "measured, MACs": ("pruned by dB for MACs", "D", "#CC79A7"),
        "measured, latency": ("pruned by dB for latency", "v", "#000000"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, (key, factor, label) in zip(
        axes,
        [("macs", 1e-9, "MACs at an output of 1280×720 (G)"), ("latency_ms", 1.0, "latency at 64×64 (ms)")],
        strict=True,
    ):
        for prefix, (text, marker, colour) in kinds.items():
            own = [row for row in rows if row["kind"].startswith(prefix)]
            axis.scatter(
                [factor * row[key] for row in own],
                [row["bsds80_psnr_db"] for row in own],
                marker=marker,
                color=colour,
                label=text,
            )
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR-Y on BSDS80 (dB)")
    axes[1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(seed) for seed in sys.argv[3:]] or [0])

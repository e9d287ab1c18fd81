"""The front of the recorded table of networks: `python results/benchmarks/front.py` writes front.png beside it."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import NullFormatter

from harness.reporting.front import non_dominated

HERE = Path(__file__).parent
COSTS = {
    "latency_ratio": ("latency of 64×64 pixels / SwinIR-light's", (0.02, 0.05, 0.1, 0.2)),
    "macs": ("MACs for an output of 1280×720 (G)", (0.5, 1, 2, 5, 10)),
}


def main() -> None:
    """Draw what is known of all networks at the end of training, under every γ."""
    table = pd.read_csv(HERE / "search_table.csv")
    ends = table[(table.step == table.step.max()) & (table.seed == 0)].copy()
    ends["macs"] /= 1e9
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for axis, (cost, (label, ticks)) in zip(axes, COSTS.items(), strict=True):
        dots = axis.scatter(ends[cost], ends.psnr_db, c=ends.gamma, cmap="cividis", s=13, alpha=0.75, linewidths=0)
        front = ends[non_dominated(ends[["psnr_db", cost]].to_numpy(), ["maximize", "minimize"])].sort_values(cost)
        axis.step(front[cost], front.psnr_db, where="post", color="#D55E00", linewidth=1.4)
        axis.scatter(front[cost], front.psnr_db, c=front.gamma, cmap="cividis", s=48, edgecolors="#D55E00", zorder=3)
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("PSNR-Y, Set5 ×4 (dB)")
    axes[0].set_title("the front (orange) of 120 trained networks", loc="left", fontsize=11)
    figure.colorbar(dots, ax=axes, label="γ: share of windows with attention")
    figure.savefig(HERE / "front.png", dpi=110)


if __name__ == "__main__":
    main()

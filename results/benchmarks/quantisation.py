"""What quantisation costs and gains: PSNR on Set5, latency and size of networks under every method.

    HARNESS_REFERENCE=... OMP_NUM_THREADS=1 python results/benchmarks/quantisation.py FOLDER NAME=MODEL[:WEIGHTS] ...

Needs `images/BSDS80` and `images/Set5` of HARNESS_REFERENCE. MODEL is a preset, a config file or a bundle; without
weights only latency and size are kept. Exports and images are cached in FOLDER; rows are added to quantisation.json
beside this file one by one, and those that are there are not measured again. ONLY=LABEL;… measures some methods.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from harness.cli.target import resolve_network
from harness.core.configs import QuantisationConfig
from harness.core.quantisation import QuantisationRecord
from harness.data import open_dataset, refuse_overlap
from harness.export import build_onnx
from harness.metrics import get_protocol
from harness.profiling import Effort
from harness.trial.quantisation import quantise

TILE, DEVICE = 64, "cpu:1"
EFFORT = Effort(min_repeats=10, min_seconds=2.0, max_seconds=90.0)
COMMON: dict[str, Any] = {"tile": TILE, "images": 12, "held_out": 6, "max_drop_db": None}
CONFIGS = {
    "dynamic int8": QuantisationConfig(method="dynamic", **COMMON),
    "static int8, min-max": QuantisationConfig(method="minmax", **COMMON),
    "static int8, percentile 99.999": QuantisationConfig(method="percentile", **COMMON),
    "static int8, percentile 99.99": QuantisationConfig(method="percentile", percentile=99.99, **COMMON),
    "fp16": QuantisationConfig(method="fp16", **COMMON),
    "bf16": QuantisationConfig(method="bf16", runtime="openvino", **COMMON),
    "static int8, min-max, OpenVINO": QuantisationConfig(method="minmax", runtime="openvino", **COMMON),
    "static int8, min-max, layers kept in float": QuantisationConfig(
        method="minmax", **{**COMMON, "max_drop_db": 0.05}
    ),
    "static int8, entropy": QuantisationConfig(method="entropy", **COMMON),
}
FOLDER = Path(__file__).parent
REFERENCE = Path(os.environ.get("HARNESS_REFERENCE", ""))


def main() -> None:
    """Measure every network under every method, and write."""
    torch.set_num_threads(1)
    cache, networks = Path(sys.argv[1]), dict(entry.split("=", 1) for entry in sys.argv[2:])
    only = os.environ.get("ONLY", "").split(";") if os.environ.get("ONLY") else list(CONFIGS)
    path = FOLDER / "quantisation.json"
    for name, text in networks.items():
        model, _, weights = text.partition(":")
        network, origin = resolve_network(model, None, None, None, Path(weights) if weights else None)
        images = [
            open_dataset(
                str(REFERENCE / "images" / source), scale=4, split="train", data_dir=None, cache_dir=cache / "cache"
            )
            for source in ("BSDS80", "Set5")
        ]
        refuse_overlap(images[0], images[1], uses=("calibration", "evaluation"))
        exported = cache / f"{name}.onnx"
        if not exported.exists():
            exported.write_bytes(build_onnx(network, size=(TILE, TILE), batch=1).SerializeToString())
        for label in only:
            if any((row["network"], row["method"]) == (name, label) for row in read_rows(path)):
                continue
            with tempfile.TemporaryDirectory() as folder:
                record = quantise(
                    network,
                    images[0],
                    CONFIGS[label],
                    Path(folder),
                    weights=Path(origin.split(" ")[0]).name,
                    evaluation=None if origin == "untrained" else images[1],
                    protocol=get_protocol("light"),
                    device=DEVICE,
                    effort=EFFORT,
                    exported=exported,
                    progress=lambda what, times: print(f"  {what} {times}", flush=True) if times % 10 == 1 else None,
                )
            rows = [*read_rows(path), row_of(name, label, record)]
            path.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "record"}), flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that are measured already."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return rows


def row_of(network: str, method: str, record: QuantisationRecord) -> dict[str, Any]:
    """Return what the table shows of a record, and the record without samples, single images and names of layers."""
    assert record.latency is not None
    latency = record.latency
    return {
        "network": network,
        "method": method,
        "runtime": record.config.runtime,
        "psnr_db_float": record.before.psnr_db if record.before else None,
        "psnr_db": record.after.psnr_db if record.after else None,
        "drop_db": record.drop_db,
        "drop_db_held_out": record.choice.drop_db if record.before else None,
        "layers_quantised": len(record.choice.quantised),
        "layers_kept": len(record.choice.kept),
        "layers_of_routing": len(record.choice.routing),
        "latency_ms_float": latency.reference_median,
        "latency_ms": latency.median,
        "latency_ratio": latency.ratio,
        "latency_ratio_interval": latency.ratio_interval,
        "is_noisy": latency.is_noisy,
        "core_share": latency.core_share,
        "bytes_float": record.float_file_bytes,
        "bytes": record.file_bytes,
        "seconds": record.seconds,
        "record": record.model_dump(
            mode="json",
            exclude={
                "latency": {"samples", "reference_samples"},
                "before": {"images"},
                "after": {"images"},
                "choice": {"quantised": True, "routing": True, "sensitivities": {"__all__": {"layers"}}},
            },
        ),
    }


if __name__ == "__main__":
    main()

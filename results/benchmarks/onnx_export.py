"""What ONNX files cost and keep: export, size, and latency by γ, beside eager and PyTorch's own exporter.

    HARNESS_REFERENCE=... OMP_NUM_THREADS=1 python results/benchmarks/onnx_export.py [files|naive|latency]...

Needs `weights/CAMixerSR_S.pth` of HARNESS_REFERENCE. Each part replaces its own entries of onnx.json beside this file.
Latencies are processor time of one thread, medians of runs that take turns: they stand where others use the machine.
"""

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import torch
from onnx import inliner

from harness.core.configs import CAMixerSRConfig, RoutingConfig
from harness.core.environment import observe_environment
from harness.export import build_onnx, check_parity, take_images
from harness.export.parity import open_session
from harness.models import SRNetwork, describe_kernels, load_weights, preset_config
from harness.models.onnx_export.graph import OPSET
from harness.models.registry import build_seeded

JSON = Path(__file__).with_name("onnx.json")
REFERENCE = Path(os.environ.get("HARNESS_REFERENCE", ""))
PRESETS = ("camixersr-s", "camixersr-b", "swinir-light")
SIDES, RUNS = (64, 128), {64: 9, 128: 5}
NUM_BLOCKS = 20
POLICIES = (
    *(RoutingConfig(gamma=gamma) for gamma in (0, 0.25, 0.5, 0.75, 1)),
    *(RoutingConfig(policy="probability", gamma=gamma) for gamma in (0.25, 0.5, 0.75)),
    RoutingConfig(policy="threshold"),
    RoutingConfig(policy="schedule", schedule=(0, 0.25, 0.5, 1) * 5),
    RoutingConfig(policy="detail", gamma=0.25, block_weights=(1.0, 2.0) * 10),
)


def _sort_stable(self: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
    """Write torch's stable sort as ONNX's TopK of all, which puts the first of equal values first."""
    operators = importlib.import_module("onnxscript").opset18
    count = operators.Constant(value_ints=[int(self.shape[dim])])
    return operators.TopK(self, count, axis=dim, largest=int(descending), sorted=1)


def main() -> None:
    """Measure what is asked for, and write."""
    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(JSON.read_text()) if JSON.is_file() else {}
    parts: dict[str, Callable[[], Any]] = {"files": measure_files, "naive": measure_naive, "latency": measure_latency}
    for name in sys.argv[1:] or list(parts):
        known[name] = parts[name]()
        known["environment"] = observe_environment(describe_kernels()).model_dump(mode="json")
        JSON.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_preset(preset: str) -> SRNetwork:
    """Return a preset in eval mode: Small with the released weights, all others untrained."""
    network = build_seeded(preset_config(preset, 4), seed=0)
    if preset == "camixersr-s":
        load_weights(network, REFERENCE / "weights" / "CAMixerSR_S.pth")
    return network.eval()


def measure_files() -> list[dict[str, Any]]:
    """Export and check the presets under every policy."""
    rows = []
    for preset in PRESETS:
        network = load_preset(preset)
        routes = isinstance(network.config, CAMixerSRConfig)
        for routing in POLICIES if routes else (None,):
            if routing is not None:
                network.routing = routing  # type: ignore[assignment]
            started = time.perf_counter(), time.process_time()
            model = build_onnx(network)
            ended = time.perf_counter(), time.process_time()
            record = check_parity(network, model)
            rows.append(
                {
                    "network": preset,
                    "routing": routing.label() if routing else None,
                    "seconds": round(ended[0] - started[0], 2),
                    "processor_seconds": round(ended[1] - started[1], 2),
                    "nodes": record.nodes,
                    "nodes_inlined": len(inliner.inline_local_functions(model).graph.node),
                    "nodes_of_one_size": len(build_onnx(network, size=(64, 64), batch=1).graph.node),
                    "opset": OPSET,
                    "mib": round(model.ByteSize() / 2**20, 2),
                    "max_abs": record.max_abs,
                    "psnr_db_difference": record.psnr_db_difference,
                }
            )
            print(rows[-1], flush=True)
    return rows


def measure_naive() -> list[dict[str, Any]]:
    """Export Base by `torch.onnx.export` as it comes, for one size, with and without its optimiser."""
    rows = []
    for optimised in (False, True):
        network = load_preset("camixersr-b")
        network.is_literal = True
        started = time.perf_counter(), time.process_time()
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            example = torch.zeros(1, 3, 64, 64)
            program = torch.onnx.export(
                torch.export.export(network, (example,), strict=False),
                (example,),
                dynamo=True,
                optimize=optimised,
                verbose=False,
                opset_version=18,
                custom_translation_table={torch.ops.aten.sort.stable: _sort_stable},  # it has none of its own
            )
            assert program is not None
            program.save(Path(folder) / "naive.onnx")
            nodes = len(inliner.inline_local_functions(onnx.load(Path(folder) / "naive.onnx")).graph.node)
        row = {
            "optimised": optimised,
            "seconds": round(time.perf_counter() - started[0], 1),
            "processor_seconds": round(time.process_time() - started[1], 1),
            "nodes": nodes,
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def measure_latency() -> list[dict[str, Any]]:
    """Time γ = .25 against γ = 1, in turns, in eager (with and without our kernels), onnxruntime and OpenVINO."""
    rows = []
    for preset in PRESETS[:2]:
        for side in SIDES:
            image = take_images(4, size=(side, side))[0].input_BCHW
            runs = {(kind, gamma): run for gamma in (0.25, 1.0) for kind, run in _prepare(preset, gamma, image).items()}
            times: dict[tuple[str, float], list[float]] = {key: [] for key in runs}
            for turn in range(RUNS[side] + 2):
                for key, run in runs.items():
                    started = time.process_time()
                    run()
                    if turn > 1:
                        times[key].append(1000 * (time.process_time() - started))
            for kind in dict.fromkeys(kind for kind, _ in runs):
                quarter, whole = (median(times[kind, gamma]) for gamma in (0.25, 1.0))
                rows.append(
                    {
                        "network": preset,
                        "side": side,
                        "runtime": kind,
                        "ms_quarter": round(quarter, 1),
                        "ms_whole": round(whole, 1),
                        "ratio": round(quarter / whole, 3),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def _prepare(preset: str, gamma: float, image: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return what runs a preset at a γ, by the name of what runs it."""
    network, plain = load_preset(preset), load_preset(preset)
    for each in (network, plain):
        each.routing = RoutingConfig(gamma=gamma)  # type: ignore[assignment]
    plain.get_submodule("head").register_forward_hook(lambda *_: None)  # networks with hooks run by torch's operators
    array, side = image.numpy(), image.shape[-1]
    files = {"any size": build_onnx(network), "one size": build_onnx(network, size=(side, side), batch=1)}
    sessions = {
        "onnxruntime": open_session(files["any size"].SerializeToString()),
        "onnxruntime, one size": open_session(files["one size"].SerializeToString()),
        "OpenVINO": open_session(files["any size"].SerializeToString(), "openvino"),
        "OpenVINO, one size": open_session(files["one size"].SerializeToString(), "openvino"),
    }

    def run_eager(network: SRNetwork) -> object:
        with torch.inference_mode():
            return network(image)

    runs: dict[str, Callable[[], object]] = {
        "eager": lambda: run_eager(network),
        "eager without kernels": lambda: run_eager(plain),
    }
    return runs | {name: (lambda session=session: session(array)) for name, session in sessions.items()}


if __name__ == "__main__":
    main()

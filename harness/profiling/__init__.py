"""Operation counts, latency and memory: functions of explicit inputs that return records and leave nothing behind."""

from harness.profiling.bootstrap import ratio_interval
from harness.profiling.breakdown import measure_breakdown
from harness.profiling.closed_form import (
    canonical_activations,
    canonical_macs,
    count_params,
    macs_by_part,
    paper_flops_tile,
    paper_macs_fvcore,
)
from harness.profiling.counters import AGREEMENT, count_macs, count_operations, try_custom
from harness.profiling.device import Device, chosen_threads, describe_device, parse_device
from harness.profiling.latency import DEFAULT, QUICK, Effort, measure_latencies, measure_latency
from harness.profiling.memory import measure_peak_memory
from harness.profiling.onnx_graph import OnnxCount, count_onnx
from harness.profiling.processes import break_down_in_process, measure_file_memory, measure_in_processes
from harness.profiling.runtimes import check_runtime, export_onnx, run_in
from harness.profiling.score import ntire_score
from harness.profiling.targets import (
    TILE_OVERLAP,
    InputContract,
    Target,
    TargetNetwork,
    TargetSpec,
    fit_to,
    load_target,
    parse_target,
)

__all__ = [
    "AGREEMENT",
    "DEFAULT",
    "QUICK",
    "TILE_OVERLAP",
    "Device",
    "Effort",
    "InputContract",
    "OnnxCount",
    "Target",
    "TargetNetwork",
    "TargetSpec",
    "break_down_in_process",
    "canonical_activations",
    "canonical_macs",
    "check_runtime",
    "chosen_threads",
    "count_macs",
    "count_onnx",
    "count_operations",
    "count_params",
    "describe_device",
    "export_onnx",
    "fit_to",
    "load_target",
    "macs_by_part",
    "measure_breakdown",
    "measure_file_memory",
    "measure_in_processes",
    "measure_latencies",
    "measure_latency",
    "measure_peak_memory",
    "ntire_score",
    "paper_flops_tile",
    "paper_macs_fvcore",
    "parse_device",
    "parse_target",
    "ratio_interval",
    "run_in",
    "try_custom",
]

"""Operation counts, latency and memory: functions of explicit inputs that return records and leave nothing behind."""

from harness.profiling.breakdown import BreakdownRecord, measure_breakdown
from harness.profiling.closed_form import canonical_macs, macs_by_part, paper_flops_tile, paper_macs_fvcore
from harness.profiling.counters import count_macs
from harness.profiling.device import Device, chosen_threads, describe_device, parse_device
from harness.profiling.latency import DEFAULT, QUICK, Effort, measure_latencies, measure_latency
from harness.profiling.memory import measure_peak_memory
from harness.profiling.processes import measure_in_processes
from harness.profiling.runtimes import check_runtime

__all__ = [
    "DEFAULT",
    "QUICK",
    "BreakdownRecord",
    "Device",
    "Effort",
    "canonical_macs",
    "check_runtime",
    "chosen_threads",
    "count_macs",
    "describe_device",
    "macs_by_part",
    "measure_breakdown",
    "measure_in_processes",
    "measure_latencies",
    "measure_latency",
    "measure_peak_memory",
    "paper_flops_tile",
    "paper_macs_fvcore",
    "parse_device",
]

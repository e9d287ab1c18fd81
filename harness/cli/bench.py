"""`harness bench`: how much of this machine's peak inference and training reach, and whether latencies repeat."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from harness.cli import bench_search, options
from harness.cli.output import console, counting, format_number, messages, print_json, print_table

if TYPE_CHECKING:
    from harness.bench import InferenceBench, NetworkTimes, RepeatabilityBench, TrainingBench
    from harness.bench.peak import Peak
    from harness.bench.rounds import Machine

app = typer.Typer(
    name="bench",
    help="Measure this machine: its peak, and what inference and training reach of it, checked word for word.",
    no_args_is_help=True,
)
app.command()(bench_search.table)
app.command()(bench_search.search)
_Bench = TypeVar("_Bench", "InferenceBench", "TrainingBench")
_COLUMNS = ["network, input", "γ", "runs", "median\nms", "IQR", "of\npeak", "time\n/ γ=1", "MACs\n/ γ=1"]
_COLUMNS += ["word\nfor word", "by\noperator", "bf16\n/ fp32", "bf16\nof peak"]
_OWN_CORE = 0.9  # of a core's time, below which others disturb
_Device = Annotated[str, typer.Option(help="cpu, cpu:THREADS or cuda:INDEX.")]
_Threads = Annotated[
    str | None,
    typer.Option(metavar="COUNT[,COUNT]...", help="CPU threads; a bench of its own for each count.  [default: 1]"),
]
_Quick = Annotated[bool, typer.Option("--quick", help="Fewer rounds: under 3 minutes on one fast core, not 10.")]


@app.command()
def inference(
    device: _Device = "cpu", threads: _Threads = None, quick: _Quick = False, json: options.Json = False
) -> None:
    """Measure inference: shares of the peak, time and MACs against γ, bfloat16, and each path against the others."""
    from harness.bench import Effort, default_cases, measure_inference

    places = _places(device, threads)
    effort = Effort(rounds=8, max_seconds=110) if quick else Effort(rounds=32, max_seconds=480)
    with _refusal_in_one_line(), counting("measuring") as progress:
        benches = measure_inference(default_cases(), effort, devices=places, progress=progress)
    _print(benches, print_inference, json=json)


@app.command()
def training(
    device: _Device = "cpu",
    threads: _Threads = None,
    quick: _Quick = False,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Measure training steps: word for word, dense and as `harness train` runs them, and what loading takes of one."""
    from harness.bench import Effort, default_training_case, measure_training
    from harness.data import open_dataset

    places = _places(device, threads)
    effort = Effort(rounds=4, max_seconds=100) if quick else Effort(rounds=16, max_seconds=480)
    case = default_training_case()
    photographs = open_dataset(
        "demo", scale=case.model.scale, split="train", data_dir=None, cache_dir=results / "cache"
    )
    with _refusal_in_one_line(), counting("measuring") as progress:
        benches = measure_training(case, photographs, effort, devices=places, progress=progress)
    _print(benches, print_training, json=json)


@app.command()
def repeatability(
    device: _Device = "cpu",
    sessions: Annotated[int, typer.Option(min=3, help="How often each network is measured.")] = 5,
    busy: Annotated[bool, typer.Option("--busy", help="Have another process compute beside, on one thread.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="At least 10 runs and 3 s each rather than 15 and 10 s.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Measure four networks again and again, in fresh processes each time, to see whether ratios and ranks repeat."""
    from harness.bench import default_networks, measure_repeatability
    from harness.profiling import DEFAULT, QUICK, parse_device

    with counting("measuring") as progress:
        bench = measure_repeatability(
            default_networks(),
            QUICK if quick else DEFAULT,
            sessions=sessions,
            device=parse_device(device).text,
            is_busy=busy,
            progress=progress,
        )
    if json:
        print_json(bench.model_dump(mode="json"))
        return
    print_repeatability(bench)


def print_repeatability(bench: "RepeatabilityBench") -> None:
    """Print each network's ratio in every session, and how far they spread."""
    rows = [
        [
            name,
            *(format_number(record.ratio, 4) + "*" * record.is_noisy for record in records),
            _percent(bench.spread[name]),
            _percent(bench.latency_spread[name]),
        ]
        for name, records in bench.records.items()
    ]
    first = next(iter(bench.records.values()))
    beside = "a busy process beside" if bench.is_busy else "nothing started beside"
    sessions = [f"session {number + 1}" for number in range(len(first))]
    title = (
        f"latency / {bench.reference}, input {bench.input_size[0]}×{bench.input_size[1]}, {first[0].device_name}, "
        f"{first[0].device}, {beside}"
    )
    print_table(title, ["network", *sessions, "IQR / median", "of the latency"], rows)
    ranks = "the same in every session" if bench.ranks_agree else "not the same in every session"
    console.print(
        f"ranks: {ranks}; the two closest networks are {100 * (bench.closest - 1):.1f} % apart; * marked noisy\n"
        f"{bench.protocol}; took {bench.seconds:.0f} s; kernels {bench.environment.kernels or 'none'}",
        soft_wrap=True,
    )


def print_inference(bench: "InferenceBench") -> None:
    """Print the peak, and one table of all networks."""
    _print_peaks(bench.machine, bench.peaks)
    rows: list[list[str]] = []
    for row in bench.networks:
        height, width = row.input_size
        name = f"{row.name}, {height}×{width}"
        rows.append([name if all(name != other[0] for other in rows) else "", *_describe(row)])
    print_table("Inference, batch 1, fp32 unless it says bf16", _COLUMNS, rows)
    console.print(
        "of peak: 2·MACs / time / best product of the dtype; word for word, by operator, bf16: time over the default "
        "path's\n"
        f"checked against the networks word for word first: off by {bench.largest_difference:.1g} of full scale at "
        f"most, in bf16 by {bench.largest_bf16_error:.1%} of the output's spread (RMS)\n"
        f"{_describe_run(bench)}"
    )


def _describe(row: "NetworkTimes") -> list[str]:
    return [
        format_number(row.gamma),
        str(len(row.times.samples_ms)),
        format_number(row.times.median_ms, 1),
        format_number(row.times.iqr_ms, 1),
        _percent(row.peak_share),
        format_number(row.time_over_full, 3),
        format_number(row.macs_over_full, 3),
        format_number(row.literal_ratio),
        format_number(row.operators_ratio),
        format_number(row.bf16_ratio),
        _percent(row.bf16_peak_share),
    ]


def print_training(bench: "TrainingBench") -> None:
    """Print the peak, a row for each path, and the loader's share."""
    _print_peaks(bench.machine, bench.peaks)
    case = bench.case
    title = (
        f"{case.name} ({case.model.label()}), a training step: batch {case.batch_size} of "
        f"{case.patch_size}×{case.patch_size}, fp32, {bench.attention_share:.0%} of the windows hard"
    )
    labels = {"literal": "word for word", "dense": "dense, optimised", "default": "default"}
    rows = [
        [
            labels[name],
            str(len(bench.times[name].samples_ms)),
            format_number(rate),
            format_number(bench.times[name].median_ms, 1),
            format_number(bench.times[name].iqr_ms, 1),
            format_number(bench.ratio[name]),
            format_number(bench.dense_ratio[name]),
            _percent(bench.peak_share[name]),
        ]
        for name, rate in bench.images_per_second.items()
    ]
    columns = ["step", "runs", "images/s", "median ms", "IQR", "× word for word", "× dense", "of peak"]
    print_table(title, columns, rows)
    console.print(
        f"loader ({bench.dataset}): {bench.loader.median_ms:.1f} ms a batch, {bench.loader_share:.1%} of a step\n"
        "of peak: 6·MACs of the forward pass / time / best product\n"
        "checked against algorithm 1 first, gradients too: "
        f"off by {bench.largest_difference:.1g} of full scale at most\n"
        f"{_describe_run(bench)}"
    )


def _print(benches: Sequence[_Bench], as_tables: Callable[[_Bench], None], *, json: bool) -> None:
    """Print the benches one after the other; as JSON one is a document by itself, and several are a list."""
    for bench in benches:
        core_share = bench.core_share
        if core_share is not None and core_share < _OWN_CORE:
            messages.print(
                f"note: this process had {core_share:.0%} of a core, others the rest: "
                "times are the processor's, but caches were shared; best measure on a quiet machine",
                soft_wrap=True,
            )
    if json:
        documents = [bench.model_dump(mode="json") for bench in benches]
        print_json(documents if len(documents) > 1 else documents[0])
        return
    for index, bench in enumerate(benches):
        if index:
            console.print()
        as_tables(bench)


def _describe_run(bench: "InferenceBench | TrainingBench") -> str:
    machine = bench.machine
    kernels = f"kernels {machine.kernels}" if machine.kernels else "no kernels"
    return f"{bench.protocol}; took {bench.seconds:.0f} s; {kernels}; fingerprint {machine.fingerprint}"


def _print_peaks(machine: "Machine", peaks: "dict[str, Peak]") -> None:
    threads = "" if machine.threads is None else f", {machine.threads} thread{'s' * (machine.threads > 1)}"
    rows = [[name, format_number(peak.gflops_per_s, 1), f"{peak.side}×{peak.side}"] for name, peak in peaks.items()]
    title = f"{machine.device_name}, {machine.device}{threads}: the best matrix product"
    print_table(title, ["dtype", "GFLOP/s", "at"], rows)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _places(device: str, threads: str | None) -> list[str]:
    """Return the devices to measure on as texts; `UserError` where one is not there."""
    from harness.core.errors import UserError
    from harness.profiling import parse_device

    if threads is None:
        return [parse_device(device).text]
    written = [count.strip() for count in threads.split(",")]
    counts = [int(count) for count in written if count.isascii() and count.isdigit()]
    if len(set(counts)) < len(written):
        raise UserError(f"--threads {threads}: expected a number of threads, or different ones such as 1,2")
    if device != "cpu" and [device] != [f"cpu:{count}" for count in counts]:
        raise UserError(f"--threads {threads} goes with --device cpu, got --device {device}")
    return [parse_device(f"cpu:{count}").text for count in counts]


@contextmanager
def _refusal_in_one_line() -> Iterator[None]:
    """End with one line and exit code 1 where a path of the network is broken: that is our failure, not the user's."""
    from harness.bench import BrokenPathError

    try:
        yield
    except BrokenPathError as error:
        messages.print(f"harness: error: {error}", soft_wrap=True)
        raise typer.Exit(1) from None

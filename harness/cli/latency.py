"""The latency of `harness profile`: what is asked for, measuring it, showing it and keeping its record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.output import format_interval, format_number, messages, print_table
from harness.core.conditions import Conditions, parse_size
from harness.core.errors import UserError, unknown_name
from harness.core.records import MIN_CORE_SHARE, LatencyRecord, ProfileRecord

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import SRNetwork
    from harness.profiling import Effort, Target

Keeper = Callable[[ProfileRecord], Path]  # writes a record down and says where

_MOST_BATCHES = 8  # of real images that take turns


@dataclass(frozen=True)
class Row:
    """One line of the result: low-resolution (height, width) and images at a time."""

    size: tuple[int, int]
    batch: int


def read_rows(
    input_size: tuple[int, int] | None, input_sizes: str | None, batch_sizes: str, default: tuple[int, int]
) -> list[Row]:
    """Return every size with every batch; `UserError` for lists that are none."""
    if input_size is not None and input_sizes is not None:
        raise UserError("--input-size and --input-sizes are both given; give one of them")
    if input_size is not None and min(input_size) < 1:
        raise UserError(f"--input-size {input_size[0]} {input_size[1]}: expected a height and a width of at least 1")
    try:
        sizes = [parse_size(text) for text in input_sizes.split(",")] if input_sizes else [input_size or default]
    except UserError as error:
        raise UserError(f"--input-sizes {input_sizes!r}: {error}") from None
    batches = [text.strip() for text in batch_sizes.split(",")]
    if not all(text.isascii() and text.isdigit() and int(text) > 0 for text in batches):
        raise UserError(f"--batch-sizes {batch_sizes!r}: expected whole numbers of at least 1, such as 1,4")
    return list(dict.fromkeys(Row(size, int(batch)) for size in sizes for batch in batches))


def read_conditions(device: str, threads: int | None, runtime: str, precision: str) -> Conditions:
    """Return where and how to measure; `UserError` for what is not known, not there or not installed."""
    from harness.core.conditions import PRECISIONS
    from harness.profiling import check_runtime, parse_device

    precisions = {name: name for name in PRECISIONS}
    if precision not in precisions:
        raise unknown_name("precision", precision, precisions)
    if threads is not None and device not in ("cpu", f"cpu:{threads}"):
        raise UserError(f"--threads {threads} goes with --device cpu, got --device {device}")
    place = parse_device(f"cpu:{threads}" if threads is not None else device)
    known = precisions[precision]
    return Conditions(place.text, check_runtime(runtime, place, known), known)


def read_effort(quick: bool, repeats: int | None, seconds: float | None) -> "Effort":
    """Return the limits of the protocol, those given winning over the preset ones."""
    from harness.profiling import DEFAULT, QUICK

    preset = QUICK if quick else DEFAULT
    return preset._replace(
        min_repeats=preset.min_repeats if repeats is None else repeats,
        min_seconds=preset.min_seconds if seconds is None else seconds,
    )


def resolve_reference(name: str, scale: int) -> "SRNetwork | None":
    """Return the network that latencies are relative to, untrained or with a bundle's weights; None for 'none'."""
    from harness.cli.target import resolve_network

    if name == "none":
        return None
    if Path(name).suffix in (".py", ".pt", ".ts", ".pt2", ".onnx") or ":" in name:
        raise UserError(f"--reference {name}: expected a preset, a config file or a bundle folder, or none")
    try:
        return resolve_network(name, scale, None, None, None)[0]
    except UserError as error:
        raise UserError(f"--reference {name}: {error}, or none") from None


class Inputs:
    """What is restored: the centres of real images, or random numbers from a fixed seed, of so many channels."""

    def __init__(self, folder: Path | None, channels: int = 3):
        from harness.data.images import list_images

        if folder is not None and channels != 3:
            raise UserError(f"--images {folder}: images are RGB, and the network takes {channels} channels")
        self._channels = channels
        if folder is not None and not folder.is_dir():
            raise UserError(f"--images {folder}: no such folder; expected one of low-resolution images")
        self._paths = [] if folder is None else list_images(folder)
        if folder is not None and not self._paths:
            raise UserError(f"--images {folder}: no images in it; expected PNG, JPEG, WebP, TIFF or BMP files")

    def make(self, row: Row) -> "tuple[Tensor, tuple[str, ...]]":
        """Return N batches (N×B×C×h×w in [0, 1]) and the images' names, in the order that they are restored in.

        Real images are spread evenly over the folder, at most 8 batches, and begin anew where there are not enough.
        """
        import torch

        from harness.data import to_tensor
        from harness.trial import crop_centre

        if not self._paths:
            generator = torch.Generator().manual_seed(0)
            return torch.rand(1, row.batch, self._channels, *row.size, generator=generator), ()
        batches = max(1, min(_MOST_BATCHES, len(self._paths) // row.batch))
        count = batches * row.batch
        taken = [self._paths[index * len(self._paths) // count] for index in range(count)]
        images = [to_tensor(crop_centre(_read_at_least(path, row.size), row.size)) for path in taken]
        return torch.cat(images).view(batches, row.batch, 3, *row.size), tuple(path.name for path in taken)


def _read_at_least(path: Path, size: tuple[int, int]) -> Any:
    from harness.data.images import read_rgb

    image_HWC = read_rgb(path)
    height, width = image_HWC.shape[:2]
    if height < size[0] or width < size[1]:
        raise UserError(f"{path}: {height}×{width} pixels, expected at least {size[0]}×{size[1]}; give --input-sizes")
    return image_HWC


def measure_rows(
    target: "Target",
    rows: Sequence[Row],
    inputs: Inputs,
    conditions: Conditions,
    effort: "Effort",
    *,
    reference: "SRNetwork | None",
    reference_name: str,
    with_memory: bool,
) -> tuple[LatencyRecord, ...]:
    """Measure every row of a target; see `measure_row`."""
    return tuple(
        measure_row(
            {"network": target},
            row,
            inputs,
            conditions,
            effort,
            reference=reference,
            reference_name=reference_name,
            with_memory=with_memory,
        )["network"]
        for row in rows
    )


def measure_row(
    networks: "Mapping[str, SRNetwork | Target]",
    row: Row,
    inputs: Inputs,
    conditions: Conditions,
    effort: "Effort",
    *,
    reference: "SRNetwork | None",
    reference_name: str,
    with_memory: bool = False,
) -> dict[str, LatencyRecord]:
    """Measure networks on one size and batch in fresh processes, and print what a reader must know of each latency."""
    from harness.profiling import measure_in_processes

    inputs_NBCHW, names = inputs.make(row)
    records = measure_in_processes(
        networks,
        inputs_NBCHW,
        conditions,
        effort,
        reference=reference,
        reference_name=reference_name,
        images=names,
        with_memory=with_memory,
    )
    for record in records.values():
        for remark in remarks(record):
            messages.print(f"warning: {record.conditions}: {remark}")
    return records


def remarks(record: LatencyRecord) -> list[str]:
    """Return what a reader of the latency must know, a sentence each."""
    found = []
    if record.core_share is not None and record.core_share < MIN_CORE_SHARE:
        found.append(f"noisy: its processes had {100 * record.core_share:.0f} % of their core, others the rest")
    elif record.is_noisy:
        drift = f"{100 * (record.reference_drift or 0):.0f} %"
        who = "the reference" if record.reference else "the network"
        found.append(f"noisy: {who} drifted by {drift}, beyond 5 %, in each of {record.attempts} runs")
    usable = record.fingerprint.usable_cores if record.fingerprint else None
    if usable is not None and record.threads is not None and record.threads > usable:
        found.append(f"{record.threads} threads ran on {usable} usable core{'s' * (usable > 1)}")
    if record.is_capped:
        found.append(f"the cap of {record.max_seconds:g} s ended it after {len(record.samples)} runs")
    if record.is_warm is False:
        found.append(f"its warm-up was not stable after {record.warmup_runs} runs")
    return found


def describe_latency(record: LatencyRecord) -> list[list[str]]:
    """Return one latency as lines of a name and a value."""
    lines = [
        ["latency median", f"{record.median:.2f} ms ({format_interval(record.interval, 2)})"],
        ["  IQR, p90", f"{record.iqr:.2f} ms, {record.p90:.2f} ms"],
        [f"  / {reference_label(record)}", _format_ratio(record)],
        ["  runs", f"{len(record.samples)} after {record.warmup_runs} for warm-up"],
    ]
    if record.reference is None:
        del lines[2]
    if record.peak_memory_bytes is not None:
        lines.append(["peak memory", f"{record.peak_memory_bytes / 2**20:.1f} MiB"])
    return lines


def print_rows(title: str, records: Sequence[LatencyRecord]) -> None:
    """Print a line for each size and batch."""
    columns = ["input", "batch", "median (ms)", "95 %", "IQR", "p90", f"/ {reference_label(records[0])}", "95 %"]
    lines = [
        [
            "{}×{}".format(*record.input_size),
            str(record.batch_size),
            f"{record.median:.2f}",
            format_interval(record.interval, 2),
            f"{record.iqr:.2f}",
            f"{record.p90:.2f}",
            format_number(record.ratio, 3),
            format_interval(record.ratio_interval, 3),
            "–" if record.peak_memory_bytes is None else f"{record.peak_memory_bytes / 2**20:.1f}",
            str(len(record.samples)),
        ]
        for record in records
    ]
    print_table(title, [*columns, "memory (MiB)", "runs"], lines)


def keep_record(record: ProfileRecord, folder: Path) -> Path:
    """Write the record to a file of its own in `folder`; return its path."""
    from harness.core.files import require_folder_place, write_text

    require_folder_place("--output", folder)
    stamp = "".join(sign for sign in record.measured_at.partition("+")[0] if sign.isdigit())
    label = "".join(sign if sign.isalnum() else "-" for sign in Path(record.target).name)
    path = folder / f"{stamp}-{label}-{record.config_hash()[:6]}.json"
    write_text(path, record.model_dump_json(indent=1))
    return path


def track_record(record: ProfileRecord, tracking_uri: str | None, results: Path) -> None:
    """Log the record to MLflow; where that fails one line says so."""
    from harness.tracking import log_profile

    artifacts = None if tracking_uri else (results / "mlartifacts").resolve()
    uri = tracking_uri or f"sqlite:///{(results / 'mlflow.db').resolve()}"
    log_profile(record, uri, artifact_root=artifacts, warn=lambda text: messages.print(f"warning: {text}"))


def row_document(record: LatencyRecord) -> dict[str, Any]:
    """Return what `--json` shows of a row, beside the whole record."""
    return {
        "input_size": list(record.input_size),
        "batch_size": record.batch_size,
        "latency_ms": {"median": record.median, "iqr": record.iqr, "p90": record.p90, "interval": record.interval},
        "latency_ratio": record.ratio,
        "latency_ratio_interval": record.ratio_interval,
        "peak_memory_bytes": record.peak_memory_bytes,
        "remarks": remarks(record),
    }


def reference_label(record: LatencyRecord) -> str:
    """Return what the latency is relative to, for people."""
    return {"swinir-light": "SwinIR-light", None: "reference"}.get(record.reference, str(record.reference))


def _format_ratio(record: LatencyRecord) -> str:
    if record.ratio is None:
        return "–"
    return f"{record.ratio:.3f} ({format_interval(record.ratio_interval, 3)})"

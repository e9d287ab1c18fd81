"""`harness export --format`: a network as one file for another runtime."""

import re
from pathlib import Path

from harness.cli.output import console
from harness.core.errors import UserError


def export_network(
    model: str,
    scale: int | None,
    gamma: float | None,
    routing: str | None,
    weights: Path | None,
    out: Path | None,
    file_format: str | None,
    size: str | None,
    *,
    overwrite: bool,
) -> None:
    """Write the file and say how it compares with the network."""
    from harness.cli.target import resolve_network
    from harness.core.device_lock import computing
    from harness.export import check_format, export_file, is_bundle, read_bundle_config

    if file_format is None:
        raise UserError(f"--size {size}: bundles take any size; give --format, too")
    if out is None:
        raise UserError(f"--format {file_format}: give --out FILE")
    known, sides = check_format(file_format, out), read_size(size)
    written = [out, out.with_suffix(".bin")] if known == "openvino" else [out]
    for file in written:
        if file.exists() and not overwrite:
            raise UserError(f"{file} exists; give --overwrite to replace it, or another --out")
    if is_bundle(Path(model)) and read_bundle_config(Path(model)).task == "odi":
        raise UserError(
            f"{model} restores whole panoramas, continued around their seam, which a file of --format {file_format} "
            "does not do; `harness upscale` does"
        )
    network, origin = resolve_network(model, scale, gamma, routing, weights)
    with computing():
        record = export_file(network, out, known, size=sides, batch=1 if sides is not None else None)
    routed = getattr(network.config, "routing", None)
    takes = "any size and batch" if sides is None else f"1×3×{sides[0]}×{sides[1]}"
    nodes = f", {record.nodes} nodes, opset {record.opset}" if record.nodes is not None else ""
    console.print(
        f"{out}  {network.config.label()} ×{network.scale}{f', {routed.label()}' if routed else ''}, weights {origin}\n"
        f"takes {takes}{nodes}, {out.stat().st_size / 2**20:.2f} MiB\n"
        f"as the network in {record.runtime} {record.runtime_version} on photographs of {len(record.images)} sizes: "
        f"within {record.max_abs:.1e} of 1 and {record.psnr_db_difference:.6f} dB "
        f"(allowed {record.max_abs_bound:g} and {record.psnr_db_bound:g})"
    )


def read_size(text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of `HxW`; `UserError` for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})", text)
    if found is None:
        raise UserError(f"--size {text}: expected HEIGHTxWIDTH in low-resolution pixels, such as 256x256")
    return int(found[1]), int(found[2])

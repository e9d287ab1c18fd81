"""`harness verify`: a bundle, checked again on the machine at hand."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options
from harness.cli.output import console, counting_parts, messages, print_json, print_table


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    data: Annotated[
        str | None,
        typer.Option(help="The validation images: a folder or a dataset's name.  [default: where the bundle says]"),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=0, help="How many of them to restore again.  [default: all; 0: none]")
    ] = None,
    latency: Annotated[bool, typer.Option(help="Measure the latency again, under the recorded protocol.")] = True,
    threads: options.Threads = None,
    data_dir: options.DataDir = None,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Check a bundle: checksums, config and weights, ONNX file, calibration, PSNR, latency, licence.

    Exit code 1 where a check fails. What cannot be checked here is said, and latency, which hangs on the machine, is
    laid beside the recorded one and fails nothing.
    """
    from harness.core.environment import observe_environment
    from harness.models import describe_kernels
    from harness.profiling import chosen_threads
    from harness.trial.verification import Surroundings, verify_bundle

    with chosen_threads(options.resolve_threads(threads)), counting_parts() as progress:
        found = verify_bundle(
            bundle,
            Surroundings(
                data=data,
                data_dir=data_dir,
                cache_dir=results / "cache",
                images=images,
                measure_latency=latency,
            ),
            progress,
        )
    if json:
        print_json(
            {
                "bundle": str(bundle),
                "is_whole": found.is_whole,
                "checks": [check._asdict() for check in found.checks],
                "unknown_files": list(found.unknown_files),
                "environment": observe_environment(describe_kernels()).model_dump(mode="json"),
            }
        )
    else:
        rows = [[check.name, check.status, check.detail] for check in found.checks]
        print_table(str(bundle), ["check", "result", ""], rows, text_columns=3)
        if found.unknown_files:
            messages.print(
                f"note: not of the bundle, and not looked at: {', '.join(found.unknown_files)}", markup=False
            )
        failed = sum(check.status == "failed" for check in found.checks)
        skipped = sum(check.status == "not checked" for check in found.checks)
        verdict = f"{failed} of {len(found.checks)} checks failed" if failed else "no check failed"
        console.print(f"{verdict}, {skipped} could not be made here")
    if not found.is_whole:
        raise typer.Exit(1)

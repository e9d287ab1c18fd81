"""The application and its commands. Heavy imports happen inside the commands, so that `--help` stays fast."""

from collections.abc import Callable

import typer

from harness.cli import (
    bench,
    bench_overhead,
    calibrate,
    compare,
    compress,
    evaluate,
    export,
    profile,
    quantise,
    replay,
    report,
    search,
    status,
    train,
    upscale,
    verify,
    worker,
)

app = typer.Typer(
    name="harness",
    help="Pareto searches over super-resolution networks (CAMixerSR), measured against SwinIR-light.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # "rich" would take "[default: …]" in a help text for a style, and leave it out
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "search": search.search,
    "worker": worker.worker,
    "status": status.status,
    "replay": replay.replay,
    "report": report.report,
    "compare": compare.compare,
    "export": export.export,
    "verify": verify.verify,
    "upscale": upscale.upscale,
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "calibrate": calibrate.calibrate,
    "compress": compress.compress,
    "profile": profile.profile,
    "quantise": quantise.quantise,
}
for name, command in _COMMANDS.items():
    app.command(name, cls=profile.ProfileCommand if name == "profile" else None)(command)
bench.app.command("overhead")(bench_overhead.overhead)
app.add_typer(bench.app)

"""The command line: one file per command, and the only place that reads environment variables or prints."""

import os
import sys
from pathlib import Path
from typing import Any

import typer

from harness.cli.app import app
from harness.cli.output import INTERRUPTED
from harness.core import device_lock
from harness.core.errors import UserError, explain_unmapped, is_out_of_memory
from harness.core.urls import SHOWN, without_credentials

_UsageError: Any = typer.BadParameter.__mro__[2]  # click's own; typer carries click inside or needs it, by version


def main() -> None:
    """Run the `harness` command: exit code 0, 1 for our own failures, 2 with one line for a user's mistake."""
    if locks := os.environ.get("HARNESS_LOCKS"):
        device_lock.lock_dir = Path(locks).resolve()
    device_lock.announce = lambda text: print(f"note: {text}", file=sys.stderr, flush=True)
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="harness", standalone_mode=False)
    except UserError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if is_out_of_memory(error):
            _refuse("out of memory; what was written before is whole, and the same command goes on where there is more")
        if unmapped := explain_unmapped(error):  # PyTorch's or NumPy's
            _refuse(unmapped)
        if isinstance(error, OSError) and error.filename is not None:  # about a file that the user named
            _refuse(f"{error.filename}: {error.strerror}")
        if isinstance(error, _UsageError):
            _refuse(f"{error.format_message()} (`harness COMMAND --help` says more)")
        raise
    if code == INTERRUPTED:  # which typer makes of Ctrl-C without a word
        print("harness: interrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> None:
    print(f"harness: error: {without_credentials(' '.join(message.split()), SHOWN)}", file=sys.stderr)
    sys.exit(2)

"""The command line: one file per command, and the only place that reads environment variables or prints."""

import sys

from harness.cli.app import app
from harness.core.errors import UserError


def main() -> None:
    """Run the `harness` command: exit code 0, 1 for our own failures, 2 with one line for a user's mistake."""
    try:
        app()
    except UserError as error:
        print(f"harness: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("harness: interrupted", file=sys.stderr)
        sys.exit(130)

"""What the command line put over a search space, as lines under the space's text in a study's record."""

import ast
from collections.abc import Mapping
from typing import Any

_MARK = "# on the command line: "


def write_given(overrides: Mapping[str, Any]) -> str:
    """Write settings by dotted key (`budget.networks`, `data.train`), a line each; `read_given` is the other way."""
    return "".join(f"{_MARK}{key}: {value}\n" for key, value in overrides.items())


def read_given(space_text: str) -> dict[str, Any]:
    """Return the settings by key that a study's text of its space names; what is no Python value is text."""
    given: dict[str, Any] = {}
    for line in space_text.splitlines():
        if line.startswith(_MARK):
            key, _, text = line.removeprefix(_MARK).partition(": ")
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                value = text
            is_place = key.startswith("data.") and value is not None  # a folder may be called 2024
            given[key] = text if is_place else value
    return given

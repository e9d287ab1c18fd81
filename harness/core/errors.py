"""Errors that are the user's to mend, as one clear line, apart from errors that are ours."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

_NO_MEMORY = (
    "cannot allocate memory",
    "can't allocate memory",
    "can't start new thread",
    "could not create a primitive",
    "out of memory",
)
_LONGEST_INPUT = 100  # characters of a value that an error quotes
_LONGEST_REASON = 160  # characters of somebody else's error message that ours quotes


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what, got, expected and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


class OutageError(UserError):
    """What no trial is to blame for and the next one would meet as well: a full disk, images that are gone.

    It ends a search; nothing is lost by it, and the same command goes on once it is mended.
    """


class TrialFailedError(RuntimeError):
    """A trial that cannot go on for a reason worth recording (for example a loss that is not finite)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was made of, says that there was too little memory.

    PyTorch says so by a RuntimeError; oneDNN says no more than that it could not create what it needs.
    """
    found: BaseException | None = error
    while found is not None:
        text = str(found).lower()
        if isinstance(found, MemoryError) or any(sign in text for sign in _NO_MEMORY):
            return True
        found = found.__cause__ or found.__context__
    return False


def explain_unmapped(error: BaseException, *, is_noexec: bool = False) -> str | None:
    """Say in one line why a compiled library was not mapped into memory; None for an error that says something else.

    The C library's loader says the same where there is too little memory and where the library may not be run:
    `is_noexec` where that is known.
    """
    found = re.search(r"(\S+): failed to map segment", str(error))
    if found is None:
        return None
    may_not_run = "it lies on a file system mounted noexec, from which no program may be run"
    causes = may_not_run if is_noexec else f"there is too little memory, or {may_not_run}"
    remedy = "install where programs may be run" + ("" if is_noexec else ", or give more memory")
    return f"{found[1]} cannot be loaded: {causes}; {remedy}"


def unknown_name(what: str, got: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a registry, listing the known names."""
    return UserError(f"unknown {what} {got!r}; expected one of: {', '.join(sorted(known))}")


def describe_validation_error(error: ValidationError) -> str:
    """Put every finding of a pydantic error on one line: place, what is wrong, what was given."""
    return "; ".join(describe_finding(finding) for finding in error.errors())


def describe_finding(finding: Any) -> str:
    """Put one pydantic finding on one line."""
    place = ".".join(str(part) for part in finding["loc"]) or "value"
    message = str(finding["msg"]).removeprefix("Value error, ")
    if finding["type"] == "extra_forbidden":
        return f"{place}: unknown key"
    if finding["type"] == "missing":
        return f"{place}: required key is missing"
    if finding["type"] in ("json_invalid", "value_error"):  # the input is the whole file; the message quotes it already
        return f"{place}: {message}"
    got = repr(finding["input"])
    return f"{place}: {message} (got {got if len(got) <= _LONGEST_INPUT else got[:_LONGEST_INPUT] + '…'})"


def describe_error(error: BaseException) -> str:
    """Put somebody else's error on one line: its type and the first line of its message, cut where it is long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = ": ".join([type(error).__name__, *lines[:1]])
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"

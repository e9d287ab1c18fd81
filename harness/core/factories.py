"""Functions that users name, `MODULE:FUNCTION` or `FILE.py:FUNCTION`: where they stand, and which code it is."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

from harness.core.configs import AnyModelConfig, CustomConfig
from harness.core.errors import UserError


class FactoryPlace(NamedTuple):
    """Where a function is: `attribute` of the file `path` (absolute), or of the module `module`.

    `import_from`: the folder that imports begin in, as for a script: the file's, or the working directory.
    """

    attribute: str
    path: Path | None
    module: str | None
    import_from: Path


def find_factory(text: str) -> FactoryPlace:
    """Return where `MODULE:FUNCTION` or `FILE.py:FUNCTION` is; `UserError` where there is no such file."""
    place, _, attribute = text.rpartition(":")
    if not (place.endswith(".py") or "/" in place):
        return FactoryPlace(attribute, None, place, Path.cwd())
    path = Path(place)
    if not path.is_file():
        raise UserError(f"{place} not found; expected a Python file with {attribute!r}, a function or class")
    return FactoryPlace(attribute, path.resolve(), None, path.resolve().parent)


def find_code(text: str) -> str:
    """Return the first 12 hex digits of the SHA-256 of the file that a factory stands in; nothing of it is run.

    Files that it imports are not read. `UserError` where there is none.
    """
    place = find_factory(text)
    path = place.path
    if place.module is not None:
        let_import_from(place.import_from)
        try:
            found = importlib.util.find_spec(place.module)
        except (ImportError, ValueError):
            found = None
        if found is None or found.origin is None or not Path(found.origin).is_file():
            raise UserError(
                f"{text}: no module named {place.module!r}, here or among the installed; "
                "expected MODULE:FUNCTION or FILE.py:FUNCTION"
            )
        path = Path(found.origin)
    assert path is not None
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def let_import_from(folder: Path) -> None:
    """Let modules of a folder be imported, as for a script there, now and by what is imported later."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def with_code(config: AnyModelConfig) -> AnyModelConfig:
    """Return a config with the hash of its code, where it is that of a network of a user's; `UserError` as above."""
    if not isinstance(config, CustomConfig) or config.code is not None:
        return config
    return config.model_copy(update={"code": find_code(config.factory)})

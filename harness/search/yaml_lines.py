"""YAML with the line of every key, so that an error can point at it."""

from pathlib import Path
from typing import Any

import yaml

from harness.core.errors import UserError

KeyPath = tuple[str | int, ...]


class LocatedYaml:
    """A parsed YAML mapping, the line (from 1) of each of its keys and items, and what the command line put over it."""

    def __init__(self, source: str, values: dict[str, Any], lines: dict[KeyPath, int]):
        self.source = source
        self.values = values
        self.lines = lines
        self.overridden: list[KeyPath] = []

    def override(self, path: KeyPath) -> None:
        """Remember that what stands at `path` was given on the command line."""
        self.overridden.append(path)

    def error(self, path: KeyPath, message: str) -> UserError:
        """Build the error for what stands at `path`, or at the nearest parent that stands in the file."""
        nearest = path
        while nearest and nearest not in self.lines:
            nearest = nearest[:-1]
        place = f"{self.source}:{self.lines[nearest]}" if nearest else self.source
        if any(path[: len(given)] == given for given in self.overridden):
            place = "command line"
        name = ".".join(str(part) for part in path)
        return UserError(f"{place}: {name}: {message}" if name else f"{place}: {message}")


def parse_yaml(text: str, source: str) -> LocatedYaml:
    """Parse a YAML document whose top level is a mapping; a key that stands twice is refused."""
    lines: dict[KeyPath, int] = {}
    loader = yaml.SafeLoader(text)

    def convert(node: yaml.Node, path: KeyPath) -> Any:
        lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            mapping: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = loader.construct_object(key_node, deep=True)
                line = key_node.start_mark.line + 1
                if not isinstance(key, str):
                    raise UserError(f"{source}:{line}: key {key!r}: expected text")
                if key in mapping:
                    raise UserError(f"{source}:{line}: key {key!r} stands twice in the same mapping")
                mapping[key] = convert(value_node, (*path, key))
                lines[(*path, key)] = line
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [convert(item, (*path, index)) for index, item in enumerate(node.value)]
        return loader.construct_object(node, deep=True)

    try:
        node = loader.get_single_node()
        values = convert(node, ()) if node is not None else None
    except RecursionError:
        raise UserError(f"{source}: an alias stands inside its own anchor") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark is not None else source
        raise UserError(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected a mapping of settings at the top level, got {type(values).__name__}")
    return LocatedYaml(source, values, lines)


def read_yaml(path: Path) -> LocatedYaml:
    """Read and parse a YAML file."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None

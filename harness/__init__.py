"""A compression and architecture-search benchmarking harness for super-resolution networks.

`load_bundle(path)` rebuilds an exported network. Everything else lives in the packages; `harness --help` lists the
commands.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.export import load_bundle

__all__ = ["load_bundle"]


def __getattr__(name: str) -> Any:  # `import harness` stays fast: torch comes with the first use
    if name == "load_bundle":
        from harness.export import load_bundle

        return load_bundle
    raise AttributeError(f"module 'harness' has no attribute {name!r}")

"""What of our own runs faster than torch's operators do."""

from harness.models import kernels


def describe_kernels() -> str | None:
    """Return which native kernels run on this CPU (such as "v4, clang 22.1.8"), None where none do."""
    loaded = kernels.load()
    return None if loaded is None else f"{loaded.variant}, {loaded.compiler}"

"""Which sources a library was compiled from. The build hook runs this file by itself: standard library only."""

import hashlib
from pathlib import Path


def digest(folder: Path) -> str:
    """Return the SHA-256 of the C++ sources in a folder, names and contents."""
    seen = hashlib.sha256()
    for path in sorted([*folder.glob("*.cpp"), *folder.glob("*.h")], key=lambda path: path.name):
        content = path.read_bytes()
        seen.update(f"{path.name} {len(content)}\n".encode() + content)
    return seen.hexdigest()

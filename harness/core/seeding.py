"""Seeds derived by name, so that no two uses share a stream and no global seed is touched."""

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from `seed` and the names of its use (SHA-256 of the joined parts)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

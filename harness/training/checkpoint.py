"""Checkpoints: everything that the rest of a run depends on, written in one step."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from harness.core.errors import UserError
from harness.core.files import atomic_path

_VERSION = 2  # 1 had no digest
_DIGEST_BYTES = 32


class DamagedCheckpointError(UserError):
    """A checkpoint that cannot be read."""


def save_checkpoint(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain Python values) atomically; `identity` names the run that it belongs to.

    The SHA-256 of all that comes before ends the file.
    """
    content = io.BytesIO()  # PyTorch's own writer of files does not say why it cannot write one
    torch.save({"version": _VERSION, "identity": identity, **state}, content)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.write(hashlib.sha256(content.getbuffer()).digest())


def load_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    """Read a checkpoint of the same run; None where there is none.

    Nothing is unpickled but tensors and plain values. `UserError` for a file of another run or another version,
    `DamagedCheckpointError` for one that makes no sense.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    is_whole = hashlib.sha256(body).digest() == digest
    try:
        state = torch.load(io.BytesIO(body if is_whole else content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"expected a dictionary, got {type(state).__name__}")
        if not is_whole and state.get("version") != 1:
            raise ValueError("its bytes are not those that were written")
    except MemoryError:
        raise
    except Exception as error:
        raise DamagedCheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); delete it to start again"
        ) from error
    if state.get("version") not in (1, _VERSION) or state.get("identity") != identity:
        raise UserError(
            f"checkpoint {path} is of run {state.get('identity')!r} (version {state.get('version')}), expected "
            f"{identity!r} (version {_VERSION}); delete it to start again"
        )
    return state

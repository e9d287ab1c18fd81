"""Checkpoints: everything that the rest of a run depends on, written in one step."""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import torch

from harness.core.checkpoints import Checkpoint
from harness.core.errors import UserError

_VERSION = 2  # 1 had no digest
_DIGEST_BYTES = 32


class DamagedCheckpointError(UserError):
    """A checkpoint that cannot be read."""


def save_checkpoint(
    checkpoint: Checkpoint, identity: str, state: dict[str, Any], should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Write `state` (tensors and plain Python values) in one step; `identity` names the run that it belongs to.

    The SHA-256 of all that comes before ends it.
    """
    content = io.BytesIO()  # PyTorch's own writer of files does not say why it cannot write one
    torch.save({"version": _VERSION, "identity": identity, **state}, content)
    content.write(hashlib.sha256(content.getbuffer()).digest())
    checkpoint.write(content.getbuffer(), should_stop)


def load_checkpoint(checkpoint: Checkpoint, identity: str) -> dict[str, Any] | None:
    """Read a checkpoint of the same run; None where there is none.

    Nothing is unpickled but tensors and plain values. `UserError` for one of another run or another version,
    `DamagedCheckpointError` for one that makes no sense.
    """
    content = checkpoint.read()
    if content is None:
        return None
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
            f"checkpoint {checkpoint} cannot be read ({type(error).__name__}); delete it to start again"
        ) from error
    if state.get("version") not in (1, _VERSION) or state.get("identity") != identity:
        raise UserError(
            f"checkpoint {checkpoint} is of run {state.get('identity')!r} (version {state.get('version')}), expected "
            f"{identity!r} (version {_VERSION}); delete it to start again"
        )
    return state

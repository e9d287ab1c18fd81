"""The conditions of a latency, named in text: device, runtime, precision, size.

`cpu:1` is eager, fp32 and the size of the space; `cpu:2/bf16`, `cpu:1/onnxruntime`, `cuda:0/compile/fp16/180x320` say
more. The order of what follows the device does not matter.
"""

import functools
import re
from typing import Literal, NamedTuple, get_args

from harness.core.configs import Precision
from harness.core.errors import UserError

Runtime = Literal["eager", "compile", "onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_DEVICE = re.compile(r"cpu(:[1-9]\d*)?|cuda(:\d+)?|mps")
_SIZE = re.compile(r"(\d+)x(\d+)")
_WHOLE = {"cpu": "cpu:1", "cuda": "cuda:0"}


class Conditions(NamedTuple):
    """Where and how a latency is measured; `input_size` is low-resolution (height, width), None the default one."""

    device: str
    runtime: Runtime = "eager"
    precision: Precision = "fp32"
    input_size: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        """The canonical text: the device, and what is not the default."""
        parts = [self.device]
        parts += [] if self.runtime == "eager" else [self.runtime]
        parts += [] if self.precision == "fp32" else [self.precision]
        parts += [] if self.input_size is None else ["{}x{}".format(*self.input_size)]
        return "/".join(parts)


def parse_size(text: str) -> tuple[int, int]:
    """Read `HEIGHTxWIDTH` in pixels, such as 180x320; `UserError` for anything else."""
    found = _SIZE.fullmatch(text.strip())
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(size) < 1:
        raise UserError(f"size {text!r}: expected HEIGHTxWIDTH of at least 1x1, for example 180x320")
    return size


@functools.lru_cache(maxsize=256)
def parse_conditions(text: str) -> Conditions:
    """Read conditions; whether the device is there shows when it is used. `UserError` names the part that is wrong."""
    device, *rest = text.split("/")
    if not _DEVICE.fullmatch(device):
        raise UserError(f"unknown device {device!r}; expected cpu:THREADS, cuda:INDEX or mps, for example cpu:1")
    found = Conditions(_WHOLE.get(device, device))
    given: set[str] = set()
    for part in rest:
        changed: dict[str, object]
        if part in RUNTIMES:
            changed = {"runtime": part}
        elif part in PRECISIONS:
            changed = {"precision": part}
        elif _SIZE.fullmatch(part):
            changed = {"input_size": parse_size(part)}
        else:
            raise UserError(
                f"{text!r}: unknown condition {part!r}; expected a runtime ({', '.join(RUNTIMES)}), a precision "
                f"({', '.join(PRECISIONS)}) or a size such as 64x64"
            )
        if given & set(changed):
            raise UserError(f"{text!r}: {next(iter(changed)).replace('_', ' ')} is given twice")
        given |= set(changed)
        found = found._replace(**changed)  # type: ignore[arg-type]
    return found

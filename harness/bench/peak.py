"""What the machine can do at best: the rate of a plain matrix product, the peak that shares are taken of."""

from collections.abc import Mapping, Sequence

import torch

from harness.bench.rounds import Contestant, Times
from harness.core.configs import FrozenConfig
from harness.profiling import Device

PEAK_SIDES = (512, 1024, 2048)  # of square matrices on a CPU: what fits into caches is not always fastest
_CUDA_SIDES = (2048, 4096, 8192)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Peak(FrozenConfig):
    """The best rate of torch.mm in one dtype, in GFLOP/s (two for each multiply-accumulate), and at which side."""

    dtype: str
    gflops_per_s: float
    side: int
    best_by_side: dict[int, float]


def products(device: Device, sides: Sequence[int] | None = None) -> list[Contestant]:
    """Return the matrix products to time beside everything else."""
    if sides is None:
        sides = _CUDA_SIDES if device.torch_device.type == "cuda" else PEAK_SIDES
    return [_product(name, dtype, side, device) for name, dtype in _DTYPES.items() for side in sides]


def _product(name: str, dtype: torch.dtype, side: int, device: Device) -> Contestant:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.rand(side, side, generator=generator).to(device.torch_device, dtype) for _ in range(2))
    output = torch.empty_like(left)
    return Contestant(f"mm {name} {side}", lambda: torch.mm(left, right, out=output))


def read_peaks(times: Mapping[str, Times]) -> dict[str, Peak]:
    """Return the best rate of each dtype: of all sizes, and of all runs of each."""
    peaks = {}
    for dtype in _DTYPES:
        rates = {}
        for name, measured in times.items():
            kind, _, rest = name.partition(" ")
            if kind == "mm" and rest.partition(" ")[0] == dtype:
                side = int(rest.partition(" ")[2])
                rates[side] = 2 * side**3 / measured.best_ms / 1e6
        side = max(rates, key=lambda key: rates[key])
        peaks[dtype] = Peak(dtype=dtype, gflops_per_s=rates[side], side=side, best_by_side=rates)
    return peaks

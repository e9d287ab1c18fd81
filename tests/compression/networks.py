"""A small network of each kind, exported once, and images to calibrate it on."""

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.compression import QuantisedGraph, prepare_graph
from harness.core.configs import CAMixerSRConfig
from harness.data import to_tensor
from harness.export import build_onnx
from harness.models import SRNetwork, build_seeded
from tests.tiny_pairs import tiny_pairs

TILE = 16
ROUTED = CAMixerSRConfig(channels=16, groups=(1,), window=8, scale=2, image_residual=True)
PAIRS = (("astronaut", 96, 96), ("chelsea", 80, 112), ("coffee", 48, 64), ("rocket", 40, 40))


class Exported(NamedTuple):
    """A network, its ONNX file and its graph."""

    network: SRNetwork
    file: Path
    graph: QuantisedGraph


def small_network() -> SRNetwork:
    """A small CAMixerSR, trained for a moment on four photographs: errors of rounding are losses, not chance."""
    network = build_seeded(ROUTED, seed=0).eval()
    network.load_state_dict(_trained_state())
    return network


@cache
def _trained_state() -> dict[str, Tensor]:
    network = build_seeded(ROUTED, seed=0).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    dataset = tiny_pairs(PAIRS, ROUTED.scale)
    inputs_BCHW = torch.cat([to_tensor(pair.lr_HWC[:TILE, :TILE]) for pair in dataset])
    targets_BCHW = torch.cat([to_tensor(pair.hr_HWC[: 2 * TILE, : 2 * TILE]) for pair in dataset])
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(network.restore(inputs_BCHW, generator=generator).image_BCHW, targets_BCHW)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.state_dict()


def export(folder: Path) -> Exported:
    """Export the small CAMixerSR."""
    network = small_network()
    file = folder / "float.onnx"
    file.write_bytes(build_onnx(network, size=(TILE, TILE), batch=1).SerializeToString())
    return Exported(network, file, prepare_graph(file))


def crops(count: int = 4) -> list[npt.NDArray[np.float32]]:
    """Crops of real photographs: 1×3×16×16 in [0, 1]."""
    dataset = tiny_pairs(PAIRS, ROUTED.scale)
    return [to_tensor(pair.lr_HWC[:TILE, :TILE]).numpy() for pair in dataset][:count]


def run(file: Path, image_BCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Run an ONNX file by onnxruntime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    output: npt.NDArray[np.float32] = session.run(None, {"image": image_BCHW})[0]
    return output


def likeness_db(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """PSNR between two outputs, by the range of the first."""
    return 20 * math.log10(float(np.ptp(a))) - 10 * math.log10(float(np.mean((a - b) ** 2)) + 1e-20)


def weight_of(model: Any, node: Any) -> Any:
    """The constant that a layer's weight is, or is made of."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: entry for entry in model.graph.node for name in entry.output}
    name = node.input[1]
    while name not in constants:
        name = producers[name].input[0]
    return constants[name]

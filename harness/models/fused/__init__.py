"""Fused kernels on a CPU: the same networks and the same results, close to the machine's limit.

On a CPU the plain networks wait for memory: every elementwise step reads and writes whole feature maps. The kernels of
`harness/models/kernels` keep what lies between two products in the cache, and what attention leaves alone costs
nothing; their headers say how. Here maps are laid out, the windows of each block are picked, and the kernels called.

All that the kernels derive of a network's parameters is derived in each pass; nothing is stored. `restore` of a network
takes this path at inference where `suits` allows it; the plain one serves training, other devices, tracing, counting,
networks with hooks and those with modules that are not torch's own in place of its layers. The maps of the last pass
are kept for the next, up to 256 MiB of them.

Where `trains` allows it, training of a CAMixerSR in float32 runs its linear layers and its depthwise convolutions, with
what lies between them, by kernels that have a backward pass (training.py); all else runs by torch's operators.
"""

from harness.models.fused.camixersr import restore_camixersr
from harness.models.fused.maps import suits, trains
from harness.models.fused.swinir import restore_swinir
from harness.models.fused.training import convolve_gated, convolve_mixed, project

__all__ = ["convolve_gated", "convolve_mixed", "project", "restore_camixersr", "restore_swinir", "suits", "trains"]

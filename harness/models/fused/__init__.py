"""Inference on a CPU by fused kernels: the same networks and the same results, close to the machine's limit.

On a CPU the plain networks wait for memory: every elementwise step reads and writes whole feature maps. The kernels of
`harness/models/kernels` keep what lies between two products in the cache, and what attention leaves alone costs
nothing; their headers say how. Here maps are laid out, the windows of each block are picked, and the kernels called.

All that the kernels derive of a network's parameters is derived in each pass; nothing is stored. `restore` of a network
takes this path where `suits` allows it; the plain one serves training, other devices, tracing, counting and networks
with hooks. Modules are read, not called: one that is put in another's place counts by its parameters alone. The maps of
the last pass are kept for the next, up to 256 MiB of them.
"""

from harness.models.fused.camixersr import restore_camixersr
from harness.models.fused.maps import suits
from harness.models.fused.swinir import restore_swinir

__all__ = ["restore_camixersr", "restore_swinir", "suits"]

"""Smaller and cheaper networks out of trained ones."""

from harness.compression.quantisation import (
    QuantisedGraph,
    calibrate_ranges,
    choose_layers,
    import_quantiser,
    prepare_graph,
    quantisable_layers,
    quantise_graph,
    round_graph,
)

__all__ = [
    "QuantisedGraph",
    "calibrate_ranges",
    "choose_layers",
    "import_quantiser",
    "prepare_graph",
    "quantisable_layers",
    "quantise_graph",
    "round_graph",
]

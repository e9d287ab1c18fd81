"""Post-training quantisation of ONNX graphs for export runtimes (the optional extra `onnx`).

A layer is a convolution or matrix product with constant weights (`Conv`, `MatMul`, `Gemm`), named by its module. It is
quantised by onnxruntime.quantization: weights to int8, symmetric, one scale for each output channel; activations to
uint8, one scale for each tensor. Static methods find the ranges of activations on calibration images and write
QuantizeLinear/DequantizeLinear pairs (QDQ), which onnxruntime and OpenVINO run as integer kernels; `dynamic` has the
runtime find them in each pass, for matrix products alone (convolutions have no such kernel for weights per channel).
Results of matrix products are not rounded again: a bias or a residual is added to them in float. Depthwise
convolutions, which hold few weights and have slower kernels in integers, products of two activations
(attention), norms and all else stay in float.

Routing stays in float: a layer from which the output is reached through decisions alone (top-K, comparisons, indices)
is never quantised, nor converted to 16 bits. The features that it reads come from layers that may be.

Which other layers stay in float is found by measurement, see `choose_layers`.

Shape suffixes: B images, C channels, H W sides in pixels.
"""

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.core.configs import STATIC, QuantisationMethod
from harness.core.device_lock import computing
from harness.core.errors import UserError, describe_error
from harness.core.quantisation import ChoiceRecord, SensitivityRecord

FloatArray = npt.NDArray[np.float32]
Score = Callable[[frozenset[str]], float]  # PSNR (dB) of the graph with these layers quantised

_LAYER_TYPES = ("Conv", "MatMul", "Gemm")
_PRODUCT_TYPES = ("MatMul", "Gemm")
_DYNAMIC_TYPES = ("MatMul",)  # what has kernels for ranges that are found in each pass
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_NO_LAYER = "constant."  # how the names of what is no weight of a module begin, coordinates of corners for one
_WEIGHT = 1  # which input of a layer is its weight
# Operators that decide rather than compute: nothing but which, how many and where is left of their inputs.
_DECISIONS = frozenset(
    {
        "TopK",
        "ArgMax",
        "ArgMin",
        "NonZero",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Equal",
        "Shape",
        "Size",
    }
)
_MOST_PARTS = 64  # that are measured one by one: minutes, not hours
_PERCENTILE_BINS = 2048
_ENTROPY_BINS, _ENTROPY_LEVELS = 256, 128


@dataclass(frozen=True)
class QuantisedGraph:
    """A float graph that is ready to be quantised.

    `model`: the `onnx.ModelProto` with its constants folded and its shapes inferred. `layers` maps names of layers to
    nodes, in the graph's order, `routing` those that only decisions depend on; `decisive` are all nodes of that kind.
    """

    model: Any
    layers: Mapping[str, str]
    routing: Mapping[str, str]
    decisive: frozenset[str]


def import_quantiser() -> tuple[Any, Any]:
    """Return the modules `onnx` and `onnxruntime`; `UserError` with the command that installs them where one misses."""
    try:
        import onnx
        import onnxruntime
        import onnxruntime.quantization
    except ImportError:
        raise UserError(
            "quantisation needs onnx and onnxruntime, which are not installed: pip install 'harness[onnx]'"
        ) from None
    return onnx, onnxruntime


def make_session(
    model: Any, threads: int, *, level: str | None = None, save_to: Path | None = None, without: Sequence[str] = ()
) -> Any:
    """Return a session of onnxruntime on the CPU for a file or a model in memory; `threads` are those in operators.

    `level`: `all` (by default), `basic` or `none` of its graph optimisations; `save_to` keeps the optimised graph.
    """
    _, onnxruntime = import_quantiser()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors come as exceptions
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = {
        "basic": levels.ORT_ENABLE_BASIC,
        "none": levels.ORT_DISABLE_ALL,
    }.get(level or "all", levels.ORT_ENABLE_ALL)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
    )


def prepare_graph(source: Path, *, threads: int = 1) -> QuantisedGraph:
    """Read an ONNX file, name its layers, fold its constants and infer its shapes.

    Weights that an exporter transposes would otherwise not be known as constants, and be quantised as activations.
    Raises `UserError` where the file cannot be read or has no layer.
    """
    onnx, _ = import_quantiser()
    from onnx import inliner, shape_inference

    try:
        with computing(), tempfile.TemporaryDirectory() as folder:
            model = inliner.inline_local_functions(onnx.load(source))
            _name_nodes(model.graph)
            folded = Path(folder) / "folded.onnx"
            make_session(model, threads, level="basic", save_to=folded, without=("MatMulAddFusion",))
            model = shape_inference.infer_shapes(onnx.load(folded), data_prop=True)
    except Exception as error:  # whatever is wrong with a file
        raise UserError(f"{source} cannot be prepared for quantisation ({describe_error(error)})") from None
    _mark_as_inferred(model)
    needed, decisive = _find_decisive(model.graph)
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    constants = {tensor.name: tensor for tensor in floats}
    layers: dict[str, str] = {}
    routing: dict[str, str] = {}
    for node in model.graph.node:
        if node.name.startswith(_NO_LAYER):
            continue
        if node.op_type in _LAYER_TYPES and node.input[_WEIGHT] in constants and not _is_depthwise(node, constants):
            name = _unique(node.name.partition("/")[0], {*layers, *routing})
            (layers if node.name in needed else routing)[name] = node.name
    if not layers:
        raise UserError(f"{source} has no layer to quantise: no convolution or matrix product with constant weights")
    return QuantisedGraph(model, layers, routing, decisive)


def _name_nodes(graph: Any) -> None:
    """Name layers by the module that their weight is of, and whatever has no name by what it gives."""
    producers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        name = node.name or f"{node.op_type}_{node.output[0]}"
        if node.op_type in _LAYER_TYPES:
            found = _find_weight(node.input[_WEIGHT], producers, weights)
            name = name if found is None else found.removesuffix(".weight")
        node.name = _unique(name, taken)
        taken.add(node.name)


def _find_weight(name: str, producers: Mapping[str, Any], weights: Collection[str]) -> str | None:
    """Return the constant that a tensor is made of by one operator after the other; None where it is of an input."""
    while name not in weights:
        node = producers.get(name)
        if node is None or not node.input:
            return None
        name = node.input[0]
    return name


def _is_depthwise(node: Any, constants: Mapping[str, Any]) -> bool:
    """Whether a layer is a convolution in which each channel sees itself alone."""
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return node.op_type == "Conv" and groups > 1 and constants[node.input[_WEIGHT]].dims[1] == 1


def _unique(name: str, taken: Collection[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}#{number}"
    return candidate


def _find_decisive(graph: Any) -> tuple[set[str], frozenset[str]]:
    """Return the nodes that values of the output are computed from, and those that only decisions depend on."""
    wanted = {entry.name for entry in graph.output}
    needed: set[str] = set()
    for node in reversed(graph.node):  # in topological order, as ONNX wants them
        if wanted.isdisjoint(node.output):
            continue
        needed.add(node.name)
        if node.op_type not in _DECISIONS:
            wanted.update(node.input)
    return needed, frozenset(node.name for node in graph.node if node.name not in needed)


def _mark_as_inferred(model: Any) -> None:
    """Tell onnxruntime.quantization that shapes are known, or it infers them again for every graph."""
    entry = model.metadata_props.add()
    entry.key, entry.value = "onnx.infer", "onnxruntime.quant"


class _OneImage:
    """What a calibrator reads: one image, then nothing."""

    def __init__(self, name: str, image_BCHW: FloatArray):
        self._left = [{name: image_BCHW}]

    def get_next(self) -> dict[str, FloatArray] | None:
        return self._left.pop() if self._left else None


def quantisable_layers(graph: QuantisedGraph, method: QuantisationMethod) -> tuple[str, ...]:
    """Return the layers that an int8 method can quantise, in the graph's order."""
    types = _DYNAMIC_TYPES if method == "dynamic" else _LAYER_TYPES
    nodes = {node.name: node for node in graph.model.graph.node}
    return tuple(name for name, node in graph.layers.items() if nodes[node].op_type in types)


def calibrate_ranges(
    graph: QuantisedGraph,
    images: Sequence[FloatArray],
    method: QuantisationMethod,
    *,
    percentile: float = 99.999,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Return the ranges of the tensors that static quantisation rounds, found on images (each B×C×H×W in [0, 1]).

    `minmax`: the least and the greatest value. `percentile`: the ends of a histogram (2,048 bins of the first image's
    range) without what lies beyond; `entropy`: those of least Kullback-Leibler divergence (256 bins). One image is
    looked at after the other, so that the memory is that of the activations of one, however many there are.
    """
    assert method in STATIC, "only static methods have ranges"
    onnx, _ = import_quantiser()
    from onnxruntime.quantization.calibrate import EntropyCalibrater, MinMaxCalibrater, PercentileCalibrater

    with tempfile.TemporaryDirectory() as folder:
        source, augmented = Path(folder) / "graph.onnx", Path(folder) / "augmented.onnx"
        with computing(), _quiet():
            onnx.save(graph.model, source)
            if method == "minmax":
                calibrator = MinMaxCalibrater(source, _LAYER_TYPES, str(augmented))
            elif method == "percentile":
                calibrator = PercentileCalibrater(
                    source, _LAYER_TYPES, str(augmented), num_bins=_PERCENTILE_BINS, percentile=percentile
                )
            else:
                calibrator = EntropyCalibrater(
                    source,
                    _LAYER_TYPES,
                    str(augmented),
                    num_bins=_ENTROPY_BINS,
                    num_quantized_bins=_ENTROPY_LEVELS,
                )
            chosen, shapes = calibrator.select_tensors_to_calibrate(calibrator.model)
            rounded = chosen & _rounded_tensors(graph)
            calibrator.select_tensors_to_calibrate = lambda _model: (rounded, shapes)
            calibrator.augment_graph()
            # Not `create_inference_session`, which takes every core of the machine.
            calibrator.infer_session = make_session(augmented, threads, level="none")
        name = graph.model.graph.input[0].name
        for done, image_BCHW in enumerate(images, start=1):
            with computing(), _quiet():
                calibrator.collect_data(_OneImage(name, image_BCHW))
            if progress is not None:
                progress(done, len(images))
        with computing(), _quiet():
            return calibrator.compute_data()


def round_graph(graph: QuantisedGraph, ranges: Any) -> Any:
    """Return the graph with all of its layers quantised by `ranges`: what `quantise_graph` takes layers from."""
    onnx, _ = import_quantiser()
    from onnxruntime.quantization import QDQQuantizer, QuantType

    with computing(), _quiet():
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        quantiser = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=list(graph.layers.values()),
            nodes_to_exclude=[],
            op_types_to_quantize=list(_LAYER_TYPES),
            extra_options={"OpTypesToExcludeOutputQuantization": list(_PRODUCT_TYPES)},
        )
        return quantiser.quantize_model()


def _take_layers(graph: QuantisedGraph, rounded: Any, chosen: Collection[str]) -> Any:
    """Return the graph with the `chosen` nodes as they are in `rounded`, and all others as they were.

    Only what a quantised layer reads is rounded, and what a quantised convolution gives; whatever else reads the same
    tensor, a residual for one, reads it unrounded. (onnxruntime.quantization gives everybody the rounded one.)
    """
    onnx, _ = import_quantiser()
    versions = {node.name: node for node in rounded.graph.node}
    pairs = {node.output[0]: node for node in rounded.graph.node if node.op_type in _PAIR}
    rounders = {node.input[0]: node for node in pairs.values() if node.op_type == "QuantizeLinear"}
    readers = {node.input[0]: node for node in pairs.values() if node.op_type == "DequantizeLinear"}
    nodes: list[Any] = []
    placed: set[str] = set()
    renamed: dict[str, str] = {}

    def place(node: Any) -> None:
        for name in node.input:
            if name in pairs and name not in placed:
                placed.add(name)
                place(pairs[name])
        nodes.append(node)

    for original in graph.model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(versions[original.name] if original.name in chosen else original)
        if original.name not in chosen:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        elif original.op_type == "Conv":
            renamed[original.output[0]] = readers[rounders[node.output[0]].output[0]].output[0]
        place(node)
    for entry in graph.model.graph.output:  # one that is a convolution's own is given by its pair
        place(onnx.NodeProto(input=[renamed.get(entry.name, entry.name)]))
    nodes = [node for node in nodes if node.op_type]
    return _replace_nodes(rounded, graph.model, nodes)


def _replace_nodes(model: Any, also: Any, nodes: Sequence[Any]) -> Any:
    """Return `model` with these nodes, and of its constants and those of `also` what they read."""
    onnx, _ = import_quantiser()
    constants = {tensor.name: tensor for source in (also, model) for tensor in source.graph.initializer}
    made = {name for node in nodes for name in node.output}  # a rounded bias has the name of the float one
    read = {name for node in nodes for name in node.input} - made
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(tensor for name, tensor in constants.items() if name in read)
    return result


def _rounded_tensors(graph: QuantisedGraph) -> set[str]:
    """Return the tensors that are rounded where every layer is quantised."""
    nodes = {node.name: node for node in graph.model.graph.node}
    chosen = [nodes[name] for name in graph.layers.values()]
    return {node.input[0] for node in chosen} | {node.output[0] for node in chosen if node.op_type == "Conv"}


def quantise_graph(
    graph: QuantisedGraph,
    target: Path,
    method: QuantisationMethod,
    *,
    layers: Collection[str] | None = None,
    rounded: Any = None,
) -> None:
    """Write the graph to `target` as the method says: of int8 with these `layers` quantised (None: all of them).

    `rounded`: of `round_graph`, for static methods. `fp16` converts all but routing, and keeps input and
    output in float32; `bf16`, which is the runtime's own, leaves the graph in float.
    """
    onnx, _ = import_quantiser()
    chosen = [node for name, node in graph.layers.items() if layers is None or name in layers]
    with computing(), _quiet():
        model = graph.model
        if method in STATIC and chosen:
            assert rounded is not None, "static methods need the rounded graph"
            model = _take_layers(graph, rounded, set(chosen))
        elif method == "dynamic" and chosen:
            model = onnx.ModelProto()
            model.CopyFrom(graph.model)
            _quantise_dynamically(model, chosen, target)
            return
        elif method == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            model = onnx.ModelProto()
            model.CopyFrom(graph.model)
            model = convert_float_to_float16(
                model, keep_io_types=True, disable_shape_infer=True, node_block_list=sorted(graph.decisive)
            )
        onnx.save(model, target)


def _quantise_dynamically(model: Any, nodes: list[str], target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        model,
        target,
        op_types_to_quantize=list(_DYNAMIC_TYPES),
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=nodes,
        extra_options={"MatMulConstBOnly": True},
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what onnxruntime.quantization prints and logs to itself: what matters is an error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def group_layers(layers: Sequence[str], most: int = _MOST_PARTS) -> dict[str, tuple[str, ...]]:
    """Divide layers into parts: modules as deep in the tree of names as gives no more than `most`."""
    depth = 1 + max(name.count(".") for name in layers)
    while True:
        parts: dict[str, list[str]] = {}
        for name in layers:
            parts.setdefault(".".join(name.partition("#")[0].split(".")[:depth]), []).append(name)
        if len(parts) <= most or depth == 1:
            return {part: tuple(names) for part, names in parts.items()}
        depth -= 1


def choose_layers(
    layers: Sequence[str],
    score: Score,
    psnr_db_float: float,
    max_drop_db: float | None,
    *,
    routing: Collection[str] = (),
    most_parts: int = _MOST_PARTS,
) -> ChoiceRecord:
    """Find the layers that have to stay in float for the PSNR to fall by no more than `max_drop_db` (None: any).

    `score` gives the PSNR of the graph in the runtime with given layers quantised, `psnr_db_float` is that with none.
    With all layers quantised and the drop within the bound, that is all. Otherwise parts of the network (modules, at
    most `most_parts`) are quantised one at a time, and sorted by what that costs; as many as needed, the worst first,
    stay in float, found by halving: log₂ of their number evaluations. Then the same is done to the single layers of
    the parts that stayed in float, to give back those that need not. Some 50 to 130 evaluations; a drop that is not
    monotone in what stays in float may cost a few layers more than needed, and never the bound, which is measured.
    """
    search = _Search(frozenset(layers), score, psnr_db_float)
    everything = frozenset(layers)
    if max_drop_db is None or search.drop(everything) <= max_drop_db:
        return search.record(layers, frozenset(), routing, max_drop_db)
    parts = list(group_layers(layers, most_parts).items())
    kept = search.keep_worst(parts, max_drop_db)
    singles = [(name, (name,)) for name in layers if name in kept]
    if len(parts) < len(layers) and len(singles) <= 2 * most_parts:
        kept = search.keep_worst(singles, max_drop_db)
    return search.record(layers, kept, routing, max_drop_db)


class _Search:
    """Evaluations of one graph under different choices, none of them made twice."""

    def __init__(self, layers: frozenset[str], score: Score, psnr_db_float: float):
        self._layers = layers
        self._score = score
        self._float = psnr_db_float
        self._known: dict[frozenset[str], float] = {frozenset(): psnr_db_float}
        self._sensitivities: list[SensitivityRecord] = []

    def drop(self, quantised: frozenset[str]) -> float:
        if quantised not in self._known:
            self._known[quantised] = self._score(quantised)
        drop_db = self._float - self._known[quantised]
        return drop_db if math.isfinite(drop_db) else math.inf  # an output that is not finite

    def keep_worst(self, parts: Sequence[tuple[str, tuple[str, ...]]], max_drop_db: float) -> frozenset[str]:
        """Return the layers of the fewest parts, the worst alone first, that have to stay in float; all others do not.

        Keeping all parts in float is known to meet the bound, keeping none is known not to.
        """
        measured = [
            SensitivityRecord(name=name, layers=names, drop_db=self.drop(frozenset(names))) for name, names in parts
        ]
        self._sensitivities += [entry for entry in measured if entry not in self._sensitivities]
        worst = sorted(measured, key=lambda entry: -entry.drop_db)
        failing, meeting = 0, len(worst)
        while meeting - failing > 1:
            middle = (failing + meeting) // 2
            if self.drop(self._layers - _layers_of(worst[:middle])) <= max_drop_db:
                meeting = middle
            else:
                failing = middle
        return _layers_of(worst[:meeting])

    def record(
        self, layers: Sequence[str], kept: frozenset[str], routing: Collection[str], max_drop_db: float | None
    ) -> ChoiceRecord:
        quantised = self._layers - kept
        drop_db = self.drop(quantised)
        return ChoiceRecord(
            quantised=tuple(name for name in layers if name in quantised),
            kept=tuple(name for name in layers if name in kept),
            routing=tuple(routing),
            psnr_db_float=self._float,
            psnr_db=self._known[quantised],
            sensitivities=tuple(self._sensitivities),
            evaluations=len(self._known),
            is_met=max_drop_db is None or drop_db <= max_drop_db,
        )


def _layers_of(parts: Sequence[SensitivityRecord]) -> frozenset[str]:
    return frozenset(name for part in parts for name in part.layers)

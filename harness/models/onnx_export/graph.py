"""An ONNX graph in the making: nodes, constants and weights by name, and sizes that are known or computed in the graph.

A tensor is its name. A node has the name of its first output, under the part of the network that it is made in
(`part`), so that a viewer shows the network's modules. Sizes are 1-element int64 tensors; of an image of fixed size
they are constants, and `finish` computes whatever depends on constants alone.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.core.errors import UserError

OPSET = 20  # of Gelu, the youngest operator here
IR_VERSION = 9
DOMAIN = "harness"  # of functions that a file defines itself
Array = npt.NDArray[Any]

_MOST_FOLDED = 1 << 24  # elements of a constant that is computed rather than left to the graph


def import_onnx() -> Any:
    """Return the module `onnx`; `UserError` with the command that installs it where it is missing."""
    try:
        import onnx
    except ImportError:
        raise UserError('exporting to ONNX needs onnx, which is not installed: pip install "harness[onnx]"') from None
    return onnx


def inline_functions(model: Any) -> Any:
    """Return a model without functions of its own, which not every runtime knows."""
    from onnx import inliner

    return inliner.inline_local_functions(model) if model.functions else model


class Graph:
    """The nodes and constants made so far; see the module."""

    def __init__(self) -> None:
        self._onnx = import_onnx()
        self._nodes: list[Any] = []
        self._constants: dict[str, Array] = {}
        self._names_of: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._taken: set[str] = set()
        self._parts: list[str] = []
        self._functions: list[Any] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Put what is made inside the block under `name`."""
        self._parts.append(name)
        try:
            yield
        finally:
            self._parts.pop()

    @contextlib.contextmanager
    def root(self) -> Iterator[None]:
        """Put what is made inside the block under no part: what the whole graph shares."""
        before, self._parts = self._parts, []
        try:
            yield
        finally:
            self._parts = before

    def path(self, name: str) -> str:
        """Return a name under the part at hand."""
        return ".".join((*self._parts, name))

    def weight(self, name: str, value: Array) -> str:
        """Return a weight of the part at hand: float32, under the name that it has in the network's `state_dict`."""
        full = self.path(name)
        assert full not in self._taken, f"{full} is there"
        self._taken.add(full)
        self._constants[full] = np.ascontiguousarray(value, dtype=np.float32)
        return full

    def constant(self, name: str, value: Array) -> str:
        """Return a constant (int64, float32 or float64); the same values are stored once."""
        array = value.astype(np.int64) if value.dtype.kind == "i" else value
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._names_of:
            self._names_of[key] = self._unique(f"constant.{name}")
            self._constants[self._names_of[key]] = array
        return self._names_of[key]

    def whole(self, *values: int) -> str:
        """Return whole numbers as a constant of one dimension."""
        return self.constant("x".join(map(str, values)), np.array(values, dtype=np.int64))

    def call(self, operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        """Add a node and return its output; `to`: its name under the part at hand."""
        return self.call_many(operator, *inputs, to=(to,), **attributes)[0]

    def cast(self, tensor: str, kind: str, *, to: str) -> str:
        """Return a tensor as `float`, `double`, `int64` or `bool`."""
        return self.call("Cast", tensor, to=to, to_=getattr(self._onnx.TensorProto, kind.upper()))

    def call_many(self, operator: str, *inputs: str, to: Sequence[str], **attributes: Any) -> tuple[str, ...]:
        """Add a node of several outputs and return them."""
        outputs = tuple(self._unique(self.path(name)) for name in to)
        attributes = {key.rstrip("_"): value for key, value in attributes.items()}  # `to` of Cast is a name here
        self._nodes.append(
            self._onnx.helper.make_node(operator, list(inputs), list(outputs), name=outputs[0], **attributes)
        )
        return outputs

    def define(self, name: str, inputs: Sequence[str], body: "Callable[[Graph], str]") -> None:
        """Define a function of these inputs and one output; `call` it by its name with `domain=DOMAIN`."""
        inner = Graph()
        output = body(inner)
        helper = self._onnx.helper
        values = [
            helper.make_node("Constant", [], [tensor], value=self._onnx.numpy_helper.from_array(array, tensor))
            for tensor, array in inner._constants.items()
        ]
        opsets = [helper.make_opsetid("", OPSET)]
        self._functions.append(
            helper.make_function(DOMAIN, name, list(inputs), [output], [*values, *inner._nodes], opsets)
        )

    def rename(self, tensor: str, name: str) -> str:
        """Give the output of the last node another name, outside of all parts."""
        node = self._nodes[-1]
        assert list(node.output) == [tensor], "only the last node's"
        node.output[0] = node.name = name
        self._taken.add(name)
        return name

    def finish(self, inputs: Sequence[Any], outputs: Sequence[Any], *, name: str, metadata: Mapping[str, str]) -> Any:
        """Return the `onnx.ModelProto`, checked: constants computed, without what nothing reads."""
        helper = self._onnx.helper
        nodes = self._without_unread(self._fold(), {value.name for value in outputs})
        read = {tensor for node in nodes for tensor in node.input}
        stored = [
            self._onnx.numpy_helper.from_array(array, tensor)
            for tensor, array in self._constants.items()
            if tensor in read
        ]
        graph = helper.make_graph(nodes, name, list(inputs), list(outputs), stored)
        own = [helper.make_opsetid(DOMAIN, 1)] if self._functions else []
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), *own],
            functions=self._functions,
            ir_version=IR_VERSION,
            producer_name="harness",
            producer_version=metadata.get("harness.version", ""),
        )
        helper.set_model_props(model, dict(metadata))
        self._onnx.checker.check_model(model)
        return model

    def _unique(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._taken:
            number += 1
            candidate = f"{name}#{number}"
        self._taken.add(candidate)
        return candidate

    def _fold(self) -> list[Any]:
        """Compute the nodes that depend on constants alone, weights apart; return all others."""
        from onnx.reference import ReferenceEvaluator

        helper = self._onnx.helper
        known = {name for name in self._constants if name.startswith("constant.")}
        left = []
        for node in self._nodes:
            if not all(name in known for name in node.input) or not node.input or node.domain:
                left.append(node)
                continue
            model = helper.make_model(
                helper.make_graph(
                    [node],
                    "constant",
                    [],
                    [self._onnx.ValueInfoProto(name=name) for name in node.output if name],
                    [self._onnx.numpy_helper.from_array(self._constants[name], name) for name in set(node.input)],
                ),
                opset_imports=[helper.make_opsetid("", OPSET)],
            )
            values = [np.asarray(value) for value in ReferenceEvaluator(model).run(None, {})]
            if sum(value.size for value in values) > _MOST_FOLDED:
                left.append(node)
                continue
            for name, value in zip((name for name in node.output if name), values, strict=True):
                self._constants[name] = value
                known.add(name)
        return left

    @staticmethod
    def _without_unread(nodes: Sequence[Any], wanted: set[str]) -> list[Any]:
        kept = []
        for node in reversed(nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(node.input)
        return kept[::-1]

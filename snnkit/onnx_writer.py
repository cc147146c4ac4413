"""A Graph as an ONNX model whose nodes are standard operators, so that any runtime can run it.

The model is a function of the graph and of nothing else: no clock, no uuid, no hash order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from snnkit.errors import RangeOverflow
from snnkit.graph import ARRAY, TENSOR, Boundary, Graph, Node, describe
from snnkit.ops import TABLE

FORMAT = "1"
DOMAIN = "snnkit"
OPSET = 20
IR_VERSION = 10
PREFIX = "snnkit."
"""Prefix of metadata keys."""

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


class _Writer:
    """Collects nodes and initialisers; implements `snnkit.ops.Writer`."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.bytes: dict[str, str] = {}
        self.words: dict[str, str] = {}
        self.called: set[str] = set()

    def source(self, node: Node, index: int = 0) -> Node:
        return self.graph.node[node.inputs[index]]

    def array(self, name: str, value: npt.ArrayLike) -> str:
        tensor = f"{ARRAY}{name}"
        self.arrays[tensor] = np.asarray(value)
        return tensor

    def emit(
        self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attrs: Any
    ) -> str:
        return self._append(op, inputs, f"{TENSOR}{output}", domain, attrs)

    def result(self, op: str, inputs: Sequence[str], name: str, **attrs: Any) -> None:
        """The node that makes the output `name` of the model."""
        self._append(op, inputs, name, "", attrs)

    def _append(
        self, op: str, inputs: Sequence[str], tensor: str, domain: str, attrs: dict[str, Any]
    ) -> str:
        if domain:
            self.called.add(op)
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in attrs.items()}
        self.nodes.append(
            helper.make_node(op, list(inputs), [tensor], name=tensor, domain=domain, **plain)
        )
        return tensor

    def is_byte(self, node: Node, tensor: str) -> None:
        self.bytes[node.name] = tensor

    def is_word(self, node: Node, tensor: str) -> None:
        self.words[node.name] = tensor

    def zero_point(self, node: Node) -> str:
        return self.array(f"zero_{-node.lo}", np.uint8(-node.lo))

    def byte(self, node: Node) -> str:
        if node.name not in self.bytes:
            if node.hi - node.lo > 255:
                raise RangeOverflow(
                    f"node '{node.name}': its values {node.lo}..{node.hi} are read as 8 bits; "
                    "expected a spike node behind it"
                )
            word, low = self.words[node.name], self.array(f"low_{node.lo}", np.int32(node.lo))
            shifted = self.emit("Sub", [word, low], f"{node.name}.shifted")
            self.bytes[node.name] = self.emit(
                "Cast", [shifted], f"{node.name}.byte", to=TensorProto.UINT8
            )
        return self.bytes[node.name]

    def word(self, node: Node) -> str:
        if node.name not in self.words:
            wide = self.emit(
                "Cast", [self.bytes[node.name]], f"{node.name}.wide", to=TensorProto.INT32
            )
            low = self.array(f"low_{node.lo}", np.int32(node.lo))
            self.words[node.name] = self.emit("Add", [wide, low], f"{node.name}.word")
        return self.words[node.name]


def _axis(array: npt.NDArray[Any], rank: int) -> dict[str, int]:
    """The axis (with the batch axis) along which a boundary array varies, if any."""
    varying = [i for i, n in enumerate(array.shape) if n > 1]
    return {"axis": varying[0] + 1 + rank - array.ndim} if varying else {}


def _write_input(b: Boundary, node: Node, w: _Writer) -> None:
    tensor = b.name
    if b.dtype != "float32":
        tensor = w.emit("Cast", [tensor], f"{node.name}.float", to=TensorProto.FLOAT)
    if b.offset.any():
        offset = b.offset.reshape((1,) * (1 + len(node.shape) - b.offset.ndim) + b.offset.shape)
        tensor = w.emit(
            "Sub", [tensor, w.array(f"{node.name}.offset", offset)], f"{node.name}.prelude"
        )
    flat = b.scale.reshape(-1) if b.scale.size > 1 else b.scale.reshape(())
    inputs = [tensor, w.array(f"{node.name}.scale", flat), w.zero_point(node)]
    if b.scale.size > 1:
        inputs[2] = w.array(f"{node.name}.zeros", np.full(flat.shape, -node.lo, np.uint8))
    axis: dict[str, Any] = _axis(b.scale, len(node.shape))
    w.is_byte(node, w.emit("QuantizeLinear", inputs, f"{node.name}.counts", **axis))


def _write_output(b: Boundary, node: Node, w: _Writer) -> None:
    flat = b.scale.reshape(-1) if b.scale.size > 1 else b.scale.reshape(())
    stages: list[tuple[str, list[str], dict[str, Any]]] = [
        ("DequantizeLinear", [w.array(f"{node.name}.scale", flat)], _axis(b.scale, len(node.shape)))
    ]
    for step in b.post:
        attrs = {k: v for k, v in step.items() if k != "op"}
        stages.append((step["op"], [], attrs))
    made = "int64" if b.post and b.post[-1]["op"] == "ArgMax" else "float32"
    if b.dtype != made:
        stages.append(("Cast", [], {"to": ONNX_TYPES[b.dtype]}))
    tensor = w.words[node.name]
    for i, (op, extra, attrs) in enumerate(stages):
        if i == len(stages) - 1:
            w.result(op, [tensor, *extra], b.name, **attrs)
        else:
            tensor = w.emit(op, [tensor, *extra], f"{node.name}.{op}", **attrs)


def _values(b: Boundary) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(b.name, ONNX_TYPES[b.dtype], list(b.dims))


def emit(graph: Graph) -> onnx.ModelProto:
    """The ONNX model of a checked graph. The same graph always gives the same bytes."""
    return _emit(graph)[0]


def emit_recording(graph: Graph, names: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    """The same model with a free batch axis and, as extra outputs, the integers of nodes `names`.

    Returns the model and the tensor of each name. A tensor of bytes holds value - lo.
    """
    model, writer = _emit(graph)
    tensors = []
    for name in names:
        # the readout's word is taken in front of DequantizeLinear: the last integer
        tensors.append(writer.bytes.get(name) or writer.words[name])
    for tensor in dict.fromkeys(tensors):
        model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].Clear()
            dims[0].dim_param = "N"
    return model, tensors


def _emit(graph: Graph) -> tuple[onnx.ModelProto, _Writer]:
    w = _Writer(graph)
    sources = {b.node: b for b in graph.inputs}
    sinks = {b.node: b for b in graph.outputs}
    for node in graph.nodes:
        if node.op == "input":
            _write_input(sources[node.name], node, w)
            continue
        TABLE[node.op].emit(node, w)
        if node.op == "readout":
            _write_output(sinks[node.name], node, w)
    body = helper.make_graph(
        w.nodes,
        "snnkit",
        [_values(b) for b in graph.inputs],
        [_values(b) for b in graph.outputs],
        [numpy_helper.from_array(a, name) for name, a in w.arrays.items()],
    )
    model = helper.make_model(
        body,
        functions=[function(name) for name in sorted(w.called)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=IR_VERSION,
        producer_name="snnkit",
    )
    helper.set_model_props(model, metadata(graph))
    return model, w


def metadata(graph: Graph) -> dict[str, str]:
    """The metadata properties: format, digest, the graph's structure, proved bounds, meta."""
    peaks = {n.name: n.peak for n in graph.nodes if n.op not in ("input", "route", "max_pool")}
    entries = {
        "format": FORMAT,
        "digest": graph.digest,
        "graph": json.dumps(describe(graph), separators=(",", ":"), sort_keys=True),
        "bounds": json.dumps(peaks, separators=(",", ":")),
    }
    entries.update({k: v for k, v in sorted(graph.meta.items())})
    return {f"{PREFIX}{k}": v for k, v in entries.items()}


def function(name: str) -> onnx.FunctionProto:
    """The body of a spiking node, in standard integer operators."""
    if name == "BIF":
        return _bif()
    valued = name.startswith("Valued")
    return _staircase(name, int(name.removeprefix("Valued").removeprefix("Staircase")), valued)


def _function(
    name: str, inputs: list[str], body: Callable[[list[onnx.NodeProto]], None]
) -> onnx.FunctionProto:
    nodes: list[onnx.NodeProto] = []
    body(nodes)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, inputs, ["count"], nodes, opset_imports=opsets)


def _node(nodes: list[onnx.NodeProto], op: str, inputs: list[str], out: str, **attrs: Any) -> None:
    nodes.append(helper.make_node(op, inputs, [out], **attrs))


def _constant(nodes: list[onnx.NodeProto], name: str, value: int) -> None:
    tensor = numpy_helper.from_array(np.int32(value))
    nodes.append(helper.make_node("Constant", [], [name], value=tensor))


def _bif() -> onnx.FunctionProto:
    """clip(floor((charge + init) / theta), lo, hi) - lo. Integer Div truncates towards zero, so
    the charge is shifted by lo * theta first: below zero both roundings are clipped to lo."""

    def body(nodes: list[onnx.NodeProto]) -> None:
        _constant(nodes, "none", 0)
        _node(nodes, "Add", ["charge", "init"], "total")
        _node(nodes, "Mul", ["theta", "lo"], "floor")
        _node(nodes, "Sub", ["total", "floor"], "above")
        _node(nodes, "Div", ["above", "theta"], "quotient")
        _node(nodes, "Max", ["quotient", "none"], "bounded")
        _node(nodes, "Sub", ["hi", "lo"], "span")
        _node(nodes, "Min", ["bounded", "span"], "clipped")
        _node(nodes, "Cast", ["clipped"], "count", to=TensorProto.UINT8)

    return _function("BIF", ["charge", "init", "theta", "lo", "hi"], body)


def _staircase(name: str, depth: int, valued: bool) -> onnx.FunctionProto:
    """The number of thresholds at or below charge + init: a binary search in a sorted ladder of
    2^depth - 1 steps that starts at `first` in `thresholds`. `valued` looks the count up."""

    def body(nodes: list[onnx.NodeProto]) -> None:
        _node(nodes, "Add", ["charge", "init"], "total")
        _constant(nodes, "one", 1)
        previous = ""
        for level in reversed(range(depth)):
            _constant(nodes, f"step{level}", 2**level)
            _constant(nodes, f"probe_step{level}", 2**level - 1)
            _node(nodes, "Add", ["first", f"probe_step{level}"], f"base{level}")
            probe = f"base{level}"
            if previous:
                _node(nodes, "Add", [probe, previous], f"probe{level}")
                probe = f"probe{level}"
            _node(nodes, "Gather", ["thresholds", probe], f"threshold{level}")
            _node(nodes, "GreaterOrEqual", ["total", f"threshold{level}"], f"passed{level}")
            _node(nodes, "Cast", [f"passed{level}"], f"bit{level}", to=TensorProto.INT32)
            _node(nodes, "Mul", [f"bit{level}", f"step{level}"], f"part{level}")
            if previous:
                _node(nodes, "Add", [previous, f"part{level}"], f"count{level}")
            previous = f"count{level}" if previous else f"part{level}"
        if valued:
            _node(nodes, "Add", ["row", previous], "cell")
            _node(nodes, "Gather", ["values", "cell"], "count")
        else:
            _node(nodes, "Cast", [previous], "count", to=TensorProto.UINT8)

    inputs = ["charge", "init", "first", "thresholds"] + (["row", "values"] if valued else [])
    return _function(name, inputs, body)

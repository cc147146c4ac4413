"""A Graph as an ONNX model whose nodes are standard operators, so that any runtime can run it.

The model is a function of the graph and of nothing else: no clock, no uuid, no hash order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from snnkit.boundary import tensor_axes
from snnkit.canonical import describe
from snnkit.graph import TENSOR, Boundary, Graph, Node
from snnkit.onnx_functions import DOMAIN, OPSET, function
from snnkit.onnx_scope import Scope
from snnkit.onnx_sweeps import write_sweep
from snnkit.ops import TABLE

FORMAT = "1"
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


def _axis(array: npt.NDArray[Any], rank: int) -> dict[str, int]:
    """The axis (with the leading axes) along which a boundary array varies, if any; `rank` counts
    the leading axes."""
    varying = [i for i, n in enumerate(array.shape) if n > 1]
    return {"axis": varying[0] + rank - array.ndim} if varying else {}


def _write_input(b: Boundary, node: Node, w: Scope) -> None:
    tensor, rank = b.name, len(node.shape)
    axes = tensor_axes(b, rank, time=0)
    if b.dtype != "float32":
        tensor = w.emit("Cast", [tensor], f"{node.name}.float", to=TensorProto.FLOAT)
    if list(axes) != sorted(axes):
        perm = tuple(int(i) for i in np.argsort(axes))
        tensor = w.emit("Transpose", [tensor], f"{node.name}.turned", perm=perm)
    if b.offset.any():
        offset = b.offset.reshape((1,) * (len(axes) - b.offset.ndim) + b.offset.shape)
        tensor = w.emit(
            "Sub", [tensor, w.array(f"{node.name}.offset", offset)], f"{node.name}.prelude"
        )
    flat = b.scale.reshape(-1) if b.scale.size > 1 else b.scale.reshape(())
    inputs = [tensor, w.array(f"{node.name}.scale", flat), w.zero_point(node)]
    if b.scale.size > 1:
        inputs[2] = w.array(f"{node.name}.zeros", np.full(flat.shape, -node.lo, np.uint8))
    axis: dict[str, Any] = _axis(b.scale, len(axes))
    counts = w.emit("QuantizeLinear", inputs, f"{node.name}.counts", **axis)
    if b.time is None:
        w.is_byte(node, counts)
    else:
        w.is_stack(node, True, counts)


def _write_output(b: Boundary, node: Node, w: Scope) -> None:
    axes = tensor_axes(b, len(node.shape), time=0)
    flat = b.scale.reshape(-1) if b.scale.size > 1 else b.scale.reshape(())
    scaled = {key: axes.index(at) for key, at in _axis(b.scale, len(axes)).items()}
    stages: list[tuple[str, list[str], dict[str, Any]]] = []
    if list(axes) != sorted(axes):
        # in front, as integers: onnxruntime 1.32 moves DequantizeLinear past a Transpose behind it
        # by way of 8 bits, even where it reads 32
        stages.append(("Transpose", [], {"perm": axes}))
    stages.append(("DequantizeLinear", [w.array(f"{node.name}.scale", flat)], scaled))
    for step in b.post:
        attrs = {k: v for k, v in step.items() if k != "op"}
        stages.append((step["op"], [], attrs))
    made = "int64" if b.post and b.post[-1]["op"] == "ArgMax" else "float32"
    if b.dtype != made:
        stages.append(("Cast", [], {"to": ONNX_TYPES[b.dtype]}))
    tensor = w.word(node) if b.time is None else w.stacks[node.name][1]
    for i, (op, extra, attrs) in enumerate(stages):
        if i == len(stages) - 1:
            w.append(op, [tensor, *extra], [b.name], **attrs)
        else:
            tensor = w.emit(op, [tensor, *extra], f"{node.name}.{op}", **attrs)


def _values(b: Boundary) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(b.name, ONNX_TYPES[b.dtype], list(b.dims))


def _lengths(graph: Graph) -> list[onnx.ValueInfoProto]:
    if not graph.lengths:
        return []
    first = graph.inputs[0]
    dims = [first.dims[first.batch]]
    return [helper.make_tensor_value_info(graph.lengths, ONNX_TYPES[graph.lengths_dtype], dims)]


def emit_recording(graph: Graph, names: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    """The same model with a free batch axis and, as extra outputs, the integers of nodes `names`:
    [N, *shape], or [N, T, *shape] for nodes of sweeps with a direction.

    Returns the model and the tensor of each name. A tensor of bytes holds value - lo.
    """
    w = Scope(graph)
    _emit_nodes(w, names)
    tensors = []
    for name in names:
        if name in w.stacks:
            perm = (1, 0, *range(2, 2 + len(graph.node[name].shape)))
            tensors.append(f"{TENSOR}{name}.recorded")
            if tensors[-1] not in tensors[:-1]:
                w.emit("Transpose", [w.stacks[name][1]], f"{name}.recorded", perm=perm)
        else:
            # the readout's word is taken in front of DequantizeLinear: the last integer
            tensors.append(w.bytes.get(name) or w.words[name])
    model = _model(w)
    axes = {b.name: b.batch for b in (*graph.inputs, *graph.outputs)}
    for value in (*model.graph.input, *model.graph.output):
        dim = value.type.tensor_type.shape.dim[axes.get(value.name, 0)]
        dim.Clear()
        dim.dim_param = "N"
    for tensor in dict.fromkeys(tensors):
        model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return model, tensors


def emit(graph: Graph) -> onnx.ModelProto:
    """The ONNX model of a checked graph. The same graph always gives the same bytes."""
    w = Scope(graph)
    _emit_nodes(w, ())
    return _model(w)


def _emit_nodes(w: Scope, recorded: Sequence[str]) -> None:
    graph = w.graph
    sources = {b.node: b for b in graph.inputs}
    sinks = {b.node: b for b in graph.outputs}
    if graph.sweeps:
        # the first Scan may need the number of samples, which any input knows
        for node in graph.of("input"):
            _write_input(sources[node.name], node, w)
    for k, (nodes, direction) in enumerate(graph.parts):
        if direction:
            write_sweep(w, k, recorded)
        for node in nodes:
            if node.op == "input":
                if not graph.sweeps:
                    _write_input(sources[node.name], node, w)
            elif not direction:
                TABLE[node.op].emit(node, w)
            if node.op == "readout":
                _write_output(sinks[node.name], node, w)


def _model(w: Scope) -> onnx.ModelProto:
    graph = w.graph
    body = helper.make_graph(
        w.nodes,
        "snnkit",
        [*(_values(b) for b in graph.inputs), *_lengths(graph)],
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
    return model


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

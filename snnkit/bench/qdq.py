"""The network of a graph as an ordinary quantised ONNX model (QDQ), for the int8 rival.

Used where the source model is not given. Every spiking node becomes QuantizeLinear to uint8, every
synapse an int8 weight behind DequantizeLinear: the form that onnxruntime fuses into QLinearConv and
QGemm. Values between layers are the graph's integers (scale 1), so it computes the same network:

    S = clip(rint((A + b) / theta)), b = init - floor(theta / 2), theta a little (2^-22) smaller

is the graph's clip(floor((A + init) / theta)) for integers A as long as theta * levels is below
2^20. A ladder is taken where it is a straight line but for the rounding of its thresholds; others
(sigmoid, say) are refused with the node's name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from snnkit.errors import Problem, UnsupportedModel
from snnkit.graph import Boundary, Graph, Node
from snnkit.onnx_writer import ONNX_TYPES
from snnkit.ops.op import batched
from snnkit.ops.spike import NEVER, ladder_rows

Array = npt.NDArray[Any]
OPSET = 20
CROOKED = 2.0
"""More than what rounding thresholds and the bias to integers moves a straight ladder."""
NUDGE = 2.0**-22
"""Above the rounding errors of float32 between charge and level, below half a charge."""


def staircase_line(node: Node) -> tuple[Array, Array]:
    """(bias int64, rate float64), batched to the node's rank: level = rint((A + bias) * rate).

    Raises UnsupportedModel where the staircase is no straight line.
    """
    if node.attrs["kind"] == "uniform":
        theta = node.params["theta"].astype(np.int64)
        bias = node.params["init"].astype(np.int64) - theta // 2
        bias, rate = np.broadcast_arrays(bias, (1 + NUDGE) / theta)
        return bias, rate
    _, thresholds, values = ladder_rows(node)
    rising = bool((np.diff(values, axis=1) == 1).all() and (values[:, 0] == node.lo).all())
    lines = [_line(row, node.lo) for row in thresholds]
    if not rising or any(gap > CROOKED for _, _, gap in lines):
        problem = "its staircase is no straight line, which int8 models cannot express"
        raise UnsupportedModel([Problem(node.name, "spike", problem, "give the source model")])
    pattern = node.params["thresholds"].shape[:-1]
    bias = np.array([b for b, _, _ in lines], np.int64).reshape(pattern)
    moved = bias + node.params["init"].astype(np.int64)
    rate = np.array([r for _, r, _ in lines]).reshape(pattern) * (1 + NUDGE)
    return moved, np.broadcast_to(rate, moved.shape)


def _line(thresholds: Array, lo: int) -> tuple[int, float, float]:
    """(bias, rate, largest gap in charges) of the straight line through a row of thresholds."""
    reached = thresholds[thresholds != NEVER]
    if len(reached) == 0:
        rate = 2.0**-40
        return int(np.clip(lo / rate, -(2**30), 0)), rate, 0.0
    middles = np.arange(len(reached)) + lo + 0.5
    rate = max(len(reached) - 1, 1) / max(int(reached[-1] - reached[0]), 1)
    bias = int(np.rint((middles / rate - reached).mean()))
    return bias, rate, float(np.abs(reached + bias - middles / rate).max())


class _Model:
    """Collects nodes and arrays. `floats` : the value of a graph node as a float tensor. `bytes` :
    as a uint8 tensor, with its zero point."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, onnx.TensorProto] = {}
        self.floats: dict[str, str] = {}
        self.bytes: dict[str, tuple[str, str]] = {}

    def array(self, name: str, value: npt.ArrayLike) -> str:
        self.arrays[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def emit(self, op: str, inputs: list[str], output: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attrs))
        return output

    def quantised(
        self,
        node: Node,
        tensor: str,
        scale: npt.ArrayLike = 1.0,
        axis: int = 1,
        within: bool = False,
    ) -> None:
        """`tensor` as integers of the node's range, and back: the pair that onnxruntime fuses.
        within : no value leaves the range, so that nothing has to be clipped."""
        scale = np.asarray(scale, np.float32)
        zero = self.array(f"{node.name}.zero", np.full(scale.shape, -node.lo, np.uint8))
        given = [tensor, self.array(f"{node.name}.scale", scale), zero]
        q = self.emit("QuantizeLinear", given, f"{node.name}.q", axis=axis)
        if node.hi - node.lo < 255 and not within:
            low = self.array("lowest", np.uint8(0))
            top = self.array(f"top_{node.hi - node.lo}", np.uint8(node.hi - node.lo))
            q = self.emit("Clip", [q, low, top], f"{node.name}.clipped")
        self.bytes[node.name] = q, self.array(f"zero_{-node.lo}", np.uint8(-node.lo))

    def constant(self, name: str, value: Array, rate: Array) -> str:
        """An integer array times one rate per entry of its first axis, as DequantizeLinear.

        The zero point is written out: onnxruntime moves int8 weights to uint8 without VNNI.
        """
        given = [self.array(f"{name}.q", value), self.array(f"{name}.rate", rate.astype("<f4"))]
        given.append(self.array(f"{name}.zero", np.zeros(rate.shape, value.dtype)))
        return self.emit("DequantizeLinear", given, name, axis=0)

    def source(self, node: Node) -> str:
        return self.value(self.graph.node[node.inputs[0]])

    # charges

    def scaled(self, node: Node, bias: Array, rate: Array) -> str:
        """(A + bias) * rate of a charge that `node` reads; inside the synapse where it can be."""
        charge = self.graph.node[node.inputs[0]]
        channels = charge.shape[0 if charge.op == "conv" else -1]
        folded = [_per_channel(a, charge, channels) for a in (bias, rate)]
        alone = self.graph.consumers[charge.name] == (node.name,)
        if charge.op in ("conv", "linear") and alone and all(a is not None for a in folded):
            return self.synapse(charge, folded[0], folded[1])
        rank, name = len(charge.shape), node.name
        shift = self.array(f"{name}.shift", batched(bias, rank)[None].astype(np.float32))
        sum_ = self.emit("Add", [self.value(charge), shift], f"{name}.sum")
        times = self.array(f"{name}.times", batched(rate, rank)[None].astype(np.float32))
        return self.emit("Mul", [sum_, times], f"{name}.product")

    def value(self, node: Node) -> str:
        """The value of any node; a synapse that was left for its reader to fold is made now."""
        if node.name not in self.floats and node.name in self.bytes:
            q, zero = self.bytes[node.name]
            given = [q, self.array("one", np.float32(1)), zero]
            back = self.emit("DequantizeLinear", given, f"{node.name}.value")
            self.floats[node.name] = back
        elif node.name not in self.floats:
            channels = node.shape[0 if node.op == "conv" else -1]
            ones = np.ones(channels)
            self.floats[node.name] = self.synapse(node, 0 * ones.astype(np.int64), ones)
        return self.floats[node.name]

    def synapse(self, node: Node, bias: Any, rate: Any) -> str:
        weight = node.params["weight"]
        bias32 = bias.astype(np.int32)
        name = f"{node.name}.charge"
        if node.op == "conv":
            attrs = {key: node.attrs[key] for key in ("strides", "pads", "dilations", "group")}
            attrs["kernel_shape"] = weight.shape[2:]
            w = self.constant(f"{node.name}.w", weight, rate)
            b = self.constant(f"{node.name}.b", bias32, rate)
            return self.emit("Conv", [self.source(node), w, b], name, **attrs)
        reader = self.graph.node[self.graph.consumers[node.name][0]]
        if len(node.shape) == 1 and reader.op == "spike":
            w = self.constant(f"{node.name}.w", weight, rate)
            b = self.constant(f"{node.name}.b", bias32, rate)
            return self.emit("Gemm", [self.source(node), w, b], name, transB=1)
        # with no quantiser behind it onnxruntime would compute a Gemm in float32
        q, zero = self.bytes[node.inputs[0]]
        w = self.array(f"{node.name}.w", np.ascontiguousarray(weight.T))
        total = self.emit("MatMulInteger", [q, w, zero], f"{node.name}.product")
        total = self.emit("Add", [total, self.array(f"{node.name}.b", bias32)], f"{node.name}.sum")
        wide = self.emit("Cast", [total], f"{node.name}.wide", to=TensorProto.FLOAT)
        return self.emit("Mul", [wide, self.array(f"{node.name}.rate", rate.astype("<f4"))], name)

    # values that are neither charges of synapses nor spikes

    def add(self, node: Node) -> str:
        total = ""
        for i in range(len(node.inputs)):
            m = batched(node.params[f"m{i}"], len(node.shape))[None].astype(np.float32)
            given = [self.value(self.graph.node[node.inputs[i]])]
            part = self.emit(
                "Mul", [*given, self.array(f"{node.name}.m{i}", m)], f"{node.name}.part{i}"
            )
            total = self.emit("Add", [total, part], f"{node.name}.sum{i}") if total else part
        return total

    def pool(self, node: Node) -> str:
        a, x, name = node.attrs, self.source(node), f"{node.name}.pool"
        summing = node.op == "sum_pool"
        if "axes" in a:
            axes = self.array(f"{node.name}.axes", np.array(a["axes"], np.int64) + 1)
            op = "ReduceSum" if summing else "ReduceMax"
            return self.emit(op, [x, axes], name, keepdims=int(a["keepdims"]))
        attrs = {key: a[key] for key in ("strides", "pads", "dilations")}
        attrs["kernel_shape"] = a["kernel"]
        if not summing:
            return self.emit("MaxPool", [x], name, **attrs)
        mean = self.emit("AveragePool", [x], f"{node.name}.mean", count_include_pad=1, **attrs)
        area = self.array(f"{node.name}.area", np.float32(np.prod(a["kernel"])))
        return self.emit("Mul", [mean, area], name)

    def route(self, node: Node) -> str:
        kind, name = node.attrs["kind"], f"{node.name}.{node.attrs['kind']}"
        sources = [self.value(self.graph.node[n]) for n in node.inputs]
        if kind == "concat":
            return self.emit("Concat", sources, name, axis=node.attrs["axis"] + 1)
        if kind == "transpose":
            perm = [0, *(p + 1 for p in node.attrs["perm"])]
            return self.emit("Transpose", sources, name, perm=perm)
        shape = self.array(f"{node.name}.shape", np.array([0, *node.shape], np.int64))
        if kind == "reshape":
            return self.emit("Reshape", [sources[0], shape], name)
        flat = self.array("flat_shape", np.array([0, -1], np.int64))
        flat = self.emit("Reshape", [sources[0], flat], f"{name}.flat")
        margin = self.array("one_before", np.array([0, 1, 0, 0], np.int64))
        padded = self.emit("Pad", [flat, margin], f"{name}.padded")
        index = self.array(f"{node.name}.places", node.params["index"].reshape(-1) + 1)
        picked = self.emit("Gather", [padded, index], f"{name}.picked", axis=1)
        return self.emit("Reshape", [picked, shape], name)

    # ends

    def input(self, b: Boundary, node: Node) -> None:
        tensor, rank = b.name, len(node.shape)
        if b.dtype != "float32":
            tensor = self.emit("Cast", [tensor], f"{node.name}.float", to=TensorProto.FLOAT)
        if b.offset.any():
            offset = self.array(f"{node.name}.offset", batched(b.offset, rank)[None])
            tensor = self.emit("Sub", [tensor, offset], f"{node.name}.moved")
        varying = [i for i, n in enumerate(b.scale.shape) if n > 1]
        scale = b.scale.reshape(-1) if varying else b.scale.reshape(())
        axis = varying[0] + 1 + rank - b.scale.ndim if varying else 1
        self.quantised(node, tensor, scale, axis)

    def output(self, b: Boundary, node: Node) -> None:
        scale = np.broadcast_to(b.scale, node.params["bias"].shape)
        tensor = self.scaled(node, node.params["bias"].astype(np.int64), scale)
        for i, step in enumerate(b.post):
            attrs = {k: v for k, v in step.items() if k != "op"}
            tensor = self.emit(step["op"], [tensor], f"{node.name}.post{i}", **attrs)
        made = "int64" if b.post and b.post[-1]["op"] == "ArgMax" else "float32"
        attrs = {"to": ONNX_TYPES[b.dtype]} if b.dtype != made else {}
        self.emit("Cast" if attrs else "Identity", [tensor], b.name, **attrs)


def _per_channel(a: Array, charge: Node, channels: int) -> Array | None:
    """`a` as one value per output channel of a synapse, or None where it varies within one."""
    where = 0 if charge.op == "conv" else len(charge.shape) - 1
    shape = (1,) * (len(charge.shape) - a.ndim) + a.shape
    if any(n > 1 for i, n in enumerate(shape) if i != where):
        return None
    return np.ascontiguousarray(np.broadcast_to(a.reshape(-1), (channels,)))


def qdq_model(graph: Graph) -> onnx.ModelProto:
    """The graph as a QDQ model with a free batch axis.

    Raises UnsupportedModel for a staircase that is no straight line.
    """
    m = _Model(graph)
    inputs = {b.node: b for b in graph.inputs}
    outputs = {b.node: b for b in graph.outputs}
    for node in graph.nodes:
        if node.op == "input":
            m.input(inputs[node.name], node)
        elif node.op == "spike":
            m.quantised(node, m.scaled(node, *staircase_line(node)))
        elif node.op == "readout":
            m.output(outputs[node.name], node)
        elif node.op not in ("conv", "linear"):
            made = {"add": m.add, "sum_pool": m.pool, "max_pool": m.pool, "route": m.route}
            tensor = made[node.op](node)
            if node.hi - node.lo <= 255:
                m.quantised(node, tensor, within=True)
            else:
                m.floats[node.name] = tensor
    body = helper.make_graph(
        m.nodes,
        "qdq",
        [_port(b) for b in graph.inputs],
        [_port(b) for b in graph.outputs],
        list(m.arrays.values()),
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(body, opset_imports=opset, ir_version=10)


def _port(b: Boundary) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(b.name, ONNX_TYPES[b.dtype], ["N", *b.dims[1:]])

"""A sweep with a direction as one ONNX Scan: its body is the step graph, with integer state.

State in and out are the latches (int32) and membrane potentials (int64). What lies in sweeps of
direction 0 is computed outside and captured by the body; so are all arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from snnkit.graph import TENSOR, Node
from snnkit.onnx_scope import Scope
from snnkit.ops import TABLE
from snnkit.ops.op import batched
from snnkit.sweeps import GIVEN


def write_sweep(outer: Scope, k: int, recorded: Sequence[str]) -> None:
    """Write sweep k into `outer`, whose `stacks` then hold every node of it that is read outside,
    and the nodes in `recorded`."""
    graph = outer.graph
    nodes, direction = graph.parts[k]
    for n in nodes:
        if n.op == "unstack":
            TABLE[n.op].emit(n, outer)
    if all(n.op in ("input", "unstack") for n in nodes):
        return  # nothing is computed, and a Scan has to give something
    body = Scope(graph, outer, f"~{k}")
    given = _scan_inputs(outer, body, k)
    before, first = _states(outer, body, nodes)
    for n in nodes:
        if n.op not in GIVEN:
            TABLE[n.op].emit(n, body)
    active = _Active(outer, body) if graph.lengths else None
    after = [_next_state(body, n, active) for n in nodes if n.op in ("latch", "lif")]
    stacked = _stacked(outer, body, k, recorded, active)
    final = [f"{TENSOR}{n.name}.final" for n in nodes if n.op in ("latch", "lif")]
    if active:
        tick = helper.make_tensor_value_info(active.tick, TensorProto.INT64, [])
        given.append((outer.ticks, tick))
    outer.append(
        "Scan",
        [*first, *(stack for stack, _ in given)],
        [*final, *(stack for stack, _ in stacked)],
        body=helper.make_graph(
            body.nodes,
            f"sweep{k}",
            [*before, *(value for _, value in given)],
            [*after, *(value for _, value in stacked)],
        ),
        num_scan_inputs=len(given),
        scan_input_directions=[int(direction < 0)] * len(given),
        scan_output_directions=[int(direction < 0)] * len(stacked),
    )


class _Active:
    """Which samples still have a step, in the body of a Scan."""

    def __init__(self, outer: Scope, body: Scope):
        self.body, self.masks = body, dict[int, str]()
        graph, suffix = outer.graph, body.suffix
        # a Scan over the numbers of the steps beside its other inputs
        timed = next(b.node for b in graph.inputs if b.time is not None)
        if not outer.ticks:
            zero, one = outer.array("step_first", np.int64(0)), outer.array("one_step", np.int64(1))
            shape = outer.emit("Shape", [outer.stacks[timed][1]], "ticks.shape", start=0, end=1)
            count = outer.emit("Squeeze", [shape], "ticks.count")
            outer.ticks = outer.emit("Range", [zero, count, one], "ticks")
        self.tick = f"{TENSOR}tick{suffix}"
        self.flat = body.emit("Less", [self.tick, outer.long_lengths()], f"active{suffix}")

    def choose(self, value: str, rest: str, node: Node, output: str) -> str:
        """`value` for the active samples, `rest` for the others."""
        rank = len(node.shape)
        if rank not in self.masks:
            shape = self.body.array(f"mask_{rank}", np.array([-1, *(1,) * rank], np.int64))
            name = f"active{rank}{self.body.suffix}"
            self.masks[rank] = self.body.emit("Reshape", [self.flat, shape], name)
        return self.body.emit("Where", [self.masks[rank], value, rest], output)


def _value(tensor: str, node: Node, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor, kind, [None, *node.shape])


def _scan_inputs(outer: Scope, body: Scope, k: int) -> list[tuple[str, onnx.ValueInfoProto]]:
    """(stack outside, value in the body) of everything that the sweep reads step by step."""
    graph = outer.graph
    read = [n for n in graph.windows[k].of("input") if n.name in outer.stacks]
    if not read:
        # a Scan counts its steps by its inputs
        timed = [graph.node[b.node] for b in graph.inputs if b.time is not None]
        if not timed:
            ticks = outer.array("ticks", np.zeros(graph.steps, np.uint8))
            tick = f"{TENSOR}tick{body.suffix}"  # nobody reads it
            return [(ticks, helper.make_tensor_value_info(tick, TensorProto.UINT8, []))]
        read = timed[:1]
    found = []
    for n in read:
        as_byte, stack = outer.stacks[n.name]
        tensor = f"{TENSOR}{n.name}.step{body.suffix}"
        (body.is_byte if as_byte else body.is_word)(n, tensor)
        kind = TensorProto.UINT8 if as_byte else TensorProto.INT32
        found.append((stack, _value(tensor, n, kind)))
    return found


def _states(
    outer: Scope, body: Scope, nodes: Sequence[Node]
) -> tuple[list[onnx.ValueInfoProto], list[str]]:
    """Values in the body of what the sweep remembers, and the tensors that they start as."""
    values, first = [], []
    for n in nodes:
        if n.op == "latch":
            body.is_word(n, body.state(n))
            values.append(_value(body.state(n), n, TensorProto.INT32))
            first.append(outer.word(outer.source(n)) if n.inputs else _repeated(outer, n))
        elif n.op == "lif":
            values.append(_value(body.state(n), n, TensorProto.INT64))
            first.append(_repeated(outer, n))
    return values, first


def _repeated(outer: Scope, node: Node) -> str:
    """The array `initial` for every sample."""
    graph, name = outer.graph, node.name
    initial = outer.array(f"{name}.initial", batched(node.params["initial"], len(node.shape))[None])
    given = graph.inputs[0].node
    axis = 0
    if given in outer.stacks:
        axis, tensor = 1, outer.stacks[given][1]
    else:
        tensor = outer.bytes[given]
    count = outer.emit("Shape", [tensor], f"{name}.samples", start=axis, end=axis + 1)
    shape = outer.array(f"{name}.units", np.array(node.shape, np.int64))
    full = outer.emit("Concat", [count, shape], f"{name}.size", axis=0)
    return outer.emit("Expand", [initial, full], f"{name}.first")


def _next_state(body: Scope, node: Node, active: _Active | None) -> onnx.ValueInfoProto:
    after = f"{TENSOR}{node.name}.after"
    kind = TensorProto.INT64 if node.op == "lif" else TensorProto.INT32
    if node.op == "latch":
        source = body.graph.node[body.graph.latches[node.name]]
        # an output of its own, even where the source is a latch or shared with another latch
        body.emit("Identity", [body.word(source)], f"{node.name}.after")
    if active:
        after = active.choose(after, body.state(node), node, f"{node.name}.held")
    return _value(after, node, kind)


def _stacked(
    outer: Scope, body: Scope, k: int, recorded: Sequence[str], active: _Active | None
) -> list[tuple[str, onnx.ValueInfoProto]]:
    """(stack outside, value in the body) of every node of the sweep that is wanted outside."""
    graph = outer.graph
    nodes = graph.parts[k][0]
    wanted = {*recorded, *(b.node for b in graph.outputs)}
    wanted |= {s for n in graph.nodes if graph.sweep_of[n.name] != k for s in n.inputs}
    found = []
    for n in nodes:
        if n.name not in wanted or n.name in outer.stacks:
            continue
        as_byte = n.name in body.bytes
        tensor = body.bytes[n.name] if as_byte else body.word(n)
        if active:
            zero = body.zero_point(n) if as_byte else body.array("word_zero", np.int32(0))
            inner = active.choose(tensor, zero, n, f"{n.name}.each")
        else:
            inner = body.emit("Identity", [tensor], f"{n.name}.each")
        stack = f"{TENSOR}{n.name}.steps"
        outer.is_stack(n, as_byte, stack)
        kind = TensorProto.UINT8 if as_byte else TensorProto.INT32
        found.append((stack, _value(inner, n, kind)))
    return found

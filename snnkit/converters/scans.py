"""A Scan over a known number of elements, written out: its body once per element.

What comes out is the form that exporters write who unroll: a one-shot graph in which every gate of
every element is a node of its own. A number that the file leaves open is the data's, where it is a
dimension of an input; a Scan whose number stays open is refused by the reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

MOST_NODES = 20_000
"""Nodes of all written-out bodies together; beyond it a Scan stays one."""
FORWARD = 0


def write_out_scans(model: onnx.ModelProto, given: Mapping[str, tuple[int, ...]]) -> str:
    """Replace, in place, every Scan of the graph that can be written out (operator set 9 on).

    given : shapes of the data by input, as far as there are any. Returns what they have fixed, if
    anything.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    graph = model.graph
    if opset < 9 or not any(n.op_type == "Scan" for n in graph.node):
        return ""
    fixed = _fix_elements(model, opset, given)
    sizes = _sizes(model)
    room, nodes = MOST_NODES, []
    for node in graph.node:
        scan = _Scan(node, sizes, opset) if node.op_type == "Scan" else None
        if scan is None or not scan.steps or scan.steps * len(scan.body.node) > room:
            nodes.append(node)
            continue
        room -= scan.steps * len(scan.body.node)
        nodes += scan.written_out()
        graph.initializer.extend(scan.arrays)
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return fixed


def _fix_elements(model: onnx.ModelProto, opset: int, given: Mapping[str, tuple[int, ...]]) -> str:
    """Give the dimensions that a Scan runs over the sizes that the data have."""
    sizes, found = _sizes(model), ""
    scans = [_Scan(n, sizes, opset) for n in model.graph.node if n.op_type == "Scan"]
    symbols = {size: s.label for s in scans for size in s.sizes if isinstance(size, str) and size}
    for port in model.graph.input:
        shape, dims = given.get(port.name, ()), port.type.tensor_type.shape.dim
        for dim, size in zip(dims, shape if len(shape) == len(dims) else (), strict=False):
            if dim.dim_param in symbols:
                found = f"{size}, as in the data: '{symbols[dim.dim_param]}' runs over them"
                dim.dim_value = size
    return found


def _sizes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Dimensions of every tensor as far as they can be inferred; a name or "" where open."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # a damaged model: whoever runs it says what is wrong
        inferred = model.graph
    found: dict[str, list[int | str]] = {t.name: list(t.dims) for t in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info):
        found[value.name] = [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
    return found


class _Scan:
    """One Scan. sizes : the dimensions that it runs over. steps : its number of elements, 0 where
    it cannot be told or written out."""

    def __init__(self, node: onnx.NodeProto, sizes: dict[str, list[int | str]], opset: int):
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.node, self.opset, self.body = node, opset, attrs["body"]
        scanned = int(attrs["num_scan_inputs"])
        self.states = len(node.input) - scanned
        self.stacked = len(node.output) - self.states
        self.axes = list(attrs.get("scan_input_axes", [0] * scanned))
        self.ways = list(attrs.get("scan_input_directions", [FORWARD] * scanned))
        self.out_axes = list(attrs.get("scan_output_axes", [0] * self.stacked))
        self.out_ways = list(attrs.get("scan_output_directions", [FORWARD] * self.stacked))
        name = node.name or next(o for o in node.output if o)
        self.label = f"{name} (Scan)"  # begins every name: a refusal then says where to look
        self.arrays: list[onnx.TensorProto] = []
        nested = any(a.HasField("g") for n in self.body.node for a in n.attribute)
        self.sizes = self._scanned(sizes)
        same = len(self.sizes) == 1 and not nested
        self.steps = next((n for n in self.sizes if same and isinstance(n, int)), 0)

    def _scanned(self, sizes: dict[str, list[int | str]]) -> set[int | str]:
        found: set[int | str] = set()
        for name, axis in zip(self.node.input[self.states :], self.axes, strict=True):
            dims = sizes.get(name, [])
            found.add(dims[axis] if -len(dims) <= axis < len(dims) else "")
        return found

    def array(self, name: str, value: Any) -> str:
        label = f"{self.label}/{name}"
        if all(t.name != label for t in self.arrays):
            self.arrays.append(numpy_helper.from_array(np.asarray(value), label))
        return label

    def written_out(self) -> list[onnx.NodeProto]:
        """The bodies, one after the other, and the nodes that cut and stack."""
        for tensor in self.body.initializer:
            self.array(tensor.name, numpy_helper.to_array(tensor))
        held = list(self.node.input[: self.states])
        stacks: list[list[str]] = [[] for _ in range(self.stacked)]
        nodes: list[onnx.NodeProto] = []
        for t in range(self.steps):
            names = {tensor.name: f"{self.label}/{tensor.name}" for tensor in self.body.initializer}
            given = [*held, *self._elements(t, nodes)]
            names |= {p.name: g for p, g in zip(self.body.input, given, strict=True)}
            nodes += self._copy(t, names)
            results = [names.get(o.name, o.name) for o in self.body.output]
            held = results[: self.states]
            for stack, result in zip(stacks, results[self.states :], strict=True):
                stack.append(result)
        for name, result in zip(self.node.output, held, strict=False):
            if name:
                nodes.append(helper.make_node("Identity", [result], [name], name=name))
        for k, name in enumerate(self.node.output[self.states :]):
            if name:
                nodes += self._stack(name, stacks[k], self.out_axes[k], self.out_ways[k])
        return nodes

    def _elements(self, t: int, nodes: list[onnx.NodeProto]) -> Iterator[str]:
        """Element t of every scanned input."""
        for i, source in enumerate(self.node.input[self.states :]):
            at = t if self.ways[i] == FORWARD else self.steps - 1 - t
            index = self.array(f"index{at}", np.int64(at))
            name = f"{self.label}/{t}/in{i}"
            nodes.append(helper.make_node("Gather", [source, index], [name], axis=self.axes[i]))
            yield name

    def _copy(self, t: int, names: dict[str, str]) -> Iterator[onnx.NodeProto]:
        """The body's nodes for element t; `names` learns what their outputs are called."""
        for node in self.body.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{self.label}/{t}/{node.name or node.output[0]}"
            del copy.input[:], copy.output[:]
            copy.input.extend(names.get(i, i) for i in node.input)
            names |= {o: f"{self.label}/{t}/{o}" for o in node.output if o}
            copy.output.extend(names.get(o, o) for o in node.output)
            yield copy

    def _stack(self, name: str, parts: list[str], axis: int, way: int) -> Iterator[onnx.NodeProto]:
        slices = []
        for t, part in enumerate(parts if way == FORWARD else parts[::-1]):
            slices.append(f"{name}/{t}")
            if self.opset < 13:
                yield helper.make_node("Unsqueeze", [part], [slices[-1]], axes=[axis])
            else:
                axes = self.array(f"axes{axis}", np.array([axis], np.int64))
                yield helper.make_node("Unsqueeze", [part, axes], [slices[-1]])
        yield helper.make_node("Concat", slices, [name], name=name, axis=axis)

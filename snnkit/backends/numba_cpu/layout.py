"""A graph as flat arrays: one row of integers per node, and where its state lies.

A node's units lie side by side in its block of the state, in one of two orders: as in the
graph, or channels last, so that the synapses of one event end in neighbouring charges.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu import kernels as k
from snnkit.graph import Graph, Node
from snnkit.ops import TABLE
from snnkit.ops.arithmetic import multiplier
from snnkit.ops.op import Ints
from snnkit.ops.spike import ladder_rows
from snnkit.ops.synapses import windows
from snnkit.sweeps import RESTING, spike_levels

Array = npt.NDArray[Any]

KINDS = {
    "input": k.INPUT,
    "conv": k.SYNAPSE,
    "linear": k.SYNAPSE,
    "add": k.WEIGHTED,
    "product": k.PRODUCT,
    "sum_pool": k.SUM,
    "max_pool": k.MAX,
    "route": k.SUM,
    "spike": k.UNIFORM,
    "lif": k.LIF,
    "latch": k.LATCH,
    "stack": k.HANDED,
    "unstack": k.HANDED,
    "readout": k.READOUT,
}


@dataclass(frozen=True)
class Layout:
    """A flattened window. `channels_last` names the nodes whose block is in that order."""

    net: k.Net
    index: Mapping[str, int]
    channels_last: frozenset[str]

    def to_block(self, node: Node, values: Array) -> Array:
        """Values [N, *shape] as rows [N, units] in the order of the node's block."""
        if node.name in self.channels_last:
            values = np.moveaxis(values, 1, -1)
        return values.reshape(len(values), node.units)

    def places(self, node: Node, reader: Node) -> Array:
        """Where in the state the units of `node` lie, in the order of the block of `reader`, a node
        of the same shape."""
        first = self.net.nodes[self.index[node.name], k.VALUE]
        places = self.from_block(node, first + np.arange(node.units)[None])
        block: Array = self.to_block(reader, places)[0]
        return block

    def from_block(self, node: Node, rows: Array) -> Array:
        """The inverse of `to_block`."""
        if node.name in self.channels_last:
            rows = rows.reshape(len(rows), *node.shape[1:], node.shape[0])
            return np.moveaxis(rows, -1, 1)
        return rows.reshape(len(rows), *node.shape)


def state_sizes(node: Node, graph: Graph) -> tuple[int, int, int]:
    """Integers of state of one node: value, tracers of its input, cells."""
    told = graph.node[node.inputs[0]].units if node.op in ("conv", "linear", "spike") else 0
    cells = node.units if node.op == "spike" and node.attrs["kind"] == "ladder" else 0
    return node.units, told, cells


def flatten(window: Graph, latches: Collection[str] = (), handed: Collection[str] = ()) -> Layout:
    """The layout of a one-shot graph whose ops are all in KINDS. Among its input nodes `latches`
    are kept by the engine, `handed` are what other sweeps computed."""
    layout = _Flattener(window).layout()
    for names, kind in ((latches, k.LATCH), (handed, k.HANDED)):
        for name in names:
            layout.net.nodes[layout.index[name], k.KIND] = kind
    return layout


def blocks_with_channels_last(graph: Graph) -> frozenset[str]:
    """Convolutions and what is wired to them unit by unit."""
    last: set[str] = set()
    for node in graph.nodes:
        if node.op == "conv":
            found = True
        elif node.op == "input":
            found = any(graph.node[name].op == "conv" for name in graph.consumers[node.name])
        elif node.op == "linear" or (node.op == "route" and node.attrs["kind"] != "concat"):
            found = False
        else:
            found = node.inputs[0] in last and "axes" not in node.attrs
        if found:
            last.add(node.name)
    return frozenset(last)


class _Arena:
    """Arrays one behind the other; positions in it are what the rows of the nodes hold."""

    def __init__(self, dtype: npt.DTypeLike):
        self.parts = [np.zeros(0, dtype)]
        self.size = 0

    def add(self, array: npt.ArrayLike) -> int:
        part = np.asarray(array).reshape(-1).astype(self.parts[0].dtype)
        at, self.size = self.size, self.size + part.size
        self.parts.append(part)
        return at

    def joined(self) -> Array:
        return np.concatenate(self.parts)


class _Flattener:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.index = {node.name: i for i, node in enumerate(graph.nodes)}
        self.last = blocks_with_channels_last(graph)
        self.nodes = np.zeros((len(graph.nodes), k.FIELDS), np.int64)
        self.ints, self.weights = _Arena(np.int32), _Arena(np.int8)
        self.wides, self.membrane = _Arena(np.int64), _Arena(np.int64)
        self.rest = self._place_state()

    def layout(self) -> Layout:
        levels = spike_levels(self.graph)
        fill = {"conv": self._conv, "linear": self._linear, "readout": self._readout}
        fill.update({"spike": self._spike, "lif": self._lif})
        for node in self.graph.nodes:
            row = self.nodes[self.index[node.name]]
            row[k.KIND], row[k.UNITS] = KINDS[node.op], node.units
            row[k.LEVEL] = levels.get(node.name, 0)
            readers = sorted({self.index[c] for c in self.graph.consumers[node.name]})
            row[k.READERS] = self.ints.add(readers)
            row[k.READERS_END] = row[k.READERS] + len(readers)
            if node.inputs:
                row[k.SOURCE] = self._row(node.inputs[0])[k.VALUE]
                fill.get(node.op, self._gather)(node, row)
        # kernels are compiled for writable arrays; nothing writes to these
        arenas = (self.ints.joined(), self.weights.joined(), self.wides.joined())
        net = k.Net(self.nodes, *arenas, self.rest, self.membrane.joined())
        return Layout(net, self.index, self.last)

    def _row(self, name: str) -> Array:
        row: Array = self.nodes[self.index[name]]
        return row

    def _place_state(self) -> Array:
        """Give every node its places, and compute the state before any input."""
        values: dict[str, Ints] = {}
        parts: list[Array] = []
        size = 0
        for node in self.graph.nodes:
            sources = [values[name] for name in node.inputs]
            op = TABLE[node.op]
            # a linear op of zeros is zero, and the dense rule of a large convolution takes long
            silent = op.linear and not any(s.any() for s in sources)
            if silent or node.op in RESTING:
                values[node.name] = np.zeros((1, *node.shape), np.int64)
            else:
                values[node.name] = op.dense(node, sources)
            blocks = [self._block(node, values[node.name][0])]
            row = self._row(node.name)
            row[k.VALUE], row[k.TOLD] = size, size + node.units
            _, told, cells = state_sizes(node, self.graph)
            if told:
                blocks.append(self._block(self.graph.node[node.inputs[0]], sources[0][0]))
            if cells:
                row[k.CELL] = row[k.TOLD] + told
                ladder_row, _, steps = ladder_rows(node)
                # the tracer starts at zero: in the first cell whose value is zero
                blocks.append(self._block(node, (steps == 0).argmax(axis=1)[ladder_row]))
            size += node.units + told + cells
            parts += blocks
        return np.concatenate([part.astype(np.int32) for part in parts])

    def _block(self, node: Node, array: Array) -> Array:
        """An array that broadcasts against the node's shape, in the order of its block."""
        full = np.broadcast_to(array, node.shape)
        return (np.moveaxis(full, 0, -1) if node.name in self.last else full).reshape(-1)

    def _positions(self, node: Node) -> Ints:
        """Where in the state each unit of the node lies, [*shape]."""
        places: Ints = self._row(node.name)[k.VALUE] + np.arange(node.units)
        if node.name in self.last:
            places = np.moveaxis(places.reshape(*node.shape[1:], node.shape[0]), -1, 0)
        return places.reshape(node.shape)

    def _conv(self, node: Node, row: Array) -> None:
        source, a = self.graph.node[node.inputs[0]], node.attrs
        weight = node.params["weight"]
        d, group = weight.ndim - 2, int(a["group"])
        # one axis is two axes, the first of length one
        lead = (1,) * (2 - d)
        rows, columns = (*lead, *source.shape[1:])
        strides, dilations = (*lead, *a["strides"]), (*lead, *a["dilations"])
        begins = (*(0 for _ in lead), *a["pads"][:d])
        out_rows, out_columns = (*lead, *node.shape[1:])
        kernel = (*lead, *weight.shape[2:])
        channels, width = source.shape[0], weight.shape[0] // group
        taps = _tap_order(kernel[1], strides[1], dilations[1])
        first, runs = _taps(
            columns, out_columns, taps, strides[1], begins[1], dilations[1], group == 1
        )
        row[[k.COLUMN_FIRST, k.COLUMN_TAPS]] = self.ints.add(first), self.ints.add(runs)
        order = list(range(kernel[0]))
        first, runs = _taps(rows, out_rows, order, strides[0], begins[0], dilations[0], False)
        row[[k.ROW_FIRST, k.ROW_TAPS]] = self.ints.add(first), self.ints.add(runs)
        split = weight.reshape(group, width, weight.shape[1], *kernel)[..., taps]
        row[k.WEIGHT] = self.weights.add(split.transpose(0, 2, 3, 4, 1))
        row[[k.ROWS, k.COLUMNS, k.GROUPS, k.PER_GROUP]] = rows, columns, group, channels // group
        row[[k.TAP_ROWS, k.TAP_COLUMNS, k.OUT_COLUMNS]] = *kernel, out_columns
        row[[k.OUT_CHANNELS, k.OUT_PER_GROUP]] = node.shape[0], width
        if source.name in self.last:
            steps = (columns * channels, channels, 1)
        else:
            steps = (columns, 1, rows * columns)
        row[[k.ROW_STRIDE, k.COLUMN_STRIDE, k.CHANNEL_STRIDE]] = steps

    def _linear(self, node: Node, row: Array) -> None:
        """A convolution with one tap: the last axis holds its channels, the others its places."""
        source, weight = self.graph.node[node.inputs[0]], node.params["weight"]
        out, features = weight.shape
        places = source.units // features
        rows, steps = 1, (0, features, 1)
        if source.name in self.last:
            rows = source.shape[0]
            steps = (1, features * rows, rows)
        columns = places // rows
        for count, first, taps in (
            (rows, k.ROW_FIRST, k.ROW_TAPS),
            (columns, k.COLUMN_FIRST, k.COLUMN_TAPS),
        ):
            here = np.arange(count)
            row[first] = self.ints.add(np.arange(count + 1))
            row[taps] = self.ints.add(np.stack([0 * here, here, 0 * here + 1], axis=1))
        row[k.WEIGHT] = self.weights.add(weight.T)
        row[[k.ROWS, k.COLUMNS, k.GROUPS, k.PER_GROUP]] = rows, columns, 1, features
        row[[k.TAP_ROWS, k.TAP_COLUMNS, k.OUT_COLUMNS]] = 1, 1, columns
        row[[k.OUT_CHANNELS, k.OUT_PER_GROUP]] = out, out
        row[[k.ROW_STRIDE, k.COLUMN_STRIDE, k.CHANNEL_STRIDE]] = steps

    def _readout(self, node: Node, row: Array) -> None:
        row[k.BIAS] = self.ints.add(self._block(node, node.params["bias"]))

    def _spike(self, node: Node, row: Array) -> None:
        row[k.BIAS] = self.ints.add(self._block(node, node.params["init"]))
        row[k.LO], row[k.HI] = node.lo, node.hi
        if node.attrs["kind"] == "uniform":
            row[k.THETA] = self.ints.add(self._block(node, node.params["theta"]))
            return
        row[k.KIND] = k.LADDER
        ladder_row, thresholds, values = ladder_rows(node)
        row[k.LADDER_ROW] = self.ints.add(self._block(node, ladder_row))
        row[k.THRESHOLDS], row[k.VALUES] = self.ints.add(thresholds), self.ints.add(values)
        row[k.LADDERS], row[k.STEPS_OF_ROW] = thresholds.shape

    def _lif(self, node: Node, row: Array) -> None:
        p = node.params
        arrays = [p[key] for key in ("leak", "gain", "bias", "theta", "reset")]
        row[k.WIDE] = self.wides.add(np.concatenate([self._block(node, a) for a in arrays]))
        row[k.MEMBRANE] = self.membrane.add(self._block(node, p["initial"]))
        row[k.SHIFT], row[k.HARD] = node.attrs["shift"], node.attrs["kind"] == "hard"

    def _gather(self, node: Node, row: Array) -> None:
        """Which places each output unit reads: the op's own rule, applied to places."""
        # 0 means no place, as the zero outside a window does
        sources = [self._positions(self.graph.node[name]) + 1 for name in node.inputs]
        if node.op in ("add", "product"):
            reads = np.stack([np.broadcast_to(s, node.shape) for s in sources], axis=-1)
        elif node.op == "route":
            reads = TABLE["route"].dense(node, [s[None] for s in sources])[0][..., None]
        else:
            reads = _pool_reads(node, sources[0])
        table = self._table(node, reads)
        present = table > 0
        counts = present.sum(axis=1)
        row[k.FIRST] = self.ints.add(np.concatenate([[0], np.cumsum(counts)]))
        row[k.INDEX] = self.ints.add(table[present] - 1)
        if node.op == "add":
            factors = [node.params[multiplier(i)] for i in range(len(sources))]
            full = np.stack([np.broadcast_to(m, node.shape) for m in factors], axis=-1)
            row[k.MULTIPLIER] = self.ints.add(self._table(node, full))

    def _table(self, node: Node, array: Array) -> Array:
        """[*shape, width] as [units, width] in the order of the node's block."""
        if node.name in self.last:
            array = np.moveaxis(array, 0, -2)
        return array.reshape(node.units, -1)


def _pool_reads(node: Node, source: Ints) -> Ints:
    a = node.attrs
    if "axes" in a:
        axes = a["axes"]
        reads = np.moveaxis(source, axes, range(-len(axes), 0))
    else:
        view = windows(source[None], a["kernel"], a["strides"], a["pads"], a["dilations"])
        reads = view[0]
    return reads.reshape(*node.shape, -1)


def _tap_order(kernel: int, stride: int, dilation: int) -> list[int]:
    """Taps in the order in which one input unit meets neighbouring outputs: first by the residue
    that decides which of them it meets, then backwards."""
    return sorted(range(kernel), key=lambda tap: (tap * dilation % stride, -tap))


def _taps(
    size: int,
    outs: int,
    order: Sequence[int],
    stride: int,
    begin: int,
    dilation: int,
    join: bool,
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Along one axis: input unit x meets the runs [first[x]:first[x + 1]], each (place in
    `order`, output, length): so many taps that meet so many outputs, side by side."""
    first: list[int] = [0]
    runs: list[tuple[int, int, int]] = []
    for x in range(size):
        for place, tap in enumerate(order):
            out, rest = divmod(x + begin - tap * dilation, stride)
            if rest or not 0 <= out < outs:
                continue
            if join and len(runs) > first[-1]:
                place0, out0, length = runs[-1]
                if (place0 + length, out0 + length) == (place, out):
                    runs[-1] = (place0, out0, length + 1)
                    continue
            runs.append((place, out, 1))
        first.append(len(runs))
    return first, runs

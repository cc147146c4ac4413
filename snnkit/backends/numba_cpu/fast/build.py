"""Node by node, the steps that compute a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.charges import Charges, Firing, pooled_units
from snnkit.backends.numba_cpu.fast.isa import Isa
from snnkit.backends.numba_cpu.fast.maps import Geometry, Map, Unfit
from snnkit.backends.numba_cpu.fast.pack import MOST_THRESHOLDS, padded, straight, thresholds
from snnkit.backends.numba_cpu.fast.windows import Window
from snnkit.graph import Boundary, Graph, Node
from snnkit.ops.op import Ints

Array = npt.NDArray[Any]


class Builder(Charges):
    """`problems` are the nodes that have no fast kernel; if there are any, nothing else counts."""

    def __init__(self, graph: Graph, isa: Isa):
        super().__init__(graph, isa)
        self.problems: list[tuple[str, str]] = []
        self.readouts: dict[str, int] = {}
        self.windows: dict[str, Window] = {}
        boundaries = {b.node: b for b in graph.inputs}
        for node in graph.nodes:
            try:
                if node.op == "input":
                    self.input(node, boundaries[node.name])
                elif node.op == "spike":
                    self.spike(node)
                elif node.op == "readout":
                    self.readouts[node.name] = self.charge(node, self.geometry(node))
                elif node.op in ("conv", "linear"):
                    self.windows[node.name] = window = self.window(node)
                    if window.source in self.biased:
                        raise Unfit(f"reads '{window.source}', which is not zero at rest")
                    self.source(window)
            except Unfit as problem:
                self.problems.append((node.name, str(problem)))

    def map(self, name: str, last: bool | None = None) -> Map:
        """The map of a node; pooled and moved values are computed when first asked for, and so is
        a copy with the channels last (or first) where the node's own map has them first (last)."""
        node = self.graph.node[name]
        if last is not None and last != (name in self.last) and len(node.shape) > 1:
            return self.turned(node, last)
        if name in self.maps:
            return self.maps[name]
        if node.op == "max_pool":
            return self.max_pool(node)
        if node.op == "route":
            return self.route(node)
        if node.op in ("input", "spike"):
            raise Unfit(f"reads '{name}', which has no fast kernel")
        return self.narrowed(node)

    def narrowed(self, node: Node) -> Map:
        """Charges that fit 8 bits, as bytes."""
        g, made = self.geometry(node), self.new_map(node)
        columns = {f.P_TARGET: made.index, f.P_CHARGE: self.kept(node)}
        columns |= {f.P_HEIGHT: g.height, f.P_WIDTH: g.width, f.P_CHANNELS: g.channels}
        self.step(f.NARROW, columns | {f.P_D: padded(g.channels)})
        return made

    def turned(self, node: Node, last: bool) -> Map:
        if (node.name, last) not in self.maps:
            own, made = self.map(node.name), self.new_map(node, last)
            self.move(own, made, own.byte_places(), made.byte_places(), True)
        return self.maps[node.name, last]

    def move(self, source: Map, target: Map, begins: Array, ends: Array, done: bool) -> None:
        """Bytes at `begins` of the source go to `ends` of the target, in runs of neighbours."""
        order = np.argsort(ends, kind="stable")
        begins, ends = begins[order], ends[order]
        apart = (np.diff(begins) != 1) | (np.diff(ends) != 1)
        starts = np.concatenate([[True], apart])[: len(ends)].nonzero()[0]
        sizes = np.diff(np.append(starts, len(ends)))
        runs = np.stack([begins[starts], ends[starts], sizes], axis=1).astype(np.int32)
        columns = {f.P_SOURCE: source.index, f.P_TARGET: target.index, f.P_CHANNELS: len(runs)}
        columns |= {f.P_A: self.store.add(runs), f.P_D: int(done)}
        self.step(f.MOVE, columns | {f.P_C: target.zero - source.zero})

    def input(self, node: Node, boundary: Boundary) -> None:
        g, made = self.geometry(node), self.new_map(node)
        scale, offset = (
            np.broadcast_to(a, node.shape).reshape(-1) for a in (boundary.scale, boundary.offset)
        )
        row = {f.P_TARGET: made.index, f.P_HEIGHT: g.height, f.P_WIDTH: g.width}
        port = [b.node for b in self.graph.inputs].index(node.name)
        row |= {f.P_PORT: port, f.P_C: node.lo, f.P_D: node.hi}
        alike = all((a[g.units] == a[g.units[:1, :1]]).all() for a in (scale, offset))
        if not alike or (node.name in self.last and g.channels > 1) or g.width == 1:
            places = made.byte_places()
            near = bool((np.diff(places) == 1).all())
            row |= {f.P_CHANNELS: node.units, f.P_A: self.store.add(places), f.P_E: int(near)}
            row |= {f.P_RATE: self.store.add(scale), f.P_SHIFT: self.store.add(offset)}
            self.step(f.SCATTER, row)
            return
        first = g.units[0, 0]
        row |= {f.P_CHANNELS: g.channels, f.P_A: 4 * g.width, f.P_B: 4 * g.width * g.height}
        scale, offset = scale[first], offset[first]
        exact = bool((np.frexp(scale)[0] == 0.5).all())
        silent = made.zero == 0 and node.lo == 0 and not offset.any()
        row |= {f.P_E: int(exact), f.P_QUIET: int(silent)}
        rate = (1 / scale).astype(np.float32) if exact else scale
        row |= {f.P_RATE: self.store.add(rate), f.P_SHIFT: self.store.add(offset)}
        self.step(f.INPUT, row)

    def spike(self, node: Node) -> None:
        g = self.geometry(node)
        row, ladder, values = thresholds(node)
        if ladder.size > MOST_THRESHOLDS:
            raise Unfit(f"{ladder.size} thresholds")
        init = g.full(node.params["init"], node)
        rows = np.asarray(row).reshape(-1)[g.units]
        if (rows == rows[:1, :1]).all():
            line = self.line(ladder[rows[0, 0]], values[rows[0, 0]], self.charges_of(node))
            if line is not None:
                firing = Firing(node, line, ladder[rows[0, 0]])
                self.sum(self.graph.node[node.inputs[0]], g, init, firing)
                return
        charge = self.charge(self.graph.node[node.inputs[0]], g, init)
        self.ladder(node, g, charge, rows, ladder, values)

    def line(
        self, ladder: Ints, values: Ints, charges: tuple[int, int]
    ) -> tuple[Array, Array] | None:
        """The staircase as a line, in the least precision that proves it."""
        found = straight(ladder, values, np.float32, charges)
        return found or straight(ladder, values, np.float64, charges)

    def charges_of(self, node: Node) -> tuple[int, int]:
        """The least and the greatest charge of a spike node, with its own."""
        source, init = self.graph.node[node.inputs[0]], node.params["init"]
        return source.lo + int(init.min()), source.hi + int(init.max())

    def ladder(
        self, node: Node, g: Geometry, charge: int, rows: Ints, ladder: Ints, values: Ints
    ) -> None:
        """The general staircase. Channels that only fill up a group get a row that stays zero."""
        limits = np.iinfo(np.int32)
        full = np.full((g.height, g.width, padded(g.channels)), len(ladder), np.int32)
        full[..., : g.channels] = rows
        depth = int(ladder.shape[1]).bit_length()
        never = np.full((len(ladder) + 1, 2**depth - 1), limits.max, np.int32)
        never[:-1, : ladder.shape[1]] = np.clip(ladder, limits.min, limits.max)
        cells = np.zeros((len(values) + 1, 2**depth), np.int32)
        cells[:-1, : values.shape[1]] = values
        columns = {f.P_TARGET: self.new_map(node).index, f.P_CHARGE: charge}
        columns |= {f.P_HEIGHT: g.height, f.P_WIDTH: g.width, f.P_CHANNELS: full.shape[2]}
        columns |= {f.P_A: self.store.add(full), f.P_B: self.store.add(never)}
        columns |= {f.P_C: self.store.add(cells), f.P_D: never.shape[1], f.P_E: depth}
        self.step(f.LADDER, columns)

    def max_pool(self, node: Node) -> Map:
        source, g = self.graph.node[node.inputs[0]], self.geometry(node)
        axes = tuple(range(1, len(source.shape)))
        if node.attrs.get("axes", axes) != axes or len(source.shape) > 3:
            return self.max_of_axes(node, source)
        taps, strides = self.taps(node, source)
        columns = self.pooled(g, self.map(source.name, False), taps, strides, g.channels)
        made = self.new_map(node)
        self.step(f.MAX, columns | {f.P_TARGET: made.index})
        return made

    def max_of_axes(self, node: Node, source: Node) -> Map:
        """Any axes: what one unit reads is brought into one column, all units are channels."""
        units = pooled_units(self.graph.node, node)
        tall = Geometry(len(units), 1, node.units, units[:, None])
        flat = Geometry(1, 1, node.units, np.arange(node.units).reshape(1, 1, -1))
        own, column = self.map(source.name), self.spare_map(node, "column", tall)
        self.move(own, column, own.byte_places(), column.byte_places(), True)
        taps = [(y, 0) for y in range(len(units))]
        columns = self.pooled(flat, column, taps, (1, 1), node.units)
        row = self.spare_map(node, "row", flat)
        self.step(f.MAX, columns | {f.P_TARGET: row.index})
        made = self.new_map(node)
        self.move(row, made, row.byte_places(), made.byte_places(), True)
        return made

    def route(self, node: Node) -> Map:
        """Each unit takes the byte of one unit; units without a source keep the value zero."""
        parts = [(self.map(source.name), read) for source, read in self.sources(node)]
        made = self.new_map(node)
        to = made.byte_places()
        for i, (from_map, read) in enumerate(parts):
            here = read >= 0
            begins = from_map.byte_places()[read[here]]
            self.move(from_map, made, begins, to[here], i == len(parts) - 1)
        return made

"""A graph as steps that pass on changes, for the compiled calls of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast import fields as ff
from snnkit.backends.numba_cpu.fast.build import Builder
from snnkit.backends.numba_cpu.fast.charges import Firing, Term
from snnkit.backends.numba_cpu.fast.isa import Isa
from snnkit.backends.numba_cpu.fast.maps import Geometry, Map, Unfit
from snnkit.backends.numba_cpu.fast.pack import LINE, padded, straight, tiles
from snnkit.backends.numba_cpu.fast.windows import Window, frame
from snnkit.backends.numba_cpu.stream import fields as f
from snnkit.backends.numba_cpu.stream import native
from snnkit.backends.numba_cpu.stream.emit import BLOCK
from snnkit.backends.streaming import StreamInput
from snnkit.graph import Boundary, Graph, Node
from snnkit.ops.op import Ints

Array = npt.NDArray[Any]

MOST_SIDE = 2**15
"""Rows and columns share one 32-bit word."""
SLACK = 128
"""Bytes behind every block that a full vector may write."""
Cell = tuple[int, int]
"""Where something lies: (KEPT or SCRATCH, bytes from the start of that area)."""
KEPT, SCRATCH = 0, 1


class Cells(Map):
    """The bytes of a node without padding, and where its changes are listed.

    values : bytes that the readers know. fresh : next bytes, where they are not made from charges.
    """

    values: Cell
    fresh: Cell
    changes: dict[str, Cell]

    @property
    def strides(self) -> tuple[int, int, int]:
        return self.columns * self.pitch, 0, 0

    @property
    def sites(self) -> int:
        return self.shape.height * self.shape.width


@dataclass(frozen=True)
class Touch:
    """Which sites of a target were touched: a flag per site, a list, its length."""

    flags: Cell
    touched: Cell
    count: Cell
    width: int
    height: int

    def columns(self) -> dict[int, Any]:
        return {
            f.S_FLAGS: self.flags,
            f.S_TOUCHED: self.touched,
            f.S_TOUCHED_COUNT: self.count,
            f.S_WIDTH: self.width,
        }


@dataclass(frozen=True)
class Reach:
    """Which targets each row and column of a source meets. rows, columns : offsets of the taps."""

    rows: Sequence[int]
    columns: Sequence[int]
    strides: tuple[int, int]


class StreamPlan(Builder):
    """Steps and the memory they need; `problems` are the nodes without incremental kernels.

    actions : rows of columns; a `Cell` stands for an address in the memory of one stream.
    resting : (cell, integers) that are not zero in the state without any spike.
    """

    def __init__(self, graph: Graph, isa: Isa):
        self.sizes = [0, 0]
        self.actions: list[dict[int, Any]] = []
        self.inputs: list[dict[int, Any]] = []
        self.reads: dict[str, dict[int, Any]] = {}
        self.resting: list[tuple[Cell, Array]] = []
        self.touches: list[Touch] = []
        self.charges: list[tuple[Cell, Touch]] = []
        self.code = native.table(isa.name)
        self.takes_events = StreamInput(graph).takes_events
        super().__init__(graph, isa)
        if not self.problems:
            for name, charge in self.readouts.items():
                self.read(graph.node[name], charge)

    def line(
        self, ladder: Ints, values: Ints, charges: tuple[int, int]
    ) -> tuple[Array, Array] | None:
        """The streaming kernels fire in float32; other staircases are searched."""
        return straight(ladder, values, np.float32, charges)

    def room(self, area: int, size: int) -> Cell:
        at = self.sizes[area]
        self.sizes[area] += -(-(size + SLACK) // LINE) * LINE
        return area, at

    def new_map(self, node: Node, last: bool | None = None) -> Cells:
        own = node.name in self.last
        last = own if last is None else last
        made = super().new_map(node, last)
        g = made.shape
        if len(node.shape) > 3:
            raise Unfit(f"{len(node.shape)} axes")
        if max(g.height, g.width) > MOST_SIDE:
            raise Unfit(f"{g.height} x {g.width} sites; at most {MOST_SIDE} each way")
        injected = node.op == "input" and last == own
        pitch = g.channels + g.channels % 2 if injected else padded(g.channels)
        cells = Cells(made.index, g, made.zero, pitch, (0, 0, 0, 0))
        self.maps[node.name if last == own else (node.name, last)] = cells
        size = cells.sites * pitch
        cells.values = self.room(KEPT, size)
        pairs, sites = 4 * size // 2 + 4, 4 * (cells.sites + 1)
        rooms = {"sites": sites, "begins": sites, "words": pairs, "index": pairs, "count": 8}
        cells.changes = {name: self.room(SCRATCH, n) for name, n in rooms.items()}
        self.rest(cells, cells.values)
        return cells

    def rest(self, cells: Cells, cell: Cell) -> None:
        """Bytes stand for the value zero before anything has fired."""
        bytes_ = np.zeros((cells.sites, cells.pitch), np.uint8)
        bytes_[:, : cells.shape.channels] = cells.zero
        if cells.zero:
            self.resting.append((cell, bytes_))

    def add_fresh(self, cells: Cells) -> Touch:
        """Next bytes of a map, and the list of its sites that have any."""
        cells.fresh = self.room(KEPT, cells.sites * cells.pitch)
        self.rest(cells, cells.fresh)
        return self.new_touch(cells.shape)

    def new_touch(self, g: Geometry) -> Touch:
        sites = g.height * g.width
        flags, listed = self.room(SCRATCH, sites), self.room(SCRATCH, 4 * (sites + 1))
        made = Touch(flags, listed, self.room(SCRATCH, 8), g.width, g.height)
        self.touches.append(made)
        return made

    def source_columns(self, cells: Cells) -> dict[int, Any]:
        c = cells.changes
        names = {f.S_SITES: "sites", f.S_BEGINS: "begins", f.S_WORDS: "words"}
        names |= {f.S_INDEX: "index", f.S_COUNT: "count"}
        return {column: c[name] for column, name in names.items()}

    def target_columns(self, cells: Cells) -> dict[int, Any]:
        c = cells.changes
        columns = {f.S_NEW_SITES: c["sites"], f.S_NEW_BEGINS: c["begins"]}
        columns |= {f.S_NEW_WORDS: c["words"], f.S_NEW_INDEX: c["index"]}
        columns |= {f.S_NEW_COUNT: c["count"], f.S_VALUES: cells.values}
        return columns | {f.S_PITCH: cells.pitch, f.S_GROUPS: cells.pitch // 16}

    def act(self, kind: int, kernel: int | None, *parts: Mapping[int, Any]) -> None:
        row: dict[int, Any] = {f.S_KIND: kind, f.S_KERNEL: 0}
        for part in parts:
            row |= part
        if kernel in (native.FIRE, native.TELL):
            kernel += native.at_a_time(row[f.S_GROUPS])
        if kernel is not None:
            row[f.S_KERNEL] = int(self.code[kernel])
        self.actions.append(row)

    def cells(self, made: Map) -> Cells:
        assert isinstance(made, Cells)
        return made

    def input(self, node: Node, boundary: Boundary) -> None:
        g = self.geometry(node)
        if boundary.dtype == "float16":
            raise Unfit("an input of 16-bit floats")
        if self.takes_events and node.name in self.last:
            raise Unfit("events into rows that a linear layer reads")
        made = self.new_map(node)
        now, touch = self.room(KEPT, made.sites * made.pitch), self.new_touch(g)
        self.rest(made, now)
        scale, offset = (
            np.broadcast_to(a, node.shape).reshape(-1) for a in (boundary.scale, boundary.offset)
        )
        alike = all((a[g.units] == a[g.units[:1, :1]]).all() for a in (scale, offset))
        if alike:
            full = np.ones((2, made.pitch), np.float32)
            full[:, : g.channels] = scale[g.units[0, 0]], offset[g.units[0, 0]]
            scale, offset = full
        row: dict[int, Any] = {f.I_SITES: made.sites, f.I_HEIGHT: g.height, f.I_WIDTH: g.width}
        row |= {f.I_CHANNELS: g.channels, f.I_PITCH: made.pitch, f.I_ZERO: made.zero}
        row |= {f.I_LOW: node.lo, f.I_HIGH: node.hi, f.I_PER_UNIT: int(not alike)}
        row |= {f.I_SCALE: self.store.add(scale), f.I_OFFSET: self.store.add(offset)}
        row |= {f.I_PLACES: self.store.add(made.byte_places())}
        row |= {f.I_FLOATS: self.room(KEPT, 4 * node.units), f.I_NOW: now}
        row |= {f.I_HELD: made.values, f.I_FLAGS: touch.flags, f.I_TOUCHED: touch.touched}
        row |= {f.I_TOUCHED_COUNT: touch.count}
        c = made.changes
        row |= {f.I_NEW_SITES: c["sites"], f.I_NEW_BEGINS: c["begins"], f.I_NEW_WORDS: c["words"]}
        self.inputs.append(row | {f.I_NEW_INDEX: c["index"], f.I_NEW_COUNT: c["count"]})

    def sum(self, start: Node, g: Geometry, init: Ints, firing: Firing | None = None) -> int:
        """Steps that keep charge = init + the value of `start` up to date, and fire it."""
        terms: list[Term] = []
        init = init + self.terms(start, np.ones(g.units.shape, np.int64), g.units, terms)
        charge = self.new_charge(g)
        cell = self.room(KEPT, 4 * self.charge_sizes[charge])
        self.charges.append((cell, self.new_touch(g)))
        full = np.zeros((g.height, g.width, padded(g.channels)), np.int32)
        # sums of proved bounds wrap around and back
        full[..., : g.channels] = init.astype(np.int32)
        self.resting.append((cell, full))
        for term in terms:
            self.term(term, g, charge)
        if firing is not None:
            made = self.new_map(firing.node)
            columns = self.charge_columns(charge, g) | self.target_columns(made)
            full_line = np.zeros((2, padded(g.channels)), np.float32)
            full_line[:, : g.channels] = firing.line
            columns[f.S_RATE], columns[f.S_SHIFT] = (self.store.add(a) for a in full_line)
            columns[f.S_TOP] = self.store.add(np.full(16, firing.ladder.shape[1], np.float32))
            self.act(f.FIRE, native.FIRE, columns)
        return charge

    def charge_columns(self, charge: int, g: Geometry) -> dict[int, Any]:
        cell, touch = self.charges[charge]
        return touch.columns() | {f.S_CHARGE: cell, f.S_SITE_BYTES: 4 * padded(g.channels)}

    def term(self, term: Term, g: Geometry, charge: int) -> None:
        """Changes of one source into a charge."""
        node, times = term.node, term.times
        if (times != times[:1, :1]).any():
            raise Unfit(f"multiplies '{node.name}' by another number at each place")
        times = times[0, 0]
        if node.op in ("conv", "linear", "sum_pool") and not self.in_own_order(term):
            raise Unfit(f"reads charges of '{node.name}' in other places")
        if self.is_window(node):
            self.spread(self.window(node), g, charge, times)
        elif node.op in ("conv", "sum_pool"):
            if not self.is_channelwise_step(node):
                raise Unfit(f"pools over axes {node.attrs.get('axes')}")
            source = self.graph.node[node.inputs[0]]
            weight = np.ones((1, 1, g.channels), np.int64)
            if node.op == "conv":
                kernel = frame(node).kernel
                weight = node.params["weight"].reshape(g.channels, *kernel).transpose(1, 2, 0)
            made = self.cells(self.map(source.name, False))
            self.elements(made, self.reach(node, source), weight * times, g, charge)
        else:
            last = self.order(node, term.read)
            if last is None:
                raise Unfit(f"reads '{node.name}' in other places")
            made = self.cells(self.map(node.name, last))
            one = Reach((0,), (0,), (1, 1))
            self.elements(made, one, times.reshape(1, 1, -1), g, charge)

    def reach(self, node: Node, source: Node) -> Reach:
        taps, strides = self.taps(node, source)
        rows, columns = (list(dict.fromkeys(t[i] for t in taps)) for i in (0, 1))
        return Reach(rows, columns, strides)

    def meets(
        self, reach: Reach, source: Geometry, target: Geometry, steps: tuple[int, int]
    ) -> dict[int, Any]:
        """`reach` as columns; `steps` are the bytes of weights from tap to tap."""
        sizes = ((source.height, target.height), (source.width, target.width))
        places = ((f.S_ROW_FIRST, f.S_ROW_TAPS), (f.S_COLUMN_FIRST, f.S_COLUMN_TAPS))
        found: dict[int, Any] = {}
        for axis, (first_column, taps_column) in enumerate(places):
            offsets = np.array((reach.rows, reach.columns)[axis])
            size, outs = sizes[axis]
            out, tap = (a.reshape(-1) for a in np.indices((outs, len(offsets))))
            at = out * reach.strides[axis] + offsets[tap]
            inside = (at >= 0) & (at < size)
            at, out, tap = at[inside], out[inside], tap[inside]
            order = np.argsort(at, kind="stable")
            first = np.searchsorted(at[order], np.arange(size + 1)).astype(np.int32)
            taps = np.stack([tap[order] * steps[axis], out[order]], axis=1).astype(np.int64)
            found |= {first_column: self.store.add(first), taps_column: self.store.add(taps)}
        return found

    def spread(self, window: Window, g: Geometry, charge: int, times: Ints) -> None:
        source = self.cells(self.source(window))
        outputs, taps, span, channels = window.weight.shape
        rows = list(dict.fromkeys(row for row, _ in window.taps))
        columns = [c + j for r, c in window.taps if r == rows[0] for j in range(span)]
        pairs = source.pitch // 2
        shape = (padded(outputs), len(rows), len(columns), 2 * pairs)
        if taps * span != len(rows) * len(columns):
            raise Unfit("taps that are no rectangle")
        weight = np.zeros(shape, np.int8)
        weight[:outputs, ..., :channels] = window.weight.reshape(outputs, *shape[1:3], channels)
        reach, first = Reach(rows, columns, window.strides), 0
        multiplied = bool((times != 1).any())
        wide = np.zeros(padded(outputs), np.int32)
        wide[:outputs] = times.astype(np.int32)
        for groups in tiles(outputs):
            part = weight[16 * first :][: 16 * groups].reshape(16 * groups, *shape[1:3], pairs, 2)
            block = BLOCK * groups * pairs
            steps = (block * len(columns), block)
            target = self.charge_columns(charge, g)
            area, at = target[f.S_CHARGE]
            target[f.S_CHARGE] = (area, at + 64 * first)
            target[f.S_WEIGHT] = self.store.add(part.transpose(1, 2, 3, 0, 4))
            target[f.S_TIMES] = self.store.add(wide[16 * first :][: 16 * groups])
            kernel = native.SPREAD_TIMES if multiplied else native.SPREAD
            meets = self.meets(reach, source.shape, g, steps)
            self.act(f.SPREAD, kernel + groups - 1, self.source_columns(source), meets, target)
            first += groups

    def elements(self, source: Cells, reach: Reach, weight: Ints, g: Geometry, charge: int) -> None:
        """weight [rows, columns, channels], or one for all taps."""
        wide = np.zeros((len(reach.rows), len(reach.columns), padded(g.channels)), np.int32)
        wide[..., : g.channels] = weight.astype(np.int32)
        step = 4 * padded(g.channels)
        meets = self.meets(reach, source.shape, g, (step * len(reach.columns), step))
        columns = self.charge_columns(charge, g) | {f.S_WEIGHT: self.store.add(wide)}
        self.act(f.ELEMENT, None, self.source_columns(source), meets, columns)

    def step(self, kind: int, columns: Mapping[int, int]) -> None:
        """The one step of the one-shot plan that is translated: the general staircase."""
        assert kind == ff.LADDER
        made = next(m for m in self.maps.values() if m.index == columns[ff.P_TARGET])
        cells = self.cells(made)
        cells.fresh = self.room(KEPT, cells.sites * cells.pitch)
        self.rest(cells, cells.fresh)
        row = self.charge_columns(columns[ff.P_CHARGE], cells.shape)
        row |= self.target_columns(cells) | {f.S_FRESH: cells.fresh}
        row |= {f.S_A: columns[ff.P_A], f.S_B: columns[ff.P_B], f.S_C: columns[ff.P_C]}
        row |= {f.S_D: columns[ff.P_D], f.S_E: columns[ff.P_CHANNELS]}
        self.act(f.LADDER, native.TELL, row)

    def narrowed(self, node: Node) -> Map:
        raise Unfit(f"reads charges of '{node.name}' ({node.op}) as bytes")

    def max_of_axes(self, node: Node, source: Node) -> Map:
        raise Unfit(f"pools over axes {node.attrs.get('axes')} of {source.shape}")

    def max_pool(self, node: Node) -> Map:
        source = self.graph.node[node.inputs[0]]
        axes = tuple(range(1, len(source.shape)))
        if node.attrs.get("axes", axes) != axes:
            return self.max_of_axes(node, source)
        read, made = self.cells(self.map(source.name, False)), self.new_map(node)
        touch = self.add_fresh(made)
        taps, strides = self.taps(node, source)
        columns = self.meets(self.reach(node, source), read.shape, made.shape, (0, 0))
        columns |= self.source_columns(read) | self.target_columns(made) | touch.columns()
        columns |= {f.S_FRESH: made.fresh, f.S_TIMES: read.values, f.S_TOP: read.pitch}
        columns |= {f.S_A: self.store.add(np.array(taps, np.int32)), f.S_B: len(taps)}
        columns |= {f.S_C: strides[0], f.S_D: strides[1]}
        columns |= {f.S_E: read.shape.height, f.S_F: read.shape.width}
        self.act(f.MAX, native.TELL, columns)
        return made

    def move(self, source: Map, target: Map, begins: Array, ends: Array, done: bool) -> None:
        read, made = self.cells(source), self.cells(target)
        if not hasattr(made, "fresh"):
            self.moved = self.add_fresh(made)
        order = np.argsort(begins, kind="stable")
        first = np.searchsorted(begins[order], np.arange(read.sites * read.pitch + 1))
        columns = self.source_columns(read) | self.target_columns(made) | self.moved.columns()
        columns |= {f.S_FRESH: made.fresh, f.S_TOP: read.pitch, f.S_C: read.shape.width}
        columns |= {f.S_A: self.store.add(first.astype(np.int32))}
        columns |= {f.S_B: self.store.add(ends[order].astype(np.int32))}
        self.act(f.MOVE, None, columns)
        if done:
            self.act(f.TELL, native.TELL, columns)

    def read(self, node: Node, charge: int) -> None:
        g = self.geometry(node)
        places = g.charge_places()
        columns = self.charge_columns(charge, g) | {f.S_A: self.store.add(places)}
        columns |= {f.S_B: self.room(KEPT, 4 * node.units), f.S_C: self.room(KEPT, 4 * node.units)}
        columns |= {f.S_D: node.units, f.S_E: self.charge_sizes[charge]}
        (scale,) = [b.scale for b in self.graph.outputs if b.node == node.name]
        full = np.broadcast_to(scale, node.shape).reshape(-1)
        columns[f.S_RATE] = self.store.add(full)
        self.act(f.READ, None, columns)
        self.reads[node.name] = columns

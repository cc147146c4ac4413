"""Node by node, the steps that compute a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.isa import Isa
from snnkit.backends.numba_cpu.fast.maps import Geometry, Map, Unfit, geometry
from snnkit.backends.numba_cpu.fast.pack import MOST_THRESHOLDS, padded, straight, thresholds
from snnkit.backends.numba_cpu.fast.plan import BYTES, Layout
from snnkit.backends.numba_cpu.fast.windows import Window, frame, is_channelwise
from snnkit.graph import Boundary, Graph, Node
from snnkit.ops import TABLE
from snnkit.ops.arithmetic import multiplier
from snnkit.ops.op import Ints

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Term:
    """times * the value of a node, part of a charge."""

    node: Node
    times: Ints


class Builder(Layout):
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
                    self.readouts[node.name] = self.charge(node)
                elif node.op in ("conv", "linear"):
                    self.windows[node.name] = self.window(node)
                    self.source(self.windows[node.name])
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
        if node.op in BYTES:
            raise Unfit(f"reads '{name}', which has no fast kernel")
        raise Unfit(f"reads charges of '{name}' ({node.op}) as bytes")

    def turned(self, node: Node, last: bool) -> Map:
        if (node.name, last) not in self.maps:
            own, made = self.map(node.name), self.new_map(node, last)
            self.move(own, made, own.byte_places(), made.byte_places(), True)
        return self.maps[node.name, last]

    def move(self, source: Map, target: Map, begins: Array, ends: Array, done: bool) -> None:
        columns = {f.P_SOURCE: source.index, f.P_TARGET: target.index, f.P_CHANNELS: len(begins)}
        columns |= {f.P_A: self.store.add(begins), f.P_B: self.store.add(ends)}
        self.step(f.MOVE, columns | {f.P_C: target.zero - source.zero, f.P_D: int(done)})

    def input(self, node: Node, boundary: Boundary) -> None:
        g, made = self.geometry(node), self.new_map(node)
        scale, offset = (
            np.broadcast_to(a, node.shape).reshape(-1) for a in (boundary.scale, boundary.offset)
        )
        row = {f.P_TARGET: made.index, f.P_HEIGHT: g.height, f.P_WIDTH: g.width}
        row |= {f.P_C: node.lo, f.P_D: node.hi}
        alike = all((a[g.units] == a[g.units[:1, :1]]).all() for a in (scale, offset))
        if not alike or (node.name in self.last and g.channels > 1) or g.width == 1:
            row |= {f.P_CHANNELS: node.units, f.P_A: self.store.add(made.byte_places())}
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
            line = straight(ladder[rows[0, 0]], values[rows[0, 0]])
            if line is not None:
                self.sum(node, g, init, line, ladder[rows[0, 0]])
                return
        charge = self.charge(node, init)
        self.ladder(node, g, charge, rows, ladder, values)

    def ladder(
        self, node: Node, g: Geometry, charge: int, rows: Ints, ladder: Ints, values: Ints
    ) -> None:
        """The general staircase. Channels that only fill up a group get a row that stays zero."""
        limits = np.iinfo(np.int32)
        full = np.full((g.height, g.width, padded(g.channels)), len(ladder), np.int32)
        full[..., : g.channels] = rows
        ladder = np.clip(ladder, limits.min, limits.max)
        ladder = np.vstack([ladder, np.full((1, ladder.shape[1]), limits.max)]).astype(np.int32)
        values = np.vstack([values, np.zeros((1, values.shape[1]))]).astype(np.int32)
        columns = {f.P_TARGET: self.new_map(node).index, f.P_CHARGE: charge}
        columns |= {f.P_HEIGHT: g.height, f.P_WIDTH: g.width, f.P_CHANNELS: full.shape[2]}
        columns |= {f.P_A: self.store.add(full), f.P_B: self.store.add(ladder)}
        columns |= {f.P_C: self.store.add(values), f.P_D: ladder.shape[1]}
        self.step(f.LADDER, columns)

    def charge(self, node: Node, init: Ints | None = None) -> int:
        """Steps for the charge of a spike or readout node; where it lies."""
        g = self.geometry(node)
        return self.sum(node, g, np.zeros(g.units.shape, np.int64) if init is None else init)

    def terms(self, node: Node, times: Ints, g: Geometry, terms: list[Term]) -> Ints:
        """Append the terms behind `node`; returns the constant."""
        if node.op in BYTES:
            terms.append(Term(node, times))
            return np.zeros(g.units.shape, np.int64)
        here = self.geometry(node)
        if here.units.shape != g.units.shape or (here.units != g.units).any():
            raise Unfit(f"reads '{node.name}' in another order of units")
        if node.op == "readout":
            constant = times * here.full(node.params["bias"], node)
            return constant + self.terms(self.graph.node[node.inputs[0]], times, g, terms)
        if node.op == "add":
            constant = np.zeros(g.units.shape, np.int64)
            for i, name in enumerate(node.inputs):
                factor = here.full(node.params[multiplier(i)], node)
                source = self.graph.node[name]
                constant = constant + self.terms(source, times * factor, g, terms)
            return constant
        terms.append(Term(node, times))
        return np.zeros(g.units.shape, np.int64)

    def sum(
        self,
        node: Node,
        g: Geometry,
        init: Ints,
        line: tuple[Array, Array] | None = None,
        ladder: Ints | None = None,
    ) -> int:
        """charge = init + terms; with `line` fired into a map, else kept: returns where."""
        terms: list[Term] = []
        ones = np.ones(g.units.shape, np.int64)
        start = node if node.op == "readout" else self.graph.node[node.inputs[0]]
        init = init + self.terms(start, ones, g, terms)
        if any(np.abs(t.times).max() >= 2**31 for t in terms):
            raise Unfit("a multiplier of 2^31")
        direct = [t for t in terms if self.is_window(t.node) and (t.times == 1).all()]
        others = [t for t in terms if t not in direct]
        init = init + sum((self.correction(t.node, g) for t in direct), np.zeros_like(ones))
        charge = -1
        if others or len(direct) != 1 or line is None:
            charge = self.new_charge(g)
        begun = False
        for term in others:
            self.add_term(term, g, charge, None if begun else init)
            begun = True
        for i, term in enumerate(direct):
            window = self.window(term.node)
            last = line is not None and i == len(direct) - 1
            columns = self.start(init, charge if begun else -1)
            columns |= self.fired(node, g, line) if last and line else {f.P_CHARGE: charge}
            source = self.source(window)
            if last and not begun and ladder is not None:
                columns[f.P_QUIET] = int(self.quiet(source, node, init, ladder))
            self.gather(g, window, source, columns)
            begun = True
        if line is not None and not direct:
            self.gather(g, None, None, self.start(init, charge) | self.fired(node, g, line))
        return charge

    def source(self, window: Window) -> Map:
        return self.map(window.source, window.last)

    def is_window(self, node: Node) -> bool:
        return node.op == "linear" or (node.op == "conv" and not is_channelwise(node))

    def correction(self, node: Node, g: Geometry) -> Ints:
        """Bytes are values minus lo: what has to be added for that, the padding included."""
        window = self.window(node)
        zero = self.source(window).zero
        total = window.weight.astype(np.int64).sum(axis=(1, 2, 3))
        return np.broadcast_to(-zero * total, g.units.shape)

    def order(self, node: Node, g: Geometry) -> bool:
        """Whether g has the node's channels last."""
        for last in (False, True):
            units = geometry(node, last).units
            if units.shape == g.units.shape and (units == g.units).all():
                return last
        raise Unfit(f"adds '{node.name}', which has another shape")

    def start(self, init: Ints, charge: int) -> dict[int, int]:
        """Where a site's charge begins: constants, or what was added up so far."""
        if charge >= 0:
            step = 4 * padded(init.shape[2])
            return {f.P_OTHER: charge, f.P_INIT_STEP: step, f.P_INIT_ROW: step * init.shape[1]}
        address, step, row = self.per_site(init)
        return {f.P_INIT: address, f.P_INIT_STEP: step, f.P_INIT_ROW: row}

    def fired(self, node: Node, g: Geometry, line: tuple[Array, Array]) -> dict[int, int]:
        made = self.new_map(node)
        full = np.zeros((2, padded(g.channels)), np.float32)
        full[:, : g.channels] = line
        top = np.full(16, node.hi - node.lo, np.float32)
        rate, shift = self.store.add(full[0]), self.store.add(full[1])
        columns = {f.P_TARGET: made.index, f.P_RATE: rate, f.P_SHIFT: shift}
        return columns | {f.P_TOP: self.store.add(top)}

    def quiet(self, source: Map, node: Node, init: Ints, ladder: Ints) -> bool:
        """No event at a site means no spike there."""
        return source.zero == 0 and node.lo == 0 and bool((init < ladder[:, 0]).all())

    def add_term(self, term: Term, g: Geometry, charge: int, init: Ints | None) -> None:
        """charge = (init or charge) + times * value."""
        node, columns = term.node, {f.P_CHARGE: charge}
        plain = np.zeros(g.units.shape, np.int64)
        if self.is_window(node):
            part, window = self.new_charge(g), self.window(node)
            start = self.start(plain + self.correction(node, g), -1)
            self.gather(g, window, self.source(window), start | {f.P_CHARGE: part})
            columns[f.P_OTHER] = part
        elif node.op in ("conv", "sum_pool"):
            columns[f.P_OTHER] = self.channelwise(node, g)
        elif node.op in BYTES:
            last = self.order(node, g)
            columns[f.P_SOURCE] = self.map(node.name, last).index
        else:
            raise Unfit(f"adds '{node.name}' ({node.op})")
        columns |= {f.P_HEIGHT: g.height, f.P_WIDTH: g.width, f.P_CHANNELS: padded(g.channels)}
        columns[f.P_A], columns[f.P_C], columns[f.P_B] = self.per_site(term.times)
        if init is not None:
            columns |= self.start(init, -1)
        self.step(f.SUM, columns)

    def channelwise(self, node: Node, g: Geometry) -> int:
        """A depthwise convolution or a windowed sum, as charges."""
        source = self.graph.node[node.inputs[0]]
        made, charge = self.map(source.name, False), self.new_charge(g)
        taps, strides = self.taps(node, source)
        weight = np.zeros((len(taps), padded(g.channels)), np.int32)
        weight[:, : g.channels] = 1
        if node.op == "conv":
            weight[:, : g.channels] = node.params["weight"].reshape(g.channels, -1).T
        columns = self.pooled(g, made, taps, strides, padded(g.channels))
        columns |= {f.P_CHARGE: charge, f.P_A: self.store.add(weight)}
        columns |= self.start(np.zeros(g.units.shape, np.int64), -1)
        self.step(f.CHANNELWISE, columns)
        return charge

    def taps(self, node: Node, source: Node) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Window of a channelwise op; over whole axes it is the whole source."""
        if "axes" not in node.attrs:
            a = frame(node)
            return a.taps(), a.strides
        if node.attrs["axes"] != tuple(range(1, len(source.shape))):
            raise Unfit(f"pools over axes {node.attrs['axes']}")
        g = geometry(source, False)
        return [(y, x) for y in range(g.height) for x in range(g.width)], (1, 1)

    def pooled(
        self,
        g: Geometry,
        source: Map,
        taps: list[tuple[int, int]],
        strides: tuple[int, int],
        channels: int,
    ) -> dict[int, int]:
        columns = {f.P_SOURCE: source.index, f.P_CHANNELS: channels}
        columns |= {f.P_HEIGHT: g.height, f.P_WIDTH: g.width}
        columns |= {f.P_ROW_STRIDE: strides[0], f.P_STRIDE: strides[1]}
        address = self.store.add(np.array(taps, np.int32))
        return columns | {f.P_TAPS: address, f.P_TAP_COUNT: len(taps)}

    def max_pool(self, node: Node) -> Map:
        source, g = self.graph.node[node.inputs[0]], self.geometry(node)
        taps, strides = self.taps(node, source)
        columns = self.pooled(g, self.map(source.name, False), taps, strides, g.channels)
        made = self.new_map(node)
        self.step(f.MAX, columns | {f.P_TARGET: made.index})
        return made

    def route(self, node: Node) -> Map:
        """Each unit takes the byte of one unit; units without a source keep the value zero."""
        sources = [self.graph.node[name] for name in dict.fromkeys(node.inputs)]
        maps = [self.map(s.name) for s in sources]
        made = self.new_map(node)
        to = made.byte_places()
        for i, (source, from_map) in enumerate(zip(sources, maps, strict=True)):
            labels = np.arange(1, source.units + 1).reshape(1, *source.shape)
            asked: list[Any] = [
                labels if n == source.name else np.zeros((1, *self.graph.node[n].shape), np.int64)
                for n in node.inputs
            ]
            read = TABLE["route"].dense(node, asked).reshape(-1).astype(np.int64)
            here = read > 0
            begins = from_map.byte_places()[read[here] - 1]
            self.move(from_map, made, begins, to[here], i == len(sources) - 1)
        return made

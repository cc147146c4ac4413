"""Charges as steps: what a node sums up, in which order its units lie, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.maps import Geometry, Map, Unfit, geometry
from snnkit.backends.numba_cpu.fast.pack import padded
from snnkit.backends.numba_cpu.fast.plan import BYTES, Layout
from snnkit.backends.numba_cpu.fast.windows import Window, frame, is_channelwise
from snnkit.graph import Node
from snnkit.ops import TABLE
from snnkit.ops.arithmetic import multiplier
from snnkit.ops.op import Ints
from snnkit.ops.synapses import windows

Array = npt.NDArray[Any]

MOST_PICKED = 2**24
"""Units that one step picks one by one."""


@dataclass(frozen=True, eq=False)
class Term:
    """times * the value of a node, part of a charge; read : which unit of the node each site and
    channel of the charge takes, -1 for none. Both [height, width, channels]."""

    node: Node
    times: Ints
    read: Ints


@dataclass(frozen=True, eq=False)
class Firing:
    """A spike node behind a charge: rate and shift of its staircase, and its thresholds."""

    node: Node
    line: tuple[Array, Array]
    ladder: Ints


class Charges(Layout):
    """The steps that make charges."""

    def map(self, name: str, last: bool | None = None) -> Map:
        """The bytes of a node."""
        raise NotImplementedError

    def charge(self, node: Node, g: Geometry, init: Ints | None = None) -> int:
        """Steps for init + the value of a node, in the order of g; where it lies."""
        return self.sum(node, g, np.zeros(g.units.shape, np.int64) if init is None else init)

    def kept(self, node: Node) -> int:
        """Where the value of a node lies as a charge, in the node's own order."""
        if node.name not in self.values:
            self.values[node.name] = self.charge(node, self.geometry(node))
        return self.values[node.name]

    def terms(self, node: Node, times: Ints, read: Ints, terms: list[Term]) -> Ints:
        """Append the terms behind `node`; returns the constant."""
        if node.op == "readout":
            bias = np.broadcast_to(node.params["bias"], node.shape).reshape(-1)
            constant = np.where(read < 0, 0, times * bias[read])
            return constant + self.terms(self.graph.node[node.inputs[0]], times, read, terms)
        constant = np.zeros(read.shape, np.int64)
        if node.op == "add":
            for i, name in enumerate(node.inputs):
                source = self.graph.node[name]
                labels = np.arange(source.units).reshape(source.shape)
                behind = np.broadcast_to(labels, node.shape).reshape(-1)[read]
                factor = np.broadcast_to(node.params[multiplier(i)], node.shape).reshape(-1)[read]
                behind = np.where(read < 0, -1, behind)
                constant = constant + self.terms(source, times * factor, behind, terms)
            return constant
        if node.op == "route" and node.hi - node.lo > 255:
            for source, labels in self.sources(node):
                behind = np.where(read < 0, -1, labels[read])
                constant = constant + self.terms(source, times, behind, terms)
            return constant
        terms.append(Term(node, times, read))
        return constant

    def sources(self, node: Node) -> list[tuple[Node, Ints]]:
        """The nodes that a route reads, each with the unit that each unit of the route takes."""
        found = []
        for name in dict.fromkeys(node.inputs):
            source = self.graph.node[name]
            labels = np.arange(1, source.units + 1).reshape(1, *source.shape)
            asked: list[Any] = [
                labels if n == name else np.zeros((1, *self.graph.node[n].shape), np.int64)
                for n in node.inputs
            ]
            read = TABLE["route"].dense(node, asked).reshape(-1).astype(np.int64)
            found.append((source, read - 1))
        return found

    def sum(self, start: Node, g: Geometry, init: Ints, firing: Firing | None = None) -> int:
        """charge = init + the value of `start`, fired into a map or kept: returns where."""
        terms: list[Term] = []
        ones = np.ones(g.units.shape, np.int64)
        init = init + self.terms(start, ones, g.units, terms)
        if any(np.abs(t.times).max() >= 2**31 for t in terms):
            raise Unfit("a multiplier of 2^31")
        direct = [t for t in terms if self.is_direct(t)]
        others = [t for t in terms if t not in direct]
        init = init + sum((self.correction(t.node, g) for t in direct), np.zeros_like(ones))
        charge = -1
        if others or len(direct) != 1 or firing is None:
            charge = self.new_charge(g)
        begun = False
        for term in others:
            self.add_term(term, g, charge, None if begun else init)
            begun = True
        for i, term in enumerate(direct):
            window = self.window(term.node)
            last = firing is not None and i == len(direct) - 1
            columns = self.start(init, charge if begun else -1)
            columns |= self.fired(firing, g) if last and firing else {f.P_CHARGE: charge}
            source = self.source(window)
            if last and not begun and firing is not None:
                columns[f.P_QUIET] = int(self.quiet(source, firing, init))
            self.gather(g, window, source, columns)
            begun = True
        if firing is not None and not direct:
            self.gather(g, None, None, self.start(init, charge) | self.fired(firing, g))
        elif not begun:
            # only constants
            self.gather(g, None, None, self.start(init, -1) | {f.P_CHARGE: charge})
        return charge

    def source(self, window: Window) -> Map:
        return self.map(window.source, window.last)

    def is_window(self, node: Node) -> bool:
        return node.op == "linear" or (node.op == "conv" and not is_channelwise(node))

    def is_direct(self, term: Term) -> bool:
        """Whether the kernels of synapses may add the term to the charge themselves."""
        own = self.is_window(term.node) and self.in_own_order(term)
        return own and bool((term.times == 1).all())

    def in_own_order(self, term: Term) -> bool:
        return np.array_equal(term.read, self.geometry(term.node).units)

    def correction(self, node: Node, g: Geometry) -> Ints:
        """Bytes are values minus lo: what has to be added for that, the padding included."""
        window = self.window(node)
        zero = self.source(window).zero
        total = window.weight.astype(np.int64).sum(axis=(1, 2, 3))
        return np.broadcast_to(-zero * total, g.units.shape)

    def start(self, init: Ints, charge: int) -> dict[int, int]:
        """Where a site's charge begins: constants, or what was added up so far."""
        if charge >= 0:
            step = 4 * padded(init.shape[2])
            return {f.P_OTHER: charge, f.P_INIT_STEP: step, f.P_INIT_ROW: step * init.shape[1]}
        address, step, row = self.per_site(init)
        return {f.P_INIT: address, f.P_INIT_STEP: step, f.P_INIT_ROW: row}

    def fired(self, firing: Firing, g: Geometry) -> dict[int, int]:
        node = firing.node
        made = self.new_map(node)
        full = np.zeros((2, padded(g.channels)), firing.line[0].dtype)
        full[:, : g.channels] = firing.line
        # a staircase may end below the node's bound
        top = np.full(16, firing.ladder.shape[1], np.float32)
        rate, shift = self.store.add(full[0]), self.store.add(full[1])
        columns = {f.P_TARGET: made.index, f.P_RATE: rate, f.P_SHIFT: shift}
        columns[f.P_WIDE] = f.WIDE if full.dtype == np.float64 else 0
        return columns | {f.P_TOP: self.store.add(top)}

    def quiet(self, source: Map, firing: Firing, init: Ints) -> bool:
        """No event at a site means no spike there."""
        silent = source.zero == 0 and firing.node.lo == 0
        return silent and bool((init < firing.ladder[:, 0]).all())

    def add_term(self, term: Term, g: Geometry, charge: int, init: Ints | None) -> None:
        """charge = (init or charge) + times * value."""
        node, columns = term.node, {f.P_CHARGE: charge}
        last = self.order(node, term.read) if node.op in BYTES else None
        if last is not None:
            columns[f.P_SOURCE] = self.map(node.name, last).index
        elif self.in_own_order(term) and self.is_window(node):
            part, window = self.new_charge(g), self.window(node)
            constant = self.start(np.zeros(g.units.shape, np.int64) + self.correction(node, g), -1)
            self.gather(g, window, self.source(window), constant | {f.P_CHARGE: part})
            columns[f.P_OTHER] = part
        elif self.in_own_order(term) and self.is_channelwise_step(node):
            columns[f.P_OTHER] = self.channelwise(node, g)
        elif node.op == "sum_pool" and not self.is_channelwise_step(node):
            source, taps = self.graph.node[node.inputs[0]], pooled_units(self.graph.node, node)
            read = np.where(term.read[None] < 0, -1, taps[:, term.read])
            columns[f.P_OTHER] = self.picked(source, g, read)
        else:
            columns[f.P_OTHER] = self.picked(node, g, term.read[None])
        columns |= {f.P_HEIGHT: g.height, f.P_WIDTH: g.width, f.P_CHANNELS: padded(g.channels)}
        columns[f.P_A], columns[f.P_C], columns[f.P_B] = self.per_site(term.times)
        if init is not None:
            columns |= self.start(init, -1)
        self.step(f.SUM, columns)

    def order(self, node: Node, read: Ints) -> bool | None:
        """Whether units are read with the node's channels last or first; None: in neither way."""
        for last in (node.name in self.last, node.name not in self.last):
            if np.array_equal(geometry(node, last).units, read):
                return last
        return None

    def picked(self, source: Node, g: Geometry, read: Ints) -> int:
        """A charge of picked units, summed over the first axis of read [K, height, width,
        channels]; where it lies."""
        if read.size > MOST_PICKED:
            raise Unfit(f"picks {read.size} units")
        charge = self.new_charge(g)
        columns = {f.P_HEIGHT: g.height, f.P_WIDTH: g.width, f.P_CHANNELS: padded(g.channels)}
        if source.op in BYTES and source.hi - source.lo <= 255:
            made = self.map(source.name)
            places, columns[f.P_SOURCE] = made.byte_places(), made.index
        else:
            columns[f.P_OTHER] = self.kept(source)
            places = self.geometry(source).charge_places()
        index = np.full((g.height, g.width, len(read), padded(g.channels)), -1, np.int32)
        index[..., : g.channels] = np.moveaxis(np.where(read < 0, -1, places[read]), 0, 2)
        columns |= {f.P_CHARGE: charge, f.P_A: self.store.add(index), f.P_B: len(read)}
        self.step(f.PICK, columns)
        return charge

    def is_channelwise_step(self, node: Node) -> bool:
        """A depthwise convolution, or a sum over windows or all of space, of bytes."""
        if node.op == "conv":
            return True
        source = self.graph.node[node.inputs[0]]
        space = tuple(range(1, len(source.shape)))
        everything = node.attrs.get("axes", space) == space and len(source.shape) <= 3
        return node.op == "sum_pool" and everything and source.hi - source.lo <= 255

    def channelwise(self, node: Node, g: Geometry) -> int:
        """A depthwise convolution or a windowed sum, as charges."""
        source = self.graph.node[node.inputs[0]]
        made, charge = self.map(source.name, False), self.new_charge(g)
        taps, strides = self.taps(node, source)
        columns = self.pooled(g, made, taps, strides, padded(g.channels))
        columns |= {f.P_CHARGE: charge}
        if node.op == "conv":
            weight = np.zeros((len(taps), padded(g.channels)), np.int32)
            weight[:, : g.channels] = node.params["weight"].reshape(g.channels, -1).T
            columns[f.P_A] = self.store.add(weight)
        columns |= self.start(np.zeros(g.units.shape, np.int64), -1)
        self.step(f.CHANNELWISE, columns)
        return charge

    def taps(self, node: Node, source: Node) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Window of a channelwise op; over all of space it is the whole source."""
        if "axes" not in node.attrs:
            a = frame(node)
            return a.taps(), a.strides
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


def pooled_units(nodes: Any, node: Node) -> Ints:
    """Units of the source that each unit of a pooling node reads, [taps, units]; -1 outside."""
    source = nodes[node.inputs[0]]
    labels = np.arange(source.units).reshape(source.shape)
    if "axes" in node.attrs:
        front = np.moveaxis(labels, node.attrs["axes"], range(len(node.attrs["axes"])))
        return front.reshape(-1, node.units)
    a = node.attrs
    view = windows(labels[None], a["kernel"], a["strides"], a["pads"], a["dilations"], -1)
    return view.reshape(node.units, -1).T

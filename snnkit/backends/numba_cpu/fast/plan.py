"""A graph as maps and steps for the compiled engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.isa import Isa
from snnkit.backends.numba_cpu.fast.maps import Geometry, Map, Unfit, geometry
from snnkit.backends.numba_cpu.fast.pack import Store, pack_weights, padded, tiles
from snnkit.backends.numba_cpu.fast.windows import (
    Window,
    base_of_linear,
    conv_window,
    frame,
    is_channelwise,
    linear_window,
)
from snnkit.graph import Graph, Node

Array = npt.NDArray[Any]

BYTES = ("input", "spike", "max_pool", "route")
"""Ops whose values can lie in a map of bytes."""
NEAR = 48 * 1024
"""Bytes of weights of a tile that stay in the L1 cache beside everything else."""
NEVER = 2**40


class Layout:
    """Maps and charges of a graph, made when they are first asked for."""

    def __init__(self, graph: Graph, isa: Isa):
        self.graph, self.isa, self.store = graph, isa, Store()
        self.last = _channels_last(graph)
        self.pads = _pads(graph)
        self.maps: dict[str | tuple[str, bool | str], Map] = {}
        self.values: dict[str, int] = {}
        self.biased = _not_zero_at_rest(graph)
        self.charge_sizes: list[int] = []
        self.steps: list[Array] = []

    def geometry(self, node: Node) -> Geometry:
        return geometry(node, node.name in self.last)

    def new_map(self, node: Node, last: bool | None = None) -> Map:
        """Room for the bytes of a node; `last` if not in the node's own order of axes."""
        own = node.name in self.last
        last = own if last is None else last
        g = geometry(node, last)
        if node.hi - node.lo > 255:
            raise Unfit(f"values {node.lo}..{node.hi} where bytes are read")
        pitch = -(-g.channels // 4) * 4
        if node.op == "spike":
            pitch = padded(g.channels)
        elif node.op == "input" and g.channels < 3 and node.lo == 0 and self._only_windows(node):
            pitch = g.channels
        pads = (0, 0, 0, 0) if last else self.pads.get(node.name, (0, 0, 0, 0))
        made = Map(len(self.maps), g, -node.lo, pitch, pads)
        self.maps[node.name if last == own else (node.name, last)] = made
        return made

    def spare_map(self, node: Node, use: str, g: Geometry) -> Map:
        """Room for bytes on the way to a node's own map."""
        made = Map(len(self.maps), g, -node.lo, -(-g.channels // 4) * 4, (0, 0, 0, 0))
        self.maps[node.name, use] = made
        return made

    def _only_windows(self, node: Node) -> bool:
        readers = [self.graph.node[name] for name in self.graph.consumers[node.name]]
        return all(r.op == "conv" and not is_channelwise(r) for r in readers)

    def new_charge(self, g: Geometry) -> int:
        self.charge_sizes.append(g.height * g.width * padded(g.channels))
        return len(self.charge_sizes) - 1

    def step(self, kind: int, columns: Mapping[int, int]) -> None:
        row = np.zeros(f.STEP, np.int64)
        row[[f.P_SOURCE, f.P_TARGET, f.P_CHARGE, f.P_OTHER]] = -1
        row[f.P_KIND] = kind
        for column, value in columns.items():
            row[column] = value
        self.steps.append(row)

    def per_site(self, full: Array) -> tuple[int, int, int]:
        """Integers [height, width, channels] as (address, bytes from site to site, from row to
        row): one row of channels where all sites have the same."""
        width, channels = full.shape[1:]
        if (full == full[:1, :1]).all():
            full = full[:1, :1]
        wide = np.zeros((*full.shape[:2], padded(channels)), np.int32)
        # sums of proved bounds wrap around and back
        wide[..., :channels] = full.astype(np.int32)
        step = 0 if full.shape[:2] == (1, 1) else 4 * padded(channels)
        return self.store.add(wide), step, step * width

    def window(self, node: Node) -> Window:
        """The synapses of a conv or linear node."""
        if node.op == "linear":
            base, labels = base_of_linear(self.graph, node)
            source, last = self.graph.node[base], labels is None or base in self.last
            return linear_window(node, base, labels, geometry(source, last), last)
        source = self.graph.node[node.inputs[0]]
        return conv_window(node, geometry(source, False), self.geometry(node))

    def gather(
        self, g: Geometry, window: Window | None, source: Map | None, columns: Mapping[int, int]
    ) -> None:
        """A step that adds a window's charges and keeps or fires them; `columns` has the rest."""
        groups = tiles(g.channels)
        addresses = [0] * len(groups)
        row = {f.P_HEIGHT: g.height, f.P_WIDTH: g.width, f.P_CHANNELS: padded(g.channels)}
        row |= {f.P_STRIDE: 1, f.P_ROW_STRIDE: 1, f.P_SPAN: 1, f.P_DENSE: NEVER, f.P_B: 1}
        row[f.P_SOURCE] = 0
        if window is not None and source is not None:
            span = window.weight.shape[2]
            words = -(-span * source.pitch // 4)
            packed = pack_weights(window.weight, source.pitch, words, self.isa)
            if any(part.nbytes >= 2**31 for part in packed):
                raise Unfit("2 GiB of weights")
            addresses = [self.store.add(part) for part in packed]
            top, left = source.pads[:2]
            taps = np.array([(y + top, x + left) for y, x in window.taps], np.int32)
            row |= {f.P_SOURCE: source.index, f.P_SPAN: span, f.P_WORDS: words}
            row |= {f.P_TAPS: self.store.add(taps), f.P_TAP_COUNT: len(taps)}
            row |= {f.P_ROW_STRIDE: window.strides[0], f.P_STRIDE: window.strides[1]}
            share, row[f.P_EXTRA] = self.isa.switch[groups[0] - 1]
            near = packed[0].nbytes <= NEAR
            row[f.P_DENSE] = share if near else min(share, self.isa.far)
            row[f.P_NONE] = len(taps) * words
            row[f.P_B] = self.isa.blocks[groups[0] - 1]
        firsts = 16 * np.concatenate([[0], np.cumsum(groups)[:-1]])
        table = np.array(list(zip(groups, addresses, firsts, strict=True)), np.int64)
        row |= {f.P_TILES: self.store.add(table), f.P_TILE_COUNT: len(table)}
        self.step(f.GATHER, row | dict(columns))


def _channels_last(graph: Graph) -> frozenset[str]:
    """Nodes whose last axis holds the channels: linear ones, and what belongs to them unit by
    unit."""
    last: set[str] = set()
    for node in graph.nodes:
        readers = [graph.node[name] for name in graph.consumers[node.name]]
        rows = any(r.op == "linear" and node.units != node.shape[-1] for r in readers)
        if node.op == "linear":
            found = True
        elif node.op in ("input", "route"):
            found = rows and not any(r.op in ("conv", "sum_pool", "max_pool") for r in readers)
        elif node.op in ("spike", "add", "readout"):
            found = node.inputs[0] in last
        else:
            found = False
        if found:
            last.add(node.name)
    return frozenset(last)


def _not_zero_at_rest(graph: Graph) -> frozenset[str]:
    """Nodes that a bias reaches without a neuron between. No message tells their value at rest, so
    messages cannot be counted by what is not zero."""
    moved: set[str] = set()
    for node in graph.nodes:
        biased = node.op == "readout" and bool(node.params["bias"].any())
        if biased or (node.op != "spike" and any(name in moved for name in node.inputs)):
            moved.add(node.name)
    return frozenset(moved)


def _pads(graph: Graph) -> dict[str, tuple[int, int, int, int]]:
    """Padding of each map, wide enough for all windows that read it."""
    pads: dict[str, tuple[int, int, int, int]] = {}
    for node in graph.of("conv"):
        if is_channelwise(node):
            continue
        a, old = frame(node), pads.get(node.inputs[0], (0, 0, 0, 0))
        wanted = (*a.begins, *a.ends)
        pads[node.inputs[0]] = tuple(max(x, y) for x, y in zip(old, wanted, strict=True))  # type: ignore[assignment]
    return pads

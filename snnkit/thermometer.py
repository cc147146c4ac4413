"""A one-shot graph on stock leaky integrate-and-fire neurons: one memoryless LIF per level.

Copy k of a neuron (k = 1..hi) fires, with a binary spike, exactly if its staircase reaches k; the
number of firing copies is S. Nothing is stored from step to step, so every step is one sample.

The stock neuron (lava-nc 0.10.0, fixed point, `lif/models.py`) with du = 4095, dv = 4096 and
bias_exp = 6 has u = 64 A (24 bits, it wraps), v = u + 64 bias (it saturates) and fires iff
v > 64 vth. With T the least charge that reaches k and t = T - init - 1, it has to fire iff A > t:
bias = vth - t. vth is one number per process, 17 bits without sign; bias has 13 bits with sign.
Copies whose t lie within 8191 of each other share a process; a layer has as many as it takes.

Cost: L neurons per neuron, L_in * L_out synapses per synapse. Exact for every staircase that
only rises from 0, uniform or ladder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.errors import Problem, UnsupportedModel
from snnkit.graph import Graph, Node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints
from snnkit.populations import HELD, Population, populations
from snnkit.targets import target

LIMITS = {
    k: int(target("lava-cpu").constants[k].value)
    for k in ("lif_charge", "lif_bias", "lif_threshold", "weight")
}
MOST_CELLS = 2**25
"""Weights of a connection that is written out, before copies."""
BASE = 128
MOST_ATTRIBUTE = 127
"""lava-nc 0.10.0 holds kernel, strides, pads and dilations of Conv in 8 bits."""
STOCK = ("conv", "linear", "add", "sum_pool", "route", "spike", "input", "readout")


@dataclass(frozen=True, eq=False)
class Lif:
    """One stock LIF process: the copies `units` of its layer (flat, copy by copy), one vth, and a
    bias mantissa for each of them. du 4095, dv 4096, bias_exp 6."""

    units: Ints
    vth: int
    bias: Ints


@dataclass(frozen=True, eq=False)
class Connection:
    """Synapses from all copies of `source`. The charge is 2^exponent times what they bring.

    conv : weight [L * O, L_in * C, kH, kW], attrs strides, pads, dilations; channel l * C + c is
    copy l of channel c. dense : weight [L * units, L_in * units], copy by copy.
    """

    source: str
    kind: str
    weight: Ints
    exponent: int
    attrs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class StockLayer:
    """The copies of one spiking layer, or a readout: a LIF that never fires, and whose membrane
    potential / 64 is the readout's integer. charge : bound of |A|."""

    name: str
    shape: tuple[int, ...]
    copies: int
    connections: tuple[Connection, ...]
    processes: tuple[Lif, ...]
    charge: int
    readout: bool


@dataclass(frozen=True, eq=False)
class Stock:
    """A network of stock processes. Inputs are graded: one message per unit with its integer.

    depth : layers on the longest way. hold : steps for which a sample has to stay at the input: 1
    where all ways to a layer are equally long, so that samples follow each other step by step.
    """

    graph: Graph
    layers: tuple[StockLayer, ...]
    depth: Mapping[str, int]
    hold: int

    @property
    def neurons(self) -> int:
        """LIF neurons of all layers, readouts included."""
        return sum(e.copies * int(np.prod(e.shape)) for e in self.layers)

    def step_of(self, layer: str, sample: int) -> int:
        """The step in which a layer shows a sample, if sample n lies at the input in the steps
        n * hold .. n * hold + hold - 1 and every connection delivers one step later."""
        if self.hold == 1:
            return sample + self.depth[layer]
        return sample * self.hold + self.hold - 1


def thermometer(graph: Graph) -> Stock:
    """The graph as stock LIF processes. Raises UnsupportedModel with every obstacle at once."""
    problems = obstacles(graph)
    if problems:
        raise UnsupportedModel(problems)
    copies = {n.name: 1 if n.op == "input" else n.hi for n in graph.of("input", "spike")}
    depth = {n.name: 0 for n in graph.of("input")}
    layers, uneven = [], False
    for p in populations(graph):
        before = {depth[s] for s in p.sources}
        uneven |= len(before) > 1
        depth[p.node.name] = 1 + max(before)
        layers.append(_layer(p, graph, copies))
    hold = 1 + max(depth.values()) if uneven else 1
    return Stock(graph, tuple(layers), depth, hold)


def obstacles(graph: Graph) -> list[Problem]:
    """Everything that keeps a graph from stock LIF neurons, layer by layer."""
    if graph.sweeps:
        reason = "it is part of a step graph, and these neurons remember nothing"
        timed = [n for nodes, direction in graph.parts if direction for n in nodes]
        return [
            Problem(n.name, n.op, reason, "only one-shot graphs are one sample per step")
            for n in timed
            if n.op in HELD
        ]
    remedy = "leave it out, or pool by strides or sums"
    found = [
        Problem(n.name, n.op, "no stock process computes it", remedy)
        for n in graph.nodes
        if n.op not in STOCK
    ]
    for p in populations(graph):
        if p.node.op in ("spike", "readout"):
            found += _checks(p, graph)
    return found


def _checks(p: Population, graph: Graph) -> list[Problem]:
    node = p.node
    wrong = _widths(node, graph.node[p.roots[0]])
    for s in p.sources:
        cells = node.units * graph.node[s].units
        if cells > MOST_CELLS and not _is_conv(p):
            reason = f"{cells:,} weights to write out; expected at most {MOST_CELLS:,}"
            wrong.append((reason, "only a convolution that reads spikes directly keeps its kernel"))
    return [Problem(node.name, node.op, reason, remedy) for reason, remedy in wrong]


def _widths(node: Node, source: Node) -> list[tuple[str, str]]:
    """(reason, remedy) for every number that a stock LIF does not hold."""
    charge, most = max(-source.lo, source.hi), LIMITS["lif_charge"]
    wrong = []
    if charge > most:
        reason = f"a charge can reach {charge:,}; expected at most {most:,} (u would wrap)"
        wrong.append((reason, "convert it with --target and --expression thermometer"))
    if node.op == "readout":
        bias, most = int(np.abs(node.params["bias"].astype(np.int64)).max()), LIMITS["lif_bias"]
        if bias > most:
            reason = f"a readout's bias of {bias:,}; expected at most {most:,}"
            wrong.append((reason, "convert it with --target and --expression thermometer"))
    elif node.lo < 0 or "values" in node.params:
        reason = "a staircase that also steps down or goes below 0"
        wrong.append((reason, "use activations that only rise from 0"))
    elif not wrong:
        levels = _levels(node, source)
        least, most = int(levels.min()) + 1, int(levels.max()) + 1
        if least <= -LIMITS["lif_bias"] or most > LIMITS["lif_threshold"] + 1:
            reason = (
                f"levels at charges {least:,}..{most:,}; expected {1 - LIMITS['lif_bias']:,}.."
                f"{LIMITS['lif_threshold'] + 1:,} (vth has no sign, bias has 13 bits)"
            )
            wrong.append((reason, "convert it with --target, fewer levels or smaller biases"))
    return wrong


def _levels(node: Node, source: Node) -> Ints:
    """t of every copy, [copies, *shape]: copy k fires iff A > t. Beyond what A can be, t is moved
    to where it means the same."""
    if node.op == "readout":
        never = LIMITS["lif_threshold"] - node.params["bias"].astype(np.int64)
        return np.broadcast_to(never, (1, *node.shape))
    init = np.broadcast_to(node.params["init"].astype(np.int64), node.shape)
    if node.attrs["kind"] == "uniform":
        k = np.arange(1, node.hi + 1).reshape(-1, *(1,) * len(node.shape))
        reached = k * node.params["theta"].astype(np.int64)
    else:
        ladder = node.params["thresholds"].astype(np.int64)
        reached = np.moveaxis(np.broadcast_to(ladder, (*node.shape, ladder.shape[-1])), -1, 0)
    return np.asarray(np.clip(reached - init - 1, source.lo - 1, source.hi))


def _layer(p: Population, graph: Graph, copies: Mapping[str, int]) -> StockLayer:
    node, source = p.node, graph.node[p.roots[0]]
    readout = node.op == "readout"
    own = 1 if readout else copies[node.name]
    levels = _levels(node, source).reshape(-1)
    connections = []
    for s in p.sources:
        if _is_conv(p):
            weight, attrs = _convolution(p.path[0])
            tiles: tuple[int, ...] = (own, copies[s], 1, 1)
        else:
            weight, attrs, tiles = _matrix(p, graph, s), {}, (own, copies[s])
        kind = "conv" if attrs else "dense"
        for digit, exponent in _digits(weight):
            connections.append(Connection(s, kind, np.tile(digit, tiles), exponent, attrs))
    charge = max(-source.lo, source.hi)
    processes = (
        (Lif(np.arange(len(levels)), LIMITS["lif_threshold"], LIMITS["lif_threshold"] - levels),)
        if readout
        else tuple(_processes(levels))
    )
    return StockLayer(node.name, node.shape, own, tuple(connections), processes, charge, readout)


def _processes(levels: Ints) -> list[Lif]:
    """The copies in runs whose biases fit beside one threshold."""
    order = np.argsort(levels, kind="stable")
    found, start = [], 0
    room = 2 * LIMITS["lif_bias"]
    while start < len(order):
        first = int(levels[order[start]])
        end = int(np.searchsorted(levels[order], first + room, side="right"))
        units = np.sort(order[start:end])
        middle = (first + int(levels[order[end - 1]])) // 2
        vth = min(max(middle, 0), LIMITS["lif_threshold"])
        found.append(Lif(units, vth, vth - levels[units]))
        start = end
    return found


def _is_conv(p: Population) -> bool:
    """Whether the only thing between two layers is one convolution that a Conv process can do."""
    if len(p.path) != 1 or p.path[0].op != "conv" or len(p.path[0].shape) != 3:
        return False
    a, weight = p.path[0].attrs, p.path[0].params["weight"].astype(np.int64)
    kernel = weight.shape[2:]
    uneven = [(a["pads"][i] - a["pads"][2 + i]) % a["dilations"][i] for i in range(2)]
    sizes = [
        *a["strides"],
        *a["dilations"],
        *(k + q for k, q in zip(kernel, a["pads"][:2], strict=True)),
    ]
    # Conv has no exponent in the simulation, so a weight has to be one digit
    narrow = int(np.abs(weight).max()) <= LIMITS["weight"]
    return narrow and not any(uneven) and max(*sizes, *a["pads"]) <= MOST_ATTRIBUTE


def _convolution(node: Node) -> tuple[Ints, dict[str, Any]]:
    """Kernel [O, C, kH, kW] without groups, and attributes with as much padding on either side."""
    weight, a = node.params["weight"].astype(np.int64), node.attrs
    group, out = int(a["group"]), weight.shape[0] // int(a["group"])
    full = np.zeros((weight.shape[0], weight.shape[1] * group, *weight.shape[2:]), np.int64)
    for g in range(group):
        rows = slice(g * out, (g + 1) * out)
        full[rows, g * weight.shape[1] : (g + 1) * weight.shape[1]] = weight[rows]
    margins, pads = [(0, 0), (0, 0)], []
    for i in range(2):
        begin, end, step = a["pads"][i], a["pads"][2 + i], a["dilations"][i]
        # taps of weight 0 stand in for padding that only one side has
        most = max(begin, end)
        margins.append(((most - begin) // step, (most - end) // step))
        pads.append(most)
    attrs = {"strides": a["strides"], "pads": tuple(pads), "dilations": a["dilations"]}
    return np.pad(full, margins), attrs


def _matrix(p: Population, graph: Graph, source: str) -> Ints:
    """Weights [units, units of source] of everything between two layers: the answers to one unit
    of charge at a time."""
    count = graph.node[source].units
    chunk = max(1, MOST_CELLS // max([p.node.units, *(n.units for n in p.path)]))
    rows = []
    for first in range(0, count, chunk):
        size = min(chunk, count - first)
        values: dict[str, Ints] = {
            s: np.zeros((size, *graph.node[s].shape), np.int64) for s in p.sources
        }
        values[source].reshape(size, -1)[np.arange(size), first + np.arange(size)] = 1
        for node in p.path:
            values[node.name] = TABLE[node.op].dense(node, [values[s] for s in node.inputs])
        rows.append(values[p.roots[0]].reshape(size, -1).T)
    return np.ascontiguousarray(np.concatenate(rows, axis=1))


def _digits(weight: Ints) -> list[tuple[Ints, int]]:
    """(digit, exponent) with weight = sum of digit * 2^exponent, each within +-127; one digit
    where that is enough."""
    if np.abs(weight).max() <= LIMITS["weight"]:
        return [(weight, 0)]
    found, exponent, rest = [], 0, weight
    while rest.any():
        digit = (rest + BASE // 2) % BASE - BASE // 2
        found.append((digit, exponent))
        rest, exponent = (rest - digit) // BASE, exponent + 7
    return found

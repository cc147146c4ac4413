"""Which populations of neurons a graph needs on a chip, and the synapses between them.

A *population* is a node whose value is held by neurons: spike, lif, latch, readout, and the
nodes that recompute (max_pool, product). What stack and unstack hand on comes from outside, as
inputs do: the host keeps whole sequences. Everything linear between two populations (conv,
linear, add, sum_pool, route) is nothing but synapses. Synapses are counted as paths through
weights that are not zero, so a window that several taps see is counted once per tap: an upper
bound of what an unrolled list of synapses holds, and equal to it where windows do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from snnkit.graph import Graph, Node
from snnkit.ops import TABLE
from snnkit.ops.arithmetic import multiplier
from snnkit.ops.op import Ints
from snnkit.sweeps import DOORS

RECOMPUTED = ("max_pool", "product")
HELD = ("spike", "lif", "latch", "readout", *RECOMPUTED)
DIGIT_BITS = 7
"""A weight of more than 8 bits with sign is written as several synapses, base 128: exact, since
a connection's weights may share an exponent."""


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons that hold the value of `node`, and what reaches them.

    path : the nodes between, in topological order (a node that recomputes is its own last one).
    roots : the names whose values arrive. sources : populations and inputs that send, each with
    the largest magnitude of a weight on the way.
    """

    node: Node
    roots: tuple[str, ...]
    path: tuple[Node, ...]
    sources: Mapping[str, int]

    def pieces(self, source: str) -> int:
        """Synapses of 8 bits that one weight from `source` takes."""
        return max(1, -(-self.sources[source].bit_length() // DIGIT_BITS))


def populations(graph: Graph) -> tuple[Population, ...]:
    """The populations of a graph, in topological order."""
    return tuple(_population(graph, n) for n in graph.nodes if n.op in HELD)


def _population(graph: Graph, node: Node) -> Population:
    roots = (node.name,) if node.op in RECOMPUTED else node.inputs
    if node.op == "latch":
        # its first value is no synapse: an initial state that the host sets or a window leaves
        roots = (graph.latches[node.name],)
    inside: set[str] = set()
    sources: set[str] = set()
    stack = [(name, node.op in RECOMPUTED) for name in roots]
    while stack:
        name, entered = stack.pop()
        if graph.node[name].op in (*HELD, "input", *DOORS) and not entered:
            sources.add(name)
        elif name not in inside:
            inside.add(name)
            stack += [(s, False) for s in graph.node[name].inputs]
    path = tuple(n for n in graph.nodes if n.name in inside)
    order = [n.name for n in graph.nodes if n.name in sources]
    reach = {s: _largest(s, path, roots) for s in order}
    return Population(node, roots, path, MappingProxyType(reach))


def _largest(source: str, path: tuple[Node, ...], roots: tuple[str, ...]) -> int:
    """Bound of the magnitude of one unit's weight on its way from `source` to the roots."""
    reach = {source: 1}
    for node in path:
        found = [(i, reach[s]) for i, s in enumerate(node.inputs) if s in reach]
        if not found:
            continue
        if node.op in ("conv", "linear"):
            most = int(np.abs(node.params["weight"].astype(np.int64)).max())
            reach[node.name] = found[0][1] * max(most, 1)
        elif node.op == "add":
            factors = [int(np.abs(node.params[multiplier(i)]).max()) for i, _ in found]
            reach[node.name] = sum(f * r for f, (_, r) in zip(factors, found, strict=True))
        else:
            reach[node.name] = max(r for _, r in found)
    return max(reach.get(r, 1) for r in roots)


def fan_in(population: Population, graph: Graph, source: str) -> Ints:
    """Paths from `source` that arrive at each unit, [*shape] int64."""
    values: dict[str, Ints] = {}
    for name in population.sources:
        ones = np.ones if name == source else np.zeros
        values[name] = ones((1, *graph.node[name].shape), np.int64)
    for node in population.path:
        values[node.name] = _forward(node, [values[s] for s in node.inputs])
    arrived = np.zeros(population.node.shape, np.int64)
    for root in population.roots:
        arrived += values[root][0]
    return arrived


def _forward(node: Node, xs: list[Ints]) -> Ints:
    if node.op == "product":
        return np.asarray(xs[0] + xs[1])
    if node.op == "max_pool":
        return TABLE["sum_pool"].dense(node, xs)
    marks = {k: (v != 0).astype(np.int64) for k, v in node.params.items()}
    params = node.params if node.op == "route" else marks
    return TABLE[node.op].dense(replace(node, params=params), xs)


def fan_out(population: Population, graph: Graph, chosen: Ints) -> dict[str, Ints]:
    """Paths that leave each unit of each source for the chosen units, [*shape] int64 by source.

    chosen : [*shape] of the population, 1 where a unit counts.
    """
    found = {n: np.zeros(graph.node[n].shape, np.int64) for n in population.sources}
    found |= {n.name: np.zeros(n.shape, np.int64) for n in population.path}
    for root in population.roots:
        found[root] = found[root] + chosen
    for node in reversed(population.path):
        shapes = [graph.node[s].shape for s in node.inputs]
        for i, name in enumerate(node.inputs):
            found[name] = found[name] + _backward(node, i, shapes, found[node.name])
    return {n: found[n] for n in population.sources}


def _backward(node: Node, index: int, shapes: list[tuple[int, ...]], g: Ints) -> Ints:
    """The adjoint of `_forward` for input `index`."""
    shape = shapes[index]
    if node.op == "linear":
        marks = (node.params["weight"] != 0).astype(np.float64)
        return np.asarray((g.astype(np.float64) @ marks).astype(np.int64))
    if node.op == "conv":
        return _windows_back(node, shape, g, node.params["weight"] != 0)
    if node.op in ("sum_pool", "max_pool"):
        if "axes" in node.attrs:
            kept = [1 if i in node.attrs["axes"] else n for i, n in enumerate(shape)]
            return np.broadcast_to(g.reshape(kept), shape)
        return _windows_back(node, shape, g, None)
    if node.op == "route":
        return _route_back(node, index, shapes, g)
    if node.op == "add":
        g = g * (node.params[multiplier(index)] != 0)
    narrow = tuple(i for i, n in enumerate(shape) if n == 1)
    return np.asarray(g.sum(axis=narrow, keepdims=True))


def _route_back(node: Node, index: int, shapes: list[tuple[int, ...]], g: Ints) -> Ints:
    kind, shape = node.attrs["kind"], shapes[index]
    if kind == "transpose":
        return g.transpose(tuple(np.argsort(node.attrs["perm"])))
    if kind == "reshape":
        return g.reshape(shape)
    if kind == "concat":
        axis = int(node.attrs["axis"])
        ends = np.cumsum([s[axis] for s in shapes])[:-1]
        return np.asarray(np.split(g, ends, axis=axis)[index])
    flat = np.zeros(int(np.prod(shape)), np.int64)
    read = node.params["index"] >= 0
    np.add.at(flat, node.params["index"][read], g[read])
    return flat.reshape(shape)


def _windows_back(
    node: Node,
    shape: tuple[int, ...],
    g: Ints,
    marks: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None,
) -> Ints:
    """Of a convolution with 0/1 weights, or (no marks) of a pool over its own channel only."""
    a = node.attrs
    kernel = tuple(a["kernel"]) if marks is None else marks.shape[2:]
    d, group = len(kernel), int(a.get("group", 1))
    begins, ends = a["pads"][:d], a["pads"][d:]
    sides = [n + b + e for n, b, e in zip(shape[1:], begins, ends, strict=True)]
    padded = np.zeros((shape[0], *sides), np.float64)
    per_in, per_out = shape[0] // group, g.shape[0] // group
    flow = g.astype(np.float64)
    for tap in np.ndindex(*kernel):
        at = tuple(
            slice(t * e, t * e + s * (n - 1) + 1, s)
            for t, e, s, n in zip(tap, a["dilations"], a["strides"], g.shape[1:], strict=True)
        )
        if marks is None:
            padded[(slice(None), *at)] += flow
            continue
        for k in range(group):
            into = slice(k * per_in, (k + 1) * per_in)
            out = slice(k * per_out, (k + 1) * per_out)
            weights = marks[(out, slice(None), *tap)].astype(np.float64)
            padded[(into, *at)] += np.tensordot(weights.T, flow[out], axes=1)
    inner = tuple(slice(b, b + n) for b, n in zip(begins, shape[1:], strict=True))
    return padded[(slice(None), *inner)].astype(np.int64)

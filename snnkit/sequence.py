"""How a step graph runs: windows one after the other, with a barrier between them.

`unroll` and `Steps` know sweeps, steps, latches and membrane potentials; what happens inside a
window is left to their caller (`snnkit.reference`). A one-shot graph is unrolled as one window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from snnkit.boundary import LENGTHS, at_last_step, count_steps
from snnkit.graph import Graph, Node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints
from snnkit.ops.state import Lif, membrane_bound
from snnkit.sweeps import DOORS, as_feed, order

Window = Callable[[Graph, Mapping[str, Ints]], Mapping[str, Ints]]
"""Runs a one-shot graph for the values [N, *shape] of its input nodes; gives every node's value."""

LIF = Lif()


def membrane(node: Node | str) -> str:
    """Name of the input node that gives a lif node its membrane potential. No name of a node holds
    a NUL."""
    return f"{node if isinstance(node, str) else node.name}\0v"


def with_membranes(window: Graph) -> Graph:
    """The window in which each lif node has a second input: its membrane potential before the
    step. So a lif is a function of its inputs, as every node of a one-shot graph."""
    if not window.of("lif"):
        return window
    nodes: list[Node] = []
    for n in window.nodes:
        if n.op == "lif":
            bound = membrane_bound(n.attrs, n.params, n.peak)
            v = replace(as_feed(n), name=membrane(n), lo=-bound, hi=bound, peak=bound)
            n = replace(n, inputs=(*n.inputs, v.name))
            nodes.append(v)
        nodes.append(n)
    return replace(window, nodes=tuple(nodes))


class Steps:
    """A sweep with a direction, one step after the other: its latches and membrane potentials are
    what it remembers.

    given : the nodes whose values each step needs: inputs, and nodes of earlier sweeps.
    """

    def __init__(self, graph: Graph, k: int, values: Mapping[str, Ints], samples: int, run: Window):
        """values : by name, of the nodes that latches start from."""
        self.nodes, self.run, self.latches = graph.parts[k][0], run, graph.latches
        self.window = with_membranes(graph.windows[k])
        self.state = _first_state(self.nodes, values, samples)
        self.given = [n.name for n in self.window.of("input") if n.name not in self.state]

    def step(self, feeds: Mapping[str, Ints]) -> Mapping[str, Ints]:
        """Every node's value [N, *shape], for the values of `given`."""
        found = self.run(self.window, {**feeds, **self.state})
        self.state = {n.name: found[self.latches[n.name]] for n in self.nodes if n.op == "latch"}
        for n in self.window.of("lif"):
            self.state[membrane(n)] = LIF.barrier(n, [found[s] for s in n.inputs])
        return found


def unroll(graph: Graph, counts: Mapping[str, Ints], run: Window) -> dict[str, Ints]:
    """Value of every node: [N, T, *shape] in sweeps with a direction, else [N, *shape].

    counts : values of the input nodes, [N, T, *shape] where the input has a time axis.
    """
    steps = count_steps(graph, counts) if graph.sweeps else 0
    values: dict[str, Ints] = dict(counts)
    for k, (nodes, direction) in enumerate(graph.parts):
        values.update(through_doors(nodes, values))
        if not direction:
            window = graph.windows[k]
            feeds = {n.name: _at(graph, values, n.name, -1) for n in window.of("input")}
            found = run(window, feeds)
            values.update({n.name: found[n.name] for n in nodes})
            continue
        samples = len(next(iter(counts.values())))
        made = [n for n in nodes if n.op not in ("input", *DOORS)]
        for n in made:
            values[n.name] = np.zeros((samples, steps, *n.shape), np.int64)
        sweep = Steps(graph, k, values, samples, run)
        for t in order(direction, steps):
            found = sweep.step({name: _at(graph, values, name, t) for name in sweep.given})
            for n in made:
                values[n.name][:, t] = found[n.name]
    return values


def through_doors(nodes: Sequence[Node], values: Mapping[str, Ints]) -> dict[str, Ints]:
    """What the doors among the nodes of a sweep give, from the values of earlier sweeps: the same
    memory, since [N, T, *units] is what either side sees."""
    return {n.name: values[n.inputs[0]] for n in nodes if n.op in DOORS}


def by_length(
    graph: Graph, counts: Mapping[str, Ints], run: Callable[[dict[str, Ints], Any], dict[str, Ints]]
) -> dict[str, Ints]:
    """Values of all nodes where samples have lengths: each takes its own steps, the rest is zero,
    but for the inputs, which are what they are.

    run : gets the counts of samples of the same length, cut to it, and which samples they are.
    """
    given = {name: value for name, value in counts.items() if name != LENGTHS}
    if not graph.lengths:
        return run(given, slice(None))
    lengths, steps = counts[LENGTHS], count_steps(graph, given)
    whole: dict[str, Ints] = {}
    for length in np.unique(lengths):
        index = np.flatnonzero(lengths == length)
        part = {
            name: value[index, :length] if graph.direction(name) else value[index]
            for name, value in given.items()
        }
        for name, value in run(part, index).items():
            lead = (len(lengths), steps) if graph.direction(name) else (len(lengths),)
            full = whole.setdefault(name, np.zeros((*lead, *graph.node[name].shape), np.int64))
            if graph.direction(name):
                full[index, :length] = value
            else:
                full[index] = value
    return {**whole, **given}


def _at(graph: Graph, values: Mapping[str, Ints], name: str, t: int) -> Ints:
    """What a reader at step t sees of a node outside its window; t = -1: a reader without steps."""
    direction = graph.direction(name)
    value = values[name]
    if not direction:
        return value
    return value[:, t] if t >= 0 else at_last_step(direction, value, None)


def _first_state(
    nodes: tuple[Node, ...], values: Mapping[str, Ints], samples: int
) -> dict[str, Ints]:
    state = {}
    for n in nodes:
        if n.op == "latch":
            first = TABLE["latch"].dense(n, [values[s] for s in n.inputs])
            state[n.name] = np.broadcast_to(first, (samples, *n.shape))
        elif n.op == "lif":
            state[membrane(n)] = np.broadcast_to(n.params["initial"], (samples, *n.shape))
    return state

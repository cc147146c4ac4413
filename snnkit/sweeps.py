"""Time in a graph: sweeps over steps, one acyclic window per step, latches between the windows.

The rules are in the docstring of `snnkit.graph`. A one-shot graph is a single window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from snnkit.errors import BadShape, InvalidGraph, RangeOverflow
from snnkit.ops.arithmetic import multiplier
from snnkit.ops.state import MOST_STEPS

if TYPE_CHECKING:
    from snnkit.graph import Boundary, Graph, Node

STATEFUL = ("latch", "lif")
DOORS = ("stack", "unstack")
"""Between the whole of a sequence and its elements; given to the window that they lie in."""
GIVEN = ("input", "latch", *DOORS)
LENGTHS_TYPES = ("int32", "int64")
RESTING = ("input", "spike", "lif")
"""Zero at rest; all other ops are at rest what their dense rule makes of that."""


def parts(graph: Graph) -> tuple[tuple[tuple[Node, ...], int], ...]:
    """(nodes, direction) of each sweep; a one-shot graph is one sweep of direction 0."""
    if not graph.sweeps:
        return ((graph.nodes, 0),)
    found, at = [], 0
    for count, direction in graph.sweeps:
        found.append((graph.nodes[at : at + count], direction))
        at += count
    return tuple(found)


def order(direction: int, steps: int) -> range:
    """The steps in the order in which a sweep of that direction takes them."""
    return range(steps) if direction > 0 else range(steps - 1, -1, -1)


def window(graph: Graph, k: int) -> Graph:
    """One step of sweep k as a one-shot graph: the sweep's nodes, and an `input` node of the same
    name for everything that is given before the step: inputs, latches, doors, nodes of other
    sweeps."""
    if not graph.sweeps:
        return graph
    own = graph.parts[k][0]
    computed = {n.name for n in own if n.op not in GIVEN}
    read = {s for n in own if n.name in computed for s in n.inputs} - computed
    given = read | {n.name for n in own if n.name not in computed}
    feeds = tuple(as_feed(n) for n in graph.nodes if n.name in given)
    nodes = (*feeds, *(n for n in own if n.name in computed))
    return replace(
        graph, nodes=nodes, inputs=(), outputs=(), sweeps=(), steps=0, latches={}, lengths=""
    )


def as_feed(node: Node) -> Node:
    """An `input` node of the same name, shape and bounds."""
    return replace(node, op="input", inputs=(), params={}, attrs={})


def spike_levels(graph: Graph) -> dict[str, int]:
    """Layer of each spike node of a one-shot graph: most spike nodes on a way to it, less one."""
    level: dict[str, int] = {}
    for node in graph.nodes:
        below = max((level[s] for s in node.inputs), default=0)
        level[node.name] = below + (node.op == "spike")
    return {n.name: level[n.name] - 1 for n in graph.of("spike")}


def most_steps(graph: Graph) -> int:
    """For how many steps the bounds of the graph's nodes are proved."""
    proved = [int(n.attrs["steps"]) for n in graph.of(*STATEFUL) if "steps" in n.attrs]
    return min([MOST_STEPS, *proved])


def late(graph: Graph) -> frozenset[str]:
    """Nodes of sweeps of direction 0 whose value depends on steps: known after the last one."""
    found: set[str] = set()
    for nodes, direction in graph.parts:
        for n in nodes:
            if not direction and any(s in found or graph.direction(s) for s in n.inputs):
                found.add(n.name)
    return frozenset(found)


def needs_future(graph: Graph) -> list[tuple[str, str]]:
    """(node, reason) for what at some element depends on later ones."""
    found, after = [], late(graph)
    for nodes, direction in graph.parts:
        if direction < 0:
            reason = "its sweep runs backwards and begins at the last element"
            found.append((nodes[0].name, reason))
            continue
        for n in nodes:
            if n.op in DOORS:
                what = "waits for" if n.op == "stack" else "hands out"
                found.append((n.name, f"it {what} all elements of '{n.inputs[0]}' together"))
                continue
            late_ones = [s for s in n.inputs if direction and s in after]
            for s in late_ones:
                found.append((n.name, f"it reads '{s}', which is known after the last element"))
    return found


def by_elements(graph: Graph) -> Graph:
    """The same nodes as at most three sweeps: what happens once before the first element, what
    happens at each one, and what happens once on the last one. For a graph that needs no future."""
    after = late(graph)
    parts: dict[int, list[Node]] = {-1: [], 0: [], 1: []}
    for n in graph.nodes:
        parts[0 if graph.direction(n.name) else 1 if n.name in after else -1].append(n)
    sweeps = tuple((len(part), int(k == 0)) for k, part in parts.items() if part)
    return replace(graph, nodes=tuple(n for part in parts.values() for n in part), sweeps=sweeps)


def check_sweeps(graph: Graph) -> None:
    """Raise InvalidGraph (or a subclass) for the first rule about time that the graph breaks."""
    if not graph.sweeps:
        timed = [b.name for b in (*graph.inputs, *graph.outputs) if b.time is not None]
        stateful = [n.name for n in graph.of(*STATEFUL, *DOORS)]
        if timed or stateful or graph.latches or graph.steps or graph.lengths:
            raise InvalidGraph(
                f"time without sweeps: boundaries {timed}, nodes {stateful}, {len(graph.latches)} "
                f"latches, {graph.steps} steps; expected sweeps that cut the nodes"
            )
        return
    pairs = [isinstance(p, tuple) and len(p) == 2 for p in graph.sweeps]
    numbers = [n for p in graph.sweeps if isinstance(p, tuple) for n in p]
    if not all(pairs) or not all(type(n) is int for n in (*numbers, graph.steps)):
        raise InvalidGraph(f"sweeps {graph.sweeps}, steps {graph.steps!r}; expected pairs of int")
    counts, directions = zip(*graph.sweeps, strict=True)
    if min(counts) < 1 or sum(counts) != len(graph.nodes) or not {-1, 1} & set(directions):
        raise InvalidGraph(
            f"sweeps {graph.sweeps} of {len(graph.nodes)} nodes; expected at least one node each, "
            "all nodes together, and one sweep with a direction"
        )
    if not set(directions) <= {-1, 0, 1}:
        raise InvalidGraph(f"directions {directions}; expected -1, 0 or 1")
    if not 0 <= graph.steps <= most_steps(graph):
        raise InvalidGraph(
            f"{graph.steps} steps; expected 0 to {most_steps(graph)}, for which "
            "the bounds are proved"
        )
    _check_nodes(graph)
    _check_latches(graph)


def _check_nodes(graph: Graph) -> None:
    timed = {b.node: b.time is not None for b in (*graph.inputs, *graph.outputs)}
    if graph.lengths_dtype not in LENGTHS_TYPES:
        raise InvalidGraph(f"lengths of type {graph.lengths_dtype!r}; expected {LENGTHS_TYPES}")
    if graph.lengths and graph.steps:
        raise InvalidGraph(
            f"lengths '{graph.lengths}' with {graph.steps} steps; expected steps of the inputs"
        )
    if not graph.steps and not any(timed.get(n.name) for n in graph.of("input")):
        raise InvalidGraph("no number of steps and no input with a time axis; expected either")
    for nodes, direction in graph.parts:
        for n in nodes:
            if n.op in STATEFUL and not direction:
                raise InvalidGraph(
                    f"node '{n.name}' ({n.op}): expected in a sweep with a direction"
                )
            if n.op in DOORS:
                _check_door(graph, n, direction)
            if n.op == "input" and timed.get(n.name) != bool(direction):
                raise InvalidGraph(
                    f"node '{n.name}' (input): expected in a sweep with a direction if it has a "
                    "time axis, else in one of direction 0"
                )
            if n.op == "readout" and timed.get(n.name) and not direction:
                raise InvalidGraph(
                    f"node '{n.name}' (readout): a sweep of direction 0 has no steps"
                )
    for b in graph.inputs:
        if b.time is not None and isinstance(b.dims[b.time], int) != bool(graph.steps):
            raise InvalidGraph(
                f"boundary '{b.name}': dimensions {b.dims}, {graph.steps} steps; "
                "expected the steps as a number on both sides, or on none"
            )
    for b in (*graph.inputs, *graph.outputs):
        if b.time is not None and b.dims[b.time] not in (graph.steps, *_names(b)):
            raise InvalidGraph(
                f"boundary '{b.name}': dimensions {b.dims}; expected {graph.steps} "
                f"steps at axis {b.time}"
            )


def _check_door(graph: Graph, n: Node, direction: int) -> None:
    source = graph.node[n.inputs[0]]
    whole = n if n.op == "stack" else source
    once, steps = (direction, graph.direction(source.name))[:: 1 if n.op == "stack" else -1]
    if once or not steps or whole.shape[0] != graph.steps:
        raise InvalidGraph(
            f"node '{n.name}' ({n.op}): '{whole.name}' has {whole.shape[0]} elements, in a graph "
            f"of {graph.steps} steps; expected as many, on a leading axis of a node of a sweep of "
            "direction 0, beside a node of a sweep with a direction"
        )


def _names(b: Boundary) -> list[Any]:
    return [d for d in b.dims if isinstance(d, str)]


def _check_latches(graph: Graph) -> None:
    latches = graph.of("latch")
    if not isinstance(graph.latches, Mapping) or set(graph.latches) != {n.name for n in latches}:
        raise InvalidGraph(f"latches {graph.latches}; expected one source for each latch node")
    for n in latches:
        source = graph.node.get(graph.latches[n.name])
        if source is None or graph.sweep_of[source.name] != graph.sweep_of[n.name]:
            raise InvalidGraph(
                f"latch '{n.name}': source '{graph.latches[n.name]}'; expected a "
                "node of the same sweep"
            )
        if source.shape != n.shape:
            raise BadShape(f"latch '{n.name}' {n.shape}: source {source.shape}; expected the same")
        for s in n.inputs:
            if graph.parts[graph.sweep_of[s]][1]:
                raise InvalidGraph(
                    f"latch '{n.name}': starts as '{s}'; expected a node of a sweep of direction 0"
                )
        if (source.lo < n.lo or n.hi < source.hi) and not _accumulates(graph, n, source):
            raise RangeOverflow(
                f"latch '{n.name}' in {n.lo}..{n.hi}: source in {source.lo}..{source.hi}; expected "
                "within, or an accumulator whose sum over its steps is within"
            )


def _accumulates(graph: Graph, latch: Node, source: Node) -> bool:
    """Whether the source is the latch plus something, which stays within the latch's bounds when
    it is added once per step. (The latch itself shows the sum of one step less.)"""
    steps = latch.attrs.get("steps", 0)
    own = [i for i, s in enumerate(source.inputs) if s == latch.name]
    if source.op != "add" or len(own) != 1 or not steps:
        return False
    if not np.all(source.params[multiplier(own[0])] == 1):
        return False
    first = graph.node[latch.inputs[0]] if latch.inputs else None
    initial = latch.params.get("initial")
    low = first.lo if first else int(initial.min())  # type: ignore[union-attr]
    high = first.hi if first else int(initial.max())  # type: ignore[union-attr]
    for i, name in enumerate(source.inputs):
        if i != own[0]:
            m, added = source.params[multiplier(i)].astype(np.int64), graph.node[name]
            reach = (
                int((m * added.lo).min()),
                int((m * added.hi).min()),
                int((m * added.lo).max()),
                int((m * added.hi).max()),
            )
            low, high = low + (steps - 1) * min(0, *reach), high + (steps - 1) * max(0, *reach)
    return bool(latch.lo <= low and high <= latch.hi)

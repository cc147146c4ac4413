"""Random step graphs: several sweeps, latches of every kind, leaky neurons, in any layout.

As in `tests.corpus`, example values (without a time axis) are carried along while a network is
built; a latch's are drawn, since its source comes later. A network in which a spiking node stays
silent over its steps is drawn again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from snnkit.boundary import tensor_axes
from snnkit.graph import Boundary, Graph, Node, make_node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints
from snnkit.reference import dense, input_counts
from tests.corpus import EXAMPLES, _Builder

STEPS = (1, 2, 5, 20)
KINDS = ("latched", "lif", "both")


def random_step_graph(
    rng: np.random.Generator, steps: int, kind: str = "both", fixed: bool | None = None
) -> Graph:
    """A step graph whose spiking nodes fire within `steps` steps.

    kind : "latched" has recurrence through latches, "lif" leaky neurons, "both" both.
    fixed : the graph has T = steps; False: T is its inputs' time axis. None: drawn.
    """
    for _ in range(40):
        own = bool(rng.random() < 0.5) if fixed is None else fixed
        graph = _StepBuilder(rng, steps, kind, own).graph()
        if not silent_nodes(
            graph, dense(graph, input_counts(graph, step_samples(graph, rng, 24, steps)))
        ):
            return graph
    raise AssertionError("no lively network found")


def silent_nodes(graph: Graph, values: dict[str, Ints]) -> list[str]:
    """Spiking nodes that fire nowhere, or, over more than three steps, in fewer than two."""
    found = []
    for n in graph.of("spike", "lif"):
        fired = values[n.name] != 0
        timed = graph.direction(n.name) != 0
        when = fired.any(axis=(0, *range(2, fired.ndim))) if timed else fired.any()[None]
        if when.sum() < min(2 if timed and fired.shape[1] > 3 else 1, when.size):
            found.append(n.name)
    return found


def step_samples(graph: Graph, rng: np.random.Generator, n: int, steps: int) -> dict[str, Any]:
    """n float samples by input name, in the model's layout; `steps` steps where they have time."""
    found: dict[str, Any] = {}
    if graph.lengths:
        found[graph.lengths] = rng.integers(1, steps + 1, n).astype(np.int32)
    for b in graph.inputs:
        node = graph.node[b.node]
        lead = (n,) if b.time is None else (n, steps)
        counts = rng.integers(node.lo - 5, node.hi + 6, (*lead, *node.shape))
        counts = counts * (rng.random(counts.shape) < 0.7)
        x = (counts + rng.uniform(-0.45, 0.45, counts.shape)) * b.scale + b.offset
        found[b.name] = x.transpose(tensor_axes(b, len(node.shape))).astype(np.float32)
    return found


class _StepBuilder(_Builder):
    def __init__(self, rng: np.random.Generator, steps: int, kind: str, fixed: bool):
        super().__init__(rng, plateaus=False)
        self.steps, self.kind, self.fixed = steps, kind, fixed
        self.sweeps: list[tuple[int, int]] = []
        self.latches: dict[str, str] = {}
        self.timed: dict[str, bool] = {}
        self.last: list[Node] = []

    def graph(self) -> Graph:
        directions = self.pick(
            ([1], [-1], [0, 1], [0, -1], [1, -1], [1, 0], [-1, 0], [0, 1, -1, 0], [1, 0, 1])
        )
        for direction in directions:
            begin = len(self.nodes)
            self.sweep(direction)
            self.sweeps.append((len(self.nodes) - begin, direction))
        readouts = [n for n in self.nodes if n.op == "readout"]
        inputs = [n for n in self.nodes if n.op == "input"]
        return Graph(
            tuple(self.nodes),
            tuple(self.boundary(n) for n in inputs),
            tuple(self.boundary(n) for n in readouts),
            {"source": "step corpus"},
            tuple(self.sweeps),
            self.steps if self.fixed else 0,
            self.latches,
            "" if self.fixed or self.rng.random() < 0.5 else "lengths",
        )

    def sweep(self, direction: int) -> None:
        """Inputs and latches, a few layers, the latches' sources, and perhaps a readout."""
        begin, earlier = len(self.nodes), list(self.nodes)
        first = not earlier
        heads = [self.pick(earlier[-6:])] if earlier else []
        if earlier and self.fixed and self.rng.random() < 0.6:
            heads += self.door(direction)
        needs_time = direction and not any(self.timed.values()) and not self.fixed
        if first or needs_time or self.rng.random() < 0.3:
            heads.append(self.input())
            self.timed[heads[-1].name] = direction != 0
        waiting = []
        if direction and self.kind != "lif":
            waiting = [self.latch(earlier) for _ in range(self.integer(1, 2))]
            heads += waiting
        for i in range(self.integer(2, 3)):
            grown = self.layer(self.pick(heads))
            if waiting and i == 0:
                # a latch that nobody reads would be no recurrence
                grown = self.join(grown, waiting[0])
            elif self.rng.random() < 0.5:
                grown = self.join(grown, self.pick(heads))
            if self.rng.random() < 0.3:
                grown = self.times(grown, self.pick(heads))
            if direction and self.kind != "latched":
                grown = self.lif(grown)
            heads.append(grown)
        grown = heads[-1] if grown.op in ("spike", "lif") else self.spike(heads[-1])
        if not direction and self.fixed:
            self.elements(grown)
        for latch in waiting:
            self.source(latch, self.pick([grown, self.pick(self.nodes[begin:])]))
        if direction and self.rng.random() < 0.4:
            grown = self.accumulator(grown)
        last = direction == 0 and earlier
        if last or len(self.nodes) - begin > 4 or not direction:
            readout = self.readout(grown)
            self.timed[readout.name] = bool(direction and self.rng.random() < 0.6)

    def door(self, direction: int) -> list[Node]:
        """All elements of a node of a sweep with a direction, or the elements of one that has none,
        perhaps brought to so many in its sweep."""
        known, at = [], 0
        for count, way in self.sweeps:
            if bool(way) != bool(direction):
                known += [n for n in self.nodes[at : at + count] if n.op != "readout"]
            at += count
        if not direction:
            return [self.node("stack", (self.pick(known),), steps=self.steps)] if known else []
        known = [n for n in known if n.shape[0] == self.steps and len(n.shape) > 1]
        return [self.node("unstack", (self.pick(known),))] if known else []

    def elements(self, node: Node) -> None:
        """A node of one value per step, for an unstack of a later sweep."""
        shape = (self.steps, *self.pick(((5,), (3, 4))))
        index = self.rng.integers(-1, node.units, shape)
        self.node("route", (node,), {"index": index}, kind="index", shape=shape)

    def times(self, a: Node, b: Node) -> Node:
        """a times b, unit by unit, with b brought to a shape that fits."""
        if max(a.hi, -a.lo) * max(b.hi, -b.lo) >= 2**28:
            return a
        shape = list(a.shape)
        shape[self.integer(0, len(shape) - 1)] = 1 if self.rng.random() < 0.3 else shape[0]
        shape = [n if n in (1, m) else m for n, m in zip(shape, a.shape)]
        index = self.rng.integers(0, b.units, shape)
        b = self.node("route", (b,), {"index": index}, kind="index", shape=tuple(shape))
        return self.spike(self.node("product", (a, b)))

    def latch(self, earlier: list[Node]) -> Node:
        low, high = self.pick(((-255, 255), (0, 255), (-15, 15), (0, 1), (-128, 127)))
        begin = sum(count for count, _ in self.sweeps)
        at, static = 0, []
        for count, direction in self.sweeps:
            if not direction:
                static += [n for n in self.nodes[at : at + count] if low <= n.lo and n.hi <= high]
            at += count
        assert at == begin
        if static and self.rng.random() < 0.6:
            first = self.pick(static)
            return self.node("latch", (first,), shape=first.shape, lo=low, hi=high)
        shape = self.pick(((3, 6, 5), (2, 5), (6,), (4, 3)))
        pattern = self.pick(((), shape[-1:], shape))
        initial = self.rng.integers(low, high + 1, pattern) * (self.rng.random(pattern) < 0.5)
        return self.node("latch", (), {"initial": initial}, shape=shape, lo=low, hi=high)

    def source(self, latch: Node, node: Node) -> None:
        """A node of the latch's shape and within its bounds, made from `node`."""
        if node.shape != latch.shape:
            index = self.rng.integers(-1, node.units, latch.shape)
            node = self.node("route", (node,), {"index": index}, kind="index", shape=latch.shape)
        if node.lo < latch.lo or latch.hi < node.hi:
            node = self.spike_within(node, latch.lo, latch.hi)
        self.latches[latch.name] = node.name

    def spike_within(self, node: Node, lo: int, hi: int) -> Node:
        charge = self.values[node.name]
        for _ in range(200):
            params, attrs = self.pick((self.uniform, self.ladder))(node, charge)
            if lo <= attrs["lo"] and attrs["hi"] <= hi:
                trial = make_node("trial", "spike", (node,), params, attrs)
                if (TABLE["spike"].dense(trial, [charge]) != 0).mean() > 0.1:
                    return self.node("spike", (node,), params, **attrs)
        params = {"init": np.int32(1 - charge.min()), "theta": np.int32(1)}
        return self.node("spike", (node,), params, kind="uniform", lo=0, hi=min(hi, 3))

    def accumulator(self, node: Node) -> Node:
        """Sum over the steps so far: a latch of itself plus the node."""
        most = self.steps + 1
        lo, hi = most * min(node.lo, 0), most * max(node.hi, 0)
        if hi - lo >= 2**30:
            return node
        latch = self.node(
            "latch", (), {"initial": np.int32(0)}, shape=node.shape, lo=lo, hi=hi, steps=most
        )
        total = self.node("add", (latch, node), {"m0": np.int32(1), "m1": np.int32(1)})
        self.latches[latch.name] = total.name
        return total

    def lif(self, node: Node) -> Node:
        """Leaky neurons with thresholds where the charges are."""
        charge = self.values[node.name]
        typical = max(1, int(np.abs(charge).mean()))
        shift = self.pick((0, 1, 1, 2, 5))
        one, pattern = 2**shift, self.pattern(node)
        gain = self.pick((1, 3, one))
        if shift * (self.steps - 1) <= 24 and self.rng.random() < 0.5:
            gain = 2 ** (shift * (self.steps - 1))  # nothing is ever rounded
        scale = gain * typical
        wide = lambda low, high: self.rng.integers(low, high + 1, self.pattern(node))  # noqa: E731
        leak = self.pick((np.int64(one), np.int64(one // 2), wide(0, one)))
        kind = self.pick(("soft", "hard"))
        theta = self.rng.integers(max(1, scale // 4), 2 * scale + 1, pattern)
        if (charge <= 0).mean() > 0.8:
            gain = -gain
        reset = (
            theta if kind == "soft" and self.rng.random() < 0.7 else wide(-scale // 4, scale // 4)
        )
        params = {
            "leak": leak,
            "gain": np.full(self.pattern(node), gain),
            "bias": self.pick((np.int64(0), wide(-scale // 4, scale // 4))),
            "theta": theta,
            "reset": reset,
            "initial": self.pick((np.int64(0), wide(-scale // 3, scale // 3))),
        }
        return self.node("lif", (node,), params, kind=kind, shift=shift, steps=self.steps + 1)

    def node(self, op: str, inputs: Any = (), params: Any = None, **attrs: Any) -> Node:
        if op not in ("lif", "latch", "stack", "unstack"):
            return super().node(op, inputs, params, **attrs)
        node = make_node(f"n{len(self.nodes)}", op, inputs, params, attrs)
        if op == "latch":
            low, high = max(node.lo, -300), min(node.hi, 300)
            value = self.rng.integers(low, high + 1, (EXAMPLES, *node.shape))
        elif op == "stack":
            each = self.values[inputs[0].name]
            value = np.stack([self.rng.permuted(each, axis=0) for _ in range(self.steps)], 1)
        elif op == "unstack":
            value = self.values[inputs[0].name][:, self.integer(0, self.steps - 1)]
        else:
            v = np.broadcast_to(node.params["initial"], (EXAMPLES, *node.shape))
            for _ in range(4):
                charge = self.rng.permuted(self.values[inputs[0].name], axis=0)
                value = TABLE["lif"].dense(node, [charge, v])
                v = TABLE["lif"].barrier(node, [charge, v])
        self.values[node.name] = value
        self.nodes.append(node)
        return node

    def boundary(self, node: Node) -> Boundary:
        timed = self.timed[node.name]
        rank = len(node.shape) + 1 + timed
        batch, time = (int(i) for i in self.rng.permutation(rank)[:2]) if timed else (0, None)
        if not timed and self.rng.random() < 0.4:
            batch = self.integer(0, rank - 1)
        dims: list[int | str] = list(node.shape)
        lead = (
            {batch: "batch"}
            if time is None
            else {batch: "batch", time: self.steps if self.fixed else "T"}
        )
        for i in sorted(lead):
            dims.insert(i, lead[i])
        old = super().boundary(node)
        scale = old.scale
        if self.rng.random() < 0.4:
            along = self.integer(0, len(node.shape) - 1)
            shape = [n if i == along else 1 for i, n in enumerate(node.shape)]
            scale = self.rng.uniform(0.01, 0.1, shape).astype(np.float32)
        return Boundary(
            old.name, node.name, "float32", tuple(dims), scale, old.offset, (), batch, time
        )

"""Random small networks of every op, in which the neurons really fire.

Values that a conv, linear or pool reads fit 8 bits, so every network can also be saved to a file.
Each network carries a few example values along while it is built: thresholds are drawn from the
charges that occur, and a layer that would stay silent is drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from snnkit.backends import Result
from snnkit.graph import Boundary, Graph, Node, make_node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints

EXAMPLES = 24
MOST_UNITS = 400
"""Layers above are routed down, so that the reference stays fast."""
INPUT_SHAPES = ((2, 7, 5), (1, 8, 6), (3, 5, 9), (4, 11), (2, 13), (10,), (3, 6))


def random_graph(rng: np.random.Generator, plateaus: bool = False) -> Graph:
    """A network of about 10 to 25 nodes: one or two inputs, branches of different depth, joins.

    plateaus : ladders with values may repeat a value in neighbouring cells.
    """
    return _Builder(rng, plateaus).graph()


def samples(graph: Graph, rng: np.random.Generator, n: int) -> dict[str, Any]:
    """n float samples by input name, over the whole range of the input and a little beyond."""
    found = {}
    for b in graph.inputs:
        node = graph.node[b.node]
        counts = rng.integers(node.lo - 5, node.hi + 6, (n, *node.shape))
        counts = counts * (rng.random(counts.shape) < 0.7)
        jitter = rng.uniform(-0.45, 0.45, counts.shape)
        found[b.name] = ((counts + jitter) * b.scale + b.offset).astype(np.float32)
    return found


def firing(graph: Graph, result: Result) -> None:
    """Assert that every spike node fires: a silent network proves nothing."""
    for node in graph.of("spike"):
        assert result.spikes[node.name].sum() > 0, f"node '{node.name}' is silent"


class _Builder:
    def __init__(self, rng: np.random.Generator, plateaus: bool):
        self.rng, self.plateaus = rng, plateaus
        self.nodes: list[Node] = []
        self.values: dict[str, Ints] = {}

    def graph(self) -> Graph:
        heads = [self.input() for _ in range(self.rng.integers(1, 3))]
        for _ in range(self.rng.integers(3, 6)):
            grown = self.layer(self.pick(heads + self.nodes[-3:]))
            if self.rng.random() < 0.5:
                grown = self.join(grown, self.pick(self.nodes))
            heads.append(grown)
        readouts = [self.readout(n) for n in dict.fromkeys([heads[-1], self.pick(heads)])]
        inputs = [n for n in self.nodes if n.op == "input"]
        return Graph(
            tuple(self.nodes),
            tuple(self.boundary(n) for n in inputs),
            tuple(self.boundary(n) for n in readouts),
            {"source": "corpus"},
        )

    def integer(self, low: int, high: int) -> int:
        """low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, choices: Any) -> Any:
        return choices[self.integer(0, len(choices) - 1)]

    def node(
        self,
        op: str,
        inputs: tuple[Node, ...] = (),
        params: Mapping[str, Any] | None = None,
        **attrs: Any,
    ) -> Node:
        node = make_node(f"n{len(self.nodes)}", op, inputs, params, attrs)
        if op == "input":
            counts = self.rng.integers(node.lo, node.hi + 1, (EXAMPLES, *node.shape))
            value = counts * (self.rng.random(counts.shape) < 0.7)
        else:
            value = TABLE[op].dense(node, [self.values[n.name] for n in inputs])
        self.values[node.name] = np.asarray(value)
        self.nodes.append(node)
        return node

    def input(self) -> Node:
        low = self.pick((0, -128, -10))
        return self.node("input", shape=self.pick(INPUT_SHAPES), lo=low, hi=low + 255)

    def boundary(self, node: Node) -> Boundary:
        scale, offset = np.float32(self.rng.uniform(0.01, 0.1)), np.float32(0)
        if node.op == "input":
            offset = np.float32(self.rng.uniform(-0.5, 0.5))
        dims: tuple[int | str, ...] = ("batch", *node.shape)
        tensor = f"tensor_{node.name}"
        return Boundary(tensor, node.name, "float32", dims, np.asarray(scale), np.asarray(offset))

    def byte(self, node: Node) -> Node:
        """The node, or a spike node behind it if its values do not fit 8 bits."""
        return node if node.hi - node.lo <= 255 else self.spike(node)

    def layer(self, node: Node) -> Node:
        """One op that fits the node's shape, mostly with neurons behind it."""
        rank = len(node.shape)
        choices = [self.linear, self.linear, self.route, self.spike]
        if rank in (2, 3):
            choices += [self.conv, self.conv, self.conv, self.pool, self.pool]
        if rank > 1:
            choices += [self.pool_axes]
        grown: Node = self.pick(choices)(node)
        grown = self.shrink(grown)
        return self.spike(grown) if self.rng.random() < 0.8 else grown

    def shrink(self, node: Node) -> Node:
        if node.units <= MOST_UNITS:
            return node
        shape = (self.integer(2, 4), self.integer(3, 6), self.integer(3, 6))
        index = self.rng.integers(-1, node.units, shape)
        return self.node("route", (node,), {"index": index}, kind="index", shape=shape)

    def conv(self, node: Node) -> Node:
        node = self.byte(node)
        channels, space = node.shape[0], node.shape[1:]
        group = self.pick([g for g in (1, 1, 1, 2, channels) if channels % g == 0])
        per = self.integer(1, 5) if group < channels or group == 1 else self.integer(1, 2)
        attrs = self.windows(space)
        weight = self.weights((group * per, channels // group, *attrs.pop("kernel")))
        return self.node("conv", (node,), {"weight": weight}, group=group, **attrs)

    def windows(self, space: tuple[int, ...], inside: bool = False) -> dict[str, Any]:
        """Kernel, strides, dilations and asymmetric pads; `inside`: smaller pads than windows."""
        kernel, strides, dilations, begins, ends = [], [], [], [], []
        for size in space:
            k = self.integer(1, min(3, size))
            dilation = self.integer(1, 2) if (k - 1) * 2 < size else 1
            most = min(2, (k - 1) * dilation if inside else 2)
            if inside and dilation > 1:
                most = min(most, 1)
            kernel.append(k)
            dilations.append(dilation)
            strides.append(self.integer(1, 3))
            begins.append(self.integer(0, most))
            ends.append(self.integer(0, most))
        pads = (*begins, *ends)
        return {"kernel": kernel, "strides": strides, "dilations": dilations, "pads": pads}

    def weights(self, shape: tuple[int, ...]) -> Ints:
        weight = self.rng.integers(-127, 128, shape)
        return weight * (self.rng.random(shape) < 0.8)

    def linear(self, node: Node) -> Node:
        node = self.byte(node)
        weight = self.weights((self.integer(2, 12), node.shape[-1]))
        return self.node("linear", (node,), {"weight": weight})

    def pool(self, node: Node) -> Node:
        node = self.byte(node)
        op = self.pick(("sum_pool", "max_pool"))
        return self.node(op, (node,), **self.windows(node.shape[1:], inside=True))

    def pool_axes(self, node: Node) -> Node:
        node = self.byte(node)
        rank = len(node.shape)
        axes = sorted(self.rng.permutation(rank)[: self.integer(1, rank - 1)].tolist())
        op = self.pick(("sum_pool", "max_pool"))
        return self.node(op, (node,), axes=axes, keepdims=bool(self.rng.random() < 0.5))

    def route(self, node: Node) -> Node:
        kind = self.pick(("reshape", "transpose", "index", "concat"))
        if kind == "transpose":
            perm = self.rng.permutation(len(node.shape)).tolist()
            return self.node("route", (node,), kind=kind, perm=perm)
        if kind == "reshape":
            shape = self.pick(((node.units,), (1, node.units), (node.shape[0], -1)))
            shape = tuple(node.units // node.shape[0] if n < 0 else n for n in shape)
            return self.node("route", (node,), kind=kind, shape=shape)
        if kind == "concat":
            return self.node("route", (node, node), kind=kind, axis=len(node.shape) - 1)
        shape = (self.integer(1, 3), self.integer(2, 5), self.integer(2, 5))
        index = self.rng.integers(-1, node.units, shape)
        return self.node("route", (node,), {"index": index}, kind="index", shape=shape)

    def join(self, a: Node, b: Node) -> Node:
        """Two branches, added or side by side; the second is brought to a shape that fits."""
        axis = self.integer(0, len(a.shape) - 1)
        add = self.rng.random() < 0.6
        shape = list(a.shape)
        shape[axis] = self.pick((1, shape[axis])) if add else self.integer(1, 3)
        if tuple(shape) != b.shape:
            index = self.rng.integers(-1, b.units, shape)
            b = self.node("route", (b,), {"index": index}, kind="index", shape=tuple(shape))
        if not add:
            return self.shrink(self.node("route", (a, b), kind="concat", axis=axis))
        reach = max(a.hi, -a.lo, b.hi, -b.lo)
        most = 5 if reach < 2**24 else 1
        per_channel = (a.shape[0],) + (1,) * (len(a.shape) - 1)
        m0 = self.rng.integers(-most, most + 1, per_channel)
        m1 = np.int32(self.pick((1, -1, most)))
        return self.node("add", (a, b), {"m0": m0, "m1": m1})

    def readout(self, node: Node) -> Node:
        bias = self.rng.integers(-1000, 1000, node.shape[-1:])
        return self.node("readout", (node,), {"bias": bias})

    def spike(self, node: Node) -> Node:
        """Neurons whose thresholds lie where the charges are, and which fire in most examples."""
        charge = self.values[node.name]
        for _ in range(50):
            params, attrs = self.pick((self.uniform, self.uniform, self.ladder))(node, charge)
            trial = make_node("trial", "spike", (node,), params, attrs)
            fires = TABLE["spike"].dense(trial, [charge]) != 0
            if fires.mean() > 0.1 and fires.reshape(EXAMPLES, -1).any(axis=1).mean() > 0.8:
                return self.node("spike", (node,), params, **attrs)
        # charges that hardly differ from each other: every neuron fires by its bias
        params = {"init": np.int32(1 - charge.min()), "theta": np.int32(1)}
        return self.node("spike", (node,), params, kind="uniform", lo=0, hi=3)

    def pattern(self, node: Node) -> tuple[int, ...]:
        """One set of parameters for all neurons, for each channel, or for each neuron."""
        shape = node.shape
        return tuple(self.pick(((), (shape[0],) + (1,) * (len(shape) - 1), shape[-1:], shape)))

    def uniform(self, node: Node, charge: Ints) -> tuple[dict[str, Any], dict[str, Any]]:
        hi = self.pick((1, 1, 2, 3, 7, 15, 255))
        lo = self.pick((0, 0, -1, -hi)) if hi < 128 else 0
        pattern = self.pattern(node)
        typical = max(1, int(np.abs(charge).mean() * 2 / min(hi, 15)))
        theta = self.rng.integers(1, 2 * typical + 1, pattern)
        if self.rng.random() < 0.15:
            theta = np.ones_like(theta)
        most = self.pick((0, typical, 4 * typical))
        init = self.rng.integers(-most, most + 1, pattern)
        if self.rng.random() < 0.1:
            # a bias beyond any charge: these neurons fire without input
            init = init + int(np.abs(charge).max()) + hi * int(np.max(theta))
        elif self.rng.random() < 0.5:
            init = init + theta // 2
        return {"init": init, "theta": theta}, {"kind": "uniform", "lo": lo, "hi": hi}

    def ladder(self, node: Node, charge: Ints) -> tuple[dict[str, Any], dict[str, Any]]:
        hi = self.pick((1, 2, 5, 12))
        lo = self.pick((0, -1, -3))
        steps, pattern = hi - lo, self.pattern(node)
        low, high = int(charge.min()) - 1, int(charge.max()) + 1
        attrs = {"kind": "ladder", "lo": lo, "hi": hi}
        params: dict[str, Any] = {"init": self.rng.integers(-3, 4, self.pattern(node))}
        if self.rng.random() < 0.5:
            steps = self.integer(1, 14)
            params["values"] = self.staircases((*pattern, steps + 1), lo, hi)
        params["thresholds"] = np.sort(self.rng.integers(low, high + 1, (*pattern, steps)), axis=-1)
        return params, attrs

    def staircases(self, shape: tuple[int, ...], lo: int, hi: int) -> Ints:
        """Values that go up and down by one, within lo..hi, and pass zero."""
        values = np.zeros(shape, np.int64)
        value = self.rng.integers(lo, hi + 1, shape[:-1])
        for cell in range(shape[-1]):
            values[..., cell] = value
            steps = (-1, 0, 1) if self.plateaus else (-1, 1)
            value = value + self.rng.choice(steps, shape[:-1])
            value = np.where(value > hi, hi - 1, np.where(value < lo, lo + 1, value))
        missing = ~(values == 0).any(axis=-1)
        up = np.arange(shape[-1]) % (2 if hi > 0 else 1)
        values[missing] = up
        return values

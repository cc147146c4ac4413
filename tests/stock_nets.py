"""Random one-shot networks within the widths of stock LIF neurons, in which every layer fires."""

from __future__ import annotations

from typing import Any

import numpy as np

from snnkit.graph import Boundary, Graph, Node, make_node
from snnkit.reference import dense

EXAMPLES = 12


class Net:
    """Nodes in a row; `charges` holds example values so that thresholds lie where they matter."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], largest: int = 255):
        self.rng, self.nodes = rng, []
        self.values: dict[str, np.ndarray] = {}
        self.x = self.add("input", shape=shape, lo=0, hi=255)
        counts = rng.integers(0, largest + 1, (EXAMPLES, *shape))
        self.values["input0"] = counts * (rng.random(counts.shape) < 0.6)

    def add(self, op: str, inputs: Any = (), params: Any = None, **attrs: Any) -> Node:
        node = make_node(f"{op}{len(self.nodes)}", op, inputs, params, attrs)
        self.nodes.append(node)
        if op != "input":
            from snnkit.ops import TABLE

            self.values[node.name] = TABLE[op].dense(node, [self.values[n.name] for n in inputs])
        return node

    def conv(
        self, x: Node, out: int, most: int, kernel: tuple[int, ...] = (3, 3), **attrs: Any
    ) -> Node:
        d = len(kernel)
        full = {
            "strides": (1,) * d,
            "pads": (0,) * 2 * d,
            "dilations": (1,) * d,
            "group": 1,
            **attrs,
        }
        shape = (out, x.shape[0] // full["group"], *kernel)
        return self.add("conv", (x,), {"weight": self.rng.integers(-most, most + 1, shape)}, **full)

    def linear(self, x: Node, out: int, most: int) -> Node:
        weight = self.rng.integers(-most, most + 1, (out, x.shape[-1]))
        return self.add("linear", (x,), {"weight": weight})

    def flat(self, x: Node) -> Node:
        return self.add("route", (x,), kind="reshape", shape=(x.units,))

    def spike(self, x: Node, levels: int, ladder: bool = False) -> Node:
        """One theta per channel, or a ladder, over the charges that occur."""
        charge = self.values[x.name]
        reach = max(2, int(np.quantile(np.abs(charge), 0.7)))
        along = (x.shape[0], *(1,) * (len(x.shape) - 1))
        init = self.rng.integers(-reach // 8, reach // 4 + 1, along)
        attrs = {"lo": 0, "hi": levels}
        if ladder:
            steps = self.rng.integers(1, reach + 1, (*along, levels))
            params = {"init": init, "thresholds": np.sort(steps, axis=-1)}
            return self.add("spike", (x,), params, kind="ladder", **attrs)
        low = max(1, reach // (2 * levels))
        theta = self.rng.integers(low, 2 * low + 2, along)
        return self.add("spike", (x,), {"init": init, "theta": theta}, kind="uniform", **attrs)

    def graph(self, x: Node) -> Graph:
        bias = self.rng.integers(-900, 900, x.shape)
        self.add("readout", (x,), {"bias": bias})
        return closed(self.nodes)


def closed(nodes: list[Node]) -> Graph:
    """A graph of nodes, the first of which is the input, the last the readout."""
    one, zero = np.float32(1).reshape(()), np.float32(0).reshape(())
    ends = [
        Boundary(f"t{n.name}", n.name, "float32", ("N", *n.shape), one, zero)
        for n in (nodes[0], nodes[-1])
    ]
    graph = Graph(tuple(nodes), (ends[0],), (ends[1],), {"source": "test"})
    graph.check()
    return graph


def chain(seed: int, levels: int = 3, ladder: bool = False) -> Graph:
    """Two convolutions with uneven padding, stride, dilation, then two dense layers."""
    n = Net(np.random.default_rng(seed), (2, 9, 7))
    x = n.spike(n.conv(n.x, 4, 20, strides=(2, 1), pads=(1, 0, 1, 2)), levels, ladder)
    x = n.spike(n.conv(x, 5, 100, (2, 3), dilations=(2, 1), pads=(1, 1, 1, 1)), levels, ladder)
    x = n.spike(n.linear(n.flat(x), 12, 60), levels, ladder)
    return n.graph(n.linear(x, 6, 120))


def branched(seed: int, levels: int = 2) -> Graph:
    """A residual sum with multipliers beyond 8 bits, a grouped convolution, pooled sums."""
    n = Net(np.random.default_rng(seed), (2, 6, 6))
    x = n.spike(n.conv(n.x, 4, 20, pads=(1, 1, 1, 1)), levels)
    y = n.spike(n.conv(x, 4, 60, pads=(1, 1, 1, 1), group=2), levels)
    y = n.conv(y, 4, 60, pads=(1, 1, 1, 1))
    m1 = n.rng.integers(300, 700, (4, 1, 1))
    y = n.spike(n.add("add", (y, x), {"m0": np.int32(3), "m1": m1}), levels)
    y = n.add("sum_pool", (y,), kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1))
    return n.graph(n.linear(n.flat(y), 5, 40))


def spread(seed: int) -> Graph:
    """Dense layers whose thresholds lie further apart than one process can hold."""
    n = Net(np.random.default_rng(seed), (12,))
    a = n.linear(n.x, 10, 40)
    reach = int(np.quantile(np.abs(n.values[a.name]), 0.9)) + 9000
    theta = n.rng.integers(reach // 20, reach // 6, (10,))
    params = {"init": n.rng.integers(0, 2000, (10,)), "theta": theta}
    x = n.add("spike", (a,), params, kind="uniform", lo=0, hi=9)
    return n.graph(n.linear(n.spike(n.linear(x, 8, 90), 2), 4, 50))


def samples(graph: Graph, seed: int, n: int = 9) -> np.ndarray:
    """Integers at the input, [n, *shape]."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 256, (n, *graph.nodes[0].shape))
    return counts * (rng.random(counts.shape) < 0.6)


def expected(graph: Graph, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The dense reading of every node; asserts that every layer fires, and not always the same."""
    values = dense(graph, {graph.nodes[0].name: counts})
    for node in graph.of("spike"):
        assert 0 < values[node.name].mean() < node.hi, f"'{node.name}' never changes"
        fires = (values[node.name] > 0).reshape(len(counts), -1).any(axis=1)
        assert fires.mean() > 0.5, f"'{node.name}' is silent"
    return values

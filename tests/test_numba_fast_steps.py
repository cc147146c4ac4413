"""The steps around synapses on vector instructions: sums, pools, moves, ladders, single inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import snnkit
from snnkit.graph import Boundary, Graph, Node, make_node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints
from tests.corpus import firing

pytest.importorskip("numba")
from snnkit.backends.numba_cpu import backend
from tests.test_numba_fast import HERE, equal, fast

CHANNELS = (1, 3, 4, 16, 20, 33, 64, 70)


class Sketch:
    """A network drawn node by node, with the values of a few examples carried along."""

    def __init__(self, seed: int, shape: tuple[int, ...], low: int = 0):
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.values: dict[str, Ints] = {}
        self.x = make_node("x", "input", attrs={"shape": shape, "lo": low, "hi": low + 255})
        self.nodes.append(self.x)
        counts = self.rng.integers(low, low + 256, (6, *shape))
        some = self.rng.random((6, *shape)) < np.array([0, 0.02, 0.1, 0.4, 0.8, 1]).reshape(
            -1, *(1,) * len(shape)
        )
        self.values["x"] = counts * some

    def add(self, op: str, *inputs: Node, params: Any = None, **attrs: Any) -> Node:
        node = make_node(f"n{len(self.nodes)}", op, inputs, params, attrs)
        value = TABLE[op].dense(node, [self.values[n.name] for n in inputs])
        self.values[node.name] = np.asarray(value)
        self.nodes.append(node)
        return node

    def window(self, op: str, source: Node, size: int, stride: int, pad: int) -> Node:
        d = len(source.shape) - 1
        shape = {"kernel": (size,) * d, "strides": (stride,) * d}
        return self.add(op, source, pads=(pad,) * 2 * d, dilations=(1,) * d, **shape)

    def conv(self, source: Node, outputs: int, size: int = 3, group: int = 1) -> Node:
        d = len(source.shape) - 1
        shape = (outputs, source.shape[0] // group, *(size,) * d)
        weight = self.rng.integers(-127, 128, shape)
        same = {"strides": (1,) * d, "dilations": (1,) * d, "pads": (size // 2,) * 2 * d}
        return self.add("conv", source, params={"weight": weight}, group=group, **same)

    def linear(self, source: Node, outputs: int) -> Node:
        weight = self.rng.integers(-127, 128, (outputs, source.shape[-1]))
        return self.add("linear", source, params={"weight": weight})

    def spike(self, source: Node, low: int = 0, top: int = 15, kind: str = "uniform") -> Node:
        charge = np.abs(self.values[source.name])
        reach = max(2, int(np.quantile(charge[charge > 0], 0.9)) if charge.any() else 2)
        attrs = {"kind": kind, "lo": low, "hi": top}
        pattern = (source.shape[0],) + (1,) * (len(source.shape) - 1)
        params: dict[str, Any] = {"init": self.rng.integers(1, reach, pattern)}
        if kind == "uniform":
            params["theta"] = self.rng.integers(max(1, reach // top), reach // top + 3, pattern)
        else:
            steps = self.rng.integers(-reach, reach + 1, (*pattern, top - low))
            params["thresholds"] = np.sort(steps, axis=-1)
        return self.add("spike", source, params=params, **attrs)

    def sum(self, *sources: Node, most: int = 3) -> Node:
        params = {f"m{i}": self.rng.integers(1, most + 1, ()) for i in range(len(sources))}
        return self.add("add", *sources, params=params)

    def graph(self, *ends: Node) -> Graph:
        for end in ends:
            self.add("readout", end, params={"bias": self.rng.integers(-99, 99, end.shape)})
        one, zero = np.ones((), np.float32), np.zeros((), np.float32)
        made = [
            Boundary(f"t{n.name}", n.name, "float32", ("n", *n.shape), one, zero)
            for n in (self.x, *(n for n in self.nodes if n.op == "readout"))
        ]
        return Graph(tuple(self.nodes), (made[0],), tuple(made[1:]))

    def check(self, path: str, *ends: Node) -> None:
        graph = self.graph(*ends)
        x = self.values["x"].astype(np.float32)
        expected = snnkit.compile(graph, "reference").run(x, record=("all",))
        firing(graph, expected)
        program = fast(graph, path)
        for order in (slice(None), slice(None, None, -1)):  # what the last sample left
            result = program.run(x[order][order], record=("all",), threads=1)
            equal(result, expected)
        for name, value in program.infer(x[::-1]).items():
            np.testing.assert_array_equal(value, expected.outputs[name][::-1])


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("low", [0, -10])
@pytest.mark.parametrize("channels", CHANNELS)
def test_pools(path: str, low: int, channels: int) -> None:
    """Windows with padding, over bytes whose zero is 0 or not; sums read as bytes by a layer."""
    s = Sketch(channels, (channels, 9, 13), low)
    neurons = s.spike(s.conv(s.x, channels), low=low and -3, top=7)
    maximum = s.window("max_pool", neurons, 3, 2, 1)
    total = s.window("sum_pool", neurons, 2, 2, 0)
    assert total.hi - total.lo <= 255
    a, b = s.spike(s.conv(maximum, 8)), s.spike(s.conv(total, 17, 1))
    everything = tuple(range(1, 3))
    means = s.add("sum_pool", a, axes=everything, keepdims=False)
    tops = s.add("max_pool", b, axes=everything, keepdims=True)
    s.check(path, means, tops, s.window("max_pool", s.x, 2, 2, 0))


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("channels", CHANNELS)
def test_depthwise_and_branches(path: str, channels: int) -> None:
    s = Sketch(channels, (channels, 7, 18))
    a = s.spike(s.conv(s.x, channels, group=channels))
    b = s.spike(s.conv(a, channels), kind="ladder", low=-2, top=12)
    joined = s.spike(s.sum(a, b, s.conv(a, channels, 1)))
    side = s.add("route", joined, b, a, kind="concat", axis=0)
    s.check(path, s.spike(s.conv(side, 5)), s.sum(joined, s.conv(side, channels)))


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("seed", range(6))
def test_sums_that_broadcast_and_charges_in_other_places(path: str, seed: int) -> None:
    s = Sketch(seed, (6, 5, 7))
    a, charge = s.spike(s.conv(s.x, 6)), s.conv(s.x, 6)
    row = s.add("sum_pool", a, axes=(1,), keepdims=True)
    one = s.add("max_pool", a, axes=(0, 2), keepdims=True)
    wide = s.sum(charge, row, one, most=9)
    assert wide.hi - wide.lo > 255
    turned = s.add("route", wide, kind="transpose", perm=(2, 0, 1))
    picked = s.rng.integers(-1, wide.units, (3, 4, 4))
    index = s.add("route", wide, params={"index": picked}, kind="index", shape=(3, 4, 4))
    both = s.add("route", wide, charge, kind="concat", axis=1)
    s.check(path, s.spike(turned), s.spike(index), both)


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("seed", range(6))
def test_more_than_three_axes(path: str, seed: int) -> None:
    s = Sketch(seed, (2, 3, 4, 5), -128 if seed % 2 else 0)
    a = s.spike(s.linear(s.x, 6))
    b = s.spike(s.linear(a, 6), kind="ladder", low=-3, top=9)
    over = s.add("max_pool", b, axes=(1, 3), keepdims=True)
    joined = s.sum(a, b, over)
    total = s.add("sum_pool", joined, axes=(0, 2), keepdims=False)
    flat = s.add("route", s.spike(joined), kind="reshape", shape=(6, 4, 6))
    scalar = s.add("sum_pool", a, axes=(0, 1, 2, 3), keepdims=True)
    s.check(path, total, s.spike(s.conv(flat, 9)), s.spike(scalar))


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("units", [1, 5, 16, 31, 784])
def test_flat_inputs(path: str, units: int) -> None:
    s = Sketch(units, (units,), -10 if units == 31 else 0)
    s.check(path, s.linear(s.spike(s.linear(s.x, 40)), 7))


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("top", [1, 2, 3, 7, 12, 100, 255])
def test_ladders_of_every_length(path: str, top: int) -> None:
    s = Sketch(top, (5, 4, 9))
    s.check(path, s.spike(s.conv(s.x, 21), kind="ladder", top=top))


@pytest.mark.parametrize("path", HERE)
def test_a_staircase_that_ends_below_its_bound(path: str) -> None:
    """Two cells, but a bound of 5: the level never passes 1, whatever the charge."""
    s = Sketch(0, (3, 4, 4))
    params = {"init": np.int32(0), "thresholds": np.array([9]), "values": np.array([0, 1])}
    end = s.add("spike", s.conv(s.x, 4), params=params, kind="ladder", lo=0, hi=5)
    s.check(path, end)


@pytest.mark.parametrize("path", HERE)
def test_a_bias_on_the_way_to_synapses_is_left_to_the_general_engine(path: str) -> None:
    """At rest such a value is not zero: which messages were sent cannot be seen from it."""
    s = Sketch(0, (4,))
    biased = s.add("readout", s.x, params={"bias": np.int32(3)})
    narrow = s.spike(biased)
    assert fast(s.graph(s.linear(narrow, 3)), path).path == path
    s = Sketch(0, (4,))
    small = s.spike(s.x, top=3)
    biased = s.add("readout", small, params={"bias": np.int32(3)})
    program = backend().compile(s.graph(s.linear(biased, 3)), path)
    assert program.path == "generic" and "not zero at rest" in program.why_generic[0][1]


CODE = """
import sys, numpy as np, snnkit
graph = snnkit.load(sys.argv[1])
program = snnkit.compile(graph)
shape = graph.node[graph.inputs[0].node].shape
result = program.run(np.ones((2, *shape), np.float32), record=("all",))
print(program.path, sum(int(s.sum()) for s in result.spikes.values()))
"""


def test_the_vector_path_compiles_nothing_with_numba(tmp_path: Path) -> None:
    """Pools, branches, ladders and flat layers: no network waits for a compiler of Python."""
    if not HERE:
        pytest.skip("no vector instructions here")
    s = Sketch(0, (4, 9, 9))
    a = s.spike(s.conv(s.x, 8))
    b = s.spike(s.sum(a, s.conv(a, 8)), kind="ladder", low=-2)
    pooled = s.window("sum_pool", s.window("max_pool", b, 2, 2, 0), 2, 2, 0)
    flat = s.add("route", pooled, kind="reshape", shape=(pooled.units,))
    snnkit.save(s.graph(s.spike(s.linear(flat, 9))), tmp_path / "net.onnx")
    cache = tmp_path / "cache"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "SNNKIT_CPU_PATH": HERE[0]}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "net.onnx")],
        capture_output=True,
        text=True,
        env=environment,
    )
    path, spikes = done.stdout.split()
    assert path == HERE[0] and int(spikes) > 0, done.stderr
    assert not cache.exists() or not list(cache.rglob("*.nb?"))

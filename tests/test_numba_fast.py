"""The vector kernels equal the reference on every integer, on every set of instructions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import snnkit
from snnkit.backends import Result
from snnkit.boundary import as_inputs
from snnkit.errors import UsageError
from snnkit.graph import Boundary, Graph, make_node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints
from tests.corpus import firing, random_graph, samples

pytest.importorskip("numba")
from snnkit.backends.numba_cpu import NumbaProgram, backend
from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.isa import ISAS, host_features, missing
from snnkit.backends.numba_cpu.fast.pack import straight

HERE = [name for name, isa in ISAS.items() if not missing(isa, host_features())]
EVERYTHING = ("counts", "outputs", "spikes", "synops")
LEVELS = (1, 2, 3, 7, 15, 31, 127, 255)


def fast(graph: Graph, path: str) -> NumbaProgram:
    program = backend().compile(graph, path)
    assert program.path == path, program.why_generic
    return program


def equal(a: Result, b: Result) -> None:
    for name in EVERYTHING:
        left, right = getattr(a, name), getattr(b, name)
        assert list(left) == list(right)
        for key in left:
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(left[key], right[key], err_msg=f"{name} of '{key}'")


class Network:
    """Grows a network whose neurons fire, by looking at the values of a few examples."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], low: int, top: int):
        self.rng = rng
        self.node = make_node("x", "input", attrs={"shape": shape, "lo": low, "hi": low + 255})
        self.nodes = [self.node]
        counts = rng.integers(low, min(top, low + 255) + 1, (8, *shape))
        self.density = rng.choice([0.02, 0.2, 0.6, 1.0])
        self.value: Ints = counts * (rng.random(counts.shape) < self.density)

    def add(self, op: str, params: Any = None, **attrs: Any) -> None:
        self.node = make_node(f"n{len(self.nodes)}", op, [self.node], params, attrs)
        self.value = np.asarray(TABLE[op].dense(self.node, [self.value]))
        self.nodes.append(self.node)

    def conv(self, outputs: int, kernel: int, stride: int, dilation: int = 1) -> None:
        channels, *space = self.node.shape
        size = [min(kernel, n) for n in space]
        pads = self.rng.integers(0, kernel + 1, 2 * len(space)).tolist()
        same = {"strides": [stride] * len(space), "dilations": [dilation] * len(space)}
        weight = self.rng.integers(-127, 128, (outputs, channels, *size))
        if dilation > 1:
            pads = [dilation * kernel] * 2 * len(space)
        self.add("conv", {"weight": weight}, pads=pads, group=1, **same)

    def linear(self, outputs: int) -> None:
        self.add("route", kind="reshape", shape=(self.node.units,))
        weight = self.rng.integers(-127, 128, (outputs, self.node.units))
        self.add("linear", {"weight": weight})

    def spike(self, quiet: bool = True) -> None:
        """Neurons of which a good part fires; thresholds and biases differ between channels."""
        top = int(self.rng.choice(LEVELS))
        low = 0 if quiet or top == 255 else -int(self.rng.integers(0, min(top, 100) + 1))
        pattern = (self.node.shape[0],) + (1,) * (len(self.node.shape) - 1)
        reach = max(1, int(np.quantile(np.abs(self.value), 0.9)))
        theta = self.rng.integers(max(1, reach // (2 * top)), reach // top + 2, pattern)
        init = theta // 2
        if not quiet:
            init = init + self.rng.integers(-reach, reach + 1, pattern)
        self.add("spike", {"init": init, "theta": theta}, kind="uniform", lo=low, hi=top)

    def graph(self) -> Graph:
        bias = self.rng.integers(-1000, 1000, self.node.shape)
        self.add("readout", {"bias": bias})
        one, zero = np.ones((), np.float32), np.zeros((), np.float32)
        ends = [
            Boundary(name, n.name, "float32", ("batch", *n.shape), one, zero)
            for name, n in (("X", self.nodes[0]), ("Y", self.nodes[-1]))
        ]
        return Graph(tuple(self.nodes), (ends[0],), (ends[1],))

    def data(self) -> Any:
        """Samples as dense as the examples, an empty one and a full one."""
        x = self.nodes[0]
        counts = self.rng.integers(x.lo, x.hi + 1, (5, *x.shape))
        counts = counts * (self.rng.random(counts.shape) < self.density)
        counts[3], counts[4] = 0, x.hi
        return counts.astype(np.float32)


def random_network(seed: int) -> Network:
    rng = np.random.default_rng(seed)
    flat = rng.random() < 0.15
    side = int(rng.integers(5, 40))
    space = (side,) if flat else (int(rng.integers(5, 14)), side)
    low = int(rng.choice([0, 0, 0, -128, -10]))
    net = Network(rng, (int(rng.integers(1, 6)), *space), low, int(rng.choice([1, 3, 255])))
    for _ in range(rng.integers(1, 4)):
        outputs = int(rng.choice([1, 3, 10, 16, 20, 32, 48, 64, 70, 130]))
        dilation = 2 if rng.random() < 0.15 else 1
        net.conv(outputs, int(rng.choice([1, 3, 3, 5])), int(rng.integers(1, 4)), dilation)
        net.spike(quiet=bool(rng.random() < 0.6))
    if rng.random() < 0.7:
        net.linear(int(rng.choice([1, 10, 11, 33, 100])))
        if rng.random() < 0.5:
            net.spike(quiet=bool(rng.random() < 0.5))
    return net


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("seed", range(60))
def test_convolutions_equal_the_reference(seed: int, path: str) -> None:
    net = random_network(seed)
    graph = net.graph()
    x = net.data()
    expected = snnkit.compile(graph, "reference").run(x, record=("all",))
    program = fast(graph, path)
    for _ in range(2):  # what the last sample left must not show
        equal(program.run(x, record=("all",), threads=1), expected)
    np.testing.assert_array_equal(program.infer(x)["Y"], expected.outputs["Y"])


@pytest.mark.parametrize("path", HERE)
def test_corpus(path: str) -> None:
    """Every op has a vector kernel."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        program = fast(graph, path)
        x = samples(graph, rng, 6)
        expected = snnkit.compile(graph, "reference").run(x, record=("all",))
        firing(graph, expected)
        equal(program.run(x, record=("all",)), expected)


@pytest.mark.parametrize("path", HERE)
def test_a_sample_does_not_depend_on_batch_or_threads(path: str) -> None:
    net = random_network(2)
    graph = net.graph()
    x = np.concatenate([net.data() for _ in range(5)])
    program = fast(graph, path)
    batch = program.run(x, record=("all",), threads=1)
    equal(program.run(x, record=("all",), threads=3), batch)
    np.testing.assert_array_equal(program.infer(x, threads=2)["Y"], batch.outputs["Y"])
    for i in range(len(x)):
        alone = program.infer(x[i : i + 1])["Y"]
        np.testing.assert_array_equal(alone[0], batch.outputs["Y"][i])


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("top", LEVELS)
def test_charges_at_the_thresholds(path: str, top: int) -> None:
    """Charges at k * theta and one beside it, for theta up to the limit of the fast staircase."""
    rng = np.random.default_rng(top)
    limit = 2**22 // (top + 1)
    theta = np.unique(np.concatenate([[1, 2, 3, limit], rng.integers(1, limit + 1, 60)]))
    k = rng.integers(-1, top + 3, (400, len(theta)))
    charge = (k * theta + rng.integers(-1, 2, k.shape)).T
    x = make_node("x", "input", attrs={"shape": (len(theta), 1, 2), "lo": 0, "hi": 255})
    weight = np.zeros((len(theta), len(theta), 1, 1), np.int8)
    window = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "group": 1}
    a = make_node("a", "conv", [x], {"weight": weight}, window)
    for column in range(0, 400, 40):
        init = charge[:, column : column + 2].reshape(len(theta), 1, 2)
        params = {"init": init, "theta": theta.reshape(-1, 1, 1)}
        s = make_node("s", "spike", [a], params, {"kind": "uniform", "lo": 0, "hi": top})
        y = make_node("y", "readout", [s], {"bias": np.int32(0)})
        one, zero = np.ones((), np.float32), np.zeros((), np.float32)
        ends = [Boundary(n.name, n.name, "float32", ("n", *n.shape), one, zero) for n in (x, y)]
        graph = Graph((x, a, s, y), (ends[0],), (ends[1],))
        program = fast(graph, path)
        found = program.run(np.ones((1, *x.shape), np.float32), record=("s",)).counts["s"][0]
        np.testing.assert_array_equal(found, np.clip(init // params["theta"], 0, top))


def test_the_straight_staircase_is_proved_or_refused() -> None:
    steps = np.arange(1, 16)
    values = np.broadcast_to(np.arange(16), (1, 16))
    assert straight(steps[None] * (2**22 // 16), values) is not None
    assert straight(steps[None] * 2**22, values) is None
    assert straight(steps[None] ** 2 * 100, values) is None
    assert straight(steps[None] * 100, values[:, ::-1]) is None


def rounded(rng: np.random.Generator, channels: int, top: int, largest: float) -> np.ndarray:
    """Thresholds of a requantiser with real scales: the least T with T * r + c >= k."""
    step = largest / top * rng.uniform(0.5, 1.0, (channels, 1))
    return np.ceil((np.arange(1, top + 1) - rng.uniform(0, 1, (channels, 1))) * step).astype(int)


def test_a_line_in_float64_is_proved_where_float32_fails() -> None:
    """Random real scales: whatever is proved is the staircase at and beside every threshold."""
    rng = np.random.default_rng(5)
    values = np.broadcast_to(np.arange(256), (64, 256))
    for exponent in (18, 22, 27):
        ladder = rounded(rng, 64, 255, 2.0**exponent)
        narrow = straight(ladder, values)
        wide = straight(ladder, values, np.float64)
        assert narrow is None and wide is not None
        rate, shift = (a[:, None] for a in wide)
        for charge, below in ((ladder, 0), (ladder - 1, 1)):
            exact = np.array(
                [[Fraction(int(c)) * Fraction(r) + Fraction(s) for c in row]
                 for row, r, s in zip(charge, rate[:, 0], shift[:, 0], strict=True)]
            )  # fmt: skip
            level = np.vectorize(math.floor)(exact)
            np.testing.assert_array_equal(
                level, np.broadcast_to(np.arange(1, 256), level.shape) - below
            )
    curved = np.arange(1, 256)[None] ** 2
    assert straight(curved, values[:1], np.float64) is None


def test_thresholds_that_no_charge_reaches_bend_no_line() -> None:
    never = np.iinfo(np.int32).max
    ladder = np.array([[100, 200, 300, never, never], [-(2**31), 10, 110, 210, never]])
    values = np.broadcast_to(np.arange(6), (2, 6))
    assert straight(ladder, values) is None
    line = straight(ladder, values, np.float32, (-50, 300))
    assert line is not None
    charge = np.arange(-50, 301)
    level = np.floor(charge * line[0][:, None].astype(float) + line[1][:, None].astype(float))
    passed = (charge[None, :, None] >= ladder[:, None]).sum(2)
    np.testing.assert_array_equal(np.clip(level, 0, 5), passed)
    # one more charge: the fourth threshold's place on the line is passed, the threshold is not
    assert straight(ladder, values, np.float32, (-50, 500)) is None


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("outputs", [7, 20, 40, 64, 90, 130])
def test_staircases_in_float64_equal_the_reference(outputs: int, path: str) -> None:
    """255 levels of real scales, some thresholds out of reach: no searched ladder is left."""
    rng = np.random.default_rng(outputs)
    net = Network(rng, (3, 9, 11), 0, 255)
    for _ in range(2):
        net.conv(outputs, 3, 1)
        reach = float(np.quantile(net.value, 0.97))
        ladder = rounded(rng, outputs, 255, reach)
        ladder[:, 200:] = np.where(ladder[:, 200:] > net.node.hi, 2**31 - 1, ladder[:, 200:])
        params = {"init": np.int32(0), "thresholds": ladder.reshape(outputs, 1, 1, 255)}
        net.add("spike", params, kind="ladder", lo=0, hi=255)
    graph, x = net.graph(), net.data()
    program = fast(graph, path)
    kinds = program.fast.net.steps[:, [f.P_KIND, f.P_WIDE]]
    fired = kinds[kinds[:, 0] == f.GATHER][:2]
    assert (fired[:, 1] == f.WIDE).any() and f.LADDER not in kinds[:, 0]
    expected = snnkit.compile(graph, "reference").run(x, record=("spike",))
    equal(program.run(x, record=("spike",)), expected)
    firing(graph, expected)


def test_quantiser_has_the_bits_of_the_boundary() -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 6):
        net = Network(rng, (channels, 5, 37), 0, 255)
        graph = net.graph()
        scale = rng.uniform(0.01, 0.1, (channels, 1, 1)).astype(np.float32)
        offset = rng.uniform(-1, 1, (channels, 1, 1)).astype(np.float32)
        x = graph.inputs[0]
        ends = Boundary(x.name, x.node, x.dtype, x.dims, scale, offset)
        graph = Graph(graph.nodes, (ends,), graph.outputs)
        # halves, where rounding to even matters, and values beyond the range
        data = rng.integers(-4, 520, (3, channels, 5, 37)) * (scale / 2) + offset
        expected = snnkit.compile(graph, "reference").run(data.astype(np.float32), record=("x",))
        for path in HERE:
            equal(fast(graph, path).run(data.astype(np.float32), record=("x",)), expected)


def test_infer_checks_shapes_and_converts_types() -> None:
    net = random_network(1)
    graph = net.graph()
    x = net.data()
    for path in (*HERE, "generic"):
        program = backend().compile(graph, path)
        expected = program.run(x).outputs["Y"]
        np.testing.assert_array_equal(program.infer(x.astype(np.float64))["Y"], expected)
        np.testing.assert_array_equal(
            program.infer({"X": x[:, :, ::-1][:, :, ::-1]})["Y"], expected
        )
        with pytest.raises(snnkit.errors.SnnkitError):
            program.infer(x[:, :, 1:])
        with pytest.raises(snnkit.errors.SnnkitError):
            program.infer({"Z": x})
    assert as_inputs(graph, x)["X"].dtype == np.float32


def test_path_by_environment() -> None:
    code = "from snnkit.backends.numba_cpu.fast import choose; i = choose(); print(i and i.name)"
    for name, wanted in (("generic", "None"), *((n, n) for n in HERE)):
        env = {**os.environ, "SNNKIT_CPU_PATH": name}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout.strip() == wanted, done.stderr


def test_unknown_or_missing_paths_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from snnkit.backends.numba_cpu.fast import isa

    with pytest.raises(UsageError, match="expected auto, avx512, avxvnni, avx2 or generic"):
        isa.choose("neon")
    monkeypatch.setattr(isa, "host_features", lambda: {"avx2": True, "fma": True})
    with pytest.raises(UsageError, match="this CPU lacks avx512f, avx512bw"):
        isa.choose("avx512")
    chosen = isa.choose("auto")
    assert chosen is not None and chosen.name == "avx2"
    monkeypatch.setattr(isa, "host_features", lambda: {})
    assert isa.choose("auto") is None

"""Graphs as NIR files: what the file's own equations compute, and what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

nir = pytest.importorskip("nir", reason="nir is not installed; pip install 'nir>=1.0.6'")

import snnkit  # noqa: E402
from snnkit.boundary import input_counts  # noqa: E402
from snnkit.cli import main  # noqa: E402
from snnkit.errors import BackendMissing, UnsupportedModel, UsageError  # noqa: E402
from snnkit.exporters import export  # noqa: E402
from snnkit.exporters.nir_nodes import LEVELS, ROUNDS, SOFT, STARTS  # noqa: E402
from snnkit.graph import Boundary, Graph, Node, make_node  # noqa: E402
from snnkit.ops import TABLE  # noqa: E402
from tests.corpus import random_graph  # noqa: E402
from tests.nir_oracle import simulate  # noqa: E402
from tests.step_corpus import random_step_graph  # noqa: E402

ROOT = Path(__file__).parents[1]


class Steps:
    """A step graph of what NIR has words for. `whole`: no membrane potential is ever rounded."""

    def __init__(self, rng: np.random.Generator, whole: bool, soft: bool):
        self.rng, self.whole, self.soft = rng, whole, soft
        self.steps = int(rng.integers(3, 8))
        self.nodes: list[Node] = []
        shape = (2, 8, 7)
        x = self.put("input", (), {}, shape=shape, lo=0, hi=255)
        grid = (6, self.steps, *shape)
        self.x = (rng.integers(0, 4, grid) * (rng.random(grid) < 0.6)).astype(np.float32)
        self.values = {x.name: self.x.astype(np.int64)}

    def put(self, op: str, inputs: tuple[Node, ...], params: Any, **attrs: Any) -> Node:
        node = make_node(f"{op}/{len(self.nodes)}", op, inputs, params, attrs)
        self.nodes.append(node)
        if op == "lif":
            v, found = np.broadcast_to(node.params["initial"], (6, *node.shape)), []
            for t in range(self.steps):
                charge = self.values[inputs[0].name][:, t]
                found.append(TABLE[op].dense(node, [charge, v]))
                v = TABLE[op].barrier(node, [charge, v])
            self.values[node.name] = np.stack(found, 1)
        elif op not in ("input", "latch"):
            flat = [self.values[n.name].reshape(-1, *n.shape) for n in inputs]
            value = TABLE[op].dense(node, flat)
            self.values[node.name] = value.reshape(6, self.steps, *node.shape)
        return node

    def conv(self, x: Node, out: int, group: int = 1) -> Node:
        rng = self.rng
        weight = rng.integers(-60, 100, (out, x.shape[0] // group, 3, 3))
        pad, stride = int(rng.integers(0, 2)), int(rng.integers(1, 3))
        return self.put(
            "conv",
            (x,),
            {"weight": weight},
            strides=(stride, 1),
            pads=(1, pad, 1, pad),
            dilations=(1, 1),
            group=group,
        )

    def lif(self, x: Node) -> Node:
        """Per unit or per channel; thresholds on potentials that occur: ties."""
        rng, leaky = self.rng, self.rng.random() < 0.6
        shift = int(rng.integers(1, 3)) if leaky else int(rng.integers(0, 3))
        one, channels = 2**shift, (x.shape[0], *(1,) * (len(x.shape) - 1))
        leak = rng.integers(0, one, x.shape) if leaky else np.full(channels, one)
        gain = one ** (self.steps - 1) if self.whole else int(rng.integers(1, 6))
        charge = self.values[x.name]
        sign = np.where((charge > 0).mean((0, 1)) < 0.2, -1, 1)
        gains = gain * sign * np.ones(x.shape, int)
        flat = (charge * sign).reshape(-1, *x.shape)
        ordered = np.sort(np.where(flat > 0, flat, 2**30), 0)
        count = (flat > 0).sum(0)
        at = np.take_along_axis(ordered, np.maximum(count * 2 // 3 - 1, 0)[None], 0)[0]
        theta = gain * np.where(count > 0, at, 1)
        bias = gain * sign * np.zeros(x.shape, int)
        if rng.random() < 0.6 and (sign == 1).all():
            bias = gain * rng.integers(-9, 10, channels)
        theta = np.maximum(theta + bias, 1)
        reset = theta if self.soft else -gain * rng.integers(0, 5, x.shape) * (leak < one)
        params = {"leak": leak, "gain": gains, "bias": bias, "theta": theta, "reset": reset}
        kind = "soft" if self.soft else "hard"
        steps = self.steps
        return self.put("lif", (x,), params | {"initial": 0}, kind=kind, shift=shift, steps=steps)

    def graph(self) -> Graph:
        rng = self.rng
        x = self.lif(self.conv(self.nodes[0], 4, int(rng.choice([1, 2]))))
        sizes = {"kernel": (2, 2), "strides": (2, 1), "dilations": (1, 1)}
        pooled = self.put("sum_pool", (x,), {}, pads=(0, 1, 0, 1), **sizes)
        a = self.conv(pooled, 3)
        b = make_node("again", "conv", [pooled], {"weight": a.params["weight"][::-1]}, a.attrs)
        self.nodes.append(b)
        flat = self.values[pooled.name].reshape(-1, *pooled.shape)
        self.values["again"] = TABLE["conv"].dense(b, [flat]).reshape(self.values[a.name].shape)
        m = {"m0": 1, "m1": rng.integers(1, 2, (3, 1, 1))}
        y = self.lif(self.put("add", (a, b), m))
        y = self.put("route", (y,), {}, kind="reshape", shape=(y.units,))
        weight = {"weight": rng.integers(-60, 100, (9, y.units))}
        charge = self.put("linear", (y,), weight)
        first = self.lif(charge)
        level = int(np.median(self.values[charge.name]))
        second = self.put(
            "spike", (charge,), {"init": 1 - level, "theta": 1}, kind="uniform", lo=0, hi=1
        )
        both = self.put("add", (first, second), {"m0": 3, "m1": rng.integers(1, 4, 9)})
        ends = [self.put("readout", (both,), {"bias": 0})]
        scores = self.put("linear", (first,), {"weight": rng.integers(-60, 100, (4, 9))})
        lo, hi = self.steps * scores.lo, self.steps * scores.hi
        name = f"latch/{len(self.nodes)}"
        latch = self.put("latch", (), {"initial": 0}, shape=(4,), lo=lo, hi=hi, steps=self.steps)
        self.values[name] = np.zeros((6, self.steps, 4), np.int64)
        total = self.put("add", (latch, scores), {"m0": 1, "m1": 1})
        self.values[total.name] = self.values[scores.name].cumsum(1)
        ends.append(self.put("readout", (total,), {"bias": 0}))
        ends.append(self.put("readout", (scores,), {"bias": rng.integers(-9, 9, 4)}))
        one, none = np.array(1, np.float32), np.array(0, np.float32)
        boundary = lambda n, name: Boundary(  # noqa: E731
            name, n.name, "float32", ("n", "T", *n.shape), one, none, (), 0, 1
        )
        return Graph(
            tuple(self.nodes),
            (boundary(self.nodes[0], "x"),),
            tuple(boundary(n, f"y{i}") for i, n in enumerate(ends)),
            {},
            ((len(self.nodes), 1),),
            0,
            {latch.name: total.name},
        )


def spiking(graph: Graph) -> list[Node]:
    return [*graph.of("lif", "spike")]


def exported(graph: Graph, path: Path) -> tuple[Any, tuple[str, ...], dict[str, str]]:
    """The file's graph, the lines told, and the NIR name of each node of ours."""
    notes = export(graph, path)
    found = nir.read(path, type_check=False)
    return found, notes, {n.metadata.get("node", k): k for k, n in found.nodes.items()}


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_the_file_alone_computes_the_same(tmp_path_factory, seed: int, soft: bool) -> None:
    """float64 by NIR's equations from the file equals the integers, ties included; and back."""
    b = Steps(np.random.default_rng(seed), True, soft)
    graph = b.graph()
    graph.check()
    path = tmp_path_factory.mktemp("nir") / "net.nir"
    file, notes, names = exported(graph, path)
    assert [n for n in notes if ROUNDS in n or STARTS in n] == []
    assert any(SOFT in n for n in notes) == soft and file.metadata["exact"] == int(not soft)
    result = snnkit.compile(graph, "reference").run(b.x, record=("all",))
    values, _ = simulate(file, b.x, file.metadata["dt"])
    for node in spiking(graph):
        expected = result.counts[node.name]
        assert expected.any() and not expected.all(), node.name
        assert np.array_equal(values[names[node.name]], expected), node.name
    for boundary in graph.outputs:
        error = values[boundary.name] - result.outputs[boundary.name]
        assert np.abs(error).max() < 1e-6
    back(graph, file, b.x, result, names, strip=False)
    back(graph, file, b.x, result, names, strip=True)


def back(graph: Graph, file: Any, x: np.ndarray, result: Any, names: Any, strip: bool) -> None:
    """Imported, with or without the metadata that fix the rounding, it fires the same spikes."""
    for node in file.nodes.values():
        if strip:
            node.metadata.pop("snnkit", None)
    again = snnkit.convert(file, x)
    found = snnkit.compile(again, "reference").run(x, record=("all",))
    for node in spiking(graph):
        assert np.array_equal(found.counts[names[node.name]], result.counts[node.name]), node.name
    for boundary in graph.outputs:
        assert np.array_equal(found.outputs[boundary.name], result.outputs[boundary.name])


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_networks_that_round_come_back_integer_for_integer(
    tmp_path_factory, seed: int, soft: bool
) -> None:
    b = Steps(np.random.default_rng(seed), False, soft)
    graph = b.graph()
    file, notes, names = exported(graph, tmp_path_factory.mktemp("nir") / "net.nir")
    result = snnkit.compile(graph, "reference").run(b.x, record=("all",))
    assert result.counts[graph.of("lif")[0].name].any()
    back(graph, file, b.x, result, names, strip=False)
    leaky = [n for n in graph.of("lif") if (n.params["leak"] % 2 ** n.attrs["shift"]).any()]
    assert any(ROUNDS in n for n in notes) == bool(leaky)
    for node in leaky:  # changed by hand, the file's own numbers count
        file.nodes[names[node.name]].v_threshold += 10**6
    again = snnkit.convert(file, b.x)
    found = snnkit.compile(again, "reference").run(b.x, record=("all",))
    assert not leaky or not found.counts[names[leaky[0].name]].any()


def test_the_step_corpus_is_refused_by_name(tmp_path) -> None:
    """Whatever a step graph holds, ladders, products, routes, is named; nothing is left behind."""
    refused = 0
    for seed in range(20):
        try:
            graph = random_step_graph(np.random.default_rng(seed), 3, "lif")
        except AssertionError:
            continue  # no lively network for this seed
        path = tmp_path / f"{seed}.nir"
        try:
            export(graph, path)
        except UnsupportedModel as error:
            refused += 1
            lacking = {n.name for n in graph.of("max_pool", "product") if graph.direction(n.name)}
            named = {p.node for p in error.problems}
            assert lacking <= named <= set(graph.node) and not path.exists()
            continue
        assert nir.read(path, type_check=False).metadata["steps"] == graph.steps
    assert refused > 10


def test_neurons_that_start_elsewhere_are_marked(tmp_path) -> None:
    b = Steps(np.random.default_rng(0), True, False)
    graph = b.graph()
    lif = graph.of("lif")[0]
    other = make_node(
        lif.name, "lif", [graph.node[lif.inputs[0]]], {**lif.params, "initial": [[[3]]]}, lif.attrs
    )
    nodes = tuple(other if n.name == lif.name else n for n in graph.nodes)
    changed = Graph(nodes, graph.inputs, graph.outputs, {}, graph.sweeps, 0, graph.latches)
    file, notes, names = exported(changed, tmp_path / "net.nir")
    assert any(STARTS in n and lif.name in n for n in notes) and file.metadata["exact"] == 0
    unit = np.abs(lif.params["gain"])
    assert np.array_equal(file.nodes[names[lif.name]].metadata["initial"], 3 / unit)


# Networks of bipolar neurons: marked, and their numbers are right.


@pytest.mark.parametrize("seed", range(6))
def test_bipolar_neurons_become_if(seed: int, tmp_path) -> None:
    rng = np.random.default_rng(seed)
    x = make_node("x", "input", [], {}, {"shape": (6,), "lo": 0, "hi": 255})
    weight = rng.integers(-127, 128, (5, 6))
    charge = make_node("a", "linear", [x], {"weight": weight})
    theta, init = rng.integers(1, 90, 5), rng.integers(-20, 20, 5)
    attrs = {"kind": "uniform", "lo": 0, "hi": 15}
    spike = make_node("s", "spike", [charge], {"theta": theta, "init": init}, attrs)
    steps = np.sort(rng.integers(1, 3000, (5, 7)), 1)
    ladder = make_node(
        "l",
        "spike",
        [make_node("b", "linear", [spike], {"weight": weight[:, :5]})],
        {"thresholds": steps, "init": [4]},
        {"kind": "ladder", "lo": -2, "hi": 5},
    )
    b = make_node("b", "linear", [spike], {"weight": weight[:, :5]})
    out = make_node("y", "readout", [ladder], {"bias": [7]})
    one, none = np.array(0.5, np.float32), np.array(0, np.float32)
    ends = [Boundary(n.name, n.name, "float32", ("n", *n.shape), one, none) for n in (x, out)]
    graph = Graph((x, charge, spike, b, ladder, out), (ends[0],), (ends[1],))
    notes = export(graph, tmp_path / "net.nir")
    file = nir.read(tmp_path / "net.nir")  # nir's own check passes
    assert any(LEVELS in n and "s, l" in n for n in notes) and file.metadata["exact"] == 0
    assert file.metadata["notes"].splitlines() == list(notes)
    assert np.array_equal(file.nodes["a"].weight, weight)
    assert np.array_equal(file.nodes["s"].v_threshold, theta)
    assert np.array_equal(file.nodes["l"].v_threshold, steps[:, 2] - 4)
    held = file.nodes["s"].metadata["staircase"]
    assert np.array_equal(held["init"], init) and (held["lo"], held["hi"]) == (0, 15)
    assert file.nodes["s"].metadata["reset"] == "subtract"
    assert np.array_equal(file.nodes["l"].metadata["staircase"]["thresholds"], steps)
    assert file.nodes["x"].metadata["scale"] == 0.5 and file.nodes["y"].metadata["bias"] == 7


@pytest.mark.parametrize("name", ["iir_digits_t1", "iir_digits_t5"])
def test_trained_networks_come_back(name: str, tmp_path) -> None:
    """Soft resets and leaks of 24 bits: the metadata keep how they round."""
    graph = snnkit.load(ROOT / "examples" / f"{name}.onnx")
    rng = np.random.default_rng(0)
    shape = (20, 1, 8, 8)
    x = (rng.integers(0, 17, shape) / 16 * (rng.random(shape) < 0.6)).astype(np.float32)
    file, notes, names = exported(graph, tmp_path / "net.nir")
    assert any(SOFT in n for n in notes) == (graph.steps > 0)
    result = snnkit.compile(graph, "reference").run(x, record=("all",))
    counts = np.repeat(input_counts(graph, x)["x"][:, None], graph.steps or 1, 1)
    again = snnkit.convert(file, counts)
    found = snnkit.compile(again, "reference").run(counts.astype(np.float32), record=("all",))
    for node in spiking(graph):
        expected = result.counts[node.name]
        seen = found.counts[names[node.name]]
        assert expected.any()
        assert np.array_equal(seen if graph.steps else seen[:, 0], expected), node.name
    # 1000 steps, for which the integers in the metadata have no room
    assert len(snnkit.convert(file).of("lif")) == len(graph.of("lif"))
    scores = found.outputs["output"][:, -1] * graph.outputs[0].scale
    assert np.array_equal(scores, result.outputs["output"])
    if not graph.steps:  # thresholds without a memory: exact in any program
        values, _ = simulate(file, counts, 1.0)
        assert file.metadata["exact"] == 1
        for node in spiking(graph):
            assert np.array_equal(values[names[node.name]], found.counts[names[node.name]])


# What cannot be written.


def test_what_nir_has_no_word_for_is_refused_at_once(tmp_path, capsys) -> None:
    seen: set[str] = set()
    for seed in range(12):
        graph = random_graph(np.random.default_rng(seed))
        path = tmp_path / f"{seed}.nir"
        try:
            export(graph, path)
        except UnsupportedModel as refused:
            seen |= {p.op for p in refused.problems}
            lacking = {n.name for n in graph.of("max_pool", "product")}
            assert lacking <= {p.node for p in refused.problems} and not path.exists()
        else:
            assert not graph.of("max_pool", "product") and nir.read(path, type_check=False)
    assert {"max_pool", "route"} <= seen
    drawn = (random_step_graph(np.random.default_rng(s), 3, "latched") for s in range(1, 30))
    latched = next(g for g in drawn if all(direction >= 0 for _, direction in g.sweeps))
    snnkit.save(latched, tmp_path / "net.onnx")
    assert main(["export", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "net.nir")]) == 3
    assert "recurrence through a latch" in capsys.readouterr().err
    assert not (tmp_path / "net.nir").exists()


def test_the_command(tmp_path, capsys, monkeypatch) -> None:
    net, path = str(ROOT / "examples" / "iir_digits_t5.onnx"), tmp_path / "net.nir"
    assert main(["export", net, "-o", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    assert SOFT in printed.err and '"notes"' in printed.out
    assert isinstance(nir.read(path), nir.NIRGraph)
    first = path.read_bytes()
    assert main(["export", net, "-o", str(path)]) == 0 and path.read_bytes() == first
    assert main(["export", net, "-o", str(tmp_path / "net.txt")]) == 2
    assert "expected one of .net, .nir" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no format ''"):
        export(snnkit.load(net), tmp_path / "net")
    monkeypatch.setitem(__import__("sys").modules, "nir", None)
    with pytest.raises(BackendMissing, match="pip install"):
        export(snnkit.load(net), path)
    assert main(["export", net, "-o", str(path)]) == 5 and path.read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.nir"]

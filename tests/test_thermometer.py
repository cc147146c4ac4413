"""Stock LIF neurons: the published arithmetic against the dense reading, and the real processes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from snnkit.errors import UnsupportedModel
from snnkit.graph import Graph, make_node
from snnkit.reference import dense
from snnkit.thermometer import Stock, StockLayer, obstacles, thermometer
from tests import lava_rules, step_corpus, stock_nets

ONE = {"kind": "uniform", "lo": 0, "hi": 1}


def stepped(stock: Stock, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Every layer's integers for every sample, by the rules of stock processes, step by step; each
    connection delivers one step later."""
    graph, first = stock.graph, stock.graph.nodes[0].name
    steps = len(counts) * stock.hold + max(stock.depth.values()) + 1
    neurons = {
        e.name: [(p, lava_rules.Lif(p.units.shape, p.vth, p.bias)) for p in e.processes]
        for e in stock.layers
    }
    sent = {n: np.zeros(graph.node[n].units * c, np.int64) for n, c in copies(stock).items()}
    shown: dict[str, list[np.ndarray]] = {e.name: [] for e in stock.layers}
    for t in range(steps):
        fired = {first: counts[min(t // stock.hold, len(counts) - 1)].reshape(-1)}
        for e in stock.layers:
            charge = sum(crossed(stock, e, c, sent[c.source]) for c in e.connections)
            spikes, v = np.zeros(charge.shape, np.int64), np.zeros(charge.shape, np.int64)
            for p, lif in neurons[e.name]:
                spikes[p.units] = lif.step(charge[p.units])
                v[p.units] = lif.before
            assert not (e.readout and spikes.any())
            fired[e.name] = spikes
            value = v >> 6 if e.readout else spikes.reshape(e.copies, -1).sum(0)
            shown[e.name].append(value.reshape(e.shape))
        sent = fired
    return {
        e.name: np.stack([shown[e.name][stock.step_of(e.name, n)] for n in range(len(counts))])
        for e in stock.layers
    }


def copies(stock: Stock) -> dict[str, int]:
    return {stock.graph.nodes[0].name: 1, **{e.name: e.copies for e in stock.layers}}


def crossed(stock: Stock, layer: StockLayer, c, spikes: np.ndarray) -> np.ndarray:
    """What one connection brings, in the order of the layer's copies."""
    if c.kind == "dense":
        return lava_rules.dense(2 * c.weight, spikes, c.exponent - 1)
    shape = stock.graph.node[c.source].shape
    planes = spikes.reshape(-1, *shape[1:]).transpose(2, 1, 0)
    kernel = c.weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)
    assert c.exponent == 0 and np.abs(c.weight).max() <= 127
    a = c.attrs
    y = lava_rules.conv(kernel, planes, a["strides"][::-1], a["pads"][::-1], a["dilations"][::-1])
    return y.transpose(2, 1, 0).reshape(-1)


def compare(graph: Graph, seed: int) -> Stock:
    counts = stock_nets.samples(graph, seed)
    values, stock = stock_nets.expected(graph, counts), thermometer(graph)
    found = stepped(stock, counts)
    assert set(found) == {n.name for n in graph.of("spike", "readout")}
    for name, value in found.items():
        assert np.array_equal(value, values[name]), name
    return stock


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ladder", [False, True])
def test_a_chain_is_exact_on_every_neuron(seed: int, ladder: bool) -> None:
    graph = stock_nets.chain(seed, levels=1 + seed, ladder=ladder)
    stock = compare(graph, seed)
    kinds = [[c.kind for c in e.connections] for e in stock.layers]
    assert kinds == [["conv"], ["conv"], ["dense"], ["dense"]] and stock.hold == 1
    assert stock.neurons == sum(n.units * n.hi for n in graph.of("spike")) + 6
    assert [e.connections[0].weight.size for e in stock.layers[2:]] == [
        graph.nodes[6].params["weight"].size * (1 + seed) ** 2,
        graph.nodes[8].params["weight"].size * (1 + seed),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_sums_pools_and_groups_are_exact(seed: int) -> None:
    stock = compare(stock_nets.branched(seed), seed)
    assert stock.hold == 5  # the shortcut is one layer shorter than the branch
    wide = stock.layers[2].connections
    assert {c.exponent for c in wide} == {0, 7} and all(np.abs(c.weight).max() <= 127 for c in wide)


def test_the_formulas_of_bias_and_threshold() -> None:
    """bias = v0 - l * theta + 1 + base and vth = base, for copy l; base is free."""
    graph = stock_nets.chain(1, levels=2)
    node = graph.of("spike")[0]
    (lif,) = thermometer(graph).layers[0].processes
    v0, theta = node.params["init"], node.params["theta"]
    wanted = np.concatenate([np.broadcast_to(v0 - k * theta + 1, node.shape) for k in (1, 2)])
    assert np.array_equal(lif.bias - lif.vth, wanted.reshape(-1))


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_far_apart_share_no_process(seed: int) -> None:
    graph = stock_nets.spread(seed)
    stock = compare(graph, seed)
    processes = stock.layers[0].processes
    assert len(processes) > 1 and max(p.vth for p in processes) > 8192
    units = np.concatenate([p.units for p in processes])
    assert np.array_equal(np.sort(units), np.arange(10 * 9))


@pytest.mark.parametrize(("reach", "fits"), [(131071, True), (131072, False)])
def test_charges_up_to_the_last_bit(reach: int, fits: bool) -> None:
    """|A| = 131071 is exact; one more is refused, since u would wrap."""
    x = make_node("x", "input", (), {}, {"shape": (6,), "lo": 0, "hi": 255})
    rest = reach - 255 * 4 * 127 - 255 * 5
    weights = [[127, 127, 127, 127, 5, 0], [-127, -127, -127, -127, -5, 0]]
    a = make_node("a", "linear", (x,), {"weight": weights})
    one = make_node("one", "spike", (x,), {"init": np.int32(0), "theta": np.int32(1)}, ONE)
    b = make_node("b", "linear", (one,), {"weight": [[0] * 5 + [1], [0] * 5 + [-1]]})
    m = make_node("m", "add", (a, b), {"m0": np.int32(1), "m1": np.int32(rest)})
    assert (m.lo, m.hi) == (-reach, reach)
    theta = np.array([reach if fits else 1000, 4000])
    s = make_node("s", "spike", (m,), {"init": np.int32(0), "theta": theta}, ONE)
    y = make_node("y", "readout", (s,), {"bias": np.int32(0)})
    graph = stock_nets.closed([x, a, one, b, m, s, y])
    if not fits:
        with pytest.raises(UnsupportedModel, match=r"'s'.*131,072"):
            thermometer(graph)
        return
    counts = np.array([[255] * 6, [255] * 5 + [0], [0] * 6, [255] * 4 + [254, 9]])
    found = stepped(thermometer(graph), counts)["s"]
    assert np.array_equal(found, dense(graph, {"x": counts})["s"])
    assert found[:, 0].tolist() == [1, 0, 0, 0]


def test_every_obstacle_is_named_at_once() -> None:
    n = stock_nets.Net(np.random.default_rng(0), (2, 8, 8))
    x = n.spike(n.conv(n.x, 4, 127), 3)
    x = n.add("max_pool", (x,), kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1))
    a = n.conv(x, 30, 100)
    params = {"init": np.int32(0), "theta": np.int32(50)}
    x = n.add("spike", (a,), params, kind="uniform", lo=-20, hi=20)
    params = {"init": np.int32(90_000), "theta": np.int32(50)}
    x = n.add("spike", (n.linear(n.flat(x), 3, 100),), params, kind="uniform", lo=0, hi=2)
    graph = n.graph(n.linear(x, 4, 9))
    with pytest.raises(UnsupportedModel) as caught:
        thermometer(graph)
    named = {p.node: p.reason for p in caught.value.problems}
    assert "no stock process" in named["max_pool3"]
    assert "a charge can reach" in named["spike2"] and "131,071" in named["spike2"]
    assert "below 0" in named["spike5"]
    assert "levels at charges" in named["spike8"]
    assert len(named) == 4


def test_step_graphs_are_refused() -> None:
    graph = step_corpus.random_step_graph(np.random.default_rng(0), 3)
    assert obstacles(graph) and all(p.node in graph.node for p in obstacles(graph))


LAVA = os.environ.get("SNNKIT_LAVA_PYTHON", "")
SCRIPT = Path(__file__).parent / "lava" / "run_stock.py"


class Job:
    """Networks and inputs as arrays for the script that runs in Lava's interpreter."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.nets: list[dict] = []

    def array(self, value: np.ndarray) -> str:
        key = f"a{len(self.arrays)}"
        self.arrays[key] = np.asarray(value, np.int32)
        return key

    def add(self, name: str, stock: Stock, counts: np.ndarray) -> None:
        steps = np.repeat(counts, stock.hold, axis=0)
        rest = np.repeat(steps[-1:], max(stock.depth.values()) + 1, axis=0)
        x = np.moveaxis(np.concatenate([steps, rest]), 0, -1)
        layers = [self.layer(stock, e) for e in stock.layers]
        planes = layers[0]["connections"][0]["kind"] == "conv"
        x = x if planes else x.reshape(-1, x.shape[-1])
        self.nets.append({"name": name, "input": self.array(x), "planes": planes, "layers": layers})

    def layer(self, stock: Stock, e: StockLayer) -> dict:
        first = stock.graph.nodes[0].name
        planes = e.connections[0].kind == "conv"
        assert not planes or len(e.processes) == 1
        return {
            "name": e.name,
            "readout": e.readout,
            "planes": [e.copies * e.shape[0], *e.shape[1:]] if planes else None,
            "connections": [
                {
                    "source": "input" if c.source == first else c.source,
                    "kind": c.kind,
                    "exponent": c.exponent,
                    "weight": self.array(c.weight),
                    "attrs": {k: list(v) for k, v in c.attrs.items()},
                }
                for c in e.connections
            ],
            "processes": [
                {"vth": p.vth, "units": self.array(p.units), "bias": self.array(p.bias)}
                for p in e.processes
            ],
        }

    def run(self, folder: Path) -> dict[str, np.ndarray]:
        np.savez(folder / "job.npz", **self.arrays)
        (folder / "job.json").write_text(json.dumps(self.nets))
        command = [LAVA, "-B", str(SCRIPT), str(folder / "job"), str(folder / "out.npz")]
        subprocess.run(command, check=True, timeout=240, cwd=folder)
        return dict(np.load(folder / "out.npz", allow_pickle=False))


@pytest.mark.skipif(
    not LAVA, reason="SNNKIT_LAVA_PYTHON does not name an interpreter with lava-nc 0.10.0"
)
def test_the_real_processes_agree_on_every_neuron(tmp_path: Path) -> None:
    graphs = {
        "chain": stock_nets.chain(7, levels=3),
        "ladder": stock_nets.chain(8, levels=2, ladder=True),
        "branched": stock_nets.branched(2),
        "spread": stock_nets.spread(1),
    }
    job, stocks, wanted = Job(), {}, {}
    for name, graph in graphs.items():
        counts = stock_nets.samples(graph, 11, 6)
        stocks[name], wanted[name] = thermometer(graph), stock_nets.expected(graph, counts)
        job.add(name, stocks[name], counts)
    found = job.run(tmp_path)
    compared = 0
    for name, stock in stocks.items():
        for e in stock.layers:
            units = e.copies * int(np.prod(e.shape))
            shown = np.zeros((units, found[f"{name}/{e.name}/0"].shape[1]), np.int64)
            for k, p in enumerate(e.processes):
                key = f"{name}/{e.name}/{k}"
                shown[p.units] = found[f"{key}/v"] >> 6 if e.readout else found[key]
            at = [stock.step_of(e.name, n) for n in range(6)]
            value = shown[:, at].reshape(e.copies, *e.shape, 6).sum(0)
            assert np.array_equal(np.moveaxis(value, -1, 0), wanted[name][e.name]), (name, e.name)
            compared += value.size
    assert compared == 6 * sum(n.units for g in graphs.values() for n in g.of("spike", "readout"))

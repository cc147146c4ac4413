"""What fits on a chip: counts against brute force, partitions against their limits, widths."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import onnx
import pytest

import snnkit
from snnkit.cli import main
from snnkit.energy import counted_energy
from snnkit.errors import UsageError
from snnkit.fit import Fit, fit, fit_text
from snnkit.fit.numbers import thresholds
from snnkit.fit.partition import LIMITS
from snnkit.graph import Graph, make_node
from snnkit.ops import TABLE
from snnkit.populations import HELD, Population, fan_in, fan_out, populations
from snnkit.targets import Constant, Target, target, targets
from snnkit.thermometer import thermometer
from tests import corpus, stock_nets
from tests.models import cases
from tests.step_corpus import random_step_graph

SEEDS = range(12)


def small(**limits: int) -> Target:
    """A chip with the given limits and no others."""
    constants = {k: Constant(v, "", True, "this test") for k, v in limits.items()}
    return Target("small", "a small chip", ("bif",), "halving", "", MappingProxyType(constants))


def matrix(p: Population, graph: Graph, source: str) -> np.ndarray:
    """Weights [units, units of the source], by the graph's own rules on one unit at a time."""
    units = graph.node[source].units
    values = {s: np.zeros((units, *graph.node[s].shape), np.int64) for s in p.sources}
    values[source] = np.eye(units, dtype=np.int64).reshape(units, *graph.node[source].shape)
    for node in p.path:
        values[node.name] = TABLE[node.op].dense(node, [values[s] for s in node.inputs])
    return sum(values[r] for r in p.roots).reshape(units, -1).T


def linear_populations(graph: Graph):
    return [
        (p, s)
        for p in populations(graph)
        for s in p.sources
        if p.node.op not in ("max_pool", "product")
    ]


def drawn(seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    return corpus.random_graph(rng) if seed % 2 else random_step_graph(rng, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_against_matrices_written_out(seed: int) -> None:
    graph = drawn(seed)
    for p, s in linear_populations(graph):
        weights = matrix(p, graph, s)
        arriving = fan_in(p, graph, s).reshape(-1)
        leaving = fan_out(p, graph, np.ones(p.node.shape, np.int64))[s].reshape(-1)
        assert arriving.sum() == leaving.sum()
        # whatever cancels or overlaps, a path is counted where a weight arrives
        assert (arriving >= (weights != 0).sum(axis=1)).all()
        assert (leaving >= (weights != 0).sum(axis=0)).all()
        assert np.abs(weights).max() <= p.sources[s]


def test_counts_are_exact_where_no_windows_overlap() -> None:
    for graph in (stock_nets.chain(0), stock_nets.chain(1), stock_nets.spread(0)):
        for p, s in linear_populations(graph):
            weights = matrix(p, graph, s) != 0
            leaving = fan_out(p, graph, np.ones(p.node.shape, np.int64))[s]
            assert np.array_equal(fan_in(p, graph, s).reshape(-1), weights.sum(axis=1))
            assert np.array_equal(leaving.reshape(-1), weights.sum(axis=0))


@pytest.mark.parametrize("seed", SEEDS)
def test_paths_to_some_units_reach_the_right_senders(seed: int) -> None:
    graph, rng = drawn(seed), np.random.default_rng(seed)
    for p in populations(graph):
        chosen = (rng.random(p.node.shape) < 0.3).astype(np.int64)
        leaving = fan_out(p, graph, chosen)
        for s in p.sources:
            assert leaving[s].sum() == (fan_in(p, graph, s) * chosen).sum()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("split", ["halving", "ceil"])
def test_partitions_cover_every_neuron_once_within_the_limits(seed: int, split: str) -> None:
    graph = drawn(seed)
    limits = {"neurons_per_core": 7, "synapse_bits_per_core": 6000, "input_axons_per_core": 60}
    chip = replace(small(cores_per_chip=1000, **limits), split=split)
    found = fit(graph, chip)
    assert [e.name for e in found.layers] == [n.name for n in graph.nodes if n.op in HELD]
    alone = {v.layer for v in found.violations if "alone" in v.quantity}
    cut = 0
    for e in found.layers:
        cores = [c for c in found.cores if c.layer == e.name]
        assert len(cores) == e.cores[1] >= e.cores[0]
        ends = [0] + [c.end for c in cores]
        assert [c.first for c in cores] == ends[:-1] and ends[-1] == graph.node[e.name].units
        assert sum(c.neurons for c in cores) == e.neurons == graph.node[e.name].units
        assert split == "ceil" or len(cores) in (2 ** np.arange(12)) or len(cores) == ends[-1]
        for c in cores:
            over = [k for k, name in LIMITS.items() if getattr(c, k) > limits.get(name, 1e9)]
            assert not over or c.end - c.first == 1 or e.name in alone
        cut += len(cores) > 1
    assert cut and found.totals["cores"] == (
        sum(e.cores[0] for e in found.layers),
        len(found.cores),
    )


def test_no_partition_is_finer_than_it_has_to_be() -> None:
    graph = stock_nets.chain(1)
    whole = fit(graph, small(cores_per_chip=128))
    assert all(e.cores == (1, 1) for e in whole.layers)
    bits = max(e.bits[1] for e in whole.layers)
    halved = fit(graph, small(cores_per_chip=128, synapse_bits_per_core=bits - 1))
    assert sorted(e.cores[1] for e in halved.layers) == [1, 1, 1, 2]
    assert halved.totals["synapses"][1] == whole.totals["synapses"][1]


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_axons_are_distinct_senders_and_pairs(seed: int) -> None:
    graph = drawn(seed)
    found = fit(graph, small(cores_per_chip=1000, neurons_per_core=7))
    inside = {e.name: [c for c in found.cores if c.layer == e.name] for e in found.layers}
    sent = {e.name: np.zeros(graph.node[e.name].units, np.int64) for e in found.layers}
    for p in populations(graph):
        received = [0] * len(inside[p.node.name])
        for s in p.sources:
            # a mark for every path, whatever the weights are: what the chip has to deliver
            marks = marked(p, graph, s)
            for k, c in enumerate(inside[p.node.name]):
                senders = marks[c.first : c.end].any(axis=0)
                received[k] += int(senders.sum()) * p.pieces(s)
                if s in sent:
                    sent[s] += senders
        assert received == [c.axons_in for c in inside[p.node.name]]
    for name, cores in inside.items():
        assert [int(sent[name][c.first : c.end].sum()) for c in cores] == [
            c.axons_out for c in cores
        ]
    assert max(len(c) for c in inside.values()) > 1


def marked(p: Population, graph: Graph, source: str) -> np.ndarray:
    rows = []
    for unit in range(p.node.units):
        chosen = np.zeros(p.node.units, np.int64)
        chosen[unit] = 1
        rows.append(fan_out(p, graph, chosen.reshape(p.node.shape))[source].reshape(-1) > 0)
    return np.stack(rows)


def test_memory_of_loihis_axons() -> None:
    """70 weights of 8 bits: a block of 64 with 10 bits in front, rounded up to 64-bit words, and
    one of 6; a sparse axon has an index of 6 or more bits with each weight."""
    rng = np.random.default_rng(0)
    x = make_node("x", "input", (), {}, {"shape": (10,), "lo": 0, "hi": 255})
    weight = rng.integers(1, 100, (70, 10))
    one = {"kind": "uniform", "lo": 0, "hi": 1}
    for sparse in (False, True):
        if sparse:
            weight[1, :] = 0
        a = make_node("a", "linear", (x,), {"weight": weight})
        s = make_node("s", "spike", (a,), {"init": np.int32(0), "theta": np.int32(9)}, one)
        y = make_node("y", "readout", (s,), {"bias": np.int32(0)})
        found = fit(stock_nets.closed([x, a, s, y]), "loihi1")
        # dense 522 -> 576 and 58 -> 64 bits; sparse, 69 weights of 8 + 7: 970 -> 1024, 85 -> 128
        block = 1024 + 128 if sparse else 576 + 64
        # the input arrives in 8 binary planes
        assert found.layers[0].bits[1] == 8 * 10 * block
        assert found.layers[0].axons_in == 80


def test_thermometer_costs_what_it_writes() -> None:
    graph = stock_nets.chain(3, levels=3)
    stock, found = thermometer(graph), fit(graph, "loihi2", "thermometer")
    assert found.totals["neurons"][0] == stock.neurons
    for e, layer in zip(found.layers[2:], stock.layers[2:], strict=True):
        assert e.synapses[1] == sum(np.count_nonzero(c.weight) for c in layer.connections)
    units = sum(n.units for n in graph.of("spike", "readout"))
    assert any("exact" in n and f"stock LIF for {units} units" in n for n in found.notes)
    bif = fit(graph, "loihi2")
    assert found.layers[1].synapses[1] == 9 * bif.layers[1].synapses[1]
    assert found.layers[0].synapses[1] == 3 * bif.layers[0].synapses[1]


def test_every_number_that_does_not_fit_is_named() -> None:
    x = make_node("x", "input", (), {}, {"shape": (600,), "lo": 0, "hi": 255})
    a = make_node("a", "linear", (x,), {"weight": np.full((3, 600), -128)})
    ladder = {"init": np.int32(0), "thresholds": np.array([-900, -5])}
    s = make_node("s", "spike", (a,), ladder, {"kind": "ladder", "lo": 0, "hi": 2})
    y = make_node("y", "readout", (s,), {"bias": np.int32(2**23)})
    graph = stock_nets.closed([x, a, s, y])
    text = [str(v) for v in fit(graph, "loihi2").violations]
    assert [t.split(";")[0] for t in text] == [
        "layer 's': weight -128",
        "layer 's': a membrane potential can reach 19,584,000",
        "layer 's': a ladder of 2 thresholds",
        "layer 'y': a membrane potential can reach 8,388,610",
    ]
    assert "expected at most 8,388,607 (documented limit)" in text[1]
    # the simulation's neuron is ours, and holds a table
    assert not any("ladder" in v.quantity for v in fit(graph, "lava-cpu").violations)
    tight = replace(small(message_bits=1, neurons_per_core=2), split="ceil")
    assert "message bits 3" in str(fit(graph, tight).violations[0])
    crowded = fit(graph, small(cores_per_chip=1, neurons_per_core=2, input_axons_per_core=500))
    # -128 takes two synapses of 8 bits
    text = [str(v) for v in crowded.violations]
    assert "layer 's': axons in of one unit alone in a core 1,200; expected at most 500" in text[1]
    assert "cores on one chip 4" in text[-1] and crowded.chips == (4, 4)


def test_step_graphs_count_latches_and_leaky_neurons() -> None:
    seen = set()
    for seed in range(8):
        graph = random_step_graph(np.random.default_rng(seed), 2)
        found = fit(graph, "loihi2")
        kinds = {e.op.split()[0] for e in found.layers}
        seen |= kinds
        wanted = sum(n.units for n in graph.nodes if n.op in HELD)
        assert found.totals["neurons"] == (wanted, wanted)
        for e in found.layers:
            if e.op in ("max_pool", "product"):
                assert any(f"'{e.name}' ({e.op}) is recomputed" in n for n in found.notes)
            if e.op == "latch":
                assert e.fan_in > 0
        assert any("one step" in n for n in found.notes)
    assert {"latch", "lif", "product", "max_pool", "spike", "readout"} <= seen


def test_activity_is_counted_by_a_run() -> None:
    rng = np.random.default_rng(1)
    graph = corpus.random_graph(rng)
    x = corpus.samples(graph, rng, 5)
    found = fit(graph, "lava-cpu", samples=x).activity
    result = snnkit.compile(graph).run(x)
    assert found is not None and found.samples == 5
    assert found.spikes * 5 == sum(v.sum() for v in result.spikes.values()) > 0
    assert found.synops * 5 == sum(v.sum() for v in result.synops.values()) > 0
    energy = sum(row.picojoules for row in counted_energy(graph, result))
    assert found.picojoules == energy > 0
    assert found.steps == snnkit.compile(graph).run(x, mode="steps").steps.max() > 0
    assert "ESTIMATE" in fit_text(fit(graph, "loihi2", samples=x))


def test_every_constant_says_where_it_is_from() -> None:
    assert targets() == ("lava-cpu", "loihi1", "loihi2")
    for name in targets():
        chip = target(name)
        assert chip.constants and chip.split_source
        for key, c in chip.constants.items():
            assert c.unit and len(c.source) > 15 and c.value > 0, (name, key)
    # what is not public about Loihi 2 is not there
    unknown = {"input_axons_per_core", "output_axons_per_core", "synapses_per_block"}
    assert not unknown & set(target("loihi2").constants)
    estimates = {k for k, c in target("loihi2").constants.items() if not c.documented}
    assert estimates == {"usable_cores_per_chip", "neurons_per_core", "synapse_bits_per_core"}
    assert all(c.documented for c in target("loihi1").constants.values())
    text = fit_text(fit(stock_nets.chain(0), "loihi2"))
    assert (
        text.count("ESTIMATE") == 3
        and text.count(": documented") == len(target("loihi2").constants) - 3
    )
    with pytest.raises(UsageError, match="loihi1, loihi2"):
        target("../loihi2")
    with pytest.raises(UsageError, match="thermometer"):
        fit(stock_nets.chain(0), "loihi1", "bif")


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    snnkit.save(stock_nets.chain(2), path)
    return path


def test_the_command(net, capsys) -> None:
    assert main(["info", str(net), "--target", "loihi2"]) == 0
    text = capsys.readouterr().out
    assert "fits loihi2" in text and "Intel Loihi 2" in text and "spike2" in text
    assert main(["info", str(net), "--target", "loihi1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["target"] == "loihi1" and data["expression"] == "thermometer"
    assert data["constants"]["neurons_per_core"]["documented"] is True
    assert len(data["cores"]) == data["totals"]["cores"][1]
    found = fit(snnkit.load(net), "loihi1")
    assert isinstance(found, Fit) and data == json.loads(json.dumps(found.as_json()))


def test_what_the_command_refuses(net, tmp_path, capsys) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(cases()["conv"].model(), model)
    for arguments in (
        [str(net), "--target", "loihi3"],
        [str(model), "--target", "loihi2"],
        [str(net), "--picture", str(tmp_path / "p.png")],
        [str(net), "--target", "lava-cpu", "--picture", str(tmp_path / "p.png")],
        [str(net), "--target", "loihi2", "--picture", str(tmp_path / "p.xyz")],
    ):
        assert main(["info", *arguments]) == 2, arguments
        assert "Traceback" not in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "net.onnx"]


def test_the_picture(net, tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "map.png"
    arguments = ["info", str(net), "--target", "loihi2", "--picture", str(path)]
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert main(arguments) == 0
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 5000
    path.unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(arguments) == 5
    assert "pip install 'snnkit[plot]'" in capsys.readouterr().err and not path.exists()


def test_a_threshold_that_every_charge_has_reached_is_just_out_of_reach() -> None:
    x = make_node("x", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
    always, never = -(2**31) + 1, 2**31 - 1
    params = {"init": np.int32(0), "thresholds": np.array([always, 7, never])}
    node = make_node("s", "spike", [x], params, {"kind": "ladder", "lo": -1, "hi": 2})
    assert thresholds(node)[0] == (-node.peak - 1, node.peak + 1)

"""However a window's input arrives, every neuron ends at the same integer; the work differs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import snnkit
from snnkit.cli import main
from snnkit.encodings import BITS, ENCODINGS, arrivals, arrived, input_spikes
from snnkit.errors import UsageError
from snnkit.graph import Boundary, Graph, make_node
from snnkit.reference import dense, input_counts
from tests.corpus import random_graph, samples
from tests.step_corpus import KINDS, random_step_graph, step_samples
from tests.test_numba_cpu import EVERYTHING, equal, numba

SPREAD: list[dict[str, Any]] = [
    {"encoding": "rate", "over": 7},
    {"encoding": "bit-serial"},
]
"""Over 7 steps some units send several unit spikes a step; what is left over arrives too."""


@cache
def drawn(seed: int) -> tuple[Graph, dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(300 + seed)
    if seed % 2:
        graph = random_graph(rng)
        x = samples(graph, rng, 3)
    else:
        graph = random_step_graph(rng, 3, KINDS[seed // 2 % len(KINDS)])
        x = step_samples(graph, rng, 3, 3)
    return graph, x, dense(graph, input_counts(graph, x))


@pytest.mark.parametrize("seed", range(12))
def test_every_neuron_ends_at_the_same_integer(seed: int) -> None:
    graph, x, values = drawn(seed)
    reference, program = snnkit.compile(graph, "reference"), numba(graph)
    orders: list[dict[str, Any]] = [{"mode": "events"}, {"mode": "steps"}]
    orders += [{"mode": "steps", "delay": 0, "phase": 3}]
    differs = False
    for carry in (False, True) if graph.sweeps else (False,):
        for order in orders:
            whole = program.run(x, carry=carry, **order)
            for spread in SPREAD:
                how = {**order, **spread, "carry": carry, "record": ("all",)}
                found = program.run(x, **how)
                for name, value in values.items():
                    np.testing.assert_array_equal(found.counts[name], value, err_msg=name)
                equal(found, reference.run(x, audit=True, **how), EVERYTHING)
                differs |= any((found.synops[n] != v).any() for n, v in whole.synops.items())
    assert differs or not any(n.op == "input" for n in graph.nodes if n.name in _first(graph))


def _first(graph: Graph) -> set[str]:
    """Inputs that a synapse of their own sweep reads."""
    return {
        s
        for n in graph.of("conv", "linear")
        for s in n.inputs
        if graph.sweep_of[s] == graph.sweep_of[n.name]
    }


def test_unit_spikes_are_spread_evenly() -> None:
    change = np.arange(-255, 256)
    for over in (1, 7, 16, 100, 255):
        there = [np.zeros_like(change)]
        there += [arrived(change, step, "rate", over) for step in range(1, over + 1)]
        sent = np.diff(there, axis=0)
        np.testing.assert_array_equal(there[-1], change)
        # as near to a constant rate as whole spikes can be
        even, whole = np.abs(change) * np.arange(over + 1)[:, None], np.abs(there)
        assert ((over * whole <= even) & (even < over * (whole + 1))).all()
        assert (np.sign(sent) * np.sign(change) >= 0).all()
        assert np.abs(sent).max() == -(-255 // over)
        total = np.abs(sent).sum(axis=0)
        np.testing.assert_array_equal(total, input_spikes(change, "rate"))


def test_bits_arrive_the_highest_first() -> None:
    for change in (0, 1, -1, 5, -128, 200, 255, -255):
        there = 0
        for step in range(1, BITS + 1):
            bit = abs(change) >> (BITS - step) & 1
            there += np.sign(change) * bit * 2 ** (BITS - step)
            assert arrived(np.array(change), step, "bit-serial", 255) == there
        assert there == change
        assert input_spikes(np.array(change), "bit-serial") == bin(abs(change)).count("1")
    assert [arrivals(e, 30) for e in ENCODINGS] == [1, 30, 8]


def synapses(lo: int = -100, steps: int = 3) -> Graph:
    """Four inputs into three neurons, at every one of the steps."""
    rng = np.random.default_rng(0)
    x = make_node("x", "input", attrs={"shape": (4,), "lo": lo, "hi": lo + 255})
    a = make_node("a", "linear", [x], {"weight": rng.integers(1, 100, (3, 4))})
    level = {"init": np.int32(0), "theta": np.int32(900)}
    s = make_node("s", "spike", [a], level, {"kind": "uniform", "lo": -15, "hi": 15})
    y = make_node("y", "readout", [s], {"bias": np.int32(0)})
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    ends = [
        Boundary(n.name, n.name, "float32", ("N", steps, *n.shape), one, zero, (), 0, 1)
        for n in (x, y)
    ]
    return Graph((x, a, s, y), (ends[0],), (ends[1],), {}, ((4, 1),), steps)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("mode", ["events", "steps"])
def test_synops_are_the_messages_of_the_encoding(backend: str, carry: bool, mode: str) -> None:
    graph = synapses()
    program = snnkit.compile(graph, backend)
    x = np.random.default_rng(1).integers(-100, 156, (5, 3, 4)).astype(np.float32)
    before = np.concatenate([0 * x[:, :1], x[:, :-1]], axis=1)
    change = (x - before if carry else x).astype(np.int64)
    found = {}
    for encoding in ENCODINGS:
        result = program.run(x, mode=mode, carry=carry, encoding=encoding)
        sent = input_spikes(change, encoding)
        np.testing.assert_array_equal(result.synops["a"], 3 * sent.sum(axis=(1, 2)))
        found[encoding] = result
    # spread charge takes longer; the highest bit first, most of it is there at once
    steps = [int(found[e].steps.sum()) for e in ("s-analog", "bit-serial", "rate")]
    assert steps == sorted(steps) and ((steps[0] < steps[2]) == (mode == "steps"))


def test_what_another_sweep_hands_on_arrives_at_once() -> None:
    """The messages of the second sweep are the same in all encodings."""
    graph = synapses()
    z = make_node("z", "input", attrs={"shape": (4,), "lo": 0, "hi": 255})
    b = make_node("b", "linear", [z], {"weight": np.full((4, 4), 3)})
    level = {"init": np.int32(0), "theta": np.int32(40)}
    s = make_node("q", "spike", [b], level, {"kind": "uniform", "lo": 0, "hi": 99})
    a = make_node("a", "linear", [s], {"weight": graph.node["a"].params["weight"]})
    more = make_node("c", "linear", [z], {"weight": np.full((2, 4), 1)})
    y = make_node("y", "readout", [a], {"bias": np.int32(0)})
    y2 = make_node("y2", "readout", [more], {"bias": np.int32(0)})
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    ends = (Boundary("z", "z", "float32", ("N", 4), one, zero),)
    outs = tuple(
        Boundary(n.name, n.name, "float32", ("N", 3, *n.shape), one, zero, (), 0, 1)
        for n in (y, y2)
    )
    nodes = (z, b, s, a, more, y, y2)
    graph = Graph(nodes, ends, outs, {}, ((3, 0), (4, 1)), 3)
    graph.check()
    x = np.array([[3, 40, 0, 255]], np.float32)
    for backend in ("numba", "reference"):
        program = snnkit.compile(graph, backend)
        for encoding, sent in (("s-analog", 3), ("rate", 298), ("bit-serial", 2 + 2 + 8)):
            result = program.run(x, mode="steps", encoding=encoding)
            assert result.synops["b"].tolist() == [4 * sent], (backend, encoding)
            assert result.synops["a"].tolist() == [3 * 3 * 4]
            assert result.synops["c"].tolist() == [3 * 3 * 2]


def test_what_cannot_be() -> None:
    program = numba(synapses())
    x = np.zeros((1, 3, 4), np.float32)
    for how, text in (
        ({"encoding": "rate"}, "expected mode events or steps"),
        ({"encoding": "bit-serial", "mode": "fuzz"}, "in mode fuzz"),
        ({"encoding": "latency", "mode": "steps"}, "expected one of s-analog, rate, bit-serial"),
        ({"encoding": "rate", "mode": "steps", "over": 0}, "over 1 to 255"),
        ({"encoding": "rate", "mode": "steps", "over": 256}, "over 1 to 255"),
    ):
        for one in (program, snnkit.compile(program.graph, "reference")):
            with pytest.raises(UsageError, match=text):
                one.run(x, **how)


def test_command(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    graph = synapses()
    snnkit.save(graph, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", np.full((2, 3, 4), 77, np.float32))
    command = ["run", str(tmp_path / "net.onnx"), "--input", str(tmp_path / "x.npy"), "--json"]
    assert main([*command, "--mode", "steps", "--encoding", "rate"]) == 0
    assert f'"synops": {2 * 3 * 4 * 77 * 3}' in capsys.readouterr().out
    assert main([*command, "--encoding", "rate"]) == 2

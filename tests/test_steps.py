"""Step graphs: the laws of one-shot graphs at every step, and explicit oracles in plain Python.

The oracle for the dense reading is onnxruntime on the file; for the spiking reading the dense one;
for LIF a loop over Python integers and fractions; for recurrence onnxruntime's own RNN.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from snnkit import errors, files, sequence
from snnkit.backends import Schedule, compile
from snnkit.boundary import as_inputs, quantise, read_out
from snnkit.certificate import verify
from snnkit.cli import main
from snnkit.graph import Boundary, Graph, Node, make_node
from snnkit.onnx_writer import emit_recording
from snnkit.ops.state import MEMBRANE_BOUND, membrane_bound
from snnkit.reference import (
    Machine,
    _dense_window,
    _events,
    _fuzz,
    _steps,
    dense,
    input_counts,
)
from snnkit.sequence import by_length, membrane, unroll
from tests.sessions import session
from tests.step_corpus import KINDS, STEPS, random_step_graph, silent_nodes, step_samples
from tests.test_files_fuzz import damage_description
from tests.test_numba_cpu import EVERYTHING, SCHEDULES, equal, numba

SEEDS = range(24)
"""Every number of steps with every kind, twice."""


@cache
def drawn(seed: int) -> tuple[Graph, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A step graph, three samples, and the value of every node."""
    rng = np.random.default_rng(seed)
    steps = STEPS[seed % len(STEPS)]
    graph = random_step_graph(rng, steps, KINDS[seed // len(STEPS) % len(KINDS)])
    x = step_samples(graph, rng, 3, steps)
    return graph, x, dense(graph, input_counts(graph, x))


# --- the laws -------------------------------------------------------------------------------


def test_the_corpus_holds_what_the_laws_are_about() -> None:
    graphs = [drawn(seed)[0] for seed in SEEDS]
    ops = {n.op for g in graphs for n in g.nodes}
    assert ops >= {"latch", "lif", "product", "spike", "conv", "linear", "input", "readout"}
    assert ops >= {"stack", "unstack"}
    assert {d for g in graphs for n in g.of("unstack") for d in [g.direction(n.name)]} == {-1, 1}
    assert {n.attrs["kind"] for g in graphs for n in g.of("lif")} == {"soft", "hard"}
    assert {d for g in graphs for _, d in g.sweeps} == {-1, 0, 1}
    assert max(len(g.sweeps) for g in graphs) > 2 and {g.steps > 0 for g in graphs} == {True, False}
    latches = [n for g in graphs for n in g.of("latch")]
    assert any(n.inputs for n in latches) and any(
        n.params["initial"].any() for n in latches if n.params
    )
    assert any("steps" in n.attrs for n in latches)
    assert {bool(g.lengths) for g in graphs if not g.steps} == {True, False}
    assert {b.time is None for g in graphs for b in g.outputs} == {True, False}
    assert any(b.batch for g in graphs for b in g.inputs)
    assert any(b.scale.size > 1 for g in graphs for b in (*g.inputs, *g.outputs) if b.time)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_spiking_node_fires_at_several_steps(seed: int) -> None:
    graph = drawn(seed)[0]
    rng = np.random.default_rng(seed)
    x = step_samples(graph, rng, 32, STEPS[seed % len(STEPS)])
    assert silent_nodes(graph, dense(graph, input_counts(graph, x))) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_onnxruntime_computes_every_node_at_every_step(seed: int) -> None:
    graph, x, values = drawn(seed)
    model, tensors = emit_recording(graph, [n.name for n in graph.nodes])
    for node, raw in zip(graph.nodes, session(model).run(tensors, x), strict=True):
        low = node.lo if raw.dtype == np.uint8 else 0
        assert np.array_equal(raw.astype(np.int64) + low, values[node.name]), node
    content = files.to_bytes(graph)
    again = files.from_bytes(content)
    assert again.digest == graph.digest and files.to_bytes(again) == content
    found = session(content).run([b.name for b in graph.outputs], x)
    for b, y in zip(graph.outputs, found, strict=True):
        expected = read_out(graph, b, values[b.node], x.get(graph.lengths))
        assert y.shape == expected.shape and y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("mode", ["settle", "events", "steps", "fuzz"])
@pytest.mark.parametrize("seed", [s for s in SEEDS if STEPS[s % len(STEPS)] < 20])
def test_every_order_gives_the_dense_reading_at_every_step(
    mode: str, seed: int, carry: bool
) -> None:
    graph, x, values = drawn(seed)
    program = compile(graph, "reference")
    result = program.run(x, mode=mode, record=["all"], seed=seed, carry=carry, audit=True)
    for name, value in values.items():
        assert np.array_equal(result.counts[name], value), name
    if mode == "settle" and not carry:
        for name, spikes in result.spikes.items():
            least = np.abs(values[name]).reshape(3, -1).sum(axis=1)
            assert np.array_equal(spikes.sum(axis=1), least)


@pytest.mark.parametrize("seed", SEEDS)
def test_numba_equals_the_reference_in_every_mode(seed: int) -> None:
    graph, x, values = drawn(seed)
    reference, program = compile(graph, "reference"), numba(graph)
    assert program.path == "generic"
    assert program.isa is None or "once per step" in program.why_generic[0][1]
    for schedule in SCHEDULES if STEPS[seed % len(STEPS)] < 20 else SCHEDULES[:2]:
        for carry in (False, True):
            expected = reference.run(x, record=("all",), carry=carry, **schedule)
            found = program.run(x, record=("all",), carry=carry, **schedule)
            equal(found, expected, EVERYTHING)
    for carry in (False, True):
        fuzzed = program.run(x, mode="fuzz", seed=seed, record=("all",), carry=carry)
        for name, value in values.items():
            assert np.array_equal(fuzzed.counts[name], value), name


@pytest.mark.parametrize("seed", SEEDS)
def test_values_and_membranes_stay_within_their_proved_bounds(seed: int) -> None:
    graph = drawn(seed)[0]
    x = step_samples(graph, np.random.default_rng(seed), 16, STEPS[seed % len(STEPS)])
    reached: dict[str, int] = {}

    def watched(window: Graph, feeds: Any) -> Any:
        for name, value in feeds.items():
            reached[name] = max(reached.get(name, 0), int(np.abs(value).max()))
        return _dense_window(window, feeds)

    for name, value in by_length(
        graph, input_counts(graph, x), lambda c, _: unroll(graph, c, watched)
    ).items():
        node = graph.node[name]
        assert node.lo <= value.min() and value.max() <= node.hi
    for n in graph.of("lif"):
        bound = membrane_bound(n.attrs, n.params, n.peak)
        assert reached[membrane(n)] <= bound < MEMBRANE_BOUND


@pytest.mark.parametrize("schedule", [_events, _steps, _fuzz])
@pytest.mark.parametrize("seed", [5, 14, 21])
def test_charge_and_range_at_every_instant(schedule, seed, monkeypatch) -> None:
    """After every single delivery and firing of every window, at rest and carried on."""
    graph, x, _ = drawn(seed)
    audits = 0

    def audited(method):
        def wrapped(self, *args):
            nonlocal audits
            out = method(self, *args)
            audits += 1
            self.audit()
            return out

        return wrapped

    monkeypatch.setattr(Machine, "deliver", audited(Machine.deliver))
    monkeypatch.setattr(Machine, "_emit", audited(Machine._emit))
    machines: dict[Any, Machine] = {}

    def run(window: Graph, feeds: Any) -> Any:
        key = tuple(n.name for n in window.nodes)
        if key in machines:
            machines[key].inject(feeds)
        machine = machines.setdefault(key, Machine(window, feeds))
        schedule(machine, Schedule(seed=seed))
        return dict(machine.value)

    unroll(graph, {n.name: input_counts(graph, x)[n.name] for n in graph.of("input")}, run)
    assert audits > 20


@pytest.mark.parametrize("seed", range(12))
def test_a_sample_does_not_depend_on_its_batch_or_the_threads(seed: int) -> None:
    graph = drawn(seed)[0]
    x = step_samples(graph, np.random.default_rng(seed), 5, STEPS[seed % len(STEPS)])
    program = numba(graph)
    for carry in (False, True):
        how = {"mode": "events", "record": ("all",), "carry": carry}
        together = program.run(x, threads=2, **how)
        equal(program.run(x, threads=1, **how), together, EVERYTHING)
        one = {b.name: x[b.name].take([3], axis=b.batch) for b in graph.inputs}
        if graph.lengths:
            one[graph.lengths] = x[graph.lengths][[3]]
        alone = program.run(one, **how)
        for what in ("counts", "spikes", "synops"):
            for name, value in getattr(alone, what).items():
                assert np.array_equal(value[0], getattr(together, what)[name][3])
        for b in graph.outputs:
            picked = together.outputs[b.name].take([3], axis=b.batch)
            assert alone.outputs[b.name].tobytes() == picked.tobytes()


@pytest.mark.parametrize("seed", range(6))
def test_what_comes_later_does_not_matter(seed: int) -> None:
    """Causality: the first steps of a sweep forwards, the last steps of one backwards."""
    rng = np.random.default_rng(500 + seed)
    graph = random_step_graph(rng, 5, KINDS[seed % 3], fixed=False)
    while (
        graph.lengths
        or len({d for _, d in graph.sweeps if d}) != 1
        or 0 in [d for _, d in graph.sweeps[1:]]
    ):
        graph = random_step_graph(rng, 5, KINDS[seed % 3], fixed=False)
    forward = any(d > 0 for _, d in graph.sweeps)
    x = step_samples(graph, rng, 3, 5)
    part = slice(0, 3) if forward else slice(2, 5)
    short = {
        b.name: x[b.name] if b.time is None else x[b.name].take(range(5)[part], axis=b.time)
        for b in graph.inputs
    }
    whole, cut = (dense(graph, input_counts(graph, data)) for data in (x, short))
    for name, value in cut.items():
        expected = whole[name][:, part] if graph.direction(name) else whole[name]
        assert np.array_equal(value, expected), name


@pytest.mark.parametrize("seed", [0, 6, 9, 13])
def test_the_certificate_compares_every_step(seed: int) -> None:
    graph, x, _ = drawn(seed)
    steps = STEPS[seed % len(STEPS)]
    found = verify(graph, x, backends=["numba", "reference"])
    assert found.passed and found.steps == steps
    units = sum(
        n.units * (steps if graph.direction(n.name) else 1)
        for n in graph.of("spike", "lif", "readout")
    )
    # onnxruntime, then two backends in four modes, at rest and carried on
    assert found.neurons_compared == 17 * 3 * units
    assert set(found.executions) >= {"numba settle", "numba fuzz, carried", "reference steps"}


# --- oracles in plain Python ----------------------------------------------------------------


ONE, ZERO = np.ones((), np.float32), np.zeros((), np.float32)


def timed(name: str, node: str, *dims: int | str, batch: int = 0, time: int | None = 1) -> Boundary:
    return Boundary(name, node, "float32", dims, ONE, ZERO, (), batch, time)


def leaky(charges: int, kind: str, shift: int, steps: int, low: int = -128, **params: Any) -> Graph:
    """One input of `charges` units per step, straight into leaky neurons; all spikes out."""
    attrs = {"shape": (charges,), "lo": low, "hi": low + 255}
    x = make_node("x", "input", attrs=attrs)
    full = {"bias": 0, "gain": 1, "initial": 0, "leak": 2**shift, "reset": 0, **params}
    arrays = {key: np.asarray(value, np.int64) for key, value in full.items()}
    s = make_node("s", "lif", [x], arrays, {"kind": kind, "shift": shift, "steps": steps})
    y = make_node("y", "readout", [s], {"bias": np.int32(0)})
    ends = timed("X", "x", "N", "T", charges), timed("Y", "y", "N", "T", charges)
    return Graph((x, s, y), ends[:1], ends[1:], sweeps=((3, 1),))


def spikes_everywhere(graph: Graph, x: np.ndarray) -> np.ndarray:
    """Spikes [N, T, units] in onnxruntime, asserted equal in the reference and in numba."""
    found = session(files.to_bytes(graph)).run(["Y"], {"X": x})[0]
    for backend in ("reference", "numba"):
        for mode in ("settle", "events", "steps", "fuzz"):
            for carry in (False, True):
                result = compile(graph, backend).run(x, mode=mode, carry=carry)
                assert np.array_equal(result.outputs["Y"], found), (backend, mode, carry)
    return found


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("steps", STEPS)
def test_lif_is_its_definition_in_python_integers(kind: str, steps: int) -> None:
    rng = np.random.default_rng(steps)
    units, shift = 40, 5
    draw = lambda low, high: rng.integers(low, high, units)  # noqa: E731
    params = {
        "leak": draw(0, 33),
        "gain": draw(-5, 6),
        "bias": draw(-60, 61),
        "theta": draw(-20, 300),
        "reset": draw(-200, 301),
        "initial": draw(-99, 100),
    }
    graph = leaky(units, kind, shift, steps, **params)
    x = rng.integers(-128, 128, (4, steps, units)).astype(np.float32)
    expected = np.zeros(x.shape, int)
    negative = 0
    for n in range(4):
        for i in range(units):
            p = {key: int(value[i]) for key, value in params.items()}
            v = p["initial"]
            for t in range(steps):
                negative += v * p["leak"] < 0 and v * p["leak"] % 32 > 0
                u = v * p["leak"] // 32 + p["gain"] * int(x[n, t, i]) + p["bias"]
                fires = u >= p["theta"]
                expected[n, t, i] = fires
                v = (p["reset"] if fires else u) if kind == "hard" else u - p["reset"] * fires
    assert negative > 5 and 0.05 < expected.mean() < 0.95
    assert np.array_equal(spikes_everywhere(graph, x), expected)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("steps", STEPS)
def test_tau_two_is_exact_without_any_rounding(decay_input: bool, steps: int) -> None:
    """spikingjelly's LIF in fractions: v += (x - v) / 2 or x - v / 2, threshold, hard reset."""
    rng = np.random.default_rng(steps)
    units, threshold = 60, 12
    scale = 2 ** (steps - 1)
    gain, theta = (scale, 2 * scale * threshold) if decay_input else (scale, scale * threshold)
    graph = leaky(units, "hard", 1, steps, leak=1, gain=gain, theta=theta)
    x = rng.integers(-20, 60, (5, steps, units)).astype(np.float32)
    expected = np.zeros(x.shape, int)
    for place in np.ndindex(5, units):
        v = Fraction(0)
        for t in range(steps):
            charge = Fraction(int(x[place[0], t, place[1]]))
            v = v + (charge - v) / 2 if decay_input else v - v / 2 + charge
            if v >= threshold:
                expected[place[0], t, place[1]] = 1
                v = Fraction(0)
    assert 0.05 < expected.mean() < 0.95
    assert np.array_equal(spikes_everywhere(graph, x), expected)


def test_a_strict_threshold_and_a_soft_reset() -> None:
    """IIR-SNN's neuron: v = leak * v + x, fires where v > theta, then v -= theta."""
    theta = 10
    graph = leaky(1, "soft", 0, 6, theta=theta + 1, reset=theta)
    x = np.array([10, 1, 0, 10, 20, 0], np.float32).reshape(1, 6, 1)
    assert spikes_everywhere(graph, x).ravel().tolist() == [0, 1, 0, 1, 1, 1]


def test_a_bias_fires_without_any_event() -> None:
    graph = leaky(3, "hard", 0, 4, bias=[5, 2, 0], theta=4, reset=0, low=0)
    x = np.zeros((2, 4, 3), np.float32)
    assert spikes_everywhere(graph, x)[1].T.tolist() == [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]


def test_membranes_beyond_32_bits() -> None:
    big = 2**40
    graph = leaky(1, "soft", 0, 5, gain=big, theta=300 * big, reset=300 * big)
    x = np.full((1, 5, 1), 127, np.float32)
    assert spikes_everywhere(graph, x).ravel().tolist() == [0, 0, 1, 0, 1]


# --- recurrence against onnxruntime's own RNN -----------------------------------------------


def recurrent(rng: np.random.Generator, features: int, hidden: int) -> tuple[Graph, dict[str, Any]]:
    """A bidirectional Relu RNN with initial_h as a model input, in ONNX's layouts."""
    w = rng.integers(-1, 2, (2, hidden, features))
    r = rng.integers(-1, 2, (2, hidden, hidden)) * (rng.random((2, hidden, hidden)) < 0.4)
    b = rng.integers(-3, 6, (2, hidden))
    nodes: list[Node] = []
    sweeps, latches = [], {}

    def node(name: str, op: str, *inputs: Node, params: Any = None, **attrs: Any) -> Node:
        nodes.append(make_node(name, op, inputs, params, attrs))
        return nodes[-1]

    both = node("h0", "input", shape=(2, hidden), lo=0, hi=255)
    firsts = []
    for d in range(2):
        index = d * hidden + np.arange(hidden)
        params = {"index": index}
        firsts.append(
            node(f"first{d}", "route", both, params=params, kind="index", shape=(hidden,))
        )
    sweeps.append((len(nodes), 0))
    x = None
    for d in range(2):
        begin = len(nodes)
        x = x or node("x", "input", shape=(features,), lo=0, hi=255)
        h = node(f"h{d}.before", "latch", firsts[d], shape=(hidden,), lo=0, hi=255)
        parts = [
            node(f"wx{d}", "linear", x, params={"weight": w[d]}),
            node(f"rh{d}", "linear", h, params={"weight": r[d]}),
        ]
        both_parts = node(f"a{d}", "add", *parts, params={"m0": np.int32(1), "m1": np.int32(1)})
        relu = {"init": b[d], "theta": np.int32(1)}
        s = node(f"s{d}", "spike", both_parts, params=relu, kind="uniform", lo=0, hi=255)
        latches[h.name] = s.name
        if d:
            ys = [
                node(f"s{i}.row", "route", n, kind="reshape", shape=(1, hidden))
                for i, n in enumerate((next(n for n in nodes if n.name == "s0"), s))
            ]
            pair = node("pair", "route", *ys, kind="concat", axis=0)
            node("y", "readout", pair, params={"bias": np.int32(0)})
        node(f"last{d}", "readout", s, params={"bias": np.int32(0)})
        sweeps.append((len(nodes) - begin, (1, -1)[d]))
    inputs = (
        timed("X", "x", "T", "N", features, batch=1, time=0),
        timed("H0", "h0", 2, "N", hidden, batch=1, time=None),
    )
    ordered = tuple(sorted(inputs, key=lambda i: [n.name for n in nodes].index(i.node)))
    outputs = (
        timed("Y", "y", "T", 2, "N", hidden, batch=2, time=0),
        timed("L0", "last0", "N", hidden, time=None),
        timed("L1", "last1", "N", hidden, time=None),
    )
    graph = Graph(tuple(nodes), ordered, outputs, {}, tuple(sweeps), 0, latches)
    return graph, {"w": w, "r": r, "b": np.concatenate([b, np.zeros_like(b)], axis=1)}


def rnn_session(arrays: dict[str, np.ndarray], hidden: int, lengths: str) -> ort.InferenceSession:
    rnn = helper.make_node(
        "RNN", ["X", "w", "r", "b", lengths, "H0"], ["Y", "Yh"], hidden_size=hidden,
        direction="bidirectional", activations=["Relu", "Relu"],
    )  # fmt: skip
    kinds = {"X": 3, "H0": 3, "Y": 4, "Yh": 3}
    ports = [
        helper.make_tensor_value_info(k, TensorProto.FLOAT, [None] * n) for k, n in kinds.items()
    ]
    if lengths:
        ports.insert(2, helper.make_tensor_value_info(lengths, TensorProto.INT32, [None]))
    weights = [numpy_helper.from_array(a.astype(np.float32), k) for k, a in arrays.items()]
    body = helper.make_graph([rnn], "rnn", ports[:-2], ports[-2:], weights)
    imports = [helper.make_opsetid("", 20)]
    return session(helper.make_model(body, opset_imports=imports, ir_version=10))


@pytest.mark.parametrize("lengths", ["", "L"])
@pytest.mark.parametrize("steps", STEPS[:3])
def test_a_bidirectional_rnn_is_onnxruntimes_own(steps: int, lengths: str) -> None:
    """While nothing leaves 0..255 the Relu RNN of float32 integers is exact: three executions."""
    rng = np.random.default_rng(steps)
    graph, arrays = recurrent(rng, 4, 6)
    graph = replace(graph, lengths=lengths)
    x = {
        "X": rng.integers(0, 4, (steps, 7, 4)).astype(np.float32),
        "H0": rng.integers(0, 4, (2, 7, 6)).astype(np.float32),
    }
    if lengths:
        x[lengths] = rng.integers(1, steps + 1, 7).astype(np.int32)
    y, last = rnn_session(arrays, 6, lengths).run(["Y", "Yh"], x)
    assert 3 < y.max() < 255 and (y > 0).mean() > 0.1
    found = [session(files.to_bytes(graph)).run(None, x)]
    for carry in (False, True):
        result = numba(graph).run(x, mode="events", carry=carry)
        found.append([result.outputs[b.name] for b in graph.outputs])
    for stacked, forward, backward in found:
        assert stacked.tobytes() == y.tobytes()
        assert np.array_equal(np.stack([forward, backward]), last)
    assert verify(graph, x).passed


@pytest.mark.parametrize("fault", ["leak", "direction"])
def test_the_certificate_sees_a_fault_between_steps(fault: str, monkeypatch) -> None:
    """A membrane that leaks one unit more; a sweep that goes the other way round."""
    rng = np.random.default_rng(4)
    if fault == "leak":
        graph = leaky(9, "soft", 0, 5, low=0, theta=300, reset=300)
        data: Any = rng.integers(0, 256, (6, 5, 9)).astype(np.float32)
        barrier = sequence.LIF.barrier
        monkeypatch.setattr(type(sequence.LIF), "barrier", lambda s, n, xs: barrier(n, xs) - 1)
    else:
        graph, _ = recurrent(rng, 4, 6)
        data = {
            "X": rng.integers(0, 4, (3, 5, 4)).astype(np.float32),
            "H0": np.zeros((2, 5, 6), np.float32),
        }
        monkeypatch.setattr(sequence, "order", lambda direction, steps: range(steps))
    found = verify(graph, data, modes=["settle"])
    assert not found.passed
    for title in ("onnxruntime, all neurons", "numba settle", "numba settle, carried"):
        assert found.executions[title]["different"] > 0


@pytest.mark.parametrize("lengths", ["", "L"])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_head_reads_the_last_step_that_a_sweep_took(direction: int, lengths: str) -> None:
    """Forwards that of each sample's own length, backwards the first one."""
    x = make_node("x", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
    a = make_node("a", "add", [x], {"m0": np.int32(2)})
    y = make_node("y", "readout", [a], {"bias": np.int32(1)})
    ends = timed("X", "x", "N", "T", 2), timed("Y", "y", "N", 2, time=None)
    sweeps = ((2, direction), (1, 0))
    graph = Graph((x, a, y), ends[:1], ends[1:], {}, sweeps, 0, {}, lengths)
    data: dict[str, Any] = {"X": np.arange(24, dtype=np.float32).reshape(3, 4, 2)}
    own = np.array([2, 4, 1], np.int32) if lengths else np.array([4, 4, 4])
    data.update({"L": own} if lengths else {})
    at = own - 1 if direction > 0 else np.zeros(3, int)
    expected = 2 * data["X"][np.arange(3), at] + 1
    assert np.array_equal(session(files.to_bytes(graph)).run(["Y"], data)[0], expected)
    for backend in ("reference", "numba"):
        assert np.array_equal(compile(graph, backend).run(data).outputs["Y"], expected)


def test_a_file_of_a_fixed_batch_that_is_not_the_first_axis() -> None:
    """7 samples through a file for 2: the certificate fills the last batch up."""
    rng = np.random.default_rng(3)
    graph, _ = recurrent(rng, 4, 6)
    fixed = [
        [replace(b, dims=tuple(2 if d == "N" else d for d in b.dims)) for b in ends]
        for ends in (graph.inputs, graph.outputs)
    ]
    graph = replace(graph, inputs=tuple(fixed[0]), outputs=tuple(fixed[1]), lengths="L")
    x = {
        "X": rng.integers(0, 4, (3, 7, 4)).astype(np.float32),
        "H0": rng.integers(0, 4, (2, 7, 6)).astype(np.float32),
        "L": rng.integers(1, 4, 7).astype(np.int32),
    }
    found = verify(graph, x, modes=["settle"])
    assert found.passed and found.outputs_compared > 0


def test_the_command_line_verifies_and_runs_steps(tmp_path, capsys) -> None:
    graph, x, _ = drawn(2)
    files.save(graph, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", **x)
    net, data = str(tmp_path / "net.onnx"), str(tmp_path / "x.npz")
    assert main(["verify", net, "--samples", data]) == 0
    assert "numba fuzz, carried" in capsys.readouterr().out
    assert main(["run", net, "--input", data, "-o", str(tmp_path / "y.npz")]) == 0
    assert "3 samples" in capsys.readouterr().out
    assert main(["info", net]) == 0
    assert "MACs are those of one step" in capsys.readouterr().out


# --- wrong graphs ---------------------------------------------------------------------------


def small() -> Graph:
    """x and a latch, added; a static input that the latch starts from; a head."""
    z = make_node("z", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
    x = make_node("x", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
    h = make_node("h", "latch", [z], attrs={"shape": (2,), "lo": 0, "hi": 255})
    a = make_node("a", "add", [x, h], {"m0": np.int32(1), "m1": np.int32(1)})
    uniform = {"init": np.int32(0), "theta": np.int32(2)}
    s = make_node("s", "spike", [a], uniform, {"kind": "uniform", "lo": 0, "hi": 9})
    y = make_node("y", "readout", [s], {"bias": np.int32(0)})
    inputs = (timed("Z", "z", "N", 2, time=None), timed("X", "x", "N", 4, 2))
    outputs = (timed("Y", "y", "N", 4, 2),)
    nodes = (z, x, h, a, s, y)
    return Graph(nodes, inputs, outputs, {}, ((1, 0), (5, 1)), 4, {"h": "s"})


def test_the_small_graph_is_right() -> None:
    graph = small()
    graph.check()
    files.from_bytes(files.to_bytes(graph))


WRONG: dict[str, tuple[dict[str, Any], type[errors.SnnkitError], str]] = {
    "too few nodes": ({"sweeps": ((1, 0), (4, 1))}, errors.InvalidGraph, "all nodes together"),
    "an empty sweep": ({"sweeps": ((1, 0), (0, 1), (5, 1))}, errors.InvalidGraph, "one node each"),
    "no direction": ({"sweeps": ((1, 0), (5, 0))}, errors.InvalidGraph, "with a direction"),
    "another direction": ({"sweeps": ((1, 0), (3, 1), (2, 2))}, errors.InvalidGraph, "directions"),
    "no pairs": ({"sweeps": (6,)}, errors.InvalidGraph, "pairs of int"),
    "a float": ({"sweeps": ((1, 0), (5.0, 1))}, errors.InvalidGraph, "pairs of int"),
    "a bool": ({"steps": True}, errors.InvalidGraph, "pairs of int"),
    "negative steps": ({"steps": -1}, errors.InvalidGraph, "-1 steps"),
    "other steps": ({"steps": 5}, errors.InvalidGraph, "'X'.*5 steps"),
    "free steps": ({"steps": 0}, errors.InvalidGraph, "'X'.*0 steps"),
    "lengths": ({"lengths": "L"}, errors.InvalidGraph, "lengths 'L' with 4 steps"),
    "lengths named as an input": ({"lengths": "X"}, errors.InvalidGraph, "distinct names"),
    "lengths of a bad name": ({"lengths": "%x"}, errors.InvalidGraph, "starts with %"),
    "no sweeps": ({"sweeps": ()}, errors.InvalidGraph, "time without sweeps"),
    "no latches": ({"latches": {}}, errors.InvalidGraph, "one source for each latch"),
    "a source that is not there": ({"latches": {"h": "q"}}, errors.InvalidGraph, "source 'q'"),
    "a source elsewhere": ({"latches": {"h": "z"}}, errors.InvalidGraph, "same sweep"),
    "a source beyond": ({"latches": {"h": "a"}}, errors.RangeOverflow, "0..510"),
    "a timed input once": ({"sweeps": ((2, 0), (4, 1))}, errors.InvalidGraph, "'x' .input."),
    "a static input in time": ({"sweeps": ((6, 1),)}, errors.InvalidGraph, "'z' .input."),
    "a readout once": ({"sweeps": ((1, 0), (4, 1), (1, 0))}, errors.InvalidGraph, "'y' .readout."),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_step_graph(name: str) -> None:
    change, kind, text = WRONG[name]
    with pytest.raises(errors.SnnkitError, match=text) as caught:
        replace(small(), **change).check()
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"time": 3}, "time axis 3"),
        ({"time": 0}, "batch axis 0, time axis 0"),
        ({"time": True}, "time axis True"),
        ({"batch": -1}, "batch axis -1"),
        ({"batch": 1, "time": 2, "dims": (2, "N", 3)}, "3"),
        ({"time": None, "dims": ("N", 2)}, "'x' .input."),
    ],
)
def test_a_wrong_axis(change: dict[str, Any], text: str) -> None:
    graph = small()
    wrong = replace(graph.inputs[1], **change)
    with pytest.raises(errors.InvalidGraph, match=text):
        replace(graph, inputs=(graph.inputs[0], wrong)).check()


def test_a_latch_of_another_shape_than_its_source() -> None:
    graph = small()
    whole = make_node("p", "route", [graph.node["s"]], {}, {"kind": "reshape", "shape": (1, 2)})
    nodes = (*graph.nodes[:-1], whole, graph.nodes[-1])
    wrong = replace(graph, nodes=nodes, sweeps=((1, 0), (6, 1)), latches={"h": "p"})
    with pytest.raises(errors.BadShape, match=r"latch 'h' .2,.: source .1, 2."):
        wrong.check()


def doors(steps: int, elements: int = 4) -> Graph:
    """A static input of so many elements, handed out backwards, doubled by itself and the one
    behind it, and stacked again."""
    z = make_node("z", "input", attrs={"shape": (elements, 2), "lo": 0, "hi": 255})
    x = make_node("x", "unstack", [z])
    h = make_node("h", "latch", (), {"initial": np.int32(0)}, {"shape": (2,), "lo": 0, "hi": 255})
    a = make_node("a", "add", [x, h], {"m0": np.int32(2), "m1": np.int32(1)})
    w = make_node("w", "stack", [a], {}, {"steps": steps})
    y = make_node("y", "readout", [w], {"bias": np.int32(0)})
    ends = timed("Z", "z", "N", elements, 2, time=None), timed("Y", "y", "N", steps, 2, time=None)
    sweeps = ((1, 0), (3, -1), (2, 0))
    return Graph((z, x, h, a, w, y), ends[:1], ends[1:], {}, sweeps, steps, {"h": "x"})


def test_elements_pass_a_door_in_their_own_order() -> None:
    graph = doors(4)
    graph.check()
    x = np.arange(8, dtype=np.float32).reshape(1, 4, 2) ** 2
    later = np.concatenate([x[:, 1:], np.zeros((1, 1, 2), np.float32)], axis=1)
    for name in ("reference", "numba"):
        assert np.array_equal(compile(graph, name).run(x).outputs["Y"], 2 * x + later)
    (found,) = session(files.to_bytes(graph)).run(None, {"Z": x})
    assert np.array_equal(found, 2 * x + later)
    with pytest.raises(errors.UsageError, match=r"'x': .*backwards(.|\n)*'w': .*waits for all"):
        compile(graph, "numba").stream()
    forwards = replace(graph, sweeps=((1, 0), (3, 1), (2, 0)))
    with pytest.raises(errors.UsageError, match="'x': it hands out all elements of 'z'"):
        compile(forwards, "numba").stream()


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (doors(4, 3), "'x' .unstack.: 'z' has 3 elements, in a graph of 4 steps"),
        (replace(doors(4), sweeps=((4, 1), (2, 0))), "'z' .input."),
        (replace(doors(4), sweeps=((1, 0), (5, 1))), "'w' .stack."),
        (replace(doors(4), sweeps=(), steps=0, latches={}), "time without sweeps"),
    ],
)
def test_a_wrong_door(graph: Graph, text: str) -> None:
    with pytest.raises(errors.InvalidGraph, match=text):
        graph.check()


def test_the_elements_of_a_vector() -> None:
    with pytest.raises(errors.BadShape, match=r"'x' .unstack.: elements of .4,."):
        make_node(
            "x", "unstack", [make_node("z", "input", attrs={"shape": (4,), "lo": 0, "hi": 255})]
        )


def test_state_in_a_graph_without_steps() -> None:
    x = make_node("x", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
    h = make_node("h", "latch", (), {"initial": np.int32(0)}, {"shape": (2,), "lo": 0, "hi": 1})
    y = make_node("y", "readout", [x], {"bias": np.int32(0)})
    ends = timed("X", "x", "N", 2, time=None), timed("Y", "y", "N", 2, time=None)
    with pytest.raises(errors.InvalidGraph, match="time without sweeps"):
        Graph((x, h, y), ends[:1], ends[1:]).check()


def test_an_accumulator_is_proved_for_its_steps_only() -> None:
    def graph(hi: int, steps: int, factor: int = 1) -> Graph:
        x = make_node("x", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
        attrs = {"shape": (2,), "lo": 0, "hi": hi, "steps": steps}
        h = make_node("h", "latch", (), {"initial": np.int32(0)}, attrs)
        a = make_node("a", "add", [h, x], {"m0": np.int32(factor), "m1": np.int32(1)})
        y = make_node("y", "readout", [a], {"bias": np.int32(0)})
        ends = timed("X", "x", "N", "T", 2), timed("Y", "y", "N", 2, time=None)
        return Graph((x, h, a, y), ends[:1], ends[1:], {}, ((4, 1),), 0, {"h": "a"})

    graph(4 * 255, 5).check()
    for wrong in (graph(4 * 255 - 1, 5), graph(4 * 255, 6), graph(4 * 255, 5, factor=2)):
        with pytest.raises(errors.RangeOverflow, match="accumulator"):
            wrong.check()
    x = np.full((1, 5, 2), 255, np.float32)
    found = compile(graph(4 * 255, 5)).run(x, record=["h", "a"])
    assert found.outputs["Y"].tolist() == [[1275, 1275]]
    assert found.counts["h"][0, :, 0].tolist() == [0, 255, 510, 765, 1020]
    for backend in ("numba", "reference"):
        with pytest.raises(errors.BadCalibration, match=r"6 steps.*proved for 5"):
            compile(graph(4 * 255, 5), backend).run(np.zeros((1, 6, 2), np.float32))


@pytest.mark.parametrize(
    ("attrs", "params", "kind", "text"),
    [
        ({"kind": "firm"}, {}, errors.BadShape, "'firm'"),
        ({"shift": 32}, {}, errors.BadShape, "shift 32"),
        ({"steps": 0}, {}, errors.BadShape, "steps 0"),
        ({}, {"leak": np.int64(3)}, errors.BadThreshold, "leak 3"),
        ({}, {"leak": np.int64(-1)}, errors.BadThreshold, "leak -1"),
        ({}, {"gain": np.ones(3, np.int64)}, errors.BadShape, "gain"),
        ({}, {"gain": np.int64(2**60)}, errors.RangeOverflow, "below 2"),
        ({}, {"theta": np.int64(-(2**63))}, errors.RangeOverflow, "below 2"),
        ({}, {"bias": np.float64(1)}, errors.FloatArray, "float64"),
        ({}, {"extra": np.int64(1)}, errors.InvalidGraph, "'extra'"),
        ({"more": 1}, {}, errors.BadShape, "more"),
    ],
)
def test_a_wrong_lif(attrs: Any, params: Any, kind: Any, text: str) -> None:
    x = make_node("x", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
    full = {"bias": 0, "gain": 1, "initial": 0, "leak": 2, "reset": 0, "theta": 1}
    arrays = {**{k: np.int64(v) for k, v in full.items()}, **params}
    with pytest.raises(errors.InvalidGraph, match=text) as caught:
        make_node("s", "lif", [x], arrays, {"kind": "soft", "shift": 1, "steps": 4, **attrs})
    assert type(caught.value) is kind


def test_data_of_another_length() -> None:
    graph = small()
    z, x = np.zeros((3, 2), np.float32), np.zeros((3, 4, 2), np.float32)
    compile(graph).run({"Z": z, "X": x})
    for wrong in (x[:, :3], x[..., :1], x[:2]):
        with pytest.raises(errors.BadCalibration):
            as_inputs(graph, {"Z": z, "X": wrong})
    counts = {b.node: quantise(b, graph.node[b.node], v) for b, v in zip(graph.inputs, (z, x))}
    counts["x"] = counts["x"][:, :2]
    with pytest.raises(errors.BadCalibration, match="numbers of steps differ"):
        dense(graph, counts)


def test_lengths_that_do_not_fit_the_data() -> None:
    graph = replace(recurrent(np.random.default_rng(0), 4, 6)[0], lengths="L")
    x = {"X": np.zeros((3, 2, 4), np.float32), "H0": np.zeros((2, 2, 6), np.float32)}
    for wrong in ([0, 1], [1, 4], [1], [[1, 2]], [1.5, 2]):
        with pytest.raises(errors.BadCalibration, match="L"):
            as_inputs(graph, {**x, "L": np.array(wrong)})
    with pytest.raises(errors.BadCalibration, match="'L'"):
        as_inputs(graph, x)


# --- damaged files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"sweeps": [[1, 0], [4, 1]]},
        {"sweeps": [[1, 0], [5, 3]]},
        {"sweeps": [1, 5]},
        {"sweeps": "all"},
        {"sweeps": [[1, 0], [5, 1.0]]},
        {"sweeps": []},
        {"steps": "4"},
        {"steps": 10**30},
        {"steps": None},
        {"latches": {"h": "z"}},
        {"latches": {"h": ["s"]}},
        {"latches": ["h"]},
        {"latches": {}},
        {"lengths": "X"},
        {"lengths": ["L"]},
    ],
)
def test_a_damaged_description_of_time(change: dict[str, Any]) -> None:
    from tests.test_files import described

    damaged = described(files.to_bytes(small()), lambda d: d.update(change))
    with pytest.raises((errors.InvalidGraph, errors.MalformedGraph)):
        files.from_bytes(damaged)


@pytest.mark.parametrize("change", [{"time": 2}, {"time": "1"}, {"batch": 2}, {"batch": None}])
def test_a_damaged_axis(change: dict[str, Any]) -> None:
    from tests.test_files import described

    damaged = described(files.to_bytes(small()), lambda d: d["inputs"][1].update(change))
    with pytest.raises(errors.InvalidGraph):
        files.from_bytes(damaged)


def test_damaged_descriptions_of_steps_are_refused_or_work() -> None:
    """Behind the digest, as in `test_files_fuzz`: what passes every check runs everywhere alike."""
    content, rng = files.to_bytes(small()), random.Random(3)
    model = onnx.ModelProto.FromString(content)
    description = json.loads(next(p.value for p in model.metadata_props if p.key == "snnkit.graph"))
    tensors = {t.name: t for t in model.graph.initializer}
    x = {"Z": np.full((3, 2), 4, np.float32), "X": np.full((3, 4, 2), 7, np.float32)}
    seen: Counter[str] = Counter()
    for _ in range(600):
        damaged = damage_description(description, rng)
        try:
            graph = files._rebuild(json.dumps(damaged), dict(tensors), "the file")
            written = files.to_bytes(graph)
            values = dense(graph, input_counts(graph, x))
        except errors.SnnkitError:
            seen["refused"] += 1
            continue
        assert files.from_bytes(written).digest == graph.digest
        found = session(written).run([b.name for b in graph.outputs], x)
        for b, y in zip(graph.outputs, found, strict=True):
            assert y.tobytes() == read_out(graph, b, values[b.node]).tobytes()
        seen["works"] += 1
    assert seen["refused"] > 300 and seen["works"] > 20, seen


def test_a_sweep_of_another_direction_is_an_altered_file() -> None:
    """The description is whole, but onnxruntime would compute something else."""
    from tests.test_files import described

    content = files.to_bytes(small())
    damaged = described(content, lambda d: d.update(sweeps=[[1, 0], [5, -1]]))
    with pytest.raises(errors.AlteredFile, match="digest"):
        files.from_bytes(damaged)


def test_another_scan_body_is_an_altered_file() -> None:
    from tests.small_files import edited

    def change(model: Any) -> None:
        scan = next(n for n in model.graph.node if n.op_type == "Scan")
        body = next(a.g for a in scan.attribute if a.name == "body")
        next(n for n in body.node if n.op_type == "Add").op_type = "Sub"

    with pytest.raises(errors.AlteredFile, match="onnxruntime"):
        files.from_bytes(edited(files.to_bytes(small()), change))


def test_files_without_time_stay_as_they_were() -> None:
    """The digest of a one-shot graph from before there were steps."""
    from tests.small_files import network

    description = files.to_bytes(network())
    assert b"sweeps" not in description and b'"batch":0' not in description
    assert network().digest.startswith("f0a975f747905e18e814f36a5dddcbc9")


# --- product --------------------------------------------------------------------------------


def test_product_in_a_one_shot_graph() -> None:
    rng = np.random.default_rng(0)
    x = make_node("x", "input", attrs={"shape": (3, 4), "lo": -128, "hi": 127})
    z = make_node("z", "input", attrs={"shape": (1, 4), "lo": 0, "hi": 255})
    p = make_node("p", "product", [x, z])
    uniform = {"init": np.int32(50), "theta": np.int32(100)}
    s = make_node("s", "spike", [p], uniform, {"kind": "uniform", "lo": -20, "hi": 99})
    square = make_node("q", "product", [s, s])
    y = make_node("y", "readout", [square], {"bias": np.int32(-3)})
    assert (p.lo, p.hi) == (-128 * 255, 127 * 255) and (square.lo, square.hi) == (-1980, 9801)
    inputs = (timed("X", "x", "N", 3, 4, time=None), timed("Z", "z", "N", 1, 4, time=None))
    graph = Graph((x, z, p, s, square, y), inputs, (timed("Y", "y", "N", 3, 4, time=None),))
    data = {
        "X": rng.integers(-128, 128, (5, 3, 4)).astype(np.float32),
        "Z": rng.integers(0, 256, (5, 1, 4)).astype(np.float32),
    }
    expected = np.clip((data["X"] * data["Z"] + 50) // 100, -20, 99) ** 2 - 3
    assert np.array_equal(session(files.to_bytes(graph)).run(["Y"], data)[0], expected)
    program = numba(graph)
    assert program.path == "generic" and dict(program.why_generic).keys() <= {"p", "q"}
    for schedule in (*SCHEDULES, {"mode": "fuzz"}):
        assert np.array_equal(program.run(data, **schedule).outputs["Y"], expected)
    assert verify(graph, data, backends=["numba", "reference"]).passed
    with pytest.raises(errors.BadShape, match="product of inputs"):
        make_node("p", "product", [x, make_node("w", "input", attrs={**x.attrs, "shape": (4,)})])

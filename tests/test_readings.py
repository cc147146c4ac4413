"""One graph, two readings: laws over random networks of every op.

The oracle for the dense reading is onnxruntime on the file; the oracle for the spiking reading
is the dense one.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkit.backends import Schedule, compile
from snnkit.boundary import dequantise, input_counts
from snnkit.errors import BadShape
from snnkit.files import from_bytes, to_bytes
from snnkit.graph import Boundary, Graph, frozen, make_node
from snnkit.machine import Machine
from snnkit.onnx_writer import emit_recording
from snnkit.ops import TABLE
from snnkit.reference import _events, _fuzz, _steps, dense
from tests.corpus import firing, random_graph, samples
from tests.sessions import session

SEEDS = st.integers(0, 2**31 - 1)
LAW = settings(max_examples=150, deadline=None, derandomize=True)


def drawn(seed: int, n: int = 5) -> tuple[Graph, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    return graph, samples(graph, rng, n)


@LAW
@given(SEEDS)
def test_onnxruntime_computes_the_dense_reading_of_every_node(seed: int) -> None:
    graph, x = drawn(seed)
    model, tensors = emit_recording(graph, [n.name for n in graph.nodes])
    values = dense(graph, input_counts(graph, x))
    for node, raw in zip(graph.nodes, session(model).run(tensors, x), strict=True):
        low = node.lo if raw.dtype == np.uint8 else 0
        assert np.array_equal(raw.astype(np.int64) + low, values[node.name]), node
    file = session(to_bytes(graph))
    for b, y in zip(graph.outputs, file.run([b.name for b in graph.outputs], x), strict=True):
        assert y.tobytes() == dequantise(b, values[b.node]).tobytes()


@LAW
@given(SEEDS)
def test_the_file_gives_the_graph_back(seed: int) -> None:
    graph, _ = drawn(seed)
    content = to_bytes(graph)
    again = from_bytes(content)
    assert again.digest == graph.digest and to_bytes(again) == content


@LAW
@given(SEEDS)
def test_every_value_stays_within_its_proved_bounds(seed: int) -> None:
    graph, x = drawn(seed, 20)
    for name, value in dense(graph, input_counts(graph, x)).items():
        node = graph.node[name]
        assert node.lo <= value.min() and value.max() <= node.hi
        assert max(-node.lo, node.hi) <= max(node.peak, -node.lo, node.hi) < 2**31


@LAW
@given(SEEDS)
def test_linear_ops_obey_their_event_rule(seed: int) -> None:
    """f(x + d) = f(x) + f0(d): what makes a delivery of differences exact."""
    graph, x = drawn(seed)
    values = dense(graph, input_counts(graph, x))
    rng = np.random.default_rng(seed)
    for node in graph.nodes:
        op = TABLE[node.op]
        if not (op.linear or node.op == "readout"):
            continue
        xs = [values[s] for s in node.inputs]
        ds = [rng.integers(-9, 10, v.shape) for v in xs]
        moved = op.dense(node, [v + d for v, d in zip(xs, ds, strict=True)])
        assert np.array_equal(moved, op.dense(node, xs) + op.dense(node, ds, constant=False))


@pytest.mark.parametrize("mode", ["settle", "events", "steps", "fuzz"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(SEEDS)
def test_the_quiescent_state_is_the_dense_reading(mode: str, seed: int) -> None:
    graph, x = drawn(seed, 3)
    values = dense(graph, input_counts(graph, x))
    result = compile(graph, "reference").run(x, mode=mode, record=["all"], seed=seed, audit=True)
    for name, value in values.items():
        assert np.array_equal(result.counts[name], value), name
    if mode == "settle":
        minimum = {n.name: np.abs(values[n.name]).reshape(3, -1).sum(1) for n in graph.of("spike")}
        for name, spikes in result.spikes.items():
            assert np.array_equal(spikes.sum(axis=1), minimum[name])


@pytest.mark.parametrize("seed", range(40))
def test_the_networks_of_these_laws_fire(seed: int) -> None:
    """A network whose layers are silent proves nothing."""
    graph, x = drawn(seed, 64)
    firing(graph, compile(graph, "reference").run(x))


@pytest.mark.parametrize("schedule", [_events, _steps, _fuzz])
@pytest.mark.parametrize("seed", range(6))
def test_charge_and_range_at_every_instant(schedule, seed, monkeypatch) -> None:
    """After every single delivery and firing: charge conserved, every tracer within lo..hi."""
    graph, x = drawn(seed, 2)
    audits = 0
    deliver, emit = Machine.deliver, Machine._emit

    def audited(method):
        def wrapped(self, *args):
            nonlocal audits
            out = method(self, *args)
            audits += 1
            self.audit()
            return out

        return wrapped

    monkeypatch.setattr(Machine, "deliver", audited(deliver))
    monkeypatch.setattr(Machine, "_emit", audited(emit))
    schedule(Machine(graph, input_counts(graph, x)), Schedule(seed=seed))
    assert audits > 20


def test_the_audit_sees_a_lost_charge() -> None:
    graph, x = drawn(3, 2)
    machine = Machine(graph, input_counts(graph, x))
    _events(machine, Schedule())
    node = next(n for n in graph.nodes if n.op in ("conv", "linear", "add", "sum_pool"))
    machine.value[node.name] = machine.value[node.name] + 1
    with pytest.raises(Exception, match=r"conserved|leaves"):
        machine.audit()


@LAW
@given(SEEDS)
def test_a_sample_does_not_depend_on_its_batch(seed: int) -> None:
    graph, x = drawn(seed, 4)
    program = compile(graph, "reference")
    together = program.run(x, mode="steps", record=["all"])
    alone = program.run({k: v[2:3] for k, v in x.items()}, mode="steps", record=["all"])
    for name, value in alone.counts.items():
        assert np.array_equal(value[0], together.counts[name][2])
    assert alone.steps[0] == together.steps[2]


@LAW
@given(SEEDS)
def test_rounding_of_the_readout_is_float32(seed: int) -> None:
    graph, x = drawn(seed)
    result = compile(graph, "reference").run(x, record=["all"])
    for b in graph.outputs:
        counts = result.counts[b.node].astype(np.float32)
        assert result.outputs[b.name].tobytes() == (counts * b.scale).astype(np.float32).tobytes()


def test_a_plateau_is_crossed_without_a_spike() -> None:
    """Equal values in neighbouring cells: the neuron moves on although nothing leaves it."""
    x = make_node("x", "input", attrs={"shape": (1,), "lo": 0, "hi": 255})
    one = make_node("a", "add", [x], {"m0": np.array(1)})
    params = {
        "init": np.array(0),
        "thresholds": np.array([1, 2, 3]),
        "values": np.array([0, 0, 0, 1]),
    }
    s = make_node("s", "spike", [one], params, {"kind": "ladder", "lo": 0, "hi": 1})
    out = make_node("y", "readout", [s], {"bias": np.array(0)})
    unit = frozen(np.float32(1)), frozen(np.float32(0))
    ends = (
        Boundary("X", "x", "float32", ("N", 1), *unit),
        Boundary("Y", "y", "float32", ("N", 1), *unit),
    )
    graph = Graph((x, one, s, out), ends[:1], ends[1:])
    for backend in ("reference", "numba"):
        for mode in ("settle", "events", "steps", "fuzz"):
            result = compile(graph, backend).run(np.array([[9.0]]), mode=mode)
            assert result.outputs["Y"] == 1 and result.steps[0] == (3 if mode == "steps" else 0)


def test_a_window_of_padding_has_no_maximum() -> None:
    x = make_node("x", "input", attrs={"shape": (2, 1), "lo": 0, "hi": 255})
    windows = {"kernel": (2,), "strides": (1,), "dilations": (3,), "pads": (2, 2)}
    with pytest.raises(BadShape, match="past the window"):
        make_node("m", "max_pool", [x], {}, windows)

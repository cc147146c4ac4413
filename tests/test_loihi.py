"""Lava equals the definition on every integer: one process for a window, or one per layer.

Starting Lava takes seconds, so all runs of one kind are one job.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import snnkit
from snnkit.backends import Result
from snnkit.backends.loihi import LoihiBackend
from snnkit.backends.loihi.description import PROCESSES, describe, matrix, problems, values_at_rest
from snnkit.backends.loihi.job import Task, counted, run_tasks
from snnkit.backends.loihi.program import LoihiProgram, result
from snnkit.backends.loihi.simulation import LavaBackend
from snnkit.boundary import input_counts
from snnkit.certificate import verify
from snnkit.errors import UnsupportedByBackend, UsageError
from snnkit.graph import Graph, make_node
from snnkit.machine import Machine
from snnkit.ops import TABLE
from snnkit.reference import _deliver_all, dense
from tests.corpus import firing, random_graph, samples
from tests.lava import environment, needed, nothing_left
from tests.step_corpus import KINDS, STEPS, random_step_graph, step_samples
from tests.test_numba_cpu import network, numba

Case = tuple[Graph, dict[str, Any], dict[str, Any]]
"""A graph, samples, and how to run it."""


@cache
def corpus(seed: int, n: int) -> tuple[Graph, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    return graph, samples(graph, rng, n)


@cache
def steps_corpus(seed: int, n: int) -> tuple[Graph, dict[str, Any]]:
    steps = STEPS[seed % len(STEPS)]
    rng = np.random.default_rng(seed)
    graph = random_step_graph(rng, steps, KINDS[seed // len(STEPS) % len(KINDS)])
    return graph, step_samples(graph, rng, n, steps)


def backend_for(graph: Graph) -> LoihiBackend:
    """Within a chip's 24 bits where that is possible."""
    return (LavaBackend if problems(graph) else LoihiBackend)(environment())


def fused_cases() -> list[Case]:
    found: list[Case] = [(*corpus(seed, 5), {}) for seed in range(30)]
    for seed in range(24):
        found.append((*steps_corpus(seed, 3), {"carry": seed % 3 == 0}))
    return found


def layer_cases() -> list[Case]:
    """Unit spikes with delays and phases, graded spikes, recurrence, leaks, whole sequences."""
    unit = {"mode": "steps"}
    return [
        (*corpus(2, 1), unit),
        (*corpus(2, 2), {}),
        (*corpus(0, 1), {**unit, "delay": 0, "phase": 2}),
        (*steps_corpus(1, 1), {**unit, "carry": True}),
        (*steps_corpus(9, 1), {}),
        (*steps_corpus(29, 1), unit),
        (*steps_corpus(33, 1), unit),
    ]


def program(graph: Graph) -> LoihiProgram:
    return backend_for(graph).compile(graph)


def run_all(cases: list[Case], layers: bool) -> list[Result]:
    record = ("spike",) if layers else ("all",)
    tasks = [
        program(graph).task(x, record=record, network="layers" if layers else None, **how)
        for graph, x, how in cases
    ]
    with nothing_left():
        return program(cases[0][0]).run_many(tasks)


@needed
def test_a_whole_window_in_one_process_equals_the_definition() -> None:
    """Every node, every spike and every synaptic operation, and the engine of a second oracle."""
    cases = fused_cases()
    assert len(cases) > 50 and sum(bool(g.sweeps) for g, _, _ in cases) > 20
    for (graph, x, how), found in zip(cases, run_all(cases, layers=False), strict=True):
        expected = snnkit.compile(graph, "reference").run(x, record=("all",), **how)
        assert list(found.counts) == [n.name for n in graph.nodes]
        for what in ("counts", "spikes", "synops", "outputs"):
            ours, theirs = getattr(found, what), getattr(expected, what)
            assert list(ours) == list(theirs)
            for name in ours:
                assert ours[name].dtype == theirs[name].dtype
                np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{what} {name}")
        if graph.sweeps:
            # three samples do not excite every neuron; that the corpus does is another test
            assert any(spikes.any() for spikes in found.spikes.values())
        else:
            firing(graph, found)


@needed
def test_one_process_per_layer_equals_the_engine_step_by_step() -> None:
    """Counts, steps until rest, spikes taken back on the way: Numba's mode steps is the oracle."""
    cases = layer_cases()
    ops = {n.op for g, _, _ in cases for n in g.nodes}
    kinds = {n.attrs["kind"] for g, _, _ in cases for n in g.of("spike", "lif")}
    assert ops >= {"conv", "linear", "max_pool", "product", "add", "latch", "lif"}
    assert ops >= {"stack", "unstack"}
    assert kinds == {"uniform", "ladder", "soft", "hard"}
    for (graph, x, how), found in zip(cases, run_all(cases, layers=True), strict=True):
        expected = numba(graph).run(x, record=("spike",), **how)
        for name, count in found.counts.items():
            np.testing.assert_array_equal(count, expected.counts[name], err_msg=name)
        for name, output in found.outputs.items():
            assert output.tobytes() == expected.outputs[name].tobytes()
        if how.get("mode") != "steps":
            continue
        np.testing.assert_array_equal(found.steps, expected.steps)
        assert found.steps.max() > 1 or not graph.of("spike")
        for name, spikes in found.spikes.items():
            np.testing.assert_array_equal(spikes, expected.spikes[name], err_msg=name)
        assert set(found.synops) == {
            n for n, c in counted(graph, "unit").items() if c and n in expected.synops
        }
        if how.get("delay", 1):
            for name, crossed in found.synops.items():
                np.testing.assert_array_equal(crossed, expected.synops[name], err_msg=name)


def rasters(graph: Graph, x: Any, steps: int) -> dict[str, np.ndarray]:
    """Spikes of the definition, [N, steps, *shape]: who is able to fires, then all are told."""
    machine = Machine(graph, input_counts(graph, x))
    found = {n.name: np.zeros((machine.samples, steps, *n.shape), int) for n in graph.of("spike")}
    _deliver_all(machine)
    for step in range(1, steps):
        before = {name: machine.value[name].copy() for name in found}
        for node in graph.of("spike"):
            machine.fire(node)
        for name, raster in found.items():
            raster[:, step] = machine.value[name] - before[name]
        _deliver_all(machine)
    return found


@needed
def test_every_spike_comes_in_its_time_step() -> None:
    """Weights that lose their lowest bit on Lava's own connections, and one that does not fit
    them; a neuron that overshoots because a branch comes later."""
    x = make_node("x", "input", attrs={"shape": (4,), "lo": 0, "hi": 255})
    w = make_node("w", "linear", [x], {"weight": np.array([[3, -5, 7, 1], [-9, 127, -127, 33]])})
    params: dict[str, Any] = {"init": np.int32(20), "theta": np.array([90, 700])}
    s = make_node("s", "spike", [w], params, {"kind": "uniform", "lo": -3, "hi": 7})
    u = make_node("u", "linear", [s], {"weight": np.array([[-3, 5], [101, -101]])})
    m = make_node("m", "add", [w, u], {"m0": np.array([1, 2]), "m1": np.int32(-5)})
    ladder = {"init": np.int32(0), "thresholds": np.array([-90, 5, 300, 800])}
    t = make_node("t", "spike", [m], ladder, {"kind": "ladder", "lo": -1, "hi": 3})
    y = make_node("y", "readout", [t], {"bias": np.int32(1)})
    graph = network(x, w, s, u, m, t, y)
    data = np.random.default_rng(3).integers(0, 256, (6, 4)).astype(np.float32)
    found = program(graph).raster(data)
    expected = rasters(graph, data, found["s"].shape[1])
    for name, raster in expected.items():
        assert (raster > 0).any() and (raster < 0).any(), name
        np.testing.assert_array_equal(found[name], raster)


# --- without Lava -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_matrices_are_the_dense_rules_of_linear_ops(seed: int) -> None:
    graph, x = corpus(seed, 4)
    values = dense(graph, input_counts(graph, x))
    seen = 0
    for n in graph.of("conv", "linear", "add", "sum_pool", "route", "readout"):
        total = np.zeros((4, n.units), np.int64)
        for i, source in enumerate(n.inputs):
            data, columns, begins = matrix(n, graph, i)
            rows = np.repeat(np.arange(n.units), np.diff(begins))
            flat = values[source].reshape(4, -1)
            for k in range(4):
                np.add.at(total[k], rows, data.astype(np.int64) * flat[k, columns])
        constant = 0 if n.op != "readout" else n.params["bias"].astype(np.int64)
        np.testing.assert_array_equal(total.reshape(4, *n.shape) + constant, values[n.name])
        seen += 1
    assert seen > 2


def test_values_at_rest_are_the_dense_reading_of_silence() -> None:
    graph, _ = corpus(3, 1)
    rest = values_at_rest(graph)
    for n in graph.nodes:
        if n.op not in ("input", "spike"):
            expected = TABLE[n.op].dense(n, [rest[s] for s in n.inputs])
            np.testing.assert_array_equal(rest[n.name], expected)


def test_a_description_holds_integers_only() -> None:
    for seed in range(8):
        graph = steps_corpus(seed, 1)[0]
        sweeps, arrays = describe(graph, "0")
        assert {a.dtype.kind for a in arrays.values()} <= {"i", "u"}
        assert [s["direction"] for s in sweeps] == [d for _, d in graph.sweeps]
        kinds = {n["kind"] for s in sweeps for n in s["nodes"]}
        assert kinds <= {*PROCESSES, "linear"}


def wide(weight: int, units: int) -> Graph:
    x = make_node("x", "input", attrs={"shape": (units,), "lo": 0, "hi": 255})
    w = make_node("w", "linear", [x], {"weight": np.full((1, units), weight)})
    params = {"init": np.int32(0), "theta": np.int32(1)}
    s = make_node("s", "spike", [w], params, {"kind": "uniform", "lo": 0, "hi": 1})
    return network(x, w, s, make_node("y", "readout", [s], {"bias": np.int32(0)}))


def test_what_does_not_fit_24_bits_is_refused_with_layer_and_number() -> None:
    assert problems(wide(127, 259)) == []
    found = problems(wide(127, 260))
    assert [name for name, _ in found] == ["w", "s"]
    assert "can reach 8420100" in found[0][1] and "2^23 = 8388608" in found[0][1]
    assert problems(wide(127, 260), bits=63) == []
    refused = [s for s in range(24) if problems(steps_corpus(s, 1)[0])]
    assert refused == [11, 19]
    (name, reason), *_ = problems(steps_corpus(19, 1)[0])
    node = steps_corpus(19, 1)[0].node[name]
    most = {key: int(np.abs(value).max()) for key, value in node.params.items()}
    each = most["gain"] * node.peak + most["bias"] + most["reset"]
    assert node.attrs["steps"] == 21
    reach = most["initial"] + 21 * each
    assert f"membrane potential can reach {reach} in 21 steps" in reason


@needed
def test_requests_that_lava_cannot_meet_are_refused() -> None:
    graph, x = corpus(0, 2)
    p = program(graph)
    for bad, text in (
        ({"mode": "events"}, "synchronous"),
        ({"mode": "fuzz"}, "synchronous"),
        ({"mode": "steps", "network": "fused"}, "expected layers"),
        ({"network": "dense"}, "expected layers or fused"),
    ):
        with pytest.raises(UsageError, match=text):
            p.run(x, **bad)
    with pytest.raises(UsageError, match=r"starts? Lava anew"):
        p.stream()
    with pytest.raises(UnsupportedByBackend, match=r"node 'w'.*8420100"):
        snnkit.compile(wide(127, 260), "loihi")
    with pytest.raises(UsageError, match=r"one-shot"):
        program(steps_corpus(0, 1)[0]).raster({})


@needed
def test_verify_compares_lava_too_and_says_what_it_skipped() -> None:
    graph, x = corpus(4, 3)
    certificate = verify(graph, x, backends=("loihi",), modes=("settle", "fuzz"))
    assert certificate.passed and "loihi settle" in certificate.executions
    assert set(certificate.skipped) == {"loihi fuzz"}


@needed
def test_a_membrane_beyond_24_bits_is_an_error_of_its_own() -> None:
    """The bounds are proved, so this takes a graph that was not asked whether it fits."""
    graph = wide(127, 400)
    task = Task(graph, {"x": np.full((1, 400), 255)})
    with pytest.raises(snnkit.SnnkitError, match=r"layer 's': a membrane potential of 12954000"):
        run_tasks([task], environment())
    fits = replace(task, counts={"x": np.full((1, 400), 1)})
    assert result(fits, *run_tasks([fits], environment())[0], 0.0).outputs["Y"] == 1

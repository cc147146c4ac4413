"""The Numba engine equals the reference on every integer, in every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import snnkit
from snnkit.backends import Result
from snnkit.errors import UsageError
from snnkit.graph import Boundary, Graph, Node, make_node
from snnkit.reference import dense, input_counts
from tests.corpus import firing, random_graph, samples

pytest.importorskip("numba")
from snnkit.backends.numba_cpu import NumbaProgram, backend

SEEDS = range(60)
SCHEDULES: list[dict[str, Any]] = [
    {"mode": "settle"},
    {"mode": "events"},
    {"mode": "steps"},
    {"mode": "steps", "delay": 0},
    {"mode": "steps", "phase": 2},
    {"mode": "steps", "delay": 0, "phase": 3},
]


def equal(a: Result, b: Result, what: tuple[str, ...]) -> None:
    """Assert that two results are the same integers and the same float bits."""
    for name in what:
        left, right = getattr(a, name), getattr(b, name)
        if name == "steps":
            left, right = {"": left}, {"": right}
        assert list(left) == list(right)
        for key in left:
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(left[key], right[key], err_msg=f"{name} of '{key}'")


def numba(graph: Graph) -> NumbaProgram:
    return backend().compile(graph)


EVERYTHING = ("counts", "outputs", "spikes", "synops", "steps")


@pytest.mark.parametrize("seed", SEEDS)
def test_equals_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    x = samples(graph, rng, 6)
    reference = snnkit.compile(graph, "reference")
    program = numba(graph)
    for schedule in SCHEDULES:
        expected = reference.run(x, record=("all",), **schedule)
        firing(graph, expected)
        equal(program.run(x, record=("all",), **schedule), expected, EVERYTHING)
    for seed in (0, 1, 2**63 - 1):
        fuzzed = program.run(x, mode="fuzz", seed=seed, record=("all",))
        equal(fuzzed, expected, ("counts", "outputs"))


@pytest.mark.parametrize("seed", range(8))
def test_plateaus_of_a_staircase_do_not_end_a_run(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    graph = random_graph(rng, plateaus=True)
    x = samples(graph, rng, 4)
    expected = dense(graph, input_counts(graph, x))
    program = numba(graph)
    for schedule in (*SCHEDULES, {"mode": "fuzz"}):
        result = program.run(x, record=("all",), **schedule)
        for name, counts in result.counts.items():
            np.testing.assert_array_equal(counts, expected[name], err_msg=name)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("schedule", [*SCHEDULES[:3], {"mode": "fuzz", "seed": 7}], ids=str)
def test_a_sample_does_not_depend_on_batch_or_threads(seed: int, schedule: Any) -> None:
    rng = np.random.default_rng(2000 + seed)
    graph = random_graph(rng)
    x = samples(graph, rng, 7)
    program = numba(graph)
    batch = program.run(x, record=("all",), threads=2, **schedule)
    equal(program.run(x, record=("all",), threads=1, **schedule), batch, EVERYTHING)
    for i in range(7):
        one = {name: array[i : i + 1] for name, array in x.items()}
        alone = program.run(one, record=("all",), **schedule)
        for name, counts in alone.counts.items():
            np.testing.assert_array_equal(counts[0], batch.counts[name][i])
        for name, spikes in alone.spikes.items():
            np.testing.assert_array_equal(spikes[0], batch.spikes[name][i])
        assert alone.steps[0] == batch.steps[i]


def test_schedules_of_fuzz_differ() -> None:
    """Neurons that overshoot and take spikes back show that orders really differ."""
    rng = np.random.default_rng(0)
    graph = random_graph(rng)
    x = samples(graph, rng, 4)
    program = numba(graph)
    runs = [program.run(x, mode="fuzz", seed=seed) for seed in range(4)]
    work = {tuple(int(s.sum()) for s in (*r.spikes.values(), *r.synops.values())) for r in runs}
    assert len(work) == 4
    again = program.run(x, mode="fuzz", seed=3)
    equal(again, runs[3], EVERYTHING)


def test_many_samples_in_several_chunks() -> None:
    rng = np.random.default_rng(4)
    graph = random_graph(rng)
    x = samples(graph, rng, 150)
    expected = snnkit.compile(graph, "reference").run(x, record=("spike",))
    program = numba(graph)
    equal(program.run(x, record=("spike",), threads=2), expected, EVERYTHING)


def network(*nodes: Node) -> Graph:
    """A graph of one input and one readout, x and y."""
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    ends = [Boundary("X", nodes[0].name, "float32", ("batch", *nodes[0].shape), one, zero)]
    ends += [Boundary("Y", nodes[-1].name, "float32", ("batch", *nodes[-1].shape), one, zero)]
    return Graph(nodes, (ends[0],), (ends[1],))


def test_quotients_at_the_edge_of_int32() -> None:
    """Charges up to 2^30, where a rounded quotient could reach the next integer."""
    rng = np.random.default_rng(5)
    units = 4000
    theta = rng.integers(2**20, 2**23, units)
    multiple = rng.integers(-100, 100, units) * theta
    x = make_node("x", "input", attrs={"shape": (units,), "lo": -128, "hi": 127})
    init = multiple + rng.integers(-1, 2, units)
    params = {"init": init, "theta": theta}
    s = make_node("s", "spike", [x], params, {"kind": "uniform", "lo": -120, "hi": 127})
    y = make_node("y", "readout", [s], {"bias": np.int32(0)})
    graph = network(x, s, y)
    data = rng.integers(-1, 2, (3, units)).astype(np.float32)
    expected = snnkit.compile(graph, "reference").run(data, mode="settle")
    for mode in ("settle", "events"):
        equal(numba(graph).run(data, mode=mode), expected, ("outputs", "spikes"))


def test_a_readout_in_the_middle_starts_from_its_bias() -> None:
    x = make_node("x", "input", attrs={"shape": (3,), "lo": 0, "hi": 255})
    a = make_node("a", "readout", [x], {"bias": np.int32(40)})
    w = make_node("w", "linear", [a], {"weight": np.array([[1, -2, 3]])})
    params = {"init": np.int32(0), "theta": np.int32(50)}
    s = make_node("s", "spike", [w], params, {"kind": "uniform", "lo": -3, "hi": 9})
    t_params = {"init": np.int32(0), "theta": np.int32(2)}
    t = make_node("t", "spike", [s], t_params, {"kind": "uniform", "lo": -3, "hi": 9})
    y = make_node("y", "readout", [t], {"bias": np.int32(1)})
    single = network(x, a, w, s, t, y)
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    middle = Boundary("A", "a", "float32", ("batch", 3), one, zero)
    graph = Graph(single.nodes, single.inputs, (*single.outputs, middle))
    data = np.array([[0, 0, 0], [255, 0, 7], [9, 100, 255]], np.float32)
    program, reference = numba(graph), snnkit.compile(graph, "reference")
    for schedule in SCHEDULES:
        expected = reference.run(data, record=("all",), **schedule)
        equal(program.run(data, record=("all",), **schedule), expected, EVERYTHING)


def test_a_silent_move_is_not_the_end_of_steps() -> None:
    """A neuron that climbs over cells of the same value sends nothing, but is not done."""
    x = make_node("x", "input", attrs={"shape": (1,), "lo": 0, "hi": 255})
    thresholds, values = np.array([1, 2, 3]), np.array([0, 0, 0, 1])
    params = {"init": np.array(0), "thresholds": thresholds, "values": values}
    s = make_node("s", "spike", [x], params, {"kind": "ladder", "lo": 0, "hi": 1})
    graph = network(x, s, make_node("y", "readout", [s], {"bias": np.int32(0)}))
    result = numba(graph).run(np.array([[9], [0], [2], [3]], np.float32), mode="steps")
    assert result.outputs["Y"].ravel().tolist() == [1, 0, 0, 1]
    assert result.steps.tolist() == [3, 0, 0, 3]


def test_threads_below_one() -> None:
    graph = random_graph(np.random.default_rng(6))
    program = numba(graph)
    with pytest.raises(UsageError, match="threads 0"):
        program.run(samples(graph, np.random.default_rng(6), 1), threads=0)

"""A step graph as a stream: after every element what `run` gives on the elements so far."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import snnkit
from snnkit.backends import Stream
from snnkit.cli import main
from snnkit.errors import BadCalibration, BadEvents, UsageError
from snnkit.graph import Boundary, Graph, make_node
from snnkit.reference import dense, input_counts
from snnkit.sweeps import by_elements, needs_future
from tests.step_corpus import KINDS, STEPS, random_step_graph, silent_nodes, step_samples

pytest.importorskip("numba")

BACKENDS = ("numba", "reference")
UPDATES = ("incremental", "recompute", "auto")
SEEDS = range(24)


def drawn(seed: int) -> tuple[Graph, int]:
    """A step graph that needs no future, and its number of steps."""
    rng, steps = np.random.default_rng(9000 + seed), STEPS[1:][seed % 3]
    while True:
        graph = random_step_graph(rng, steps, KINDS[seed // 3 % len(KINDS)])
        if not needs_future(graph):
            return graph, steps


def cut(graph: Graph, x: dict[str, Any], steps: int) -> tuple[Graph, dict[str, Any]]:
    """The graph for so many steps, and the first so many elements of a batch of one."""

    def ends(boundaries: tuple[Boundary, ...]) -> tuple[Boundary, ...]:
        found = []
        for b in boundaries:
            dims = [
                steps if graph.steps and i == b.time and b.time is not None else d
                for i, d in enumerate(b.dims)
            ]
            found.append(replace(b, dims=tuple(dims)))
        return tuple(found)

    part = {
        b.name: x[b.name] if b.time is None else x[b.name].take(range(steps), axis=b.time)
        for b in graph.inputs
    }
    if graph.lengths:
        part[graph.lengths] = np.full(1, steps, np.int32)
    own = steps if graph.steps else 0
    return replace(graph, inputs=ends(graph.inputs), outputs=ends(graph.outputs), steps=own), part


def element(graph: Graph, x: dict[str, Any], t: int) -> dict[str, Any]:
    """What is pushed at step t: inputs without a time axis with the first element only."""
    found = {}
    for b in graph.inputs:
        if b.time is None:
            if t == 0:
                found[b.name] = x[b.name].take(0, axis=b.batch)
        else:
            axes = sorted([(b.time, t), (b.batch, 0)], reverse=True)
            value = x[b.name]
            for axis, index in axes:
                value = value.take(index, axis=axis)
            found[b.name] = value
    return found


def equal(graph: Graph, stream: Stream, x: dict[str, Any], t: int, what: str) -> None:
    """Readout and counts after element t, against a run on the first t + 1."""
    short, part = cut(graph, x, t + 1)
    run = snnkit.compile(short, "numba").run(part, record=("all",))
    outputs = stream.readout()
    assert list(outputs) == [b.name for b in graph.outputs]
    for b in graph.outputs:
        expected = run.outputs[b.name]
        if b.time is not None:
            expected = expected.take([t], axis=b.time)
        assert outputs[b.name].dtype == expected.dtype
        assert outputs[b.name].shape == expected.shape
        assert outputs[b.name].tobytes() == expected.tobytes(), f"{b.name} {what}"
    for name, found in stream.counts(("all",)).items():
        expected = run.counts[name][:, t] if graph.direction(name) else run.counts[name]
        np.testing.assert_array_equal(found, expected, err_msg=f"{name} {what}")
        assert found.dtype == np.int64


def test_the_drawn_graphs_hold_what_the_law_is_about() -> None:
    graphs = [drawn(seed)[0] for seed in SEEDS]
    sweeps = [[d for _, d in g.sweeps] for g in graphs]
    assert any(s[0] == 0 for s in sweeps) and any(s[-1] == 0 for s in sweeps)
    assert any(b.time is None for g in graphs for b in g.inputs)
    assert {b.time is None for g in graphs for b in g.outputs} == {True, False}
    assert {g.steps > 0 for g in graphs} == {bool(g.lengths) for g in graphs} == {True, False}
    assert any(n.inputs for g in graphs for n in g.of("latch"))
    assert any(g.of("lif") for g in graphs)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_element_equals_the_run_so_far(seed: int) -> None:
    graph, steps = drawn(seed)
    rng = np.random.default_rng(seed)
    batch = step_samples(graph, rng, 2, steps)
    streams = {
        f"{name} {update}": snnkit.compile(graph, name).stream(update)
        for name in BACKENDS
        for update in UPDATES[: 3 if name == "numba" else 2]
    }
    for sample in range(2):
        x = {b.name: batch[b.name].take([sample], axis=b.batch) for b in graph.inputs}
        for t in range(steps):
            for what, stream in streams.items():
                stream.push(frame=element(graph, x, t))
                if t < 3 or t + 1 == steps:
                    equal(graph, stream, x, t, f"{what}, sample {sample}, element {t}")
        for what, stream in streams.items():
            assert stream.packets == steps
            if "auto" not in what:
                assert stream.recomputed == (steps if "recompute" in what else 1)
            stream.reset()


def test_nothing_that_is_pushed_stays_silent() -> None:
    for seed in SEEDS:
        graph, steps = drawn(seed)
        x = step_samples(graph, np.random.default_rng(seed), 24, steps)
        assert not silent_nodes(graph, dense(graph, input_counts(graph, x)))


@pytest.mark.parametrize("seed", range(12))
def test_a_regrouped_graph_is_the_same_network(seed: int) -> None:
    graph, steps = drawn(100 + seed)
    again = by_elements(graph)
    again.check()
    assert len(again.sweeps) <= 3 and [d for _, d in again.sweeps].count(1) == 1
    x = step_samples(graph, np.random.default_rng(seed), 3, steps)
    expected = dense(graph, input_counts(graph, x))
    for name, value in dense(again, input_counts(again, x)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("seed", range(12))
def test_graphs_that_need_the_future_are_refused(seed: int) -> None:
    rng, steps = np.random.default_rng(seed), 5
    while True:
        graph = random_step_graph(rng, steps, KINDS[seed % 3], fixed=False)
        problems = needs_future(graph)
        if problems and not graph.lengths:
            break
    for name in BACKENDS:
        with pytest.raises(UsageError, match="one at a time") as caught:
            snnkit.compile(graph, name).stream()
        for node, reason in problems:
            assert f"node '{node}': {reason}" in str(caught.value)


def test_both_reasons_for_needing_the_future() -> None:
    x = make_node("x", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
    level = {"init": np.int32(0), "theta": np.int32(2)}
    s = make_node("s", "spike", [x], level, {"kind": "uniform", "lo": 0, "hi": 9})
    head = make_node("head", "add", [s], {"m0": np.int32(2)})
    again = make_node("again", "add", [s, head], {"m0": np.int32(1), "m1": np.int32(1)})
    y = make_node("y", "readout", [again], {"bias": np.int32(0)})
    nodes = (x, s, head, again, y)
    ends = boundary("X", "x", "N", "T", 2), boundary("Y", "y", "N", "T", 2)
    graph = Graph(nodes, ends[:1], ends[1:], {}, ((2, 1), (1, 0), (2, 1)))
    graph.check()
    with pytest.raises(UsageError, match="node 'again': it reads 'head', which is known after"):
        snnkit.compile(graph).stream()
    backwards = replace(graph, sweeps=((2, -1), (1, 0), (2, 0)), outputs=(untimed("Y", "y", 2),))
    with pytest.raises(UsageError, match="node 'x': its sweep runs backwards"):
        snnkit.compile(backwards).stream()
    # a middle sweep that only scales a static input does not depend on any element
    z = make_node("z", "input", attrs={"shape": (2,), "lo": 0, "hi": 255})
    head = make_node("head", "add", [z], {"m0": np.int32(2)})
    again = make_node("again", "add", [s, head], {"m0": np.int32(1), "m1": np.int32(1)})
    y = make_node("y", "readout", [again], {"bias": np.int32(0)})
    fine = replace(
        graph,
        nodes=(x, s, z, head, again, y),
        inputs=(ends[0], untimed("Z", "z", 2)),
        sweeps=((2, 1), (2, 0), (2, 1)),
    )
    fine.check()
    assert [n.name for n in by_elements(fine).nodes] == ["z", "head", "x", "s", "again", "y"]
    for name in BACKENDS:
        stream = snnkit.compile(fine, name).stream()
        stream.push(frame={"X": np.array([4.0, 9]), "Z": np.array([1.0, 0])})
        assert stream.readout()["Y"].tolist() == [[[4, 4]]]


# --- what may be pushed ---------------------------------------------------------------------


ONE, ZERO = np.ones((), np.float32), np.zeros((), np.float32)


def boundary(name: str, node: str, *dims: int | str, batch: int = 0, time: Any = 1) -> Boundary:
    return Boundary(name, node, "float32", dims, ONE, ZERO, (), batch, time)


def untimed(name: str, node: str, *shape: int) -> Boundary:
    return boundary(name, node, "N", *shape, time=None)


def counting(
    shape: tuple[int, ...] = (2, 3, 4), most: int = 4, fixed: int = 0, static: bool = False
) -> Graph:
    """Sum of all elements so far (at most `most` of them), and of a static input."""
    x = make_node("x", "input", attrs={"shape": shape, "lo": 0, "hi": 255})
    attrs = {"shape": shape, "lo": 0, "hi": most * 255, "steps": most}
    z = make_node("z", "input", attrs={"shape": shape, "lo": 0, "hi": 255})
    if static:
        h = make_node("h", "latch", [z], attrs={**attrs})
    else:
        h = make_node("h", "latch", (), {"initial": np.int32(0)}, attrs)
    a = make_node("a", "add", [h, x], {"m0": np.int32(1), "m1": np.int32(1)})
    y = make_node("y", "readout", [a], {"bias": np.int32(0)})
    inputs = (boundary("X", "x", "N", fixed or "T", *shape),)
    nodes, sweeps = (x, h, a, y), ((4, 1),)
    if static:
        inputs, nodes = (*inputs, untimed("Z", "z", *shape)), (z, *nodes)
        sweeps = ((1, 0), (4, 1))
    graph = Graph(nodes, inputs, (untimed("Y", "y", *shape),), {}, sweeps, fixed, {"h": "a"})
    graph.check()
    return graph


@pytest.mark.parametrize("name", BACKENDS)
def test_more_elements_than_are_proved(name: str) -> None:
    one = np.ones((2, 3, 4), np.float32)
    cases = ((counting(), "element 5; the network has bounds that are proved for 4"),)
    cases += ((counting(fixed=3), "element 4; the network takes 3"),)
    for graph, text in cases:
        stream = snnkit.compile(graph, name).stream()
        most = graph.steps or 4
        for _ in range(2):
            for _ in range(most):
                stream.push(frame=one)
            for _ in range(2):
                with pytest.raises(BadCalibration, match=text):
                    stream.push(frame=one)
                assert (stream.readout()["Y"] == most).all() and stream.packets == most
            stream.reset()
            with pytest.raises(UsageError, match="before the first element"):
                stream.readout()
            with pytest.raises(UsageError, match="before the first element"):
                stream.counts()


EVENT = np.dtype([("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.uint8)])


def events_at(*rows: tuple[int, int, int, int]) -> Any:
    return np.array(list(rows), EVENT)


@pytest.mark.parametrize("name", BACKENDS)
def test_events_of_one_element(name: str) -> None:
    """They do not stay for the next one, and no events are an element too."""
    stream = snnkit.compile(counting(), name).stream()
    stream.push(events_at((0, 1, 2, 1), (5, 1, 2, 1), (9, 3, 0, 0)))
    expected = np.zeros((1, 2, 3, 4))
    expected[0, 1, 2, 1], expected[0, 0, 0, 3] = 2, 1
    np.testing.assert_array_equal(stream.readout()["Y"], expected)
    stream.push()
    np.testing.assert_array_equal(stream.readout()["Y"], expected)
    stream.push(np.repeat(events_at((0, 0, 0, 0)), 999), events_at()[:0])
    expected[0, 0, 0, 0] = 255
    np.testing.assert_array_equal(stream.readout()["Y"], expected)
    with pytest.raises(BadEvents, match="field 'x' of event 0 is 4"):
        stream.push(events_at((0, 4, 0, 0)))
    with pytest.raises(UsageError, match="leaving events"):
        stream.push(leaving=events_at((0, 0, 0, 0)))
    with pytest.raises(UsageError, match="events and a frame for input 'X'"):
        stream.push(events_at((0, 0, 0, 0)), frame=np.zeros((2, 3, 4)))
    assert stream.packets == 3
    np.testing.assert_array_equal(stream.readout()["Y"], expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_static_inputs_are_given_once(name: str) -> None:
    stream = snnkit.compile(counting(static=True), name).stream()
    x, z = np.full((2, 3, 4), 2, np.float32), np.full((2, 3, 4), 9, np.float32)
    for _ in range(2):
        for wrong in ({"frame": x}, {"frame": {"X": x}}, {"frame": {"Z": z, "W": z}}, {}):
            with pytest.raises(UsageError, match="'X'; 'Z' is given once, now"):
                stream.push(**wrong)
            assert stream.packets == 0
        stream.push(frame={"X": x, "Z": z})
        stream.push(frame=x)
        with pytest.raises(UsageError, match=r"with the first element; reset\(\) starts"):
            stream.push(frame={"X": x, "Z": z})
        stream.push(events_at((0, 0, 0, 0)))
        expected = np.full((1, 2, 3, 4), 13)
        expected[0, 0, 0, 0] = 14
        np.testing.assert_array_equal(stream.readout()["Y"], expected)
        stream.reset()
    stream.push(events_at((0, 0, 0, 0)), frame={"Z": z})
    assert stream.readout()["Y"].max() == 10


@pytest.mark.parametrize("name", BACKENDS)
def test_a_bad_element_changes_nothing(name: str) -> None:
    stream = snnkit.compile(counting((5,)), name).stream()
    x = np.arange(5, dtype=np.float32)
    stream.push(frame=x)
    for bad, kind, text in (
        (x[None], UsageError, r"shape \(1, 5\); expected \(5,\)"),
        (x[:4], UsageError, r"shape \(4,\); expected \(5,\)"),
        (x * np.nan, BadCalibration, "NaN"),
        (np.array([np.inf, -np.inf, 0, 0, 0], np.float32), BadCalibration, "NaN or infinite"),
        (np.array(["a"] * 5), BadCalibration, "type"),
        ({"Q": x}, UsageError, r"inputs \['Q'\]; expected 'X'"),
        (None, UsageError, r"inputs \[\]; expected 'X'"),
    ):
        with pytest.raises(kind, match=text):
            stream.push(frame=bad)
        np.testing.assert_array_equal(stream.readout()["Y"], x[None])
    with pytest.raises(UsageError, match="push frames instead"):
        stream.push(events_at((0, 0, 0, 0)))
    # a sum beyond float32, of values that are all finite
    stream.push(frame=np.full(5, 3e38, np.float32))
    stream.push(frame=x.astype(int))
    stream.push(frame=list(x))
    np.testing.assert_array_equal(stream.readout()["Y"], 3 * x[None] + 255)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_network_whose_input_has_no_time(name: str) -> None:
    """A picture shown at every step: each push is a step."""
    z = make_node("z", "input", attrs={"shape": (3,), "lo": 0, "hi": 255})
    arrays = {"leak": 1, "gain": 8, "bias": 0, "theta": 100, "reset": 100, "initial": 0}
    params = {key: np.int64(value) for key, value in arrays.items()}
    s = make_node("s", "lif", [z], params, {"kind": "soft", "shift": 1, "steps": 6})
    y = make_node("y", "readout", [s], {"bias": np.int32(0)})
    outputs = (boundary("Y", "y", "N", 6, 3),)
    graph = Graph((z, s, y), (untimed("Z", "z", 3),), outputs, {}, ((1, 0), (2, 1)), 6)
    program = snnkit.compile(graph, name)
    expected = program.run(np.array([[3, 8, 20]], np.float32)).outputs["Y"]
    assert 0 < expected.sum() < expected.size
    stream = program.stream()
    for t in range(6):
        stream.push(frame=np.array([3, 8, 20], np.float32) if t == 0 else None)
        np.testing.assert_array_equal(stream.readout()["Y"], expected[:, t : t + 1])


def test_streams_of_one_program_are_independent() -> None:
    graph, steps = drawn(3)
    program, rng = snnkit.compile(graph), np.random.default_rng(0)
    batch = step_samples(graph, rng, 3, steps)
    x = [{b.name: batch[b.name].take([i], axis=b.batch) for b in graph.inputs} for i in range(3)]
    streams = [program.stream(update) for update in UPDATES]
    for t in range(steps):
        for stream, one in zip(streams, x, strict=True):
            stream.push(frame=element(graph, one, t))
    for stream, one in zip(streams, x, strict=True):
        equal(graph, stream, one, steps - 1, "beside others")


# --- the command ----------------------------------------------------------------------------


def test_command(tmp_path: Any, capsys: Any) -> None:
    net, data = str(tmp_path / "net.onnx"), str(tmp_path / "x.npy")
    snnkit.save(counting((1, 3, 4), most=40), net)
    rng = np.random.default_rng(0)
    events = np.zeros(200, EVENT)
    events["t"] = np.sort(rng.integers(0, 10_000, 200))
    events["x"], events["y"] = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    np.save(data, events)
    assert main(["stream", net, data, "--every", "500", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = []
    for k in range(found["packets"]):
        part = events[events["t"] < events["t"][0] + 500 * (k + 1)]
        held = np.bincount(part["y"].astype(int) * 4 + part["x"], minlength=12)
        expected.append(int(held.argmax()))
    assert found["each"]["classes"] == expected and len(expected) >= 19
    assert found["events"] == 200 and found["path"] == "generic"
    for options, text in (
        (["--every", "500", "--window", "900"], "--window"),
        ([], "expected --every"),
    ):
        assert main(["stream", net, data, *options]) == 2
        assert text in capsys.readouterr().err
    x = rng.integers(0, 9, (40, 1, 3, 4)).astype(np.float32)
    np.save(data, x)
    assert main(["stream", net, data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    sums = x.reshape(40, -1).cumsum(axis=0)
    assert found["each"]["classes"] == sums.argmax(axis=1).tolist()
    assert main(["stream", net, data, "--every", "5"]) == 2
    np.save(data, np.concatenate([x, x]))
    assert main(["stream", net, data]) == 3
    assert "element 41; the network has bounds" in capsys.readouterr().err
    np.savez(tmp_path / "x.npz", A=x, B=x)
    assert main(["stream", net, str(tmp_path / "x.npz")]) == 3
    assert "no data for inputs ['X']" in capsys.readouterr().err


def test_command_with_a_static_input(tmp_path: Any, capsys: Any) -> None:
    net, data = str(tmp_path / "net.onnx"), str(tmp_path / "x.npz")
    snnkit.save(counting((3,), static=True), net)
    np.savez(data, X=np.eye(3, dtype=np.float32), Z=np.array([0, 0, 1.5], np.float32))
    assert main(["stream", net, data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["each"]["classes"] == [2, 2, 2]

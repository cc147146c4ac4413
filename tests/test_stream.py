"""After every packet a stream equals the dense reading of the accumulated input, on every path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import snnkit
from snnkit.backends import Stream, finish
from snnkit.cli import main
from snnkit.errors import BadCalibration, BadEvents, SnnkitError, UsageError
from snnkit.graph import Boundary, Graph, make_node
from snnkit.ops import TABLE
from snnkit.reference import dense, input_counts
from tests.corpus import random_graph, samples
from tests.test_numba_fast import HERE, Network, random_network

pytest.importorskip("numba")
from snnkit.backends.numba_cpu import NumbaProgram, backend
from snnkit.backends.numba_cpu.stream import VectorStream, fields
from snnkit.backends.numba_cpu.stream.vector_stream import GROWTH

EVENT = np.dtype([("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.uint8)])
PATHS = (*HERE, "generic")
UPDATES = ("auto", "incremental", "recompute")


class Branches(Network):
    """A network that also joins branches."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.history = [self.value]

    def add(self, op: str, params: Any = None, **attrs: Any) -> None:
        super().add(op, params, **attrs)
        self.history.append(self.value)

    def join(self, nodes: Any, values: Any, times: Any) -> None:
        self.node = make_node(f"n{len(self.nodes)}", "add", nodes, times)
        self.value = np.asarray(TABLE["add"].dense(self.node, values))
        self.nodes.append(self.node)
        self.history.append(self.value)

    def ladder(self) -> None:
        """Steps of different heights, from charges that occur."""
        charges = self.rng.choice(self.value.reshape(-1), (self.node.shape[0], 1, 1, 6))
        params = {"init": np.int32(0), "thresholds": np.sort(charges + 1, axis=-1)}
        self.add("spike", params, kind="ladder", lo=-1, hi=5)


def event_network(seed: int) -> Graph:
    """Convolutions and linear layers over one or two polarities, quiet or with a background."""
    rng = np.random.default_rng(seed)
    polarities = int(rng.integers(1, 3))
    shape = (polarities, int(rng.integers(4, 14)), int(rng.integers(4, 18)))
    net = Network(rng, shape, int(rng.choice([0, 0, -128])), int(rng.choice([2, 6])))
    for _ in range(rng.integers(1, 4)):
        outputs = int(rng.choice([1, 3, 16, 20, 64, 70, 130]))
        dilation = 2 if rng.random() < 0.15 else 1
        net.conv(outputs, int(rng.choice([1, 3, 3, 5])), int(rng.integers(1, 4)), dilation)
        net.spike(quiet=bool(rng.random() < 0.6))
    if rng.random() < 0.7:
        net.linear(int(rng.choice([10, 33])))
        if rng.random() < 0.5:
            net.spike(quiet=False)
    return net.graph()


def residual_network(seed: int) -> Graph:
    """Convolutions, ordinary and channel by channel, pools, scaled sums of branches, a pool over
    all places, ladders: what joins and splits."""
    rng = np.random.default_rng(seed)
    low = int(rng.choice([0, -10]))
    net = Branches(rng, (2, int(rng.integers(6, 12)), int(rng.integers(6, 15))), low, 4)
    channels = int(rng.choice([3, 16, 24, 70]))
    net.conv(channels, 3, int(rng.integers(1, 3)))
    net.spike(quiet=bool(seed % 2))
    window = {"strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1)}
    for _ in range(2):
        trunk, value = net.node, net.value
        if rng.random() < 0.5:
            weight = rng.integers(-127, 128, (channels, channels, 3, 3))
            net.add("conv", {"weight": weight}, group=1, **window)
        else:
            weight = rng.integers(-127, 128, (channels, 1, 3, 3))
            net.add("conv", {"weight": weight}, group=channels, **window)
        both = [net.node, trunk]
        if rng.random() < 0.5:
            net.node, net.value = trunk, value
            net.add("sum_pool", kernel=(3, 3), **window)
            both.append(net.node)
        values = {n.name: v for n, v in zip(net.nodes, net.history, strict=True)}
        times = {f"m{i}": rng.integers(-9, 10, (channels, 1, 1)) for i in range(len(both))}
        if rng.random() < 0.3:
            times["m0"] = np.ones((1, 1, 1), np.int64)
        net.join(both, [values[n.name] for n in both], times)
        net.ladder() if rng.random() < 0.5 else net.spike(quiet=bool(rng.random() < 0.5))
        if rng.random() < 0.5:
            net.add("max_pool", kernel=(2, 2), **{**window, "pads": (0,) * 4, "strides": (2, 1)})
    if rng.random() < 0.5:
        net.add("sum_pool", axes=(1, 2), keepdims=True)
        net.spike(quiet=False)
    net.add("route", kind="reshape", shape=(net.node.units,))
    index = rng.integers(-1, net.node.units, (40,))
    net.add("route", {"index": index}, kind="index", shape=(40,))
    net.add("linear", {"weight": rng.integers(-127, 128, (10, 40))})
    return net.graph()


def scaled(graph: Graph, rng: np.random.Generator) -> Graph:
    """The graph with an input scale and offset per polarity, so that no event is not level 0."""
    b = graph.inputs[0]
    polarities = graph.node[b.node].shape[0]
    scale = rng.uniform(0.4, 2.5, (polarities, 1, 1)).astype(np.float32)
    offset = rng.uniform(-4, 1, (polarities, 1, 1)).astype(np.float32)
    ends = Boundary(b.name, b.node, b.dtype, b.dims, scale, offset)
    return Graph(graph.nodes, (ends,), graph.outputs)


def random_events(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> Any:
    """Events around one place, as a moving edge gives them."""
    events = np.zeros(count, EVENT)
    _, height, width = shape
    events["t"] = np.sort(rng.integers(0, 10_000, count))
    at = rng.random(2)
    for field, size, centre in (("x", width, at[0]), ("y", height, at[1])):
        where = rng.normal(centre * size, 1 + size / 6, count)
        events[field] = np.clip(where, 0, size - 1).astype(np.int16)
    events["p"] = rng.integers(0, 2, count)
    return events


def by_time(events: Any) -> Any:
    return events[np.argsort(events["t"], kind="stable")]


def accumulated(graph: Graph, events: Any) -> dict[str, Any]:
    """What the window holds, counted anew."""
    b = graph.inputs[0]
    x = np.zeros(graph.node[b.node].shape)
    p = events["p"] if len(x) == 2 else 0 * events["p"]
    np.add.at(x, (p, events["y"], events["x"]), 1)
    return {b.name: x.astype(np.float32)[None]}


class Oracle:
    """The dense reading, and which neurons were ever seen to fire."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.moved = {n.name: False for n in graph.of("spike")}
        self.last: dict[str, Any] = {}

    def equal(self, stream: Stream, x: Mapping[str, Any], what: str = "") -> None:
        values = dense(self.graph, input_counts(self.graph, dict(x)))
        readouts = finish(self.graph, {b.node: values[b.node] for b in self.graph.outputs})
        found = stream.readout()
        assert list(found) == list(readouts)
        for name, expected in readouts.items():
            assert found[name].dtype == expected.dtype
            np.testing.assert_array_equal(found[name], expected, err_msg=f"{name} {what}")
        counts = stream.counts(("spike",))
        for name in self.moved:
            np.testing.assert_array_equal(counts[name], values[name], err_msg=f"{name} {what}")
            self.moved[name] |= bool(values[name].any())

    def fired(self) -> None:
        silent = [name for name, moved in self.moved.items() if not moved]
        assert not silent, f"silent: {silent}"


def stream_on(graph: Graph, path: str, update: str = "auto") -> Stream:
    return backend().compile(graph, path).stream(update)


def covered(program: NumbaProgram) -> bool:
    return program.stream().path != "recompute"


def drive(graph: Graph, streams: Mapping[str, Stream], rng: np.random.Generator) -> None:
    """Packets of all sizes into all streams, then out again until the window is empty."""
    shape = graph.node[graph.inputs[0].node].shape
    window = np.zeros(0, EVENT)
    oracle, first = Oracle(graph), {}
    for name, stream in streams.items():
        oracle.equal(stream, accumulated(graph, window), f"{name} at rest")
        first[name] = stream.counts(("all",))
    for packet, size in enumerate((1, 1, 40, 7, 0, 900, 2, 3, 30)):
        entering = random_events(rng, shape, size)
        if packet == 6:
            entering = np.repeat(entering, 300)  # beyond the range of the input
        out = rng.random(len(window)) < rng.choice([0, 0.1, 0.9])
        leaving, window = by_time(window[out]), np.concatenate([window[~out], entering])
        for name, stream in streams.items():
            stream.push(entering, leaving)
            oracle.equal(stream, accumulated(graph, window), f"{name}, packet {packet}")
    for stream in streams.values():
        stream.push(leaving=by_time(window))
    oracle.fired()
    for name, stream in streams.items():
        oracle.equal(stream, accumulated(graph, window[:0]), f"{name}, emptied")
        for node, counts in stream.counts(("all",)).items():
            np.testing.assert_array_equal(counts, first[name][node])
        assert stream.packets == 10


@pytest.mark.parametrize("seed", range(30))
def test_events_on_every_path_and_update(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = event_network(seed)
    graph = scaled(graph, rng) if seed % 3 == 2 else graph
    streams: dict[str, Stream] = {"reference": snnkit.compile(graph, "reference").stream()}
    if seed > 3:  # the reference settles in plain numpy, which takes long
        streams.clear()
    for path in PATHS:
        program = backend().compile(graph, path)
        for update in UPDATES:
            if update != "incremental" or covered(program):
                streams[f"{path} {update}"] = program.stream(update)
    drive(graph, streams, rng)


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("seed", range(24))
def test_branches_pools_and_ladders(seed: int, path: str) -> None:
    graph = residual_network(seed)
    program = backend().compile(graph, path)
    assert program.stream_plan is not None and not program.stream_plan.problems
    drive(graph, {path: program.stream("incremental")}, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(60))
def test_frames_through_the_corpus(seed: int) -> None:
    """Every op, one or two inputs; what has no incremental kernels says so and recomputes."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    x = samples(graph, rng, 5)
    frames = [{k: v[i] for k, v in x.items()} for i in range(5)]
    near = {k: v.copy() for k, v in frames[4].items()}
    for v in near.values():
        v.reshape(-1)[rng.integers(0, v.size, 2)] += 1
    frames += [near, frames[4], {k: 0 * v for k, v in near.items()}]
    for path in PATHS:
        program = backend().compile(graph, path)
        updates = UPDATES if covered(program) else ("auto", "recompute")
        for update in updates:
            stream, oracle = program.stream(update), Oracle(graph)
            assert bool(stream.why_recompute) == (stream.path == "recompute")
            for i, frame in enumerate(frames):
                stream.push(frame=frame)
                one = {k: v[None] for k, v in frame.items()}
                oracle.equal(stream, one, f"{path} {update}, frame {i}")
            oracle.fired()


def test_frames_of_random_networks() -> None:
    for seed in range(12):
        net = random_network(seed)
        graph, data = net.graph(), net.data()
        for path in PATHS:
            stream, oracle = stream_on(graph, path), Oracle(graph)
            for x in (*data, data[0]):
                stream.push(frame=x)
                oracle.equal(stream, {"X": x[None]}, f"seed {seed}, {path}")
            stream.reset()
            oracle.equal(stream, {"X": 0 * data[:1]}, f"seed {seed}, {path}, reset")


def one_pixel(path: str, scale: float = 1, **ends: Any) -> Stream:
    """The quantised input, copied to the output. ends : types of input x and output y."""
    x = make_node("x", "input", attrs={"shape": (2, 3, 4), "lo": 0, "hi": 255})
    params = {"init": np.int32(0), "theta": np.int32(1)}
    s = make_node("s", "spike", [x], params, {"kind": "uniform", "lo": 0, "hi": 255})
    y = make_node("y", "readout", [s], {"bias": np.int32(0)})
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    scales = {"x": one * np.float32(scale), "y": one}
    nodes = [
        Boundary(n.name, n.name, ends.get(n.name, "float32"), ("n", *n.shape), scales[n.name], zero)
        for n in (x, y)
    ]
    return stream_on(Graph((x, s, y), (nodes[0],), (nodes[1],)), path)


def events_at(*rows: tuple[int, int, int, int], dtype: Any = EVENT) -> Any:
    return np.array(list(rows), dtype)


@pytest.mark.parametrize("path", PATHS)
def test_counts_are_wide_and_types_saturate(path: str) -> None:
    for dtype in ("float32", "float64", "uint8", "float16"):
        stream = one_pixel(path, x=dtype)
        many = np.repeat(events_at((5, 3, 2, 1)), 100_000)
        stream.push(many)
        assert stream.readout()["y"][0, 1, 2, 3] == 255
        stream.push(leaving=many[:99_990])
        assert stream.readout()["y"][0, 1, 2, 3] == 10
        stream.push(leaving=many[:10])
        assert not stream.readout()["y"].any()
    for dtype, top in (("uint8", 64), ("int8", 32), ("float32", 255)):
        stream = one_pixel(path, 4, x=dtype)
        stream.push(many)
        assert stream.readout()["y"].max() == top, "255, 127 or all of the counts, over 4"


@pytest.mark.parametrize("path", PATHS)
def test_fields_go_by_name_and_of_any_integer_type(path: str) -> None:
    for kinds in (("u4", "i8", "u1", "?"), ("i8", "i2", "i2", "i1"), (">u4", ">i2", "u8", "u2")):
        t, x, y, p = kinds
        dtype = np.dtype([("p", p), ("noise", "f8"), ("y", y), ("t", t), ("x", x)])
        stream = one_pixel(path)
        events = np.zeros(3, dtype)
        events["t"], events["x"], events["y"], events["p"] = [1, 1, 4], [0, 3, 3], [2, 1, 1], 1
        events["p"][0] = 0
        stream.push(events[::2])
        stream.push(events[1:2])
        expected = np.zeros((2, 3, 4))
        expected[0, 2, 0], expected[1, 1, 3] = 1, 2
        np.testing.assert_array_equal(stream.readout()["y"][0], expected)


BAD = {
    "x of event 1 is 4": events_at((0, 1, 0, 0), (0, 4, 0, 0)),
    "x of event 0 is -1": events_at((0, -1, 0, 0)),
    "y of event 2 is 3": events_at((0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 3, 0)),
    "p of event 0 is 2": events_at((0, 0, 0, 2)),
    "t of event 1 is 4; expected at least 5": events_at((5, 0, 0, 0), (4, 0, 0, 0)),
    "no field p": np.zeros(2, [("t", "i8"), ("x", "i2"), ("y", "i2")]),
    "field x has type float32": np.zeros(2, [("t", "i8"), ("x", "f4"), ("y", "i2"), ("p", "u1")]),
    "expected a one-dimensional structured array": np.zeros((2, 4), np.int64),
    "list; expected a one-dimensional": [(0, 0, 0, 0)],
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("text", BAD)
def test_bad_events_are_named_and_change_nothing(path: str, text: str) -> None:
    stream = one_pixel(path)
    good = events_at((0, 1, 1, 0), (0, 2, 1, 1))
    stream.push(good)
    before = stream.readout()["y"].copy()
    for which in ("events", "leaving"):
        with pytest.raises(BadEvents) as caught:
            stream.push(**{"events": good[:1], which: BAD[text]})
        message = str(caught.value)
        assert message.startswith(f"{which}:") and text in message.replace("'", "")
        np.testing.assert_array_equal(stream.readout()["y"], before)
    stream.push(leaving=good)
    assert not stream.readout()["y"].any()


@pytest.mark.parametrize("path", PATHS)
def test_no_event_leaves_that_did_not_enter(path: str) -> None:
    stream = one_pixel(path)
    stream.push(events_at((0, 1, 1, 0), (0, 1, 1, 0), (0, 2, 1, 1)))
    leaving = events_at((0, 2, 1, 1), (1, 1, 1, 0), (2, 1, 1, 0), (3, 1, 1, 0), (4, 1, 1, 0))
    message = "leaving: event 4 leaves x=1, y=1, p=0, where the window holds 3 events"
    with pytest.raises(BadEvents, match=message):
        stream.push(events_at((0, 1, 1, 0)), leaving)
    stream.push(events_at((0, 1, 1, 0)), leaving[:4])
    assert not stream.readout()["y"].any()


@pytest.mark.parametrize("path", PATHS)
def test_frames_and_events_do_not_mix(path: str) -> None:
    stream = one_pixel(path)
    frame, events = np.ones((2, 3, 4), np.float32), events_at((0, 1, 1, 0))
    stream.push(frame=frame)
    for bad, kind in (
        ({"events": events}, UsageError),
        ({"events": events, "frame": frame}, UsageError),
        ({"frame": frame[None]}, UsageError),
        ({"frame": frame * np.nan}, BadCalibration),
        ({"frame": {"z": frame}}, SnnkitError),
    ):
        with pytest.raises(kind):
            stream.push(**bad)
        np.testing.assert_array_equal(stream.readout()["y"][0], frame)
    stream.reset()
    assert not stream.readout()["y"].any()
    stream.push(events)
    with pytest.raises(UsageError, match=r"call reset\(\) first"):
        stream.push(frame=frame)
    assert stream.readout()["y"].sum() == 1


def test_events_into_an_input_without_places() -> None:
    net = random_network(3)
    while len(net.nodes[0].shape) == 3 and net.nodes[0].shape[0] < 3:
        net = random_network(int(net.rng.integers(4, 1000)))
    with pytest.raises(UsageError, match="push frames instead"):
        stream_on(net.graph(), "generic").push(events_at((0, 0, 0, 0)))


def test_unknown_update() -> None:
    for name in ("numba", "reference"):
        program = snnkit.compile(event_network(0), name)
        with pytest.raises(UsageError, match="expected one of auto, incremental, recompute"):
            program.stream("sometimes")


def test_command(tmp_path, capsys) -> None:
    graph = event_network(2)
    snnkit.save(graph, tmp_path / "net.onnx")
    events = random_events(np.random.default_rng(0), graph.nodes[0].shape, 400)
    np.save(tmp_path / "events.npy", events)
    command = ["stream", str(tmp_path / "net.onnx"), str(tmp_path / "events.npy")]
    command += ["--window", "3000", "--every", "500"]
    assert main(command) == 0
    assert "% incremental" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = []
    for packet in range(found["packets"]):
        end = events["t"][0] + (packet + 1) * 500
        inside = events[(events["t"] >= end - 3000) & (events["t"] < end)]
        values = dense(graph, input_counts(graph, accumulated(graph, inside)))
        expected.append(int(values[graph.outputs[0].node].argmax()))
    assert found["each"]["classes"] == expected
    assert found["packets"] == len(expected) > 15 and found["events_per_second"] > 0
    assert main([*command[:-1], "0"]) == 2
    np.save(tmp_path / "events.npy", np.zeros(3))
    assert main([*command, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"] == "BadEvents"


def covered_network() -> tuple[Graph, NumbaProgram]:
    graph = event_network(1)
    program = backend().compile(graph)
    if not covered(program):
        pytest.skip("this CPU has no vector instructions that streams use")
    return graph, program


def test_large_packets_are_computed_anew_and_the_state_catches_up() -> None:
    graph, program = covered_network()
    rng, shape = np.random.default_rng(5), graph.nodes[0].shape
    stream, oracle = program.stream(), Oracle(graph)
    assert isinstance(stream, VectorStream)
    stream.learns, stream.limit = False, 5
    window = np.zeros(0, EVENT)
    recomputed = []
    for size in (3, 500, 2, 2, 2, 2, 500, 2, 500, 2, 2, 2, 4):
        events = random_events(rng, shape, size)
        window = np.concatenate([window, events])
        stream.push(events)
        values = dense(graph, input_counts(graph, accumulated(graph, window)))
        np.testing.assert_array_equal(
            stream.readout()[graph.outputs[0].name][0], values[graph.outputs[0].node][0]
        )
        recomputed.append(stream.recomputed)
    # the third small packet in a row catches up
    assert recomputed == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 8, 8]
    oracle.equal(stream, accumulated(graph, window))
    events = random_events(rng, shape, 500)
    stream.push(events)
    oracle.equal(stream, accumulated(graph, np.concatenate([window, events])), "left behind")
    stream.push(random_events(rng, shape, 500))
    stream.reset()
    oracle.equal(stream, accumulated(graph, window[:0]), "reset with a recompute pending")
    assert stream.recomputed == stream.packets == 0
    stream.push(events)
    stream.reset()
    stream.push(events[:1])
    assert stream.table[fields.H_PENDING] == 1, "sites from before the reset"


def test_the_limit_is_where_both_ways_cost_the_same() -> None:
    _, program = covered_network()
    stream = program.stream()
    assert isinstance(stream, VectorStream)
    stream.sites = 10**6
    for pace, anew in ((1e-6, 100e-6), (3e-6, 100e-6), (1e-6, 1e-3)):
        stream.pace, stream.seconds_anew = pace, anew
        stream._balance()
        assert pace * stream.limit**GROWTH <= anew < pace * (stream.limit + 1) ** GROWTH
    for _ in range(200):
        stream._learn_anew(2e-3)
    assert abs(stream.seconds_anew / 2e-3 - 1) < 0.01
    before = stream.seconds_anew
    stream._learn_anew(1.0)
    assert stream.seconds_anew < 1.2 * before, "one slow run carries the mean away"


@pytest.mark.parametrize("update", UPDATES)
def test_a_burst_of_a_million_events(update: str) -> None:
    graph, program = covered_network()
    events = random_events(np.random.default_rng(6), graph.nodes[0].shape, 10**6)
    stream, oracle = program.stream(update), Oracle(graph)
    stream.push(events)
    oracle.equal(stream, accumulated(graph, events))
    stream.push(leaving=events)
    oracle.equal(stream, accumulated(graph, events[:0]))
    assert stream.recomputed == {"incremental": 0, "recompute": 2}.get(update, stream.recomputed)


def test_streams_of_one_program_are_independent() -> None:
    graph, program = covered_network()
    rng, oracle = np.random.default_rng(7), Oracle(graph)
    streams = [program.stream() for _ in range(3)]
    packets = [random_events(rng, graph.nodes[0].shape, 50) for _ in streams]
    for stream, events in zip(streams, packets, strict=True):
        stream.push(events[:25])
    for stream, events in zip(streams, packets, strict=True):
        stream.push(events[25:])
    for stream, events in zip(streams, packets, strict=True):
        oracle.equal(stream, accumulated(graph, events))


def test_a_stream_says_what_keeps_it_from_updating() -> None:
    """A layer that reads a sum as bytes has no incremental kernel."""
    window = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}
    x = make_node("x", "input", attrs={"shape": (2, 4, 4), "lo": 0, "hi": 255})
    s = make_node("s", "spike", [x], {"init": 0, "theta": 1}, {"kind": "uniform", "lo": 0, "hi": 9})
    pooled = make_node("pooled", "sum_pool", [s], attrs={"kernel": (2, 2), **window})
    weight = {"weight": np.ones((1, 2, 1, 1), np.int64)}
    c = make_node("c", "conv", [pooled], weight, {"group": 1, **window})
    y = make_node("y", "readout", [c], {"bias": np.int32(0)})
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    ends = [Boundary(n.name, n.name, "float32", ("n", *n.shape), one, zero) for n in (x, y)]
    program = backend().compile(Graph((x, s, pooled, c, y), (ends[0],), (ends[1],)))
    stream = program.stream()
    assert stream.path == "recompute" and stream.why_recompute
    if program.isa is not None:
        assert [node for node, _ in stream.why_recompute] == ["c", "y"]
        with pytest.raises(UsageError, match="'incremental' is not possible: node 'c'"):
            program.stream("incremental")
    stream.push(events_at((0, 1, 1, 1), (0, 3, 3, 0)))
    assert stream.readout()["y"].sum() == 5 and stream.recomputed == 1

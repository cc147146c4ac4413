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

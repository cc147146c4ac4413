"""Shared threads: every part once, never too many at work, errors come back, little memory."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
import snnkit
from snnkit.backends.numba_cpu import backend, workers
from tests.corpus import random_graph, samples
from tests.test_numba_fast import HERE, Network


@pytest.mark.parametrize("many", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("most", [1, 3, 10**6])
def test_chunks_are_all_samples_once(many: int, threads: int, most: int) -> None:
    parts = workers.chunks(many, threads, most)
    assert [i for p in parts for i in range(many)[p]] == list(range(many))
    assert all(0 < p.stop - p.start <= most for p in parts)
    assert len(parts) >= min(many, threads)


def test_useful_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cpus", lambda: 4)
    assert workers.useful(9, 100) == 4
    assert workers.useful(3, 2) == 2
    assert workers.useful(3, 100, work_bytes=2**20, limit=2**21) == 2
    assert workers.useful(3, 100, work_bytes=2**40) == 1
    assert workers.useful(0, 100) == 1


def test_spread_does_every_part_once_with_no_more_threads() -> None:
    lock, done, now, most = threading.Lock(), [], set(), 0

    def work(part: slice) -> None:
        nonlocal most
        with lock:
            now.add(threading.get_ident())
            most = max(most, len(now))
        time.sleep(0.001)
        # a run that a worker starts stays in its thread
        assert workers.useful(8, 100) == 1
        with lock:
            now.discard(threading.get_ident())
            done.append(part.start)

    parts = workers.chunks(50, 3, 1)
    workers.spread(parts, 3, work)
    assert sorted(done) == list(range(50)) and most <= 3
    assert workers.useful(2, 100) == min(2, workers.cpus())
    before = threading.active_count()
    for _ in range(5):
        workers.spread(parts, 3, work)
    assert threading.active_count() == before  # the threads are used again


def test_the_first_error_comes_back_and_stops_the_rest() -> None:
    done = []

    def work(part: slice) -> None:
        if part.start == 3:
            raise ValueError("part 3")
        time.sleep(0.002)
        done.append(part.start)

    with pytest.raises(ValueError, match="part 3"):
        workers.spread(workers.chunks(400, 2, 1), 2, work)
    assert len(done) < 100
    workers.spread([slice(0, 1)], 2, lambda part: None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_threads_of_its_own() -> None:
    workers.spread(workers.chunks(4, 2, 1), 2, lambda part: None)
    child = os.fork()
    if child == 0:
        both = threading.Barrier(2, timeout=20)
        try:
            workers.spread(workers.chunks(2, 2, 1), 2, lambda part: both.wait() and None)
        except threading.BrokenBarrierError:
            os._exit(1)  # one thread did everything
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("path", [*HERE, "generic"])
def test_runs_inside_and_beside_runs(path: str) -> None:
    """Many threads of the user's, each asking for many: all results are the same."""
    rng = np.random.default_rng(3)
    graph = random_graph(rng)
    x = samples(graph, rng, 40)
    program = backend().compile(graph, path)
    expected = program.run(x, record=("all",), threads=1)
    found: list[Any] = []
    users = [
        threading.Thread(target=lambda: found.append(program.run(x, record=("all",), threads=8)))
        for _ in range(6)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(found) == 6
    for result in found:
        for name, counts in expected.counts.items():
            np.testing.assert_array_equal(result.counts[name], counts)


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_of_a_large_batch(path: str, threads: int) -> None:
    """Outputs and a work area per thread, whatever the batch; with records, the records."""
    net = Network(np.random.default_rng(0), (1, 8, 10), 0, 255)
    net.conv(16, 3, 1)
    net.spike()
    graph = net.graph()
    program = backend().compile(graph, path)
    assert program.memory["weights"] >= sum(n.params["weight"].size for n in graph.of("conv"))
    assert program.memory["sample"] >= sum(n.units for n in graph.of("input", "spike"))
    x = np.ascontiguousarray(np.resize(net.data(), (3000, *graph.node["x"].shape)), np.float32)
    program.infer(x[:2])
    room = threads * (2 * program.memory["sample"] + 2**20)
    for record in ((), ("spike",)):
        tracemalloc.start()
        try:
            if record:
                result = program.run(x, record=record, threads=threads)
                kept = sum(a.nbytes for a in (*result.counts.values(), *result.outputs.values()))
                kept += 16 * len(x) * len(graph.nodes)
                room += threads * 2**23
            else:
                kept = sum(a.nbytes for a in program.infer(x, threads=threads).values())
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1.1 * kept + room


def test_program_memory_of_the_general_engine() -> None:
    graph = random_graph(np.random.default_rng(3))
    memory = snnkit.backends.get("numba").compile(graph, "generic").memory  # type: ignore[call-arg]
    assert memory["sample"] >= 4 * sum(n.units for n in graph.nodes)

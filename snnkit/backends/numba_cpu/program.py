"""Runs samples through the engine: chunks of them, each chunk in one thread."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends import MODES, Result, Schedule, Stream, finish, recorded
from snnkit.backends.numba_cpu import kernels as k
from snnkit.backends.numba_cpu.fast import GENERIC, FastEngine, choose
from snnkit.backends.numba_cpu.layout import KINDS, Layout, flatten, state_sizes
from snnkit.backends.numba_cpu.stream import StreamPlan, VectorStream
from snnkit.backends.streaming import RecomputeStream, check_update
from snnkit.boundary import as_inputs, quantise
from snnkit.errors import SnnkitError, UsageError
from snnkit.graph import Graph
from snnkit.reference import spike_levels

Array = npt.NDArray[Any]

CHUNK = 64
"""Most samples of one call into the engine."""
CHUNK_UNITS = 2**22
"""Most units of inputs and recorded nodes that one call holds, over its samples."""
STATE_LIMIT = 2**31
"""Places in the state are 32-bit indices."""


class NumbaProgram:
    """A graph made ready. Any number of threads may call `run` and `infer`.

    path : what mode settle runs on: "avx512", "avx2", or "generic", the engine of all other modes.
    why_generic : (node, reason) for every node that keeps the graph from the vector kernels.
    """

    def __init__(self, graph: Graph, path: str | None = None):
        """path : as the environment variable SNNKIT_CPU_PATH: auto, avx512, avx2 or generic."""
        self.graph = graph
        self.levels = spike_levels(graph)
        self._idle: SimpleQueue[k.Work] = SimpleQueue()
        self.why_generic: tuple[tuple[str, str], ...] = ()
        self.isa = choose(path)
        fast = None if self.isa is None else FastEngine(graph, self.isa)
        if fast is not None and fast.problems:
            self.why_generic, fast = tuple(fast.problems), None
        self.fast = fast
        self.path = GENERIC if fast is None else fast.isa.name
        if fast is None:
            # compile (or load from the cache) now, so that no run's time contains it
            empty = {b.name: np.zeros((0, *graph.node[b.node].shape)) for b in graph.inputs}
            _Run(self, Schedule(), empty, (), 0).chunk(slice(0, 0))

    @cached_property
    def layout(self) -> Layout:
        """What the general engine runs; the vector kernels do without."""
        return flatten(self.graph)

    def infer(self, x: Any, threads: int = 1) -> Mapping[str, Array]:
        """Outputs by name, nothing else: the least time from floats to floats.

        Mode settle without counts and tallies. Float32 arrays in C order are read where they lie
        and are not looked at for NaN.
        """
        if self.fast is None:
            return self.run(x, threads=threads).outputs
        return self.fast.infer(x, threads)

    def run(
        self,
        x: Any,
        *,
        mode: str = "settle",
        record: Sequence[str] = (),
        seed: int = 0,
        delay: int = 1,
        phase: int = 0,
        threads: int | None = None,
    ) -> Result:
        """As `snnkit.backends.Program.run`, on `threads` threads (default: one per CPU).

        Result.seconds is the time from checked inputs to integers, quantisation included. Mode
        fuzz draws the same random schedule for every sample, from `seed`.
        """
        schedule = Schedule(mode, seed, delay, phase)
        names = recorded(self.graph, record)
        if threads is not None and threads < 1:
            raise UsageError(f"threads {threads}; expected at least 1")
        inputs = as_inputs(self.graph, x)
        samples = len(next(iter(inputs.values())))
        if self.fast is not None and schedule.mode == "settle":
            return self.fast.result(inputs, names, threads or os.cpu_count() or 1)
        start = time.perf_counter()
        run = _Run(self, schedule, inputs, names, samples)
        run.all(threads or os.cpu_count() or 1)
        seconds = time.perf_counter() - start
        if (run.steps < 0).any():
            raise SnnkitError(f"not quiescent after {k.STEP_LIMIT} steps")
        index = self.layout.index
        return Result(
            outputs=finish(self.graph, run.counts),
            counts={name: run.counts[name] for name in names},
            spikes={n.name: run.tally[:, index[n.name], :2] for n in self.graph.of("spike")},
            synops={
                n.name: run.tally[:, index[n.name], k.SYNOPS]
                for n in self.graph.of("conv", "linear")
            },
            steps=run.steps,
            seconds=seconds,
            backend="numba",
            digest=self.graph.digest,
        )

    def stream(self, update: str = "auto") -> Stream:
        """As `snnkit.backends.Program.stream`."""
        check_update(update)
        if self.stream_plan is not None and not self.stream_plan.problems:
            return VectorStream(self, self.stream_plan, update)
        why = [("", "path generic has no incremental kernels")]
        if self.stream_plan is not None:
            why = self.stream_plan.problems
        if update == "incremental":
            text = "; ".join(f"node '{node}': {reason}" for node, reason in why)
            raise UsageError(f"update 'incremental' is not possible: {text}")
        return RecomputeStream(self, why)

    @cached_property
    def stream_plan(self) -> StreamPlan | None:
        """What all streams of this program share; None without vector instructions."""
        return None if self.isa is None else StreamPlan(self.graph, self.isa)

    @contextmanager
    def work(self) -> Iterator[k.Work]:
        """A work area for the time of one chunk: an idle one or, if there is none, a new one. So
        there are as many as threads ever ran at once."""
        try:
            work = self._idle.get_nowait()
        except Empty:
            work = self._new_work()
        yield work
        self._idle.put(work)

    def _new_work(self) -> k.Work:
        net = self.layout.net
        nodes = len(net.nodes)
        return k.Work(
            np.zeros(net.rest.size, np.int32),
            np.zeros(nodes, np.uint8),
            np.zeros((nodes, 3), np.int64),
            np.zeros(1, np.int64),
            np.ones(1, np.uint64),
        )


class _Run:
    """One run: its arguments, and its results, which chunks of samples write side by side."""

    def __init__(
        self,
        program: NumbaProgram,
        schedule: Schedule,
        inputs: Mapping[str, Array],
        record: Sequence[str],
        samples: int,
    ):
        self.program, self.inputs, self.samples = program, inputs, samples
        graph = program.graph
        last = schedule.phase * max(program.levels.values(), default=0)
        mode = MODES.index(schedule.mode)
        seed = schedule.seed % 2**63
        self.how = np.array([mode, seed, schedule.delay, schedule.phase, last], np.int64)
        names = dict.fromkeys((*record, *(b.node for b in graph.outputs)))
        self.kept = [graph.node[name] for name in names]
        self.counts = {n.name: np.zeros((samples, *n.shape), np.int64) for n in self.kept}
        self.tally = np.zeros((samples, len(graph.nodes), 3), np.int64)
        self.steps = np.zeros(samples, np.int64)

    def all(self, threads: int) -> None:
        size = self._chunk_size(threads)
        chunks = [slice(i, min(i + size, self.samples)) for i in range(0, self.samples, size)]
        if min(threads, len(chunks)) == 1:
            for chunk in chunks:
                self.chunk(chunk)
            return
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(self.chunk, chunks):
                pass

    def _chunk_size(self, threads: int) -> int:
        graph = self.program.graph
        units = sum(n.units for n in (*graph.of("input"), *self.kept))
        return max(1, min(CHUNK, -(-self.samples // threads), CHUNK_UNITS // units))

    def chunk(self, chunk: slice) -> None:
        """Quantise, run and store the samples of one chunk."""
        graph, layout = self.program.graph, self.program.layout
        blocks = {}
        for b in graph.inputs:
            node = graph.node[b.node]
            counts = quantise(b, node, self.inputs[b.name][chunk])
            blocks[b.node] = layout.to_block(node, counts.astype(np.int32))
        rows = [blocks[n.name] for n in graph.of("input")]
        # the compiled engine takes arrays in C order only
        x = np.ascontiguousarray(np.concatenate(rows, axis=1))
        keep = np.array([layout.index[n.name] for n in self.kept], np.int64)
        kept = np.zeros((len(x), sum(n.units for n in self.kept)), np.int32)
        tally, steps = self.tally[chunk], self.steps[chunk]
        with self.program.work() as work:
            k.run_samples(layout.net, work, self.how, x, keep, kept, tally, steps)
        at = 0
        for n in self.kept:
            self.counts[n.name][chunk] = layout.from_block(n, kept[:, at : at + n.units])
            at += n.units


class NumbaBackend:
    """Event-driven execution on the CPU, in as many threads as there are CPUs."""

    name = "numba"

    def unsupported(self, graph: Graph) -> list[tuple[str, str]]:
        """Ops without a kernel, and a state too large for 32-bit indices."""
        found = [(n.name, f"op '{n.op}'") for n in graph.nodes if n.op not in KINDS]
        size = 0
        for node in graph.nodes:
            size += sum(state_sizes(node, graph))
            if size >= STATE_LIMIT:
                found.append((node.name, f"the state up to here has {size} units; at most 2^31"))
                break
        return found

    def compile(self, graph: Graph, path: str | None = None) -> NumbaProgram:
        graph.check()
        return NumbaProgram(graph, path)


def backend() -> NumbaBackend:
    return NumbaBackend()

"""The general engine: every op, every mode, one-shot and step graphs.

Chunks of samples run one thread each; within a chunk the sweeps run one after the other, and the
compiled engine takes all steps of a sweep in one call. A one-shot graph is one sweep of one step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends import MODES, Result, Schedule, finish
from snnkit.backends.numba_cpu import kernels as k
from snnkit.backends.numba_cpu import workers
from snnkit.backends.numba_cpu.layout import flatten
from snnkit.boundary import at_last_step, quantise, take_samples
from snnkit.encodings import ENCODINGS
from snnkit.errors import SnnkitError
from snnkit.graph import Graph, Node
from snnkit.ops import TABLE
from snnkit.sequence import through_doors
from snnkit.sweeps import spike_levels

Array = npt.NDArray[Any]

CHUNK = 64
"""Most samples of one call into the engine."""
CHUNK_UNITS = 2**22
"""Most units of inputs and recorded nodes that one call holds, over its samples and steps."""


def compiled() -> Any:
    """`run_samples` past its dispatcher, which takes longer to look at the types of its arguments
    than a small network takes. They have to be the ones that it was compiled for: arrays in C
    order of the types that its docstring and `Net`, `Work` and `Latches` name."""
    return _entry_point() if k.run_samples.overloads else k.run_samples


@cache
def _entry_point() -> Any:
    return next(iter(k.run_samples.overloads.values())).entry_point


class Sweep:
    """One sweep made ready: its window as flat arrays, its latches, and idle work areas."""

    def __init__(self, graph: Graph, index: int):
        self.nodes, self.direction = graph.parts[index]
        self.window = graph.windows[index]
        self.latches = [n for n in self.nodes if n.op == "latch"]
        own = {n.name for n in self.latches}
        self.feeds = [n for n in self.window.of("input") if n.name not in own]
        given = {n.name for n in self.nodes if n.op == "input"}
        handed = {n.name for n in self.feeds} - given
        self.layout = flatten(self.window, own, handed)
        self.last_level = max(spike_levels(self.window).values(), default=0)
        rows, take, at = [], [np.zeros(0, np.int32)], 0
        for n in self.latches:
            rows.append((self.layout.index[n.name], at, at + n.units))
            take.append(self.layout.places(graph.node[graph.latches[n.name]], n))
            at += n.units
        self.held = k.Latches(
            np.array(rows, np.int64).reshape(-1, 3), np.concatenate(take).astype(np.int32)
        )
        elsewhere = {s for n in graph.nodes if graph.sweep_of[n.name] != index for s in n.inputs}
        self.read = [n for n in self.nodes if n.name in elsewhere and n.op != "input"]
        self._idle: SimpleQueue[k.Work] = SimpleQueue()

    @contextmanager
    def work(self) -> Iterator[k.Work]:
        """A work area for the time of one chunk: an idle one or, if there is none, a new one. So
        there are as many as threads ever ran at once."""
        try:
            work = self._idle.get_nowait()
        except Empty:
            work = self.new_work()
        yield work
        self._idle.put(work)

    def new_work(self) -> k.Work:
        net, given = self.layout.net, sum(n.units for n in self.feeds)
        nodes = len(net.nodes)
        return k.Work(
            np.zeros(net.rest.size, np.int32),
            np.zeros(nodes, np.uint8),
            np.zeros((nodes, 3), np.int64),
            np.zeros(1, np.int64),
            np.ones(1, np.uint64),
            np.zeros(net.membrane.size, np.int64),
            np.zeros(self.held.take.size, np.int32),
            np.zeros(given, np.int32),
            np.zeros(given, np.int32),
        )


class GeneralEngine:
    """A graph made ready. Any number of threads may call `run`."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.sweeps = [Sweep(graph, i) for i in range(len(graph.parts))]

    @property
    def weight_bytes(self) -> int:
        """Memory that all samples share."""
        nets = [s.layout.net for s in self.sweeps]
        return sum(n.nodes.nbytes + n.ints.nbytes + n.weights.nbytes + n.rest.nbytes for n in nets)

    @property
    def work_bytes(self) -> int:
        """Memory of one sample in flight."""
        return sum(s.layout.net.rest.nbytes + 8 * s.layout.net.membrane.size for s in self.sweeps)

    def compile(self) -> None:
        """Compile (or load from the cache) now, so that no run's time contains it."""
        steps = self.graph.steps or 1
        empty = {}
        for b in self.graph.inputs:
            lead = (0,) if b.time is None else (0, steps)
            empty[b.node] = np.zeros((*lead, *self.graph.node[b.node].shape), np.int64)
        _Run(self, Schedule(), {}, (), 0, steps, False).sweep_all(empty, slice(0, 0))

    def run(
        self,
        inputs: Mapping[str, Array],
        names: Sequence[str],
        schedule: Schedule,
        carry: bool,
        threads: int | None,
    ) -> Result:
        """As `snnkit.backends.Program.run`, for checked inputs in the model's layout."""
        graph = self.graph
        start = time.perf_counter()
        first = graph.inputs[0]
        samples = inputs[first.name].shape[first.batch]
        steps = graph.steps or next(
            (inputs[b.name].shape[b.time] for b in graph.inputs if b.time is not None), 1
        )
        lengths = inputs[graph.lengths].astype(np.int64) if graph.lengths else None
        run = _Run(self, schedule, inputs, names, samples, steps, carry, lengths)
        run.all(threads or os.cpu_count() or 1)
        seconds = time.perf_counter() - start
        if (run.steps < 0).any():
            raise SnnkitError(f"not quiescent after {k.STEP_LIMIT} steps")
        return Result(
            outputs=finish(graph, run.counts, lengths),
            counts={name: run.counts[name] for name in names},
            spikes={n.name: run.tally[n.name][:, :2] for n in graph.of("spike", "lif")},
            synops={n.name: run.tally[n.name][:, k.SYNOPS] for n in graph.of("conv", "linear")},
            steps=run.steps,
            seconds=seconds,
            backend="numba",
            digest=graph.digest,
        )


class _Run:
    """One run: its arguments, and its results, which chunks of samples write side by side."""

    def __init__(
        self,
        engine: GeneralEngine,
        schedule: Schedule,
        inputs: Mapping[str, Array],
        record: Sequence[str],
        samples: int,
        time_steps: int,
        carry: bool,
        lengths: Array | None = None,
    ):
        self.lengths = lengths
        self.engine, self.graph, self.inputs = engine, engine.graph, inputs
        self.schedule, self.carry = schedule, carry
        self.samples, self.time_steps = samples, time_steps
        graph = engine.graph
        self.kept = dict.fromkeys((*record, *(b.node for b in graph.outputs)))
        self.counts = {}
        for name in self.kept:
            lead = (samples, time_steps) if graph.direction(name) else (samples,)
            self.counts[name] = np.zeros((*lead, *graph.node[name].shape), np.int64)
        tallied = graph.of("spike", "lif", "conv", "linear")
        self.tally = {n.name: np.zeros((samples, 3), np.int64) for n in tallied}
        self.steps = np.zeros(samples, np.int64)

    def all(self, threads: int) -> None:
        threads = workers.useful(threads, self.samples, self.engine.work_bytes)
        workers.spread(workers.chunks(self.samples, threads, self._most()), threads, self.chunk)

    def _most(self) -> int:
        """Samples of one call."""
        held = 0
        for sweep in self.engine.sweeps:
            kept = [n for n in sweep.nodes if n.name in self.kept]
            units = sum(n.units for n in (*sweep.feeds, *sweep.read, *kept))
            held += units * (self.time_steps if sweep.direction else 1)
        return max(1, min(CHUNK, CHUNK_UNITS // max(1, held)))

    def chunk(self, chunk: slice) -> None:
        """Quantise, run and store the samples of one chunk."""
        values = {}
        for b in self.graph.inputs:
            x = take_samples(b, self.inputs[b.name], chunk)
            values[b.node] = quantise(b, self.graph.node[b.node], x)
        self.sweep_all(values, chunk)

    def sweep_all(self, values: dict[str, Array], chunk: slice) -> None:
        """Run all sweeps for the values of the input nodes, and store what they gave."""
        for name in self.kept:
            if name in values:
                self.counts[name][chunk] = values[name]
        for sweep in self.engine.sweeps:
            values.update(through_doors(sweep.nodes, values))
            keep = [n for n in sweep.nodes if n.name in self.kept and n.op != "input"]
            keep += [n for n in sweep.read if n.name not in self.kept]
            found = self._sweep(sweep, values, keep, chunk)
            values.update(found)
            for name in found:
                if name in self.kept:
                    self.counts[name][chunk] = found[name]

    def _sweep(
        self, sweep: Sweep, values: Mapping[str, Array], keep: Sequence[Node], chunk: slice
    ) -> dict[str, Array]:
        """Run one sweep for the samples of a chunk; the values of the nodes `keep`."""
        layout, how = sweep.layout, self._how(sweep)
        samples = len(self.steps[chunk])
        steps = self.time_steps if sweep.direction else 1
        x = np.zeros((samples, steps, sum(n.units for n in sweep.feeds)), np.int32)
        at = 0
        for n in sweep.feeds:
            x[:, :, at : at + n.units] = self._given(sweep, n, values[n.name], chunk)
            at += n.units
        first = np.zeros((samples, sweep.held.take.size), np.int32)
        for n, row in zip(sweep.latches, sweep.held.rows, strict=True):
            value = TABLE["latch"].dense(n, [values[s] for s in n.inputs])
            full = np.broadcast_to(value, (samples, *n.shape))
            first[:, row[1] : row[2]] = layout.to_block(n, full)
        rows = np.array([layout.index[n.name] for n in keep], np.int64)
        kept = np.zeros((samples, steps, sum(n.units for n in keep)), np.int32)
        tally = np.zeros((samples, len(layout.net.nodes), 3), np.int64)
        clock = np.full(samples, steps, np.int64)
        if self.lengths is not None and sweep.direction:
            clock[:] = self.lengths[chunk]
        with sweep.work() as work:
            held, settled = sweep.held, self.steps[chunk]
            call = compiled()
            call(layout.net, work, held, how, clock, x, first, rows, kept, tally, settled)
        for n in sweep.nodes:
            if n.name in self.tally:
                self.tally[n.name][chunk] = tally[:, layout.index[n.name]]
        found, at = {}, 0
        for n in keep:
            block = kept[:, :, at : at + n.units].reshape(samples * steps, n.units)
            lead = (samples, steps) if sweep.direction else (samples,)
            found[n.name] = layout.from_block(n, block).reshape(*lead, *n.shape)
            at += n.units
        return found

    def _how(self, sweep: Sweep) -> Array:
        s = self.schedule
        last = s.phase * sweep.last_level
        mode, seed = MODES.index(s.mode), s.seed % 2**62
        order = [mode, seed, s.delay, s.phase, last, sweep.direction, self.carry]
        return np.array([*order, 0, ENCODINGS.index(s.encoding), s.arrivals], np.int64)

    def _given(self, sweep: Sweep, node: Node, value: Array, chunk: slice) -> Array:
        """What the sweep sees of a node outside, as rows [N, T, units] (T 1: the same always)."""
        direction = self.graph.direction(node.name)
        if direction and not sweep.direction:
            lengths = None if self.lengths is None else self.lengths[chunk]
            value = at_last_step(direction, value, lengths)
            direction = 0
        steps = self.time_steps if direction else 1
        rows = value.reshape(len(value) * steps, *node.shape)
        return sweep.layout.to_block(node, rows).reshape(len(value), steps, node.units)

"""The fast path of a program: plans once, then runs batches in one compiled call per thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends import Result
from snnkit.backends.numba_cpu import workers
from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.area import Area, Net, address, placed
from snnkit.backends.numba_cpu.fast.build import Builder
from snnkit.backends.numba_cpu.fast.isa import Isa
from snnkit.backends.numba_cpu.fast.native import entry, table
from snnkit.boundary import as_inputs, dequantise
from snnkit.graph import Graph
from snnkit.ops import TABLE
from snnkit.ops.op import Ints

Array = npt.NDArray[Any]
F32 = np.dtype(np.float32)
COPIED_BYTES = 2**15
"""Inputs of one sample below this are copied to where compiled code reads them."""
HELD_BYTES = 2**22
"""Integers that one call into compiled code hands back."""


class FastEngine:
    """A planned graph. Any number of threads may call it; each gets a work area of its own."""

    def __init__(self, graph: Graph, isa: Isa):
        self.graph, self.isa = graph, isa
        self.plan = Builder(graph, isa)
        self.problems = self.plan.problems
        self._idle: deque[Area] = deque()
        if self.problems:
            return
        self.places = placed(list(self.plan.maps.values()), self.plan.charge_sizes)
        self.net, self.tapped, self.tallied = self._net()
        self.entry = entry(isa.name)
        self.inputs = [(b.name, graph.node[b.node].shape) for b in graph.inputs]
        self.input_bytes = [4 * graph.node[b.node].units for b in graph.inputs]
        self.small = sum(self.input_bytes) <= COPIED_BYTES
        nodes = [graph.node[b.node] for b in graph.outputs]
        self.outputs = [(b, n.units, n.shape) for b, n in zip(graph.outputs, nodes, strict=True)]
        self.plain = all(b.dtype == "float32" and not b.post for b in graph.outputs)
        scales = [np.broadcast_to(b.scale, shape).reshape(-1) for b, _, shape in self.outputs]
        self.scales = np.concatenate(scales).astype(F32)
        self.output_taps = np.array([self.tapped[n.name] for n in nodes], np.int64)

    @property
    def weight_bytes(self) -> int:
        """Memory that all samples share."""
        tables = self.net.steps.nbytes + self.net.taps.nbytes + self.net.tallies.nbytes
        return tables + sum(a.nbytes for a in self.plan.store.arrays)

    @property
    def work_bytes(self) -> int:
        """Memory of one sample in flight."""
        return self.places.size

    def _net(self) -> tuple[Net, dict[str, int], list[str]]:
        plan, rows = self.plan, []
        names = [*(n for n in plan.maps if isinstance(n, str)), *plan.readouts]
        for name in names:
            g = plan.geometry(self.graph.node[name])
            if name in plan.maps:
                places = plan.store.add(plan.maps[name].byte_places())
                rows.append([g.units.size, places, -1, 0, plan.maps[name].index])
            else:
                charge = plan.readouts[name]
                places = plan.store.add(g.charge_places())
                rows.append([g.units.size, places, charge, plan.charge_sizes[charge], 0])
        tallies, tallied = [], []
        for node in self.graph.of("spike"):
            tallied.append(node.name)
            tallies.append([plan.maps[node.name].index, 0, 0, 0, 0])
        for name, window in plan.windows.items():
            source = plan.source(window)
            by_word = np.zeros((source.columns, max(1, source.words)), np.int32)
            by_word[source.pads[1] :][: len(window.fan_columns)] = window.fan_columns[:, None]
            fans = (window.fan_rows, window.fan_columns, by_word)
            rows_, columns, words = (plan.store.add(a) for a in fans)
            tallied.append(name)
            tallies.append([source.index, rows_, columns, window.fan_width, words])
        steps = np.array(plan.steps, np.int64).reshape(-1, f.STEP)
        taps = np.array(rows, np.int64).reshape(-1, f.TAP)
        net = Net(steps, taps, np.array(tallies, np.int64).reshape(-1, f.TALLY))
        return net, {name: i for i, name in enumerate(names)}, tallied

    @contextmanager
    def _area(self) -> Iterator[Area]:
        """A work area that is idle or, if there is none, new."""
        area = self._taken()
        yield area
        self._idle.append(area)

    def _taken(self) -> Area:
        try:
            return self._idle.pop()
        except IndexError:
            outputs = self.output_taps, self.scales
            code = table(self.isa.name)
            return Area(
                self.net, self.places, code, self.entry, [s for _, s in self.inputs], outputs
            )

    def infer(self, x: Any, threads: int = 1) -> dict[str, Array]:
        """As `NumbaProgram.infer`."""
        held = self._floats(x)
        samples = len(held[0])
        if not self.plain:
            return self._counted(held, threads)
        if samples == 1 and self.small:
            area = self._taken()
            floats = area.single(held)
            self._idle.append(area)
        else:
            floats = self._batch(held, threads)
        if len(self.outputs) == 1:
            b, _, shape = self.outputs[0]
            return {b.name: floats.reshape(samples, *shape)}
        outputs, at = {}, 0
        for b, units, shape in self.outputs:
            outputs[b.name] = floats[:, at : at + units].reshape(samples, *shape)
            at += units
        return outputs

    def _batch(self, held: Sequence[Array], threads: int) -> Array:
        """Floats [N, units], written by compiled code."""
        samples = len(held[0])
        floats = np.empty((samples, len(self.scales)), F32)
        inputs = [(address(a), size) for a, size in zip(held, self.input_bytes, strict=True)]
        to = address(floats)

        def part(some: slice) -> None:
            with self._area() as area:
                area.floats(inputs, to, some.start, some.stop)

        if threads == 1:
            part(slice(0, samples))
        else:
            self._spread(samples, threads, 0, part)
        return floats

    def _floats(self, x: Any) -> list[Array]:
        """One array per input, float32 in C order, read where it lies if it is that already."""
        data = x if isinstance(x, dict) else {self.inputs[0][0]: x}
        held: list[Array] = []
        for name, shape in self.inputs:
            array = data.get(name)
            if not (type(array) is np.ndarray and array.dtype == F32 and array.flags.c_contiguous):
                array = np.ascontiguousarray(as_inputs(self.graph, data)[name], F32)
            same = not held or len(array) == len(held[0])
            empty = not len(array) or len(data) != len(self.inputs)
            if array.shape[1:] != shape or empty or not same:
                as_inputs(self.graph, data)  # raises, saying what is off
            held.append(array)
        return held

    def _spread(
        self, samples: int, threads: int, units: int, part: Callable[[slice], None]
    ) -> None:
        """All samples in parts that hold `units` integers each; never more threads than work areas
        fit in memory."""
        threads = workers.useful(threads, samples, self.work_bytes)
        most = max(1, HELD_BYTES // (4 * max(1, units)))
        workers.spread(workers.chunks(samples, threads, most), threads, part)

    def _counted(self, held: Sequence[Array], threads: int) -> dict[str, Array]:
        """Outputs behind further steps in float."""
        samples, units = len(held[0]), len(self.scales)
        outputs = self._room(samples)

        def part(some: slice) -> None:
            values = np.empty((some.stop - some.start, units), np.int32)
            with self._area() as area:
                area.integers([a[some] for a in held], self.output_taps, values, None)
            for name, value in self._finished(values).items():
                outputs[name][some] = value

        self._spread(samples, threads, units, part)
        return outputs

    def _room(self, samples: int) -> dict[str, Array]:
        """Outputs to be written to."""
        empty = self._finished(np.zeros((0, len(self.scales)), np.int32))
        return {name: np.empty((samples, *a.shape[1:]), a.dtype) for name, a in empty.items()}

    def _finished(self, values: Array) -> dict[str, Array]:
        """Float outputs of integers [N, units of all outputs and, perhaps, more]."""
        outputs, at = {}, 0
        for b, units, shape in self.outputs:
            counts: Any = values[:, at : at + units].reshape(len(values), *shape)
            outputs[b.name] = dequantise(b, counts)
            at += units
        return outputs

    def result(self, x: Mapping[str, Array], record: Sequence[str], threads: int) -> Result:
        """As `NumbaProgram.run` in mode settle."""
        graph, start = self.graph, time.perf_counter()
        asked = set(self._stored(record))
        held = list(dict.fromkeys([*(b.node for b in graph.outputs), *sorted(asked)]))
        samples = len(next(iter(x.values())))
        kept = np.array([self.tapped[name] for name in held], np.int64)
        ends = np.cumsum(self.net.taps[kept, f.K_UNITS])
        counts: dict[str, Ints] = {
            name: np.empty((samples, *graph.node[name].shape), np.int64) for name in asked
        }
        outputs = self._room(samples)
        tallies = np.zeros((samples, len(self.tallied), 2), np.int64)

        def part(some: slice) -> None:
            floats = [np.ascontiguousarray(x[b.name][some], F32) for b in graph.inputs]
            values = np.empty((len(floats[0]), int(ends[-1])), np.int32)
            with self._area() as area:
                area.integers(floats, kept, values, tallies[some])
            for name, own in zip(held, np.split(values, ends[:-1], axis=1), strict=True):
                if name in asked:
                    counts[name][some] = own.reshape(len(own), *graph.node[name].shape)
            for name, value in self._finished(values).items():
                outputs[name][some] = value

        self._spread(samples, threads, int(ends[-1]), part)
        seconds = time.perf_counter() - start
        tally = {name: tallies[:, i] for i, name in enumerate(self.tallied)}
        return Result(
            outputs=MappingProxyType(outputs),
            counts={name: self._behind(name, counts) for name in record},
            spikes={n.name: tally[n.name] for n in graph.of("spike")},
            synops={n.name: tally[n.name][:, 0] for n in graph.of("conv", "linear")},
            steps=np.zeros(samples, np.int64),
            seconds=seconds,
            backend="numba",
            digest=graph.digest,
        )

    def _stored(self, record: Sequence[str]) -> list[str]:
        """Nodes whose values have to be kept so that those of `record` follow from them."""
        found, todo = [], list(record)
        while todo:
            name = todo.pop()
            if name in self.tapped:
                found.append(name)
            else:
                todo += self.graph.node[name].inputs
        return found

    def _behind(self, name: str, known: dict[str, Ints]) -> Ints:
        """The value of a node; of one that the kernels never store (a charge that goes straight
        into a spike), by its own rule from what they stored."""
        if name not in known:
            node = self.graph.node[name]
            known[name] = TABLE[node.op].dense(node, [self._behind(n, known) for n in node.inputs])
        return known[name]

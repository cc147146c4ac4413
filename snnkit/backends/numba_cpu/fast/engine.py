"""The fast path of a program: plans once, then runs batches in one compiled call per thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends import Result, finish
from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.build import Builder
from snnkit.backends.numba_cpu.fast.emit_charges import TOGETHER, UNROLL
from snnkit.backends.numba_cpu.fast.isa import Isa
from snnkit.backends.numba_cpu.fast.kernels import Net, Work, addresses
from snnkit.backends.numba_cpu.fast.maps import BEHIND
from snnkit.backends.numba_cpu.fast.native import table
from snnkit.backends.numba_cpu.fast.pack import LINE, aligned
from snnkit.backends.numba_cpu.fast.steps import PLAIN, run_any, run_plain
from snnkit.boundary import as_inputs, dequantise
from snnkit.graph import Graph
from snnkit.ops import TABLE
from snnkit.ops.op import Ints

Array = npt.NDArray[Any]
F32 = np.dtype(np.float32)
NO_TALLIES = np.zeros((0, 0, 2), np.int64)
NO_FLOATS = np.zeros((0, 0), np.float32)


class FastEngine:
    """A planned graph. Any number of threads may call it; each gets a work area of its own."""

    def __init__(self, graph: Graph, isa: Isa):
        self.graph, self.isa = graph, isa
        self.plan = Builder(graph, isa)
        self.problems = self.plan.problems
        self._idle: SimpleQueue[tuple[Array, Any]] = SimpleQueue()
        if self.problems:
            return
        self.bytes = 0
        for made in self.plan.maps.values():
            self.bytes = made.place(self.bytes)
        self.charges = [0]
        for size in self.plan.charge_sizes:
            self.charges.append(self.charges[-1] + -(-4 * size // LINE) * LINE + LINE)
        self.net, self.tapped, self.tallied = self._net()
        kinds = {int(p[f.P_KIND]) for p in self.net.steps}
        self.batch = run_plain if kinds <= PLAIN else run_any
        self.inputs = [(b, graph.node[b.node].shape) for b in graph.inputs]
        nodes = [graph.node[b.node] for b in graph.outputs]
        self.outputs = [
            (b, n.units, n.shape, b.dtype == "float32" and not b.post)
            for b, n in zip(graph.outputs, nodes, strict=True)
        ]
        scales = [np.broadcast_to(b.scale, shape).reshape(-1) for b, _, shape, _ in self.outputs]
        self.scales = np.concatenate(scales).astype(F32)
        self.plain = all(plain for *_, plain in self.outputs)
        self.output_units = sum(n.units for n in nodes)
        self.output_taps = np.array([self.tapped[n.name] for n in nodes], np.int64)
        # compile (or load from the cache) now, so that no run's time contains it
        none = np.zeros((0, self.output_units), np.int32)
        self._call(np.zeros((1, 2), np.int64), self.output_taps, none)

    @property
    def work_bytes(self) -> int:
        """Memory of one sample in flight."""
        return self.bytes + self.charges[-1]

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
            tallies.append([plan.maps[node.name].index, 0, 0, 0])
        for name, window in plan.windows.items():
            fans = [plan.store.add(a) for a in (window.fan_rows, window.fan_columns)]
            tallied.append(name)
            tallies.append([plan.source(window).index, *fans, window.fan_width])
        steps = np.array(plan.steps, np.int64).reshape(-1, f.STEP)
        taps = np.array(rows, np.int64).reshape(-1, f.TAP)
        net = Net(steps, taps, np.array(tallies, np.int64).reshape(-1, f.TALLY))
        return net, {name: i for i, name in enumerate(names)}, tallied

    def _new_work(self) -> tuple[Array, Any]:
        """The table of addresses that the compiled call takes, and what keeps them alive."""
        area = aligned(self.work_bytes + LINE)
        base, maps = int(area.ctypes.data), []
        widest = 0
        for made in self.plan.maps.values():
            made.rest(area)
            row = np.array(made.row())
            row[: f.MAP_ADDRESSES] += base
            maps.append(row)
            widest = max(widest, made.columns)
        charges = np.array(self.charges[:-1], np.int64) + base + self.bytes
        steps = self.net.steps
        taps = steps[:, f.P_TAP_COUNT].max(initial=0)
        listed = (steps[:, f.P_TAP_COUNT] * steps[:, f.P_WORDS]).max(initial=0) + UNROLL
        listed = TOGETHER * int(listed) + 4 * BEHIND
        wide = (steps[:, f.P_WIDTH] + 8) * steps[:, f.P_CHANNELS]
        gathered = steps[:, f.P_KIND] == f.GATHER
        scratch = {
            f.A_SEGMENTS: 8 * (int(taps) + 1) * f.SEGMENT,
            f.A_SITES: 4 * (widest + 2 * BEHIND),
            f.A_BLOCKS: 4 * listed,
            f.A_PLACES: 4 * listed,
            f.A_ROW: 4 * int(wide[gathered].max(initial=0)),
        }
        held: dict[int, Array] = {}
        code, table_of_maps = table(self.isa.name), np.array(maps, np.int64).reshape(-1, f.MAP)
        arguments = np.zeros(f.ARGUMENTS, np.int64)
        for field, size in scratch.items():
            held[field] = aligned(size + 2 * LINE)
            # what lies before the first site is read where no site is touched
            arguments[field] = held[field].ctypes.data + LINE
        fixed = {f.A_CODE: code, f.A_MAPS: table_of_maps, f.A_CHARGES: charges}
        for field, array in fixed.items():
            arguments[field] = array.ctypes.data
        work = Work(code, table_of_maps, charges, arguments)
        return addresses(*self.net, *work), (area, work, held)

    def _call(
        self,
        job: Array,
        kept: Array,
        values: Array,
        tallies: Array = NO_TALLIES,
        floats: Array = NO_FLOATS,
    ) -> None:
        """Run some samples in a work area that is idle or, if there is none, new."""
        try:
            held = self._idle.get_nowait()
        except Empty:
            held = self._new_work()
        self.batch(held[0], job, kept, values, tallies, self.scales, floats)
        self._idle.put(held)

    def _spread(
        self,
        inputs: Sequence[Array],
        threads: int,
        kept: Array,
        values: Array,
        tallies: Array = NO_TALLIES,
        floats: Array = NO_FLOATS,
    ) -> None:
        """One part of the samples per thread; each thread holds one work area."""
        samples = len(inputs[0])
        rows = [(a.__array_interface__["data"][0], a.strides[0]) for a in inputs]
        if threads == 1 or samples == 1:
            self._call(np.array([(0, samples), *rows]), kept, values, tallies, floats)
            return
        size = -(-samples // threads)
        parts = [(i, min(i + size, samples)) for i in range(0, samples, size)]
        jobs = [np.array([part, *rows]) for part in parts]
        with ThreadPoolExecutor(len(parts)) as pool:
            for _ in pool.map(lambda job: self._call(job, kept, values, tallies, floats), jobs):
                pass

    def infer(self, x: Any, threads: int = 1) -> dict[str, Array]:
        """As `NumbaProgram.infer`."""
        data = x if isinstance(x, dict) else {self.graph.inputs[0].name: x}
        held: list[Array] = []
        for b, shape in self.inputs:
            array = data.get(b.name)
            if not (type(array) is np.ndarray and array.dtype == F32 and array.flags.c_contiguous):
                array = np.ascontiguousarray(as_inputs(self.graph, data)[b.name], F32)
            same = not held or len(array) == len(held[0])
            if array.shape[1:] != shape or len(data) != len(self.inputs) or not same:
                as_inputs(self.graph, data)  # raises, saying what is off
            held.append(array)
        samples = len(held[0])
        values = np.empty((samples, self.output_units), np.int32)
        floats = np.empty((samples, self.output_units), F32) if self.plain else NO_FLOATS
        self._spread(held, threads, self.output_taps, values, floats=floats)
        outputs, at = {}, 0
        for b, units, shape, _ in self.outputs:
            here = slice(at, at + units)
            if self.plain:
                outputs[b.name] = floats[:, here].reshape(samples, *shape)
            else:
                counts: Any = values[:, here].reshape(samples, *shape)
                outputs[b.name] = dequantise(b, counts)
            at += units
        return outputs

    def result(self, x: Mapping[str, Array], record: Sequence[str], threads: int) -> Result:
        """As `NumbaProgram.run` in mode settle."""
        graph, start = self.graph, time.perf_counter()
        readouts = [b.node for b in graph.outputs]
        held = list(dict.fromkeys([*readouts, *(self._stored(record) if record else ())]))
        floats = [np.ascontiguousarray(x[b.name], F32) for b in graph.inputs]
        samples = len(floats[0])
        kept = np.array([self.tapped[name] for name in held], np.int64)
        units = self.net.taps[kept, f.K_UNITS]
        values = np.empty((samples, int(units.sum())), np.int32)
        tallies = np.zeros((samples, len(self.tallied), 2), np.int64)
        self._spread(floats, threads, kept, values, tallies)
        seconds = time.perf_counter() - start
        counts: dict[str, Ints] = {}
        for name, part in zip(held, np.split(values, np.cumsum(units)[:-1], axis=1), strict=True):
            counts[name] = part.reshape(samples, *graph.node[name].shape).astype(np.int64)
        tally = {name: tallies[:, i] for i, name in enumerate(self.tallied)}
        return Result(
            outputs=finish(graph, counts),
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

"""A stream that updates by differences, or computes the window anew where that costs less."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snnkit.backends import recorded
from snnkit.backends.numba_cpu.fast.maps import Map
from snnkit.backends.numba_cpu.stream import fields as f
from snnkit.backends.numba_cpu.stream.fields import INVALID, UPDATED
from snnkit.backends.numba_cpu.stream.kernels import KINDS, push_events, push_frame
from snnkit.backends.numba_cpu.stream.memory import NO_LIMIT, Memory, addresses
from snnkit.backends.numba_cpu.stream.plan import StreamPlan
from snnkit.backends.streaming import FIELDS, StreamInput, follow
from snnkit.boundary import dequantise
from snnkit.ops import TABLE
from snnkit.ops.op import Ints

if TYPE_CHECKING:
    from snnkit.backends.numba_cpu.program import NumbaProgram

Array = npt.NDArray[Any]
U8 = np.dtype(np.uint8)
F32 = np.dtype(np.float32)
NOTHING = np.zeros(0, np.uint8)
NO_INPUTS = np.zeros(0, np.int64)
GROWTH = 0.6
"""Measured on networks of 4 and 6 layers, 2 to 2000 sites: 0.5 to 0.6, since changes overlap."""
TIMED, LEAST = 8, 16
PATIENCE = 3
"""Small packets in a row, after a large one was computed anew, until the state catches up."""


class VectorStream:
    """As `snnkit.backends.Stream`.

    The rule of update "auto": an update of n sites of the input costs pace * n ** GROWTH seconds,
    a recompute `seconds_anew`; both are first measured on a made-up packet, then running
    measurements of this stream's own packets (those of fewer than TIMED events are not timed). A
    packet is computed anew if more sites differ from the state than `limit`, where the two cost
    the same. Each recompute lowers `pace` a little, so that updates are tried again now and then.
    A state left behind by recomputed packets catches up after PATIENCE packets that are within the
    limit by themselves.
    """

    def __init__(self, program: NumbaProgram, plan: StreamPlan, update: str):
        self.graph, self.program, self.path = program.graph, program, plan.isa.name
        self.why_recompute: tuple[tuple[str, str], ...] = ()
        self.plan, self.input = plan, StreamInput(program.graph)
        self.memory = Memory(plan, self.input)
        self.table, self.address = self.memory.table, int(self.memory.table.ctypes.data)
        self.update, self.patience = update, PATIENCE
        place = {n.name: i for i, n in enumerate(self.graph.nodes)}
        self._in_order = sorted(self.graph.inputs, key=lambda b: place[b.node])
        self.sites = sum(row[f.I_SITES] for row in plan.inputs)
        self.limit = {"incremental": NO_LIMIT, "recompute": -1}.get(update, LEAST)
        self.learns = update == "auto"
        if update == "recompute":
            self.patience = NO_LIMIT
        self.packets = self.recomputed = 0
        self._formats: list[Any] = [None, None]
        self._takes_events, self._timed = self.input.takes_events, NO_LIMIT
        self._anew: Mapping[str, Array] | None = None
        self._floats = self._views(f.S_C, np.float32)
        self._ints = self._views(f.S_B, np.int32)
        self._plain = all(b.dtype == "float32" and not b.post for b in self.graph.outputs)
        names = list(self._floats)
        self._only = names[0] if self._plain and len(names) == 1 else None
        self._is_float = all(b.dtype == "float32" for b in self.graph.inputs)
        self._inputs = {
            b.name: self.memory.view(
                row[f.I_FLOATS], row[f.I_SITES] * row[f.I_CHANNELS], np.float32
            ).reshape(1, *self.graph.node[b.node].shape)
            for b, row in zip(self.graph.inputs, self._input_rows(), strict=True)
        }
        # compile (or load from the cache) now, so that no packet's time contains it
        push_events(self.address, NOTHING, NOTHING, NO_LIMIT, 0)
        if self.learns:
            self._probe()
            self._balance()

    def _input_rows(self) -> list[dict[int, Any]]:
        """Rows of the plan, which are in the order of the nodes, by boundary."""
        order = [n.name for n in self.graph.of("input")]
        return [self.plan.inputs[order.index(b.node)] for b in self.graph.inputs]

    def _views(self, column: int, dtype: Any) -> dict[str, Array]:
        found = {}
        for b in self.graph.outputs:
            row = self.plan.reads[b.node]
            flat = self.memory.view(row[column], row[f.S_D], dtype)
            found[b.name] = flat.reshape(1, *self.graph.node[b.node].shape)
        return found

    def _probe(self) -> None:
        """Measure a change of a 32nd of the sites, in rows side by side, there and back."""
        graph, frames = self.graph, {}
        for b, row in zip(graph.inputs, self._input_rows(), strict=True):
            node = graph.node[b.node]
            middle, many = row[f.I_SITES] // 2, row[f.I_SITES] // 32 + 1
            units = self.plan.cells(self.plan.maps[node.name]).shape.units
            chosen = np.zeros(node.units, np.float32)
            chosen[units.reshape(row[f.I_SITES], -1)[middle : middle + many]] = 1
            frame = (4 * b.scale + b.offset) * chosen.reshape(node.shape)
            frames[b.name] = np.ascontiguousarray(frame[None], np.float32)
        update, anew, sites = [], [], 0
        for x in (frames, {name: 0 * frame for name, frame in frames.items()}) * 2:
            held = [x[b.name] for b in self._in_order]
            start = time.perf_counter()
            push_frame(self.address, addresses(held), False, NO_LIMIT, 0)
            update.append(time.perf_counter() - start)
            sites = max(sites, int(self.table[f.H_PENDING]))
            start = time.perf_counter()
            self.program.infer(x)
            anew.append(time.perf_counter() - start)
        self.pace, self.seconds_anew = min(update) / max(sites, 1) ** GROWTH, min(anew[::2])

    def push(self, events: Any = None, leaving: Any = None, *, frame: Any = None) -> None:
        if frame is not None:
            self._push_frame(events, leaving, frame)
            return
        enter = NOTHING if events is None else self._bytes(0, events)
        leave = NOTHING if leaving is None else self._bytes(1, leaving)
        if enter is None or leave is None or not self._takes_events:
            self.input.check(events, leaving)
            raise AssertionError("the check above raises")
        # most packets are so small that nothing is learnt from their time
        start = time.perf_counter() if len(enter) + len(leave) > self._timed else 0.0
        code = push_events(self.address, enter, leave, self.limit, self.patience)
        if code == UPDATED and not start:
            self.packets += 1
            self._anew = None
            return
        if code == INVALID:
            self.input.check(events, leaving)
        self._finish(code, start)

    def _bytes(self, which: int, events: Any) -> Array | None:
        """The events as bytes whose format compiled code knows; None if they have none."""
        if type(events) is not np.ndarray or events.ndim != 1:
            return None
        if events.dtype is not self._formats[which]:
            events = _native(events)
            if events is None:
                return None
            self._set_format(which, events.dtype)
        if not len(events):
            return NOTHING
        flags = events.flags
        # compiled code is specialised on arrays that may be written, though it does not
        if not (flags.writeable and flags.c_contiguous):
            events = events.copy()
        return np.frombuffer(events, U8)

    def _set_format(self, which: int, dtype: Any) -> None:
        at = (f.H_ENTERING, f.H_LEAVING)[which]
        row = [dtype.itemsize]
        for name in FIELDS:
            kind, place = dtype.fields[name][:2]
            row += [place, KINDS.index(_kind(kind))]
        self.table[at : at + len(row)] = row
        self._formats[which] = dtype
        if self.learns:
            self._timed = TIMED * dtype.itemsize

    def _push_frame(self, events: Any, leaving: Any, frame: Any) -> None:
        start, source = time.perf_counter(), self.input
        held = None
        if events is None and leaving is None and source.frame is not None and self._is_float:
            held = self._as_they_lie(frame)
        look = held is not None
        if held is None:
            checked = source.check_frame(events, leaving, frame)
            held = [np.ascontiguousarray(checked[b.name], np.float32) for b in self._in_order]
        code = push_frame(self.address, addresses(held), look, self.limit, self.patience)
        if code == INVALID:
            source.check_frame(events, leaving, frame)
        source.frame, self._takes_events = self._inputs, False
        self._finish(code, start)

    def _as_they_lie(self, frame: Any) -> list[Array] | None:
        """Arrays that compiled code can read and check itself; None if there are others."""
        named = frame if isinstance(frame, Mapping) else {self.input.name: frame}
        if len(named) != len(self._inputs) or named.keys() != self._inputs.keys():
            return None
        held = [named[b.name] for b in self._in_order]
        for b, array in zip(self._in_order, held, strict=True):
            if type(array) is not np.ndarray or array.dtype != F32 or not array.flags.c_contiguous:
                return None
            if array.shape != self._inputs[b.name].shape[1:]:
                return None
        return held

    def _finish(self, code: int, start: float) -> None:
        self.packets += 1
        if code == UPDATED:
            self._anew = None
            if self.learns and start:
                self._learn_update(time.perf_counter() - start)
            return
        self.recomputed += 1
        start = start or time.perf_counter()
        self._compute_anew()
        if self.learns:
            self._learn_anew(time.perf_counter() - start)

    def _learn_update(self, spent: float) -> None:
        self.pace = follow(self.pace, spent / max(int(self.table[f.H_PENDING]), TIMED) ** GROWTH)
        self._balance()

    def _learn_anew(self, spent: float) -> None:
        self.seconds_anew = follow(self.seconds_anew, spent)
        self.pace *= 0.99
        self._balance()

    def _balance(self) -> None:
        even = (self.seconds_anew / self.pace) ** (1 / GROWTH)
        self.limit = int(min(max(even, LEAST), self.sites))

    def _compute_anew(self) -> None:
        x = self._inputs if self._is_float else self.input.samples()
        self._anew = self.program.infer(x)

    def readout(self) -> Mapping[str, Array]:
        if self._anew is not None:
            return dict(self._anew)
        if self._only is not None:
            return {self._only: self._floats[self._only].copy()}
        if self._plain:
            return {name: values.copy() for name, values in self._floats.items()}
        return {
            b.name: dequantise(b, self._ints[b.name].astype(np.int64)) for b in self.graph.outputs
        }

    def counts(self, names: Sequence[str] = ("spike",)) -> Mapping[str, Ints]:
        """Brings a state that recomputed packets left behind up to date."""
        names = recorded(self.graph, names)
        push_frame(self.address, NO_INPUTS, False, NO_LIMIT, 0)
        known: dict[str, Ints] = {}
        return {name: self._values(name, known) for name in names}

    def _values(self, name: str, known: dict[str, Ints]) -> Ints:
        """From the bytes of the node's map; without one, by its own rule."""
        if name not in known:
            node, made = self.graph.node[name], self.plan.maps.get(name)
            if made is not None:
                known[name] = self._of_map(made).reshape(1, *node.shape)
            else:
                sources = [self._values(source, known) for source in node.inputs]
                known[name] = TABLE[node.op].dense(node, sources)
        return known[name]

    def _of_map(self, made: Map) -> Ints:
        cells = self.plan.cells(made)
        bytes_ = self.memory.view(cells.values, cells.sites * cells.pitch, np.uint8)
        return bytes_[cells.byte_places()].astype(np.int64) - cells.zero

    def reset(self) -> None:
        self.memory.reset()
        self.input.reset()
        self._takes_events = self.input.takes_events
        self.packets = self.recomputed = 0
        self._anew = None


def _kind(dtype: Any) -> str:
    return "u1" if dtype.kind == "b" else f"{dtype.kind}{dtype.itemsize}"


def _native(events: Array) -> Array | None:
    """Events whose fields have types of KINDS, converted where they have others; None if a field
    is missing or no integer."""
    names = events.dtype.names
    if names is None or not set(FIELDS) <= set(names):
        return None
    kinds = [events.dtype[name] for name in FIELDS]
    if any(
        k.kind not in "iub" or (k.kind == "b" and n != "p")
        for n, k in zip(FIELDS, kinds, strict=True)
    ):
        return None
    if all(k.isnative and _kind(k) in KINDS for k in kinds):
        return events
    made = np.empty(len(events), [(name, np.int64) for name in FIELDS])
    for name in FIELDS:
        # what does not fit int64 becomes negative, which no sensor has either
        made[name] = events[name].astype(np.int64)
    return made

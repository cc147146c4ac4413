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
from snnkit.backends.streaming import FIELDS, StreamInput
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
PATIENCE = 3
"""Small packets in a row, after a large one was computed anew, until the state catches up."""


class VectorStream:
    """As `snnkit.backends.Stream`.

    The rule of update "auto": a packet is computed anew if more sites of the input differ from the
    state than `limit`. `limit` is learnt from running times: of a recompute, and of updates of a
    quarter of the limit and more, taken as proportional to their sites. A state left behind by
    recomputed packets catches up after PATIENCE packets that are small by themselves.
    """

    def __init__(self, program: NumbaProgram, plan: StreamPlan, update: str):
        self.graph, self.program, self.path = program.graph, program, plan.isa.name
        self.why_recompute: tuple[tuple[str, str], ...] = ()
        self.plan, self.input = plan, StreamInput(program.graph)
        self.memory = Memory(plan, self.input)
        self.table, self.address = self.memory.table, int(self.memory.table.ctypes.data)
        self.update, self.patience = update, PATIENCE
        self.sites = sum(row[f.I_SITES] for row in plan.inputs)
        self.limit = {"incremental": NO_LIMIT, "recompute": -1}.get(update, self.sites // 8)
        self.learns = update == "auto"
        if update == "recompute":
            self.patience = NO_LIMIT
        self.packets = self.recomputed = 0
        self._formats: list[Any] = [None, None]
        self._takes_events, self._timed = self.input.takes_events, 0
        self._anew: Mapping[str, Array] | None = None
        self._floats = self._views(f.S_C, np.float32)
        self._ints = self._views(f.S_B, np.int32)
        self._plain = all(b.dtype == "float32" and not b.post for b in self.graph.outputs)
        names = list(self._floats)
        self._only = names[0] if self._plain and len(names) == 1 else None
        self._is_float = self.input.takes_events and self.input.dtype == F32
        self._inputs = {
            b.name: self.memory.view(
                row[f.I_FLOATS], row[f.I_SITES] * row[f.I_CHANNELS], np.float32
            ).reshape(1, *self.graph.node[b.node].shape)
            for b, row in zip(self.graph.inputs, self._input_rows(), strict=True)
        }
        self.seconds_anew = self._time_anew()

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

    def _time_anew(self) -> float:
        """Seconds of a recompute, until the first real one says better."""
        times = []
        for _ in range(2):
            start = time.perf_counter()
            self._compute_anew()
            times.append(time.perf_counter() - start)
        self._anew = None
        return min(times)

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
        self._time_from()

    def _time_from(self) -> None:
        """Packets of fewer bytes than this are not timed."""
        smallest = min((k.itemsize for k in self._formats if k is not None), default=1)
        self._timed = self.limit // 4 * smallest if self.learns else NO_LIMIT

    def _push_frame(self, events: Any, leaving: Any, frame: Any) -> None:
        checked = self.input.check_frame(events, leaving, frame)
        held = [
            np.ascontiguousarray(checked[b.name], np.float32)
            for node in self.graph.of("input")
            for b in self.graph.inputs
            if b.node == node.name
        ]
        start = time.perf_counter()
        code = push_frame(self.address, addresses(held), self.limit, self.patience)
        self.input.frame, self._takes_events = checked, False
        self._finish(code, start)

    def _finish(self, code: int, start: float) -> None:
        self.packets += 1
        if code == UPDATED:
            self._anew = None
            if self.learns and start:
                self._learn(time.perf_counter() - start)
            return
        self.recomputed += 1
        start = time.perf_counter()
        self._compute_anew()
        if self.learns:
            spent = time.perf_counter() - start
            if self.recomputed == 1:
                self.seconds_anew = spent
            # one slow run must not hide the rest
            self.seconds_anew += (min(spent, 2 * self.seconds_anew) - self.seconds_anew) / 8
            # try again now and then whether updates got cheaper
            self.limit = min(self.limit + self.limit // 64 + 1, self.sites)
            self._time_from()

    def _learn(self, spent: float) -> None:
        sites = int(self.table[f.H_PENDING])
        if 4 * sites < self.limit:
            return
        even = sites * self.seconds_anew / spent
        self.limit = int(min(max(self.limit + (even - self.limit) / 8, 16), self.sites))
        self._time_from()

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
        push_frame(self.address, NO_INPUTS, NO_LIMIT, 0)
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

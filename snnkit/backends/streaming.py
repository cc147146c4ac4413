"""What every stream shares: the accumulated input of one sample, and the stream that recomputes.

Here a stream is one sample whose input changes by packets (`elements.py` has sequences). Its
readout after every packet equals `program.run` on the input accumulated so far; a backend may get
there by differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snnkit.backends import recorded
from snnkit.boundary import DTYPES, as_inputs
from snnkit.errors import BadEvents, UsageError
from snnkit.graph import Graph
from snnkit.ops.op import Ints
from snnkit.sweeps import needs_future

if TYPE_CHECKING:
    from snnkit.backends import Program

Array = npt.NDArray[Any]

UPDATES = ("auto", "incremental", "recompute")
"""How a stream may be told to update."""
FIELDS = ("t", "x", "y", "p")
ENTERING, LEAVING = "events", "leaving"


def holds_events(shape: tuple[int, ...]) -> bool:
    """Whether an input of that shape can hold events: a channel per polarity, or one for both."""
    return len(shape) == 3 and shape[0] in (1, 2)


def most_events(dtype: np.dtype[Any]) -> int:
    """The largest count that an input of that type holds; there it saturates."""
    if dtype.kind == "f":
        return 65504 if dtype.itemsize == 2 else 2**62
    return int(np.iinfo(dtype).max)


class StreamInput:
    """The input of one sample: counts of the events in the window, or the last frame.

    Events need one input of shape (1 or 2, height, width): a channel per polarity, or one for
    both. The accumulated input is the number of events of each unit, in the input's own type,
    where it saturates. counts [*shape] int64; frame, by input name, [1, *shape].
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        first = graph.inputs[0]
        self.name, self.shape = first.name, graph.node[first.node].shape
        self.takes_events = len(graph.inputs) == 1 and holds_events(self.shape)
        self.dtype = np.dtype(DTYPES[first.dtype])
        self.counts = np.zeros(self.shape, np.int64)
        self.reset()

    def reset(self) -> None:
        self.counts[...] = 0
        self.frame: dict[str, Array] | None = None

    @property
    def most(self) -> int:
        return most_events(self.dtype)

    def samples(self) -> dict[str, Array]:
        """The accumulated input as `program.run` takes it, by input name, [1, *shape]."""
        if self.frame is not None:
            return self.frame
        if self.takes_events:
            return {self.name: np.minimum(self.counts, self.most).astype(self.dtype)[None]}
        return {
            b.name: np.zeros((1, *self.graph.node[b.node].shape), DTYPES[b.dtype])
            for b in self.graph.inputs
        }

    def push(self, events: Any, leaving: Any, frame: Any) -> None:
        """Take a packet, whole or (with an error) not at all."""
        if frame is not None:
            checked = self.check_frame(events, leaving, frame)
            self.frame = checked
            return
        units = self.check(events, leaving)
        for sign, part in zip((1, -1), units, strict=True):
            np.add.at(self.counts.reshape(-1), part, sign)

    def check_frame(self, events: Any, leaving: Any, frame: Any) -> dict[str, Array]:
        """The frame by input name, [1, *shape]. Raises UsageError and BadCalibration."""
        if events is not None or leaving is not None:
            raise UsageError("push: a frame and events; expected one of them")
        if self.frame is None and self.counts.any():
            raise UsageError("push: a frame while events are in the window; call reset() first")
        named = dict(frame) if isinstance(frame, Mapping) else {self.name: frame}
        for b in self.graph.inputs:
            shape = self.graph.node[b.node].shape
            if b.name in named and np.shape(named[b.name]) != shape:
                raise UsageError(
                    f"push: frame of input '{b.name}' has shape {np.shape(named[b.name])}; "
                    f"expected {shape}, one sample without a batch axis"
                )
        return as_inputs(self.graph, {name: np.asarray(a)[None] for name, a in named.items()})

    def check(self, events: Any, leaving: Any) -> tuple[Ints, Ints]:
        """Units that the events of a packet enter, and that they leave.

        Raises UsageError where the network takes no events, and BadEvents, which names the field,
        the index, what was found and what was expected.
        """
        if not self.takes_events:
            shapes = {b.name: self.graph.node[b.node].shape for b in self.graph.inputs}
            raise UsageError(
                f"push: events into inputs {shapes}; expected one input of shape (1 or 2, height, "
                "width); push frames instead"
            )
        if self.frame is not None:
            raise UsageError("push: events after a frame; call reset() first")
        enter = event_units(self.shape, ENTERING, events)
        leave = event_units(self.shape, LEAVING, leaving)
        self._check_counts(enter, leave)
        return enter, leave

    def _check_counts(self, enter: Ints, leave: Ints) -> None:
        """No count may fall below zero; entering events come first."""
        units = self.counts.size
        available = self.counts.reshape(-1) + np.bincount(enter, minlength=units)
        missing = np.bincount(leave, minlength=units) > available
        if not missing.any():
            return
        (at,) = missing[leave].nonzero()
        taken: dict[int, int] = {}
        for i in at:
            unit = int(leave[i])
            taken[unit] = taken.get(unit, 0) + 1
            if taken[unit] > available[unit]:
                p, y, x = np.unravel_index(unit, self.shape)
                raise BadEvents(
                    f"{LEAVING}: event {i} leaves x={x}, y={y}, p={p}, where the window holds "
                    f"{available[unit]} events; expected only events that entered before"
                )


def event_units(shape: tuple[int, ...], what: str, events: Any) -> Ints:
    """The unit of each event, for an input of that shape. Raises BadEvents."""
    if events is None:
        return np.zeros(0, np.int64)
    polarities, height, width = shape
    found = _columns(what, events)
    limits = {"x": width, "y": height, "p": 2}
    for field, limit in limits.items():
        column = found[field]
        (bad,) = ((column < 0) | (column >= limit)).nonzero()
        if len(bad):
            raise BadEvents(
                f"{what}: field '{field}' of event {bad[0]} is {column[bad[0]]}; expected 0 to "
                f"{limit - 1}" + (f" ({width} x {height} sensor)" if field != "p" else "")
            )
    t = found["t"]
    (bad,) = (t[1:] < t[:-1]).nonzero()
    if len(bad):
        i = bad[0] + 1
        raise BadEvents(
            f"{what}: field 't' of event {i} is {t[i]}; expected at least {t[i - 1]}, that of "
            "the event before it: sort the events by 't'"
        )
    x, y, p = (found[name].astype(np.int64) for name in ("x", "y", "p"))
    return np.asarray((p * (polarities == 2) * height + y) * width + x)


def _columns(what: str, events: Any) -> dict[str, Array]:
    """The four fields of a structured array, each checked to be integers."""
    if not isinstance(events, np.ndarray) or events.dtype.names is None or events.ndim != 1:
        kind = getattr(events, "dtype", type(events).__name__)
        raise BadEvents(
            f"{what}: {kind}; expected a one-dimensional structured array with fields t, x, y, p"
        )
    for field in FIELDS:
        if field not in events.dtype.names:
            names = ", ".join(events.dtype.names)
            raise BadEvents(f"{what}: no field '{field}' (fields {names}); expected t, x, y, p")
        kind = events.dtype[field]
        if kind.kind not in ("iub" if field == "p" else "iu"):
            raise BadEvents(f"{what}: field '{field}' has type {kind}; expected integers")
    return {field: events[field] for field in FIELDS}


def check_update(graph: Graph, update: str) -> None:
    """Raise UsageError where `graph` cannot be streamed, or for an unknown `update`."""
    if update not in UPDATES:
        raise UsageError(f"update {update!r}; expected one of {', '.join(UPDATES)}")
    problems = needs_future(graph)
    if problems:
        lines = "\n".join(f"  node '{node}': {reason}" for node, reason in problems)
        raise UsageError(
            "stream: elements come one at a time, and this network needs the later ones:\n"
            f"{lines}\ngive whole sequences to `run`"
        )


def follow(old: float, new: float) -> float:
    """A running mean that one slow run does not carry away."""
    return old + (min(new, 2 * old) - old) / 8


class RecomputeStream:
    """A stream that runs the accumulated input anew after each packet.

    As `snnkit.backends.Stream`. The reference's stream, and the oracle of all others.
    """

    path = "recompute"

    def __init__(self, program: Program, why: Sequence[tuple[str, str]] = ()):
        """why : (node, reason) for what keeps the network from incremental updates."""
        self.graph, self.program = program.graph, program
        self.why_recompute = tuple(why)
        self.input = StreamInput(program.graph)
        self.packets = self.recomputed = 0
        self._outputs: Mapping[str, Array] | None = None

    def push(self, events: Any = None, leaving: Any = None, *, frame: Any = None) -> None:
        self.input.push(events, leaving, frame)
        self.packets += 1
        self.recomputed += 1
        self._outputs = self._run()

    def _run(self) -> Mapping[str, Array]:
        return self.program.run(self.input.samples()).outputs

    def readout(self) -> Mapping[str, Array]:
        if self._outputs is None:
            self._outputs = self._run()
        return self._outputs

    def counts(self, names: Sequence[str] = ("spike",)) -> Mapping[str, Ints]:
        names = recorded(self.graph, names)
        return self.program.run(self.input.samples(), record=names).counts

    def reset(self) -> None:
        self.input.reset()
        self.packets = self.recomputed = 0
        self._outputs = None

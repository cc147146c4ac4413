"""Streams of step graphs: one element of a sequence at a time, the state kept between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from snnkit.backends import recorded
from snnkit.backends.streaming import ENTERING, event_units, holds_events, most_events
from snnkit.boundary import DTYPES, check_samples, dequantise, to_levels
from snnkit.errors import BadCalibration, UsageError
from snnkit.graph import Boundary, Graph
from snnkit.ops.op import Ints
from snnkit.sweeps import most_steps

Array = npt.NDArray[Any]


class Elements(Protocol):
    """What a backend does for one sequence. Values of nodes are [1, *shape]."""

    path: str

    def begin(self, counts: Mapping[str, Ints]) -> None:
        """A new sequence, for the values of the inputs without a time axis."""

    def step(self, counts: Mapping[str, Ints]) -> bool:
        """One element, for the values of the inputs with a time axis; whether its window started
        at rest."""

    def values(self, names: Sequence[str]) -> dict[str, Ints]:
        """Nodes after the last element; those of a sweep behind are computed on it."""


class ElementInput:
    """Checks what is pushed, and makes integers of it.

    timed : inputs with a time axis, given with every element. static : the others, given with the
    first one. Events fill the one timed input, if it has the shape (1 or 2, height, width).
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.timed = {b.name: b for b in graph.inputs if b.time is not None}
        self.static = {b.name: b for b in graph.inputs if b.time is None}
        self.shape = {b.name: graph.node[b.node].shape for b in graph.inputs}
        only = next(iter(self.timed)) if len(self.timed) == 1 else None
        self.events = only if only is not None and holds_events(self.shape[only]) else None
        alone = self.timed or self.static
        self.alone = next(iter(alone)) if len(alone) == 1 else None
        self.quick = self.timed.get(self.alone or "")

    def read(self, events: Any, leaving: Any, frame: Any, first: bool) -> dict[str, Ints]:
        """Values by input node, [1, *shape]. Raises UsageError, BadEvents and BadCalibration."""
        alone = type(frame) is np.ndarray and events is None is leaving
        if alone and self.quick is not None and not (first and self.static):
            return {self.quick.node: self._levels(self.quick, frame)}
        named = self._named(frame)
        if leaving is not None and len(leaving):
            raise UsageError(
                "push: leaving events; this network takes elements, which hold the events of their "
                "own time only"
            )
        if events is not None or (self.events is not None and self.events not in named):
            self._add_events(events, named)
        wanted = {**self.static, **self.timed} if first else self.timed
        if named.keys() != wanted.keys():
            raise UsageError(f"push: inputs {sorted(named)}; expected {self._wanted(first)}")
        return {b.node: self._levels(b, named[name]) for name, b in wanted.items()}

    def _named(self, frame: Any) -> dict[str, Any]:
        if frame is None:
            return {}
        if isinstance(frame, Mapping):
            return dict(frame)
        if self.alone is None:
            names = ", ".join(self.timed or self.static)
            raise UsageError(f"push: one array; expected a mapping by input name: {names}")
        return {self.alone: frame}

    def _wanted(self, first: bool) -> str:
        timed = ", ".join(f"'{name}'" for name in self.timed) or "nothing: each push is one step"
        static = ", ".join(f"'{name}'" for name in self.static)
        if not static:
            return timed
        when = "now" if first else "and was, with the first element; reset() starts a new sequence"
        return f"{timed}; {static} is given once, {when}"

    def _add_events(self, events: Any, named: dict[str, Any]) -> None:
        if self.events is None:
            raise UsageError(
                f"push: events into inputs {self.shape}; expected one input with a time axis, of "
                "shape (1 or 2, height, width); push frames instead"
            )
        if self.events in named:
            raise UsageError(f"push: events and a frame for input '{self.events}'; expected one")
        shape = self.shape[self.events]
        units = event_units(shape, ENTERING, events)
        dtype = np.dtype(DTYPES[self.timed[self.events].dtype])
        counts = np.bincount(units, minlength=int(np.prod(shape))).reshape(shape)
        named[self.events] = np.minimum(counts, most_events(dtype)).astype(dtype)

    def _levels(self, b: Boundary, x: Any) -> Ints:
        shape, node = self.shape[b.name], self.graph.node[b.node]
        fits = type(x) is np.ndarray and x.dtype == DTYPES[b.dtype] and x.shape == shape
        if fits and np.isfinite(x).all():
            return to_levels(b, node, x[None])
        if np.shape(x) != shape:
            raise UsageError(
                f"push: input '{b.name}' has shape {np.shape(x)}; expected {shape}, one element "
                "without batch and time axes"
            )
        checked = check_samples(b.name, b.dtype, ("N", *shape), np.asarray(x)[None])
        return to_levels(b, node, checked)


class ElementStream:
    """As `snnkit.backends.Stream`, for a step graph; the backend's part is a `Elements`."""

    def __init__(self, graph: Graph, engine: Elements):
        self.graph, self.engine, self.path = graph, engine, engine.path
        self.why_recompute: tuple[tuple[str, str], ...] = ()
        self.input = ElementInput(graph)
        self.most = graph.steps or most_steps(graph)
        self.packets = self.recomputed = 0
        self._static = [b.node for b in self.input.static.values()]
        self._outputs: Mapping[str, Array] | None = None
        self._shapes = {
            b.name: [1 if i in (b.batch, b.time) else int(d) for i, d in enumerate(b.dims)]
            for b in graph.outputs
            if not b.post
        }

    def push(self, events: Any = None, leaving: Any = None, *, frame: Any = None) -> None:
        first = not self.packets
        counts = self.input.read(events, leaving, frame, first)
        if self.packets == self.most:
            what = "takes" if self.graph.steps else "has bounds that are proved for"
            raise BadCalibration(
                f"push: element {self.most + 1}; the network {what} {self.most}; reset() starts a "
                "new sequence"
            )
        if first:
            self.engine.begin({name: counts.pop(name) for name in self._static})
        self.recomputed += self.engine.step(counts)
        self.packets += 1
        self._outputs = None

    def _began(self) -> None:
        if not self.packets:
            raise UsageError("readout before the first element; push one")

    def readout(self) -> Mapping[str, Array]:
        self._began()
        if self._outputs is None:
            values = self.engine.values([b.node for b in self.graph.outputs])
            self._outputs = {b.name: self._output(b, values[b.node]) for b in self.graph.outputs}
        return self._outputs

    def _output(self, b: Boundary, value: Ints) -> Array:
        """Batch and time have one place each, so that their axes move by a reshape."""
        if b.post or b.dtype != "float32":
            return dequantise(b, value if b.time is None else value[:, None])
        y: Array = np.multiply(value[0], b.scale, dtype=np.float32)
        return y.reshape(self._shapes[b.name])

    def counts(self, names: Sequence[str] = ("spike",)) -> Mapping[str, Ints]:
        self._began()
        return self.engine.values(recorded(self.graph, names))

    def reset(self) -> None:
        self.packets = self.recomputed = 0
        self._outputs = None

"""A recording through a stream: what `snnkit stream` prints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from snnkit.backends import Stream
from snnkit.errors import BadCalibration, UsageError
from snnkit.graph import Graph
from snnkit.windows import Packet, sliding, tumbling


@dataclass(frozen=True)
class Replay:
    """What a replay gave, packet by packet.

    classes : index of the largest value of the first output. events : entering and leaving.
    microseconds : wall time from the packet to the readout. recomputed : packets whose window was
    computed anew. path, why_recompute : as in `snnkit.backends.Stream`.
    """

    classes: list[int]
    events: list[int]
    microseconds: list[float]
    recomputed: int
    path: str
    why_recompute: tuple[tuple[str, str], ...]

    def summary(self) -> dict[str, Any]:
        """Rates and latencies as plain JSON."""
        packets = len(self.classes)
        spent = np.array(self.microseconds or [0.0])
        total = float(spent.sum())
        return {
            "packets": packets,
            "events": sum(self.events),
            "events_per_second": sum(self.events) / total * 1e6 if total else 0.0,
            "latency_us": {
                "median": float(np.median(spent)),
                "p95": float(np.quantile(spent, 0.95)),
                "max": float(spent.max()),
            },
            "incremental": (packets - self.recomputed) / packets if packets else 0.0,
            "path": self.path,
            "why_recompute": [list(pair) for pair in self.why_recompute],
        }

    def as_json(self) -> dict[str, Any]:
        return {**self.summary(), "each": {k: asdict(self)[k] for k in EACH}}


EACH = ("classes", "events", "microseconds")


def packets_of(
    graph: Graph, given: Any, *, window: int | None, every: int | None, unit: str
) -> Iterable[Packet | Mapping[str, Any]]:
    """What to push, one after the other, for a recording or a sequence.

    given : events. Without steps a window slides over them (`snnkit.windows.sliding`); a network
    that takes elements gets those of `every` as one element, side by side, `window` None. Or the
    elements themselves: an array [T, *shape], or arrays by input name, of which the inputs without
    a time axis are [*shape]; `window` and `every` None.

    Raises UsageError, BadEvents and BadCalibration.
    """
    recording = isinstance(given, np.ndarray) and given.dtype.names is not None
    if not graph.sweeps:
        if window is None or every is None:
            raise UsageError("this network has no steps; expected --window and --every")
        return sliding(given, window=window, every=every, unit=unit)
    if window is not None:
        raise UsageError(
            "--window: this network takes the elements of a sequence, whose length is --every, and "
            "remembers the earlier ones itself"
        )
    if not recording:
        if every is not None:
            raise UsageError("--every: the file holds elements, not events; expected events")
        return _elements(graph, given)
    if every is None:
        raise UsageError("expected --every, how long one element's events are collected")
    packets = tumbling(given, window=every, unit=unit)
    return (Packet(packet.events, packet.leaving[:0]) for packet in packets)


def _elements(graph: Graph, given: Any) -> list[Mapping[str, Any]]:
    """One mapping by input name per step; inputs without a time axis in the first one."""
    named = given if isinstance(given, Mapping) else {graph.inputs[0].name: given}
    timed = {b.name for b in graph.inputs if b.time is not None}
    missing = [b.name for b in graph.inputs if b.name not in named]
    if missing:
        raise BadCalibration(f"no data for inputs {missing}; expected an .npz by input name")
    lengths = {name: len(a) if np.ndim(a) else 0 for name, a in named.items() if name in timed}
    if not timed:
        lengths = {"the network": graph.steps}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise BadCalibration(
            f"numbers of elements {lengths}; expected the same one, at least 1, for all inputs "
            "with a time axis"
        )
    steps = [
        {name: array[t] for name, array in named.items() if name in timed}
        for t in range(min(lengths.values()))
    ]
    return [{**named, **steps[0]}, *steps[1:]]


def replay(stream: Stream, packets: Iterable[Packet | Mapping[str, Any]]) -> Replay:
    """Push packets (events, or frames by input name) one after the other; read out after each."""
    classes, counts, spent = [], [], []
    for packet in packets:
        start = time.perf_counter()
        if isinstance(packet, Packet):
            stream.push(*packet)
            counts.append(len(packet.events) + len(packet.leaving))
        else:
            stream.push(frame=packet)
            counts.append(0)
        outputs = stream.readout()
        spent.append((time.perf_counter() - start) * 1e6)
        first = np.asarray(next(iter(outputs.values()))).reshape(-1)
        # an ArgMax at the output is the class already
        classes.append(int(first[0]) if first.size == 1 else int(first.argmax()))
    return Replay(
        classes, counts, spent, stream.recomputed, stream.path, tuple(stream.why_recompute)
    )


def replay_text(found: Replay) -> str:
    """The classes, run by run, and one line of figures."""
    lines, begin = [], 0
    for i, value in enumerate(found.classes):
        if i + 1 == len(found.classes) or found.classes[i + 1] != value:
            lines.append(f"packets {begin:,}..{i:,}: class {value}")
            begin = i + 1
    s = found.summary()
    lat = s["latency_us"]
    lines.append(
        f"{s['packets']:,} packets, {s['events']:,} events in and out, "
        f"{s['events_per_second']:,.0f} events/s, latency median {lat['median']:,.1f} us, "
        f"p95 {lat['p95']:,.1f} us, max {lat['max']:,.1f} us, "
        f"{s['incremental']:.1%} incremental ({s['path']})"
    )
    lines += [f"recomputes because of '{node}': {reason}" for node, reason in found.why_recompute]
    return "\n".join(lines)

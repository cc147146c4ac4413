"""A recording through a stream: what `snnkit stream` prints."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from snnkit.backends import Stream
from snnkit.windows import Packet


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


def replay(stream: Stream, packets: Iterable[Packet]) -> Replay:
    """Push packets (see `snnkit.windows`) one after the other, and read out after each."""
    classes, counts, spent = [], [], []
    for packet in packets:
        start = time.perf_counter()
        stream.push(*packet)
        outputs = stream.readout()
        spent.append((time.perf_counter() - start) * 1e6)
        first = np.asarray(next(iter(outputs.values()))).reshape(-1)
        # an ArgMax at the output is the class already
        classes.append(int(first[0]) if first.size == 1 else int(first.argmax()))
        counts.append(len(packet.events) + len(packet.leaving))
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

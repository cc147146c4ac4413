"""Event streams: a packet of events at a time, against computing the whole window again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import prepared
from benchmarks.tables import Scope, Table
from benchmarks.workloads import streams
from snnkit.backends.numba_cpu import backend
from snnkit.bench.rivals import INT8, NET, onnxruntime_rivals
from snnkit.errors import VerificationFailed
from snnkit.windows import Packet, sliding

Array = npt.NDArray[Any]
WINDOW = 10_000
"""us of events that the networks look at."""
PACKETS = (("1 event", 0), ("0.1 ms", 100), ("1 ms", 1_000), ("10 ms", 10_000))
BLOCK = 16
"""Packets timed together: a clock's own time would count in one of a few microseconds."""


def recording(name: str, seconds: float) -> tuple[Array, bool]:
    """(events, whether they are real): what the network was not trained on, on one clock, so many
    recordings of 0.3 s or more as the seconds need."""
    given = streams(name, int(seconds / 0.3) + 2)
    return _joined(given.events), given.real


def _joined(parts: list[Array]) -> Array:
    """Recordings one after the other on one clock."""
    shifted, start = [], 0
    for part in parts:
        moved = part.copy()
        moved["t"] += start - part["t"][0]
        start = int(moved["t"][-1]) + 1
        shifted.append(moved)
    return np.concatenate(shifted)


def packets(events: Array, width: int, count: int) -> tuple[list[Packet], list[Packet]]:
    """(those that fill the window, the next `count`) of a window that slides over the recording.

    width : us per packet, the window is WINDOW us; or 0 for one event in and one out, the window is
    as many events as WINDOW us hold on average.
    """
    if width:
        filling, made = WINDOW // width, sliding(events, window=WINDOW, every=width)
    else:
        filling = round(rate(events) * WINDOW / 1e6)
        made = sliding(events, window=filling, every=1, unit="events")
    return list(islice(made, filling)), list(islice(made, count))


def rate(events: Array) -> float:
    """Events per second."""
    return len(events) / (int(events["t"][-1]) - int(events["t"][0])) * 1e6


@dataclass
class _Timed:
    """Seconds per packet, block by block."""

    times: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float, packets: int) -> None:
        self.times.setdefault(name, []).append(seconds / packets)

    def text(self, name: str) -> str:
        values = np.array(self.times[name]) * 1e6
        low, mid, high = np.quantile(values, [0.05, 0.5, 0.95])
        return f"{mid:.3g} [{low:.3g}..{high:.3g}]"

    def median(self, name: str) -> float:
        return float(np.median(self.times[name]))


def _count(frame: Array, events: Array, sign: int) -> None:
    np.add.at(frame[0], (events["p"], events["y"], events["x"]), sign)


@dataclass
class _Race:
    """A stream, our own recomputation and the rival's, block by block in turns."""

    name: str
    port: str
    program: Any
    rivals: dict[str, Any]
    frame: Array
    timed: _Timed = field(default_factory=_Timed)
    moved: int = 0
    compared: int = 0

    def start(self, filling: list[Packet]) -> None:
        self.stream = self.program.stream()
        for packet in filling:
            self.stream.push(*packet)
            _count(self.frame, packet.events, 1)
            _count(self.frame, packet.leaving, -1)

    def block(self, some: list[Packet]) -> None:
        frames, readouts = [], []
        for entering, leaving in some:
            _count(self.frame, entering, 1)
            _count(self.frame, leaving, -1)
            self.moved += len(entering) + len(leaving)
            frames.append({self.port: self.frame.copy()})
        used = time.thread_time()
        for packet in some:
            self.stream.push(*packet)
            readouts.append(self.stream.readout())
        self.timed.add("stream", time.thread_time() - used, len(some))
        for title, call in (("anew", self.program.infer), ("int8", self.rivals[INT8])):
            used = time.thread_time()
            for x in frames:
                call(x)
            self.timed.add(title, time.thread_time() - used, len(some))
        self.compare(frames, readouts)

    def compare(self, frames: list[dict[str, Array]], readouts: list[Any]) -> None:
        """Every output after every packet, and every neuron after the block."""
        output = self.program.graph.outputs[0].name
        for x, found in zip(frames, readouts, strict=True):
            if found[output].tobytes() != np.asarray(self.rivals[NET](x)[0]).tobytes():
                raise VerificationFailed(f"{self.name}: a stream's output differs from net.onnx")
        expected = self.program.run(frames[-1], record=("spike",)).counts
        for node, value in self.stream.counts(("spike",)).items():
            self.compared += value.size
            if not np.array_equal(value, expected[node]):
                raise VerificationFailed(f"{self.name}: neurons of node '{node}' differ")


def row(name: str, label: str, width: int, scope: Scope) -> tuple[list[str], dict[str, Any]]:
    graph = prepared.graph(name)
    port = graph.inputs[0]
    # one event a packet takes far less than 1 ms
    events, real = recording(name, scope.packets * (width or 1_000) / 1e6)
    calibration = {port.name: prepared.train(name).x}
    rivals = onnxruntime_rivals(graph, prepared.source(name), calibration, 1).candidates
    frame = np.zeros((1, *graph.node[port.node].shape), np.float32)
    race = _Race(name, port.name, backend().compile(graph), rivals, frame)
    filling, todo = packets(events, width, scope.packets // BLOCK * BLOCK)
    race.start(filling)
    for start in range(0, len(todo), BLOCK):
        race.block(todo[start : start + BLOCK])
    timed, stream = race.timed, race.stream
    line = [name if real else f"{name} (generated)", f"{rate(events):,.0f}", label]
    line += [f"{race.moved / len(todo):,.1f}", f"0 of {race.compared:,}"]
    line += [timed.text(title) for title in ("stream", "anew", "int8")]
    line += [f"{timed.median(k) / timed.median('stream'):.1f}" for k in ("int8", "anew")]
    line += [f"{stream.recomputed / stream.packets:.0%}"]
    figures = {"workload": name, "packet": label, "real": real, "packets": len(todo), **timed.times}
    return line, figures


def streaming(scope: Scope, say: Callable[[str], None]) -> list[Table]:
    header = ["workload", "events/s", "packet", "events in + out", "neurons that differ"]
    header += ["us stream", "us anew", "us ort int8 anew", "int8 / stream", "anew / stream"]
    header += ["recomputed"]
    lines, figures = [], []
    for name in ("nmnist", "dvs"):
        if name not in scope.names:
            continue
        for label, width in PACKETS:
            say(f"streaming: {name}, {label}")
            line, figure = row(name, label, width, scope)
            lines.append(line)
            figures.append(figure)
    notes = [
        "A window of 10 ms slides over a recording in packets; every packet: the events that enter "
        "and those that leave, then the readout. us of CPU time per packet, median [5 %..95 %] of "
        f"blocks of {BLOCK} packets. anew: program.infer on the whole window. The rival is given "
        "the window's counts ready made. Outputs are compared with onnxruntime on net.onnx after "
        "every packet, every neuron after every block.",
    ]
    return [Table("Streams", notes, header, lines, figures)]

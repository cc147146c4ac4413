"""THE DEFINITION, in plain numpy: slow, readable, and what every backend is compared with.

`dense` reads the graph as a quantised network. `ReferenceProgram.run` reads it as spiking
neurons and messages. That both end in the same integers is the theorem the project rests on
(P1, P2 in ARCHITECTURE.md); here it is not assumed but computed both ways.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from snnkit.backends import Result, Schedule, Stream, finish, recorded
from snnkit.backends.elements import ElementStream
from snnkit.backends.streaming import RecomputeStream, check_update
from snnkit.boundary import LENGTHS, input_counts
from snnkit.encodings import arrived
from snnkit.errors import SnnkitError, UsageError
from snnkit.graph import Graph, Node
from snnkit.machine import Machine
from snnkit.ops import TABLE
from snnkit.ops.op import Ints
from snnkit.sequence import Steps, by_length, unroll
from snnkit.sweeps import by_elements, spike_levels

STEP_LIMIT = 1_000_000
"""No acyclic network needs so many steps; reaching it is a fault of ours, not of the network."""


def dense(graph: Graph, counts: Mapping[str, Ints]) -> dict[str, Ints]:
    """The quantised network: value of every node, int64, for the values of the input nodes.

    [N, *shape]; in a step graph [N, T, *shape] for the nodes of sweeps with a direction.
    """
    return by_length(graph, counts, lambda part, index: unroll(graph, part, _dense_window))


def _dense_window(window: Graph, feeds: Mapping[str, Ints]) -> dict[str, Ints]:
    values: dict[str, Ints] = dict(feeds)
    for node in window.nodes:
        if node.op != "input":
            values[node.name] = TABLE[node.op].dense(node, [values[s] for s in node.inputs])
    return values


Arrive = Callable[[int], None]
"""Injects what of a window's input is there by a step, counted from 1."""


def _all_there(step: int) -> None:
    """The machine was made with all of its input."""


def _settle(machine: Machine, schedule: Schedule, arrive: Arrive = _all_there) -> None:
    arrive(1)
    for node in machine.graph.nodes:
        _receive(machine, node)
        if node.op == "spike":
            machine.settle(node)


def _deliver_all(machine: Machine) -> None:
    """Deliver everything that is under way; spike nodes take up charge and none fires."""
    for node in machine.graph.nodes:
        _receive(machine, node)


def _receive(machine: Machine, node: Node) -> None:
    if node.op == "spike":
        source = node.inputs[0]
        machine.told[source, node.name, 0] = machine.value[source]
    elif node.op != "input":
        machine.deliver(node)


def _events(machine: Machine, schedule: Schedule, arrive: Arrive = _all_there) -> None:
    for step in range(1, schedule.arrivals + 1):
        arrive(step)
        _deliver_all(machine)
        for node in machine.graph.of("spike"):
            while machine.fire(node):
                _deliver_all(machine)


def _steps(machine: Machine, schedule: Schedule, arrive: Arrive = _all_there) -> Ints:
    graph = machine.graph
    levels = spike_levels(graph)
    last = schedule.phase * max(levels.values(), default=0)
    steps = np.zeros(machine.samples, np.int64)
    for step in range(1, STEP_LIMIT):
        if step <= schedule.arrivals:
            arrive(step)
            _deliver_all(machine)
        machine.moved[:] = False
        for node in graph.of("spike"):
            if step > schedule.phase * levels[node.name]:
                machine.fire(node)
            if schedule.delay == 0:
                _deliver_all(machine)
        _deliver_all(machine)
        steps[machine.moved] = step
        if not machine.moved.any() and step > last and step >= schedule.arrivals:
            return steps
    raise SnnkitError(f"not quiescent after {STEP_LIMIT} steps")


def _fuzz(machine: Machine, schedule: Schedule, arrive: Arrive = _all_there) -> None:
    """Random firings and random partial deliveries until nothing is left to do."""
    arrive(1)
    rng = np.random.default_rng(schedule.seed)
    nodes = [n for n in machine.graph.nodes if n.op != "input"]
    idle = 0
    while idle < 2:
        # a full sweep that changes nothing proves quiescence; random picks alone could miss work
        sweep = idle == 1
        changed = False
        picks = range(len(nodes)) if sweep else rng.integers(0, len(nodes), 2 * len(nodes))
        for i in picks:
            changed |= _disturb(machine, nodes[int(i)], rng, everything=sweep)
        idle = 0 if changed else idle + 1


def _disturb(machine: Machine, node: Node, rng: np.random.Generator, everything: bool) -> bool:
    changed = bool(machine.in_flight(node))
    if everything:
        _receive(machine, node)
    elif changed or node.op == "lif":
        mask = {
            port: (rng.random(machine.value[s].shape) < rng.choice([0.1, 0.5, 1.0])).astype(
                np.int64
            )
            for port, s in enumerate(node.inputs)
        }
        if node.op == "spike":
            key = (node.inputs[0], node.name, 0)
            change = machine.value[node.inputs[0]] - machine.told[key]
            machine.told[key] = machine.told[key] + change * mask[0]
        else:
            machine.deliver(node, mask)
    if node.op == "spike":
        shape = (machine.samples, *node.shape)
        some = rng.random(shape) < rng.choice([0.1, 0.5, 1.0])
        changed |= machine.fire(
            node, np.ones(shape, np.int64) if everything else some.astype(np.int64)
        )
    return changed


class _Windows:
    """Runs the windows of one presentation as neurons, and adds up what they did."""

    def __init__(self, graph: Graph, schedule: Schedule, carry: bool, audit: bool, samples: int):
        self.graph, self.schedule, self.carry, self.audit = graph, schedule, carry, audit
        neurons, synapses = graph.of("spike", "lif"), graph.of("conv", "linear")
        self.spikes = {n.name: np.zeros((samples, 2), np.int64) for n in neurons}
        self.synops = {n.name: np.zeros(samples, np.int64) for n in synapses}
        self.steps = np.zeros(samples, np.int64)

    def of(self, index: Any) -> _Windows:
        """Windows that follow are those of these samples."""
        self.index, self.ran = index, 0
        self.kept: dict[tuple[str, ...], Machine] = {}
        return self

    def __call__(self, window: Graph, feeds: Mapping[str, Ints]) -> Mapping[str, Ints]:
        machine = self._machine(window, feeds)
        encoded, before = self._own_inputs(window), dict(machine.value)
        s = self.schedule

        def arrive(step: int) -> None:
            parts = dict(feeds)
            for name in encoded:
                change = arrived(feeds[name] - before[name], step, s.encoding, s.over)
                parts[name] = before[name] + change
            machine.inject(parts)

        # every window of mode fuzz has an order of its own
        schedule = replace(self.schedule, seed=self.schedule.seed + self.ran)
        self.ran += 1
        if schedule.mode == "steps":
            self.steps[self.index] += _steps(machine, schedule, arrive)
        else:
            order = {"settle": _settle, "events": _events, "fuzz": _fuzz}[schedule.mode]
            order(machine, schedule, arrive)
        if self.audit:
            machine.audit()
        for total, found in ((self.spikes, machine.spikes), (self.synops, machine.synops)):
            for name in found:
                total[name][self.index] += found[name]
                found[name] = np.zeros_like(found[name])
        return dict(machine.value)

    def _own_inputs(self, window: Graph) -> list[str]:
        """The model's inputs that this window is given first; they arrive in an encoding."""
        sweeps = {self.graph.sweep_of[n.name] for n in window.nodes if n.op != "input"}
        inputs = [n for n in window.of("input") if n.name in self.graph.node]
        return [
            n.name
            for n in inputs
            if self.graph.node[n.name].op == "input" and self.graph.sweep_of[n.name] in sweeps
        ]

    def _machine(self, window: Graph, feeds: Mapping[str, Ints]) -> Machine:
        """At rest; or, with `carry`, as the last window of the same sweep left it."""
        key = tuple(n.name for n in window.nodes)
        if self.carry and key in self.kept:
            return self.kept[key]
        machine = Machine(window, {name: np.zeros_like(value) for name, value in feeds.items()})
        if self.carry:
            self.kept[key] = machine
        return machine


class _Elements:
    """As `snnkit.backends.elements.Elements`, by machines."""

    path = "reference"

    def __init__(self, graph: Graph, carry: bool):
        self.graph, self.carry = by_elements(graph), carry

    def begin(self, counts: Mapping[str, Ints]) -> None:
        self.windows = _Windows(self.graph, Schedule(), self.carry, False, 1).of(slice(None))
        self.value: dict[str, Ints] = dict(counts)
        self.each = next(k for k, part in enumerate(self.graph.parts) if part[1])
        for k in range(self.each):
            self._once(k)
        self.steps = Steps(self.graph, self.each, self.value, 1, self.windows)
        self.first = True

    def _once(self, k: int) -> None:
        window = self.graph.windows[k]
        feeds = {n.name: self.value[n.name] for n in window.of("input")}
        found = self.windows(window, feeds)
        self.value.update({n.name: found[n.name] for n in self.graph.parts[k][0]})

    def step(self, counts: Mapping[str, Ints]) -> bool:
        self.value.update(counts)
        found = self.steps.step({name: self.value[name] for name in self.steps.given})
        self.value.update({n.name: found[n.name] for n in self.graph.parts[self.each][0]})
        rested, self.first = self.first or not self.carry, False
        return rested

    def values(self, names: Sequence[str]) -> dict[str, Ints]:
        for k in range(self.each + 1, len(self.graph.parts)):
            self._once(k)
        return {name: self.value[name].copy() for name in names}


class ReferenceProgram:
    """Runs a graph by its definition. For tests and small networks."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def run(
        self,
        x: Any,
        *,
        mode: str = "settle",
        record: Sequence[str] = (),
        seed: int = 0,
        delay: int = 1,
        phase: int = 0,
        carry: bool = False,
        encoding: str = "s-analog",
        over: int = 255,
        audit: bool = False,
    ) -> Result:
        """As `snnkit.backends.Program.run`; `audit` also checks the invariants after a window."""
        graph = self.graph
        schedule = Schedule(mode, seed, delay, phase, encoding, over)
        names = recorded(graph, record)
        start = time.perf_counter()
        counts = input_counts(graph, x)
        samples = len(next(iter(counts.values())))
        windows = _Windows(graph, schedule, carry, audit, samples)
        values = by_length(
            graph, counts, lambda part, index: unroll(graph, part, windows.of(index))
        )
        seconds = time.perf_counter() - start
        return Result(
            outputs=finish(graph, values, counts.get(LENGTHS)),
            counts={name: values[name] for name in names},
            spikes=windows.spikes,
            synops=windows.synops,
            steps=windows.steps,
            seconds=seconds,
            backend="reference",
            digest=graph.digest,
        )

    def stream(self, update: str = "auto") -> Stream:
        """As `snnkit.backends.Program.stream`; without steps, by running the whole window after
        each packet."""
        check_update(self.graph, update)
        if self.graph.sweeps:
            return ElementStream(self.graph, _Elements(self.graph, update != "recompute"))
        if update == "incremental":
            raise UsageError("update 'incremental'; the reference recomputes every packet")
        return RecomputeStream(self, [("", "the reference computes every packet anew")])


class ReferenceBackend:
    name = "reference"

    def unsupported(self, graph: Graph) -> list[tuple[str, str]]:
        return []

    def compile(self, graph: Graph) -> ReferenceProgram:
        graph.check()
        return ReferenceProgram(graph)


def backend() -> ReferenceBackend:
    return ReferenceBackend()

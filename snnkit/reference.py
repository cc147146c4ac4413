"""THE DEFINITION, in plain numpy: slow, readable, and what every backend is compared with.

`dense` reads the graph as a quantised network. `ReferenceProgram.run` reads it as spiking
neurons and messages. That both end in the same integers is the theorem the project rests on
(P1, P2 in ARCHITECTURE.md); here it is not assumed but computed both ways.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from snnkit.backends import Result, Schedule, finish, recorded
from snnkit.backends.streaming import RecomputeStream, check_update
from snnkit.boundary import LENGTHS, input_counts
from snnkit.errors import SnnkitError, UsageError
from snnkit.graph import Graph, Node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints
from snnkit.ops.spike import ladder_rows
from snnkit.ops.synapses import fan_out
from snnkit.sequence import by_length, unroll
from snnkit.sweeps import RESTING, spike_levels

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


class Neurons:
    """The neurons of one spike node, for N samples: charge in, unit or graded spikes out."""

    def __init__(self, node: Node, samples: int):
        self.node = node
        self.init = np.broadcast_to(node.params["init"].astype(np.int64), node.shape)
        self.uniform = node.attrs["kind"] == "uniform"
        shape = (samples, *node.shape)
        if self.uniform:
            self.theta = np.broadcast_to(node.params["theta"].astype(np.int64), node.shape)
            self.cell = np.zeros(shape, np.int64)
        else:
            self.row, self.thresholds, self.values = ladder_rows(node)
            # the tracer starts at zero: in the first cell whose value is zero
            start = (self.values == 0).argmax(axis=1)
            self.cell = np.broadcast_to(start[self.row], shape).copy()

    @property
    def tracer(self) -> Ints:
        """S: the sum of all spikes so far."""
        return self.cell if self.uniform else self.values[self.row, self.cell]

    def direction(self, charge: Ints) -> Ints:
        """+1 where a neuron is able to move up, -1 where down, else 0."""
        total = charge + self.init
        if self.uniform:
            v = total - self.theta * self.cell
            up = (v >= self.theta) & (self.cell < self.node.hi)
            down = (v < 0) & (self.cell > self.node.lo)
        else:
            steps = self.thresholds.shape[1]
            above = self.thresholds[self.row, np.minimum(self.cell, steps - 1)]
            below = self.thresholds[self.row, np.maximum(self.cell - 1, 0)]
            up = (self.cell < steps) & (total >= above)
            down = (self.cell > 0) & (total < below)
        return up.astype(np.int64) - down.astype(np.int64)

    def move(self, step: Ints) -> Ints:
        """Move every neuron by `step` cells; returns the spikes that leave."""
        before = self.tracer.copy()
        self.cell = self.cell + step
        return self.tracer - before


class Machine:
    """All state of N samples while events are in flight.

    value[n] is what node n holds; told[n] is what its consumers have been told of it. A delivery
    to a consumer is the difference. Nothing is clamped and nothing leaks.
    """

    def __init__(self, graph: Graph, counts: Mapping[str, Ints]):
        self.graph = graph
        self.samples = len(next(iter(counts.values())))
        zero = {n.name: np.zeros((self.samples, *n.shape), np.int64) for n in graph.nodes}
        self.neurons = {n.name: Neurons(n, self.samples) for n in graph.of("spike")}
        # at rest every tracer is zero, so every value is its own dense rule of zeros
        self.value: dict[str, Ints] = dict(zero)
        for node in graph.nodes:
            if node.op not in RESTING:
                sources = [self.value[s] for s in node.inputs]
                self.value[node.name] = TABLE[node.op].dense(node, sources).astype(np.int64)
        self.told = {
            (source, node.name, port): self.value[source].copy()
            for node in graph.nodes
            for port, source in enumerate(node.inputs)
        }
        neurons = graph.of("spike", "lif")
        self.spikes = {n.name: np.zeros((self.samples, 2), np.int64) for n in neurons}
        self.synops = {n.name: np.zeros(self.samples, np.int64) for n in graph.of("conv", "linear")}
        self.moved = np.zeros(self.samples, bool)
        self.fan_out = {
            n.name: fan_out(n, graph.node[n.inputs[0]]) for n in graph.of("conv", "linear")
        }
        self.inject(counts)

    def inject(self, counts: Mapping[str, Ints]) -> None:
        """Give the input nodes these values; consumers will be told the differences."""
        self.value.update(counts)

    def deliver(self, node: Node, mask: Mapping[int, Ints] | None = None) -> None:
        """Tell `node` what changed at its inputs (where `mask`, by port, is 1), and update it."""
        op = TABLE[node.op]
        changes = []
        for port, source in enumerate(node.inputs):
            change = self.value[source] - self.told[source, node.name, port]
            if mask is not None:
                change = change * mask[port]
            self.told[source, node.name, port] = self.told[source, node.name, port] + change
            changes.append(change)
        # a lif may fire by its bias alone, without ever being told anything
        if node.op != "lif" and not any(c.any() for c in changes):
            return
        if node.name in self.synops:
            hit = (changes[0] != 0) * self.fan_out[node.name]
            self.synops[node.name] += hit.reshape(self.samples, -1).sum(axis=1)
        if op.linear or node.op == "readout":
            self.value[node.name] = self.value[node.name] + op.dense(node, changes, constant=False)
        else:
            seen = [self.told[s, node.name, p] for p, s in enumerate(node.inputs)]
            change = op.dense(node, seen) - self.value[node.name]
            if node.op == "lif":
                self._tally(node, change)
            else:
                self.value[node.name] = self.value[node.name] + change

    def charge(self, node: Node) -> Ints:
        """The charge of a spike node: what it has been told."""
        return self.told[node.inputs[0], node.name, 0]

    def fire(self, node: Node, mask: Ints | None = None) -> bool:
        """One unit spike from each neuron able to fire (where `mask` is 1); False if none did."""
        neurons = self.neurons[node.name]
        step = neurons.direction(self.charge(node))
        return self._emit(node, step if mask is None else step * mask)

    def settle(self, node: Node) -> None:
        """One graded spike from each neuron, straight to the quiescent value of its charge."""
        target = TABLE["spike"].dense(node, [self.charge(node)])
        neurons = self.neurons[node.name]
        before = neurons.tracer.copy()
        while (step := neurons.direction(self.charge(node))).any():
            neurons.move(step)
        if not np.array_equal(neurons.tracer, target):
            raise SnnkitError(f"node '{node.name}': the quiescent value is not the staircase's")
        self._tally(node, neurons.tracer - before)

    def _emit(self, node: Node, step: Ints) -> bool:
        if not step.any():
            return False
        # a staircase may have the same value in two cells: such a neuron moves without a spike
        self.moved |= (step != 0).reshape(self.samples, -1).any(axis=1)
        self._tally(node, self.neurons[node.name].move(step))
        return True

    def _tally(self, node: Node, spikes: Ints) -> None:
        self.value[node.name] = self.value[node.name] + spikes
        flat = spikes.reshape(self.samples, -1)
        self.spikes[node.name][:, 0] += np.maximum(flat, 0).sum(axis=1)
        self.spikes[node.name][:, 1] += np.maximum(-flat, 0).sum(axis=1)

    def audit(self) -> None:
        """Charge is conserved and every value is within its proved bounds, at this instant."""
        for node in self.graph.nodes:
            value = self.value[node.name]
            if value.size and not (node.lo <= value.min() and value.max() <= node.hi):
                raise SnnkitError(f"node '{node.name}': value leaves {node.lo}..{node.hi}")
            if node.op not in RESTING:
                told = [self.told[s, node.name, p] for p, s in enumerate(node.inputs)]
                if not np.array_equal(value, TABLE[node.op].dense(node, told)):
                    raise SnnkitError(f"node '{node.name}': charge is not conserved")


def _settle(machine: Machine, schedule: Schedule) -> None:
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


def _events(machine: Machine, schedule: Schedule) -> None:
    _deliver_all(machine)
    for node in machine.graph.of("spike"):
        while machine.fire(node):
            _deliver_all(machine)


def _steps(machine: Machine, schedule: Schedule) -> Ints:
    graph = machine.graph
    levels = spike_levels(graph)
    last = schedule.phase * max(levels.values(), default=0)
    steps = np.zeros(machine.samples, np.int64)
    _deliver_all(machine)
    for step in range(1, STEP_LIMIT):
        machine.moved[:] = False
        for node in graph.of("spike"):
            if step > schedule.phase * levels[node.name]:
                machine.fire(node)
            if schedule.delay == 0:
                _deliver_all(machine)
        _deliver_all(machine)
        steps[machine.moved] = step
        if not machine.moved.any() and step > last:
            return steps
    raise SnnkitError(f"not quiescent after {STEP_LIMIT} steps")


def _fuzz(machine: Machine, schedule: Schedule) -> None:
    """Random firings and random partial deliveries until nothing is left to do."""
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
    before = [machine.told[s, node.name, p] for p, s in enumerate(node.inputs)]
    if everything:
        _receive(machine, node)
    else:
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
    after = [machine.told[s, node.name, p] for p, s in enumerate(node.inputs)]
    changed = any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
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
        self.schedule, self.carry, self.audit = schedule, carry, audit
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
        # every window of mode fuzz has an order of its own
        schedule = replace(self.schedule, seed=self.schedule.seed + self.ran)
        self.ran += 1
        if schedule.mode == "steps":
            self.steps[self.index] += _steps(machine, schedule)
        else:
            {"settle": _settle, "events": _events, "fuzz": _fuzz}[schedule.mode](machine, schedule)
        if self.audit:
            machine.audit()
        for total, found in ((self.spikes, machine.spikes), (self.synops, machine.synops)):
            for name in found:
                total[name][self.index] += found[name]
                found[name] = np.zeros_like(found[name])
        return dict(machine.value)

    def _machine(self, window: Graph, feeds: Mapping[str, Ints]) -> Machine:
        """At rest; or, with `carry`, as the last window of the same sweep left it."""
        if not self.carry:
            return Machine(window, feeds)
        key = tuple(n.name for n in window.nodes)
        if key in self.kept:
            self.kept[key].inject(feeds)
        else:
            self.kept[key] = Machine(window, feeds)
        return self.kept[key]


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
        audit: bool = False,
    ) -> Result:
        """As `snnkit.backends.Program.run`; `audit` also checks the invariants after a window."""
        graph = self.graph
        schedule = Schedule(mode, seed, delay, phase)
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

    def stream(self, update: str = "auto") -> RecomputeStream:
        """As `snnkit.backends.Program.stream`, by running the whole window after each packet."""
        check_update(self.graph, update)
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

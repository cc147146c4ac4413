"""Neurons and messages of the definition: what is in flight, and who has been told of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from snnkit.errors import SnnkitError
from snnkit.graph import Graph, Node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints
from snnkit.ops.spike import ladder_rows
from snnkit.ops.synapses import fan_out
from snnkit.sweeps import RESTING


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
    to a consumer is the difference. Nothing is clamped and nothing leaks. Arrays are replaced and
    never written to, so where `told` is the very array in `value` there is nothing to deliver.
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
            (source, node.name, port): self.value[source]
            for node in graph.nodes
            for port, source in enumerate(node.inputs)
        }
        neurons = graph.of("spike", "lif")
        self.spikes = {n.name: np.zeros((self.samples, 2), np.int64) for n in neurons}
        self.synops = {n.name: np.zeros(self.samples, np.int64) for n in graph.of("conv", "linear")}
        self.moved = np.zeros(self.samples, bool)
        # the charge at which no neuron of a spike node was able to fire
        self.quiet: dict[str, Ints] = {}
        self.fan_out = {
            n.name: fan_out(n, graph.node[n.inputs[0]]) for n in graph.of("conv", "linear")
        }
        self.inject(counts)

    def inject(self, counts: Mapping[str, Ints]) -> None:
        """Give the input nodes these values; consumers will be told the differences."""
        self.value.update({name: np.array(value) for name, value in counts.items()})

    def in_flight(self, node: Node) -> list[int]:
        """The ports of `node` whose source holds a value that it has not been told in full."""
        found = []
        for port, source in enumerate(node.inputs):
            value, told = self.value[source], self.told[source, node.name, port]
            if value is not told and not np.array_equal(value, told):
                found.append(port)
        return found

    def deliver(self, node: Node, mask: Mapping[int, Ints] | None = None) -> None:
        """Tell `node` what changed at its inputs (where `mask`, by port, is 1), and update it."""
        op = TABLE[node.op]
        keys = [(source, node.name, port) for port, source in enumerate(node.inputs)]
        # a lif may fire by its bias alone, without ever being told anything
        idle = node.op != "lif"
        if idle and all(self.value[key[0]] is self.told[key] for key in keys):
            return
        changes = []
        for port, key in enumerate(keys):
            change = self.value[key[0]] - self.told[key]
            if mask is None:
                self.told[key] = self.value[key[0]]
            else:
                change = change * mask[port]
                self.told[key] = self.told[key] + change
            changes.append(change)
        if idle and not any(c.any() for c in changes):
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
        charge = self.charge(node)
        if self.quiet.get(node.name) is charge:
            return False
        step = self.neurons[node.name].direction(charge)
        if not step.any():
            self.quiet[node.name] = charge
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

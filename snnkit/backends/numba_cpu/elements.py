"""Sequences of the general engine, element by element: sweeps of one sample that stay as they are.

A step graph is regrouped (`snnkit.sweeps.by_elements`), so that an element is one window, one
compiled call. What happens once before the first element runs in `begin`, what happens once on
the last one when somebody asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from snnkit.backends import MODES
from snnkit.backends.numba_cpu import kernels as k
from snnkit.backends.numba_cpu.general import GeneralEngine, Sweep
from snnkit.backends.streaming import follow
from snnkit.graph import Node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints

TRY = 32


class Resident:
    """One sweep of one sample, run step by step in a work area of its own."""

    def __init__(self, sweep: Sweep):
        self.sweep, self.layout, self.work = sweep, sweep.layout, sweep.new_work()
        self.x = np.zeros((1, 1, sum(n.units for n in sweep.feeds)), np.int32)
        self.first = np.zeros((1, sweep.held.take.size), np.int32)
        self.how = np.zeros(10, np.int64)
        self.how[[k.MODE, k.DIRECTION, k.OVER]] = MODES.index("settle"), 1, 1
        self.ignored = (
            np.zeros(0, np.int64),
            np.zeros((1, 1, 0), np.int32),
            np.zeros((1, len(self.layout.net.nodes), 3), np.int64),
            np.zeros(1, np.int64),
        )
        self.one = np.ones(1, np.int64)
        self.place, at = {}, 0
        for n in sweep.feeds:
            self.place[n.name] = (n, self.x[0, 0, at : at + n.units])
            at += n.units

    def give(self, name: str, value: Ints) -> None:
        """A feed of the next step, [1, *shape]."""
        node, place = self.place[name]
        place[:] = self.layout.to_block(node, value)[0]

    def run(self, resume: bool, carry: bool) -> None:
        """One step. resume : latches and membrane potentials go on; carry : everything does."""
        self.how[k.RESUME], self.how[k.CARRY] = resume, carry
        held = self.sweep.held
        k.run_samples(
            self.layout.net, self.work, held, self.how, self.one, self.x, self.first, *self.ignored
        )

    def start(self, values: Mapping[str, Ints]) -> None:
        """What the latches hold at the first step. values : of the nodes that they start from."""
        for n, row in zip(self.sweep.latches, self.sweep.held.rows, strict=True):
            value = TABLE["latch"].dense(n, [values[s] for s in n.inputs])
            block = self.layout.to_block(n, np.broadcast_to(value, (1, *n.shape)))
            self.first[0, row[1] : row[2]] = block[0]

    def value(self, node: Node) -> Ints:
        """What a node of the window holds, [1, *shape]."""
        begin = self.layout.net.nodes[self.layout.index[node.name], k.VALUE]
        block = self.work.state[begin : begin + node.units].astype(np.int64)
        return self.layout.from_block(node, block[None])


class ElementEngine:
    """As `snnkit.backends.elements.Elements`.

    Update "auto" carries state from window to window (`incremental`) or starts at rest
    (`recompute`), whichever took less time on the elements so far; every TRY-th element measures
    the other one again.
    """

    path = "generic"

    def __init__(self, engine: GeneralEngine, update: str):
        self.graph, self.update = engine.graph, update
        where = next(i for i, sweep in enumerate(engine.sweeps) if sweep.direction)
        self.before = [Resident(sweep) for sweep in engine.sweeps[:where]]
        self.each = Resident(engine.sweeps[where])
        self.after = [Resident(sweep) for sweep in engine.sweeps[where + 1 :]]
        self.home = {n.name: r for r in self._all() for n in r.sweep.nodes}
        self.seconds = {True: 0.0, False: 0.0}

    def _all(self) -> list[Resident]:
        return [*self.before, self.each, *self.after]

    def _hand(self, reader: Resident) -> None:
        """Give a sweep what it reads of the ones before it."""
        for name in reader.place:
            home = self.home[name]
            if home is not reader:
                reader.give(name, home.value(self.graph.node[name]))

    def begin(self, counts: Mapping[str, Ints]) -> None:
        values = {}
        for resident in self.before:
            for name, value in counts.items():
                resident.give(name, value)
            resident.run(False, False)
            values = {n.name: resident.value(n) for n in resident.sweep.nodes}
        self._hand(self.each)
        self.each.start(values)
        self.taken, self.known = 0, False

    def step(self, counts: Mapping[str, Ints]) -> bool:
        for name, value in counts.items():
            self.each.give(name, value)
        carry = bool(self.taken) and self._carries()
        start = time.perf_counter()
        self.each.run(bool(self.taken), carry)
        spent = time.perf_counter() - start
        self.seconds[carry] = follow(self.seconds[carry] or spent, spent)
        self.taken, self.known = self.taken + 1, False
        return not carry

    def _carries(self) -> bool:
        if self.update != "auto":
            return self.update == "incremental"
        faster = self.seconds[True] <= self.seconds[False]
        return faster != (self.taken % TRY == 0)

    def values(self, names: Sequence[str]) -> dict[str, Ints]:
        if not self.known:
            for resident in self.after:
                self._hand(resident)
                resident.run(False, False)
        self.known = True
        return {name: self.home[name].value(self.graph.node[name]) for name in names}

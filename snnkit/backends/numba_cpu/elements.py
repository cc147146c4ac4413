"""Sequences of the general engine, element by element: sweeps of one sample that stay as they are.

A step graph is regrouped (`snnkit.sweeps.by_elements`), so that an element is one window, one
compiled call. What happens once before the first element runs in `begin`, what happens once on
the last one when somebody asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu import kernels as k
from snnkit.backends.numba_cpu.general import GeneralEngine, Sweep, compiled
from snnkit.backends.streaming import follow
from snnkit.graph import Node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints

Array = npt.NDArray[Any]

TRY = 32
FLAGS = (False, True)


def _how(resume: bool, carry: bool) -> Array:
    how = np.zeros(k.OVER + 1, np.int64)
    how[[k.MODE, k.DIRECTION, k.OVER]] = k.SETTLE, 1, 1
    how[[k.RESUME, k.CARRY]] = resume, carry
    return how


class Resident:
    """One sweep of one sample, run step by step in a work area of its own."""

    def __init__(self, sweep: Sweep):
        self.sweep, self.layout, self.work = sweep, sweep.layout, sweep.new_work()
        self.x = np.zeros((1, 1, sum(n.units for n in sweep.feeds)), np.int32)
        self.first = np.zeros((1, sweep.held.take.size), np.int32)
        self.how = {(resume, carry): _how(resume, carry) for resume in FLAGS for carry in FLAGS}
        self.ignored = (
            np.zeros(0, np.int64),
            np.zeros((1, 1, 0), np.int32),
            np.zeros((1, len(self.layout.net.nodes), 3), np.int64),
            np.zeros(1, np.int64),
        )
        self.one = np.ones(1, np.int64)
        self.given, at = {}, 0
        for n in sweep.feeds:
            self.given[n.name] = self.layout.from_block(n, self.x[0, :, at : at + n.units])
            at += n.units
        self.value = {n.name: self._view(n) for n in sweep.nodes}
        self.call = compiled()

    def _view(self, node: Node) -> Array:
        """Where the value of a node lies, [1, *shape]."""
        begin = self.layout.net.nodes[self.layout.index[node.name], k.VALUE]
        return self.layout.from_block(node, self.work.state[None, begin : begin + node.units])

    def run(self, resume: bool, carry: bool) -> None:
        """One step. resume : latches and membrane potentials go on; carry : everything does."""
        net, held, how = self.layout.net, self.sweep.held, self.how[resume, carry]
        self.call(net, self.work, held, how, self.one, self.x, self.first, *self.ignored)

    def start(self, values: Mapping[str, Ints]) -> None:
        """What the latches hold at the first step. values : of the nodes that they start from."""
        for n, row in zip(self.sweep.latches, self.sweep.held.rows, strict=True):
            value = TABLE["latch"].dense(n, [values[s] for s in n.inputs])
            block = self.layout.to_block(n, np.broadcast_to(value, (1, *n.shape)))
            self.first[0, row[1] : row[2]] = block[0]


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
        for name, given in reader.given.items():
            home = self.home[name]
            if home is not reader:
                given[...] = home.value[name]

    def begin(self, counts: Mapping[str, Ints]) -> None:
        values: Mapping[str, Array] = {}
        for resident in self.before:
            for name, value in counts.items():
                resident.given[name][...] = value
            resident.run(False, False)
            values = resident.value
        self._hand(self.each)
        self.each.start(values)
        self.taken, self.known = 0, False

    def step(self, counts: Mapping[str, Ints]) -> bool:
        for name, value in counts.items():
            self.each.given[name][...] = value
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
        return {name: self.home[name].value[name].astype(np.int64) for name in names}

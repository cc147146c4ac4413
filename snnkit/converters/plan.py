"""When each node of a network under construction runs: once, or at every element of a sequence.

A node has a value per element if one of its inputs has. Nodes of a *cell* depend on each other
through latches and stay together, in one sweep of the cell's direction. The others are free:
`sweeps` puts all of them into as few sweeps as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from snnkit.graph import Node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints
from snnkit.sweeps import DOORS, order

When = Literal["as inputs", "once", "steps", "forward", "backward"]
ONCE = 0
EITHER = 2
"""Directions beside +1 and -1: a node that runs once, and one that runs in either direction."""
DIRECTIONS: dict[str, int] = {"once": ONCE, "steps": EITHER, "forward": 1, "backward": -1}


class Plan:
    """direction : of each node. cell : number of the cell that a node belongs to.
    latches : latch -> the node whose value it holds."""

    def __init__(self, nodes: Mapping[str, Node]):
        self.nodes = nodes
        self.direction: dict[str, int] = {}
        self.cell: dict[str, int] = {}
        self.cells: list[list[str]] = []
        self.latches: dict[str, str] = {}
        self._inside = ONCE

    @contextmanager
    def in_cell(self, direction: int) -> Iterator[None]:
        """Nodes placed meanwhile make a cell of their own."""
        self.cells.append([])
        self._inside = direction
        try:
            yield
        finally:
            self._inside = ONCE

    def place(self, node: Node, when: When) -> None:
        name = node.name
        if self._inside and when == "as inputs":
            self.direction[name] = self._inside
            self.cell[name] = len(self.cells) - 1
            self.cells[-1].append(name)
        elif when == "as inputs":
            timed = any(self.direction[s] != ONCE for s in node.inputs)
            self.direction[name] = EITHER if timed else ONCE
        else:
            self.direction[name] = DIRECTIONS[when]

    def timed(self, node: Node) -> bool:
        return self.direction[node.name] != ONCE

    def ending(self, node: Node, direction: int) -> Node | None:
        """The node, if it runs (from now on) in that direction; else None."""
        if self.direction[node.name] == EITHER:
            self.direction[node.name] = direction
        return node if self.direction[node.name] == direction else None

    def used(self, names: Sequence[str]) -> tuple[Node, ...]:
        """The nodes that the named ones depend on, themselves included, in topological order."""
        found = ancestors(self.nodes, self.latches, names)
        return tuple(n for n in self.nodes.values() if n.name in found)

    def sweeps(self, names: Sequence[str]) -> tuple[tuple[Node, ...], tuple[tuple[int, int], ...]]:
        """The used nodes in the order in which they run, and (number, direction) of each sweep;
        no sweeps where nothing has a value per element."""
        nodes = self.used(names)
        if all(self.direction[n.name] == ONCE for n in nodes):
            return nodes, ()
        left = self._units(nodes)
        done: set[str] = set()
        ordered: list[Node] = []
        sweeps: list[tuple[int, int]] = []
        while left:
            # what runs once first: nothing that it reads is under way
            fills = [(d, self._fill(left, done, d)) for d in (ONCE, 1, -1)]
            direction, chosen = next(
                (f for f in fills[:1] if f[1]), max(fills[1:], key=lambda f: len(f[1]))
            )
            members = {n.name for i in chosen for n in left[i]}
            part = [n for n in nodes if n.name in members]
            sweeps.append((len(part), direction))
            ordered += part
            done |= members
            left = [unit for i, unit in enumerate(left) if i not in chosen]
        return tuple(ordered), tuple(sweeps)

    def _units(self, nodes: Sequence[Node]) -> list[list[Node]]:
        """Cells, and the other nodes one by one."""
        units: dict[object, list[Node]] = {}
        for n in nodes:
            units.setdefault(self.cell.get(n.name, n.name), []).append(n)
        return list(units.values())

    def _fill(self, units: list[list[Node]], done: set[str], direction: int) -> list[int]:
        """Which units can run in one sweep of that direction, now."""
        inside = set(done)
        chosen: list[int] = []
        grown = True
        while grown:
            grown = False
            for i, unit in enumerate(units):
                runs = self.direction[unit[0].name]
                if i in chosen or runs not in ((direction, EITHER) if direction else (ONCE,)):
                    continue
                own = {n.name for n in unit}
                if {s for n in unit for s in n.inputs} - own <= inside and self._begins(unit, done):
                    chosen.append(i)
                    inside |= own
                    grown = True
        return chosen

    @staticmethod
    def _begins(unit: list[Node], done: set[str]) -> bool:
        """Whether what the latches of a cell start as is there before the sweep."""
        return all(s in done for n in unit if n.op == "latch" for s in n.inputs)

    def values(self, node: Node, value: Callable[[Node], Ints]) -> dict[str, Ints]:
        """The node's values, and those of its cell, from the values of what lies before."""
        if node.name in self.cell:
            return self._cell_values(self.cell[node.name], value)
        sources = [self.nodes[s] for s in node.inputs]
        given = [value(s) for s in sources]
        if node.op in DOORS:
            return {node.name: given[0]}
        if not self.timed(node):
            given = [
                v[:, -1 if self.direction[s.name] > 0 else 0] if self.timed(s) else v
                for s, v in zip(sources, given, strict=True)
            ]
            return {node.name: TABLE[node.op].dense(node, given)}
        lead = next(v.shape[:2] for s, v in zip(sources, given, strict=True) if self.timed(s))
        spread = [
            v if self.timed(s) else np.broadcast_to(v[:, None], (*lead, *s.shape))
            for s, v in zip(sources, given, strict=True)
        ]
        flat = [v.reshape(-1, *s.shape) for s, v in zip(sources, spread, strict=True)]
        return {node.name: TABLE[node.op].dense(node, flat).reshape(*lead, *node.shape)}

    def _cell_values(self, cell: int, value: Callable[[Node], Ints]) -> dict[str, Ints]:
        nodes = [self.nodes[name] for name in self.cells[cell]]
        own = {n.name for n in nodes}
        given = {s: value(self.nodes[s]) for n in nodes for s in n.inputs if s not in own}
        samples, steps = next(v.shape[:2] for s, v in given.items() if self.direction[s] != ONCE)
        found = {n.name: np.zeros((samples, steps, *n.shape), np.int64) for n in nodes}
        held: dict[str, Ints] = {}
        for t in order(self.direction[nodes[0].name], steps):
            at = {s: v[:, t] if self.direction[s] != ONCE else v for s, v in given.items()}
            for n in nodes:
                sources = [at[s] for s in n.inputs]
                now = held[n.name] if n.name in held else TABLE[n.op].dense(n, sources)
                at[n.name] = np.broadcast_to(now, (samples, *n.shape))
                found[n.name][:, t] = now
            held = {name: at[self.latches[name]] for name in own if name in self.latches}
        return found


def ancestors(
    known: Mapping[str, Node], latches: Mapping[str, str], last: Sequence[str]
) -> set[str]:
    """Names of the nodes that the named ones depend on, themselves included, latches followed."""
    used: set[str] = set()
    stack = list(last)
    while stack:
        name = stack.pop()
        if name not in used:
            used.add(name)
            stack.extend([*known[name].inputs, *([latches[name]] if name in latches else [])])
    return used

"""Which channels of a graph may change places, and the graph with other places.

Renumbering the outputs of a layer changes nothing, if everything that reads them is renumbered
alike. An axis of a value is described by *parts*: runs of units that belong to one class of
channels, which share one permutation, or to none and stay where they are. Ops that tie two axes
(sums of branches, depthwise convolutions) make two classes one; an op through which a permutation
cannot be followed keeps the class in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from snnkit.graph import Graph, Node, make_node
from snnkit.ops.arithmetic import multiplier
from snnkit.ops.op import Shape

Array = npt.NDArray[Any]

MOST_PARTS = 2**12
"""Parts of one axis; behind a reshape with more rows than that, channels stay."""


class Part(NamedTuple):
    """`size` units of one class side by side, each `inner` neighbours long; class -1 stays."""

    owner: int
    size: int
    inner: int

    @property
    def units(self) -> int:
        return self.size * self.inner


Axis = tuple[Part, ...]


def still(size: int) -> Axis:
    """An axis whose units stay where they are."""
    return (Part(-1, size, 1),)


class Symmetry:
    """The classes of a graph. axes : by node, one description per axis of its value."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.axes: dict[str, list[Axis]] = {}
        self._parent: list[int] = []
        self._size: list[int] = []
        self._kept: set[int] = set()
        rules = {"conv": self._conv, "linear": self._linear, "add": self._add}
        rules |= {"sum_pool": self._pool, "max_pool": self._pool, "route": self._route}
        for node in graph.nodes:
            if node.op == "input":
                axes = [still(n) for n in node.shape]
            elif node.op == "spike":
                axes = self.axes[node.inputs[0]]
            elif node.op == "readout":
                axes = self._stay(self.axes[node.inputs[0]])
            elif node.op in rules:
                axes = rules[node.op](node, [self.axes[name] for name in node.inputs])
            else:
                self._stay([axis for name in node.inputs for axis in self.axes[name]])
                axes = [still(n) for n in node.shape]
            self.axes[node.name] = axes

    def class_of(self, owner: int) -> int:
        """The class that a part belongs to by now; -1 if it has to stay."""
        while owner >= 0 and self._parent[owner] != owner:
            owner = self._parent[owner]
        return -1 if owner in self._kept else owner

    def classes(self) -> dict[int, int]:
        """Every class that may be permuted, and its number of channels."""
        found = (self.class_of(i) for i in range(len(self._parent)))
        return {c: self._size[c] for c in sorted(set(found)) if c >= 0 and self._size[c] > 1}

    def _new(self, size: int) -> Axis:
        self._parent.append(len(self._parent))
        self._size.append(size)
        return (Part(len(self._parent) - 1, size, 1),)

    def _stay(self, axes: Sequence[Axis]) -> list[Axis]:
        for part in (p for axis in axes for p in axis):
            root = self.class_of(part.owner)
            if root >= 0:
                self._kept.add(root)
        return [still(sum(p.units for p in axis)) for axis in axes]

    def _tied(self, one: Axis, other: Axis) -> Axis:
        """The axis that both become, so that a unit of the one meets the same of the other."""
        if [p[1:] for p in one] != [p[1:] for p in other]:
            self._stay([one, other])
            return one
        for a, b in zip(one, other, strict=True):
            first, second = self.class_of(a.owner), self.class_of(b.owner)
            if first < 0 or second < 0:
                self._stay([(a,), (b,)])
            elif first != second:
                self._parent[max(first, second)] = min(first, second)
        return one

    def _conv(self, node: Node, inputs: list[list[Axis]]) -> list[Axis]:
        weight, group = node.params["weight"], int(node.attrs["group"])
        channels = inputs[0][0]
        rest = [still(n) for n in node.shape[1:]]
        self._stay(inputs[0][1:])
        if group == 1:
            return [self._new(len(weight)), *rest]
        if weight.shape[1] == 1:
            per = len(weight) // group
            return [tuple(p._replace(inner=p.inner * per) for p in channels), *rest]
        self._stay([channels])
        return [still(len(weight)), *rest]

    def _linear(self, node: Node, inputs: list[list[Axis]]) -> list[Axis]:
        return [*inputs[0][:-1], self._new(node.shape[-1])]

    def _add(self, node: Node, inputs: list[list[Axis]]) -> list[Axis]:
        axes = []
        for i, size in enumerate(node.shape):
            lanes = [a[i] for a in inputs if sum(p.units for p in a[i]) == size]
            axis = lanes[0] if lanes else still(size)
            for other in lanes[1:]:
                axis = self._tied(axis, other)
            axes.append(axis)
        return axes

    def _pool(self, node: Node, inputs: list[list[Axis]]) -> list[Axis]:
        if "axes" not in node.attrs:
            self._stay(inputs[0][1:])
            return [inputs[0][0], *(still(n) for n in node.shape[1:])]
        # in a sum or a maximum over a whole axis the order of its units does not matter
        reduced = [
            still(1) if i in node.attrs["axes"] else axis for i, axis in enumerate(inputs[0])
        ]
        if node.attrs["keepdims"]:
            return reduced
        return [axis for i, axis in enumerate(reduced) if i not in node.attrs["axes"]]

    def _route(self, node: Node, inputs: list[list[Axis]]) -> list[Axis]:
        kind, source = node.attrs["kind"], inputs[0]
        if kind == "transpose":
            return [source[i] for i in node.attrs["perm"]]
        if kind == "reshape":
            return self._reshape(node, source)
        if kind == "index":
            # the index absorbs any order of its source, and gives any order
            return [self._new(node.shape[0]), *(still(n) for n in node.shape[1:])]
        along = node.attrs["axis"]
        axes = list(source)
        for other in inputs[1:]:
            for i in range(len(axes)):
                axes[i] = axes[i] + other[i] if i == along else self._tied(axes[i], other[i])
        return axes

    def _reshape(self, node: Node, source: list[Axis]) -> list[Axis]:
        """Runs of neighbouring axes with the same number of units become one another."""
        before = self.graph.node[node.inputs[0]].shape
        axes: list[Axis] = []
        for old, new in matching_runs(before, node.shape):
            merged = self._merged(source[old], before[old])
            behind = math.prod(node.shape[new][1:])
            if any(p.inner % behind for p in merged):
                self._stay([merged])
                axes += [still(n) for n in node.shape[new]]
            else:
                first = tuple(p._replace(inner=p.inner // behind) for p in merged)
                axes += [first, *(still(n) for n in node.shape[new][1:])][: new.stop - new.start]
        return axes

    def _merged(self, axes: list[Axis], shape: Shape) -> Axis:
        """Several axes as one, row by row."""
        moving = [
            i for i, axis in enumerate(axes) if any(self.class_of(p.owner) >= 0 for p in axis)
        ]
        before = math.prod(shape[: moving[0]]) if moving else 1
        if len(moving) != 1 or before * len(axes[moving[0]]) > MOST_PARTS:
            self._stay(axes)
            return still(math.prod(shape))
        behind = math.prod(shape[moving[0] + 1 :])
        return tuple(p._replace(inner=p.inner * behind) for p in axes[moving[0]]) * before


def matching_runs(before: Shape, after: Shape) -> list[tuple[slice, slice]]:
    """The shortest runs of axes of two shapes with equal products, in order."""
    runs, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        first, other = i, j
        left = right = 1
        while True:
            if left <= right and i < len(before) and (left < right or i == first):
                left, i = left * before[i], i + 1
            elif j < len(after) and (right < left or j == other):
                right, j = right * after[j], j + 1
            else:
                break
        runs.append((slice(first, i), slice(other, j)))
    return runs


class Relabelling:
    """New places for channels. orders : by class of `symmetry`, which channel each place gets."""

    def __init__(self, symmetry: Symmetry, orders: Mapping[int, Array]):
        self.symmetry, self.orders = symmetry, orders
        self._axes: dict[str, list[Array]] = {}
        for node in symmetry.graph.nodes:
            axes = symmetry.axes[node.name]
            self._axes[node.name] = [self._order(axis) for axis in axes]

    def _order(self, axis: Axis) -> Array:
        parts, first = [], 0
        for part in axis:
            units = np.arange(first, first + part.units).reshape(part.size, part.inner)
            order = self.orders.get(self.symmetry.class_of(part.owner))
            parts.append((units if order is None else units[order]).reshape(-1))
            first += part.units
        return np.concatenate(parts)

    def units(self, name: str) -> Array:
        """For each unit of the new node, the unit of the old one whose value it has."""
        shape = self.symmetry.graph.node[name].shape
        flat = np.arange(math.prod(shape)).reshape(shape)
        return flat[np.ix_(*self._axes[name])].reshape(-1)

    def graph(self) -> Graph:
        """The graph with the channels in their new places; names and outputs stay."""
        old = self.symmetry.graph
        made: dict[str, Node] = {}
        for node in old.nodes:
            inputs = [made[name] for name in node.inputs]
            made[node.name] = make_node(node.name, node.op, inputs, self._params(node), node.attrs)
        return replace(old, nodes=tuple(made.values()))

    def _params(self, node: Node) -> dict[str, Array]:
        params, axes = dict(node.params), self._axes[node.name]
        if node.op == "conv":
            weight = params["weight"][axes[0]]
            if weight.shape[1] > 1 and node.attrs["group"] == 1:
                weight = weight[:, self._axes[node.inputs[0]][0]]
            params["weight"] = weight
        elif node.op == "linear":
            weight = params["weight"][axes[-1]]
            params["weight"] = weight[:, self._axes[node.inputs[0]][-1]]
        elif node.op == "spike":
            rank = len(node.shape)
            for key, array in params.items():
                behind = int(key in ("thresholds", "values"))
                params[key] = _taken(array, axes, rank + behind)
        elif node.op == "add":
            for i in range(len(node.inputs)):
                key = multiplier(i)
                params[key] = _taken(params[key], axes, len(node.shape))
        elif node.op == "route" and node.attrs["kind"] == "index":
            source = self.units(node.inputs[0])
            place = np.empty(len(source) + 1, np.int64)
            place[source] = np.arange(len(source))
            place[-1] = -1
            picked = params["index"].reshape(-1)[self.units(node.name)]
            params["index"] = place[picked].reshape(node.shape)
        return params


def _taken(array: Array, axes: Sequence[Array], rank: int) -> Array:
    """An array that broadcasts against the node, aligned at its last axis, in the new order."""
    for i, order in enumerate(axes):
        own = i - (rank - array.ndim)
        if own >= 0 and array.shape[own] > 1:
            array = np.take(array, order, axis=own)
    return array

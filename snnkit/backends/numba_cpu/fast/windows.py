"""Synapses of one conv or linear node as a window over a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast.maps import Geometry, Unfit
from snnkit.graph import Graph, Node
from snnkit.ops import TABLE
from snnkit.ops.op import Ints

Array = npt.NDArray[Any]

MOST_SPREAD = 2**24
"""Weights of a grouped convolution written out as an ordinary one; above, it is left alone."""
WHOLE = ("reshape", "transpose")
"""Routes in front of a linear node that only change the order of its weights."""


@dataclass(frozen=True)
class Window:
    """weight int8 [outputs, taps, span, channels]: each tap is `span` neighbouring columns.

    source, last : the node that is read, and whether with channels last.
    taps : (row, column) of each tap, in the source without padding. strides : (rows, columns).
    fan_rows, fan_columns : how many windows meet each row and column of the source.
    """

    source: str
    last: bool
    weight: Array
    taps: tuple[tuple[int, int], ...]
    strides: tuple[int, int]
    fan_rows: Array
    fan_columns: Array
    fan_width: int


@dataclass(frozen=True)
class Frame:
    """Kernel, strides, begins and dilations of a conv or pooling node, as (rows, columns)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    begins: tuple[int, int]
    ends: tuple[int, int]
    dilations: tuple[int, int]

    def taps(self) -> list[tuple[int, int]]:
        """Every tap as (row, column), counted from the first unit of the source."""
        return [
            (i * self.dilations[0] - self.begins[0], j * self.dilations[1] - self.begins[1])
            for i in range(self.kernel[0])
            for j in range(self.kernel[1])
        ]


def frame(node: Node) -> Frame:
    """One axis is two axes, the first of length one."""
    a = node.attrs
    kernel = a["kernel"] if "kernel" in a else node.params["weight"].shape[2:]
    d = len(kernel)
    one, none = (1,) * (2 - d), (0,) * (2 - d)
    return Frame(
        (*one, *kernel),
        (*one, *a["strides"]),
        (*none, *a["pads"][:d]),
        (*none, *a["pads"][d:]),
        (*one, *a["dilations"]),
    )


def is_channelwise(node: Node) -> bool:
    """Each output channel reads its own input channel only."""
    weight = node.params["weight"]
    return bool(weight.shape[1] == 1 and weight.shape[0] == node.attrs["group"] > 1)


def conv_window(node: Node, source: Geometry, out: Geometry) -> Window:
    f, weight = frame(node), _spread(node)
    split = weight.reshape(weight.shape[0], weight.shape[1], *f.kernel).transpose(0, 2, 3, 1)
    taps, span = f.taps(), 1
    if f.dilations[1] == 1:
        taps, span = taps[:: f.kernel[1]], f.kernel[1]
    split = split.reshape(weight.shape[0], len(taps), span, weight.shape[1])
    fans = []
    for axis, (size, outs) in enumerate(((source.height, out.height), (source.width, out.width))):
        meets = np.zeros(size, np.int32)
        for tap in range(f.kernel[axis]):
            at = np.arange(outs) * f.strides[axis] + tap * f.dilations[axis] - f.begins[axis]
            np.add.at(meets, at[(at >= 0) & (at < size)], 1)
        fans.append(meets)
    width = node.params["weight"].shape[0] // int(node.attrs["group"])
    return Window(node.inputs[0], False, split, tuple(taps), f.strides, fans[0], fans[1], width)


def _spread(node: Node) -> Array:
    """A grouped convolution as an ordinary one, with zeros between its groups."""
    weight, group = node.params["weight"], int(node.attrs["group"])
    if group == 1:
        return weight
    if weight.size * group > MOST_SPREAD:
        raise Unfit(f"{group} groups of {weight.shape} weights")
    per, out = weight.shape[1], weight.shape[0] // group
    full = np.zeros((weight.shape[0], per * group, *weight.shape[2:]), np.int8)
    for g in range(group):
        here = slice(g * out, (g + 1) * out)
        full[here, g * per : (g + 1) * per] = weight[here]
    return full


def base_of_linear(graph: Graph, node: Node) -> tuple[str, Ints | None]:
    """The node whose map a linear node reads, and which of its units each feature is; None where
    the linear node acts on the last axis of several places."""
    source = graph.node[node.inputs[0]]
    if source.units != source.shape[-1]:
        return source.name, None
    chain = []
    while source.op == "route" and source.attrs["kind"] in WHOLE:
        chain.append(source)
        source = graph.node[source.inputs[0]]
    labels = np.arange(source.units).reshape(1, *source.shape)
    for route in reversed(chain):
        labels = TABLE["route"].dense(route, [labels])
    return source.name, labels.reshape(-1)


def linear_window(
    node: Node, base: str, labels: Ints | None, source: Geometry, last: bool
) -> Window:
    weight = node.params["weight"]
    outputs = weight.shape[0]
    if labels is None:
        split = weight.reshape(outputs, 1, 1, source.channels)
        taps: tuple[tuple[int, int], ...] = ((0, 0),)
    else:
        by_unit = np.empty_like(weight)
        by_unit[:, labels] = weight
        split = by_unit[:, source.units]
        taps = tuple((y, 0) for y in range(source.height))
    ones = (np.ones(source.height, np.int32), np.ones(source.width, np.int32))
    return Window(base, last, split, taps, (1, 1), *ones, outputs)

"""Layout operators: whatever onnxruntime does to labels (`labels`), the network does to values.

A layout operator only moves values. Running the very node on labels instead of data says where
each one goes, for every operator set and every attribute, with nothing derived by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from snnkit.converters.doors import STACK, UNSTACK
from snnkit.converters.frames import FIRST, LAST, Refusal
from snnkit.converters.labels import MOVES
from snnkit.converters.network import Affine
from snnkit.converters.operators import Array, Op
from snnkit.converters.reader import Handler, Reader
from snnkit.ops import TABLE


def move(reader: Reader, x: Affine, kind: str, name: str, **attrs: Any) -> Affine:
    """A route of one input, with scale and offset moved along."""
    params = {"index": attrs.pop("index")} if "index" in attrs else {}
    node = reader.net.add(name, "route", [x.node], params, {"kind": kind, **attrs})

    def moved(array: Array, outside: float) -> Array:
        if array.size == 1 and not params:
            return array.reshape((1,) * len(node.shape))
        full = np.broadcast_to(array, x.shape)
        if params:
            index = np.asarray(params["index"])
            picked: Array = np.where(index < 0, outside, full.reshape(-1)[np.maximum(index, 0)])
            return picked
        return np.asarray(TABLE["route"].dense(node, [full[None]])[0])

    idle = float(np.abs(x.scale).max()) or 1.0
    return reader.net.affine(node, moved(x.scale, idle), moved(x.offset, 0.0))


def moved(reader: Reader, op: Op) -> None:
    """Any operator that moves the values of its first input (`frames` says where to)."""
    for name in op.outputs:
        if not name:
            continue
        x, shape, move_ = reader.data(op), reader.shape(name), reader.model.trace.moves[name]
        if move_.pick:
            if reader.model.lengths and move_.pick == LAST:
                raise Refusal(
                    "it takes the last element of sequences of different lengths",
                    "take Y_h or Y_c of the recurrent operator",
                )
            x = reader.net.pick(x, f"{name}.{move_.pick}", move_.pick == FIRST)
        index, units = move_.index, x.node.units
        if index.size == units and np.array_equal(index.reshape(-1), np.arange(units)):
            reader.give(name, move(reader, x, "reshape", name, shape=shape))
            continue
        y = move(reader, x, "index", name, index=index, shape=shape)
        if move_.fill and (index < 0).any():
            y = reader.net.affine(y.node, y.scale, np.where(index < 0, move_.fill, y.offset))
        reader.give(name, y)


def transpose(reader: Reader, op: Op) -> None:
    x, out, frame = reader.data(op), op.outputs[0], reader.frame(op.inputs[0])
    rank = len(reader.model.shapes[op.inputs[0]])
    perm = [int(p) for p in op.attrs.get("perm", range(rank)[::-1])]
    units = [p - sum(a < p for a in frame.axes) for p in perm if p not in frame.axes]
    if units == sorted(units):
        reader.give(out, move(reader, x, "reshape", out, shape=x.shape))
        return
    reader.give(out, move(reader, x, "transpose", out, perm=units))


def concat(reader: Reader, op: Op) -> None:
    if not all(reader.is_data(op, i) for i in range(len(op.inputs))):
        raise Refusal("a Concat with constants among its parts", "concatenate values only")
    parts = [reader.data(op, i) for i in range(len(op.inputs))]
    rank = len(reader.model.shapes[op.outputs[0]])
    axis = reader.frame(op.outputs[0]).unit(int(op.attrs.get("axis", 1)), rank, "a Concat")
    if len(parts) > 1 and any(p.node.hi - p.node.lo <= 255 for p in parts):
        # side by side with 8-bit values, a wide charge would make all of them wide
        parts = [
            p if p.node.hi - p.node.lo <= 255 else reader.net.byte(p, name)
            for p, name in zip(parts, op.inputs, strict=True)
        ]
    nodes = [p.node for p in parts]
    node = reader.net.add(op.outputs[0], "route", nodes, {}, {"kind": "concat", "axis": axis})
    scale, offset = (
        np.concatenate(
            [np.broadcast_to(a, p.shape) for a, p in zip(arrays, parts, strict=True)], axis
        )
        for arrays in ([p.scale for p in parts], [p.offset for p in parts])
    )
    reader.give(op.outputs[0], reader.net.affine(node, scale, offset))


def stacked(reader: Reader, op: Op) -> None:
    """The elements of a sequence, read as a whole."""
    before, name = reader.frame(op.inputs[0]), op.outputs[0]
    axis = reader.frame(name).unit(int(before.time or 0), len(reader.model.shapes[name]), "stack")
    reader.give(name, reader.net.stack(reader.data(op), name, axis, reader.model.steps))


def unstacked(reader: Reader, op: Op) -> None:
    """A whole sequence, read by elements."""
    reader.give(op.outputs[0], reader.net.unstack(reader.data(op), op.inputs[0], op.outputs[0]))


LAYOUT: dict[str, Handler] = {
    STACK: stacked,
    UNSTACK: unstacked,
    "Transpose": transpose,
    "Concat": concat,
    **dict.fromkeys(MOVES, moved),
}

"""route: values change their place, never their size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snnkit.errors import BadShape
from snnkit.ops.op import Attrs, Bounds, Ints, Op, Params, Shape, Writer

if TYPE_CHECKING:
    from snnkit.graph import Node

KINDS = ("reshape", "transpose", "concat", "index")


class Route(Op):
    """Output unit j holds the value of one input unit, or zero.

    attrs kind:
    - reshape : shape
    - transpose : perm (axes without the batch axis)
    - concat : axis (without the batch axis); any number of inputs
    - index : shape, and params index : shape int32, the flat input unit, -1 for a constant zero.
      Slices, splits, pads, nearest-neighbour resizing and the like are all of this kind.
    """

    name = "route"
    arity = None
    linear = True
    dtypes = {"index": "int32"}

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        kind = attrs["kind"]
        if kind not in KINDS or (len(inputs) != 1 and kind != "concat") or not inputs:
            raise BadShape(f"route of kind {kind!r} with {len(inputs)} inputs; expected {KINDS}")
        source = inputs[0]
        if kind == "concat":
            return self._concat_shape(int(attrs["axis"]), inputs)
        if kind == "transpose":
            if sorted(attrs["perm"]) != list(range(len(source))):
                raise BadShape(f"perm {attrs['perm']} of an input {source}")
            return tuple(source[i] for i in attrs["perm"])
        shape = tuple(attrs["shape"])
        if kind == "reshape" and math.prod(shape) != math.prod(source):
            raise BadShape(f"reshape of {source} to {shape}; expected as many units")
        if kind == "index":
            index = params["index"]
            units = math.prod(source)
            if index.shape != shape or not index.size or index.min() < -1 or index.max() >= units:
                raise BadShape(f"index {index.shape} into {units} units, shape {shape}")
        return shape

    @staticmethod
    def _concat_shape(axis: int, inputs: Sequence[Shape]) -> Shape:
        rests = {s[:axis] + s[axis + 1 :] for s in inputs if 0 <= axis < len(s)}
        if len(rests) != 1 or any(len(s) <= axis for s in inputs) or axis < 0:
            raise BadShape(f"concat of {list(inputs)} along axis {axis}")
        size = sum(s[axis] for s in inputs)
        return (*inputs[0][:axis], size, *inputs[0][axis + 1 :])

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        lo, hi = min(b[0] for b in inputs), max(b[1] for b in inputs)
        return lo, hi, max(-lo, hi)

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        kind = node.attrs["kind"]
        if kind == "concat":
            return np.concatenate(xs, axis=node.attrs["axis"] + 1)
        if kind == "transpose":
            return xs[0].transpose(0, *(p + 1 for p in node.attrs["perm"]))
        if kind == "reshape":
            return xs[0].reshape(-1, *node.shape)
        flat = xs[0].reshape(xs[0].shape[0], -1)
        index = node.params["index"]
        return np.where(index < 0, 0, flat[:, np.maximum(index, 0)])

    def emit(self, node: Node, writer: Writer) -> None:
        source, kind = writer.source(node), node.attrs["kind"]
        name = f"{node.name}.{kind}"
        if kind == "concat":
            self._emit_concat(node, writer, name)
            return
        # bytes stay bytes: zero is the zero point, which the next reader knows from the bounds
        as_byte = source.hi - source.lo <= 255
        tensor = writer.byte(source) if as_byte else writer.word(source)
        if kind == "transpose":
            perm = (0, *(p + 1 for p in node.attrs["perm"]))
            name = writer.emit("Transpose", [tensor], name, perm=perm)
        elif kind == "reshape":
            name = writer.emit("Reshape", [tensor, self._target(node, writer)], name)
        else:
            zero = writer.zero_point(source) if as_byte else writer.array("word_zero", np.int32(0))
            name = self._emit_index(node, writer, tensor, zero, name)
        (writer.is_byte if as_byte else writer.is_word)(node, name)

    @staticmethod
    def _target(node: Node, writer: Writer) -> str:
        return writer.array(f"{node.name}.shape", np.array([0, *node.shape], np.int64))

    @staticmethod
    def _emit_concat(node: Node, writer: Writer, name: str) -> None:
        sources = [writer.source(node, i) for i in range(len(node.inputs))]
        # bytes of different lower bounds mean different things side by side
        same = all(s.lo == node.lo for s in sources) and node.hi - node.lo <= 255
        tensors = [writer.byte(s) if same else writer.word(s) for s in sources]
        name = writer.emit("Concat", tensors, name, axis=node.attrs["axis"] + 1)
        (writer.is_byte if same else writer.is_word)(node, name)

    def _emit_index(self, node: Node, writer: Writer, tensor: str, zero: str, name: str) -> str:
        flat_shape = writer.array("flat_shape", np.array([0, -1], np.int64))
        flat = writer.emit("Reshape", [tensor, flat_shape], f"{name}.flat")
        # unit 0 of the padded tensor is the constant zero
        margin = writer.array("one_before", np.array([0, 1, 0, 0], np.int64))
        padded = writer.emit("Pad", [flat, margin, zero], f"{name}.padded")
        index = self.store("index", node.params["index"])
        stored = writer.array(f"{node.name}.index", index)
        picked = writer.emit("Gather", [padded, stored], f"{name}.picked", axis=1)
        return writer.emit("Reshape", [picked, self._target(node, writer)], name)

    def store(self, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return value.reshape(-1) + np.int32(1)

    def restore(
        self, name: str, stored: npt.NDArray[Any], shape: Shape, attrs: Attrs
    ) -> npt.NDArray[Any]:
        return stored.reshape(shape) - np.int32(1)

"""add: several values on one integer grid. product: two values, unit by unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snnkit.errors import BadShape
from snnkit.ops.op import Attrs, Bounds, Ints, Op, Params, Shape, Writer, batched

if TYPE_CHECKING:
    from snnkit.graph import Node


def multiplier(index: int) -> str:
    return f"m{index}"


class Add(Op):
    """A = sum over i of m_i * x_i.

    m0, m1, ... : int32, each broadcasts against the output. The inputs broadcast against each
    other; they have the same rank.
    """

    name = "add"
    arity = None
    linear = True

    def dtype(self, name: str) -> str | None:
        return "int32" if name[:1] == "m" and name[1:].isdecimal() else None

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        if set(params) != {multiplier(i) for i in range(len(inputs))} or not inputs:
            raise BadShape(f"add of {len(inputs)} inputs with {sorted(params)}; expected m0, m1, …")
        try:
            shape = np.broadcast_shapes(*inputs)
            fits = all(np.broadcast_shapes(shape, m.shape) == shape for m in params.values())
        except ValueError:
            fits = False
        if not fits or any(len(s) != len(shape) for s in inputs):
            raise BadShape(f"add of inputs {list(inputs)} does not broadcast to one shape")
        return shape

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        low, high, peak = 0, 0, 0
        for i, (lo, hi) in enumerate(inputs):
            m = params[multiplier(i)].astype(np.int64)
            reach = np.stack([m * lo, m * hi])
            low, high = low + int(reach.min()), high + int(reach.max())
            peak += int(np.abs(reach).max())
        return min(low, 0), max(high, 0), peak

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        terms = [x * node.params[multiplier(i)].astype(np.int64) for i, x in enumerate(xs)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return np.broadcast_to(total, (total.shape[0], *node.shape))

    def emit(self, node: Node, writer: Writer) -> None:
        total = ""
        for i in range(len(node.inputs)):
            m = node.params[multiplier(i)]
            array = writer.array(f"{node.name}.{multiplier(i)}", batched(m, len(node.shape))[None])
            word = writer.word(writer.source(node, i))
            scaled = writer.emit("Mul", [word, array], f"{node.name}.scaled{i}")
            if total:
                scaled = writer.emit("Add", [total, scaled], f"{node.name}.sum{i}")
            total = scaled
        writer.is_word(node, total)

    def store(self, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return value


class Product(Op):
    """A = x0 * x1, unit by unit. The inputs broadcast against each other; same rank.

    Not linear: it keeps tracers of both inputs and sends the difference of their product (P3).
    """

    name = "product"
    arity = 2

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        try:
            shape = np.broadcast_shapes(*inputs)
        except ValueError:
            shape = ()
        if any(len(s) != len(shape) for s in inputs):
            raise BadShape(f"product of inputs {list(inputs)} does not broadcast to one shape")
        return shape

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        corners = [a * b for a in inputs[0] for b in inputs[1]]
        low, high = min(0, *corners), max(0, *corners)
        return low, high, max(-low, high)

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        return xs[0] * xs[1]

    def emit(self, node: Node, writer: Writer) -> None:
        words = [writer.word(writer.source(node, i)) for i in range(2)]
        writer.is_word(node, writer.emit("Mul", words, f"{node.name}.product"))

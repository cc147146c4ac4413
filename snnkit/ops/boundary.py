"""input and readout: where floats become integers, and integers floats again.

The nodes themselves are integers only. The float scale and offset beside them belong to the
graph's boundary (`snnkit.graph.Boundary`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from snnkit.errors import BadShape
from snnkit.ops.op import Attrs, Bounds, Ints, Op, Params, Shape, Writer, batched

if TYPE_CHECKING:
    from snnkit.graph import Node


class Input(Op):
    """The quantised input, injected as one graded event per unit at the start of a window.

    attrs shape, lo, hi with lo <= 0 <= hi and hi - lo = 255: where QuantizeLinear saturates.
    """

    name = "input"
    arity = 0

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        shape, lo, hi = tuple(attrs["shape"]), int(attrs["lo"]), int(attrs["hi"])
        if any(n < 1 for n in shape) or not lo <= 0 <= hi or hi - lo != 255:
            raise BadShape(f"input {shape} in {lo}..{hi}; expected lo <= 0 <= hi = lo + 255")
        return shape

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        lo, hi = int(attrs["lo"]), int(attrs["hi"])
        return lo, hi, max(-lo, hi)


class Readout(Op):
    """A neuron that never fires: its charge x + bias is the output.

    bias : int32, broadcasts against the input.
    """

    name = "readout"
    dtypes = {"bias": "int32"}

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        source, bias = inputs[0], params["bias"]
        try:
            fits = np.broadcast_shapes(source, bias.shape) == source
        except ValueError:
            fits = False
        if not fits:
            raise BadShape(f"readout bias {bias.shape} does not broadcast against {source}")
        return source

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        low, high = inputs[0]
        bias = params["bias"].astype(np.int64)
        lo, hi = low + int(bias.min()), high + int(bias.max())
        return min(lo, 0), max(hi, 0), max(-low, high) + int(np.abs(bias).max())

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        return xs[0] + node.params["bias"].astype(np.int64) * constant

    def emit(self, node: Node, writer: Writer) -> None:
        bias = batched(node.params["bias"], len(node.shape))[None]
        inputs = [writer.word(writer.source(node)), writer.array(f"{node.name}.bias", bias)]
        writer.is_word(node, writer.emit("Add", inputs, f"{node.name}.charge"))

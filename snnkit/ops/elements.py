"""stack and unstack: the elements of a sequence as one value, and one value as elements.

A sweep of direction 0 sees a whole sequence at once, a sweep with a direction one element at a
time. These two ops are the doors between them. Neither computes: [N, T, *units] is the same memory
in both readings, so within a window both are given, as inputs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from snnkit.errors import BadShape
from snnkit.ops.op import Attrs, Bounds, Ints, Op, Params, Shape, Writer

if TYPE_CHECKING:
    from snnkit.graph import Node


class _Door(Op):
    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        lo, hi = inputs[0]
        return lo, hi, max(-lo, hi)

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        """The same values: [N, T, *units] is what one side sees, [N, *shape] what the other."""
        return xs[0]


class Stack(_Door):
    """All elements of a node of an earlier sweep with a direction, in the sequence's own order:
    value[t] is the node's value at step t, shape (T, *units).

    attrs steps : T, the graph's own fixed number of steps. Lies in a sweep of direction 0. What
    reads it (a convolution over time, a mean over elements) is static work behind the sequence.
    """

    name = "stack"

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        return (int(attrs["steps"]), *inputs[0])

    def emit(self, node: Node, writer: Writer) -> None:
        as_byte, steps = writer.stack(writer.source(node))
        perm = (1, 0, *range(2, 1 + len(node.shape)))
        whole = writer.emit("Transpose", [steps], f"{node.name}.whole", perm=perm)
        (writer.is_byte if as_byte else writer.is_word)(node, whole)


class Unstack(_Door):
    """Element t, at step t, of a node of an earlier sweep of direction 0: the value at step t is
    value[t], of shape units where the node has (T, *units).

    T is the graph's own fixed number of steps. Lies in a sweep with a direction; backwards it
    begins with the last element. So static work (a convolution over time) comes in front of a
    recurrence.
    """

    name = "unstack"

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        if len(inputs[0]) < 2:
            raise BadShape(f"elements of {inputs[0]}; expected (steps, *units)")
        return inputs[0][1:]

    def emit(self, node: Node, writer: Writer) -> None:
        source = writer.source(node)
        as_byte = node.hi - node.lo <= 255
        tensor = writer.byte(source) if as_byte else writer.word(source)
        perm = (1, 0, *range(2, 2 + len(node.shape)))
        steps = writer.emit("Transpose", [tensor], f"{node.name}.steps", perm=perm)
        writer.is_stack(node, as_byte, steps)

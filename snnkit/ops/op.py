"""What one row of the op table has to say about an op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from snnkit.graph import Node

Shape = tuple[int, ...]
Ints = npt.NDArray[np.int64]
Params = Mapping[str, npt.NDArray[Any]]
Attrs = Mapping[str, Any]
Bounds = tuple[int, int]


class Writer(Protocol):
    """What an op may use to write itself as ONNX nodes (implemented in `snnkit.onnx_writer`)."""

    def byte(self, node: Node) -> str:
        """Tensor holding `node`'s value minus its lower bound, as uint8."""

    def word(self, node: Node) -> str:
        """Tensor holding `node`'s value as int32."""

    def source(self, node: Node, index: int = 0) -> Node:
        """The node behind input `index`."""

    def zero_point(self, node: Node) -> str:
        """uint8 scalar that stands for zero in `byte(node)`."""

    def array(self, name: str, value: npt.ArrayLike) -> str:
        """An initialiser."""

    def emit(
        self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attrs: Any
    ) -> str:
        """One ONNX node; returns `output`."""

    def state(self, node: Node) -> str:
        """Tensor holding what the stateful `node` remembers from the step before."""

    def emit_stateful(self, op: str, inputs: Sequence[str], output: str, node: Node) -> str:
        """A call of the function `op` that gives the value of `node` and its next state."""

    def stack(self, node: Node) -> tuple[bool, str]:
        """Tensor [T, N, *shape] holding `node`'s values of all steps, and whether as bytes."""

    def is_stack(self, node: Node, as_byte: bool, tensor: str) -> None:
        """Declare that `tensor` holds the node's values of all steps, as bytes or as words."""

    def is_byte(self, node: Node, tensor: str) -> None:
        """Declare that `tensor` holds the node's value minus its lower bound, as uint8."""

    def is_word(self, node: Node, tensor: str) -> None:
        """Declare that `tensor` holds the node's value as int32."""


class Op:
    """One row of the table. A subclass overrides every rule.

    `linear` ops obey f(x + d) = f(x) + f0(d), where f0 is the dense rule without constants:
    that *is* their event rule. The others are updated by recomputing from tracers of their
    inputs and emitting the difference, which is exact for any deterministic function.
    """

    name: ClassVar[str]
    arity: ClassVar[int | None] = 1
    linear: ClassVar[bool] = False
    dtypes: ClassVar[Mapping[str, str]] = {}

    def dtype(self, name: str) -> str | None:
        """Dtype of the integer array `name` of this op; None where it has no such array."""
        return self.dtypes.get(name)

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        """Shape of the value, without the batch axis. Raises BadShape."""
        raise NotImplementedError

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        """(lo, hi, peak): proved bounds of the value, and of every partial sum on the way.

        `inputs` and `shapes` are the bounds and shapes of the inputs. The bounds hold at every
        instant of every order of events, since tracers never leave their own bounds (P6).
        """
        raise NotImplementedError

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        """Value for input values xs, each [N, *shape] int64; `constant=False` drops the bias."""
        raise NotImplementedError

    def emit(self, node: Node, writer: Writer) -> None:
        """Write the ONNX nodes that compute the dense rule."""
        raise NotImplementedError

    def store(self, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """How array `name` lies in the file; `restore` is its inverse."""
        return value[None]

    def restore(
        self, name: str, stored: npt.NDArray[Any], shape: Shape, attrs: Attrs
    ) -> npt.NDArray[Any]:
        return stored.reshape(shape)


def batched(value: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
    """Align an array that broadcasts against a rank-`rank` shape for use behind a batch axis."""
    return value.reshape((1,) * (rank - value.ndim) + value.shape)

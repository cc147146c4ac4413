"""Reads a float model node by node into a Network: the walk, and what every handler may ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.converters.float_model import Array, FloatModel, Op
from snnkit.converters.network import Affine, Network, Refusal
from snnkit.errors import InvalidGraph, Problem, UnsupportedModel

NOT_SUPPORTED = "replace it by supported operators, or leave it out of the exported model"


@dataclass(frozen=True, eq=False)
class Posted:
    """A readout with float steps behind it: only an output of the model may be one."""

    value: Affine
    steps: tuple[dict[str, Any], ...]


Handler = Callable[["Reader", Op], None]


class Reader:
    """The state of one conversion. Handlers read inputs with `data` and `constant`, and `give`."""

    def __init__(self, model: FloatModel, network: Network, handlers: dict[str, Handler]):
        self.model = model
        self.net = network
        self.handlers = handlers
        self.values: dict[str, Affine | Posted] = {}
        self.problems: list[Problem] = []

    def data(self, op: Op, index: int = 0) -> Affine:
        """Input `index` as a value that depends on the data."""
        name = op.inputs[index]
        value = self.values.get(name)
        if isinstance(value, Affine):
            return value
        if isinstance(value, Posted):
            raise Refusal(
                f"it reads '{name}', the result of {value.steps[-1]['op']}",
                "Softmax, LogSoftmax and ArgMax are computed at the output only",
            )
        raise Refusal(f"input '{name}' does not depend on the data", NOT_SUPPORTED)

    def is_data(self, op: Op, index: int) -> bool:
        return len(op.inputs) > index and op.inputs[index] in self.values

    def constant(self, op: Op, index: int) -> Array | None:
        """Input `index` as a constant array; None if absent."""
        if len(op.inputs) <= index or not op.inputs[index]:
            return None
        name = op.inputs[index]
        if name not in self.model.constants:
            raise Refusal(f"input '{name}' is computed from the data", "make it a constant")
        return self.model.constants[name]

    def setting(self, op: Op, name: str, index: int, default: Any = None) -> Any:
        """An attribute of old operator sets that became input `index` in newer ones."""
        if name in op.attrs:
            return op.attrs[name]
        found = self.constant(op, index)
        return default if found is None else found

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a float tensor without its batch axis."""
        full = self.model.shapes[tensor]
        if not full or full[0] != self.model.batch:
            raise Refusal(
                f"'{tensor}' has shape {full}: the batch of {self.model.batch} is not in front",
                "keep the batch as the first axis throughout",
            )
        return full[1:]

    def give(self, tensor: str, value: Affine | Posted) -> None:
        """Set an output. What the handler made must have the shape that onnxruntime saw."""
        affine = value.value if isinstance(value, Posted) else value
        if isinstance(value, Affine) and affine.shape != self.shape(tensor):
            raise Refusal(
                f"'{tensor}' has shape {self.model.shapes[tensor]}; expected {affine.shape} behind "
                "the batch axis",
                "this use of the operator is not supported",
            )
        self.values[tensor] = value

    def read(self) -> None:
        """Handle every node that depends on the data. Raises UnsupportedModel with all problems."""
        broken: set[str] = set()
        for op in self.model.data_ops:
            if op.op not in self.handlers:
                self._report(op, "this operator is not supported", NOT_SUPPORTED)
                broken.update(op.outputs)
            elif broken.intersection(op.inputs):
                broken.update(op.outputs)
            else:
                try:
                    self.handlers[op.op](self, op)
                except Refusal as refusal:
                    self._report(op, refusal.reason, refusal.remedy)
                    broken.update(op.outputs)
                except InvalidGraph as error:
                    self._report(op, str(error), "see the limits in ARCHITECTURE.md")
                    broken.update(op.outputs)
        if self.problems:
            raise UnsupportedModel(self.problems)

    def _report(self, op: Op, reason: str, remedy: str) -> None:
        self.problems.append(Problem(op.name, op.op, reason, remedy))


def unsupported_ops(model: FloatModel, handlers: dict[str, Handler]) -> list[Problem]:
    """Problems that show without running the model: operators nobody handles."""
    return [
        Problem(op.name, op.op, "this operator is not supported", NOT_SUPPORTED)
        for op in model.data_ops
        if op.op not in handlers
    ]


def per_sample(value: Array, rank: int) -> Array:
    """A constant operand without its batch axis, aligned to the right of a rank-`rank` sample."""
    array = np.asarray(value, np.float64)
    if array.ndim > rank:
        if array.ndim > rank + 1 or array.shape[0] != 1:
            raise Refusal(
                f"a constant of shape {array.shape} differs between samples of a batch",
                "use constants that are the same for every sample",
            )
        array = array[0]
    return array

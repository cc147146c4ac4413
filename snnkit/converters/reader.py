"""Reads a float model node by node into a Network: the walk, and what every handler may ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.converters.float_model import FloatModel
from snnkit.converters.frames import Frame, Refusal
from snnkit.converters.network import Affine, Network
from snnkit.converters.operators import Array, Op
from snnkit.errors import InvalidGraph, Problem, UnsupportedModel

NOT_SUPPORTED = "replace it by supported operators, or leave it out of the exported model"
LOOPS = ("Loop", "Scan", "If")
UNROLL = "export recurrence as RNN, GRU or LSTM operators, or for a fixed number of elements"


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
        value = self.model.constants[name]
        if any(not np.array_equal(p.constants[name], value) for p in self.model.probes[1:]):
            raise Refusal(f"constant '{name}' depends on the number of elements of a sequence")
        return value

    def setting(self, op: Op, name: str, index: int, default: Any = None) -> Any:
        """An attribute of old operator sets that became input `index` in newer ones."""
        if name in op.attrs:
            return op.attrs[name]
        found = self.constant(op, index)
        return default if found is None else found

    def frame(self, tensor: str) -> Frame:
        """Where the batch and the elements of a sequence lie in a float tensor."""
        if tensor not in self.model.frames:
            raise Refusal(f"it is not known which axis of '{tensor}' is the batch")
        return self.model.frames[tensor]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a float tensor without its batch axis, and without its time axis."""
        return self.frame(tensor).units(self.model.shapes[tensor])

    def in_front(self, op: Op) -> None:
        """Refuse an operator whose data do not have the batch, and nothing else, in front."""
        for tensor in (op.inputs[0], op.outputs[0]):
            frame = self.frame(tensor)
            if frame.axes != (0,):
                raise Refusal(
                    f"'{tensor}' has shape {self.model.shapes[tensor]} with the batch at axis "
                    f"{frame.batch}"
                    + (
                        ""
                        if frame.time is None
                        else f" and the elements of a sequence at axis {frame.time}"
                    ),
                    "merge samples and elements into the first axis (Reshape) in front of it",
                )

    def operand(self, op: Op, index: int) -> Affine:
        """Input `index` of an elementwise operator with the rank that the output's units have."""
        x, out = self.data(op, index), op.outputs[0]
        name, rank = op.inputs[index], len(self.model.shapes[out])
        frame, full = self.frame(out), self.model.shapes[name]
        own = self.frame(name).moved(rank - len(full))
        padded = (1,) * (rank - len(full)) + full
        dropped = [a for a in frame.axes if a not in own.axes]
        if any(padded[a] != 1 for a in dropped):
            raise Refusal(f"'{name}' of shape {full} does not fit the elements of a sequence")
        shape = frame.units(padded)
        if shape == x.shape:
            return x
        scale, offset = (np.broadcast_to(a, x.shape).reshape(shape) for a in (x.scale, x.offset))
        attrs = {"kind": "reshape", "shape": shape}
        node = self.net.add(f"{out}.operand{index}", "route", [x.node], {}, attrs)
        return self.net.affine(node, scale, offset)

    def per_unit(self, value: Array, out: str) -> Array:
        """A constant operand of an elementwise operator as the units of its output see it."""
        array = np.asarray(value, np.float64)
        rank = len(self.model.shapes[out])
        if array.ndim > rank:
            raise Refusal(f"a constant of shape {array.shape} for '{out}' of {rank} axes")
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        frame = self.frame(out)
        for axis in sorted(frame.axes, reverse=True):
            first = array.take([0], axis)
            if (array != first).any():
                what = "elements of a sequence" if axis != frame.batch else "samples of a batch"
                raise Refusal(
                    f"a constant of shape {np.shape(value)} differs between {what}",
                    "use constants that are the same for every sample and element",
                )
            array = first.squeeze(axis)
        return array

    def give(self, tensor: str, value: Affine | Posted) -> None:
        """Set an output. What the handler made must have the shape that onnxruntime saw, and a
        value per element of a sequence where the tensor has."""
        affine = value.value if isinstance(value, Posted) else value
        timed = self.net.timed(affine.node)
        if isinstance(value, Affine) and affine.shape != self.shape(tensor):
            raise Refusal(
                f"'{tensor}' has shape {self.model.shapes[tensor]}; expected {affine.shape} "
                "without its batch axis",
                "this use of the operator is not supported",
            )
        if timed != (self.frame(tensor).time is not None):
            raise Refusal(f"'{tensor}' has no elements of a sequence; expected to have them")
        self.values[tensor] = value

    def read(self) -> None:
        """Handle every node that depends on the data. Raises UnsupportedModel with all problems."""
        broken: set[str] = set()
        for op in self.model.data_ops:
            if op.op not in self.handlers:
                self._report(op, "this operator is not supported", _remedy(op))
                broken.update(op.outputs)
            elif broken.intersection(op.inputs):
                broken.update(op.outputs)
            else:
                try:
                    if op.name in self.model.trace.refused:
                        raise self.model.trace.refused[op.name]
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


def _remedy(op: Op) -> str:
    return UNROLL if op.op in LOOPS else NOT_SUPPORTED


def unsupported_ops(model: FloatModel, handlers: dict[str, Handler]) -> list[Problem]:
    """Problems that show without running the model: operators nobody handles."""
    return [
        Problem(op.name, op.op, "this operator is not supported", _remedy(op))
        for op in model.data_ops
        if op.op not in handlers
    ]

"""Where a float model reads a sequence as a whole, and where element by element.

A convolution over time, a mean over elements, a Flatten in front of a dense head read a sequence as
a whole: static work, in a sweep of direction 0. Recurrent operators read its elements. Where one
kind reads what the other makes there is a *door* (the ops stack and unstack): an Identity is put
into the model there, so that both readings have a name, a frame, and statistics of their own.
Doors need a fixed number of elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from snnkit.converters.frames import Frame, Refusal
from snnkit.converters.operators import Op
from snnkit.sweeps import DOORS

if TYPE_CHECKING:
    from snnkit.converters.float_model import FloatModel

SPATIAL = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
POSTED = ("Softmax", "LogSoftmax")
BROADCAST = ("Add", "Sub", "Mul", "Div", "Sum", "PRelu", "Concat")
STACK, UNSTACK = DOORS


@dataclass
class Doors:
    """made : tensor behind a door -> (tensor in front of it, kind). reads : (an operator's outputs,
    a tensor that it reads) -> the tensor behind a door that it reads instead."""

    made: dict[str, tuple[str, str]] = field(default_factory=dict)
    reads: dict[tuple[tuple[str, ...], str], str] = field(default_factory=dict)

    def lead(self, op: Op, tensor: str, kind: str) -> str:
        """Let the operator read the tensor through a door; the name behind it."""
        name = f"{tensor}/{'whole' if kind == STACK else 'elements'}"
        self.made[name] = (tensor, kind)
        self.reads[op.outputs, tensor] = name
        return name


def across(model: FloatModel, op: Op, frames: Mapping[str, Frame]) -> bool:
    """Whether the operator works along the elements of a sequence, or has something else to do with
    each of them."""
    timed = [n for n in op.inputs if n in frames and frames[n].time is not None]
    if not timed or frames[timed[0]].merged:
        return False
    name = timed[0]
    frame, rank = frames[name], len(model.shapes[name])
    axis = int(op.attrs.get("axis", 1 if op.op == "Concat" or model.opset < 13 else -1)) % rank
    along = {
        "Gemm": True,
        "BatchNormalization": frame.time == 1,
        "MatMul": frame.time == (rank - 1 if name == op.inputs[0] else rank - 2),
        "Concat": frame.time == axis,
        **dict.fromkeys(POSTED, frame.time == axis),
        **dict.fromkeys(SPATIAL, True),
    }
    others = [n for n in op.inputs if n and n != name] if op.op in BROADCAST else []
    return along.get(op.op, False) or any(_differs(model, n, name, frames) for n in others)


def _differs(model: FloatModel, other: str, timed: str, frames: Mapping[str, Frame]) -> bool:
    """Whether a broadcast operand has something else for each element: the whole of a sequence, or
    a constant that varies along it."""
    shape = model.shapes[other]
    at = int(frames[timed].time or 0) - len(model.shapes[timed]) + len(shape)
    if at < 0 or shape[at] == 1:
        return False
    if other in frames:
        return frames[other].time is None
    constant = model.constants.get(other)
    return constant is not None and bool((constant != constant.take([0], at)).any())


def elements(model: FloatModel, op: Op, frame: Frame) -> Frame:
    """The frame in which a recurrent operator reads the elements of a whole sequence."""
    shape = model.shapes[op.inputs[0]]
    if frame.batch != 1 or len(shape) != 3:
        raise Refusal(
            f"'{op.inputs[0]}' of shape {shape} has the batch at axis {frame.batch}; expected "
            "(elements, batch, features)",
            "transpose it in front of the operator",
        )
    if shape[0] != model.steps:
        raise Refusal(
            f"it reads a sequence of {shape[0]} elements, another operator one of {model.steps}",
            "give all recurrent operators of a model sequences of one length",
        )
    return Frame(1, 0)


def with_doors(ops: tuple[Op, ...], doors: Doors, graph: onnx.GraphProto) -> tuple[Op, ...]:
    """The operators with doors between them, also as nodes of `graph`, in place."""
    found: list[Op] = []
    standing: set[str] = set()
    for op in ops:
        reads = tuple(doors.reads.get((op.outputs, tensor), tensor) for tensor in op.inputs)
        for name in reads:
            if name in doors.made and name not in standing:
                standing.add(name)
                tensor, kind = doors.made[name]
                door = replace(op, name=name, op=kind, inputs=(tensor,), outputs=(name,))
                found.append(replace(door, attrs={}, proto=_identity(tensor, name)))
        found.append(replace(op, inputs=reads))
    _write(doors, graph)
    return tuple(found)


def _write(doors: Doors, graph: onnx.GraphProto) -> None:
    """Put the Identity of each door behind the node that makes what it reads, else in front."""
    waiting = {tensor: name for name, (tensor, _) in doors.made.items()}
    computed = {o for node in graph.node for o in node.output}
    nodes = [_identity(t, name) for t, name in waiting.items() if t not in computed]
    for node in graph.node:
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        nodes += [_identity(o, waiting[o]) for o in node.output if o in waiting]
    del graph.node[:]
    graph.node.extend(nodes)


def _identity(tensor: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Identity", [tensor], [name], name=name)

"""Where the batch and the elements of a sequence lie in every tensor of a float model.

A tensor's *frame* names its batch axis and, if it has a value per element, its time axis; the
other axes, in order, are the units of a node. A layout operator is run on labels that carry
(step, sample, unit): where a label goes, the value goes, and so do the axes. Other operators keep
the axes of what they read, aligned to the right.

Where the model leaves the number of elements open, everything is asked twice, for T and T + 1
elements, and has to agree: the last element is then another one than element 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from snnkit.converters.axes import RECURRENT, lengths_names

if TYPE_CHECKING:
    from snnkit.converters.float_model import FloatModel, Op, Probe

Array = npt.NDArray[Any]
MOST_LABELS = 2**24
"""float32 labels are exact up to here."""
MOVES = (
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "Resize"),
    *("Upsample", "Gather", "DepthToSpace", "SpaceToDepth", "Expand", "Tile"),
)
"""Operators that move the values of their first input."""
REDUCES = ("ReduceMean", "ReduceSum", "ReduceMax", "ArgMax")
FIRST, LAST = "first", "last"


class Refusal(Exception):
    """A node cannot be converted exactly: the reason, and what to do."""

    def __init__(self, reason: str, remedy: str = "rewrite or leave out this node"):
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class Frame:
    """batch, time : axes of the tensor; time None: one value for the whole sequence. The same axis
    for both: samples and elements are merged into it, `samples_outside` says in which order."""

    batch: int = 0
    time: int | None = None
    samples_outside: bool = True

    @property
    def axes(self) -> tuple[int, ...]:
        return (
            (self.batch,) if self.time in (None, self.batch) else (self.batch, int(self.time or 0))
        )

    @property
    def merged(self) -> bool:
        return self.time == self.batch

    def units(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape without batch and time."""
        return tuple(n for i, n in enumerate(shape) if i not in self.axes)

    def unit(self, axis: int, rank: int, op: str) -> int:
        """Which axis of the units the tensor's `axis` is. Raises Refusal for batch and time."""
        axis %= rank
        if axis == self.batch:
            raise Refusal(f"{op} along the batch axis", "keep the batch axis apart")
        if axis == self.time:
            raise Refusal(f"{op} along the elements of a sequence", "keep the elements apart")
        return axis - sum(a < axis for a in self.axes)

    def moved(self, by: int) -> Frame:
        return replace(
            self, batch=self.batch + by, time=None if self.time is None else self.time + by
        )

    def without(self, axes: list[int], rank: int) -> Frame:
        """The frame when the axes have been taken away."""
        gone = {a % rank for a in axes}
        if gone.intersection(self.axes):
            what = "batch axis" if self.batch in gone else "elements of a sequence"
            raise Refusal(f"it reduces the {what}", "keep samples and elements apart")

        def at(axis: int) -> int:
            return axis - sum(a < axis for a in gone)

        return replace(
            self, batch=at(self.batch), time=None if self.time is None else at(self.time)
        )

    def canonical(self, value: Array, batch: int) -> Array:
        """A tensor as [N, *units], or [N, T, *units] where it has elements."""
        if self.time is None:
            return np.moveaxis(value, self.batch, 0)
        if not self.merged:
            return np.moveaxis(value, (self.batch, self.time), (0, 1))
        front = np.moveaxis(value, self.batch, 0)
        steps = len(front) // batch
        if self.samples_outside:
            return front.reshape(batch, steps, *front.shape[1:])
        return front.reshape(steps, batch, *front.shape[1:]).swapaxes(0, 1)

    def restored(self, value: Array) -> Array:
        """The tensor of which `canonical` is this."""
        if self.time is None:
            return np.moveaxis(value, 0, self.batch)
        if not self.merged:
            return np.moveaxis(value, (0, 1), (self.batch, self.time))
        ordered = value if self.samples_outside else value.swapaxes(0, 1)
        return np.moveaxis(ordered.reshape(-1, *ordered.shape[2:]), 0, self.batch)


@dataclass(frozen=True, eq=False)
class Move:
    """One output of a layout operator: for each of its units the unit of the input, -1 for none.

    pick : FIRST or LAST where one element of the sequence is taken. fill : what -1 stands for.
    """

    index: Array
    pick: str = ""
    fill: float = 0.0


@dataclass
class Trace:
    """frames : by tensor. moves : by output of a layout operator. refused : by operator's name."""

    frames: dict[str, Frame] = field(default_factory=dict)
    moves: dict[str, Move] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)


def trace(model: FloatModel) -> Trace:
    """The frames of all tensors that depend on the data, as far as they can be told."""
    found, lengths = Trace(), lengths_names(model)
    for port in model.inputs:
        if port.name != model.lengths:
            found.frames[port.name] = Frame(port.batch, port.time)
    for op in model.data_ops:
        known = [n for n in op.inputs if n in found.frames]
        unknown = [n for n in op.inputs if n and n not in model.static and n not in found.frames]
        if not known or [n for n in unknown if n not in lengths]:
            continue
        try:
            for name, frame in _frames(model, op, found).items():
                _check(model, name, frame)
                found.frames[name] = frame
        except Refusal as refusal:
            found.refused[op.name] = refusal
    return found


def _frames(model: FloatModel, op: Op, found: Trace) -> dict[str, Frame]:
    """Frames of the operator's outputs."""
    names = [n for n in op.inputs if n in found.frames]
    first, rank = found.frames[names[0]], len(model.shapes[names[0]])
    outputs = [o for o in op.outputs if o]
    if op.op in RECURRENT:
        each = [Frame(2, 0), Frame(1), Frame(1)]
        return {o: f for o, f in zip(op.outputs, each, strict=False) if o}
    if op.op in MOVES and op.inputs[0] in found.frames:
        return _moved(model, op, first, found)
    if op.op == "Transpose":
        perm = list(op.attrs.get("perm", range(rank)[::-1]))
        time = None if first.time is None else perm.index(first.time)
        return {outputs[0]: replace(first, batch=perm.index(first.batch), time=time)}
    if op.op in REDUCES and not takes_no_axes(model, op):
        left = first.without(reduced_axes(model, op), rank)
        return {o: first if op.attrs.get("keepdims", 1) else left for o in outputs}
    return {o: _aligned(model, o, {n: found.frames[n] for n in names}) for o in outputs}


def takes_no_axes(model: FloatModel, op: Op) -> bool:
    """Whether a reduction without axes is told to do nothing."""
    given = op.attrs.get("axes")
    if given is None and len(op.inputs) > 1 and op.inputs[1]:
        given = model.constants.get(op.inputs[1])
    return bool(op.attrs.get("noop_with_empty_axes", 0)) and (given is None or not len(given))


def reduced_axes(model: FloatModel, op: Op) -> list[int]:
    """The axes that a reduction names."""
    if op.op == "ArgMax":
        return [int(op.attrs.get("axis", 0))]
    axes = op.attrs.get("axes")
    if axes is None and len(op.inputs) > 1 and op.inputs[1]:
        axes = model.constants.get(op.inputs[1])
    if axes is None or not len(axes):
        raise Refusal(f"{op.op} over all axes, the batch axis too", "name the axes to reduce")
    return [int(a) for a in axes]


def _aligned(model: FloatModel, output: str, inputs: Mapping[str, Frame]) -> Frame:
    """The frame that inputs which are aligned to the right give to the output."""
    rank = len(model.shapes[output])
    moved = {f.moved(rank - len(model.shapes[n])) for n, f in inputs.items()}
    timed = {f for f in moved if f.time is not None}
    frame = next(iter(timed or moved))
    if len(timed) > 1 or any(f.batch != frame.batch for f in moved):
        raise Refusal(
            "the samples, or the elements of the sequences, of what it reads lie on different axes",
            "bring them to the same axes",
        )
    return frame


def _check(model: FloatModel, name: str, frame: Frame) -> None:
    """Refuse a tensor without the axes that its frame names."""
    for probe in model.probes:
        shape = probe.shapes[name]
        steps = 1 if frame.time is None else probe.steps
        sizes = {frame.batch: probe.batch}
        if frame.merged:
            sizes[frame.batch] = probe.batch * steps
        elif frame.time is not None:
            sizes[frame.time] = steps
        if any(not 0 <= a < len(shape) or shape[a] != n for a, n in sizes.items()):
            raise Refusal(
                f"'{name}' has shape {shape}: the batch of {probe.batch} is not at axis "
                f"{frame.batch}"
                + ("" if frame.time is None else f", {steps} elements not at {frame.time}"),
                "keep samples and elements on axes of their own throughout",
            )


def _moved(model: FloatModel, op: Op, frame: Frame, found: Trace) -> dict[str, Frame]:
    """Frames and moves of a layout operator's outputs, from labels."""
    seen: dict[str, tuple[Frame, Move]] = {}
    for probe in model.probes:
        for name, (after, move) in _by_labels(model, op, frame, probe).items():
            before = seen.setdefault(name, (after, move))
            same = before[0] == after and before[1].pick == move.pick
            if not same or not np.array_equal(before[1].index, move.index):
                raise Refusal(
                    "what it does depends on the number of elements of a sequence",
                    "address elements from the end, or fix the length of the sequences",
                )
    for name, (_, move) in seen.items():
        found.moves[name] = move
    return {name: after for name, (after, _) in seen.items()}


def _by_labels(
    model: FloatModel, op: Op, frame: Frame, probe: Probe
) -> dict[str, tuple[Frame, Move]]:
    fill, constants = _constants(model, op, probe)
    shape = probe.shapes[op.inputs[0]]
    units = frame.units(shape)
    steps = 1 if frame.time is None else probe.steps
    # two samples and two elements tell their axes from axes of size one, where the operator
    # takes them
    sizes = [(max(probe.batch, 2), max(steps, 2 if frame.time is not None else 1))]
    sizes += [(probe.batch, steps)] if sizes[0] != (probe.batch, steps) else []
    problem = Refusal("it cannot be run alone")
    for batch, length in sizes:
        count = batch * length * int(np.prod(units))
        if count >= MOST_LABELS:
            raise Refusal(f"{count} values are too many for a layout operator; the limit is 2^24")
        lead = (batch,) if frame.time is None else (batch, length)
        labels = np.arange(1, count + 1).reshape(*lead, *units)
        given = np.ascontiguousarray(frame.restored(labels), np.float32)
        try:
            outputs = _run_node(model, op, given, constants)
            return {
                name: _decoded(seen.astype(np.int64), batch, length, units, frame, fill)
                for name, seen in zip(op.outputs, outputs, strict=True)
                if name
            }
        except Refusal as refusal:
            problem = refusal
    raise problem


def _constants(model: FloatModel, op: Op, probe: Probe) -> tuple[float, dict[str, Array]]:
    """The operator's constant inputs; the value that Pad fills with is kept apart."""
    found = {n: probe.constants[n] for n in op.inputs[1:] if n in probe.constants}
    missing = [n for n in op.inputs[1:] if n and n not in found]
    if missing:
        raise Refusal(f"input '{missing[0]}' is computed from the data", "make it a constant")
    if op.op != "Pad":
        return 0.0, found
    if len(op.inputs) > 2 and op.inputs[2]:
        fill = float(np.asarray(found.pop(op.inputs[2])).reshape(-1)[0])
    else:
        fill = float(op.attrs.get("value", 0.0))
    if not np.isfinite(fill):
        raise Refusal(f"padding with {fill}", "pad with a finite number")
    return fill, found


def _run_node(
    model: FloatModel, op: Op, labels: Array, constants: Mapping[str, Array]
) -> list[Array]:
    node = onnx.NodeProto()
    node.CopyFrom(op.proto)
    if op.op == "Pad":  # outside is label 0
        kept = [a for a in node.attribute if a.name != "value"]
        del node.attribute[:]
        node.attribute.extend(kept)
        if len(node.input) > 2:
            node.input[2] = ""
    if op.op in ("Resize", "Upsample") and op.attrs.get("mode", "nearest") != "nearest":
        raise Refusal(f"resizing by {op.attrs['mode']}", "use nearest-neighbour resizing")
    feed = op.inputs[0]
    graph = helper.make_graph(
        [node],
        "labels",
        [helper.make_tensor_value_info(feed, TensorProto.FLOAT, labels.shape)],
        [onnx.ValueInfoProto(name=o) for o in op.outputs if o],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    proto = helper.make_model(
        graph,
        opset_imports=list(model.model.opset_import),
        ir_version=min(10, model.model.ir_version),
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = iter(session.run(None, {feed: labels}))
    except Exception as error:  # onnxruntime raises many kinds
        raise Refusal(f"onnxruntime cannot run it alone: {str(error).splitlines()[0]}") from error
    return [np.asarray(next(values)) if o else np.zeros(0) for o in op.outputs]


def _decoded(
    seen: Array, batch: int, steps: int, units: tuple[int, ...], frame: Frame, fill: float
) -> tuple[Frame, Move]:
    """Frame and move of an output, from the labels that came out."""
    size = int(np.prod(units))
    inside = seen > 0
    sample, rest = np.divmod(seen - 1, steps * size)
    step, unit = np.divmod(rest, size)
    timed = frame.time is not None
    at = _axis(sample, inside, np.arange(batch))
    if at is not None and not timed:
        return Frame(at), Move(_shared(seen, inside, unit, (at,)), "", fill)
    if at is not None:
        when = [a for a in range(seen.ndim) if a != at]
        along = _axis(step, inside, np.arange(steps), when)
        if along is not None:
            index = _shared(seen, inside, unit, (at, along))
            return Frame(at, along), Move(index, "", fill)
        taken = np.unique(step[inside])
        if len(taken) == 1 and int(taken[0]) in (0, steps - 1):
            pick = LAST if int(taken[0]) == steps - 1 else FIRST
            return Frame(at), Move(_shared(seen, inside, unit, (at,)), pick, fill)
        _refuse_elements(taken, steps)
    if timed:
        for outside in (True, False):
            inner = steps if outside else batch
            first, second = np.divmod(np.arange(batch * steps), inner)
            samples, elements = (first, second) if outside else (second, first)
            both = _axis(sample, inside, samples)
            if both is not None and both == _axis(step, inside, elements):
                index = _shared(seen, inside, unit, (both,))
                return Frame(both, both, outside), Move(index, "", fill)
    raise Refusal("it moves values between the samples of a batch", "keep the batch axis apart")


def _refuse_elements(taken: Array, steps: int) -> None:
    if len(taken) == 1:
        reason = f"it takes element {taken[0]} of a sequence of {steps}"
        remedy = "take the first or the last, or all of them"
    else:
        reason = "it moves values between the elements of a sequence"
        remedy = "keep the elements on an axis of their own, in their order"
    raise Refusal(reason, remedy)


def _axis(
    value: Array, inside: Array, expected: Array, among: list[int] | None = None
) -> int | None:
    """The axis along which the values are the expected ones, wherever there are any."""
    for axis in range(value.ndim) if among is None else among:
        if value.shape[axis] == len(expected) and inside.any():
            along = expected.reshape(-1, *(1,) * (value.ndim - 1 - axis))
            if (np.broadcast_to(along, value.shape)[inside] == value[inside]).all():
                return axis
    return None


def _shared(seen: Array, inside: Array, unit: Array, axes: tuple[int, ...]) -> Array:
    """Input unit of every output unit, -1 outside; the same for all samples and elements."""
    local = np.moveaxis(np.where(inside, unit, -1), axes, range(len(axes)))
    first = local[(0,) * len(axes)]
    if (local != first).any():
        raise Refusal("it moves samples or elements differently", "treat all of them alike")
    return np.asarray(first)

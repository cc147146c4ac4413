"""A layout operator on labels that carry (step, sample, unit): where a label goes, the value goes.

Running the very node says where each value ends up, for every operator set and every attribute,
and which axes of the result are the batch and the elements, with nothing derived by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from snnkit.converters.frames import FIRST, LAST, Frame, Move, Refusal
from snnkit.converters.operators import Op, Probe

if TYPE_CHECKING:
    from snnkit.converters.float_model import FloatModel

Array = npt.NDArray[Any]
MOST_LABELS = 2**24
"""float32 labels are exact up to here."""
MOVES = (
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "Resize"),
    *("Upsample", "Gather", "DepthToSpace", "SpaceToDepth", "Expand", "Tile"),
)
"""Operators that move the values of their first input."""


def by_labels(
    model: FloatModel, op: Op, frame: Frame, probe: Probe
) -> dict[str, tuple[Frame, Move]]:
    """Frame and move of each output of a layout operator whose input has the frame `frame`."""
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
    options.intra_op_num_threads = 1  # to start more takes longer than to move the labels
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

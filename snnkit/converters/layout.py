"""Layout operators: whatever onnxruntime does to labels, the network does to values.

A layout operator only moves values. Running the very node on labels instead of data says where
each one goes, for every operator set and every attribute, with nothing derived by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from snnkit.converters.float_model import Array, Op
from snnkit.converters.network import Affine, Refusal
from snnkit.converters.reader import Handler, Reader
from snnkit.ops import TABLE

MOST_LABELS = 2**24
"""float32 labels are exact up to here."""


def move(reader: Reader, x: Affine, kind: str, name: str, **attrs: Any) -> Affine:
    """A route of one input, with scale and offset moved along."""
    params = {"index": attrs.pop("index")} if "index" in attrs else {}
    node = reader.net.add(name, "route", [x.node], params, {"kind": kind, **attrs})

    def moved(array: Array, outside: float) -> Array:
        if array.size == 1 and not params:
            return array.reshape((1,) * len(node.shape))
        full = np.broadcast_to(array, x.shape)
        if params:
            index = np.asarray(params["index"])
            picked: Array = np.where(index < 0, outside, full.reshape(-1)[np.maximum(index, 0)])
            return picked
        return np.asarray(TABLE["route"].dense(node, [full[None]])[0])

    idle = float(np.abs(x.scale).max()) or 1.0
    return reader.net.affine(node, moved(x.scale, idle), moved(x.offset, 0.0))


def by_labels(reader: Reader, op: Op) -> None:
    """Any operator that moves the values of its first input."""
    x = reader.data(op)
    units, batch = x.node.units, reader.model.batch
    if units * batch >= MOST_LABELS:
        raise Refusal(f"{units} units are too many for a layout operator; the limit is 2^24")
    fill, constants = _constants(reader, op)
    labels = (np.arange(batch * units) + 1).astype(np.float32)
    outputs = _run_node(reader, op, labels.reshape(batch, *x.shape), constants)
    for name, seen in zip(op.outputs, outputs, strict=True):
        if not name:
            continue
        shape = reader.shape(name)
        index = _index(seen.astype(np.int64), batch, units, shape)
        if index.size == units and np.array_equal(index.reshape(-1), np.arange(units)):
            reader.give(name, move(reader, x, "reshape", name, shape=shape))
            continue
        y = move(reader, x, "index", name, index=index, shape=shape)
        if fill and (index < 0).any():
            y = reader.net.affine(y.node, y.scale, np.where(index < 0, fill, y.offset))
        reader.give(name, y)


def _constants(reader: Reader, op: Op) -> tuple[float, dict[str, Array]]:
    """The operator's constant inputs; the value that Pad fills with is kept apart."""
    found = {
        name: reader.model.constants[name]
        for name in op.inputs[1:]
        if name in reader.model.constants
    }
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


def _run_node(reader: Reader, op: Op, labels: Array, constants: dict[str, Array]) -> list[Array]:
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
    imports = list(reader.model.model.opset_import)
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=min(10, reader.model.model.ir_version)
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = iter(session.run(None, {feed: labels}))
    except Exception as error:  # onnxruntime raises many kinds
        raise Refusal(f"onnxruntime cannot run it alone: {str(error).splitlines()[0]}") from error
    return [np.asarray(next(values)) if o else np.zeros(0) for o in op.outputs]


def _index(seen: Array, batch: int, units: int, shape: tuple[int, ...]) -> Array:
    """Input unit of every output unit, -1 outside; refuses an operator that mixes samples."""
    mixed = seen.shape != (batch, *shape)
    if not mixed:
        first = np.arange(batch).reshape(-1, *(1,) * len(shape)) * units
        local = np.where(seen == 0, -1, seen - 1 - first)
        mixed = bool((local[0] != local).any() or local.min() < -1 or local.max() >= units)
    if mixed:
        raise Refusal("it moves values between the samples of a batch", "keep the batch axis apart")
    return np.asarray(local[0])


def transpose(reader: Reader, op: Op) -> None:
    x = reader.data(op)
    rank = len(x.shape) + 1
    perm = list(op.attrs.get("perm", range(rank)[::-1]))
    if perm[0] != 0:
        by_labels(reader, op)  # legal where the axes that meet the batch axis have size one
        return
    reader.give(
        op.outputs[0], move(reader, x, "transpose", op.outputs[0], perm=[p - 1 for p in perm[1:]])
    )


def concat(reader: Reader, op: Op) -> None:
    if not all(reader.is_data(op, i) for i in range(len(op.inputs))):
        raise Refusal("a Concat with constants among its parts", "concatenate values only")
    parts = [reader.data(op, i) for i in range(len(op.inputs))]
    rank = len(parts[0].shape)
    axis = int(op.attrs.get("axis", 1)) % (rank + 1) - 1
    if axis < 0:
        raise Refusal("a Concat along the batch axis", "keep the batch axis apart")
    if len(parts) > 1 and any(p.node.hi - p.node.lo <= 255 for p in parts):
        # side by side with 8-bit values, a wide charge would make all of them wide
        parts = [
            p if p.node.hi - p.node.lo <= 255 else reader.net.byte(p, name)
            for p, name in zip(parts, op.inputs, strict=True)
        ]
    nodes = [p.node for p in parts]
    node = reader.net.add(op.outputs[0], "route", nodes, {}, {"kind": "concat", "axis": axis})
    scale, offset = (
        np.concatenate(
            [np.broadcast_to(a, p.shape) for a, p in zip(arrays, parts, strict=True)], axis
        )
        for arrays in ([p.scale for p in parts], [p.offset for p in parts])
    )
    reader.give(op.outputs[0], reader.net.affine(node, scale, offset))


LAYOUT: dict[str, Handler] = {
    "Transpose": transpose,
    "Concat": concat,
    **dict.fromkeys(
        (
            "Flatten",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "Pad",
            "Resize",
            "Upsample",
            "Gather",
            "DepthToSpace",
            "SpaceToDepth",
            "Expand",
            "Tile",
        ),
        by_labels,
    ),
}

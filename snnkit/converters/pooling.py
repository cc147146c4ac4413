"""Pooling and reductions over space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from snnkit.converters.activations import Floats
from snnkit.converters.frames import Refusal
from snnkit.converters.network import Affine, compress
from snnkit.converters.operators import Array, Op
from snnkit.converters.reader import Handler, Reader
from snnkit.converters.tracing import reduced_axes, takes_no_axes
from snnkit.ops.synapses import windows

FINEST = 2**12


def spatial_pads(op: Op, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Begins, then ends, from pads or auto_pad."""
    d = len(kernel)
    mode = op.attrs.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return tuple(op.attrs.get("pads", [0] * 2 * d))
    if mode == "VALID":
        return (0,) * (2 * d)
    strides, dilations = op.attrs.get("strides", [1] * d), op.attrs.get("dilations", [1] * d)
    totals = [
        max((-(-n // s) - 1) * s + (k - 1) * e + 1 - n, 0)
        for n, k, s, e in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return small + large if mode == "SAME_UPPER" else large + small


def _geometry(op: Op, x: Affine) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Attributes of the pooling node, and the pads that the model itself declares."""
    kernel = tuple(op.attrs["kernel_shape"])
    d = len(kernel)
    if d not in (1, 2) or len(x.shape) != d + 1:
        raise Refusal(
            f"pooling over {d} axes of a sample {x.shape}", "one or two axes, (C, *space)"
        )
    strides = tuple(op.attrs.get("strides", [1] * d))
    dilations = tuple(op.attrs.get("dilations", [1] * d))
    declared = spatial_pads(op, x.shape[1:], kernel)
    pads = list(declared)
    if op.attrs.get("ceil_mode", 0):
        for i in range(d):
            pads[d + i] += _extra(
                x.shape[1 + i], kernel[i], strides[i], dilations[i], pads[i], pads[d + i]
            )
    attrs = {"kernel": kernel, "strides": strides, "pads": tuple(pads), "dilations": dilations}
    return attrs, declared


def _extra(size: int, kernel: int, stride: int, dilation: int, begin: int, end: int) -> int:
    """Padding behind the end that makes ceil_mode's last window fit, if it starts on data."""
    span = (kernel - 1) * dilation + 1
    length = size + begin + end - span
    last = -(-length // stride) * stride
    if last >= size + begin:
        last -= stride
    return max(0, last + span - (size + begin + end))


def max_pool(reader: Reader, op: Op) -> None:
    if len([o for o in op.outputs if o]) > 1:
        raise Refusal("the indices of MaxPool are used")
    reader.in_front(op)
    attrs, _ = _geometry(op, reader.data(op))
    x = reader.net.byte(reader.data(op), op.inputs[0], axis=0, flat=True)
    node = reader.net.add(op.outputs[0], "max_pool", [x.node], {}, attrs)
    reader.give(op.outputs[0], reader.net.affine(node, x.scale, x.offset))


def average_pool(reader: Reader, op: Op) -> None:
    reader.in_front(op)
    attrs, declared = _geometry(op, reader.data(op))
    x = reader.net.byte(reader.data(op), op.inputs[0], axis=0, flat=True)
    node = reader.net.add(op.outputs[0], "sum_pool", [x.node], {}, attrs)
    inside = _window_sum(np.ones((1, *x.shape[1:])), attrs, (0,) * len(declared))
    counted = inside
    if op.attrs.get("count_include_pad", 0):
        counted = _window_sum(np.ones((1, *x.shape[1:])), attrs, declared)
    y = _divided(reader, reader.net.affine(node, x.scale, 0.0), counted, op.outputs[0])
    reader.give(op.outputs[0], reader.net.affine(y.node, y.scale, x.offset * inside / counted))


def _window_sum(ones: Array, attrs: dict[str, Any], ring: tuple[int, ...]) -> Floats:
    """Number of ones in each window, with a ring of ones as declared padding."""
    d = len(attrs["kernel"])
    padded = np.pad(
        ones, [(0, 0), *((ring[i], ring[d + i]) for i in range(d))], constant_values=1.0
    )
    rest = tuple(p - r for p, r in zip(attrs["pads"], ring, strict=True))
    view = windows(padded[None], attrs["kernel"], attrs["strides"], rest, attrs["dilations"])
    return compress(view.sum(axis=tuple(range(-d, 0)))[0], d + 1)


def _divided(reader: Reader, x: Affine, counts: Floats, name: str) -> Affine:
    """x / counts; where the counts differ between positions, on a grid of their common multiple."""
    if counts.size == 1:
        return reader.net.affine(x.node, x.scale / counts, x.offset)
    whole = [int(c) for c in np.unique(counts)]
    common = math.lcm(*whole)
    grid = common if common <= FINEST else FINEST
    multiplier = np.rint(grid / counts).astype(np.int64)
    node = reader.net.add(f"{name}.mean", "add", [x.node], {"m0": multiplier})
    return reader.net.affine(node, x.scale / grid, x.offset)


def _axes(reader: Reader, op: Op, x: Affine) -> tuple[int, ...]:
    frame, rank = reader.frame(op.inputs[0]), len(reader.model.shapes[op.inputs[0]])
    if op.op.startswith("Global"):
        reader.in_front(op)
        return tuple(range(1, rank - 1))
    if takes_no_axes(reader.model, op):
        return ()
    return tuple(sorted({frame.unit(a, rank, op.op) for a in reduced_axes(reader.model, op)}))


def _keepdims(op: Op) -> bool:
    return op.op.startswith("Global") or bool(op.attrs.get("keepdims", 1))


def reduce_sum(reader: Reader, op: Op) -> None:
    """GlobalAveragePool, ReduceMean, ReduceSum."""
    x, name = reader.data(op), op.outputs[0]
    axes = _axes(reader, op, x)
    if not axes:
        reader.give(name, x)
        return
    if any(x.scale.shape[a] > 1 for a in axes):
        x = reader.net.even(x, name)
    keep = _keepdims(op)
    attrs = {"axes": axes, "keepdims": keep}
    node = reader.net.add(name, "sum_pool", [x.node], {}, attrs)
    count = int(np.prod([x.shape[a] for a in axes]))
    divisor = 1 if op.op == "ReduceSum" else count
    full = np.broadcast_to(
        x.offset,
        [
            n if i in axes else s
            for i, (n, s) in enumerate(zip(x.shape, x.offset.shape, strict=True))
        ],
    )
    offset = full.sum(axis=axes, keepdims=keep) / divisor
    scale = (
        x.scale
        if keep
        else x.scale.reshape([n for i, n in enumerate(x.scale.shape) if i not in axes])
    )
    reader.give(name, reader.net.affine(node, scale / divisor, offset))


def reduce_max(reader: Reader, op: Op) -> None:
    """GlobalMaxPool, ReduceMax."""
    x, name = reader.data(op), op.outputs[0]
    axes = _axes(reader, op, x)
    if not axes:
        reader.give(name, x)
        return
    uneven = any(a.shape[i] > 1 for a in (x.scale, x.offset) for i in axes)
    small = (
        reader.net.byte(x, op.inputs[0]) if uneven else reader.net.byte(x, op.inputs[0], 0, True)
    )
    keep = _keepdims(op)
    node = reader.net.add(name, "max_pool", [small.node], {}, {"axes": axes, "keepdims": keep})
    rest = [i for i in range(len(x.shape)) if keep or i not in axes]
    scale = small.scale.reshape([small.scale.shape[i] for i in rest])
    offset = small.offset.reshape([small.offset.shape[i] for i in rest])
    reader.give(name, reader.net.affine(node, scale, offset))


POOLING: dict[str, Handler] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": reduce_sum,
    "ReduceMean": reduce_sum,
    "ReduceSum": reduce_sum,
    "GlobalMaxPool": reduce_max,
    "ReduceMax": reduce_max,
}

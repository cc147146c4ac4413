"""Pooling over windows or over whole axes: sum_pool (linear) and max_pool (by tracers)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from snnkit.errors import BadShape
from snnkit.ops.op import Attrs, Bounds, Ints, Op, Params, Shape, Writer
from snnkit.ops.synapses import check_padded, window_counts, windows

if TYPE_CHECKING:
    from snnkit.graph import Node

LOWEST = np.iinfo(np.int64).min


def _pooled_shape(attrs: Attrs, source: Shape) -> Shape:
    if "axes" in attrs:
        axes = attrs["axes"]
        if (
            not axes
            or list(axes) != sorted(set(axes))
            or not 0 <= axes[0] <= axes[-1] < len(source)
        ):
            raise BadShape(f"pooling axes {axes} of an input {source}; expected sorted axes of it")
        if attrs["keepdims"] not in (0, 1):
            raise BadShape(f"keepdims {attrs['keepdims']}; expected 0 or 1")
        if attrs["keepdims"]:
            return tuple(1 if i in axes else n for i, n in enumerate(source))
        return tuple(n for i, n in enumerate(source) if i not in axes)
    kernel, pads = attrs["kernel"], attrs["pads"]
    d = len(kernel)
    fits = d in (1, 2) and len(source) == d + 1
    if not fits or not len(attrs["strides"]) == len(attrs["dilations"]) == d or len(pads) != 2 * d:
        raise BadShape(f"pooling kernel {kernel}, input {source}; expected (C, *space) to match")
    check_padded(source, pads)
    counts = []
    for i in range(d):
        margins = (pads[i], pads[d + i])
        size, stride, dilation = source[1 + i], attrs["strides"][i], attrs["dilations"][i]
        count = window_counts(size, kernel[i], stride, margins, dilation)
        taps = np.arange(count)[:, None] * stride + np.arange(kernel[i]) * dilation - pads[i]
        # a window that saw only padding would have no maximum; onnxruntime wants small pads too
        inside = ((taps >= 0) & (taps < size)).any(axis=1).all()
        if not inside or max(margins) >= (kernel[i] - 1) * dilation + 1:
            raise BadShape(f"pads {margins} reach past the window {kernel[i]}; expected smaller")
        counts.append(count)
    return (source[0], *counts)


def _window_view(node: Node, x: Ints, fill: int) -> Ints:
    a = node.attrs
    return windows(x, a["kernel"], a["strides"], a["pads"], a["dilations"], fill)


def _batch_axes(node: Node) -> tuple[int, ...]:
    return tuple(a + 1 for a in node.attrs["axes"])


class SumPool(Op):
    """Sum over a window, or over whole axes. Padding counts as zero.

    attrs: kernel, strides, pads, dilations; or axes (sorted, without the batch axis), keepdims.
    """

    name = "sum_pool"
    linear = True

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        return _pooled_shape(attrs, inputs[0])

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        low, high = inputs[0]
        if "axes" in attrs:
            count = math.prod(shapes[0][a] for a in attrs["axes"])
        else:
            count = math.prod(attrs["kernel"])
        return low * count, high * count, max(-low, high) * count

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        if "axes" in node.attrs:
            keep = bool(node.attrs["keepdims"])
            return np.asarray(xs[0].sum(axis=_batch_axes(node), keepdims=keep))
        d = len(node.attrs["kernel"])
        return np.asarray(_window_view(node, xs[0], 0).sum(axis=tuple(range(-d, 0))))

    def emit(self, node: Node, writer: Writer) -> None:
        source, name = writer.source(node), f"{node.name}.sum"
        if "axes" in node.attrs:
            axes = writer.array(f"{node.name}.axes", np.array(_batch_axes(node), np.int64))
            inputs = [writer.word(source), axes]
            keep = int(node.attrs["keepdims"])
            name = writer.emit("ReduceSum", inputs, name, keepdims=keep)
        else:
            a, channels = node.attrs, source.shape[0]
            ones = np.ones((channels, 1, *a["kernel"]), np.uint8)
            inputs = [writer.byte(source), writer.array(f"{node.name}.ones", ones)]
            inputs += [writer.zero_point(source), writer.array("ones_zero", np.uint8(0))]
            attrs = {key: a[key] for key in ("strides", "pads", "dilations")}
            kernel = a["kernel"]
            name = writer.emit(
                "ConvInteger", inputs, name, kernel_shape=kernel, group=channels, **attrs
            )
        writer.is_word(node, name)


class MaxPool(Op):
    """Maximum over a window, or over whole axes. Padding takes no part.

    attrs as for sum_pool. Not linear: a neuron behind it sees m_new - m_old, recomputed from
    tracers of the inputs.
    """

    name = "max_pool"

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        return _pooled_shape(attrs, inputs[0])

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        low, high = inputs[0]
        return low, high, max(-low, high)

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        if "axes" in node.attrs:
            keep = bool(node.attrs["keepdims"])
            return np.asarray(xs[0].max(axis=_batch_axes(node), keepdims=keep))
        d = len(node.attrs["kernel"])
        return np.asarray(_window_view(node, xs[0], LOWEST).max(axis=tuple(range(-d, 0))))

    def emit(self, node: Node, writer: Writer) -> None:
        source, name = writer.byte(writer.source(node)), f"{node.name}.max"
        if "axes" in node.attrs:
            axes = writer.array(f"{node.name}.axes", np.array(_batch_axes(node), np.int64))
            keep = int(node.attrs["keepdims"])
            name = writer.emit("ReduceMax", [source, axes], name, keepdims=keep)
        else:
            a = node.attrs
            attrs = {key: a[key] for key in ("strides", "pads", "dilations")}
            name = writer.emit("MaxPool", [source], name, kernel_shape=a["kernel"], **attrs)
        writer.is_byte(node, name)

"""Synapses: conv and linear. Integer weights, no bias (biases live in the neurons)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snnkit.errors import BadShape, TooLarge
from snnkit.ops.op import Attrs, Bounds, Ints, Op, Params, Shape, Writer

if TYPE_CHECKING:
    from snnkit.graph import Node

MOST_PADDED = 2**28
WEIGHT_ZERO = 128
"""Weights lie in the file as uint8 with this zero point. onnxruntime's u8 x s8 kernels add
pairs of products in saturating 16 bits on CPUs without VNNI (255*127*2 > 32767); its u8 x u8
kernels widen first and are exact on every CPU."""


def window_counts(size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int) -> int:
    """Number of window positions along one axis; raises BadShape if none fits."""
    span = (kernel - 1) * dilation + 1
    count = (size + pads[0] + pads[1] - span) // max(stride, 1) + 1
    if kernel < 1 or stride < 1 or dilation < 1 or min(pads) < 0 or size < 1 or count < 1:
        raise BadShape(
            f"no window fits: size {size}, kernel {kernel}, stride {stride}, pads {pads}, "
            f"dilation {dilation}; expected at least one window"
        )
    return count


def check_padded(source: Shape, pads: Shape) -> None:
    """Raise TooLarge if (C, *space) with its padding is more than may be allocated."""
    d = len(source) - 1
    sides = [source[1 + i] + pads[i] + pads[d + i] for i in range(d)]
    if source[0] * math.prod(sides) > MOST_PADDED:
        raise TooLarge(f"{source} padded by {pads}; the limit is {MOST_PADDED} units")


def windows(
    x: npt.NDArray[Any], kernel: Shape, strides: Shape, pads: Shape, dilations: Shape, fill: int = 0
) -> npt.NDArray[Any]:
    """All windows of x [N, C, *space] as a view [N, C, *positions, *kernel], `fill` outside."""
    d = len(kernel)
    margins = [(0, 0), (0, 0)] + [(pads[i], pads[d + i]) for i in range(d)]
    padded = np.pad(x, margins, constant_values=fill) if any(pads) else x
    spans = tuple((k - 1) * e + 1 for k, e in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + d)))
    step = [slice(None, None, s) for s in strides] + [slice(None, None, e) for e in dilations]
    return view[(slice(None), slice(None), *step)]


def correlate(x: npt.NDArray[Any], weight: npt.NDArray[Any], attrs: Attrs) -> npt.NDArray[Any]:
    """Cross-correlation of x [N, C, *space] with weight [O, C/group, *kernel], in float64.

    float64 matrix products are exact here: every partial sum of integers stays below 2^53
    because the proved bound of a charge is below 2^31.
    """
    group = int(attrs["group"])
    kernel = weight.shape[2:]
    d = len(kernel)
    view = windows(x, kernel, attrs["strides"], attrs["pads"], attrs["dilations"])
    positions = view.shape[2 : 2 + d]
    per_group, out = view.shape[1] // group, weight.shape[0] // group
    order = (0, *range(2, 2 + d), 1, *range(2 + d, 2 + 2 * d))
    results = []
    for g in range(group):
        block = view[:, g * per_group : (g + 1) * per_group].transpose(order)
        rows = block.reshape(x.shape[0] * int(np.prod(positions)), -1).astype(np.float64)
        columns = weight[g * out : (g + 1) * out].reshape(out, -1).astype(np.float64)
        results.append((rows @ columns.T).reshape(x.shape[0], *positions, out))
    return np.moveaxis(np.concatenate(results, axis=-1), -1, 1)


def _reach(weight: npt.NDArray[Any], source: Bounds) -> tuple[int, int, int]:
    """Bounds of a weighted sum, and of every partial sum, with each input in `source`."""
    w = weight.reshape(weight.shape[0], -1).astype(np.int64)
    positive, negative = np.maximum(w, 0).sum(1), np.minimum(w, 0).sum(1)
    low, high = source
    lo = int((positive * low + negative * high).min())
    hi = int((positive * high + negative * low).max())
    return lo, hi, int((positive - negative).max()) * max(-low, high)


def fan_out(node: Node, source: Node) -> Ints:
    """Synapses that leave each unit of `source`, the input of a conv or linear node (fewer at the
    border)."""
    weight = node.params["weight"]
    if node.op == "linear":
        return np.full(source.shape, weight.shape[0], np.int64)
    group = node.attrs["group"]
    d = weight.ndim - 2
    hits = np.ones((1,) * (d + 1), np.int64)
    for i in range(d):
        along = np.zeros(source.shape[1 + i], np.int64)
        for k in range(weight.shape[2 + i]):
            at = np.arange(node.shape[1 + i]) * node.attrs["strides"][i]
            at = at + k * node.attrs["dilations"][i] - node.attrs["pads"][i]
            np.add.at(along, at[(at >= 0) & (at < len(along))], 1)
        hits = hits * along.reshape((1,) * (1 + i) + (-1,) + (1,) * (d - 1 - i))
    return np.broadcast_to(hits * (weight.shape[0] // group), source.shape).astype(np.int64)


class Conv(Op):
    """A[o] = sum over (i, k) of weight[o, i, k] * x[i, position * stride + k * dilation - pad].

    weight : (O, C/group, *kernel) int8; attrs strides, pads (all begins, then all ends),
    dilations, group. Input and output: (C, *space) and (O, *positions), one or two axes.
    """

    name = "conv"
    linear = True
    dtypes = {"weight": "int8"}

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        weight, source = params["weight"], inputs[0]
        d, group = weight.ndim - 2, int(attrs["group"])
        fits = (
            d in (1, 2)
            and len(source) == d + 1
            and group > 0
            and weight.shape[1] * group == source[0]
            and weight.shape[0] % group == 0
            and weight.size > 0
            and len(attrs["strides"]) == len(attrs["dilations"]) == d
            and len(attrs["pads"]) == 2 * d
        )
        if not fits:
            raise BadShape(
                f"conv weight {weight.shape}, group {group}, input {source}; expected weight "
                "(O, C/group, *kernel) for an input (C, *space) with one or two axes"
            )
        kernel, pads = weight.shape[2:], attrs["pads"]
        check_padded(source, pads)
        return (
            weight.shape[0],
            *(
                window_counts(
                    source[1 + i],
                    kernel[i],
                    attrs["strides"][i],
                    (pads[i], pads[d + i]),
                    attrs["dilations"][i],
                )
                for i in range(d)
            ),
        )

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        return _reach(params["weight"], inputs[0])

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        return correlate(xs[0], node.params["weight"], node.attrs).astype(np.int64)

    def emit(self, node: Node, writer: Writer) -> None:
        source = writer.source(node)
        weight = node.params["weight"]
        inputs = [
            writer.byte(source),
            writer.array(f"{node.name}.weight", self.store("weight", weight)),
            writer.zero_point(source),
            writer.array("weight_zero", np.uint8(WEIGHT_ZERO)),
        ]
        attrs = {key: node.attrs[key] for key in ("strides", "pads", "dilations", "group")}
        kernel = weight.shape[2:]
        tensor = writer.emit(
            "ConvInteger", inputs, f"{node.name}.charge", kernel_shape=kernel, **attrs
        )
        writer.is_word(node, tensor)

    def store(self, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return (value.astype(np.int16) + WEIGHT_ZERO).astype(np.uint8)

    def restore(
        self, name: str, stored: npt.NDArray[Any], shape: Shape, attrs: Attrs
    ) -> npt.NDArray[Any]:
        return (stored.astype(np.int16) - WEIGHT_ZERO).astype(np.int8).reshape(shape)


class Linear(Op):
    """A[..., o] = sum over f of weight[o, f] * x[..., f].

    weight : (O, F) int8. Acts on the last axis of the input.
    """

    name = "linear"
    linear = True
    dtypes = {"weight": "int8"}

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        weight, source = params["weight"], inputs[0]
        if weight.ndim != 2 or not source or weight.shape[1] != source[-1] or not weight.size:
            raise BadShape(
                f"linear weight {weight.shape}, input {source}; expected weight (O, F) for an "
                "input (..., F)"
            )
        return (*source[:-1], weight.shape[0])

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        return _reach(params["weight"], inputs[0])

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        # float64 is exact here for the reason given at `correlate`
        product = xs[0].astype(np.float64) @ node.params["weight"].T.astype(np.float64)
        return product.astype(np.int64)

    def emit(self, node: Node, writer: Writer) -> None:
        source = writer.source(node)
        inputs = [
            writer.byte(source),
            writer.array(f"{node.name}.weight", self.store("weight", node.params["weight"])),
            writer.zero_point(source),
            writer.array("weight_zero", np.uint8(WEIGHT_ZERO)),
        ]
        writer.is_word(node, writer.emit("MatMulInteger", inputs, f"{node.name}.charge"))

    def store(self, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray((value.T.astype(np.int16) + WEIGHT_ZERO).astype(np.uint8))

    def restore(
        self, name: str, stored: npt.NDArray[Any], shape: Shape, attrs: Attrs
    ) -> npt.NDArray[Any]:
        weight = (stored.astype(np.int16) - WEIGHT_ZERO).astype(np.int8)
        return np.ascontiguousarray(weight.reshape(shape[::-1]).T)

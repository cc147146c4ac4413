"""Floats to integers at the input, integers to floats at the output: the same bits as the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.errors import BadCalibration
from snnkit.graph import Boundary, Graph, Node
from snnkit.sweeps import most_steps, order

FLOATS = {"float32": np.float32, "float16": np.float16, "float64": np.float64}
INTEGERS = {"uint8": np.uint8, "int8": np.int8, "int32": np.int32, "int64": np.int64}
LENGTHS = "\0lengths"
"""Where values by node hold the samples' numbers of steps, [N]. No name of a node holds a NUL."""

DTYPES: dict[str, Any] = {**FLOATS, **INTEGERS}


def as_inputs(graph: Graph, x: Any) -> dict[str, npt.NDArray[Any]]:
    """Arrays by input name, checked: one array, or a mapping of arrays, in the model's layout.

    Raises BadCalibration where a name, a shape or a type does not fit, or a value is not finite.
    """
    named = dict(x) if isinstance(x, dict) else {graph.inputs[0].name: x}
    wanted = [b.name for b in graph.inputs] + ([graph.lengths] if graph.lengths else [])
    if sorted(named) != sorted(wanted):
        raise BadCalibration(f"data for inputs {sorted(named)}; expected {wanted}")
    checked = {
        b.name: check_samples(b.name, b.dtype, b.dims, named[b.name], b.batch) for b in graph.inputs
    }
    counts = {b.name: checked[b.name].shape[b.batch] for b in graph.inputs}
    if graph.lengths:
        lengths = check_samples(graph.lengths, graph.lengths_dtype, ("N",), named[graph.lengths])
        checked[graph.lengths], counts[graph.lengths] = lengths, len(lengths)
    if len(set(counts.values())) != 1:
        raise BadCalibration(f"numbers of samples differ between inputs: {counts}")
    if graph.sweeps:
        steps = count_steps(graph, {b.node: _canonical(b, checked[b.name]) for b in graph.inputs})
        if graph.lengths and not (lengths.min() >= 1 and lengths.max() <= steps):
            raise BadCalibration(
                f"input '{graph.lengths}': {lengths.min()} to {lengths.max()}; expected 1 to "
                f"{steps}, the steps of the data"
            )
    return checked


def input_counts(graph: Graph, x: Any) -> dict[str, npt.NDArray[np.int64]]:
    """Checked and quantised samples, by input node."""
    return counts_of(graph, as_inputs(graph, x))


def counts_of(graph: Graph, x: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.int64]]:
    """As `input_counts`, for what `as_inputs` gave; a graph's lengths are under LENGTHS."""
    counts = {b.node: quantise(b, graph.node[b.node], x[b.name]) for b in graph.inputs}
    if graph.lengths:
        counts[LENGTHS] = x[graph.lengths].astype(np.int64)
    return counts


def check_samples(
    name: str, dtype: str, dims: tuple[int | str, ...], value: Any, batch: int = 0
) -> npt.NDArray[Any]:
    """`value` as an array of `dtype` and shape `dims` but for the batch axis, whose size is free;
    raises BadCalibration saying what is off."""
    array = np.asarray(value)
    target = np.dtype(DTYPES[dtype])
    if array.dtype.kind not in "fiub":
        raise BadCalibration(f"input '{name}': type {array.dtype}; expected {dtype}")
    free = ["N" if i == batch else d for i, d in enumerate(dims)]
    if array.ndim != len(dims) or any(
        isinstance(d, int) and d != n for d, n in zip(free, array.shape, strict=True)
    ):
        raise BadCalibration(
            f"input '{name}': shape {array.shape}; expected ({', '.join(map(str, free))})"
        )
    if array.size == 0:
        raise BadCalibration(f"input '{name}': no samples; expected at least one")
    converted = array.astype(target, copy=False)
    if target.kind in "iu" and not np.array_equal(converted, array):
        raise BadCalibration(f"input '{name}': values do not fit {dtype}; expected {dtype} data")
    if not np.isfinite(converted).all():
        raise BadCalibration(f"input '{name}': NaN or infinite values; expected finite numbers")
    return converted


def count_steps(graph: Graph, counts: Mapping[str, npt.NDArray[Any]]) -> int:
    """T for values of input nodes, [N, T, *shape] where they have a time axis.

    Raises BadCalibration where inputs differ, or T is not one that the graph's bounds allow.
    """
    found = {b.name: counts[b.node].shape[1] for b in graph.inputs if b.time is not None}
    if graph.steps:
        found["the network"] = graph.steps
    if len(set(found.values())) != 1:
        raise BadCalibration(f"numbers of steps differ: {found}")
    steps = int(next(iter(found.values())))
    if steps > most_steps(graph):
        raise BadCalibration(
            f"{steps} steps; the network's bounds are proved for {most_steps(graph)}"
        )
    return steps


def tensor_axes(b: Boundary, rank: int, time: int = 1) -> tuple[int, ...]:
    """For each axis of the tensor, which axis of [N, T, *shape] it is ([T, N, *shape] for `time`
    0; no T where the boundary has no time axis). rank : axes of the shape."""
    batch = 0 if b.time is None else 1 - time
    lead = {b.batch: batch} if b.time is None else {b.batch: batch, b.time: time}
    rest = iter(range(len(lead), len(lead) + rank))
    return tuple(lead[i] if i in lead else next(rest) for i in range(len(lead) + rank))


def _canonical(b: Boundary, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A tensor of the model as [N, *shape] or [N, T, *shape]."""
    rank = x.ndim - 1 - (b.time is not None)
    return x.transpose(tuple(np.argsort(tensor_axes(b, rank))))


def take_samples(b: Boundary, x: npt.NDArray[Any], chosen: Any) -> npt.NDArray[Any]:
    """The chosen samples (a slice or indices) of a tensor in the model's layout."""
    return x[(slice(None),) * b.batch + (chosen,)]


def first_samples(graph: Graph, samples: Any, count: int) -> dict[str, npt.NDArray[Any]]:
    """The first `count` samples by input name, wherever each input has its batch axis."""
    boundaries = {b.name: b for b in graph.inputs}
    return {
        name: take_samples(boundaries[name], array, slice(count))
        if name in boundaries
        else array[:count]
        for name, array in as_inputs(graph, samples).items()
    }


def quantise(b: Boundary, node: Node, x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """q = clip(rint((x - offset) / scale), lo, hi) in float32, as QuantizeLinear computes it.

    x in the model's layout; returns [N, *shape], or [N, T, *shape] with a time axis.
    """
    return to_levels(b, node, _canonical(b, x))


def to_levels(b: Boundary, node: Node, x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """As `quantise`, for x [..., *shape]."""
    q = np.subtract(x, b.offset, dtype=np.float32, casting="unsafe")
    with np.errstate(over="ignore"):
        np.divide(q, b.scale, out=q)
    np.rint(q, out=q)
    np.maximum(q, node.lo, out=q)
    levels: npt.NDArray[np.int64] = np.minimum(q, node.hi, out=q).astype(np.int64)
    return levels


def dequantise(b: Boundary, counts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """y = float32(q) * scale, then the steps of `post`; in the source's own type and layout.

    counts [N, *shape], or [N, T, *shape] with a time axis.
    """
    y: npt.NDArray[Any] = counts.astype(np.int32).astype(np.float32) * b.scale
    y = y.transpose(tensor_axes(b, y.ndim - 1 - (b.time is not None)))
    for step in b.post:
        y = _post(step["op"], int(step["axis"]), y, bool(step.get("keepdims", False)))
    return np.asarray(y, DTYPES[b.dtype])


def read_out(
    graph: Graph,
    b: Boundary,
    value: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[Any]:
    """The output `b` for the value of its readout node, [N, T, *shape] in a sweep with steps."""
    direction = graph.direction(b.node)
    if direction and b.time is None:
        value = at_last_step(direction, value, lengths)
    return dequantise(b, value)


def at_last_step(
    direction: int, value: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    """[N, *shape] of [N, T, *shape]: the last step that a sweep of that direction took."""
    if lengths is None or direction < 0:
        return value[:, order(direction, value.shape[1])[-1]]
    return value[np.arange(len(value)), lengths - 1]


def _post(op: str, axis: int, y: npt.NDArray[Any], keepdims: bool) -> npt.NDArray[Any]:
    if op == "ArgMax":
        return np.asarray(np.argmax(y, axis=axis, keepdims=keepdims))
    shifted = y - y.max(axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    if op == "Softmax":
        return np.asarray(np.exp(shifted) / total)
    return np.asarray(shifted - np.log(total))

"""Floats to integers at the input, integers to floats at the output: the same bits as the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.errors import BadCalibration
from snnkit.graph import Boundary, Graph, Node

FLOATS = {"float32": np.float32, "float16": np.float16, "float64": np.float64}
INTEGERS = {"uint8": np.uint8, "int8": np.int8, "int32": np.int32, "int64": np.int64}
DTYPES: dict[str, Any] = {**FLOATS, **INTEGERS}


def as_inputs(graph: Graph, x: Any) -> dict[str, npt.NDArray[Any]]:
    """Arrays by input name, checked: one array, or a mapping of arrays; [N, *shape] each.

    Raises BadCalibration where a name, a shape or a type does not fit, or a value is not finite.
    """
    named = dict(x) if isinstance(x, dict) else {graph.inputs[0].name: x}
    wanted = [b.name for b in graph.inputs]
    if sorted(named) != sorted(wanted):
        raise BadCalibration(f"data for inputs {sorted(named)}; expected {wanted}")
    checked = {b.name: check_samples(b.name, b.dtype, b.dims, named[b.name]) for b in graph.inputs}
    counts = {name: len(a) for name, a in checked.items()}
    if len(set(counts.values())) != 1:
        raise BadCalibration(f"numbers of samples differ between inputs: {counts}")
    return checked


def check_samples(
    name: str, dtype: str, dims: tuple[int | str, ...], value: Any
) -> npt.NDArray[Any]:
    """`value` as an array of `dtype`, [N, *dims[1:]]; raises BadCalibration saying what is off."""
    array = np.asarray(value)
    target = np.dtype(DTYPES[dtype])
    if array.dtype.kind not in "fiub":
        raise BadCalibration(f"input '{name}': type {array.dtype}; expected {dtype}")
    if array.ndim != len(dims) or any(
        isinstance(d, int) and d != n for d, n in zip(dims[1:], array.shape[1:], strict=True)
    ):
        raise BadCalibration(
            f"input '{name}': shape {array.shape}; expected (N, {', '.join(map(str, dims[1:]))})"
        )
    if len(array) == 0:
        raise BadCalibration(f"input '{name}': no samples; expected at least one")
    converted = array.astype(target)
    if target.kind in "iu" and not np.array_equal(converted, array):
        raise BadCalibration(f"input '{name}': values do not fit {dtype}; expected {dtype} data")
    if not np.isfinite(converted.astype(np.float64)).all():
        raise BadCalibration(f"input '{name}': NaN or infinite values; expected finite numbers")
    return converted


def quantise(b: Boundary, node: Node, x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """q = clip(rint((x - offset) / scale), lo, hi) in float32, as QuantizeLinear computes it."""
    shifted = x.astype(np.float32) - b.offset
    with np.errstate(over="ignore"):
        q: npt.NDArray[np.int64] = (
            np.rint(shifted / b.scale).clip(node.lo, node.hi).astype(np.int64)
        )
    return q


def dequantise(b: Boundary, counts: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """y = float32(q) * scale, then the steps of `post`; in the source's own type."""
    y: npt.NDArray[Any] = counts.astype(np.int32).astype(np.float32) * b.scale
    for step in b.post:
        y = _post(step["op"], int(step["axis"]), y, bool(step.get("keepdims", False)))
    return np.asarray(y, DTYPES[b.dtype])


def _post(op: str, axis: int, y: npt.NDArray[Any], keepdims: bool) -> npt.NDArray[Any]:
    if op == "ArgMax":
        return np.asarray(np.argmax(y, axis=axis, keepdims=keepdims))
    shifted = y - y.max(axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    if op == "Softmax":
        return np.asarray(np.exp(shifted) / total)
    return np.asarray(shifted - np.log(total))

"""spike: the staircase, read densely; the bipolar integrate-and-fire neuron, read in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snnkit.errors import BadShape, BadThreshold
from snnkit.ops.op import Attrs, Bounds, Ints, Op, Params, Shape, Writer, batched

if TYPE_CHECKING:
    from snnkit.graph import Node

NEVER = np.iinfo(np.int32).max
"""A threshold that no charge reaches: a charge stays below it by the proved bound."""


def ladder_depth(node: Node) -> int:
    """p, where the ladder has at most 2^p - 1 thresholds."""
    return int(node.params["thresholds"].shape[-1]).bit_length()


def ladder_rows(node: Node) -> tuple[Ints, Ints, Ints]:
    """(row, thresholds, values): row of each unit [*shape]; thresholds [rows, K]; values
    [rows, K+1], the value of the staircase with so many thresholds passed."""
    thresholds = node.params["thresholds"].astype(np.int64)
    pattern = thresholds.shape[:-1]
    rows = int(np.prod(pattern))
    row = np.broadcast_to(np.arange(rows).reshape(pattern), node.shape)
    flat = thresholds.reshape(rows, -1)
    if "values" in node.params:
        values = node.params["values"].astype(np.int64).reshape(rows, -1)
    else:
        cells = flat.shape[1] + 1
        values = np.broadcast_to(np.arange(node.lo, node.lo + cells), (rows, cells))
    return row, flat, values


class Spike(Op):
    """S = staircase(A + init), the unique quiescent value of a bipolar integrate-and-fire neuron.

    attrs kind, lo, hi with lo <= 0 <= hi, hi - lo <= 255; init : int32, broadcasts, the initial
    charge (bias, and theta // 2 where rounding is wanted).

    - uniform : theta, int32 >= 1, broadcasts. S = clip(floor((A + init) / theta), lo, hi). In time:
      V = A + init - theta * S; fires +1 while V >= theta and S < hi, -1 while V < 0 and S > lo.
    - ladder : thresholds, (*pattern, K) int32, sorted, pattern broadcasts. With c the number of
      thresholds at or below A + init, S = lo + c, or values[c] if values, (*pattern, K+1) int32,
      is given (a staircase that may also step down). In time: cell c moves up while
      A + init >= thresholds[c], down while A + init < thresholds[c - 1].

    Uniqueness and order independence: P1 and P2, ARCHITECTURE.md; for integrate-and-fire
    neurons with a tracer also arXiv 2603.15987.
    """

    name = "spike"
    dtypes = {"init": "int32", "theta": "int32", "thresholds": "int32", "values": "int32"}

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        source, kind = inputs[0], attrs["kind"]
        wanted = {"uniform": {"init", "theta"}, "ladder": {"init", "thresholds"}}.get(kind)
        if wanted is None or not wanted <= set(params) <= wanted | {"values"}:
            raise BadShape(f"spike of kind {kind!r} with arrays {sorted(params)}")
        if kind == "uniform" and "values" in params:
            raise BadShape("a uniform staircase has no values of its own")
        for name, array in params.items():
            pattern = array.shape[:-1] if name in ("thresholds", "values") else array.shape
            try:
                fits = np.broadcast_shapes(source, pattern) == source and array.size > 0
            except ValueError:
                fits = False
            if not fits:
                raise BadShape(f"spike {name} {array.shape} does not broadcast against {source}")
        lo, hi = int(attrs["lo"]), int(attrs["hi"])
        if not lo <= 0 <= hi or not 0 < hi - lo <= 255:
            raise BadShape(f"spike range {lo}..{hi}; expected lo <= 0 <= hi and at most 255 steps")
        self._check_staircase(attrs, params, lo, hi)
        return source

    @staticmethod
    def _check_staircase(attrs: Attrs, params: Params, lo: int, hi: int) -> None:
        if attrs["kind"] == "uniform":
            if params["theta"].min() < 1:
                raise BadThreshold(f"theta {params['theta'].min()}; expected at least 1")
            return
        thresholds = params["thresholds"]
        if (np.diff(thresholds.astype(np.int64), axis=-1) < 0).any():
            raise BadThreshold("thresholds are not sorted; expected a non-decreasing ladder")
        steps = thresholds.shape[-1]
        if "values" not in params:
            if steps != hi - lo:
                raise BadThreshold(f"{steps} thresholds for {lo}..{hi}; expected {hi - lo}")
            return
        values = params["values"].astype(np.int64)
        if values.shape != (*thresholds.shape[:-1], steps + 1):
            raise BadShape(f"values {values.shape}; expected one more than thresholds")
        if values.min() < lo or values.max() > hi or (np.abs(np.diff(values, axis=-1)) > 1).any():
            raise BadThreshold(f"values leave {lo}..{hi} or step by more than one spike")
        if not (values == 0).any(axis=-1).all():
            raise BadThreshold("a staircase without the value 0; expected a cell to start from")

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        lo, hi = int(attrs["lo"]), int(attrs["hi"])
        init = params["init"].astype(np.int64)
        peak = max(-inputs[0][0], inputs[0][1]) + int(np.abs(init).max())
        if attrs["kind"] == "uniform":
            # the membrane potential also carries theta * S, the file adds -theta * lo
            peak += int(params["theta"].max()) * max(-lo, hi)
        return lo, hi, peak

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        charge = xs[0] + node.params["init"].astype(np.int64)
        if node.attrs["kind"] == "uniform":
            return np.clip(charge // node.params["theta"].astype(np.int64), node.lo, node.hi)
        row, thresholds, values = ladder_rows(node)
        out = np.empty_like(charge)
        for r, ladder in enumerate(thresholds):
            here = np.broadcast_to(row == r, charge.shape)
            out[here] = values[r][np.searchsorted(ladder, charge[here], side="right")]
        return out

    def emit(self, node: Node, writer: Writer) -> None:
        rank, name = len(node.shape), node.name
        charge = writer.word(writer.source(node))
        init = writer.array(f"{name}.init", batched(node.params["init"], rank)[None])
        if node.attrs["kind"] == "uniform":
            theta = writer.array(f"{name}.theta", batched(node.params["theta"], rank)[None])
            low = writer.array(f"lo_{node.lo}", np.int32(node.lo))
            high = writer.array(f"hi_{node.hi}", np.int32(node.hi))
            inputs = [charge, init, theta, low, high]
            writer.is_byte(node, writer.emit("BIF", inputs, f"{name}.spikes", domain="snnkit"))
            return
        depth = ladder_depth(node)
        _, thresholds, values = ladder_rows(node)
        pattern = node.params["thresholds"].shape[:-1]
        first = (np.arange(len(thresholds)) * (2**depth - 1)).astype(np.int32).reshape(pattern)
        stored = self.store("thresholds", node.params["thresholds"])
        ladder = writer.array(f"{name}.thresholds", stored)
        inputs = [charge, init, writer.array(f"{name}.first", batched(first, rank)[None]), ladder]
        op = f"Staircase{depth}"
        if "values" in node.params:
            op = f"Valued{op}"
            row = np.arange(len(thresholds), dtype=np.int32).reshape(pattern)
            row = batched(row * (thresholds.shape[1] + 1), rank)[None].astype(np.int32)
            offsets = (values - node.lo).reshape(-1).astype(np.uint8)
            inputs.append(writer.array(f"{name}.row", row))
            inputs.append(writer.array(f"{name}.values", offsets))
        writer.is_byte(node, writer.emit(op, inputs, f"{name}.spikes", domain="snnkit"))

    def store(self, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if name != "thresholds":
            return value
        steps = value.shape[-1]
        padded = np.full((value.size // steps, 2 ** steps.bit_length() - 1), NEVER, np.int32)
        padded[:, :steps] = value.reshape(-1, steps)
        return padded.reshape(-1)

    def restore(
        self, name: str, stored: npt.NDArray[Any], shape: Shape, attrs: Attrs
    ) -> npt.NDArray[Any]:
        if name == "thresholds":
            steps = shape[-1]
            stored = stored.reshape(-1, 2 ** int(steps).bit_length() - 1)[:, :steps]
        elif name == "values":
            stored = stored.astype(np.int32) + np.int32(attrs["lo"])
        return stored.reshape(shape)

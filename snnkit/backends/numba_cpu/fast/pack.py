"""Arrays in the form that the row kernels read: weights by words, staircases as two floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast.isa import Isa
from snnkit.graph import Node
from snnkit.ops.op import Ints
from snnkit.ops.spike import ladder_rows

Array = npt.NDArray[Any]

LINE = 64
"""Bytes of a cache line and of the widest vector: everything starts at such an address."""
MOST_GROUPS = 4
MOST_THRESHOLDS = 2**24
SLACK = 2.0**-40
"""More than the error of float64 below 2^9, less than what float32 can tell there."""


def aligned(size: int) -> npt.NDArray[np.uint8]:
    """Zeroed bytes that start at a cache line."""
    raw = np.zeros(size + LINE, np.uint8)
    first = -raw.ctypes.data % LINE
    return raw[first : first + size]


class Store:
    """Constant arrays at fixed addresses, for as long as the store lives."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []

    def add(self, array: Array) -> int:
        """The address of an aligned copy; 64 more bytes behind it may be read."""
        flat = np.ascontiguousarray(array)
        copy = aligned(flat.nbytes + LINE)
        copy[: flat.nbytes] = flat.reshape(-1).view(np.uint8)
        self.arrays.append(copy)
        return int(copy.ctypes.data)


def padded(channels: int) -> int:
    """Output channels come in groups of 16."""
    return -(-channels // 16) * 16


def tiles(channels: int) -> list[int]:
    """Groups of each tile: as few tiles as possible, of about the same size."""
    groups = padded(channels) // 16
    count = -(-groups // MOST_GROUPS)
    return [groups // count + (i < groups % count) for i in range(count)]


def pack_weights(weight: Array, pitch: int, words: int, isa: Isa) -> list[Array]:
    """weight int8 [outputs, taps, span, channels] as one array per tile.

    The bytes under a window row, `pitch` per column, are cut into words of four; each word has one
    block: its weights for the outputs of the tile. One block of zeros ends the array.
    """
    outputs, taps, span, channels = weight.shape
    rows = np.zeros((padded(outputs), taps, span * pitch), np.int8)
    rows.reshape(-1, taps, span, pitch)[:outputs, ..., :channels] = weight
    full = np.zeros((padded(outputs), taps, words * 4), np.int8)
    full[..., : span * pitch] = rows
    packed, first = [], 0
    for groups in tiles(outputs):
        part = full[first : first + 16 * groups].reshape(-1, taps, words, 4).transpose(1, 2, 0, 3)
        first += 16 * groups
        if isa.word_bytes == 128:
            pairs = part.reshape(taps, words, 2 * groups, 8, 2, 2).transpose(0, 1, 2, 4, 3, 5)
            part = pairs.astype(np.int16)
        rows_of_blocks = part.reshape(taps * words, -1)
        packed.append(np.vstack([rows_of_blocks, np.zeros_like(rows_of_blocks[:1])]))
    return packed


def thresholds(node: Node) -> tuple[Ints, Ints, Ints]:
    """Any staircase as a ladder: row of each unit [*shape], thresholds [rows, K] and, as bytes
    above the lower bound, values [rows, K + 1]."""
    if node.attrs["kind"] == "ladder":
        row, ladder, values = ladder_rows(node)
        return row, ladder, values - node.lo
    theta, row = np.unique(node.params["theta"].astype(np.int64), return_inverse=True)
    row = np.broadcast_to(row.reshape(node.params["theta"].shape), node.shape)
    steps = np.arange(node.lo + 1, node.hi + 1)
    ladder = theta[:, None] * steps
    values = np.broadcast_to(np.arange(len(steps) + 1), (len(theta), len(steps) + 1))
    return row, ladder, values


def straight(
    ladder: Ints,
    values: Ints,
    kind: type[np.floating[Any]] = np.float32,
    charges: tuple[int, int] = (-(2**31), 2**31 - 1),
) -> tuple[Array, Array] | None:
    """(rate, shift) of type `kind` per row, such that floor(charge * rate + shift), computed with
    one rounding and clipped, passes the k-th step exactly at the k-th threshold; None if some row
    has no such line.

    charges : the least and the greatest charge that can occur; a threshold outside of them is
    passed always or never, wherever it lies. Checked for every threshold T and for T - 1, or the
    nearest charge that can occur. The computation is monotone in the charge, so this proves it for
    all charges.
    """
    k = np.arange(1, ladder.shape[1] + 1, dtype=np.float64)
    if ladder.shape[1] > 255 or (values != np.arange(ladder.shape[1] + 1)).any():
        return None
    low, high = charges
    met: Array = np.logical_and(ladder > low, ladder <= high)
    seen = np.abs(ladder[met]).max(initial=0) if met.all() else max(-low, high)
    # float32 holds integers below 2^24, float64 every charge
    if kind is np.float32 and seen >= 2**24:
        return None
    rate = _steepness(ladder.astype(np.float64), k, met, high - low).astype(kind).astype(np.float64)
    reach = k - rate[:, None] * ladder
    ends = _ends(reach, met)
    # a row that meets no threshold stays where it is
    still = np.where(met.any(1), ends.sum(1) + rate, 2 * (ladder <= low).sum(1) + 1)
    shift = (still / 2).astype(kind).astype(np.float64)
    at = np.maximum(ladder, low) * rate[:, None] + shift[:, None]
    before = np.minimum(ladder - 1, high) * rate[:, None] + shift[:, None]
    # the kernel rounds up to k from less than half a step of its grid below k
    half = np.spacing(np.nextafter(k.astype(kind), kind(0))).astype(np.float64) / 2
    # what these lines themselves may be off by: a rounding of the product, one of the sum
    largest = np.abs(np.clip(ladder, low, high) * rate[:, None]) + np.abs(shift)[:, None] + 256
    off = np.finfo(np.float64).eps * largest
    slack = np.maximum(off, SLACK) if kind is np.float32 else off
    passed = np.logical_or(at >= k + slack, ladder > high)
    if not (passed & ((before < k - half - slack) | (ladder <= low))).all():
        return None
    return rate.astype(kind), shift.astype(kind)


def _ends(reach: Array, met: Array) -> Array:
    """The greatest and the least of each row, [rows, 2], where a threshold is met; else 0."""
    some = np.any(met, axis=1, keepdims=True)
    greatest = np.where(met, reach, -np.inf).max(1)
    least = np.where(met, reach, np.inf).min(1)
    return np.where(some, np.stack([greatest, least], 1), 0.0)


def _steepness(ladder: Ints | Array, k: Array, met: Array, span: int) -> Array:
    """The rate that leaves the most room for the shift: room = rate - (max - min) of k - rate * T
    is concave in the rate, so a ternary search finds its top. Where at most one threshold is met
    any rate has room, and one that is small beside the span of charges passes no other step."""
    if ladder.shape[1] == 1:
        return np.full(len(ladder), 2.0**-10)
    many = met.sum(1)
    first, last = met.argmax(1), met.shape[1] - 1 - met[:, ::-1].argmax(1)
    rows = np.arange(len(ladder))
    rise = np.maximum(ladder[rows, last] - ladder[rows, first], 1.0)
    steps = k[last] - k[first]
    low, high = steps / (rise + 1.0) / 2, steps / rise * 2 + 1e-3
    for _ in range(90):
        third = (high - low) / 3
        rooms = []
        for rate in (low + third, high - third):
            ends = _ends(k - rate[:, None] * ladder, met)
            rooms.append(rate - (ends[:, 0] - ends[:, 1]))
        better = rooms[0] < rooms[1]
        low, high = np.where(better, low + third, low), np.where(better, high, high - third)
    return np.where(many > 1, (low + high) / 2, np.where(many == 1, 0.25 / (span + 1), 0.0))

# ruff: noqa: F403, F405 (Numba takes integers from this module's own names fastest)
"""The compiled engine of the fast path: one call runs a batch through a whole network.

A network is data: rows of integers (`fields.py`). Nothing here is compiled per network. The
vector code of a row comes from `emit.py` by `native.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from snnkit.backends.numba_cpu.fast.emit import I8, I64
from snnkit.backends.numba_cpu.fast.fields import *
from snnkit.backends.numba_cpu.fast.native import BLOCKS, LISTED, QUANTISE, SCAN

Array = npt.NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])


class Net(NamedTuple):
    """What all threads share."""

    steps: Array  # int64 [step, STEP]
    taps: Array  # int64 [output or recorded node, TAP]
    tallies: Array  # int64 [node, TALLY]


class Work(NamedTuple):
    """What one thread writes."""

    code: Array  # int64: addresses of the row kernels
    maps: Array  # int64 [map, MAP], with addresses in this work area
    charges: Array  # int64 [charge map]: addresses
    arguments: Array  # int64 [ARGUMENTS]
    segments: Array  # int64 [tap, SEGMENT]
    sites: Array  # int32: the sites to compute
    near: Array  # int32: words under the window at each column


def kernel(function: F) -> F:
    """A part of the engine, called by compiled code only."""
    part: F = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return part


@intrinsic  # type: ignore[untyped-decorator]
def call_row(_context: Any, address: Any, arguments: Any) -> Any:
    """Run the row kernel at an address of `native.table` on the arguments at an address."""

    def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(I64, [I64]).as_pointer()
        return builder.call(builder.inttoptr(values[0], kind), [values[1]])

    return types.int64(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_context: Any, address: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], I8.as_pointer())

    return types.voidptr(types.int64), codegen


@kernel
def words(address: int, count: int) -> Array:
    view: Array = nb.carray(pointer(address), (count,), np.int32)
    return view


@kernel
def octets(address: int, count: int) -> Array:
    view: Array = nb.carray(pointer(address), (count,), np.uint8)
    return view


@kernel
def clear_row(m: Array, y: int) -> None:
    """Zero the words that the last sample left in row y."""
    counts = words(m[M_COUNTS], m[M_ROWS])
    old = counts[y]
    if old == 0:
        return
    row = words(m[M_BASE] + y * m[M_ROW_BYTES], m[M_COLUMNS] * m[M_WORDS])
    if 8 * old > len(row):
        row[:] = 0
    else:
        listed = words(m[M_LIST] + y * m[M_LIST_BYTES], old)
        for i in range(old):
            row[listed[i]] = 0
    counts[y] = 0


@kernel
def scan_row(m: Array, y: int, work: Work) -> None:
    """List and count the words of row y."""
    a = work.arguments
    a[A_TARGET] = m[M_BASE] + y * m[M_ROW_BYTES]
    a[A_LIST] = m[M_LIST] + y * m[M_LIST_BYTES]
    a[A_PREFIX] = m[M_PREFIX] + y * m[M_PREFIX_BYTES]
    a[A_COLUMN_WORDS], a[A_WIDTH] = m[M_WORDS], m[M_COLUMNS]
    words(m[M_COUNTS], m[M_ROWS])[y] = call_row(work.code[SCAN], a.ctypes.data)


@kernel
def open_segments(p: Array, m: Array, y: int, work: Work) -> Any:
    """The kernel rows of output row y that are not silent: (how many, their words)."""
    taps = words(p[P_TAPS], 2 * p[P_TAP_COUNT])
    counts = words(m[M_COUNTS], m[M_ROWS])
    found, total = 0, 0
    for s in range(p[P_TAP_COUNT]):
        row, column = y * p[P_ROW_STRIDE] + taps[2 * s], np.int64(taps[2 * s + 1])
        if counts[row] == 0:
            continue
        total += counts[row]
        segment = work.segments[found]
        segment[S_ROW] = m[M_BASE] + row * m[M_ROW_BYTES]
        segment[S_LIST] = m[M_LIST] + row * m[M_LIST_BYTES]
        segment[S_PREFIX] = m[M_PREFIX] + row * m[M_PREFIX_BYTES] + 4 * column
        segment[S_WORD] = s * p[P_WORDS]
        segment[S_KEY_WORD] = segment[S_WORD] - column * m[M_WORDS]
        segment[S_START] = segment[S_ROW] + column * m[M_PITCH]
        found += 1
    return found, total


@kernel
def touched(p: Array, found: int, work: Work) -> Any:
    """Collect the sites with a listed word under their window: (how many, words under them)."""
    stride, span = p[P_STRIDE], p[P_SPAN]
    last = (p[P_WIDTH] - 1) * stride + 1
    near = work.near[:last]
    for s in range(found):
        prefix = words(work.segments[s, S_PREFIX], last + span)
        begin, end = prefix[:last], prefix[span : span + last]
        if s == 0:
            for x in range(last):
                near[x] = end[x] - begin[x]
        else:
            for x in range(last):
                near[x] += end[x] - begin[x]
    many, visits = 0, 0
    for x in range(p[P_WIDTH]):
        # no branch: which sites are silent cannot be predicted
        work.sites[many] = x
        many += near[x * stride] != 0
        visits += near[x * stride]
    return many, visits


@kernel
def run_row(p: Array, work: Work, many: int, blocks: bool) -> int:
    """All tiles of output channels of one row; returns the events of the last tile."""
    a = work.arguments
    init, rate, shift, target = a[A_INIT], a[A_RATE], a[A_SHIFT], a[A_TARGET]
    key, events = a[A_KEY], 0
    first_kernel = BLOCKS if blocks else LISTED
    size = 4 if a[A_RAW] else 1
    tiles = nb.carray(pointer(p[P_TILES]), (p[P_TILE_COUNT], TILE), np.int64)
    here = a.ctypes.data
    for t in range(len(tiles)):
        first = tiles[t, T_FIRST]
        a[A_INIT], a[A_RATE], a[A_SHIFT] = init + 4 * first, rate + 4 * first, shift + 4 * first
        a[A_TARGET], a[A_KEY] = target + size * first, key + first // 4
        a[A_WEIGHT] = tiles[t, T_WEIGHT]
        events = call_row(work.code[first_kernel + tiles[t, T_GROUPS] - 1], here)
    return events


@kernel
def gather_step(p: Array, work: Work) -> None:
    """A convolution row by row: into charges, or through the staircase into a map."""
    a, source, target = work.arguments, work.maps[p[P_SOURCE]], work.maps[p[P_TARGET]]
    raw = p[P_TARGET] < 0
    a[A_STRIDE], a[A_SPAN], a[A_COLUMN_WORDS] = p[P_STRIDE], p[P_SPAN], source[M_WORDS]
    a[A_SITE_BYTES], a[A_WORDS] = p[P_STRIDE] * source[M_PITCH], p[P_WORDS]
    a[A_TOP], a[A_RAW], a[A_INIT_STEP] = p[P_TOP], raw, p[P_INIT_STEP]
    a[A_SEGMENTS] = work.segments.ctypes.data
    a[A_TARGET_STEP] = 4 * p[P_CHANNELS] if raw else target[M_PITCH]
    init = work.charges[p[P_OTHER]] if p[P_OTHER] >= 0 else p[P_INIT]
    listed = source[M_PITCH] >= 4
    a[A_SITES] = work.sites.ctypes.data
    for x in range(p[P_WIDTH] + 8):
        work.sites[x] = min(x, p[P_WIDTH] - 1)
    for y in range(p[P_HEIGHT]):
        found, total = open_segments(p, source, y, work)
        many, visits = p[P_WIDTH], total * p[P_SPAN] // p[P_STRIDE]
        row = y + target[M_TOP]
        if p[P_QUIET]:
            clear_row(target, row)
            many = 0
            if found:
                many, visits = touched(p, found, work)
            if many == 0:
                continue
            for i in range(8):
                # the last block is filled up with its last site
                work.sites[many + i] = work.sites[many - 1]
        blocks = not listed or dense(p, many, visits, found)
        a[A_COUNT], a[A_SEGMENT_COUNT], a[A_EVENTS] = many, found, 0
        a[A_INIT], a[A_RATE], a[A_SHIFT] = init + y * p[P_INIT_ROW], p[P_RATE], p[P_SHIFT]
        if raw:
            a[A_TARGET] = work.charges[p[P_CHARGE]] + y * p[P_WIDTH] * a[A_TARGET_STEP]
            a[A_WIDTH] = -1  # no prefix to fill
            run_row(p, work, many, blocks)
        else:
            fire_row(p, target, row, work, many, blocks)


@kernel
def dense(p: Array, many: int, visits: int, found: int) -> bool:
    """Is it cheaper to take all words under the windows than the listed ones? From the number of
    both and the measured ratio of their costs."""
    side = p[P_B]
    rounded = (many + side - 1) // side * side
    return bool(visits * 1000 > p[P_DENSE] * rounded * found * p[P_WORDS])


@kernel
def fire_row(p: Array, target: Array, row: int, work: Work, many: int, blocks: bool) -> None:
    a, left = work.arguments, target[M_LEFT]
    a[A_TARGET] = target[M_BASE] + row * target[M_ROW_BYTES] + left * target[M_PITCH]
    a[A_LIST] = target[M_LIST] + row * target[M_LIST_BYTES]
    a[A_PREFIX] = target[M_PREFIX] + row * target[M_PREFIX_BYTES] + 4 * left
    a[A_KEY], a[A_KEY_STEP] = left * target[M_WORDS], target[M_WORDS]
    a[A_WIDTH] = target[M_COLUMNS] - left
    events = run_row(p, work, many, blocks)
    if p[P_TILE_COUNT] == 1 and target[M_ZERO] == 0:
        words(target[M_COUNTS], target[M_ROWS])[row] = events
    else:
        column_words = a[A_COLUMN_WORDS]
        scan_row(target, row, work)
        a[A_COLUMN_WORDS] = column_words


@kernel
def input_step(p: Array, work: Work, x: int) -> None:
    """Quantise the floats at address x, [channels][height][width]."""
    a, m = work.arguments, work.maps[p[P_TARGET]]
    left, counts = m[M_LEFT], words(m[M_COUNTS], m[M_ROWS])
    one_word = m[M_ZERO] == 0 and m[M_PITCH] <= 4
    for y in range(p[P_HEIGHT]):
        row = y + m[M_TOP]
        a[A_SOURCE], a[A_PLANE] = x + y * p[P_A], p[P_B]
        a[A_CHANNELS], a[A_SCALE], a[A_OFFSET] = p[P_CHANNELS], p[P_RATE], p[P_SHIFT]
        a[A_LOW], a[A_HIGH], a[A_WORDS] = p[P_C], p[P_D], m[M_ZERO]
        a[A_WIDTH], a[A_TARGET_STEP] = p[P_WIDTH], m[M_PITCH]
        a[A_COUNT], a[A_KEY] = m[M_COLUMNS] - left, left
        a[A_TARGET] = m[M_BASE] + row * m[M_ROW_BYTES] + left * m[M_PITCH]
        a[A_LIST] = m[M_LIST] + row * m[M_LIST_BYTES]
        a[A_PREFIX] = m[M_PREFIX] + row * m[M_PREFIX_BYTES] + 4 * left
        counts[row] = call_row(work.code[QUANTISE], a.ctypes.data)
        if not one_word:
            scan_row(m, row, work)

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


def addresses(*arrays: Array) -> Array:
    """Address, rows and columns of each array: a compiled call takes one array much faster than
    many. The arrays have to outlive the calls."""
    rows = [(a.ctypes.data, len(a), a.shape[1] if a.ndim == 2 else 1) for a in arrays]
    return np.array(rows, np.int64)


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
def rows_at(table: Array, i: int) -> Array:
    """An array of `addresses` with two axes."""
    view: Array = nb.carray(pointer(table[i, 0]), (table[i, 1], table[i, 2]), np.int64)
    return view


@kernel
def integers_at(table: Array, i: int) -> Array:
    view: Array = nb.carray(pointer(table[i, 0]), (table[i, 1],), np.int64)
    return view


@kernel
def net_at(table: Array) -> Net:
    return Net(rows_at(table, 0), rows_at(table, 1), rows_at(table, 2))


@kernel
def work_at(table: Array) -> Work:
    """The work area behind the three arrays of the net."""
    return Work(
        integers_at(table, 3), rows_at(table, 4), integers_at(table, 5), integers_at(table, 6)
    )


@kernel
def words(address: int, count: int) -> Array:
    view: Array = nb.carray(pointer(address), (count,), np.int32)
    return view


@kernel
def octets(address: int, count: int) -> Array:
    view: Array = nb.carray(pointer(address), (count,), np.uint8)
    return view


@kernel
def scan_row(m: Array, y: int, work: Work) -> None:
    """List and count the words of row y."""
    a = work.arguments
    a[A_TARGET] = m[M_BASE] + y * m[M_ROW_BYTES]
    a[A_LIST] = m[M_LIST] + y * m[M_LIST_BYTES]
    a[A_PREFIX] = m[M_PREFIX] + y * m[M_PREFIX_BYTES]
    a[A_COLUMN_WORDS], a[A_COLUMNS] = m[M_WORDS], m[M_COLUMNS]
    words(m[M_COUNTS], m[M_ROWS])[y] = call_row(work.code[C_SCAN], a.ctypes.data)


@kernel
def gather_step(p: Array, work: Work) -> None:
    a = work.arguments
    a[A_STEP] = p.ctypes.data
    call_row(work.code[C_CONVOLVE], a.ctypes.data)


@kernel
def input_step(p: Array, work: Work, x: int) -> None:
    a = work.arguments
    a[A_STEP], a[A_INPUT] = p.ctypes.data, x
    call_row(work.code[C_INPUT], a.ctypes.data)

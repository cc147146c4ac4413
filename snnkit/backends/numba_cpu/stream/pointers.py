"""What compiled code of a stream does with addresses: views of memory, calls of kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from snnkit.backends.numba_cpu.fast.emit import I8, I64

Array = npt.NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])


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

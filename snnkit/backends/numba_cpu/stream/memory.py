"""The memory of one stream, and the table through which compiled code finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast.pack import LINE, aligned
from snnkit.backends.numba_cpu.stream import fields as f
from snnkit.backends.numba_cpu.stream.kernels import push_frame
from snnkit.backends.numba_cpu.stream.plan import KEPT, SCRATCH, Cell, StreamPlan, Touch
from snnkit.backends.streaming import StreamInput

Array = npt.NDArray[Any]
NO_LIMIT = 2**62


class Memory:
    """Two areas: what a reset restores, and lists that are empty between packets.

    table : see `kernels`. The plan, which owns the constants, is kept alive.
    """

    def __init__(self, plan: StreamPlan, source: StreamInput):
        self.plan = plan
        self.areas = [aligned(size + LINE) for size in plan.sizes]
        self.bases = [int(area.ctypes.data) for area in self.areas]
        self.counts = source.counts
        self.table = self._table(source)
        self.waited = self.table[f.H_WAITED : f.H_WAITED + 1]
        for cell, content in plan.resting:
            self.view(cell, content.nbytes, np.uint8)[:] = content.reshape(-1).view(np.uint8)
        self._settle()
        self.snapshot = self.areas[KEPT].copy()

    def view(self, cell: Cell, count: int, dtype: Any) -> Array:
        area, at = cell
        size = count * np.dtype(dtype).itemsize
        return self.areas[area][at : at + size].view(dtype)

    def _address(self, value: Any) -> int:
        return self.bases[value[0]] + value[1] if isinstance(value, tuple) else int(value)

    def _row(self, columns: Mapping[int, Any], size: int) -> list[int]:
        row = [0] * size
        for column, value in columns.items():
            row[column] = self._address(value)
        return row

    def _table(self, source: StreamInput) -> npt.NDArray[np.int64]:
        plan = self.plan
        head = [0] * f.HEAD
        head[f.H_INPUTS], head[f.H_STEPS] = len(plan.inputs), len(plan.actions)
        head[f.H_ENTERING] = head[f.H_LEAVING] = 1
        if source.takes_events:
            head[f.H_COUNTS], head[f.H_MOST] = int(source.counts.ctypes.data), source.most
            head[f.H_POLARITIES], head[f.H_ROWS], head[f.H_COLUMNS] = source.shape
        rows = [head, *(self._row(i, f.INPUT) for i in plan.inputs)]
        rows += [self._row(a, f.STEP) for a in plan.actions]
        table = np.array([value for row in rows for value in row], np.int64)
        table[f.H_SIZE] = len(table)
        return table

    def _settle(self) -> None:
        """From no spike at all to the quiescent state of the zero input: look at every site."""
        for touch in self.plan.touches:
            sites = touch.width * touch.height
            y, x = np.divmod(np.arange(sites), touch.width)
            self.view(touch.flags, sites, np.uint8)[:] = 1
            self.view(touch.touched, sites, np.int32)[:] = (y << 16) | x
            self.view(touch.count, 1, np.int64)[:] = sites
        zeros = []
        for row in self.plan.inputs:
            units = row[f.I_SITES] * row[f.I_CHANNELS]
            zeros.append(np.zeros(units, np.float32))
            # unlike any float, so that each unit is looked at
            self.view(row[f.I_FLOATS], units, np.float32)[:] = np.nan
        push_frame(int(self.table.ctypes.data), addresses(zeros), False, NO_LIMIT, 0)

    def reset(self) -> None:
        self.areas[KEPT][:] = self.snapshot
        self.counts[:] = 0
        for row in self.plan.inputs:
            self.view(row[f.I_FLAGS], row[f.I_SITES], np.uint8)[:] = 0
            self.view(row[f.I_TOUCHED_COUNT], 1, np.int64)[:] = 0
        self.waited[:] = 0


def addresses(arrays: Sequence[Array]) -> npt.NDArray[np.int64]:
    """Where arrays in C order lie; the caller keeps them alive."""
    return np.array([a.ctypes.data for a in arrays], np.int64)


__all__ = ["NO_LIMIT", "SCRATCH", "Memory", "Touch", "addresses"]

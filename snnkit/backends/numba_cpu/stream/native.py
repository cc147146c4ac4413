"""The streaming kernels as machine code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.backends.numba_cpu.fast.native import machine_code
from snnkit.backends.numba_cpu.stream.emit import fire, spread, spread_times, tell

SPREAD, SPREAD_TIMES, FIRE, TELL = 0, 4, 8, 11
"""Places of the kernels in the table; the first two by number of 16-output groups - 1, the others
by how many groups they take at a time: 1, 2 or 4."""
ORDER: list[tuple[Callable[..., Any], int]] = [
    *((spread, n) for n in (1, 2, 3, 4)),
    *((spread_times, n) for n in (1, 2, 3, 4)),
    *((fire, n) for n in (1, 2, 4)),
    *((tell, n) for n in (1, 2, 4)),
]


def at_a_time(groups: int) -> int:
    """Which of the three suits a number of groups."""
    return 2 if groups % 4 == 0 else 1 if groups % 2 == 0 else 0


@cache
def table(isa_name: str) -> npt.NDArray[np.int64]:
    """Addresses of the kernels of an instruction set, in the order above."""
    return machine_code(isa_name, ORDER)

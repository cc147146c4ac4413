"""The fast path of mode settle: vector kernels over event words, one compiled call per batch."""

from snnkit.backends.numba_cpu.fast.engine import FastEngine
from snnkit.backends.numba_cpu.fast.isa import GENERIC, choose

__all__ = ["GENERIC", "FastEngine", "choose"]

"""Streams on vector kernels: only what a packet changes is computed."""

from snnkit.backends.numba_cpu.stream.plan import StreamPlan
from snnkit.backends.numba_cpu.stream.vector_stream import VectorStream

__all__ = ["StreamPlan", "VectorStream"]

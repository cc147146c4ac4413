"""Backend "numba": the event-driven engine on the CPU."""

from snnkit.backends.numba_cpu.program import NumbaBackend, NumbaProgram, backend

__all__ = ["NumbaBackend", "NumbaProgram", "backend"]

"""Execution on Lava, Intel's framework for Loihi, in a worker process.

Lava is archived and runs on Python 3.10 only: nothing of it is imported here. A graph goes to the
worker as arrays in a folder, and comes back so (`job.py`).
"""

from snnkit.backends.loihi.program import LoihiBackend, LoihiProgram, backend

__all__ = ["LoihiBackend", "LoihiProgram", "backend"]

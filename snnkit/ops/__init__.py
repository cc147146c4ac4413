"""THE TABLE: one row per op. Adding an op is one class, one line here, one row of tests."""

from __future__ import annotations

from snnkit.ops.arithmetic import Add, Product
from snnkit.ops.boundary import Input, Readout
from snnkit.ops.elements import Stack, Unstack
from snnkit.ops.op import Op, Writer
from snnkit.ops.pooling import MaxPool, SumPool
from snnkit.ops.route import Route
from snnkit.ops.spike import Spike
from snnkit.ops.state import Latch, Lif
from snnkit.ops.synapses import Conv, Linear

TABLE: dict[str, Op] = {
    op.name: op
    for op in (
        Input(),
        Conv(),
        Linear(),
        Add(),
        Product(),
        SumPool(),
        MaxPool(),
        Route(),
        Spike(),
        Lif(),
        Latch(),
        Stack(),
        Unstack(),
        Readout(),
    )
}

__all__ = ["TABLE", "Op", "Writer"]

"""How the charge of an input arrives within a window: whole, or in parts.

In the window of one element (of one sample, in a network without steps) an input unit changes from
the level that it has, 0 at rest, to its new one. Its consumers may be told the difference d

* s-analog : whole, before the first neuron fires. The default;
* rate : as abs(d) unit spikes of the sign of d, spread evenly over R steps;
* bit-serial : as the bits of abs(d), one a step, the highest first, with the weights 2^7 to 2^0.

By P2 (ARCHITECTURE.md) all end in the same integers; spikes, synaptic operations and steps differ.
s-analog and rate are named as in arXiv 2408.09403 and SpikeZIP-TF (arXiv 2406.03470).
"""

from __future__ import annotations

import numpy as np

from snnkit.ops.op import Ints

ENCODINGS = ("s-analog", "rate", "bit-serial")
MOST_LEVELS = 255
"""An input has as many levels above its lowest; over so many steps a unit sends at most one unit
spike in each."""
BITS = 8


def arrivals(encoding: str, over: int) -> int:
    """In how many steps a window's input arrives. over : R of rate."""
    return {"s-analog": 1, "rate": over, "bit-serial": BITS}[encoding]


def arrived(change: Ints, step: int, encoding: str, over: int) -> Ints:
    """How much of each change has arrived by `step`, counted from 1: sign(d) * part(abs(d))."""
    last, size = arrivals(encoding, over), np.abs(change)
    if step >= last:
        return change
    part = size * step // last if encoding == "rate" else size >> (last - step) << (last - step)
    return np.asarray(np.sign(change) * part)


def input_spikes(change: Ints, encoding: str) -> Ints:
    """How many messages each change is sent as; in rate, unit spikes."""
    size = np.abs(change)
    if encoding == "rate":
        return size
    if encoding == "bit-serial":
        return np.asarray(sum((size >> bit) & 1 for bit in range(BITS)))
    return np.asarray(size != 0, dtype=np.int64)

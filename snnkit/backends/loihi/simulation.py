"""Lava's simulation without a chip's widths: backend `lava`.

Charges have 32 bits and membrane potentials of leaky neurons 63, as everywhere in snnkit. For
networks that no chip of 24 bits can hold; what fits one runs on backend `loihi`.
"""

from __future__ import annotations

from snnkit.backends.loihi.environment import find
from snnkit.backends.loihi.program import LoihiBackend

WIDE = 63


class LavaBackend(LoihiBackend):
    """Execution on Lava's CPU simulation, as wide as it computes."""

    name = "lava"
    bits = WIDE


def backend() -> LavaBackend:
    """Raises BackendMissing where no interpreter with Lava is found."""
    return LavaBackend(find())

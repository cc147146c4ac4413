"""What a fit says: layers, cores, totals, and every number that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from snnkit.targets import Target

Range = tuple[int, int]


@dataclass(frozen=True)
class Violation:
    """One number beyond its limit: layer, quantity, what was found, what the target allows.

    limit empty: something that no number of the target allows.
    """

    layer: str
    quantity: str
    found: str
    limit: str
    remedy: str
    documented: bool = True

    def __str__(self) -> str:
        if not self.limit:
            return f"layer '{self.layer}': {self.quantity}; {self.remedy}"
        kind = "documented limit" if self.documented else "estimate"
        return (
            f"layer '{self.layer}': {self.quantity} {self.found}; expected {self.limit} ({kind}); "
            f"{self.remedy}"
        )


@dataclass(frozen=True)
class Core:
    """A part of a layer that shares no core with another: units first..end - 1 of the node.

    neurons, synapses, bits (of synapse memory), axons_in (distinct senders), axons_out (pairs of
    one of its neurons and another core that it sends to).
    """

    layer: str
    first: int
    end: int
    neurons: int
    synapses: int
    bits: int
    axons_in: int
    axons_out: int = 0


@dataclass(frozen=True)
class Layer:
    """One population of neurons. Pairs are (lower, upper) bounds, or (least, largest).

    copies : neurons per unit. synapses, bits, cores : a kernel stored once, and every synapse
    stored. fan_in, fan_out : most of one neuron. charge : proved bound of the charge that the
    synapses bring. potential : proved bound of the membrane potential. weight : least and largest
    weight as stored; effective_bits : of weights times the multipliers of sums behind them;
    pieces : synapses of 8 bits that one of them takes. message_bits : a graded spike's, with sign.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    neurons: int
    copies: int
    synapses: Range
    bits: Range
    cores: Range
    fan_in: int
    fan_out: int
    axons_in: int
    axons_out: int
    charge: int
    potential: int
    weight: Range
    effective_bits: int
    pieces: int
    message_bits: int
    threshold: Range
    bias: Range


@dataclass(frozen=True)
class Activity:
    """What a run counted, per sample. picojoules : 45 nm convention (`snnkit.energy`), not a
    chip's. steps : most synchronous steps until no neuron could fire, 0 if not run."""

    samples: int
    spikes: float
    synops: float
    picojoules: float
    steps: int


@dataclass(frozen=True)
class Fit:
    """Whether a graph fits a target. `layers` in topological order, `cores` of the upper bound.

    chips : (lower, upper) bound of chips needed, 0 where the target has none. violations : every
    number that does not fit. notes : what a reader has to know. activity : only if samples were
    run.
    """

    target: Target
    digest: str
    expression: str
    layers: tuple[Layer, ...]
    cores: tuple[Core, ...]
    chips: Range
    violations: tuple[Violation, ...]
    notes: tuple[str, ...] = ()
    activity: Activity | None = None
    totals: Mapping[str, Range] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return not self.violations

    def as_json(self) -> dict[str, Any]:
        """Plain data: all figures, and for each constant its source and what it is."""
        return {
            "target": self.target.name,
            "expression": self.expression,
            "digest": self.digest,
            "fits": self.fits,
            "chips": list(self.chips),
            "totals": {k: list(v) for k, v in self.totals.items()},
            "layers": [asdict(layer) for layer in self.layers],
            "cores": [asdict(core) for core in self.cores],
            "violations": [asdict(v) for v in self.violations],
            "notes": list(self.notes),
            "activity": None if self.activity is None else asdict(self.activity),
            "constants": {k: asdict(c) for k, c in self.target.constants.items()},
        }

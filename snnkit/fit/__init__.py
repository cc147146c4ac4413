"""What fits on a chip: neurons, synapses, memory, axons and widths, per layer and per core.

`fit(graph, target)` counts; it does not place anything on a chip. Which limits are documented
and which are estimates is in the target (`snnkit.targets`), with a source for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from snnkit.errors import UsageError
from snnkit.fit.activity import measure
from snnkit.fit.numbers import (
    charge_bound,
    check_numbers,
    message_bits,
    potential_bound,
    thresholds,
    weight_range,
)
from snnkit.fit.partition import LIMITS, Partition, Placed
from snnkit.fit.result import Activity, Core, Fit, Layer, Range, Violation
from snnkit.fit.text import fit_text
from snnkit.graph import Graph, Node
from snnkit.populations import RECOMPUTED, Population, fan_in, fan_out, populations
from snnkit.sweeps import DOORS
from snnkit.targets import EXPRESSIONS, Target, target
from snnkit.thermometer import obstacles

__all__ = ["Activity", "Core", "Fit", "Layer", "Violation", "fit", "fit_text"]


def fit(graph: Graph, on: str | Target, expression: str | None = None, samples: Any = None) -> Fit:
    """Whether and how a graph fits a target.

    Parameters
    ----------
    on : name of a target (`snnkit.targets.targets()`), or one.
    expression : "bif", one neuron with microcode of its own per unit, or "thermometer", a stock
        LIF per level (`snnkit.thermometer`); default: the target's first.
    samples : as for `Program.run`. With them the network is run, and spikes, synaptic operations
        and steps are counted.

    Raises UsageError for an unknown target or an expression that the target does not have.
    """
    chip = target(on) if isinstance(on, str) else on
    expression = expression or chip.expressions[0]
    if expression not in chip.expressions:
        raise UsageError(
            f"expression {expression!r} on {chip.name}; expected one of "
            f"{', '.join(chip.expressions)} (all: {', '.join(EXPRESSIONS)})"
        )
    return _Fitting(graph, chip, expression).result(samples)


class _Fitting:
    def __init__(self, graph: Graph, chip: Target, expression: str):
        self.graph, self.chip, self.expression = graph, chip, expression
        self.populations = populations(graph)
        held = [p.node for p in self.populations]
        self.copies = {n.name: self._copies(n) for n in (*graph.of("input", *DOORS), *held)}
        self.lower, self.upper = (
            Partition(graph, chip, self.copies, once) for once in (True, False)
        )

    def _copies(self, node: Node) -> int:
        """Neurons, or senders, per unit."""
        span = node.hi - node.lo
        if node.op in ("input", *DOORS):
            # binary planes of the value, with weights times 1, 2, 4, ...
            return span.bit_length() if self.chip.value("message_bits") == 1 else 1
        levels = self.expression == "thermometer" and node.op in ("spike", "latch", *RECOMPUTED)
        return span if levels and span <= 255 else 1

    def result(self, samples: Any) -> Fit:
        low = self.lower.place(self.populations)
        high = self.upper.place(self.populations, low)
        layers = tuple(
            self._layer(p, low[p.node.name], high[p.node.name]) for p in self.populations
        )
        cores = tuple(c for p in self.populations for c in high[p.node.name].cores)
        totals, chips = self._totals(layers)
        violations = [*self._widths(), *self._capacity(low), *self._chip(totals)]
        return Fit(
            target=self.chip,
            digest=self.graph.digest,
            expression=self.expression,
            layers=layers,
            cores=cores if self.chip.split != "none" else (),
            chips=chips,
            violations=tuple(violations),
            notes=tuple(self._notes(layers)),
            activity=None if samples is None else measure(self.graph, samples),
            totals=totals,
        )

    def _layer(self, p: Population, low: Placed, high: Placed) -> Layer:
        node, own = p.node, self.copies[p.node.name]
        theta, bias = thresholds(node)
        arriving = np.zeros(node.shape, np.int64)
        for s in p.sources:
            arriving += fan_in(p, self.graph, s) * p.pieces(s) * self.copies[s]
        reach = max(p.sources.values(), default=1)
        kind = f" ({node.attrs['kind']})" if "kind" in node.attrs else ""
        return Layer(
            name=node.name,
            op=node.op + kind,
            shape=node.shape,
            neurons=node.units * own,
            copies=own,
            synapses=_both(low, high, "synapses"),
            bits=_both(low, high, "bits"),
            cores=(len(low.cores), len(high.cores)),
            fan_in=int(arriving.max()),
            fan_out=self._fan_out(node),
            axons_in=max(c.axons_in for c in high.cores),
            axons_out=max(c.axons_out for c in high.cores),
            charge=charge_bound(p, self.graph),
            potential=potential_bound(node),
            weight=weight_range(p),
            effective_bits=reach.bit_length() + 1,
            pieces=max((p.pieces(s) for s in p.sources), default=1),
            message_bits=message_bits(node)
            if self.expression == "bif"
            else int(node.op != "readout"),
            threshold=theta,
            bias=bias,
        )

    def _fan_out(self, node: Node) -> int:
        total = np.zeros(node.shape, np.int64)
        for p in self.populations:
            if node.name in p.sources:
                everyone = np.ones(p.node.shape, np.int64)
                leaving = fan_out(p, self.graph, everyone)[node.name]
                total += leaving * p.pieces(node.name) * self.copies[p.node.name]
        return int(total.max())

    def _totals(self, layers: tuple[Layer, ...]) -> tuple[dict[str, Range], Range]:
        neurons = sum(e.neurons for e in layers)
        totals: dict[str, Range] = {"neurons": (neurons, neurons)}
        for key in ("synapses", "bits", "cores"):
            pairs = [getattr(e, key) for e in layers]
            totals[key] = (sum(a for a, _ in pairs), sum(b for _, b in pairs))
        if self.chip.split == "none":
            totals.pop("cores")
            return totals, (0, 0)
        usable = self.chip.value("usable_cores_per_chip") or self.chip.value("cores_per_chip") or 1
        low, high = (-(-n // usable) for n in totals["cores"])
        return totals, (low, high)

    def _widths(self) -> list[Violation]:
        if self.expression == "thermometer":
            return [Violation(p.node, p.reason, "", "", p.remedy) for p in obstacles(self.graph)]
        return [v for p in self.populations for v in check_numbers(p, self.graph, self.chip)]

    def _capacity(self, low: dict[str, Placed]) -> list[Violation]:
        """Limits of a core that one unit alone exceeds, at the lower bound already."""
        return [
            Violation(
                name,
                f"{key.replace('_', ' ')} of one unit alone in a core",
                f"{number:,}",
                f"at most {limit:,}",
                "fewer inputs or levels per neuron",
                self.chip.constants[LIMITS[key]].documented,
            )
            for name, placed in low.items()
            for key, number, limit in placed.beyond
        ]

    def _chip(self, totals: dict[str, Range]) -> list[Violation]:
        """More than one chip holds: networks over several chips are counted, not laid out."""
        return [
            Violation(
                "(all)",
                f"{key} on one chip",
                f"{totals[key][0]:,}",
                f"at most {limit:,}",
                "use several chips or a smaller network",
            )
            for key in ("neurons", "synapses", "cores")
            if key in totals
            and (limit := self.chip.value(f"{key}_per_chip")) is not None
            and totals[key][0] > limit
        ]

    def _notes(self, layers: tuple[Layer, ...]) -> list[str]:
        notes = []
        for e in layers:
            if e.op in RECOMPUTED:
                notes.append(
                    f"layer '{e.name}' ({e.op}) is recomputed from tracers of its inputs: it needs "
                    "microcode of its own, no stock process does it"
                )
            if e.pieces > 1:
                notes.append(
                    f"layer '{e.name}': weights times the multipliers of sums have "
                    f"{e.effective_bits} bits; each is {e.pieces} synapses of 8 bits with "
                    "exponents 7 apart"
                )
        notes += self._cost(layers)
        if self.copies[self.graph.of("input")[0].name] > 1:
            notes.append("inputs arrive as binary planes, since this target has no graded spikes")
        if self.graph.sweeps:
            notes.append("neurons and synapses are those of one step; latches hold the last step")
        doors = [f"'{n.name}'" for n in self.graph.of(*DOORS)]
        if doors:
            notes.append(f"whole sequences lie outside the chip, at nodes {', '.join(doors)}")
        notes.append(
            "sigma-delta pair of stock neurons: never emitted; exact only for theta = 2^k and with "
            "semantics that lava-nc 0.10.0 does not have; " + _power_of_two(self.graph)
        )
        return notes

    def _cost(self, layers: tuple[Layer, ...]) -> list[str]:
        """What the thermometer costs over one neuron per unit, and whether it is exact."""
        if self.expression != "thermometer":
            return ["expression bif: one neuron with microcode of its own per unit, exact"]
        units = sum(p.node.units for p in self.populations)
        single = sum(
            int(fan_in(p, self.graph, s).sum()) * p.pieces(s)
            for p in self.populations
            for s in p.sources
        )
        neurons, synapses = (sum(e.neurons for e in layers), sum(e.synapses[1] for e in layers))
        exact = "not possible for this network" if obstacles(self.graph) else "exact"
        return [
            f"expression thermometer: {neurons:,} stock LIF for {units:,} units "
            f"({neurons / units:.3g} x), {synapses:,} synapses for {single:,} "
            f"({synapses / single:.3g} x); {exact}"
        ]


def _both(low: Placed, high: Placed, key: str) -> Range:
    return sum(getattr(c, key) for c in low.cores), sum(getattr(c, key) for c in high.cores)


def _power_of_two(graph: Graph) -> str:
    """Whether every staircase has one theta = 2^k, as sigma-delta neurons would need."""
    bad = [
        n.name
        for n in graph.of("spike")
        if n.attrs["kind"] != "uniform"
        or n.lo
        or len(values := set(n.params["theta"].reshape(-1).tolist())) != 1
        or (value := values.pop()) & (value - 1)
    ]
    if not bad:
        return "every theta of this network is a power of two"
    return f"theta is no single power of two in {len(bad)} layers, the first '{bad[0]}'"

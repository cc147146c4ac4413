"""A layer cut into cores: as few parts as each constant of the target allows.

Loihi: nengo-loihi cuts a block into ceil(n / limit) parts. Loihi 2: the Lava compiler halves a
layer until it fits (OzU-CAST/LoihiScalingEfficiency); layers never share cores. Parts are runs of
units in the order of the node's shape, as equal as possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from snnkit.fit.result import Core
from snnkit.graph import Graph
from snnkit.ops.op import Ints
from snnkit.populations import Population, fan_in, fan_out
from snnkit.targets import Target

WEIGHT_BITS = 8
INDEX_BITS = (0, 6, 7, 8, 9, 10, 11, 12)
"""Widths that Loihi's synapse format has for the index of a sparse synapse (nengo-loihi)."""
MOST_ROUNDS = 16
LIMITS = {
    "neurons": "neurons_per_core",
    "bits": "synapse_bits_per_core",
    "axons_in": "input_axons_per_core",
    "axons_out": "output_axons_per_core",
}
"""Field of a core, and the constant that bounds it."""


Excess = tuple[str, int, int]
"""Field of a core, what it has, and what the target allows."""


@dataclass(frozen=True, eq=False)
class Placed:
    """The cores of one layer. targets : by source, how many of these cores each unit sends to.

    beyond : what one unit alone has too much of, so that no cut helps.
    """

    cores: tuple[Core, ...]
    targets: Mapping[str, Ints]
    beyond: tuple[Excess, ...] = ()


class Partition:
    """Cuts every population of a graph. copies : neurons per unit, by name of a node.

    once : a kernel is stored once per core (lower bound) instead of every synapse (upper bound).
    """

    def __init__(self, graph: Graph, target: Target, copies: Mapping[str, int], once: bool):
        self.graph, self.target, self.copies, self.once = graph, target, copies, once
        self.arriving: dict[str, dict[str, Ints]] = {}

    def place(
        self, found: tuple[Population, ...], at_least: Mapping[str, Placed] | None = None
    ) -> dict[str, Placed]:
        """Cores of every population, no fewer than `at_least`."""
        placed: dict[str, Placed] = dict(at_least or {})
        for _ in range(MOST_ROUNDS):
            # outputs follow from how the readers are cut, which may lie earlier behind a latch
            before = {name: len(p.cores) for name, p in placed.items()}
            sent = self._sent(placed)
            for p in found:
                least = before.get(p.node.name, 1)
                placed[p.node.name] = self._cut(p, sent.get(p.node.name), least)
            if before == {name: len(p.cores) for name, p in placed.items()}:
                break
        sent = self._sent(placed)
        return {
            n: replace(p, cores=self._with_outputs(p.cores, sent.get(n))) for n, p in placed.items()
        }

    def _sent(self, placed: Mapping[str, Placed]) -> dict[str, Ints]:
        sent: dict[str, Ints] = {}
        for p in placed.values():
            for name, count in p.targets.items():
                sent[name] = sent[name] + count if name in sent else count
        return sent

    def _with_outputs(self, cores: tuple[Core, ...], sent: Ints | None) -> tuple[Core, ...]:
        if sent is None:
            return cores
        total = np.concatenate([[0], np.cumsum(sent.reshape(-1))])
        return tuple(
            replace(c, axons_out=int(total[c.end] - total[c.first]) * self.copies[c.layer])
            for c in cores
        )

    def _over(self, core: Core) -> tuple[Excess, ...]:
        """Every known limit that a core exceeds."""
        found: list[Excess] = []
        for name, constant in LIMITS.items():
            limit = self.target.value(constant)
            if limit is not None and getattr(core, name) > limit:
                found.append((name, int(getattr(core, name)), limit))
        return tuple(found)

    def _cut(self, p: Population, sent: Ints | None, least: int) -> Placed:
        parts, units = max(1, least), p.node.units
        if self.target.split == "none":
            return self._parts(p, parts)
        beyond = self._over(self._fullest(p, sent))
        # axons stay as they are then; memory is still cut down to one unit's
        alone = {n: np.inf if n.startswith("axons") else found for n, found, _ in beyond}
        while True:
            placed = replace(self._parts(p, min(parts, units)), beyond=beyond)
            cores = self._with_outputs(placed.cores, sent)
            ratios = (f / max(n, alone.get(k, 0)) for c in cores for k, f, n in self._over(c))
            excess = [r for r in ratios if r > 1]
            if not excess or parts >= units:
                return placed
            grown = (
                2 * parts if self.target.split == "halving" else int(np.ceil(parts * max(excess)))
            )
            parts = max(parts + 1, grown)

    def _fullest(self, p: Population, sent: Ints | None) -> Core:
        """The unit with the most synapses, alone."""
        arriving = self._arriving(p)
        unit = int(np.argmax(sum(arriving.values()))) if arriving else 0
        core = self._part(p, unit, unit + 1)[0]
        return self._with_outputs((core,), sent)[0]

    def _arriving(self, p: Population) -> dict[str, Ints]:
        name = p.node.name
        if name not in self.arriving:
            self.arriving[name] = {s: fan_in(p, self.graph, s).reshape(-1) for s in p.sources}
        return self.arriving[name]

    def _parts(self, p: Population, parts: int) -> Placed:
        units = p.node.units
        edges = [units * k // parts for k in range(parts + 1)]
        targets = {s: np.zeros(self.graph.node[s].shape, np.int64) for s in p.sources}
        cores = []
        for first, end in pairwise(edges):
            core, leaving = self._part(p, first, end)
            for s, count in leaving.items():
                targets[s] += count > 0
            cores.append(core)
        return Placed(tuple(cores), targets)

    def _part(self, p: Population, first: int, end: int) -> tuple[Core, dict[str, Ints]]:
        """A core with units first..end - 1, and the synapses that leave each source for it."""
        own, chosen = self.copies[p.node.name], np.zeros(p.node.units, np.int64)
        chosen[first:end] = 1
        leaving = fan_out(p, self.graph, chosen.reshape(p.node.shape))
        synapses = bits = axons = 0
        for s, count in self._arriving(p).items():
            times = p.pieces(s) * self.copies[s]
            here = int(count[first:end].sum()) * times * own
            if self.once:
                # copies of a sender may share a list of weights, copies of a reader may not
                here = min(here, stored_once(p, s) * p.pieces(s) * own)
                bits += here * WEIGHT_BITS
            else:
                neurons = (end - first) * own
                bits += times * self._axon_bits(leaving[s].reshape(-1) * own, neurons)
            synapses += here
            axons += int((leaving[s] > 0).sum()) * times
        neurons = (end - first) * own
        return Core(p.node.name, first, end, neurons, synapses, bits, axons), leaving

    def _axon_bits(self, fan: Ints, neurons: int) -> int:
        """Memory of axons with so many weights each; weights only where no format is known."""
        block = self.target.value("synapses_per_block")
        header, word = (self.target.value(k) for k in ("block_header_bits", "memory_word_bits"))
        if block is None or header is None or word is None:
            return int(fan.sum()) * WEIGHT_BITS
        fan = fan[fan > 0]
        wanted = (neurons - 1).bit_length()
        sparse = bool((fan != neurons).any())
        index = next((b for b in INDEX_BITS if b >= wanted), INDEX_BITS[-1]) if sparse else 0
        each = WEIGHT_BITS + index
        whole = -(-(block * each + header) // word) * word
        rest = fan % block
        last = np.where(rest > 0, -(-(rest * each + header) // word) * word, 0)
        return int((fan // block * whole + last).sum())


def stored_once(p: Population, source: str) -> int:
    """Weights between a source and a population if every kernel is stored once; one for wires."""
    size, reached = 0, {source}
    for node in p.path:
        if reached.intersection(node.inputs):
            reached.add(node.name)
            if node.op in ("conv", "linear"):
                size += int(np.count_nonzero(node.params["weight"]))
    return max(size, 1)

"""Energy from counted operations, by the convention of the papers on spiking networks.

45 nm figures: 4.6 pJ for a multiply-accumulate (MAC), 0.9 pJ for an accumulate (AC), as in the
published counters (Spikingformer and its sisters). They leave out neurons, pooling and memory:
they compare networks, they do not predict a chip.
"""

from __future__ import annotations

from dataclasses import dataclass

from snnkit.backends import Result
from snnkit.graph import Graph
from snnkit.sweeps import DOORS

PICOJOULES = {"MAC": 4.6, "AC": 0.9}


@dataclass(frozen=True)
class LayerEnergy:
    """One layer, per sample, all steps together.

    dense : multiply-accumulates if every input counted. rate : share of `dense` that is counted.
    kind : "MAC" or "AC". operations = rate * dense (convention) or a count (backend).
    """

    name: str
    kind: str
    dense: float
    rate: float
    operations: float

    @property
    def picojoules(self) -> float:
        return self.operations * PICOJOULES[self.kind]


def counted_energy(graph: Graph, result: Result) -> list[LayerEnergy]:
    """From a backend's own count: the synapses that events really crossed.

    result : of a run of `graph`. A layer that reads the quantised input multiplies (MAC), the
    others accumulate. An event of a pooled count of k spikes is one operation. Borders and
    strides make this differ from rate times dense.
    """
    rows = []
    for name, crossed in result.synops.items():
        node = graph.node[name]
        source = graph.node[node.inputs[0]]
        while source.op in ("route", "sum_pool", "max_pool", *DOORS):
            source = graph.node[source.inputs[0]]
        kind = "MAC" if source.op == "input" else "AC"
        times = (graph.steps or 1) if graph.direction(name) else 1
        dense = node.units * node.params["weight"][0].size * times
        operations = float(crossed.mean())
        rows.append(LayerEnergy(name, kind, float(dense), operations / dense, operations))
    return rows

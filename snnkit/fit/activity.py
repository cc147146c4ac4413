"""What a network does on given samples: counted by a run on the CPU, nothing estimated."""

from __future__ import annotations

from typing import Any

from snnkit.backends import compile
from snnkit.energy import counted_energy
from snnkit.fit.result import Activity
from snnkit.graph import Graph


def measure(graph: Graph, samples: Any) -> Activity:
    """Spikes and synaptic operations of mode settle (graded spikes, the least work), and the
    number of synchronous steps of mode steps. Per sample, except `steps`: the most of any."""
    program = compile(graph)
    result = program.run(samples)
    steps = program.run(samples, mode="steps").steps
    count = len(result.steps)
    return Activity(
        samples=count,
        spikes=sum(int(v.sum()) for v in result.spikes.values()) / count,
        synops=sum(int(v.sum()) for v in result.synops.values()) / count,
        picojoules=sum(row.picojoules for row in counted_energy(graph, result)),
        steps=int(steps.max()),
    )

"""Spikes, synaptic operations and steps to quiescence of recurrent networks, reset and carry.

    python benchmarks/sequence_cost.py --output cost.json --task rows out/rows/net.onnx ...

The networks are those of examples/train_sequences.py. Reset: every element's window starts at
rest. Carry: tracers and charges stay, only the differences of inputs and latches are injected.
Both end in the same integers, which is checked on every spiking node. Spikes are unit spikes
(mode events), synaptic operations messages times synapses; `settle` sends one graded message per
neuron that changed. Steps are those of mode steps (delay 1), per element. Counts, no timings.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import snnkit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def measure(graph: snnkit.Graph, x: np.ndarray) -> dict[str, Any]:
    """Means per sample and element; reset and carry."""
    program = snnkit.compile(graph)
    names = [n.name for n in graph.of("spike")]
    elements = len(x) * graph.steps
    found: dict[str, Any] = {"elements": graph.steps, "samples": len(x)}
    found["neurons"] = sum(graph.node[n].units for n in names)
    found["dense MACs"] = sum(
        n.params["weight"].size * (n.units // len(n.params["weight"]))
        for n in graph.of("conv", "linear")
        if graph.direction(n.name)
    )
    expected = None
    for carry in (False, True):
        row: dict[str, Any] = {}
        for mode in ("settle", "events", "steps"):
            result = program.run(x, mode=mode, record=names, carry=carry)
            if expected is None:
                expected = result.counts
            same = all(np.array_equal(result.counts[n], expected[n]) for n in names)
            if not same:
                raise SystemExit(f"mode {mode}, carry {carry}: other integers")
            synops = sum(int(v.sum()) for v in result.synops.values()) / elements
            if mode == "steps":
                row["steps mean"] = float(result.steps.mean()) / graph.steps
                row["steps most, mean over elements"] = float(result.steps.max()) / graph.steps
            else:
                row[f"synops {mode}"] = synops
            if mode == "events":
                spikes = sum(int(v.sum()) for v in result.spikes.values())
                row["spikes"] = spikes / elements
        found["carry" if carry else "reset"] = row
    return found


def main() -> None:
    from sequence_data import SOURCES

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("networks", nargs="+", type=Path)
    arguments.add_argument("--task", choices=list(SOURCES), required=True)
    arguments.add_argument("--samples", type=int, default=200)
    arguments.add_argument("--output", type=Path, required=True)
    options = arguments.parse_args()
    x = SOURCES[options.task]().test[0][: options.samples].numpy()
    rows = []
    for path in options.networks:
        rows.append({"network": path.parent.name or path.name, **measure(snnkit.load(path), x)})
        print(json.dumps(rows[-1]), flush=True)
    options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

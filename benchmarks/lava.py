"""Networks on Lava: every neuron against the engine, then samples per second.

`python -m benchmarks.lava [--samples N]`. Backend lava where 24 bits do not hold the network. Needs
Lava (`snnkit lava-env status`); real inputs where the data is, see `tests/shared_data.py` and
`benchmarks/workloads.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import snnkit
from benchmarks import prepared
from snnkit.backends import compile
from snnkit.backends.loihi.description import problems, synapse_count
from snnkit.graph import Graph

ROOT = Path(__file__).parents[1]
COLUMNS = ("neurons", "synapses", "samples", "differ", "fires", "import", "build", "run", "per s")


def cases(count: int) -> Iterator[tuple[str, Graph, Any]]:
    sys.path.insert(0, str(ROOT / "examples"))
    from digits import split

    train, _, digits, _ = split()
    model = str(ROOT / "examples" / "digits_cnn.onnx")
    yield "digits CNN", snnkit.convert(model, train, levels=15), digits[:count]
    for steps in (1, 5):
        graph = snnkit.load(ROOT / "examples" / f"iir_digits_t{steps}.onnx")
        yield f"IIR digits, T = {steps}", graph, digits[:count] / np.float32(16)
    rows = prepared.test("mnist").x[: min(count, 20)].reshape(-1, 28, 28)
    yield "MNIST rows, GRU", snnkit.load(ROOT / "examples" / "sequence_rows.onnx"), rows
    for name in ("mnist", "nmnist"):
        yield f"{name} CNN", prepared.graph(name), prepared.test(name).x[:count]


def row(name: str, graph: Graph, x: Any, **how: Any) -> str:
    """Exactness, the least active layer's share of neurons that fire, and seconds."""
    neurons = sum(n.units for n in graph.of("spike", "lif"))
    synapses = sum(synapse_count(graph, n) for n in graph.of("conv", "linear"))
    # what a chip's 24 bits cannot hold runs on the same simulation without them
    backend = "lava" if problems(graph) else "loihi"
    program: Any = compile(graph, backend)
    found = program.run(x, record=("spike",), **how)
    expected = compile(graph).run(x, record=("spike",), mode=how.get("mode", "settle"))
    differ = sum(int((found.counts[k] != v).sum()) for k, v in expected.counts.items())
    differ += sum(y.tobytes() != found.outputs[k].tobytes() for k, y in expected.outputs.items())
    fires = min(float((v != 0).mean()) for v in found.counts.values())
    s, count = program.seconds, len(found.steps)
    return (
        f"{name:<20} {backend:<9} {neurons:9,} {synapses:11,} {count:8} {differ:7} {fires:6.3f} "
        f"{s['import']:7.1f} {s['build']:7.1f} {s['run']:7.1f} {count / s['run']:9.1f}"
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--samples", type=int, default=100)
    p.add_argument("--layers", type=int, default=2, help="samples with one process per layer")
    a = p.parse_args()
    print(f"{'network':<20} {'backend':<9} " + " ".join(f"{c:>9}" for c in COLUMNS), flush=True)
    for name, graph, x in cases(a.samples):
        print(row(name, graph, x), flush=True)
        if not graph.sweeps and a.layers:
            few = x[: a.layers]
            print(row("  layers, graded", graph, few, network="layers"), flush=True)
            print(row("  layers, unit", graph, few, mode="steps"), flush=True)


if __name__ == "__main__":
    main()

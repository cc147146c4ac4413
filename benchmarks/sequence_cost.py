"""Spikes, synaptic operations and steps to quiescence of recurrent networks, per element.

    python -m benchmarks.sequence_cost --levels 3 7 15               # digits, trained here
    python -m benchmarks.sequence_cost --task rows --samples 20 out/rows/net.onnx    # yours

The networks are those of examples/train_sequences.py; with --levels it trains scikit-learn's
digits first, seconds to a minute each. Reset: every element's window starts at rest. Carry: tracers
and charges stay, only the differences of inputs and latches are injected. All modes and encodings
end in the same integers, which is checked on every spiking node at every step.

Means over elements and samples. in: messages that the input's units send (unit spikes in rate).
spikes: unit spikes of neurons (mode events). synops: messages times the synapses that they cross;
`settle` sends one graded message per neuron that changed. steps: of mode steps, delay 1, until the
last neuron moves; most: the largest mean of a sample. The window of a head behind the sequence is
in the sums. Rate is spread over as many steps as the largest level of the data. No timings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import snnkit
from snnkit.bench.table import markdown
from snnkit.encodings import ENCODINGS, input_spikes
from snnkit.reference import input_counts

EXAMPLES = Path(__file__).parents[1] / "examples"
HEADER = ["network", "windows", "encoding", "in", "spikes", "synops", "settle synops"]
HEADER += ["steps", "most"]
Row = dict[str, Any]


def measure(graph: snnkit.Graph, x: np.ndarray) -> Iterator[Row]:
    """One row for each of reset and carry in each encoding."""
    program = snnkit.compile(graph)
    names = [n.name for n in graph.of("spike")]
    elements = len(x) * graph.steps
    (levels,) = input_counts(graph, x).values()
    over = int(np.abs(levels).max())
    expected = program.run(x, record=names).counts
    for carry in (False, True):
        before = np.concatenate([0 * levels[:, :1], levels[:, :-1]], axis=1)
        change = levels - before if carry else levels
        for encoding in ENCODINGS:
            row: Row = {"windows": "carry" if carry else "reset", "encoding": encoding}
            row["in"] = float(input_spikes(change, encoding).sum()) / elements
            for mode in ("events", "steps", "settle"):
                how = {"encoding": encoding, "over": over} if mode != "settle" else {}
                result = program.run(x, mode=mode, record=names, carry=carry, **how)
                if not all(np.array_equal(result.counts[n], expected[n]) for n in names):
                    raise SystemExit(f"{mode}, {encoding}, carry {carry}: other integers")
                row |= _figures(result, mode, elements)
            row["steps mean"] = row["steps"] / elements
            row["steps most"] = row["most"] / graph.steps
            yield row


def _figures(result: snnkit.Result, mode: str, elements: int) -> Row:
    synops = sum(int(v.sum()) for v in result.synops.values()) / elements
    if mode == "steps":
        return {"steps": int(result.steps.sum()), "most": int(result.steps.max())}
    if mode == "settle":
        return {"settle synops": synops}
    spikes = sum(int(v.sum()) for v in result.spikes.values()) / elements
    return {"synops": synops, "spikes": spikes}


def sizes(graph: snnkit.Graph) -> str:
    """What the figures are to be held against."""
    neurons = sum(n.units for n in graph.of("spike"))
    macs = sum(
        n.params["weight"].size * (n.units // len(n.params["weight"]))
        for n in graph.of("conv", "linear")
        if graph.direction(n.name)
    )
    return f"{neurons} neurons, {macs:,} dense MACs, {graph.steps} elements"


def trained(levels: int, folder: Path) -> Path:
    """scikit-learn's digits at so many levels, trained by the example unless it is there."""
    home = folder / f"digits, {levels} levels"
    if not (home / "net.onnx").exists():
        script = str(EXAMPLES / "train_sequences.py")
        task = ["--task", "digits", "--levels", str(levels), "--output", str(home)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, script, *task], check=True, env=environment)
    return home / "net.onnx"


def main() -> None:
    sys.path.insert(0, str(EXAMPLES))
    from sequence_data import SOURCES

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("networks", nargs="*", type=Path)
    arguments.add_argument("--task", choices=list(SOURCES), default="digits")
    arguments.add_argument("--levels", type=int, nargs="*", default=[])
    arguments.add_argument("--samples", type=int, default=100)
    arguments.add_argument("--folder", type=Path, default=Path("out"), help="of trained networks")
    arguments.add_argument("--output", type=Path, help="JSON to write")
    options = arguments.parse_args()
    x = SOURCES[options.task]().test[0][: options.samples].numpy()
    found, notes = [], []
    for path in (*options.networks, *(trained(n, options.folder) for n in options.levels)):
        graph = snnkit.load(path)
        name = path.stem if path.stem != "net" else path.parent.name
        notes.append(f"{name}: {sizes(graph)}")
        for row in measure(graph, x):
            found.append({"network": name, **row})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(
        markdown(HEADER, [_line(row) for row in found]), *(f"* {note}" for note in notes), sep="\n"
    )
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def _line(row: Row) -> list[str]:
    figures = [f"{row[k]:,.1f}" for k in ("in", "spikes")]
    figures += [f"{row[k]:,.0f}" for k in ("synops", "settle synops")]
    figures += [f"{row[k]:.1f}" for k in ("steps mean", "steps most")]
    return [row["network"], row["windows"], row["encoding"], *figures]


if __name__ == "__main__":
    main()

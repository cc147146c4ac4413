"""Time per element of recurrent networks as streams, beside onnxruntime on whole sequences.

    python -m benchmarks.sequence_speed examples/sequence_*.onnx

A stream takes one element and gives its answer: push and readout, floats in, floats out.
onnxruntime has no way to keep the state of net.onnx between two calls, so it gets whole sequences
and its time is divided by their length; it never answers before the end. Ours, whole:
`program.run` on four sequences, which counts spikes too. us of CPU time of one thread, medians and
[least..largest] of runs in turns. Equality with onnxruntime's output is checked first. Inputs are
random, a third of the levels not zero.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import snnkit
from snnkit.bench.table import markdown

MOST = 64
"""Elements of a sequence that are pushed; enough for a median."""
HEADER = ["network", "elements", "stream", "carried on", "at rest", "run, whole", "ort, whole / T"]


def sequences(graph: snnkit.Graph, count: int) -> np.ndarray:
    (b,) = graph.inputs
    node, rng = graph.node[b.node], np.random.default_rng(0)
    shape = (count, graph.steps, *node.shape)
    levels = rng.integers(node.lo, node.hi + 1, shape) * (rng.random(shape) < 1 / 3)
    return (levels * b.scale + b.offset).astype(np.float32)


def pushed(stream: Any, x: np.ndarray) -> Callable[[], Any]:
    def call() -> Any:
        stream.reset()
        for frame in x:
            stream.push(frame=frame)
            last = stream.readout()
        return last

    return call


def compare(path: Path, rounds: int) -> list[str]:
    graph = snnkit.load(path)
    x, program = sequences(graph, 4), snnkit.compile(graph)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (output,) = graph.outputs
    expected = session.run(None, {graph.inputs[0].name: x[:1]})[0]
    many = min(MOST, graph.steps)
    calls: dict[str, tuple[Callable[[], Any], int]] = {}
    for update in ("auto", "incremental", "recompute"):
        stream = program.stream(update)
        last = pushed(stream, x[0])()[output.name]
        whole = expected if output.time is None else expected.take([-1], axis=output.time)
        if not np.array_equal(last, whole):
            raise SystemExit(f"{path}: a stream's output differs from onnxruntime's")
        calls[update] = pushed(stream, x[0, :many]), many
    calls["run"] = (lambda: program.run(x, threads=1)), 4 * graph.steps
    calls["ort"] = (lambda: session.run(None, {graph.inputs[0].name: x[:1]})), graph.steps
    if not np.array_equal(calls["run"][0]().outputs[output.name][:1], expected):
        raise SystemExit(f"{path}: other outputs than onnxruntime's")
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, elements) in calls.items():
            start = time.thread_time()
            call()
            spent[name].append((time.thread_time() - start) / elements * 1e6)
    cells = [f"{statistics.median(v):.3g} [{min(v):.3g}..{max(v):.3g}]" for v in spent.values()]
    return [path.stem, str(graph.steps), *cells]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("networks", nargs="+", type=Path)
    arguments.add_argument("--rounds", type=int, default=15)
    options = arguments.parse_args()
    print(markdown(HEADER, [compare(path, options.rounds) for path in options.networks]))


if __name__ == "__main__":
    main()

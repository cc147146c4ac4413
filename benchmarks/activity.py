"""Accuracy and activity of the shipped networks as spiking networks, on the test data.

    python -m benchmarks.activity            # all four
    python -m benchmarks.activity dvs --network other.onnx

Real data where present, else generated inputs (then only activity means something).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import snnkit
from benchmarks.workloads import WORKLOADS, present, samples, scaled, splits
from snnkit.datasets.arrays import Array

GROUP = 4
CHUNK = 100


@dataclass(frozen=True)
class Activity:
    """Per layer the share of neurons (units) and of groups of 4 channels at a site (words) that
    spiked; synaptic operations per sample in mode settle; logits [N, classes]."""

    units: Array
    words: Array
    synops: float
    outputs: Array


def measure(graph: snnkit.Graph, x: Array) -> Activity:
    """Runs the samples x through a converted network."""
    program = snnkit.compile(graph, backend="numba")
    units, words, synops = [], [], []
    outputs: list[Array] = []
    for start in range(0, len(x), CHUNK):
        result = program.run(x[start : start + CHUNK], record=("spike",))
        active = [counts != 0 for counts in result.counts.values()]
        units.append([a.mean() * len(a) for a in active])
        words.append(
            [a.reshape(len(a), -1, GROUP, *a.shape[2:]).any(2).mean() * len(a) for a in active]
        )
        synops.append(sum(float(s.sum()) for s in result.synops.values()))
        outputs.extend(result.outputs.values())
    n = len(x)
    return Activity(
        np.sum(units, 0) / n, np.sum(words, 0) / n, sum(synops) / n, np.concatenate(outputs)
    )


def votes(outputs: Array, labels: Array, part: Array, span: int) -> float:
    """Accuracy of the summed outputs of `span` consecutive samples of a recording."""
    hits = []
    for number in np.unique(part):
        index = np.flatnonzero(part == number)
        for some in np.split(index, range(span, len(index), span)):
            hits.append(outputs[some].sum(0).argmax() == labels[some[0]])
    return float(np.mean(hits))


def report(name: str, network: Path, levels: int) -> str:
    """One workload's figures in words."""
    graph = snnkit.convert(network, samples(name, 512, "train").x, levels=levels)
    if not present(name):
        found, text = measure(graph, samples(name, 256).x), f"{name} (generated inputs)"
    else:
        test = splits(name, "test")
        x = scaled(name, test.x)
        found = measure(graph, x)
        before = _logits(network, x)
        text = f"{name}: {len(x)} samples, input {(x != 0).mean():.4f}"
        for label, outputs in (("float", before), (f"{levels} levels", found.outputs)):
            text += f"\n  {label}: accuracy {(outputs.argmax(1) == test.y).mean():.4f}"
            if WORKLOADS[name].events:
                for span in (10, 1000):
                    text += f", votes of {span}: {votes(outputs, test.y, test.part, span):.4f}"
    for label, shares in (("units", found.units), ("words", found.words)):
        text += f"\n  {label} " + " ".join(f"{s:.4f}" for s in shares)
    return f"{text}\n  {found.synops:,.0f} synops per sample"


def _logits(network: Path, x: Array) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(network)
    parts = [session.run(None, {"input": x[i : i + CHUNK]})[0] for i in range(0, len(x), CHUNK)]
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="workload", help=", ".join(WORKLOADS))
    parser.add_argument("--network", type=Path, help="another ONNX file for the one workload")
    parser.add_argument("--levels", type=int, default=15)
    given = parser.parse_args()
    for name in given.workloads or WORKLOADS:
        if name not in WORKLOADS:
            parser.error(f"workload {name!r}; expected some of {', '.join(WORKLOADS)}")
        print(report(name, given.network or WORKLOADS[name].network, given.levels), flush=True)


if __name__ == "__main__":
    main()

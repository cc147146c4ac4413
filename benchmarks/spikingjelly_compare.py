"""SpikingJelly on the same trained networks: accuracy and time per image by number of time steps.

Needs an environment of its own, because SpikingJelly's requirements replace a CPU build of torch:

    python -m venv peers
    peers/bin/pip install 'torch==2.13.0' matplotlib scipy tqdm requests packaging tensorboard
    peers/bin/pip install --no-deps spikingjelly==2.0.0 loguru h5py SciencePlots
    peers/bin/pip install numba onnx onnxruntime
    peers/bin/python -m benchmarks.spikingjelly_compare mnist cifar

Two of its ways from a network with ReLUs to spikes, both by its own recipes:

* rate: `RateCodingRecipe`, IF neurons with soft reset, thresholds at the largest or the 99.9 %
  activation of each layer; the image in every step, the mean over time is read;
* ST-BIF: `SpikeZIPTFQANNRecipe`, `STBIFNode` in place of a quantiser with 15 levels (scale per
  layer, the 99.9 % activation); the image in the first step, the sum over time is read.

Theirs are T steps in float32, ours is one settled evaluation in integers: compared are the time
and the accuracy of an answer, not kernels. All times are taken in turns in one process, one
thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import prepared
from snnkit.backends.numba_cpu import backend
from snnkit.bench.inputs import batches
from snnkit.bench.proof import prove
from snnkit.bench.rivals import FP32, onnxruntime_rivals
from snnkit.bench.table import markdown, spread
from snnkit.bench.timing import Timing, interleaved
from snnkit.bench.torch_chain import torch_chain
from snnkit.bench.torch_rivals import quantised_chain, spikingjelly_rate, spikingjelly_stbif
from snnkit.files import write_beside

Call = Callable[[Any], Any]
STEPS = (4, 8, 16, 32, 64)
OURS = "snnkit, settled"
BATCH = (1, 32)


def candidates(name: str, steps: tuple[int, ...]) -> dict[str, Call]:
    """Calls from images to logits, by title."""
    net, x = torch_chain(prepared.source(name)), prepared.train(name).x
    graph = prepared.graph(name)
    port, program = graph.inputs[0].name, backend().compile(graph)
    rivals = onnxruntime_rivals(graph, prepared.source(name), {port: x}, 1).candidates
    quantised = quantised_chain(net, x, prepared.LEVELS)
    found: dict[str, Call] = {
        OURS: lambda data: next(iter(program.infer(data).values())),
        "onnxruntime fp32": lambda data: rivals[FP32]({port: data})[0],
        "torch, float": lambda data: net(_tensor(data)).numpy(),
        "torch, 15 levels": lambda data: quantised(_tensor(data)).numpy(),
    }
    for count in steps:
        found[f"rate, max, T={count}"] = _numpy(spikingjelly_rate(net, x, count, "max"))
        found[f"rate, 99.9 %, T={count}"] = _numpy(spikingjelly_rate(net, x, count, "99.9%"))
        found[f"ST-BIF, T={count}"] = _numpy(spikingjelly_stbif(quantised, count))
    prove(graph, program.infer, {port: prepared.test(name).x[:64]}, [])
    return found


def _tensor(data: Any) -> Any:
    import torch

    return torch.from_numpy(data)


def _numpy(call: Call) -> Call:
    return lambda data: call(data).numpy()


def compare(name: str, images: int, rounds: int, steps: tuple[int, ...]) -> tuple[str, Any]:
    """(markdown table, figures) of one network."""
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    given, calls = prepared.test(name), candidates(name, steps)
    x, y = given.x[:images], None if given.y is None else given.y[:images]
    accuracy = {}
    for title, call in calls.items():
        print(f"{name}: accuracy of {title}", file=sys.stderr, flush=True)
        guesses = np.concatenate([call(x[i : i + 50]).argmax(1) for i in range(0, len(x), 50)])
        accuracy[title] = float("nan") if y is None else float((guesses == y).mean())
    times: dict[int, dict[str, Timing]] = {}
    for size in BATCH:
        print(f"{name}: times, batch {size}", file=sys.stderr, flush=True)
        parts = [p["x"] for p in batches({"x": x[: max(16, size)]}, size)]
        times[size] = interleaved(calls, parts, [size] * len(parts), rounds)
    header = ["runner", "accuracy"]
    for size in BATCH:
        header += [f"us per image, batch {size}", "x ours"]
    lines = []
    for title in calls:
        line = [title, f"{accuracy[title]:.4f}"]
        for size in BATCH:
            own, other = times[size][OURS].cpu, times[size][title].cpu
            line += [spread(other.json()), "{:.1f} ({:.1f})".format(*own.ratios(other))]
        lines.append(line)
    figures = {
        title: {
            "accuracy": accuracy[title],
            "cpu": {size: times[size][title].cpu.json() for size in BATCH},
            "wall": {size: times[size][title].wall.json() for size in BATCH},
        }
        for title in calls
    }
    kind = "test images" if given.real else "GENERATED images"
    title = f"## {name}: {len(x)} {kind}, load average {os.getloadavg()[0]:.2f}"
    return f"{title}\n\n{markdown(header, lines)}\n", figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=["mnist", "cifar"])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    texts, figures = ["# SpikingJelly on the same networks\n"], {}
    for name in given.workloads:
        text, figures[name] = compare(name, given.images, given.rounds, tuple(given.steps))
        texts.append(text)
    write_beside(given.output / "spikingjelly.md", "\n".join(texts).encode())
    write_beside(given.output / "spikingjelly.json", json.dumps(figures, indent=1).encode())
    print("\n".join(texts))
    return 0


if __name__ == "__main__":
    sys.exit(main())

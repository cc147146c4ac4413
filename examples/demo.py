"""The main job, end to end: a trained network becomes spikes, with the proof.

    make demo

Takes examples/digits_cnn.onnx (trained by train_digits.py), converts it with 450 of the training
images as calibration data, verifies every neuron in every execution, runs the event-driven
backend on the held-out images and prints one table. Writes the network, the certificate and a
picture of one presentation to --output.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from digits import split

import snnkit
from snnkit.backends import Program
from snnkit.report import activity_picture, certificate_text, table


def milliseconds(run: Any, rounds: int = 15) -> float:
    """Median wall time of one call."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) * 1e3


def session(source: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def accuracy(logits: Any, y: Any) -> float:
    return float((logits.argmax(axis=1) == y).mean())


def timings(program: Program, source: Path, net: Path, x: Any) -> list[list[Any]]:
    """Milliseconds per image, one image at a time and as one batch, on one thread."""
    float_session, net_session = session(str(source)), session(str(net))
    runs = {
        "onnxruntime, float model": lambda a: float_session.run(None, {"image": a}),
        "onnxruntime, net.onnx": lambda a: net_session.run(None, {"image": a}),
        "snnkit numba, event-driven": lambda a: program.run(a, threads=1),
    }
    rows = []
    for name, run in runs.items():
        run(x[:1])
        one = milliseconds(lambda run=run: run(x[:1]))
        rows.append([name, one, milliseconds(lambda run=run: run(x), 5) / len(x)])
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, default=Path("out"))
    arguments.add_argument("--levels", type=int, default=15)
    options = arguments.parse_args()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    source, net = Path(__file__).with_name("digits_cnn.onnx"), folder / "net.onnx"
    calibration, _, x, y = split()

    graph = snnkit.convert(source, calibration[:450], levels=options.levels)
    snnkit.save(graph, net)
    graph = snnkit.load(net)
    certificate = snnkit.verify(graph, x, labels=y, source=source)
    (folder / "certificate.json").write_text(certificate.to_json())

    program = snnkit.compile(graph, backend="numba")
    result = program.run(x, record=["spike"])
    image, shown = {"image": x}, "one image of a digit: spikes of every neuron, layer by layer"
    float_logits = session(str(source)).run(None, image)[0]
    net_logits = session(str(net)).run(None, image)[0]
    first = {name: counts[0] for name, counts in result.counts.items()}
    activity_picture(graph, first, folder / "activity.png", shown)

    print(certificate_text(certificate), end="\n\n")
    spikes = sum(int(v.sum()) for v in result.spikes.values()) / len(x)
    synops = sum(int(v.sum()) for v in result.synops.values()) / len(x)
    rows = [
        ["accuracy, float model", accuracy(float_logits, y)],
        ["accuracy, QCNN (onnxruntime on net.onnx)", accuracy(net_logits, y)],
        ["accuracy, SNN (event-driven)", accuracy(result.outputs["logits"], y)],
        ["neurons compared", certificate.neurons_compared],
        ["neurons that differ", certificate.neurons_different],
        ["spikes per image", spikes],
        ["synaptic operations per image", synops],
        ["dense MACs per image", certificate.dense_macs],
    ]
    print(table([f"scikit-learn digits, {len(x)} held-out images", "value"], rows), end="\n\n")
    times = timings(program, source, net, x)
    print(table(["milliseconds per image, one thread", "alone", "in a batch"], times))
    print(f"\nwrote {net}, {folder / 'certificate.json'}, {folder / 'activity.png'}")
    if not certificate.passed:
        raise SystemExit(4)


if __name__ == "__main__":
    main()

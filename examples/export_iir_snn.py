"""Exports what train_iir_snn.py trained, and says what it costs: accuracy, spikes, energy.

    python examples/export_iir_snn.py --data digits --trained out/iir --output out/iir

For each number of steps T: the accuracy of the float network and of the exported integers, that
every spike agrees (PyTorch's integers and the backend, every neuron and step), spikes and
synaptic operations, and energy by the papers' convention and by the backend's count. Writes
t5.onnx ... t1.onnx; the last has no state, so that every backend runs it in one pass.
iir_digits_t5.onnx and iir_digits_t1.onnx beside this script were made by it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from iir_data import Batches, load

import snnkit
from snnkit.converters.from_snn import from_snn
from snnkit.models import create
from snnkit.models.iir_snn import fuse_bn
from snnkit.models.iir_training import accuracy
from snnkit.nn.energy import counted_energy, paper_energy
from snnkit.nn.integer_network import IntegerNetwork
from snnkit.report import table

CHECKED = 100
"""Test images for spikes, operations and energy."""


def network(folder: Path, config: dict[str, Any], steps: int | None) -> Any:
    """A trained stage; the ANN with its BatchNorm fused."""
    options = {k: v for k, v in config.items() if k != "name"}
    if options["input_shape"] is not None:
        options["input_shape"] = tuple(options["input_shape"])
    model = create(config["name"], steps=steps, batch_norm=steps is None, **options)
    name = f"t{steps}.pt" if steps else "ann.pt"
    model.load_state_dict(torch.load(folder / name, weights_only=True))
    return (model if steps else fuse_bn(model)).eval()


def integer_accuracy(program: Any, data: tuple[Any, Any]) -> float:
    """Share of right classes of the exported integers, on the backend."""
    x, y = data
    right = 0
    for at in range(0, len(x), 250):
        logits = program.run(x[at : at + 250]).outputs["output"]
        right += int((logits.argmax(1) == y[at : at + 250]).sum())
    return right / len(y)


def row(model: Any, graph: Any, data: Any) -> list[Any]:
    """One line of the table; raises if a single integer differs."""
    x, program = data[0][:CHECKED], snnkit.compile(graph)
    output, record = IntegerNetwork(graph)(torch.from_numpy(x))
    neurons = [n.name for n in graph.of("spike", "lif")]
    result = program.run(x, record=neurons)
    different = sum(int((result.counts[n] != record[n].numpy()).sum()) for n in neurons)
    different += int((result.outputs["output"] != output.numpy()).sum())
    if different:
        raise SystemExit(f"{different} integers differ between PyTorch and the backend")
    silent = [n for n in neurons if not record[n].any()]
    if silent:
        raise SystemExit(f"silent layers: {silent}")
    spikes = sum(int(record[n].sum()) for n in neurons) / len(x)
    rate = spikes / sum(record[n][0].numel() for n in neurons)
    paper = paper_energy(model, torch.from_numpy(x))
    graded = paper_energy(model, torch.from_numpy(x), graded=True)
    counted = counted_energy(graph, result)
    return [
        model.steps,
        accuracy(model, Batches(data, 250)),
        integer_accuracy(program, data),
        round(spikes),
        round(rate, 4),
        round(sum(r.operations for r in counted)),
        *(round(sum(r.picojoules for r in rows) / 1e3, 1) for rows in (paper, graded, counted)),
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", choices=["digits", "mnist", "cifar", "nmnist"], required=True)
    arguments.add_argument("--trained", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    arguments.add_argument("--images", type=int, default=1000, help="test images, the first ones")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    data = load(options.data)
    test = tuple(a[: options.images] for a in data.test)
    stored = json.loads((options.trained / "accuracies.json").read_text())
    config, lengths = stored["config"], [s["steps"] for s in stored["schedule"]["chain"]]
    ann = network(options.trained, config, None)
    dense = sum(r.dense for r in paper_energy(ann, torch.from_numpy(test[0][:CHECKED])))
    found = accuracy(ann, Batches(test, 250))
    print(f"ANN: accuracy {found:.4f}, {dense:,.0f} MACs = {dense * 4.6e-3:,.1f} nJ per image")
    rows = []
    for steps in lengths:
        model = network(options.trained, config, steps)
        graph = from_snn(model, data.train[0][:2000])
        rows.append(row(model, graph, test))
        snnkit.save(graph, options.output / f"t{steps}.onnx")
        if steps == 1:
            certificate = snnkit.verify(graph, test[0][:50])
            if not certificate.passed:
                raise SystemExit(f"not exact: {certificate.first_difference}")
            print(f"T = 1: {certificate.neurons_compared:,} neurons compared, none different")
    head = ["T", "float", "integers", "spikes", "rate", "synops", "nJ paper", "nJ graded"]
    print(table([*head, "nJ counted"], rows))
    print(f"accuracy: {len(test[0])} test images, of {len(data.test[0])}")
    print(f"spikes, rate, synops, nJ: means of {CHECKED} test images, all steps; differences: 0")


if __name__ == "__main__":
    main()

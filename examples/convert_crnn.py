"""A CRNN as everybody writes it, brought as an ONNX file: trained in floats, no retraining.

    python examples/convert_crnn.py --output out/crnn                # scikit-learn's digits by rows
    python examples/convert_crnn.py --task fsdd --output out/fsdd    # needs the data folder

Convolutions over time that see what comes later, batch norm, pooling over time, a bidirectional
GRU, the mean over all elements, a dense head. Nothing of snnkit is in the network or its training.
Writes model.onnx and net.onnx, and compares every spiking neuron on the test set, or on the first
`--compare` samples of it.

Seen with seed 0 on one thread of a busy machine; 0 neurons differ everywhere:

    task    test samples  float   255 levels  31      15      neurons of how many  training
    digits  397           0.9874  0.9874      0.9899  0.9874  3.4 M of all         7 s
    rows    10,000        0.9889  0.9891      0.9889  0.9892  29 M of 1,000        61 s
    fsdd    250           0.9920  0.9920      0.9920  0.9800  17 M of all          43 s
    speech  800           0.8750  0.8712      0.8600  0.8550  40 M of all          51 s
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sequence_data import SOURCES, Sequences, batches, steps
from torch import Tensor, nn

import snnkit

EPOCHS = {"digits": 30, "rows": 3, "fsdd": 25, "speech": 25}
LEVELS = (255, 31, 15)


class CRNN(nn.Module):
    """[N, T, features] -> logits."""

    def __init__(self, features: int, classes: int, width: int = 32, hidden: int = 32):
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(features, width, 5, padding=2),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(width, width, 3, padding=1),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        self.recurrent = nn.GRU(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.front(x.transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(self.recurrent(y)[0].mean(dim=1))
        return logits


def train(net: nn.Module, data: Sequences, epochs: int) -> None:
    optimiser = torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=1e-3)
    count = steps(data, 64, epochs)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=count)
    net.train()
    for x, y in batches(data, 64, epochs, torch.Generator().manual_seed(0)):
        loss = nn.functional.cross_entropy(net(x.flatten(2)), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--task", choices=EPOCHS, default="digits")
    arguments.add_argument("--output", type=Path, required=True)
    arguments.add_argument("--compare", type=int, default=10_000, help="test samples compared")
    options = arguments.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    data = SOURCES[options.task]()
    some = data.augment(data.train[0][:512], data.train[1][:512], torch.Generator())[0].flatten(2)
    net, start = CRNN(some.shape[2], data.classes), time.perf_counter()
    train(net, data, EPOCHS[options.task])
    print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
    source = options.output / "model.onnx"
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: it is the older one
        torch.onnx.export(net, (some[:2],), source, dynamo=False, **names)
    x, labels = data.test[0].flatten(2).numpy(), data.test[1].numpy()
    with torch.no_grad():
        right = (net(torch.from_numpy(x)).argmax(1).numpy() == labels).mean()
    print(f"float: {right:.4f} of {len(x)} test samples")
    for levels in LEVELS:
        graph = snnkit.convert(source, calibration=some.numpy(), levels=levels)
        program = snnkit.compile(graph, backend="numba")
        right = (program.run(x).outputs["y"].argmax(1) == labels).mean()
        few = x[: options.compare]
        report = snnkit.verify(graph, few, labels=labels[: len(few)], modes=("settle", "events"))
        print(
            f"{levels} levels: spiking {right:.4f}; {report.neurons_compared:,} neurons compared, "
            f"{report.neurons_different} differ"
        )
        if not report.passed:
            raise SystemExit(report.first_difference)
        if levels == LEVELS[0]:
            snnkit.save(graph, options.output / "net.onnx")


if __name__ == "__main__":
    main()

"""Quantisation-aware training against post-training quantisation, and what conversion costs: 0.

    python benchmarks/qat_table.py --output qat_table.json

One small CNN for MNIST and for CIFAR-10 images, in float; then for each number of levels and
weight bits (a) `snnkit.convert` of the float model, (b) a short fine-tuning of
`snnkit.nn.prepare` of the same float model and its conversion. Every neuron of the converted
network is compared with torch's integers on all test images. Needs the data that
CONTRIBUTING.md speaks of; one torch thread; about ten minutes of
one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

import snnkit
from snnkit.datasets import load
from snnkit.nn import InputGrid, prepare

HOME = Path(os.environ.get("SNNKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
LEVELS, BITS = (1, 3, 7, 15), (2, 4, 8)
CHUNK = 500
Split = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def network(channels: int) -> nn.Module:
    """Three convolutions and a linear layer, about 20,000 parameters."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(channels, 16, 2), *block(16, 32, 1), nn.MaxPool2d(2), *block(32, 32, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def mnist() -> Split:
    """60,000 to train on, 10,000 to test; [N, 1, 28, 28] in 0..1."""
    data = load("mnist", str(HOME / "mnist"))
    x, test = (
        torch.from_numpy(a.astype(np.float32) / np.float32(255))
        for a in (data.x_train, data.x_test)
    )
    return x, torch.from_numpy(data.y_train), test, torch.from_numpy(data.y_test)


def cifar() -> Split:
    """4,000 training images of CIFAR-10: 3,500 to train on, 500 held out; [N, 3, 32, 32]."""
    path = HOME / "cifar10" / "cifar10_lossless_convnetjs.npz"
    with np.load(path, allow_pickle=False) as file:
        x, y = file["x"], file["y"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    images = torch.from_numpy(x[order].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    labels = torch.from_numpy(y[order])
    return images[:3500], labels[:3500], images[3500:], labels[3500:]


def train(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, images: int, rate: float, flip: bool
) -> None:
    """Adam with a cosine schedule over `images` images in batches of 64."""
    torch.manual_seed(0)
    model.train()
    steps = images // 64
    optimiser = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    order = torch.cat([torch.randperm(len(x)) for _ in range(images // len(x) + 1)])
    for index in order[: steps * 64].split(64):
        batch = x[index]
        if flip and torch.rand(()) < 0.5:
            batch = batch.flip(-1)
        loss = nn.functional.cross_entropy(model(batch), y[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def accuracy(predict: Callable[[torch.Tensor], np.ndarray], test: Split) -> float:
    chunks = zip(test[2].split(CHUNK), test[3].split(CHUNK), strict=True)
    right = sum(int((predict(a).argmax(1) == b.numpy()).sum()) for a, b in chunks)
    return right / len(test[2])


def spiking(graph: snnkit.Graph) -> Callable[[torch.Tensor], np.ndarray]:
    program = snnkit.compile(graph)
    return lambda a: next(iter(program.run(a.numpy()).outputs.values()))


def in_torch(model: nn.Module) -> Callable[[torch.Tensor], np.ndarray]:
    def predict(a: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return model(a).numpy()

    model.eval()
    return predict


def compared(model: nn.Module, graph: snnkit.Graph, test: Split) -> dict[str, float]:
    """Accuracy in torch and of the spiking network; neurons whose integer is not torch's, and
    outputs whose bits differ, over all samples."""
    program, predict = snnkit.compile(graph), in_torch(model)
    names = [n.name for n in graph.of("spike")]
    found = dict.fromkeys(("trained", "spiking", "neurons", "differ", "active", "outputs"), 0)
    for a, label in zip(test[2].split(CHUNK), test[3].split(CHUNK), strict=True):
        counts, y = model.counts(a), predict(a)
        result = program.run(a.numpy(), record=names)
        (outputs,) = result.outputs.values()
        found["trained"] += int((y.argmax(1) == label.numpy()).sum())
        found["spiking"] += int((outputs.argmax(1) == label.numpy()).sum())
        found["outputs"] += int((outputs.view(np.uint32) != y.view(np.uint32)).sum())
        for name in names:
            found["neurons"] += counts[name].size
            found["active"] += int(np.count_nonzero(counts[name]))
            found["differ"] += int((counts[name] != result.counts[name]).sum())
    share = {k: found[k] / len(test[2]) for k in ("trained", "spiking")}
    return {**found, **share}


def rows(name: str, split: Split, images: tuple[int, int], part: int, output: Path | None) -> None:
    split = tuple(t[::part] for t in split)
    x, y = split[:2]
    flip = name == "CIFAR-10"
    model = network(x.shape[1])
    train(model, x, y, images[0] // part, 3e-3, flip)
    base = accuracy(in_torch(model), split)
    print(f"{name}: float {base:.4f}", flush=True)
    for levels, bits in itertools.product(LEVELS, BITS):
        start = time.thread_time()
        graph = snnkit.convert(model, x[:512].numpy(), levels=levels, weight_bits=bits)
        row = {"data": name, "levels": levels, "bits": bits, "float": base}
        row["post-training"] = accuracy(spiking(graph), split)
        options = {"levels": levels, "weight_bits": bits, "input_grid": InputGrid(1 / 255)}
        prepared = prepare(model, example=x[:512], **options)
        train(prepared, x, y, images[1] // part, 2e-3, flip)
        row.update(compared(prepared, snnkit.convert(prepared), split))
        row["seconds"] = time.thread_time() - start
        print(line(row), flush=True)
        if output:
            with open(output, "a") as file:
                file.write(json.dumps(row) + "\n")


def line(row: dict) -> str:
    share = row["active"] / row["neurons"]
    return (
        f"| {row['data']} | {row['levels']} | {row['bits']} | {row['post-training']:.4f} | "
        f"{row['trained']:.4f} | {row['spiking']:.4f} | {row['neurons']:,} | {row['differ']} | "
        f"{row['outputs']} | {share:.2f} | {row['seconds']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=None, help="rows as JSON lines")
    parser.add_argument("--part", type=int, default=1, help="every n-th image, a quick look")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| data | levels | bits | post-training | QAT (torch) | QAT (spiking) | neurons "
        "compared | differ | outputs differ | active | CPU s |\n|" + "---|" * 11
    )
    # images seen by the float model, images seen by each fine-tuning
    rows("MNIST", mnist(), (40_000, 10_000), args.part, args.output)
    rows("CIFAR-10", cifar(), (35_000, 7_000), args.part, args.output)


if __name__ == "__main__":
    main()

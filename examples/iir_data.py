"""Images and labels for the IIR-SNN examples: float32 on an 8-bit grid, split three ways.

`digits` comes with scikit-learn. `mnist`, `cifar` and `nmnist` are read from the folder in the
environment variable SNNKIT_DATA, by default ../shared/data beside the checkout:

    mnist/    train-images-*.gz, train-labels-*.gz, t10k-images-*.gz, t10k-labels-*.gz
    cifar10/  cifar10_lossless_convnetjs.npz with x [4000, 32, 32, 3] uint8 and y
    nmnist/   nmnist_train_00001_01000.tar.xz with 00001.bin ... and labels.txt
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnkit.datasets import load as load_dataset
from snnkit.datasets.event_folders import bin_events

DEFAULT = Path(__file__).parents[2] / "shared" / "data"
HOME = Path(os.environ.get("SNNKIT_DATA", DEFAULT))
Arrays = tuple[Any, Any]


@dataclass(frozen=True)
class Data:
    """(x [N, C, H, W] float32, y [N] int64) to train on, to choose epochs by, to test on."""

    train: Arrays
    held_out: Arrays
    test: Arrays


class Batches:
    """A loader: each iteration draws `count` samples (all, if 0) in a new order from `seed`.

    flip_and_crop : mirror half of the images, shift each by up to 4 pixels over zeros.
    """

    def __init__(
        self, data: Arrays, size: int, seed: int = 0, count: int = 0, flip_and_crop: bool = False
    ):
        self.x, self.y = (torch.from_numpy(a) for a in data)
        self.size, self.count, self.flip_and_crop = size, count or len(self.x), flip_and_crop
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator)[: self.count]
        for index in order.split(self.size):
            x = self.x[index]
            yield (self._augmented(x) if self.flip_and_crop else x), self.y[index]

    def _augmented(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
        moves = torch.randint(0, 9, (len(x), 2), generator=self.generator).tolist()
        flips = (torch.rand(len(x), generator=self.generator) < 0.5).tolist()
        out = torch.empty_like(x)
        for i, ((dy, dx), flip) in enumerate(zip(moves, flips, strict=True)):
            cut = padded[i, :, dy : dy + height, dx : dx + width]
            out[i] = cut.flip(-1) if flip else cut
        return out


def load(name: str) -> Data:
    """The data set of that name."""
    return {"digits": digits, "mnist": mnist, "cifar": cifar, "nmnist": nmnist}[name]()


def digits() -> Data:
    from digits import split

    x, y, test, labels = split()
    x, test = x / np.float32(16), test / np.float32(16)
    return Data((x[:1150], y[:1150]), (x[1150:], y[1150:]), (test, labels))


def mnist() -> Data:
    """60,000 and 10,000 images / 255; the last 5,000 of the former choose epochs."""
    found = load_dataset("mnist", str(HOME / "mnist"))
    x, test = (a.astype(np.float32) / np.float32(255) for a in (found.x_train, found.x_test))
    y = found.y_train
    return Data((x[:55_000], y[:55_000]), (x[55_000:], y[55_000:]), (test, found.y_test))


def cifar() -> Data:
    """4,000 images / 255: 3,200 to train on, 300 to choose epochs by, 500 to test on."""
    stored = np.load(HOME / "cifar10" / "cifar10_lossless_convnetjs.npz", allow_pickle=False)
    x = stored["x"].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return _cut(x, stored["y"].astype(np.int64), 3_200, 3_500)


def nmnist() -> Data:
    """1,000 recordings as frames of summed events [2, 34, 34] (polarity first), counts / 8."""
    frames = np.zeros((1000, 2, 34, 34), np.float32)
    labels = np.zeros(1000, np.int64)
    with tarfile.open(HOME / "nmnist" / "nmnist_train_00001_01000.tar.xz") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            stem = Path(member.name).stem
            if stream is None:
                continue
            if stem.isdecimal():
                events = bin_events(stream.read(), member.name)
                np.add.at(frames[int(stem) - 1], (events["p"], events["y"], events["x"]), 1)
            elif stem == "labels":
                for line in stream.read().decode().splitlines()[1:]:
                    sample, label = line.split()
                    labels[int(sample) - 1] = int(label)
    return _cut(np.minimum(frames, 255) / np.float32(8), labels, 700, 800)


def _cut(x: Any, y: Any, first: int, second: int) -> Data:
    order = np.random.default_rng(0).permutation(len(x))
    x, y = np.ascontiguousarray(x[order]), y[order]
    return Data(
        (x[:first], y[:first]), (x[first:second], y[first:second]), (x[second:], y[second:])
    )

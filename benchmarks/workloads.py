"""The four workloads: their networks, and the inputs to train, test and time them with.

Inputs are real where the data is (beside the checkout in ../shared/data, or where SNNKIT_DATA
says), else generated with similar density; `Samples.real` and `Streams.real` say which.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import generated, recordings
from snnkit.datasets.arrays import Array
from snnkit.datasets.images import mnist

HERE = Path(__file__).parent
SLICE = 10_000
"""Microseconds of events that make one sample."""
Part = list[tuple[int, Array]]


@dataclass(frozen=True)
class Workload:
    """A stack of 3x3 convolutions (channels, stride; pad 1) with ReLU, and a linear readout."""

    name: str
    shape: tuple[int, int, int]
    convs: tuple[tuple[int, int], ...]
    classes: int

    @property
    def network(self) -> Path:
        """The trained network: float32 [batch, *shape] to float32 logits [batch, classes]."""
        return HERE / "networks" / f"{self.name}.onnx"

    @property
    def events(self) -> bool:
        """Whether its samples are counts of camera events."""
        return self.name in ("nmnist", "dvs")


SMALL = ((16, 1), (32, 2), (32, 2))
WORKLOADS = {
    w.name: w
    for w in (
        Workload("mnist", (1, 28, 28), SMALL, 10),
        Workload("nmnist", (2, 34, 34), SMALL, 10),
        Workload("dvs", (2, 128, 128), ((64, 2),) * 5, 7),
        Workload(
            "cifar", (3, 32, 32), ((32, 1), (32, 2), (64, 1), (64, 2), (128, 1), (128, 2)), 10
        ),
    )
}
FILES = {
    "mnist": "mnist",
    "nmnist": "nmnist/nmnist_train_00001_01000.tar.xz",
    "dvs": "events/dvs128_biolab",
    "cifar": "cifar10/cifar10_lossless_convnetjs.npz",
}


@dataclass(frozen=True)
class Split:
    """Bytes [N, C, H, W], labels [N], and the number of the recording that each is part of."""

    x: Array
    y: Array
    part: Array


@dataclass(frozen=True)
class Samples:
    """x float32 [N, C, H, W] as the network reads it; labels [N], or None where there are none."""

    x: npt.NDArray[np.float32]
    y: Array | None
    real: bool


@dataclass(frozen=True)
class Streams:
    """Recordings of events (`recordings.EVENT`, t from 0 on) of a camera of size (H, W)."""

    events: list[Array]
    labels: list[int] | None
    size: tuple[int, int]
    real: bool


def data_home() -> Path:
    """The folder with mnist/, nmnist/, events/ and cifar10/; it may be absent."""
    return Path(os.environ.get("SNNKIT_DATA", HERE.parents[1] / "shared" / "data"))


def present(name: str) -> bool:
    """Whether the real data of a workload is there."""
    return (data_home() / FILES[name]).exists()


def source(name: str) -> Path:
    """Where the real data of a workload lies. Raises FileNotFoundError if it is absent."""
    if not present(name):
        raise FileNotFoundError(
            f"no data for {name} at {data_home() / FILES[name]}; set SNNKIT_DATA to the folder "
            f"that holds {FILES[name]}"
        )
    return data_home() / FILES[name]


def scaled(name: str, x: Array) -> npt.NDArray[np.float32]:
    """Bytes as the networks read them: images / 255, event counts as they are."""
    wide = x.astype(np.float32)
    return wide if WORKLOADS[name].events else wide / np.float32(255)


def samples(name: str, count: int = 256, part: str = "test", real: bool | None = None) -> Samples:
    """`count` inputs of a workload, the same ones every time.

    Generated ones stand in for absent data: digits of scikit-learn for mnist (with labels), digits
    on coloured grounds for cifar, events of moving shapes for nmnist and dvs.

    part : "test" or "train" (to calibrate on).
    real : None takes what there is; True raises FileNotFoundError without data.
    """
    if present(name) if real is None else real:
        split = splits(name, part)
        pick = np.random.default_rng(0).permutation(len(split.y))[:count]
        return Samples(scaled(name, split.x[pick]), split.y[pick], True)
    seed = {"test": 1, "train": 2}[part]
    workload = WORKLOADS[name]
    if workload.events:
        x = generated.slices(workload.shape[1:], count, seed, SLICE)
        return Samples(scaled(name, x), None, False)
    x, y = generated.images(workload.shape, count, seed)
    return Samples(scaled(name, x), y if name == "mnist" else None, False)


def streams(name: str, count: int = 7, real: bool | None = None) -> Streams:
    """Up to `count` recordings of nmnist (0.3 s each) or dvs (the last 20 % of each recording,
    3.4 to 4.1 s), none of them trained on; generated ones last 1 s. `real` as in `samples`."""
    size = WORKLOADS[name].shape[1:]
    if present(name) if real is None else real:
        parts = event_parts(name, "test")[:count]
        return Streams([e for _, e in parts], [y for y, _ in parts], size, True)
    made = [generated.moving_shape(size, 1.0, seed) for seed in range(count)]
    return Streams(made, None, size, False)


@cache
def splits(name: str, part: str) -> Split:
    """All real samples of a workload's part "train" or "test"."""
    if WORKLOADS[name].events:
        size = WORKLOADS[name].shape[1:]
        made = [(recordings.slices(e, size, SLICE), y) for y, e in event_parts(name, part)]
        counts = [len(x) for x, _ in made]
        labels = np.repeat([y for _, y in made], counts).astype(np.int64)
        return Split(
            np.concatenate([x for x, _ in made]), labels, np.repeat(range(len(made)), counts)
        )
    x, y = _mnist(part) if name == "mnist" else _cifar(part)
    return Split(x, y.astype(np.int64), np.arange(len(y)))


def event_parts(name: str, part: str) -> Part:
    """(label, events) of each recording of the part "train" or "test".

    nmnist: recordings 1 to 800, 801 to 1000. dvs: the first 75 % of each recording's time, the last
    20 % with t from 0 on.
    """
    path = source(name)
    if name == "nmnist":
        everything = list(recordings.read_nmnist_archive(path))
        return everything[:800] if part == "train" else everything[800:]
    low, high = (0, 75) if part == "train" else (80, 100)
    made = []
    for label, file in enumerate(sorted(path.glob("*.aedat"))):
        recording = recordings.read_aedat2(file)
        end = int(recording["t"][-1]) + 1
        start, stop = np.searchsorted(recording["t"], [end * low // 100, end * high // 100])
        stretch = recording[start:stop].copy()
        stretch["t"] -= end * low // 100
        made.append((label, stretch))
    return made


def _mnist(part: str) -> tuple[Array, Array]:
    data = mnist(str(source("mnist")))
    return (data.x_train, data.y_train) if part == "train" else (data.x_test, data.y_test)


def _cifar(part: str) -> tuple[Array, Array]:
    """3,500 images to train on and 500 to test, all from CIFAR-10's training set."""
    data = np.load(source("cifar"), allow_pickle=False)
    order = np.random.default_rng(0).permutation(len(data["y"]))
    order = order[:3500] if part == "train" else order[3500:]
    return data["x"].transpose(0, 3, 1, 2)[order], data["y"][order]

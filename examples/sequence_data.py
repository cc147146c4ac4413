"""Sequences for train_sequences.py: float32 [N, T, *shape] on an 8-bit grid, labels, layouts.

`digits` comes with scikit-learn, the others are read from the folder in the environment variable
SNNKIT_DATA, by default ../shared/data beside the checkout. Layouts are ours:

digits   scikit-learn's 8x8 digits, element t is row t: T 8; 1,400 to train on, 397 to test
rows     MNIST, element t is row t: T 28, 28 values each
smnist   MNIST as 784 pixels in order, in frames of 28: T 28. The front convolves over pixels and
         frames: a causal convolution over the pixel sequence with taps 28 i + j apart.
smnist16 the same in frames of 16, which cut across the rows: T 49. A causal convolution with
         kernel 48 and stride 16 over the pixels is a front layer that sees three frames.
smnist784  the 784 pixels one by one: T 784, one value each. Front: taps of 5 pixels, then of 5
         rows (28 apart), 4 pixels (4 apart) and 4 rows (112 apart); a hidden state sees 465 pixels
         through it and the others through the state before.
psmnist784  the 784 pixels one by one in psmnist's order: T 784. Front: windows of 28 elements, then
         14 of them, 28 apart: it sees the last 392 elements, the first half is in the state only.
psmnist  the 784 pixels in a fixed random order (numpy's default_rng(0).permutation), in frames
         of 28: T 28. A convolution with kernel 28 and stride 28 is a front layer of one frame.
fsdd     log-mel of spoken digits, T 64, 32 bands; takes 0..4 of each speaker are the test
speech   log-mel of Speech Commands, T 49, 40 bands, 12 classes; random 3,200 / 800, seed 0
kws      MLPerf Tiny's keyword spotting: its 500 test inputs, T 49, 10 MFCC, 12 classes. Training
         clips: Speech Commands' log-mel clips that are not among the 500, mapped to MFCC
         (keyword_features). Both are of the official test set, so speakers may be in both.
ecg      QTDB, 4 spike channels of -1, 0, +1, a label per step; training on crops of 200 steps;
         steps without a class are masked (label -100)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snnkit.datasets import load

DEFAULT = Path(__file__).parents[2] / "shared" / "data"
HOME = Path(os.environ.get("SNNKIT_DATA", DEFAULT))
UNLABELLED = -100


@dataclass(frozen=True)
class Sequences:
    """Train and test arrays; scale and lo of the input's 8-bit grid; the augmentation's name."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    scale: float
    lo: int
    augment: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def plain(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, y


def _draw(g: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=g))


def moved_images(arrange: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Images [N, 784] of a batch moved by up to two pixels together, then arranged."""

    def augment(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        by = (_draw(g, -2, 2), _draw(g, -2, 2))
        return arrange(x.reshape(-1, 28, 28).roll(by, (1, 2)).flatten(1)), y

    return augment


def moved_sounds(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips shifted in time and pitch and made louder, with a band and a stretch silenced."""
    x = x.roll((_draw(g, -5, 5), _draw(g, -1, 1)), (1, 2)).clone()
    x = (x + float(torch.randn((), generator=g)) * 0.1) * (x > 0)
    at, band = _draw(g, 0, x.shape[1] - 6), _draw(g, 0, x.shape[2] - 4)
    x[:, at : at + _draw(g, 0, 6)] = 0
    x[:, :, band : band + _draw(g, 0, 4)] = 0
    return x.clamp(0, 1), y


def crops(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    at = _draw(g, 0, x.shape[1] - 200)
    return x[:, at : at + 200], y[:, at : at + 200]


def _mnist(arrange: Callable[[Tensor], Tensor]) -> Sequences:
    data = load("mnist", str(HOME / "mnist"))
    x, test = (
        torch.from_numpy(a.reshape(-1, 784).astype(np.float32) / np.float32(255))
        for a in (data.x_train, data.x_test)
    )
    y, labels = torch.from_numpy(data.y_train), torch.from_numpy(data.y_test)
    return Sequences((x, y), (arrange(test), labels), 10, 1 / 255, 0, moved_images(arrange))


def digits() -> Sequences:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.from_numpy(images[order].reshape(-1, 8, 8).astype(np.float32) / np.float32(16))
    y = torch.from_numpy(labels[order].astype(np.int64))
    return Sequences((x[:1400], y[:1400]), (x[1400:], y[1400:]), 10, 1 / 16, 0, plain)


def rows() -> Sequences:
    return _mnist(lambda x: x.reshape(-1, 28, 28))


def smnist() -> Sequences:
    return rows()


def smnist16() -> Sequences:
    return _mnist(lambda x: x.reshape(-1, 49, 16))


def psmnist() -> Sequences:
    order = torch.from_numpy(np.random.default_rng(0).permutation(784))
    return _mnist(lambda x: x[:, order].reshape(-1, 28, 28))


def smnist784() -> Sequences:
    return _mnist(lambda x: x.reshape(-1, 784, 1))


def psmnist784() -> Sequences:
    order = torch.from_numpy(np.random.default_rng(0).permutation(784))
    data = _mnist(lambda x: x[:, order].unsqueeze(2))
    return replace(data, augment=lambda x, y, g: (x[:, order].unsqueeze(2), y))


def _split(x: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int) -> Sequences:
    sounds = torch.from_numpy(x.astype(np.float32) / np.float32(255))
    labels = torch.from_numpy(y.astype(np.int64))
    parts = [(sounds[chosen], labels[chosen]) for chosen in (~test, test)]
    return Sequences(parts[0], parts[1], classes, 1 / 255, 0, moved_sounds)


def fsdd() -> Sequences:
    with np.load(HOME / "fsdd" / "fsdd_logmel_u8.npz", allow_pickle=False) as f:
        return _split(f["x"], f["y"], f["is_test"].astype(bool), 10)


def speech() -> Sequences:
    with np.load(HOME / "speech_commands" / "sc12_logmel_u8_4000.npz", allow_pickle=False) as f:
        test = np.zeros(len(f["x"]), bool)
        test[np.random.default_rng(0).permutation(len(test))[3200:]] = True
        return _split(f["x"], f["y"], test, 12)


def kws() -> Sequences:
    import keyword_features as features

    mfcc, y, logmel, labels = features.read(HOME)
    made, alike = features.matched(mfcc, y, logmel, labels)
    parts = ((made[alike < features.KNOWN], labels[alike < features.KNOWN]), (mfcc, y))
    found = [
        (torch.from_numpy(np.clip(np.rint(x / features.SCALE) + features.ZERO, -128, 127)), z)
        for x, z in parts
    ]
    train, test = ((x.float() / 64, torch.from_numpy(z)) for x, z in found)
    return Sequences(train, test, 12, 1 / 64, -128, moved_keywords)


def moved_keywords(x: Tensor, y: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips shifted in time, each made louder or softer (the first coefficient), others noisy."""
    x = x.roll(_draw(g, -5, 5), 1).clone()
    x[:, :, 0] += torch.randn(len(x), 1, generator=g) * 0.15
    x[:, :, 1:] += torch.randn(x[:, :, 1:].shape, generator=g) * 0.015
    return x.clamp(-2, 127 / 64), y


def ecg() -> Sequences:
    from scipy.io import loadmat

    found = []
    for part in ("train", "test"):
        f = loadmat(HOME / "ecg_qtdb" / f"QTDB_{part}.mat")
        y = np.where(f["y"].any(-1), f["y"].argmax(-1), UNLABELLED).astype(np.int64)
        found.append((torch.from_numpy(f["x"].astype(np.float32)), torch.from_numpy(y)))
    return Sequences(found[0], found[1], 6, 1.0, -128, crops)


SOURCES: dict[str, Callable[[], Sequences]] = {
    f.__name__: f
    for f in (
        digits,
        rows,
        smnist,
        smnist16,
        smnist784,
        psmnist,
        psmnist784,
        fsdd,
        speech,
        kws,
        ecg,
    )
}


def batches(
    data: Sequences, size: int, epochs: float, g: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches of `epochs` rounds, augmented."""
    x, y = data.train
    count = steps(data, size, epochs)
    order = torch.cat([torch.randperm(len(x), generator=g) for _ in range(int(epochs) + 1)])
    for index in order[: count * size].split(size):
        yield data.augment(x[index], y[index], g)


def steps(data: Sequences, size: int, epochs: float) -> int:
    return max(1, int(epochs * len(data.train[0])) // size)

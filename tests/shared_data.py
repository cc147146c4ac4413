"""Real data and models made by others, where they are: beside the checkout or in SNNKIT_DATA."""

from __future__ import annotations

import gzip
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

HOME = Path(os.environ.get("SNNKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
needed = pytest.mark.skipif(
    not (HOME / "onnx").is_dir(),
    reason=f"no data at {HOME}; set SNNKIT_DATA to the folder that holds onnx/ and mnist/",
)


@cache
def mnist(part: str) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, 28, 28] uint8, labels) of part 'train' or 't10k'."""
    found = {p.name: p for p in (HOME / "mnist").iterdir() if p.name.startswith(part)}
    images, labels = (
        np.frombuffer(gzip.decompress(_named(found, word).read_bytes()), np.uint8)
        for word in ("images", "labels")
    )
    return images[16:].reshape(-1, 28, 28), labels[8:].astype(np.int64)


def _named(found: dict[str, Path], word: str) -> Path:
    return next(path for name, path in found.items() if word in name)


@cache
def cifar() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(4000 training images [N, 32, 32, 3] uint8, 100 test images, their labels)."""
    train = np.load(HOME / "cifar10" / "cifar10_lossless_convnetjs.npz", allow_pickle=False)["x"]
    rows = np.loadtxt(HOME / "onnx" / "eran" / "cifar10_test.csv", delimiter=",", dtype=np.int64)
    return train, rows[:, 1:].reshape(-1, 32, 32, 3).astype(np.uint8), rows[:, 0]


def scaled(images: np.ndarray, scaling: str, shape: tuple[int, ...]) -> np.ndarray:
    """Images as a model wants them: raw, unit, mnist (normalised), cifar (normalised, NCHW)."""
    x = images.astype(np.float32)
    if scaling == "raw":
        return x.reshape(-1, *shape)
    x = x / np.float32(255)
    if scaling == "mnist":
        x = (x - np.float32(0.1307)) / np.float32(0.3081)
    elif scaling == "cifar":
        x = (x - np.array([0.485, 0.456, 0.406], np.float32)) / np.float32(0.225)
        x = x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x).reshape(-1, *shape)

"""Inputs made here, for when the real data is absent: moving shapes as an event camera sees them,
scikit-learn's digits as images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.recordings import events
from benchmarks.recordings import slices as sliced
from snnkit.datasets.arrays import Array

Floats = npt.NDArray[np.float64]
CONTRAST = 0.25
"""Change of intensity (0 to 1) that makes an event."""


def moving_shape(size: tuple[int, int], seconds: float, seed: int, rate: float = 13_400) -> Array:
    """Events of a shape on a Lissajous path, [N] of `recordings.EVENT`.

    A pixel holds the intensity at its last event and emits one event per `CONTRAST` of difference
    (the usual model of a DVS pixel), looked at every millisecond. Then events are dropped at random
    down to `rate`; both real sets have about 13,400 events per second.

    size : (H, W) in pixels.
    rate : mean events per second at the most.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    yy, xx = np.mgrid[:height, :width].astype(float)
    radius = rng.uniform(0.15, 0.25) * min(size)
    roundness, ring = rng.choice([1.0, 2.0, 6.0]), rng.random() < 0.5
    turns, phase = rng.uniform(2.0, 5.0, 2), rng.uniform(0, 2 * np.pi, 2)
    held: Floats | None = None
    columns: list[tuple[Array, ...]] = []
    for step in range(round(seconds * 1000) + 1):
        swing = np.sin(2 * np.pi * turns * step / 1000 + phase) / 5 + 0.5
        dy, dx = np.abs(yy - swing[0] * height), np.abs(xx - swing[1] * width)
        distance = (dy**roundness + dx**roundness) ** (1 / roundness) - radius
        inside = np.abs(distance) - radius / 4 if ring else distance
        intensity = np.clip(0.5 - inside, 0, 1)
        if held is None:
            held = intensity
            continue
        change = np.trunc((intensity - held) / CONTRAST).astype(np.int64)
        held = held + change * CONTRAST
        y, x = np.nonzero(change)
        times = np.abs(change[y, x])
        y, x, p = (np.repeat(a, times) for a in (y, x, change[y, x] > 0))
        columns.append((rng.integers((step - 1) * 1000, step * 1000, len(x)), x, y, p))
    t, x, y, p = (np.concatenate(c) for c in zip(*columns, strict=True))
    keep = rng.random(len(t)) < rate * seconds / max(1, len(t))
    return events(t[keep], x[keep], y[keep], p[keep])


def slices(size: tuple[int, int], count: int, seed: int, width: int = 10_000) -> Array:
    """`count` slices of `width` microseconds of moving shapes, 10 per shape: [N, 2, H, W] uint8."""
    made = []
    for number in range(-(-count // 10)):
        stream = moving_shape(size, 10 * width / 1e6, 1000 * seed + number)
        found = sliced(stream, size, width)
        made.append(np.pad(found, ((0, 10 - len(found)), (0, 0), (0, 0), (0, 0))))
    return np.concatenate(made)[:count]


def images(shape: tuple[int, int, int], count: int, seed: int) -> tuple[Array, Array]:
    """Digits as bytes [N, C, H, W] and their labels: white on black (C = 1), or in a colour on a
    ground that changes linearly from corner to corner (C = 3)."""
    from sklearn.datasets import load_digits

    channels, height, width = shape
    rng = np.random.default_rng(seed)
    data = load_digits()
    pick = rng.integers(0, len(data.target), count)
    side = min(height, width) * 5 // 7
    ink = np.clip(_enlarged(data.images[pick] / 16, side) * 2.5 - 1.1, 0, 1)  # strokes as in MNIST
    top, left = (height - side) // 2, (width - side) // 2
    mask = np.zeros((count, 1, height, width))
    mask[:, 0, top : top + side, left : left + side] = ink
    if channels == 1:
        return np.rint(mask * 255).astype(np.uint8), data.target[pick]
    corner = rng.random((3, count, channels, 1, 1))
    down, right = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    ground = corner[0] + (corner[1] - corner[0]) * (down + right) / 2
    mixed = ground * (1 - mask) + corner[2] * mask
    return np.rint(mixed * 255).astype(np.uint8), data.target[pick]


def _enlarged(small: Floats, side: int) -> Floats:
    """Squares [N, h, h] by linear interpolation as [N, side, side]."""
    n = small.shape[1]
    at = np.clip((np.arange(side) + 0.5) * n / side - 0.5, 0, n - 1)
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))
    return np.einsum("ah,nhw,bw->nab", weight, small, weight)

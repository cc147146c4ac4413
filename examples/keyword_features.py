"""MFCC features for MLPerf Tiny's keyword spotting from log-mel features of Speech Commands.

MLPerf's 500 test inputs (49 x 10 MFCC) and our 4,000 log-mel clips (49 x 40) come from the same
official test set of Speech Commands, with the same windows, but without common names. `matched`
finds the pairs: an affine map of the 40 bands to the 10 coefficients, fitted on the pairs that are
closest so far, and the closest clips under that map, in turn. The map then makes MFCC of the clips
that are not among the 500.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
SCALE, ZERO = 0.5847029, 83
"""int8 grid of MLPerf's inputs."""
ORDER = "Down", "Go", "Left", "No", "Off", "On", "Right", "Stop", "Up", "Yes", "Silence", "Unknown"
ROUNDS = 5
KNOWN = 0.75
"""Correlation from which two clips count as the same one."""


def _shape(x: Array) -> Array:
    """Each coefficient [N, T, C] over time without its mean, of length one."""
    x = x - x.mean(1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def likeness(a: Array, b: Array) -> Array:
    """Correlation over time [N, M] of clips [N, T, C] and [M, T, C], the mean of coefficients."""
    return np.einsum("ntc,mtc->nm", _shape(a), _shape(b), optimize=True) / a.shape[2]


def _affine(x: Array) -> Array:
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], -1)


def _fit(x: Array, y: Array) -> Array:
    """Least squares, clips that fit badly weighing less."""
    weight = np.ones(len(x))
    for _ in range(4):
        side = weight[:, None, None]
        rows, wanted = (side * _affine(x)).reshape(-1, x.shape[2] + 1), (side * y)
        found = np.linalg.lstsq(rows, wanted.reshape(-1, y.shape[2]), rcond=None)[0]
        error = np.abs((y - _affine(x) @ found) / y.std((0, 1))).mean((1, 2))
        weight = 1 / (error / np.median(error) + 0.3)
    return np.asarray(found)


def matched(mfcc: Array, y: Array, logmel: Array, labels: Array) -> tuple[Array, Array]:
    """(MFCC of all log-mel clips, their likeness to the closest of `mfcc`)."""
    words = y < 10
    bands = np.arange(40)[:, None] + 0.5
    made = logmel @ np.cos(np.pi / 40 * bands * np.arange(10)[None])
    alike = likeness(mfcc[:, :, :1], made[:, :, :1])
    for i in range(ROUNDS):
        alike = np.where(y[:, None] == labels[None], alike, -1.0)
        best = np.sort(alike, 1)
        margin = best[:, -1] - best[:, -2] if i else best[:, -1]
        sure = words & (margin > np.quantile(margin[words], 0.6))
        pair = alike.argmax(1)[sure]
        made = _affine(logmel) @ _fit(logmel[pair], mfcc[sure])
        alike = likeness(mfcc, made)
    # loudness: MLPerf's clips were scaled to their peak, which moves the first coefficient
    feature = np.stack([logmel.mean(2).max(1), logmel.max((1, 2)), np.ones(len(logmel))], 1)
    offset = (mfcc[sure] - made[pair])[:, :, 0].mean(1)
    made[:, :, 0] += (feature @ np.linalg.lstsq(feature[pair], offset, rcond=None)[0])[:, None]
    return made, alike.max(0)


def read(home: Path) -> tuple[Array, Array, Array, Array]:
    """(MFCC and labels of MLPerf's 500, log-mel and labels in MLPerf's order of our clips)."""
    with np.load(home / "mlperf_tiny" / "kws01_mfcc_i8_0_500.npz", allow_pickle=False) as f:
        mfcc, y = (f["x"].astype(np.float64) - ZERO) * SCALE, f["y"].astype(np.int64)
    with np.load(home / "speech_commands" / "sc12_logmel_u8_4000.npz", allow_pickle=False) as f:
        names = [ORDER.index(str(c).strip("_").capitalize()) for c in f["classes"]]
        return mfcc, y, f["x"].astype(np.float64), np.array(names)[f["y"]]

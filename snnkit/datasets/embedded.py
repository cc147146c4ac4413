"""Data that another package ships: nothing to download."""

from __future__ import annotations

import numpy as np

from snnkit.datasets.arrays import Dataset, drawn


def digits(*, test: float = 0.25, seed: int = 0) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, (N, 1, 8, 8) uint8 in 0..16, ten classes.

    A share `test`, drawn from `seed`, is held out. Raises ModuleNotFoundError without scikit-learn.
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    data = load_digits()
    x = data.images[:, None].astype(np.uint8)
    y = data.target.astype(np.int64)
    held = drawn(len(x), test, seed)
    return Dataset("digits", x[~held], y[~held], x[held], y[held], 10)

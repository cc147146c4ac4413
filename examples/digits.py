"""scikit-learn's 8x8 digits as the examples use them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def split() -> tuple[Images, Labels, Images, Labels]:
    """(x, y) to train and calibrate on, (x, y) held out; x [N, 1, 8, 8] float32 in 0..16."""
    data = load_digits()
    x = data.images[:, None].astype(np.float32)
    y = data.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    cut = len(x) * 3 // 4
    return x[order[:cut]], y[order[:cut]], x[order[cut:]], y[order[cut:]]

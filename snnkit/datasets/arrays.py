"""What a data set is, and data sets kept as arrays in one .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.errors import BadDataset, UsageError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Dataset:
    """Samples and their classes, to train on and to test on.

    x_train, x_test : (N, ...) numbers as they lie in the source, channels before rows and columns.
    y_train, y_test : (N,) int64, each in 0..classes-1. classes : how many there are.
    Raises BadDataset where arrays do not fit together.
    """

    name: str
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    classes: int

    def __post_init__(self) -> None:
        for part, x, y in (
            ("training", self.x_train, self.y_train),
            ("test", self.x_test, self.y_test),
        ):
            where = f"{self.name}: {part} part"
            if not len(x) or len(x) != len(y) or y.ndim != 1:
                raise BadDataset(
                    f"{where}: {len(x)} samples and labels of shape {y.shape}; expected one label "
                    "for each of at least one sample"
                )
            if x.dtype.kind not in "biuf":
                raise BadDataset(f"{where}: samples are {x.dtype}; expected numbers")
            if x.shape[1:] != self.x_train.shape[1:]:
                raise BadDataset(
                    f"{where}: samples of shape {x.shape[1:]}; expected {self.x_train.shape[1:]} "
                    "as in the training part"
                )
            if y.min() < 0 or y.max() >= self.classes:
                raise BadDataset(
                    f"{where}: labels {y.min()}..{y.max()}; expected 0..{self.classes - 1}"
                )


def npz(
    folder: str,
    *,
    file: str,
    x: str = "x",
    y: str = "y",
    mask: str = "",
    test: float = 0.2,
    seed: int = 0,
    channels: str = "first",
) -> Dataset:
    """Arrays `x` and `y` of one .npz file, for example audio features.

    The test part is, in this order: the arrays `x_test` and `y_test` if the file has them; the
    samples where the boolean array `mask` is true; a share `test` drawn from `seed`.

    channels : "first" (N, C, ...) as it is; "last" (N, ..., C) is moved; "none" (N, ...) gets an
    axis of one channel.
    """
    path = Path(folder) / file
    arrays = read_npz(path)
    missing = [name for name in (x, y, *([mask] if mask else [])) if name not in arrays]
    if missing:
        raise BadDataset(
            f"{path}: no array {', '.join(map(repr, missing))}; it has {', '.join(arrays)}"
        )
    samples, labels = arrays[x], _labels(arrays[y], f"{path}: array '{y}'")
    if len(samples) != len(labels):
        raise BadDataset(f"{path}: {len(samples)} samples in '{x}', {len(labels)} labels in '{y}'")
    if f"{x}_test" in arrays and f"{y}_test" in arrays:
        held_x = arrays[f"{x}_test"]
        held_y = _labels(arrays[f"{y}_test"], f"{path}: array '{y}_test'")
    else:
        held = _held_out(arrays[mask], path) if mask else drawn(len(samples), test, seed)
        if held.shape != labels.shape:
            raise BadDataset(f"{path}: array '{mask}' has shape {held.shape}, not {labels.shape}")
        samples, held_x = samples[~held], samples[held]
        labels, held_y = labels[~held], labels[held]
    classes = int(max(labels.max(initial=0), held_y.max(initial=0))) + 1
    placed = [_placed(a, channels) for a in (samples, held_x)]
    return Dataset(str(path), placed[0], labels, placed[1], held_y, classes)


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of numbers and text in an .npz file; nothing is unpickled. Raises BadDataset."""
    try:
        with np.load(path, allow_pickle=False) as found:
            if not hasattr(found, "files"):
                raise BadDataset(f"{path}: a single array; expected an .npz file of named arrays")
            return {name: found[name] for name in found.files}
    except BadDataset:
        raise
    except OSError as error:
        raise BadDataset(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise many kinds on a damaged file
        raise BadDataset(f"{path}: damaged, or not an .npz file of numbers: {error}") from error


def drawn(count: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """A mask that is true for round(count * share) samples, drawn from `seed`."""
    if not 0 < share < 1:
        raise UsageError(f"test {share}; expected a share between 0 and 1")
    held = np.zeros(count, np.bool_)
    held[np.random.default_rng(seed).permutation(count)[count - round(count * share) :]] = True
    return held


def _held_out(mask: Array, path: Path) -> npt.NDArray[np.bool_]:
    if mask.dtype != np.bool_:
        raise BadDataset(f"{path}: the mask is {mask.dtype}; expected booleans, true: test sample")
    return mask


def _labels(y: Array, where: str) -> npt.NDArray[np.int64]:
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise BadDataset(
            f"{where}: {y.dtype} of shape {y.shape}; expected one integer class per sample"
        )
    return y.astype(np.int64)


def _placed(x: Array, channels: str) -> Array:
    if channels == "first":
        return x
    if channels == "last":
        return np.ascontiguousarray(np.moveaxis(x, -1, 1))
    if channels == "none":
        return x[:, None]
    raise UsageError(f"channels '{channels}'; expected first, last or none")

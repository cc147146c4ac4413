"""Image data sets in their published binary files: MNIST's IDX and the binary version of CIFAR."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from snnkit.datasets.arrays import Array, Dataset
from snnkit.errors import BadDataset

MAX_BYTES = 2**31 - 1
"""Of one file, unpacked: sizes in a header are checked before anything is allocated."""


def mnist(folder: str) -> Dataset:
    """MNIST and its drop-in replacements: (N, 1, H, W) uint8 and ten classes, from IDX files.

    Files: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., as they are or as .gz
    (LeCun, Cortes, Burges: The MNIST database of handwritten digits).
    """
    arrays = {
        f"{part}-{kind}": read_idx(_idx_path(Path(folder), part, kind), axes)
        for part in ("train", "t10k")
        for kind, axes in (("images", 3), ("labels", 1))
    }
    x = [arrays[f"{part}-images"][:, None] for part in ("train", "t10k")]
    y = [arrays[f"{part}-labels"].astype(np.int64) for part in ("train", "t10k")]
    return Dataset(f"mnist in {folder}", x[0], y[0], x[1], y[1], 10)


def _idx_path(folder: Path, part: str, kind: str) -> Path:
    axes = {"images": 3, "labels": 1}[kind]
    names = [f"{part}-{kind}{dot}idx{axes}-ubyte{end}" for dot in ("-", ".") for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BadDataset(f"{folder}: no file {names[0]} or {names[1]}; put the four IDX files there")


def read_idx(path: Path, axes: int) -> Array:
    """The uint8 array in an IDX file, gzipped or not: 0, 0, 8, number of axes, sizes, values.

    Sizes are big-endian 32-bit numbers. Raises BadDataset.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not packed:
                return _read_idx(plain, path, axes)
            with gzip.open(plain) as unpacked:
                return _read_idx(unpacked, path, axes)  # type: ignore[arg-type]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadDataset(f"{path}: damaged or truncated gzip file: {error}") from error
    except OSError as error:
        raise BadDataset(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_idx(file: BinaryIO, path: Path, axes: int) -> Array:
    magic, wanted = file.read(4), bytes((0, 0, 8, axes))
    if magic != wanted:
        raise BadDataset(
            f"{path}: starts with {magic.hex(' ') or 'nothing'}; expected {wanted.hex(' ')}, an "
            f"IDX file of unsigned bytes with {axes} axes"
        )
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise BadDataset(f"{path}: ends within its header")
    shape = struct.unpack(f">{axes}I", header)
    size = 1
    for n in shape:
        size *= n  # Python integers: no overflow
    if size > MAX_BYTES:
        raise BadDataset(f"{path}: its header asks for {size} bytes; the limit is {MAX_BYTES}")
    values = file.read(size + 1)
    if len(values) != size:
        more = "more" if len(values) > size else len(values)
        raise BadDataset(
            f"{path}: {more} bytes of values; expected {size} for shape {shape}, as its header says"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def cifar10(folder: str) -> Dataset:
    """CIFAR-10, (N, 3, 32, 32) uint8, from data_batch_1.bin .. data_batch_5.bin, test_batch.bin.

    Only the binary version is read: the Python version is pickles, which can run code (Krizhevsky:
    Learning multiple layers of features from tiny images, 2009).
    """
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar("cifar10", folder, train, ["test_batch.bin"], labels=1, classes=10)


def cifar100(folder: str) -> Dataset:
    """CIFAR-100 with its 100 fine classes, (N, 3, 32, 32) uint8, from train.bin and test.bin."""
    return _cifar("cifar100", folder, ["train.bin"], ["test.bin"], labels=2, classes=100)


def _cifar(
    name: str, folder: str, train: Sequence[str], test: Sequence[str], *, labels: int, classes: int
) -> Dataset:
    parts = []
    for files in (train, test):
        read = [read_cifar(Path(folder) / file, labels) for file in files]
        parts += [np.concatenate([r[i] for r in read]) for i in (0, 1)]
    x_train, y_train, x_test, y_test = parts
    return Dataset(f"{name} in {folder}", x_train, y_train, x_test, y_test, classes)


def read_cifar(path: Path, labels: int) -> tuple[Array, Array]:
    """(images, last of the `labels` label bytes) of a file of records: labels, 3 x 32 x 32."""
    record = labels + 3072
    if not path.is_file():
        pickled = path.with_suffix("")
        hint = (
            f"; '{pickled.name}' beside it is the Python version, which is never opened because "
            "pickles can run code"
            if pickled.is_file()
            else ""
        )
        raise BadDataset(f"{path}: no such file; unpack the binary version of CIFAR there{hint}")
    size = path.stat().st_size
    if not size or size % record or size > MAX_BYTES:
        raise BadDataset(
            f"{path}: {size} bytes; expected a multiple of {record} (truncated, or not the binary "
            "version of CIFAR)"
        )
    rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, record)
    return rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1].astype(np.int64)

"""Plain readers of the files that the workloads are made of, and events as input counts.

Events are structured arrays of `EVENT`, sorted by t: t in microseconds, x and y in pixels, polarity
p 0 or 1. The layouts are those that the data sets' own documentation states.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1")])
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def events(t: Array, x: Array, y: Array, p: Array) -> Array:
    """Columns as one array of `EVENT`, sorted by t (equal times keep their order)."""
    made = np.empty(len(t), EVENT)
    for name, column in zip("txyp", (t, x, y, p), strict=True):
        made[name] = column
    return made[np.argsort(made["t"], kind="stable")]


def read_idx(path: Path) -> Array:
    """The array in an IDX file, gzipped or not (MNIST): 0, 0, type, number of axes, sizes, data."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise ValueError(f"{path}: no IDX file; expected 0, 0, a type of {sorted(IDX_TYPES)}")
    start = 4 + 4 * data[3]
    shape = [int(n) for n in np.frombuffer(data, ">u4", data[3], 4)]
    kind = np.dtype(IDX_TYPES[data[2]])
    if len(data) - start != kind.itemsize * int(np.prod(shape)):
        raise ValueError(f"{path}: {len(data) - start} bytes of data, its header says {shape}")
    return np.frombuffer(data, kind, -1, start).reshape(shape)


def read_nmnist(data: bytes) -> Array:
    """Events of an N-MNIST recording. 5 bytes each: x, y, polarity (bit 7) and 23 bits of t."""
    if len(data) % 5:
        raise ValueError(f"N-MNIST recording of {len(data)} bytes; expected a multiple of 5")
    raw = np.frombuffer(data, np.uint8).reshape(-1, 5).astype(np.int64)
    t = (raw[:, 2] & 127) << 16 | raw[:, 3] << 8 | raw[:, 4]
    return events(t, raw[:, 0], raw[:, 1], raw[:, 2] >> 7)


def read_nmnist_archive(path: Path) -> Iterator[tuple[int, Array]]:
    """(label, events) of each recording in a tar of NNNNN.bin files and labels.txt, by number."""
    with tarfile.open(path) as archive:
        members = {Path(m.name).name: m for m in archive if m.isfile()}
        contents = {}
        for name, member in members.items():
            file = archive.extractfile(member)
            assert file is not None
            contents[name] = file.read()
    rows = contents["labels.txt"].decode("ascii").split("\n")
    labels = [tuple(map(int, row.split())) for row in rows if row.strip() and row[0] != "#"]
    for number, label in sorted(labels):
        yield label, read_nmnist(contents[f"{number:05d}.bin"])


def read_aedat2(data: bytes) -> Array:
    """Events of a DVS128 in AEDAT 2.0: lines that start with #, then big-endian address and t.

    Time starts at the first event. The camera counts in unsigned 32 bits, and may pass zero.
    """
    start = 0
    while data[start : start + 1] == b"#":
        start = data.index(b"\n", start) + 1
    if not data.startswith(b"#!AER-DAT2.0") or (len(data) - start) % 8:
        raise ValueError("no AEDAT 2.0 file, or one that ends within an event")
    raw = np.frombuffer(data, ">u4", -1, start).reshape(-1, 2)
    address, stamp = raw[:, 0].astype(np.int64), raw[:, 1].astype(np.uint32)
    t = (stamp - stamp[:1]).astype(np.int64)
    return events(t, 127 - (address >> 1 & 127), address >> 8 & 127, 1 - (address & 1))


def slices(recording: Array, size: tuple[int, int], width: int = 10_000) -> Array:
    """Event counts of consecutive slices of `width` microseconds from t = 0: [N, 2, H, W] uint8.

    Channel 0 counts polarity 0. A count stops at 255; the last slice holds what is left.

    size : (H, W).
    """
    height, across = size
    count = int(recording["t"][-1]) // width + 1 if len(recording) else 0
    made = np.zeros((count, 2 * height * across), np.uint8)
    place = (recording["p"].astype(np.int64) * height + recording["y"]) * across + recording["x"]
    edges = np.searchsorted(recording["t"], np.arange(count + 1) * width)
    for row, start, stop in zip(made, edges[:-1], edges[1:], strict=True):
        row[:] = np.minimum(np.bincount(place[start:stop], minlength=row.size), 255)
    return made.reshape(count, 2, height, across)

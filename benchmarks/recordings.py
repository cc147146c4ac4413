"""Recordings of event cameras: readers of what `snnkit.datasets` does not read, and slices of time.

Events are structured arrays of `EVENT`, sorted by t: t in microseconds, x and y in pixels, polarity
p 0 or 1.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnkit.datasets.arrays import Array
from snnkit.datasets.event_folders import EVENT, bin_events, count
from snnkit.errors import BadDataset


def events(t: Array, x: Array, y: Array, p: Array) -> Array:
    """Columns as one array of `EVENT`, sorted by t (equal times keep their order)."""
    made = np.empty(len(t), EVENT)
    for name, column in zip("txyp", (t, x, y, p), strict=True):
        made[name] = column
    return made[np.argsort(made["t"], kind="stable")]


def read_nmnist_archive(path: Path) -> Iterator[tuple[int, Array]]:
    """(label, events) of each recording in a tar of NNNNN.bin files and labels.txt, by number.

    labels.txt has a line of number and label for each recording, after lines that start with #.
    """
    with tarfile.open(path) as archive:
        contents = {}
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                contents[Path(member.name).name] = file.read()
    rows = contents["labels.txt"].decode("ascii").split("\n")
    labels = [tuple(map(int, row.split())) for row in rows if row.strip() and row[0] != "#"]
    for number, label in sorted(labels):
        name = f"{number:05d}.bin"
        yield label, bin_events(contents[name], f"{path}, {name}")


def read_aedat2(path: Path) -> Array:
    """Events of a DVS128 in AEDAT 2.0: lines that start with #, then per event address and t.

    Both are big-endian 32 bits: x = 127 - bits 1..7, y = bits 8..14, p = not bit 0 of the address.
    Time starts at the first event. The camera's clock is unsigned and may pass zero.
    """
    data = path.read_bytes()
    start = 0
    while data[start : start + 1] == b"#":
        end = data.find(b"\n", start)
        start = end + 1 if end >= 0 else len(data)
    if not data.startswith(b"#!AER-DAT2.0") or (len(data) - start) % 8:
        raise BadDataset(
            f"{path}: starts with {data[:12]!r}, {(len(data) - start) % 8} bytes left over after "
            "the last event; expected #!AER-DAT2.0 and none"
        )
    raw = np.frombuffer(data, ">u4", -1, start).reshape(-1, 2)
    address, stamp = raw[:, 0].astype(np.int64), raw[:, 1].astype(np.uint32)
    t = (stamp - stamp[:1]).astype(np.int64)
    return events(t, 127 - (address >> 1 & 127), address >> 8 & 127, 1 - (address & 1))


def slices(recording: Array, size: tuple[int, int], width: int = 10_000) -> Array:
    """Event counts of consecutive slices of `width` microseconds from t = 0: [N, 2, H, W] uint8.

    Channel 0 counts polarity 0. A count stops at 255; the last slice holds what is left.

    size : (H, W).
    """
    frames = int(recording["t"][-1]) // width + 1 if len(recording) else 0
    counts = count(recording, size[::-1], frames, width, Path("events"))
    return np.minimum(counts, 255).astype(np.uint8)

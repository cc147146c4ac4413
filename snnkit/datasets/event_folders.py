"""Recordings of event cameras, one file each, as frames of event counts.

Events are a structured array with the fields t (us), x, y, p (polarity, 0 or 1), always read by
name. A recording becomes `frames` frames: frame k counts, per polarity and pixel, the events with
k * window <= t < (k + 1) * window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snnkit.datasets.arrays import Array, Dataset, drawn
from snnkit.errors import BadDataset, UsageError

EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1")])
SUFFIXES = (".bin", ".npy")
MAX_BYTES = 2**31 - 1


def event_folder(
    folder: str,
    *,
    size: Sequence[int],
    frames: int,
    window: int,
    channels: str = "frames",
    test: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Recordings in folders by class, or in one folder with a file of labels.

    Layouts: Train/CLASS/*.bin and Test/CLASS/*.bin (N-MNIST as published); CLASS/*.bin; or *.bin
    with labels.txt (lines "number class" for NUMBER.bin; lines that start with # are skipped).
    Without a Test folder a share `test`, drawn from `seed`, is held out. Recordings are .bin files
    in N-MNIST's layout (`read_bin`), or .npy files with a structured array.

    size : (width, height) of the sensor. frames, window : number of frames and us of each.
    channels : "frames" (N, frames * 2, H, W) for a network without time; "polarity"
    (N, frames, 2, H, W). Counts are uint8, or int32 where one exceeds 255.
    """
    if len(size) != 2 or min(size) < 1 or frames < 1 or window < 1:
        raise UsageError(
            f"size {list(size)}, frames {frames}, window {window}; expected (width, height), and "
            "all of them at least 1"
        )
    if channels not in ("frames", "polarity"):
        raise UsageError(f"channels '{channels}'; expected frames or polarity")
    home = Path(folder)
    parts = {name: home / name for name in ("Train", "Test") if (home / name).is_dir()}
    if len(parts) == 2:
        listed = [_listed(parts[name]) for name in ("Train", "Test")]
    else:
        every = _listed(home)
        held = drawn(len(every), test, seed)
        listed = [[e for e, h in zip(every, held, strict=True) if h == t] for t in (False, True)]
    arrays: list[Array] = []
    for entries in listed:
        x = np.stack([count(read_events(path), size, frames, window, path) for path, _ in entries])
        if channels == "frames":
            x = x.reshape(len(x), -1, *x.shape[3:])
        arrays += [x, np.array([label for _, label in entries], np.int64)]
    top = max(int(x.max()) for x in arrays[::2])
    if top <= 255:
        arrays[::2] = [x.astype(np.uint8) for x in arrays[::2]]
    classes = int(max(y.max() for y in arrays[1::2])) + 1
    x_train, y_train, x_test, y_test = arrays
    return Dataset(f"events in {folder}", x_train, y_train, x_test, y_test, classes)


def _listed(folder: Path) -> list[tuple[Path, int]]:
    """(recording, class) in a fixed order, whatever the file system's."""
    if (folder / "labels.txt").is_file():
        return _from_labels(folder)
    if not folder.is_dir():
        raise BadDataset(f"{folder}: no such folder; say where the recordings are")
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    found = [
        (path, label)
        for label, home in enumerate(classes)
        for path in sorted(home.iterdir())
        if path.suffix in SUFFIXES
    ]
    if len(found) < 2:
        raise BadDataset(
            f"{folder}: {len(found)} recordings; expected a folder of .bin or .npy files for each "
            "class, or such files with labels.txt"
        )
    return found


def _from_labels(folder: Path) -> list[tuple[Path, int]]:
    path, found = folder / "labels.txt", []
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) != 2 or not all(w.isdigit() for w in words):
            raise BadDataset(f"{path}, line {number}: {line!r}; expected: number class")
        recording = folder / f"{int(words[0]):05d}.bin"
        if not recording.is_file():
            raise BadDataset(f"{path}, line {number}: there is no file {recording.name}")
        found.append((recording, int(words[1])))
    if len(found) < 2:
        raise BadDataset(f"{path}: {len(found)} recordings; expected at least 2")
    return found


def read_events(path: Path) -> Array:
    """Events of one recording, as structured array with the fields t, x, y, p."""
    if path.stat().st_size > MAX_BYTES:
        raise BadDataset(f"{path}: {path.stat().st_size} bytes; the limit is {MAX_BYTES}")
    if path.suffix == ".bin":
        return read_bin(path)
    try:
        events = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy raises many kinds on a damaged file
        raise BadDataset(f"{path}: damaged, or not an .npy file of numbers: {error}") from error
    names = events.dtype.names or ()
    if events.ndim != 1 or not set("txyp") <= set(names):
        raise BadDataset(
            f"{path}: fields {', '.join(names) or 'none'}; expected a one-dimensional structured "
            "array with t, x, y, p"
        )
    return np.asarray(events)


def read_bin(path: Path) -> Array:
    """Events of the N-MNIST recording in a file; see `bin_events`."""
    return bin_events(path.read_bytes(), str(path))


def bin_events(content: bytes, where: str) -> Array:
    """An N-MNIST recording: 5 bytes per event, x, y, then polarity (bit 7) and 23 bits of t in us.

    The three bytes of polarity and t are big-endian (Orchard et al. 2015, doi
    10.3389/fnins.2015.00437). Raises BadDataset, with `where`, if the last event is cut off.
    """
    if not content or len(content) % 5:
        raise BadDataset(
            f"{where}: {len(content)} bytes; expected a multiple of 5, the size of an event "
            "(truncated, or another format)"
        )
    raw = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64)
    events = np.empty(len(raw), EVENT)
    events["x"], events["y"], events["p"] = raw[:, 0], raw[:, 1], raw[:, 2] >> 7
    events["t"] = (raw[:, 2] & 127) << 16 | raw[:, 3] << 8 | raw[:, 4]
    return events


def count(events: Array, size: Sequence[int], frames: int, window: int, where: Path) -> Array:
    """(frames, 2, H, W) int32: events per frame, polarity and pixel. Later events are left out."""
    width, height = size
    t, x, y, p = (events[name].astype(np.int64) for name in "txyp")
    for name, values, limit in (("x", x, width), ("y", y, height), ("p", p, 2)):
        if len(values) and (values.min() < 0 or values.max() >= limit):
            raise BadDataset(
                f"{where}: {name} in {values.min()}..{values.max()}; expected 0..{limit - 1}"
            )
    if len(t) and t.min() < 0:
        raise BadDataset(f"{where}: t starts at {t.min()} us; expected 0 or later")
    frame = t // window
    kept = frame < frames
    place = ((frame * 2 + p) * height + y) * width + x
    counts = np.bincount(place[kept], minlength=frames * 2 * height * width)
    return counts.astype(np.int32).reshape(frames, 2, height, width)

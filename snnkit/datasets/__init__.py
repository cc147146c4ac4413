"""Data to train and test on: arrays in memory, read from files that the user already has.

`load(name, folder, **options)` looks the name up in `READERS` and returns a `Dataset`. Nothing is
downloaded, nothing is unpickled, and nothing is scaled: a recipe says how numbers become inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from snnkit.datasets.arrays import Dataset, npz
from snnkit.datasets.embedded import digits
from snnkit.datasets.event_folders import event_folder
from snnkit.datasets.images import cifar10, cifar100, mnist
from snnkit.errors import UsageError

READERS: Mapping[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "npz": npz,
    "events": event_folder,
}
"""Each takes `folder` (or nothing) and options by name."""


def options_of(name: str) -> tuple[str, ...]:
    """The options that the data set `name` takes besides its folder. Raises UsageError."""
    if name not in READERS:
        raise UsageError(f"data set '{name}': unknown; expected one of {', '.join(READERS)}")
    return tuple(p for p in inspect.signature(READERS[name]).parameters if p != "folder")


def load(name: str, folder: str | None = None, **options: Any) -> Dataset:
    """The data set `name`, read from `folder`. Raises UsageError and BadDataset."""
    known = options_of(name)
    for option in options:
        if option not in known:
            raise UsageError(
                f"data set '{name}': no option '{option}'; expected {', '.join(known) or 'none'}"
            )
    needs_folder = "folder" in inspect.signature(READERS[name]).parameters
    if needs_folder and not folder:
        raise UsageError(f"data set '{name}': no folder given; say where its files are")
    return READERS[name](folder, **options) if needs_folder else READERS[name](**options)


__all__ = ["READERS", "Dataset", "load", "options_of"]

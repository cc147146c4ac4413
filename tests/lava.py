"""Where Lava is, for tests that need it, and what a run may leave behind: nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snnkit.backends.loihi.environment import Environment, find
from snnkit.errors import BackendMissing

try:
    ENVIRONMENT: Environment | None = find()
    REASON = ""
except BackendMissing as error:
    ENVIRONMENT, REASON = None, f"{error}; run: snnkit lava-env create"

needed = pytest.mark.skipif(ENVIRONMENT is None, reason=REASON)


def environment() -> Environment:
    assert ENVIRONMENT is not None
    return ENVIRONMENT


def leftovers() -> tuple[set[str], set[str]]:
    """Segments of shared memory, and processes of our workers (by command line)."""
    segments = {p.name for p in Path("/dev/shm").iterdir()}
    processes = set()
    for path in Path("/proc").iterdir():
        try:
            line = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if b"worker_main.py" in line or b"watchdog.py" in line:
            processes.add(f"{path.name} {(path / 'stat').read_text().split()[2]}")
    return segments, processes


@contextmanager
def nothing_left() -> Iterator[None]:
    """Segments and processes are the same afterwards as before."""
    before = leftovers()
    yield
    after = leftovers()
    assert not after[0] - before[0] and not after[1] - before[1]


def clean_environment() -> dict[str, str]:
    """The process environment without anything of ours in it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("SNNKIT", "PYTHON"))}

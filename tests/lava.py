"""Where Lava is, for tests that need it, and what a run may leave behind: nothing."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snnkit.backends.loihi.environment import Environment, find
from snnkit.backends.loihi.supervise import SHARED_MEMORY, _locks
from snnkit.errors import BackendMissing

MARK = "SNNKIT_TEST_OF"
"""In the environment of all processes that descend from the test's."""

try:
    ENVIRONMENT: Environment | None = find()
    REASON = ""
except BackendMissing as error:
    ENVIRONMENT, REASON = None, f"{error}; run: snnkit lava-env create"

needed = pytest.mark.skipif(ENVIRONMENT is None, reason=REASON)


def environment() -> Environment:
    assert ENVIRONMENT is not None
    os.environ.setdefault(MARK, str(os.getpid()))
    return ENVIRONMENT


def orphaned_segments() -> set[str]:
    """Segments of shared memory of runs that are over."""
    names = {p.name for p in SHARED_MEMORY.glob("sk????_*")}
    return {name for name in names if not in_use(name[:7])}


def in_use(prefix: str) -> bool:
    try:
        handle = os.open(_locks() / prefix, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def workers() -> set[str]:
    """Processes that descend from the test's and run our worker or its watchdog, zombies too."""
    found = set()
    mark = f"{MARK}={os.environ.get(MARK)}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = mark in (path / "environ").read_bytes()
            line = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if ours and (b"worker_main.py" in line or b"watchdog.py" in line):
            found.add(path.name)
    return found


def gone(patience: float = 0.0) -> bool:
    """Whether no process and no memory is left, at the latest after `patience` seconds."""
    until = time.monotonic() + patience
    while workers() or orphaned_segments():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def nothing_left() -> Iterator[None]:
    assert gone()
    yield
    assert gone(), (workers(), orphaned_segments())


def clean_environment() -> dict[str, str]:
    """The process environment without anything of ours in it, but for the mark."""
    ours = ("SNNKIT", "PYTHON")
    return {k: v for k, v in os.environ.items() if k == MARK or not k.startswith(ours)}

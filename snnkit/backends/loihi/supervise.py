"""Runs a job folder on Lava under the watchdog, and says what came of it.

Depends on the standard library and numpy only: a bundle that is deployed holds a copy of this file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHARED_MEMORY = Path("/dev/shm")
GRACE = 30.0
"""Seconds that the watchdog gets, beyond its own limits, to clean up."""


class WorkerFailed(Exception):
    """A run that came to nothing. kind : died, disk, model, orphan, overflow, timeout, watchdog
    or worker. noise : the end of what the worker printed."""

    def __init__(self, kind: str, message: str, traceback: str = "", noise: str = ""):
        self.kind, self.traceback, self.noise = kind, traceback, noise
        super().__init__(message)


def run_job(
    python: str,
    job: Path,
    worker: Path,
    process: Path,
    *,
    start: float = 120.0,
    heartbeat: float = 60.0,
    total: float = 86400.0,
) -> dict[str, Any]:
    """Run `job` with the interpreter `python`; seconds spent on import, build, run and in all.

    worker, process : folders of worker_main.py and of bif_process.py. start : most seconds until
    a network runs; heartbeat : between two signs of life of one that runs; total : in all.
    Raises WorkerFailed. Whatever happens, no process and no shared memory is left behind.
    """
    sweep_stale()
    with _own_prefix() as prefix:
        limits = {"start": start, "heartbeat": heartbeat, "total": total, "prefix": prefix}
        (job / "limits.json").write_text(json.dumps(limits))
        (job / "out").mkdir(exist_ok=True)
        command = [python, "-I", "-B", str(worker / "watchdog.py"), str(job), str(process)]
        # a session of its own: an interrupt from the keyboard goes to us, and we close its input
        watchdog = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        deadline = threading.Timer(total + GRACE, watchdog.kill)
        deadline.daemon = True
        deadline.start()
        try:
            assert watchdog.stdout is not None
            # not communicate(): that closes its input, which tells it to stop
            printed = watchdog.stdout.read()
            watchdog.wait()
        finally:
            deadline.cancel()
            if watchdog.poll() is None:
                _stop(watchdog)
            _unlink(prefix)
    return _outcome(printed, watchdog.returncode)


def _stop(watchdog: subprocess.Popen[bytes]) -> None:
    assert watchdog.stdin is not None
    with contextlib.suppress(OSError):
        watchdog.stdin.close()
    try:
        watchdog.wait(GRACE)
    except subprocess.TimeoutExpired:
        watchdog.kill()
        watchdog.wait()


def _outcome(printed: bytes, code: int) -> dict[str, Any]:
    try:
        found = json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        raise WorkerFailed("watchdog", f"the watchdog ended with code {code}") from None
    if "error" in found:
        error = found["error"]
        raise WorkerFailed(
            error["kind"], error["message"], error.get("traceback", ""), error.get("noise", "")
        )
    return dict(found["done"])


def read_results(job: Path) -> dict[str, Any]:
    """All results of a job by `task.what`, as arrays."""
    layout = json.loads((job / "out" / "layout.json").read_text())
    content = np.fromfile(job / "out" / "results", np.uint8)
    found = {}
    for name, (kind, shape, at) in layout.items():
        end = at + int(np.prod(shape)) * np.dtype(kind).itemsize
        found[name] = content[at:end].view(kind).reshape(shape)
    for path in (job / "out").glob("*.npy"):
        found[path.stem] = np.load(path, allow_pickle=False)
    return found


def _locks() -> Path:
    folder = Path(tempfile.gettempdir()) / f"snnkit-lava-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextlib.contextmanager
def _own_prefix() -> Iterator[str]:
    """A prefix for names of shared memory, with a file that is locked as long as it is in use."""
    while True:
        # with a slash in front and room for a name behind, 14 characters are portable
        prefix = f"sk{secrets.token_hex(2)}_"
        path = _locks() / prefix
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileExistsError:
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        break
    try:
        yield prefix
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def sweep_stale() -> int:
    """Unlink shared memory of runs whose owners are gone, and nobody else's; how many segments."""
    count = 0
    for path in _locks().iterdir():
        try:
            handle = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            count += _unlink(path.name)
            path.unlink()
        except OSError:
            pass  # in use, or somebody else was faster
        finally:
            os.close(handle)
    return count


def _unlink(prefix: str) -> int:
    count = 0
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            path.unlink()
            count += 1
    return count

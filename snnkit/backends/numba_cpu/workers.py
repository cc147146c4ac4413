"""The threads that programs share: started once, never more at work than there are CPUs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

CHUNKS_PER_THREAD = 8
"""Parts of a batch per thread: small ones, so that no thread waits long for the last of another."""

_here = threading.local()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def useful(threads: int, samples: int, work_bytes: int = 0, limit: int = 2**31) -> int:
    """Threads that can do something: not more than CPUs or samples, than work areas of `work_bytes`
    fit `limit`, and one inside a thread of this module (a run that starts runs)."""
    if getattr(_here, "busy", False):
        return 1
    return max(1, min(threads, samples, cpus(), limit // max(1, work_bytes)))


def chunks(samples: int, threads: int, most: int) -> list[slice]:
    """The samples cut up: for one thread into parts of `most`, for more into smaller ones."""
    size = samples if threads == 1 else -(-samples // (threads * CHUNKS_PER_THREAD))
    size = max(1, min(size, most))
    return [slice(i, min(i + size, samples)) for i in range(0, samples, size)]


def spread(parts: Sequence[slice], threads: int, work: Callable[[slice], None]) -> None:
    """work(part) for all parts, the calling thread among the threads; each takes the next part
    when it is done with one. The first error is raised when all threads have stopped."""
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    left = iter(parts)
    stop = threading.Event()

    def take() -> None:
        outer, _here.busy = getattr(_here, "busy", False), True
        try:
            # taking from an iterator of a sequence is one step under the interpreter's lock
            for part in left:
                if stop.is_set():
                    break
                work(part)
        except BaseException:
            stop.set()
            raise
        finally:
            _here.busy = outer

    pool = _threads()
    others: list[Future[Any]] = [pool.submit(take) for _ in range(min(threads, len(parts)) - 1)]
    try:
        take()
    finally:
        for other in others:
            # one that has not begun yet has nothing left to do
            if not other.cancel():
                other.exception()
    for other in others:
        if not other.cancelled():
            other.result()


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, cpus() - 1), "snnkit")
        return _pool


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()
    _here.busy = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

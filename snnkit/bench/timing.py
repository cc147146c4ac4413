"""Times of several candidates in one process, taken in turns, and what is said about them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TARGET = 0.02
"""Seconds that one candidate runs in one round, at least."""
WHOLE = 0.2
"""A pass over all inputs that takes no longer than this many seconds is never cut."""
PAUSE = 0.2
"""Seconds of silence before timing: threads of earlier work that still spin go to sleep."""


@dataclass(frozen=True)
class Spread:
    """Seconds per sample over the rounds: median, least, most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread:
        return cls(statistics.median(times), min(times), max(times))

    def ratios(self, other: Spread) -> tuple[float, float]:
        """(other / self of the medians, of the least): above 1 where self is faster."""
        return other.median / self.median, other.least / self.least

    def json(self) -> dict[str, float]:
        """The same in microseconds, as tables show it."""
        return {
            "median_us": self.median * 1e6,
            "min_us": self.least * 1e6,
            "max_us": self.most * 1e6,
        }


@dataclass(frozen=True)
class Timing:
    """One candidate's rounds: CPU time of the calling thread, and wall time beside it."""

    cpu: Spread
    wall: Spread


class _Turn:
    """One candidate's walk over the inputs: whole passes where they are short, else parts."""

    def __init__(self, call: Callable[[Any], Any], inputs: Sequence[Any], samples: Sequence[int]):
        self.call, self.inputs, self.samples = call, inputs, samples
        self.at = 0
        for x in inputs[:1]:
            call(x)  # the first call allocates
        start = time.perf_counter()
        done = 0
        while done < len(inputs) and (done == 0 or time.perf_counter() - start < WHOLE):
            call(inputs[done])
            done += 1
        each = (time.perf_counter() - start) / done
        self.calls = max(1, -(-int(TARGET / each) // 1))
        if each * len(inputs) <= WHOLE:
            self.calls = len(inputs) * max(1, round(TARGET / (each * len(inputs))))

    def round(self) -> tuple[float, float]:
        """Seconds per sample: of this thread's CPU, and on the wall."""
        order = [(self.at + i) % len(self.inputs) for i in range(self.calls)]
        self.at = (self.at + self.calls) % len(self.inputs)
        call, chosen = self.call, [self.inputs[i] for i in order]
        samples = sum(self.samples[i] for i in order)
        wall, cpu = time.perf_counter(), time.thread_time()
        for x in chosen:
            call(x)
        used = time.thread_time() - cpu
        return used / samples, (time.perf_counter() - wall) / samples


def interleaved(
    candidates: Mapping[str, Callable[[Any], Any]],
    inputs: Sequence[Any],
    samples: Sequence[int],
    rounds: int,
) -> dict[str, Timing]:
    """Times per sample by candidate.

    Every round runs every candidate; each round starts with another one, so that none always
    follows the same neighbour. inputs : what one call takes, in turn. samples : how many samples
    each of them holds.
    """
    turns = {name: _Turn(call, inputs, samples) for name, call in candidates.items()}
    names = list(turns)
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        time.sleep(PAUSE)
        for i in range(rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                used, passed = turns[name].round()
                cpu[name].append(used)
                wall[name].append(passed)
    finally:
        if collecting:
            gc.enable()
    return {n: Timing(Spread.of(cpu[n]), Spread.of(wall[n])) for n in names}

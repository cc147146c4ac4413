"""Packets of windows: after each, what entered and did not leave is what the window shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkit.errors import BadEvents, UsageError
from snnkit.windows import Packet, decaying, sliding, tumbling

EVENT = np.dtype([("x", np.int16), ("t", np.int64), ("y", np.int16), ("p", np.uint8)])


def recording(times: list[int]) -> Any:
    events = np.zeros(len(times), EVENT)
    events["t"] = np.sort(times)
    events["x"] = np.arange(len(times))  # tells the events apart
    return events


def held(packets: list[Packet]) -> list[list[int]]:
    """The events in the window after each packet."""
    window: set[int] = set()
    found = []
    for events, leaving in packets:
        new, old = set(events["x"].tolist()), set(leaving["x"].tolist())
        assert not new & window and (np.diff(events["t"]) >= 0).all()
        window |= new
        assert old <= window and (np.diff(leaving["t"]) >= 0).all()
        window -= old
        found.append(sorted(window))
    return found


times = st.lists(st.integers(-50, 400), max_size=40)
lengths = st.integers(1, 90)


@settings(deadline=None, max_examples=200)
@given(times, lengths, lengths, st.sampled_from(["us", "events"]))
def test_a_sliding_window_holds_its_span(t: list[int], window: int, every: int, unit: str) -> None:
    events = recording(t)
    at = events["t"] if unit == "us" else np.arange(len(events))
    found = held(list(sliding(events, window=window, every=every, unit=unit)))
    for k, inside in enumerate(found):
        end = at[0] + (k + 1) * every
        assert inside == ((end - window <= at) & (at < end)).nonzero()[0].tolist()
    if len(t):
        last = at[0] + len(found) * every
        assert last - every <= at[-1] < last
    else:
        assert not found


@settings(deadline=None, max_examples=50)
@given(times, lengths)
def test_tumbling_windows_lie_side_by_side(t: list[int], window: int) -> None:
    found = held(list(tumbling(recording(t), window=window)))
    assert sorted(i for inside in found for i in inside) == list(range(len(t)))


def test_counts_decay_exponentially() -> None:
    events = recording([0] * 20_000)
    last = recording([2000])
    last["x"] = 20_000
    packets = list(decaying(np.concatenate([events, last]), mean_life=500, every=100))
    sizes = [len(window) for window in held(packets)]
    for k in (0, 4, 9):
        expected = 20_000 * np.exp(-(k + 1) * 100 / 500)
        assert abs(sizes[k] - expected) < 5 * np.sqrt(20_000)
    again = list(decaying(np.concatenate([events, last]), mean_life=500, every=100))
    assert all(np.array_equal(a.leaving, b.leaving) for a, b in zip(packets, again, strict=True))


def test_bad_arguments() -> None:
    events = recording([1, 2])
    with pytest.raises(UsageError, match="window 0; expected above zero"):
        sliding(events, window=0, every=1)
    with pytest.raises(UsageError, match="every -1"):
        sliding(events, window=1, every=-1)
    with pytest.raises(UsageError, match="unit 'ms'"):
        sliding(events, window=1, every=1, unit="ms")
    with pytest.raises(UsageError, match="mean_life nan"):
        decaying(events, mean_life=float("nan"), every=1)
    with pytest.raises(BadEvents, match="'t' of event 1 is 1; expected at least 2"):
        sliding(events[::-1], window=1, every=1)
    with pytest.raises(BadEvents, match="field 't'"):
        sliding(np.zeros(3), window=1, every=1)

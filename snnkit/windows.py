"""Windows over an event recording, as packets of events that enter and events that leave.

Events are a structured array with the fields t (us), x, y, p, sorted by t. Every function yields
`Packet`s to give to a stream, `stream.push(*packet)`, so that after each packet the stream's
input is the number of events of each unit in the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from snnkit.errors import BadEvents, UsageError

Array = npt.NDArray[Any]

UNITS = ("us", "events")


class Packet(NamedTuple):
    """events : those that enter the window; leaving : those that leave it. Both sorted by t."""

    events: Array
    leaving: Array


def sliding(events: Array, *, window: int, every: int, unit: str = "us") -> Iterator[Packet]:
    """A window of fixed length that moves in steps.

    After packet k the window holds the events with end - window <= t < end, where
    end = t of the first event + (k + 1) * every. The last packet is the first whose window has
    reached the last event. With unit "events" the same with the number of an event for its time.

    window, every : in us, or in events. Events that a step larger than the window jumps over are
    in no packet. Raises UsageError and BadEvents.
    """
    t = _times(events, unit)
    _positive(window=window, every=every)
    return _slices(events, t, window, every)


def tumbling(events: Array, *, window: int, unit: str = "us") -> Iterator[Packet]:
    """Windows side by side: each packet replaces the events of the last one."""
    return sliding(events, window=window, every=window, unit=unit)


def decaying(events: Array, *, mean_life: float, every: int, seed: int = 0) -> Iterator[Packet]:
    """Exponential decay of counts: each event leaves after a random time of mean `mean_life` us.

    The expected count of a unit is the sum over its events of exp(-age / mean_life), while every
    count stays an integer. The t of a leaving event is the time at which it leaves. Lifetimes are
    drawn from `seed`. every : us per packet. Raises UsageError and BadEvents.
    """
    t = _times(events, "us")
    _positive(mean_life=mean_life, every=every)
    lives = np.random.default_rng(seed).exponential(mean_life, len(events))
    ends = t + np.ceil(lives).astype(np.int64)
    order = np.argsort(ends, kind="stable")
    gone = events[order].copy()
    gone["t"] = ends[order]
    return _lives(events, t, gone, ends[order], every)


def _times(events: Array, unit: str) -> npt.NDArray[np.int64]:
    """What the window is measured along."""
    names = getattr(getattr(events, "dtype", None), "names", None)
    if names is None or "t" not in names or events.ndim != 1:
        raise BadEvents("events: expected a one-dimensional structured array with a field 't'")
    if unit not in UNITS:
        raise UsageError(f"unit {unit!r}; expected one of {', '.join(UNITS)}")
    t = events["t"].astype(np.int64)
    (bad,) = (np.diff(t) < 0).nonzero()
    if len(bad):
        i = bad[0] + 1
        raise BadEvents(
            f"events: field 't' of event {i} is {t[i]}; expected at least {t[i - 1]}, that of the "
            "event before it: sort the events by 't'"
        )
    return np.arange(len(events)) if unit == "events" else t


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UsageError(f"{name} {value}; expected above zero")


def _ends(t: npt.NDArray[np.int64], every: int) -> range:
    if not len(t):
        return range(0)
    return range(int(t[0]) + every, int(t[-1]) + every + 1, every)


def _slices(events: Array, t: npt.NDArray[np.int64], window: int, every: int) -> Iterator[Packet]:
    entered = left = 0
    for end in _ends(t, every):
        enter, leave = (int(i) for i in np.searchsorted(t, (end, end - window)))
        # what would enter and leave at once does neither
        yield Packet(events[max(entered, leave) : enter], events[left : min(entered, leave)])
        entered, left = enter, leave


def _lives(
    events: Array,
    t: npt.NDArray[np.int64],
    gone: Array,
    ends: npt.NDArray[np.int64],
    every: int,
) -> Iterator[Packet]:
    entered = left = 0
    for end in _ends(t, every):
        enter, leave = (int(np.searchsorted(times, end)) for times in (t, ends))
        yield Packet(events[entered:enter], gone[left:leave])
        entered, left = enter, leave

# ruff: noqa: F403, F405 (Numba takes integers from this module's own names fastest)
"""The compiled calls of a stream: one per packet, for all networks.

`table` is a row of integers at one address: HEAD columns, then inputs of INPUT columns, then steps
of STEP columns. All of them are numbers or addresses in memory that the stream owns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from snnkit.backends.numba_cpu import fast
from snnkit.backends.numba_cpu.stream.fields import *
from snnkit.backends.numba_cpu.stream.pointers import call_row, kernel, octets, pointer, words

Array = npt.NDArray[Any]

KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8")
"""Types that a field of an event may have in memory, by the number that stands for each."""
SIDE_BY_SIDE = 64
"""Units of a frame that are compared at once."""
T, X, Y, P = 1, 3, 5, 7
"""Where a field's place and kind lie behind H_ENTERING and H_LEAVING."""


def _peek(kind: str) -> Any:
    """The integer at any address, as int64."""
    bits = 8 * int(kind[1])

    @intrinsic  # type: ignore[untyped-decorator]
    def peek(_context: Any, address: Any) -> Any:
        def codegen(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            to = builder.inttoptr(values[0], ir.IntType(bits).as_pointer())
            value = builder.load(to, align=1)
            if bits == 64:
                return value
            extend = builder.sext if kind[0] == "i" else builder.zext
            return extend(value, ir.IntType(64))

        return types.int64(types.int64), codegen

    return peek


_i1, _u1, _i2, _u2, _i4, _u4, _i8 = (_peek(kind) for kind in KINDS)


@kernel
def field(address: int, kind: int) -> Any:
    """A field of an event; `kind` is an index of KINDS."""
    if kind == 2:
        return _i2(address)
    if kind == 1:
        return _u1(address)
    if kind == 6:
        return _i8(address)
    if kind == 0:
        return _i1(address)
    if kind == 3:
        return _u2(address)
    if kind == 4:
        return _i4(address)
    return _u4(address)


@kernel
def longs(address: int, count: int) -> Array:
    view: Array = nb.carray(pointer(address), (count,), np.int64)
    return view


@kernel
def floats(address: int, count: int) -> Array:
    view: Array = nb.carray(pointer(address), (count,), np.float32)
    return view


@kernel
def valid(table: Array, lies: int, address: int, count: int) -> bool:
    """All events on the sensor, of known polarity, sorted."""
    lie = table[lies : lies + 9]
    height, width, before = table[H_ROWS], table[H_COLUMNS], np.int64(-(2**63))
    for i in range(count):
        at = address + i * lie[0]
        t, x = field(at + lie[T], lie[T + 1]), field(at + lie[X], lie[X + 1])
        y, p = field(at + lie[Y], lie[Y + 1]), field(at + lie[P], lie[P + 1])
        if not (0 <= x < width and 0 <= y < height and 0 <= p < 2 and before <= t):
            return False
        before = t
    return True


@kernel
def unit_of(table: Array, lies: int, at: int) -> Any:
    """(unit, y, x, channel) of the event at an address."""
    x, y = (
        field(at + table[lies + X], table[lies + X + 1]),
        field(at + table[lies + Y], table[lies + Y + 1]),
    )
    p = np.int64(0)
    if table[H_POLARITIES] == 2:
        p = field(at + table[lies + P], table[lies + P + 1])
    return (p * table[H_ROWS] + y) * table[H_COLUMNS] + x, y, x, p


@kernel
def count_events(table: Array, lies: int, address: int, count: int, step: int) -> int:
    """Add `step` to the count of each event's unit. Stops where a count would fall below zero;
    returns how many it took."""
    counts = longs(table[H_COUNTS], table[H_POLARITIES] * table[H_ROWS] * table[H_COLUMNS])
    for i in range(count):
        unit = unit_of(table, lies, address + i * table[lies])[0]
        if counts[unit] + step < 0:
            return i
        counts[unit] += step
    return count


@kernel
def level(p: Array, unit: int, place: Any, x: Any) -> Any:
    """The quantised value of a float, as the byte in the map; `boundary.quantise` in float32."""
    at = 4 * (unit if p[I_PER_UNIT] else place % p[I_PITCH])
    scale, offset = floats(p[I_SCALE] + at, 1)[0], floats(p[I_OFFSET] + at, 1)[0]
    q = np.rint((x - offset) / scale)
    return np.int64(min(max(q, np.float32(p[I_LOW])), np.float32(p[I_HIGH]))) + p[I_ZERO]


@kernel
def touch(p: Array, site: int, packed: int) -> None:
    """List a site of an input map as one that may have changed."""
    flags, number = octets(p[I_FLAGS], p[I_SITES]), longs(p[I_TOUCHED_COUNT], 1)
    words(p[I_TOUCHED], p[I_SITES] + 1)[number[0]] = packed
    number[0] += 1 - np.int64(flags[site])
    flags[site] = 1


@kernel
def take_events(table: Array, p: Array, lies: int, address: int, count: int) -> None:
    """Bring the levels of the units that were counted up to date."""
    units = table[H_POLARITIES] * table[H_ROWS] * table[H_COLUMNS]
    counts, xs = longs(table[H_COUNTS], units), floats(p[I_FLOATS], units)
    now = octets(p[I_NOW], p[I_SITES] * p[I_PITCH])
    for i in range(count):
        unit, y, x, c = unit_of(table, lies, address + i * table[lies])
        xs[unit] = np.float32(min(counts[unit], table[H_MOST]))
        site = y * p[I_WIDTH] + x
        place = site * p[I_PITCH] + c
        now[place] = level(p, unit, place, xs[unit])
        touch(p, site, (y << 16) | x)


@kernel
def finite(p: Array, address: int) -> bool:
    x, odd = floats(address, p[I_SITES] * p[I_CHANNELS]), False
    for i in range(len(x)):
        odd |= x[i] - x[i] != 0
    return not odd


@kernel
def take_frame(p: Array, address: int) -> int:
    """A whole new input; returns how many units changed their level."""
    units, pitch, width = p[I_SITES] * p[I_CHANNELS], p[I_PITCH], p[I_WIDTH]
    x, xs, places = floats(address, units), floats(p[I_FLOATS], units), words(p[I_PLACES], units)
    now = octets(p[I_NOW], p[I_SITES] * pitch)
    own = 0
    for first in range(0, units, SIDE_BY_SIDE):
        end, differs = min(first + SIDE_BY_SIDE, units), False
        for u in range(first, end):
            differs |= xs[u] != x[u]
        if not differs:
            continue
        for u in range(first, end):
            if xs[u] == x[u]:
                continue
            xs[u], place = x[u], np.int64(places[u])
            new = np.uint8(level(p, u, place, x[u]))
            if new != now[place]:
                now[place], site = new, place // pitch
                touch(p, site, ((site // width) << 16) | (site % width))
                own += 1
    return own


@kernel
def list_changes(p: Array) -> None:
    """What the touched sites of an input map differ in from what their readers know."""
    number, pitch, width = longs(p[I_TOUCHED_COUNT], 1), p[I_PITCH], p[I_WIDTH]
    sites, begins = words(p[I_NEW_SITES], p[I_SITES] + 1), words(p[I_NEW_BEGINS], p[I_SITES] + 1)
    changes = p[I_SITES] * pitch // 2
    pairs, index = words(p[I_NEW_WORDS], changes), words(p[I_NEW_INDEX], changes)
    flags, touched = octets(p[I_FLAGS], p[I_SITES]), words(p[I_TOUCHED], p[I_SITES])
    now, held = octets(p[I_NOW], p[I_SITES] * pitch), octets(p[I_HELD], p[I_SITES] * pitch)
    m, k = 0, 0
    for i in range(number[0]):
        packed = np.int64(touched[i])
        site = (packed >> 16) * width + (packed & 0xFFFF)
        flags[site] = 0
        sites[m], begins[m], before = packed, k, k
        for g in range(pitch // 2):
            at = site * pitch + 2 * g
            low = np.int64(now[at]) - np.int64(held[at])
            high = np.int64(now[at + 1]) - np.int64(held[at + 1])
            if low != 0 or high != 0:
                pairs[k], index[k] = np.int32((low & 0xFFFF) | (high << 16)), g
                k += 1
                held[at], held[at + 1] = now[at], now[at + 1]
        m += k > before
    begins[m] = k
    longs(p[I_NEW_COUNT], 1)[0] = m
    number[0] = 0


@kernel
def low_half(word: Any) -> Any:
    return np.int32(np.int16(word & 0xFFFF))


@kernel
def touch_target(p: Array, y: int, x: int) -> None:
    number, site = longs(p[S_TOUCHED_COUNT], 1), y * p[S_WIDTH] + x
    flag = octets(p[S_FLAGS] + site, 1)
    words(p[S_TOUCHED] + 4 * number[0], 1)[0] = (y << 16) | x
    number[0] += 1 - np.int64(flag[0])
    flag[0] = 1


@kernel
def element_step(p: Array) -> None:
    """Each channel by itself: charge += weight[tap] * change. For kind MAX touch only."""
    count = longs(p[S_COUNT], 1)[0]
    sites, begins = words(p[S_SITES], count), words(p[S_BEGINS], count + 1)
    for i in range(count):
        y, x, begin, end = sites[i] >> 16, sites[i] & 0xFFFF, begins[i], begins[i + 1]
        rows, columns = words(p[S_ROW_FIRST] + 4 * y, 2), words(p[S_COLUMN_FIRST] + 4 * x, 2)
        for a in range(rows[0], rows[1]):
            row = longs(p[S_ROW_TAPS] + 16 * a, 2)
            for b in range(columns[0], columns[1]):
                column = longs(p[S_COLUMN_TAPS] + 16 * b, 2)
                touch_target(p, row[1], column[1])
                if p[S_KIND] == MAX:
                    continue
                site = row[1] * p[S_WIDTH] + column[1]
                charge = words(p[S_CHARGE] + site * p[S_SITE_BYTES], p[S_SITE_BYTES] // 4)
                weight = words(p[S_WEIGHT] + row[0] + column[0], p[S_SITE_BYTES] // 4)
                for k in range(begin, end):
                    word, c = words(p[S_WORDS] + 4 * k, 1)[0], 2 * words(p[S_INDEX] + 4 * k, 1)[0]
                    charge[c] += weight[c] * low_half(word)
                    charge[c + 1] += weight[c + 1] * np.int32(word >> 16)


@kernel
def ladder_step(p: Array) -> None:
    """Touched neurons on any staircase: a binary search in the thresholds of each.
    S_A rows [site][channel], S_B thresholds, S_C values, S_D how many thresholds, S_E channels."""
    touched, channels, steps = words(p[S_TOUCHED], longs(p[S_TOUCHED_COUNT], 1)[0]), p[S_E], p[S_D]
    for i in range(len(touched)):
        site = (np.int64(touched[i]) >> 16) * p[S_WIDTH] + (touched[i] & 0xFFFF)
        charge = words(p[S_CHARGE] + site * p[S_SITE_BYTES], channels)
        row = words(p[S_A] + 4 * site * channels, channels)
        target = octets(p[S_FRESH] + site * p[S_PITCH], channels)
        for c in range(channels):
            ladder = words(p[S_B] + 4 * steps * row[c], steps)
            below, above = np.int64(0), np.int64(steps)
            while below < above:
                middle = (below + above) >> 1
                if charge[c] >= ladder[middle]:
                    below = middle + 1
                else:
                    above = middle
            target[c] = words(p[S_C] + 4 * (steps + 1) * row[c], steps + 1)[below]


@kernel
def max_step(p: Array) -> None:
    """The maximum under the window of each touched site. S_A taps (row, column), S_B how many,
    S_C, S_D strides, S_E height, S_F width of the source; S_TIMES its bytes, S_TOP its pitch."""
    touched, taps = words(p[S_TOUCHED], longs(p[S_TOUCHED_COUNT], 1)[0]), words(p[S_A], 2 * p[S_B])
    channels = p[S_PITCH] if p[S_PITCH] < p[S_TOP] else p[S_TOP]
    for i in range(len(touched)):
        y, x = np.int64(touched[i]) >> 16, np.int64(touched[i]) & 0xFFFF
        best = octets(p[S_FRESH] + (y * p[S_WIDTH] + x) * p[S_PITCH], channels)
        best[:] = 0
        for t in range(p[S_B]):
            row, column = y * p[S_C] + taps[2 * t], x * p[S_D] + taps[2 * t + 1]
            if 0 <= row < p[S_E] and 0 <= column < p[S_F]:
                value = octets(p[S_TIMES] + (row * p[S_F] + column) * p[S_TOP], channels)
                for c in range(channels):
                    best[c] = max(best[c], value[c])


@kernel
def move_step(p: Array) -> None:
    """Changes of units to the bytes of other units. S_A first target of each place of the source,
    S_B the targets, S_TOP pitch of the source, S_C its width."""
    count = longs(p[S_COUNT], 1)[0]
    sites, begins = words(p[S_SITES], count), words(p[S_BEGINS], count + 1)
    for i in range(count):
        site = np.int64(sites[i] >> 16) * p[S_C] + (sites[i] & 0xFFFF)
        for k in range(begins[i], begins[i + 1]):
            word, c = words(p[S_WORDS] + 4 * k, 1)[0], 2 * words(p[S_INDEX] + 4 * k, 1)[0]
            for half in range(2):
                change = np.int64(low_half(word)) if half == 0 else np.int64(word >> 16)
                if change == 0:
                    continue
                first = words(p[S_A] + 4 * (site * p[S_TOP] + c + half), 2)
                for j in range(first[0], first[1]):
                    place = np.int64(words(p[S_B] + 4 * j, 1)[0])
                    to = octets(p[S_FRESH] + place, 1)
                    to[0] = (np.int64(to[0]) + change) & 0xFF
                    target = place // p[S_PITCH]
                    touch_target(p, target // p[S_WIDTH], target % p[S_WIDTH])


@kernel
def read_step(p: Array) -> None:
    """Charges of a readout in the order of its units, as integers (S_B) and as floats (S_C)."""
    index, charge = words(p[S_A], p[S_D]), words(p[S_CHARGE], p[S_E])
    ints, out, scale = words(p[S_B], p[S_D]), floats(p[S_C], p[S_D]), floats(p[S_RATE], p[S_D])
    for u in range(p[S_D]):
        ints[u] = charge[index[u]]
        out[u] = np.float32(ints[u]) * scale[u]


@kernel
def update(table: Array) -> None:
    """Bring the network up to date with its inputs."""
    inputs = table[HEAD : HEAD + table[H_INPUTS] * INPUT].reshape(-1, INPUT)
    steps = table[HEAD + table[H_INPUTS] * INPUT :].reshape(-1, STEP)
    for i in range(len(inputs)):
        list_changes(inputs[i])
    here = table.ctypes.data + 8 * (HEAD + table[H_INPUTS] * INPUT)
    for i in range(table[H_STEPS]):
        p = steps[i]
        kind = p[S_KIND]
        if kind == ELEMENT:
            element_step(p)
        elif kind == LADDER:
            ladder_step(p)
        elif kind == MAX:
            element_step(p)
            max_step(p)
        elif kind == MOVE:
            move_step(p)
        elif kind == READ:
            read_step(p)
        if p[S_KERNEL]:
            call_row(p[S_KERNEL], here + 8 * STEP * i)


@kernel
def decide(table: Array, own: int, limit: int, patience: int) -> int:
    """Update if few sites differ. Where many do because of packets that were computed anew, catch
    up once `patience` packets in a row would have been within the limit by themselves."""
    pending = np.int64(0)
    for i in range(table[H_INPUTS]):
        pending += longs(table[HEAD + i * INPUT + I_TOUCHED_COUNT], 1)[0]
    table[H_OWN], table[H_PENDING] = own, pending
    table[H_WAITED] = table[H_WAITED] + 1 if own <= limit else 0
    if pending > limit and table[H_WAITED] < patience:
        return RECOMPUTE
    table[H_WAITED] = 0
    update(table)
    return UPDATED


def _stamp() -> int:
    """A number of all sources that are compiled into the entries below."""
    state = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(str(fast.__file__)).parent):
        for path in sorted(folder.glob("*.py")):
            state.update(path.read_bytes())
    return int.from_bytes(state.digest()[:6], "big") | 1


def _entries(stamp: int) -> tuple[Callable[..., int], Callable[..., int]]:
    """Numba's cache looks at the date of this file only; the stamp of all files is a captured
    constant, and captured constants are part of the key."""

    @njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def push_events(address: int, events: Array, leaving: Array, limit: int, patience: int) -> int:
        """Bytes of two arrays of events into the input, all or none. RECOMPUTE: the input is up to
        date, the network is not."""
        table = longs(address, longs(address, 1)[H_SIZE])
        many = len(events) * stamp // stamp // table[H_ENTERING]
        few = len(leaving) // table[H_LEAVING]
        enter, leave = events.ctypes.data, leaving.ctypes.data
        if not (valid(table, H_ENTERING, enter, many) and valid(table, H_LEAVING, leave, few)):
            return INVALID
        count_events(table, H_ENTERING, enter, many, 1)
        done = count_events(table, H_LEAVING, leave, few, -1)
        if done < few:
            count_events(table, H_LEAVING, leave, done, 1)
            count_events(table, H_ENTERING, enter, many, -1)
            return INVALID
        p = table[HEAD : HEAD + INPUT]
        take_events(table, p, H_ENTERING, enter, many)
        take_events(table, p, H_LEAVING, leave, few)
        return decide(table, many + few, limit, patience)

    @njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def push_frame(address: int, addresses: Array, look: bool, limit: int, patience: int) -> int:
        """Whole inputs, each float32 at its address; none: only bring the network up to date.
        look : check that they are finite."""
        table = longs(address, longs(address, 1)[H_SIZE])
        own = 0 * stamp
        for i in range(len(addresses)):
            first = HEAD + i * INPUT
            if look and not finite(table[first : first + INPUT], addresses[i]):
                return INVALID
        for i in range(len(addresses)):
            first = HEAD + i * INPUT
            own += take_frame(table[first : first + INPUT], addresses[i])
        return decide(table, own, limit, patience)

    return push_events, push_frame


push_events, push_frame = _entries(_stamp())

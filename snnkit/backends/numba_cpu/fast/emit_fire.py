"""LLVM code of the kernel that fires a row: charges to bytes, event list and prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit import I32, I64, Arguments, Emit, Value, vector


def fire(e: Emit, arguments: Value, groups: int) -> Value:
    """The staircase in float32."""
    return _fire(e, arguments, groups, e.floats)


def fire_wide(e: Emit, arguments: Value, groups: int) -> Value:
    """The staircase in float64, for lines that float32 cannot tell apart at every threshold."""
    return _fire(e, arguments, groups, e.doubles)


def _fire(e: Emit, arguments: Value, groups: int, kind: Any) -> Value:
    """Sites of 16 * groups outputs (of any number for the last kernel of the table, which takes
    it from A_GROUPS): levels, list, prefix. Returns the events.

    The prefix first holds each site's own number of events, and is summed up at the end: filling
    the gaps between touched sites as they come would be a loop whose end cannot be predicted.
    """
    a, b = Arguments(e, arguments), e.b
    prefix, width = a.hoist(f.A_PREFIX, f.A_WIDTH)
    zeros = ir.Constant(e.ints, [0] * e.isa.lanes)

    def clear(x: Value, _: list[Value]) -> Sequence[Value]:
        e.store(zeros, e.at(prefix, b.add(x, I64(1)), 4), 4)
        return []

    e.loop(I64(0), width, [], clear, e.isa.lanes)
    vectors = groups * 16 // e.isa.lanes
    top = e.load(e.floats, a[f.A_TOP], 4)
    top = top if kind == e.floats else b.fpext(top, kind)
    events = _few(e, a, groups, top) if vectors <= 4 else _many(e, a, top)
    _sum_up(e, prefix, width)
    return events


def _few(e: Emit, a: Arguments, groups: int, top: Value) -> Value:
    """Up to four vectors at a time: one or more whole sites."""
    b, lanes = e.b, e.isa.lanes
    per = groups * 16 // lanes
    together = 4 // per
    words = 4 * groups
    sites, count, source, target = a.hoist(f.A_SITES, f.A_COUNT, f.A_OUT, f.A_TARGET)
    target_step, key, listed, prefix = a.hoist(f.A_TARGET_STEP, f.A_KEY, f.A_LIST, f.A_PREFIX)
    rates = e.vectors(a[f.A_RATE], groups, top.type) * together
    shifts = e.vectors(a[f.A_SHIFT], groups, top.type) * together
    size = 64 * groups
    lane = ir.Constant(e.ints, [i % words if together > 1 else i for i in range(lanes)])
    pattern = b.add(lane, e.splat(b.trunc(key, I32)))

    def some(t: Value, state: list[Value]) -> Sequence[Value]:
        charges = [
            e.load(e.ints, b.add(e.at(source, t, size), I64(4 * lanes * i)), 4)
            for i in range(per * together)
        ]
        made = e.levels(charges, rates, shifts, top)
        places = [e.index(e.at(sites, b.add(t, I64(i)), 4)) for i in range(together)]
        for i in reversed(range(together)):
            # behind the last site its number is repeated: the true one is written last
            to = e.at(target, places[i], target_step)
            _store_words(e, made, i * words, words, to)
        rest = b.mul(b.sub(count, t), I64(words))
        inside = b.select(e.first_lanes(rest), made, ir.Constant(e.ints, [0] * lanes))
        keys = b.add(_spread(e, places, words), pattern)
        found = e.append(inside, keys, listed, state[0], together)
        before = [state[0], *found]
        for i in reversed(range(together)):
            own = b.trunc(b.sub(before[i + 1], before[i]), I32)
            e.store(own, e.at(prefix, b.add(places[i], I64(1)), 4), 4)
        return [found[-1]]

    return e.loop(I64(0), count, [I64(0)], some, together)[0]


def _spread(e: Emit, places: Sequence[Value], words: int) -> Value:
    """The first key of each site, in the lanes of its words."""
    b, lanes = e.b, e.isa.lanes
    if len(places) == 1:
        return e.splat(b.trunc(b.mul(places[0], I64(words)), I32))
    held: Value = ir.Constant(vector(I32, len(places)), ir.Undefined)
    for i, place in enumerate(places):
        held = b.insert_element(held, b.trunc(b.mul(place, I64(words)), I32), I32(i))
    order = ir.Constant(vector(I32, lanes), [i // words for i in range(lanes)])
    return b.shuffle_vector(held, held, order)


def _store_words(e: Emit, words: Value, first: int, count: int, to: Value) -> None:
    """Lanes first to first + count, an even number."""
    b = e.b
    while count:
        size = max(n for n in (16, 8, 4, 2) if n <= count)
        order = ir.Constant(vector(I32, size), list(range(first, first + size)))
        e.store(b.shuffle_vector(words, words, order), to)
        first, count, to = first + size, count - size, b.add(to, I64(4 * size))


def _many(e: Emit, a: Arguments, top: Value) -> Value:
    """Sites of more than four vectors: four at a time, then one by one."""
    b, lanes = e.b, e.isa.lanes
    sites, count, source, target = a.hoist(f.A_SITES, f.A_COUNT, f.A_OUT, f.A_TARGET)
    target_step, key, listed, prefix = a.hoist(f.A_TARGET_STEP, f.A_KEY, f.A_LIST, f.A_PREFIX)
    rate, shift, groups = a.hoist(f.A_RATE, f.A_SHIFT, f.A_GROUPS)
    size = 4 * lanes if top.type == e.floats else 8 * lanes
    vectors = b.mul(groups, I64(16 // lanes))
    in_fours = b.and_(vectors, I64(-4))
    site_words = b.mul(groups, I64(4))
    lane = ir.Constant(e.ints, list(range(lanes)))

    def site(t: Value, state: list[Value]) -> Sequence[Value]:
        place = e.index(e.at(sites, t, 4))
        here = e.at(source, t, b.mul(groups, I64(64)))
        to, first = e.at(target, place, target_step), b.add(key, b.mul(place, site_words))

        def fired(v: Value, now: list[Value], held: int) -> list[Value]:
            def loaded(kind: Any, base: Value, size: int) -> list[Value]:
                places = [e.at(base, b.add(v, I64(i)), size) for i in range(held)]
                return [e.load(kind, at, 4) for at in places]

            charges = loaded(e.ints, here, 4 * lanes)
            rates, shifts = (loaded(top.type, base, size) for base in (rate, shift))
            made = e.levels(charges, rates, shifts, top)
            _store_words(e, made, 0, lanes * held // 4, e.at(to, v, lanes))
            begin = b.add(first, b.mul(v, I64(lanes // 4)))
            keys = b.add(lane, e.splat(b.trunc(begin, I32)))
            return e.append(made, keys, listed, now[0])

        now = e.loop(I64(0), in_fours, state, lambda v, s: fired(v, s, 4), 4)
        now = e.loop(in_fours, vectors, now, lambda v, s: fired(v, s, 1))
        own = b.trunc(b.sub(now[0], state[0]), I32)
        e.store(own, e.at(prefix, b.add(place, I64(1)), 4), 4)
        return now

    return e.loop(I64(0), count, [I64(0)], site)[0]


def _sum_up(e: Emit, prefix: Value, width: Value) -> None:
    """prefix[x + 1] = sum of the entries up to it, for x below width."""
    b, lanes = e.b, e.isa.lanes
    zeros = ir.Constant(e.ints, [0] * lanes)
    last = ir.Constant(vector(I32, lanes), [lanes - 1] * lanes)

    def part(x: Value, carried: list[Value]) -> Sequence[Value]:
        at = e.at(prefix, b.add(x, I64(1)), 4)
        values, by = e.load(e.ints, at, 4), 1
        while by < lanes:
            order = [lanes] * by + list(range(lanes - by))
            moved = b.shuffle_vector(values, zeros, ir.Constant(vector(I32, lanes), order))
            values, by = b.add(values, moved), 2 * by
        values = b.add(values, carried[0])
        e.store(values, at, 4)
        return [b.shuffle_vector(values, values, last)]

    e.loop(I64(0), width, [zeros], part, lanes)

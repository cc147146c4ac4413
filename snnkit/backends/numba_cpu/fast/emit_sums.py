"""LLVM code of the steps on charges: sums over windows and branches, picked units, ladders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit import I1, I8, I32, I64, Emit, Value, vector
from snnkit.backends.numba_cpu.fast.emit_maps import (
    CHUNK,
    Window,
    charge,
    each_site,
    is_silent,
    map_at,
    opened,
    place,
)
from snnkit.backends.numba_cpu.fast.emit_step import Table, scan_row, when

INTS, OCTETS = vector(I32, CHUNK), vector(I8, CHUNK)


def by_groups(e: Emit, p: Table, body: Callable[[Value], None]) -> None:
    """body(first channel) for every 16 channels of a site of charges."""

    def some(c: Value, _: list[Value]) -> Sequence[Value]:
        body(c)
        return []

    e.loop(I64(0), p[f.P_CHANNELS], [], some, CHUNK)


def _ints(e: Emit, at: Value, c: Value) -> Value:
    return e.load(INTS, e.at(at, c, 4), 4)


def _values(e: Emit, at: Value, c: Value, zero: Value) -> Value:
    """Bytes of a site as values."""
    return e.b.sub(e.b.zext(e.load(OCTETS, e.b.add(at, c)), INTS), e.splat(zero, CHUNK))


def _site(e: Emit, p: Table, charges: Value, number: Value) -> Value:
    return e.at(charges, e.b.mul(number, p[f.P_CHANNELS]), 4)


def _start(e: Emit, p: Table, y: Value, x: Value) -> Value:
    """Address of the constants with which a site begins."""
    b = e.b
    row = b.add(p[f.P_INIT], b.mul(y, p[f.P_INIT_ROW]))
    return b.add(row, b.mul(x, p[f.P_INIT_STEP]))


def channelwise(e: Emit, arguments: Value, _: int) -> Value:
    """Each channel by itself: charge = init + sum of weight[tap] * value over the window; without
    weights (P_A = 0) they are all one."""
    b = e.b
    a, p = opened(e, arguments)
    source, charges = map_at(e, a, p[f.P_SOURCE]), charge(e, a, p[f.P_CHARGE])
    weights, zero = p[f.P_A], b.trunc(source[f.M_ZERO], I32)
    ones, under = b.icmp_signed("==", weights, I64(0)), Window(e, p, source)

    def row(y: Value, _: list[Value]) -> Sequence[Value]:
        taps = b.select(is_silent(e, p, source, y), I64(0), p[f.P_TAP_COUNT])

        def site(x: Value, _: list[Value]) -> Sequence[Value]:
            tap, begin = under.at(y, x), _start(e, p, y, x)
            to = _site(e, p, charges, b.add(b.mul(y, p[f.P_WIDTH]), x))

            def some(c: Value, weighted: bool) -> None:
                def add(t: Value, now: list[Value]) -> Sequence[Value]:
                    at, inside = tap(t)
                    value = _values(e, at, c, zero)
                    if weighted:
                        first = b.add(b.mul(t, p[f.P_CHANNELS]), c)
                        value = b.mul(value, _ints(e, weights, first))
                    return [b.add(now[0], b.select(inside, value, ir.Constant(INTS, [0] * CHUNK)))]

                total = e.loop(I64(0), taps, [_ints(e, begin, c)], add)[0]
                e.store(total, e.at(to, c, 4), 4)

            when(e, ones, lambda: by_groups(e, p, lambda c: some(c, False)))
            when(e, b.not_(ones), lambda: by_groups(e, p, lambda c: some(c, True)))
            return []

        e.loop(I64(0), p[f.P_WIDTH], [], site)
        return []

    e.loop(I64(0), p[f.P_HEIGHT], [], row)
    return I64(0)


def add(e: Emit, arguments: Value, _: int) -> Value:
    """charge = init + multiplier * value, of a map or of other charges; init is the charge so far
    where there is none (P_INIT = 0)."""
    b = e.b
    a, p = opened(e, arguments)
    charges = charge(e, a, p[f.P_CHARGE])
    fresh = b.icmp_signed("!=", p[f.P_INIT], I64(0))
    by_charge = b.icmp_signed(">=", p[f.P_OTHER], I64(0))

    def from_charges() -> None:
        others = charge(e, a, p[f.P_OTHER])
        each(lambda y, x, number: _reader(e, _site(e, p, others, number)))

    def from_map() -> None:
        source = map_at(e, a, p[f.P_SOURCE])
        zero = b.trunc(source[f.M_ZERO], I32)

        def at(y: Value, x: Value, _: Value) -> Callable[[Value], Value]:
            here = place(e, source, y, x)
            return lambda c: _values(e, here, c, zero)

        each(at)

    def each(reader: Callable[[Value, Value, Value], Callable[[Value], Value]]) -> None:
        def site(y: Value, x: Value, number: Value) -> None:
            to, value = _site(e, p, charges, number), reader(y, x, number)
            begin = b.select(fresh, _start(e, p, y, x), to)
            factor = b.add(b.add(p[f.P_A], b.mul(y, p[f.P_B])), b.mul(x, p[f.P_C]))

            def some(c: Value) -> None:
                total = b.add(_ints(e, begin, c), b.mul(value(c), _ints(e, factor, c)))
                e.store(total, e.at(to, c, 4), 4)

            by_groups(e, p, some)

        each_site(e, p, site)

    when(e, by_charge, from_charges)
    when(e, b.not_(by_charge), from_map)
    return I64(0)


def _reader(e: Emit, at: Value) -> Callable[[Value], Value]:
    return lambda c: _ints(e, at, c)


def gathered(e: Emit, base: Value, index: Value, inside: Value, size: int) -> Value:
    """One vector of int32 from base + size * index; zero, and no memory touched, where it is not
    inside."""
    b, none = e.b, ir.Constant(e.ints, [0] * e.isa.lanes)
    at = b.inttoptr(base, I8.as_pointer())
    if e.isa.lanes == 16:
        name = "llvm.x86.avx512.mask.gather.dpi.512"
        return e.call(name, e.ints, [none, at, index, inside, I32(size)])
    mask = b.sext(inside, e.ints)
    return e.call("llvm.x86.avx2.gather.d.d.256", e.ints, [none, at, index, mask, I8(size)])


def pick(e: Emit, arguments: Value, _: int) -> Value:
    """charge = sum of P_B picked units of a map or of charges. P_A: int32 [site][P_B][channels],
    the place of the unit, or -1 for none."""
    b, lanes = e.b, e.isa.lanes
    a, p = opened(e, arguments)
    charges, index = charge(e, a, p[f.P_CHARGE]), p[f.P_A]
    by_charge = b.icmp_signed(">=", p[f.P_OTHER], I64(0))
    none = ir.Constant(e.ints, [0] * lanes)

    def each(value: Callable[[Value, Value], Value]) -> None:
        def site(_y: Value, _x: Value, number: Value) -> None:
            to, first = _site(e, p, charges, number), b.mul(number, p[f.P_B])

            def some(c: Value, _: list[Value]) -> Sequence[Value]:
                def one(k: Value, now: list[Value]) -> Sequence[Value]:
                    row = b.add(b.mul(b.add(first, k), p[f.P_CHANNELS]), c)
                    at = e.load(e.ints, e.at(index, row, 4), 4)
                    inside = b.icmp_signed(">=", at, none)
                    return [b.add(now[0], b.select(inside, value(at, inside), none))]

                total = e.loop(I64(0), p[f.P_B], [none], one)[0]
                e.store(total, e.at(to, c, 4), 4)
                return []

            e.loop(I64(0), p[f.P_CHANNELS], [], some, lanes)

        each_site(e, p, site)

    def from_charges() -> None:
        others = charge(e, a, p[f.P_OTHER])
        each(lambda at, inside: gathered(e, others, at, inside, 4))

    def from_map() -> None:
        source = map_at(e, a, p[f.P_SOURCE])
        base, zero = source[f.M_BASE], e.splat(b.trunc(source[f.M_ZERO], I32))
        low = ir.Constant(e.ints, [255] * lanes)
        each(lambda at, inside: b.sub(b.and_(gathered(e, base, at, inside, 1), low), zero))

    when(e, by_charge, from_charges)
    when(e, b.not_(by_charge), from_map)
    return I64(0)


def ladder(e: Emit, arguments: Value, _: int) -> Value:
    """Neurons on any staircase: a binary search in the thresholds of each, 2^P_E - 1 of them."""
    b, lanes = e.b, e.isa.lanes
    a, p = opened(e, arguments)
    target, charges = map_at(e, a, p[f.P_TARGET]), charge(e, a, p[f.P_CHARGE])
    thresholds, values = p[f.P_B], p[f.P_C]
    steps, top = (e.splat(b.trunc(v, I32)) for v in (p[f.P_D], b.sub(p[f.P_E], I64(1))))
    everywhere = ir.Constant(vector(I1, lanes), [1] * lanes)
    one, none = (ir.Constant(e.ints, [n] * lanes) for n in (1, 0))

    def cells(here: Value, ladder_row: Value) -> Value:
        first = b.mul(ladder_row, steps)

        def halve(i: Value, now: list[Value]) -> Sequence[Value]:
            half = b.shl(one, b.sub(top, e.splat(b.trunc(i, I32))))
            at = b.add(b.add(first, now[0]), b.sub(half, one))
            passed = b.icmp_signed(">=", here, gathered(e, thresholds, at, everywhere, 4))
            return [b.add(now[0], b.select(passed, half, none))]

        return e.loop(I64(0), p[f.P_E], [none], halve)[0]

    def row(y: Value, _: list[Value]) -> Sequence[Value]:
        def site(x: Value, _: list[Value]) -> Sequence[Value]:
            number, to = b.add(b.mul(y, p[f.P_WIDTH]), x), place(e, target, y, x)
            start, rows = _site(e, p, charges, number), _site(e, p, p[f.P_A], number)

            def some(c: Value, _: list[Value]) -> Sequence[Value]:
                here = e.load(e.ints, e.at(start, c, 4), 4)
                which = e.load(e.ints, e.at(rows, c, 4), 4)
                at = b.add(b.mul(which, b.add(steps, one)), cells(here, which))
                value = gathered(e, values, at, everywhere, 4)
                e.store(b.trunc(value, vector(I8, lanes)), b.add(to, c))
                return []

            e.loop(I64(0), p[f.P_CHANNELS], [], some, lanes)
            return []

        e.loop(I64(0), p[f.P_WIDTH], [], site)
        scan_row(e, a, target, b.add(y, target[f.M_TOP]))
        return []

    e.loop(I64(0), p[f.P_HEIGHT], [], row)
    return I64(0)

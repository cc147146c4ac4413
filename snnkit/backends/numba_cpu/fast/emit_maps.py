"""LLVM code of the steps that make maps of bytes: maxima, charges as bytes, moves, floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit import F32, I8, I32, I64, Emit, Value, vector
from snnkit.backends.numba_cpu.fast.emit_step import Loaded, Table, clear_row, scan_row, when

CHUNK = 16
"""Channels at a time; LLVM makes two vectors of them where one is too short."""


def opened(e: Emit, arguments: Value) -> tuple[Table, Table]:
    """The arguments and the row of the step."""
    a = Table(e, arguments)
    return a, Loaded(e, a[f.A_STEP], f.STEP)


def map_at(e: Emit, a: Table, which: Value) -> Table:
    return Loaded(e, Table(e, a[f.A_MAPS]).row(which, f.MAP).address, f.MAP)


def each_site(e: Emit, p: Table, body: Callable[[Value, Value, Value], None]) -> None:
    """body(y, x, number) for every output site of a step."""
    b, width = e.b, p[f.P_WIDTH]

    def row(y: Value, _: list[Value]) -> Sequence[Value]:
        def site(x: Value, _: list[Value]) -> Sequence[Value]:
            body(y, x, b.add(b.mul(y, width), x))
            return []

        e.loop(I64(0), width, [], site)
        return []

    e.loop(I64(0), p[f.P_HEIGHT], [], row)


def place(e: Emit, m: Table, y: Value, x: Value) -> Value:
    """Address of a site of a map, counted without the padding."""
    b = e.b
    row = b.mul(b.add(y, m[f.M_TOP]), m[f.M_ROW_BYTES])
    return b.add(b.add(m[f.M_BASE], row), b.mul(b.add(x, m[f.M_LEFT]), m[f.M_PITCH]))


def by_chunks(e: Emit, bytes_: Value, body: Callable[[Value, int], None]) -> None:
    """body(first channel, how many) for the bytes of a site: CHUNK at a time, then word by word."""
    wide = e.b.and_(bytes_, I64(-CHUNK))
    for begin, end, lanes in ((I64(0), wide, CHUNK), (wide, bytes_, 4)):

        def some(c: Value, _: list[Value], lanes: int = lanes) -> Sequence[Value]:
            body(c, lanes)
            return []

        e.loop(begin, end, [], some, lanes)


class Window:
    """The sites of a map under the taps of a step."""

    def __init__(self, e: Emit, p: Table, m: Table):
        self.e, self.p, self.m = e, p, m
        self.first = place(e, m, I64(0), I64(0))

    def at(self, y: Value, x: Value) -> Callable[[Value], tuple[Value, Value]]:
        """By tap: address of the site under it, and whether it is inside (if not, another)."""
        e, b, p, m = self.e, self.e.b, self.p, self.m
        first_row, first_column = b.mul(y, p[f.P_ROW_STRIDE]), b.mul(x, p[f.P_STRIDE])

        def tap(t: Value) -> tuple[Value, Value]:
            at = e.at(p[f.P_TAPS], t, 8)
            row, column = (
                b.add(first, b.sext(e.load(I32, b.add(at, I64(i)), 4), I64))
                for first, i in ((first_row, 0), (first_column, 4))
            )
            inside = b.and_(
                b.icmp_unsigned("<", row, m[f.M_HEIGHT]),
                b.icmp_unsigned("<", column, m[f.M_WIDTH]),
            )
            offset = b.add(b.mul(row, m[f.M_ROW_BYTES]), b.mul(column, m[f.M_PITCH]))
            return b.add(self.first, b.select(inside, offset, I64(0))), inside

        return tap


def is_silent(e: Emit, p: Table, m: Table, y: Value) -> Value:
    """Whether no row of the map under output row y has an event, and no event is the byte zero."""
    b, taps, counts = e.b, p[f.P_TAPS], m[f.M_COUNTS]
    first, height = b.mul(y, p[f.P_ROW_STRIDE]), m[f.M_HEIGHT]

    def tap(t: Value, now: list[Value]) -> Sequence[Value]:
        row = b.add(first, b.sext(e.load(I32, e.at(taps, t, 8), 4), I64))
        inside = b.icmp_unsigned("<", row, height)
        row = b.select(inside, row, I64(0))
        found = e.index(e.at(counts, b.add(row, m[f.M_TOP]), 4))
        return [b.or_(now[0], b.select(inside, found, I64(0)))]

    found = e.loop(I64(0), p[f.P_TAP_COUNT], [m[f.M_ZERO]], tap)[0]
    return b.icmp_signed("==", found, I64(0))


def maximum(e: Emit, arguments: Value, _: int) -> Value:
    """The largest byte under each window; bytes are at least zero, so what is outside counts as
    zero."""
    b = e.b
    a, p = opened(e, arguments)
    source, target = map_at(e, a, p[f.P_SOURCE]), map_at(e, a, p[f.P_TARGET])

    under = Window(e, p, source)

    def row(y: Value, _: list[Value]) -> Sequence[Value]:
        to, silent = b.add(y, target[f.M_TOP]), is_silent(e, p, source, y)

        def compute() -> None:
            def site(x: Value, _: list[Value]) -> Sequence[Value]:
                _largest(e, p, under.at(y, x), target, place(e, target, y, x))
                return []

            e.loop(I64(0), p[f.P_WIDTH], [], site)
            scan_row(e, a, target, to)

        when(e, silent, lambda: clear_row(e, target, to))
        when(e, b.not_(silent), compute)
        return []

    e.loop(I64(0), p[f.P_HEIGHT], [], row)
    return I64(0)


def _largest(
    e: Emit, p: Table, tap: Callable[[Value], tuple[Value, Value]], target: Table, to: Value
) -> None:
    b = e.b

    def some(c: Value, lanes: int) -> None:
        kind = vector(I8, lanes)
        zero = ir.Constant(kind, [0] * lanes)

        def larger(t: Value, now: list[Value]) -> Sequence[Value]:
            at, inside = tap(t)
            value = e.load(kind, b.add(at, c))
            better = b.icmp_unsigned(">", value, now[0])
            best = b.select(better, value, now[0])
            return [b.select(inside, best, now[0])]

        best = e.loop(I64(0), p[f.P_TAP_COUNT], [zero], larger)[0]
        e.store(best, b.add(to, c))

    by_chunks(e, target[f.M_PITCH], some)


def narrow(e: Emit, arguments: Value, _: int) -> Value:
    """Charges that are known to fit, as bytes."""
    b = e.b
    a, p = opened(e, arguments)
    target = map_at(e, a, p[f.P_TARGET])
    charges, zero = charge(e, a, p[f.P_CHARGE]), b.trunc(target[f.M_ZERO], I32)

    def site(y: Value, x: Value, number: Value) -> None:
        to, start = place(e, target, y, x), e.at(charges, b.mul(number, p[f.P_D]), 4)

        def some(c: Value, lanes: int) -> None:
            value = e.load(vector(I32, lanes), e.at(start, c, 4), 4)
            level = b.trunc(b.add(value, e.splat(zero, lanes)), vector(I8, lanes))
            e.store(level, b.add(to, c))

        by_chunks(e, target[f.M_PITCH], some)

    each_site(e, p, site)
    scan_all(e, a, target)
    return I64(0)


def charge(e: Emit, a: Table, which: Value) -> Value:
    """Address of the charges of that number."""
    return e.load(I64, e.at(a[f.A_CHARGES], which, 8), 8)


def scan_all(e: Emit, a: Table, m: Table) -> None:
    """List every row of a map that was written without lists."""

    def row(y: Value, _: list[Value]) -> Sequence[Value]:
        scan_row(e, a, m, e.b.add(y, m[f.M_TOP]))
        return []

    e.loop(I64(0), m[f.M_HEIGHT], [], row)


def move(e: Emit, arguments: Value, _: int) -> Value:
    """Runs of bytes to other places; P_C is the difference of the zeros of the two maps.

    P_A: int32 (first byte of the source, of the target, number of bytes), P_CHANNELS times.
    """
    b = e.b
    a, p = opened(e, arguments)
    source, target = map_at(e, a, p[f.P_SOURCE]), map_at(e, a, p[f.P_TARGET])
    begin, end, change = source[f.M_BASE], target[f.M_BASE], b.trunc(p[f.P_C], I8)

    def run(r: Value, _: list[Value]) -> Sequence[Value]:
        at = e.at(p[f.P_A], r, 12)
        here, there, size = (e.index(b.add(at, I64(4 * i))) for i in range(3))
        here, there = b.add(begin, here), b.add(end, there)
        wide = b.and_(size, I64(-CHUNK))
        for first, last, lanes in ((I64(0), wide, CHUNK), (wide, size, 1)):

            def some(c: Value, _: list[Value], lanes: int = lanes) -> Sequence[Value]:
                value = e.load(vector(I8, lanes), b.add(here, c))
                e.store(b.add(value, e.splat(change, lanes)), b.add(there, c))
                return []

            e.loop(first, last, [], some, lanes)
        return []

    e.loop(I64(0), p[f.P_CHANNELS], [], run)
    when(e, b.icmp_signed("!=", p[f.P_D], I64(0)), lambda: scan_all(e, a, target))
    return I64(0)


def scatter(e: Emit, arguments: Value, _: int) -> Value:
    """Quantise the floats at A_INPUT one by one, each to its own place in the map; P_E is 1 where
    the places are neighbours. The same bits as `snnkit.boundary.quantise`."""
    b = e.b
    a, p = opened(e, arguments)
    target, units = map_at(e, a, p[f.P_TARGET]), p[f.P_CHANNELS]
    places, base = p[f.P_A], target[f.M_BASE]
    near = b.icmp_signed("!=", p[f.P_E], I64(0))
    wide = b.and_(units, I64(-CHUNK))

    def quantised(u: Value, lanes: int) -> Any:
        kind, name = vector(F32, lanes), f"v{lanes}f32"
        low, high = (e.splat(b.sitofp(p[i], F32), lanes) for i in (f.P_C, f.P_D))
        value, offset, scale = (
            e.load(kind, e.at(at, u, 4), 4) for at in (a[f.A_INPUT], p[f.P_SHIFT], p[f.P_RATE])
        )
        value = b.fdiv(b.fsub(value, offset), scale)
        value = e.call(f"llvm.rint.{name}", kind, [value])
        value = b.select(b.fcmp_ordered(">", value, low), value, low)
        value = b.select(b.fcmp_ordered("<", value, high), value, high)
        level = b.fptosi(value, vector(I32, lanes))
        level = b.add(level, e.splat(b.trunc(target[f.M_ZERO], I32), lanes))
        return b.trunc(level, vector(I8, lanes))

    def side_by_side(u: Value, _: list[Value]) -> Sequence[Value]:
        e.store(quantised(u, CHUNK), b.add(base, e.index(e.at(places, u, 4))))
        return []

    def apart(u: Value, _: list[Value], lanes: int = CHUNK) -> Sequence[Value]:
        levels = quantised(u, lanes)
        for i in range(lanes):
            at = e.index(e.at(places, b.add(u, I64(i)), 4))
            e.store(b.extract_element(levels, I32(i)), b.add(base, at))
        return []

    e.loop(I64(0), b.select(near, wide, I64(0)), [], side_by_side, CHUNK)
    e.loop(I64(0), b.select(near, I64(0), wide), [], apart, CHUNK)
    e.loop(wide, units, [], lambda u, s: apart(u, s, 1))
    scan_all(e, a, target)
    return I64(0)

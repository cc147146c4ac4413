"""LLVM code of the kernels that make rows of words: quantise floats, list what is not zero."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit import (
    F32,
    I8,
    I16,
    I32,
    I64,
    Arguments,
    Emit,
    Value,
    vector,
)


def scan(e: Emit, arguments: Value, _groups: int) -> Value:
    """List and prefix of a whole padded row. Returns the number of words that are not zero."""
    a, b, lanes = Arguments(e, arguments), e.b, e.isa.lanes
    per_column, columns, target = a.hoist(f.A_COLUMN_WORDS, f.A_COLUMNS, f.A_TARGET)
    listed, prefix = a.hoist(f.A_LIST, f.A_PREFIX)
    lane = ir.Constant(e.ints, list(range(lanes)))

    def column(x: Value, state: list[Value]) -> Sequence[Value]:
        e.store(b.trunc(state[0], I32), e.at(prefix, x, 4), 4)
        base = b.mul(x, per_column)

        def part(g: Value, now: list[Value]) -> Sequence[Value]:
            key = b.add(base, g)
            words = e.load(e.ints, e.at(target, key, 4))
            inside = e.first_lanes(b.sub(per_column, g))
            words = b.select(inside, words, ir.Constant(e.ints, [0] * lanes))
            keys = b.add(lane, e.splat(b.trunc(key, I32)))
            return e.append(words, keys, listed, now[0])

        return e.loop(I64(0), per_column, state, part, lanes)

    events = e.loop(I64(0), columns, [I64(0)], column)[0]
    e.store(b.trunc(events, I32), e.at(prefix, columns, 4), 4)
    return events


def silent(e: Emit, arguments: Value, _groups: int) -> Value:
    """1 if all floats of one row [channels][width] are zero."""
    a, b = Arguments(e, arguments), e.b
    width, plane, source = a.hoist(f.A_WIDTH, f.A_PLANE, f.A_SOURCE)
    lanes = e.isa.lanes
    whole = b.and_(width, I64(-lanes))

    def channel(c: Value, found: list[Value]) -> Sequence[Value]:
        at = e.at(source, c, plane)

        def part(x: Value, now: list[Value]) -> Sequence[Value]:
            return [b.or_(now[0], e.load(e.ints, e.at(at, x, 4), 4))]

        def one(x: Value, now: list[Value]) -> Sequence[Value]:
            return [b.or_(now[0], e.load(I32, e.at(at, x, 4), 4))]

        some = e.loop(I64(0), whole, found[:1], part, lanes)
        return [*some, *e.loop(whole, width, found[1:], one)]

    start = [ir.Constant(e.ints, [0] * lanes), I32(0)]
    found, rest = e.loop(I64(0), a[f.A_CHANNELS], start, channel)
    # the sign of zero does not count
    some = _any(e, b.shl(found, ir.Constant(e.ints, [1] * lanes)))
    some = b.or_(some, b.icmp_unsigned("!=", b.shl(rest, I32(1)), I32(0)))
    return b.zext(b.not_(some), I64)


def _any(e: Emit, bits: Value) -> Value:
    mask = e.b.icmp_unsigned("!=", bits, ir.Constant(e.ints, [0] * e.isa.lanes))
    kind = ir.IntType(e.isa.lanes)
    return e.b.icmp_unsigned("!=", e.b.bitcast(mask, kind), kind(0))


def quantise(e: Emit, arguments: Value, exact: int) -> Value:
    """One row of floats [channels][width] as words, with list and prefix where a site has no more
    than one word. The same bits as `snnkit.boundary.quantise`. Returns the events.

    exact : A_SCALE holds 1 / scale, and that product is exact because scales are powers of two.
    """
    a, b, lanes = Arguments(e, arguments), e.b, e.isa.lanes
    width, channels, pitch, target = a.hoist(f.A_WIDTH, f.A_CHANNELS, f.A_TARGET_STEP, f.A_TARGET)
    a.hoist(f.A_SOURCE, f.A_PLANE, f.A_OFFSET, f.A_SCALE, f.A_ZERO, f.A_LIST, f.A_KEY, f.A_PREFIX)
    ints, kind = e.ints, f"v{lanes}f32"
    low, high = (e.splat(b.sitofp(a[i], F32)) for i in (f.A_LOW, f.A_HIGH))
    floor = e.splat(b.trunc(a[f.A_LOW], I32))
    zeros = ir.Constant(ints, [0] * lanes)
    skip = b.icmp_signed("!=", a[f.A_SILENT], I64(0))

    def pixels(x: Value, state: list[Value], whole: bool) -> Sequence[Value]:
        inside = e.first_lanes(b.sub(width, x))

        def floats(c: Value) -> Value:
            at = e.at(e.at(a[f.A_SOURCE], c, a[f.A_PLANE]), x, 4)
            return e.load(e.floats, at, 4) if whole else _load_inside(e, at, inside)

        def word(first: Value, now: list[Value]) -> Sequence[Value]:
            rest = b.sub(channels, first)
            some = b.select(b.icmp_signed("<", rest, I64(4)), rest, I64(4))

            def look(i: Value, found: list[Value]) -> Sequence[Value]:
                return [b.or_(found[0], b.bitcast(floats(b.add(first, i)), ints))]

            def channel(i: Value, made: list[Value]) -> Sequence[Value]:
                c = b.add(first, i)
                offset, scale = (
                    e.splat(e.load(F32, e.at(a[k], c, 4), 4)) for k in (f.A_OFFSET, f.A_SCALE)
                )
                value = b.fsub(floats(c), offset)
                value = b.fmul(value, scale) if exact else b.fdiv(value, scale)
                value = e.call(f"llvm.rint.{kind}", e.floats, [value])
                value = e.least(b.select(b.fcmp_ordered(">", value, low), value, low), high)
                shift = b.trunc(b.mul(i, I64(8)), I32)
                level = b.shl(b.sub(b.fptosi(value, ints), floor), e.splat(shift))
                outside = b.shl(b.trunc(a[f.A_ZERO], I32), shift)
                return [b.or_(made[0], level), b.or_(made[1], outside)]

            seen = e.loop(I64(0), b.select(skip, some, I64(0)), [zeros], look)[0]
            loud = _any(e, b.shl(seen, ir.Constant(ints, [1] * lanes)))
            # no channel to compute where all are zero
            some = b.select(b.or_(loud, b.not_(skip)), some, I64(0))
            words, outside = e.loop(I64(0), some, [zeros, I32(0)], channel)
            if not whole:
                words = b.select(inside, words, e.splat(outside))
            to = b.add(target, b.add(b.mul(x, pitch), first))
            return [_put(e, a, words, to, x, now[0])]

        return e.loop(I64(0), channels, state, word, 4)

    full = b.and_(width, I64(-lanes))
    state = e.loop(I64(0), full, [I64(0)], lambda x, s: pixels(x, s, True), lanes)
    events = e.loop(full, width, state, lambda x, s: pixels(x, s, False), lanes)[0]
    _fill_prefix(e, a, events)
    return events


def _fill_prefix(e: Emit, a: Arguments, events: Value) -> None:
    """The prefix behind the last pixel."""
    b = e.b

    def fill(x: Value, _: list[Value]) -> Sequence[Value]:
        e.store(e.splat(b.trunc(events, I32)), e.at(a[f.A_PREFIX], x, 4), 4)
        return []

    e.loop(b.add(a[f.A_WIDTH], I64(1)), b.add(a[f.A_COLUMNS], I64(1)), [], fill, e.isa.lanes)


def _load_inside(e: Emit, address: Value, inside: Value) -> Value:
    """A vector of floats; where it is outside, memory is not touched."""
    b, halves, pointer = e.b, [], I8.as_pointer()
    mask = b.sext(inside, e.ints)
    for first in range(0, e.isa.lanes, 8):
        order = ir.Constant(vector(I32, 8), list(range(first, first + 8)))
        part = b.shuffle_vector(mask, mask, order)
        at = b.inttoptr(b.add(address, I64(4 * first)), pointer)
        halves.append(e.call("llvm.x86.avx.maskload.ps.256", vector(F32, 8), [at, part]))
    if len(halves) == 1:
        return halves[0]
    order = ir.Constant(vector(I32, 16), list(range(16)))
    return b.shuffle_vector(halves[0], halves[1], order)


def _put(e: Emit, a: Arguments, words: Value, to: Value, x: Value, events: Value) -> Value:
    """Store one word per pixel, 1, 2, 4 or more bytes apart. Returns the new number of events."""
    b, lanes, pitch = e.b, e.isa.lanes, a[f.A_TARGET_STEP]
    cases = {size: b.append_basic_block(f"bytes{size}") for size in (1, 2, 4)}
    far, after = b.append_basic_block("far"), b.append_basic_block("stored")
    switch = b.switch(pitch, far)
    for size, target in cases.items():
        switch.add_case(I64(size), target)
    results = []
    for size, target in cases.items():
        b.position_at_end(target)
        element = {1: I8, 2: I16, 4: I32}[size]
        e.store(words if size == 4 else b.trunc(words, vector(element, lanes)), to)
        new = _list(e, a, words, x, events, size == 4)
        results.append((new, b.block))
        b.branch(after)
    b.position_at_end(far)
    for i in range(lanes):
        e.store(b.extract_element(words, I32(i)), b.add(to, b.mul(pitch, I64(i))))
    results.append((events, b.block))
    b.branch(after)
    b.position_at_end(after)
    phi = b.phi(I64)
    for value, origin in results:
        phi.add_incoming(value, origin)
    return phi


def _list(e: Emit, a: Arguments, words: Value, x: Value, events: Value, keyed: bool) -> Value:
    """Prefix entries behind these pixels; with `keyed` the list too."""
    b, lanes = e.b, e.isa.lanes
    mask = b.icmp_unsigned("!=", words, ir.Constant(e.ints, [0] * lanes))
    bits = b.zext(b.bitcast(mask, ir.IntType(lanes)), I32)
    upto = ir.Constant(e.ints, [2 ** (i + 1) - 1 for i in range(lanes)])
    name = f"llvm.ctpop.v{lanes}i32"
    before = e.call(name, e.ints, [b.and_(e.splat(bits), upto)])
    before = b.add(before, e.splat(b.trunc(events, I32)))
    e.store(before, e.at(a[f.A_PREFIX], b.add(x, I64(1)), 4), 4)
    if not keyed:
        return b.add(events, b.zext(e.call("llvm.ctpop.i32", I32, [bits]), I64))
    lane = ir.Constant(e.ints, list(range(lanes)))
    keys = b.add(lane, e.splat(b.trunc(b.add(a[f.A_KEY], x), I32)))
    return e.append(words, keys, a[f.A_LIST], events)[0]

"""LLVM code of the kernels that make rows of words: quantise floats, list what is not zero."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit import F32, I8, I16, I32, I64, Emit, Row, Value, vector


def scan(e: Emit, arguments: Value, _groups: int) -> Value:
    """List and prefix of a whole padded row. Returns the number of words that are not zero."""
    row, b, lanes = Row(e, arguments, 1), e.b, e.isa.lanes
    per_column, columns = row[f.A_COLUMN_WORDS], row[f.A_WIDTH]
    kind = vector(I32, lanes)
    lane = ir.Constant(kind, list(range(lanes)))

    def column(x: Value, state: list[Value]) -> Sequence[Value]:
        e.store(b.trunc(state[0], I32), e.at(row.prefix, x, 4), 4)
        base = b.mul(x, per_column)

        def part(g: Value, now: list[Value]) -> Sequence[Value]:
            key = b.add(base, g)
            words = e.load(kind, e.at(row.target, key, 4))
            rest = e.splat(b.trunc(b.sub(per_column, g), I32))
            inside = b.icmp_signed("<", lane, rest)
            words = b.select(inside, words, ir.Constant(kind, [0] * lanes))
            return [e.append(words, key, row.listed, now[0])]

        return e.loop(I64(0), per_column, state, part, lanes)

    events = e.loop(I64(0), columns, [I64(0)], column)[0]
    e.store(b.trunc(events, I32), e.at(row.prefix, columns, 4), 4)
    return events


def quantise(e: Emit, arguments: Value, _groups: int) -> Value:
    """One row of floats [channels][width] as words, with list and prefix where a site has no more
    than one word. The same bits as `snnkit.boundary.quantise`. Returns the events."""
    row, b, lanes = Row(e, arguments, 1), e.b, e.isa.lanes
    width, channels, pitch = row[f.A_WIDTH], row[f.A_CHANNELS], row.target_step
    ints, zero_word = e.ints, row[f.A_WORDS]
    low, high = (e.splat(b.sitofp(row[i], F32)) for i in (f.A_LOW, f.A_HIGH))
    floor = e.splat(b.trunc(row[f.A_LOW], I32))
    lane = ir.Constant(ints, list(range(lanes)))
    kind = f"v{lanes}f32"

    def pixels(x: Value, state: list[Value]) -> Sequence[Value]:
        inside = b.icmp_signed("<", lane, e.splat(b.trunc(b.sub(width, x), I32)))

        def word(first: Value, now: list[Value]) -> Sequence[Value]:
            rest = b.sub(channels, first)
            some = b.select(b.icmp_signed("<", rest, I64(4)), rest, I64(4))

            def channel(i: Value, made: list[Value]) -> Sequence[Value]:
                c = b.add(first, i)
                at = e.at(e.at(row[f.A_SOURCE], c, row[f.A_PLANE]), x, 4)
                value = _load_inside(e, at, inside)
                offset, scale = (
                    e.splat(e.load(F32, e.at(row[a], c, 4), 4)) for a in (f.A_OFFSET, f.A_SCALE)
                )
                value = b.fdiv(b.fsub(value, offset), scale)
                value = e.call(f"llvm.rint.{kind}", e.floats, [value])
                value = e.call(f"llvm.maxnum.{kind}", e.floats, [value, low])
                value = e.call(f"llvm.minnum.{kind}", e.floats, [value, high])
                shift = b.trunc(b.mul(i, I64(8)), I32)
                level = b.shl(b.sub(b.fptosi(value, ints), floor), e.splat(shift))
                outside = b.shl(b.trunc(zero_word, I32), shift)
                return [b.or_(made[0], level), b.or_(made[1], outside)]

            nothing = [ir.Constant(ints, [0] * lanes), I32(0)]
            words, outside = e.loop(I64(0), some, nothing, channel)
            words = b.select(inside, words, e.splat(outside))
            to = b.add(row.target, b.add(b.mul(x, pitch), first))
            return [_put(e, row, words, to, x, now[0])]

        return e.loop(I64(0), channels, state, word, 4)

    events = e.loop(I64(0), width, [I64(0)], pixels, lanes)[0]
    row.fill(row[f.A_COUNT], events, b.add(width, I64(1)))
    return events


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


def _put(e: Emit, row: Row, words: Value, to: Value, x: Value, events: Value) -> Value:
    """Store one word per pixel, 1, 2, 4 or more bytes apart. Returns the new number of events."""
    b, lanes = e.b, e.isa.lanes
    cases = {size: b.append_basic_block(f"bytes{size}") for size in (1, 2, 4)}
    far, after = b.append_basic_block("far"), b.append_basic_block("stored")
    switch = b.switch(row.target_step, far)
    for size, target in cases.items():
        switch.add_case(I64(size), target)
    results = []
    for size, target in cases.items():
        b.position_at_end(target)
        element = {1: I8, 2: I16, 4: I32}[size]
        e.store(words if size == 4 else b.trunc(words, vector(element, lanes)), to)
        new = _list(e, row, words, x, events, size == 4)
        results.append((new, b.block))
        b.branch(after)
    b.position_at_end(far)
    for i in range(lanes):
        e.store(b.extract_element(words, I32(i)), b.add(to, b.mul(row.target_step, I64(i))))
    results.append((events, b.block))
    b.branch(after)
    b.position_at_end(after)
    phi = b.phi(I64)
    for value, origin in results:
        phi.add_incoming(value, origin)
    return phi


def _list(e: Emit, row: Row, words: Value, x: Value, events: Value, keys: bool) -> Value:
    """Prefix entries behind these pixels; with `keys` the list too."""
    b, lanes = e.b, e.isa.lanes
    mask = b.icmp_unsigned("!=", words, ir.Constant(e.ints, [0] * lanes))
    bits = b.zext(b.bitcast(mask, ir.IntType(lanes)), I32)
    upto = ir.Constant(e.ints, [2 ** (i + 1) - 1 for i in range(lanes)])
    name = f"llvm.ctpop.v{lanes}i32"
    before = e.call(name, e.ints, [b.and_(e.splat(bits), upto)])
    before = b.add(before, e.splat(b.trunc(events, I32)))
    e.store(before, e.at(row.prefix, b.add(x, I64(1)), 4), 4)
    if keys:
        return e.append(words, b.add(row.key, x), row.listed, events)
    return b.add(events, b.zext(e.call("llvm.ctpop.i32", I32, [bits]), I64))

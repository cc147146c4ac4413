"""LLVM code of the streaming kernels: changes into charges, charges into changes.

A change is two channels of one site: two int16 differences in 32 bits, so that any difference of
two bytes fits and one multiply-add of pairs gives 32-bit sums, exact on every CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from snnkit.backends.numba_cpu.fast.emit import I8, I16, I32, I64, Emit, Value, vector
from snnkit.backends.numba_cpu.stream import fields as f

BLOCK = 32
"""Bytes of the weights of one pair of channels for 16 outputs: int8 pairs, widened when they are
loaded, since what bounds the kernel is the second level cache."""


def columns(e: Emit, arguments: Value, *fields: int) -> list[Value]:
    return [e.load(I64, e.b.add(arguments, I64(8 * field)), 8) for field in fields]


def spread(e: Emit, arguments: Value, groups: int) -> Value:
    """Add each change * weights to the charges of all sites it meets, for 16 * groups outputs."""
    return _spread(e, arguments, groups, False)


def spread_times(e: Emit, arguments: Value, groups: int) -> Value:
    """As `spread`, with a multiplier per output."""
    return _spread(e, arguments, groups, True)


def _spread(e: Emit, arguments: Value, groups: int, multiplied: bool) -> Value:
    b = e.b
    sites, begins, count = columns(e, arguments, f.S_SITES, f.S_BEGINS, f.S_COUNT)
    row_first, row_taps = columns(e, arguments, f.S_ROW_FIRST, f.S_ROW_TAPS)
    column_first, column_taps = columns(e, arguments, f.S_COLUMN_FIRST, f.S_COLUMN_TAPS)
    weight, width, touched_count = columns(e, arguments, f.S_WEIGHT, f.S_WIDTH, f.S_TOUCHED_COUNT)
    target = Target(e, arguments, groups, multiplied)

    def site(s: Value, state: list[Value]) -> Sequence[Value]:
        packed = e.index(e.at(sites, s, 4))
        y, x = b.lshr(packed, I64(16)), b.and_(packed, I64(0xFFFF))
        at = e.at(begins, s, 4)
        begin, end = e.index(at), e.index(b.add(at, I64(4)))
        rows, columns_ = e.at(row_first, y, 4), e.at(column_first, x, 4)
        left, right = e.index(columns_), e.index(b.add(columns_, I64(4)))

        def row(a: Value, state: list[Value]) -> Sequence[Value]:
            tap = e.at(row_taps, a, 16)
            weight_row = b.add(weight, e.load(I64, tap, 8))
            out_row = e.load(I64, b.add(tap, I64(8)), 8)
            first, high = b.mul(out_row, width), b.shl(out_row, I64(16))

            def column(c: Value, state: list[Value]) -> Sequence[Value]:
                tap = e.at(column_taps, c, 16)
                out_column = e.load(I64, b.add(tap, I64(8)), 8)
                place = b.add(first, out_column)
                here = b.add(weight_row, e.load(I64, tap, 8))
                target.add(place, here, begin, end)
                return [target.touch(place, b.or_(high, out_column), state[0])]

            return e.loop(left, right, state, column)

        return e.loop(e.index(rows), e.index(b.add(rows, I64(4))), state, row)

    start = [e.load(I64, touched_count, 8)]
    touched = e.loop(I64(0), e.load(I64, count, 8), start, site)[0]
    e.store(touched, touched_count, 8)
    return touched


class Target:
    """The charges that changes are added to."""

    def __init__(self, e: Emit, arguments: Value, groups: int, multiplied: bool):
        self.e, self.groups, self.multiplied = e, groups, multiplied
        self.charge, self.site_bytes = columns(e, arguments, f.S_CHARGE, f.S_SITE_BYTES)
        self.flags, self.touched = columns(e, arguments, f.S_FLAGS, f.S_TOUCHED)
        self.words, self.index, self.times = columns(e, arguments, f.S_WORDS, f.S_INDEX, f.S_TIMES)

    def add(self, place: Value, weights: Value, begin: Value, end: Value) -> None:
        """Changes begin to end into the charges of one site."""
        e, b, size = self.e, self.e.b, 4 * self.e.isa.lanes
        to = e.at(self.charge, place, self.site_bytes)
        pair = vector(I16, 2 * e.isa.lanes)
        name = "llvm.x86.avx512.pmaddw.d.512" if e.isa.lanes == 16 else "llvm.x86.avx2.pmadd.wd"

        def change(k: Value, now: list[Value]) -> Sequence[Value]:
            word = b.bitcast(e.splat(e.load(I32, e.at(self.words, k, 4), 4)), pair)
            at = e.at(weights, e.index(e.at(self.index, k, 4)), BLOCK * self.groups)
            new = []
            for j, charge in enumerate(now):
                lie = e.load(vector(I8, 2 * e.isa.lanes), b.add(at, I64(size // 2 * j)), size // 2)
                held = b.sext(lie, pair)
                # the code generator makes one vpdpwssd of these two where there is one
                new.append(b.add(charge, e.call(name, e.ints, [word, held])))
            return new

        old = e.vectors(to, self.groups, e.ints)
        if self.multiplied:
            none = [ir.Constant(e.ints, [0] * e.isa.lanes)] * len(old)
            sums = e.loop(begin, end, none, change)
            times = e.vectors(self.times, self.groups, e.ints)
            new = [b.add(o, b.mul(s, t)) for o, s, t in zip(old, sums, times, strict=True)]
        else:
            new = e.loop(begin, end, old, change)
        for j, charge in enumerate(new):
            e.store(charge, b.add(to, I64(size * j)), size)

    def touch(self, place: Value, packed: Value, touched: Value) -> Value:
        """List the site unless it is listed already; no branch, it cannot be predicted."""
        e, b = self.e, self.e.b
        flag = b.add(self.flags, place)
        e.store(b.trunc(packed, I32), e.at(self.touched, touched, 4), 4)
        fresh = b.sub(I64(1), b.zext(e.load(I8, flag), I64))
        e.store(I8(1), flag)
        return b.add(touched, fresh)


def fire(e: Emit, arguments: Value, groups: int) -> Value:
    """The staircase of the touched sites, 16 * groups channels at a time; lists what changed."""
    charge, site_bytes, rate, shift, top = columns(
        e, arguments, f.S_CHARGE, f.S_SITE_BYTES, f.S_RATE, f.S_SHIFT, f.S_TOP
    )
    tops, b, size = e.load(e.floats, top, 4), e.b, 4 * e.isa.lanes

    def levels(place: Value, group: Value) -> Value:
        at = b.mul(group, I64(64))
        bases = (b.add(e.at(charge, place, site_bytes), at), b.add(rate, at), b.add(shift, at))
        parts = []
        for first in range(0, 64 * groups, 4 * size):
            places = [I64(n) for n in range(first, min(first + 4 * size, 64 * groups), size)]
            charges, rates, shifts = (
                [e.load(kind, b.add(base, place), size) for place in places]
                for kind, base in zip((e.ints, e.floats, e.floats), bases, strict=True)
            )
            made = b.bitcast(e.levels(charges, rates, shifts, tops), vector(I8, size))
            parts.append(_part(b, made, 0, len(places) * e.isa.lanes))
        return parts[0] if len(parts) == 1 else _joined(b, *parts)

    return _tell(e, arguments, groups, levels)


def tell(e: Emit, arguments: Value, groups: int) -> Value:
    """As `fire`, of sites whose next bytes are computed already."""
    fresh, pitch = columns(e, arguments, f.S_FRESH, f.S_PITCH)

    def levels(place: Value, group: Value) -> Value:
        at = e.b.add(e.at(fresh, place, pitch), e.b.mul(group, I64(16)))
        return e.load(vector(I8, 16 * groups), at)

    return _tell(e, arguments, groups, levels)


def _part(b: Value, x: Value, first: int, count: int) -> Value:
    """So many elements of a vector."""
    if count == x.type.count:
        return x
    return b.shuffle_vector(
        x, x, ir.Constant(vector(I32, count), list(range(first, first + count)))
    )


def _joined(b: Value, x: Value, y: Value) -> Value:
    count = 2 * x.type.count
    return b.shuffle_vector(x, y, ir.Constant(vector(I32, count), list(range(count))))


def _tell(e: Emit, arguments: Value, per: int, levels: Callable[[Value, Value], Value]) -> Value:
    b = e.b
    touched, touched_count, flags = columns(e, arguments, f.S_TOUCHED, f.S_TOUCHED_COUNT, f.S_FLAGS)
    values, pitch, groups, width = columns(
        e, arguments, f.S_VALUES, f.S_PITCH, f.S_GROUPS, f.S_WIDTH
    )
    sites, begins, words, index, new_count = columns(
        e, arguments, f.S_NEW_SITES, f.S_NEW_BEGINS, f.S_NEW_WORDS, f.S_NEW_INDEX, f.S_NEW_COUNT
    )
    wide, pairs = vector(I16, 16 * per), 8 * per

    def site(s: Value, state: list[Value]) -> Sequence[Value]:
        packed = e.index(e.at(touched, s, 4))
        y, x = b.lshr(packed, I64(16)), b.and_(packed, I64(0xFFFF))
        place = b.add(b.mul(y, width), x)
        e.store(I8(0), b.add(flags, place))
        e.store(b.trunc(packed, I32), e.at(sites, state[0], 4), 4)
        e.store(b.trunc(state[1], I32), e.at(begins, state[0], 4), 4)
        row = e.at(values, place, pitch)

        def group(g: Value, now: list[Value]) -> Sequence[Value]:
            new, at = levels(place, g), b.add(row, b.mul(g, I64(16)))
            old = e.load(new.type, at)
            change = b.bitcast(b.sub(b.zext(new, wide), b.zext(old, wide)), vector(I32, pairs))
            e.store(new, at)
            many, step = now[0], min(pairs, e.isa.lanes)
            for first in range(0, pairs, step):
                number = b.add(b.mul(g, I64(8)), I64(first))
                many = _list(e, _part(b, change, first, step), number, words, index, many)
            return [many]

        changes = e.loop(I64(0), groups, [state[1]], group, per)[0]
        some = b.zext(b.icmp_unsigned("!=", changes, state[1]), I64)
        return [b.add(state[0], some), changes]

    found = e.loop(I64(0), e.load(I64, touched_count, 8), [I64(0), I64(0)], site)
    e.store(b.trunc(found[1], I32), e.at(begins, found[0], 4), 4)
    e.store(found[0], new_count, 8)
    e.store(I64(0), touched_count, 8)
    return found[0]


def _list(
    e: Emit, change: Value, first: Value, words: Value, index: Value, changes: Value
) -> Value:
    """Append the pairs (8 or 16, from number `first`) that changed; their new number."""
    b, kind, count = e.b, change.type, change.type.count
    zero, bits = ir.Constant(kind, [0] * count), ir.IntType(count)
    mask = b.icmp_unsigned("!=", change, zero)
    if e.isa.lanes == 16:
        pairs = b.add(e.splat(b.trunc(first, I32), count), ir.Constant(kind, list(range(count))))
        name = f"llvm.x86.avx512.mask.compress.v{count}i32"
        for what, to in ((change, words), (pairs, index)):
            e.store(e.call(name, kind, [what, zero, mask]), e.at(to, changes, 4), 4)
        many = e.call(f"llvm.ctpop.i{count}", bits, [b.bitcast(mask, bits)])
        return b.add(changes, b.zext(many, I64))
    some, after, before = b.append_basic_block("some"), b.append_basic_block("after"), b.block
    b.cbranch(b.icmp_unsigned("!=", b.bitcast(mask, bits), bits(0)), some, after)
    b.position_at_end(some)
    new = changes
    for i in range(count):
        word = b.extract_element(change, I32(i))
        e.store(word, e.at(words, new, 4), 4)
        e.store(b.trunc(b.add(first, I64(i)), I32), e.at(index, new, 4), 4)
        new = b.add(new, b.zext(b.icmp_unsigned("!=", word, I32(0)), I64))
    b.branch(after)
    b.position_at_end(after)
    phi = b.phi(I64)
    phi.add_incoming(changes, before)
    phi.add_incoming(new, some)
    return phi

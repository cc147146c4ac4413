"""LLVM code of the kernels that add up charges: from listed words, or from all words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit import I32, I64, Arguments, Emit, Value, vector

UNROLL = 4
"""Listed words per turn of the inner loop. A site's list is filled up with words that count
nothing, so that the number of turns seldom differs from site to site and the CPU can guess it."""
TOGETHER = 16
"""Sites whose lists are joined before the first of them is computed: what was just stored cannot
be loaded at once."""


def gather(e: Emit, arguments: Value, groups: int) -> Value:
    """Charges of the sites of one row, each from the listed words under its window.

    The lists under the rows of a window are first copied into one, with the place of each word
    and of its weights; a loop over that list costs one branch that cannot be predicted, loops
    over three short lists cost three.
    """
    a, b = Arguments(e, arguments), e.b
    sites, count, out, out_step = a.hoist(f.A_SITES, f.A_COUNT, f.A_OUT, f.A_OUT_STEP)
    weight, base, init, init_step = a.hoist(f.A_WEIGHT, f.A_BASE, f.A_INIT, f.A_INIT_STEP)
    blocks_at, places_at = a.hoist(f.A_BLOCKS, f.A_PLACES)
    many, lanes = groups * 16 // e.isa.lanes, e.isa.lanes
    sets = 2 if groups <= 2 else 1
    zeros = ir.Constant(e.ints, [0] * lanes)
    ends = b.ptrtoint(b.alloca(I64, TOGETHER), I64)
    join = _joiner(e, a, e.isa.word_bytes * groups)

    def some(first: Value, _: list[Value]) -> Sequence[Value]:
        rest = b.sub(count, first)
        here = b.select(b.icmp_signed("<", rest, I64(TOGETHER)), rest, I64(TOGETHER))

        def joined(t: Value, begin: list[Value]) -> Sequence[Value]:
            end = join(e.index(e.at(sites, b.add(first, t), 4)), begin[0])
            e.store(end, e.at(ends, t, 8), 8)
            return [end]

        def site(t: Value, begin: list[Value]) -> Sequence[Value]:
            def words(k: Value, now: list[Value]) -> Sequence[Value]:
                charges = list(now)
                for i in range(UNROLL):
                    at = b.add(k, I64(i))
                    word = e.load(I32, e.at(base, e.index(e.at(places_at, at, 4)), 4), 4)
                    weights = e.weights(b.add(weight, e.index(e.at(blocks_at, at, 4))), groups)
                    low = many * (i % sets)
                    charges[low : low + many] = e.dot(charges[low : low + many], word, weights)
                return charges

            at = b.add(first, t)
            place = e.index(e.at(sites, at, 4))
            charges = e.vectors(e.at(init, place, init_step), groups, e.ints)
            charges += [zeros] * (many * (sets - 1))
            end = e.load(I64, e.at(ends, t, 8), 8)
            charges = e.loop(begin[0], end, charges, words, UNROLL)
            to = e.at(out, at, out_step)
            for j in range(many):
                charge = charges[j] if sets == 1 else b.add(charges[j], charges[many + j])
                e.store(charge, b.add(to, I64(4 * lanes * j)), 4)
            return [end]

        e.loop(I64(0), here, [I64(0)], joined)
        e.loop(I64(0), here, [I64(0)], site)
        return []

    e.loop(I64(0), count, [], some, TOGETHER)
    return I64(0)


def _joiner(e: Emit, a: Arguments, block: int) -> Callable[[Value, Value], Value]:
    """Code that copies the lists under a site's window behind entry `begin` of one list, and
    returns its end there, rounded up to whole turns."""
    b, lanes = e.b, e.isa.lanes
    stride, column_words, span = a.hoist(f.A_STRIDE, f.A_COLUMN_WORDS, f.A_SPAN)
    segments, count = a.hoist(f.A_SEGMENTS, f.A_SEGMENT_COUNT)
    blocks_at, places_at = a.hoist(f.A_BLOCKS, f.A_PLACES)
    nothing = e.splat(b.trunc(b.mul(a[f.A_NONE], I64(block)), I32))
    zeros, times = (ir.Constant(e.ints, [n] * lanes) for n in (0, block))

    def join(place: Value, begin: Value) -> Value:
        column = b.mul(place, stride)
        moved = b.mul(column, column_words)

        def segment(s: Value, state: list[Value]) -> Sequence[Value]:
            (end,) = state
            at = e.at(segments, s, 8 * f.SEGMENT)
            listed, prefix, word, row = (
                e.load(I64, b.add(at, I64(8 * i)), 8)
                for i in (f.S_LIST, f.S_PREFIX, f.S_KEY_WORD, f.S_ROW_WORD)
            )
            prefix = e.at(prefix, column, 4)
            first, last = e.index(prefix), e.index(e.at(prefix, span, 4))
            listed = e.at(listed, first, 4)
            moved_by, row_by = (e.splat(b.trunc(n, I32)) for n in (b.sub(word, moved), row))

            def copy(j: Value, _: list[Value]) -> Sequence[Value]:
                keys = e.load(e.ints, e.at(listed, j, 4), 4)
                to = b.add(end, j)
                e.store(b.mul(b.add(keys, moved_by), times), e.at(blocks_at, to, 4), 4)
                e.store(b.add(keys, row_by), e.at(places_at, to, 4), 4)
                return []

            # the first time without a question: nearly always it is the only one
            copy(I64(0), [])
            here = b.sub(last, first)
            e.loop(I64(lanes), here, [], copy, lanes)
            return [b.add(end, here)]

        end = e.loop(I64(0), count, [begin], segment)[0]
        e.store(nothing, e.at(blocks_at, end, 4), 4)
        e.store(zeros, e.at(places_at, end, 4), 4)
        return b.and_(b.add(end, I64(UNROLL - 1)), I64(-UNROLL))

    return join


def block(e: Emit, arguments: Value, groups: int) -> Value:
    """Charges of the sites of one row, several side by side, from all words under their
    windows."""
    a, b = Arguments(e, arguments), e.b
    side = e.isa.blocks[groups - 1]
    sites, total, words, site_bytes = a.hoist(f.A_SITES, f.A_COUNT, f.A_WORDS, f.A_SITE_BYTES)
    segments, count, weight = a.hoist(f.A_SEGMENTS, f.A_SEGMENT_COUNT, f.A_WEIGHT)
    init, init_step = a.hoist(f.A_INIT, f.A_INIT_STEP)
    size, per = e.isa.word_bytes * groups, groups * 16 // e.isa.lanes
    keep = _keeper(e, a, groups)

    def block_of_sites(t: Value, _: list[Value]) -> Sequence[Value]:
        places = [e.index(e.at(sites, b.add(t, I64(p)), 4)) for p in range(side)]
        offsets = [b.mul(place, site_bytes) for place in places]
        starts = []
        for place in places:
            starts += e.vectors(e.at(init, place, init_step), groups, e.ints)

        def segment(s: Value, charges: list[Value]) -> Sequence[Value]:
            at = e.at(segments, s, 8 * f.SEGMENT)
            source = e.load(I64, b.add(at, I64(8 * f.S_START)), 8)
            word = e.load(I64, b.add(at, I64(8 * f.S_WORD)), 8)
            base = e.at(weight, word, size)

            def column(k: Value, now: list[Value]) -> Sequence[Value]:
                held = e.weights(e.at(base, k, size), groups)
                here, new = e.at(source, k, 4), []
                for p, offset in enumerate(offsets):
                    word = e.load(I32, b.add(here, offset))
                    new += e.dot(now[p * per : (p + 1) * per], word, held)
                return new

            return e.loop(I64(0), words, charges, column)

        charges = e.loop(I64(0), count, starts, segment)
        keep(b.sub(total, t), t, charges)
        return []

    e.loop(I64(0), total, [], block_of_sites, side)
    return I64(0)


def _keeper(e: Emit, a: Arguments, groups: int) -> Callable[[Value, Value, Sequence[Value]], None]:
    """Code that stores the charges of a block of sites, of which `rest` are wanted: sites behind
    the last one may not be written, because charges of the next row lie there."""
    b, side, per = e.b, e.isa.blocks[groups - 1], groups * 16 // e.isa.lanes
    out, out_step = a.hoist(f.A_OUT, f.A_OUT_STEP)
    size = 4 * e.isa.lanes
    spare = b.ptrtoint(b.alloca(vector(I32, 16), side * groups), I64)

    def keep(rest: Value, first: Value, charges: Sequence[Value]) -> None:
        full, cut, after = (b.append_basic_block(n) for n in ("full", "cut", "after"))
        b.cbranch(b.icmp_signed(">=", rest, I64(side)), full, cut)
        b.position_at_end(full)
        for i, charge in enumerate(charges):
            to = e.at(out, b.add(first, I64(i // per)), out_step)
            e.store(charge, b.add(to, I64(size * (i % per))), 4)
        b.branch(after)
        b.position_at_end(cut)
        for i, charge in enumerate(charges):
            e.store(charge, b.add(spare, I64(size * i)), 4)

        def one(p: Value, _: list[Value]) -> Sequence[Value]:
            to = e.at(out, b.add(first, p), out_step)
            for j, charge in enumerate(e.vectors(e.at(spare, p, 64 * groups), groups, e.ints)):
                e.store(charge, b.add(to, I64(size * j)), 4)
            return []

        e.loop(I64(0), rest, [], one)
        b.branch(after)
        b.position_at_end(after)

    return keep

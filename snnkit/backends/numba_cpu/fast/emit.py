"""LLVM code of the row kernels: gather over listed words, blocks of sites, fire, event lists.

A word is four channels of one site in 32 bits. A kernel walks the output sites of one row; the
charges of a site stay in vector registers from the bias to the spike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.isa import Isa

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
Value = Any


def vector(element: Any, lanes: int) -> Any:
    return ir.VectorType(element, lanes)


class Emit:
    """An IR builder with loops, memory by address, and the few vector operations used here."""

    def __init__(self, builder: Any, isa: Isa):
        self.b, self.isa = builder, isa
        self.ints, self.floats = vector(I32, isa.lanes), vector(F32, isa.lanes)

    def call(self, name: str, result: Any, values: Sequence[Value]) -> Value:
        module = self.b.module
        if name not in module.globals:
            ir.Function(module, ir.FunctionType(result, [v.type for v in values]), name)
        return self.b.call(module.globals[name], values)

    def load(self, kind: Any, address: Value, align: int = 1) -> Value:
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=align)

    def store(self, value: Value, address: Value, align: int = 1) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=align)

    def index(self, address: Value) -> Value:
        return self.b.zext(self.load(I32, address, 4), I64)

    def at(self, address: Value, index: Value, size: Any) -> Value:
        size = I64(size) if isinstance(size, int) else size
        return self.b.add(address, self.b.mul(index, size))

    def splat(self, value: Value, lanes: int = 0) -> Value:
        lanes = lanes or self.isa.lanes
        empty = ir.Constant(vector(value.type, lanes), ir.Undefined)
        one = self.b.insert_element(empty, value, I32(0))
        return self.b.shuffle_vector(one, empty, ir.Constant(vector(I32, lanes), [0] * lanes))

    def loop(
        self,
        begin: Value,
        end: Value,
        carried: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value]],
        step: int = 1,
    ) -> list[Value]:
        """for k in range(begin, end, step): carried = body(k, carried); returns carried."""
        b, before = self.b, self.b.block
        head, inside, after = (b.append_basic_block(n) for n in ("head", "body", "end"))
        b.branch(head)
        b.position_at_end(head)
        k = b.phi(I64)
        k.add_incoming(begin, before)
        values = [b.phi(v.type) for v in carried]
        for phi, v in zip(values, carried, strict=True):
            phi.add_incoming(v, before)
        b.cbranch(b.icmp_signed("<", k, end), inside, after)
        b.position_at_end(inside)
        new = body(k, values)
        k.add_incoming(b.add(k, I64(step)), b.block)
        for phi, v in zip(values, new, strict=True):
            phi.add_incoming(v, b.block)
        b.branch(head)
        b.position_at_end(after)
        return values

    def dot(self, charges: Sequence[Value], word: Value, weights: Sequence[Value]) -> list[Value]:
        """charges[j] += sum over 4 channels of word * weights[j]."""
        if self.isa.lanes == 16:
            data = self.b.bitcast(self.splat(word), vector(I8, 64))
            name = "llvm.x86.avx512.vpdpbusd.512"
            return [
                self.call(name, self.ints, [a, data, w])
                for a, w in zip(charges, weights, strict=True)
            ]
        b = self.b
        low = b.or_(b.and_(word, I32(0xFF)), b.and_(b.shl(word, I32(8)), I32(0xFF0000)))
        upper = b.lshr(word, I32(16))
        high = b.or_(b.and_(upper, I32(0xFF)), b.and_(b.shl(upper, I32(8)), I32(0xFF0000)))
        pairs = [b.bitcast(self.splat(v), vector(I16, 16)) for v in (low, high)]
        out = []
        for j, a in enumerate(charges):
            for pair, w in zip(pairs, weights[2 * j : 2 * j + 2], strict=True):
                a = b.add(a, self.call("llvm.x86.avx2.pmadd.wd", self.ints, [pair, w]))
            out.append(a)
        return out

    def weights(self, address: Value, groups: int) -> list[Value]:
        """The weight block of one word."""
        size = self.isa.lanes * 4
        kind = vector(I8, 64) if size == 64 else vector(I16, 16)
        count = groups * self.isa.word_bytes // size
        return [self.load(kind, self.b.add(address, I64(size * j)), size) for j in range(count)]

    def vectors(self, address: Value, groups: int, kind: Any) -> list[Value]:
        size = self.isa.lanes * 4
        count = groups * 16 // self.isa.lanes
        return [self.load(kind, self.b.add(address, I64(size * j)), 4) for j in range(count)]

    def staircase(self, charge: Value, rate: Value, shift: Value, top: Value) -> Value:
        """clip(floor(charge * rate + shift), 0, top) as bytes."""
        kind = f"v{self.isa.lanes}f32"
        x = self.b.sitofp(charge, self.floats)
        x = self.call(f"llvm.fma.{kind}", self.floats, [x, rate, shift])
        zero = ir.Constant(self.floats, [0.0] * self.isa.lanes)
        x = self.call(f"llvm.maxnum.{kind}", self.floats, [x, zero])
        x = self.call(f"llvm.minnum.{kind}", self.floats, [x, top])
        return self.b.trunc(self.b.fptosi(x, self.ints), vector(I8, self.isa.lanes))

    def append(self, words: Value, key: Value, listed: Value, events: Value) -> Value:
        """List the keys of the words (one vector of them) that are not zero; their new number."""
        if words.type.count == 16:
            return self.append_all(words, key, listed, events, 1)[0]
        b, lanes = self.b, words.type.count
        for i in range(lanes):
            self.store(b.trunc(b.add(key, I64(i)), I32), self.at(listed, events, 4), 4)
            some = b.icmp_unsigned("!=", b.extract_element(words, I32(i)), I32(0))
            events = b.add(events, b.zext(some, I64))
        return events

    def append_all(
        self, words: Value, key: Value, listed: Value, events: Value, parts: int
    ) -> list[Value]:
        """As `append` of 16 words; the numbers of events behind each of `parts` equal parts."""
        b, kind = self.b, vector(I32, 16)
        zero = ir.Constant(kind, [0] * 16)
        mask = b.icmp_unsigned("!=", words, zero)
        keys = b.add(self.splat(b.trunc(key, I32)), ir.Constant(kind, list(range(16))))
        # compressed in a register: compressing to memory is microcoded
        name = "llvm.x86.avx512.mask.compress.v16i32"
        self.store(self.call(name, kind, [keys, zero, mask]), self.at(listed, events, 4), 4)
        bits, found = b.bitcast(mask, I16), []
        for part in range(1, parts + 1):
            upto = b.and_(bits, I16(2 ** (16 * part // parts) - 1)) if part < parts else bits
            count = self.call("llvm.ctpop.i16", I16, [upto])
            found.append(b.add(events, b.zext(count, I64)))
        return found

    def words_of(self, levels: Sequence[Value]) -> list[Value]:
        """Bytes of a site as vectors of words."""
        b, lanes = self.b, self.isa.lanes
        if lanes != 16:
            return [b.bitcast(q, vector(I32, 2)) for q in levels]
        four, joined = vector(I32, 4), []
        for first in range(0, len(levels), 4):
            parts = [b.bitcast(q, four) for q in levels[first : first + 4]]
            parts += [ir.Constant(four, [0] * 4)] * (4 - len(parts))
            while len(parts) > 1:
                size = 2 * parts[0].type.count
                order = ir.Constant(vector(I32, size), list(range(size)))
                parts = [
                    b.shuffle_vector(parts[i], parts[i + 1], order) for i in range(0, len(parts), 2)
                ]
            joined.append(parts[0])
        return joined


class Row:
    """The arguments of a row kernel, and what happens to a finished site."""

    def __init__(self, emit: Emit, arguments: Value, groups: int):
        self.e, self.groups, self.arguments = emit, groups, arguments
        self.sites, self.init = self[f.A_SITES], self[f.A_INIT]
        self.init_step, self.raw = self[f.A_INIT_STEP], self[f.A_RAW]
        self.target, self.target_step = self[f.A_TARGET], self[f.A_TARGET_STEP]
        self.listed, self.key, self.key_step = self[f.A_LIST], self[f.A_KEY], self[f.A_KEY_STEP]
        self.prefix = self[f.A_PREFIX]

    def __getitem__(self, field: int) -> Value:
        return self.e.load(I64, self.e.b.add(self.arguments, I64(8 * field)), 8)

    def start(self, site: Value) -> list[Value]:
        return self.e.vectors(self.e.at(self.init, site, self.init_step), self.groups, self.e.ints)

    def site(self, index: Value) -> Value:
        return self.e.index(self.e.at(self.sites, index, 4))

    def finish(
        self, site: Value, charges: Sequence[Value], events: Value, filled: Value
    ) -> list[Value]:
        """Store the charges, or fire and list; returns the number of events and how many entries
        of the prefix are written."""
        e, b = self.e, self.e.b
        fire, keep, after = (b.append_basic_block(n) for n in ("fire", "keep", "after"))
        to = e.at(self.target, site, self.target_step)
        b.cbranch(b.icmp_signed("!=", self.raw, I64(0)), keep, fire)
        b.position_at_end(keep)
        for j, charge in enumerate(charges):
            e.store(charge, b.add(to, I64(4 * e.isa.lanes * j)), 4)
        b.branch(after)
        b.position_at_end(fire)
        many, full = self.fire(site, to, charges, events, filled)
        fired = b.block
        b.branch(after)
        b.position_at_end(after)
        results = []
        for new, old in ((many, events), (full, filled)):
            phi = b.phi(I64)
            phi.add_incoming(new, fired)
            phi.add_incoming(old, keep)
            results.append(phi)
        return results

    def fire(
        self, site: Value, to: Value, charges: Sequence[Value], events: Value, filled: Value
    ) -> tuple[Value, Value]:
        e, b = self.e, self.e.b
        top = e.load(e.floats, self[f.A_TOP], 4)
        rates = e.vectors(self[f.A_RATE], self.groups, e.floats)
        shifts = e.vectors(self[f.A_SHIFT], self.groups, e.floats)
        levels = []
        for j, charge in enumerate(charges):
            levels.append(e.staircase(charge, rates[j], shifts[j], top))
            e.store(levels[j], b.add(to, I64(e.isa.lanes * j)))
        filled = self.fill(site, events, filled)
        key = e.at(self.key, site, self.key_step)
        for words in e.words_of(levels):
            events = e.append(words, key, self.listed, events)
            key = b.add(key, I64(words.type.count))
        self.fill_at(b.add(site, I64(1)), events)
        return events, b.add(site, I64(17))

    def fire_together(
        self, site: Value, charges: Sequence[Value], events: Value, filled: Value
    ) -> list[Value]:
        """Fire sites that lie side by side and together fill one vector of words."""
        e, b, per = self.e, self.e.b, self.groups
        top = e.load(e.floats, self[f.A_TOP], 4)
        rates = e.vectors(self[f.A_RATE], per, e.floats)
        shifts = e.vectors(self[f.A_SHIFT], per, e.floats)
        levels = [
            e.staircase(charge, rates[j % per], shifts[j % per], top)
            for j, charge in enumerate(charges)
        ]
        filled = self.fill(site, events, filled)
        words, sites = e.words_of(levels)[0], len(charges) // per
        e.store(words, e.at(self.target, site, self.target_step))
        key = e.at(self.key, site, self.key_step)
        found = e.append_all(words, key, self.listed, events, sites)
        for i, many in enumerate(found[:-1]):
            e.store(b.trunc(many, I32), e.at(self.prefix, b.add(site, I64(i + 1)), 4), 4)
        self.fill_at(b.add(site, I64(sites)), found[-1])
        return [found[-1], b.add(site, I64(sites + 16))]

    def fill_at(self, entry: Value, events: Value) -> None:
        many = self.e.splat(self.e.b.trunc(events, I32), 16)
        self.e.store(many, self.e.at(self.prefix, entry, 4), 4)

    def fill(self, last: Value, events: Value, filled: Value) -> Value:
        """Write the prefix up to entry `last`, 16 at a time; what lies behind is written later."""
        b = self.e.b
        end = b.add(last, I64(1))

        def more(entry: Value, _: list[Value]) -> list[Value]:
            self.fill_at(entry, events)
            return [b.add(entry, I64(16))]

        return self.e.loop(filled, end, [filled], more, 16)[0]


def gather(e: Emit, arguments: Value, groups: int) -> Value:
    """Sites of one row, each from the listed words under its window. Returns the events."""
    row, b = Row(e, arguments, groups), e.b
    stride, span, column_words = row[f.A_STRIDE], row[f.A_SPAN], row[f.A_COLUMN_WORDS]
    segments, count, weight = row[f.A_SEGMENTS], row[f.A_SEGMENT_COUNT], row[f.A_WEIGHT]
    block = e.isa.word_bytes * groups

    def site(t: Value, state: list[Value]) -> Sequence[Value]:
        place = row.site(t)
        column = b.mul(place, stride)
        moved = b.mul(column, column_words)

        def segment(s: Value, charges: list[Value]) -> Sequence[Value]:
            at = e.at(segments, s, 8 * f.SEGMENT)
            source, listed, prefix, word = (
                e.load(I64, b.add(at, I64(8 * i)), 8)
                for i in (f.S_ROW, f.S_LIST, f.S_PREFIX, f.S_KEY_WORD)
            )
            prefix = e.at(prefix, column, 4)
            first, last = e.index(prefix), e.index(e.at(prefix, span, 4))
            base = e.at(weight, b.sub(word, moved), block)

            def event(k: Value, now: list[Value]) -> Sequence[Value]:
                key = e.index(e.at(listed, k, 4))
                word = e.load(I32, e.at(source, key, 4), 4)
                return e.dot(now, word, e.weights(e.at(base, key, block), groups))

            return e.loop(first, last, charges, event)

        charges = e.loop(I64(0), count, row.start(place), segment)
        return row.finish(place, charges, *state)

    state = e.loop(I64(0), row[f.A_COUNT], [row[f.A_EVENTS], I64(0)], site)
    row.fill(row[f.A_WIDTH], *state)
    return state[0]


def block(e: Emit, arguments: Value, groups: int) -> Value:
    """Sites of one row, several side by side, from all words under their windows."""
    row, b = Row(e, arguments, groups), e.b
    side = e.isa.blocks[groups - 1]
    words, site_bytes, total = row[f.A_WORDS], row[f.A_SITE_BYTES], row[f.A_COUNT]
    segments, count, weight = row[f.A_SEGMENTS], row[f.A_SEGMENT_COUNT], row[f.A_WEIGHT]
    size, per = e.isa.word_bytes * groups, groups * 16 // e.isa.lanes
    spare = b.ptrtoint(b.alloca(vector(I32, 16), side * groups), I64)

    def sites(t: Value, state: list[Value]) -> Sequence[Value]:
        places = [row.site(b.add(t, I64(p))) for p in range(side)]
        offsets = [b.mul(place, site_bytes) for place in places]
        starts = [charge for place in places for charge in row.start(place)]

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

        for i, charge in enumerate(e.loop(I64(0), count, starts, segment)):
            e.store(charge, b.add(spare, I64(4 * e.isa.lanes * i)), 4)
        rest = b.sub(total, t)
        here = b.select(b.icmp_signed("<", rest, I64(side)), rest, I64(side))

        return finish_block(row, spare, t, here, state)

    state = e.loop(I64(0), total, [row[f.A_EVENTS], I64(0)], sites, side)
    row.fill(row[f.A_WIDTH], *state)
    return state[0]


def finish_block(
    row: Row, spare: Value, first: Value, count: Value, state: Sequence[Value]
) -> list[Value]:
    """Finish sites first to first + count, whose charges lie at `spare`."""
    e, b, groups = row.e, row.e.b, row.groups

    def one(p: Value, now: list[Value]) -> Sequence[Value]:
        charges = e.vectors(e.at(spare, p, 64 * groups), groups, e.ints)
        return row.finish(row.site(b.add(first, p)), charges, *now)

    together = 4 // groups if e.isa.lanes == 16 else 1
    if together == 1:
        return e.loop(I64(0), count, state, one)

    def some(p: Value, now: list[Value]) -> Sequence[Value]:
        begin, last = b.add(first, p), b.add(p, I64(together))
        site = row.site(begin)
        side_by_side = b.sub(row.site(b.add(begin, I64(together - 1))), site)
        fits = b.icmp_signed("==", side_by_side, I64(together - 1))
        for a, wanted in ((row.target_step, 16 * groups), (row.raw, 0)):
            fits = b.and_(fits, b.icmp_signed("==", a, I64(wanted)))
        fits = b.and_(fits, b.icmp_signed("<=", last, count))
        joint, single, after = (b.append_basic_block(n) for n in ("joint", "single", "both"))
        b.cbranch(fits, joint, single)
        b.position_at_end(joint)
        charges = e.vectors(e.at(spare, p, 64 * groups), together * groups, e.ints)
        fast = row.fire_together(site, charges, *now)
        fast_end = b.block
        b.branch(after)
        b.position_at_end(single)
        end = b.select(b.icmp_signed("<", last, count), last, count)
        slow = e.loop(p, end, now, one)
        slow_end = b.block
        b.branch(after)
        b.position_at_end(after)
        phis = [b.phi(I64) for _ in now]
        for phi, x, y in zip(phis, fast, slow, strict=True):
            phi.add_incoming(x, fast_end)
            phi.add_incoming(y, slow_end)
        return phis

    return e.loop(I64(0), count, state, some, together)

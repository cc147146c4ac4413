"""The few vector operations that the row kernels are made of, as LLVM code.

A word is four channels of one site in 32 bits. A row kernel walks the sites of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from snnkit.backends.numba_cpu.fast.isa import Isa

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
Value = Any


def vector(element: Any, lanes: int) -> Any:
    return ir.VectorType(element, lanes)


def _bytes(kind: Any) -> int:
    """Bytes of an element of a vector of int32, float32 or float64."""
    return 8 if kind.element == F64 else 4


class Emit:
    """An IR builder with loops, memory by address, and the few vector operations used here."""

    def __init__(self, builder: Any, isa: Isa):
        self.b, self.isa = builder, isa
        self.ints, self.floats = vector(I32, isa.lanes), vector(F32, isa.lanes)
        self.doubles = vector(F64, isa.lanes)

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
        if self.isa.word_bytes == 64:
            data = self.b.bitcast(self.splat(word), vector(I8, 4 * self.isa.lanes))
            return [
                self.call(self.isa.dot, self.ints, [a, data, w])
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
                a = b.add(a, self.call(self.isa.dot, self.ints, [pair, w]))
            out.append(a)
        return out

    def weights(self, address: Value, groups: int) -> list[Value]:
        """The weight block of one word."""
        size = self.isa.lanes * 4
        kind = vector(I8, size) if self.isa.word_bytes == 64 else vector(I16, size // 2)
        count = groups * self.isa.word_bytes // size
        return [self.load(kind, self.b.add(address, I64(size * j)), size) for j in range(count)]

    def vectors(self, address: Value, groups: int, kind: Any) -> list[Value]:
        """The elements of 16 * groups outputs."""
        size = self.isa.lanes * _bytes(kind)
        count = groups * 16 // self.isa.lanes
        return [self.load(kind, self.b.add(address, I64(size * j)), 4) for j in range(count)]

    def levels(
        self,
        charges: Sequence[Value],
        rates: Sequence[Value],
        shifts: Sequence[Value],
        top: Value,
    ) -> Value:
        """clip(floor(charge * rate + shift), 0, top) of one to four vectors, as words; in the
        precision of top, float32 or float64."""
        b, lanes = self.b, self.isa.lanes
        kind = f"v{lanes}f{8 * _bytes(top.type)}"
        whole = []
        for charge, rate, shift in zip(charges, rates, shifts, strict=True):
            x = self.b.sitofp(charge, top.type)
            x = self.call(f"llvm.fma.{kind}", top.type, [x, rate, shift])
            # towards zero is floor where it matters: below zero the packing cuts off
            x = self.least(x, top)
            whole.append(b.fptosi(x, self.ints))
        whole += [ir.Constant(self.ints, [0] * lanes)] * (4 - len(whole))
        name = "avx512.packssdw.512" if lanes == 16 else "avx2.packssdw"
        half = vector(I16, 2 * lanes)
        pairs = [self.call(f"llvm.x86.{name}", half, whole[i : i + 2]) for i in (0, 2)]
        name = "avx512.packuswb.512" if lanes == 16 else "avx2.packuswb"
        packed = self.call(f"llvm.x86.{name}", vector(I8, 4 * lanes), pairs)
        # packing works within 128 bits: dword 4 k + v there holds four outputs of vector v
        words = b.bitcast(packed, self.ints)
        order = [4 * k + v for v in range(4) for k in range(lanes // 4)]
        return b.shuffle_vector(words, words, ir.Constant(vector(I32, lanes), order))

    def least(self, x: Value, y: Value) -> Value:
        """The smaller of two vectors of floats that are numbers."""
        return self.b.select(self.b.fcmp_ordered("<", x, y), x, y)

    def append(
        self, words: Value, keys: Value, listed: Value, events: Value, parts: int = 1
    ) -> list[Value]:
        """List the keys of the words that are not zero; the numbers of events behind each of
        `parts` equal parts."""
        b, lanes = self.b, self.isa.lanes
        some = b.icmp_unsigned("!=", words, ir.Constant(self.ints, [0] * lanes))
        found = []
        if lanes == 16:
            # compressed in a register: compressing to memory is microcoded
            name = "llvm.x86.avx512.mask.compress.v16i32"
            zero = ir.Constant(self.ints, [0] * lanes)
            close = self.call(name, self.ints, [keys, zero, some])
            self.store(close, self.at(listed, events, 4), 4)
            bits = b.bitcast(some, I16)
            for part in range(1, parts + 1):
                upto = b.and_(bits, I16(2 ** (16 * part // parts) - 1)) if part < parts else bits
                count = self.call("llvm.ctpop.i16", I16, [upto])
                found.append(b.add(events, b.zext(count, I64)))
            return found
        for i in range(lanes):
            self.store(b.extract_element(keys, I32(i)), self.at(listed, events, 4), 4)
            events = b.add(events, b.zext(b.extract_element(some, I32(i)), I64))
            if (i + 1) % (lanes // parts) == 0:
                found.append(events)
        return found

    def first_lanes(self, count: Value) -> Value:
        """Mask of the lanes below `count`."""
        lane = ir.Constant(self.ints, list(range(self.isa.lanes)))
        return self.b.icmp_signed("<", lane, self.splat(self.b.trunc(count, I32)))


class Arguments:
    """The arguments of a row kernel, each loaded where it is first used."""

    def __init__(self, emit: Emit, address: Value):
        self.e, self.address = emit, address
        self.loaded: dict[int, Value] = {}

    def __getitem__(self, field: int) -> Value:
        if field not in self.loaded:
            at = self.e.b.add(self.address, I64(8 * field))
            self.loaded[field] = self.e.load(I64, at, 8)
        return self.loaded[field]

    def hoist(self, *fields: int) -> list[Value]:
        """Load them here, outside of all loops."""
        return [self[field] for field in fields]

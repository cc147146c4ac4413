"""LLVM code of the whole run: every step for each sample, then what is kept and counted of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit import F32, I1, I8, I32, I64, Emit, Value, vector
from snnkit.backends.numba_cpu.fast.emit_maps import CHUNK, charge, map_at, place
from snnkit.backends.numba_cpu.fast.emit_step import Loaded, Table, run_kernel, when
from snnkit.backends.numba_cpu.fast.emit_sums import gathered

INTS = vector(I32, CHUNK)


def run(e: Emit, job: Value, _: int) -> Value:
    """All samples of a job (the J_ fields) in one work area."""
    b, j = e.b, Loaded(e, job, f.JOB)
    a = Table(e, j[f.J_ARGUMENTS])
    steps, code = a[f.A_STEPS], a[f.A_CODE]

    def sample(s: Value, _: list[Value]) -> Sequence[Value]:
        def step(i: Value, _: list[Value]) -> Sequence[Value]:
            p = Table(e, e.at(steps, i, 8 * f.STEP))
            port = Table(e, e.at(j[f.J_INPUTS], p[f.P_PORT], 16))
            a[f.A_STEP] = p.address
            a[f.A_INPUT] = b.add(port[0], b.mul(s, port[1]))
            run_kernel(e, a, e.at(code, b.add(p[f.P_KIND], I64(f.C_STEPS)), 8))
            return []

        e.loop(I64(0), a[f.A_STEP_COUNT], [], step)
        values = b.add(j[f.J_VALUES], b.mul(s, j[f.J_VALUES_STEP]))
        _keep_all(e, a, j, values)
        tallies = b.add(j[f.J_TALLIES], b.mul(s, j[f.J_TALLIES_STEP]))
        floats = b.add(j[f.J_FLOATS], b.mul(s, j[f.J_FLOATS_STEP]))
        asked = b.icmp_signed("!=", j[f.J_FLOATS], I64(0))
        when(e, asked, lambda: _scale(e, j, values, floats))
        counted = b.icmp_signed("!=", j[f.J_TALLIES], I64(0))
        when(e, counted, lambda: _tally_all(e, a, tallies))
        return []

    e.loop(j[f.J_FIRST], j[f.J_END], [], sample)
    return I64(0)


def _scale(e: Emit, j: Table, values: Value, floats: Value) -> None:
    """Floats of the values kept, as the boundary makes them."""
    b, units, scales = e.b, j[f.J_UNITS], j[f.J_SCALES]
    wide = b.and_(units, I64(-CHUNK))
    for first, last, lanes in ((I64(0), wide, CHUNK), (wide, units, 1)):

        def some(u: Value, _: list[Value], lanes: int = lanes) -> Sequence[Value]:
            value = e.load(vector(I32, lanes), e.at(values, u, 4), 4)
            scale = e.load(vector(F32, lanes), e.at(scales, u, 4), 4)
            scaled = b.fmul(b.sitofp(value, vector(F32, lanes)), scale)
            e.store(scaled, e.at(floats, u, 4), 4)
            return []

        e.loop(first, last, [], some, lanes)


def _keep_all(e: Emit, a: Table, j: Table, values: Value) -> None:
    """Values of the nodes asked for, side by side, each in its own order."""
    b = e.b

    def node(i: Value, state: list[Value]) -> Sequence[Value]:
        which = e.load(I64, e.at(j[f.J_KEPT], i, 8), 8)
        t, to = Loaded(e, e.at(a[f.A_TAPS], which, 8 * f.TAP), f.TAP), state[0]
        by_charge = b.icmp_signed(">=", t[f.K_CHARGE], I64(0))
        when(e, by_charge, lambda: _keep_charges(e, a, t, to))
        when(e, b.not_(by_charge), lambda: _keep_bytes(e, a, t, to))
        return [e.at(to, t[f.K_UNITS], 4)]

    e.loop(I64(0), j[f.J_KEPT_COUNT], [values], node)


def _keep_charges(e: Emit, a: Table, t: Table, to: Value) -> None:
    charges, index = charge(e, a, t[f.K_CHARGE]), t[f.K_INDEX]

    def unit(u: Value, _: list[Value]) -> Sequence[Value]:
        value = e.load(I32, e.at(charges, e.index(e.at(index, u, 4)), 4), 4)
        e.store(value, e.at(to, u, 4), 4)
        return []

    e.loop(I64(0), t[f.K_UNITS], [], unit)


def _keep_bytes(e: Emit, a: Table, t: Table, to: Value) -> None:
    b, m = e.b, map_at(e, a, t[f.K_MAP])
    base, zero, index = m[f.M_BASE], b.trunc(m[f.M_ZERO], I32), t[f.K_INDEX]

    def unit(u: Value, _: list[Value]) -> Sequence[Value]:
        value = e.load(I8, b.add(base, e.index(e.at(index, u, 4))))
        e.store(b.sub(b.zext(value, I32), zero), e.at(to, u, 4), 4)
        return []

    e.loop(I64(0), t[f.K_UNITS], [], unit)


def _tally_all(e: Emit, a: Table, to: Value) -> None:
    """Spikes (+1, -1) of spike nodes; messages times synapses crossed of synapse nodes."""
    b = e.b

    def one(i: Value, _: list[Value]) -> Sequence[Value]:
        t = Loaded(e, e.at(a[f.A_TALLIES], i, 8 * f.TALLY), f.TALLY)
        m, pair = map_at(e, a, t[f.Y_MAP]), Table(e, e.at(to, i, 16))
        is_synapse = b.icmp_signed("!=", t[f.Y_ROWS], I64(0))
        zero_is_none = b.icmp_signed("==", m[f.M_ZERO], I64(0))
        listed = b.and_(zero_is_none, b.icmp_signed("!=", m[f.M_WORDS], I64(0)))

        def by_lists() -> None:
            when(e, is_synapse, lambda: keep(_crossed(e, m, t), I64(0)))
            when(e, b.not_(is_synapse), lambda: keep(_fired(e, m), I64(0)))

        def by_sites() -> None:
            keep(*_looked_at(e, m, t, is_synapse))

        def keep(plus: Value, minus: Value) -> None:
            pair[0], pair[1] = plus, minus

        when(e, listed, by_lists)
        when(e, b.not_(listed), by_sites)
        return []

    e.loop(I64(0), a[f.A_TALLY_COUNT], [], one)


def _over_lists(
    e: Emit, m: Table, word: Callable[[Value, Value], Value], weight: Callable[[Value], Value]
) -> Value:
    """Sum over all listed words of word(words, keys), each row times its weight."""
    b, lanes = e.b, e.isa.lanes
    none = ir.Constant(e.ints, [0] * lanes)

    def row(y: Value, total: list[Value]) -> Sequence[Value]:
        padded = b.add(y, m[f.M_TOP])
        count = e.index(e.at(m[f.M_COUNTS], padded, 4))
        start = b.add(m[f.M_BASE], b.mul(padded, m[f.M_ROW_BYTES]))
        listed = b.add(m[f.M_LIST], b.mul(padded, m[f.M_LIST_BYTES]))

        def some(k: Value, now: list[Value]) -> Sequence[Value]:
            keys, inside = e.load(e.ints, e.at(listed, k, 4), 4), e.first_lanes(b.sub(count, k))
            # what lies behind the list is not a key
            keys = b.select(inside, keys, none)
            value = word(gathered(e, start, keys, inside, 4), keys)
            return [b.add(now[0], value)]

        lanewise = e.loop(I64(0), count, [none], some, lanes)[0]
        found = e.call(f"llvm.vector.reduce.add.v{lanes}i32", I32, [lanewise])
        return [b.add(total[0], b.mul(b.zext(found, I64), weight(y)))]

    return e.loop(I64(0), m[f.M_HEIGHT], [I64(0)], row)[0]


def _fired(e: Emit, m: Table) -> Value:
    b = e.b
    even = ir.Constant(e.ints, [0x00FF00FF] * e.isa.lanes)
    low, eight, sixteen = (ir.Constant(e.ints, [n] * e.isa.lanes) for n in (0xFFFF, 8, 16))

    def levels(words: Value, _: Value) -> Value:
        pairs = b.add(b.and_(words, even), b.and_(b.lshr(words, eight), even))
        return b.add(b.and_(pairs, low), b.lshr(pairs, sixteen))

    return _over_lists(e, m, levels, lambda _: I64(1))


def _crossed(e: Emit, m: Table, t: Table) -> Value:
    b, lanes = e.b, e.isa.lanes
    seven, high = (ir.Constant(e.ints, [n] * lanes) for n in (0x7F7F7F7F, 0x80808080))
    everywhere = ir.Constant(vector(I1, lanes), [1] * lanes)

    def ways(words: Value, keys: Value) -> Value:
        # the upper bit of each byte that is not zero
        some = b.and_(b.or_(b.add(b.and_(words, seven), seven), words), high)
        active = e.call(f"llvm.ctpop.v{lanes}i32", e.ints, [some])
        return b.mul(active, gathered(e, t[f.Y_WORDS], keys, everywhere, 4))

    def rows(y: Value) -> Value:
        return b.mul(e.index(e.at(t[f.Y_ROWS], y, 4)), t[f.Y_WIDTH])

    return _over_lists(e, m, ways, rows)


def _looked_at(e: Emit, m: Table, t: Table, is_synapse: Value) -> tuple[Value, Value]:
    """The same for maps whose zero is not the byte zero, or that have no lists: site by site."""
    b = e.b

    def ways(of: int, i: Value) -> Value:
        """How many windows meet a row or column; one for a spike node."""
        at = b.select(is_synapse, e.at(t[of], i, 4), m[f.M_COUNTS])
        return b.select(is_synapse, e.index(at), I64(1))

    def row(y: Value, state: list[Value]) -> Sequence[Value]:
        row_ways = ways(f.Y_ROWS, y)

        def site(x: Value, now: list[Value]) -> Sequence[Value]:
            plus, minus, some = _counted(e, m, place(e, m, y, x))
            crossed = b.mul(b.mul(some, b.mul(row_ways, ways(f.Y_COLUMNS, x))), t[f.Y_WIDTH])
            return [
                b.add(now[0], b.select(is_synapse, crossed, plus)),
                b.add(now[1], b.select(is_synapse, I64(0), minus)),
            ]

        return e.loop(I64(0), m[f.M_WIDTH], state, site)

    plus, minus = e.loop(I64(0), m[f.M_HEIGHT], [I64(0), I64(0)], row)
    return plus, minus


def _counted(e: Emit, m: Table, at: Value) -> list[Value]:
    """Sums of the positive values and of the negative ones of a site, and how many are not 0."""
    b, zero = e.b, e.splat(e.b.trunc(m[f.M_ZERO], I32), CHUNK)
    lane, none = ir.Constant(INTS, list(range(CHUNK))), ir.Constant(INTS, [0] * CHUNK)

    def some(c: Value, now: list[Value]) -> Sequence[Value]:
        value = b.sub(b.zext(e.load(vector(I8, CHUNK), b.add(at, c)), INTS), zero)
        rest = e.splat(b.trunc(b.sub(m[f.M_CHANNELS], c), I32), CHUNK)
        value = b.select(b.icmp_signed("<", lane, rest), value, none)
        up = b.select(b.icmp_signed(">", value, none), value, none)
        moved = b.zext(b.icmp_signed("!=", value, none), INTS)
        return [
            b.add(total, part)
            for total, part in zip(now, (up, b.sub(up, value), moved), strict=True)
        ]

    sums = e.loop(I64(0), m[f.M_CHANNELS], [none, none, none], some, CHUNK)
    name = f"llvm.vector.reduce.add.v{CHUNK}i32"
    return [b.zext(e.call(name, I32, [total]), I64) for total in sums]

"""LLVM code of the steps: they walk the rows of a map and run the row kernels on them.

Written in LLVM code too because small networks spend more time here than in the row kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from snnkit.backends.numba_cpu.fast import fields as f
from snnkit.backends.numba_cpu.fast.emit import I32, I64, Emit, Value, vector

SPARE_SITES = 8
"""Entries behind the last touched site that repeat it; a block of sites is filled up with them."""


class Table:
    """A row of integers in memory."""

    def __init__(self, e: Emit, address: Value):
        self.e, self.address = e, address

    def __getitem__(self, field: int) -> Value:
        return self.e.load(I64, self.e.b.add(self.address, I64(8 * field)), 8)

    def __setitem__(self, field: int, value: Value) -> None:
        self.e.store(value, self.e.b.add(self.address, I64(8 * field)), 8)

    def row(self, index: Value, width: int) -> Table:
        return Table(self.e, self.e.at(self.address, index, 8 * width))

    def get(self, *fields: int) -> list[Value]:
        return [self[field] for field in fields]


class Loaded(Table):
    """A row of integers that stays the same, read once."""

    def __init__(self, e: Emit, address: Value, fields: int):
        super().__init__(e, address)
        self.values = [super(Loaded, self).__getitem__(i) for i in range(fields)]

    def __getitem__(self, field: int) -> Value:
        return self.values[field]


def when(e: Emit, condition: Value, then: Callable[[], Any]) -> None:
    """Run `then` where the condition holds."""
    b = e.b
    inside, after = b.append_basic_block("then"), b.append_basic_block("after")
    b.cbranch(condition, inside, after)
    b.position_at_end(inside)
    then()
    b.branch(after)
    b.position_at_end(after)


def convolve(e: Emit, arguments: Value, _: int) -> Value:
    """A convolution row by row: into charges, or through the staircase into a map."""
    b, a = e.b, Table(e, arguments)
    p, maps = Table(e, a[f.A_STEP]), Table(e, a[f.A_MAPS])
    source, raw = maps.row(p[f.P_SOURCE], f.MAP), b.icmp_signed("<", p[f.P_TARGET], I64(0))
    target = maps.row(b.select(raw, I64(0), p[f.P_TARGET]), f.MAP)
    charges = Table(e, a[f.A_CHARGES])
    height, width, channels, quiet = p.get(f.P_HEIGHT, f.P_WIDTH, f.P_CHANNELS, f.P_QUIET)
    out_step = b.mul(channels, I64(4))
    _prepare(e, a, p, source, target, out_step)
    other = p[f.P_OTHER]
    own = b.icmp_signed(">=", other, I64(0))
    init = b.select(own, _charge(e, charges, other), p[f.P_INIT])
    init_row, kept = p[f.P_INIT_ROW], _charge(e, charges, p[f.P_CHARGE])
    row_bytes, buffer = b.mul(width, out_step), a[f.A_ROW]
    listed = b.icmp_signed(">=", source[f.M_PITCH], I64(4))
    same_step = b.icmp_signed("==", p[f.P_INIT_STEP], out_step)
    top = target[f.M_TOP]

    def row(y: Value, _: list[Value]) -> Sequence[Value]:
        found, total = _open_segments(e, a, p, source, y)
        every = b.udiv(b.mul(total, p[f.P_SPAN]), p[f.P_STRIDE])
        a[f.A_SEGMENT_COUNT], a[f.A_COUNT], a[f.A_VISITS] = found, width, every
        target_row = b.add(y, top)

        def only_touched() -> None:
            clear_row(e, target, target_row)
            many, visits = _touched(e, a, p, found)
            a[f.A_COUNT], a[f.A_VISITS] = many, visits

        when(e, b.icmp_signed("!=", quiet, I64(0)), only_touched)
        many = a[f.A_COUNT]

        def compute() -> None:
            start = b.add(init, b.mul(y, init_row))
            a[f.A_INIT] = start
            a[f.A_OUT] = b.select(raw, b.add(kept, b.mul(y, row_bytes)), buffer)
            # charges that are complete are fired where they lie
            ready = b.and_(b.icmp_signed("==", found, I64(0)), b.and_(same_step, b.not_(raw)))

            def add() -> None:
                dense = _dense(e, a, p, many, found)
                _add_row(e, a, p, b.or_(b.not_(listed), dense))

            def as_it_is() -> None:
                a[f.A_OUT] = start

            when(e, ready, as_it_is)
            when(e, b.not_(ready), add)
            when(e, b.not_(raw), lambda: _fire_row(e, a, target, target_row, p[f.P_WIDE]))

        when(e, b.icmp_signed(">", many, I64(0)), compute)
        return []

    e.loop(I64(0), height, [], row)
    return I64(0)


def _charge(e: Emit, charges: Table, which: Value) -> Value:
    """Address of a map of charges; of the first where there is none (not used then)."""
    none = e.b.icmp_signed("<", which, I64(0))
    return e.load(I64, e.at(charges.address, e.b.select(none, I64(0), which), 8), 8)


def _prepare(e: Emit, a: Table, p: Table, source: Table, target: Table, out_step: Value) -> None:
    """The arguments that are the same for all rows, and the list of all sites."""
    b = e.b
    a[f.A_STRIDE], a[f.A_SPAN], a[f.A_WORDS] = p.get(f.P_STRIDE, f.P_SPAN, f.P_WORDS)
    a[f.A_COLUMN_WORDS], a[f.A_BASE] = source.get(f.M_WORDS, f.M_BASE)
    a[f.A_SITE_BYTES] = b.mul(p[f.P_STRIDE], source[f.M_PITCH])
    a[f.A_NONE], a[f.A_INIT_STEP], a[f.A_OUT_STEP] = p[f.P_NONE], p[f.P_INIT_STEP], out_step
    a[f.A_RATE], a[f.A_SHIFT], a[f.A_TOP] = p.get(f.P_RATE, f.P_SHIFT, f.P_TOP)
    a[f.A_TARGET_STEP], a[f.A_KEY] = target[f.M_PITCH], b.mul(*target.get(f.M_LEFT, f.M_WORDS))
    a[f.A_WIDTH] = b.sub(target[f.M_COLUMNS], target[f.M_LEFT])
    a[f.A_GROUPS] = b.lshr(p[f.P_CHANNELS], I64(4))
    sites, last = a[f.A_SITES], e.splat(b.trunc(b.sub(p[f.P_WIDTH], I64(1)), I32))
    lane = ir.Constant(e.ints, list(range(e.isa.lanes)))

    def fill(x: Value, _: list[Value]) -> Sequence[Value]:
        here = b.add(e.splat(b.trunc(x, I32)), lane)
        e.store(b.select(b.icmp_signed("<", here, last), here, last), e.at(sites, x, 4), 4)
        return []

    e.loop(I64(0), b.add(p[f.P_WIDTH], I64(SPARE_SITES)), [], fill, e.isa.lanes)


def _open_segments(e: Emit, a: Table, p: Table, m: Table, y: Value) -> tuple[Value, Value]:
    """The kernel rows of output row y that are not silent: (how many, their words)."""
    b, taps, segments = e.b, p[f.P_TAPS], a[f.A_SEGMENTS]
    base, lists, prefixes, counts = m.get(f.M_BASE, f.M_LIST, f.M_PREFIX, f.M_COUNTS)
    row_bytes, list_bytes, prefix_bytes = m.get(f.M_ROW_BYTES, f.M_LIST_BYTES, f.M_PREFIX_BYTES)
    pitch, column_words, words = m[f.M_PITCH], m[f.M_WORDS], p[f.P_WORDS]
    first = b.mul(y, p[f.P_ROW_STRIDE])

    def tap(s: Value, state: list[Value]) -> Sequence[Value]:
        found, total = state
        at = e.at(taps, s, 8)
        row, column = b.add(first, e.index(at)), e.index(b.add(at, I64(4)))
        here, word = Table(e, e.at(segments, found, 8 * f.SEGMENT)), b.mul(s, words)
        place = b.mul(row, row_bytes)
        here[f.S_LIST] = b.add(lists, b.mul(row, list_bytes))
        here[f.S_PREFIX] = b.add(b.add(prefixes, b.mul(row, prefix_bytes)), b.shl(column, I64(2)))
        here[f.S_WORD] = word
        here[f.S_KEY_WORD] = b.sub(word, b.mul(column, column_words))
        here[f.S_ROW_WORD] = b.lshr(place, I64(2))
        here[f.S_START] = b.add(b.add(base, place), b.mul(column, pitch))
        count = e.index(e.at(counts, row, 4))
        # a silent row's segment is overwritten by the next
        some = b.zext(b.icmp_unsigned("!=", count, I64(0)), I64)
        return [b.add(found, some), b.add(total, count)]

    found, total = e.loop(I64(0), p[f.P_TAP_COUNT], [I64(0), I64(0)], tap)
    return found, total


def clear_row(e: Emit, m: Table, row: Value) -> None:
    """Zero the words that the last sample left in a row, whose zero is the byte 0."""
    b, lanes = e.b, e.isa.lanes
    counts = e.at(m[f.M_COUNTS], row, 4)
    old = e.index(counts)

    def clear() -> None:
        begin = b.add(m[f.M_BASE], b.mul(row, m[f.M_ROW_BYTES]))
        # rounded up where words do not start with sites: a row ends in unused bytes
        words = b.udiv(b.add(b.mul(m[f.M_COLUMNS], m[f.M_PITCH]), I64(3)), I64(4))
        listed = b.add(m[f.M_LIST], b.mul(row, m[f.M_LIST_BYTES]))
        # the rows of a map end in space for a whole vector
        few = b.icmp_signed("<", b.add(old, I64(lanes)), b.udiv(words, I64(lanes)))
        few = b.and_(few, b.icmp_signed("!=", m[f.M_WORDS], I64(0)))

        def one(i: Value, _: list[Value]) -> Sequence[Value]:
            e.store(I32(0), e.at(begin, e.index(e.at(listed, i, 4)), 4), 4)
            return []

        def several(i: Value, _: list[Value]) -> Sequence[Value]:
            e.store(ir.Constant(e.ints, [0] * lanes), e.at(begin, i, 4), 4)
            return []

        when(e, few, lambda: e.loop(I64(0), old, [], one))
        when(e, b.not_(few), lambda: e.loop(I64(0), words, [], several, lanes))
        e.store(I32(0), counts, 4)

    when(e, b.icmp_signed("!=", old, I64(0)), clear)


def _touched(e: Emit, a: Table, p: Table, found: Value) -> tuple[Value, Value]:
    """Collect the sites with a listed word under their window: (how many, words under them)."""
    b, lanes = e.b, e.isa.lanes
    width, stride, span, segments, sites = (
        p[f.P_WIDTH], p[f.P_STRIDE], p[f.P_SPAN], a[f.A_SEGMENTS], a[f.A_SITES],
    )  # fmt: skip
    zeros = ir.Constant(e.ints, [0] * lanes)
    lane = ir.Constant(e.ints, list(range(lanes)))
    even = ir.Constant(vector(I32, lanes), list(range(0, 2 * lanes, 2)))

    def near(x: Value, step: int) -> Value:
        def segment(s: Value, now: list[Value]) -> Sequence[Value]:
            at = e.load(I64, b.add(e.at(segments, s, 8 * f.SEGMENT), I64(8 * f.S_PREFIX)), 8)
            at, sums = e.at(at, x, 4 * step), []
            for i in range(step):
                begin = b.add(at, I64(4 * lanes * i))
                end = e.load(e.ints, e.at(begin, span, 4), 4)
                sums.append(b.sub(end, e.load(e.ints, begin, 4)))
            here = sums[0] if step == 1 else b.shuffle_vector(sums[0], sums[1], even)
            return [b.add(now[0], here)]

        return e.loop(I64(0), found, [zeros], segment)[0]

    def listed(x: Value, under: Value, state: list[Value]) -> list[Value]:
        many, visits = state
        under = b.select(e.first_lanes(b.sub(width, x)), under, zeros)
        numbers = b.add(lane, e.splat(b.trunc(x, I32)))
        return [e.append(under, numbers, sites, many)[0], b.add(visits, under)]

    def one(x: Value, state: list[Value]) -> Sequence[Value]:
        many, visits = state

        def segment(s: Value, now: list[Value]) -> Sequence[Value]:
            at = e.load(I64, b.add(e.at(segments, s, 8 * f.SEGMENT), I64(8 * f.S_PREFIX)), 8)
            at = e.at(at, b.mul(x, stride), 4)
            return [b.add(now[0], b.sub(e.load(I32, e.at(at, span, 4), 4), e.load(I32, at, 4)))]

        under = e.loop(I64(0), found, [I32(0)], segment)[0]
        e.store(b.trunc(x, I32), e.at(sites, many, 4), 4)
        some = b.zext(b.icmp_unsigned("!=", under, I32(0)), I64)
        return [
            b.add(many, some),
            b.insert_element(visits, b.add(b.extract_element(visits, I32(0)), under), I32(0)),
        ]

    start = [I64(0), zeros]
    by_stride = [b.icmp_signed("==", stride, I64(n)) for n in (1, 2)]
    ends = [b.select(is_it, width, I64(0)) for is_it in by_stride]
    state = e.loop(I64(0), ends[0], start, lambda x, s: listed(x, near(x, 1), s), lanes)
    state = e.loop(I64(0), ends[1], state, lambda x, s: listed(x, near(x, 2), s), lanes)
    rest = b.select(b.or_(*by_stride), I64(0), width)
    many, visits = e.loop(I64(0), rest, state, one)
    last = e.load(I32, e.at(sites, b.sub(many, I64(1)), 4), 4)
    e.store(e.splat(last, SPARE_SITES), e.at(sites, many, 4), 4)
    total = e.call(f"llvm.vector.reduce.add.v{lanes}i32", I32, [visits])
    return many, b.zext(total, I64)


def _dense(e: Emit, a: Table, p: Table, many: Value, found: Value) -> Value:
    """Is it cheaper to take all words under the windows than the listed ones? From the number of
    both and the measured ratio of their costs."""
    b, side = e.b, p[f.P_B]
    # blocks of sites are whole: side is a power of two
    rounded = b.and_(b.add(many, b.sub(side, I64(1))), b.sub(I64(0), side))
    every = b.mul(b.mul(rounded, found), p[f.P_WORDS])
    listed = b.add(a[f.A_VISITS], b.mul(many, p[f.P_EXTRA]))
    return b.icmp_signed(">", b.mul(listed, I64(1000)), b.mul(p[f.P_DENSE], every))


def _add_row(e: Emit, a: Table, p: Table, blocks: Value) -> None:
    """Charges of the sites of one row, tile by tile of output channels."""
    b, tiles, code = e.b, p[f.P_TILES], a[f.A_CODE]
    init, out = a[f.A_INIT], a[f.A_OUT]
    kernels = b.add(code, b.select(blocks, I64(8 * f.C_BLOCKS), I64(8 * f.C_LISTED)))

    def tile(t: Value, _: list[Value]) -> Sequence[Value]:
        here = Table(e, e.at(tiles, t, 8 * f.TILE))
        offset = b.shl(here[f.T_FIRST], I64(2))
        a[f.A_INIT], a[f.A_OUT] = b.add(init, offset), b.add(out, offset)
        a[f.A_WEIGHT] = here[f.T_WEIGHT]
        run_kernel(e, a, b.add(kernels, b.shl(b.sub(here[f.T_GROUPS], I64(1)), I64(3))))
        return []

    e.loop(I64(0), p[f.P_TILE_COUNT], [], tile)
    a[f.A_INIT], a[f.A_OUT] = init, out


def run_kernel(e: Emit, a: Table, at: Value) -> Value:
    """Run the row kernel whose address lies at `at`."""
    kind = ir.FunctionType(I64, [I64]).as_pointer()
    return e.b.call(e.b.inttoptr(e.load(I64, at, 8), kind), [a.address])


def _fire_row(e: Emit, a: Table, m: Table, row: Value, wide: Value) -> None:
    """The charges at A_OUT become bytes, with their list, in a row of the map."""
    b, left = e.b, m[f.M_LEFT]
    place = b.add(m[f.M_BASE], b.mul(row, m[f.M_ROW_BYTES]))
    prefix = b.add(m[f.M_PREFIX], b.mul(row, m[f.M_PREFIX_BYTES]))
    a[f.A_LIST] = b.add(m[f.M_LIST], b.mul(row, m[f.M_LIST_BYTES]))
    a[f.A_TARGET] = b.add(place, b.mul(left, m[f.M_PITCH]))
    a[f.A_PREFIX] = b.add(prefix, b.shl(left, I64(2)))
    groups = a[f.A_GROUPS]
    which = b.select(b.icmp_signed("<", groups, I64(5)), groups, I64(5))
    which = b.add(b.add(which, wide), I64(f.C_FIRE - 1))
    events = run_kernel(e, a, e.at(a[f.A_CODE], which, 8))
    e.store(b.trunc(events, I32), e.at(m[f.M_COUNTS], row, 4), 4)
    # where zero is not the byte 0, the padding is listed as well
    when(e, b.icmp_signed("!=", m[f.M_ZERO], I64(0)), lambda: scan_row(e, a, m, row))


def scan_row(e: Emit, a: Table, m: Table, row: Value) -> None:
    """List and count the words of a row."""
    b, column_words = e.b, a[f.A_COLUMN_WORDS]
    a[f.A_TARGET] = b.add(m[f.M_BASE], b.mul(row, m[f.M_ROW_BYTES]))
    a[f.A_LIST] = b.add(m[f.M_LIST], b.mul(row, m[f.M_LIST_BYTES]))
    a[f.A_PREFIX] = b.add(m[f.M_PREFIX], b.mul(row, m[f.M_PREFIX_BYTES]))
    a[f.A_COLUMN_WORDS], a[f.A_COLUMNS] = m.get(f.M_WORDS, f.M_COLUMNS)
    events = run_kernel(e, a, e.at(a[f.A_CODE], I64(f.C_SCAN), 8))
    e.store(b.trunc(events, I32), e.at(m[f.M_COUNTS], row, 4), 4)
    a[f.A_COLUMN_WORDS] = column_words


def read_input(e: Emit, arguments: Value, _: int) -> Value:
    """Quantise the floats at A_INPUT, [channels][height][width]."""
    b, a = e.b, Table(e, arguments)
    p = Table(e, a[f.A_STEP])
    m = Table(e, a[f.A_MAPS]).row(p[f.P_TARGET], f.MAP)
    a[f.A_CHANNELS], a[f.A_SCALE], a[f.A_OFFSET] = p.get(f.P_CHANNELS, f.P_RATE, f.P_SHIFT)
    a[f.A_LOW], a[f.A_HIGH], a[f.A_PLANE] = p.get(f.P_C, f.P_D, f.P_B)
    a[f.A_WIDTH], a[f.A_SILENT] = p.get(f.P_WIDTH, f.P_QUIET)
    a[f.A_ZERO], a[f.A_TARGET_STEP], a[f.A_KEY] = m.get(f.M_ZERO, f.M_PITCH, f.M_LEFT)
    quiet = b.icmp_signed("!=", p[f.P_QUIET], I64(0))
    one_word = b.icmp_signed("<=", m[f.M_PITCH], I64(4))
    one_word = b.and_(one_word, b.icmp_signed("==", m[f.M_ZERO], I64(0)))
    kernel = e.at(a[f.A_CODE], b.add(p[f.P_E], I64(f.C_QUANTISE)), 8)

    def row(y: Value, _: list[Value]) -> Sequence[Value]:
        place = b.add(y, m[f.M_TOP])
        counts = e.at(m[f.M_COUNTS], place, 4)
        a[f.A_SOURCE] = b.add(a[f.A_INPUT], b.mul(y, p[f.P_A]))
        a[f.A_COLUMNS] = b.sub(m[f.M_COLUMNS], m[f.M_LEFT])
        a[f.A_EVENTS] = I64(0)

        def look() -> None:
            a[f.A_EVENTS] = run_kernel(e, a, e.at(a[f.A_CODE], I64(f.C_SILENT), 8))

        def quantise() -> None:
            start = b.add(m[f.M_BASE], b.mul(place, m[f.M_ROW_BYTES]))
            prefix = b.add(m[f.M_PREFIX], b.mul(place, m[f.M_PREFIX_BYTES]))
            a[f.A_TARGET] = b.add(start, b.mul(m[f.M_LEFT], m[f.M_PITCH]))
            a[f.A_LIST] = b.add(m[f.M_LIST], b.mul(place, m[f.M_LIST_BYTES]))
            a[f.A_PREFIX] = b.add(prefix, b.shl(m[f.M_LEFT], I64(2)))
            e.store(b.trunc(run_kernel(e, a, kernel), I32), counts, 4)
            when(e, b.not_(one_word), lambda: scan_row(e, a, m, place))

        when(e, quiet, look)
        silent = b.icmp_signed("!=", a[f.A_EVENTS], I64(0))
        when(e, silent, lambda: clear_row(e, m, place))
        when(e, b.not_(silent), quantise)
        return []

    e.loop(I64(0), p[f.P_HEIGHT], [], row)
    return I64(0)

# ruff: noqa: F403, F405 (Numba takes integers from this module's own names fastest)
"""The steps around the synapses, and the compiled call that runs a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
from numba import njit

from snnkit.backends.numba_cpu.fast.fields import *
from snnkit.backends.numba_cpu.fast.kernels import (
    Net,
    Work,
    gather_step,
    input_step,
    kernel,
    net_at,
    octets,
    pointer,
    scan_row,
    words,
    work_at,
)

Array = npt.NDArray[Any]


@kernel
def floats(address: int, count: int) -> Array:
    view: Array = nb.carray(pointer(address), (count,), np.float32)
    return view


@kernel
def scan_all(m: Array, work: Work) -> None:
    """List every row of a map that was written without lists."""
    for y in range(m[M_HEIGHT]):
        scan_row(m, y + m[M_TOP], work)


@kernel
def scatter_input_step(p: Array, work: Work, x: int) -> None:
    """Quantise the floats at address x one by one, each to its own place in the map."""
    m, units = work.maps[p[P_TARGET]], p[P_CHANNELS]
    data, places = floats(x, units), words(p[P_A], units)
    scale, offset = floats(p[P_RATE], units), floats(p[P_SHIFT], units)
    low, high, zero = np.float32(p[P_C]), np.float32(p[P_D]), m[M_ZERO]
    target = octets(m[M_BASE], m[M_ROWS] * m[M_ROW_BYTES])
    for u in range(units):
        q = np.rint((data[u] - offset[u]) / scale[u])
        target[places[u]] = np.int64(min(max(q, low), high)) + zero
    scan_all(m, work)


@kernel
def channelwise_step(p: Array, work: Work) -> None:
    """Each channel by itself: charge = init + sum of weight[tap] * value over the window."""
    m, channels, zero = work.maps[p[P_SOURCE]], p[P_CHANNELS], np.int32(0)
    zero = np.int32(work.maps[p[P_SOURCE], M_ZERO])
    taps = words(p[P_TAPS], 2 * p[P_TAP_COUNT])
    weights = words(p[P_A], p[P_TAP_COUNT] * channels)
    for y in range(p[P_HEIGHT]):
        row_init = p[P_INIT] + y * p[P_INIT_ROW]
        for x in range(p[P_WIDTH]):
            at = work.charges[p[P_CHARGE]] + 4 * channels * (y * p[P_WIDTH] + x)
            charge, init = words(at, channels), words(row_init + x * p[P_INIT_STEP], channels)
            for c in range(channels):
                charge[c] = init[c]
            for t in range(p[P_TAP_COUNT]):
                row = y * p[P_ROW_STRIDE] + taps[2 * t]
                column = x * p[P_STRIDE] + taps[2 * t + 1]
                if not (0 <= row < m[M_HEIGHT] and 0 <= column < m[M_WIDTH]):
                    continue
                value = octets(place(m, row, column), channels)
                weight = weights[t * channels : (t + 1) * channels]
                for c in range(channels):
                    charge[c] += weight[c] * (np.int32(value[c]) - zero)


@kernel
def place(m: Array, row: int, column: int) -> int:
    """Address of a site of the map, counted without the padding."""
    start = m[M_BASE] + (row + m[M_TOP]) * m[M_ROW_BYTES]
    return int(start + (column + m[M_LEFT]) * m[M_PITCH])


@kernel
def sum_step(p: Array, work: Work) -> None:
    """charge = init + multiplier * value, of a map or of other charges."""
    channels = p[P_CHANNELS]
    for y in range(p[P_HEIGHT]):
        for x in range(p[P_WIDTH]):
            site = y * p[P_WIDTH] + x
            charge = words(work.charges[p[P_CHARGE]] + 4 * channels * site, channels)
            at = p[P_INIT] + y * p[P_INIT_ROW] + x * p[P_INIT_STEP]
            if p[P_INIT] == 0:
                at = work.charges[p[P_CHARGE]] + 4 * channels * site
            init = words(at, channels)
            times = words(p[P_A] + y * p[P_B] + x * p[P_C], channels)
            if p[P_OTHER] >= 0:
                other = words(work.charges[p[P_OTHER]] + 4 * channels * site, channels)
                for c in range(channels):
                    charge[c] = init[c] + times[c] * other[c]
            else:
                m = work.maps[p[P_SOURCE]]
                value, zero = octets(place(m, y, x), channels), np.int32(m[M_ZERO])
                for c in range(channels):
                    charge[c] = init[c] + times[c] * (np.int32(value[c]) - zero)


@kernel
def ladder_step(p: Array, work: Work) -> None:
    """Neurons on any staircase: a binary search in the thresholds of each."""
    m, channels, steps = work.maps[p[P_TARGET]], p[P_CHANNELS], p[P_D]
    per_row = p[P_WIDTH] * channels
    for y in range(p[P_HEIGHT]):
        charge = words(work.charges[p[P_CHARGE]] + 4 * per_row * y, per_row)
        row = words(p[P_A] + 4 * per_row * y, per_row)
        for x in range(p[P_WIDTH]):
            target = octets(place(m, y, x), channels)
            for c in range(channels):
                i = x * channels + c
                ladder = words(p[P_B] + 4 * steps * row[i], steps)
                below, above = np.int64(0), np.int64(steps)
                while below < above:
                    middle = (below + above) >> 1
                    if charge[i] >= ladder[middle]:
                        below = middle + 1
                    else:
                        above = middle
                target[c] = words(p[P_C] + 4 * (steps + 1) * row[i], steps + 1)[below]
    scan_all(m, work)


@kernel
def max_step(p: Array, work: Work) -> None:
    m, target, channels = work.maps[p[P_SOURCE]], work.maps[p[P_TARGET]], p[P_CHANNELS]
    taps = words(p[P_TAPS], 2 * p[P_TAP_COUNT])
    for y in range(p[P_HEIGHT]):
        for x in range(p[P_WIDTH]):
            best, found = octets(place(target, y, x), channels), False
            for t in range(p[P_TAP_COUNT]):
                row = y * p[P_ROW_STRIDE] + taps[2 * t]
                column = x * p[P_STRIDE] + taps[2 * t + 1]
                if not (0 <= row < m[M_HEIGHT] and 0 <= column < m[M_WIDTH]):
                    continue
                value = octets(place(m, row, column), channels)
                if not found:
                    for c in range(channels):
                        best[c] = value[c]
                    found = True
                else:
                    for c in range(channels):
                        best[c] = max(best[c], value[c])
    scan_all(target, work)


@kernel
def move_step(p: Array, work: Work) -> None:
    """Bytes to other places; P_C is the difference of the zeros of the two maps."""
    m, target, units = work.maps[p[P_SOURCE]], work.maps[p[P_TARGET]], p[P_CHANNELS]
    source = octets(m[M_BASE], m[M_ROWS] * m[M_ROW_BYTES])
    to = octets(target[M_BASE], target[M_ROWS] * target[M_ROW_BYTES])
    begin, end = words(p[P_A], units), words(p[P_B], units)
    for u in range(units):
        to[end[u]] = source[begin[u]] + p[P_C]
    if p[P_D]:
        scan_all(target, work)


@kernel
def run_convolutions(net: Net, work: Work, job: Array, sample: int) -> None:
    """All steps of a network that has none but these two kinds."""
    at = 1
    for i in range(len(net.steps)):
        p = net.steps[i]
        if p[P_KIND] == GATHER:
            gather_step(p, work)
        else:
            input_step(p, work, job[at, 0] + sample * job[at, 1])
            at += 1


@kernel
def run_steps(net: Net, work: Work, job: Array, sample: int) -> None:
    at = 1
    for i in range(len(net.steps)):
        p = net.steps[i]
        kind = p[P_KIND]
        if kind == GATHER:
            gather_step(p, work)
        elif kind == INPUT:
            input_step(p, work, job[at, 0] + sample * job[at, 1])
            at += 1
        elif kind == SCATTER:
            scatter_input_step(p, work, job[at, 0] + sample * job[at, 1])
            at += 1
        elif kind == CHANNELWISE:
            channelwise_step(p, work)
        elif kind == SUM:
            sum_step(p, work)
        elif kind == LADDER:
            ladder_step(p, work)
        elif kind == MAX:
            max_step(p, work)
        else:
            move_step(p, work)


@kernel
def keep(net: Net, work: Work, which: int, to: Array) -> None:
    """Values of one node, in its own order."""
    t = net.taps[which]
    units = t[K_UNITS]
    index = words(t[K_INDEX], units)
    if t[K_CHARGE] >= 0:
        charge = words(work.charges[t[K_CHARGE]], t[K_SIZE])
        for u in range(units):
            to[u] = charge[index[u]]
    else:
        m = work.maps[t[K_MAP]]
        data, zero = octets(m[M_BASE], m[M_ROWS] * m[M_ROW_BYTES]), np.int32(m[M_ZERO])
        for u in range(units):
            to[u] = np.int32(data[index[u]]) - zero


@kernel
def tally(net: Net, work: Work, which: int, to: Array) -> None:
    """Spikes (+1, -1) of a spike node, or messages times synapses crossed of a synapse node."""
    t = net.tallies[which]
    m = work.maps[t[Y_MAP]]
    zero, channels = np.int64(m[M_ZERO]), m[M_CHANNELS]
    counts = words(m[M_COUNTS], m[M_ROWS])
    plus, minus = np.int64(0), np.int64(0)
    for y in range(m[M_HEIGHT]):
        if counts[y + m[M_TOP]] == 0 and zero == 0:
            continue
        prefix = words(
            m[M_PREFIX] + (y + m[M_TOP]) * m[M_PREFIX_BYTES] + 4 * m[M_LEFT], m[M_WIDTH] + 1
        )
        for x in range(m[M_WIDTH]):
            if zero == 0 and prefix[x] == prefix[x + 1]:
                continue
            value = octets(place(m, y, x), channels)
            if t[Y_ROWS]:
                some = np.int32(0)
                for c in range(channels):
                    some += np.int32(value[c] != zero)
                ways = words(t[Y_ROWS], m[M_HEIGHT])[y] * words(t[Y_COLUMNS], m[M_WIDTH])[x]
                plus += np.int64(some) * ways * t[Y_WIDTH]
            else:
                up, down = np.int32(0), np.int32(0)
                for c in range(channels):
                    s = np.int32(value[c]) - np.int32(zero)
                    up += max(s, np.int32(0))
                    down += max(-s, np.int32(0))
                plus, minus = plus + up, minus + down
    to[0], to[1] = plus, minus


def _stamp() -> int:
    """A number of all sources of this package."""
    state = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        state.update(path.read_bytes())
    return int.from_bytes(state.digest()[:6], "big") | 1


def _entry(stamp: int, plain: bool) -> Callable[..., None]:
    """The compiled call; for `plain` networks without the rarer steps, which saves seconds the
    first time. Numba's cache looks at the date of this file only; the stamp of all files
    is a captured constant, and captured constants are part of the key."""

    @njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def run_batch(
        table: Array,
        job: Array,
        kept: Array,
        kept_values: Array,
        tallies: Array,
        scales: Array,
        floats: Array,
    ) -> None:
        """table: the arrays of a net and a work area (`kernels.addresses`).
        job[0]: first sample, end; job[1 + i]: address of the floats of input i, bytes of a
        sample. kept: rows of `net.taps`; their values go side by side to kept_values [N, units].
        tallies [N, nodes, 2] is filled if it is not empty; floats [N, units] too, with values
        times scales [units]: the same bits as `snnkit.boundary.dequantise`."""
        net, work = net_at(table), work_at(table)
        for s in range(job[0, 0] * stamp // stamp, job[0, 1]):
            if plain:
                run_convolutions(net, work, job, s)
            else:
                run_steps(net, work, job, s)
            at = 0
            for which in kept:
                units = net.taps[which, K_UNITS]
                keep(net, work, which, kept_values[s, at : at + units])
                at += units
            if len(floats):
                for u in range(at):
                    floats[s, u] = np.float32(kept_values[s, u]) * scales[u]
            if len(tallies):
                for i in range(len(net.tallies)):
                    tally(net, work, i, tallies[s, i])

    entry: Callable[..., None] = run_batch
    return entry


PLAIN = frozenset({INPUT, GATHER})
run_plain, run_any = _entry(_stamp(), True), _entry(_stamp(), False)

"""The event-driven engine: compiled once, for all networks.

A network is data here: one row of integers per node (`Net.nodes`) that points into flat arrays.
Everything compiled lies in this one file, with the names of the columns: Numba's cache looks at
the date of the file of the called function only, and would run stale code if a second file
changed.

Synapses work per event: a conv or linear node compares each unit of its input with what it was
told of it (the tracer), and adds difference * weight row to its charges. Everything else
recomputes from its inputs, and only after one of them changed (`Work.dirty`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])

INPUT, SYNAPSE, SUM, WEIGHTED, MAX, UNIFORM, LADDER, READOUT, PRODUCT, LIF, LATCH, HANDED = range(
    12
)
"""Kinds of nodes. An INPUT is given from outside at every step and arrives in an encoding, HANDED
is what another sweep computed, a LATCH is kept by the engine."""

SETTLE, EVENTS, STEPS, FUZZ = range(4)
(MODE, SEED, DELAY, PHASE, LAST_STEP, DIRECTION, CARRY, RESUME, ENCODING, OVER) = range(10)
"""Entries of `how`. RESUME: latches and membrane potentials are as the last call left them, with
CARRY everything is. OVER: the number of steps in which an input arrives."""
S_ANALOG, RATE, BIT_SERIAL = range(3)

(
    # every node; its readers are ints[READERS:READERS_END]
    KIND, UNITS, VALUE, READERS, READERS_END, SOURCE, TOLD,
    # synapses: extent and strides of the input as (row, column, channel), then the weights as
    # [channel][tap row][tap column][output channel of the group]
    ROWS, COLUMNS, GROUPS, PER_GROUP, ROW_STRIDE, COLUMN_STRIDE, CHANNEL_STRIDE,
    WEIGHT, TAP_ROWS, TAP_COLUMNS, OUT_COLUMNS, OUT_CHANNELS, OUT_PER_GROUP,
    ROW_FIRST, ROW_TAPS, COLUMN_FIRST, COLUMN_TAPS,
    # sums and maxima: output unit u reads state[INDEX[FIRST[u]:FIRST[u + 1]]]
    FIRST, INDEX, MULTIPLIER,
    # neurons; BIAS also of readouts
    BIAS, THETA, LO, HI, LEVEL, CELL, LADDERS, LADDER_ROW, THRESHOLDS, VALUES, STEPS_OF_ROW,
    # leaky neurons: leak, gain, bias, theta and reset of all units, one after the other
    WIDE, SHIFT, HARD, MEMBRANE,
) = range(42)  # fmt: skip
FIELDS = 42
"""Columns of `Net.nodes`. Positions in `ints`, `wides`, `weights` and the state are absolute."""

PLUS, MINUS, SYNOPS = range(3)
"""Columns of a sample's tally."""

STEP_LIMIT = 1_000_000
"""No acyclic network needs so many steps."""

ALL = 10
"""A portion of ten tenths. Below it, only mode fuzz: a random part happens, the rest later."""


class Net(NamedTuple):
    """What all samples and threads share; never written."""

    nodes: Array  # int64 [node, field]
    ints: Array  # int32
    weights: Array  # int8
    wides: Array  # int64
    rest: Array  # int32, the state before any input
    membrane: Array  # int64, the membrane potentials before the first step


class Work(NamedTuple):
    """What one thread writes."""

    state: Array  # int32: values, tracers, cells of ladders
    dirty: Array  # uint8 [node]: an input changed since the node last looked
    tally: Array  # int64 [node, 3]
    portion: Array  # int64 [1]: how many tenths of the messages and spikes happen now
    random: Array  # uint64 [1]
    membrane: Array  # int64, between two steps
    latched: Array  # int32, what the latches hold, between two steps
    before: Array  # int32, what inputs held before the window, side by side, as `given`
    given: Array  # int32, how much of it has arrived by this step


class Latches(NamedTuple):
    """Which nodes of a window are latches, and what they take up at the barrier."""

    rows: Array  # int64 [latch, 3]: node, and begin and end of its block in `take` and `latched`
    take: Array  # int32: the place in the state that each unit takes up


OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
"""Nothing here allocates, so nothing has to be counted: references to the arrays of `Net` and
`Work` were taken and given back around every call, which cost as much as a small node."""
PART = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def kernel(function: F) -> F:
    """A part of the engine, called by compiled code only."""
    part: F = njit(**PART)(function)
    return part


def inlined(function: F) -> F:
    """A part that every node runs through: written into its callers, since passing `Net` and `Work`
    takes longer than a small node does."""
    part: F = njit(**PART, forceinline=True)(function)
    return part


@kernel
def draw(random: Array, below: int) -> Any:
    """A random integer (xorshift64*), the same on every machine and in every thread."""
    s = random[0]
    s ^= s >> np.uint64(12)
    s ^= s << np.uint64(25)
    s ^= s >> np.uint64(27)
    random[0] = s
    return np.int64((s * np.uint64(2685821657736338717)) >> np.uint64(33)) % below


@inlined
def copy(source: Array, target: Array) -> None:
    """target[:] = source; written so, Numba would spend seconds on compiling the message of the
    error that different lengths raise."""
    for i in range(len(target)):
        target[i] = source[i]


@inlined
def changed(net: Net, work: Work, n: int) -> None:
    """Tell the readers of node n to look again."""
    for i in range(net.nodes[n, READERS], net.nodes[n, READERS_END]):
        work.dirty[net.ints[i]] = 1


@inlined
def receive(net: Net, work: Work, n: int) -> bool:
    """Deliver to node n what changed at its inputs; False if nothing did."""
    if not work.dirty[n]:
        return False
    kind = net.nodes[n, KIND]
    if kind == SYNAPSE:
        cross_synapses(net, work, n)
    elif kind == UNIFORM or kind == LADDER:
        take_charge(net, work, n)
    else:
        if recompute(net, work, n):
            changed(net, work, n)
        work.dirty[n] = 0
    if work.portion[0] == ALL:
        work.dirty[n] = 0
    return True


@inlined
def silent(source: Array, told: Array, begin: int, end: int) -> bool:
    """Is there nothing new from begin to end? One vectorised look at a whole place."""
    now, before = source[begin:end], told[begin:end]
    differs = np.int32(0)
    for i in range(len(now)):
        differs |= now[i] ^ before[i]
    return bool(differs == 0)


@inlined
def cross_synapses(net: Net, work: Work, n: int) -> None:
    """Add difference * weights for each input unit that differs from its tracer."""
    p, ints, weights = net.nodes[n], net.ints, net.weights
    source, told = work.state[p[SOURCE] :], work.state[p[TOLD] :]
    charge = work.state[p[VALUE] : p[VALUE] + p[UNITS]]
    row_first, row_taps = ints[p[ROW_FIRST] :], ints[p[ROW_TAPS] :]
    column_first, column_taps = ints[p[COLUMN_FIRST] :], ints[p[COLUMN_TAPS] :]
    rows, columns, groups, per_group = p[ROWS], p[COLUMNS], p[GROUPS], p[PER_GROUP]
    row_stride, column_stride, stride = p[ROW_STRIDE], p[COLUMN_STRIDE], p[CHANNEL_STRIDE]
    channels, width = p[OUT_CHANNELS], p[OUT_PER_GROUP]
    tap_row = p[TAP_COLUMNS] * width
    tap_channel = p[TAP_ROWS] * tap_row
    out_row = p[OUT_COLUMNS] * channels
    synops, portion = 0, work.portion[0]
    for y in range(rows):
        for x in range(columns):
            at = y * row_stride + x * column_stride
            if stride == 1 and silent(source, told, at, at + groups * per_group):
                continue
            at -= stride
            w_channel = p[WEIGHT] - tap_channel
            for g in range(groups):
                for _ in range(per_group):
                    at += stride
                    w_channel += tap_channel
                    delta = np.int32(source[at] - told[at])
                    if delta == 0 or (portion < ALL and draw(work.random, ALL) >= portion):
                        continue
                    told[at] = source[at]
                    for a in range(row_first[y], row_first[y + 1]):
                        w_row = w_channel + row_taps[3 * a] * tap_row
                        o_row = row_taps[3 * a + 1] * out_row + g * width
                        for b in range(column_first[x], column_first[x + 1]):
                            w = w_row + column_taps[3 * b] * width
                            o = o_row + column_taps[3 * b + 1] * channels
                            run = column_taps[3 * b + 2] * width
                            # views first, or LLVM does not vectorise the loop
                            target, row = charge[o : o + run], weights[w : w + run]
                            for j in range(run):
                                target[j] += delta * row[j]
                            synops += run
    if synops:
        work.tally[n, SYNOPS] += synops
        changed(net, work, n)


@inlined
def take_charge(net: Net, work: Work, n: int) -> None:
    """A spike node learns its charge."""
    p, portion = net.nodes[n], work.portion[0]
    source = work.state[p[SOURCE] : p[SOURCE] + p[UNITS]]
    told = work.state[p[TOLD] : p[TOLD] + p[UNITS]]
    if portion == ALL:
        copy(source, told)
        return
    for i in range(p[UNITS]):
        if draw(work.random, ALL) < portion:
            told[i] = source[i]


@inlined
def recompute(net: Net, work: Work, n: int) -> bool:
    """A sum, a maximum or a readout, from the present values; False if it stays the same."""
    p, state = net.nodes[n], work.state
    kind, units = p[KIND], p[UNITS]
    value = state[p[VALUE] : p[VALUE] + units]
    differs = 0
    if kind == LIF:
        return fire_leaky(net, work, n)
    if kind == READOUT:
        source, bias = state[p[SOURCE] : p[SOURCE] + units], net.ints[p[BIAS] : p[BIAS] + units]
        for u in range(units):
            new = source[u] + bias[u]
            differs |= new ^ value[u]
            value[u] = new
        return differs != 0
    first, index = net.ints[p[FIRST] : p[FIRST] + units + 1], net.ints[p[INDEX] :]
    multiplier = net.ints[p[MULTIPLIER] :]
    for u in range(units):
        # unsigned positions: none counts from the end
        begin, end = np.uint32(first[u]), np.uint32(first[u + 1])
        new = np.int32(0)
        if kind == MAX:
            new = state[np.uint32(index[begin])]
            for i in range(begin + np.uint32(1), end):
                new = max(new, state[np.uint32(index[i])])
        elif kind == PRODUCT:
            other = state[np.uint32(index[begin + np.uint32(1)])]
            new = np.int32(state[np.uint32(index[begin])] * other)
        elif kind == WEIGHTED:
            for i in range(begin, end):
                new += np.int32(state[np.uint32(index[i])] * multiplier[i])
        else:
            for i in range(begin, end):
                new += state[np.uint32(index[i])]
        differs |= new ^ value[u]
        value[u] = new
    return differs != 0


@kernel
def integrated(net: Net, work: Work, n: int, u: int) -> Any:
    """What the membrane potential of leaky neuron u is before its reset."""
    p, units = net.nodes[n], net.nodes[n, UNITS]
    at = p[WIDE] + u
    charge = np.int64(work.state[p[SOURCE] + u])
    leaked = (work.membrane[p[MEMBRANE] + u] * net.wides[at]) >> p[SHIFT]
    return leaked + net.wides[at + units] * charge + net.wides[at + 2 * units]


@kernel
def fire_leaky(net: Net, work: Work, n: int) -> bool:
    """Leaky neurons correct their spikes of this step after their charge; False if none has to."""
    p, units = net.nodes[n], net.nodes[n, UNITS]
    value = work.state[p[VALUE] : p[VALUE] + units]
    theta = net.wides[p[WIDE] + 3 * units : p[WIDE] + 4 * units]
    plus = minus = 0
    for u in range(units):
        new = np.int32(integrated(net, work, n, u) >= theta[u])
        plus += new > value[u]
        minus += new < value[u]
        value[u] = new
    work.tally[n, PLUS] += plus
    work.tally[n, MINUS] += minus
    return plus + minus > 0


@kernel
def barrier(net: Net, work: Work, latches: Latches) -> None:
    """Between two steps: membrane potentials move, latches take up their sources."""
    for n in range(len(net.nodes)):
        if net.nodes[n, KIND] == LIF:
            p, units = net.nodes[n], net.nodes[n, UNITS]
            spike = work.state[p[VALUE] : p[VALUE] + units]
            reset = net.wides[p[WIDE] + 4 * units : p[WIDE] + 5 * units]
            membrane = work.membrane[p[MEMBRANE] : p[MEMBRANE] + units]
            for u in range(units):
                v = integrated(net, work, n, u)
                if spike[u]:
                    v = reset[u] if p[HARD] else v - reset[u]
                membrane[u] = v
    for u in range(len(latches.take)):
        work.latched[u] = work.state[latches.take[u]]


@inlined
def direction(v: int, s: int, theta: int, lo: int, hi: int) -> int:
    """+1 where a neuron of charge v and tracer s is able to fire up, -1 where down, else 0."""
    return int((v >= theta * (s + 1)) & (s < hi)) - int((v < theta * s) & (s > lo))


@kernel
def fire(net: Net, work: Work, n: int) -> bool:
    """One unit spike from each neuron able to fire (from a random portion of them)."""
    if net.nodes[n, KIND] == LADDER:
        moved = climb(net, work, n)
    else:
        moved = fire_uniform(net, work, n)
    if moved:
        changed(net, work, n)
    return moved


@kernel
def fire_uniform(net: Net, work: Work, n: int) -> bool:
    p, units, portion = net.nodes[n], net.nodes[n, UNITS], work.portion[0]
    lo, hi = p[LO], p[HI]
    value = work.state[p[VALUE] : p[VALUE] + units]
    charge = work.state[p[TOLD] : p[TOLD] + units]
    bias, theta = net.ints[p[BIAS] : p[BIAS] + units], net.ints[p[THETA] : p[THETA] + units]
    plus = minus = 0
    if portion == ALL:
        for u in range(units):
            step = direction(charge[u] + bias[u], value[u], theta[u], lo, hi)
            value[u] += step
            plus += step > 0
            minus += step < 0
    else:
        for u in range(units):
            if draw(work.random, ALL) < portion:
                step = direction(charge[u] + bias[u], value[u], theta[u], lo, hi)
                value[u] += step
                plus += step > 0
                minus += step < 0
    work.tally[n, PLUS] += plus
    work.tally[n, MINUS] += minus
    return plus + minus > 0


@kernel
def climb(net: Net, work: Work, n: int) -> bool:
    """Neurons on ladders move one cell; a cell of the same value moves without a spike."""
    p, ints, units = net.nodes[n], net.ints, net.nodes[n, UNITS]
    value, cell = work.state[p[VALUE] :], work.state[p[CELL] :]
    charge, bias, row = work.state[p[TOLD] :], ints[p[BIAS] :], ints[p[LADDER_ROW] :]
    steps, portion = p[STEPS_OF_ROW], work.portion[0]
    moved = False
    for u in range(units):
        if portion < ALL and draw(work.random, ALL) >= portion:
            continue
        v, c = charge[u] + bias[u], np.int64(cell[u])
        ladder = p[THRESHOLDS] + row[u] * steps
        if c < steps and v >= ints[ladder + c]:
            c += 1
        elif c > 0 and v < ints[ladder + c - 1]:
            c -= 1
        else:
            continue
        moved = True
        cell[u] = c
        emit(work, n, value, u, ints[p[VALUES] + row[u] * (steps + 1) + c])
    return moved


@inlined
def emit(work: Work, n: int, value: Array, u: int, new: int) -> None:
    """Neuron u sends new minus old as one message, counted as so many unit spikes."""
    spikes = new - value[u]
    work.tally[n, PLUS] += max(spikes, 0)
    work.tally[n, MINUS] += max(-spikes, 0)
    value[u] = new


@inlined
def settle_node(net: Net, work: Work, n: int) -> None:
    """One graded spike from each neuron, straight to the quiescent value of its charge."""
    if net.nodes[n, KIND] == LADDER:
        moved = settle_ladder(net, work, n)
    else:
        moved = settle_uniform(net, work, n)
    if moved:
        changed(net, work, n)


@inlined
def settle_uniform(net: Net, work: Work, n: int) -> bool:
    p, units = net.nodes[n], net.nodes[n, UNITS]
    lo, hi = np.float64(p[LO]), np.float64(p[HI])
    value = work.state[p[VALUE] : p[VALUE] + units]
    charge = work.state[p[TOLD] : p[TOLD] + units]
    bias, theta = net.ints[p[BIAS] : p[BIAS] + units], net.ints[p[THETA] : p[THETA] + units]
    plus = minus = 0
    for u in range(units):
        # float64 floors exactly here: an integer quotient below 2^31 and its lower neighbour
        # 1/theta away differ by more than half a unit in the last place. It also vectorises.
        v = np.float64(charge[u]) + np.float64(bias[u])
        new = np.int32(min(max(np.floor(v / np.float64(theta[u])), lo), hi))
        spikes = new - value[u]
        plus += max(spikes, 0)
        minus += max(-spikes, 0)
        value[u] = new
    work.tally[n, PLUS] += plus
    work.tally[n, MINUS] += minus
    return plus + minus > 0


@inlined
def settle_ladder(net: Net, work: Work, n: int) -> bool:
    p, ints, units = net.nodes[n], net.ints, net.nodes[n, UNITS]
    value = work.state[p[VALUE] : p[VALUE] + units]
    cell = work.state[p[CELL] : p[CELL] + units]
    row = ints[p[LADDER_ROW] : p[LADDER_ROW] + units]
    count_thresholds(net, work, n)
    plus = minus = 0
    for u in range(units):
        new = ints[p[VALUES] + row[u] * (p[STEPS_OF_ROW] + 1) + cell[u]]
        spikes = new - value[u]
        plus += max(spikes, 0)
        minus += max(-spikes, 0)
        value[u] = new
    work.tally[n, PLUS] += plus
    work.tally[n, MINUS] += minus
    return plus + minus > 0


@inlined
def count_thresholds(net: Net, work: Work, n: int) -> None:
    """The cell of each neuron on a ladder: how many thresholds its charge has reached."""
    p, ints, units = net.nodes[n], net.ints, net.nodes[n, UNITS]
    cell = work.state[p[CELL] : p[CELL] + units]
    charge = work.state[p[TOLD] : p[TOLD] + units]
    bias, row = ints[p[BIAS] : p[BIAS] + units], ints[p[LADDER_ROW] : p[LADDER_ROW] + units]
    steps = p[STEPS_OF_ROW]
    if p[LADDERS] == 1:
        # threshold by threshold, which vectorises; charge plus bias is proved to fit 32 bits
        cell[:] = 0
        for i in range(steps):
            threshold = ints[p[THRESHOLDS] + i]
            for u in range(units):
                cell[u] += np.int32(np.int32(charge[u] + bias[u]) >= threshold)
        return
    # binary search of all neurons together and without branches, which vectorises
    cell[:] = 0
    thresholds, most = ints[p[THRESHOLDS] :], np.uint32(steps)
    half = np.uint32(1)
    while half << np.uint32(1) <= most:
        half <<= np.uint32(1)
    while half > 0:
        for u in range(units):
            tried = np.uint32(cell[u]) + half
            at = np.uint32(row[u]) * most + min(tried, most) - np.uint32(1)
            reached = np.int32(charge[u] + bias[u]) >= thresholds[at]
            cell[u] = tried if reached and tried <= most else np.uint32(cell[u])
        half >>= np.uint32(1)


@inlined
def is_neuron(net: Net, n: int) -> bool:
    kind = net.nodes[n, KIND]
    return bool(kind == UNIFORM or kind == LADDER)


@kernel
def deliver_all(net: Net, work: Work) -> None:
    for n in range(len(net.nodes)):
        receive(net, work, n)


@kernel
def settle(net: Net, work: Work) -> None:
    for n in range(len(net.nodes)):
        if receive(net, work, n) and is_neuron(net, n):
            settle_node(net, work, n)


@kernel
def events(net: Net, work: Work, how: Array, x: Array) -> None:
    for step in range(1, how[OVER] + 1):
        if step > 1:
            arrive(net, work, how, x, step)
        deliver_all(net, work)
        for n in range(len(net.nodes)):
            if is_neuron(net, n):
                while fire(net, work, n):
                    deliver_all(net, work)


@kernel
def count_spikes(work: Work) -> int:
    spikes = 0
    for n in range(len(work.tally)):
        spikes += work.tally[n, PLUS] + work.tally[n, MINUS]
    return spikes


@kernel
def synchronous_steps(net: Net, work: Work, how: Array, x: Array) -> int:
    """The last step with a spike; -1 if there is no end."""
    last = 0
    for step in range(1, STEP_LIMIT):
        if 1 < step <= how[OVER]:
            arrive(net, work, how, x, step)
        if step <= how[OVER]:
            deliver_all(net, work)
        before, moved = count_spikes(work), False
        for n in range(len(net.nodes)):
            if is_neuron(net, n):
                if step > how[PHASE] * net.nodes[n, LEVEL]:
                    moved |= fire(net, work, n)
                if how[DELAY] == 0:
                    deliver_all(net, work)
        deliver_all(net, work)
        if count_spikes(work) > before:
            last = step
        if not moved and step > how[LAST_STEP] and step >= how[OVER]:
            return last
    return -1


@kernel
def fuzz(net: Net, work: Work, seed: int) -> None:
    """Random firings and random partial deliveries until nothing is left to do."""
    # any odd number is a valid state; the first draws of close seeds are alike, so drop some
    work.random[0] = np.uint64(seed) * np.uint64(11400714819323198485) | np.uint64(1)
    for _ in range(8):
        draw(work.random, ALL)
    nodes = len(net.nodes)
    some = (1, 5, ALL)
    active = True
    while active:
        active = False
        for _ in range(2 * nodes):
            work.portion[0] = some[draw(work.random, 3)]
            active |= disturb(net, work, draw(work.random, nodes))
        if not active:
            # random picks may miss work; a full sweep that finds none proves quiescence
            work.portion[0] = ALL
            for n in range(nodes):
                active |= disturb(net, work, n)


@kernel
def disturb(net: Net, work: Work, n: int) -> bool:
    active = receive(net, work, n)
    if is_neuron(net, n):
        active |= fire(net, work, n)
    return active


@inlined
def inject(net: Net, work: Work, n: int, given: Array) -> None:
    """Node n has the value `given` in this window."""
    first, units = net.nodes[n, VALUE], net.nodes[n, UNITS]
    value = work.state[first : first + units]
    differs = np.int32(0)
    for u in range(units):
        differs |= value[u] ^ given[u]
        value[u] = given[u]
    if differs:
        changed(net, work, n)


@kernel
def arrived(change: int, step: int, how: Array) -> Any:
    """How much of a change of an input has arrived by `step`: snnkit.encodings.arrived."""
    size, left = abs(change), how[OVER] - step
    size = size * step // how[OVER] if how[ENCODING] == RATE else size >> left << left
    return size if change > 0 else -size


@kernel
def arrive(net: Net, work: Work, how: Array, x: Array, step: int) -> None:
    """Inject what of x, the values of all input nodes side by side, is there by `step`."""
    at = 0
    for n in range(len(net.nodes)):
        kind, units = net.nodes[n, KIND], net.nodes[n, UNITS]
        if kind != INPUT and kind != HANDED:
            continue
        given = x[at : at + units]
        if kind == INPUT and how[OVER] > 1:
            if step == 1:
                first = net.nodes[n, VALUE]
                copy(work.state[first : first + units], work.before[at : at + units])
            if step < how[OVER]:
                given = work.given[at : at + units]
                for i in range(units):
                    before = work.before[at + i]
                    given[i] = before + arrived(np.int64(x[at + i]) - before, step, how)
        inject(net, work, n, given)
        at += units


@kernel
def open_window(net: Net, work: Work, latches: Latches, how: Array, x: Array, rested: bool) -> None:
    """Begin a step at rest, or as the last one ended, and inject the first part of x and what the
    latches hold."""
    if rested:
        copy(net.rest, work.state)
        work.dirty[:] = 0
    work.portion[0] = ALL
    arrive(net, work, how, x, 1)
    for n in range(len(net.nodes)):
        if net.nodes[n, KIND] == LIF or (rested and is_neuron(net, n)):
            # a membrane potential has moved; a bias may fire without input
            work.dirty[n] = 1
    for i in range(len(latches.rows)):
        begin, end = latches.rows[i, 1], latches.rows[i, 2]
        inject(net, work, latches.rows[i, 0], work.latched[begin:end])


@kernel
def run_window(net: Net, work: Work, how: Array, x: Array, i: int) -> int:
    """Settle the window of the i-th step in its mode; the last step of mode steps, or -1."""
    if how[MODE] == SETTLE:
        settle(net, work)
    elif how[MODE] == EVENTS:
        events(net, work, how, x)
    elif how[MODE] == STEPS:
        return synchronous_steps(net, work, how, x)
    else:
        fuzz(net, work, how[SEED] + i)
    return 0


@njit(nogil=True, cache=True, **OPTIONS)  # type: ignore[untyped-decorator]
def run_samples(
    net: Net,
    work: Work,
    latches: Latches,
    how: Array,
    clock: Array,
    x: Array,
    first: Array,
    keep: Array,
    kept: Array,
    tally: Array,
    steps: Array,
) -> None:
    """Run the samples x [N, T, units] one after the other, clock [N] windows each, at most T.

    first [N, units] : what the latches hold at the first step, without RESUME. Writes per sample
    the tally, the steps (below zero: no end), and for each step the values of the nodes `keep`,
    side by side.
    """
    for s in range(len(x)):
        work.tally[:] = 0
        if how[RESUME] == 0:
            copy(first[s], work.latched)
            copy(net.membrane, work.membrane)
        for i in range(clock[s]):
            t = i if how[DIRECTION] >= 0 else clock[s] - 1 - i
            rested = how[CARRY] == 0 or (i == 0 and how[RESUME] == 0)
            open_window(net, work, latches, how, x[s, t], rested)
            last = run_window(net, work, how, x[s, t], i)
            steps[s] = -1 if last < 0 or steps[s] < 0 else steps[s] + last
            barrier(net, work, latches)
            at = 0
            for n in keep:
                begin, units = net.nodes[n, VALUE], net.nodes[n, UNITS]
                copy(work.state[begin : begin + units], kept[s, t, at : at + units])
                at += units
        for n in range(len(net.nodes)):
            copy(work.tally[n], tally[s, n])

"""Thresholds of a spiking node, as integers, from the affine meaning of its charge.

The charge A stands for z = scale * A + offset. The node's value is
level(f(z)) = clip(floor(f(z) / step + 1/2), lo, hi).

- ladder: T_k is the least charge whose level reaches k, found by bisection over the function
  (P7: since A is an integer, any monotone function of it is such a ladder, with nothing rounded).
- uniform: theta = round(step / scale), init = round(offset / scale) + theta // 2. This rounds:
  the quantised network *is* what these integers say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from snnkit.converters.activations import Activation, Floats
from snnkit.converters.calibration import Staircase
from snnkit.graph import INT32_BOUND, Node
from snnkit.ops.spike import NEVER

ALWAYS = -INT32_BOUND
FORMS = ("auto", "uniform", "ladder")
TOLERATED = 1 / 8
"""Levels by which rounding theta may move the top of a uniform staircase before `auto` takes a
ladder instead."""

Level = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
Spike = tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]


def build(
    charge: Node,
    scale: Floats,
    offset: Floats,
    act: Activation,
    stairs: Staircase,
    form: str,
    bound: int = INT32_BOUND,
) -> Spike:
    """(params, attrs) of the spike node that reads `charge`. scale > 0 everywhere.

    bound : of the membrane potential of a uniform staircase.
    """
    attrs = {"lo": stairs.lo, "hi": stairs.hi}
    if form != "ladder" and act.clip is not None and _holds_range(act.clip, stairs):
        params = _uniform(charge, scale, offset, stairs, form == "auto", bound)
        if params is not None:
            return params, {"kind": "uniform", **attrs}
    params = _ladder(charge, scale, offset, act, stairs)
    return params, {"kind": "ladder", **attrs}


def _holds_range(bounds: tuple[float, float], stairs: Staircase) -> bool:
    """Whether saturating at lo and hi already does what the activation's own clip would."""
    half = stairs.step / 2
    below = bounds[0] <= stairs.lo * stairs.step + half and bounds[0] <= 0
    return below and bounds[1] >= stairs.hi * stairs.step - half


def _uniform(
    charge: Node,
    scale: Floats,
    offset: Floats,
    stairs: Staircase,
    strict: bool,
    bound: int,
) -> dict[str, npt.NDArray[Any]] | None:
    exact = stairs.step / scale
    theta = np.maximum(np.rint(exact), 1.0)
    initial = np.rint(offset / scale) + np.floor(theta / 2)
    if bound < INT32_BOUND:
        theta, initial = _muted(charge, theta, initial, stairs)
    span = max(-stairs.lo, stairs.hi) + 1
    room = bound - charge.peak - 1
    if (theta * span * 4 > room).any():
        return None
    moved = np.abs(theta - exact) / exact * max(-stairs.lo, stairs.hi)
    if strict and ((moved > TOLERATED) | (theta < 8)).any():
        return None
    limit = room - theta * span
    # a larger initial charge saturates all the same; clipping keeps the proof of 32 bits
    initial = np.clip(initial, -limit, limit)
    return {"theta": theta.astype(np.int64), "init": initial.astype(np.int64)}


def _muted(
    charge: Node, theta: Floats, initial: Floats, stairs: Staircase
) -> tuple[Floats, Floats]:
    """The same staircase where it can fire; where no charge can make a neuron fire, a theta like
    the others' that no charge reaches either. A channel of next to no weight has a theta beyond
    24 bits otherwise."""
    reach = max(-charge.lo, charge.hi)
    top = np.broadcast_to(initial, np.broadcast_shapes(initial.shape, theta.shape)) + reach
    shared = tuple(i for i, n in enumerate(theta.shape) if n == 1)
    mute = (top.max(axis=shared, keepdims=True) < theta) & (stairs.lo == 0)
    if not mute.any() or mute.all():
        return theta, initial
    usual = theta[~mute].min()
    return np.where(mute, usual, theta), np.where(mute, usual - 1 - reach, initial)


def _ladder(
    charge: Node, scale: Floats, offset: Floats, act: Activation, stairs: Staircase
) -> dict[str, npt.NDArray[Any]]:
    initial: npt.NDArray[Any] = np.zeros((1,) * len(charge.shape), np.int64)
    if sum(n > 1 for n in offset.shape) > 1:
        # a ladder per position would be as large as the layer: the map goes into the charge
        limit = INT32_BOUND - charge.peak - 1
        initial = np.clip(np.rint(offset / scale), -limit, limit).astype(np.int64)
        offset = np.zeros((1,) * len(charge.shape))
    pattern = np.broadcast_shapes(scale.shape, offset.shape, act.pattern)
    unit, rest = np.broadcast_to(scale, pattern), np.broadcast_to(offset, pattern)
    reach = (charge.lo + int(initial.min()), charge.hi + int(initial.max()))

    def level(a: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        y = act.f(unit[..., None] * a + rest[..., None])
        return np.clip(np.floor(y / stairs.step + 0.5), stairs.lo, stairs.hi).astype(np.int64)

    turns = [np.ceil((t - rest) / unit) for t in act.turns]
    return {"init": initial, **ladder(level, pattern, (stairs.lo, stairs.hi), reach, turns)}


def ladder(
    level: Level,
    pattern: tuple[int, ...],
    bounds: tuple[int, int],
    reach: tuple[int, int],
    turns: Sequence[Floats] = (),
) -> dict[str, npt.NDArray[np.int64]]:
    """Thresholds (*pattern, K), and values where the staircase turns, of an integer function.

    level : charges [*pattern, K] int64 -> levels within `bounds`. reach : charges that can occur.
    turns : charges [*pattern], in rising order, where `level` changes between rising and falling;
        without any it only rises.
    """
    lo, hi = bounds
    if not turns:
        k = np.arange(lo + 1, hi + 1)
        start = np.broadcast_to(reach[0], (*pattern, len(k)))
        thresholds = _least(level, k, start, np.broadcast_to(reach[1] + 1, start.shape), 1)
        thresholds = np.where(thresholds > reach[1], NEVER, thresholds)
        return {"thresholds": np.where(thresholds <= reach[0], ALWAYS, thresholds)}
    edges = [np.clip(np.nan_to_num(t), *reach).astype(np.int64) for t in turns]
    thresholds, values = _walk(level, pattern, [np.full(pattern, reach[0]), *edges], reach[1])
    return {"thresholds": thresholds, "values": values}


def _least(
    level: Level,
    k: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    sign: npt.NDArray[np.int64] | int,
) -> npt.NDArray[np.int64]:
    """Least charge in [start, stop) with sign * level >= sign * k, `stop` if there is none.

    level is monotone (rising where sign is 1, falling where it is -1) between start and stop.
    """
    low, high = start.copy(), stop.copy()
    while (low < high).any():
        middle = (low + high) // 2
        reached = sign * level(middle) >= sign * k
        high = np.where(reached & (low < high), middle, high)
        low = np.where(reached | (low >= high), low, middle + 1)
    return high


def _walk(
    level: Level, pattern: tuple[int, ...], starts: list[npt.NDArray[np.int64]], last: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Thresholds and values of a staircase that also steps down, one monotone segment a time."""
    ends = [*starts[1:], np.full(pattern, last + 1)]
    current = np.zeros(pattern, np.int64)
    where, steps = [], []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        empty = start >= end
        begin = np.where(empty, current, level(start[..., None])[..., 0])
        finish = np.where(empty, begin, level(np.maximum(end - 1, start)[..., None])[..., 0])
        # between segments the function may jump: as many spikes at one threshold
        jump, path = begin - current, finish - begin
        at = np.full_like(start, ALWAYS) if i == 0 else start
        where.append(np.broadcast_to(at[..., None], (*pattern, int(np.abs(jump).max()))))
        steps.append(_spikes(jump))
        k = begin[..., None] + np.cumsum(_spikes(path), axis=-1)
        sign = np.sign(path)[..., None]
        low, high = (np.broadcast_to(e[..., None], k.shape) for e in (start, end))
        where.append(_least(level, k, low, np.maximum(low, high), sign))
        steps.append(_spikes(path))
        current = finish
    return _packed(np.concatenate(where, axis=-1), np.concatenate(steps, axis=-1))


def _spikes(change: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each change as that many unit spikes of its sign, padded with zeros."""
    count = np.arange(int(np.abs(change).max()))
    return np.where(count < np.abs(change)[..., None], np.sign(change)[..., None], 0)


def _packed(
    thresholds: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Leave out the padding: every row's steps first, then thresholds that are never reached."""
    order = np.argsort(steps == 0, axis=-1, kind="stable")
    steps = np.take_along_axis(steps, order, axis=-1)
    thresholds = np.where(steps == 0, NEVER, np.take_along_axis(thresholds, order, axis=-1))
    width = max(1, int((steps != 0).sum(axis=-1).max()))
    if steps.shape[-1] == 0:
        steps = np.zeros((*steps.shape[:-1], 1), np.int64)
        thresholds = np.full(steps.shape, NEVER, np.int64)
    start = np.zeros((*steps.shape[:-1], 1), np.int64)
    values = np.concatenate([start, np.cumsum(steps, axis=-1)], axis=-1)
    return thresholds[..., :width], values[..., : width + 1]

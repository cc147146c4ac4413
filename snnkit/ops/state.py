"""latch and lif: what a step graph remembers from one step to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from snnkit.errors import BadShape, BadThreshold, RangeOverflow
from snnkit.ops.op import Attrs, Bounds, Ints, Op, Params, Shape, Writer, batched

if TYPE_CHECKING:
    from snnkit.graph import Node

MOST_STEPS = 2**24
MEMBRANE_BOUND = 2**62
LIF_ARRAYS = ("bias", "gain", "initial", "leak", "reset", "theta")


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= MOST_STEPS:
        raise BadShape(f"steps {steps}; expected 1 to {MOST_STEPS}")


class Latch(Op):
    """The value that another node of the sweep (`Graph.latches`) had at the step before.

    attrs shape, lo, hi with lo <= 0 <= hi. At the first step: params initial, int32, broadcasts;
    or, instead of it, the value of the one input, a node of an earlier sweep of direction 0.
    Optional attr steps: the latch may accumulate (its source is itself plus something), and its
    bounds hold for so many steps.

    A latch cuts every recurrent loop at the border of two windows, so that each window is
    acyclic and its quiescent state unique (P1, P2, ARCHITECTURE.md).
    """

    name = "latch"
    arity = None
    dtypes = {"initial": "int32"}

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        shape = tuple(attrs["shape"])
        if len(inputs) + len(params) != 1:
            raise BadShape(
                f"latch with arrays {sorted(params)} and {len(inputs)} inputs; "
                "expected `initial` or one input"
            )
        first = inputs[0] if inputs else params["initial"].shape
        try:
            fits = np.broadcast_shapes(shape, first) == shape and (not inputs or first == shape)
        except ValueError:
            fits = False
        if not fits:
            raise BadShape(f"latch {shape} that starts as {first}; expected to match")
        if "steps" in attrs:
            _check_steps(attrs["steps"])
        return shape

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        lo, hi = int(attrs["lo"]), int(attrs["hi"])
        initial = params.get("initial", np.zeros(1, np.int32))
        first = inputs[0] if inputs else (int(initial.min()), int(initial.max()))
        if not lo <= min(0, first[0]) or not max(0, first[1]) <= hi:
            raise RangeOverflow(
                f"latch in {lo}..{hi} that starts within {first}; expected lo <= 0 "
                "<= hi, and the first value between them"
            )
        return lo, hi, max(-lo, hi)

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        """The value at the first step, without a batch axis where it does not depend on data."""
        return xs[0] if xs else np.broadcast_to(node.params["initial"], node.shape).astype(np.int64)

    def emit(self, node: Node, writer: Writer) -> None:
        """Nothing: the state of the loop, which the writer carries round."""


class Lif(Op):
    """The time-stepped leaky integrate-and-fire neuron, in integers. Value: its spike, 0 or 1.

    With v the membrane potential before the step (`initial` at the first) and A the charge:
    u = floor(v * leak / 2^shift) + gain * A + bias; S = 1 where u >= theta, else 0; then
    kind "soft": v = u - reset * S; kind "hard": v = reset where S, else u.

    params leak, gain, bias, theta, reset, initial: int64, each broadcasts against the input;
    0 <= leak <= 2^shift. attrs kind, shift (0 to 31), steps: for so many steps |v| is proved to
    stay below 2^62. A strict threshold u > t is theta = t + 1.

    With gain and bias multiples of 2^(shift * (steps - 1)) nothing is ever rounded: that is
    exact fixed point. Otherwise the floor is part of the definition. tau = 2 with decayed input
    (spikingjelly) is shift 1, leak 1, gain 2^(steps - 1), with theta on the same scale.

    Within a step S is a function of A: a neuron that is told another charge corrects its spike
    (P3). v moves at the barrier between two steps.
    """

    name = "lif"
    dtypes = dict.fromkeys(LIF_ARRAYS, "int64")

    def shape(self, attrs: Attrs, params: Params, inputs: Sequence[Shape]) -> Shape:
        source = inputs[0]
        if sorted(params) != sorted(LIF_ARRAYS) or set(attrs) != {"kind", "shift", "steps"}:
            raise BadShape(f"lif with {sorted(attrs)} and arrays {sorted(params)}")
        if attrs["kind"] not in ("soft", "hard") or not 0 <= attrs["shift"] <= 31:
            raise BadShape(
                f"lif of kind {attrs['kind']!r}, shift {attrs['shift']}; expected soft "
                "or hard, 0 to 31"
            )
        _check_steps(attrs["steps"])
        for name, array in params.items():
            try:
                fits = np.broadcast_shapes(source, array.shape) == source and array.size > 0
            except ValueError:
                fits = False
            if not fits:
                raise BadShape(f"lif {name} {array.shape} does not broadcast against {source}")
        leak, one = params["leak"], 2 ** int(attrs["shift"])
        if leak.min() < 0 or leak.max() > one:
            raise BadThreshold(f"leak {leak.min()}..{leak.max()}; expected 0 to 2^shift = {one}")
        return source

    def bounds(
        self, attrs: Attrs, params: Params, inputs: Sequence[Bounds], shapes: Sequence[Shape]
    ) -> tuple[int, int, int]:
        charge = max(-inputs[0][0], inputs[0][1])
        reach = membrane_bound(attrs, params, charge)
        # beside v, v * leak and theta are held in 64 bits
        if max(reach * max(_most(params["leak"]), 1), _most(params["theta"])) >= MEMBRANE_BOUND:
            raise RangeOverflow(
                f"a membrane potential can reach {reach} in {attrs['steps']} steps; "
                "expected v * leak and theta below 2^62; use a smaller gain"
            )
        return 0, 1, charge

    def dense(self, node: Node, xs: Sequence[Ints], constant: bool = True) -> Ints:
        """S for the charge xs[0] and the membrane potential xs[1] before the step."""
        return (_integrated(node, xs) >= node.params["theta"]).astype(np.int64)

    def barrier(self, node: Node, xs: Sequence[Ints]) -> Ints:
        """The membrane potential after the step; arguments as for `dense`."""
        u, spike, reset = _integrated(node, xs), self.dense(node, xs), node.params["reset"]
        if node.attrs["kind"] == "soft":
            return np.asarray(u - reset * spike)
        return np.asarray(np.where(spike == 1, reset, u))

    def emit(self, node: Node, writer: Writer) -> None:
        """S and the next v from the function LIF, whose state the writer carries round."""
        name = node.name
        arrays = [
            writer.array(f"{name}.{key}", batched(node.params[key], len(node.shape))[None])
            for key in ("leak", "gain", "bias", "theta", "reset")
        ]
        one = writer.array(f"one_{node.attrs['shift']}", np.int64(2 ** node.attrs["shift"]))
        inputs = [writer.word(writer.source(node)), writer.state(node), *arrays, one]
        op = "LIF" if node.attrs["kind"] == "soft" else "HardLIF"
        writer.is_byte(node, writer.emit_stateful(op, inputs, f"{name}.spikes", node))


def _integrated(node: Node, xs: Sequence[Ints]) -> Ints:
    p = node.params
    leaked = (xs[1] * p["leak"]) >> np.int64(node.attrs["shift"])
    u: Ints = leaked + p["gain"] * xs[0] + p["bias"]
    return u


def _most(array: Ints) -> int:
    # in Python's integers: the absolute value of -2^63 does not fit 64 bits
    return max(-int(array.min()), int(array.max()))


def membrane_bound(attrs: Attrs, params: Params, charge: int) -> int:
    """No |v| or |u| exceeds it: leaking never adds, and each step adds its input and its reset."""
    step = _most(params["gain"]) * charge + _most(params["bias"]) + _most(params["reset"])
    return _most(params["initial"]) + int(attrs["steps"]) * step

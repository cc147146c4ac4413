"""What readers of time-stepped networks share: nodes that happen at a time, neurons in integers.

`from_snn` reads torch modules with it, `from_nir` reads NIR files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.converters.activations import Floats
from snnkit.converters.frames import Refusal
from snnkit.converters.network import Affine, Network, Policy, compress, padded_response
from snnkit.converters.snn_layers import Neuron
from snnkit.errors import Problem
from snnkit.graph import INT32_BOUND, Node

BEFORE, DURING, AFTER = 0, 1, 2
"""When a value exists: once before the steps, in each step, once after them."""
FINE = 8
"""Bits below one unit of charge that biases and resets keep."""
MEMBRANE_BITS = 60
LEAK_BITS = 24


@dataclass(frozen=True)
class Value:
    """A tensor of the model and when it exists."""

    affine: Affine
    when: int


class Walk:
    """Nodes made so far, when each happens, and what could not be made.

    on_grid : weights that are integers in some step already are kept as they are.
    """

    def __init__(self, weight_bits: int, steps: int, on_grid: bool = False):
        self.on_grid = on_grid
        self.net = Network(Policy(weight_bits=weight_bits), None)
        self.steps = steps
        self.problems: list[Problem] = []
        self.when: dict[str, int] = {}
        self.latches: dict[str, str] = {}

    def add(self, name: str, op: str, inputs: Any, params: Any, attrs: Any, when: int) -> Node:
        """A node, and when it happens."""
        node = self.net.add(name, op, inputs, params, attrs)
        self.when[node.name] = when
        return node

    def weighted(self, name: str, op: str, value: Value, weight: Floats, attrs: Any) -> Affine:
        """conv or linear with the float weights of the model."""
        x = value.affine
        if x.node.hi - x.node.lo > 255:
            raise Refusal(
                f"its input can reach {x.node.lo}..{x.node.hi}", "put neurons in front of it"
            )
        if op == "conv":
            along = np.broadcast_to(x.scale, x.shape).reshape(x.shape[0], -1)[:, 0]
            response = padded_response(x, weight, attrs)
            group = int(attrs["group"])
            per = along.reshape(group, -1).repeat(len(weight) // group, axis=0)
            scaled = weight * per.reshape(*per.shape, *(1,) * (weight.ndim - 2))
        else:
            response = np.broadcast_to(x.offset, x.shape) @ weight.T
            scaled = weight * np.broadcast_to(x.scale, x.shape)
        y = self.net.synapses(name, op, x, scaled, attrs, self.on_grid)
        self.when[y.node.name] = value.when
        return self.net.affine(y.node, y.scale, response)

    def accumulated(self, name: str, x: Affine) -> Node:
        """The sum of x's integers over the steps so far: a latch of itself plus x."""
        bound = self.steps * max(-x.node.lo, x.node.hi)
        if bound >= INT32_BOUND:
            raise Refusal(f"the sum over {self.steps} steps can reach {bound}", "use fewer steps")
        attrs = {"shape": x.shape, "lo": min(0, self.steps * x.node.lo), "steps": self.steps}
        attrs["hi"] = max(0, self.steps * x.node.hi)
        zero = np.zeros((1,) * len(x.shape), np.int64)
        latch = self.add(f"{name}.before", "latch", [], {"initial": zero}, attrs, DURING)
        ones = {"m0": np.int64(1), "m1": np.int64(1)}
        total = self.add(name, "add", [latch, x.node], ones, {}, DURING)
        self.latches[latch.name] = total.name
        return total

    def positive(self, value: Value) -> Affine:
        """The value with a scale above zero."""
        x = value.affine
        if (x.scale <= 0).any():
            x = self.net.positive(x)
            self.when[x.node.name] = value.when
        return x


def _least(level: Floats, strict: bool) -> Floats:
    """The least integer above (strict) or at least at `level`."""
    return np.floor(level) + 1 if strict else np.ceil(level)


def binary(neuron: Neuron, x: Affine) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and attributes of the spike node that fires where x = scale * A + offset reaches the
    threshold of `neuron`, without a memory."""
    level = (neuron.threshold / neuron.gain - x.offset) / x.scale
    # a charge beyond the node's bounds does not occur
    least = np.clip(_least(level, neuron.strict), x.node.lo, x.node.hi + 1)
    init = compress(1 - least, len(x.shape)).astype(np.int64)
    params = {"init": init, "theta": np.ones((1,) * init.ndim, np.int64)}
    return params, {"kind": "uniform", "lo": 0, "hi": 1}


def lif(
    neuron: Neuron, x: Affine, steps: int, fine: int = FINE
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and attributes of the lif node of `neuron` with input x = scale * A + offset.

    The integer membrane counts units of gain * scale / g above the potential that `neuron` is
    given from, with g the node's own gain: the input A adds g A. Where leak * 2^s is an integer
    for a small s, g is a multiple of 2^(s (T - 1)), so that no charge is ever rounded; else leak
    has 24 bits and each step loses less than one unit. fine : bits of g beyond that.
    """
    leak = np.asarray(neuron.leak, np.float64)
    shift = next((s for s in range(9) if not (leak * 2**s % 1).any()), LEAK_BITS)
    bits = fine + (shift * (steps - 1) if shift < LEAK_BITS else fine)
    after = neuron.reset
    if after is None:
        after = neuron.threshold if neuron.soft else 0.0
    most = np.maximum(np.abs(neuron.threshold), np.abs(after)) / neuron.gain / x.scale
    reach = steps * float(max(-x.node.lo, x.node.hi) + np.abs(x.offset / x.scale).max())
    reach += float(most.max()) * (steps + 1)
    room = MEMBRANE_BITS - shift - math.ceil(math.log2(max(reach, 2.0)))
    if room < 0:
        raise Refusal(f"a membrane potential can reach {reach:.3g} units", "use fewer steps")
    gain = 2 ** min(bits, room, 40)
    unit = neuron.gain * x.scale / gain
    rank = len(x.shape)
    one = np.ones((1,) * rank)
    arrays = {
        "leak": compress(one * np.rint(leak * 2**shift), rank),
        "gain": one * gain,
        "bias": compress(np.rint(x.offset / x.scale * gain), rank),
        "theta": compress(_least(neuron.threshold / unit, neuron.strict), rank),
        "reset": compress(np.rint(after / unit), rank),
        "initial": 0 * one,
    }
    attrs = {"kind": "soft" if neuron.soft else "hard", "shift": shift, "steps": steps}
    return {k: v.astype(np.int64) for k, v in arrays.items()}, attrs

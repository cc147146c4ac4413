"""A directly trained spiking network of `snnkit.nn` as a graph of integers.

The module is traced with torch.fx and read layer by layer as affine readings of integers, as a
float model is (`snnkit.converters.network`): value = scale * node + offset. Weights get 8 bits per
output channel, pooling divisors and input scaling go into the next weights and thresholds, biases
into the membrane. Rounding weights is a quantisation error: measure it on data. From there on the
spikes of every backend are equal.

One step (T = 1): the membrane starts empty, so a neuron is one comparison of its charge, a
binary `spike` node, and the graph is a one-shot graph that every backend runs.
More steps: a step graph. What the image alone decides is computed once, `lif` nodes carry the
membrane potential from step to step, and an accumulator sums the readout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import snnkit
from snnkit.converters.activations import Floats
from snnkit.converters.boundaries import input_grid
from snnkit.converters.frames import Refusal
from snnkit.converters.network import Affine, Network, Policy, compress, padded_response
from snnkit.converters.snn_layers import LAYERS, Neuron, kind_of, neuron_of
from snnkit.errors import BadCalibration, Problem, UnsupportedModel, UsageError
from snnkit.graph import INT32_BOUND, Boundary, Graph, Node, frozen

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


def from_snn(model: Any, samples: Any, *, weight_bits: int = 8) -> Graph:
    """The spiking network `model` as a graph of integers.

    Parameters
    ----------
    model : torch module over [N, *shape] that holds a `Direct` encoding, or over [T, N, *shape]
        without one; Conv1d/2d, Linear, BatchNorm, pooling, Flatten, IF, LIF, PLIF, IIRNeuron,
        `Folded`, `TimeSum`, `TimeMean`, additions. It is left as it was.
    samples : inputs as the model takes them. Data on a grid of at most 256 values per channel
        (8-bit images) are read exactly, others in 255 steps.
    weight_bits : 2 to 8, symmetric, per output channel.

    Raises
    ------
    UnsupportedModel : with every layer that has no integer form, by name. BadCalibration.
    """
    if not 2 <= weight_bits <= 8:
        raise UsageError(f"weight_bits {weight_bits}; expected 2 to 8")
    reader = _Reader(model, np.asarray(samples, np.float32), weight_bits)
    return reader.graph()


class _Reader:
    """The walk over the traced module."""

    def __init__(self, model: Any, samples: Floats, weight_bits: int):
        if not samples.size or not np.isfinite(samples).all():
            raise BadCalibration(f"samples {samples.shape}; expected finite numbers, at least one")
        self.net = Network(Policy(weight_bits=weight_bits), None)
        self.problems: list[Problem] = []
        self.when: dict[str, int] = {}
        self.latches: dict[str, str] = {}
        self.used: set[int] = set()
        self.values: dict[Any, Value] = {}
        self.modules, self.calls = _traced(model)
        steps = [m.steps for m in self.modules.values() if kind_of(m) == "Direct"]
        self.timed = not steps
        self.steps = samples.shape[0] if self.timed else int(steps[0])
        if self.timed and samples.ndim < 3:
            raise BadCalibration(f"samples {samples.shape}; expected (T, N, ...): no Direct in it")
        self.flat = samples.reshape(-1, *samples.shape[2:]) if self.timed else samples

    def graph(self) -> Graph:
        source, result = None, None
        for call in self.calls:
            if call.op == "placeholder":
                source = self._input(call)
            elif call.op == "output":
                result = self.values.get(call.args[0])
            else:
                self._read(call)
        if self.problems or source is None or result is None:
            problem = Problem("model", "module", "no output", "return one tensor of the input")
            raise UnsupportedModel(self.problems or [problem])
        output = self._output(result, source)
        graph = self._assembled(source, output)
        graph.check()
        return graph

    def _input(self, call: Any) -> Boundary:
        shape = self.flat.shape[1:]
        scale, offset, lo = input_grid(self.flat, len(shape))
        attrs = {"shape": shape, "lo": lo, "hi": lo + 255}
        timed = self.timed and self.steps > 1
        when = DURING if timed else BEFORE
        node = self.add(call.name, "input", [], {}, attrs, when)
        affine = self.net.affine(node, scale.astype(np.float64), offset.astype(np.float64))
        self.values[call] = Value(affine, when)
        dims: tuple[int | str, ...] = ("batch", *shape)
        if self.timed:
            dims = (self.steps, *dims)
        axes = (1, 0) if timed else (0, None)
        return Boundary(call.name, node.name, "float32", dims, scale, offset, (), *axes)

    def _read(self, call: Any) -> None:
        known = [self.values.get(a) for a in call.all_input_nodes]
        inputs = [v for v in known if v is not None]
        if len(inputs) < len(known) or not inputs:
            return  # what it reads has been refused
        name = str(call.target) if call.op == "call_module" else call.name
        try:
            if call.op == "call_module":
                self.values[call] = self._layer(name, self.modules[name], inputs[0])
            elif getattr(call.target, "__name__", call.target) in ("add", "iadd"):
                self.values[call] = self._sum(name, inputs)
            else:
                raise Refusal("a function call", "write the network in layers")
        except Refusal as refusal:
            kind = type(self.modules.get(name)).__name__ if name in self.modules else call.op
            self.problems.append(Problem(name, kind, refusal.reason, refusal.remedy))

    def _layer(self, name: str, module: Any, value: Value) -> Value:
        kind = kind_of(module)
        if kind in ("Folded", "Sequential"):
            for i, part in module.named_children():
                value = self._layer(f"{name}.{i}", part, value)
            return value
        if kind in ("Identity", "Dropout", "TimeDropout", "Direct"):
            return value
        if kind in ("TimeSum", "TimeMean"):
            return self._over_time(name, value, kind == "TimeMean")
        neuron = neuron_of(module)
        if neuron is not None and id(module) in self.used:
            raise Refusal("one neuron layer in two places", "give each place its own neurons")
        if neuron is not None:
            self.used.add(id(module))
            return self._neuron(name, neuron, value)
        if kind not in LAYERS:
            raise Refusal("no integer form", "use layers that `from_snn` lists")
        affine = LAYERS[kind](self, name, module, value)
        return Value(affine, value.when)

    def add(self, name: str, op: str, inputs: Any, params: Any, attrs: Any, when: int) -> Node:
        """A node, and when it happens."""
        node = self.net.add(name, op, inputs, params, attrs)
        self.when[node.name] = when
        return node

    def weighted(self, name: str, op: str, value: Value, weight: Floats, attrs: Any) -> Affine:
        """conv or linear with the float weights of the module."""
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
        y = self.net.synapses(name, op, x, scaled, attrs)
        self.when[y.node.name] = value.when
        return self.net.affine(y.node, y.scale, response)

    def _sum(self, name: str, inputs: list[Value]) -> Value:
        if len(inputs) != 2:
            raise Refusal("it adds a constant", "put constants into biases")
        when = max(v.when for v in inputs)
        if when == AFTER and any(v.when != AFTER for v in inputs):
            raise Refusal("it adds a sum over time and one step", "add before the readout")
        y = self.net.total(name, [v.affine for v in inputs])
        self.when[y.node.name] = when
        return Value(y, when)

    def _neuron(self, name: str, neuron: Neuron, value: Value) -> Value:
        if value.when == AFTER:
            raise Refusal("a neuron behind the sum over time", "leave it out")
        x = value.affine
        if (x.scale <= 0).any():
            x = self.net.positive(x)
            self.when[x.node.name] = value.when
        if self.steps == 1:
            level = (neuron.threshold / neuron.gain - x.offset) / x.scale
            least = _least(level, neuron.strict)
            # a charge beyond the node's bounds does not occur
            least = np.clip(least, x.node.lo, x.node.hi + 1).astype(np.int64)
            params = {"init": compress(1 - least, len(x.shape)).astype(np.int64), "theta": [1]}
            attrs = {"kind": "uniform", "lo": 0, "hi": 1}
            node = self.add(name, "spike", [x.node], _shaped(params), attrs, value.when)
        else:
            params, attrs = lif(neuron, x, self.steps)
            node = self.add(name, "lif", [x.node], params, attrs, DURING)
        return Value(self.net.affine(node, 1.0, 0.0), BEFORE if self.steps == 1 else DURING)

    def _over_time(self, name: str, value: Value, mean: bool) -> Value:
        x, steps = value.affine, self.steps
        divisor = steps if mean else 1
        if value.when != DURING:
            scaled = self.net.affine(x.node, x.scale * steps / divisor, x.offset * steps / divisor)
            return Value(scaled, value.when)
        bound = steps * max(-x.node.lo, x.node.hi)
        if bound >= INT32_BOUND:
            raise Refusal(f"the sum over {steps} steps can reach {bound}", "use fewer steps")
        attrs = {"shape": x.shape, "lo": min(0, steps * x.node.lo), "steps": steps}
        attrs["hi"] = max(0, steps * x.node.hi)
        zero = np.zeros((1,) * len(x.shape), np.int64)
        latch = self.add(f"{name}.before", "latch", [], {"initial": zero}, attrs, DURING)
        ones = {"m0": np.int64(1), "m1": np.int64(1)}
        total = self.add(name, "add", [latch, x.node], ones, {}, DURING)
        self.latches[latch.name] = total.name
        return Value(self.net.affine(total, x.scale / divisor, x.offset * steps / divisor), AFTER)

    def _output(self, value: Value, source: Boundary) -> Boundary:
        x = value.affine
        if value.when == DURING:
            problem = Problem("output", "tensor", "one value per step", "sum or average over time")
            raise UnsupportedModel([problem])
        bias = np.clip(np.rint(x.offset / x.scale), -(2**29), 2**29).astype(np.int64)
        when = AFTER if self.steps > 1 else BEFORE
        node = self.add("output.readout", "readout", [x.node], {"bias": bias}, {}, when)
        scale = frozen(
            x.scale.astype(np.float32) if x.scale.size > 1 else np.float32(x.scale.max())
        )
        dims: tuple[int | str, ...] = ("batch", *x.shape)
        return Boundary("output", node.name, "float32", dims, scale, frozen(np.float32(0)))

    def _assembled(self, source: Boundary, output: Boundary) -> Graph:
        used = _ancestors(self.net.nodes, self.latches, output.node)
        nodes = tuple(n for n in self.net.nodes.values() if n.name in used)
        meta = {"version": snnkit.__version__, "source": "snnkit.nn", "steps": str(self.steps)}
        meta["quantisation"] = f"weight bits {self.net.policy.weight_bits}"
        if self.steps == 1:
            if self.timed:
                source = replace(source, dims=source.dims[1:])
            return Graph(nodes, (source,), (output,), meta)
        cut = [[n for n in nodes if self.when[n.name] == w] for w in (BEFORE, DURING, AFTER)]
        sweeps = tuple((len(part), int(w == DURING)) for w, part in enumerate(cut) if part)
        ordered = tuple(n for part in cut for n in part)
        return Graph(ordered, (source,), (output,), meta, sweeps, self.steps, self.latches)


def _least(level: Floats, strict: bool) -> Floats:
    """The least integer above (strict) or at least at `level`."""
    return np.floor(level) + 1 if strict else np.ceil(level)


def _shaped(params: dict[str, Any]) -> dict[str, Any]:
    rank = params["init"].ndim
    return {**params, "theta": np.ones((1,) * rank, np.int64)}


def lif(neuron: Neuron, x: Affine, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and attributes of the lif node of `neuron` with input x = scale * A + offset.

    The integer membrane counts units of gain * scale / g above the reset potential, with g the
    node's own gain: the input A adds g A. Where leak * 2^s is an integer for a small s, g is a
    multiple of 2^(s (T - 1)), so that no charge is ever rounded; else leak has 24 bits and each
    step loses less than one unit.
    """
    shift = next((s for s in range(9) if (neuron.leak * 2**s).is_integer()), LEAK_BITS)
    bits = FINE + (shift * (steps - 1) if shift < LEAK_BITS else FINE)
    reach = steps * float(max(-x.node.lo, x.node.hi) + np.abs(x.offset / x.scale).max())
    reach += float(np.abs(neuron.threshold / neuron.gain / x.scale).max()) * (steps + 1)
    room = MEMBRANE_BITS - shift - math.ceil(math.log2(max(reach, 2.0)))
    if room < 0:
        raise Refusal(f"a membrane potential can reach {reach:.3g} units", "use fewer steps")
    gain = 2 ** min(bits, room, 40)
    unit = neuron.gain * x.scale / gain
    theta = _least(neuron.threshold / unit, neuron.strict)
    reset = np.rint(neuron.threshold / unit) if neuron.soft else np.zeros(1)
    rank = len(x.shape)
    one = np.ones((1,) * rank)
    arrays = {
        "leak": one * np.rint(neuron.leak * 2**shift),
        "gain": one * gain,
        "bias": compress(np.rint(x.offset / x.scale * gain), rank),
        "theta": compress(theta, rank),
        "reset": compress(reset, rank),
        "initial": 0 * one,
    }
    attrs = {"kind": "soft" if neuron.soft else "hard", "shift": shift, "steps": steps}
    return {k: v.astype(np.int64) for k, v in arrays.items()}, attrs


def _ancestors(known: dict[str, Node], latches: dict[str, str], last: str) -> set[str]:
    used: set[str] = set()
    stack = [last]
    while stack:
        name = stack.pop()
        if name not in used:
            used.add(name)
            stack.extend([*known[name].inputs, *([latches[name]] if name in latches else [])])
    return used


def _traced(model: Any) -> tuple[dict[str, Any], list[Any]]:
    """Modules by name and the calls in order; neurons and `Folded` are not looked into."""
    import torch

    class Tracer(torch.fx.Tracer):  # type: ignore[misc]
        def is_leaf_module(self, module: Any, name: str) -> bool:
            ours = type(module).__module__.startswith("snnkit.nn")
            return ours or bool(super().is_leaf_module(module, name))

    training = model.training
    model.eval()
    try:
        traced = Tracer().trace(model)
    except Exception as error:  # what a foreign forward may raise on proxies is open
        reason = f"torch.fx cannot trace it: {str(error).strip().splitlines()[0]}"
        problem = Problem(type(model).__name__, "module", reason, "write forward without branches")
        raise UnsupportedModel([problem]) from error
    finally:
        model.train(training)
    return dict(model.named_modules()), list(traced.nodes)

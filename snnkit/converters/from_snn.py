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

from dataclasses import replace
from typing import Any

import numpy as np

import snnkit
from snnkit.converters.activations import Floats
from snnkit.converters.boundaries import input_grid
from snnkit.converters.frames import Refusal
from snnkit.converters.plan import ancestors
from snnkit.converters.snn_layers import LAYERS, Neuron, kind_of, neuron_of
from snnkit.converters.stepwise import AFTER, BEFORE, DURING, Value, Walk, binary, lif
from snnkit.errors import BadCalibration, Problem, UnsupportedModel, UsageError
from snnkit.graph import Boundary, Graph, frozen


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


class _Reader(Walk):
    """The walk over the traced module."""

    def __init__(self, model: Any, samples: Floats, weight_bits: int):
        if not samples.size or not np.isfinite(samples).all():
            raise BadCalibration(f"samples {samples.shape}; expected finite numbers, at least one")
        self.used: set[int] = set()
        self.values: dict[Any, Value] = {}
        self.modules, self.calls = _traced(model)
        steps = [m.steps for m in self.modules.values() if kind_of(m) == "Direct"]
        self.timed = not steps
        super().__init__(weight_bits, samples.shape[0] if self.timed else int(steps[0]))
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
        x = self.positive(value)
        if self.steps == 1:
            node = self.add(name, "spike", [x.node], *binary(neuron, x), value.when)
        else:
            node = self.add(name, "lif", [x.node], *lif(neuron, x, self.steps), DURING)
        return Value(self.net.affine(node, 1.0, 0.0), BEFORE if self.steps == 1 else DURING)

    def _over_time(self, name: str, value: Value, mean: bool) -> Value:
        x, steps = value.affine, self.steps
        divisor = steps if mean else 1
        if value.when != DURING:
            scaled = self.net.affine(x.node, x.scale * steps / divisor, x.offset * steps / divisor)
            return Value(scaled, value.when)
        total = self.accumulated(name, x)
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
        used = ancestors(self.net.nodes, self.latches, [output.node])
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

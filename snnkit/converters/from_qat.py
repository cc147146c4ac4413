"""A model prepared by `snnkit.nn.prepare`, as a graph: the integers that training used.

Nothing is calibrated and nothing is quantised here. Scales, offsets and multipliers are read off
one evaluation of the model itself; thresholds are found by bisection over the very function that
the model's evaluation applies to its integer charges.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import snnkit
from snnkit.converters.network import Network, Policy, compress
from snnkit.errors import BadCalibration, InvalidGraph, Problem, UnsupportedModel
from snnkit.graph import INT32_BOUND, Boundary, Graph, Node, frozen
from snnkit.ops.spike import NEVER

Array = npt.NDArray[Any]


def is_prepared(model: Any) -> bool:
    """Whether `model` came from `snnkit.nn.prepare`; torch is not imported for the answer."""
    module = sys.modules.get("snnkit.nn.prepared")
    return module is not None and isinstance(model, module.Prepared)


def convert_prepared(model: Any, samples: Any = None) -> Graph:
    """The graph of a prepared model. `samples`, if given, are only checked against its inputs.

    Raises UnsupportedModel with every layer whose integers leave 32 bits, BadCalibration where
    the samples have another shape.
    """
    _check_samples(model, samples)
    export = _Export(model)
    return export.graph()


def _check_samples(model: Any, samples: Any) -> None:
    if samples is None:
        return
    named = samples if isinstance(samples, Mapping) else {next(iter(model.shapes)): samples}
    for name, value in named.items():
        shape = tuple(np.shape(value))
        if name not in model.shapes or shape[1:] != tuple(model.shapes[name]):
            raise BadCalibration(
                f"input '{name}': samples of shape {shape}; expected (N, *shape) of {model.shapes}"
            )


class _Export:
    """One conversion under way: `nodes` by name of the model's layer."""

    def __init__(self, model: Any):
        import torch

        self.model = model
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        zeros = [
            torch.zeros((1, *shape), dtype=getattr(torch, model.dtypes[name]), device=device)
            for name, shape in model.shapes.items()
        ]
        self.readings = model.readings(*zeros)
        self.net = Network(Policy(), None)
        self.nodes: dict[str, Node] = {}
        self.inputs: list[Boundary] = []
        self.outputs: list[Boundary] = []
        self.problems: list[Problem] = []

    def graph(self) -> Graph:
        placed = [n for n in self.model.body.graph.nodes if n.op == "call_module"]
        rules = _rules()
        for node in placed:
            layer = self.model.body.get_submodule(node.target)
            sources = [a.name for a in node.args]
            if any(s not in self.nodes for s in sources) and type(layer).__name__ != "InputGrid":
                continue  # behind a layer that was refused
            reading = self.readings.get(node.name)
            if reading is not None and not _is_finite(reading):
                remedy = "training diverged: lower its rate and start again"
                self.problems.append(Problem(node.name, type(layer).__name__, "not finite", remedy))
                continue
            try:
                made = rules[type(layer).__name__](self, node, layer, sources)
            except InvalidGraph as error:
                remedy = "prepare with fewer levels or weight bits, or more training"
                self.problems.append(Problem(node.name, type(layer).__name__, str(error), remedy))
                continue
            self.nodes[node.name] = made
        if self.problems:
            raise UnsupportedModel(self.problems)
        used = self.net.plan.used([b.node for b in (*self.inputs, *self.outputs)])
        graph = Graph(used, tuple(self.inputs), tuple(self.outputs), self._meta())
        graph.check()
        return graph

    def _meta(self) -> dict[str, str]:
        state = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            state.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
        return {
            "version": snnkit.__version__,
            "source": state.hexdigest(),
            "quantisation": self.model.settings,
        }

    def positive(self, source: str) -> Node:
        """The node of a reading with rows turned round or silenced where its scale says so."""
        node, scale = self.nodes[source], _sample(self.readings[source].scale)
        return self.net.positive(self.net.affine(node, np.sign(scale), 0.0)).node


def _is_finite(reading: Any) -> bool:
    tensors = (reading.counts, reading.scale, reading.offset)
    return all(bool(t.isfinite().all()) for t in tensors)


def _sample(tensor: Any) -> Array:
    """A tensor that broadcasts against [N, *shape] as an array that does against *shape."""
    array = np.asarray(tensor.detach().cpu().numpy())
    return array[0] if array.ndim else array


def _integers(tensor: Any) -> Array:
    return np.asarray(tensor.detach().cpu().numpy()).astype(np.int64)


def _input(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
    name = node.args[0].name
    shape = tuple(e.model.shapes[name])
    made = e.net.add(name, "input", (), {}, {"shape": shape, "lo": layer.lo, "hi": layer.hi})
    scale, offset = (frozen(a.cpu().numpy(), np.float32) for a in (layer.scale, layer.offset))
    dims = ("batch", *shape)
    e.inputs.append(Boundary(name, made.name, e.model.dtypes[name], dims, scale, offset))
    return made


def _synapses(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
    weight = _integers(layer.integers(e.readings[sources[0]])[0])
    source = e.nodes[sources[0]]
    if not layer.dims:
        return e.net.add(node.name, "linear", [source], {"weight": weight})
    attrs = {
        "strides": layer.stride,
        "dilations": layer.dilation,
        "pads": (*layer.padding, *layer.padding),
        "group": layer.groups,
    }
    return e.net.add(node.name, "conv", [source], {"weight": weight}, attrs)


def _unchanged(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
    return e.nodes[sources[0]]


def _sum(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
    multipliers, _ = layer.multipliers(*[e.readings[s] for s in sources])
    params = {
        f"m{i}": _integers(m)[0] if m.ndim else _integers(m) for i, m in enumerate(multipliers)
    }
    return e.net.add(node.name, "add", [e.nodes[s] for s in sources], params)


def _concat(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
    attrs = {"kind": "concat", "axis": layer.axis - 1}
    return e.net.add(node.name, "route", [e.nodes[s] for s in sources], {}, attrs)


def _reshape(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
    attrs = {"kind": "reshape", "shape": layer.shape}
    return e.net.add(node.name, "route", [e.nodes[sources[0]]], {}, attrs)


def _windows(op: str) -> Callable[..., Node]:
    def rule(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
        attrs = {
            "kernel": layer.kernel,
            "strides": layer.stride,
            "pads": (*layer.padding, *layer.padding),
            "dilations": getattr(layer, "dilation", (1,) * len(layer.kernel)),
        }
        return e.net.add(node.name, op, [e.nodes[sources[0]]], {}, attrs)

    return rule


def _whole_axes(op: str) -> Callable[..., Node]:
    def rule(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
        attrs = {"axes": tuple(a - 1 for a in layer.axes), "keepdims": int(layer.keep)}
        return e.net.add(node.name, op, [e.nodes[sources[0]]], {}, attrs)

    return rule


def _spike(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
    from snnkit.nn.reading import charge

    reading, source = e.readings[sources[0]], e.positive(sources[0])
    c = charge(reading)
    initial = _integers(c.initial)
    initial = initial[0] if initial.ndim else initial.reshape((1,) * len(source.shape))
    reach = (source.lo + int(initial.min()), source.hi + int(initial.max()))
    found = layer.ladder(c.unit, c.rest, reach, len(source.shape))
    attrs = {"lo": layer.lo, "hi": layer.hi}
    if "values" not in found and not initial.any():
        nominal = float(layer.quantiser.step().detach()) / np.broadcast_to(
            _sample(c.unit), found["thresholds"].shape[:-1]
        )
        uniform = as_uniform(found["thresholds"], layer.lo, layer.hi, reach, nominal)
        if uniform is not None and _fits(uniform, source, layer):
            return e.net.add(node.name, "spike", [source], uniform, {"kind": "uniform", **attrs})
    params = {"init": initial, **found}
    return e.net.add(node.name, "spike", [source], params, {"kind": "ladder", **attrs})


def _fits(params: dict[str, Array], source: Node, layer: Any) -> bool:
    highest = int(params["theta"].max()) * (max(-layer.lo, layer.hi) + 1)
    return bool(source.peak + int(np.abs(params["init"]).max()) + highest < INT32_BOUND)


def as_uniform(
    thresholds: Array, lo: int, hi: int, reach: tuple[int, int], nominal: Array
) -> dict[str, Array] | None:
    """theta and init of the uniform staircase that equals a ladder on every charge in `reach`;
    None if there is none in some row.

    T_k = k * theta - init for k = lo+1 .. hi, where a threshold beyond reach may lie anywhere
    beyond it. `nominal` [*pattern] is tried as theta where fewer than two thresholds count.
    """
    k = np.arange(lo + 1, hi + 1)
    inside = (thresholds > reach[0]) & (thresholds <= reach[1])
    first = inside.argmax(-1)[..., None]
    two = inside & np.roll(inside, 1, -1) & (np.arange(len(k)) > 0)
    second = two.argmax(-1)[..., None]
    gap = np.take_along_axis(np.diff(thresholds, axis=-1, prepend=0), second, -1)[..., 0]
    # with fewer thresholds than two in reach, the others must lie beyond it
    span = reach[1] - reach[0] + 2
    least = np.where(inside.any(-1), 1 if len(k) == 1 else span, span)
    guess = np.clip(np.rint(nominal), least, INT32_BOUND).astype(np.int64)
    theta = np.where(two.any(-1), gap, guess)
    anchor = np.where(inside, thresholds, 0)
    # without any threshold within reach, the count is the same for all charges
    below = (thresholds <= reach[0]).sum(-1)
    middle = (below + lo) * theta + theta // 2 - (reach[0] + reach[1]) // 2
    at = np.take_along_axis(anchor, first, -1)[..., 0]
    init = np.where(inside.any(-1), k[first[..., 0]] * theta - at, middle)
    if (theta < 1).any():
        return None
    for c in np.unique(_edges(thresholds, k, theta, init, reach)):
        ladder = (thresholds <= c).sum(-1) + lo
        if (np.clip((c + init) // theta, lo, hi) != ladder).any():
            return None
    return {"theta": theta, "init": init}


def _edges(thresholds: Array, k: Array, theta: Array, init: Array, reach: tuple[int, int]) -> Array:
    """The charges at which two staircases could differ: both sides of every threshold of both."""
    steps = k * theta[..., None] - init[..., None]
    sides = [reach[0], reach[1]]
    every = np.concatenate([np.ravel(a) for a in (thresholds, thresholds - 1, steps, steps - 1)])
    every = every[(every >= reach[0]) & (every <= reach[1]) & (every != NEVER)]
    return np.concatenate([every, sides])


def _readout(e: _Export, node: Any, layer: Any, sources: list[str]) -> Node:
    from snnkit.nn.reading import charge

    c = charge(e.readings[sources[0]], whole=True)
    source, rank = e.positive(sources[0]), len(e.nodes[sources[0]].shape)
    bias = _integers(c.initial)
    bias = bias[0] if bias.ndim else bias.reshape((1,) * rank)
    made = e.net.add(f"{node.name}.bias", "readout", [source], {"bias": bias})
    scale = compress(_sample(c.unit.float()).astype(np.float64), rank).astype(np.float32)
    name = node.name.removesuffix("_readout")
    post: tuple[dict[str, Any], ...] = ()
    if layer.post is not None:
        op = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}[layer.post]
        post = ({"op": op, "axis": layer.axis},)
    offset = frozen(np.float32(0))
    scale = frozen(scale if scale.size > 1 else scale.reshape(()))
    dims: tuple[int | str, ...] = ("batch", *made.shape)
    e.outputs.append(Boundary(name, made.name, "float32", dims, scale, offset, post))
    return made


def _rules() -> dict[str, Callable[..., Node]]:
    """What each layer of a prepared model becomes, by its class's name."""
    return {
        "InputGrid": _input,
        "Synapses": _synapses,
        "Norm": _unchanged,
        "Affine": _unchanged,
        "Dropout": _unchanged,
        "Spike": _spike,
        "Sum": _sum,
        "Concat": _concat,
        "Reshape": _reshape,
        "MaxPool": _windows("max_pool"),
        "AveragePool": _windows("sum_pool"),
        "GlobalMax": _whole_axes("max_pool"),
        "GlobalAverage": _whole_axes("sum_pool"),
        "Readout": _readout,
    }
